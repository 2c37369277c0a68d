//! The other vCPUs stand still while the domain is suspended.

/// A place at which the vCPU that comes here may be stopped for a suspend of the domain. A vCPU that is idle is at one;
/// what [runs](super::Vcpu::run) for long, or for ever, comes here now and then, between two calls of what uses the domain. Returns
/// at once when there is no suspend, and always without the feature `suspend`.
pub fn rest() {
    #[cfg(feature = "suspend")]
    with::here();
}

#[cfg(not(feature = "suspend"))]
pub(super) use without::*;

#[cfg(not(feature = "suspend"))]
mod without {
    pub(in crate::smp) fn begin<E>(start: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        start()
    }

    pub(in crate::smp) fn end() {}

    pub(in crate::smp) fn know(_: crate::smp::Vcpu) {}
}

#[cfg(feature = "suspend")]
pub(super) use with::*;
#[cfg(feature = "suspend")]
pub(crate) use with::{go, stop};

#[cfg(feature = "suspend")]
mod with {
    use alloc::vec::Vec;
    use core::hint::spin_loop;
    use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
    use core::time::Duration;

    use xen_hypercall::Wait;

    use crate::lock::Lock;
    use crate::machine::{self, Kernel};
    use crate::smp::Vcpu;

    static REST: Rest = Rest::new();
    /// vCPUs that were started and have not ended.
    static UP: AtomicU32 = AtomicU32::new(0);
    /// Those that may sleep.
    static SLEEPERS: Lock<Vec<Vcpu>> = Lock::new(Vec::new());

    /// A stop, and who has come to rest for it. Each stop has an odd number of its own. One that heard of a stop late, when that was
    /// over, does not count for the next one.
    pub(super) struct Rest {
        /// The stop that lasts; even: the last one is over.
        stop: AtomicU32,
        /// A stop's number above, how many rest for it below.
        resting: AtomicU64,
    }

    impl Rest {
        pub(super) const fn new() -> Self {
            Self { stop: AtomicU32::new(0), resting: AtomicU64::new(0) }
        }

        /// Begins a stop. By one vCPU, which has ended the last one.
        pub(super) fn begin(&self) {
            let stop = self.stop.load(Ordering::Relaxed).wrapping_add(1);
            self.resting.store(u64::from(stop) << 32, Ordering::Relaxed);
            self.stop.store(stop, Ordering::Release);
        }

        /// Ends it, for all that rest.
        pub(super) fn end(&self) {
            self.stop.store(self.stop.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
        }

        /// The stop that lasts.
        pub(super) fn asked(&self) -> Option<u32> {
            Some(self.stop.load(Ordering::Acquire)).filter(|stop| stop % 2 == 1)
        }

        /// Counts the vCPU that calls this as resting for a stop, unless another one began since. What the vCPU did before is done.
        pub(super) fn count(&self, stop: u32) -> bool {
            let counted = self.resting.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |resting| {
                (resting >> 32 == u64::from(stop)).then_some(resting + 1)
            });
            counted.is_ok()
        }

        /// How many rest for the stop that began last.
        pub(super) fn resting(&self) -> u32 {
            self.resting.load(Ordering::Acquire) as u32
        }
    }

    /// Counts a vCPU that `start` starts.
    pub(in crate::smp) fn begin<E>(start: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        // Before, for it may end before `start` returns.
        UP.fetch_add(1, Ordering::Relaxed);
        start().inspect_err(|_| end())
    }

    /// A vCPU ends, and makes no call any more.
    pub(in crate::smp) fn end() {
        UP.fetch_sub(1, Ordering::Release);
    }

    pub(in crate::smp) fn know(vcpu: Vcpu) {
        SLEEPERS.with(|sleepers| sleepers.push(vcpu));
    }

    pub(in crate::smp) fn here() {
        while let Some(stop) = REST.asked() {
            if REST.count(stop) {
                while REST.asked() == Some(stop) {
                    spin_loop();
                }
                machine::forget_timer();
            }
        }
    }

    /// Brings all other vCPUs to rest; false, and they go on, when that takes longer than `patience`. On the first vCPU.
    pub(crate) fn stop(kernel: &Kernel, patience: Duration) -> bool {
        let deadline = kernel.now().saturating_add(patience);
        REST.begin();
        // One whose bell does not ring may come by itself.
        SLEEPERS.with(|sleepers| sleepers.iter().for_each(|vcpu| _ = vcpu.wake()));
        while REST.resting() != UP.load(Ordering::Acquire) {
            if kernel.now() >= deadline {
                REST.end();
                return false;
            }
            spin_loop();
        }
        true
    }

    /// Lets them go on, once after each [`stop`] that came about.
    pub(crate) fn go() {
        REST.end();
    }
}

#[cfg(all(test, feature = "suspend"))]
mod tests {
    use super::with::Rest;

    #[test]
    fn who_heard_of_a_stop_that_is_over_does_not_count_for_the_next() {
        let rest = Rest::new();
        assert_eq!(rest.asked(), None);
        rest.begin();
        let first = rest.asked().unwrap();
        rest.end();
        assert_eq!(rest.asked(), None);
        rest.begin();
        let second = rest.asked().unwrap();
        assert!(!rest.count(first));
        assert_eq!(rest.resting(), 0);
        assert!(rest.count(second));
        assert_eq!(rest.resting(), 1);
        assert_eq!(rest.asked(), Some(second), "it rests");
        rest.end();
        assert_eq!(rest.asked(), None);
    }
}
