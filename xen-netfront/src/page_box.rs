//! A value that lives in pages of the platform's, so that it costs no stack, and its owner is a pointer.
#![allow(unsafe_code, reason = "owns memory by its address")]

use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering, fence};

use xen_hypercall::{PAGE_SIZE, Page, PageMemory};

/// An owner of a `T` in pages of its own. The pages go back when it is dropped.
pub(crate) struct PageBox<'x, P: PageMemory, T> {
    /// Points to a `T` at the start of `PAGES` pages of `memory`, which nobody else uses.
    value: NonNull<T>,
    memory: &'x P,
    _owns: PhantomData<T>,
}

// SAFETY: it is as good as the `T`, which goes to another thread with it, and a reference to the platform.
unsafe impl<P: PageMemory + Sync, T: Send> Send for PageBox<'_, P, T> {}
// SAFETY: a reference to it gives a reference to the `T` and nothing else; the platform is used when it is dropped alone.
unsafe impl<P: PageMemory + Sync, T: Sync> Sync for PageBox<'_, P, T> {}

impl<'x, P: PageMemory, T> PageBox<'x, P, T> {
    const PAGES: usize = {
        assert!(size_of::<T>() > 0 && align_of::<T>() <= align_of::<Page>());
        size_of::<T>().div_ceil(PAGE_SIZE)
    };

    /// Puts what `make` returns into fresh pages. A value that is large is best made by an expression without anything that
    /// may fail: then the compiler makes it where it is to be, and not on the stack. None: no memory.
    #[inline(always)]
    pub(crate) fn new(memory: &'x P, make: impl FnOnce() -> T) -> Option<Self> {
        let value = memory.alloc_pages(Self::PAGES)?.cast::<T>();
        // SAFETY: the pages are ours, valid for writes, in a row, as large as a `T` at least, and aligned as a `Page` is,
        // which suffices for a `T`.
        unsafe { value.write(make()) };
        Some(Self { value, memory, _owns: PhantomData })
    }
}

impl<P: PageMemory, T> Deref for PageBox<'_, P, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: there is a `T` from `new` until `drop`, and `&self` keeps others from changing it.
        unsafe { self.value.as_ref() }
    }
}

impl<P: PageMemory, T> DerefMut for PageBox<'_, P, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: there is a `T` from `new` until `drop`, and `&mut self` keeps others from it.
        unsafe { self.value.as_mut() }
    }
}

impl<P: PageMemory, T> Drop for PageBox<'_, P, T> {
    fn drop(&mut self) {
        // SAFETY: there is a `T`, which nobody uses after this.
        unsafe { self.value.drop_in_place() };
        // SAFETY: the pages are of one `alloc_pages` of this number, and nobody uses them after this: the `T` is gone.
        unsafe { self.memory.free_pages(self.value.cast(), Self::PAGES) };
    }
}

/// One of several owners of a `T` in pages of its own. The pages go back with the last of them.
pub(crate) struct PageArc<'x, P: PageMemory, T> {
    /// Points to a `Counted` at the start of `PAGES` pages of `memory`, which only owners use.
    value: NonNull<Counted<T>>,
    memory: &'x P,
    _owns: PhantomData<Counted<T>>,
}

struct Counted<T> {
    owners: AtomicUsize,
    value: T,
}

// SAFETY: any owner may be the last, which drops the `T`, and all have a reference to it; the platform is shared.
unsafe impl<P: PageMemory + Sync, T: Send + Sync> Send for PageArc<'_, P, T> {}
// SAFETY: as above, for a reference to an owner makes another owner.
unsafe impl<P: PageMemory + Sync, T: Send + Sync> Sync for PageArc<'_, P, T> {}

impl<'x, P: PageMemory, T> PageArc<'x, P, T> {
    const PAGES: usize = {
        assert!(align_of::<Counted<T>>() <= align_of::<Page>());
        size_of::<Counted<T>>().div_ceil(PAGE_SIZE)
    };

    /// Puts a value into fresh pages. None: no memory.
    pub(crate) fn new(memory: &'x P, value: T) -> Option<Self> {
        let place = memory.alloc_pages(Self::PAGES)?.cast::<Counted<T>>();
        // SAFETY: the pages are ours, valid for writes, in a row, as large as the value at least, and aligned as a `Page` is,
        // which suffices for it.
        unsafe { place.write(Counted { owners: AtomicUsize::new(1), value }) };
        Some(Self { value: place, memory, _owns: PhantomData })
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

impl<P: PageMemory, T> Clone for PageArc<'_, P, T> {
    fn clone(&self) -> Self {
        // Relaxed, as of any reference count: there is an owner already. A device has few queues, so it does not overflow.
        self.counted().owners.fetch_add(1, Ordering::Relaxed);
        Self { value: self.value, memory: self.memory, _owns: PhantomData }
    }
}

impl<P: PageMemory, T> Deref for PageArc<'_, P, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.counted().value
    }
}

impl<P: PageMemory, T> Drop for PageArc<'_, P, T> {
    fn drop(&mut self) {
        if self.counted().owners.fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        // What the other owners did comes before the value goes.
        fence(Ordering::Acquire);
        // SAFETY: this was the last owner, so that nobody uses the value, now or later.
        unsafe { self.value.drop_in_place() };
        // SAFETY: the pages are of one `alloc_pages` of this number, and nobody uses them after this: the value is gone.
        unsafe { self.memory.free_pages(self.value.cast(), Self::PAGES) };
    }
}
