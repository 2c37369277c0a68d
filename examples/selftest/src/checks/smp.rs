//! All vCPUs of the domain at work, as the runtime has them.

use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use core::time::Duration;

use check_report::{Failure, Report, ensure};
use xen_evtchn::Channel;
use xen_hypercall::{VcpuId, Wait};
use xen_rt::smp::{self, Vcpu, Vcpus};
use xen_rt::{Guest, Kernel, console, memory};

use super::{ARM, PATIENCE};

/// Lines that each vCPU writes at once with the others.
const LINES: usize = 40;
/// How long a line waits for room.
const ROOM: Duration = Duration::from_secs(60);

pub(crate) fn run(guest: Guest, count: usize, report: &mut Report) {
    report.check("smp/start-without-events", || without_events(guest));
    let mut started = None;
    report.check("smp/start", || {
        let vcpus = Vcpus::start(guest)?;
        ensure!(vcpus.len() + 1 == count, "{} vCPUs beside the first in place of {}", vcpus.len(), count - 1);
        started = Some(vcpus);
        Ok(())
    });
    if let Some(vcpus) = started {
        at_work(guest, &vcpus, report);
    }
}

/// What vCPUs that are up can do.
pub(super) fn at_work(guest: Guest, vcpus: &Vcpus, report: &mut Report) {
    report.check("smp/start-again", || match Vcpu::start(guest, VcpuId(1)) {
        Err(smp::Error::Start(_)) => Ok(()),
        other => Err(Failure(format!("{other:?}"))),
    });
    report.check("smp/run", || runs(guest, vcpus));
    report.check("smp/busy", || busy(guest, vcpus));
    report.check("smp/own-events", || own_events(guest, vcpus));
    report.check("smp/own-timer", || own_timer(guest, vcpus));
    report.check("smp/heap", || heap(guest, vcpus));
    report.check("smp/console", || lines(guest, vcpus));
}

/// A vCPU for whose events there are no ports does not come up, and is none the worse for it.
fn without_events(guest: Guest) -> Result<(), Failure> {
    let mut all: Vec<_> = core::iter::from_fn(|| guest.events().bind_ipi(VcpuId(0)).ok()).collect();
    // Without any, and with too few: on Arm a vCPU's timer is its own, and the one to call it by is all it needs.
    for free in 0..if ARM { 1 } else { 2 } {
        all.truncate(all.len() - free);
        match Vcpu::start(guest, VcpuId(1)) {
            Err(smp::Error::Events(_)) => {}
            other => return Err(Failure(format!("with {free} ports free: {other:?}"))),
        }
    }
    Ok(())
}

/// Waits until all have done what they were given.
pub(super) fn all_idle(guest: Guest, vcpus: &Vcpus) -> Result<(), Failure> {
    until(guest, "the end of what they were given", || vcpus.iter().all(|vcpu| vcpu.is_idle()))
}

pub(super) fn until(guest: Guest, what: &str, holds: impl Fn() -> bool) -> Result<(), Failure> {
    let end = guest.now() + PATIENCE;
    while !holds() {
        ensure!(guest.now() < end, "{what} did not happen within {PATIENCE:?}");
        core::hint::spin_loop();
    }
    Ok(())
}

fn runs(guest: Guest, vcpus: &Vcpus) -> Result<(), Failure> {
    let kernel = guest.kernel();
    let seen: &'static [AtomicU32] =
        Box::leak(vcpus.iter().map(|_| AtomicU32::new(0)).collect::<Vec<_>>().into_boxed_slice());
    for _ in 0..3 {
        for (vcpu, seen) in vcpus.iter().zip(seen) {
            vcpu.run(move || _ = seen.fetch_add(kernel.vcpu().0, Ordering::Relaxed))?;
        }
        all_idle(guest, vcpus)?;
    }
    for (vcpu, seen) in vcpus.iter().zip(seen) {
        let (sum, id) = (seen.load(Ordering::Relaxed), vcpu.id().0);
        ensure!(sum == 3 * id, "three runs on vCPU {id} add up to {sum}");
    }
    ensure!(kernel.vcpu() == VcpuId(0), "this is vCPU {}", kernel.vcpu().0);
    Ok(())
}

fn busy(guest: Guest, vcpus: &Vcpus) -> Result<(), Failure> {
    static GO: AtomicU32 = AtomicU32::new(0);
    let Some(vcpu) = vcpus.first() else { return Ok(()) };
    GO.store(0, Ordering::Relaxed);
    vcpu.run(|| {
        while GO.load(Ordering::Relaxed) == 0 {
            core::hint::spin_loop();
        }
    })?;
    let second = vcpu.run(|| ());
    GO.store(1, Ordering::Relaxed);
    ensure!(second == Err(smp::Error::Busy), "{second:?}");
    all_idle(guest, vcpus)
}

/// What is bound to a vCPU reaches it there, whatever the first one does.
fn own_events(guest: Guest, vcpus: &Vcpus) -> Result<(), Failure> {
    const ROUNDS: u32 = 20;
    let events = guest.events();
    let bound = vcpus.iter().map(|vcpu| -> Result<_, Failure> {
        let channel: &'static Channel<'static, &'static Kernel> =
            Box::leak(Box::new(events.bind_ipi(vcpu.id())?));
        let got: &'static AtomicU32 = Box::leak(Box::new(AtomicU32::new(0)));
        vcpu.run(move || {
            while got.load(Ordering::Relaxed) < ROUNDS {
                let seen = events.seq();
                if channel.take() {
                    got.fetch_add(1, Ordering::Relaxed);
                } else {
                    events.wait_since(seen, None);
                }
            }
        })?;
        Ok((channel, got))
    });
    let bound = bound.collect::<Result<Vec<_>, _>>()?;
    for round in 0..ROUNDS {
        for (channel, _) in &bound {
            channel.notify()?;
        }
        // This vCPU looks at no event meanwhile.
        until(guest, "an event on each vCPU", || {
            bound.iter().all(|(_, got)| got.load(Ordering::Relaxed) > round)
        })?;
    }
    all_idle(guest, vcpus)
}

fn own_timer(guest: Guest, vcpus: &Vcpus) -> Result<(), Failure> {
    const SLEEP: Duration = Duration::from_millis(20);
    let slept: &'static [AtomicU64] =
        Box::leak(vcpus.iter().map(|_| AtomicU64::new(0)).collect::<Vec<_>>().into_boxed_slice());
    for (vcpu, slept) in vcpus.iter().zip(slept) {
        vcpu.run(move || {
            let (events, start) = (guest.events(), guest.now());
            while guest.now() < start + SLEEP {
                events.wait_since(events.seq(), Some(start + SLEEP));
            }
            slept.store((guest.now() - start).as_micros() as u64, Ordering::Relaxed);
        })?;
    }
    all_idle(guest, vcpus)?;
    for (vcpu, slept) in vcpus.iter().zip(slept) {
        let slept = Duration::from_micros(slept.load(Ordering::Relaxed));
        ensure!(slept >= SLEEP, "vCPU {} slept {slept:?}", vcpu.id().0);
    }
    Ok(())
}

/// All allocate and free at once; what each has is its own.
fn heap(guest: Guest, vcpus: &Vcpus) -> Result<(), Failure> {
    static WRONG: AtomicU32 = AtomicU32::new(0);
    let before = memory().used;
    for vcpu in vcpus {
        let id = vcpu.id().0 as u8;
        vcpu.run(move || {
            let mut kept: Vec<Vec<u8>> = Vec::new();
            for turn in 0..600_usize {
                kept.push(alloc::vec![id; 1 + turn * 37 % 3000]);
                if turn % 3 != 0 {
                    let gone = kept.swap_remove(turn * 7 % kept.len());
                    let wrong = gone.iter().filter(|byte| **byte != id).count();
                    WRONG.fetch_add(wrong as u32, Ordering::Relaxed);
                }
            }
            let wrong = kept.iter().flatten().filter(|byte| **byte != id).count();
            WRONG.fetch_add(wrong as u32, Ordering::Relaxed);
        })?;
    }
    all_idle(guest, vcpus)?;
    let wrong = WRONG.load(Ordering::Relaxed);
    ensure!(wrong == 0, "{wrong} bytes of one vCPU were another's");
    let after = memory().used;
    ensure!(after == before, "{before} bytes were in use, and then {after}");
    Ok(())
}

/// All write at once. Whoever reads the console sees to it that each line is whole.
fn lines(guest: Guest, vcpus: &Vcpus) -> Result<(), Failure> {
    static LOST: AtomicU32 = AtomicU32::new(0);
    for vcpu in vcpus {
        let id = vcpu.id().0;
        vcpu.run(move || {
            for line in 0..LINES {
                let text = format_args!("smp-line vcpu {id} line {line} of {LINES} end\n");
                if console::write(text, ROOM) != Some(true) {
                    LOST.fetch_add(1, Ordering::Relaxed);
                }
            }
        })?;
    }
    all_idle(guest, vcpus)?;
    let lost = LOST.load(Ordering::Relaxed);
    ensure!(lost == 0, "{lost} lines found no room");
    Ok(())
}

/// Has a vCPU use more stack than it has, which ends the domain.
pub(crate) fn overflow(guest: Guest) -> ! {
    let vcpu = Vcpu::start(guest, VcpuId(1));
    let ran = vcpu.and_then(|vcpu| vcpu.run(|| xen_rt::selftest("stack")));
    if let Err(error) = ran {
        xen_rt::crash(format_args!("{error}"));
    }
    loop {
        guest.events().wait_since(guest.events().seq(), None);
    }
}
