//! All that a guest can do, again in each of its lives: after it was saved and restored as another domain, or stopped for a
//! checkpoint. What was made before is stale in another domain, says so, and asks Xen for nothing; in the same domain it is as it
//! was.

mod held;

use alloc::boxed::Box;
use alloc::format;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use core::time::Duration;

use check_report::{Failure, Report, ensure};
use xen_gnttab::{GrantTable, Version};
use xen_hypercall::sched::Resumed;
use xen_hypercall::{DomId, Errno, Restore, Wait, event};
use xen_rt::smp::{self, Vcpus};
use xen_rt::suspend::Error;
use xen_rt::{Guest, Kernel};
use xen_xenstore::control::{Request, ShutdownWatch};
use xen_xenstore::{Watch, Xenstore};

use super::smp as vcpus;
use super::{Domain, Grants, PATIENCE, events, loopback, wait_for};
use held::Held;

/// A node of ours.
const NOTE: &str = "data/note";
/// Where dom0 writes its time of day, in seconds.
const TIME: &str = "data/time";

/// What outlives a suspend.
struct Place {
    guest: Guest,
    domain: Domain,
    grants: &'static Grants,
    store: Xenstore<'static, &'static Kernel>,
    requests: ShutdownWatch,
    note: Watch,
    vcpus: Vcpus,
}

impl Place {
    fn new(guest: Guest, version: Version) -> Result<Self, Failure> {
        let grants = Box::leak(Box::new(GrantTable::with_version(guest.domain(), version)?));
        let mut store = Xenstore::new(guest.events())?;
        let requests = ShutdownWatch::new(&mut store, &[Request::Suspend])?;
        let note = store.watch(NOTE)?;
        let domain = Domain { kernel: guest.kernel(), token: guest.domain(), first: false };
        Ok(Self { guest, domain, grants, store, requests, note, vcpus: Vcpus::start(guest)? })
    }

    fn own(&self) -> Result<DomId, Failure> {
        Ok(event::own_domain(self.domain.kernel)?)
    }

    /// Waits until dom0 asks for it, and does not come back before the domain goes on.
    fn suspend(&mut self, parts: &mut [&mut dyn Restore]) -> Result<Resumed, Failure> {
        let Self { guest, store, requests, .. } = self;
        wait_for(guest.events(), None, "a request to suspend", || {
            Ok((requests.poll(store)? == Some(Request::Suspend)).then_some(()))
        })?;
        Ok(guest.suspend(store, Some(requests), parts, &mut (), PATIENCE)?.resumed)
    }
}

/// Runs it all once, and again after each of the suspends that `plan` names.
pub(crate) fn run(guest: Guest, plan: &str, version: Version, report: &mut Report) {
    let mut place = None;
    report.check("resume/start", || {
        place = Some(Place::new(guest, version)?);
        Ok(())
    });
    let Some(mut place) = place else { return };
    everything(&mut place, report);
    if !place.vcpus.is_empty() {
        report.check("resume/not-while-a-vcpu-is-at-work", || not_ready(&mut place));
    }
    for (number, how) in (1..).zip(plan.split(',')) {
        another_life(&mut place, number, how, report);
        everything(&mut place, report);
    }
}

/// What can be checked in any life.
fn everything(place: &mut Place, report: &mut Report) {
    match place.own() {
        Ok(own) => {
            let version = if place.grants.version() == Version::V2 { "v2" } else { "v1" };
            loopback::run(place.grants, own, version, report);
        }
        Err(Failure(why)) => report.check("resume/own-domain", || Err(Failure(why))),
    }
    events::run(&place.domain, place.guest.events(), None, report);
    if !place.vcpus.is_empty() {
        vcpus::at_work(place.guest, &place.vcpus, report);
    }
    report.check("resume/store", || store(place));
}

/// A watch, a value, a transaction.
fn store(place: &mut Place) -> Result<(), Failure> {
    let deadline = place.guest.now() + PATIENCE;
    let Place { store, note, domain, .. } = place;
    // That a watch was set fires it, too.
    while store.fired(note)? {}
    let text = format!("{:?}", domain.token.incarnation());
    store.write(NOTE, text.as_bytes())?;
    ensure!(store.wait_fired(note, deadline)?, "the watch does not fire");
    ensure!(store.read_str(NOTE)? == text, "{:?} is there in place of {text:?}", store.read_str(NOTE));
    store.transaction(|transaction| {
        transaction.write("data/one", b"1")?;
        transaction.write("data/two", b"2")
    })?;
    ensure!(store.read_str("data/two")? == "2", "the transaction is not there");
    let told = DomId(store.read_parsed("domid")?);
    let own = event::own_domain(domain.kernel)?;
    ensure!(told == own, "xenstore says {told:?}, Xen {own:?}");
    Ok(())
}

/// A vCPU that does not come to rest is in the way of a suspend, and nothing happens.
fn not_ready(place: &mut Place) -> Result<(), Failure> {
    static BUSY: AtomicBool = AtomicBool::new(false);
    let Some(vcpu) = place.vcpus.first() else { return Ok(()) };
    vcpu.run(|| {
        BUSY.store(true, Ordering::Relaxed);
        while BUSY.load(Ordering::Relaxed) {
            core::hint::spin_loop();
        }
    })?;
    // Before it begins it may be stopped.
    vcpus::until(place.guest, "the beginning", || BUSY.load(Ordering::Relaxed))?;
    let suspended = place.guest.suspend(&mut place.store, None, &mut [], &mut (), PATIENCE);
    BUSY.store(false, Ordering::Relaxed);
    let busy = matches!(suspended, Err(Error::NotReady(error)) if error.errno == Errno::EBUSY);
    ensure!(busy, "{suspended:?}");
    vcpus::all_idle(place.guest, &place.vcpus)
}

/// Counts for as long as it is to, on another vCPU, which may be stopped meanwhile.
mod counter {
    use super::*;

    static ON: AtomicBool = AtomicBool::new(false);
    static COUNT: AtomicU32 = AtomicU32::new(0);
    /// How often the time went back.
    static BACK: AtomicU32 = AtomicU32::new(0);

    pub(super) fn start(place: &Place) -> Result<(), Failure> {
        let (Some(vcpu), guest) = (place.vcpus.first(), place.guest) else { return Ok(()) };
        ON.store(true, Ordering::Relaxed);
        let mut last = guest.now();
        vcpu.run(move || {
            while ON.load(Ordering::Relaxed) {
                smp::rest();
                // Its events are its own to take.
                guest.events().dispatch(guest.kernel().vcpu());
                let now = guest.now();
                BACK.fetch_add(u32::from(now < last), Ordering::Relaxed);
                last = now;
                COUNT.fetch_add(1, Ordering::Relaxed);
            }
        })?;
        steps(place)
    }

    /// Waits until it has done something.
    pub(super) fn steps(place: &Place) -> Result<(), Failure> {
        if place.vcpus.is_empty() {
            return Ok(());
        }
        let before = COUNT.load(Ordering::Relaxed);
        vcpus::until(place.guest, "a step of another vCPU", || COUNT.load(Ordering::Relaxed) != before)
    }

    pub(super) fn stop(place: &Place) -> Result<(), Failure> {
        ON.store(false, Ordering::Relaxed);
        vcpus::all_idle(place.guest, &place.vcpus)?;
        let back = BACK.load(Ordering::Relaxed);
        ensure!(back == 0, "its time went back {back} times");
        Ok(())
    }
}

/// The domain is suspended, and goes on.
fn another_life(place: &mut Place, number: u32, how: &str, report: &mut Report) {
    let mut held = None;
    report.check("resume/made-before", || {
        held = Some(Held::new(place)?);
        counter::start(place)
    });
    let Some(held) = held else { return };
    let life = place.guest.domain().incarnation().number();
    let (now, unix) = (place.guest.now(), place.guest.unix_time());
    report.note(format_args!("please {how} {number}"));
    let mut resumed = None;
    report.check("resume/suspended", || {
        resumed = Some(held.with_parts(|parts| place.suspend(parts))?);
        Ok(())
    });
    let Some(resumed) = resumed else { return };
    let in_place = resumed == Resumed::InPlace;
    report.check("resume/as-asked-for", || {
        ensure!(in_place == (how == "checkpoint"), "{resumed:?} after a {how}");
        let raised = place.guest.domain().incarnation().number() - life;
        ensure!(raised == u16::from(!in_place), "the number of the life is raised by {raised}");
        Ok(())
    });
    report.check("resume/clock", || {
        ensure!(place.guest.now() >= now, "{:?}, and then {:?}", now, place.guest.now());
        ensure!(place.guest.unix_time() >= unix, "{:?}, and then {:?}", unix, place.guest.unix_time());
        Ok(())
    });
    report.note(format_args!("please tell the time {number}"));
    report.check("resume/time-of-day", || time_of_day(place));
    report.check("resume/vcpu-goes-on", || counter::steps(place));
    if in_place {
        held.are_as_before(place, report);
    } else {
        held.are_stale(place, report);
    }
    report.check("resume/vcpu-ends", || counter::stop(place));
}

/// Ours is that of dom0.
fn time_of_day(place: &mut Place) -> Result<(), Failure> {
    let deadline = place.guest.now() + PATIENCE;
    let told = place.store.wait_for::<u64>(TIME, deadline, |_| true)?;
    let (told, ours) = (told.ok_or("nobody wrote the time")?, place.guest.unix_time());
    // In the same domain it would be there still.
    place.store.remove(TIME)?;
    let told = Duration::from_secs(told);
    // However long it takes until we see what dom0 wrote.
    ensure!(ours + Duration::from_secs(2) >= told && ours <= told + PATIENCE, "{ours:?}, dom0 has {told:?}");
    Ok(())
}
