//! The domain's memory: pages for drivers and tables, and the heap.
#![allow(unsafe_code, reason = "gives memory out")]

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;

use xen_hypercall::{PAGE_SIZE, Page};

use crate::memory_map::{BootInfo, Range};

#[cfg(feature = "heap")]
mod heap;
#[cfg(not(feature = "heap"))]
mod pages;

#[cfg(feature = "heap")]
use heap::Heap;
#[cfg(not(feature = "heap"))]
use pages::Heap;

#[cfg_attr(feature = "heap", global_allocator)]
static HEAP: Heap = Heap::new();

/// Takes over the memory of a part that nobody uses. It is mapped, and no part is taken over twice.
#[inline(never)]
pub(crate) fn init(info: &BootInfo, part: Range) {
    for range in info.usable_in(part) {
        // SAFETY: this is RAM by Xen's own word, mapped, outside of the image, and given to nobody else.
        unsafe { HEAP.claim(range.start as usize, (range.end - range.start) as usize) };
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
    HEAP.counters()
}

/// Keeps a thing for as long as the domain lives.
pub(crate) fn keep<T>(thing: T) -> &'static mut T {
    let layout = Layout::new::<T>();
    if layout.size() == 0 {
        // SAFETY: there is nothing at the address to be read or written.
        return unsafe { NonNull::dangling().as_mut() };
    }
    // SAFETY: the layout is not empty.
    let Some(place) = NonNull::new(unsafe { HEAP.alloc(layout) }.cast::<T>()) else { out_of_memory() };
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
    let first = NonNull::new(unsafe { HEAP.alloc(layout) })?;
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
        unsafe { HEAP.dealloc(first.as_ptr().cast(), layout) };
    }
}
