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
    /// Grants `N` fresh zeroed pages, all or none. Takes the references in one step, which is cheaper than one by one.
    ///
    /// # Errors
    /// As [`share`](Self::share); no page was granted then, not even for a moment.
    pub fn share_many<const N: usize>(
        &self,
        to: DomId,
        access: Access,
    ) -> Result<[GrantedPage<'_, P>; N], Error> {
        let mut pages = [const { None }; N];
        for place in &mut pages {
            let page = self.alloc_clean_page()?;
            self.check_page(&page)?;
            *place = Some(page);
        }
        let mut next = match u32::try_from(N) {
            Ok(0) => GrantRef(0),
            Ok(count) => self.take_references(count)?,
            Err(_) => return Err(Error::NoFreeReference),
        };
        Ok(pages.map(|page| {
            let page = page.unwrap_or_else(|| unreachable!("every place was filled"));
            let gref = next;
            next = GrantRef(self.frames.slot(gref).map_or(0, |slot| slot.link()));
            self.grant_checked(page, gref, to, access)
        }))
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
        Ok(unsafe { GrantedPages::new(self, head, first, count, access) })
    }
}
