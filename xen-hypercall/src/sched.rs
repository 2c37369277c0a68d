//! Giving up the processor, and ending (`sched.h`).
//!
//! Unless a function says otherwise, all guests have these calls: PV, HVM and PVH on x86, and those on Arm, in every Xen
//! since 4.0 (on Arm 4.3).

use core::time::Duration;

use crate::abi::{
    SCHEDOP_PIN_OVERRIDE, SCHEDOP_POLL, SCHEDOP_REMOTE_SHUTDOWN, SCHEDOP_SHUTDOWN, SCHEDOP_SHUTDOWN_CODE,
    SCHEDOP_WATCHDOG, SHUTDOWN_CRASH, SHUTDOWN_POWEROFF, SHUTDOWN_REBOOT, SHUTDOWN_SOFT_RESET,
    SHUTDOWN_SUSPEND, SHUTDOWN_WATCHDOG, SchedPinOverride, SchedPoll, SchedRemoteShutdown, SchedShutdown,
    SchedWatchdog,
};
use crate::call::{Command, Plain, numbers, run};
use crate::{DomId, Errno, Hypercall, HypercallNr};

/// Why a domain ends (`SHUTDOWN_*` of `sched.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct ShutdownReason(pub u32);

impl ShutdownReason {
    /// It is done; it stays off.
    pub const POWEROFF: Self = Self(SHUTDOWN_POWEROFF);
    /// It wants to be started anew.
    pub const REBOOT: Self = Self(SHUTDOWN_REBOOT);
    /// Its state is to be saved.
    pub const SUSPEND: Self = Self(SHUTDOWN_SUSPEND);
    /// It failed.
    pub const CRASH: Self = Self(SHUTDOWN_CRASH);
    /// Its watchdog expired.
    pub const WATCHDOG: Self = Self(SHUTDOWN_WATCHDOG);
    /// It starts another kernel in the same domain.
    pub const SOFT_RESET: Self = Self(SHUTDOWN_SOFT_RESET);
}

#[repr(transparent)]
struct Code(#[allow(dead_code, reason = "Xen reads it")] SchedShutdown);

#[allow(unsafe_code, reason = "names the structure of each command")]
mod commands {
    use super::*;

    macro_rules! commands {
        ($($name:ident = $cmd:ident;)*) => {$(
            // SAFETY: the command reads this structure of `sched.h`. What it does is to end a domain, now or later, or
            // to choose where a vCPU runs, which touches no memory.
            unsafe impl Command for $name {
                const NR: HypercallNr = HypercallNr::SCHED_OP;
                const CMD: usize = $cmd;
            }
        )*};
    }

    commands! {
        SchedShutdown = SCHEDOP_SHUTDOWN;
        Code = SCHEDOP_SHUTDOWN_CODE;
        SchedRemoteShutdown = SCHEDOP_REMOTE_SHUTDOWN;
        SchedWatchdog = SCHEDOP_WATCHDOG;
        SchedPinOverride = SCHEDOP_PIN_OVERRIDE;
    }
}

/// Lets others run; this vCPU stays runnable.
///
/// # Errors
/// None that Xen documents.
pub fn yield_now(xen: &impl Hypercall) -> Result<(), Errno> {
    numbers(xen, Plain::Yield, [0; 4]).map(drop)
}

/// Sleeps until an event is pending for this vCPU; returns at once if one is and its upcall can be delivered.
///
/// On HVM and PVH the upcall of an event cannot be delivered while interrupts are off, nor while the processor holds them back
/// after `sti`. An event that is pending already does not end the sleep then. No later event does either, because
/// Xen wakes a vCPU only when `upcall_pending` becomes set. Kernels sleep by `arch::x86_64::idle`, which depends on neither.
///
/// # Errors
/// None that Xen documents.
pub fn block(xen: &impl Hypercall) -> Result<(), Errno> {
    numbers(xen, Plain::Block, [0; 4]).map(drop)
}

/// Sleeps until one of `ports` (at most 128) is pending, masked or not, or Xen's system time reaches `deadline`. Without
/// ports and with a deadline it is a sleep. An event that is pending for this vCPU and not masked ends it, too.
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

/// Ends the domain. Returns only if Xen refuses, and after [`ShutdownReason::SUSPEND`], for which see [`suspend`].
///
/// # Errors
/// None that Xen documents.
pub fn shutdown(xen: &impl Hypercall, reason: ShutdownReason) -> Result<(), Errno> {
    run(xen, &mut SchedShutdown { reason: reason.0 }).map(drop)
}

/// How a domain goes on after [`suspend`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resumed {
    /// In a new domain, on this machine or another: `shared_info`, event channels, grants and vCPU areas are gone and
    /// must be set up anew; devices must be connected again.
    InNewDomain,
    /// In the same domain, where all is as before: saving was cancelled, or was a checkpoint.
    InPlace,
}

/// Lets the toolstack save the domain's state ([`ShutdownReason::SUSPEND`]); returns when the domain goes on.
///
/// Call it on vCPU 0 with all others down. HVM and PVH guests; a PV guest would have to hand over a machine frame.
///
/// # Errors
/// None that Xen documents.
pub fn suspend(xen: &impl Hypercall) -> Result<Resumed, Errno> {
    match run(xen, &mut SchedShutdown { reason: SHUTDOWN_SUSPEND })? {
        0 => Ok(Resumed::InNewDomain),
        _ => Ok(Resumed::InPlace),
    }
}

/// Says in advance what reason the domain's end is to have, however it then ends. The first to say so wins. Since Xen
/// 4.0.
///
/// # Errors
/// None that Xen documents.
pub fn set_shutdown_code(xen: &impl Hypercall, reason: ShutdownReason) -> Result<(), Errno> {
    run(xen, &mut Code(SchedShutdown { reason: reason.0 })).map(drop)
}

/// Ends another domain; for the privileged domain and device models.
///
/// # Errors
/// `ESRCH` for a domain that does not exist (and for oneself by [`DomId::SELF`]), `EPERM` for want of privilege.
pub fn remote_shutdown(xen: &impl Hypercall, domain: DomId, reason: ShutdownReason) -> Result<(), Errno> {
    run(xen, &mut SchedRemoteShutdown { domain_id: domain.0, pad0: 0, reason: reason.0 }).map(drop)
}

/// A timer that ends the domain ([`ShutdownReason::WATCHDOG`]) unless it is set again in time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct WatchdogId(u32);

/// Starts a watchdog; a domain can have two. Parts of a second count as a whole one. Since Xen 4.1.
///
/// # Errors
/// `ENOSPC` when there are two already.
pub fn start_watchdog(xen: &impl Hypercall, timeout: Duration) -> Result<WatchdogId, Errno> {
    let id = run(xen, &mut SchedWatchdog { id: 0, timeout: whole_seconds(timeout) })?;
    // Xen makes the error a number of 32 bits without a sign before it answers with 64.
    Errno::check(id as u32 as i32 as isize)?;
    Ok(WatchdogId(id as u32))
}

/// Sets a watchdog's time anew, from now.
///
/// # Errors
/// `EINVAL` for one that was stopped.
pub fn poke_watchdog(xen: &impl Hypercall, watchdog: WatchdogId, timeout: Duration) -> Result<(), Errno> {
    run(xen, &mut SchedWatchdog { id: watchdog.0, timeout: whole_seconds(timeout) }).map(drop)
}

/// Stops a watchdog.
///
/// # Errors
/// `EINVAL` for one that was stopped.
pub fn stop_watchdog(xen: &impl Hypercall, watchdog: WatchdogId) -> Result<(), Errno> {
    run(xen, &mut SchedWatchdog { id: watchdog.0, timeout: 0 }).map(drop)
}

/// Seconds as the watchdog counts them. At least one: zero means to stop.
fn whole_seconds(time: Duration) -> u32 {
    let seconds = time.as_secs().saturating_add(u64::from(time.subsec_nanos() != 0));
    u32::try_from(seconds).unwrap_or(u32::MAX).max(1)
}

/// Keeps the calling vCPU on one physical processor, whatever its affinity is; none: undoes that. For the hardware
/// domain, whose firmware calls may want it. Since Xen 4.7.
///
/// # Errors
/// `EPERM` for other domains, `EINVAL` for a processor that does not exist or is not of the domain's pool, `EBUSY`
/// while another override is in force.
pub fn pin_override(xen: &impl Hypercall, cpu: Option<u32>) -> Result<(), Errno> {
    let pcpu = match cpu {
        Some(cpu) => i32::try_from(cpu).map_err(|_| Errno::EINVAL)?,
        None => -1,
    };
    run(xen, &mut SchedPinOverride { pcpu }).map(drop)
}

/// Sleeps as [`Wait::wait`](crate::Wait::wait) demands, in a kernel without interrupts: by [`poll`], unless `is_due` returns
/// true.
///
/// `ports` are all ports whose events are to end the sleep. One of them that is pending already ends it at once, so no
/// event on them is lost, whenever it comes. An event on another port is lost if it comes before the sleep. A port that
/// stays pending, as a masked one may, ends each sleep at once: leave it out until it is unmasked.
///
/// An error of Xen's, such as that for a port that was closed meanwhile, ends the sleep as well.
pub fn wait_on(
    xen: &(impl Hypercall + ?Sized),
    ports: &[u32],
    deadline: Option<Duration>,
    is_due: &dyn Fn() -> bool,
) {
    if !is_due() {
        let _ = poll(&xen, ports, deadline);
    }
}

/// Nanoseconds as Xen's interfaces count them; a time past the year 2554 is the last that can be told.
pub(crate) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
