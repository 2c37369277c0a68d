//! A page that another domain writes to at any time.
#![allow(unsafe_code, reason = "lends a page as shared memory")]

use core::ptr::NonNull;

use xen_hypercall::{PAGE_SIZE, Page};
use xen_ring::{Backing, SharedMem};

/// The page, for as long as the kernel runs.
#[derive(Debug)]
pub struct SharedPage(NonNull<Page>);

// SAFETY: the page is not tied to a thread, and is accessed by atomics alone.
unsafe impl Send for SharedPage {}

impl SharedPage {
    /// # Safety
    /// The page is valid memory from now on, and nothing in this program accesses it but values of this type.
    pub const unsafe fn new(page: NonNull<Page>) -> Self {
        Self(page)
    }
}

impl Backing for SharedPage {
    fn mem(&mut self) -> SharedMem<'_> {
        // SAFETY: `new` promises that it is valid, and that all accesses are those of `SharedMem`, which are atomic.
        unsafe { SharedMem::new(self.0.cast(), PAGE_SIZE) }
    }
}
