//! Two domains that do anything at any time, with either ABI, against the plain model beside the mock.
#![cfg(feature = "mock")]

use proptest::prelude::*;
use xen_evtchn::mock::model::{self, At, Op};
use xen_evtchn::mock::{self, Faults};
use xen_evtchn::{Abi, Port};
use xen_hypercall::DomId;
use xen_hypercall::mock::{Chance, MockXen};

fn at() -> impl Strategy<Value = At> {
    (0..8usize, 0..2usize).prop_map(|(link, side)| At { link, side })
}

fn chance() -> impl Strategy<Value = Chance> {
    prop_oneof![2 => Just(Chance::NEVER), 1 => (0..100u8).prop_map(Chance::percent), 1 => Just(Chance::ALWAYS)]
}

fn faults() -> impl Strategy<Value = Faults> {
    let only = prop_oneof![Just(None), Just(Some(DomId(0))), Just(Some(DomId(1)))];
    (chance(), chance(), chance(), chance(), only).prop_map(|(lost, late, doubled, spurious, only)| {
        let mut faults = Faults::new();
        (faults.lost, faults.late, faults.doubled, faults.spurious, faults.only) =
            (lost, late, doubled, spurious, only);
        faults
    })
}

fn op() -> impl Strategy<Value = Op> {
    let side = 0..2usize;
    let port = prop_oneof![(0..70u32), (4090..4100u32), (131_060..131_080u32), any::<u32>()];
    prop_oneof![
        2 => side.clone().prop_map(|side| Op::Open { side }),
        3 => (0..8usize).prop_map(|link| Op::Bind { link }),
        8 => (at(), 1..4usize).prop_map(|(at, times)| Op::Send { at, times }),
        1 => at().prop_map(|at| Op::Spurious { at }),
        3 => at().prop_map(|at| Op::Mask { at }),
        4 => at().prop_map(|at| Op::Unmask { at }),
        4 => at().prop_map(|at| Op::Take { at }),
        2 => (at(), any::<bool>()).prop_map(|(at, on)| Op::Late { at, on }),
        6 => (at(), any::<bool>()).prop_map(|(at, work)| Op::Done { at, work }),
        1 => (at(), 0..17u8).prop_map(|(at, priority)| Op::Priority { at, priority }),
        2 => prop_oneof![0..3u64, 0..1500u64].prop_map(|milliseconds| Op::Pass { milliseconds }),
        1 => at().prop_map(|at| Op::Close { at }),
        4 => side.clone().prop_map(|side| Op::Dispatch { side }),
        1 => side.clone().prop_map(|side| Op::Migrate { side }),
        1 => (side, port, any::<bool>()).prop_map(|(side, port, adopt)| Op::Guess { side, port: Port(port), adopt }),
        1 => Just(Op::Step),
    ]
}

fn abi() -> impl Strategy<Value = Abi> {
    prop_oneof![Just(Abi::TwoLevel), Just(Abi::Fifo)]
}

fn run(abis: [Abi; 2], ops: impl IntoIterator<Item = Op>) {
    let xen = MockXen::new();
    mock::install(&xen);
    model::run(&xen, abis, ops);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, max_shrink_iters: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_sent_arrives_once_and_nothing_else_does(
        abis in [abi(), abi()],
        ops in prop::collection::vec(op(), 1..200),
    ) {
        run(abis, ops);
    }

    #[test]
    fn events_that_go_wrong_on_their_way_bring_no_others(
        abis in [abi(), abi()],
        before in prop::collection::vec(op(), 1..60),
        (seed, faults) in (any::<u64>(), faults()),
        during in prop::collection::vec(op(), 1..100),
        after in prop::collection::vec(op(), 1..40),
    ) {
        let end = Op::Faults { seed, faults: Faults::new() };
        run(abis, before.into_iter().chain([Op::Faults { seed, faults }]).chain(during).chain([end]).chain(after));
    }
}
