//! Hypercalls on 64-bit Arm: `hvc #0xEA1`, the number in `x16` (`arch-arm.h`); and the counter by which guests tell the time.
#![allow(unsafe_code, reason = "traps to Xen")]

use core::arch::asm;

use crate::{Hypercall, HypercallNr};

/// Calls Xen by `hvc`.
#[derive(Clone, Copy, Debug)]
pub struct Hvc(());

impl Hvc {
    /// The way in.
    ///
    /// # Safety
    /// This code runs at EL1 in a domain of Xen. Memory that is handed over or shared is mapped as Xen and all domains
    /// map it: normal memory, inner and outer write-back cacheable, inner shareable. In particular the MMU is on by
    /// the time of a call that takes a pointer.
    pub const unsafe fn new() -> Self {
        Self(())
    }
}

// SAFETY: number and arguments go where arch-arm.h wants them; x0 to x4 and x16 are declared as changed.
unsafe impl Hypercall for Hvc {
    #[inline]
    unsafe fn hypercall(&self, nr: HypercallNr, args: [usize; 5]) -> isize {
        let [a, b, c, d, e] = args;
        let result: isize;
        // SAFETY: `new` promises that this is a domain of Xen; the caller vouches for the call itself.
        unsafe {
            asm!(
                "hvc #0xEA1",
                inlateout("x16") nr.0 => _,
                inlateout("x0") a => result,
                inlateout("x1") b => _,
                inlateout("x2") c => _,
                inlateout("x3") d => _,
                inlateout("x4") e => _,
                options(nostack),
            );
        }
        result
    }
}

/// The virtual counter (`CNTVCT_EL0`), not read ahead of what comes before. Xen lets it count from the domain's start, alike on
/// all vCPUs.
///
/// Xen fills no [`VcpuTime`](crate::VcpuTime) on Arm: this is what tells the time there, together with
/// [`SharedInfo::wall_clock`](crate::SharedInfo::wall_clock), which is the time of day when the counter was zero.
#[inline]
pub fn counter() -> u64 {
    let count;
    // SAFETY: reading the counter has no effect, and Xen lets its guests do so.
    unsafe { asm!("isb", "mrs {}, cntvct_el0", out(reg) count, options(nomem, nostack, preserves_flags)) };
    count
}

/// How often [`counter`] counts in a second (`CNTFRQ_EL0`); never zero.
#[inline]
pub fn counter_frequency() -> u64 {
    let hertz: u64;
    // SAFETY: as above.
    unsafe { asm!("mrs {}, cntfrq_el0", out(reg) hertz, options(nomem, nostack, preserves_flags, pure)) };
    // A firmware that did not say it leaves it zero.
    hertz.max(1)
}
