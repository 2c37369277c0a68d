//! State that one vCPU at a time may use, such as the console.
#![allow(unsafe_code, reason = "says who may use it")]

#[cfg(not(feature = "smp"))]
pub(crate) use alone::Lock;
#[cfg(feature = "smp")]
pub(crate) use shared::Lock;

#[cfg(not(feature = "smp"))]
mod alone {
    use core::cell::RefCell;

    /// Whoever finds the state in use, as a panic within its use does, goes without.
    pub(crate) struct Lock<T>(RefCell<T>);

    // SAFETY: there is one vCPU, and interrupts run no Rust code: only one thread exists. `RefCell` sees to the rest.
    unsafe impl<T: Send> Sync for Lock<T> {}

    impl<T> Lock<T> {
        pub(crate) const fn new(value: T) -> Self {
            Self(RefCell::new(value))
        }

        /// Uses the state; none when it is in use further up on the stack.
        pub(crate) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> Option<R> {
            self.0.try_borrow_mut().ok().map(|mut value| f(&mut value))
        }
    }
}

#[cfg(feature = "smp")]
mod shared {
    use core::cell::UnsafeCell;
    use core::hint::spin_loop;
    use core::sync::atomic::{AtomicU32, Ordering};

    use crate::machine::this;

    /// One vCPU waits for another. Whoever finds the state in use by its own vCPU, as a panic within its use does, goes without.
    pub(crate) struct Lock<T> {
        /// The vCPU that uses the state, counted from one; zero: none does.
        user: AtomicU32,
        state: UnsafeCell<T>,
    }

    // SAFETY: `with` gives the state to one vCPU at a time.
    unsafe impl<T: Send> Sync for Lock<T> {}

    impl<T> Lock<T> {
        pub(crate) const fn new(state: T) -> Self {
            Self { user: AtomicU32::new(0), state: UnsafeCell::new(state) }
        }

        /// Uses the state, once no other vCPU does; none when it is in use further up on the stack.
        pub(crate) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> Option<R> {
            let me = this().id.0 + 1;
            while let Err(user) = self.user.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed) {
                if user == me {
                    return None;
                }
                spin_loop();
            }
            // SAFETY: the exchange made this vCPU the only user, and interrupts run no Rust code.
            let result = f(unsafe { &mut *self.state.get() });
            // A panic does not come here: nothing unwinds, and the state stays in use.
            self.user.store(0, Ordering::Release);
            Some(result)
        }
    }
}
