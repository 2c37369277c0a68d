//! A granted page: page and reference as one.
#![allow(unsafe_code)]

use core::fmt;
use core::mem::ManuallyDrop;
use core::sync::atomic::Ordering;

use xen_hypercall::{DomId, Gfn, Incarnation, PAGE_SIZE, Platform};
use xen_ring::{Backing, OutOfRange, SharedMem};

use crate::abi::{Access, GrantFlags, GrantRef};
use crate::entry::v1;
use crate::frames::MAX_FRAMES;
use crate::page::{ExposedPage, OwnedPage};
use crate::{Error, GrantTable, Reference};

/// A page that another domain may reach, with the reference that allows it: one page, one reference, one
/// owner.
///
/// Dropping it ends the grant like [`end`](Self::end), and frees the page or leaves both to the table's quarantine.
#[must_use = "dropping it ends the grant"]
pub struct GrantedPage<'g, P: Platform> {
    table: &'g GrantTable<P>,
    page: ExposedPage,
    /// The reference, and with [`READ_ONLY`] and [`PART`] what it was granted for. Every driver has many such pages in a row, so one has
    /// three words.
    gref: u32,
    /// To whom it was granted: what the entry says, which is slow to read.
    peer: DomId,
    life: Incarnation,
}

/// No table has so many references.
const READ_ONLY: u32 = 1 << 31;
/// The reference grants a part of the page.
const PART: u32 = 1 << 30;
const _: () = assert!(MAX_FRAMES as u64 * (v1::PER_FRAME as u64) < PART as u64);

/// How a grant ended.
#[must_use = "a page that came back is freed when this is dropped"]
pub enum Ended<'g, P: Platform> {
    /// The peer had let go: the page is ours alone again, the reference is free.
    Page(OwnedPage<'g, P>),
    /// The peer uses the page still. Page and reference are in quarantine until it stops; see [`GrantTable::reclaim`].
    ///
    /// An entry of version 1 cannot be changed while it is in use, so a peer that lets go can take hold of the same page
    /// again before the next sweep. In version 2 it cannot.
    Quarantined,
}

impl<'g, P: Platform> Ended<'g, P> {
    /// The page, if it came back.
    pub fn page(self) -> Option<OwnedPage<'g, P>> {
        match self {
            Self::Page(page) => Some(page),
            Self::Quarantined => None,
        }
    }
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
    /// # Safety
    /// The page is of the table's memory, and it and the reference are the caller's, who gives them up. The entry grants
    /// the page or nothing.
    pub(crate) unsafe fn new(
        table: &'g GrantTable<P>,
        page: ExposedPage,
        gref: GrantRef,
        peer: DomId,
        access: Access,
    ) -> Self {
        let gref = gref.0 | if access == Access::ReadOnly { READ_ONLY } else { 0 };
        Self { table, page, gref, peer, life: table.frames.life() }
    }

    fn into_parts(self) -> (&'g GrantTable<P>, GrantRef, ExposedPage) {
        let this = ManuallyDrop::new(self);
        // SAFETY: `this` is not used, nor dropped, afterwards, so the page is moved and not copied.
        (this.table, this.gref(), unsafe { this.page.duplicate() })
    }

    /// The page of a grant that is stale, which no grant leads to any more.
    ///
    /// # Safety
    /// `self` is not used, nor dropped, afterwards: the page moves.
    #[cold]
    unsafe fn stale_page(&self) -> OwnedPage<'g, P> {
        // SAFETY: the page is of this table's memory, and moves. The domain that granted it is gone.
        unsafe { OwnedPage::from_exposed(self.table.platform(), self.page.duplicate()) }
    }

    /// What the peer needs to reach the page: written to xenstore, or into a request.
    #[inline]
    pub fn gref(&self) -> GrantRef {
        GrantRef(self.gref & !(READ_ONLY | PART))
    }

    /// The guest frame of the page.
    pub fn gfn(&self) -> Gfn {
        self.page.gfn(self.table.platform())
    }

    /// Which platform it is of.
    pub(crate) fn platform(&self) -> &P {
        self.table.platform()
    }

    /// Who may use the page.
    pub fn peer(&self) -> DomId {
        self.peer
    }

    /// What the peer may do with it.
    pub fn access(&self) -> Access {
        if self.gref & READ_ONLY == 0 { Access::ReadWrite } else { Access::ReadOnly }
    }

    /// Whether the peer has the page mapped, or copies it, at this moment. It may start to right after.
    pub fn in_use(&self) -> bool {
        self.is_current() && self.table.flags(self.gref()).intersects(GrantFlags::IN_USE)
    }

    /// The page's bytes, which the peer may change at any time.
    #[inline]
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

    /// Has a live migration take along what the peer has written to the page by a mapping that it keeps: a word of the page is
    /// written as it is. Xen sees what the guest itself writes, and what a peer has written when its mapping ends. A page that
    /// was sent before stays behind otherwise, and the guest finds what was there earlier.
    ///
    /// For a peer that has said that it is done with the page: what it writes at this moment may be lost.
    #[inline]
    pub fn mark_written(&mut self) {
        let mem = self.mem();
        if let Ok(word) = mem.load_u32(0, Ordering::Relaxed) {
            // An atomic store is not left out because the value is there.
            let _ = mem.store_u32(0, word, Ordering::Relaxed);
        }
    }

    /// Whether the grant is in force: the domain has not been resumed in a new domain since it was made. A stale page is ours
    /// alone: ending it gives it back, and nothing that the table has is touched.
    #[inline]
    pub fn is_current(&self) -> bool {
        self.table.incarnation() == self.life
    }

    /// Whether a domain has the page by a grant that is [in force](Self::is_current).
    #[inline]
    pub fn is_granted_to(&self, domain: DomId) -> bool {
        self.peer == domain && self.is_current()
    }

    /// Grants a [stale](Self::is_current) page again, in place: to this domain, for what it was granted before, by another
    /// reference. What is in the page stays, and the peer sees it. A page whose grant is in force stays as it is.
    ///
    /// # Errors
    /// The page stays stale, with [`Error::InUse`] when its grant to another domain is in force; [`Error::BadRange`] for a page
    /// of which a part was granted: end it, and grant the part anew; [`Error::Stale`] until the table was
    /// [set up again](GrantTable::resume); otherwise as [`GrantTable::reserve`].
    pub fn regrant(&mut self, to: DomId) -> Result<(), Error> {
        if self.is_current() {
            return if self.peer == to { Ok(()) } else { Err(Error::InUse) };
        }
        if self.gref & PART != 0 {
            return Err(Error::BadRange);
        }
        let (gref, access) = (self.table.take_reference()?, self.access());
        self.table.write_again(gref, to, self.gfn(), access);
        self.gref = gref.0 | self.gref & READ_ONLY;
        (self.peer, self.life) = (to, self.table.frames.life());
        Ok(())
    }

    /// Notes that a part of the page is granted, and not all of it.
    pub(crate) fn of_part(mut self) -> Self {
        self.gref |= PART;
        self
    }

    /// Takes the peer's access away.
    ///
    /// That succeeds only while the peer does not use the page. Otherwise page and reference go to the quarantine: neither
    /// is freed nor granted anew before the peer has let go, however long that takes.
    pub fn end(self) -> Ended<'g, P> {
        let this = ManuallyDrop::new(self);
        // SAFETY: `this` is not used, nor dropped, afterwards.
        unsafe { this.finish() }
    }

    /// # Safety
    /// `self` is not used, nor dropped, afterwards: page and reference move.
    unsafe fn finish(&self) -> Ended<'g, P> {
        if !self.is_current() {
            // SAFETY: the caller's promise.
            return Ended::Page(unsafe { self.stale_page() });
        }
        // SAFETY: they were one grant of this table until now, and move.
        unsafe { self.table.finish_and_free(self.gref(), self.page.duplicate()) }
    }

    /// Takes the peer's access away and keeps the reference for the next grant: the way for a driver that grants a page
    /// for each transfer. `None`: both are in quarantine. The reference of a stale grant is stale.
    pub fn take_back(self) -> Option<(OwnedPage<'g, P>, Reference<'g, P>)> {
        let life = self.life;
        if !self.is_current() {
            let this = ManuallyDrop::new(self);
            // SAFETY: `this` is not used, nor dropped, afterwards.
            return Some((unsafe { this.stale_page() }, Reference::new(this.table, this.gref(), life)));
        }
        let (table, gref, page) = self.into_parts();
        // SAFETY: they were one grant of this table until now.
        let page = unsafe { table.finish(gref, page) }?;
        Some((page, Reference::new(table, gref, life)))
    }
}

impl<P: Platform> Backing for GrantedPage<'_, P> {
    #[inline]
    fn mem(&mut self) -> SharedMem<'_> {
        GrantedPage::mem(self)
    }

    #[inline]
    fn fixed_len(&self) -> Option<usize> {
        Some(PAGE_SIZE)
    }
}

impl<P: Platform> fmt::Debug for GrantedPage<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrantedPage")
            .field("gref", &self.gref())
            .field("peer", &self.peer())
            .finish_non_exhaustive()
    }
}

impl<P: Platform> Drop for GrantedPage<'_, P> {
    fn drop(&mut self) {
        // SAFETY: nothing uses the fields after this; an `ExposedPage` that goes out of scope does nothing.
        drop(unsafe { self.finish() });
    }
}

/// A page lent to another domain for reading only. Nobody writes to it meanwhile, so its owner can go on reading it in
/// place.
///
/// Dropping it ends the grant like [`end`](Self::end).
#[must_use = "dropping it ends the grant"]
pub struct LentPage<'g, P: Platform>(GrantedPage<'g, P>);

impl<'g, P: Platform> LentPage<'g, P> {
    /// # Safety
    /// The grant is for reading only.
    pub(crate) unsafe fn new(page: GrantedPage<'g, P>) -> Self {
        Self(page)
    }

    /// What the peer needs to reach the page.
    pub fn gref(&self) -> GrantRef {
        self.0.gref()
    }

    /// Who may read the page.
    pub fn peer(&self) -> DomId {
        self.0.peer()
    }

    /// Whether the peer has the page mapped, or copies it, at this moment.
    pub fn in_use(&self) -> bool {
        self.0.in_use()
    }

    /// The page's bytes.
    pub fn bytes(&self) -> &[u8; PAGE_SIZE] {
        // SAFETY: the page is granted by this one entry, for reading only, to which Xen holds the peer; this value, by
        // which nobody can write either, is the page's only owner in this domain.
        unsafe { self.0.page.bytes() }
    }

    /// Whether the grant is in force, as [`GrantedPage::is_current`].
    pub fn is_current(&self) -> bool {
        self.0.is_current()
    }

    /// As [`GrantedPage::regrant`].
    ///
    /// # Errors
    /// As there.
    pub fn regrant(&mut self, to: DomId) -> Result<(), Error> {
        self.0.regrant(to)
    }

    /// Takes the peer's access away, as [`GrantedPage::end`] does.
    pub fn end(self) -> Ended<'g, P> {
        self.0.end()
    }

    /// As [`GrantedPage::take_back`].
    pub fn take_back(self) -> Option<(OwnedPage<'g, P>, Reference<'g, P>)> {
        self.0.take_back()
    }
}

impl<P: Platform> fmt::Debug for LentPage<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LentPage").field("gref", &self.0.gref()).field("peer", &self.peer()).finish()
    }
}
