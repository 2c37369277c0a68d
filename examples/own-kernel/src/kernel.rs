//! The platform: what the drivers see of the kernel. Made of parts, so that a test can put others in their place.
#![allow(unsafe_code, reason = "implements the platform traits")]

use core::ptr::NonNull;
use core::time::Duration;

use xen_hypercall::{Gfn, Hypercall, HypercallNr, Page, PageMemory, SpecialPages, Wait};

/// The way into Xen, the memory, and the clock. In the kernel that is [`OnXen`](crate::OnXen); in a test all three
/// are a `MockDomain`.
#[derive(Clone, Debug)]
pub struct Kernel<C, M, T> {
    /// How hypercalls are made.
    pub call: C,
    /// Where pages come from.
    pub memory: M,
    /// What time it is, and how it passes.
    pub time: T,
}

// SAFETY: the part makes the call as it is.
unsafe impl<C: Hypercall, M, T> Hypercall for Kernel<C, M, T> {
    unsafe fn hypercall(&self, nr: HypercallNr, args: [usize; 5]) -> isize {
        // SAFETY: the caller's promises are the same.
        unsafe { self.call.hypercall(nr, args) }
    }
}

// SAFETY: the part keeps the promises.
unsafe impl<C, M: PageMemory, T> PageMemory for Kernel<C, M, T> {
    fn alloc_pages(&self, count: usize) -> Option<NonNull<Page>> {
        self.memory.alloc_pages(count)
    }

    unsafe fn free_pages(&self, first: NonNull<Page>, count: usize) {
        // SAFETY: the caller's promises are the same.
        unsafe { self.memory.free_pages(first, count) }
    }

    fn gfn(&self, page: NonNull<Page>) -> Gfn {
        self.memory.gfn(page)
    }
}

// SAFETY: the part keeps the promises.
unsafe impl<C, M: SpecialPages, T> SpecialPages for Kernel<C, M, T> {
    unsafe fn map_special(&self, gfn: Gfn, count: usize) -> Option<NonNull<Page>> {
        // SAFETY: the caller's promises are the same.
        unsafe { self.memory.map_special(gfn, count) }
    }
}

impl<C, M, T: Wait> Wait for Kernel<C, M, T> {
    fn now(&self) -> Duration {
        self.time.now()
    }

    fn wait(&self, deadline: Option<Duration>, is_due: &dyn Fn() -> bool) {
        self.time.wait(deadline, is_due);
    }
}
