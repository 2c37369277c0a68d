//! Virtual processors: a second one starts, stops and goes on; areas that Xen writes; timers' refusals.
#![allow(unsafe_code, reason = "gives memory to Xen and starts a processor")]

use core::ptr::NonNull;
use core::sync::atomic::Ordering;
use core::time::Duration;

use check_report::{Failure, Report, ensure};
use xen_evtchn::Abi;
use xen_hypercall::abi::{VcpuHvmContext, VcpuRunstateInfo};
use xen_hypercall::vcpu::{self, RunState};
use xen_hypercall::{Errno, Gfn, PageMemory, VcpuArea, VcpuId, Wait, event};
use xen_rt::{Kernel, smp};

use super::{ARM, Domain, Events, PATIENCE, sleep};
use crate::second;

const FIRST: VcpuId = VcpuId(0);
const SECOND: VcpuId = VcpuId(1);
const NONE: VcpuId = VcpuId(77);

/// Waits until something holds.
fn until(events: &Events, what: &str, holds: impl Fn() -> bool) -> Result<(), Failure> {
    let end = events.platform().now() + PATIENCE;
    while !holds() {
        ensure!(events.platform().now() < end, "{what} did not happen within {PATIENCE:?}");
        sleep(events, Duration::from_millis(1));
    }
    Ok(())
}

pub(super) fn run(domain: &Domain, events: &Events, report: &mut Report) {
    areas(events, report);
    if ARM {
        nothing_else(domain.kernel, report);
    } else {
        everything_else(domain, events, report);
    }
    let beyond = beyond(domain, events.abi_in_use(), report);
    if ARM && beyond {
        start_by_firmware(events, report);
    }
}

/// On Arm the processor and its firmware have what these calls are for.
fn nothing_else(xen: &Kernel, report: &mut Report) {
    let (none, soon) = (Errno::EINVAL, xen.now() + Duration::from_secs(1));
    report.refused("vcpu/run-times", vcpu::run_times(xen, FIRST), none);
    report.refused("vcpu/physical-id", vcpu::physical_id(xen, FIRST), none);
    report.refused("vcpu/periodic", vcpu::set_periodic_timer(xen, FIRST, Duration::from_millis(2)), none);
    report.refused("vcpu/singleshot", vcpu::set_singleshot_timer(xen, FIRST, soon), none);
    report.refused("vcpu/is-up", vcpu::is_up(xen, FIRST), none);
    report.refused("vcpu/up", vcpu::up(xen, SECOND), none);
    report.refused("vcpu/down", vcpu::down(xen, SECOND), none);
    report.refused("vcpu/send-nmi", vcpu::send_nmi(xen, SECOND), none);
    // SAFETY: Xen does not know the call on Arm.
    let started = unsafe { vcpu::initialise(xen, SECOND, &VcpuHvmContext::default()) };
    report.refused("vcpu/initialise", started, none);
    report.refused("vcpu/set-timer", vcpu::set_timer(xen, Some(soon)), Errno::ENOSYS);
}

fn everything_else(domain: &Domain, events: &Events, report: &mut Report) {
    let xen = domain.kernel;
    report.check("vcpu/run-times", || {
        let before = vcpu::run_times(xen, FIRST)?;
        let all = |times: vcpu::RunTimes| times.running + times.runnable + times.blocked;
        let mut after = before;
        // On a busy machine the end of a sleep may have come before it begins.
        for _ in 0..100 {
            sleep(events, Duration::from_millis(5));
            after = vcpu::run_times(xen, FIRST)?;
            ensure!(after.state == RunState::RUNNING, "{after:?}");
            if after.blocked > before.blocked && all(after) - all(before) >= Duration::from_millis(4) {
                return Ok(());
            }
        }
        Err(Failure(alloc::format!("{before:?}, then {after:?}")))
    });
    report.refused("vcpu/run-times-none", vcpu::run_times(xen, NONE), Errno::ENOENT);
    report.refused("vcpu/physical-id-not-pinned", vcpu::physical_id(xen, FIRST), Errno::EINVAL);
    report.refused(
        "vcpu/periodic-too-short",
        vcpu::set_periodic_timer(xen, FIRST, Duration::from_micros(999)),
        Errno::EINVAL,
    );
    let soon = xen.now() + Duration::from_secs(1);
    report.refused(
        "vcpu/singleshot-of-another",
        vcpu::set_singleshot_timer(xen, SECOND, soon),
        Errno::EINVAL,
    );
    start(domain, events, report);
}

/// The second vCPU's life, where Xen starts and stops it by calls of its own.
fn start(domain: &Domain, events: &Events, report: &mut Report) {
    let xen = domain.kernel;
    report.check("vcpu/is-up", || {
        let (first, second) = (vcpu::is_up(xen, FIRST)?, vcpu::is_up(xen, second::ID)?);
        ensure!(first && !second, "the first {first}, the second {second}");
        Ok(())
    });
    report.refused("vcpu/is-up-none", vcpu::is_up(xen, NONE), Errno::ENOENT);
    report.refused("vcpu/up-without-state", vcpu::up(xen, second::ID), Errno::EINVAL);
    report.check("vcpu/register-info", || {
        let area = VcpuArea::register(domain.token, second::ID)?;
        let again = VcpuArea::register(domain.token, second::ID).map(drop);
        ensure!(again == Err(Errno::EINVAL), "a second time: {again:?}");
        // Xen marks everything as pending there, so that no event is lost.
        let pending = area.info().pending_sel.load(Ordering::Relaxed);
        ensure!(pending == u64::MAX, "pending {pending:#x}");
        Ok(())
    });
    // SAFETY: Xen refuses a mode that there is not.
    let bad = unsafe { vcpu::initialise(xen, second::ID, &VcpuHvmContext { mode: 9, ..Default::default() }) };
    report.refused("vcpu/initialise-bad-mode", bad, Errno::EINVAL);
    report.check("vcpu/initialise-and-up", || {
        second::start(xen)?;
        until(events, "a step of the second vCPU", || second::count() > 0)?;
        ensure!(vcpu::is_up(xen, second::ID)?, "it is not up");
        Ok(())
    });
    // SAFETY: Xen refuses it, for it has a state.
    let again = unsafe { vcpu::initialise(xen, second::ID, &VcpuHvmContext::default()) };
    report.refused("vcpu/initialise-again", again, Errno::EEXIST);
    report.check("vcpu/down", || {
        vcpu::down(xen, second::ID)?;
        until(events, "its end", || {
            vcpu::run_times(xen, second::ID).is_ok_and(|times| times.state == RunState::OFFLINE)
        })?;
        let count = second::count();
        sleep(events, Duration::from_millis(20));
        ensure!(second::count() == count, "it runs still");
        Ok(())
    });
    report.check("vcpu/up-again", || {
        let count = second::count();
        vcpu::up(xen, second::ID)?;
        until(events, "another step", || second::count() > count)
    });
    report.check("vcpu/down-by-itself", || {
        second::stop();
        until(events, "its end", || vcpu::is_up(xen, second::ID) == Ok(false))
    });
    // It stays down, so that nothing comes of it.
    report.check("vcpu/send-nmi", || Ok(vcpu::send_nmi(xen, second::ID)?));
    report.refused("vcpu/send-nmi-none", vcpu::send_nmi(xen, NONE), Errno::ENOENT);
}

/// Its life where the runtime asks the firmware, as processors have it.
fn start_by_firmware(events: &Events, report: &mut Report) {
    let xen = *events.platform();
    report.check("vcpu/start", || {
        second::start(xen)?;
        until(events, "a step of the second vCPU", || second::count() > 0)
    });
    report.check("vcpu/start-again", || {
        let again = second::start(xen);
        ensure!(again == Err(smp::Error::Start(Errno::EEXIST)), "{again:?}");
        Ok(())
    });
    report.check("vcpu/down-by-itself", || {
        second::stop();
        // Once it is down it can be started again, which ends at once.
        until(events, "its end", || second::start(xen).is_ok())
    });
}

/// What Xen writes about a vCPU by itself.
fn areas(events: &Events, report: &mut Report) {
    let xen = *events.platform();
    report.check("vcpu/runstate-area", || {
        let page = xen.alloc_pages(1).ok_or(Failure("no page".into()))?;
        let area = page.cast::<VcpuRunstateInfo>().as_ptr();
        // SAFETY: the page was just allocated for this, is not freed, and is read below by volatile accesses only.
        unsafe { vcpu::register_runstate_area(xen, FIRST, area) }?;
        // SAFETY: the field is in the page, which is valid.
        let blocked = || unsafe { (&raw const (*area).time[2]).read_volatile() };
        let before = blocked();
        // On a busy machine the end of a sleep may have come before it begins.
        until(events, "a sleep that is counted", || blocked() > before)?;
        // SAFETY: nothing is written any more.
        unsafe { vcpu::register_runstate_area(xen, FIRST, core::ptr::null_mut()) }?;
        let after = blocked();
        sleep(events, Duration::from_millis(5));
        ensure!(blocked() == after, "Xen writes there still");
        Ok(())
    });
    let page: NonNull<[u64; 4]> = match xen.alloc_pages(1) {
        Some(page) => page.cast(),
        None => return report.check("vcpu/time-area", || Err(Failure("no page".into()))),
    };
    // SAFETY: the page was just allocated for this, is not freed, and is read below by volatile accesses only.
    let registered = unsafe { vcpu::register_time_area(xen, FIRST, page) };
    if ARM {
        return report.refused("vcpu/time-area", registered, Errno::EINVAL);
    }
    report.check("vcpu/time-area", || {
        registered?;
        until(events, "a time", || {
            // SAFETY: the page is valid.
            let [version, tsc, system, _] = unsafe { page.read_volatile() };
            version & 1 == 0 && tsc != 0 && system != 0
        })?;
        Ok(())
    });
}

/// One that has no place in `shared_info`, where the domain has so many: the 34th, on Arm the second. Its events are those of
/// the two-level ABI. Returns whether there is one.
fn beyond(domain: &Domain, abi: Abi, report: &mut Report) -> bool {
    let (xen, shared) = (domain.kernel, domain.token.shared_info());
    let (last, id) = if ARM { (FIRST, SECOND) } else { (VcpuId(31), VcpuId(33)) };
    // SAFETY: there is no such frame, so nothing is registered where there is such a vCPU.
    let there = unsafe { vcpu::register_vcpu_info(xen, id, Gfn(u64::MAX), 0) };
    if there == Err(Errno::ENOENT) {
        return false;
    }
    let mut registered = None;
    report.check("vcpu/beyond-registers-info", || {
        ensure!(shared.area(last).is_some() && shared.area(id).is_none(), "places in shared_info");
        let area = VcpuArea::register(domain.token, id)?;
        let pending = area.info().pending_sel.load(Ordering::Relaxed);
        ensure!(pending == u64::MAX, "pending {pending:#x}");
        registered = Some(area);
        Ok(())
    });
    report.refused(
        "vcpu/beyond-registers-again",
        VcpuArea::register(domain.token, id).map(drop),
        Errno::EINVAL,
    );
    let Some(area) = registered.filter(|_| abi == Abi::TwoLevel) else { return true };
    report.check("vcpu/beyond-gets-events", || {
        let port = event::bind_ipi(xen, id)?;
        let (word, bit) = (port as usize / 64, 1 << (port % 64));
        let (Some(pending), Some(mask)) = (shared.evtchn_pending(word), shared.evtchn_mask(word)) else {
            return Err(Failure(alloc::format!("port {port}")));
        };
        let info = area.info();
        info.pending_sel.store(0, Ordering::SeqCst);
        info.upcall_pending.store(0, Ordering::SeqCst);
        mask.fetch_and(!bit, Ordering::SeqCst);
        event::send(xen, port)?;
        mask.fetch_or(bit, Ordering::SeqCst);
        let came = pending.fetch_and(!bit, Ordering::SeqCst) & bit != 0;
        let told = (info.upcall_pending.load(Ordering::SeqCst), info.pending_sel.load(Ordering::SeqCst));
        event::close(xen, port)?;
        ensure!(came && told == (1, 1 << word), "pending {came}, upcall and words {told:?}");
        Ok(())
    });
    true
}
