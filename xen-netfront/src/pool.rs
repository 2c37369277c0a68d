//! The pages for sending: each either here or with the backend.

use xen_gnttab::{Access, GrantRef, GrantTable, GrantedPage};
use xen_hypercall::{DomId, Platform};

use crate::Error;
use crate::abi::NR_SLOTS_MIN;

/// Pages at most, as many as a ring of one page has slots.
pub(crate) const PAGES: usize = 256;

/// An id is a page's place; the backend's word for one is looked up, never used as it is.
pub(crate) struct Pool<'g, P: Platform> {
    pages: [Option<GrantedPage<'g, P>>; PAGES],
    away: [bool; PAGES],
    /// The ids that are here, a stack.
    here: [u16; PAGES],
    count: usize,
    /// The ids of the next frame's pages, in order. They stay the same while others come back.
    staged: [u16; NR_SLOTS_MIN],
    staged_count: usize,
}

impl<'g, P: Platform> Pool<'g, P> {
    pub(crate) fn new(grants: &'g GrantTable<P>, backend: DomId, pages: usize) -> Result<Self, Error> {
        let mut pool = Self {
            pages: [const { None }; PAGES],
            away: [false; PAGES],
            here: [0; PAGES],
            count: 0,
            staged: [0; NR_SLOTS_MIN],
            staged_count: 0,
        };
        for (page, place) in pool.pages.iter_mut().zip(&mut pool.here).take(pages.max(1)) {
            *page = Some(grants.share(backend, Access::ReadOnly)?);
            *place = pool.count as u16;
            pool.count += 1;
        }
        Ok(pool)
    }

    /// The references of all pages.
    pub(crate) fn grefs(&self) -> impl Iterator<Item = GrantRef> {
        self.pages.iter().flatten().map(GrantedPage::gref)
    }

    /// How many pages are here.
    pub(crate) fn available(&self) -> usize {
        self.count + self.staged_count
    }

    /// The page for part `nth` of the next frame.
    pub(crate) fn nth(&mut self, nth: usize) -> Option<(u16, &mut GrantedPage<'g, P>)> {
        while self.staged_count <= nth {
            let last = self.count.checked_sub(1)?;
            *self.staged.get_mut(self.staged_count)? = *self.here.get(last)?;
            self.count = last;
            self.staged_count += 1;
        }
        let id = *self.staged.get(nth)?;
        Some((id, self.pages.get_mut(usize::from(id))?.as_mut()?))
    }

    /// Notes that the backend has the pages of the next frame, so many; what follows is for another.
    pub(crate) fn sent(&mut self, count: usize) {
        for id in self.staged.iter().take(count) {
            if let Some(away) = self.away.get_mut(usize::from(*id)) {
                *away = true;
            }
        }
        self.staged.copy_within(count.min(self.staged_count)..self.staged_count, 0);
        self.staged_count = self.staged_count.saturating_sub(count);
    }

    /// Takes a page back that the backend says it is done with; false when it did not have it.
    pub(crate) fn put_back(&mut self, id: u16) -> bool {
        let Some(away) = self.away.get_mut(usize::from(id)).filter(|away| **away) else { return false };
        let Some(place) = self.here.get_mut(self.count) else { return false };
        *away = false;
        *place = id;
        self.count += 1;
        true
    }
}
