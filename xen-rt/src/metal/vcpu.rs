//! What each vCPU has for itself.

use core::sync::atomic::AtomicU64;

use xen_hypercall::VcpuId;

/// A vCPU's own.
#[derive(Debug)]
pub(crate) struct Own {
    pub(crate) id: VcpuId,
    /// When its timer fires, in nanoseconds; zero: it is not set.
    pub(crate) timer: AtomicU64,
    #[cfg(feature = "embassy")]
    heart: tasks::Place,
}

impl Own {
    pub(crate) const fn new(id: VcpuId) -> Self {
        Self {
            id,
            timer: AtomicU64::new(0),
            #[cfg(feature = "embassy")]
            heart: tasks::Place::new(),
        }
    }
}

/// That of the vCPU which the domain starts with.
pub(crate) static FIRST: Own = Own::new(VcpuId(0));

/// That of the vCPU which asks.
#[cfg(not(feature = "smp"))]
pub(crate) fn this() -> &'static Own {
    &FIRST
}

#[cfg(feature = "smp")]
pub(crate) use crate::arch::this;

#[cfg(feature = "embassy")]
pub(crate) use tasks::{heart, set_heart};

#[cfg(feature = "embassy")]
mod tasks {
    #![allow(unsafe_code, reason = "says whose a pointer is")]

    use core::ptr;
    use core::sync::atomic::{AtomicPtr, Ordering};

    use super::this;
    use crate::embassy::Heart;

    /// The time of the executor that runs on a vCPU, of which no other vCPU learns.
    #[derive(Debug)]
    pub(super) struct Place(AtomicPtr<Heart>);

    impl Place {
        pub(super) const fn new() -> Self {
            Self(AtomicPtr::new(ptr::null_mut()))
        }
    }

    fn lead(to: *mut Heart) -> Option<&'static Heart> {
        // SAFETY: null, or from a reference that stays, by `set_heart` on this vCPU, which has been its only user ever since.
        unsafe { to.as_ref() }
    }

    /// The time of the executor that runs on this vCPU.
    pub(crate) fn heart() -> Option<&'static Heart> {
        lead(this().heart.0.load(Ordering::Relaxed))
    }

    /// Another executor runs on this vCPU, or none. Returns which did.
    pub(crate) fn set_heart(heart: Option<&'static Heart>) -> Option<&'static Heart> {
        let heart = heart.map_or(ptr::null_mut(), |heart| ptr::from_ref(heart).cast_mut());
        lead(this().heart.0.swap(heart, Ordering::Relaxed))
    }
}
