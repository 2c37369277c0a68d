//! State that one thread at a time may use, such as the console.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use super::vcpus::this;

/// One vCPU waits for another. Whoever finds the state in use by its own vCPU, as a panic within its use does, goes without.
pub(crate) struct Lock<T> {
    /// The vCPU that uses the state, counted from one; zero: none does.
    user: AtomicU32,
    state: Mutex<T>,
}

impl<T> Lock<T> {
    pub(crate) const fn new(state: T) -> Self {
        Self { user: AtomicU32::new(0), state: Mutex::new(state) }
    }

    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> Option<R> {
        let me = this().0 + 1;
        if self.user.load(Ordering::Relaxed) == me {
            return None;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.user.store(me, Ordering::Relaxed);
        let result = f(&mut state);
        self.user.store(0, Ordering::Relaxed);
        Some(result)
    }
}
