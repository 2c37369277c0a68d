//! The checks, in an order in which none spoils the next.

mod calls;
mod events;
mod grants;
mod loopback;
mod memory;
mod own;
mod pair;
mod vcpus;

use alloc::boxed::Box;

use xen_evtchn::{Abi, Channel, EventChannels, Virq};
use xen_gnttab::{GrantTable, Version};
use xen_hypercall::{VcpuId, event};

use crate::console;
use crate::platform::{Kernel, Owned};
use crate::report::{Failure, Report};
use crate::words::Words;

pub(crate) type Events = EventChannels<&'static Kernel>;
pub(crate) type Grants = GrantTable<&'static Kernel>;

/// The domain that runs this.
#[derive(Debug)]
pub(crate) struct Domain {
    pub(crate) kernel: &'static Kernel,
    pub(crate) token: Owned,
    /// Whether it is the first, with its privilege.
    pub(crate) first: bool,
}

/// Runs everything that this domain can do.
pub(crate) fn run(domain: &Domain, words: &Words, report: &mut Report) {
    let abi = if words.get("abi") == Some("fifo") { Abi::Fifo } else { Abi::TwoLevel };
    if domain.first {
        // Nothing of the toolstack's has a port here, so that all may be closed to change the ABI.
        for abi in [Abi::TwoLevel, Abi::Fifo, Abi::TwoLevel] {
            let Some(events) = start(domain, abi, report) else { return };
            let Some(timer) = timer(&events, report) else { return };
            if abi == Abi::TwoLevel {
                everything_but_events(domain, report);
            }
            events::run(domain, &events, &timer, report);
            drop(timer);
            report.check("evtchn/reset", || {
                events.reset()?;
                let closed =
                    (1..32).all(|port| event::status(domain.kernel, port).is_ok_and(|port| port.status == 0));
                if closed { Ok(()) } else { Err(Failure("ports are open still".into())) }
            });
        }
        return;
    }
    let mut events = None;
    report.check(start_name(abi), || {
        let started: &'static Events = Box::leak(Box::new(EventChannels::with_abi(domain.token, abi)?));
        // From here on lines go to the domain's own console, this one first.
        console::open(started);
        events = Some(started);
        Ok(())
    });
    let Some(events) = events else { return };
    let Some(timer) = timer(events, report) else { return };
    everything_but_events(domain, report);
    events::run(domain, events, &timer, report);
    if let Some(role) = words.get("role") {
        let version = if words.get("grants") == Some("2") { Version::V2 } else { Version::V1 };
        pair::run(domain, role, version, events, report);
    }
    // The last line's way to its reader is waited for, too, and that with a deadline.
    core::mem::forget(timer);
}

fn start_name(abi: Abi) -> &'static str {
    if abi == Abi::Fifo { "evtchn/start-fifo" } else { "evtchn/start-2-level" }
}

fn start(domain: &Domain, abi: Abi, report: &mut Report) -> Option<Events> {
    let mut events = None;
    report.check(start_name(abi), || {
        events = Some(EventChannels::with_abi(domain.token, abi)?);
        Ok(())
    });
    events
}

/// The channel that ends sleeps with a deadline.
fn timer<'e>(events: &'e Events, report: &mut Report) -> Option<Channel<'e, &'static Kernel>> {
    let mut timer = None;
    report.check("evtchn/timer", || {
        timer = Some(events.bind_virq(Virq::TIMER, VcpuId(0))?);
        Ok(())
    });
    timer
}

/// Once per boot.
fn everything_but_events(domain: &Domain, report: &mut Report) {
    static DONE: core::sync::atomic::AtomicBool = core::sync::atomic::AtomicBool::new(false);
    if DONE.swap(true, core::sync::atomic::Ordering::Relaxed) {
        return;
    }
    calls::run(domain, report);
    vcpus::run(domain, report);
    match event::own_domain(domain.kernel) {
        Ok(own) => {
            memory::run(domain, own, report);
            grants::run(domain, own, report);
        }
        Err(errno) => report.check("evtchn/own-domain", || Err(errno.into())),
    }
}
