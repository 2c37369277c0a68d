//! A granted page: page and reference as one.
#![allow(unsafe_code)]

use core::fmt;
use core::mem::ManuallyDrop;
use core::ptr;

use xen_hypercall::{DomId, Gfn, Platform};
use xen_ring::{Backing, OutOfRange, SharedMem};

use crate::GrantTable;
use crate::abi::{Access, GrantFlags, GrantRef};
use crate::page::{ExposedPage, OwnedPage};

/// A page that another domain may reach, with the reference that allows it: one page, one reference, one
/// owner.
///
/// Dropping it ends the grant like [`end`](Self::end), and frees the page or leaves both to the table's quarantine.
#[must_use = "dropping it ends the grant"]
pub struct GrantedPage<'g, P: Platform> {
    table: &'g GrantTable<P>,
    gref: GrantRef,
    page: ExposedPage,
}

/// How a grant ended.
#[must_use = "a page that came back is freed when this is dropped"]
pub enum Ended<'g, P: Platform> {
    /// The peer had let go: the page is ours alone again, the reference is free.
    Page(OwnedPage<'g, P>),
    /// The peer uses the page still. Page and reference are in quarantine until it stops; see [`GrantTable::reclaim`].
    Quarantined,
}

impl<P: Platform> fmt::Debug for Ended<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Page(page) => f.debug_tuple("Page").field(page).finish(),
            Self::Quarantined => f.write_str("Quarantined"),
        }
    }
}

impl<'g, P: Platform> GrantedPage<'g, P> {
    pub(crate) fn new(table: &'g GrantTable<P>, page: ExposedPage, gref: GrantRef) -> Self {
        Self { table, gref, page }
    }

    /// What the peer needs to reach the page: written to xenstore, or into a request.
    pub fn gref(&self) -> GrantRef {
        self.gref
    }

    /// The guest frame of the page.
    pub fn gfn(&self) -> Gfn {
        self.page.gfn(self.table.platform())
    }

    /// Who may use the page.
    pub fn peer(&self) -> DomId {
        self.table.peer(self.gref)
    }

    /// What the peer may do with it.
    pub fn access(&self) -> Access {
        if self.table.flags(self.gref).contains(GrantFlags::READONLY) {
            Access::ReadOnly
        } else {
            Access::ReadWrite
        }
    }

    /// Whether the peer has the page mapped, or copies it, at this moment. It may start to right after.
    pub fn in_use(&self) -> bool {
        self.table.flags(self.gref).intersects(GrantFlags::IN_USE)
    }

    /// The page's bytes, which the peer may change at any time.
    pub fn mem(&mut self) -> SharedMem<'_> {
        self.page.mem()
    }

    /// Copies bytes out of the page.
    ///
    /// # Errors
    /// If `offset` and the length reach beyond the page.
    pub fn read_bytes(&mut self, offset: usize, out: &mut [u8]) -> Result<(), OutOfRange> {
        self.mem().read_bytes(offset, out)
    }

    /// Copies bytes into the page.
    ///
    /// # Errors
    /// If `offset` and the length reach beyond the page.
    pub fn write_bytes(&mut self, offset: usize, data: &[u8]) -> Result<(), OutOfRange> {
        self.mem().write_bytes(offset, data)
    }

    /// Takes the peer's access away.
    ///
    /// That succeeds only while the peer does not use the page. Otherwise page and reference go to the quarantine: neither
    /// is freed nor granted anew before the peer has let go, however long that takes.
    pub fn end(self) -> Ended<'g, P> {
        let this = ManuallyDrop::new(self);
        // SAFETY: `this` is not used, nor dropped, afterwards, so the page is moved and not copied.
        let page = unsafe { ptr::read(&this.page) };
        this.table.finish(this.gref, page)
    }
}

impl<P: Platform> Backing for GrantedPage<'_, P> {
    fn mem(&mut self) -> SharedMem<'_> {
        GrantedPage::mem(self)
    }
}

impl<P: Platform> fmt::Debug for GrantedPage<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrantedPage")
            .field("gref", &self.gref)
            .field("peer", &self.peer())
            .finish_non_exhaustive()
    }
}

impl<P: Platform> Drop for GrantedPage<'_, P> {
    fn drop(&mut self) {
        // SAFETY: nothing uses the field after this; an `ExposedPage` that goes out of scope does nothing, so the page is moved.
        let page = unsafe { ptr::read(&self.page) };
        drop(self.table.finish(self.gref, page));
    }
}
