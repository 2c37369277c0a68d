//! The disk as the file system crate `embedded-sdmmc` wants it: blocks of 512 bytes, by shared reference.
#![allow(unsafe_code, reason = "owns memory of the platform's")]

use core::cell::RefCell;
use core::fmt;
use core::ops::Range;
use core::ptr::NonNull;

use embedded_sdmmc::{Block, BlockCount, BlockDevice, BlockIdx};
use xen_hypercall::{PAGE_SIZE, Page, Platform, Wait};
use xen_xenstore::Xenstore;

use crate::abi::SECTOR;
use crate::table::NO_MEMORY;
use crate::{BlkFront, Error, State, Ticket};

/// How many windows there are. A file system goes to and fro between its tables, a directory and some files.
const WINDOWS: usize = 4;
/// Pages of a window.
const PAGES: usize = 8;
/// Blocks that a window holds.
const BLOCKS: u64 = (PAGES * PAGE_SIZE / SECTOR) as u64;

/// A [`BlkFront`] as a [`BlockDevice`].
///
/// Reads go through four windows of 32 KiB, so that blocks one after the other are one request; who goes from one window on
/// to the next has the one after that read meanwhile. Writes go to the disk
/// at once, and to the windows, too: on a disk with larger sectors the rest of a sector is read before. Nobody else
/// should write to the disk meanwhile; who may have, by [`with_mut`](Self::with_mut), empties the windows.
pub struct SdmmcDisk<'x, P: Platform> {
    inner: RefCell<Inner<'x, P>>,
}

struct Inner<'x, P: Platform> {
    front: BlkFront<'x, P>,
    memory: Memory<'x, P>,
    windows: [Window; WINDOWS],
    /// Counts uses, to find the window that was not used for longest.
    uses: u64,
    /// What is being read before anybody asked for it.
    ahead: Option<(Ticket, Range<u64>)>,
}

/// Which blocks of the disk are in a part of the memory.
#[derive(Clone, Default)]
struct Window {
    blocks: Range<u64>,
    used: u64,
}

/// Some pages of our own.
struct Memory<'x, P: Platform> {
    platform: &'x P,
    first: NonNull<Page>,
}

// SAFETY: the pages are exclusively this value's and not tied to a thread; `&P` goes to another if `P: Sync`.
unsafe impl<P: Platform + Sync> Send for Memory<'_, P> {}

impl<P: Platform> Memory<'_, P> {
    /// The memory of a window.
    fn bytes(&mut self, window: usize) -> &mut [u8] {
        const LEN: usize = PAGES * PAGE_SIZE;
        // SAFETY: the pages are valid, in a row, zeroed when they were allocated, and only this value's.
        let all = unsafe { core::slice::from_raw_parts_mut(self.first.as_ptr().cast::<u8>(), WINDOWS * LEN) };
        all.chunks_exact_mut(LEN).nth(window).unwrap_or_default()
    }
}

impl<P: Platform> Drop for Memory<'_, P> {
    fn drop(&mut self) {
        // SAFETY: of one `alloc_pages`, and this is the last use.
        unsafe { self.platform.free_pages(self.first, WINDOWS * PAGES) };
    }
}

impl<'x, P: Platform + Wait> SdmmcDisk<'x, P> {
    /// Takes the disk, and 32 pages for the windows.
    ///
    /// # Errors
    /// [`Error::Grant`] when there is no memory.
    pub fn new(front: BlkFront<'x, P>) -> Result<Self, Error> {
        let platform = front.grants().platform();
        let first = platform.alloc_pages(WINDOWS * PAGES).ok_or(NO_MEMORY)?;
        let memory = Memory { platform, first };
        Ok(Self {
            inner: RefCell::new(Inner { front, memory, windows: Default::default(), uses: 0, ahead: None }),
        })
    }

    /// Looks at the disk itself.
    pub fn with<R>(&self, f: impl FnOnce(&BlkFront<'x, P>) -> R) -> R {
        f(&self.inner.borrow().front)
    }

    /// Does something with the disk itself. The windows are emptied, for that may be a write.
    ///
    /// # Panics
    /// When `f` uses this adapter again.
    pub fn with_mut<R>(&self, f: impl FnOnce(&mut BlkFront<'x, P>) -> R) -> R {
        let mut inner = self.inner.borrow_mut();
        inner.windows = Default::default();
        inner.forget_ahead();
        f(&mut inner.front)
    }

    /// Follows the backend, see [`BlkFront::service`].
    ///
    /// # Errors
    /// As [`BlkFront::service`].
    pub fn service(&self, xs: &mut Xenstore<'x, P>) -> Result<State, Error> {
        self.inner.borrow_mut().front.service(xs)
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
        let mut inner = self.inner.into_inner();
        inner.forget_ahead();
        inner.front
    }
}

impl<P: Platform + Wait> Inner<'_, P> {
    /// How many blocks are a sector of the disk.
    fn each(&self) -> u64 {
        u64::from(self.front.sector_size()) / SECTOR as u64
    }

    /// The window that holds all of these blocks.
    fn find(&mut self, blocks: &Range<u64>) -> Option<usize> {
        self.uses += 1;
        let uses = self.uses;
        let holds = |window: &Window| window.blocks.start <= blocks.start && blocks.end <= window.blocks.end;
        let (index, window) = self.windows.iter_mut().enumerate().find(|(_, window)| holds(window))?;
        window.used = uses;
        Some(index)
    }

    /// Empties the window that was not used for longest, to be filled.
    fn oldest(&mut self) -> usize {
        let oldest = self.windows.iter_mut().enumerate().min_by_key(|(_, window)| window.used);
        oldest.map_or(0, |(index, window)| {
            window.blocks = 0..0;
            index
        })
    }

    /// Says what is in a window now.
    fn filled(&mut self, index: usize, blocks: Range<u64>) {
        self.uses += 1;
        let used = self.uses;
        if let Some(window) = self.windows.get_mut(index) {
            *window = Window { blocks, used };
        }
    }

    /// Where a window begins.
    fn start(&self, index: usize) -> u64 {
        self.windows.get(index).map_or(0, |window| window.blocks.start)
    }

    /// Empties all windows that hold some of these blocks, but one.
    fn forget(&mut self, blocks: &Range<u64>, but: usize) {
        for (index, window) in self.windows.iter_mut().enumerate() {
            if index != but && window.blocks.start < blocks.end && blocks.start < window.blocks.end {
                window.blocks = 0..0;
            }
        }
        if self.ahead.as_ref().is_some_and(|(_, ahead)| ahead.start < blocks.end && blocks.start < ahead.end)
        {
            self.forget_ahead();
        }
    }

    /// Fills a window, from the sector that `block` is in.
    fn load(&mut self, block: u64) -> Result<usize, Error> {
        let start = block - block % self.each();
        let end = (start + BLOCKS).min(self.front.capacity());
        if block >= end {
            return Err(Error::OutOfRange);
        }
        let follows =
            self.windows.iter().any(|window| !window.blocks.is_empty() && window.blocks.end == start);
        let index = self.oldest();
        match self.ahead.take() {
            Some((ticket, blocks)) if blocks == (start..end) => {
                let Self { front, memory, .. } = self;
                let place = place(start, &blocks);
                front.wait(ticket, memory.bytes(index).get_mut(place).ok_or(Error::OutOfRange)?)?;
            }
            other => {
                self.ahead = other;
                self.fetch(index, start, start..end)?;
            }
        }
        self.filled(index, start..end);
        if follows {
            self.read_ahead(end);
        }
        Ok(index)
    }

    /// Asks for the window that begins at `start`. Without success nothing is lost.
    fn read_ahead(&mut self, start: u64) {
        self.forget_ahead();
        let blocks = start..(start + BLOCKS).min(self.front.capacity());
        if blocks.is_empty() || self.find(&blocks).is_some() {
            return;
        }
        if let Ok(ticket) = self.front.submit_read(start, blocks.end - start) {
            self.ahead = Some((ticket, blocks));
            // What goes wrong here is told again by whoever wants something of the disk.
            let _ = self.front.publish();
        }
    }

    fn forget_ahead(&mut self) {
        if let Some((ticket, _)) = self.ahead.take() {
            self.front.forget(ticket);
        }
    }

    /// Reads blocks to where they belong in a window that begins at `start`.
    fn fetch(&mut self, index: usize, start: u64, blocks: Range<u64>) -> Result<(), Error> {
        let Self { front, memory, .. } = self;
        let place = memory.bytes(index).get_mut(place(start, &blocks)).ok_or(Error::OutOfRange)?;
        front.read(blocks.start, place)
    }

    fn read(&mut self, blocks: &mut [Block], mut at: u64) -> Result<(), Error> {
        for block in blocks {
            let wanted = at..at.checked_add(1).ok_or(Error::OutOfRange)?;
            let index = self.find(&wanted).map_or_else(|| self.load(at), Ok)?;
            let place = place(self.start(index), &wanted);
            let bytes = self.memory.bytes(index).get(place).ok_or(Error::OutOfRange)?;
            block.contents.copy_from_slice(bytes);
            at = wanted.end;
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
            let start = at - at % each;
            let count = (rest.len() as u64).min(BLOCKS - (at - start));
            let (now, later) = rest.split_at_checked(count as usize).ok_or(Error::OutOfRange)?;
            let end = at + count;
            let whole = start..end.next_multiple_of(each);
            self.write_sectors(whole, at..end, now)?;
            (at, rest) = (end, later);
        }
        Ok(())
    }

    /// Writes blocks, and the rest of the sectors `whole` that they are in.
    fn write_sectors(&mut self, whole: Range<u64>, blocks: Range<u64>, data: &[Block]) -> Result<(), Error> {
        let found = self.find(&whole);
        let index = found.unwrap_or_else(|| self.oldest());
        self.forget(&whole, index);
        let held = match found {
            Some(index) => self.windows.get(index).map_or(0..0, |window| window.blocks.clone()),
            None => {
                // Sectors of which only a part is written: the first, and the last if it is another.
                let each = self.each();
                let last = whole.end - each;
                if blocks.start != whole.start || (blocks.end != whole.end && last == whole.start) {
                    self.fetch(index, whole.start, whole.start..whole.start + each)?;
                }
                if blocks.end != whole.end && last != whole.start {
                    self.fetch(index, whole.start, last..whole.end)?;
                }
                whole.clone()
            }
        };
        // Until the disk has it, nobody knows what is there.
        self.filled(index, 0..0);
        let Self { front, memory, .. } = self;
        let bytes = memory.bytes(index);
        let room = bytes.get_mut(place(held.start, &blocks)).ok_or(Error::OutOfRange)?;
        for (to, block) in room.chunks_exact_mut(SECTOR).zip(data) {
            to.copy_from_slice(&block.contents);
        }
        front.write(whole.start, bytes.get(place(held.start, &whole)).ok_or(Error::OutOfRange)?)?;
        self.filled(index, held);
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
