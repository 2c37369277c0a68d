//! The bytes of a disk that tasks share from a position on, for `embedded-io-async`.

use core::fmt;

use embedded_io_async::{ErrorType, Read, Seek, SeekFrom, Write};
use xen_hypercall::Platform;

use super::cursor::moved;
use super::shared_bytes::SharedBytes;
use crate::{DiskHandle, Error};

/// A [`DiskHandle`] with a position, as `std::fs::File` has one.
///
/// A part of a sector is written by reading the sector before, so nobody else should write to the same sector meanwhile. A read that is
/// dropped has no effect; a write may have happened in part. The position moves when all is done.
pub struct SharedCursor<'d, 'x, P: Platform> {
    bytes: SharedBytes<'d, 'x, P>,
    position: u64,
}

impl<'d, 'x, P: Platform> SharedCursor<'d, 'x, P> {
    /// Takes a page for a sector. The position is the disk's beginning.
    ///
    /// # Errors
    /// [`Error::Grant`] when there is no memory; [`Error::Closed`] without a disk.
    pub fn new(handle: DiskHandle<'d, 'x, P>) -> Result<Self, Error> {
        Ok(Self { bytes: SharedBytes::new(handle)?, position: 0 })
    }

    /// The handle.
    pub fn handle(&self) -> DiskHandle<'d, 'x, P> {
        self.bytes.handle()
    }

    /// How much of `len` bytes there is from the position on.
    fn room(&self, len: usize) -> usize {
        let rest = self.bytes.len().saturating_sub(self.position);
        usize::try_from(rest).map_or(len, |rest| rest.min(len))
    }
}

impl<P: Platform> ErrorType for SharedCursor<'_, '_, P> {
    type Error = Error;
}

impl<P: Platform> Read for SharedCursor<'_, '_, P> {
    /// As much as `buf` has room for, less only at the disk's end.
    async fn read(&mut self, buf: &mut [u8]) -> Result<usize, Error> {
        let len = self.room(buf.len());
        self.bytes.read(self.position.min(self.bytes.len()), buf.get_mut(..len).unwrap_or_default()).await?;
        self.position += len as u64;
        Ok(len)
    }
}

impl<P: Platform> Write for SharedCursor<'_, '_, P> {
    /// All of `buf`, less only at the disk's end, and there [`Error::OutOfRange`] instead of nothing.
    async fn write(&mut self, buf: &[u8]) -> Result<usize, Error> {
        let len = self.room(buf.len());
        if len == 0 && !buf.is_empty() {
            return Err(Error::OutOfRange);
        }
        self.bytes.write(self.position.min(self.bytes.len()), buf.get(..len).unwrap_or_default()).await?;
        self.position += len as u64;
        Ok(len)
    }

    /// As [`DiskHandle::flush`].
    async fn flush(&mut self) -> Result<(), Error> {
        self.handle().flush().await
    }
}

impl<P: Platform> Seek for SharedCursor<'_, '_, P> {
    /// Beyond the end is allowed: nothing can be read or written there.
    async fn seek(&mut self, pos: SeekFrom) -> Result<u64, Error> {
        self.position = moved(self.position, self.bytes.len(), pos).ok_or(Error::OutOfRange)?;
        Ok(self.position)
    }
}

impl<P: Platform> fmt::Debug for SharedCursor<'_, '_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedCursor").field("position", &self.position).finish_non_exhaustive()
    }
}
