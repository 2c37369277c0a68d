//! A fixed number of values in pages of the platform's, in place of a heap.
#![allow(unsafe_code, reason = "owns memory of the platform's")]

use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use xen_hypercall::{PAGE_SIZE, Page, Platform};

use crate::Error;

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
        let out_of_memory = Error::Grant(xen_gnttab::Error::OutOfMemory);
        let bytes = capacity.max(1).checked_mul(size_of::<T>()).ok_or(out_of_memory)?;
        let pages = bytes.div_ceil(PAGE_SIZE);
        let first = platform.alloc_pages(pages).ok_or(out_of_memory)?;
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
