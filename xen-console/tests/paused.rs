//! A guest that is paused while a secondary console connects, begins anew or ends gives the backend the time that was left.
#![cfg(all(feature = "mock", feature = "xenbus"))]

mod common;

use std::time::Duration;

use common::devices::Machine;
use xen_console::mock::MockConsoled;
use xen_xenstore::Xenstore;

const PAUSE: Duration = Duration::from_secs(20 * 60);
/// How long all moves of the backend may take.
const LIMIT: Duration = Duration::from_secs(9);
/// A backend that takes its time, and a pause of the whole machine at one of the guest's turns.
fn slow(machine: &Machine, back: &MockConsoled, turns: u32) {
    let back = back.clone();
    machine.xen.slow_down(turns, move |stalled| back.stall(stalled));
}

#[test]
fn while_it_connects() {
    for turns in (0..200).step_by(5) {
        let machine = Machine::new();
        let back = MockConsoled::attach(&machine.store, &machine.guest, 1);
        // Before the backend has made its first move.
        slow(&machine, &back, turns);
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let console = machine.connect_within(&mut xs, 1, LIMIT);
        assert!(console.is_ok(), "{turns}: {:?}", console.err());
    }
}

#[test]
fn while_it_begins_anew_or_ends() {
    for turns in (0..500).step_by(11) {
        for ends in [false, true] {
            let machine = Machine::new();
            let back = MockConsoled::attach(&machine.store, &machine.guest, 1);
            let mut xs = Xenstore::new(&machine.events).unwrap();
            let mut console = machine.connect_within(&mut xs, 1, LIMIT).unwrap();
            slow(&machine, &back, turns);
            let end = machine.xen.now() + LIMIT;
            let outcome = if ends { console.close(&mut xs, end) } else { console.reconnect(&mut xs, end) };
            assert_eq!(outcome, Ok(()), "{turns}, ends: {ends}");
        }
    }
}

#[test]
fn a_backend_that_goes_on_while_the_guest_is_paused_is_met_connected() {
    let machine = Machine::new();
    let back = MockConsoled::attach(&machine.store, &machine.guest, 1);
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let (guest, mut looks) = (machine.guest.inside(), 0);
    machine.xen.add_actor("toolstack", move |_| {
        looks += 1;
        if looks % 8 == 0 && looks < 100 {
            guest.pause_for(PAUSE);
        }
        false
    });
    let mut console = machine.connect_within(&mut xs, 1, LIMIT).unwrap();
    assert!(machine.xen.now() > PAUSE);
    console.console().unwrap().write_all(b"here", LIMIT).unwrap();
    machine.xen.run_until_idle(100);
    assert_eq!(back.output(), b"here");
}
