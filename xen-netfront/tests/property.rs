//! Any calls against any faults, with a model beside: what arrives is what was sent, in order and once; only a backend
//! that lies breaks the device; every page comes back when the backend has let go; nothing panics, and everything ends.
#![cfg(feature = "mock")]

mod common;

use common::Machine;
use proptest::prelude::*;
use xen_hypercall::DomId;
use xen_hypercall::mock::{Chance, Dice};
use xen_netfront::mock::model::{Model, Op, Place, QUEUES};
use xen_netfront::mock::{Fault, Faults, Options};
use xen_netfront::{Config, Features};

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        any::<u16>().prop_map(Fault::Id),
        (0..256u16).prop_map(Fault::Id),
        any::<i16>().prop_map(Fault::Status),
        any::<u16>().prop_map(Fault::Offset),
        (0..64u16).prop_map(Fault::Flags),
        Just(Fault::Missing),
        Just(Fault::Twice),
        prop_oneof![1..300u32, any::<u32>()].prop_map(Fault::Index),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let len = prop_oneof![4 => 0..1400usize, 1 => 1400..9000usize, 1 => 0..65_000usize];
    let cut = prop_oneof![2 => Just(None), 1 => (1..9000u16).prop_map(Some)];
    prop_oneof![
        12 => (any::<bool>(), len.clone(), cut.clone()).prop_map(|(v6, len, cut)| Op::Transmit { v6, len, cut }),
        4 => (0..9000usize).prop_map(|len| Op::TransmitPages { len }),
        10 => (any::<bool>(), len, cut, 1..12usize)
            .prop_map(|(v6, len, cut, times)| Op::Host { v6, len, cut, times }),
        10 => (1..60usize).prop_map(|times| Op::Receive { times }),
        4 => Just(Op::ReceivePages),
        10 => Just(Op::Publish),
        4 => Just(Op::Arm),
        12 => Just(Op::Run),
    ]
}

/// What a toolstack and an honest backend may do beside.
fn event() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => Just(Op::Service),
        2 => Just(Op::Reconnect),
        2 => any::<bool>().prop_map(|migrate| Op::Suspend { migrate }),
        2 => (any::<u8>(), any::<bool>()).prop_map(|(number, wanted)| Op::Multicast { number, wanted }),
        2 => any::<bool>().prop_map(Op::Stall),
        1 => any::<bool>().prop_map(Op::Hold),
        1 => Just(Op::Detach),
        1 => Just(Op::Close),
        1 => Just(Op::Restart),
        1 => Just(Op::Vanish),
        1 => Just(Op::ForceDetach),
        2 => Just(Op::ComeBack),
        1 => (0..100usize).prop_map(|room| Op::ReceiveShort { room }),
    ]
}

fn traffic() -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(op(), 1..120)
}

fn traffic_and_events() -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(prop_oneof![10 => op(), 1 => event()], 1..120)
}

fn traffic_and_lies() -> impl Strategy<Value = Vec<Op>> {
    let lie = (any::<bool>(), fault()).prop_map(|(tx, fault)| Op::Spoil { tx, fault });
    prop::collection::vec(prop_oneof![20 => op(), 2 => event(), 1 => lie], 1..120)
}

fn rare() -> impl Strategy<Value = Chance> {
    prop_oneof![3 => Just(Chance::NEVER), 1 => (1..60u16).prop_map(Chance::permille)]
}

/// Faults of an honest backend on a bad day.
fn misfortunes() -> impl Strategy<Value = Faults> {
    (prop::array::uniform8(rare()), prop::array::uniform5(rare())).prop_map(|(a, b)| {
        let mut faults = Faults::default();
        [faults.fail, faults.rx_error, faults.late, faults.lost, faults.lost_event] =
            [a[0], a[1], a[2], a[3], a[4]];
        [faults.late_event, faults.spurious_event, faults.keep_mapped] = [a[5], a[6], a[7]];
        [faults.close, faults.drop_out, faults.die, faults.come_back, faults.scribble] = b;
        faults
    })
}

fn lies() -> impl Strategy<Value = Faults> {
    (misfortunes(), prop::array::uniform7(rare())).prop_map(|(mut faults, lies)| {
        [faults.wrong_id, faults.twice, faults.rx_missing, faults.rx_outside] =
            [lies[0], lies[1], lies[2], lies[3]];
        [faults.rx_flags, faults.rx_extra, faults.index_jump] = [lies[4], lies[5], lies[6]];
        faults
    })
}

fn options() -> impl Strategy<Value = Options> {
    prop::array::uniform8(any::<bool>()).prop_map(
        |[sg, gso_v4, gso_v6, csum_v4, csum_v6, split, several, elsewhere]| {
            let queues = if several { 4 } else { 0 };
            let domain = DomId(if elsewhere { 3 } else { 0 });
            Options { domain, sg, gso_v4, gso_v6, csum_v4, csum_v6, split, queues, ..Options::default() }
        },
    )
}

fn config() -> impl Strategy<Value = Config> {
    let pages = prop_oneof![1 => 1..300usize, 2 => 17..257usize];
    let features = || any::<u16>().prop_map(Features::from_bits_truncate);
    (features(), features(), pages.clone(), pages, any::<bool>(), any::<bool>(), 0..300u16).prop_map(
        |(send, receive, tx, rx, split, control, headroom)| Config {
            send,
            receive,
            tx_pages: tx,
            rx_pages: rx,
            queues: QUEUES,
            split_channels: split,
            await_device: split,
            follow_link: true,
            control_ring: control,
            multicast_filter: control,
            headroom,
        },
    )
}

fn run(options: Options, config: Config, faults: Faults, seed: u64, ops: &[Op]) {
    let machine = Machine::new();
    let back = machine.vif(options);
    let Machine { xen, guest, store, switch, events, grants, token } = &machine;
    let place = Place { xen, guest, store, switch, back: &back, token, events, grants };
    let mut model = Model::new(place, config, Dice::new(seed), faults);
    ops.iter().for_each(|op| model.step(op));
    model.finish();
}

fn few() -> ProptestConfig {
    ProptestConfig {
        cases: 40,
        max_shrink_iters: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(few())]

    #[test]
    fn all_arrives_when_nothing_goes_wrong(
        options in options(), config in config(), ops in traffic(),
    ) {
        run(options, config, Faults::default(), 0, &ops);
    }

    #[test]
    fn misfortunes_lose_frames_and_no_more(
        options in options(), config in config(), faults in misfortunes(), seed: u64,
        ops in traffic_and_events(),
    ) {
        run(options, config, faults, seed, &ops);
    }

    #[test]
    fn lies_break_the_device_and_no_more(
        options in options(), config in config(), faults in lies(), seed: u64,
        ops in traffic_and_lies(),
    ) {
        run(options, config, faults, seed, &ops);
    }
}
