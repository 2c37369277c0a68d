//! Several pages in a row: one piece of memory, granted page by page, as rings of several pages are.
#![allow(unsafe_code)]

use core::fmt;
use core::mem::ManuallyDrop;
use core::ptr::NonNull;

use xen_hypercall::{DomId, Gfn, Incarnation, PAGE_SIZE, Page, Platform};
use xen_ring::{Backing, OutOfRange, SharedMem};

use crate::abi::{Access, GrantFlags, GrantRef};
use crate::{Error, GrantTable};

/// Pages in a row in the kernel's address space that this domain alone can reach. Freed when dropped.
pub struct OwnedPages<'g, P: Platform> {
    memory: &'g P,
    first: NonNull<Page>,
    count: usize,
}

// SAFETY: the pages are exclusively this value's and not tied to a thread; `&P` goes to another thread if `P: Sync`.
unsafe impl<P: Platform + Sync> Send for OwnedPages<'_, P> {}
// SAFETY: through `&OwnedPages` the pages can only be read.
unsafe impl<P: Platform + Sync> Sync for OwnedPages<'_, P> {}

impl<'g, P: Platform> OwnedPages<'g, P> {
    pub(crate) fn alloc(memory: &'g P, count: usize) -> Option<Self> {
        if count == 0 {
            return None;
        }
        Some(Self { memory, first: memory.alloc_pages(count)?, count })
    }

    /// # Safety
    /// The pages, one at least, are of one allocation of `memory`, exclusively the caller's, who gives them up, and no grant leads to
    /// them any more.
    pub(crate) unsafe fn from_raw(memory: &'g P, first: NonNull<Page>, count: usize) -> Self {
        Self { memory, first, count }
    }

    /// Gives the pages up to be granted.
    pub(crate) fn expose(self) -> (NonNull<Page>, usize) {
        let this = ManuallyDrop::new(self);
        (this.first, this.count)
    }

    pub(crate) fn is_of(&self, memory: &P) -> bool {
        core::ptr::eq(self.memory, memory)
    }

    /// How many pages there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The guest frame of a page; those of neighbours need not be neighbours.
    pub fn gfn(&self, index: usize) -> Option<Gfn> {
        (index < self.count).then(|| {
            // SAFETY: within the allocation.
            self.memory.gfn(unsafe { self.first.add(index) })
        })
    }

    /// The bytes of all pages.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the pages are in a row, initialised (zeroed at allocation), exclusively ours, and no other domain has
        // access.
        unsafe { core::slice::from_raw_parts(self.first.as_ptr().cast(), self.count * PAGE_SIZE) }
    }

    /// The bytes of all pages, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` excludes other references.
        unsafe { core::slice::from_raw_parts_mut(self.first.as_ptr().cast(), self.count * PAGE_SIZE) }
    }
}

impl<P: Platform> fmt::Debug for OwnedPages<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnedPages").field("count", &self.count).finish_non_exhaustive()
    }
}

impl<P: Platform> Drop for OwnedPages<'_, P> {
    fn drop(&mut self) {
        // SAFETY: the pages are of one allocation of this memory and exclusively ours; this is their last use.
        unsafe { self.memory.free_pages(self.first, self.count) };
    }
}

/// Pages in a row that another domain may reach, each by a reference of its own: the memory of a ring of several pages.
///
/// Dropping it ends the grants like [`end`](Self::end).
#[must_use = "dropping it ends the grants"]
pub struct GrantedPages<'g, P: Platform> {
    table: &'g GrantTable<P>,
    /// The first page's reference; the slot of each leads to the next.
    head: GrantRef,
    first: NonNull<Page>,
    count: usize,
    access: Access,
    life: Incarnation,
}

// SAFETY: the pages are exclusively this value's within the domain, and not tied to a thread.
unsafe impl<P: Platform + Sync> Send for GrantedPages<'_, P> {}
// SAFETY: through `&GrantedPages` the pages' content cannot be reached, only references, frames and flags.
unsafe impl<P: Platform + Sync> Sync for GrantedPages<'_, P> {}

/// How the grants of several pages ended.
#[must_use = "pages that came back are freed when this is dropped"]
pub enum EndedPages<'g, P: Platform> {
    /// The peer had let go of all: the pages are ours alone again, the references free.
    Pages(OwnedPages<'g, P>),
    /// The peer uses at least one of the pages still. All of them, and the references, are in quarantine until it stops; it
    /// can start to use no other. See [`GrantTable::reclaim`].
    Quarantined,
}

impl<P: Platform> fmt::Debug for EndedPages<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pages(pages) => f.debug_tuple("Pages").field(pages).finish(),
            Self::Quarantined => f.write_str("Quarantined"),
        }
    }
}

impl<'g, P: Platform> GrantedPages<'g, P> {
    /// # Safety
    /// The pages are of one allocation of the table's memory, exclusively the caller's, who gives them up together with as
    /// many references, which grant them and are linked in the pages' order.
    pub(crate) unsafe fn new(
        table: &'g GrantTable<P>,
        head: GrantRef,
        first: NonNull<Page>,
        count: usize,
        access: Access,
    ) -> Self {
        Self { table, head, first, count, access, life: table.frames.life() }
    }

    /// Grants stale pages again, in place, as [`GrantedPage::regrant`](crate::GrantedPage::regrant): all or none.
    ///
    /// # Errors
    /// As there.
    pub fn regrant(&mut self, to: DomId) -> Result<(), Error> {
        if self.is_current() {
            return if self.peer() == to { Ok(()) } else { Err(Error::InUse) };
        }
        let head = self.table.take_references(self.count as u32)?;
        for (index, gref) in self.table.linked(head).take(self.count).enumerate() {
            if let Some(frame) = self.gfn(index) {
                self.table.write_again(gref, to, frame, self.access);
            }
        }
        (self.head, self.life) = (head, self.table.frames.life());
        Ok(())
    }

    /// How many pages there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether the grants are in force: the domain has not been resumed in a new domain since they were made.
    pub fn is_current(&self) -> bool {
        self.table.incarnation() == self.life
    }

    /// What the peer needs to reach the pages, in their order: `ring-ref0`, `ring-ref1` and so on in xenstore. Nothing of
    /// stale ones.
    pub fn grefs(&self) -> impl Iterator<Item = GrantRef> + '_ {
        self.table.linked(self.head).take(if self.is_current() { self.count } else { 0 })
    }

    /// The guest frame of a page; those of neighbours need not be neighbours.
    pub fn gfn(&self, index: usize) -> Option<Gfn> {
        (index < self.count).then(|| {
            // SAFETY: within the allocation.
            self.table.platform().gfn(unsafe { self.first.add(index) })
        })
    }

    /// Who may use the pages.
    pub fn peer(&self) -> DomId {
        self.table.peer(self.head)
    }

    /// How many of the pages the peer uses at this moment.
    pub fn in_use(&self) -> usize {
        self.grefs().filter(|gref| self.table.flags(*gref).intersects(GrantFlags::IN_USE)).count()
    }

    /// The bytes of all pages, in a row, which the peer may change at any time.
    #[inline]
    pub fn mem(&mut self) -> SharedMem<'_> {
        let len = self.count * PAGE_SIZE;
        // SAFETY: there is one page at least, of an allocation that is not larger than memory, and it begins where a page does.
        // So the compiler knows of the first words that they are there and aligned.
        unsafe { core::hint::assert_unchecked(self.first.is_aligned() && len >= PAGE_SIZE) };
        // SAFETY: the pages are in a row and stay allocated, for nobody else frees them while this value exists; borrowed
        // exclusively for the result's lifetime. What the peer does to them is what `SharedMem` is made for.
        unsafe { SharedMem::new(self.first.cast(), len) }
    }

    /// Copies bytes out of the pages.
    ///
    /// # Errors
    /// If `offset` and the length reach beyond the last page.
    pub fn read_bytes(&mut self, offset: usize, out: &mut [u8]) -> Result<(), OutOfRange> {
        self.mem().read_bytes(offset, out)
    }

    /// Copies bytes into the pages.
    ///
    /// # Errors
    /// If `offset` and the length reach beyond the last page.
    pub fn write_bytes(&mut self, offset: usize, data: &[u8]) -> Result<(), OutOfRange> {
        self.mem().write_bytes(offset, data)
    }

    /// Takes the peer's access away, from all pages.
    ///
    /// While the peer uses one of them none is freed nor granted anew: they are one piece of memory, so all go to the
    /// quarantine together, and leave it together.
    pub fn end(self) -> EndedPages<'g, P> {
        let this = ManuallyDrop::new(self);
        // SAFETY: `this` is not used, nor dropped, afterwards.
        unsafe { this.finish() }
    }

    /// # Safety
    /// `self` is not used, nor dropped, afterwards: pages and references move.
    unsafe fn finish(&self) -> EndedPages<'g, P> {
        if self.is_current() {
            // SAFETY: they were granted together, and move.
            unsafe { self.table.finish_run(self.head, self.first, self.count) }
        } else {
            // SAFETY: one allocation of the table's memory, which moves. The domain that granted it is gone.
            EndedPages::Pages(unsafe { OwnedPages::from_raw(self.table.platform(), self.first, self.count) })
        }
    }
}

impl<P: Platform> Backing for GrantedPages<'_, P> {
    fn mem(&mut self) -> SharedMem<'_> {
        GrantedPages::mem(self)
    }
}

impl<P: Platform> fmt::Debug for GrantedPages<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrantedPages")
            .field("first", &self.head)
            .field("count", &self.count)
            .field("peer", &self.peer())
            .finish_non_exhaustive()
    }
}

impl<P: Platform> Drop for GrantedPages<'_, P> {
    fn drop(&mut self) {
        // SAFETY: nothing uses the fields after this.
        drop(unsafe { self.finish() });
    }
}
