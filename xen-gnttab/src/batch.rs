//! Many grants at once.
#![allow(unsafe_code)]

use core::sync::atomic::Ordering;

use xen_hypercall::{DomId, Platform};

use crate::abi::{Access, GrantRef};
use crate::entry::Grant;
use crate::granted::GrantedPage;
use crate::pages::{GrantedPages, OwnedPages};
use crate::{Error, GrantTable};

impl<P: Platform> GrantTable<P> {
    /// Grants a fresh zeroed page for each place that has none; for all of them, or for none.
    ///
    /// Takes the references in one step, which is cheaper than one by one.
    ///
    /// # Errors
    /// As [`share`](Self::share); no place has changed then, and no page was granted.
    pub fn share_each<'g>(
        &'g self,
        places: &mut [Option<GrantedPage<'g, P>>],
        to: DomId,
        access: Access,
    ) -> Result<(), Error> {
        let count = places.iter().filter(|place| place.is_none()).count();
        if count == 0 {
            return Ok(());
        }
        let count = u32::try_from(count).map_err(|_| Error::NoFreeReference)?;
        let first = self.take_references(count)?;
        // First the pages: until all are there the entries stay empty, so that nobody sees what may have to be taken back.
        let (mut next, mut filled, mut failed) = (first.0, 0, None);
        for place in places.iter_mut().filter(|place| place.is_none()) {
            let page = self.alloc_clean_page().and_then(|page| self.check_page(&page).map(|()| page));
            match page {
                Ok(page) => {
                    let gref = GrantRef(next);
                    next = self.frames.slot(gref).map_or(0, |slot| slot.link());
                    filled += 1;
                    // SAFETY: page and reference were taken for this just now; the entry grants nothing.
                    *place = Some(unsafe { GrantedPage::new(self, page.expose(), gref, to, access) });
                }
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        let mut left = self.linked(first).take(count as usize);
        let mut ours = left.next();
        if let Some(error) = failed {
            // Those that have a page give their reference back with it, when the place is emptied; the rest has none.
            for place in places.iter_mut() {
                let Some(gref) = ours.filter(|_| filled > 0) else { break };
                if place.as_ref().is_some_and(|page| page.gref() == gref) {
                    ours = left.next();
                    filled -= 1;
                    // SAFETY: the entry grants nothing yet.
                    let _: Option<()> = place.take().map(|page| unsafe { page.end_unused() });
                }
            }
            while let Some(gref) = ours {
                ours = left.next();
                self.put_reference(gref);
            }
            return Err(error);
        }
        for place in places.iter() {
            let (Some(gref), Some(page)) = (ours, place) else { continue };
            if page.gref() == gref {
                ours = left.next();
                // Cannot fail: the frame was checked, and the reference is one of the table's.
                let _ = self.frames.write(gref, to, &Grant::Page { frame: page.gfn(), access });
            }
        }
        self.granted.fetch_add(count.into(), Ordering::Relaxed);
        Ok(())
    }

    /// Grants `N` fresh zeroed pages, all or none.
    ///
    /// # Errors
    /// As [`share`](Self::share); no page was granted then.
    pub fn share_many<const N: usize>(
        &self,
        to: DomId,
        access: Access,
    ) -> Result<[GrantedPage<'_, P>; N], Error> {
        let mut pages = [const { None }; N];
        self.share_each(&mut pages, to, access)?;
        Ok(pages.map(|page| page.unwrap_or_else(|| unreachable!("every place was filled"))))
    }

    /// Grants fresh zeroed pages in a row, each by a reference of its own: the memory of a ring of several pages.
    ///
    /// # Errors
    /// As [`share`](Self::share); no page was granted then.
    pub fn share_pages(&self, count: usize, to: DomId, access: Access) -> Result<GrantedPages<'_, P>, Error> {
        let mut pages = self.alloc_pages(count)?;
        // As in `alloc_clean_page`.
        pages.bytes_mut().fill(0);
        self.grant_pages(pages, to, access).map_err(|(error, _)| error)
    }

    /// Grants pages in a row to a domain. All of their bytes: nothing that is not meant for that domain may be in them.
    ///
    /// # Errors
    /// The pages come back, with an error as of [`grant`](Self::grant).
    pub fn grant_pages<'g>(
        &'g self,
        pages: OwnedPages<'g, P>,
        to: DomId,
        access: Access,
    ) -> Result<GrantedPages<'g, P>, (Error, OwnedPages<'g, P>)> {
        if !pages.is_of(self.platform()) {
            return Err((Error::ForeignPage, pages));
        }
        let frames = (0..pages.count()).filter_map(|index| pages.gfn(index));
        if let Some(error) = frames.filter_map(|frame| self.check_frame(frame).err()).next() {
            return Err((error, pages));
        }
        let Ok(count) = u32::try_from(pages.count()) else { return Err((Error::NoFreeReference, pages)) };
        let head = match self.take_references(count) {
            Ok(head) => head,
            Err(error) => return Err((error, pages)),
        };
        for (index, gref) in self.linked(head).take(pages.count()).enumerate() {
            if let Some(frame) = pages.gfn(index) {
                // Cannot fail: the frame was checked, and the reference is one of the table's.
                let _ = self.frames.write(gref, to, &Grant::Page { frame, access });
            }
        }
        self.granted.fetch_add(count.into(), Ordering::Relaxed);
        let (first, count) = pages.expose();
        // SAFETY: pages of this table's memory, given up by `expose`, and references that were taken for them just now.
        Ok(unsafe { GrantedPages::new(self, head, first, count) })
    }
}
