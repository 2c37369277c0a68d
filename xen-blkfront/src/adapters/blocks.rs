//! The disk as blocks for `block-device-driver`, asynchronously.

use core::fmt;
use core::future::poll_fn;

use aligned::{A1, Aligned};
use block_device_driver::{BlockDevice, blocks_to_slice, blocks_to_slice_mut};
use xen_hypercall::Platform;

use crate::abi::SECTOR;
use crate::{BlkFront, Error, Ticket};

/// A [`BlkFront`] as a [`BlockDevice`] with blocks of any size that is whole sectors of the disk. Addresses count blocks, in
/// 32 bits, so that of a very large disk only the beginning can be reached; nothing is ever cut off an address.
///
/// No deadline is set: who wants one gives up the future, and what it waited for goes on without it.
pub struct BlkDevice<'x, P: Platform> {
    front: BlkFront<'x, P>,
}

/// An operation that is forgotten when nobody waits for it any more.
struct UnderWay<'d, 'x, P: Platform> {
    front: &'d mut BlkFront<'x, P>,
    ticket: Ticket,
}

impl<P: Platform> UnderWay<'_, '_, P> {
    async fn wait(self, out: &mut [u8]) -> Result<(), Error> {
        self.front.publish()?;
        poll_fn(|cx| self.front.poll_take(self.ticket, out, cx)).await
    }
}

impl<P: Platform> Drop for UnderWay<'_, '_, P> {
    fn drop(&mut self) {
        // Of one that was taken nothing is left to be forgotten.
        self.front.forget(self.ticket);
    }
}

impl<'x, P: Platform> BlkDevice<'x, P> {
    /// Takes the disk.
    pub fn new(front: BlkFront<'x, P>) -> Self {
        Self { front }
    }

    /// Looks at the disk itself.
    pub fn get_ref(&self) -> &BlkFront<'x, P> {
        &self.front
    }

    /// The disk itself.
    pub fn get_mut(&mut self) -> &mut BlkFront<'x, P> {
        &mut self.front
    }

    /// The disk again.
    pub fn into_inner(self) -> BlkFront<'x, P> {
        self.front
    }

    /// The first sector of some blocks, if all of them are on the disk.
    fn place(&self, address: u32, size: usize, count: usize) -> Result<u64, Error> {
        if size == 0 || size % self.front.sector_size() as usize != 0 {
            return Err(Error::Unaligned);
        }
        let each = (size / SECTOR) as u64;
        let start = u64::from(address).checked_mul(each);
        let len = (count as u64).checked_mul(each);
        let end = start.zip(len).and_then(|(start, len)| start.checked_add(len));
        if end.is_none_or(|end| end > self.front.capacity()) {
            return Err(Error::OutOfRange);
        }
        start.ok_or(Error::OutOfRange)
    }

    /// Bytes of one operation: as many as go into a request.
    fn part(&self) -> usize {
        self.front.request_sectors().min(self.front.max_sectors()) as usize * SECTOR
    }
}

impl<P: Platform, const SIZE: usize> BlockDevice<SIZE> for BlkDevice<'_, P> {
    type Error = Error;
    type Align = A1;

    async fn read(&mut self, address: u32, data: &mut [Aligned<A1, [u8; SIZE]>]) -> Result<(), Error> {
        let mut at = self.place(address, SIZE, data.len())?;
        let part = self.part();
        for out in blocks_to_slice_mut(data).chunks_mut(part) {
            let sectors = (out.len() / SECTOR) as u64;
            let ticket = self.front.submit_read(at, sectors)?;
            UnderWay { front: &mut self.front, ticket }.wait(out).await?;
            at += sectors;
        }
        Ok(())
    }

    async fn write(&mut self, address: u32, data: &[Aligned<A1, [u8; SIZE]>]) -> Result<(), Error> {
        let mut at = self.place(address, SIZE, data.len())?;
        let part = self.part();
        for data in blocks_to_slice(data).chunks(part) {
            let ticket = self.front.submit_write(at, data)?;
            UnderWay { front: &mut self.front, ticket }.wait(&mut []).await?;
            at += (data.len() / SECTOR) as u64;
        }
        Ok(())
    }

    async fn size(&mut self) -> Result<u64, Error> {
        Ok(self.front.capacity() * SECTOR as u64)
    }
}

impl<P: Platform> fmt::Debug for BlkDevice<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlkDevice").field("front", &self.front).finish()
    }
}
