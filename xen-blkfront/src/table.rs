//! Values in pages of the platform's, in place of a heap: a fixed number of them, one alone, or one with several owners.
#![allow(unsafe_code, reason = "owns memory of the platform's")]

use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering, fence};

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

/// One value in pages of its own, so that its owner is a pointer.
pub(crate) struct PageBox<'x, P: Platform, T> {
    platform: &'x P,
    value: NonNull<T>,
    _value: core::marker::PhantomData<T>,
}

// SAFETY: as of a table.
unsafe impl<P: Platform + Sync, T: Send> Send for PageBox<'_, P, T> {}

impl<'x, P: Platform, T> PageBox<'x, P, T> {
    /// Puts a value into fresh pages.
    pub(crate) fn new(platform: &'x P, value: T) -> Result<Self, Error> {
        Ok(Self { platform, value: place(platform, value)?, _value: core::marker::PhantomData })
    }
}

impl<P: Platform, T> Deref for PageBox<'_, P, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: there is a value from `new` until `drop`, and `&self` keeps others from changing it.
        unsafe { self.value.as_ref() }
    }
}

impl<P: Platform, T> DerefMut for PageBox<'_, P, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`; `&mut self` excludes other references.
        unsafe { self.value.as_mut() }
    }
}

impl<P: Platform, T> Drop for PageBox<'_, P, T> {
    fn drop(&mut self) {
        // SAFETY: made by `place` with this platform, and not used after this.
        unsafe { displace(self.platform, self.value) };
    }
}

/// One of several owners of a value in pages of its own. The pages go back with the last of them.
pub(crate) struct PageArc<'x, P: Platform, T> {
    platform: &'x P,
    value: NonNull<Counted<T>>,
    _value: core::marker::PhantomData<Counted<T>>,
}

struct Counted<T> {
    owners: AtomicUsize,
    value: T,
}

// SAFETY: any owner may be the last, which drops the value, and all have a reference to it; the platform is shared.
unsafe impl<P: Platform + Sync, T: Send + Sync> Send for PageArc<'_, P, T> {}

impl<'x, P: Platform, T> PageArc<'x, P, T> {
    /// Puts a value into fresh pages.
    pub(crate) fn new(platform: &'x P, value: T) -> Result<Self, Error> {
        let value = place(platform, Counted { owners: AtomicUsize::new(1), value })?;
        Ok(Self { platform, value, _value: core::marker::PhantomData })
    }

    /// Whether both are owners of the same value.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.value == other.value
    }

    fn counted(&self) -> &Counted<T> {
        // SAFETY: there is a value as long as there is an owner, and nobody has it exclusively.
        unsafe { self.value.as_ref() }
    }
}

impl<P: Platform, T> Clone for PageArc<'_, P, T> {
    fn clone(&self) -> Self {
        // Relaxed, as of any reference count: there is an owner already. A disk has few queues, so it does not overflow.
        self.counted().owners.fetch_add(1, Ordering::Relaxed);
        Self { platform: self.platform, value: self.value, _value: core::marker::PhantomData }
    }
}

impl<P: Platform, T> Deref for PageArc<'_, P, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.counted().value
    }
}

impl<P: Platform, T> Drop for PageArc<'_, P, T> {
    fn drop(&mut self) {
        if self.counted().owners.fetch_sub(1, Ordering::Release) == 1 {
            // What the other owners did comes before the value goes.
            fence(Ordering::Acquire);
            // SAFETY: made by `place` with this platform; this was the last owner, so nobody uses the value, now or later.
            unsafe { displace(self.platform, self.value) };
        }
    }
}

/// Puts a value at the start of fresh pages.
fn place<T, P: Platform>(platform: &P, value: T) -> Result<NonNull<T>, Error> {
    const { assert!(align_of::<T>() <= PAGE_SIZE && size_of::<T>() > 0) };
    let pages = platform.alloc_pages(size_of::<T>().div_ceil(PAGE_SIZE));
    let place = pages.ok_or(Error::Grant(xen_gnttab::Error::OutOfMemory))?.cast::<T>();
    // SAFETY: the pages are ours alone, in a row, as large as the value at least, and aligned for one.
    unsafe { place.write(value) };
    Ok(place)
}

/// Drops a value and gives its pages back.
///
/// # Safety
/// It is of one [`place`] with the same platform, and not used after this.
unsafe fn displace<T, P: Platform>(platform: &P, value: NonNull<T>) {
    // SAFETY: the caller's promise.
    unsafe { value.drop_in_place() };
    // SAFETY: of one `alloc_pages` of this number, and nobody uses them any more.
    unsafe { platform.free_pages(value.cast::<Page>(), size_of::<T>().div_ceil(PAGE_SIZE)) };
}
