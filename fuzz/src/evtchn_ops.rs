//! Two domains that do anything at any time with event channels, each with either ABI, against a plain model of what must
//! arrive: what is sent arrives once, nothing else does, and none is forgotten. While events are lost, late, doubled or without
//! reason by chance, those that may come are told from those that must and those that cannot.

use std::sync::atomic::Ordering;
use std::time::Duration;

use xen_evtchn::{Abi, Channel, EventChannels, Port, Progress, mock};
use xen_hypercall::mock::{Dice, MockDomain};
use xen_hypercall::{DomId, VcpuId};

use crate::input::{Input, Number, Ops, chance, input};
use crate::machine::{Xen, attempt};

const VCPU0: VcpuId = VcpuId(0);
const DOMAINS: [DomId; 2] = [DomId(0), DomId(1)];
/// Connections at the same time.
const MOST: usize = 8;

input! {
    /// What is tried.
    pub struct Plan {
        /// Whether each domain uses the FIFO ABI.
        fifo: [u8; 2],
        ops: Ops<Op>,
    }

    /// One end of one of the connections that there are.
    pub struct At {
        link: u8,
        side: bool,
    }

    /// What happens next.
    pub enum Op {
        Open { side: bool },
        Bind { link: u8 },
        Send { at: At, times: u8 },
        /// An event that nobody sent.
        Spurious { at: At },
        Mask { at: At },
        Unmask { at: At },
        Take { at: At },
        Late { at: At, on: bool },
        Done { at: At, work: bool },
        Priority { at: At, priority: u8 },
        Pass { milliseconds: u16 },
        Close { at: At },
        Dispatch { side: bool },
        /// Binds to a port that is most likely not there, or adopts it.
        Guess { side: bool, port: Number, adopt: bool },
        /// From now on events are lost, late, doubled or without reason so often; with zeros it is over.
        Faults { seed: u8, often: [u8; 4], only: Option<bool> },
        /// The machine goes on a step: late events arrive.
        Step,
    }
}

/// One end: the channel, and what is true of it by the rules alone.
struct End<'e> {
    channel: Channel<'e, MockDomain>,
    masked: bool,
    pending: bool,
    /// It may be pending, too: the fault that decides is not known.
    doubtful: bool,
    fired: bool,
    late: bool,
    /// An event is under way.
    unfinished: bool,
    /// Events in a row that brought nothing.
    streak: u32,
    /// Throttled until then.
    until: Option<Duration>,
    events: u64,
    sent: u64,
    spurious: u64,
    throttled: u64,
}

impl<'e> End<'e> {
    fn new(channel: Channel<'e, MockDomain>, pending: bool) -> Self {
        Self {
            channel,
            masked: false,
            pending,
            doubtful: false,
            fired: false,
            late: true,
            unfinished: false,
            streak: 0,
            until: None,
            events: 0,
            sent: 0,
            spurious: 0,
            throttled: 0,
        }
    }

    fn is_heard(&self) -> bool {
        !self.masked && !self.unfinished
    }

    fn is_due(&self) -> bool {
        self.pending && self.is_heard()
    }

    fn finish(&mut self) {
        (self.unfinished, self.until) = (false, None);
    }

    fn done(&mut self, work: bool, now: Duration) {
        if work {
            self.streak = 0;
            self.finish();
        } else if self.unfinished && self.until.is_none() {
            self.spurious += 1;
            self.streak += 1;
            if self.streak == 1 {
                self.finish();
            } else {
                let pause = 1000.min(1_u64 << (self.streak - 2).min(10));
                self.until = Some(now + Duration::from_millis(pause));
                self.throttled += 1;
            }
        }
    }
}

type Link<'e> = [Option<End<'e>>; 2];

struct Run<'e> {
    sides: &'e [EventChannels<MockDomain>; 2],
    links: Vec<Link<'e>>,
    sent: [u64; 2],
    /// Events of this side may go wrong, or are still on their way.
    faulty: [bool; 2],
}

impl<'e> Run<'e> {
    fn end(&mut self, at: &At) -> Option<&mut End<'e>> {
        let index = usize::from(at.link) % self.links.len().max(1);
        self.links.get_mut(index)?[usize::from(at.side)].as_mut()
    }

    fn step(&mut self, op: &Op) {
        match *op {
            Op::Open { side } if self.links.len() < MOST => {
                let side = usize::from(side);
                let channel = self.sides[side].alloc_unbound(DOMAINS[1 - side]).expect("a free port");
                let mut link = [None, None];
                link[side] = Some(End::new(channel, false));
                self.links.push(link);
            }
            Op::Open { .. } => {}
            Op::Bind { link } => self.bind(link),
            Op::Send { ref at, times } => {
                for _ in 0..1 + times % 4 {
                    let Some(end) = self.end(at) else { return };
                    end.channel.notify().expect("an open port");
                    end.sent += 1;
                    self.sent[usize::from(at.side)] += 1;
                    let faulty = self.faulty[usize::from(!at.side)];
                    if let Some(peer) = self.end(&At { link: at.link, side: !at.side }) {
                        (peer.pending, peer.doubtful) = (peer.pending | !faulty, peer.doubtful | faulty);
                    } else {
                        continue;
                    }
                    // Another port may have one without reason.
                    let others =
                        self.links.iter_mut().filter_map(|link| link[usize::from(!at.side)].as_mut());
                    others.for_each(|end| end.doubtful |= faulty);
                }
            }
            Op::Spurious { ref at } => {
                let sides = self.sides;
                let Some(end) = self.end(at) else { return };
                assert!(mock::inject(sides[usize::from(at.side)].platform(), end.channel.port()));
                end.pending = true;
            }
            Op::Mask { ref at } => {
                let Some(end) = self.end(at) else { return };
                end.masked = true;
                end.channel.mask();
            }
            Op::Unmask { ref at } => {
                let Some(end) = self.end(at) else { return };
                end.masked = false;
                end.channel.unmask();
            }
            Op::Take { ref at } => {
                let Some(end) = self.end(at) else { return };
                assert_eq!(end.channel.take(), end.fired);
                end.fired = false;
            }
            Op::Late { ref at, on } => {
                let Some(end) = self.end(at) else { return };
                end.channel.set_late_eoi(on);
                end.late = on;
                if !on {
                    end.finish();
                }
            }
            Op::Done { ref at, work } => self.done(at, work),
            Op::Priority { ref at, priority } => {
                use xen_evtchn::Priority;
                let Some(end) = self.end(at) else { return };
                // The two-level ABI has none.
                let _ = end.channel.set_priority(Priority(priority % 17));
            }
            Op::Pass { milliseconds } => self.pass(milliseconds.into()),
            Op::Close { ref at } => {
                let index = usize::from(at.link) % self.links.len().max(1);
                let Some(link) = self.links.get_mut(index) else { return };
                link[usize::from(at.side)] = None;
                if matches!(link, [None, None]) {
                    self.links.remove(index);
                }
            }
            Op::Dispatch { side } => self.dispatch(usize::from(side)),
            Op::Guess { side, ref port, adopt } => self.guess(usize::from(side), Port(port.get()), adopt),
            Op::Faults { seed, often, only } => self.set_faults(seed, often, only.map(usize::from)),
            Op::Step => drop(self.sides[0].platform().xen().step()),
        }
    }

    fn bind(&mut self, link: u8) {
        let count = self.links.len().max(1);
        let Some(link) = self.links.get_mut(usize::from(link) % count) else { return };
        let side = match link {
            [Some(_), None] => 1,
            [None, Some(_)] => 0,
            _ => return,
        };
        let Some(other) = &link[1 - side] else { return };
        match self.sides[side].bind_interdomain(DOMAINS[1 - side], other.channel.port()) {
            Ok(channel) => link[side] = Some(End::new(channel, true)),
            Err(error) => panic!("{error}"),
        }
    }

    fn done(&mut self, at: &At, work: bool) {
        let (sides, side) = (self.sides, usize::from(at.side));
        let Some(end) = self.end(at) else { return };
        end.channel.done(Progress::of(work));
        // Looks at the clock.
        let next = sides[side].next_unmask();
        end.done(work, sides[side].platform().xen().now());
        let all = self.links.iter().filter_map(|link| link[side].as_ref()?.until);
        assert_eq!(next, all.min());
    }

    fn pass(&mut self, milliseconds: u64) {
        let xen = self.sides[0].platform().xen();
        xen.advance(Duration::from_millis(milliseconds));
        for (side, events) in self.sides.iter().enumerate() {
            let now = xen.now();
            let ends = self.links.iter_mut().filter_map(|link| link[side].as_mut());
            let due: Vec<_> = ends.filter(|end| end.until.is_some_and(|until| until <= now)).collect();
            assert_eq!(events.unmask_due(), due.len());
            due.into_iter().for_each(End::finish);
        }
    }

    fn set_faults(&mut self, seed: u8, often: [u8; 4], only: Option<usize>) {
        let xen = self.sides[0].platform().xen();
        // Those that are late by the faults so far come now.
        mock::set_faults(xen, Dice::new(0), mock::Faults::new());
        assert!(xen.run_until_idle(10) < 10);
        let mut faults = mock::Faults::new();
        [faults.lost, faults.late, faults.doubled, faults.spurious] = often.map(chance);
        let any = faults != mock::Faults::new();
        faults.only = only.map(|side| DOMAINS[side]);
        self.faulty = [0, 1].map(|side| any && only.is_none_or(|only| only == side));
        mock::set_faults(xen, Dice::new(seed.into()), faults);
    }

    fn dispatch(&mut self, side: usize) {
        let count = self.sides[side].dispatch(VCPU0);
        let mut came = 0;
        for end in self.links.iter_mut().filter_map(|link| link[side].as_mut()) {
            let (must, may) = (end.is_due(), end.doubtful && end.is_heard());
            let events = end.channel.stats().events - end.events;
            assert!(events == u64::from(must) || may && events == 1, "{events} events, due: {must}");
            if events == 1 {
                (end.pending, end.fired, end.unfinished) = (false, true, end.late);
                end.events += 1;
                came += 1;
            }
            // What was heard and is not on its way does not come any more.
            end.doubtful &= self.faulty[side] || !(must || may);
        }
        assert_eq!(count, came);
    }

    /// Nobody waits for a binding here but those of the model, which is not theirs to have.
    fn guess(&mut self, side: usize, port: Port, adopt: bool) {
        let known = |side: usize| {
            let ends = self.links.iter().filter_map(move |link| link[side].as_ref());
            ends.map(|end| end.channel.port()).any(|other| other == port)
        };
        if adopt {
            if known(side) {
                assert!(self.sides[side].adopt(port).is_err(), "a port with two owners");
            }
        } else if !known(1 - side) {
            assert!(self.sides[side].bind_interdomain(DOMAINS[1 - side], port).is_err());
        }
    }

    fn check(&self) {
        for (side, events) in self.sides.iter().enumerate() {
            let ends = || self.links.iter().filter_map(|link| link[side].as_ref());
            for end in ends() {
                assert_eq!(end.channel.is_masked(), end.masked || end.unfinished);
                let stats = end.channel.stats();
                assert_eq!((stats.events, stats.notifications), (end.events, end.sent));
                assert_eq!((stats.spurious, stats.throttled), (end.spurious, end.throttled));
            }
            let due = ends().any(End::is_due);
            let shared = events.shared_info();
            let vcpu = shared.vcpu(VCPU0).expect("the first vCPU");
            let upcall = vcpu.upcall_pending.load(Ordering::Relaxed) != 0;
            assert!(upcall || !due, "an event is due on {} and Xen does not say so", DOMAINS[side]);
            assert_eq!(events.stats().notifications, self.sent[side]);
            let throttled = ends().filter(|end| end.until.is_some()).count();
            assert_eq!(events.stats().throttled_now as usize, throttled);
        }
    }
}

/// Tries an input.
pub fn run(data: &[u8]) {
    attempt(data, |plan: &Plan| attempt_plan(plan));
}

fn attempt_plan(plan: &Plan) {
    let xen = Xen::new();
    let sides = [0, 1].map(|side| {
        let domain = xen.domain(DOMAINS[side]);
        let abi = if plan.fifo[side] % 2 == 1 { Abi::Fifo } else { Abi::TwoLevel };
        EventChannels::with_abi(&domain.boot().expect("a token"), abi).expect("a Xen with both")
    });
    let mut run = Run { sides: &sides, links: Vec::new(), sent: [0; 2], faulty: [false; 2] };
    for op in &plan.ops.0 {
        xen.trace(|| format!("-- {op:?}"));
        run.step(op);
        run.check();
    }
    drop(run);
    for side in &sides {
        assert_eq!(side.dispatch(VCPU0), 0, "closed ports have no events");
        assert_eq!(side.stats().stray, 0);
        assert_eq!(mock::open_ports(side.platform()), 0);
    }
    for side in sides {
        side.reset().expect("nothing is open");
    }
    for id in DOMAINS {
        assert_eq!(xen.domain(id).pages_in_use(), 1, "only shared_info is left");
    }
}

/// Inputs to begin with.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let at = |link, side| At { link, side };
    let ops = || {
        Ops(vec![
            Op::Open { side: false },
            Op::Open { side: true },
            Op::Bind { link: 0 },
            Op::Bind { link: 1 },
            Op::Dispatch { side: true },
            Op::Send { at: at(0, false), times: 2 },
            Op::Mask { at: at(1, true) },
            Op::Send { at: at(1, false), times: 0 },
            Op::Dispatch { side: true },
            Op::Unmask { at: at(1, true) },
            Op::Dispatch { side: true },
            Op::Take { at: at(0, true) },
            Op::Late { at: at(0, true), on: true },
            Op::Spurious { at: at(0, true) },
            Op::Dispatch { side: true },
            Op::Done { at: at(0, true), work: false },
            Op::Spurious { at: at(0, true) },
            Op::Dispatch { side: true },
            Op::Done { at: at(0, true), work: false },
            Op::Pass { milliseconds: 5 },
            Op::Priority { at: at(0, true), priority: 0 },
            Op::Guess { side: true, port: Number::Up { by: 7 }, adopt: false },
            Op::Guess { side: true, port: Number::Power { bit: 17, more: 0 }, adopt: false },
            Op::Close { at: at(0, false) },
            Op::Send { at: at(0, true), times: 1 },
        ])
    };
    let faulty = |often| {
        let traffic = [
            Op::Send { at: at(0, false), times: 3 },
            Op::Step,
            Op::Dispatch { side: true },
            Op::Send { at: at(1, false), times: 3 },
            Op::Dispatch { side: true },
        ];
        let mut faulty = ops();
        faulty.0.truncate(20);
        faulty.0.push(Op::Faults { seed: 1, often, only: None });
        faulty.0.extend(traffic.iter().cycle().take(20).cloned());
        faulty.0.push(Op::Faults { seed: 1, often: [0; 4], only: None });
        faulty.0.extend(traffic);
        faulty
    };
    let names = ["two-level", "fifo", "mixed", "mixed-too"];
    let fifo = [[0, 0], [1, 1], [0, 1], [1, 0]];
    let mut seeds: Vec<_> =
        names.into_iter().zip(fifo).map(|(name, fifo)| (name, Plan { fifo, ops: ops() }.bytes())).collect();
    seeds.push(("faults", Plan { fifo: [0, 1], ops: faulty([140; 4]) }.bytes()));
    seeds.push(("late", Plan { fifo: [1, 0], ops: faulty([0, 255, 0, 0]) }.bytes()));
    seeds
}
