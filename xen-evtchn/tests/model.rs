//! Two domains that do anything at any time, with either ABI, against one plain model of what must arrive.
#![cfg(feature = "mock")]

use proptest::prelude::*;
use std::sync::atomic::Ordering;
use std::time::Duration;
use xen_evtchn::{Abi, Channel, EventChannels, Progress, mock};
use xen_hypercall::mock::{MockDomain, MockXen};
use xen_hypercall::{DomId, VcpuId};

const VCPU0: VcpuId = VcpuId(0);
const DOMAINS: [DomId; 2] = [DomId(0), DomId(1)];

/// `side` is a domain, `link` picks one of the connections there are.
#[derive(Clone, Copy, Debug)]
enum Op {
    Open { side: usize },
    Bind { link: usize },
    Send { link: usize, side: usize },
    Spurious { link: usize, side: usize },
    Mask { link: usize, side: usize },
    Unmask { link: usize, side: usize },
    Take { link: usize, side: usize },
    Late { link: usize, side: usize, on: bool },
    Done { link: usize, side: usize, work: bool },
    Pass { milliseconds: u64 },
    Close { link: usize, side: usize },
    Dispatch { side: usize },
}

fn op() -> impl Strategy<Value = Op> {
    let (link, side) = (0..8usize, 0..2usize);
    prop_oneof![
        2 => side.clone().prop_map(|side| Op::Open { side }),
        3 => link.clone().prop_map(|link| Op::Bind { link }),
        8 => (link.clone(), side.clone()).prop_map(|(link, side)| Op::Send { link, side }),
        1 => (link.clone(), side.clone()).prop_map(|(link, side)| Op::Spurious { link, side }),
        3 => (link.clone(), side.clone()).prop_map(|(link, side)| Op::Mask { link, side }),
        4 => (link.clone(), side.clone()).prop_map(|(link, side)| Op::Unmask { link, side }),
        4 => (link.clone(), side.clone()).prop_map(|(link, side)| Op::Take { link, side }),
        2 => (link.clone(), side.clone(), any::<bool>()).prop_map(|(link, side, on)| Op::Late { link, side, on }),
        6 => (link.clone(), side.clone(), any::<bool>())
            .prop_map(|(link, side, work)| Op::Done { link, side, work }),
        2 => prop_oneof![0..3u64, 0..1500u64].prop_map(|milliseconds| Op::Pass { milliseconds }),
        1 => (link, side.clone()).prop_map(|(link, side)| Op::Close { link, side }),
        4 => side.prop_map(|side| Op::Dispatch { side }),
    ]
}

fn abi() -> impl Strategy<Value = Abi> {
    prop_oneof![Just(Abi::TwoLevel), Just(Abi::Fifo)]
}

/// One end: the channel, and what is true of it by the rules alone.
struct End<'e> {
    channel: Channel<'e, MockDomain>,
    masked: bool,
    pending: bool,
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

    fn is_due(&self) -> bool {
        self.pending && !self.masked && !self.unfinished
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
                let pause = 1000.min(1u64 << (self.streak - 2).min(10));
                self.until = Some(now + Duration::from_millis(pause));
                self.throttled += 1;
            }
        }
    }
}

type Link<'e> = [Option<End<'e>>; 2];

fn run(abis: [Abi; 2], ops: &[Op]) {
    let xen = MockXen::new();
    mock::install(&xen);
    let sides = [0, 1].map(|side| {
        let domain = xen.domain(DOMAINS[side]);
        EventChannels::with_abi(&domain.boot().unwrap(), abis[side]).unwrap()
    });
    let mut links: Vec<Link<'_>> = Vec::new();
    let mut sent = [0; 2];
    for op in ops {
        step(&sides, &mut links, &mut sent, *op);
        check(&sides, &links, &sent);
    }
    drop(links);
    for side in &sides {
        assert_eq!(side.dispatch(VCPU0), 0, "closed ports have no events");
        assert_eq!(side.stats().stray, 0);
        assert_eq!(mock::open_ports(side.platform()), 0);
    }
    for side in sides {
        side.reset().unwrap();
    }
    for id in DOMAINS {
        assert_eq!(xen.domain(id).pages_in_use(), 1, "only shared_info is left");
    }
}

fn step<'e>(
    sides: &'e [EventChannels<MockDomain>; 2],
    links: &mut Vec<Link<'e>>,
    sent: &mut [u64; 2],
    op: Op,
) {
    let count = links.len().max(1);
    match op {
        Op::Open { side } if links.len() < 8 => {
            let channel = sides[side].alloc_unbound(DOMAINS[1 - side]).unwrap();
            let mut link = [None, None];
            link[side] = Some(End::new(channel, false));
            links.push(link);
        }
        Op::Open { .. } => {}
        Op::Bind { link } => {
            let Some(link) = links.get_mut(link % count) else { return };
            let side = match link {
                [Some(_), None] => 1,
                [None, Some(_)] => 0,
                _ => return,
            };
            let port = link[1 - side].as_ref().unwrap().channel.port();
            let channel = sides[side].bind_interdomain(DOMAINS[1 - side], port).unwrap();
            link[side] = Some(End::new(channel, true));
        }
        Op::Send { link, side } => {
            let Some(link) = links.get_mut(link % count) else { return };
            let Some(end) = &mut link[side] else { return };
            end.channel.notify().unwrap();
            end.sent += 1;
            sent[side] += 1;
            if let Some(peer) = &mut link[1 - side] {
                peer.pending = true;
            }
        }
        Op::Spurious { link, side } => {
            let Some(Some(end)) = links.get_mut(link % count).map(|link| &mut link[side]) else { return };
            assert!(mock::inject(sides[side].platform(), end.channel.port()));
            end.pending = true;
        }
        Op::Mask { link, side } | Op::Unmask { link, side } => {
            let Some(Some(end)) = links.get_mut(link % count).map(|link| &mut link[side]) else { return };
            end.masked = matches!(op, Op::Mask { .. });
            if end.masked { end.channel.mask() } else { end.channel.unmask() }
        }
        Op::Take { link, side } => {
            let Some(Some(end)) = links.get_mut(link % count).map(|link| &mut link[side]) else { return };
            assert_eq!(end.channel.take(), end.fired);
            end.fired = false;
        }
        Op::Late { link, side, on } => {
            let Some(Some(end)) = links.get_mut(link % count).map(|link| &mut link[side]) else { return };
            end.channel.set_late_eoi(on);
            end.late = on;
            if !on {
                end.finish();
            }
        }
        Op::Done { link, side, work } => {
            let Some(Some(end)) = links.get_mut(link % count).map(|link| &mut link[side]) else { return };
            end.channel.done(Progress::of(work));
            // Looks at the clock.
            let next = sides[side].next_unmask();
            end.done(work, sides[side].platform().xen().now());
            let all = links.iter().filter_map(|link| link[side].as_ref()?.until);
            assert_eq!(next, all.min());
        }
        Op::Pass { milliseconds } => {
            let xen = sides[0].platform().xen();
            xen.advance(Duration::from_millis(milliseconds));
            for (side, events) in sides.iter().enumerate() {
                let now = xen.now();
                let ends = links.iter_mut().filter_map(|link| link[side].as_mut());
                let due: Vec<_> = ends.filter(|end| end.until.is_some_and(|until| until <= now)).collect();
                assert_eq!(events.unmask_due(), due.len());
                due.into_iter().for_each(End::finish);
            }
        }
        Op::Close { link, side } => {
            let index = link % count;
            let Some(link) = links.get_mut(index) else { return };
            link[side] = None;
            if matches!(link, [None, None]) {
                links.remove(index);
            }
        }
        Op::Dispatch { side } => {
            let mut expected = 0;
            for end in links.iter_mut().filter_map(|link| link[side].as_mut()) {
                if end.is_due() {
                    (end.pending, end.fired, end.unfinished) = (false, true, end.late);
                    end.events += 1;
                    expected += 1;
                }
            }
            assert_eq!(sides[side].dispatch(VCPU0), expected);
        }
    }
}

fn check(sides: &[EventChannels<MockDomain>; 2], links: &[Link<'_>], sent: &[u64; 2]) {
    for (side, events) in sides.iter().enumerate() {
        let ends = || links.iter().filter_map(|link| link[side].as_ref());
        for end in ends() {
            assert_eq!(end.channel.is_masked(), end.masked || end.unfinished);
            let stats = end.channel.stats();
            assert_eq!((stats.events, stats.notifications), (end.events, end.sent));
            assert_eq!((stats.spurious, stats.throttled), (end.spurious, end.throttled));
        }
        let due = ends().any(End::is_due);
        let upcall = events.shared_info().vcpu(VCPU0).unwrap().upcall_pending.load(Ordering::Relaxed) != 0;
        assert!(upcall || !due, "an event is due on {} and Xen does not say so", DOMAINS[side]);
        assert_eq!(events.stats().notifications, sent[side]);
        let throttled = ends().filter(|end| end.until.is_some()).count();
        assert_eq!(events.stats().throttled_now as usize, throttled);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, max_shrink_iters: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_sent_arrives_once_and_nothing_else_does(
        abis in [abi(), abi()],
        ops in prop::collection::vec(op(), 1..200),
    ) {
        run(abis, &ops);
    }
}
