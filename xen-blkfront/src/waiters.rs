//! Tasks that wait for the disk: each has a place for its waker, and an event wakes all of them.
//!
//! An event channel wakes four tasks at most. Here that is all tasks at once: what the channel gets is a waker that wakes
//! every place. So a task that was dropped without a word costs the others nothing, and whichever of them runs first
//! takes the responses for all.
#![allow(unsafe_code, reason = "owns memory of the platform's, which wakers point to")]

use core::ptr::NonNull;
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use core::task::{RawWaker, RawWakerVTable, Waker};

use atomic_waker::AtomicWaker;
use xen_evtchn::wake_all;
use xen_hypercall::{PAGE_SIZE, Page, Platform};

/// Places that are no operation's: for tasks that wait for any event, or for room.
const OTHERS: usize = 4;

/// In the first page, followed by the places.
struct Head {
    /// Wakers that point here, and one for the [`Waiters`].
    users: AtomicUsize,
    places: usize,
}

/// Where the first place is.
const FIRST: usize = size_of::<Head>().next_multiple_of(align_of::<AtomicWaker>());

pub(crate) struct Waiters<'x, P: Platform> {
    platform: &'x P,
    head: NonNull<Head>,
    pages: usize,
    /// The one of the others that is used next.
    turn: usize,
}

// SAFETY: what is in the pages is atomic, and `AtomicWaker` is Send and Sync; `&P` goes to another thread if `P: Sync`.
unsafe impl<P: Platform + Sync> Send for Waiters<'_, P> {}

impl<'x, P: Platform> Waiters<'x, P> {
    /// Places for the tasks of so many operations, and some more; none without memory.
    pub(crate) fn new(platform: &'x P, operations: usize) -> Option<Self> {
        const { assert!(align_of::<Head>() <= PAGE_SIZE && align_of::<AtomicWaker>() <= PAGE_SIZE) };
        let places = operations + OTHERS;
        let pages = (FIRST + places * size_of::<AtomicWaker>()).div_ceil(PAGE_SIZE);
        let head = platform.alloc_pages(pages)?.cast::<Head>();
        // SAFETY: the pages are ours alone, large enough and aligned.
        unsafe { head.write(Head { users: AtomicUsize::new(1), places }) };
        for index in 0..places {
            // SAFETY: within the pages, as their number was computed for it.
            unsafe { place(head, index).write(AtomicWaker::new()) };
        }
        Some(Self { platform, head, pages, turn: 0 })
    }

    /// Leaves a task's waker in the place of an operation.
    pub(crate) fn leave(&self, operation: u16, waker: &Waker) {
        if let Some(place) = self.places().get(OTHERS + usize::from(operation)) {
            place.register(waker);
        }
    }

    /// Leaves the waker of a task that waits for no one operation. When there are more such tasks than places, the one
    /// that was first is woken, and leaves its waker anew.
    pub(crate) fn leave_other(&mut self, waker: &Waker) {
        let others = self.places().get(..OTHERS).unwrap_or_default();
        for other in others {
            match other.take() {
                Some(before) if !before.will_wake(waker) => other.register(&before),
                _ => return other.register(waker),
            }
        }
        if let Some(other) = others.get(self.turn) {
            other.wake();
            other.register(waker);
        }
        self.turn = (self.turn + 1) % OTHERS;
    }

    /// Wakes those that wait for no one operation.
    #[cold]
    pub(crate) fn wake_others(&self) {
        wake_all(self.places().iter().take(OTHERS), AtomicWaker::wake);
    }

    /// Wakes all.
    #[cold]
    pub(crate) fn wake(&self) {
        wake_all(self.places().iter(), AtomicWaker::wake);
    }

    /// The waker that does so.
    pub(crate) fn waker(&self) -> Waker {
        // SAFETY: the functions of the table keep to the contract of `RawWaker`, and `clone` counts this one.
        unsafe { Waker::from_raw(clone(self.head.as_ptr().cast_const().cast())) }
    }

    fn places(&self) -> &[AtomicWaker] {
        // SAFETY: the pages are there as long as `self`.
        unsafe { places(self.head) }
    }
}

impl<P: Platform> Drop for Waiters<'_, P> {
    fn drop(&mut self) {
        for place in self.places() {
            drop(place.take());
        }
        // SAFETY: as in `places`.
        let users = unsafe { self.head.as_ref() }.users.fetch_sub(1, AcqRel);
        if users == 1 {
            // SAFETY: of one `alloc_pages`; nobody else points to it, and nobody can any more. The places are empty, and
            // have nothing else to drop.
            unsafe { self.platform.free_pages(self.head.cast::<Page>(), self.pages) };
        }
        // Otherwise somebody is keeping a waker beyond the disk, and the pages stay for it, for good.
    }
}

/// A place.
///
/// # Safety
/// Below the number of places that the pages from `head` on are large enough for.
unsafe fn place(head: NonNull<Head>, index: usize) -> NonNull<AtomicWaker> {
    // SAFETY: the caller's promise.
    unsafe { head.byte_add(FIRST).cast::<AtomicWaker>().add(index) }
}

/// All places.
///
/// # Safety
/// Of a [`Waiters`] that is there, or for which a waker is.
unsafe fn places<'a>(head: NonNull<Head>) -> &'a [AtomicWaker] {
    // SAFETY: the pages are there, by the caller's promise, and never written but by atomics.
    let count = unsafe { head.as_ref() }.places;
    // SAFETY: `new` has made so many.
    let first = unsafe { place(head, 0) };
    // SAFETY: `new` has filled them all, and they stay as long as there is a user.
    unsafe { NonNull::slice_from_raw_parts(first, count).as_ref() }
}

static TABLE: RawWakerVTable = RawWakerVTable::new(clone, wake, wake_by_ref, forget);

/// # Safety
/// As of a [`RawWakerVTable`], here and below: `head` is of a [`Waiters`] that is there, or of a waker.
unsafe fn clone(head: *const ()) -> RawWaker {
    // SAFETY: it is there, since the caller has a user of it.
    unsafe { &*head.cast::<Head>() }.users.fetch_add(1, Relaxed);
    RawWaker::new(head, &TABLE)
}

unsafe fn wake(head: *const ()) {
    /// The waker is gone even if that of a task panics.
    struct Gone(*const ());
    impl Drop for Gone {
        fn drop(&mut self) {
            // SAFETY: the promise of `wake`'s caller; the waker is not used again.
            unsafe { forget(self.0) };
        }
    }
    let waker = Gone(head);
    // SAFETY: the caller's promise.
    unsafe { wake_by_ref(waker.0) };
}

unsafe fn wake_by_ref(head: *const ()) {
    if let Some(head) = NonNull::new(head.cast_mut().cast::<Head>()) {
        // SAFETY: there is a waker.
        wake_all(unsafe { places(head) }.iter(), AtomicWaker::wake);
    }
}

unsafe fn forget(head: *const ()) {
    // SAFETY: there is a waker, this one. The last user leaves the pages where they are: only the disk can free them.
    unsafe { &*head.cast::<Head>() }.users.fetch_sub(1, Acquire);
}
