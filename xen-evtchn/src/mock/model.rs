//! What two domains' event channels have to do, whatever the domains do and in whatever order: for property tests and fuzzers.
//!
//! What is sent arrives once, nothing else does, and no event is forgotten. While events are lost, late, doubled or without reason
//! by chance, the model tells those that may come from those that must and those that cannot. It panics, as tests do, when
//! the channels do another thing.
#![allow(unsafe_code, reason = "suspends domains")]

use core::sync::atomic::Ordering;
use core::time::Duration;
use std::format;
use std::vec::Vec;

use xen_hypercall::mock::{Dice, MockDomain, MockXen};
use xen_hypercall::sched::Resumed;
use xen_hypercall::{DomId, Domain, VcpuId};

use crate::mock::{self, Faults};
use crate::{Abi, Channel, EventChannels, Port, Priority, Progress};

const VCPU0: VcpuId = VcpuId(0);
/// The two domains: the sides 0 and 1.
const DOMAINS: [DomId; 2] = [DomId(0), DomId(1)];
/// Connections at the same time. A number beyond those there are counts from the first again.
const MOST: usize = 8;

/// One end of one of the connections that there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct At {
    /// Which connection.
    pub link: usize,
    /// Which of the two domains: 0 or 1.
    pub side: usize,
}

/// What happens next.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Op {
    /// A domain allocates a port for the other.
    Open {
        /// Which of the two.
        side: usize,
    },
    /// The other one binds to it.
    Bind {
        /// Which connection.
        link: usize,
    },
    /// Events are sent.
    Send {
        /// From there.
        at: At,
        /// How many.
        times: usize,
    },
    /// An event that nobody sent.
    Spurious {
        /// Where.
        at: At,
    },
    /// [`Channel::mask`].
    Mask {
        /// Which.
        at: At,
    },
    /// [`Channel::unmask`].
    Unmask {
        /// Which.
        at: At,
    },
    /// [`Channel::take`].
    Take {
        /// Which.
        at: At,
    },
    /// [`Channel::set_late_eoi`].
    Late {
        /// Which.
        at: At,
        /// On or off.
        on: bool,
    },
    /// [`Channel::done`].
    Done {
        /// Which.
        at: At,
        /// Whether there was work.
        work: bool,
    },
    /// [`Channel::set_priority`].
    Priority {
        /// Which.
        at: At,
        /// What, or what is refused.
        priority: u8,
    },
    /// Time passes.
    Pass {
        /// So much.
        milliseconds: u64,
    },
    /// A channel is closed.
    Close {
        /// Which.
        at: At,
    },
    /// [`EventChannels::dispatch`].
    Dispatch {
        /// Of which domain.
        side: usize,
    },
    /// Binds to a port that is most likely not there, or adopts it.
    Guess {
        /// Which domain.
        side: usize,
        /// The port.
        port: Port,
        /// Adopts it.
        adopt: bool,
    },
    /// From now on events go wrong like this, by chance from this seed.
    Faults {
        /// The seed.
        seed: u64,
        /// How often; only one side's, if that is said.
        faults: Faults,
    },
    /// The machine goes on a step: late events arrive.
    Step,
    /// A domain is suspended and goes on as a new one. Its connections are gone; the other domain closes its ends of them.
    Migrate {
        /// Which of the two.
        side: usize,
    },
}

/// Two domains of a machine without any do all this, each with its ABI, and close everything at the end. The machine has
/// event channels [installed](mock::install).
///
/// # Panics
/// If the channels do what they should not.
pub fn run(xen: &MockXen, abis: [Abi; 2], ops: impl IntoIterator<Item = Op>) {
    let tokens = DOMAINS.map(|id| xen.domain(id).boot().expect("a token"));
    let sides =
        [0, 1].map(|side| EventChannels::with_abi(&tokens[side], abis[side]).expect("a Xen with both"));
    let (links, faults) = (Vec::new(), Faults::new());
    let mut model = Model { tokens: &tokens, sides: &sides, links, stale: Vec::new(), sent: [0; 2], faults };
    for op in ops {
        xen.trace(|| format!("-- {op:?}"));
        model.step(op);
        model.check();
    }
    drop(model);
    for side in &sides {
        assert_eq!(side.dispatch(VCPU0), 0, "closed ports have no events");
        assert_eq!(side.stats().stray, 0);
        assert_eq!(mock::open_ports(side.platform()), 0);
    }
    for side in sides {
        side.reset().expect("nothing is open");
    }
    for token in tokens {
        let domain = token.platform().clone();
        drop(token);
        assert_eq!(domain.pages_in_use(), 1, "only shared_info is left");
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

/// The domains, their connections, and what is true of them.
struct Model<'e> {
    tokens: &'e [Domain<MockDomain>; 2],
    sides: &'e [EventChannels<MockDomain>; 2],
    links: Vec<Link<'e>>,
    /// Of earlier lives. Others may have their numbers.
    stale: Vec<Channel<'e, MockDomain>>,
    sent: [u64; 2],
    faults: Faults,
}

impl<'e> Model<'e> {
    fn id(&self, side: usize) -> DomId {
        self.sides[side].platform().id()
    }

    /// Whether events of this side may go wrong, or are still on their way.
    fn faulty(&self, side: usize) -> bool {
        let any = self.faults != Faults { only: self.faults.only, ..Faults::new() };
        any && self.faults.only.is_none_or(|only| only == self.id(side))
    }

    fn migrate(&mut self, side: usize) {
        for link in core::mem::take(&mut self.links) {
            self.stale.extend(link.into_iter().enumerate().filter_map(|(other, end)| {
                let end = end?;
                (other == side).then_some(end.channel)
            }));
        }
        // SAFETY: one thread, which is between two calls, and no page of another domain is mapped.
        let resumed = unsafe { self.tokens[side].suspend() };
        assert_eq!(resumed, Ok(Resumed::InNewDomain));
        assert!(self.stale.iter().all(|channel| !channel.is_current()));
        self.sides[side].resume().expect("a Xen like the one before");
    }

    fn end(&mut self, at: At) -> Option<&mut End<'e>> {
        let index = at.link % self.links.len().max(1);
        self.links.get_mut(index)?[at.side].as_mut()
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Open { side } if self.links.len() < MOST => {
                let channel = self.sides[side].alloc_unbound(self.id(1 - side)).expect("a free port");
                let mut link = [None, None];
                link[side] = Some(End::new(channel, false));
                self.links.push(link);
            }
            Op::Open { .. } => {}
            Op::Bind { link } => self.bind(link),
            Op::Send { at, times } => {
                for _ in 0..times {
                    let Some(end) = self.end(at) else { return };
                    end.channel.notify().expect("an open port");
                    end.sent += 1;
                    self.sent[at.side] += 1;
                    let faulty = self.faulty(1 - at.side);
                    if let Some(peer) = self.end(At { link: at.link, side: 1 - at.side }) {
                        (peer.pending, peer.doubtful) = (peer.pending | !faulty, peer.doubtful | faulty);
                    } else {
                        continue;
                    }
                    // Another port may have one without reason.
                    let others = self.links.iter_mut().filter_map(|link| link[1 - at.side].as_mut());
                    others.for_each(|end| end.doubtful |= faulty);
                }
            }
            Op::Spurious { at } => {
                let sides = self.sides;
                let Some(end) = self.end(at) else { return };
                assert!(mock::inject(sides[at.side].platform(), end.channel.port()));
                end.pending = true;
            }
            Op::Mask { at } => {
                let Some(end) = self.end(at) else { return };
                end.masked = true;
                end.channel.mask();
            }
            Op::Unmask { at } => {
                let Some(end) = self.end(at) else { return };
                end.masked = false;
                end.channel.unmask();
            }
            Op::Take { at } => {
                let Some(end) = self.end(at) else { return };
                assert_eq!(end.channel.take(), end.fired);
                end.fired = false;
            }
            Op::Late { at, on } => {
                let Some(end) = self.end(at) else { return };
                end.channel.set_late_eoi(on);
                end.late = on;
                if !on {
                    end.finish();
                }
            }
            Op::Done { at, work } => self.done(at, work),
            Op::Priority { at, priority } => {
                let Some(end) = self.end(at) else { return };
                // The two-level ABI has none.
                let _ = end.channel.set_priority(Priority(priority));
            }
            Op::Pass { milliseconds } => self.pass(milliseconds),
            Op::Close { at } => {
                let index = at.link % self.links.len().max(1);
                let Some(link) = self.links.get_mut(index) else { return };
                link[at.side] = None;
                if matches!(link, [None, None]) {
                    self.links.remove(index);
                }
            }
            Op::Dispatch { side } => self.dispatch(side),
            Op::Guess { side, port, adopt } => self.guess(side, port, adopt),
            Op::Faults { seed, faults } => self.set_faults(seed, faults),
            Op::Step => drop(self.sides[0].platform().xen().step()),
            Op::Migrate { side } => self.migrate(side),
        }
    }

    fn bind(&mut self, link: usize) {
        let (count, ids) = (self.links.len().max(1), [0, 1].map(|side| self.id(side)));
        let Some(link) = self.links.get_mut(link % count) else { return };
        let side = match link {
            [Some(_), None] => 1,
            [None, Some(_)] => 0,
            _ => return,
        };
        let Some(other) = &link[1 - side] else { return };
        match self.sides[side].bind_interdomain(ids[1 - side], other.channel.port()) {
            Ok(channel) => link[side] = Some(End::new(channel, true)),
            Err(error) => panic!("{error}"),
        }
    }

    fn done(&mut self, at: At, work: bool) {
        let (sides, side) = (self.sides, at.side);
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

    fn set_faults(&mut self, seed: u64, faults: Faults) {
        let xen = self.sides[0].platform().xen();
        // Those that are late by the faults so far come now.
        mock::set_faults(xen, Dice::new(0), Faults::new());
        assert!(xen.run_until_idle(10) < 10);
        self.faults = faults;
        mock::set_faults(xen, Dice::new(seed), faults);
    }

    fn dispatch(&mut self, side: usize) {
        let count = self.sides[side].dispatch(VCPU0);
        let mut came = 0;
        let faulty = self.faulty(side);
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
            end.doubtful &= faulty || !(must || may);
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
            assert!(self.sides[side].bind_interdomain(self.id(1 - side), port).is_err());
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
            assert!(upcall || !due, "an event is due on {} and Xen does not say so", self.id(side));
            assert_eq!(events.stats().notifications, self.sent[side]);
            let throttled = ends().filter(|end| end.until.is_some()).count();
            assert_eq!(events.stats().throttled_now as usize, throttled);
        }
    }
}
