//! Suspend and resume: the connection to xenstore, and all of it in its order.
#![cfg(feature = "mock")]
#![allow(unsafe_code, reason = "suspends a domain")]

use std::cell::{Cell, RefCell};
use std::time::Duration;

use xen_evtchn::EventChannels;
use xen_hypercall::hvm::HvmParam;
use xen_hypercall::mock::{MockDomain, MockXen};
use xen_hypercall::sched::Resumed;
use xen_hypercall::{DomId, Domain, Errno, Gfn, Part, Restore, RestoreError};
use xen_ring::XenstoreLayout;
use xen_xenstore::control::{Request, ShutdownWatch};
use xen_xenstore::mock::{Limits, MockDevice, MockXenstored};
use xen_xenstore::suspend::{self, Device, Kernel, Outcome, Suspension};
use xen_xenstore::wire::{Operation, Refusal};
use xen_xenstore::xenbus::Frontend;
use xen_xenstore::{Error, Xenstore};

const SECOND: Duration = Duration::from_secs(1);

struct World {
    xen: MockXen,
    guest: MockDomain,
    store: MockXenstored,
    token: Domain<MockDomain>,
    events: EventChannels<MockDomain>,
}

impl World {
    fn new() -> Self {
        let xen = MockXen::new();
        xen_evtchn::mock::install(&xen);
        let store = MockXenstored::new(&xen);
        let guest = xen.domain(DomId(1));
        store.connect(&guest);
        let token = guest.boot().unwrap();
        let events = EventChannels::new(&token).unwrap();
        Self { xen, guest, store, token, events }
    }

    fn client(&self) -> Xenstore<'_, MockDomain> {
        Xenstore::new(&self.events).unwrap()
    }

    fn migrate(&self) {
        // SAFETY: one thread, which is between two calls, and no page of another domain is mapped.
        assert_eq!(unsafe { self.token.suspend() }, Ok(Resumed::InNewDomain));
    }

    fn home(&self, node: &str) -> String {
        format!("/local/domain/{}/{node}", self.guest.id().0)
    }
}

#[test]
fn the_connection_goes_on_and_every_watch_fires() {
    let world = World::new();
    let mut xs = world.client();
    let watches: Vec<_> = (0..100).map(|n| xs.watch(&format!("data/{n}")).unwrap()).collect();
    xs.write("data/5", b"of the old domain").unwrap();
    world.xen.run_until_idle(1000);
    assert!(watches.iter().all(|watch| xs.fired(watch) == Ok(true)));
    world.migrate();
    assert_eq!(xs.read("name").unwrap_err(), Error::Event(xen_evtchn::Error::Stale));
    assert_eq!(xs.reconnect(), Err(Error::Event(xen_evtchn::Error::Stale)));
    assert_eq!(xs.resume(), Err(Error::Event(xen_evtchn::Error::Stale)), "the events come first");
    // Another port than before.
    xen_evtchn::mock::alloc_for(&world.guest, DomId(0)).unwrap();
    world.events.resume().unwrap();
    xs.resume().unwrap();
    xs.resume().unwrap();
    assert_eq!(world.store.watches(world.guest.id()), 100);
    world.xen.run_until_idle(1000);
    assert!(watches.iter().all(|watch| xs.fired(watch) == Ok(true)), "each once");
    assert!(watches.iter().all(|watch| xs.fired(watch) == Ok(false)));
    assert_eq!(xs.read_str("name").unwrap(), "d2");
    assert!(xs.read("data/5").unwrap_err().is_not_found(), "the old domain's nodes are not ours");
    xs.write("data/7", b"again").unwrap();
    assert_eq!(world.store.read(&world.home("data/7")).as_deref(), Some("again"));
    assert_eq!(xs.fired(&watches[7]), Ok(true));
    assert!(xs.transaction(|transaction| transaction.write("data/8", b"x")).is_ok());
}

#[test]
fn a_daemon_that_was_broken_or_is_late_or_refuses_watches_is_survived() {
    let world = World::new();
    let mut xs = world.client();
    let [first, second] = ["data/a", "data/b"].map(|path| xs.watch(path).unwrap());
    // The daemon of the old domain has given it up.
    world.store.give_up(DomId(1), 2);
    assert!(xs.poll().is_err());
    world.migrate();
    world.events.resume().unwrap();
    let mut limits = Limits::default();
    limits.watches = 1;
    world.store.set_limits(limits);
    assert_eq!(xs.resume(), Err(Error::Refused(Operation::WATCH, Refusal::TooBig)));
    world.xen.run_until_idle(100);
    assert_eq!((xs.fired(&first), xs.fired(&second)), (Ok(true), Err(Error::Stale)));
    assert_eq!(xs.read_str("name"), Ok("d2"));
    world.store.set_limits(Limits::default());

    // One that is not there yet: the page says so, and after a while it comes.
    world.migrate();
    world.events.resume().unwrap();
    xs.set_patience(2 * SECOND);
    let id = world.guest.id();
    world.store.stall(true);
    world.store.poke(id, XenstoreLayout::CONNECTION, 1);
    assert_eq!(xs.resume(), Err(Error::NotReady));
    assert_eq!(xs.read("name").unwrap_err(), Error::NotReady);
    let store = world.store.clone();
    let mut left = 3;
    world.xen.add_actor("late", move |_| {
        left -= 1;
        if left == 0 {
            store.stall(false);
            store.poke(id, XenstoreLayout::CONNECTION, 0);
        }
        left >= 0
    });
    xs.resume().unwrap();
    assert_eq!(xs.read_str("name"), Ok("d3"));
    assert_eq!(xs.fired(&first), Ok(true));

    // None at all.
    world.migrate();
    world.events.resume().unwrap();
    world.guest.set_hvm_param(HvmParam::STORE_EVTCHN, 0);
    assert_eq!(xs.resume(), Err(Error::NoStore));
}

#[test]
fn a_page_at_another_place_is_found() {
    let world = World::new();
    let mut xs = world.client();
    world.migrate();
    world.events.resume().unwrap();
    world.guest.set_hvm_param(HvmParam::STORE_PFN, 0x77_0000);
    assert_eq!(xs.resume(), Err(Error::Unreachable(Gfn(0x77_0000))));
    world.guest.set_hvm_param(HvmParam::STORE_PFN, 0xF_EFFE);
    xs.resume().unwrap();
    assert_eq!(xs.read_str("name"), Ok("d2"));
}

#[test]
fn no_half_message_and_no_transaction_is_left_at_a_suspend() {
    let world = World::new();
    let mut xs = world.client();
    xs.set_patience(SECOND);
    // A transaction that nobody knows of: its question was given up, and is answered late.
    world.store.leave_unanswered(1);
    assert_eq!(xs.transaction(|_| Ok(())), Err(Error::TimedOut(Operation::TRANSACTION_START)));
    world.store.stall(true);
    // A message that did not fit.
    let long = [b'x'; 2000];
    assert!(xs.write("data/long", &long).is_err());
    assert_eq!(xs.quiesce(), Err(Error::TimedOut(Operation::TRANSACTION_END)), "the daemon hangs");
    world.store.stall(false);
    xs.quiesce().unwrap();
    world.xen.run_until_idle(1000);
    assert_eq!(world.store.read(&world.home("data/long")).map(|value| value.len()), Some(2000));
    xs.quiesce().unwrap();
    world.migrate();
    world.events.resume().unwrap();
    xs.resume().unwrap();
    assert_eq!(world.store.transactions(world.guest.id()), 0);
    assert_eq!(xs.read_str("name"), Ok("d2"));
}

#[test]
fn a_device_of_the_life_before_is_forgotten_without_a_word() {
    let world = World::new();
    let device = MockDevice::new(&world.store, "vif", 0, DomId(1), DomId(0));
    device.plug();
    let mut xs = world.client();
    let frontend = Frontend::open(&mut xs, "vif", 0, world.xen.now() + SECOND).unwrap();
    world.migrate();
    world.events.resume().unwrap();
    let device = MockDevice::new(&world.store, "vif", 0, DomId(2), DomId(0));
    device.plug();
    let _ = xs.resume();
    frontend.forget(&mut xs).unwrap();
    assert_eq!(device.front("state").as_deref(), Some("1"), "that is another device's");
    // Its watch ends before the next question, and nobody waits for that.
    xs.read("name").unwrap();
    assert_eq!(world.store.watches(DomId(2)), 0);
}

/// What happened, in order.
#[derive(Default)]
struct Log(RefCell<Vec<String>>);

impl Log {
    fn add(&self, what: &str) {
        self.0.borrow_mut().push(what.into());
    }

    fn take(&self) -> String {
        std::mem::take(&mut *self.0.borrow_mut()).join(" ")
    }
}

struct Fake<'l> {
    log: &'l Log,
    name: &'static str,
    refuses: Cell<bool>,
}

impl Fake<'_> {
    fn say(&self, what: &str) -> Result<(), RestoreError> {
        self.log.add(&format!("{}:{what}", self.name));
        match self.refuses.get() {
            true => Err(RestoreError { operation: self.name, errno: Errno::EBUSY }),
            false => Ok(()),
        }
    }
}

impl Restore for &Fake<'_> {
    fn prepare(&mut self) -> Result<(), RestoreError> {
        self.say("prepare")
    }

    fn restore(&mut self) -> Result<(), RestoreError> {
        self.say("restore")
    }

    fn go_on(&mut self) {
        let _ = self.say("go_on");
    }
}

impl<'x> Device<'x, MockDomain> for &Fake<'_> {
    type Begun = &'static str;

    fn quiesce(&mut self, _: &mut Xenstore<'x, MockDomain>) {
        let _ = self.say("quiesce");
    }

    fn begin(&mut self, xs: &mut Xenstore<'x, MockDomain>, _: Duration) -> &'static str {
        assert!(xs.read("name").is_ok());
        let _ = self.say("begin");
        self.name
    }

    fn finish(&mut self, begun: &'static str, _: &mut Xenstore<'x, MockDomain>, _: Duration) -> usize {
        assert_eq!(begun, self.name);
        usize::from(self.say("finish").is_err())
    }

    fn go_on(&mut self) {
        let _ = self.say("go_on");
    }
}

struct Still<'l>(&'l Fake<'l>);

impl Kernel for Still<'_> {
    fn stand_still(&self, suspend: &mut dyn FnMut()) {
        self.0.log.add("stop");
        suspend();
        self.0.log.add("start");
    }

    fn renew(&self) -> Result<(), RestoreError> {
        self.0.say("renew")
    }

    fn lost(&self, why: RestoreError) -> ! {
        self.0.log.add("lost");
        panic!("{why}")
    }
}

struct Fakes<'l> {
    kernel: Fake<'l>,
    parts: [Fake<'l>; 2],
    devices: [Fake<'l>; 3],
}

fn fakes(log: &Log) -> Fakes<'_> {
    let fake = |name| Fake { log, name, refuses: Cell::new(false) };
    Fakes {
        kernel: fake("kernel"),
        parts: [fake("grants"), fake("console")],
        devices: [fake("net"), fake("disk"), fake("serial")],
    }
}

fn run<'x>(
    world: &'x World,
    xs: &mut Xenstore<'x, MockDomain>,
    request: Option<&ShutdownWatch>,
    fakes: &Fakes<'_>,
) -> Result<Outcome, suspend::Error> {
    let [mut grants, mut console] = fakes.parts.each_ref();
    let [net, disk, serial] = fakes.devices.each_ref();
    let mut devices = ([Some(net), None], &mut (disk, serial));
    let suspension = Suspension {
        domain: &world.token,
        events: &world.events,
        kernel: &Still(&fakes.kernel),
        parts: &mut [&mut grants, &mut console],
        patience: SECOND,
    };
    // SAFETY: one thread, which is between two calls, and no page of another domain is mapped.
    unsafe { suspension.run(xs, request, &mut devices) }
}

const BEFORE: &str = "grants:prepare console:prepare net:quiesce disk:quiesce serial:quiesce stop";

#[test]
fn everything_is_set_up_again_in_its_order() {
    let world = World::new();
    let mut xs = world.client();
    let watch = ShutdownWatch::new(&mut xs, &[Request::Suspend]).unwrap();
    let log = Log::default();
    let fakes = fakes(&log);
    world.store.write(&world.home("control/shutdown"), "suspend");
    world.xen.run_until_idle(100);
    assert_eq!(watch.poll(&mut xs), Ok(Some(Request::Suspend)));
    let old = world.home("control/shutdown");
    let store = world.store.clone();
    world.xen.set_toolstack(move |domain| {
        assert_eq!(store.read(&old).as_deref(), Some(""), "accepted before");
        domain.xen().migrate(domain);
        Resumed::InNewDomain
    });
    let outcome = run(&world, &mut xs, Some(&watch), &fakes).unwrap();
    assert_eq!((outcome.resumed, outcome.absent), (Resumed::InNewDomain, 0));
    let after = "kernel:renew grants:restore console:restore start net:begin disk:begin serial:begin \
                 net:finish disk:finish serial:finish";
    assert_eq!(log.take(), format!("{BEFORE} {after}"));
    assert_eq!(watch.poll(&mut xs), Ok(None), "the watch is set, and nothing is asked for");
    let feature = |name: &str| world.store.read(&world.home(&format!("control/feature-{name}")));
    assert_eq!((feature("suspend").as_deref(), feature("reboot").as_deref()), (Some("1"), Some("0")));
    // And again, with a device that does not come back.
    fakes.devices[1].refuses.set(true);
    world.xen.set_toolstack(|domain| {
        domain.xen().migrate(domain);
        Resumed::InNewDomain
    });
    let outcome = run(&world, &mut xs, None, &fakes).unwrap();
    assert_eq!((outcome.resumed, outcome.absent), (Resumed::InNewDomain, 1));
}

#[test]
fn what_is_cancelled_or_refused_goes_on_as_it_was() {
    let world = World::new();
    let mut xs = world.client();
    let watch = ShutdownWatch::new(&mut xs, &[Request::Suspend]).unwrap();
    let log = Log::default();
    let fakes = fakes(&log);
    let go_on = "net:go_on disk:go_on serial:go_on grants:go_on console:go_on";
    // A checkpoint.
    world.xen.set_toolstack(|_| Resumed::InPlace);
    let outcome = run(&world, &mut xs, None, &fakes).unwrap();
    assert_eq!((outcome.resumed, outcome.absent), (Resumed::InPlace, 0));
    assert_eq!(log.take(), format!("{BEFORE} start {go_on}"));
    // The toolstack has taken its request back: nothing stands in the node.
    assert_eq!(run(&world, &mut xs, Some(&watch), &fakes), Err(suspend::Error::TakenBack));
    assert_eq!(log.take(), "grants:prepare console:prepare grants:go_on console:go_on");
    // A part has something against it: the request stands.
    world.store.write(&world.home("control/shutdown"), "suspend");
    fakes.parts[1].refuses.set(true);
    let error = run(&world, &mut xs, Some(&watch), &fakes).unwrap_err();
    assert_eq!(error, suspend::Error::NotReady(RestoreError { operation: "console", errno: Errno::EBUSY }));
    assert!(error.to_string().starts_with("the domain was not suspended: console failed"));
    assert_eq!(world.store.read(&world.home("control/shutdown")).as_deref(), Some("suspend"));
    fakes.parts[1].refuses.set(false);
    log.take();
    // Something is mapped.
    let claim = world.token.claim(Part::GrantTable).unwrap();
    claim.hold();
    assert_eq!(run(&world, &mut xs, Some(&watch), &fakes), Err(suspend::Error::Refused(Errno::EBUSY)));
    assert_eq!(world.store.read(&world.home("control/shutdown")).as_deref(), Some("suspend"));
    // SAFETY: taken above, for nothing.
    unsafe { claim.let_go() };
    // The daemon hangs.
    xs.set_patience(SECOND);
    world.store.stall(true);
    let error = run(&world, &mut xs, Some(&watch), &fakes).unwrap_err();
    assert!(matches!(error, suspend::Error::Xenstore(Error::TimedOut(_))), "{error}");
    world.store.stall(false);
    assert_eq!(world.guest.id(), DomId(1));
    assert_eq!(xs.read_str("name"), Ok("d1"));
}

#[test]
fn a_domain_that_cannot_be_set_up_again_is_lost_and_one_without_xenstore_is_told_so() {
    let log = Log::default();
    let fakes = fakes(&log);
    let world = World::new();
    let mut xs = world.client();
    world.xen.set_toolstack(|domain| {
        domain.xen().migrate(domain);
        domain.set_hvm_param(HvmParam::STORE_EVTCHN, 0);
        Resumed::InNewDomain
    });
    assert_eq!(run(&world, &mut xs, None, &fakes), Err(suspend::Error::NoXenstore(Error::NoStore)));
    log.take();
    fakes.kernel.refuses.set(true);
    // Nothing goes on before the kernel ends the domain.
    let lost = std::panic::AssertUnwindSafe(|| run(&world, &mut xs, None, &fakes));
    let why = std::panic::catch_unwind(lost).unwrap_err();
    let why = why.downcast::<String>().unwrap();
    assert_eq!(*why, RestoreError { operation: "kernel", errno: Errno::EBUSY }.to_string());
    assert_eq!(log.take(), format!("{BEFORE} kernel:renew lost"));
    // A kernel that never asks.
    struct Idle;
    impl Kernel for Idle {
        fn stand_still(&self, _: &mut dyn FnMut()) {}
        fn renew(&self) -> Result<(), RestoreError> {
            Ok(())
        }
        fn lost(&self, why: RestoreError) -> ! {
            panic!("{why}")
        }
    }
    let world = World::new();
    let mut xs = world.client();
    let suspension = Suspension {
        domain: &world.token,
        events: &world.events,
        kernel: &Idle,
        parts: &mut [],
        patience: SECOND,
    };
    // SAFETY: nothing is suspended.
    let error = unsafe { suspension.run(&mut xs, None, &mut ()) };
    assert_eq!(error, Err(suspend::Error::Refused(Errno::EINVAL)));
}

/// A kernel with another way to be suspended, as PSCI's `SYSTEM_SUSPEND` is on arm64.
struct Firmware<'w>(&'w World, Result<Resumed, Errno>);

impl Kernel for Firmware<'_> {
    fn stand_still(&self, suspend: &mut dyn FnMut()) {
        suspend();
    }

    unsafe fn suspend(&self) -> Option<Result<Resumed, Errno>> {
        if self.1 == Ok(Resumed::InNewDomain) {
            self.0.xen.migrate(&self.0.guest);
        }
        Some(self.1)
    }

    fn renew(&self) -> Result<(), RestoreError> {
        assert_eq!(self.1, Ok(Resumed::InNewDomain));
        Ok(())
    }

    fn lost(&self, why: RestoreError) -> ! {
        panic!("{why}")
    }
}

#[test]
fn a_kernel_may_have_another_way_to_be_suspended() {
    let world = World::new();
    let mut xs = world.client();
    world.xen.set_toolstack(|_| panic!("Xen's own call was not to be made"));
    let mut run = |how| {
        let suspension = Suspension {
            domain: &world.token,
            events: &world.events,
            kernel: &Firmware(&world, how),
            parts: &mut [],
            patience: SECOND,
        };
        // SAFETY: one thread, which is between two calls, and no page of another domain is mapped.
        let outcome = unsafe { suspension.run(&mut xs, None, &mut ()) };
        (outcome.map(|outcome| outcome.resumed), xs.read_str("name").unwrap().to_string())
    };
    assert_eq!(run(Ok(Resumed::InPlace)), (Ok(Resumed::InPlace), "d1".into()));
    assert_eq!(run(Err(Errno::EBUSY)), (Err(suspend::Error::Refused(Errno::EBUSY)), "d1".into()));
    assert_eq!(run(Ok(Resumed::InNewDomain)), (Ok(Resumed::InNewDomain), "d2".into()));
    assert_eq!(world.token.incarnation().number(), 1);
}

#[test]
fn what_nobody_watches_for_is_not_announced_in_a_new_domain() {
    let world = World::new();
    let mut xs = world.client();
    let mut limits = Limits::default();
    limits.watches = 0;
    world.store.set_limits(limits);
    assert!(ShutdownWatch::new(&mut xs, &[Request::Suspend]).is_err());
    world.store.set_limits(Limits::default());
    world.migrate();
    world.events.resume().unwrap();
    xs.resume().unwrap();
    // As the toolstack made it.
    assert_eq!(world.store.read(&world.home("control/feature-suspend")).as_deref(), Some(""));
}
