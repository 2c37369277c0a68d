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
    use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use core::time::Duration;

    use xen_hypercall::Wait;

    use crate::lock::Lock;
    use crate::machine::{self, Kernel};
    use crate::smp::Vcpu;

    static STOP: AtomicBool = AtomicBool::new(false);
    /// vCPUs that were started and have not ended.
    static UP: AtomicU32 = AtomicU32::new(0);
    /// Those of them that stand still.
    static RESTING: AtomicU32 = AtomicU32::new(0);
    /// Those that may sleep.
    static SLEEPERS: Lock<Vec<Vcpu>> = Lock::new(Vec::new());

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
        if !STOP.load(Ordering::Relaxed) {
            return;
        }
        RESTING.fetch_add(1, Ordering::Release);
        while STOP.load(Ordering::Acquire) {
            spin_loop();
        }
        machine::forget_timer();
        RESTING.fetch_sub(1, Ordering::Release);
    }

    /// Brings all other vCPUs to rest; false, and they go on, when that takes longer than `patience`.
    pub(crate) fn stop(kernel: &Kernel, patience: Duration) -> bool {
        let deadline = kernel.now().saturating_add(patience);
        let comes = |it: &dyn Fn() -> bool| loop {
            if it() {
                break true;
            }
            if kernel.now() >= deadline {
                break false;
            }
            spin_loop();
        };
        // One that has not left the last rest yet would count as being in this one.
        if !comes(&|| RESTING.load(Ordering::Acquire) == 0) {
            return false;
        }
        STOP.store(true, Ordering::Relaxed);
        // One whose bell does not ring may come by itself.
        SLEEPERS.with(|sleepers| sleepers.iter().for_each(|vcpu| _ = vcpu.wake()));
        // What they did before is done.
        let stopped = comes(&|| RESTING.load(Ordering::Acquire) == UP.load(Ordering::Acquire));
        if !stopped {
            go();
        }
        stopped
    }

    /// Lets them go on.
    pub(crate) fn go() {
        STOP.store(false, Ordering::Release);
    }
}
