//! Tasks on a card, polled in any order, dropped at any await and begun anew, while the backend, the toolstack and the domain do
//! what they like: no wake-up is lost, what arrives is what was sent, and nothing is left at the end.
#![cfg(feature = "mock")]

mod common;

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};

use common::{GUEST, HOST, Machine, frame};
use proptest::prelude::*;
use xen_hypercall::mock::{Chance, Dice, MockDomain};
use xen_hypercall::sched::Resumed;
use xen_hypercall::{DomId, VcpuId};
use xen_netfront::mock::{Fault, MockNetback, Options};
use xen_netfront::{Card, Config, Error, FRAME_MAX, Mac, Multicast};
use xen_xenstore::Xenstore;
use xen_xenstore::shared::SharedStore;

#[derive(Clone, Copy, Debug)]
enum Op {
    /// A sender has so many frames more.
    Send(usize, u32),
    /// So have senders of the host.
    Host(u32),
    /// So many steps of the executor and the machine.
    Run(u32),
    /// All until nobody has anything to do.
    Settle,
    Stall(bool),
    Multicast(u8, bool),
    Filter(bool),
    Carrier(bool),
    Detach,
    Close,
    Vanish,
    ForceDetach,
    ComeBack,
    Restart,
    Suspend(bool),
    Lie(u16),
}

fn traffic() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..SENDERS, 1..40u32).prop_map(|(sender, count)| Op::Send(sender, count)),
        6 => (1..40u32).prop_map(Op::Host),
        8 => (1..60u32).prop_map(Op::Run),
        4 => Just(Op::Settle),
        2 => any::<bool>().prop_map(Op::Stall),
        1 => any::<bool>().prop_map(Op::Carrier),
    ]
}

fn event() -> impl Strategy<Value = Op> {
    prop_oneof![
        (any::<u8>(), any::<bool>()).prop_map(|(number, wanted)| Op::Multicast(number % 8, wanted)),
        any::<bool>().prop_map(Op::Filter),
        Just(Op::Detach),
        Just(Op::Close),
        Just(Op::Vanish),
        Just(Op::ForceDetach),
        Just(Op::ComeBack),
        Just(Op::ComeBack),
        Just(Op::Restart),
        any::<bool>().prop_map(Op::Suspend),
        any::<u16>().prop_map(Op::Lie),
    ]
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

type Task<'t> = Pin<Box<dyn Future<Output = ()> + 't>>;

/// A task that can be dropped and begun anew.
struct Slot<'t> {
    make: Box<dyn Fn() -> Task<'t> + 't>,
    task: Option<Task<'t>>,
    woken: Arc<Woken>,
}

const SENDERS: usize = 2;
const RECEIVERS: usize = 2;

/// What a sender has sent, and is to send.
#[derive(Default)]
struct Sender {
    next: Cell<u32>,
    goal: Cell<u32>,
    waker: RefCell<Option<Waker>>,
}

impl Sender {
    async fn more(&self) {
        poll_fn(|cx| {
            if self.next.get() < self.goal.get() {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    fn add(&self, count: u32) {
        self.goal.set(self.goal.get() + count);
        self.waker.take().into_iter().for_each(Waker::wake);
    }
}

/// A frame that tells who sent it, and as which; its length and bytes follow from that.
fn numbered(to: [u8; 6], from: [u8; 6], sender: u8, number: u32) -> Vec<u8> {
    let mut bytes = frame(to, from, 60 + number as usize * 7 % 1400, number as u8);
    bytes[14] = sender;
    bytes[15..19].copy_from_slice(&number.to_be_bytes());
    bytes
}

fn number_of(bytes: &[u8], to: [u8; 6], from: [u8; 6]) -> (u8, u32) {
    let (sender, number) = (bytes[14], u32::from_be_bytes(bytes[15..19].try_into().unwrap()));
    assert_eq!(bytes, numbered(to, from, sender, number), "not what was sent");
    (sender, number)
}

/// What all tasks share.
struct Shared<'m> {
    machine: &'m Machine,
    store: SharedStore<'m, MockDomain>,
    card: Card<'m, MockDomain>,
    config: Config,
    senders: [Sender; SENDERS],
    received: RefCell<Vec<u32>>,
    /// Whether the link is up, as the task that watches it knows.
    up: Cell<bool>,
}

struct World<'m, 't> {
    shared: &'t Shared<'m>,
    back: MockNetback,
    dice: Rc<Dice>,
    slots: Vec<Slot<'t>>,
    host_sent: u32,
    arrived: Vec<(u8, u32)>,
    /// Something happened that loses frames, or that sends them twice.
    loses: bool,
    repeats: bool,
    lies: usize,
    /// The backend is not there.
    gone: bool,
    cancels: Chance,
    polls: usize,
}

/// The place of the task that controls the card.
const CONTROL: usize = 1;

fn slots<'t, 'm: 't>(shared: &'t Shared<'m>) -> Vec<Slot<'t>> {
    let Shared { machine, store, card, config, senders, received, up } = shared;
    let mut makes: Vec<Box<dyn Fn() -> Task<'t> + 't>> = Vec::new();
    makes.push(Box::new(move || {
        Box::pin(async move {
            let error = store.runner().run().await;
            panic!("{error}");
        })
    }));
    makes.push(Box::new(move || {
        Box::pin(async move {
            let control = card.control(&machine.events, &machine.grants, 0, *config);
            let error = control.expect("one at a time").run(store.client()).await.unwrap_err();
            panic!("{error}");
        })
    }));
    for (index, sender) in senders.iter().enumerate() {
        makes.push(Box::new(move || {
            Box::pin(async move {
                loop {
                    sender.more().await;
                    let number = sender.next.get();
                    let bytes = numbered(HOST, GUEST, index as u8, number);
                    match card.transmit(&bytes).await {
                        Ok(()) => sender.next.set(number + 1),
                        Err(error) => panic!("{error}"),
                    }
                    if number + 1 == sender.goal.get() {
                        let _ = card.publish();
                    }
                }
            })
        }));
    }
    for _ in 0..RECEIVERS {
        makes.push(Box::new(move || {
            Box::pin(async move {
                let mut buf = [0; FRAME_MAX];
                loop {
                    let len = card.receive(&mut buf).await.unwrap();
                    let (_, number) = number_of(&buf[..len], GUEST, HOST);
                    received.borrow_mut().push(number);
                }
            })
        }));
    }
    makes.push(Box::new(move || {
        Box::pin(async move {
            loop {
                up.set(card.link(up.get()).await);
            }
        })
    }));
    makes
        .into_iter()
        .map(|make| Slot { task: Some(make()), make, woken: Arc::new(Woken(AtomicBool::new(true))) })
        .collect()
}

impl<'m, 't> World<'m, 't> {
    fn poll(&mut self, index: usize) {
        self.polls += 1;
        assert!(self.polls < 400_000, "the tasks are busy for ever");
        let slot = &mut self.slots[index];
        slot.woken.0.store(false, SeqCst);
        let Some(task) = &mut slot.task else { return };
        let before = self.shared.machine.xen.now();
        let done = task.as_mut().poll(&mut Context::from_waker(&Waker::from(slot.woken.clone())));
        assert_eq!(self.shared.machine.xen.now(), before, "task {index} holds the executor");
        assert!(done.is_pending());
    }

    fn begin_anew(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        slot.task = None;
        slot.task = Some((slot.make)());
        slot.woken = Arc::new(Woken(AtomicBool::new(true)));
    }

    /// A step of a task, of the machine, or something else that may happen at any time. Returns whether anything was to be done.
    fn step(&mut self, cancels: bool) -> bool {
        if cancels && self.dice.hit(self.cancels) {
            let index = self.dice.below(self.slots.len() as u64) as usize;
            self.begin_anew(index);
        }
        if self.dice.hit(Chance::permille(20)) {
            // Nobody woke it.
            let index = self.dice.below(self.slots.len() as u64) as usize;
            self.poll(index);
        }
        let woken: Vec<usize> =
            (0..self.slots.len()).filter(|index| self.slots[*index].woken.0.load(SeqCst)).collect();
        let machine = self.shared.machine;
        if woken.is_empty() || self.dice.hit(Chance::permille(300)) {
            let acted = machine.xen.step();
            machine.events.dispatch(VcpuId(0));
            return acted || !woken.is_empty();
        }
        self.poll(woken[self.dice.below(woken.len() as u64) as usize]);
        true
    }

    /// Until nobody has anything to do.
    fn settle(&mut self) {
        loop {
            while self.step(false) || self.is_woken() {}
            // A channel whose events came without reason is masked for a while.
            let Shared { machine, .. } = self.shared;
            let Some(at) = machine.events.next_unmask() else { break };
            machine.xen.advance(at.saturating_sub(machine.xen.now()));
            machine.events.unmask_due();
        }
        self.take_arrived();
        self.assert_nothing_waits();
    }

    fn is_woken(&self) -> bool {
        self.slots.iter().any(|slot| slot.woken.0.load(SeqCst))
    }

    /// Nobody has anything to do, so nobody may wait for what is there.
    fn assert_nothing_waits(&self) {
        let Shared { card, senders, up, .. } = self.shared;
        assert_eq!(up.get(), card.is_link_up(), "a change of the link was not told");
        let frame = card.with(|front| front.receive(&mut [0; FRAME_MAX]));
        assert!(!matches!(frame, Some(Ok(Some(_)))), "a frame waits");
        let Some(Ok(room)) = card.with(|front| front.can_transmit()) else { return };
        let waits = senders.iter().any(|sender| sender.next.get() < sender.goal.get());
        // An event comes when half of what is under way has come back.
        assert!(!waits || room < self.shared.config.tx_pages, "a sender waits with room for {room}");
    }

    fn take_arrived(&mut self) {
        while let Some(frame) = self.shared.machine.switch.receive() {
            self.arrived.push(number_of(&frame.bytes, HOST, GUEST));
        }
    }

    fn apply(&mut self, op: Op) {
        let shared = self.shared;
        let back = &self.back;
        match op {
            // There is nobody who could.
            Op::Carrier(_) | Op::Detach | Op::Close | Op::Restart if self.gone => return,
            Op::Send(sender, count) => shared.senders[sender].add(count),
            Op::Host(count) => {
                for _ in 0..count {
                    shared.machine.switch.send(numbered(GUEST, HOST, 9, self.host_sent));
                    self.host_sent += 1;
                }
            }
            Op::Run(steps) => {
                for _ in 0..steps {
                    self.step(true);
                }
                self.take_arrived();
            }
            Op::Settle => self.settle(),
            Op::Stall(on) => back.stall(on),
            Op::Multicast(number, wanted) => {
                let asked =
                    shared.card.with(|front| front.want_multicast(Mac([1, 0, 0x5e, 0, 0, number]), wanted));
                assert!(!matches!(asked, Some(Err(Error::Xenstore(_)))));
            }
            Op::Filter(on) => shared.card.filter_multicast(on),
            Op::Carrier(on) => back.set_back("carrier", if on { "1" } else { "0" }),
            Op::Detach => back.detach(),
            Op::Close => back.close(),
            Op::Vanish => {
                self.gone = true;
                back.vanish();
            }
            Op::ForceDetach => {
                self.gone = true;
                back.force_detach();
            }
            Op::ComeBack => self.come_back(),
            Op::Restart => {
                self.repeats = true;
                back.restart();
            }
            Op::Suspend(migrate) => self.suspend(migrate),
            Op::Lie(id) => {
                self.lies += 1;
                back.fault_rx(Fault::Id(id));
            }
        }
        self.loses |= matches!(
            op,
            Op::Detach
                | Op::Close
                | Op::Vanish
                | Op::ForceDetach
                | Op::ComeBack
                | Op::Restart
                | Op::Suspend(_)
                | Op::Lie(_)
        );
    }

    fn come_back(&mut self) {
        self.gone = false;
        self.back.come_back();
    }

    fn suspend(&mut self, migrate: bool) {
        let Shared { machine, store, card, .. } = self.shared;
        self.slots[CONTROL].task = None;
        machine.xen.set_toolstack(move |domain| {
            if migrate {
                domain.xen().migrate(domain);
                Resumed::InNewDomain
            } else {
                Resumed::InPlace
            }
        });
        let mut device = card;
        store.block(|xs| machine.suspend(xs, &mut device));
        self.begin_anew(CONTROL);
    }
}

impl World<'_, '_> {
    /// Nothing gets in the way any more: all goes on.
    fn recover(&mut self) {
        self.back.stall(false);
        if !self.gone {
            self.back.set_back("carrier", "1");
        }
        self.settle();
        if !self.shared.card.is_link_up() {
            assert!(self.loses, "the device has gone for no reason");
            self.come_back();
            self.settle();
        }
        assert!(self.shared.card.is_link_up(), "{:?}", self.shared.card);
    }

    fn finish(mut self) {
        self.recover();
        // Lies that were not told yet.
        for _ in 0..self.lies {
            self.apply(Op::Host(1));
            self.recover();
        }
        let shared = self.shared;
        for sender in &shared.senders {
            assert_eq!(sender.next.get(), sender.goal.get(), "a frame waits to be sent");
        }
        self.check_arrived();
        // Each side is heard by the other still.
        let before = (self.arrived.len(), shared.received.borrow().len());
        for sender in 0..SENDERS {
            self.apply(Op::Send(sender, 300));
        }
        self.apply(Op::Host(200));
        self.settle();
        let after = (self.arrived.len(), shared.received.borrow().len());
        assert_eq!((after.0 - before.0, after.1 - before.1), (SENDERS * 300, 200));
        self.check_arrived();
        // The end.
        let Self { back, lies, .. } = self;
        drop(self.slots);
        let Shared { machine, store, card, config, .. } = shared;
        let control = card.control(&machine.events, &machine.grants, 0, *config).unwrap();
        let mut closing = Box::pin(control.close(store.client()));
        let mut runner = Box::pin(store.runner().run());
        let cx = &mut Context::from_waker(Waker::noop());
        let mut closed = false;
        for _ in 0..1000 {
            closed |= !closed && closing.as_mut().poll(cx).is_ready();
            assert!(runner.as_mut().poll(cx).is_pending());
            machine.run();
        }
        assert!(closed && card.is_closed());
        drop((closing, runner));
        back.stall(false);
        back.hold(false);
        assert_eq!(machine.grants.stats().in_use, 0, "pages are left");
        assert_eq!(machine.store.watches(machine.guest.id()), 0, "watches are left");
        assert!(lies > 0 || back.complaints().is_empty(), "{:?}", back.complaints());
    }

    /// What arrived was sent, in order and once; all of it if nothing was to be lost.
    fn check_arrived(&self) {
        let shared = self.shared;
        for (index, sender) in shared.senders.iter().enumerate() {
            let arrived: Vec<u32> = self
                .arrived
                .iter()
                .filter(|(from, _)| usize::from(*from) == index)
                .map(|(_, n)| *n)
                .collect();
            assert!(arrived.iter().all(|number| *number < sender.next.get()));
            assert!(self.repeats || arrived.is_sorted_by(|a, b| a < b), "{arrived:?}");
            assert!(self.loses || arrived.len() == sender.next.get() as usize);
        }
        let received = shared.received.borrow();
        assert!(received.iter().all(|number| *number < self.host_sent));
        assert!(received.is_sorted_by(|a, b| a < b), "{received:?}");
        assert!(self.loses || received.len() == self.host_sent as usize);
    }
}

fn run(config: Config, options: Options, cancels: Chance, seed: u64, ops: &[Op]) {
    let machine = Machine::new();
    let back = machine.vif(options);
    let shared = Shared {
        machine: &machine,
        store: SharedStore::new(Xenstore::new(&machine.events).unwrap()),
        card: Card::new(),
        config,
        senders: Default::default(),
        received: RefCell::default(),
        up: Cell::new(false),
    };
    let mut world = World {
        shared: &shared,
        back,
        dice: Rc::new(Dice::new(seed)),
        slots: slots(&shared),
        host_sent: 0,
        arrived: Vec::new(),
        loses: false,
        repeats: false,
        lies: 0,
        gone: false,
        cancels,
        polls: 0,
    };
    world.settle();
    assert!(shared.card.is_link_up());
    ops.iter().for_each(|op| world.apply(*op));
    world.finish();
}

fn config() -> impl Strategy<Value = Config> {
    (any::<bool>(), any::<bool>(), 17..64usize, 4..64usize).prop_map(|(split, filter, tx_pages, rx_pages)| {
        Config { split_channels: split, multicast_filter: filter, tx_pages, rx_pages, ..Config::default() }
    })
}

fn options() -> impl Strategy<Value = Options> {
    (any::<bool>(), any::<bool>()).prop_map(|(elsewhere, dynamic)| Options {
        domain: DomId(if elsewhere { 3 } else { 0 }),
        multicast: if dynamic { Multicast::Dynamic } else { Multicast::Static },
        ..Options::default()
    })
}

fn cancels() -> impl Strategy<Value = Chance> {
    prop_oneof![Just(Chance::NEVER), (1..300u16).prop_map(Chance::permille)]
}

fn few() -> ProptestConfig {
    ProptestConfig {
        cases: 60,
        max_shrink_iters: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(few())]

    #[test]
    fn all_arrives_whoever_is_dropped(
        config in config(), options in options(), cancels in cancels(), seed: u64,
        ops in prop::collection::vec(traffic(), 1..80),
    ) {
        run(config, options, cancels, seed, &ops);
    }

    #[test]
    fn nobody_waits_in_vain_whatever_happens_to_the_device(
        config in config(), options in options(), cancels in cancels(), seed: u64,
        ops in prop::collection::vec(prop_oneof![4 => traffic(), 1 => event()], 1..80),
    ) {
        run(config, options, cancels, seed, &ops);
    }
}
