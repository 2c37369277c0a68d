//! The memory that is given out, by talc: as the heap (feature `heap`), and as pages.
#![allow(unsafe_code, reason = "gives memory out")]

use core::alloc::{GlobalAlloc, Layout};

use talc::DefaultBinning;
use talc::cell::TalcCell;
use talc::source::Manual;

use super::Memory;

type Talc = TalcCell<Manual, DefaultBinning>;

/// The heap.
#[cfg(not(feature = "smp"))]
pub(super) struct Heap(Talc);

// SAFETY: there is one vCPU, and interrupts run no Rust code: no two threads ever use the heap.
#[cfg(not(feature = "smp"))]
unsafe impl Sync for Heap {}

#[cfg(not(feature = "smp"))]
impl Heap {
    pub(super) const fn new() -> Self {
        Self(Talc::new(Manual))
    }

    fn with<R>(&self, f: impl FnOnce(&Talc) -> R) -> R {
        f(&self.0)
    }
}

/// The heap.
#[cfg(feature = "smp")]
pub(super) struct Heap(crate::lock::Lock<Talc>);

#[cfg(feature = "smp")]
impl Heap {
    pub(super) const fn new() -> Self {
        Self(crate::lock::Lock::new(Talc::new(Manual)))
    }

    fn with<R>(&self, f: impl FnOnce(&Talc) -> R) -> R {
        let result = self.0.with(|memory| f(memory));
        // A panic within the allocator would come here again.
        result.unwrap_or_else(|| crate::machine::end(crate::Exit::Crash))
    }
}

impl Heap {
    /// Takes memory over.
    ///
    /// # Safety
    /// It is mapped, and nobody else uses it.
    pub(super) unsafe fn claim(&self, start: usize, size: usize) {
        // SAFETY: the caller promises it.
        self.with(|memory| unsafe { memory.claim(core::ptr::with_exposed_provenance_mut(start), size) });
    }

    pub(super) fn counters(&self) -> Memory {
        let counters = self.with(|memory| memory.counters());
        Memory { used: counters.allocated_bytes, free: counters.available_bytes }
    }
}

// SAFETY: the inner allocator keeps the promises; all calls are handed to it.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the same promises to this call.
        self.with(|memory| unsafe { memory.alloc(layout) })
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the same promises to this call.
        self.with(|memory| unsafe { memory.dealloc(at, layout) });
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller keeps the same promises to this call.
        self.with(|memory| unsafe { memory.realloc(at, layout, size) })
    }
}
