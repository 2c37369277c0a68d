//! The disk as blocks for `block-device-driver`, asynchronously.

use core::fmt;

use aligned::{A1, Aligned};
use block_device_driver::{BlockDevice, blocks_to_slice, blocks_to_slice_mut};
use xen_hypercall::Platform;

use crate::abi::SECTOR;
use crate::{DiskHandle, Error};

/// A [`DiskHandle`] as a [`BlockDevice`] with blocks of any size that is whole sectors of the disk. Addresses count blocks, in
/// 32 bits, so that of a very large disk only the beginning can be reached; nothing is ever cut off an address.
///
/// Copies are the same disk, for one task each. A transfer is several operations at once, waits for room when others have it all,
/// fails when the disk ends, and can be dropped at any time: all as the handle's calls.
pub struct BlkDevice<'d, 'x, P: Platform> {
    handle: DiskHandle<'d, 'x, P>,
}

impl<P: Platform> Clone for BlkDevice<'_, '_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: Platform> Copy for BlkDevice<'_, '_, P> {}

impl<'d, 'x, P: Platform> BlkDevice<'d, 'x, P> {
    /// The disk that a handle is of.
    pub fn new(handle: DiskHandle<'d, 'x, P>) -> Self {
        Self { handle }
    }

    /// The handle.
    pub fn handle(&self) -> DiskHandle<'d, 'x, P> {
        self.handle
    }

    /// Makes what was written before durable ([`DiskHandle::flush`]).
    ///
    /// # Errors
    /// As there.
    pub async fn flush(&mut self) -> Result<(), Error> {
        self.handle.flush().await
    }

    /// The first sector of some blocks, if all of them are on the disk.
    fn place(&self, address: u32, size: usize, count: usize) -> Result<u64, Error> {
        if self.handle.state().is_none() {
            return Err(Error::Closed);
        }
        if size == 0 || size % self.handle.sector_size() as usize != 0 {
            return Err(Error::Unaligned);
        }
        let each = (size / SECTOR) as u64;
        let start = u64::from(address).checked_mul(each);
        let len = (count as u64).checked_mul(each);
        let end = start.zip(len).and_then(|(start, len)| start.checked_add(len));
        if end.is_none_or(|end| end > self.handle.capacity()) {
            return Err(Error::OutOfRange);
        }
        start.ok_or(Error::OutOfRange)
    }
}

impl<P: Platform, const SIZE: usize> BlockDevice<SIZE> for BlkDevice<'_, '_, P> {
    type Error = Error;
    type Align = A1;

    async fn read(&mut self, address: u32, data: &mut [Aligned<A1, [u8; SIZE]>]) -> Result<(), Error> {
        let lba = self.place(address, SIZE, data.len())?;
        if data.is_empty() {
            return Ok(());
        }
        self.handle.read(lba, blocks_to_slice_mut(data)).await
    }

    async fn write(&mut self, address: u32, data: &[Aligned<A1, [u8; SIZE]>]) -> Result<(), Error> {
        let lba = self.place(address, SIZE, data.len())?;
        if data.is_empty() {
            return Ok(());
        }
        self.handle.write(lba, blocks_to_slice(data)).await
    }

    /// Fails when there is no disk.
    async fn size(&mut self) -> Result<u64, Error> {
        if self.handle.state().is_none() {
            return Err(Error::Closed);
        }
        Ok(self.handle.capacity() * SECTOR as u64)
    }
}

impl<P: Platform> fmt::Debug for BlkDevice<'_, '_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlkDevice").field("handle", &self.handle).finish()
    }
}
