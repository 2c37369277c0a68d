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

/// Why a domain ends, of the reasons that safe code may give (`SHUTDOWN_*` of `sched.h`): those after which it does not go
/// on. [`ShutdownCode`] has the others.
///
/// Safe code cannot make another one, nor hand the structure itself to Xen:
///
/// ```compile_fail,E0423
/// let suspend = xen_hypercall::sched::ShutdownReason(2);
/// ```
/// ```compile_fail,E0277
/// let mut suspend = xen_hypercall::abi::SchedShutdown { reason: 2 };
/// xen_hypercall::multicall::Multicall::<1>::new().add(&mut suspend);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(transparent)]
pub struct ShutdownReason(u32);

impl ShutdownReason {
    /// It is done; it stays off.
    pub const POWEROFF: Self = Self(SHUTDOWN_POWEROFF);
    /// It wants to be started anew.
    pub const REBOOT: Self = Self(SHUTDOWN_REBOOT);
    /// It failed.
    pub const CRASH: Self = Self(SHUTDOWN_CRASH);
    /// Its watchdog expired.
    pub const WATCHDOG: Self = Self(SHUTDOWN_WATCHDOG);

    /// The number that Xen knows it by.
    pub const fn code(self) -> ShutdownCode {
        ShutdownCode(self.0)
    }
}

/// Any reason that a domain can end for, by its number in `sched.h` (`SHUTDOWN_*`). To give it to Xen is unsafe: a domain
/// that goes on after [`SUSPEND`](Self::SUSPEND) or [`SOFT_RESET`](Self::SOFT_RESET) has lost all that Xen had mapped in its
/// memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(transparent)]
pub struct ShutdownCode(pub u32);

impl ShutdownCode {
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

impl From<ShutdownReason> for ShutdownCode {
    fn from(reason: ShutdownReason) -> Self {
        reason.code()
    }
}

impl PartialEq<ShutdownReason> for ShutdownCode {
    fn eq(&self, other: &ShutdownReason) -> bool {
        *self == other.code()
    }
}

// Private, and of structures made here alone: a command of a public structure could be given any number by safe code, see
// `Multicall::add`.
#[repr(transparent)]
struct End(#[allow(dead_code, reason = "Xen reads it")] SchedShutdown);

#[repr(transparent)]
struct EndAs(#[allow(dead_code, reason = "Xen reads it")] SchedShutdown);

#[repr(transparent)]
struct EndOther(#[allow(dead_code, reason = "Xen reads it")] SchedRemoteShutdown);

#[allow(unsafe_code, reason = "names the structure of each command")]
mod commands {
    use super::*;

    macro_rules! commands {
        ($($name:ident = $cmd:ident;)*) => {$(
            // SAFETY: the command reads this structure of `sched.h`. What it does is to end a domain, now or later, or
            // to choose where a vCPU runs, which touches no memory. Where the domain goes on afterwards, whoever made
            // the structure vouches for what that does.
            unsafe impl Command for $name {
                const NR: HypercallNr = HypercallNr::SCHED_OP;
                const CMD: usize = $cmd;
            }
        )*};
    }

    commands! {
        End = SCHEDOP_SHUTDOWN;
        EndAs = SCHEDOP_SHUTDOWN_CODE;
        EndOther = SCHEDOP_REMOTE_SHUTDOWN;
        SchedWatchdog = SCHEDOP_WATCHDOG;
        SchedPinOverride = SCHEDOP_PIN_OVERRIDE;
    }
}

/// Lets others run; this vCPU stays runnable.
///
/// # Errors
/// None that Xen documents.
pub fn yield_now(xen: &(impl Hypercall + ?Sized)) -> Result<(), Errno> {
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
pub fn block(xen: &(impl Hypercall + ?Sized)) -> Result<(), Errno> {
    numbers(xen, Plain::Block, [0; 4]).map(drop)
}

/// Sleeps until one of `ports` (at most 128) is pending, masked or not, or Xen's system time reaches `deadline`, at once if
/// either is so already. Without ports and with a deadline it is a sleep. Without a deadline only an event ends it.
///
/// It may end early. With one port, an event on another port of the domain does not wake the vCPU; with none or several, an
/// event on any port of the domain does.
///
/// An event that can interrupt the vCPU ends the sleep too, and Xen interrupts the vCPU before the call returns. With a
/// [callback vector](crate::hvm::callback_vector) that interrupt is level-triggered: the handler is entered again and again
/// until the vCPU's `upcall_pending` is zero, so it must clear that field itself. With interrupts off there is no such
/// interrupt, and an event that is pending already on a port not listed does not end the sleep: a kernel without
/// interrupts lists every port that it waits for.
///
/// # Errors
/// `EINVAL` for too many ports or one that does not exist.
#[allow(unsafe_code, reason = "hands over a list of ports")]
pub fn poll(xen: &(impl Hypercall + ?Sized), ports: &[u32], deadline: Option<Duration>) -> Result<(), Errno> {
    let argument = SchedPoll {
        ports: ports.as_ptr().expose_provenance() as u64,
        nr_ports: u32::try_from(ports.len()).map_err(|_| Errno::EINVAL)?,
        pad0: 0,
        // Zero means no deadline to Xen. The time that Xen started is long past, and so is the nanosecond after.
        timeout: deadline.map_or(0, |at| nanoseconds(at).max(1)),
    };
    let pointer = (&raw const argument).expose_provenance();
    // SAFETY: SCHEDOP_poll reads the structure and `nr_ports` ports, both borrowed during the call, and writes none.
    Errno::check(unsafe { xen.hypercall(HypercallNr::SCHED_OP, [SCHEDOP_POLL, pointer, 0, 0, 0]) }).map(drop)
}

/// Ends the domain. Returns only if Xen refuses.
///
/// # Errors
/// None that Xen documents.
pub fn shutdown(xen: &(impl Hypercall + ?Sized), reason: ShutdownReason) -> Result<(), Errno> {
    end(xen, reason.code()).map(drop)
}

/// Ends the domain for any reason, [`ShutdownCode::SOFT_RESET`] among them. Returns the number that Xen returns, if it does.
///
/// # Errors
/// None that Xen documents.
///
/// # Safety
/// The caller does for this reason what [`suspend`] asks for its own: when the domain goes on, nobody uses what Xen had mapped
/// in its memory, nor what other domains had.
#[allow(unsafe_code, reason = "the caller vouches for what is mapped")]
pub unsafe fn shutdown_unchecked(
    xen: &(impl Hypercall + ?Sized),
    reason: ShutdownCode,
) -> Result<usize, Errno> {
    end(xen, reason)
}

fn end(xen: &(impl Hypercall + ?Sized), reason: ShutdownCode) -> Result<usize, Errno> {
    run(xen, &mut End(SchedShutdown { reason: reason.0 }))
}

/// How a domain goes on after [`suspend`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Resumed {
    /// In a new domain, on this machine or another: `shared_info`, event channels, grants and vCPU areas are gone and
    /// must be set up anew; devices must be connected again.
    InNewDomain,
    /// In the same domain, where all is as before: saving was cancelled, or was a checkpoint.
    InPlace,
}

/// Lets the toolstack save the domain's state ([`ShutdownCode::SUSPEND`]); returns when the domain goes on.
///
/// HVM and PVH guests; a PV guest would have to hand over a machine frame.
///
/// # Errors
/// None that Xen documents. The domain was not suspended then.
///
/// # Safety
/// Before the call:
/// - vCPU 0 makes it, and all other vCPUs are down.
/// - No other domain has a grant of this domain's memory mapped, and no device writes to that memory: the state that is saved
///   is what it is at that moment.
///
/// After the call, if it returns [`Resumed::InNewDomain`]:
/// - Nobody uses an address at which Xen or another domain had something mapped: `shared_info`, grant table frames, other
///   domains' pages. Nothing is there any more, or something else is. [`SharedInfo`](crate::SharedInfo),
///   [`VcpuArea`](crate::VcpuArea) and what was made of them are not used again.
/// - Nobody relies on Xen for what it was told before: registered areas of vCPUs, event channels, grants, timers, the callback
///   vector, HVM parameters. Numbers of ports, grant references and the domain itself mean something else, or nothing.
#[allow(unsafe_code, reason = "the caller vouches for what is mapped")]
pub unsafe fn suspend(xen: &(impl Hypercall + ?Sized)) -> Result<Resumed, Errno> {
    match end(xen, ShutdownCode::SUSPEND)? {
        0 => Ok(Resumed::InNewDomain),
        _ => Ok(Resumed::InPlace),
    }
}

/// Says in advance what reason the domain's end is to have, however it then ends. The first to say so wins. Since Xen
/// 4.0.
///
/// # Errors
/// None that Xen documents.
pub fn set_shutdown_code(xen: &(impl Hypercall + ?Sized), reason: ShutdownReason) -> Result<(), Errno> {
    end_as(xen, reason.code())
}

/// The same for any reason.
///
/// # Errors
/// None that Xen documents.
///
/// # Safety
/// Every later end of the domain ([`shutdown`], a watchdog, its last vCPU going down) is one for this reason, and the caller
/// vouches for each as [`shutdown_unchecked`] asks.
#[allow(unsafe_code, reason = "the caller vouches for what is mapped")]
pub unsafe fn set_shutdown_code_unchecked(
    xen: &(impl Hypercall + ?Sized),
    reason: ShutdownCode,
) -> Result<(), Errno> {
    end_as(xen, reason)
}

fn end_as(xen: &(impl Hypercall + ?Sized), reason: ShutdownCode) -> Result<(), Errno> {
    run(xen, &mut EndAs(SchedShutdown { reason: reason.0 })).map(drop)
}

/// Ends another domain; for the privileged domain and device models.
///
/// # Errors
/// `ESRCH` for a domain that does not exist (and for oneself by [`DomId::SELF`]), `EPERM` for want of privilege.
pub fn remote_shutdown(
    xen: &(impl Hypercall + ?Sized),
    domain: DomId,
    reason: ShutdownReason,
) -> Result<(), Errno> {
    let argument = SchedRemoteShutdown { domain_id: domain.0, pad0: 0, reason: reason.0 };
    run(xen, &mut EndOther(argument)).map(drop)
}

/// A timer that ends the domain ([`ShutdownReason::WATCHDOG`]) unless it is set again in time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct WatchdogId(u32);

/// Starts a watchdog; a domain can have two. Parts of a second count as a whole one. Since Xen 4.1.
///
/// # Errors
/// `ENOSPC` when there are two already.
pub fn start_watchdog(xen: &(impl Hypercall + ?Sized), timeout: Duration) -> Result<WatchdogId, Errno> {
    let id = run(xen, &mut SchedWatchdog { id: 0, timeout: whole_seconds(timeout) })?;
    // Xen 4.17 returns the error as an unsigned number of 32 bits, extended to 64 by zeros.
    Errno::check(id as u32 as i32 as isize)?;
    Ok(WatchdogId(id as u32))
}

/// Sets a watchdog's time anew, from now.
///
/// # Errors
/// `EINVAL` for one that was stopped.
pub fn poke_watchdog(
    xen: &(impl Hypercall + ?Sized),
    watchdog: WatchdogId,
    timeout: Duration,
) -> Result<(), Errno> {
    run(xen, &mut SchedWatchdog { id: watchdog.0, timeout: whole_seconds(timeout) }).map(drop)
}

/// Stops a watchdog.
///
/// # Errors
/// `EINVAL` for one that was stopped.
pub fn stop_watchdog(xen: &(impl Hypercall + ?Sized), watchdog: WatchdogId) -> Result<(), Errno> {
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
pub fn pin_override(xen: &(impl Hypercall + ?Sized), cpu: Option<u32>) -> Result<(), Errno> {
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
        let _ = poll(xen, ports, deadline);
    }
}

/// Nanoseconds as Xen's interfaces count them: 63 bits, 292 years, to which a longer time is cut. To Xen a 64th bit is a sign,
/// and the time long past.
pub(crate) fn nanoseconds(time: Duration) -> u64 {
    i64::try_from(time.as_nanos()).map_or(i64::MAX as u64, i64::unsigned_abs)
}
