//! Page tables, made anywhere: on the machine for the processor, in a test for a walk that compares their rights.
//!
//! Text may be executed and not written, constants neither, everything else may be written and never executed. Page zero and
//! the page under the stack are not there at all.
//!
//! The bits are those of the library. Its mappers check what cannot be here, and are 2 KB more in each image.

use core::ptr::NonNull;

use x86_64::structures::paging::PageTableFlags as Rights;
use xen_hypercall::{PAGE_SIZE, Page};

use crate::memory_map::Range;

const TEXT: Rights = Rights::PRESENT;
const CONSTANTS: Rights = TEXT.union(Rights::NO_EXECUTE);
/// Memory that is neither.
pub(super) const DATA: Rights = CONSTANTS.union(Rights::WRITABLE);
/// Of an entry that leads to a table: those of the entries there are what matters.
const TABLE: Rights = Rights::PRESENT.union(Rights::WRITABLE);

const PAGE: u64 = PAGE_SIZE as u64;
const LARGE_PAGE: u64 = 2 << 20;
/// The bits of an entry that are an address.
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

/// Where the parts of the image begin, in their order, each on a page of its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Image {
    pub(super) text: u64,
    pub(super) constants: u64,
    pub(super) data: u64,
    /// Pages that are not there, in their order.
    pub(super) guards: [u64; 2],
    pub(super) end: u64,
}

/// The tables of an address space. They are reached at the addresses that are in their entries.
pub(super) struct Tables {
    root: NonNull<u64>,
    /// Gives a zeroed page, for good.
    new_table: fn() -> Option<NonNull<Page>>,
}

// SAFETY: the tables are this value's alone.
unsafe impl Send for Tables {}

impl Tables {
    /// Empty ones, on a zeroed page that is theirs.
    pub(super) fn new(root: NonNull<Page>, new_table: fn() -> Option<NonNull<Page>>) -> Self {
        Self { root: root.cast(), new_table }
    }

    /// The address of the highest table.
    pub(super) fn root(&self) -> u64 {
        self.root.as_ptr().expose_provenance() as u64
    }

    /// Maps the image and the memory, each address to itself. Returns whether there was memory for it.
    pub(super) fn seal(&mut self, image: &Image, mut memory: impl Iterator<Item = Range>) -> bool {
        let Image { text, constants, data, guards: [first, second], end } = *image;
        self.map(text, constants, TEXT)
            && self.map(constants, data, CONSTANTS)
            && self.map(data, first, DATA)
            && self.map(first + PAGE, second, DATA)
            && self.map(second + PAGE, end, DATA)
            && memory.all(|Range { start, end }| self.map(start, end, DATA))
    }

    /// Maps whole pages to themselves, by large ones where they fit.
    fn map(&mut self, mut at: u64, end: u64, rights: Rights) -> bool {
        while at < end {
            let large = at % LARGE_PAGE == 0 && end - at >= LARGE_PAGE;
            let (level, rights, size) =
                if large { (2, rights | Rights::HUGE_PAGE, LARGE_PAGE) } else { (1, rights, PAGE) };
            let Some(entry) = self.entry(at, level) else { return false };
            *entry = at | rights.bits();
            at += size;
        }
        true
    }

    /// Maps the page at `at` to the memory at `to`. Returns whether that is how it is now: a page that is part of a large one
    /// stays so, and for a table there may be no memory.
    pub(super) fn map_page(&mut self, at: u64, to: u64, rights: Rights) -> bool {
        self.entry(at, 1).map(|entry| *entry = to | rights.bits()).is_some()
    }

    /// The entry for `at` in the tables of `level` (1: pages of 4 KiB, 2: of 2 MiB), making the tables on the way.
    fn entry(&mut self, at: u64, level: u32) -> Option<&mut u64> {
        let mut table = self.root;
        let mut depth = 4;
        loop {
            let index = (at >> (12 + 9 * (depth - 1))) as usize & 511;
            // SAFETY: each table is a page of 512 entries that `new_table` gave to this value alone, at its own address.
            let entry = unsafe { table.add(index).as_mut() };
            if depth == level {
                return Some(entry);
            }
            if *entry == 0 {
                let next = (self.new_table)()?.as_ptr().expose_provenance() as u64;
                *entry = next | TABLE.bits();
            } else if *entry & Rights::HUGE_PAGE.bits() != 0 {
                return None;
            }
            table = NonNull::new(core::ptr::with_exposed_provenance_mut((*entry & ADDRESS) as usize))?;
            depth -= 1;
        }
    }
}

#[cfg(test)]
mod tests;
