//! Critical sections, of an image. A process has those of the crate `critical-section` itself.
#![allow(unsafe_code, reason = "keeps the promise of a critical section")]

use critical_section::{Impl, RawRestoreState};

struct Section;

critical_section::set_impl!(Section);

/// One vCPU: interrupts are off everywhere but in a sleep, which is no place of a critical section, and their handler
/// runs none. So nothing comes between, and only the compiler is to be told.
// SAFETY: nothing else runs between the two calls, and no access is moved out of them.
#[cfg(not(feature = "smp"))]
unsafe impl Impl for Section {
    unsafe fn acquire() -> RawRestoreState {
        core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
        false
    }

    unsafe fn release(_: RawRestoreState) {
        core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
    }
}

/// Several vCPUs: interrupts are off on each as on one, and one vCPU waits for another. The state says whether the vCPU was in
/// a critical section already.
// SAFETY: the exchange lets one vCPU in at a time, nothing else runs on that one between the two calls, and what it did is
// visible to the next, which acquires what this one releases.
#[cfg(feature = "smp")]
unsafe impl Impl for Section {
    unsafe fn acquire() -> RawRestoreState {
        let me = crate::machine::this().id.0 + 1;
        if OWNER.load(Ordering::Relaxed) == me {
            return true;
        }
        while OWNER.compare_exchange_weak(0, me, Ordering::Acquire, Ordering::Relaxed).is_err() {
            core::hint::spin_loop();
        }
        false
    }

    unsafe fn release(nested: RawRestoreState) {
        if !nested {
            OWNER.store(0, Ordering::Release);
        }
    }
}

#[cfg(feature = "smp")]
use core::sync::atomic::{AtomicU32, Ordering};

/// The vCPU that is in a critical section, counted from one; zero: none is.
#[cfg(feature = "smp")]
static OWNER: AtomicU32 = AtomicU32::new(0);
