//! The checks, in an order in which none spoils the next.

mod calls;
mod events;
mod grants;
mod loopback;
mod memory;
mod own;
mod pair;
pub(crate) mod resume;
pub(crate) mod smp;
mod vcpus;

use alloc::boxed::Box;
use core::time::Duration;

use check_report::Words;
use check_report::{Failure, Report, ensure};
use rand_core::TryRng;
use xen_evtchn::{Abi, Channel, Deadline, EventChannels, Virq};
use xen_gnttab::{GrantTable, Version};
use xen_hypercall::{VcpuId, Wait, event, sched};
use xen_rt::Kernel;
use xen_rt::console;
use xen_rt::random::Random;

pub(crate) type Events = EventChannels<&'static Kernel>;
pub(crate) type Grants = GrantTable<&'static Kernel>;

/// Whether this is Arm, where Xen has less for its guests.
const ARM: bool = cfg!(target_arch = "aarch64");
/// How long anything may take, on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long to sleep between two looks at something that no event tells of.
const TURN: Duration = Duration::from_millis(20);

/// Looks whenever there was an event, until `look` finds something. With `turn` it looks that often, too.
fn wait_for<T>(
    events: &Events,
    turn: Option<Duration>,
    what: &str,
    mut look: impl FnMut() -> Result<Option<T>, Failure>,
) -> Result<T, Failure> {
    let now = || events.platform().now();
    let mut deadline = Deadline::new(now() + PATIENCE);
    loop {
        let seen = events.seq();
        if let Some(found) = look()? {
            return Ok(found);
        }
        let Some(until) = deadline.until(now()) else {
            return Err(Failure(alloc::format!("{what} did not happen within {PATIENCE:?}")));
        };
        events.wait_since(seen, Some(turn.map_or(until, |turn| until.min(now() + turn))));
    }
}

/// Sleeps, whatever events come. On x86-64 the timer's end is an event, whose port a check may have masked, so Xen keeps the time. On
/// Arm it is an interrupt of its own, and a sleep does not begin before somebody has looked at the events.
pub(crate) fn sleep(events: &Events, time: Duration) {
    let kernel = *events.platform();
    let until = kernel.now() + time;
    while kernel.now() < until {
        if ARM || sched::poll(kernel, &[], Some(kernel.system_time(until))).is_err() {
            events.wait_since(events.seq(), Some(until));
        }
    }
}

/// `sched::poll` sleeps until its deadline, when none of the ports has an event.
fn poll_sleeps(xen: &Kernel, ports: &[u32]) -> Result<(), Failure> {
    let mut sleeps = 0;
    // On a busy machine the end of a sleep may have come before it begins.
    while sleeps == 0 {
        let until = xen.now() + Duration::from_millis(5);
        // The console's events end it, too, but not often.
        while xen.now() < until {
            sched::poll(xen, ports, Some(xen.system_time(until)))?;
            sleeps += 1;
            ensure!(sleeps < 50, "awake {sleeps} times without an event");
        }
    }
    Ok(())
}

/// The domain that runs this.
#[derive(Debug)]
pub(crate) struct Domain {
    pub(crate) kernel: &'static Kernel,
    pub(crate) token: &'static xen_hypercall::Domain<&'static Kernel>,
    /// Whether it is the first, with its privilege.
    pub(crate) first: bool,
}

/// The ABI of event channels that the command line chooses.
pub(crate) fn abi(words: &Words) -> Abi {
    if words.get("abi") == Some("fifo") { Abi::Fifo } else { Abi::TwoLevel }
}

/// The version of the grant table that the command line chooses.
pub(crate) fn version(words: &Words) -> Version {
    if words.get("grants") == Some("2") { Version::V2 } else { Version::V1 }
}

/// Runs everything that this domain can do.
pub(crate) fn run(domain: &Domain, words: &Words, report: &mut Report) {
    let abi = abi(words);
    if domain.first {
        // Nothing of the toolstack's has a port here, so that all may be closed to change the ABI.
        for abi in [Abi::TwoLevel, Abi::Fifo, Abi::TwoLevel] {
            let Some(events) = start(domain, abi, report) else { return };
            let Some(timer) = timer(&events, report) else { return };
            if abi == Abi::TwoLevel {
                everything_but_events(domain, &events, report);
            }
            events::run(domain, &events, Some(&timer), report);
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
    everything_but_events(domain, events, report);
    events::run(domain, events, Some(&timer), report);
    if let Some(role) = words.get("role") {
        pair::run(domain, role, version(words), events, report);
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
fn everything_but_events(domain: &Domain, events: &Events, report: &mut Report) {
    static DONE: core::sync::atomic::AtomicBool = core::sync::atomic::AtomicBool::new(false);
    if DONE.swap(true, core::sync::atomic::Ordering::Relaxed) {
        return;
    }
    calls::run(domain, report);
    report.check("processor/random", random_numbers);
    vcpus::run(domain, events, report);
    match event::own_domain(domain.kernel) {
        Ok(own) => {
            memory::run(domain, own, report);
            grants::run(domain, own, report);
        }
        Err(errno) => report.check("evtchn/own-domain", || Err(errno.into())),
    }
}

/// What the processor gives as random differs, if it gives any.
fn random_numbers() -> Result<(), Failure> {
    let Some(mut random) = Random::new() else { return Ok(()) };
    let mut bytes = [[0; 20]; 2];
    for bytes in &mut bytes {
        random.try_fill_bytes(bytes).map_err(|error| Failure(alloc::format!("{error}")))?;
    }
    let [one, other] = bytes;
    ensure!(one != other && one[..8] != one[8..16], "{one:?}, and then {other:?}");
    log::info!("random numbers of the processor: {:02x?} ...", &one[..4]);
    Ok(())
}
