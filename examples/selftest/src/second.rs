//! A second vCPU that counts until it is told to stop.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use xen_hypercall::{VcpuId, vcpu};
use xen_rt::{Kernel, smp};

/// Its number.
pub(crate) const ID: VcpuId = VcpuId(1);

static COUNT: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicBool = AtomicBool::new(false);

/// How far it has counted.
pub(crate) fn count() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

/// Tells it to go down by itself.
pub(crate) fn stop() {
    STOP.store(true, Ordering::Relaxed);
}

/// Starts it.
pub(crate) fn start(kernel: &'static Kernel) -> Result<(), smp::Error> {
    smp::start(ID, move || {
        while !STOP.load(Ordering::Relaxed) {
            COUNT.fetch_add(1, Ordering::Relaxed);
            core::hint::spin_loop();
        }
        // On Arm Xen refuses, and the runtime does it.
        let _ = vcpu::down(kernel, ID);
    })
}
