//! The kernel's page allocator: a region of memory whose addresses are those that Xen knows it by.
#![allow(unsafe_code, reason = "gives out memory")]

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, Ordering};

use xen_hypercall::{Gfn, PAGE_SIZE, Page, PageMemory, SpecialPages};

/// The most pages that a region may have.
const MOST: usize = 1024;

/// A region of pages. First fit, without locks: a page is whose who marked it.
#[derive(Debug)]
pub struct Frames {
    first: NonNull<Page>,
    count: usize,
    taken: [AtomicBool; MOST],
}

// SAFETY: the region is this value's alone, and who gets a page of it is decided by an atomic exchange.
unsafe impl Send for Frames {}
// SAFETY: as above.
unsafe impl Sync for Frames {}

impl Frames {
    /// Gives out the `count` pages from `first` on, at most the first 1024 of them.
    ///
    /// # Safety
    /// They are valid memory that nothing else uses, at the addresses that they have in the domain (the kernel maps
    /// memory one to one), for ever.
    pub const unsafe fn new(first: NonNull<Page>, count: usize) -> Self {
        let count = if count > MOST { MOST } else { count };
        Self { first, count, taken: [const { AtomicBool::new(false) }; MOST] }
    }

    /// How many pages nobody has.
    pub fn free(&self) -> usize {
        let all = self.taken.iter().take(self.count);
        all.filter(|taken| !taken.load(Ordering::Relaxed)).count()
    }

    /// Marks `count` pages in a row as taken, or none; returns the place of the first.
    fn take(&self, count: usize) -> Option<usize> {
        let mut from = 0usize;
        while let Some(wanted) = self.taken.get(from..from.checked_add(count)?.min(self.count)) {
            if wanted.len() < count {
                return None;
            }
            // Acquire: what the last owner did with the page comes before what the next one does.
            let Some(busy) = wanted.iter().position(|taken| taken.swap(true, Ordering::Acquire)) else {
                return Some(from);
            };
            self.give(from, busy);
            from += busy + 1;
        }
        None
    }

    fn give(&self, from: usize, count: usize) {
        for taken in self.taken.iter().skip(from).take(count) {
            taken.store(false, Ordering::Release);
        }
    }
}

// SAFETY: pages are given out once, zeroed, and stay where they are; the address is the frame's, as `new` promises.
unsafe impl PageMemory for Frames {
    fn alloc_pages(&self, count: usize) -> Option<NonNull<Page>> {
        if count == 0 {
            return None;
        }
        let from = self.take(count)?;
        // SAFETY: the place is within the region, and so are `count` pages from there, which are ours alone now.
        unsafe {
            let first = self.first.add(from);
            first.cast::<u8>().write_bytes(0, count * PAGE_SIZE);
            Some(first)
        }
    }

    unsafe fn free_pages(&self, first: NonNull<Page>, count: usize) {
        let from = (first.addr().get() - self.first.addr().get()) / PAGE_SIZE;
        self.give(from, count);
    }

    fn gfn(&self, page: NonNull<Page>) -> Gfn {
        Gfn((page.addr().get() / PAGE_SIZE) as u64)
    }
}

// SAFETY: all addresses are the frames', as `new` promises.
unsafe impl SpecialPages for Frames {
    unsafe fn map_special(&self, gfn: Gfn, _count: usize) -> Option<NonNull<Page>> {
        let address = usize::try_from(gfn.0).ok()?.checked_mul(PAGE_SIZE)?;
        NonNull::new(ptr::with_exposed_provenance_mut(address))
    }
}
