//! State that one vCPU at a time may use, such as the console.
#![allow(unsafe_code, reason = "says who may use it")]

use core::cell::RefCell;

/// Whoever finds the state in use, as a panic within its use does, goes without.
pub(crate) struct Lock<T>(RefCell<T>);

// SAFETY: there is one vCPU, and interrupts run no Rust code: only one thread exists. `RefCell` sees to the rest.
unsafe impl<T> Sync for Lock<T> {}

impl<T> Lock<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(RefCell::new(value))
    }

    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> Option<R> {
        self.0.try_borrow_mut().ok().map(|mut value| f(&mut value))
    }
}
