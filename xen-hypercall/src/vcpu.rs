//! Virtual processors and their timers (`vcpu.h`).
#![allow(unsafe_code, reason = "hands over a structure")]

use core::time::Duration;

use crate::abi::{VCPU_SSHOTTMR_FUTURE, VCPUOP_SET_SINGLESHOT_TIMER, VcpuSetSingleshotTimer};
use crate::call::{Plain, numbers};
use crate::sched::nanoseconds;
use crate::{Errno, Hypercall, HypercallNr, VcpuId};

/// Makes `VIRQ_TIMER` of the vCPU fire once, when Xen's system time is `at`.
///
/// # Errors
/// `ETIME` when `at` has passed already (the timer is then not set), `ENOENT` for a vCPU that does not exist,
/// `EINVAL` for one that is not the caller's.
pub fn set_singleshot_timer(xen: &impl Hypercall, vcpu: VcpuId, at: Duration) -> Result<(), Errno> {
    let argument =
        VcpuSetSingleshotTimer { timeout_abs_ns: nanoseconds(at), flags: VCPU_SSHOTTMR_FUTURE, pad0: 0 };
    let pointer = (&raw const argument).expose_provenance();
    // SAFETY: VCPUOP_set_singleshot_timer reads the structure and sets a timer.
    Errno::check(unsafe {
        xen.hypercall(HypercallNr::VCPU_OP, [VCPUOP_SET_SINGLESHOT_TIMER, vcpu.0 as usize, pointer, 0, 0])
    })
    .map(drop)
}

/// Takes the timer back.
///
/// # Errors
/// `ENOENT` for a vCPU that does not exist, `EINVAL` for one that is not the caller's.
pub fn stop_singleshot_timer(xen: &impl Hypercall, vcpu: VcpuId) -> Result<(), Errno> {
    numbers(xen, Plain::StopSingleshot, [vcpu.0 as usize, 0, 0, 0]).map(drop)
}

/// Whether a vCPU runs.
///
/// # Errors
/// `ENOENT` for a vCPU that does not exist.
pub fn is_up(xen: &impl Hypercall, vcpu: VcpuId) -> Result<bool, Errno> {
    numbers(xen, Plain::VcpuIsUp, [vcpu.0 as usize, 0, 0, 0]).map(|up| up != 0)
}
