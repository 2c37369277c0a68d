//! State that one thread at a time may use, such as the console.

use std::sync::{Mutex, TryLockError};

/// Whoever finds the state in use, as a panic within its use does, goes without.
pub(crate) struct Lock<T>(Mutex<T>);

impl<T> Lock<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> Option<R> {
        match self.0.try_lock() {
            Ok(mut value) => Some(f(&mut value)),
            Err(TryLockError::Poisoned(value)) => Some(f(&mut value.into_inner())),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}
