//! The bytes of a disk that tasks share by their address, for `embedded-storage-async`, whose addresses have 32 bits.

use core::fmt;

use embedded_storage_async::{ReadStorage, Storage};
use xen_hypercall::Platform;

use super::shared_bytes::SharedBytes;
use crate::{DiskHandle, Error};

/// A [`DiskHandle`] as a [`Storage`]. Of a larger disk the first 4 GiB can be reached, and are all there is; nothing beyond is
/// read or written in their place.
///
/// A part of a sector is written by reading the sector before, so nobody else should write to the same sector meanwhile. A write that is
/// dropped may have happened in part.
pub struct SharedStorage<'d, 'x, P: Platform> {
    bytes: SharedBytes<'d, 'x, P>,
}

impl<'d, 'x, P: Platform> SharedStorage<'d, 'x, P> {
    /// Takes a page for a sector.
    ///
    /// # Errors
    /// [`Error::Grant`] when there is no memory; [`Error::Closed`] without a disk.
    pub fn new(handle: DiskHandle<'d, 'x, P>) -> Result<Self, Error> {
        Ok(Self { bytes: SharedBytes::new(handle)? })
    }

    /// The handle.
    pub fn handle(&self) -> DiskHandle<'d, 'x, P> {
        self.bytes.handle()
    }

    fn check(&self, offset: u32, len: usize) -> Result<(), Error> {
        let end = u64::from(offset).checked_add(len as u64);
        if end.is_some_and(|end| end <= self.capacity() as u64) { Ok(()) } else { Err(Error::OutOfRange) }
    }
}

impl<P: Platform> ReadStorage for SharedStorage<'_, '_, P> {
    type Error = Error;

    async fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), Error> {
        self.check(offset, bytes.len())?;
        self.bytes.read(offset.into(), bytes).await
    }

    fn capacity(&self) -> usize {
        usize::try_from(self.bytes.len().min(1 << 32)).unwrap_or(usize::MAX)
    }
}

impl<P: Platform> Storage for SharedStorage<'_, '_, P> {
    /// Written is not flushed; that is the handle's own [`flush`](DiskHandle::flush).
    async fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), Error> {
        self.check(offset, bytes.len())?;
        self.bytes.write(offset.into(), bytes).await
    }
}

impl<P: Platform> fmt::Debug for SharedStorage<'_, '_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedStorage").finish_non_exhaustive()
    }
}
