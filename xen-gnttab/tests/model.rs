//! A guest that grants and ends in every way, a peer that maps, copies, keeps and lets go at will, against the plain model
//! beside the mock.
#![cfg(feature = "mock")]

use proptest::prelude::*;
use xen_gnttab::mock::model::{self, Op};
use xen_gnttab::mock::{self, Faults};
use xen_gnttab::{GrantRef, Version};
use xen_hypercall::mock::{Chance, Dice, MockXen};

fn op() -> impl Strategy<Value = Op> {
    let index = 0..64usize;
    let flag = any::<bool>();
    let near = prop_oneof![0..5000usize, 4000..4200usize];
    prop_oneof![
        4 => flag.prop_map(Op::Share),
        1 => (0..6usize).prop_map(Op::ShareMany),
        3 => (1..5usize, flag).prop_map(|(count, writable)| Op::ShareRun(count, writable)),
        1 => Just(Op::Lend),
        2 => Just(Op::Part(None)),
        1 => (near.clone(), 0..300usize).prop_map(|part| Op::Part(Some(part))),
        1 => Just(Op::Reserve),
        2 => Just(Op::GrantByReference),
        1 => Just(Op::DropReference),
        3 => index.clone().prop_map(Op::End),
        2 => index.clone().prop_map(Op::Drop),
        2 => index.clone().prop_map(Op::TakeBack),
        2 => flag.prop_map(Op::Reclaim),
        6 => (index.clone(), 0..4usize, flag).prop_map(|(grant, page, writable)| Op::Map(grant, page, writable)),
        2 => (0..60u32, flag, flag)
            .prop_map(|(gref, writable, stranger)| Op::MapAny(GrantRef(gref), writable, stranger)),
        2 => (index.clone(), 0..4usize).prop_map(|(grant, page)| Op::MapByHypercall(grant, page)),
        3 => (index.clone(), 1..100u8).prop_map(|(mapping, value)| Op::Write(mapping, value)),
        5 => index.clone().prop_map(Op::Unmap),
        3 => (index, flag, 1..100u8).prop_map(|(grant, write, value)| Op::Copy(grant, write, value)),
        1 => (0..60u32, near.clone(), near, 0..300usize)
            .prop_map(|(gref, from, to, len)| Op::CopyAny(GrantRef(gref), from, to, len)),
        1 => Just(Op::LetGo),
        1 => any::<u32>().prop_map(Op::Migrate),
        1 => prop::array::uniform7(prop_oneof![Just(0u8), 0..32u8]).prop_map(Op::Restless),
    ]
}

/// Percent of uses that go wrong.
fn faults() -> impl Strategy<Value = [u8; 5]> {
    prop_oneof![1 => Just([0; 5]), 2 => prop::array::uniform5(prop_oneof![Just(0u8), 5..40u8])]
}

fn run(version: Version, seed: u64, percent: [u8; 5], ops: Vec<Op>) {
    let xen = MockXen::new();
    mock::install(&xen);
    let mut faults = Faults::new();
    [faults.again, faults.copy, faults.map, faults.unmap, faults.keep] = percent.map(Chance::percent);
    model::run(&xen, version, Dice::new(seed), faults, ops);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pages_of_version_1_stay_as_long_as_anybody_can_reach_them(
        seed in any::<u64>(), percent in faults(), ops in prop::collection::vec(op(), 1..150)
    ) {
        run(Version::V1, seed, percent, ops);
    }

    #[test]
    fn pages_of_version_2_stay_as_long_as_anybody_can_reach_them(
        seed in any::<u64>(), percent in faults(), ops in prop::collection::vec(op(), 1..150)
    ) {
        run(Version::V2, seed, percent, ops);
    }
}
