//! The disk as the file system crate `embedded-sdmmc` wants it: blocks of 512 bytes, by shared reference.
#![allow(unsafe_code, reason = "owns memory of the platform's")]

use core::cell::RefCell;
use core::fmt;
use core::ops::Range;
use core::ptr::NonNull;

use embedded_sdmmc::{Block, BlockCount, BlockDevice, BlockIdx};
use xen_hypercall::{PAGE_SIZE, Page, Platform, Wait};

use crate::abi::SECTOR;
use crate::{BlkFront, Error};

/// Pages of the window.
const PAGES: usize = 8;
/// Blocks that the window holds.
const BLOCKS: u64 = (PAGES * PAGE_SIZE / SECTOR) as u64;

/// A [`BlkFront`] as a [`BlockDevice`].
///
/// Reads go through a window of 32 KiB, so that blocks one after the other are one request. Writes go to the disk at
/// once, and through the window, too: on a disk with larger sectors the rest of a sector is read before. Nobody else
/// should write to the disk meanwhile; who does by [`with`](Self::with) empties the window.
pub struct SdmmcDisk<'x, P: Platform> {
    inner: RefCell<Inner<'x, P>>,
}

struct Inner<'x, P: Platform> {
    front: BlkFront<'x, P>,
    memory: Memory<'x, P>,
    /// Which blocks of the disk are in the memory.
    window: Range<u64>,
}

/// Some pages of our own.
struct Memory<'x, P: Platform> {
    platform: &'x P,
    first: NonNull<Page>,
}

// SAFETY: the pages are exclusively this value's and not tied to a thread; `&P` goes to another if `P: Sync`.
unsafe impl<P: Platform + Sync> Send for Memory<'_, P> {}

impl<P: Platform> Memory<'_, P> {
    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the pages are valid, in a row, zeroed when they were allocated, and only this value's.
        unsafe { core::slice::from_raw_parts_mut(self.first.as_ptr().cast(), PAGES * PAGE_SIZE) }
    }
}

impl<P: Platform> Drop for Memory<'_, P> {
    fn drop(&mut self) {
        // SAFETY: of one `alloc_pages`, and this is the last use.
        unsafe { self.platform.free_pages(self.first, PAGES) };
    }
}

impl<'x, P: Platform + Wait> SdmmcDisk<'x, P> {
    /// Takes the disk, and eight pages for the window.
    ///
    /// # Errors
    /// [`Error::Grant`] when there is no memory.
    pub fn new(front: BlkFront<'x, P>) -> Result<Self, Error> {
        let platform = front.grants().platform();
        let first = platform.alloc_pages(PAGES).ok_or(Error::Grant(xen_gnttab::Error::OutOfMemory))?;
        let memory = Memory { platform, first };
        Ok(Self { inner: RefCell::new(Inner { front, memory, window: 0..0 }) })
    }

    /// Does something with the disk itself. The window is emptied, for that may be a write.
    ///
    /// # Panics
    /// When `f` uses this adapter again.
    pub fn with<R>(&self, f: impl FnOnce(&mut BlkFront<'x, P>) -> R) -> R {
        let mut inner = self.inner.borrow_mut();
        inner.window = 0..0;
        f(&mut inner.front)
    }

    /// As [`BlkFront::flush`].
    ///
    /// # Errors
    /// As [`BlkFront::flush`].
    pub fn flush(&self) -> Result<(), Error> {
        self.inner.borrow_mut().front.flush()
    }

    /// The disk again.
    pub fn into_inner(self) -> BlkFront<'x, P> {
        self.inner.into_inner().front
    }
}

impl<P: Platform + Wait> Inner<'_, P> {
    /// How many blocks are a sector of the disk.
    fn each(&self) -> u64 {
        u64::from(self.front.sector_size()) / SECTOR as u64
    }

    /// Fills the window, from the sector that `block` is in.
    fn load(&mut self, block: u64) -> Result<(), Error> {
        let start = block - block % self.each();
        let end = (start + BLOCKS).min(self.front.capacity());
        if block >= end {
            return Err(Error::OutOfRange);
        }
        self.window = 0..0;
        self.fetch(start, start..end)?;
        self.window = start..end;
        Ok(())
    }

    /// Reads blocks to where they belong in a window that begins at `start`.
    fn fetch(&mut self, start: u64, blocks: Range<u64>) -> Result<(), Error> {
        let Self { front, memory, .. } = self;
        let place = memory.bytes().get_mut(place(start, &blocks)).ok_or(Error::OutOfRange)?;
        front.read(blocks.start, place)
    }

    fn read(&mut self, blocks: &mut [Block], mut at: u64) -> Result<(), Error> {
        for block in blocks {
            if !self.window.contains(&at) {
                self.load(at)?;
            }
            let place = place(self.window.start, &(at..at + 1));
            let bytes = self.memory.bytes().get(place).ok_or(Error::OutOfRange)?;
            block.contents.copy_from_slice(bytes);
            at += 1;
        }
        Ok(())
    }

    fn write(&mut self, blocks: &[Block], mut at: u64) -> Result<(), Error> {
        let each = self.each();
        if at.checked_add(blocks.len() as u64).is_none_or(|end| end > self.front.capacity()) {
            return Err(Error::OutOfRange);
        }
        if self.front.is_read_only() {
            return Err(Error::ReadOnly);
        }
        let mut rest = blocks;
        while !rest.is_empty() {
            self.window = 0..0;
            let start = at - at % each;
            let count = (rest.len() as u64).min(BLOCKS - (at - start));
            let (now, later) = rest.split_at_checked(count as usize).ok_or(Error::OutOfRange)?;
            let end = at + count;
            let whole = start..end.next_multiple_of(each);
            // Sectors of which only a part is written: the first, and the last if it is another.
            let last = whole.end - each;
            if at != start || (end != whole.end && last == start) {
                self.fetch(start, start..start + each)?;
            }
            if end != whole.end && last != start {
                self.fetch(start, last..whole.end)?;
            }
            let Self { front, memory, .. } = self;
            let bytes = memory.bytes();
            let room = bytes.get_mut(place(start, &(at..end))).ok_or(Error::OutOfRange)?;
            for (to, block) in room.chunks_exact_mut(SECTOR).zip(now) {
                to.copy_from_slice(&block.contents);
            }
            front.write(start, bytes.get(place(start, &whole)).ok_or(Error::OutOfRange)?)?;
            // What was written last may be read next.
            self.window = whole;
            (at, rest) = (end, later);
        }
        Ok(())
    }
}

/// Where blocks are in a window that begins at `start`.
fn place(start: u64, blocks: &Range<u64>) -> Range<usize> {
    let offset =
        |block: u64| usize::try_from(block.saturating_sub(start)).unwrap_or(usize::MAX / SECTOR) * SECTOR;
    offset(blocks.start)..offset(blocks.end)
}

impl<P: Platform + Wait> BlockDevice for SdmmcDisk<'_, P> {
    type Error = Error;

    fn read(&self, blocks: &mut [Block], start: BlockIdx) -> Result<(), Error> {
        self.inner.borrow_mut().read(blocks, start.0.into())
    }

    fn write(&self, blocks: &[Block], start: BlockIdx) -> Result<(), Error> {
        self.inner.borrow_mut().write(blocks, start.0.into())
    }

    /// Of a larger disk the first 2 TiB can be reached.
    fn num_blocks(&self) -> Result<BlockCount, Error> {
        let blocks = self.inner.borrow().front.capacity();
        Ok(BlockCount(u32::try_from(blocks).unwrap_or(u32::MAX)))
    }
}

impl<P: Platform> fmt::Debug for SdmmcDisk<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SdmmcDisk").finish_non_exhaustive()
    }
}
