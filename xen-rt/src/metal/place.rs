//! A place for a thing that is made once and stays.
#![allow(unsafe_code, reason = "says when it is there")]

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU8, Ordering};

const EMPTY: u8 = 0;
const FILLING: u8 = 1;
const FULL: u8 = 2;

pub(crate) struct Place<T> {
    state: AtomicU8,
    thing: UnsafeCell<MaybeUninit<T>>,
}

// SAFETY: the thing is written by the one caller of `put` that moved the state from empty to filling, and shared from the time on
// that the state is full.
unsafe impl<T: Send + Sync> Sync for Place<T> {}

impl<T> Place<T> {
    pub(crate) const fn new() -> Self {
        Self { state: AtomicU8::new(EMPTY), thing: UnsafeCell::new(MaybeUninit::uninit()) }
    }

    /// Puts the thing there.
    ///
    /// # Panics
    /// There is one.
    pub(crate) fn put(&'static self, thing: T) -> &'static T {
        let first = self.state.compare_exchange(EMPTY, FILLING, Ordering::Relaxed, Ordering::Relaxed);
        assert!(first.is_ok(), "it is made once");
        // SAFETY: nobody else writes, as this call alone found the place empty, and nobody reads before the state is full.
        let thing: &'static T = unsafe { (*self.thing.get()).write(thing) };
        self.state.store(FULL, Ordering::Release);
        thing
    }

    /// The thing, if it is there.
    #[cfg(any(feature = "embassy", feature = "log", feature = "smp", target_arch = "aarch64"))]
    pub(crate) fn get(&'static self) -> Option<&'static T> {
        let full = self.state.load(Ordering::Acquire) == FULL;
        // SAFETY: the thing was written before the state was full, and nobody writes from then on.
        full.then(|| unsafe { (*self.thing.get()).assume_init_ref() })
    }
}
