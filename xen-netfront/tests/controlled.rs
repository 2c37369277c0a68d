//! A card that a task controls, while others use it: nothing blocks.
#![cfg(feature = "mock")]

mod common;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Context, Wake, Waker};

use common::{GUEST, HOST, Machine, frame};
use xen_hypercall::mock::MockDomain;
use xen_netfront::mock::{Fault, MockNetback, Options};
use xen_netfront::{Card, Config, Error, FRAME_MAX, Followup, Mac, State};
use xen_xenstore::Xenstore;
use xen_xenstore::shared::SharedStore;

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

type Task<'t> = Pin<Box<dyn Future<Output = ()> + 't>>;

/// Tasks, each polled when it was woken. The first is waited for.
struct Tasks<'t> {
    machine: &'t Machine,
    tasks: Vec<(Task<'t>, Arc<Woken>)>,
    /// When each poll began must be when it ended: nobody waits within.
    polls: usize,
}

impl<'t> Tasks<'t> {
    fn new(machine: &'t Machine) -> Self {
        Self { machine, tasks: Vec::new(), polls: 0 }
    }

    fn spawn(&mut self, task: impl Future<Output = ()> + 't) {
        self.tasks.push((Box::pin(task), Arc::new(Woken(AtomicBool::new(true)))));
    }

    /// Polls whoever was woken, until nobody is.
    fn settle(&mut self) {
        loop {
            let mut any = false;
            let mut index = 0;
            while index < self.tasks.len() {
                let (task, woken) = &mut self.tasks[index];
                index += 1;
                if !woken.0.swap(false, SeqCst) {
                    continue;
                }
                any = true;
                self.polls += 1;
                assert!(self.polls < 200_000, "the tasks are busy for ever");
                let before = self.machine.xen.now();
                let done = task.as_mut().poll(&mut Context::from_waker(&Waker::from(woken.clone())));
                assert_eq!(self.machine.xen.now(), before, "a task holds the executor");
                if done.is_ready() {
                    index -= 1;
                    drop(self.tasks.remove(index));
                }
            }
            let acted = self.machine.xen.run_until_idle(1000);
            assert!(acted < 1000);
            self.machine.events.dispatch(xen_hypercall::VcpuId(0));
            if !any && acted == 0 && self.tasks.iter().all(|(_, woken)| !woken.0.load(SeqCst)) {
                return;
            }
        }
    }
}

/// What all tests stand on.
struct Setting<'m> {
    store: SharedStore<'m, MockDomain>,
    card: Card<'m, MockDomain>,
}

fn setting(machine: &Machine) -> Setting<'_> {
    Setting { store: SharedStore::new(Xenstore::new(&machine.events).unwrap()), card: Card::new() }
}

async fn control<'m>(machine: &'m Machine, setting: &Setting<'m>, config: Config) -> Error {
    let control = setting.card.control(&machine.events, &machine.grants, 0, config);
    let error = control.unwrap().run(setting.store.client()).await;
    error.unwrap_err()
}

fn spawn_all<'t, 'm: 't>(
    tasks: &mut Tasks<'t>,
    machine: &'m Machine,
    setting: &'t Setting<'m>,
    config: Config,
) {
    tasks.spawn(async move {
        setting.store.runner().run().await;
    });
    tasks.spawn(async move {
        let error = control(machine, setting, config).await;
        assert_eq!(error, Error::Closed);
    });
}

/// A frame gets through, each way.
fn assert_passes(machine: &Machine, tasks: &mut Tasks<'_>, card: &Card<'_, MockDomain>) {
    tasks.settle();
    assert!(card.is_link_up());
    while card.with(|front| front.receive(&mut [0; FRAME_MAX])).unwrap().unwrap().is_some() {}
    while machine.switch.receive().is_some() {}
    card.with(|front| front.transmit(&frame(HOST, GUEST, 70, 1))).unwrap().unwrap();
    machine.switch.send(frame(GUEST, HOST, 80, 2));
    card.publish().unwrap();
    tasks.settle();
    assert_eq!(machine.switch.receive().unwrap().bytes, frame(HOST, GUEST, 70, 1));
    assert_eq!(card.with(|front| front.receive(&mut [0; FRAME_MAX])).unwrap(), Ok(Some(80)));
}

fn end<'m>(machine: &'m Machine, tasks: Tasks<'_>, setting: &Setting<'m>, backs: &[MockNetback]) {
    drop(tasks);
    let mut control = setting.card.control(&machine.events, &machine.grants, 0, Config::default());
    let mut tasks = Tasks::new(machine);
    tasks.spawn(async {
        setting.store.runner().run().await;
    });
    let control = control.take().unwrap();
    let closed = Cell::new(false);
    tasks.spawn(async {
        let _ = control.close(setting.store.client()).await;
        closed.set(true);
    });
    tasks.settle();
    assert!(closed.get());
    drop(tasks);
    assert_eq!(machine.grants.stats().in_use, 0);
    assert_eq!(machine.store.watches(machine.guest.id()), 0);
    for back in backs {
        assert_eq!(back.complaints(), [""; 0]);
    }
}

#[test]
fn a_card_comes_when_its_backend_does_and_goes_and_comes_again() {
    let machine = Machine::new();
    let setting = setting(&machine);
    let mut tasks = Tasks::new(&machine);
    spawn_all(&mut tasks, &machine, &setting, Config::default());
    tasks.settle();
    assert!(!setting.card.is_present());
    let back = machine.vif(Options::default());
    assert_passes(&machine, &mut tasks, &setting.card);
    for round in 0..4 {
        match round {
            0 => back.detach(),
            1 => back.close(),
            2 => back.vanish(),
            _ => back.force_detach(),
        }
        tasks.settle();
        assert!(!setting.card.is_link_up(), "{round}");
        assert_eq!(setting.card.publish(), Err(Error::Closed));
        back.come_back();
        assert_passes(&machine, &mut tasks, &setting.card);
        assert_eq!(setting.card.stats().reconnects, round + 1);
        assert_eq!(setting.card.take_followup(), Followup::ANNOUNCE);
    }
    end(&machine, tasks, &setting, &[back]);
}

#[test]
fn the_link_the_mtu_and_what_is_to_be_done_are_told() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let setting = setting(&machine);
    let (links, followups) = (RefCell::new(Vec::new()), Cell::new(Followup::empty()));
    let mut tasks = Tasks::new(&machine);
    spawn_all(&mut tasks, &machine, &setting, Config::default());
    let card = &setting.card;
    tasks.spawn(async {
        let mut up = false;
        loop {
            up = card.link(up).await;
            links.borrow_mut().push((up, card.mtu()));
        }
    });
    tasks.spawn(async {
        loop {
            followups.set(followups.get() | card.followup().await);
        }
    });
    tasks.settle();
    for carrier in ["0", "1"] {
        back.set_back("carrier", carrier);
        tasks.settle();
    }
    back.set_front("disconnect", Some("1"));
    tasks.settle();
    assert_eq!(
        links.take(),
        [(true, Some(1500)), (false, Some(1500)), (true, Some(1500)), (false, Some(1500))]
    );
    assert_eq!(followups.get(), Followup::empty());
    back.vanish();
    tasks.settle();
    // It is never said to be up that was not looked at.
    back.come_back();
    tasks.settle();
    assert_eq!(links.take(), []);
    back.vanish();
    tasks.settle();
    back.set_front("disconnect", None);
    back.set_front("mtu", Some("1400"));
    back.come_back();
    tasks.settle();
    assert_eq!(links.take(), [(true, Some(1400))]);
    assert_eq!(followups.get(), Followup::ANNOUNCE);
    end(&machine, tasks, &setting, &[back]);
}

#[test]
fn multicast_addresses_and_the_filter_are_asked_of_the_next_backend() {
    let group = |number| Mac([1, 0, 0x5e, 0, 1, number]);
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let setting = setting(&machine);
    let mut tasks = Tasks::new(&machine);
    // With fewer pages than addresses they are asked for in several rounds.
    spawn_all(&mut tasks, &machine, &setting, Config { tx_pages: 4, ..Config::default() });
    let card = &setting.card;
    tasks.spawn(async {
        for number in 0..40 {
            card.want_multicast(group(number), true).await.unwrap();
        }
        card.want_multicast(group(7), false).await.unwrap();
    });
    tasks.settle();
    let wanted = back.wanted();
    assert_eq!(wanted.len(), 39);
    card.filter_multicast(true);
    tasks.settle();
    assert_eq!(back.front("request-multicast-control").as_deref(), Some("1"));
    back.vanish();
    tasks.settle();
    back.come_back();
    tasks.settle();
    assert_eq!(back.wanted(), wanted);
    assert_eq!(back.front("request-multicast-control").as_deref(), Some("1"));
    assert_eq!(card.take_followup(), Followup::ANNOUNCE);
    // A run that is dropped asks no backend twice.
    drop(tasks.tasks.remove(1));
    tasks.spawn(async { panic!("{}", control(&machine, &setting, Config::default()).await) });
    tasks.settle();
    assert_eq!(back.wanted(), wanted);
    end(&machine, tasks, &setting, &[back]);
}

#[test]
fn a_device_that_was_broken_is_closed_and_comes_with_the_next_backend() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let setting = setting(&machine);
    let mut tasks = Tasks::new(&machine);
    spawn_all(&mut tasks, &machine, &setting, Config::default());
    assert_passes(&machine, &mut tasks, &setting.card);
    back.fault_rx(Fault::Id(7));
    machine.switch.send(frame(GUEST, HOST, 80, 2));
    tasks.settle();
    assert!(setting.card.with(|front| front.receive(&mut [0; FRAME_MAX])).unwrap().is_err());
    tasks.settle();
    assert_eq!(setting.card.state(), State::Closed);
    assert_eq!((back.front("state").as_deref(), machine.grants.stats().in_use), (Some("6"), 0));
    back.come_back();
    assert_passes(&machine, &mut tasks, &setting.card);
    end(&machine, tasks, &setting, &[back]);
}

#[test]
fn who_is_stalled_holds_nobody_up() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let setting = setting(&machine);
    let ticks = Cell::new(0);
    let mut tasks = Tasks::new(&machine);
    // `Tasks` sees to it that no time passes while a task is polled.
    spawn_all(&mut tasks, &machine, &setting, Config::default());
    tasks.spawn(async {
        loop {
            ticks.set(ticks.get() + 1);
            setting.card.link(setting.card.is_link_up()).await;
        }
    });
    back.stall(true);
    tasks.settle();
    assert!(!setting.card.is_present());
    back.stall(false);
    assert_passes(&machine, &mut tasks, &setting.card);
    // It hangs while it is to end.
    back.stall(true);
    back.detach();
    tasks.settle();
    assert_eq!(setting.card.state(), State::Closing);
    assert!(ticks.get() > 1);
    back.stall(false);
    tasks.settle();
    back.come_back();
    assert_passes(&machine, &mut tasks, &setting.card);
    end(&machine, tasks, &setting, &[back]);
}

#[test]
fn one_controls_a_card_and_goes_on_with_what_another_has_left() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    // By who blocks.
    let front = machine.connect_with::<1>(&mut xs, Config::default()).unwrap();
    let setting = Setting { store: SharedStore::new(xs), card: Card::from(front) };
    let control = setting.card.control(&machine.events, &machine.grants, 0, Config::default()).unwrap();
    assert!(setting.card.control(&machine.events, &machine.grants, 0, Config::default()).is_none());
    drop(control);
    let mut tasks = Tasks::new(&machine);
    spawn_all(&mut tasks, &machine, &setting, Config::default());
    assert_passes(&machine, &mut tasks, &setting.card);
    assert_eq!(setting.card.stats().reconnects, 0);
    // And by who blocks again.
    drop(tasks);
    setting.store.block(|xs| {
        let mut front = setting.card.take().unwrap();
        assert_eq!(front.service(xs), Ok(State::Connected));
        front.close(xs, machine.soon()).unwrap();
    });
    assert_eq!((machine.grants.stats().in_use, back.complaints()), (0, vec![]));
}

#[test]
fn a_place_that_is_closed_ends_the_tasks() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let setting = setting(&machine);
    let ended = Cell::new(0);
    let mut tasks = Tasks::new(&machine);
    spawn_all(&mut tasks, &machine, &setting, Config::default());
    tasks.spawn(async {
        assert_eq!(setting.card.receive(&mut [0; 60]).await, Err(Error::Closed));
        ended.set(ended.get() + 1);
    });
    tasks.settle();
    let before = tasks.tasks.len();
    // The device with its pages is ours until its backend has let go.
    let front = setting.card.close().unwrap();
    tasks.settle();
    assert_eq!((ended.get(), before - tasks.tasks.len()), (1, 2));
    drop(front);
    assert_eq!(machine.grants.stats().in_use, 0);
    assert_eq!(back.complaints(), [""; 0]);
}
