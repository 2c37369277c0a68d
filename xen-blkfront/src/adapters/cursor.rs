//! The disk's bytes from a position on, for `embedded-io`.

use core::fmt;

use embedded_io::{ErrorKind, ErrorType, Read, Seek, SeekFrom, Write};
use xen_hypercall::{Platform, Wait};

use super::bytes::Bytes;
use crate::{BlkFront, Error};

/// A [`BlkFront`] with a position, as `std::fs::File` has one. A part of a sector is written by reading it before; the sector
/// used last is remembered, so nobody else should write to the disk meanwhile.
pub struct Cursor<'x, P: Platform> {
    bytes: Bytes<'x, P>,
    position: u64,
}

impl<'x, P: Platform + Wait> Cursor<'x, P> {
    /// Takes the disk, and a page for a sector. The position is the disk's beginning.
    ///
    /// # Errors
    /// [`Error::Grant`] when there is no memory.
    pub fn new(front: BlkFront<'x, P>) -> Result<Self, Error> {
        Ok(Self { bytes: Bytes::new(front)?, position: 0 })
    }

    /// Looks at the disk itself.
    pub fn get_ref(&self) -> &BlkFront<'x, P> {
        self.bytes.front()
    }

    /// The disk itself. What is remembered of it is forgotten, for it may be written to.
    pub fn get_mut(&mut self) -> &mut BlkFront<'x, P> {
        self.bytes.front_mut()
    }

    /// The disk again.
    pub fn into_inner(self) -> BlkFront<'x, P> {
        self.bytes.into_front()
    }

    /// How much of `len` bytes there is from the position on.
    fn room(&self, len: usize) -> usize {
        let rest = self.bytes.len().saturating_sub(self.position);
        usize::try_from(rest).map_or(len, |rest| rest.min(len))
    }
}

impl embedded_io::Error for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoDevice => ErrorKind::NotFound,
            Self::ReadOnly | Self::Untrusted => ErrorKind::PermissionDenied,
            Self::OutOfRange | Self::Unaligned | Self::TooLong | Self::BufferLength => {
                ErrorKind::InvalidInput
            }
            Self::TimedOut => ErrorKind::TimedOut,
            Self::Unsupported => ErrorKind::Unsupported,
            Self::Closed | Self::Lost => ErrorKind::BrokenPipe,
            Self::BadNode(_) | Self::Broken(_) => ErrorKind::InvalidData,
            Self::Grant(xen_gnttab::Error::OutOfMemory) => ErrorKind::OutOfMemory,
            _ => ErrorKind::Other,
        }
    }
}

impl<P: Platform> ErrorType for Cursor<'_, P> {
    type Error = Error;
}

impl<P: Platform + Wait> Read for Cursor<'_, P> {
    /// As much as `buf` has room for, less only at the disk's end.
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, Error> {
        let len = self.room(buf.len());
        if len == 0 {
            return Ok(0);
        }
        self.bytes.read(self.position, buf.get_mut(..len).unwrap_or_default())?;
        self.position += len as u64;
        Ok(len)
    }
}

impl<P: Platform + Wait> Write for Cursor<'_, P> {
    /// All of `buf`, less only at the disk's end, and there [`Error::OutOfRange`] instead of nothing.
    fn write(&mut self, buf: &[u8]) -> Result<usize, Error> {
        let len = self.room(buf.len());
        if len == 0 {
            return if buf.is_empty() { Ok(0) } else { Err(Error::OutOfRange) };
        }
        self.bytes.write(self.position, buf.get(..len).unwrap_or_default())?;
        self.position += len as u64;
        Ok(len)
    }

    /// As [`BlkFront::flush`].
    fn flush(&mut self) -> Result<(), Error> {
        self.bytes.front_mut().flush()
    }
}

impl<P: Platform + Wait> Seek for Cursor<'_, P> {
    /// Beyond the end is allowed: nothing can be read or written there.
    fn seek(&mut self, pos: SeekFrom) -> Result<u64, Error> {
        self.position = moved(self.position, self.bytes.len(), pos).ok_or(Error::OutOfRange)?;
        Ok(self.position)
    }
}

/// Where a position is then, of a disk with so many bytes. None: nowhere.
pub(crate) fn moved(position: u64, len: u64, to: SeekFrom) -> Option<u64> {
    match to {
        SeekFrom::Start(position) => Some(position),
        SeekFrom::End(offset) => len.checked_add_signed(offset),
        SeekFrom::Current(offset) => position.checked_add_signed(offset),
    }
}

impl<P: Platform> fmt::Debug for Cursor<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cursor").field("position", &self.position).finish_non_exhaustive()
    }
}
