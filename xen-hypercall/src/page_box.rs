//! A value that lives in pages of the platform's, with one owner or with several.
#![allow(unsafe_code, reason = "owns memory by its address")]

use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering, fence};

use crate::{PAGE_SIZE, Page, PageMemory};

/// An owner of a `T` in pages of its own, for a kernel without a heap, or for a value that is too large for a stack. The pages
/// go back when it is dropped.
pub struct PageBox<'x, P: PageMemory + ?Sized, T> {
    /// Of one [`place`] in `memory`; nobody else uses it.
    value: NonNull<T>,
    memory: &'x P,
    _owns: PhantomData<T>,
}

// SAFETY: it is as good as the `T`, which goes to another thread with it, and a reference to the platform.
unsafe impl<P: PageMemory + Sync + ?Sized, T: Send> Send for PageBox<'_, P, T> {}
// SAFETY: a reference to it gives a reference to the `T` and nothing else; the platform is used when it is dropped alone.
unsafe impl<P: PageMemory + Sync + ?Sized, T: Sync> Sync for PageBox<'_, P, T> {}

impl<'x, P: PageMemory + ?Sized, T> PageBox<'x, P, T> {
    /// Puts the value that `make` returns into fresh pages. A value that is large is best made by an expression without anything
    /// that may fail: then the compiler makes it in its pages, and not on the stack. None: no memory.
    #[inline(always)]
    pub fn new(memory: &'x P, make: impl FnOnce() -> T) -> Option<Self> {
        Some(Self { value: place(memory, make)?, memory, _owns: PhantomData })
    }
}

impl<P: PageMemory + ?Sized, T> Deref for PageBox<'_, P, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: there is a `T` from `new` until `drop`, and `&self` keeps others from changing it.
        unsafe { self.value.as_ref() }
    }
}

impl<P: PageMemory + ?Sized, T> DerefMut for PageBox<'_, P, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: there is a `T` from `new` until `drop`, and `&mut self` keeps others from it.
        unsafe { self.value.as_mut() }
    }
}

impl<P: PageMemory + ?Sized, T> Drop for PageBox<'_, P, T> {
    fn drop(&mut self) {
        // SAFETY: of one `place` in this memory, and not used after this.
        unsafe { displace(self.memory, self.value) };
    }
}

impl<P: PageMemory + ?Sized, T: fmt::Debug> fmt::Debug for PageBox<'_, P, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// One of several owners of a `T` in pages of its own. The pages go back with the last of them.
pub struct PageArc<'x, P: PageMemory + ?Sized, T> {
    /// Of one [`place`] in `memory`; only owners use it.
    value: NonNull<Counted<T>>,
    memory: &'x P,
    _owns: PhantomData<Counted<T>>,
}

struct Counted<T> {
    owners: AtomicUsize,
    value: T,
}

// SAFETY: any owner may be the last, which drops the `T`, and all have a reference to it; the platform is shared.
unsafe impl<P: PageMemory + Sync + ?Sized, T: Send + Sync> Send for PageArc<'_, P, T> {}
// SAFETY: as above, for a reference to an owner makes another owner.
unsafe impl<P: PageMemory + Sync + ?Sized, T: Send + Sync> Sync for PageArc<'_, P, T> {}

impl<'x, P: PageMemory + ?Sized, T> PageArc<'x, P, T> {
    /// Puts a value into fresh pages. None: no memory.
    pub fn new(memory: &'x P, value: T) -> Option<Self> {
        let value = place(memory, || Counted { owners: AtomicUsize::new(1), value })?;
        Some(Self { value, memory, _owns: PhantomData })
    }

    /// Whether both are owners of the same value.
    pub fn is_same(&self, other: &Self) -> bool {
        self.value == other.value
    }

    fn counted(&self) -> &Counted<T> {
        // SAFETY: there is a value as long as there is an owner, and nobody has it exclusively.
        unsafe { self.value.as_ref() }
    }
}

impl<P: PageMemory + ?Sized, T> Clone for PageArc<'_, P, T> {
    /// Makes another owner.
    ///
    /// # Panics
    /// There are as many as can be counted, all but one of which were forgotten.
    fn clone(&self) -> Self {
        // Relaxed, as of any reference count: there is an owner already.
        let counted = self.counted().owners.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |owners| {
            // One that came to zero again would free what others use.
            owners.checked_add(1)
        });
        assert!(counted.is_ok(), "too many owners");
        Self { value: self.value, memory: self.memory, _owns: PhantomData }
    }
}

impl<P: PageMemory + ?Sized, T> Deref for PageArc<'_, P, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.counted().value
    }
}

impl<P: PageMemory + ?Sized, T> Drop for PageArc<'_, P, T> {
    fn drop(&mut self) {
        if self.counted().owners.fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        // What the other owners did comes before the value goes.
        fence(Ordering::Acquire);
        // SAFETY: of one `place` in this memory; this was the last owner, so that nobody uses the value, now or later.
        unsafe { displace(self.memory, self.value) };
    }
}

impl<P: PageMemory + ?Sized, T: fmt::Debug> fmt::Debug for PageArc<'_, P, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// The pages of a `T`, of which there is at least one.
const fn pages<T>() -> usize {
    assert!(align_of::<T>() <= align_of::<Page>());
    if size_of::<T>() == 0 { 1 } else { size_of::<T>().div_ceil(PAGE_SIZE) }
}

/// Makes a value at the start of fresh pages. None: no memory.
#[inline(always)]
fn place<T>(memory: &(impl PageMemory + ?Sized), make: impl FnOnce() -> T) -> Option<NonNull<T>> {
    let place = memory.alloc_pages(const { pages::<T>() })?.cast::<T>();
    // SAFETY: the pages are ours alone, valid for writes, in a row, as large as a `T` at least, and aligned as a `Page` is,
    // which suffices for a `T`.
    unsafe { place.write(make()) };
    Some(place)
}

/// Drops a value and gives its pages back.
///
/// # Safety
/// It is of one [`place`] in the same memory, and not used after this.
unsafe fn displace<T>(memory: &(impl PageMemory + ?Sized), value: NonNull<T>) {
    // SAFETY: the caller's promise.
    unsafe { value.drop_in_place() };
    // SAFETY: the pages are of one `alloc_pages` of this number, and nobody uses them after this: the value is gone.
    unsafe { memory.free_pages(value.cast(), const { pages::<T>() }) };
}
