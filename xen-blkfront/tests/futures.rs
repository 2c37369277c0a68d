//! Any number of tasks with calls under way, polled in any order and dropped at any time, against anything that a backend may do,
//! with a model of the disk beside.
//!
//! No wake-up is lost: when no task is runnable and the backend has answered all, no call is under way. Each call has one result or
//! was dropped, what is read is what was written, and no page stays behind.
#![cfg(feature = "mock")]

mod common;

use std::cell::RefCell;
use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use common::executor::Executor;
use common::{Machine, VBD, small};
use proptest::prelude::*;
use xen_blkfront::mock::model::{Flush, Model, SECTORS, decode, encode};
use xen_blkfront::mock::{Discard, Faults, MockBlkback, Options, Order};
use xen_blkfront::{Config, Disk, DiskHandle, Error, Piece, State};
use xen_gnttab::{Access, GrantTable};
use xen_hypercall::DomId;
use xen_hypercall::mock::{Chance, Dice, MockDomain};
use xen_hypercall::sched::Resumed;
use xen_xenstore::Xenstore;
use xen_xenstore::shared::SharedStore;

#[derive(Clone, Copy, Debug)]
enum Call {
    Read { at: u64, count: u64 },
    Write { at: u64, count: u64 },
    Lend { at: u64, pages: u64, write: bool },
    Flush,
    Barrier { at: u64, count: u64 },
    Discard { at: u64, count: u64 },
    Erase { at: u64, count: u64 },
}

#[derive(Clone, Debug)]
enum Step {
    /// A task with these calls, one after the other.
    Task(Vec<Call>),
    /// So many tasks are polled.
    Poll(usize),
    LetBackendAct,
    /// Events are delivered, and time may pass.
    Wait,
    /// A task is dropped.
    Cancel,
    /// The driver is dropped, and another one begins.
    Driver,
    Service,
    Reconnect,
    Detach,
    Die,
    ComeBack,
    Crash(u64),
    Migrate {
        elsewhere: bool,
    },
    Checkpoint,
    Resize,
    /// All act until nobody has anything to do.
    Settle,
}

fn call() -> impl Strategy<Value = Call> {
    let range = || (0..SECTORS, 1..120_u64).prop_map(|(at, count)| (at, count.min(SECTORS - at)));
    prop_oneof![
        6 => range().prop_map(|(at, count)| Call::Read { at, count }),
        6 => range().prop_map(|(at, count)| Call::Write { at, count }),
        2 => (0..SECTORS / 8, 1..5_u64, any::<bool>()).prop_map(|(at, pages, write)| Call::Lend {
            at: at * 8, pages: pages.min(SECTORS / 8 - at), write,
        }),
        2 => Just(Call::Flush),
        1 => range().prop_map(|(at, count)| Call::Barrier { at, count }),
        1 => range().prop_map(|(at, count)| Call::Discard { at, count }),
        1 => range().prop_map(|(at, count)| Call::Erase { at, count }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => prop::collection::vec(call(), 1..4).prop_map(Step::Task),
        12 => (1..8_usize).prop_map(Step::Poll),
        6 => Just(Step::LetBackendAct),
        4 => Just(Step::Wait),
        4 => Just(Step::Cancel),
        1 => Just(Step::Driver),
        2 => Just(Step::Service),
        2 => Just(Step::Reconnect),
        1 => Just(Step::Detach),
        1 => Just(Step::Die),
        2 => Just(Step::ComeBack),
        1 => any::<u64>().prop_map(Step::Crash),
        1 => any::<bool>().prop_map(|elsewhere| Step::Migrate { elsewhere }),
        1 => Just(Step::Checkpoint),
        1 => Just(Step::Resize),
        1 => Just(Step::Settle),
    ]
}

/// What an honest backend does that stays.
fn calm_step() -> impl Strategy<Value = Step> {
    step().prop_filter("nothing that ends the disk", |step| {
        !matches!(step, Step::Detach | Step::Die | Step::ComeBack | Step::Crash(_) | Step::Reconnect)
    })
}

fn options() -> impl Strategy<Value = Options> {
    let features = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let numbers = (0..3_u16, 0..2_u32, 1..4_u32, 0..3_usize);
    (features, numbers, any::<u64>()).prop_map(
        |((flush, barrier, persistent, cached), (indirect, order, queues, ordered), seed)| Options {
            sectors: SECTORS,
            flush,
            barrier,
            discard: Some(Discard::default()),
            persistent,
            persistent_limit: 20,
            indirect_segments: (indirect > 0).then_some(indirect * 13),
            max_ring_page_order: Some(order),
            max_queues: Some(queues),
            volatile_cache: cached,
            order: [Order::Sent, Order::Reversed, Order::Shuffled(seed)][ordered],
            ..Options::default()
        },
    )
}

/// What the tasks have in common.
struct World<'x> {
    back: MockBlkback,
    model: RefCell<Model>,
    disk: Disk<'x, MockDomain>,
    grants: &'x GrantTable<MockDomain>,
    store: SharedStore<'x, MockDomain>,
    machine: &'x Machine,
    /// Somebody looks after the disk; otherwise the test does, between two polls.
    tended: bool,
}

/// A call that the model knows of. One that is dropped without a result may happen, now or later.
struct Open<'w, 'x> {
    world: &'w World<'x>,
    id: Option<usize>,
}

impl Open<'_, '_> {
    fn end(mut self, result: Result<(), Error>) {
        self.world.check(result);
        if let Some(id) = self.id.take() {
            self.world.model.borrow_mut().end(id, result);
        }
    }
}

impl Drop for Open<'_, '_> {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.world.model.borrow_mut().end(id, Err(Error::TimedOut));
        }
    }
}

/// A flush that the model knows of.
struct OpenFlush<'w, 'x>(&'w World<'x>, Option<Flush>, bool);

impl Drop for OpenFlush<'_, '_> {
    fn drop(&mut self) {
        if let Some(flush) = self.1.take() {
            self.0.model.borrow_mut().flushed(flush, Err(Error::TimedOut), true);
        }
    }
}

impl<'x> World<'x> {
    fn truthful(&self) -> bool {
        self.back.lies_hit() == 0
    }

    fn handle(&self) -> DiskHandle<'_, 'x, MockDomain> {
        self.disk.handle()
    }

    /// An error may be.
    fn check(&self, result: Result<(), Error>) {
        let Err(error) = result else { return };
        let fair = match error {
            Error::Closed | Error::Lost | Error::Io | Error::Unsupported => true,
            Error::Broken(_) | Error::Status(_) => !self.truthful(),
            Error::OutOfRange | Error::Unaligned | Error::ReadOnly => {
                !self.truthful() || self.handle().capacity() < SECTORS
            }
            Error::TooLong => true,
            _ => false,
        };
        assert!(fair, "{error:?}");
    }

    fn check_read(&self, id: Option<usize>, bytes: &[u8]) {
        if let (true, Some(id)) = (self.truthful(), id) {
            self.model.borrow().check_read(id, bytes);
        }
    }

    async fn call(&self, call: Call) {
        let handle = self.handle();
        let open = |id| Open { world: self, id: Some(id) };
        match call {
            Call::Read { at, count } => {
                let open = open(self.model.borrow_mut().read(at, count));
                let mut bytes = vec![0xEE; count as usize * 512];
                let result = handle.read(at, &mut bytes).await;
                if result.is_ok() {
                    self.check_read(open.id, &bytes);
                }
                open.end(result);
            }
            Call::Write { at, count } => {
                let (id, tag) = self.model.borrow_mut().write(at, count);
                let open = open(id);
                open.end(handle.write(at, &encode(at, count, tag)).await);
            }
            Call::Barrier { at, count } => {
                let (id, tag) = self.model.borrow_mut().barrier(at, count);
                let open = open(id);
                open.end(handle.barrier(at, &encode(at, count, tag)).await);
            }
            Call::Lend { at, pages, write } => {
                let (id, tag) = match write {
                    true => self.model.borrow_mut().write(at, pages * 8),
                    false => (self.model.borrow_mut().read(at, pages * 8), 0),
                };
                let open = open(id);
                let Some(backend) = self.disk.with(|front| front.backend_id()) else { return };
                let mut pieces: Vec<_> = (0..pages)
                    .map(|page| {
                        let mut granted = self.grants.share(backend, Access::ReadWrite).unwrap();
                        if write {
                            granted.write_bytes(0, &encode(at + page * 8, 8, tag)).unwrap();
                        }
                        Some(Piece::whole(granted))
                    })
                    .collect();
                let result = match write {
                    true => handle.write_from(at, &mut pieces).await,
                    false => handle.read_into(at, &mut pieces).await,
                };
                if result == Err(Error::ForeignPage) {
                    // The backend is in another domain by now.
                    self.model.borrow_mut().cancel(id);
                    return;
                }
                if result.is_ok() {
                    let mut bytes = vec![0; pages as usize * 4096];
                    for (piece, bytes) in pieces.iter_mut().zip(bytes.chunks_mut(4096)) {
                        piece.as_mut().unwrap().page_mut().read_bytes(0, bytes).unwrap();
                    }
                    if !write {
                        self.check_read(open.id, &bytes);
                    }
                }
                open.end(result);
            }
            Call::Flush => {
                let Some(flushes) = self.disk.with(|front| front.can_flush()) else { return };
                let flush = self.model.borrow_mut().flush(&self.back);
                let mut open = OpenFlush(self, Some(flush), flushes);
                let result = handle.flush().await;
                self.check(result);
                let can_flush = self.disk.with(|front| front.can_flush()).unwrap_or(false);
                if let Some(flush) = open.1.take() {
                    self.model.borrow_mut().flushed(flush, result, !(open.2 && can_flush));
                }
            }
            Call::Discard { at, count } => {
                self.model.borrow_mut().discard(at, count, false);
                self.check(handle.discard(at, count).await);
            }
            Call::Erase { at, count } => {
                self.model.borrow_mut().discard(at, count, true);
                // Only whole extents can be.
                let erased = handle.erase(at, count).await;
                self.check(if erased == Err(Error::Unaligned) { Ok(()) } else { erased });
            }
        }
    }
}

/// Lets everybody act until nobody has anything to do, or nothing is under way.
fn settle(machine: &Machine, executor: &mut Executor<'_>, world: &World<'_>) {
    for _ in 0..60 {
        let seen = machine.events.seq();
        executor.run();
        let connected = world.handle().state() == Some(State::Connected) && world.back.is_connected();
        let idle = executor.count("calls") == 0 && world.disk.with(|front| front.pending()) == Some(0);
        if idle && (connected || !world.tended) {
            return;
        }
        machine.xen.run_until_idle(50);
        machine.events.wait_since(seen, Some(machine.xen.now() + Duration::from_millis(100)));
    }
}

/// The configuration of the disk.
fn wanted() -> Config {
    Config { requests: 12, pages: 60, segments: 40, ring_pages: 2, queues: 2, ..small() }
}

/// Lets others run so often, and is ready then.
async fn after(polls: u64) {
    let mut left = polls;
    poll_fn(|cx| {
        cx.waker().wake_by_ref();
        left = left.saturating_sub(1);
        if left == 0 { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Whoever drives the disk.
fn drive<'w>(executor: &mut Executor<'w>, world: &'w World<'_>, seed: u64) {
    if !world.tended {
        return executor.spawn("drive", async { match world.disk.drive().await {} });
    }
    let machine = world.machine;
    let mut control = world.disk.control(&machine.events, &machine.grants, VBD, wanted()).unwrap();
    executor.spawn("drive", async move {
        let dice = Dice::new(seed);
        // Some wait for a backend, some do not.
        let error = control.run_with(world.store.client(), || after(dice.below(4) * dice.below(100))).await;
        panic!("{error}");
    });
}

fn run(steps: Vec<Step>, options: Options, faults: Faults, seed: u64, tended: bool) {
    let machine = Machine::new();
    let back = machine.disk(options);
    back.load(&encode(0, SECTORS, 0));
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let front = machine.connect_with(&mut xs, wanted()).unwrap();
    let calm = faults.lost == Chance::NEVER && faults.die == Chance::NEVER;
    back.set_faults(Dice::new(seed), faults);
    let model = RefCell::new(Model::new());
    let store = SharedStore::new(xs);
    let world = World {
        back,
        model,
        disk: Disk::of(front),
        grants: &machine.grants,
        store,
        machine: &machine,
        tended,
    };
    let mut executor = Executor::new(seed);
    drive(&mut executor, &world, seed);
    if tended {
        executor.spawn("xenstore", async { panic!("{}", world.store.runner().run().await) });
    }
    for step in steps {
        machine.xen.trace(|| format!("-- {step:?}"));
        let (back, disk) = (&world.back, &world.disk);
        match step {
            Step::Task(calls) => {
                let world = &world;
                executor.spawn("calls", async move {
                    for call in calls {
                        world.call(call).await;
                    }
                });
            }
            Step::Poll(count) => drop((0..count).take_while(|_| executor.step()).count()),
            Step::LetBackendAct => drop(machine.xen.step()),
            Step::Wait => {
                let seen = machine.events.seq();
                machine.events.wait_since(seen, Some(machine.xen.now() + Duration::from_millis(1)));
            }
            Step::Cancel => executor.cancel("calls"),
            Step::Driver => {
                executor.cancel("drive");
                drive(&mut executor, &world, seed);
            }
            Step::Service | Step::Reconnect if tended => {}
            Step::Service => {
                let _ = world.store.block(|xs| disk.with(|front| front.service(xs).unwrap()));
            }
            Step::Reconnect => {
                let until = machine.xen.now() + Duration::from_secs(1);
                let _ = world.store.block(|xs| disk.with(|front| front.reconnect(xs, until)));
            }
            Step::Detach => {
                if back.is_connected() {
                    back.detach();
                }
            }
            Step::Die => back.vanish(),
            Step::ComeBack => back.come_back(),
            Step::Crash(seed) => {
                back.vanish();
                back.power_loss(&Dice::new(seed));
                world.model.borrow_mut().power_lost(back);
                back.come_back();
            }
            Step::Migrate { elsewhere } => {
                back.set_next(Options { domain: DomId(if elsewhere { 9 } else { 0 }), ..options });
                let (resumed, _) = world.store.block(|xs| machine.suspend(xs, &mut &*disk));
                assert_eq!(resumed, Resumed::InNewDomain);
            }
            Step::Checkpoint => {
                machine.xen.set_toolstack(|_| Resumed::InPlace);
                let outcome = world.store.block(|xs| machine.suspend(xs, &mut &*disk));
                assert_eq!(outcome, (Resumed::InPlace, 0));
                machine.xen.set_toolstack(|domain| {
                    domain.xen().migrate(domain);
                    Resumed::InNewDomain
                });
            }
            Step::Resize => {
                if calm && back.is_connected() {
                    back.resize(SECTORS);
                }
            }
            Step::Settle => {
                settle(&machine, &mut executor, &world);
                if calm && world.handle().state() == Some(State::Connected) {
                    assert_eq!(executor.count("calls"), 0, "a wake-up was lost");
                }
            }
        }
    }
    // An honest backend, from here on: every call has a result.
    let honest = world.truthful();
    world.back.set_faults(Dice::new(0), Faults::default());
    if world.back.is_gone() {
        world.back.come_back();
    }
    if tended && honest {
        // What the backend has lost is never answered, unless it goes.
        if !calm {
            world.back.vanish();
            settle(&machine, &mut executor, &world);
            world.back.come_back();
        }
        settle(&machine, &mut executor, &world);
        assert_eq!(world.handle().state(), Some(State::Connected), "{}", machine.xen.trace_text());
    } else if !calm && honest {
        // What was lost on the way is never answered.
        let connected = (0..5).any(|_| {
            let soon = machine.soon();
            world.store.block(|xs| world.disk.with(|front| front.reconnect(xs, soon))) == Some(Ok(()))
        });
        assert!(connected, "{:?}", world.handle().state());
    }
    if honest {
        settle(&machine, &mut executor, &world);
        assert_eq!(executor.count("calls"), 0, "a wake-up was lost\n{}", machine.xen.trace_text());
        let whole = &world;
        executor.spawn("calls", async move {
            let world = whole;
            world.call(Call::Flush).await;
            let mut all = vec![0; SECTORS as usize * 512];
            world.handle().read(0, &mut all).await.unwrap();
            assert!(all == world.back.disk());
            for (at, bytes) in all.chunks(512).enumerate() {
                world.model.borrow().check_sector(at, decode(at as u64, bytes));
            }
        });
        settle(&machine, &mut executor, &world);
        assert_eq!(executor.count("calls"), 0, "a wake-up was lost");
        let rest = world.disk.with(|front| (front.pending(), front.free_requests()));
        assert_eq!(rest, Some((0, 12)));
        assert_eq!(world.back.complaints(), Vec::<String>::new());
    }
    if tended {
        executor.cancel("drive");
        // Whoever is woken fails.
        executor.run();
    }
    let front = world.disk.take();
    executor.run();
    assert_eq!(executor.count("calls"), 0, "a call waits for a disk that is not there");
    executor.cancel("xenstore");
    drop(executor);
    world.store.block(|xs| {
        let _ = front.map(|front| front.close(xs, machine.soon()));
    });
    machine.grants.reclaim();
    let grants = machine.grants.stats();
    assert_eq!(grants.in_use, 0, "{grants:?}");
    world.back.vanish();
    world.back.hold(false);
    machine.grants.reclaim();
    assert_eq!(machine.grants.stats().quarantined, 0);
}

/// As many cases as `PROPTEST_CASES` says, otherwise few enough for every day.
fn config() -> ProptestConfig {
    let config = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_some() { config } else { ProptestConfig { cases: 64, ..config } }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_backend_with_bad_days_loses_no_wake_up(
        steps in prop::collection::vec(calm_step(), 1..60), options in options(), seed: u64, tended: bool, permille in 0..150_u16,
    ) {
        run(steps, options, Faults::honest(Chance::permille(permille)), seed, tended);
    }

    #[test]
    fn a_backend_that_goes_away_and_comes_back_loses_nothing(
        steps in prop::collection::vec(step(), 1..60), options in options(), seed: u64, tended: bool, permille in 0..60_u16,
    ) {
        let chance = Chance::permille(permille);
        let mut faults = Faults::honest(chance);
        (faults.lost, faults.lost_event, faults.keep_mapped) = (chance, chance, chance);
        (faults.close, faults.drop_out, faults.die) = (chance, chance, Chance::permille(permille + 1));
        faults.come_back = Chance::percent(30);
        run(steps, options, faults, seed, tended);
    }

    #[test]
    fn a_hostile_backend_breaks_its_disk_and_nothing_else(
        steps in prop::collection::vec(step(), 1..60), options in options(), seed: u64, tended: bool, permille in 1..100_u16,
    ) {
        run(steps, options, Faults::all(Chance::permille(permille)), seed, tended);
    }
}
