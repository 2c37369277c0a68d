//! The memory that is given out in a kernel without a heap: pages, and what the runtime keeps. By a buddy allocator, which
//! rounds up to powers of two; talc would bring `alloc`, which needs a heap.
#![allow(unsafe_code, reason = "gives memory out")]

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{NonNull, null_mut};

use super::Memory;
use crate::lock::Lock;

/// Blocks of up to 2^39 bytes.
type Buddies = buddy_system_allocator::Heap<40>;

pub(super) struct Heap(Lock<Buddies>);

impl Heap {
    pub(super) const fn new() -> Self {
        Self(Lock::new(Buddies::empty()))
    }

    /// Takes memory over.
    ///
    /// # Safety
    /// It is mapped, and nobody else uses it.
    pub(super) unsafe fn claim(&self, start: usize, size: usize) {
        // SAFETY: the caller promises it.
        self.0.with(|memory| unsafe { memory.init(start, size) });
    }

    pub(super) fn counters(&self) -> Memory {
        let counters = self.0.with(|memory| (memory.stats_alloc_actual(), memory.stats_total_bytes()));
        let (used, total) = counters.unwrap_or_default();
        Memory { used, free: total - used }
    }
}

// SAFETY: the inner allocator keeps the promises; all calls are handed to it.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let given = self.0.with(|memory| memory.alloc(layout).ok());
        given.flatten().map_or(null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        if let Some(at) = NonNull::new(at) {
            // SAFETY: the caller gives back what `alloc` gave out.
            self.0.with(|memory| unsafe { memory.dealloc(at, layout) });
        }
    }
}
