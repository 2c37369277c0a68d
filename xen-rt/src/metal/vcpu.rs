//! What each vCPU has for itself.

use core::sync::atomic::AtomicU64;

use xen_hypercall::VcpuId;

/// A vCPU's own.
#[derive(Debug)]
pub(crate) struct Own {
    pub(crate) id: VcpuId,
    /// When its timer fires, in nanoseconds; zero: it is not set.
    pub(crate) timer: AtomicU64,
}

impl Own {
    pub(crate) const fn new(id: VcpuId) -> Self {
        Self { id, timer: AtomicU64::new(0) }
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
