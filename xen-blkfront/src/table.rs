//! Values in pages of the platform's, in place of a heap: a fixed number of them.
#![allow(unsafe_code, reason = "owns memory of the platform's")]

use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use xen_hypercall::{PAGE_SIZE, Page, Platform};

use crate::Error;

/// The platform has no pages left.
pub(crate) const NO_MEMORY: Error = Error::Grant(xen_gnttab::Error::OutOfMemory);

/// Values one after the other, as many as there is room for. Read and written as a slice.
pub(crate) struct Table<'x, P: Platform, T> {
    platform: &'x P,
    first: NonNull<Page>,
    pages: usize,
    capacity: usize,
    len: usize,
    _values: core::marker::PhantomData<T>,
}

// SAFETY: the pages are exclusively this value's and not tied to a thread, and neither are the values in them;
// `&P` goes to another thread if `P: Sync`.
unsafe impl<P: Platform + Sync, T: Send> Send for Table<'_, P, T> {}

impl<'x, P: Platform, T> Table<'x, P, T> {
    const ALIGNED: () = assert!(align_of::<T>() <= PAGE_SIZE && size_of::<T>() > 0);

    /// Room for this many.
    pub(crate) fn new(platform: &'x P, capacity: usize) -> Result<Self, Error> {
        let () = Self::ALIGNED;
        let bytes = capacity.max(1).checked_mul(size_of::<T>()).ok_or(NO_MEMORY)?;
        let pages = bytes.div_ceil(PAGE_SIZE);
        let first = platform.alloc_pages(pages).ok_or(NO_MEMORY)?;
        Ok(Self { platform, first, pages, capacity, len: 0, _values: core::marker::PhantomData })
    }

    /// Adds a value, if there is room.
    pub(crate) fn push(&mut self, value: T) -> Option<()> {
        if self.len == self.capacity {
            return None;
        }
        // SAFETY: the pages have room for `capacity` values, and a page is aligned for one; this place holds none.
        unsafe { self.first.cast::<T>().add(self.len).write(value) };
        self.len += 1;
        Some(())
    }

    /// Takes a value out; the last one takes its place.
    pub(crate) fn swap_remove(&mut self, index: usize) -> Option<T> {
        let last = self.len.checked_sub(1)?;
        if index > last {
            return None;
        }
        self.swap(index, last);
        self.len = last;
        // SAFETY: the place held a value, and is beyond the length now, so that nobody else takes it.
        Some(unsafe { self.first.cast::<T>().add(last).read() })
    }
}

impl<P: Platform, T> Deref for Table<'_, P, T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: the first `len` places hold values, which are this table's alone.
        unsafe { NonNull::slice_from_raw_parts(self.first.cast::<T>(), self.len).as_ref() }
    }
}

impl<P: Platform, T> DerefMut for Table<'_, P, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`; `&mut self` excludes other references.
        unsafe { NonNull::slice_from_raw_parts(self.first.cast::<T>(), self.len).as_mut() }
    }
}

impl<P: Platform, T> Drop for Table<'_, P, T> {
    fn drop(&mut self) {
        let values: *mut [T] = &raw mut **self;
        // SAFETY: the values are valid and not used after this.
        unsafe { values.drop_in_place() };
        // SAFETY: of one `alloc_pages`, and this is the last use.
        unsafe { self.platform.free_pages(self.first, self.pages) };
    }
}
