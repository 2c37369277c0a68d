//! Calls that say what Xen is, and those of single subjects: scheduling, parameters, interrupts of devices.
#![allow(unsafe_code, reason = "names memory to Xen")]

use alloc::vec::Vec;
use core::time::Duration;

use check_report::{Failure, Report, ensure};
use xen_hypercall::abi::EvtchnStatus;
use xen_hypercall::assist::{Assist, disable, enable};
use xen_hypercall::hvm::{HvmParam, MemType, Vector};
use xen_hypercall::multicall::Multicall;
use xen_hypercall::physdev::{self, Source};
use xen_hypercall::sched::{self, ShutdownReason};
use xen_hypercall::version::{self, Features};
use xen_hypercall::{DomId, Errno, Gfn, PageMemory, VcpuId, Wait, console_io, event, hvm};

use xen_rt::Kernel;

use super::memory::hole;
use super::{ARM, Domain};

/// No domain has this number here.
pub(super) const NOBODY: DomId = DomId(0x7000);

pub(super) fn run(domain: &Domain, report: &mut Report) {
    versions(domain, report);
    scheduling(domain, report);
    parameters(domain, report);
    devices(domain, report);
    let xen = domain.kernel;
    report.check("assist/enable", || Ok(enable(xen, Assist::RUNSTATE_UPDATE_FLAG)?));
    report.check("assist/disable", || Ok(disable(xen, Assist::RUNSTATE_UPDATE_FLAG)?));
    report.refused("assist/of-pv-guests", enable(xen, Assist::WRITABLE_PAGETABLES), Errno::EINVAL);
    report.privileged(domain.first, "console_io/write", console_io::write(xen, b""));
    report.privileged(domain.first, "console_io/read", console_io::read(xen, &mut [0; 16]));
    report.check("multicall", || {
        let status = |port| EvtchnStatus { dom: DomId::SELF.0, port, ..Default::default() };
        let (mut good, mut bad, mut last) = (status(1), status(u32::MAX), status(2));
        let mut calls = Multicall::<4>::new();
        calls.add(&mut good)?;
        let middle = calls.add(&mut bad)?;
        calls.add(&mut last)?;
        let results = calls.run(xen)?;
        let all: Vec<_> = results.iter().map(|result| result.is_ok()).collect();
        ensure!(all == [true, false, true], "{all:?}");
        ensure!(results.get(middle) == Some(Err(Errno::EINVAL)), "{:?}", results.get(middle));
        Ok(())
    });
}

fn versions(domain: &Domain, report: &mut Report) {
    let xen = domain.kernel;
    report.check("version/version", || {
        let by_call = version::version(xen)?;
        ensure!(by_call.0 >= 4, "{by_call:?}");
        #[cfg(target_arch = "x86_64")]
        {
            use xen_hypercall::arch::x86_64::{cpuid, cpuid_version};
            let by_cpuid = cpuid_version(cpuid);
            ensure!(Some(by_call) == by_cpuid, "{by_call:?}, by CPUID {by_cpuid:?}");
        }
        Ok(())
    });
    report.check("version/extraversion", || {
        let text = version::extraversion(xen)?;
        ensure!(text.as_str().starts_with('.'), "{text}");
        Ok(())
    });
    report.check("version/capabilities", || {
        let text = version::capabilities(xen)?;
        ensure!(text.as_str().contains(if ARM { "xen-3.0-aarch64" } else { "hvm-3.0-x86_64" }), "{text}");
        Ok(())
    });
    report.check("version/compile-info", || {
        let info = version::compile_info(xen)?;
        ensure!(
            info.compiler.as_str().contains("gcc") || info.compiler.as_str().contains("clang"),
            "{info:?}"
        );
        Ok(())
    });
    report.check("version/changeset", || Ok(version::changeset(xen).map(drop)?));
    report.check("version/virt-start", || {
        let start = version::virt_start(xen)?;
        ensure!(if ARM { start < 1 << 47 } else { start >> 47 == 0x1_FFFF }, "{start:#x}");
        Ok(())
    });
    report.check("version/page-size", || {
        let size = version::page_size(xen)?;
        ensure!(size == 4096, "{size}");
        Ok(())
    });
    report.check("version/command-line", || {
        let text = version::command_line(xen)?;
        let wanted = if domain.first { "dom0" } else { "<denied>" };
        ensure!(text.as_str().contains(wanted), "{text}");
        Ok(())
    });
    report.privileged(domain.first, "version/build-id", version::build_id(xen));
    report.check("version/guest-handle", || {
        let uuid = version::guest_handle(xen)?;
        ensure!((uuid.0 == [0; 16]) == domain.first, "{uuid}");
        Ok(())
    });
    report.check("version/features", || {
        let have = version::features(xen)?;
        let own = if ARM { Features::ARM_SMCCC } else { Features::HVM_CALLBACK_VECTOR };
        let wanted = Features::AUTO_TRANSLATED_PHYSMAP | own;
        ensure!(have.contains(wanted), "{have:?}");
        Ok(())
    });
    report.check("shared-info/wall-clock", || {
        let seconds = domain.token.shared_info().wall_clock().as_secs();
        ensure!((1_600_000_000..10_000_000_000).contains(&seconds), "{seconds} s");
        Ok(())
    });
    report.check("shared-info/time", || {
        let before = xen.now();
        let after = xen.now();
        ensure!(before > Duration::ZERO && after >= before, "{before:?}, then {after:?}");
        Ok(())
    });
}

fn scheduling(domain: &Domain, report: &mut Report) {
    let xen = domain.kernel;
    report.check("sched/yield", || Ok(sched::yield_now(xen)?));
    if ARM {
        // Its deadline is of Xen's own time, which no guest knows here: this one has passed.
        report.check("sched/poll-passed", || Ok(sched::poll(xen, &[], Some(Duration::from_nanos(1)))?));
    } else {
        report.check("sched/poll-sleeps", || super::poll_sleeps(xen, &[]));
    }
    report.refused("sched/poll-too-many", sched::poll(xen, &[1; 129], None), Errno::EINVAL);
    report.check("sched/watchdog", || {
        let minute = Duration::from_secs(60);
        let (first, second) = (sched::start_watchdog(xen, minute)?, sched::start_watchdog(xen, minute)?);
        let third = sched::start_watchdog(xen, minute);
        sched::poke_watchdog(xen, first, minute)?;
        sched::stop_watchdog(xen, second)?;
        sched::stop_watchdog(xen, first)?;
        // What fails comes last: a watchdog that is left running would end the domain.
        ensure!(third == Err(Errno::ENOSPC), "a third: {third:?}");
        let stopped = sched::poke_watchdog(xen, first, minute);
        ensure!(stopped == Err(Errno::EINVAL), "one that was stopped: {stopped:?}");
        Ok(())
    });
    report.privileged(domain.first, "sched/pin-override", sched::pin_override(xen, Some(0)));
    report.privileged(domain.first, "sched/pin-override-end", sched::pin_override(xen, None));
    let end = |who| sched::remote_shutdown(xen, who, ShutdownReason::CRASH);
    report.refused("sched/remote-shutdown-self", end(DomId::SELF), Errno::ESRCH);
    report.refused("sched/remote-shutdown-nobody", end(NOBODY), Errno::ESRCH);
    if !domain.first {
        report.refused("sched/remote-shutdown-dom0", end(DomId(0)), Errno::EPERM);
    }
    // What the end is going to be.
    report.check("sched/shutdown-code", || Ok(sched::set_shutdown_code(xen, ShutdownReason::POWEROFF)?));
}

const ANOTHER: Vector = Vector::new(0x30).expect("an exception's vector");

fn parameters(domain: &Domain, report: &mut Report) {
    let xen = domain.kernel;
    let Ok(vector) = hvm::get_param(xen, HvmParam::CALLBACK_IRQ) else {
        return report.check("hvm/get-param", || Err(Failure("no interrupt of events".into())));
    };
    let set = hvm::set_param(xen, HvmParam::CALLBACK_IRQ, vector);
    if ARM {
        report.refused("hvm/set-param", set, Errno::EINVAL);
    } else {
        report.check("hvm/set-param", || Ok(set?));
    }
    report.check("hvm/get-param", || {
        let value = hvm::get_param(xen, HvmParam::CALLBACK_IRQ)?;
        ensure!(value == vector, "{value:#x}");
        Ok(())
    });
    report.refused("hvm/get-param-unknown", hvm::get_param(xen, HvmParam(1000)), Errno::EINVAL);
    // SAFETY: Xen does not let a guest set it.
    let of_toolstack = unsafe { hvm::set_param_unchecked(xen, HvmParam::STORE_PFN, 1) };
    report.refused("hvm/set-param-of-toolstack", of_toolstack, Errno::EPERM);
    report.check("hvm/guest-request-vm-event", || Ok(hvm::guest_request_vm_event(xen)?));
    if ARM { no_more_parameters(xen, report) } else { more_parameters(xen, report) }
}

/// What Xen has for x86 alone.
fn no_more_parameters(xen: &Kernel, report: &mut Report) {
    let none = Errno::ENOSYS;
    // SAFETY: Xen does not know it on Arm.
    let memory = unsafe { hvm::set_param_unchecked(xen, HvmParam::VM_GENERATION_ID_ADDR, 0) };
    report.refused("hvm/set-memory-param", memory, Errno::EINVAL);
    report.refused("hvm/time", hvm::time(xen), none);
    report.refused("hvm/mem-type", hvm::mem_type(xen, Gfn(0x100)), none);
    report.refused("hvm/flush-tlbs", hvm::flush_tlbs(xen), none);
    report.refused("hvm/upcall-vector", hvm::set_evtchn_upcall_vector(xen, VcpuId(1), ANOTHER), none);
}

fn more_parameters(xen: &Kernel, report: &mut Report) {
    report.check("hvm/set-memory-param", || {
        let page = xen.alloc_pages(1).ok_or(Failure("no page".into()))?;
        let at = xen.gfn(page).0 * 4096;
        // SAFETY: the page was just allocated for this, and is never freed.
        unsafe { hvm::set_param_unchecked(xen, HvmParam::VM_GENERATION_ID_ADDR, at) }?;
        let back = hvm::get_param(xen, HvmParam::VM_GENERATION_ID_ADDR)?;
        ensure!(back == at, "{back:#x} in place of {at:#x}");
        Ok(())
    });
    report.check("hvm/time", || {
        let (before, time, after) = (xen.now(), hvm::time(xen)?, xen.now());
        let slack = Duration::from_millis(100);
        ensure!(time + slack >= before && time <= after + slack, "{time:?} between {before:?} and {after:?}");
        Ok(())
    });
    report.check("hvm/mem-type", || {
        let hole = hole(xen)?;
        let (memory, hole) = (hvm::mem_type(xen, Gfn(0x100))?, hvm::mem_type(xen, hole)?);
        ensure!(memory == MemType::RAM && hole == MemType::MMIO, "memory {memory:?}, a hole {hole:?}");
        Ok(())
    });
    report.check("hvm/flush-tlbs", || Ok(hvm::flush_tlbs(xen)?));
    report.check("hvm/upcall-vector", || Ok(hvm::set_evtchn_upcall_vector(xen, VcpuId(1), ANOTHER)?));
    let nobody = hvm::set_evtchn_upcall_vector(xen, VcpuId(99), ANOTHER);
    report.refused("hvm/upcall-vector-no-vcpu", nobody, Errno::ENOENT);
}

/// Guests of these kinds have no interrupts of devices as event channels.
fn devices(domain: &Domain, report: &mut Report) {
    let (xen, none) = (domain.kernel, Errno::ENOSYS);
    report.refused("physdev/eoi", physdev::eoi(xen, 1), none);
    report.refused("physdev/irq-status", physdev::irq_status(xen, 1), none);
    report.refused("physdev/map-pirq", physdev::map_pirq(xen, Source::Gsi(1), None), none);
    report.refused("physdev/unmap-pirq", physdev::unmap_pirq(xen, 1), none);
    report.refused("physdev/free-pirq", physdev::free_pirq(xen, Source::Gsi(1)), none);
    report.check("physdev/eoi-page", || {
        let page = xen.alloc_pages(1).ok_or(Failure("no page".into()))?;
        // SAFETY: the page was just allocated for this; it is freed only when Xen did not take it.
        let result = unsafe { physdev::set_eoi_page(xen, xen.gfn(page)) };
        ensure!(result == Err(none), "{result:?} in place of ENOSYS");
        // SAFETY: allocated above, and Xen did not take it.
        unsafe { xen.free_pages(page, 1) };
        Ok(())
    });
    report.refused("evtchn/bind-pirq-out-of-range", event::bind_pirq(xen, u32::MAX, false), Errno::EINVAL);
}
