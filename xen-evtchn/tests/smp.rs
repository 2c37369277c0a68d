//! Drivers that look only when they are told to, on several vCPUs, against random moves of everything and events that are
//! late, doubled and without reason: none may miss work that its peer announced.
#![cfg(feature = "mock")]

use std::time::Duration;

use proptest::prelude::*;
use xen_evtchn::{Abi, Channel, EventChannels, Priority, Progress, mock};
use xen_hypercall::mock::{Chance, Dice, MockDomain, MockXen};
use xen_hypercall::{DomId, VcpuId};

const DOM0: DomId = DomId(0);
const GUEST: DomId = DomId(1);
/// Two of them have places of their own on x86, all but the first on Arm.
const VCPUS: [VcpuId; 4] = [VcpuId(0), VcpuId(1), VcpuId(33), VcpuId(100)];
const LINKS: usize = 6;

#[derive(Clone, Copy, Debug)]
enum Op {
    Open,
    Close(usize),
    /// The peer makes work and tells.
    Send(usize),
    /// An event without reason.
    Inject(usize),
    Mask(usize),
    Unmask(usize),
    Move(usize, VcpuId),
    Priority(usize, u8),
    Late(usize, bool),
    /// The driver's turn.
    Poll(usize),
    Interrupt(VcpuId),
    /// Late events go on, time passes.
    Step,
    Pass(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let link = 0..LINKS;
    prop_oneof![
        3 => Just(Op::Open),
        1 => link.clone().prop_map(Op::Close),
        12 => link.clone().prop_map(Op::Send),
        2 => link.clone().prop_map(Op::Inject),
        3 => link.clone().prop_map(Op::Mask),
        4 => link.clone().prop_map(Op::Unmask),
        3 => (link.clone(), prop::sample::select(&VCPUS[..])).prop_map(|(link, vcpu)| Op::Move(link, vcpu)),
        2 => (link.clone(), 0..16u8).prop_map(|(link, priority)| Op::Priority(link, priority)),
        2 => (link.clone(), any::<bool>()).prop_map(|(link, on)| Op::Late(link, on)),
        8 => link.prop_map(Op::Poll),
        8 => prop::sample::select(&VCPUS[..]).prop_map(Op::Interrupt),
        3 => Just(Op::Step),
        2 => (0..300u64).prop_map(Op::Pass),
    ]
}

/// A driver and its peer.
struct Link<'e> {
    front: Channel<'e, MockDomain>,
    back: Channel<'e, MockDomain>,
    /// What the peer made, and what the driver has seen of it.
    work: u64,
    seen: u64,
    masked: bool,
}

impl Link<'_> {
    /// Looks for work if there was an event, and only then.
    fn poll(&mut self) {
        if self.front.take() {
            let found = self.work > self.seen;
            self.seen = self.work;
            self.front.done(Progress::of(found));
        }
    }
}

fn start(xen: &MockXen, id: DomId, abi: Abi) -> EventChannels<MockDomain> {
    let domain = xen.domain(id);
    EventChannels::with_abi(&domain.boot().unwrap(), abi).unwrap()
}

fn run(abi: Abi, seed: u64, ops: &[Op]) -> u64 {
    let xen = MockXen::new();
    mock::install(&xen);
    xen.domain(GUEST).set_vcpus(101);
    let (guest, dom0) = (start(&xen, GUEST, abi), start(&xen, DOM0, Abi::TwoLevel));
    for vcpu in &VCPUS[1..] {
        guest.add_vcpu(*vcpu).unwrap();
    }
    let mut faults = mock::Faults::new();
    faults.late = Chance::percent(20);
    faults.doubled = Chance::percent(10);
    faults.spurious = Chance::percent(10);
    faults.only = Some(GUEST);
    mock::set_faults(&xen, Dice::new(seed), faults);

    let mut links: Vec<Link<'_>> = Vec::new();
    for op in ops {
        step(&xen, &guest, &dom0, &mut links, *op);
    }
    for link in links.iter().filter(|link| link.masked) {
        link.front.unmask();
    }
    // Everything comes to rest: late events arrive, pauses end, and each event is looked at once.
    for round in 0.. {
        assert!(round < 200, "it does not come to rest");
        let mut busy = xen.step();
        guest.unmask_due();
        for vcpu in VCPUS {
            busy |= guest.dispatch(vcpu) > 0;
        }
        links.iter_mut().for_each(Link::poll);
        if let Some(due) = guest.next_unmask() {
            xen.advance(due.saturating_sub(xen.now()));
            busy = true;
        }
        if !busy {
            break;
        }
    }
    for link in &links {
        assert_eq!(link.seen, link.work, "{:?} missed work", link.front);
        assert!(!link.front.is_masked());
    }
    assert_eq!(guest.stats().stray, 0);
    guest.stats().events
}

fn step<'e>(
    xen: &MockXen,
    guest: &'e EventChannels<MockDomain>,
    dom0: &'e EventChannels<MockDomain>,
    links: &mut Vec<Link<'e>>,
    op: Op,
) {
    match op {
        Op::Open if links.len() < LINKS => {
            let front = guest.alloc_unbound(DOM0).unwrap();
            let back = dom0.bind_interdomain(GUEST, front.port()).unwrap();
            links.push(Link { front, back, work: 0, seen: 0, masked: false });
        }
        Op::Open => {}
        Op::Close(link) if link < links.len() => drop(links.swap_remove(link)),
        Op::Close(_) => {}
        Op::Interrupt(vcpu) => {
            guest.dispatch(vcpu);
        }
        Op::Step => {
            xen.step();
        }
        Op::Pass(milliseconds) => {
            xen.advance(Duration::from_millis(milliseconds));
            guest.unmask_due();
        }
        Op::Send(link)
        | Op::Inject(link)
        | Op::Mask(link)
        | Op::Unmask(link)
        | Op::Move(link, _)
        | Op::Priority(link, _)
        | Op::Late(link, _)
        | Op::Poll(link) => {
            if let Some(link) = links.get_mut(link) {
                on_link(guest, link, op);
            }
        }
    }
}

fn on_link(guest: &EventChannels<MockDomain>, link: &mut Link<'_>, op: Op) {
    match op {
        Op::Send(_) => {
            link.work += 1;
            link.back.notify().unwrap();
        }
        Op::Inject(_) => assert!(mock::inject(guest.platform(), link.front.port())),
        Op::Mask(_) => {
            link.masked = true;
            link.front.mask();
        }
        Op::Unmask(_) => {
            link.masked = false;
            link.front.unmask();
        }
        Op::Move(_, vcpu) => link.front.bind_vcpu(vcpu).unwrap(),
        Op::Priority(_, priority) => {
            let set = link.front.set_priority(Priority(priority));
            assert_eq!(set.is_ok(), guest.abi_in_use() == Abi::Fifo);
        }
        Op::Late(_, on) => link.front.set_late_eoi(on),
        Op::Poll(_) => link.poll(),
        _ => unreachable!("not about a link"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, max_shrink_iters: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_work_is_missed(
        abi in prop_oneof![Just(Abi::TwoLevel), Just(Abi::Fifo)],
        seed: u64,
        ops in prop::collection::vec(op(), 1..200),
    ) {
        run(abi, seed, &ops);
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    let ops: Vec<Op> = (0..LINKS)
        .map(|_| Op::Open)
        .chain((0..300).map(|i| match i % 4 {
            0 => Op::Send(i % LINKS),
            1 => Op::Interrupt(VCPUS[i / 4 % 4]),
            2 => Op::Poll((i + 1) % LINKS),
            _ => Op::Step,
        }))
        .collect();
    for abi in [Abi::TwoLevel, Abi::Fifo] {
        assert_eq!(run(abi, 7, &ops), run(abi, 7, &ops));
    }
    let different: std::collections::BTreeSet<u64> = (0..10).map(|seed| run(Abi::Fifo, seed, &ops)).collect();
    assert!(different.len() > 1, "the faults do nothing");
}
