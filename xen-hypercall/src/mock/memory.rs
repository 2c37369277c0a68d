//! The layout of a domain's memory, as `memory_op` changes it.
#![allow(unsafe_code, reason = "fills real memory")]

use std::collections::BTreeSet;
use std::vec::Vec;

use super::MockDomain;
use super::domain::{POISON, Use};
use crate::memory::MemoryRange;
use crate::{Gfn, PAGE_SIZE};

/// What a domain may have unless a test says otherwise, in pages: a gibibyte.
const MAX_PAGES: usize = 1 << 18;

pub(super) struct Layout {
    /// Frames of which the domain gave the memory back.
    pub(super) holes: BTreeSet<Gfn>,
    max_pages: usize,
    map: Option<Vec<MemoryRange>>,
}

impl Default for Layout {
    fn default() -> Self {
        Self { holes: BTreeSet::new(), max_pages: MAX_PAGES, map: None }
    }
}

impl MockDomain {
    /// How many pages the domain has.
    pub fn pages(&self) -> usize {
        let state = self.state();
        state.page_count() - state.layout.holes.len()
    }

    /// How many pages it may have.
    pub fn max_pages(&self) -> usize {
        self.state().layout.max_pages
    }

    /// Lets the domain have so many pages at most when it asks Xen for more.
    pub fn set_max_pages(&self, pages: usize) {
        self.state().layout.max_pages = pages;
    }

    /// The highest frame that the domain has something at.
    pub fn highest_gfn(&self) -> usize {
        self.state().highest().map_or(0, |gfn| gfn.0 as usize)
    }

    /// Gives the domain a memory map, as the toolstack of an HVM or PVH guest does.
    pub fn set_memory_map(&self, map: &[MemoryRange]) {
        self.state().layout.map = Some(map.to_vec());
    }

    pub(super) fn memory_map(&self) -> Option<Vec<MemoryRange>> {
        self.state().layout.map.clone()
    }

    /// Puts fresh memory at a frame; false when the domain has all it may have.
    pub(super) fn give_page(&self, gfn: Gfn) -> bool {
        if self.pages() >= self.max_pages() && self.page_at(gfn).is_none() {
            return false;
        }
        let mut state = self.state();
        if state.layout.holes.remove(&gfn) || state.find(gfn).is_some() {
            if let Some(page) = state.find(gfn) {
                // SAFETY: a page of this domain's memory; whoever made the call says that nobody uses it.
                unsafe { page.as_ptr().cast::<u8>().write_bytes(0, PAGE_SIZE) };
            }
            return true;
        }
        state.map(gfn, 1, Use::Special).is_some()
    }

    /// Whether `shared_info` is in the domain's memory.
    pub(super) fn has_shared_info(&self) -> bool {
        self.state().shared_info.is_some()
    }

    /// Takes the memory at a frame away, as Xen does with a frame of its own that it puts elsewhere. False: there is none.
    ///
    /// # Safety
    /// Nobody uses the page any more.
    pub unsafe fn remove_page(&self, gfn: Gfn) -> bool {
        self.take_page(gfn)
    }

    /// Puts `shared_info` at a frame. Where it was before is a hole then, as on x86: there is one such page.
    pub(super) fn move_shared_info(&self, gfn: Gfn) {
        let old = self.state().shared_info.filter(|old| *old != gfn);
        if let Some((from, to)) = old.and_then(|old| Some((self.page_at(old)?, self.page_at(gfn)?))) {
            // SAFETY: two pages of this domain's memory; the caller of Xen says that nobody uses the new one, and both are
            // whole.
            unsafe { to.copy_from_nonoverlapping(from, 1) };
        }
        if let Some(old) = old {
            self.take_page(old);
        }
        self.state().shared_info = Some(gfn);
    }

    /// Takes the memory at a frame away, and fills it so that whoever still reads it shows; false when there is none.
    pub(super) fn take_page(&self, gfn: Gfn) -> bool {
        let mut state = self.state();
        let Some(page) = state.find(gfn) else { return false };
        // SAFETY: as in `give_page`.
        unsafe { page.as_ptr().cast::<u8>().write_bytes(POISON, PAGE_SIZE) };
        state.layout.holes.insert(gfn);
        if state.shared_info == Some(gfn) {
            state.shared_info = None;
        }
        true
    }
}
