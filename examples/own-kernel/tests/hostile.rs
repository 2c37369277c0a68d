//! The driver with a monitor that does anything.

mod common;

use std::time::Duration;

use common::world;
use own_kernel_sample::{Error, Heartbeat, PATIENCE, Reply};
use proptest::prelude::*;
use xen_hypercall::Wait;
use xen_hypercall::mock::TraceOnPanic;
use xen_ring::RingError;
use xen_ring::mock::{BackOp, Field, HostileBack};

/// One beat, answered by hand; the same error comes ever after.
fn answered(answer: impl Fn(&mut HostileBack<Heartbeat, own_kernel_sample::SharedPage>)) -> Error {
    let world = world();
    let _trace = TraceOnPanic::new(&world.xen);
    let mut heart = world.heart();
    let mut back = HostileBack::<Heartbeat, _>::new(world.far_page()).unwrap();
    // A first beat goes unanswered, so that there is something to answer to the second.
    assert_eq!(heart.beat(), Err(Error::Silent));
    answer(&mut back);
    let error = heart.beat().expect_err("it is wrong");
    back.apply(BackOp::Fill { value: 0 });
    let before = world.kernel.now();
    assert_eq!(heart.beat(), Err(error), "a driver that gave its monitor up");
    assert_eq!(world.kernel.now(), before, "and does not wait for it");
    error
}

#[test]
fn an_answer_out_of_turn_is_the_last() {
    let error = answered(|back| {
        back.respond(0, &Reply { id: 3, next: 1000 });
        back.advance(Field::RspProd, 1);
    });
    assert_eq!(error, Error::Id(3));
}

#[test]
fn an_interval_that_may_not_be_is_the_last() {
    for next in [0, 9, 60_001, u32::MAX] {
        let error = answered(|back| {
            back.respond(0, &Reply { id: 1, next });
            back.advance(Field::RspProd, 1);
        });
        assert_eq!(error, Error::Interval(next));
    }
}

#[test]
fn an_index_that_jumps_is_the_last() {
    for by in [3, 600, u32::MAX] {
        let error = answered(|back| back.advance(Field::RspProd, by));
        assert!(matches!(error, Error::Ring(RingError::Broken(_))), "{by}: {error}");
    }
}

/// What the monitor does between two beats, made of bytes: a fuzzer's, or a generator's.
fn acts(bytes: &[u8]) -> impl Iterator<Item = BackOp> {
    bytes.chunks_exact(8).map(|act| {
        let word = u32::from_le_bytes([act[4], act[5], act[6], act[7]]);
        match act[0] % 5 {
            0 => BackOp::Answer { count: word },
            1 => BackOp::Set { field: Field::ALL[usize::from(act[1]) % 4], value: word },
            2 => BackOp::Advance { field: Field::ALL[usize::from(act[1]) % 4], by: word },
            3 => BackOp::Slot {
                index: act[2].into(),
                offset: 0,
                bytes: [act[3], 0, 0, 0, act[4], act[5], 0, 0],
            },
            _ => BackOp::Fill { value: act[1] },
        }
    })
}

/// Whatever the monitor does, each beat ends in time, with an interval that may be or an error.
fn survives(bytes: &[u8]) {
    let world = world();
    let _trace = TraceOnPanic::new(&world.xen);
    let mut heart = world.heart();
    let mut back = HostileBack::<Heartbeat, _>::new(world.far_page()).unwrap();
    for act in acts(bytes) {
        back.apply(act);
        let before = world.kernel.now();
        if let Ok(next) = heart.beat() {
            assert!(next >= Duration::from_millis(10) && next <= Duration::from_secs(60));
        }
        assert!(world.kernel.now() <= before + PATIENCE);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_monitor_that_does_anything_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        survives(&bytes);
    }
}
