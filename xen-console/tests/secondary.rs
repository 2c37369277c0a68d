//! Consoles beside the first.
#![cfg(all(feature = "mock", feature = "xenbus"))]

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::devices::Machine;
use xen_console::mock::MockConsoled;
use xen_console::{Error, State};
use xen_hypercall::{DomId, HypercallNr};
use xen_xenstore::Xenstore;
use xen_xenstore::wire::Operation;
use xen_xenstore::xenbus::XenbusState;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_second_console_works_like_the_first() {
    let machine = Machine::new();
    let first = MockConsoled::connect(&machine.xen, &machine.guest);
    let second = MockConsoled::attach(&machine.store, &machine.guest, 1);
    let third = MockConsoled::attach(&machine.store, &machine.guest, 2);
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let ports = xen_evtchn::mock::open_ports(&machine.guest);
    let mut one = xen_console::Console::new(&machine.events).unwrap();
    let mut two = machine.connect(&mut xs, 1).unwrap();
    let mut three = machine.connect(&mut xs, 2).unwrap();
    assert_eq!(two.index(), 1);
    one.write_all(b"to one", SECOND).unwrap();
    two.console().unwrap().write_all(&[7; 5000], SECOND).unwrap();
    three.console().unwrap().write_all(b"to three", SECOND).unwrap();
    second.type_in(b"from two");
    machine.xen.run_until_idle(100);
    assert_eq!(
        (first.output(), second.output(), third.output()),
        (b"to one".into(), vec![7; 5000], b"to three".into())
    );
    let mut buf = [0; 20];
    assert_eq!((two.console().unwrap().read(&mut buf), &buf[..8]), (Ok(8), &b"from two"[..]));
    assert_eq!(two.service(&mut xs), Ok(State::Connected));
    for console in [two, three] {
        console.close(&mut xs, machine.xen.now() + SECOND).unwrap();
    }
    let stats = machine.grants.stats();
    assert_eq!((stats.in_use, stats.quarantined), (0, 0));
    assert_eq!(xen_evtchn::mock::open_ports(&machine.guest), ports);
    assert_eq!(machine.store.watches(DomId(1)), 0);
    assert_eq!(machine.xen.now(), Duration::ZERO);
    // And again.
    machine.connect(&mut xs, 1).unwrap();
}

const FRONT: &str = "/local/domain/1/device/console/1";
const BACK: &str = "/local/domain/0/backend/console/1/1";

#[test]
fn a_console_that_is_taken_away_is_noticed_and_the_backend_told() {
    let machine = Machine::new();
    let daemon = MockConsoled::attach(&machine.store, &machine.guest, 1);
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut console = machine.connect(&mut xs, 1).unwrap();
    daemon.detach();
    machine.xen.run_until_idle(100);
    assert_eq!(console.service(&mut xs), Ok(State::Closed));
    assert_eq!(console.console().err(), Some(Error::Closed));
    assert_eq!(machine.store.read(&format!("{FRONT}/state")).unwrap(), "6");
    machine.xen.run_until_idle(100);
    assert_eq!(machine.store.read(&format!("{BACK}/state")).unwrap(), "6");
    console.close(&mut xs, machine.xen.now() + SECOND).unwrap();
    assert_eq!(machine.grants.stats().in_use, 0);
    assert_eq!(machine.store.watches(DomId(1)), 0);
    assert_eq!(machine.xen.now(), Duration::ZERO);
}

#[test]
fn a_backend_that_is_back_already_is_not_taken_for_the_one_that_was_connected() {
    for reconnects_at_once in [false, true] {
        let machine = Machine::new();
        let daemon = MockConsoled::attach(&machine.store, &machine.guest, 1);
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let mut console = machine.connect(&mut xs, 1).unwrap();
        console.console().unwrap().write(b"one ").unwrap();
        machine.xen.run_until_idle(100);
        // What is written while nobody serves the console stays, and reaches the next backend.
        daemon.stall(true);
        let long = [b'x'; 2000];
        assert_eq!(console.console().unwrap().write(&long), Ok(2000));
        assert_eq!(
            console.console().unwrap().write_text(format_args!("{:100}\n", "lost"), Duration::ZERO),
            Ok(false)
        );
        daemon.restart();
        daemon.stall(false);
        machine.xen.run_until_idle(100);
        if !reconnects_at_once {
            assert_eq!(console.service(&mut xs), Ok(State::Closed));
            assert_eq!(console.console().err(), Some(Error::Closed));
        }
        assert_eq!(console.reconnect(&mut xs, machine.xen.now() + SECOND), Ok(()));
        assert_eq!(console.state(), State::Connected);
        console.console().unwrap().write_all(b"three", SECOND).unwrap();
        assert_eq!(console.console().unwrap().drain(SECOND), Ok(true));
        let mark = b"\r\n[1 line lost, 102 bytes]\r\n";
        assert_eq!(daemon.output(), [b"one ", &long[..], mark, b"three"].concat());
        let stats = console.stats();
        assert_eq!((stats.dropped, stats.dropped_lines), (102, 1));
        console.close(&mut xs, machine.xen.now() + SECOND).unwrap();
        assert_eq!((machine.grants.stats().in_use, machine.store.watches(DomId(1))), (0, 0));
    }
}

#[test]
fn a_broken_backend_is_given_up_and_another_one_taken() {
    let machine = Machine::new();
    let daemon = MockConsoled::attach(&machine.store, &machine.guest, 1);
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut console = machine.connect(&mut xs, 1).unwrap();
    daemon.poke(3076, 5000);
    assert!(matches!(console.console().unwrap().readable(), Err(Error::Broken(_))));
    assert!(matches!(console.console().err(), Some(Error::Broken(_))));
    let State::Broken(violation) = console.service(&mut xs).unwrap() else { panic!("{}", console.state()) };
    assert!(State::Broken(violation).to_string().starts_with("broken: "));
    assert_eq!(console.reconnect(&mut xs, machine.xen.now() + SECOND), Ok(()));
    console.console().unwrap().write(b"better").unwrap();
    machine.xen.run_until_idle(100);
    assert_eq!(daemon.output(), b"better");
}

#[test]
fn a_backend_that_does_not_come_back_is_tried_again() {
    let machine = Machine::new();
    let daemon = MockConsoled::attach(&machine.store, &machine.guest, 1);
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut console = machine.connect(&mut xs, 1).unwrap();
    daemon.stall(true);
    console.console().unwrap().write(b"kept").unwrap();
    machine.store.write(&format!("{BACK}/state"), "6");
    machine.xen.run_until_idle(100);
    assert_eq!(console.service(&mut xs), Ok(State::Closed));
    assert_eq!(console.is_backend_waiting(&mut xs), Ok(false));
    assert!(matches!(console.reconnect(&mut xs, machine.xen.now() + SECOND), Err(Error::Xenstore(_))));
    assert_eq!((console.state(), console.console().err()), (State::Closed, Some(Error::Closed)));
    assert_eq!(machine.store.watches(DomId(1)), 0);
    daemon.restart();
    assert_eq!(console.is_backend_waiting(&mut xs), Ok(true));
    daemon.stall(false);
    console.reconnect(&mut xs, machine.xen.now() + SECOND).unwrap();
    machine.xen.run_until_idle(100);
    assert_eq!(daemon.output(), b"kept");
    console.close(&mut xs, machine.xen.now() + SECOND).unwrap();
}

#[test]
fn a_directory_that_was_removed_is_not_made_again() {
    for (closes, again) in [(false, false), (true, false), (false, true), (true, true)] {
        let machine = Machine::new();
        let daemon = MockConsoled::attach(&machine.store, &machine.guest, 1);
        // As under XAPI, where what the guest writes there would be made.
        machine.store.set_permissions("/local/domain/1/device", "n1");
        machine.store.set_permissions("/local/domain/1/device/console", "n1");
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let mut console = machine.connect(&mut xs, 1).unwrap();
        daemon.crash();
        if again {
            // The toolstack has plugged another console in at the same place.
            drop(MockConsoled::attach(&machine.store, &machine.guest, 1));
        }
        if !closes {
            machine.xen.run_until_idle(100);
            assert_eq!(console.service(&mut xs), Ok(State::Closed));
        }
        console.close(&mut xs, machine.xen.now() + SECOND).unwrap();
        let state = machine.store.read(&format!("{FRONT}/state"));
        assert_eq!(state.as_deref(), again.then_some("1"));
        assert_eq!(machine.store.watches(DomId(1)), 0);
        assert_eq!(machine.grants.stats().in_use, 0);
        assert_eq!(machine.xen.now(), Duration::ZERO);
    }
}

#[test]
fn a_backend_whose_nodes_may_not_be_read_any_more_is_gone() {
    let machine = Machine::new();
    let _daemon = MockConsoled::attach(&machine.store, &machine.guest, 1);
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut console = machine.connect(&mut xs, 1).unwrap();
    machine.store.set_permissions(&format!("{BACK}/state"), "n0");
    machine.store.write(&format!("{BACK}/state"), "4");
    machine.xen.run_until_idle(100);
    assert_eq!(console.service(&mut xs), Ok(State::Closed));
}

#[test]
fn a_watch_that_is_gone_already_keeps_nothing_from_closing() {
    let machine = Machine::new();
    let daemon = MockConsoled::attach(&machine.store, &machine.guest, 1);
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut console = machine.connect(&mut xs, 1).unwrap();
    daemon.detach();
    machine.xen.run_until_idle(100);
    assert_eq!(console.service(&mut xs), Ok(State::Closed));
    machine.store.refuse(Operation::UNWATCH, "ENOENT");
    assert_eq!(console.close(&mut xs, machine.xen.now() + SECOND), Ok(()));
    assert_eq!(machine.store.read(&format!("{FRONT}/state")).unwrap(), "6");
    machine.xen.run_until_idle(100);
    machine.grants.reclaim();
    assert_eq!(machine.grants.stats().in_use, 0);
}

#[test]
fn a_backend_may_be_in_any_domain() {
    let machine = Machine::new();
    let daemon = MockConsoled::attach_from(&machine.store, &machine.guest, 1, DomId(7));
    let first = MockConsoled::connect_from(&machine.xen, &machine.guest, DomId(5));
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut console = machine.connect(&mut xs, 1).unwrap();
    assert_eq!(console.device().unwrap().backend_id(), DomId(7));
    console.console().unwrap().write(b"to domain 7").unwrap();
    xen_console::Console::new(&machine.events).unwrap().write(b"to domain 5").unwrap();
    machine.xen.run_until_idle(100);
    assert_eq!((daemon.output(), first.output()), (b"to domain 7".into(), b"to domain 5".into()));
    console.close(&mut xs, machine.xen.now() + SECOND).unwrap();
    assert_eq!(machine.grants.stats().in_use, 0);
}

#[test]
fn the_port_is_closed_before_the_page_is_given_back() {
    let machine = Machine::new();
    let daemon = MockConsoled::attach(&machine.store, &machine.guest, 1);
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let console = machine.connect(&mut xs, 1).unwrap();
    // The backend has let go, so that the page is free as soon as the guest gives it back.
    daemon.crash();
    let (before, at_close) = (machine.guest.pages_in_use(), Arc::new(Mutex::new(Vec::new())));
    let (guest, pages) = (machine.guest.inside(), Arc::clone(&at_close));
    machine.xen.register(HypercallNr::EVENT_CHANNEL_OP, move |_, _| {
        pages.lock().unwrap().push(guest.pages_in_use());
        0
    });
    drop(console);
    assert_eq!(*at_close.lock().unwrap(), [before]);
    assert_eq!(machine.guest.pages_in_use(), before - 1);
}

#[test]
fn what_does_not_come_up_leaves_nothing() {
    let machine = Machine::new();
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let pages = machine.guest.pages_in_use();
    assert_eq!(machine.connect(&mut xs, 0).err(), Some(Error::NoConsole));
    let none = machine.connect(&mut xs, 1).err();
    assert!(matches!(none, Some(Error::Xenstore(error)) if error.is_not_found()), "{none:?}");
    let daemon = MockConsoled::attach(&machine.store, &machine.guest, 1);
    daemon.stall(true);
    let hangs = Error::Xenstore(xen_xenstore::Error::BackendTimedOut(XenbusState::INITIALISING));
    assert_eq!(machine.connect(&mut xs, 1).err(), Some(hangs));
    daemon.stall(false);
    machine.guest.fail_allocs_after(Some(0));
    assert!(matches!(machine.connect(&mut xs, 1).err(), Some(Error::Grant(_) | Error::Event(_))));
    machine.guest.fail_allocs_after(None);
    assert_eq!(machine.store.watches(DomId(1)), 0);
    assert_eq!(machine.grants.stats().in_use, 0);
    assert!(machine.guest.pages_in_use() <= pages + 2, "a record page at most");
    machine.connect(&mut xs, 1).unwrap();
}

#[test]
fn a_backend_that_keeps_the_page_does_not_get_it_freed() {
    let machine = Machine::new();
    let daemon = MockConsoled::attach(&machine.store, &machine.guest, 1);
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let console = machine.connect(&mut xs, 1).unwrap();
    daemon.stall(true);
    let closed = console.close(&mut xs, machine.xen.now() + SECOND);
    let hangs = Error::Xenstore(xen_xenstore::Error::BackendTimedOut(XenbusState::CONNECTED));
    assert_eq!(closed, Err(hangs));
    assert_eq!(machine.grants.stats().quarantined, 1);
    daemon.stall(false);
    machine.xen.run_until_idle(100);
    assert_eq!(machine.grants.reclaim(), 1);
    assert_eq!(machine.grants.stats().in_use, 0);
}

#[test]
fn a_directory_that_may_not_be_read_yet_is_waited_for() {
    for (directory, later) in [(BACK, "n0\0r1"), (FRONT, "n1\0r0")] {
        let machine = Machine::new();
        let daemon = MockConsoled::attach(&machine.store, &machine.guest, 1);
        machine.store.permit(directory, "n0");
        let mut xs = Xenstore::new(&machine.events).unwrap();
        // Not for ever.
        let start = machine.xen.now();
        let refused = machine.connect(&mut xs, 1).err();
        assert!(matches!(refused, Some(Error::Xenstore(_))), "{directory}: {refused:?}");
        assert!(machine.xen.now() - start >= SECOND, "{directory}");
        assert_eq!(machine.store.watches(DomId(1)), 0);
        // A while after the guest has begun.
        let (store, mut turn) = (machine.store.clone(), 0);
        machine.xen.add_actor("toolstack", move |_| {
            turn += 1;
            if turn == 60 {
                store.permit(directory, later);
            }
            turn < 80
        });
        let connected = machine.connect(&mut xs, 1);
        let mut console = connected.unwrap_or_else(|error| panic!("{directory}: {error}"));
        console.console().unwrap().write_all(b"here", SECOND).unwrap();
        machine.xen.run_until_idle(100);
        assert_eq!(daemon.output(), b"here");
    }
}

/// A backend writes its state again and again, and each look at it takes 10 ms.
#[test]
fn a_backend_that_rewrites_its_state_holds_nothing_beyond_its_deadline() {
    for state in ["1", "2", "4", "6"] {
        for step in ["connect", "reconnect", "close"] {
            let machine = Machine::new();
            let daemon = MockConsoled::attach(&machine.store, &machine.guest, 1);
            let mut xs = Xenstore::new(&machine.events).unwrap();
            let console = (step != "connect").then(|| machine.connect(&mut xs, 1).unwrap());
            daemon.stall(true);
            machine.store.flood(&machine.xen, &format!("{BACK}/state"), state);
            let start = machine.xen.now();
            let outcome = match console {
                None => machine.connect(&mut xs, 1).map(drop),
                Some(mut console) if step == "reconnect" => console.reconnect(&mut xs, start + SECOND),
                Some(console) => console.close(&mut xs, start + SECOND),
            };
            let took = machine.xen.now() - start;
            assert!(took < 2 * SECOND, "{step}, {state}: {took:?}");
            // The end needs nobody if the backend says that it has closed.
            assert!(outcome.is_err() || step == "close" && state == "6", "{step}, {state}");
            assert_eq!(machine.store.watches(DomId(1)), 0);
        }
    }
}
