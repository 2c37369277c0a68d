//! Time by the processor's generic timer. Xen lets it count from the domain's start.

use core::arch::asm;
use core::time::Duration;

use xen_evtchn::EventChannels;
use xen_hypercall::arch::aarch64::{counter, counter_frequency};
use xen_hypercall::{Errno, Hypercall, SharedInfo, VcpuId};

use crate::machine::Kernel;

const NANOS: u128 = 1_000_000_000;

/// Time since the domain's start.
#[derive(Debug)]
pub(crate) struct Clock(xen_hypercall::Clock);

impl Clock {
    pub(crate) const fn new() -> Self {
        Self(xen_hypercall::Clock::new())
    }

    /// Makes it know the time of day.
    pub(crate) fn start(&self, shared: SharedInfo<'static>) {
        self.0.start(shared);
    }

    /// Time since the domain's start.
    pub(crate) fn now(&self, _: VcpuId) -> Duration {
        let nanos = u128::from(counter()) * NANOS / u128::from(counter_frequency());
        Duration::from_nanos(nanos as u64)
    }

    /// Time since 1970-01-01 00:00 UTC, by a reading of this clock.
    pub(crate) fn unix_time(&self, now: Duration) -> Duration {
        self.0.unix_time(now)
    }

    /// A guest on Arm is not told Xen's.
    pub(crate) fn system_time(&self, at: Duration) -> Duration {
        at
    }

    /// Goes on in a new domain: Xen gives that the counter of the old one.
    #[cfg(feature = "suspend")]
    pub(crate) fn go_on(&self) {}
}

/// Lets a sleep end at `at` of the clock.
pub(crate) fn set_timer(_: &impl Hypercall, _: &Clock, _: VcpuId, at: Duration) -> Result<(), Errno> {
    // Rounded up: a sleep that ends early is one that has to begin again.
    let count = (at.as_nanos() * u128::from(counter_frequency())).div_ceil(NANOS);
    let count = u64::try_from(count).unwrap_or(u64::MAX);
    // SAFETY: the virtual timer is this kernel's; its interrupt is masked, and has nothing to do but to end a sleep.
    unsafe {
        asm!(
            "msr cntv_cval_el0, {}", "msr cntv_ctl_el0, {}", "isb",
            in(reg) count, in(reg) 1_u64, options(nomem, nostack, preserves_flags),
        );
    }
    Ok(())
}

/// The timer's interrupt came: one that has fired rests until it is set again. Returns false if it was set again already, and
/// the interrupt tells of the time before.
pub(super) fn timer_interrupt() -> bool {
    const FIRED: u64 = 1 << 2;
    let state: u64;
    // SAFETY: as above.
    unsafe {
        asm!("isb", "mrs {}, cntv_ctl_el0", out(reg) state, options(nomem, nostack, preserves_flags));
        if state & FIRED != 0 {
            asm!("msr cntv_ctl_el0, xzr", "isb", options(nomem, nostack, preserves_flags));
        }
    }
    state & FIRED != 0
}

/// The timer is the processor's own, and needs no event channel.
pub(crate) fn bind_timer(
    _: &'static EventChannels<&'static Kernel>,
    _: VcpuId,
) -> Result<(), xen_evtchn::Error> {
    Ok(())
}
