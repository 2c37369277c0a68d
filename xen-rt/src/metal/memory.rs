//! The domain's memory: pages for drivers and tables, and the heap.
#![allow(unsafe_code, reason = "gives memory out")]

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;

use talc::DefaultBinning;
use talc::cell::TalcCell;
use talc::source::Manual;
use xen_hypercall::{PAGE_SIZE, Page};

use crate::memory_map::{BootInfo, Range};

type Memories = TalcCell<Manual, DefaultBinning>;

/// The heap.
#[cfg(not(feature = "smp"))]
struct Heap(Memories);

// SAFETY: there is one vCPU, and interrupts run no Rust code: no two threads ever use the heap.
#[cfg(not(feature = "smp"))]
unsafe impl Sync for Heap {}

#[cfg(not(feature = "smp"))]
impl Heap {
    const fn new() -> Self {
        Self(Memories::new(Manual))
    }

    fn with<R>(&self, f: impl FnOnce(&Memories) -> R) -> R {
        f(&self.0)
    }
}

/// The heap.
#[cfg(feature = "smp")]
struct Heap(crate::lock::Lock<Memories>);

#[cfg(feature = "smp")]
impl Heap {
    const fn new() -> Self {
        Self(crate::lock::Lock::new(Memories::new(Manual)))
    }

    fn with<R>(&self, f: impl FnOnce(&Memories) -> R) -> R {
        let result = self.0.with(|memory| f(memory));
        // A panic within the allocator would come here again.
        result.unwrap_or_else(|| crate::machine::end(crate::Exit::Crash))
    }
}

#[cfg(feature = "heap")]
// SAFETY: the inner allocator keeps the promises; all calls are handed to it.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the same promises to this call.
        unsafe { self.with(|memory| memory.alloc(layout)) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the same promises to this call.
        unsafe { self.with(|memory| memory.dealloc(at, layout)) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller keeps the same promises to this call.
        unsafe { self.with(|memory| memory.realloc(at, layout, size)) }
    }
}

#[cfg_attr(feature = "heap", global_allocator)]
static HEAP: Heap = Heap::new();

/// Takes over the memory of a part that nobody uses. It is mapped, and no part is taken over twice.
pub(super) fn init(info: &BootInfo, part: Range) {
    for range in info.usable_in(part) {
        let base = core::ptr::with_exposed_provenance_mut(range.start as usize);
        // SAFETY: this is RAM by Xen's own word, mapped, outside of the image, and given to nobody else.
        unsafe { HEAP.with(|memory| memory.claim(base, (range.end - range.start) as usize)) };
    }
}

/// How much of the domain's memory is in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Memory {
    /// Bytes that were given out, as heap or pages.
    pub used: usize,
    /// Bytes that can be.
    pub free: usize,
}

/// How much of the domain's memory is in use.
pub fn memory() -> Memory {
    let counters = HEAP.with(|memory| memory.counters());
    Memory { used: counters.allocated_bytes, free: counters.available_bytes }
}

/// Keeps a thing for as long as the domain lives.
pub(crate) fn keep<T>(thing: T) -> &'static mut T {
    let layout = Layout::new::<T>();
    if layout.size() == 0 {
        // SAFETY: there is nothing at the address to be read or written.
        return unsafe { NonNull::dangling().as_mut() };
    }
    // SAFETY: the layout is not empty.
    let Some(place) = NonNull::new(unsafe { HEAP.with(|memory| memory.alloc(layout)) }.cast::<T>()) else {
        out_of_memory()
    };
    // SAFETY: the memory was just allocated for this, has the type's layout, and is never freed.
    unsafe {
        place.write(thing);
        &mut *place.as_ptr()
    }
}

/// Pages, zeroed, that are not given back: stacks and tables.
pub(crate) fn keep_pages(count: usize) -> NonNull<Page> {
    alloc_pages(count).unwrap_or_else(|| out_of_memory())
}

fn out_of_memory() -> ! {
    crate::crash(format_args!("out of memory"))
}

fn pages(count: usize) -> Option<Layout> {
    Layout::from_size_align(count.checked_mul(PAGE_SIZE)?, PAGE_SIZE).ok().filter(|layout| layout.size() > 0)
}

/// `count` zeroed pages in a row.
#[inline(never)]
pub(crate) fn alloc_pages(count: usize) -> Option<NonNull<Page>> {
    let layout = pages(count)?;
    // SAFETY: the layout is not empty.
    let first = NonNull::new(unsafe { HEAP.with(|memory| memory.alloc(layout)) })?;
    // SAFETY: the memory was just allocated, of this size.
    unsafe { first.write_bytes(0, layout.size()) };
    Some(first.cast())
}

/// Takes pages back.
///
/// # Safety
/// They are of one `alloc_pages` for the same count, and nobody uses them any more.
pub(super) unsafe fn free_pages(first: NonNull<Page>, count: usize) {
    if let Some(layout) = pages(count) {
        // SAFETY: the caller gives back what `alloc_pages` gave out for the same count.
        unsafe { HEAP.with(|memory| memory.dealloc(first.as_ptr().cast(), layout)) };
    }
}
