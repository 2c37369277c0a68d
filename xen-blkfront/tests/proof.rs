//! Anything a caller may do, against anything a backend may do, with a model of the disk beside.
//!
//! As long as the backend does not lie, what is read is what was written. Whatever it does, each operation has one
//! result, what it may still reach is not used again, nothing panics, and nothing goes on for ever.
#![cfg(feature = "mock")]

mod common;

use std::time::Duration;

use common::{Machine, small};
use proptest::prelude::*;
use xen_blkfront::mock::model::{
    Conduct, Flush, Model, SECTORS, check_broken, decode, encode, is_fair, poll,
};
use xen_blkfront::mock::{Discard, Faults, MockBlkback, Options, Order};
use xen_blkfront::{BlkFront, BlkQueue, Config, Error, Piece, State, Ticket};
use xen_gnttab::Access;
use xen_hypercall::DomId;
use xen_hypercall::mock::{Chance, Dice, MockDomain};
use xen_hypercall::sched::Resumed;
use xen_xenstore::Xenstore;

#[derive(Clone, Debug)]
enum Step {
    Read {
        at: u64,
        count: u64,
    },
    Write {
        at: u64,
        count: u64,
    },
    Flush,
    Discard {
        at: u64,
        count: u64,
    },
    SubmitErase {
        at: u64,
        count: u64,
    },
    SubmitRead {
        at: u64,
        count: u64,
    },
    SubmitWrite {
        at: u64,
        count: u64,
    },
    SubmitBarrier {
        at: u64,
        count: u64,
    },
    Lend {
        at: u64,
        pages: u64,
        write: bool,
    },
    SubmitFlush,
    Publish,
    Poll,
    Take(usize),
    Forget(usize),
    LetBackendAct,
    Service,
    Reconnect,
    Detach,
    Die,
    ComeBack,
    Crash(u64),
    Migrate {
        elsewhere: bool,
        lean: bool,
    },
    Checkpoint,
    TakeQueue,
    PutQueue,
    /// What follows goes by the queue that was taken, or by the disk again.
    Turn,
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (0..SECTORS, 1..60_u64).prop_map(|(at, count)| (at, count.min(SECTORS - at)));
    prop_oneof![
        4 => range().prop_map(|(at, count)| Step::Read { at, count }),
        4 => range().prop_map(|(at, count)| Step::Write { at, count }),
        2 => Just(Step::Flush),
        1 => range().prop_map(|(at, count)| Step::Discard { at, count }),
        1 => range().prop_map(|(at, count)| Step::SubmitErase { at, count }),
        4 => range().prop_map(|(at, count)| Step::SubmitRead { at, count }),
        5 => range().prop_map(|(at, count)| Step::SubmitWrite { at, count }),
        1 => range().prop_map(|(at, count)| Step::SubmitBarrier { at, count }),
        2 => (0..SECTORS / 8, 1..5_u64, any::<bool>()).prop_map(|(at, pages, write)| Step::Lend {
            at: at * 8, pages: pages.min(SECTORS / 8 - at), write,
        }),
        1 => Just(Step::SubmitFlush),
        3 => Just(Step::Publish),
        3 => Just(Step::Poll),
        6 => (0..16_usize).prop_map(Step::Take),
        1 => (0..16_usize).prop_map(Step::Forget),
        4 => Just(Step::LetBackendAct),
        2 => Just(Step::Service),
        3 => Just(Step::Reconnect),
        1 => Just(Step::Detach),
        1 => Just(Step::Die),
        2 => Just(Step::ComeBack),
        1 => any::<u64>().prop_map(Step::Crash),
        3 => any::<[bool; 2]>().prop_map(|[elsewhere, lean]| Step::Migrate { elsewhere, lean }),
        1 => Just(Step::Checkpoint),
        2 => Just(Step::TakeQueue),
        2 => Just(Step::PutQueue),
        2 => Just(Step::Turn),
    ]
}

fn options() -> impl Strategy<Value = Options> {
    let features = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let numbers = (0..3_u16, 0..2_u32, 1..4_u32, 0..3_usize);
    (features, numbers, any::<u64>()).prop_map(
        |((flush, barrier, discard, persistent, cached), (indirect, order, queues, ordered), seed)| Options {
            sectors: SECTORS,
            flush,
            barrier,
            discard: discard.then(Discard::default),
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

/// What is under way: its ticket, and how much it reads.
struct Flight {
    ticket: Ticket,
    id: usize,
    len: usize,
    /// Pages that were lent.
    lent: usize,
    /// It was asked of the queue.
    theirs: bool,
}

struct Run<'x> {
    machine: &'x Machine,
    options: Options,
    back: MockBlkback,
    disk: BlkFront<'x, MockDomain>,
    model: Model,
    flights: Vec<Flight>,
    /// With each: whether there are flushes, and whether it was asked of the queue.
    flushes: Vec<(Ticket, Flush, bool, bool)>,
    /// One that was taken.
    queue: Option<BlkQueue<'x, MockDomain>>,
    /// Whether it is its turn.
    there: bool,
}

/// The disk, or the queue if there is one and it is meant.
macro_rules! on {
    ($run:expr, $theirs:expr, $disk:ident => $do:expr) => {{
        let theirs = $theirs;
        match &mut $run.queue {
            Some($disk) if theirs => $do,
            _ => {
                let $disk = &mut $run.disk;
                $do
            }
        }
    }};
}

impl<'x> Run<'x> {
    /// Data is held against the model as long as nobody lied.
    fn truthful(&self) -> bool {
        self.back.lies_hit() == 0
    }

    fn check_read(&self, id: usize, bytes: &[u8]) {
        if self.truthful() {
            self.model.check_read(id, bytes);
        }
    }

    fn begin(&mut self, submitted: Result<Ticket, Error>, id: usize, len: usize, lent: usize) {
        match submitted {
            Ok(ticket) => self.flights.push(Flight { ticket, id, len, lent, theirs: self.theirs() }),
            Err(error) => {
                assert!(self.is_fair(error), "{error:?}");
                self.model.cancel(id);
            }
        }
    }

    /// Whether it is the queue's turn.
    fn theirs(&self) -> bool {
        self.there && self.queue.is_some()
    }

    /// Puts the queue back; what was under way there is over.
    fn put_queue(&mut self, patience: usize) {
        for round in 0.. {
            let Some(queue) = self.queue.take() else { return };
            match self.disk.put_queue(queue) {
                Ok(()) => break,
                Err(rejected) => {
                    assert_eq!(rejected.error, Error::Busy);
                    if round == patience {
                        if patience == 0 {
                            self.queue = Some(rejected.queue);
                            return;
                        }
                        // What it waits for does not come.
                        break;
                    }
                    self.queue = Some(rejected.queue);
                    self.machine.xen.step();
                }
            }
        }
        let (over, flights) =
            core::mem::take(&mut self.flights).into_iter().partition(|flight| flight.theirs);
        self.flights = flights;
        let over: Vec<Flight> = over;
        over.iter().for_each(|flight| self.model.end(flight.id, Err(Error::TimedOut)));
        for (ticket, flush, flushes, theirs) in core::mem::take(&mut self.flushes) {
            if theirs {
                self.model.flushed(flush, Err(Error::TimedOut), true);
            } else {
                self.flushes.push((ticket, flush, flushes, theirs));
            }
        }
    }

    /// Whether an error may be.
    fn is_fair(&mut self, error: Error) -> bool {
        if let (Error::Closed | Error::Broken(_), Some(queue)) = (error, &mut self.queue) {
            // The disk need not know of it yet.
            match (error, queue.state()) {
                (Error::Closed, State::Closing | State::Closed) => return true,
                (Error::Broken(why), State::Broken(violation)) if why == violation => return true,
                _ => {}
            }
        }
        let unlucky = self.back.faults_hit() > 0 || !self.back.is_connected();
        is_fair(&self.disk, error, Conduct { lied: !self.truthful(), unlucky })
    }

    fn flushed(&mut self, flush: Flush, result: Result<(), Error>, flushes: bool, theirs: bool) {
        if let Err(error) = result {
            assert!(self.is_fair(error), "{error:?}");
        }
        // Of one that is nothing nothing follows.
        let can_flush = on!(self, theirs, disk => disk.can_flush());
        self.model.flushed(flush, result, !(flushes && can_flush));
    }

    fn resolve(&mut self, flight: &Flight, result: Result<(), Error>, bytes: &[u8]) {
        if let Err(error) = result {
            assert!(self.is_fair(error), "{error:?}");
        }
        if result.is_ok() && !bytes.is_empty() {
            self.check_read(flight.id, bytes);
        }
        self.model.end(flight.id, result);
    }

    fn take_flushes(&mut self) {
        for (ticket, flush, flushes, theirs) in core::mem::take(&mut self.flushes) {
            match on!(self, theirs, disk => disk.take(ticket, &mut [])) {
                None => self.flushes.push((ticket, flush, flushes, theirs)),
                Some(result) => self.flushed(flush, result, flushes, theirs),
            }
        }
    }

    fn take(&mut self, index: usize) {
        let Some(flight) = self.flights.get(index) else { return };
        let mut bytes = vec![0xEE; flight.len];
        let result = if flight.lent > 0 {
            let mut pieces: Vec<_> = (0..flight.lent).map(|_| None).collect();
            let result = on!(self, flight.theirs, disk => disk.take_pages(flight.ticket, &mut pieces));
            for (piece, bytes) in pieces.iter_mut().flatten().zip(bytes.chunks_mut(4096)) {
                piece.page_mut().read_bytes(0, bytes).unwrap();
            }
            result
        } else {
            on!(self, flight.theirs, disk => disk.take(flight.ticket, &mut bytes))
        };
        match result {
            None => {}
            Some(result) => {
                let flight = self.flights.swap_remove(index);
                self.resolve(&flight, result, &bytes);
                for theirs in [false, true] {
                    let again = on!(self, theirs, disk => disk.take(flight.ticket, &mut bytes));
                    assert_eq!(again, Some(Err(Error::StaleTicket)));
                }
            }
        }
    }

    fn act(&mut self, xs: &mut Xenstore<'x, MockDomain>, step: Step) {
        match step {
            Step::Read { at, count } => {
                let id = self.model.read(at, count);
                let mut bytes = vec![0xEE; count as usize * 512];
                let result = on!(self, self.there, disk => disk.read(at, &mut bytes));
                if let Err(error) = result {
                    assert!(self.is_fair(error), "{error:?}");
                } else {
                    self.check_read(id, &bytes);
                }
                self.model.end(id, result);
            }
            Step::Write { at, count } => {
                let (id, tag) = self.model.write(at, count);
                let result = on!(self, self.there, disk => disk.write(at, &encode(at, count, tag)));
                if let Err(error) = result {
                    assert!(self.is_fair(error), "{error:?}");
                }
                self.model.end(id, result);
            }
            Step::Flush => {
                let theirs = self.theirs();
                let flushes = on!(self, theirs, disk => disk.can_flush());
                let flush = self.model.flush(&self.back);
                let result = on!(self, self.there, disk => disk.flush());
                self.flushed(flush, result, flushes, theirs);
            }
            Step::SubmitErase { at, count } => {
                self.model.discard(at, count, true);
                on!(self, self.there, disk => {
                    if let Ok(ticket) = disk.submit_secure_discard(at, count) {
                        disk.forget(ticket);
                    }
                });
            }
            Step::Discard { at, count } => {
                self.model.discard(at, count, false);
                if let Err(error) = on!(self, self.there, disk => disk.discard_sectors(at, count)) {
                    assert!(self.is_fair(error), "{error:?}");
                }
            }
            Step::SubmitRead { at, count } => {
                let id = self.model.read(at, count);
                let submitted = on!(self, self.there, disk => disk.submit_read(at, count));
                self.begin(submitted, id, count as usize * 512, 0);
            }
            Step::SubmitWrite { at, count } => {
                let (id, tag) = self.model.write(at, count);
                let submitted = on!(self, self.there, disk => disk.submit_write(at, &encode(at, count, tag)));
                self.begin(submitted, id, 0, 0);
            }
            Step::SubmitBarrier { at, count } => {
                let (id, tag) = self.model.barrier(at, count);
                self.there = false;
                let submitted = self.disk.submit_barrier(at, &encode(at, count, tag));
                self.begin(submitted, id, 0, 0);
            }
            Step::Lend { at, pages, write } => {
                let (id, tag) =
                    if write { self.model.write(at, pages * 8) } else { (self.model.read(at, pages * 8), 0) };
                let mut pieces: Vec<_> = (0..pages)
                    .map(|page| {
                        let mut granted =
                            self.machine.grants.share(self.disk.backend_id(), Access::ReadWrite).unwrap();
                        if write {
                            granted.write_bytes(0, &encode(at + page * 8, 8, tag)).unwrap();
                        }
                        Some(Piece::whole(granted))
                    })
                    .collect();
                let submitted = if write {
                    on!(self, self.there, disk => disk.submit_write_from(at, &mut pieces))
                } else {
                    on!(self, self.there, disk => disk.submit_read_into(at, &mut pieces))
                };
                self.begin(submitted, id, if write { 0 } else { pages as usize * 4096 }, pages as usize);
            }
            Step::SubmitFlush => {
                let theirs = self.theirs();
                let flushes = on!(self, theirs, disk => disk.can_flush());
                if let Ok(ticket) = on!(self, self.there, disk => disk.submit_flush()) {
                    self.flushes.push((ticket, self.model.flush(&self.back), flushes, theirs));
                }
            }
            Step::Publish => drop(on!(self, self.there, disk => disk.publish())),
            Step::Poll => match &mut self.queue {
                Some(queue) if self.there => match queue.poll() {
                    Ok(_) => {}
                    Err(error) => assert!(matches!(error, Error::Broken(_) | Error::Event(_)), "{error}"),
                },
                // What cannot be believed may be what the queue was told.
                queue => poll(&mut self.disk, &self.back, queue.is_some()),
            },
            Step::Take(index) => {
                self.take_flushes();
                self.take(index);
            }
            Step::Forget(index) => {
                if index < self.flights.len() {
                    let flight = self.flights.swap_remove(index);
                    on!(self, flight.theirs, disk => disk.forget(flight.ticket));
                    self.model.end(flight.id, Err(Error::TimedOut));
                }
            }
            Step::LetBackendAct => drop(self.machine.xen.step()),
            Step::Service => drop(self.disk.service(xs).unwrap()),
            Step::Reconnect => {
                let until = self.machine.xen.now() + Duration::from_secs(1);
                let _ = self.disk.reconnect(xs, until);
            }
            Step::Detach => {
                if self.back.is_connected() {
                    self.back.detach();
                }
            }
            Step::Die => self.back.vanish(),
            Step::ComeBack => self.back.come_back(),
            Step::Migrate { elsewhere, lean } => {
                let lean = |options: Options| {
                    if lean {
                        Options {
                            max_queues: None,
                            indirect_segments: None,
                            max_ring_page_order: None,
                            ..options
                        }
                    } else {
                        options
                    }
                };
                let domain = DomId(if elsewhere { 9 } else { 0 });
                self.back.set_next(lean(Options { domain, ..self.options }));
                let before = self.machine.guest.id();
                let (resumed, absent) = self.machine.suspend(xs, &mut self.disk);
                assert_eq!(resumed, Resumed::InNewDomain);
                assert_ne!(self.machine.guest.id(), before);
                match self.disk.state() {
                    State::Connected => assert_eq!(absent, 0),
                    State::Broken(_) => {}
                    now => assert!(now == State::Closed && absent <= 1),
                }
            }
            Step::Checkpoint => {
                self.machine.xen.set_toolstack(|_| Resumed::InPlace);
                assert_eq!(self.machine.suspend(xs, &mut self.disk), (Resumed::InPlace, 0));
                self.machine.xen.set_toolstack(|domain| {
                    domain.xen().migrate(domain);
                    Resumed::InNewDomain
                });
            }
            Step::TakeQueue => {
                if self.queue.is_none() {
                    self.queue = self.disk.take_queue(1).ok();
                    self.there = self.queue.is_some();
                }
            }
            Step::PutQueue => self.put_queue(0),
            Step::Turn => self.there = !self.there,
            Step::Crash(seed) => {
                self.back.vanish();
                self.back.power_loss(&Dice::new(seed));
                self.model.power_lost(&self.back);
                self.back.come_back();
            }
        }
    }
}

fn run(steps: Vec<Step>, options: Options, faults: Faults, seed: u64) {
    let machine = Machine::new();
    let back = machine.disk(options);
    back.load(&encode(0, SECTORS, 0));
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let config = Config { requests: 12, pages: 60, segments: 40, ring_pages: 2, queues: 2, ..small() };
    let disk = machine.connect_with(&mut xs, config).unwrap();
    back.set_faults(Dice::new(seed), faults);
    let mut run = Run {
        machine: &machine,
        options,
        back,
        disk,
        model: Model::new(),
        flights: Vec::new(),
        flushes: Vec::new(),
        queue: None,
        there: false,
    };
    for step in steps {
        machine.xen.trace(|| format!("-- {step:?}"));
        run.act(&mut xs, step);
        if let State::Broken(violation) = run.disk.state() {
            assert!(run.back.lies_hit() > 0, "{violation}");
            check_broken(&mut run.disk, &mut xs);
        }
        if let Some(State::Broken(violation)) = run.queue.as_mut().map(BlkQueue::state) {
            assert!(run.back.lies_hit() > 0, "{violation}");
        }
    }
    // An honest backend, from here on: everything that is under way has a result.
    let honest = run.truthful();
    run.back.set_faults(Dice::new(0), Faults::default());
    run.put_queue(20);
    if honest {
        if run.back.is_gone() {
            run.back.come_back();
        }
        let mut connected = run.disk.service(&mut xs) == Ok(State::Connected) && run.back.is_connected();
        for _ in 0..5 {
            if connected {
                break;
            }
            connected = run.disk.reconnect(&mut xs, machine.soon()).is_ok();
        }
        // What was lost on the way is never answered.
        connected = connected && run.disk.reconnect(&mut xs, machine.soon()).is_ok();
        assert!(connected, "{:?}", run.disk.state());
        while !run.flights.is_empty() || run.disk.pending() > 0 {
            run.disk.publish().unwrap();
            assert!(machine.xen.run_until_idle(50) < 50);
            run.disk.poll().unwrap();
            run.take_flushes();
            run.take(0);
        }
        run.take_flushes();
        let (flush, flushes) = (run.model.flush(&run.back), run.disk.can_flush());
        let result = run.disk.flush();
        run.flushed(flush, result, flushes, false);
        assert!(matches!(result, Ok(()) | Err(Error::Lost)), "{result:?}");
        assert_eq!(run.disk.pending(), 0);
        let mut all = vec![0; SECTORS as usize * 512];
        run.disk.read(0, &mut all).unwrap();
        assert!(all == run.back.disk());
        for (at, bytes) in all.chunks(512).enumerate() {
            run.model.check_sector(at, decode(at as u64, bytes));
        }
        assert_eq!(run.back.complaints(), Vec::<String>::new());
    }
    let Run { disk, back, .. } = run;
    let _ = disk.close(&mut xs, machine.soon());
    // What the backend holds is in quarantine, and nothing else is left.
    machine.grants.reclaim();
    let grants = machine.grants.stats();
    assert_eq!(grants.in_use, 0, "{grants:?}");
    let held = xen_gnttab::mock::mappings_of(&machine.xen, machine.guest.id());
    assert!(grants.quarantined as usize <= held, "{grants:?} {held}");
    back.vanish();
    back.hold(false);
    machine.grants.reclaim();
    assert_eq!(machine.grants.stats().quarantined, 0);
    assert_eq!(xen_gnttab::mock::mappings_of(&machine.xen, machine.guest.id()), 0);
}

#[test]
fn a_flush_that_is_taken_after_a_crash_is_no_word_of_what_the_crash_lost() {
    let options = Options { sectors: SECTORS, volatile_cache: true, ..Options::default() };
    for seed in 0..8 {
        // The read has the flush sent and answered; what is written then is lost, or not.
        let steps = vec![
            Step::SubmitFlush,
            Step::Read { at: 0, count: 1 },
            Step::Write { at: 0, count: 4 },
            Step::Crash(seed),
        ];
        run(steps, options, Faults::default(), 0);
    }
}

#[test]
fn a_flush_that_is_taken_after_a_later_one_takes_nothing_back() {
    let options = Options { sectors: SECTORS, volatile_cache: true, ..Options::default() };
    for seed in 0..8 {
        let steps = vec![
            Step::SubmitFlush,
            Step::Write { at: 0, count: 8 },
            Step::Flush,
            Step::Take(0),
            Step::Write { at: 0, count: 8 },
            Step::Crash(seed),
        ];
        run(steps, options, Faults::default(), 0);
    }
}

#[test]
fn of_two_flushes_under_way_when_a_crash_is_found_the_earlier_tells_whenever_it_is_taken() {
    for barrier in [false, true] {
        let options = Options {
            sectors: SECTORS,
            flush: !barrier,
            barrier,
            volatile_cache: true,
            ..Options::default()
        };
        for seed in 0..8 {
            let submit = if barrier { Step::SubmitBarrier { at: 8, count: 1 } } else { Step::SubmitFlush };
            let steps = vec![
                Step::Write { at: 0, count: 4 },
                Step::Crash(seed),
                submit,
                Step::Reconnect,
                Step::Flush,
            ];
            run(steps, options, Faults::default(), 0);
        }
    }
}

#[test]
fn a_backend_that_begins_anew_without_having_been_away_lets_go_of_the_rings() {
    let steps = vec![
        Step::SubmitRead { at: 0, count: 1 },
        Step::Reconnect,
        Step::Lend { at: 0, pages: 1, write: false },
        Step::ComeBack,
        Step::Service,
        Step::Publish,
        // The page is the caller's again.
        Step::Take(1),
    ];
    run(steps, Options { sectors: SECTORS, ..Options::default() }, Faults::default(), 0);
}

/// As many cases as `PROPTEST_CASES` says, otherwise few enough for every day.
fn config() -> ProptestConfig {
    let config = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_some() { config } else { ProptestConfig { cases: 64, ..config } }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_backend_with_bad_days_loses_nothing(
        steps in prop::collection::vec(step(), 1..60), options in options(), seed: u64, permille in 0..150_u16,
    ) {
        run(steps, options, Faults::honest(Chance::permille(permille)), seed);
    }

    #[test]
    fn a_backend_that_goes_away_and_comes_back_loses_nothing(
        steps in prop::collection::vec(step(), 1..60), options in options(), seed: u64, permille in 0..60_u16,
    ) {
        let chance = Chance::permille(permille);
        let mut faults = Faults::honest(chance);
        (faults.lost, faults.lost_event, faults.keep_mapped) = (chance, chance, chance);
        (faults.close, faults.drop_out, faults.die, faults.come_back) = (chance, chance, chance, Chance::percent(30));
        run(steps, options, faults, seed);
    }

    #[test]
    fn a_hostile_backend_breaks_its_disk_and_nothing_else(
        steps in prop::collection::vec(step(), 1..60), options in options(), seed: u64, permille in 0..100_u16,
    ) {
        run(steps, options, Faults::all(Chance::permille(permille)), seed);
    }
}
