//! Giving up the processor, and ending (`sched.h`).

use core::time::Duration;

use crate::abi::{SCHEDOP_POLL, SCHEDOP_SHUTDOWN, SchedPoll, SchedShutdown};
use crate::call::{Command, Plain, numbers, run};
use crate::{Errno, Hypercall, HypercallNr};

/// Why a domain ends (`SHUTDOWN_*` of `sched.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct ShutdownReason(pub u32);

impl ShutdownReason {
    /// It is done; it stays off.
    pub const POWEROFF: Self = Self(0);
    /// It wants to be started anew.
    pub const REBOOT: Self = Self(1);
    /// Its state is to be saved.
    pub const SUSPEND: Self = Self(2);
    /// It failed.
    pub const CRASH: Self = Self(3);
    /// Its watchdog expired.
    pub const WATCHDOG: Self = Self(4);
    /// It starts another kernel in the same domain.
    pub const SOFT_RESET: Self = Self(5);
}

#[allow(unsafe_code, reason = "names the structure of each command")]
mod commands {
    use super::{Command, HypercallNr, SCHEDOP_SHUTDOWN, SchedShutdown};

    // SAFETY: SCHEDOP_shutdown reads a `sched_shutdown` and ends the domain, which touches no memory.
    unsafe impl Command for SchedShutdown {
        const NR: HypercallNr = HypercallNr::SCHED_OP;
        const CMD: usize = SCHEDOP_SHUTDOWN;
    }
}

/// Lets others run; this vCPU stays runnable.
///
/// # Errors
/// None that Xen documents.
pub fn yield_now(xen: &impl Hypercall) -> Result<(), Errno> {
    numbers(xen, Plain::Yield, [0; 4]).map(drop)
}

/// Sleeps until an event is pending for this vCPU, at once if one is and upcalls can be delivered.
///
/// # Errors
/// None that Xen documents.
pub fn block(xen: &impl Hypercall) -> Result<(), Errno> {
    numbers(xen, Plain::Block, [0; 4]).map(drop)
}

/// Sleeps until one of `ports` (at most 128) is pending, masked or not, or Xen's system time reaches `deadline`.
///
/// # Errors
/// `EINVAL` for too many ports or one that does not exist.
#[allow(unsafe_code, reason = "hands over a list of ports")]
pub fn poll(xen: &impl Hypercall, ports: &[u32], deadline: Option<Duration>) -> Result<(), Errno> {
    let argument = SchedPoll {
        ports: ports.as_ptr().expose_provenance() as u64,
        nr_ports: u32::try_from(ports.len()).map_err(|_| Errno::EINVAL)?,
        pad0: 0,
        timeout: deadline.map_or(0, nanoseconds),
    };
    let pointer = (&raw const argument).expose_provenance();
    // SAFETY: SCHEDOP_poll reads the structure and `nr_ports` ports, both borrowed during the call, and writes none.
    Errno::check(unsafe { xen.hypercall(HypercallNr::SCHED_OP, [SCHEDOP_POLL, pointer, 0, 0, 0]) }).map(drop)
}

/// Ends the domain. Returns only if Xen refuses, which it does not for the reasons above, except that
/// [`ShutdownReason::SUSPEND`] returns zero when the domain goes on (resumed, migrated, or cancelled).
///
/// # Errors
/// `EINVAL` for an unknown reason.
pub fn shutdown(xen: &impl Hypercall, reason: ShutdownReason) -> Result<(), Errno> {
    run(xen, &mut SchedShutdown { reason: reason.0 }).map(drop)
}

/// Nanoseconds as Xen's interfaces count them; a time past the year 2554 is the last that can be told.
pub(crate) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
