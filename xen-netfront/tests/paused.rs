//! A guest that is paused while its card connects, begins anew or ends gives the backend the time that was left.
#![cfg(feature = "mock")]

mod common;

use std::time::Duration;

use common::{GUEST, HOST, Machine, frame};
use xen_evtchn::Deadline;
use xen_hypercall::mock::MockDomain;
use xen_netfront::mock::{MockNetback, Options};
use xen_netfront::{Config, Error, NetFront};
use xen_xenstore::Xenstore;

const PAUSE: Duration = Duration::from_secs(20 * 60);
/// How long all moves of the backend may take.
const LIMIT: Duration = Duration::from_secs(9);

/// A backend that takes its time, and a pause of the whole machine at one of the guest's turns.
fn slow(machine: &Machine, back: &MockNetback, turns: u32) {
    let back = back.clone();
    machine.xen.slow_down(turns, move |stalled| back.stall(stalled));
}

fn connect<'x>(
    machine: &'x Machine,
    xs: &mut Xenstore<'x, MockDomain>,
) -> Result<NetFront<'x, MockDomain>, Error> {
    let (end, config) = (machine.xen.now() + LIMIT, Config::default());
    NetFront::connect_with(xs, &machine.events, &machine.grants, 0, end, config)
}

fn in_halves<'x>(
    machine: &'x Machine,
    xs: &mut Xenstore<'x, MockDomain>,
) -> Result<NetFront<'x, MockDomain>, Error> {
    let mut end = Deadline::new(machine.xen.now() + LIMIT);
    NetFront::begin(xs, &machine.events, &machine.grants, 0, &mut end, Config::default())?
        .finish(xs, &mut end)
}

#[test]
fn while_it_connects() {
    for turns in (0..200).step_by(5) {
        let machine = Machine::new();
        let back = machine.vif(Options::default());
        // Before the backend has made its first move.
        slow(&machine, &back, turns);
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let card = if turns % 2 == 0 { connect(&machine, &mut xs) } else { in_halves(&machine, &mut xs) };
        assert!(card.is_ok(), "{turns}: {:?}", card.err());
    }
}

#[test]
fn while_it_begins_anew_or_ends() {
    for turns in (0..500).step_by(11) {
        for ends in [false, true] {
            let machine = Machine::new();
            let back = machine.vif(Options::default());
            let mut xs = Xenstore::new(&machine.events).unwrap();
            let mut card = connect(&machine, &mut xs).unwrap();
            slow(&machine, &back, turns);
            let end = machine.xen.now() + LIMIT;
            let outcome = if ends { card.close(&mut xs, end) } else { card.reconnect(&mut xs, end) };
            assert_eq!(outcome, Ok(()), "{turns}, ends: {ends}");
        }
    }
}

#[test]
fn a_backend_that_does_not_move_is_waited_for_no_longer() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    back.stall(true);
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let start = machine.xen.now();
    assert!(connect(&machine, &mut xs).is_err());
    assert!(machine.xen.now() - start < LIMIT + Duration::from_secs(1));
}

#[test]
fn a_backend_that_goes_on_while_the_guest_is_paused_is_met_connected() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let (guest, mut looks) = (machine.guest.inside(), 0);
    machine.xen.add_actor("toolstack", move |_| {
        looks += 1;
        if looks % 8 == 0 && looks < 100 {
            guest.pause_for(PAUSE);
        }
        false
    });
    let mut card = connect(&machine, &mut xs).unwrap();
    assert!(machine.xen.now() > PAUSE);
    card.transmit(&frame(HOST, GUEST, 60, 1)).unwrap();
    card.publish().unwrap();
    machine.run();
    assert!(machine.switch.receive().is_some() && back.complaints().is_empty());
}
