//! The disk's bytes by their address, for `embedded-storage`, whose addresses have 32 bits.

use core::fmt;

use embedded_storage::{ReadStorage, Storage};
use xen_hypercall::{Platform, Wait};

use super::bytes::Bytes;
use crate::{BlkFront, Error};

/// A [`BlkFront`] as a [`Storage`]. Of a larger disk the first 4 GiB can be reached, and are all there is; nothing beyond is
/// read or written in their place.
pub struct BlkStorage<'x, P: Platform> {
    bytes: Bytes<'x, P>,
}

impl<'x, P: Platform + Wait> BlkStorage<'x, P> {
    /// Takes the disk, and a page for a sector.
    ///
    /// # Errors
    /// [`Error::Grant`] when there is no memory.
    pub fn new(front: BlkFront<'x, P>) -> Result<Self, Error> {
        Ok(Self { bytes: Bytes::new(front)? })
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

    fn check(&self, offset: u32, len: usize) -> Result<(), Error> {
        let end = u64::from(offset).checked_add(len as u64);
        if end.is_some_and(|end| end <= self.capacity() as u64) { Ok(()) } else { Err(Error::OutOfRange) }
    }
}

impl<P: Platform + Wait> ReadStorage for BlkStorage<'_, P> {
    type Error = Error;

    fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), Error> {
        self.check(offset, bytes.len())?;
        self.bytes.read(offset.into(), bytes)
    }

    fn capacity(&self) -> usize {
        usize::try_from(self.bytes.len().min(1 << 32)).unwrap_or(usize::MAX)
    }
}

impl<P: Platform + Wait> Storage for BlkStorage<'_, P> {
    /// Written is not flushed; that is the disk's own [`BlkFront::flush`].
    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), Error> {
        self.check(offset, bytes.len())?;
        self.bytes.write(offset.into(), bytes)
    }
}

impl<P: Platform> fmt::Debug for BlkStorage<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlkStorage").finish_non_exhaustive()
    }
}
