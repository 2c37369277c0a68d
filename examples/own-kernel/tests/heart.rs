//! The driver with a monitor that keeps to the protocol, though not always at once.

mod common;

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use common::{SEND, world};
use own_kernel_sample::{Error, PATIENCE};
use xen_hypercall::mock::{Chance, Dice, HypercallFaults, TraceOnPanic};
use xen_hypercall::{DomId, Errno, HypercallNr, Wait};

#[test]
fn a_beat_is_answered() {
    let world = world();
    let _trace = TraceOnPanic::new(&world.xen);
    world.monitor(|id| Some(id * 100));
    let mut heart = world.heart();
    for id in 1..=300 {
        assert_eq!(heart.beat(), Ok(Duration::from_millis(100 * id)), "round the ring");
    }
    assert_eq!(world.events.load(Relaxed), 300);
    assert_eq!(world.kernel.now(), Duration::ZERO, "nobody had to wait");
}

#[test]
fn a_monitor_that_does_not_answer_costs_so_much_time_and_no_more() {
    let world = world();
    let _trace = TraceOnPanic::new(&world.xen);
    let mut heart = world.heart();
    // More than the ring has slots. Time is virtual, so this takes no time at all.
    for beats in 1..=600 {
        assert_eq!(heart.beat(), Err(Error::Silent));
        assert_eq!(world.kernel.now(), PATIENCE * beats);
    }
}

#[test]
fn a_late_answer_is_not_taken_for_another_beats() {
    let world = world();
    let _trace = TraceOnPanic::new(&world.xen);
    let xen = world.xen.inside();
    world.monitor(move |id| (id != 1 || xen.now() > PATIENCE / 2 * 3).then_some(1000 + id));
    let mut heart = world.heart();
    assert_eq!(heart.beat(), Err(Error::Silent));
    // Half of the second beat's time passes before the first is answered, and then both are.
    world.xen.advance(PATIENCE);
    assert_eq!(heart.beat(), Ok(Duration::from_millis(1002)));
}

#[test]
fn an_event_that_xen_refused_is_sent_with_the_next_beat() {
    let world = world();
    let _trace = TraceOnPanic::new(&world.xen);
    world.monitor(|_| Some(500));
    let faults = |chance| {
        HypercallFaults::new().only(DomId(1)).fail_command(
            HypercallNr::EVENT_CHANNEL_OP,
            SEND,
            chance,
            Errno::EAGAIN,
        )
    };
    let mut heart = world.heart();
    world.xen.set_faults(Dice::new(1), faults(Chance::ALWAYS));
    assert_eq!(heart.beat(), Err(Error::Event(Errno::EAGAIN)));
    world.xen.set_faults(Dice::new(1), faults(Chance::NEVER));
    assert_eq!(heart.beat(), Ok(Duration::from_millis(500)));

    // Bad days: the same seed is the same run, and a failure names it.
    for seed in 0..20 {
        world.xen.set_faults(Dice::new(seed), faults(Chance::percent(30)));
        for _ in 0..50 {
            let beat = heart.beat();
            assert!(matches!(beat, Ok(_) | Err(Error::Event(Errno::EAGAIN))), "seed {seed}: {beat:?}");
        }
    }
}
