//! Every wait ends at its deadline, whatever somebody writes meanwhile; and not before, when the guest did not run.
#![cfg(feature = "mock")]

mod common;

use std::time::Duration;

use common::device::{BACK, LINUX};
use common::{FLOOD, ID, Machine, data};
use xen_evtchn::Deadline;
use xen_ring::XenstoreLayout;
use xen_xenstore::wire::Operation;
use xen_xenstore::xenbus::{Frontend, XenbusState};
use xen_xenstore::{Error, Xenstore};

const SECOND: Duration = Duration::from_secs(1);
/// What a last look at a machine on which each round takes 10 ms may add.
const LOOK: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_secs(20 * 60);

#[test]
fn a_backend_that_rewrites_its_state_does_not_hold_the_handshake() {
    for state in [1, 6] {
        let machine = Machine::new();
        machine.device();
        machine.flood(&format!("{BACK}/state"), &state.to_string());
        let mut xs = machine.client();
        let start = machine.xen.now();
        let device = Frontend::open(&mut xs, "test", 0, start + SECOND).unwrap();
        let waited = device.wait_for_backend(&mut xs, start + SECOND);
        assert_eq!(waited.err(), Some(Error::BackendTimedOut(XenbusState(state))));
        assert!(machine.xen.now() - start < SECOND + LOOK, "{:?}", machine.xen.now());
        assert_eq!(machine.store.watches(ID), 0);
    }
}

#[test]
fn nor_the_wait_for_its_connection_nor_the_end() {
    let machine = Machine::new();
    machine.device();
    machine.backend(&[(1, "1", 2)]);
    let mut xs = machine.client();
    let device = machine.publish(&mut xs).unwrap();
    machine.flood(&format!("{BACK}/state"), "2");
    let start = machine.xen.now();
    let error = device.wait_connected(&mut xs, start + SECOND).err();
    assert_eq!(error, Some(Error::BackendTimedOut(XenbusState::INIT_WAIT)));
    assert!(machine.xen.now() - start < SECOND + LOOK, "{:?}", machine.xen.now());

    let machine = Machine::new();
    machine.device();
    machine.backend(LINUX);
    let mut xs = machine.client();
    let device = machine.connect(&mut xs).unwrap();
    machine.flood(&format!("{BACK}/state"), "4");
    let start = machine.xen.now();
    let closed = device.close(&mut xs, start + SECOND);
    assert_eq!(closed, Err(Error::BackendTimedOut(XenbusState::CONNECTED)));
    assert!(machine.xen.now() - start < SECOND + LOOK, "{:?}", machine.xen.now());
    assert_eq!(machine.front(), "6");
}

#[test]
fn a_device_whose_nodes_never_come_is_waited_for_no_longer() {
    let machine = Machine::new();
    machine.flood("/local/domain/1/device/test/0/other", "1");
    machine.store.set_permissions("/local/domain/1/device/test", "n1\0r0");
    let mut xs = machine.client();
    let start = machine.xen.now();
    assert!(Frontend::open(&mut xs, "test", 0, start + SECOND).is_err_and(|error| error.is_not_found()));
    assert!(machine.xen.now() - start < SECOND + LOOK, "{:?}", machine.xen.now());
}

#[test]
fn a_node_that_is_written_without_end_holds_no_wait() {
    let machine = Machine::new();
    let mut xs = machine.client();
    machine.flood(&data("n"), "1");
    let start = machine.xen.now();
    assert_eq!(xs.wait_for("data/n", start + SECOND, |number: &u32| *number == 7), Ok(None));
    assert!(machine.xen.now() - start < SECOND + LOOK, "{:?}", machine.xen.now());
    // A loop of a caller's own, with a time of the clock and with a deadline.
    let watch = xs.watch("data/n").unwrap();
    let start = machine.xen.now();
    while xs.wait_fired(&watch, start + SECOND).unwrap() {
        xs.read("data/n").unwrap();
    }
    assert!(machine.xen.now() - start < SECOND + LOOK, "{:?}", machine.xen.now());
    let start = machine.xen.now();
    let mut deadline = Deadline::new(start + SECOND);
    while xs.wait_fired(&watch, &mut deadline).unwrap() {
        xs.read("data/n").unwrap();
    }
    assert!(machine.xen.now() - start < SECOND + LOOK, "{:?}", machine.xen.now());
}

#[test]
fn questions_that_take_long_do_not_lengthen_the_wait() {
    let machine = Machine::new();
    let mut xs = machine.client();
    // Each answer takes three seconds, which no sleep does.
    let store = machine.store.clone();
    machine.store.stall(true);
    let mut turn = 0;
    machine.xen.add_actor("slow", move |xen| {
        if xen.now() > FLOOD {
            store.stall(false);
            return false;
        }
        turn += 1;
        store.stall(turn % 4 != 0);
        store.write(&data("n"), "1");
        xen.advance(Duration::from_millis(750));
        true
    });
    let start = machine.xen.now();
    assert_eq!(xs.wait_for("data/n", start + 20 * SECOND, |number: &u32| *number == 7), Ok(None));
    assert!(machine.xen.now() - start < 40 * SECOND, "{:?}", machine.xen.now());
}

#[test]
fn events_without_end_do_not_hold_a_question_or_a_new_connection() {
    let machine = Machine::new();
    let mut xs = machine.client();
    xs.set_patience(SECOND);
    let channel = xs.channel().port();
    machine.store.stall(true);
    let guest = machine.guest.inside();
    machine.xen.add_actor("events", move |xen| {
        if xen.now() > FLOOD {
            return false;
        }
        xen_evtchn::mock::inject(&guest, channel);
        xen.advance(Duration::from_millis(10));
        true
    });
    let start = machine.xen.now();
    assert_eq!(xs.read("name").map(drop), Err(Error::TimedOut(Operation::READ)));
    assert!(machine.xen.now() - start < SECOND + LOOK, "{:?}", machine.xen.now());
    let start = machine.xen.now();
    assert_eq!(xs.reconnect(), Err(Error::ReconnectTimedOut));
    assert!(machine.xen.now() - start < SECOND + LOOK, "{:?}", machine.xen.now());
}

#[test]
fn a_pause_is_not_counted_against_a_backend() {
    for turns in 1..40 {
        let machine = Machine::new();
        machine.device();
        let mut xs = machine.client();
        machine.pause(turns, PAUSE);
        // It takes its time, within the limit.
        let store = machine.store.clone();
        let (mut ready, mut connected) = (3, 3);
        machine.xen.add_actor("backend", move |xen| {
            let (back, front) = (format!("{BACK}/state"), "/local/domain/1/device/test/0/state");
            let (state, ours) = (store.read(&back), store.read(front));
            let (left, next) = match (state.as_deref(), ours.as_deref()) {
                (Some("1"), Some("1")) => (&mut ready, "2"),
                (Some("2"), Some("3")) => (&mut connected, "4"),
                _ => return false,
            };
            xen.advance(Duration::from_millis(200));
            *left -= 1;
            if *left == 0 {
                store.write(&back, next);
            }
            true
        });
        let mut deadline = Deadline::new(machine.after(5));
        let device = Frontend::open(&mut xs, "test", 0, &mut deadline).unwrap();
        let device = device.wait_for_backend(&mut xs, &mut deadline);
        let device = device.unwrap_or_else(|error| panic!("{turns}: {error}"));
        let device = device.publish(&mut xs, XenbusState::INITIALISED, |_, _| Ok(())).unwrap();
        let device = device.wait_connected(&mut xs, &mut deadline);
        assert!(device.is_ok(), "{turns}: {:?}", device.err());
    }
}

#[test]
fn a_pause_is_not_counted_against_the_daemon() {
    let machine = Machine::new();
    let mut xs = machine.client();
    machine.store.stall(true);
    machine.pause(3, PAUSE);
    let store = machine.store.clone();
    let mut turn = 0;
    machine.xen.add_actor("daemon", move |_| {
        turn += 1;
        store.stall(turn < 6);
        false
    });
    assert_eq!(xs.read_str("name"), Ok("d1"));
    assert!(machine.xen.now() > PAUSE);
    // Who waits for something else takes such a pause into account, too.
    let store = machine.store.clone();
    let mut turn = 0;
    machine.store.stall(true);
    machine.pause(2, PAUSE);
    machine.xen.add_actor("daemon", move |_| {
        turn += 1;
        match turn {
            4 => store.stall(false),
            20 => store.write(&data("n"), "7"),
            _ => {}
        }
        turn < 30
    });
    assert_eq!(xs.wait_for("data/n", machine.after(5), |number: &u32| *number == 7), Ok(Some(7)));
}

#[test]
fn a_pause_while_the_connection_is_made_is_not_counted() {
    let machine = Machine::new();
    machine.store.poke(ID, XenstoreLayout::CONNECTION, 1);
    machine.store.stall(true);
    machine.pause(2, PAUSE);
    let store = machine.store.clone();
    let mut turn = 0;
    machine.xen.add_actor("daemon", move |_| {
        turn += 1;
        store.stall(turn < 5);
        false
    });
    let mut xs = Xenstore::new(&machine.events).unwrap();
    assert_eq!(xs.read_str("name"), Ok("d1"));
    assert!(machine.xen.now() > PAUSE);
}
