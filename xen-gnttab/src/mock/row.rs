//! A backend's mapping of several granted pages as one piece of memory: the ring of several pages.
#![allow(unsafe_code)]

use core::fmt;
use core::ptr::NonNull;
use std::vec::Vec;

use xen_hypercall::mock::MockDomain;
use xen_hypercall::{DomId, PAGE_SIZE, Page, PageMemory};
use xen_ring::{Backing, SharedMem};

use super::{MockMapping, map};
use crate::{GrantRef, GrantStatus};

/// Several pages of another domain, in a row. Dropping it unmaps them.
pub struct MockMappings {
    first: NonNull<Page>,
    pages: Vec<MockMapping>,
}

// SAFETY: as for `MockMapping`.
unsafe impl Send for MockMappings {}

/// Maps granted pages to one piece of memory, in the order of the references. A mock has no page tables, so that only
/// works for pages that are in a row for the guest, too, as [`GrantedPages`](crate::GrantedPages) are.
///
/// # Errors
/// As [`map`]; [`GrantStatus::BAD_VIRT_ADDR`] for pages that are not in a row, or none.
pub fn map_row(
    backend: &MockDomain,
    granter: DomId,
    grefs: &[GrantRef],
    writable: bool,
) -> Result<MockMappings, GrantStatus> {
    let pages: Result<Vec<_>, _> = grefs.iter().map(|gref| map(backend, granter, *gref, writable)).collect();
    let pages = pages?;
    let first = pages.first().ok_or(GrantStatus::BAD_VIRT_ADDR)?;
    let start = first.granter.gfn(first.page);
    let row = first.granter.pages_at(start, pages.len()).ok_or(GrantStatus::BAD_VIRT_ADDR)?;
    let in_order = (start.0..).zip(&pages).all(|(gfn, page)| page.granter.gfn(page.page).0 == gfn);
    if !in_order {
        return Err(GrantStatus::BAD_VIRT_ADDR);
    }
    Ok(MockMappings { first: row, pages })
}

impl MockMappings {
    /// The pages, each by itself.
    pub fn into_pages(self) -> Vec<MockMapping> {
        self.pages
    }

    /// The bytes of all pages.
    pub fn mem(&mut self) -> SharedMem<'_> {
        // SAFETY: pages of the granter that are in a row, in one allocation, valid as long as the machine; `&mut self` makes
        // this view the mappings' only one, and other domains' views are what `SharedMem` allows for.
        unsafe { SharedMem::new(self.first.cast(), self.pages.len() * PAGE_SIZE) }
    }
}

impl Backing for MockMappings {
    fn mem(&mut self) -> SharedMem<'_> {
        MockMappings::mem(self)
    }
}

impl fmt::Debug for MockMappings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MockMappings").field("pages", &self.pages).finish_non_exhaustive()
    }
}
