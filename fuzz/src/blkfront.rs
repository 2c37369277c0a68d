//! A disk: any calls, against a backend that has bad days, lies, or writes anywhere in its rings.
//!
//! What is read is what was written, as long as the backend does not lie; each operation has one result; only a backend
//! that lies breaks the disk; every page comes back when the backend has let go.

mod plan;

use std::time::Duration;

use xen_blkfront::mock::model::{
    Conduct, Flush, Model, SECTORS, check_broken, decode, encode, is_fair, poll,
};
use xen_blkfront::mock::{Faults, MockBlkback, Options};
use xen_blkfront::{BlkFront, Config, Error, Piece, State, Ticket};
use xen_gnttab::Access;
use xen_hypercall::DomId;
use xen_hypercall::mock::{Dice, MockDomain};
use xen_xenstore::Xenstore;

use crate::input::{Input, Number, Ops};
use crate::machine::{Machine, attempt};
pub use plan::{FaultInput, Op, Plan, Range};

const VBD: u32 = 51712;

/// Nodes of the backend that it may say anything in.
const NODES: [&str; 12] = [
    "state",
    "sectors",
    "sector-size",
    "physical-sector-size",
    "info",
    "feature-max-indirect-segments",
    "feature-persistent",
    "feature-flush-cache",
    "feature-discard",
    "discard-granularity",
    "max-ring-page-order",
    "multi-queue-max-queues",
];

/// What is under way: its ticket, what the model calls it, and how much it reads.
struct Flight {
    ticket: Ticket,
    id: usize,
    len: usize,
    /// Pages that were lent.
    lent: usize,
}

struct Run<'m> {
    machine: &'m Machine,
    options: Options,
    back: MockBlkback,
    disk: BlkFront<'m, MockDomain>,
    model: Model,
    flights: Vec<Flight>,
    flushes: Vec<(Ticket, Flush, bool)>,
    /// What is not an accident was done to the device.
    tampered: bool,
    /// Something else was written into its ring.
    meddled: bool,
    handshakes: u8,
}

impl<'m> Run<'m> {
    /// Handshakes that an input may ask for: they take longer than anything else, and one does not differ much from the next.
    const HANDSHAKES: u8 = 4;

    fn lied(&self) -> bool {
        self.tampered || self.back.lies_hit() > 0
    }

    /// The error has to fit how the disk is, and the backend.
    fn check(&self, error: Error) {
        let unlucky = self.back.faults_hit() > 0 || !self.back.is_connected();
        let fair = is_fair(&self.disk, error, Conduct { lied: self.lied(), unlucky });
        assert!(fair, "{error:?} of a disk that is {:?}", self.disk.state());
    }

    fn begin(&mut self, submitted: Result<Ticket, Error>, id: usize, len: usize, lent: usize) {
        match submitted {
            Ok(ticket) => self.flights.push(Flight { ticket, id, len, lent }),
            Err(error) => {
                self.check(error);
                self.model.cancel(id);
            }
        }
    }

    fn end(&mut self, id: usize, result: Result<(), Error>, bytes: &[u8]) {
        match result {
            Err(error) => self.check(error),
            Ok(()) if !bytes.is_empty() && !self.lied() => self.model.check_read(id, bytes),
            Ok(()) => {}
        }
        self.model.end(id, result);
    }

    fn flushed(&mut self, flush: Flush, result: Result<(), Error>, flushes: bool) {
        if let Err(error) = result {
            self.check(error);
        }
        // Of one that is nothing nothing follows.
        self.model.flushed(flush, result, !(flushes && self.disk.can_flush()));
    }

    fn take_flushes(&mut self) {
        for (ticket, flush, flushes) in std::mem::take(&mut self.flushes) {
            match self.disk.take(ticket, &mut []) {
                None => self.flushes.push((ticket, flush, flushes)),
                Some(result) => self.flushed(flush, result, flushes),
            }
        }
    }

    fn take(&mut self, index: usize) {
        let Some(flight) = self.flights.get(index) else { return };
        let mut bytes = vec![0xEE; flight.len];
        let result = if flight.lent > 0 {
            let mut pieces: Vec<_> = (0..flight.lent).map(|_| None).collect();
            let result = self.disk.take_pages(flight.ticket, &mut pieces);
            for (piece, bytes) in pieces.iter_mut().flatten().zip(bytes.chunks_mut(4096)) {
                piece.page_mut().read_bytes(0, bytes).expect("a page");
            }
            result
        } else {
            self.disk.take(flight.ticket, &mut bytes)
        };
        match result {
            None => {}
            Some(result) => {
                let flight = self.flights.swap_remove(index);
                self.end(flight.id, result, &bytes);
                assert_eq!(self.disk.take(flight.ticket, &mut bytes), Some(Err(Error::StaleTicket)));
            }
        }
    }

    fn lend(&mut self, at: u64, pages: u64, write: bool) {
        let (id, tag) =
            if write { self.model.write(at, pages * 8) } else { (self.model.read(at, pages * 8), 0) };
        let mut pieces: Vec<_> = (0..pages)
            .map(|page| {
                let backend = self.disk.backend_id();
                let mut granted =
                    self.machine.grants.share(backend, Access::ReadWrite).expect("pages enough");
                if write {
                    granted.write_bytes(0, &encode(at + page * 8, 8, tag)).expect("a page");
                }
                Some(Piece::whole(granted))
            })
            .collect();
        let submitted = if write {
            self.disk.submit_write_from(at, &mut pieces)
        } else {
            self.disk.submit_read_into(at, &mut pieces)
        };
        self.begin(submitted, id, if write { 0 } else { pages as usize * 4096 }, pages as usize);
    }

    fn poke(&mut self, offset: u16, bytes: [u8; 4]) {
        let front = format!("/local/domain/{}/device/vbd/{VBD}", self.machine.guest.id().0);
        for node in ["ring-ref", "ring-ref0", "queue-0/ring-ref", "queue-0/ring-ref0"] {
            self.meddled |= self.machine.poke(self.disk.backend_id(), format!("{front}/{node}"), offset, &bytes);
            self.tampered |= self.meddled;
        }
    }

    fn step(&mut self, xs: &mut Xenstore<'m, MockDomain>, op: &Op) {
        match *op {
            Op::Read { ref range } => {
                let (at, count) = range.get();
                let id = self.model.read(at, count);
                let mut bytes = vec![0xEE; count as usize * 512];
                let result = self.disk.read(at, &mut bytes);
                self.end(id, result, &bytes);
            }
            Op::Write { ref range } => {
                let (at, count) = range.get();
                let (id, tag) = self.model.write(at, count);
                let result = self.disk.write(at, &encode(at, count, tag));
                self.end(id, result, &[]);
            }
            Op::Flush => {
                let (flush, flushes) = (self.model.flush(&self.back), self.disk.can_flush());
                let result = self.disk.flush();
                self.flushed(flush, result, flushes);
            }
            Op::Discard { ref range } => {
                let (at, count) = range.get();
                self.model.discard(at, count, false);
                if let Err(error) = self.disk.discard_sectors(at, count) {
                    self.check(error);
                }
            }
            Op::SubmitRead { ref range } => {
                let (at, count) = range.get();
                let id = self.model.read(at, count);
                let submitted = self.disk.submit_read(at, count);
                self.begin(submitted, id, count as usize * 512, 0);
            }
            Op::SubmitWrite { ref range } => {
                let (at, count) = range.get();
                let (id, tag) = self.model.write(at, count);
                let submitted = self.disk.submit_write(at, &encode(at, count, tag));
                self.begin(submitted, id, 0, 0);
            }
            Op::SubmitBarrier { ref range } => {
                let (at, count) = range.get();
                let (id, tag) = self.model.barrier(at, count);
                let submitted = self.disk.submit_barrier(at, &encode(at, count, tag));
                self.begin(submitted, id, 0, 0);
            }
            Op::Lend { at, pages, write } => {
                let at = u64::from(at) % (SECTORS / 8);
                self.lend(at * 8, (1 + u64::from(pages) % 5).min(SECTORS / 8 - at), write);
            }
            Op::SubmitFlush => {
                let flushes = self.disk.can_flush();
                if let Ok(ticket) = self.disk.submit_flush() {
                    self.flushes.push((ticket, self.model.flush(&self.back), flushes));
                }
            }
            Op::SubmitDiscard { ref range, secure } => {
                let (at, count) = range.get();
                self.model.discard(at, count, secure);
                let submitted = if secure {
                    self.disk.submit_secure_discard(at, count)
                } else {
                    self.disk.submit_discard(at, count)
                };
                if let Ok(ticket) = submitted {
                    self.disk.forget(ticket);
                }
            }
            Op::SubmitFar { at, sectors } => {
                if let Ok(ticket) = self.disk.submit_read(at, sectors) {
                    assert!(self.lied() || at + sectors <= SECTORS);
                    self.disk.forget(ticket);
                }
            }
            Op::Publish => drop(self.disk.publish()),
            Op::Poll => poll(&mut self.disk, &self.back, self.meddled),
            Op::Take { which } => {
                self.take_flushes();
                self.take(usize::from(which) % self.flights.len().max(1));
            }
            Op::Forget { which } => {
                let index = usize::from(which) % self.flights.len().max(1);
                if index < self.flights.len() {
                    let flight = self.flights.swap_remove(index);
                    self.disk.forget(flight.ticket);
                    self.model.end(flight.id, Err(Error::TimedOut));
                }
            }
            Op::Step => drop(self.machine.xen.step()),
            Op::Service => {
                if let Err(error) = self.disk.service(xs) {
                    self.check(error);
                }
            }
            Op::Reconnect if self.handshakes == Self::HANDSHAKES => {}
            Op::Reconnect => {
                self.handshakes += 1;
                let until = self.machine.after(1000);
                let _ = self.disk.reconnect(xs, until);
            }
            Op::Suspend { .. } if self.handshakes == Self::HANDSHAKES => {}
            Op::Suspend { migrate, elsewhere, lean } => {
                self.handshakes += 1;
                let mut next = self.options;
                next.domain = DomId(if elsewhere { 9 } else { 0 });
                if lean {
                    (next.max_queues, next.indirect_segments, next.max_ring_page_order) = (None, None, None);
                }
                self.back.set_next(next);
                let absent = self.machine.suspend(xs, &mut self.disk, migrate);
                assert!(migrate || absent == 0);
                match self.disk.state() {
                    State::Closed => assert!(absent <= 1),
                    _ => assert_eq!(absent, 0),
                }
            }
            Op::Stall { on } => {
                self.tampered |= on;
                self.back.stall(on);
            }
            Op::Hold { on } => self.back.hold(on),
            Op::Detach => {
                if self.back.is_connected() {
                    self.back.detach();
                }
            }
            Op::Drop => {
                if self.back.is_connected() {
                    self.back.drop_out();
                }
            }
            Op::Vanish => self.back.vanish(),
            Op::ComeBack => self.back.come_back(),
            Op::Crash { seed } => {
                self.back.vanish();
                self.back.power_loss(&Dice::new(seed.into()));
                self.model.power_lost(&self.back);
                self.back.come_back();
            }
            Op::Resize { ref sectors } => {
                self.tampered = true;
                self.back.resize(u64::from(sectors.get()) % (2 * SECTORS));
            }
            Op::Spoil { ref fault } => {
                self.tampered = true;
                self.back.fault(fault.fault());
            }
            Op::Say { node, ref value } => {
                self.tampered = true;
                self.back.lie(NODES[usize::from(node) % NODES.len()], value.text().as_deref());
            }
            Op::Poke { offset, bytes } => self.poke(offset, bytes),
            Op::Index { word, ref number } => self.poke(u16::from(word % 16) * 4, number.get().to_le_bytes()),
        }
    }

    fn check_broken(&mut self, xs: &mut Xenstore<'m, MockDomain>) {
        let State::Broken(violation) = self.disk.state() else { return };
        assert!(self.lied(), "an honest backend, and {violation}");
        check_broken(&mut self.disk, xs);
    }

    /// Lets everything that is under way have its result, as far as it gets there.
    fn answer(&mut self) {
        for _ in 0..Ops::<Op>::MOST {
            self.disk.publish().expect("an honest backend");
            assert!(self.machine.xen.run_until_idle(100) < 100);
            let answered = self.disk.poll().expect("an honest backend");
            let before = self.flights.len();
            self.take_flushes();
            (0..before).rev().for_each(|index| self.take(index));
            if answered == 0 && self.flights.len() == before {
                break;
            }
        }
    }

    /// An honest backend, from here on: everything that is under way has a result.
    fn settle(&mut self, xs: &mut Xenstore<'m, MockDomain>) {
        if self.back.is_gone() {
            self.back.come_back();
        }
        let mut connected = self.disk.service(xs) == Ok(State::Connected) && self.back.is_connected();
        for _ in 0..5 {
            connected = connected || self.disk.reconnect(xs, self.machine.after(5000)).is_ok();
        }
        assert!(connected, "{:?}", self.disk.state());
        self.answer();
        if !self.flights.is_empty() || !self.flushes.is_empty() || self.disk.pending() > 0 {
            // What was lost on the way is never answered, unless it is sent again.
            self.disk.reconnect(xs, self.machine.after(5000)).expect("an honest backend");
            self.answer();
        }
        assert!(self.flights.is_empty(), "operations without a result");
        let (flush, flushes) = (self.model.flush(&self.back), self.disk.can_flush());
        let result = self.disk.flush();
        self.flushed(flush, result, flushes);
        assert_eq!(self.disk.pending(), 0);
        let mut all = vec![0; SECTORS as usize * 512];
        self.disk.read(0, &mut all).expect("an honest backend");
        assert!(all == self.back.disk());
        for (at, bytes) in all.chunks(512).enumerate() {
            self.model.check_sector(at, decode(at as u64, bytes));
        }
        assert_eq!(self.back.complaints(), Vec::<String>::new());
    }
}

/// Tries an input.
pub fn run(data: &[u8]) {
    attempt(data, |plan: &Plan| attempt_plan(plan));
}

fn attempt_plan(plan: &Plan) {
    let machine = Machine::new();
    let back = MockBlkback::new(&machine.store, &machine.guest, VBD, plan.options());
    back.load(&encode(0, SECTORS, 0));
    let mut xs = Xenstore::new(&machine.events).expect("a connection");
    xs.set_patience(Duration::from_millis(500));
    let config = Config {
        requests: 12,
        pages: 60,
        segments: 40,
        ring_pages: 2,
        queues: 2,
        timeout: Duration::from_secs(2),
        ..Config::default()
    };
    let until = machine.after(5000);
    let disk = BlkFront::connect_with(&mut xs, &machine.events, &machine.grants, VBD, until, config)
        .expect("a backend without faults so far");
    back.set_faults(Dice::new(plan.seed.into()), plan.faults());
    let mut run = Run {
        machine: &machine,
        options: plan.options(),
        back,
        disk,
        model: Model::new(),
        flights: Vec::new(),
        flushes: Vec::new(),
        tampered: false,
        meddled: false,
        handshakes: 0,
    };
    for op in &plan.ops.0 {
        machine.xen.trace(|| format!("-- {op:?}"));
        run.step(&mut xs, op);
        run.check_broken(&mut xs);
    }
    // What was answered and nobody has looked at; and what the calls that wait have believed.
    poll(&mut run.disk, &run.back, run.meddled);
    run.check_broken(&mut xs);
    let honest = !run.lied();
    run.back.set_faults(Dice::new(0), Faults::default());
    run.back.stall(false);
    if honest {
        run.settle(&mut xs);
    }
    let Run { disk, back, .. } = run;
    let _ = disk.close(&mut xs, machine.after(5000));
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

/// Inputs to begin with.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let plan = Plan { offers: 0x3bf, order: 0, seed: 1, faults: [0; 20], ops: Ops(Vec::new()) };
    let range = |at, count| Range { at, count };
    let work = || {
        vec![
            Op::Write { range: range(0, 40) },
            Op::SubmitWrite { range: range(8, 59) },
            Op::SubmitRead { range: range(4, 20) },
            Op::Lend { at: 3, pages: 3, write: true },
            Op::Publish,
            Op::Step,
            Op::Poll,
            Op::Take { which: 0 },
            Op::Take { which: 1 },
            Op::Flush,
            Op::Discard { range: range(16, 31) },
            Op::Read { range: range(0, 59) },
        ]
    };
    let with = |more: Vec<Op>| Ops([work(), more, work()].concat());
    let lies = std::array::from_fn(|i| if i > 12 { 140 } else { 0 });
    let misfortunes = std::array::from_fn(|i| if i <= 12 { 140 } else { 0 });
    vec![
        ("work", Plan { ops: with(vec![]), ..plan.clone() }.bytes()),
        ("rounds", {
            let write = |at| [Op::Write { range: range(at, 30) }, Op::Read { range: range(at, 40) }];
            Plan { offers: 0, ops: Ops((0..30).flat_map(write).collect()), ..plan.clone() }.bytes()
        }),
        ("plain", Plan { offers: 0, order: 120, ops: with(vec![]), ..plan.clone() }.bytes()),
        (
            "queues",
            Plan {
                offers: 0x7bf,
                order: 200,
                ops: with(vec![Op::SubmitBarrier { range: range(9, 9) }]),
                ..plan.clone()
            }
            .bytes(),
        ),
        (
            "misfortunes",
            Plan { faults: misfortunes, ops: with(vec![Op::Service, Op::Reconnect]), ..plan.clone() }.bytes(),
        ),
        ("lies", Plan { faults: lies, ops: with(vec![Op::Service]), ..plan.clone() }.bytes()),
        ("away-and-back", {
            let ops = with(vec![
                Op::SubmitWrite { range: range(1, 9) },
                Op::Publish,
                Op::Vanish,
                Op::Service,
                Op::ComeBack,
                Op::Reconnect,
            ]);
            Plan { ops, ..plan.clone() }.bytes()
        }),
        (
            "power-loss",
            Plan { ops: with(vec![Op::Crash { seed: 7 }, Op::Reconnect]), ..plan.clone() }.bytes(),
        ),
        ("suspended", {
            let suspend = |migrate, elsewhere, lean| {
                let under_way = [
                    Op::SubmitWrite { range: range(1, 9) },
                    Op::SubmitRead { range: range(20, 30) },
                    Op::Lend { at: 5, pages: 2, write: false },
                    Op::SubmitFlush,
                    Op::Publish,
                    Op::Step,
                    Op::SubmitWrite { range: range(30, 40) },
                ];
                let after = [Op::Suspend { migrate, elsewhere, lean }, Op::Take { which: 0 }];
                under_way.into_iter().chain(after)
            };
            let all = [(true, false, false), (false, true, false), (true, true, false), (true, false, true)];
            let ops = all.into_iter().flat_map(|(migrate, elsewhere, lean)| suspend(migrate, elsewhere, lean));
            Plan { offers: 0x7bf, ops: with(ops.collect()), ..plan.clone() }.bytes()
        }),
        ("index", {
            let number = Number::Power { bit: 5, more: 1 };
            Plan { ops: with(vec![Op::Index { word: 2, number }, Op::Poll]), ..plan.clone() }.bytes()
        }),
        ("wrong-id", {
            let fault = FaultInput::SmallId { id: 10 };
            Plan { offers: 0x39f, ops: with(vec![Op::Spoil { fault }]), ..plan.clone() }.bytes()
        }),
        ("twice", {
            let wrong = vec![
                Op::SubmitWrite { range: range(8, 120) },
                Op::Spoil { fault: FaultInput::Twice },
                Op::Publish,
                Op::Step,
                Op::Poll,
            ];
            Plan { offers: 0x39f, ops: with(wrong), ..plan.clone() }.bytes()
        }),
        ("wrong-operation", {
            let fault = FaultInput::Operation { operation: 3 };
            Plan { ops: with(vec![Op::Spoil { fault }]), ..plan }.bytes()
        }),
    ]
}
