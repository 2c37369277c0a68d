//! Pages that are this domain's alone, pages that are not, and the way back.
#![allow(unsafe_code)]

use core::fmt;
use core::mem::ManuallyDrop;
use core::ptr::NonNull;

use xen_hypercall::{Gfn, PAGE_SIZE, Page, Platform};
use xen_ring::{Backing, SharedMem};

/// A page of memory that this domain alone can reach. Freed when dropped.
pub struct OwnedPage<'g, P: Platform> {
    memory: &'g P,
    page: NonNull<Page>,
}

// SAFETY: the page is exclusively this value's and is not tied to a thread; `&P` goes to another thread if `P: Sync`.
unsafe impl<P: Platform + Sync> Send for OwnedPage<'_, P> {}
// SAFETY: through `&OwnedPage` the page can only be read.
unsafe impl<P: Platform + Sync> Sync for OwnedPage<'_, P> {}

impl<'g, P: Platform> OwnedPage<'g, P> {
    pub(crate) fn alloc(memory: &'g P) -> Option<Self> {
        Some(Self { memory, page: memory.alloc_pages(1)? })
    }

    /// # Safety
    /// The page is of `memory`, exclusively the caller's, who gives it up, and no grant leads to it any more.
    pub(crate) unsafe fn from_exposed(memory: &'g P, page: ExposedPage) -> Self {
        Self { memory, page: page.0 }
    }

    /// Gives the page up to be granted.
    pub(crate) fn expose(self) -> ExposedPage {
        ExposedPage(ManuallyDrop::new(self).page)
    }

    /// Whether the page comes from this memory: only then it may go back there.
    pub(crate) fn is_of(&self, memory: &P) -> bool {
        core::ptr::eq(self.memory, memory)
    }

    /// Which platform it is of.
    pub(crate) fn platform(&self) -> &P {
        self.memory
    }

    /// The guest frame of the page.
    pub fn gfn(&self) -> Gfn {
        self.memory.gfn(self.page)
    }

    /// The page's bytes.
    pub fn bytes(&self) -> &[u8; PAGE_SIZE] {
        // SAFETY: the page is initialised (zeroed at allocation), exclusively ours, and no other domain has access.
        unsafe { self.page.cast().as_ref() }
    }

    /// The page's bytes, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8; PAGE_SIZE] {
        // SAFETY: as in `bytes`; `&mut self` excludes other references.
        unsafe { self.page.cast().as_mut() }
    }

    /// The page as memory that others might share, for code that works on both kinds.
    #[inline]
    pub fn mem(&mut self) -> SharedMem<'_> {
        // SAFETY: a page, valid while `self` is, and borrowed exclusively for the result's lifetime.
        unsafe { SharedMem::of(self.page) }
    }
}

impl<P: Platform> Backing for OwnedPage<'_, P> {
    #[inline]
    fn mem(&mut self) -> SharedMem<'_> {
        OwnedPage::mem(self)
    }

    #[inline]
    fn fixed_len(&self) -> Option<usize> {
        Some(PAGE_SIZE)
    }
}

impl<P: Platform> fmt::Debug for OwnedPage<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnedPage").field("gfn", &self.gfn()).finish()
    }
}

impl<P: Platform> Drop for OwnedPage<'_, P> {
    fn drop(&mut self) {
        // SAFETY: the page is of this memory and exclusively ours; this is its last use.
        unsafe { self.memory.free_pages(self.page, 1) };
    }
}

/// A page of this domain that another may reach by a grant entry. Linear: not copied, and when it is dropped the page
/// is lost rather than freed.
pub(crate) struct ExposedPage(NonNull<Page>);

// SAFETY: the page is exclusively this value's within the domain, and not tied to a thread.
unsafe impl Send for ExposedPage {}
// SAFETY: `&ExposedPage` gives the page's address and no access, but by `bytes`, whose caller answers for it.
unsafe impl Sync for ExposedPage {}

impl ExposedPage {
    /// For a slot of the quarantine.
    pub(crate) fn into_raw(self) -> NonNull<Page> {
        self.0
    }

    /// # Safety
    /// The page comes from `into_raw`, and from each of those one `ExposedPage` is made again at most.
    pub(crate) unsafe fn from_raw(page: NonNull<Page>) -> Self {
        Self(page)
    }

    /// The same page once more.
    ///
    /// # Safety
    /// `self` is not used, nor dropped in a way that matters, afterwards.
    pub(crate) unsafe fn duplicate(&self) -> Self {
        Self(self.0)
    }

    pub(crate) fn gfn<P: Platform>(&self, memory: &P) -> Gfn {
        memory.gfn(self.0)
    }

    #[inline]
    pub(crate) fn mem(&mut self) -> SharedMem<'_> {
        // SAFETY: a page that stays allocated, for nobody else frees it while this value exists; borrowed exclusively for
        // the result's lifetime. What the peer does to it is what `SharedMem` is made for.
        unsafe { SharedMem::of(self.0) }
    }

    /// # Safety
    /// Nobody can write to the page as long as the result lives, in this domain or another.
    pub(crate) unsafe fn bytes(&self) -> &[u8; PAGE_SIZE] {
        // SAFETY: initialised (zeroed at allocation) and valid while `self` is; the caller excludes writers.
        unsafe { self.0.cast().as_ref() }
    }
}
