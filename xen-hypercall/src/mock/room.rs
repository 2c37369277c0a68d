//! Where a domain has other domains' pages mapped.
#![allow(unsafe_code, reason = "hands out other domains' memory")]

use core::ptr::NonNull;
use std::collections::BTreeMap;
use std::vec::Vec;

use super::MockDomain;
use super::domain::Use;
use crate::{DomId, Errno, Gfn, GrantRoom, PAGE_SIZE, Page};

/// The first frame of the room, far above all memory.
const FIRST_GFN: u64 = 0x100_0000;

/// A domain's room for other domains' pages.
#[derive(Default)]
pub(super) struct Room {
    /// How many frames were ever reserved.
    used: u64,
    reserved: BTreeMap<Gfn, usize>,
    /// What is mapped now.
    mapped: BTreeMap<Gfn, NonNull<Page>>,
    limit: Option<usize>,
}

impl Room {
    fn frames(&self) -> usize {
        self.reserved.values().sum()
    }

    fn is_reserved(&self, gfn: Gfn) -> bool {
        let block = self.reserved.range(..=gfn).next_back();
        block.is_some_and(|(first, count)| gfn.0 - first.0 < *count as u64)
    }
}

impl MockDomain {
    /// Puts another domain's page at a frame of this domain's room, as Xen does when a grant is mapped. False: that is no
    /// room, or something is there.
    ///
    /// # Safety
    /// The page stays valid for as long as the machine exists, as all pages of domains do.
    pub unsafe fn map_foreign(&self, gfn: Gfn, page: NonNull<Page>) -> bool {
        let room = &mut self.state().room;
        let free = room.is_reserved(gfn) && !room.mapped.contains_key(&gfn);
        if free {
            room.mapped.insert(gfn, page);
        }
        free
    }

    /// Puts a page of this domain at a frame of its room, as Xen does when a domain maps its own grant: the page is then
    /// there and nowhere else. Who looks where it was reads what a processor reads where nothing is. False: there is no
    /// page, that is no room, or something is there.
    ///
    /// # Safety
    /// Nobody relies on the page.
    pub unsafe fn move_to_room(&self, from: Gfn, to: Gfn) -> bool {
        let state = &mut *self.state();
        let free = state.room.is_reserved(to) && !state.room.mapped.contains_key(&to);
        let Some(old) = state.find(from).filter(|_| free) else { return false };
        // The host has no page tables to change: the bytes move to other memory.
        let Some(new) = state.map(to, 1, Use::Special) else { return false };
        // SAFETY: two pages of this domain's memory, which stay as long as the machine; nobody relies on the old one.
        unsafe { new.copy_from_nonoverlapping(old, 1) };
        // SAFETY: as above.
        unsafe { old.cast::<u8>().write_bytes(0xFF, PAGE_SIZE) };
        state.layout.holes.insert(from);
        state.room.mapped.insert(to, new);
        true
    }

    /// Takes a page out of the room. False: there was none.
    pub fn unmap_foreign(&self, gfn: Gfn) -> bool {
        let state = &mut *self.state();
        if state.find(gfn).is_some() {
            // One of its own that had moved: it does not move back.
            state.layout.holes.insert(gfn);
        }
        state.room.mapped.remove(&gfn).is_some()
    }

    /// How many frames of room are reserved.
    pub fn room_in_use(&self) -> usize {
        self.state().room.frames()
    }

    /// Lets the domain reserve so many frames of room at once; none: as many as it likes.
    pub fn limit_room(&self, frames: Option<usize>) {
        self.state().room.limit = frames;
    }
}

// SAFETY: frames of the room are given out once, and there is no other memory. Their address is that of the page that is
// mapped, which stays until the machine is gone.
unsafe impl GrantRoom for MockDomain {
    fn reserve_room(&self, count: usize) -> Option<Gfn> {
        let room = &mut self.state().room;
        if count == 0 || room.limit.is_some_and(|limit| room.frames() + count > limit) {
            return None;
        }
        let first = Gfn(FIRST_GFN + room.used);
        room.used += count as u64;
        room.reserved.insert(first, count);
        Some(first)
    }

    unsafe fn release_room(&self, first: Gfn, count: usize) {
        let mut state = self.state();
        let known = state.room.reserved.get(&first) == Some(&count);
        let empty = state.room.mapped.range(first..Gfn(first.0 + count as u64)).next().is_none();
        if known && empty {
            state.room.reserved.remove(&first);
        } else {
            drop(state);
            panic!(
                "{}: {count} frames of room at {first} come back reserved: {known}, empty: {empty}",
                self.id()
            );
        }
    }

    /// A mapped page's address is its owner's, so several are in a row only if they are so there.
    unsafe fn room_address(&self, first: Gfn, count: usize) -> Option<NonNull<Page>> {
        let state = self.state();
        let pages: Vec<NonNull<Page>> = (first.0..first.0 + count as u64)
            .map(|gfn| state.room.mapped.get(&Gfn(gfn)).copied())
            .collect::<Option<_>>()?;
        let start = *pages.first()?;
        let in_a_row =
            pages.iter().enumerate().all(|(index, page)| page.as_ptr() == start.as_ptr().wrapping_add(index));
        in_a_row.then_some(start)
    }

    fn own_domain(&self) -> Result<DomId, Errno> {
        Ok(self.id())
    }
}
