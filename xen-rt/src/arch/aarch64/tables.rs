//! The page tables: which memory may be used how. Text may be executed and not written, constants neither, everything else may be
//! written and never executed. All of it is mapped to itself, but for stacks of other vCPUs.
#![allow(unsafe_code, reason = "keeps the promises of the library's tables")]

use core::ptr::NonNull;

use aarch64_paging::descriptor::{Descriptor, El1Attributes, PhysicalAddress};
use aarch64_paging::paging::{Constraints, El1And0, MemoryRegion, PageTable, Translation, VaRange};
use aarch64_paging::{MapError, Mapping};

use crate::memory_map::Range;

/// The number of the address space; the entry's own tables are of number 0.
const ASID: usize = 1;
/// 48 bits of address.
const ROOT_LEVEL: usize = 0;
/// What the tables are not asked for: a mapping from the middle of one page on.
const PAGE: u64 = 4096;

/// Normal memory, as Xen and all domains map it.
const MEMORY: El1Attributes = El1Attributes::ATTRIBUTE_INDEX_1
    .union(El1Attributes::INNER_SHAREABLE)
    .union(El1Attributes::ACCESSED)
    .union(El1Attributes::VALID)
    .union(El1Attributes::UXN);
const TEXT: El1Attributes = MEMORY.union(El1Attributes::READ_ONLY);
const CONSTANTS: El1Attributes = TEXT.union(El1Attributes::PXN);
const DATA: El1Attributes = MEMORY.union(El1Attributes::PXN);
/// Pages that are not the domain's own memory.
const SPECIAL: El1Attributes = DATA.union(El1Attributes::SWFLAG_0);
const DEVICE: El1Attributes = El1Attributes::ATTRIBUTE_INDEX_0
    .union(El1Attributes::ACCESSED)
    .union(El1Attributes::VALID)
    .union(El1Attributes::UXN)
    .union(El1Attributes::PXN);

/// Where the parts of the image are, from its start to its end without a gap.
#[derive(Clone, Copy, Debug)]
pub(super) struct Image {
    pub(super) start: u64,
    pub(super) text_end: u64,
    pub(super) constants_end: u64,
    /// The page under the stack, which is not there.
    pub(super) guard: u64,
    pub(super) end: u64,
}

/// Gives memory for tables: zeroed, a page each, at the address that the machine knows it by too. Taken back never.
pub(super) type NewTable = fn() -> NonNull<PageTable<El1Attributes>>;

/// Memory mapped to itself.
#[derive(Debug)]
pub(super) struct Identity(NewTable);

impl Translation<El1Attributes> for Identity {
    fn allocate_table(&mut self) -> (NonNull<PageTable<El1Attributes>>, PhysicalAddress) {
        let table = self.0();
        (table, PhysicalAddress(table.as_ptr().expose_provenance()))
    }

    unsafe fn deallocate_table(&mut self, _: NonNull<PageTable<El1Attributes>>) {}

    fn physical_to_virtual(&self, at: PhysicalAddress) -> NonNull<PageTable<El1Attributes>> {
        let table = core::ptr::with_exposed_provenance_mut(at.0);
        NonNull::new(table).expect("no table is at address zero")
    }
}

/// The tables, in use or not yet.
#[derive(Debug)]
pub(super) struct Tables(Mapping<Identity, El1And0>);

impl Tables {
    /// The tables of an image with its memory and devices.
    pub(super) fn new(
        image: &Image,
        memory: impl Iterator<Item = Range>,
        devices: &[Range],
        new_table: NewTable,
    ) -> Result<Self, MapError> {
        let mapping =
            Mapping::with_asid_and_va_range(Identity(new_table), ASID, ROOT_LEVEL, El1And0, VaRange::Lower);
        let mut tables = Self(mapping);
        let Image { start, text_end, constants_end, guard, end } = *image;
        tables.map(Range { start, end: text_end }, TEXT)?;
        tables.map(Range { start: text_end, end: constants_end }, CONSTANTS)?;
        tables.map(Range { start: constants_end, end: guard }, DATA)?;
        tables.map(Range { start: guard + PAGE, end }, DATA)?;
        for range in memory {
            tables.map(range, DATA)?;
        }
        for range in devices {
            tables.map(*range, DEVICE)?;
        }
        Ok(tables)
    }

    fn map(&mut self, range: Range, rights: El1Attributes) -> Result<(), MapError> {
        self.map_to(range, range.start, rights)
    }

    fn map_to(&mut self, range: Range, to: u64, rights: El1Attributes) -> Result<(), MapError> {
        let region = MemoryRegion::new(range.start as usize, range.end as usize);
        self.0.map_range(&region, PhysicalAddress(to as usize), rights, Constraints::empty())
    }

    /// Makes whole pages lead to memory that is elsewhere, readable and writable. Returns whether they do.
    #[cfg(any(feature = "smp", test))]
    pub(super) fn map_data(&mut self, pages: Range, to: u64) -> bool {
        self.map_to(pages, to, DATA).is_ok()
    }

    /// Makes a page accessible that is not memory of the domain's own. False: it is in use as that, or out of reach.
    pub(super) fn map_special(&mut self, page: u64) -> bool {
        let Some(end) = page.checked_add(PAGE) else { return false };
        let region = MemoryRegion::new(page as usize, end as usize);
        let mut free = true;
        let walked = self.0.walk_range(&region, &mut |_, entry: &Descriptor<El1Attributes>, _| {
            free &= !entry.is_valid() || entry.flags().contains(El1Attributes::SWFLAG_0);
            Ok(())
        });
        walked.is_ok() && free && self.map(Range { start: page, end }, SPECIAL).is_ok()
    }

    /// Makes the processor use them.
    ///
    /// # Safety
    /// They map what the kernel uses, and are never dropped.
    #[cfg(not(test))]
    pub(super) unsafe fn activate(&self) {
        // SAFETY: the caller's promise.
        unsafe { self.0.activate() };
    }
}

#[cfg(test)]
mod tests;
