//! A fixed set of shared pages, each either ours or with the backend.

use xen_gnttab::{Access, GrantTable, GrantedPage};
use xen_hypercall::{DomId, Platform};

use crate::Error;

/// Pages per direction, as many as a ring of one page has slots.
pub(crate) const PAGES: usize = 256;

/// The pages of one direction. An id is a page's place; the backend's word for one is looked up, never used as it is.
pub(crate) struct Pool<'g, P: Platform> {
    pages: [Option<GrantedPage<'g, P>>; PAGES],
    away: [bool; PAGES],
    /// The ids that are here, a stack.
    here: [u16; PAGES],
    count: usize,
}

impl<'g, P: Platform> Pool<'g, P> {
    pub(crate) fn new(grants: &'g GrantTable<P>, backend: DomId, access: Access) -> Result<Self, Error> {
        let mut pool =
            Self { pages: [const { None }; PAGES], away: [false; PAGES], here: [0; PAGES], count: PAGES };
        for page in &mut pool.pages {
            *page = Some(grants.share(backend, access)?);
        }
        for (id, place) in pool.here.iter_mut().enumerate() {
            *place = id as u16;
        }
        Ok(pool)
    }

    /// How many pages are here.
    pub(crate) fn available(&self) -> usize {
        self.count
    }

    /// The page that [`take`](Self::take) takes next.
    pub(crate) fn next(&mut self) -> Option<(u16, &mut GrantedPage<'g, P>)> {
        let id = *self.here.get(self.count.checked_sub(1)?)?;
        Some((id, self.pages.get_mut(usize::from(id))?.as_mut()?))
    }

    /// Hands the next page to the backend.
    pub(crate) fn take(&mut self) {
        if let Some(last) = self.count.checked_sub(1)
            && let Some(id) = self.here.get(last)
            && let Some(away) = self.away.get_mut(usize::from(*id))
        {
            *away = true;
            self.count = last;
        }
    }

    /// Takes a page back that the backend says it is done with; none when it did not have it.
    pub(crate) fn put_back(&mut self, id: u16) -> Option<&mut GrantedPage<'g, P>> {
        let away = self.away.get_mut(usize::from(id)).filter(|away| **away)?;
        *away = false;
        *self.here.get_mut(self.count)? = id;
        self.count += 1;
        self.pages.get_mut(usize::from(id))?.as_mut()
    }
}
