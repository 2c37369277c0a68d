//! The handshake, with backends of all sorts.
#![cfg(feature = "mock")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use common::device::{BACK, FRONT, LINUX};
use common::{HOME, ID, Machine, refused};
use xen_hypercall::DomId;
use xen_hypercall::mock::MockDomain;
use xen_xenstore::Error;
use xen_xenstore::wire::{Operation, Refusal};
use xen_xenstore::xenbus::{BackendChange, Frontend, XenbusState};

#[test]
fn up_and_down_and_up_again() {
    let machine = Machine::new();
    machine.device();
    machine.backend(LINUX);
    let mut xs = machine.client();
    for _ in 0..40 {
        let start = machine.xen.now();
        let device = machine.connect(&mut xs).unwrap();
        assert_eq!(machine.front(), "4");
        assert_eq!(machine.store.read(&format!("{FRONT}/ring-ref")).as_deref(), Some("8"));
        assert_eq!((device.index(), device.backend_id()), (0, DomId(0)));
        assert_eq!((&**device.frontend_path(), &**device.backend_path()), ("device/test/0", BACK));
        assert_eq!(device.is_closing(&mut xs), Ok(false));
        device.close(&mut xs, machine.after(5)).unwrap();
        assert_eq!(machine.front(), "6");
        assert_eq!(machine.store.watches(ID), 0);
        assert_eq!(machine.xen.now(), start, "nothing waited for a deadline");
    }
}

#[test]
fn a_backend_that_is_late_is_waited_for() {
    let machine = Machine::new();
    machine.device();
    let mut xs = machine.client();
    let store = machine.store.clone();
    let mut turns = 0;
    machine.xen.add_actor("late", move |_| {
        turns += 1;
        if turns == 30 {
            store.write(&format!("{BACK}/state"), "2");
        }
        turns <= 30
    });
    machine.open(&mut xs).unwrap();
}

#[test]
fn a_device_that_is_late_is_waited_for() {
    let machine = Machine::new();
    let mut xs = machine.client();
    let store = machine.store.clone();
    machine.store.write(&format!("{HOME}/device"), "");
    let mut turns = 0;
    machine.xen.add_actor("toolstack", move |_| {
        turns += 1;
        match turns {
            10 => {
                store.write(FRONT, "");
                store.set_permissions(FRONT, "n1\0r0");
            }
            20 => store.write(&format!("{FRONT}/backend"), BACK),
            30 => {
                store.write(BACK, "");
                store.set_permissions(BACK, "n0\0r1");
            }
            40 => store.write(&format!("{FRONT}/backend-id"), "0"),
            50 => store.write(&format!("{BACK}/state"), "2"),
            _ => {}
        }
        turns <= 50
    });
    machine.open(&mut xs).unwrap();
}

#[test]
fn a_device_that_is_not_there_is_an_error_at_the_deadline() {
    let machine = Machine::new();
    let mut xs = machine.client();
    assert_eq!(refused(machine.open(&mut xs)), Refusal::NotFound);
    assert_eq!(machine.xen.now(), Duration::from_secs(5));
    // Who knows that it would be there asks once.
    let requests = xs.stats().requests;
    let deadline = machine.xen.now() + Duration::from_secs(5);
    assert_eq!(refused(Frontend::open_present(&mut xs, "test", 0, deadline)), Refusal::NotFound);
    assert_eq!((xs.stats().requests - requests, machine.xen.now()), (2, Duration::from_secs(5)));
    // One that has had its deadline already is looked for once.
    assert_eq!(refused(Frontend::open(&mut xs, "test", 0, Duration::ZERO)), Refusal::NotFound);
    assert_eq!(machine.xen.now(), Duration::from_secs(5));
    assert_eq!(machine.store.watches(ID), 0);
    machine.device();
    let deadline = machine.xen.now() + Duration::from_secs(5);
    assert!(Frontend::open_present(&mut xs, "test", 0, deadline).is_ok());
}

#[test]
fn a_backend_that_never_comes_is_an_error_at_the_deadline() {
    for state in [0, 1, 5, 6, 7, 8, 99] {
        let machine = Machine::new();
        machine.device();
        machine.back(state);
        let mut xs = machine.client();
        let error = machine.open(&mut xs).err();
        assert_eq!(error, Some(Error::BackendTimedOut(XenbusState(state))));
        assert_eq!(machine.xen.now(), Duration::from_secs(5));
        assert_eq!(machine.store.watches(ID), 0);
    }
    // No state at all, and no backend at all.
    for gone in [&format!("{BACK}/state"), BACK] {
        let machine = Machine::new();
        machine.device();
        machine.store.remove(gone);
        let mut xs = machine.client();
        // Nobody may read what is above it, which means no more than that it is not there.
        assert_eq!(machine.open(&mut xs).err(), Some(Error::BackendTimedOut(XenbusState::UNKNOWN)));
        assert_eq!(machine.xen.now(), Duration::from_secs(5));
        assert_eq!(machine.store.watches(ID), 0);
    }
}

#[test]
fn a_backend_that_does_not_connect_is_an_error_at_the_deadline() {
    let machine = Machine::new();
    machine.device();
    machine.backend(&[(1, "1", 2)]);
    let mut xs = machine.client();
    assert_eq!(machine.connect(&mut xs).err(), Some(Error::BackendTimedOut(XenbusState::INIT_WAIT)));
    assert_eq!(machine.xen.now(), Duration::from_secs(5));
    // It must not begin with what the driver takes away now.
    assert_eq!(machine.front(), "6");
    assert_eq!(machine.store.watches(ID), 0);
}

#[test]
fn a_backend_that_refuses_is_an_error_at_once() {
    for (moves, state) in [
        (&[(1, "1", 2), (2, "3", 5)][..], XenbusState::CLOSING),
        (&[(1, "1", 2), (2, "3", 6)], XenbusState::CLOSED),
        (&[(1, "1", 2), (2, "3", 0)], XenbusState::UNKNOWN),
    ] {
        let machine = Machine::new();
        machine.device();
        machine.backend(moves);
        let mut xs = machine.client();
        assert_eq!(machine.connect(&mut xs).err(), Some(Error::BackendGone(state)));
        assert_eq!(machine.xen.now(), Duration::ZERO);
        assert_eq!(machine.front(), "6");
        assert_eq!(machine.store.watches(ID), 0);
    }
}

#[test]
fn what_happens_to_a_connected_backend_is_told() {
    type Happens = fn(&Machine);
    let cases: [(Happens, bool); 9] = [
        (|m| m.back(5), true),
        (|m| m.back(6), true),
        (|m| m.store.write(&format!("{BACK}/state"), "5x"), true),
        (|m| m.store.write(&format!("{BACK}/state"), ""), true),
        (|m| m.store.remove(&format!("{BACK}/state")), true),
        (|m| m.back(4), false),
        (|m| m.back(7), false),
        (|m| m.back(8), false),
        (|m| m.store.write(&format!("{BACK}/info"), "1"), false),
    ];
    for (happens, expected) in cases {
        let machine = Machine::new();
        machine.device();
        machine.backend(LINUX);
        let mut xs = machine.client();
        let device = machine.connect(&mut xs).unwrap();
        assert_eq!(device.is_closing(&mut xs), Ok(false));
        let asked = xs.stats().requests;
        assert_eq!(device.is_closing(&mut xs), Ok(false));
        assert_eq!(xs.stats().requests, asked, "nothing is asked while nothing happens");
        happens(&machine);
        machine.settle();
        // As often as it is asked.
        for _ in 0..3 {
            assert_eq!(device.is_closing(&mut xs), Ok(expected));
        }
    }
}

#[test]
fn a_backend_that_reconfigures_is_told_of() {
    let machine = Machine::new();
    machine.device();
    machine.backend(LINUX);
    let mut xs = machine.client();
    let device = machine.connect(&mut xs).unwrap();
    machine.settle();
    while device.change(&mut xs) != Ok(BackendChange::Same) {}
    for state in [XenbusState::RECONFIGURING, XenbusState::RECONFIGURED] {
        machine.back(state.0);
        machine.settle();
        assert_eq!(device.change(&mut xs), Ok(BackendChange::Told(state)));
        assert_eq!(device.change(&mut xs), Ok(BackendChange::Same));
    }
}

#[test]
fn a_change_is_not_lost_when_the_daemon_does_not_answer() {
    let machine = Machine::new();
    machine.device();
    machine.backend(LINUX);
    let mut xs = machine.client();
    let device = machine.connect(&mut xs).unwrap();
    assert_eq!(device.is_closing(&mut xs), Ok(false));
    machine.back(5);
    machine.settle();
    machine.store.stall(true);
    assert_eq!(device.is_closing(&mut xs), Err(Error::TimedOut(Operation::READ)));
    machine.store.stall(false);
    assert_eq!(device.is_closing(&mut xs), Ok(true));
}

#[test]
fn closing_ends_in_time_whatever_the_backend_does() {
    for (moves, expected) in [
        (LINUX, Ok(())),
        // Closed at once; without being asked; not at all; only half.
        (&[(1, "1", 2), (2, "3", 4), (4, "5", 6)], Ok(())),
        (&[(1, "1", 2), (2, "3", 4), (4, "4", 6)], Ok(())),
        (&[(1, "1", 2), (2, "3", 4)], Err(Error::BackendTimedOut(XenbusState::CONNECTED))),
        (&[(1, "1", 2), (2, "3", 4), (4, "5", 5)], Err(Error::BackendTimedOut(XenbusState::CLOSING))),
        // Ready for the next.
        (&[(1, "1", 2), (2, "3", 4), (4, "5", 5), (5, "6", 2)], Ok(())),
    ] {
        let machine = Machine::new();
        machine.device();
        machine.backend(moves);
        let mut xs = machine.client();
        let device = machine.connect(&mut xs).unwrap();
        assert_eq!(device.close(&mut xs, machine.after(5)), expected);
        assert_eq!(machine.xen.now(), Duration::from_secs(if expected.is_ok() { 0 } else { 5 }));
        assert_eq!(machine.front(), "6");
        assert_eq!(machine.store.watches(ID), 0);
    }
    // A backend that dies.
    let machine = Machine::new();
    machine.device();
    machine.backend(LINUX);
    let mut xs = machine.client();
    let device = machine.connect(&mut xs).unwrap();
    machine.store.remove(&format!("{BACK}/state"));
    assert_eq!(device.close(&mut xs, machine.after(5)), Ok(()));
    assert_eq!(machine.front(), "6");
}

#[test]
fn a_backend_that_comes_back_is_connected_to_again() {
    let machine = Machine::new();
    machine.device();
    machine.backend(LINUX);
    let mut xs = machine.client();
    let device = machine.connect(&mut xs).unwrap();
    machine.store.remove(&format!("{BACK}/state"));
    machine.settle();
    assert_eq!(device.is_closing(&mut xs), Ok(true));
    device.close(&mut xs, machine.after(5)).unwrap();
    // Its domain is there again, and its toolstack has made it anew.
    machine.back(1);
    let device = machine.connect(&mut xs).unwrap();
    assert_eq!(device.is_closing(&mut xs), Ok(false));
}

#[test]
fn what_an_earlier_kernel_left_is_ended_first() {
    for (front, back) in
        [("4", 4), ("3", 2), ("5", 5), ("6", 5), ("6", 6), ("6", 2), ("4", 6), ("3", 4), ("", 1)]
    {
        let machine = Machine::new();
        machine.device();
        machine.store.write(&format!("{FRONT}/state"), front);
        machine.back(back);
        machine.backend(LINUX);
        let mut xs = machine.client();
        let device = machine.open(&mut xs).unwrap_or_else(|error| panic!("{front} {back}: {error}"));
        // It is the start of this handshake, not the end of the other.
        assert_eq!(machine.front(), "1");
        assert_eq!(device.backend_state(&mut xs), Ok(XenbusState::INIT_WAIT), "{front} {back}");
        assert_eq!(machine.xen.now(), Duration::ZERO);
    }
    // A backend that waits and does not care what we left.
    let machine = Machine::new();
    machine.device();
    machine.store.write(&format!("{FRONT}/state"), "6");
    machine.back(2);
    let mut xs = machine.client();
    machine.open(&mut xs).unwrap();
    assert_eq!((machine.front().as_str(), machine.xen.now()), ("1", Duration::from_secs(2)));
    // A backend that does not let go.
    let machine = Machine::new();
    machine.device();
    machine.store.write(&format!("{FRONT}/state"), "4");
    machine.back(5);
    let mut xs = machine.client();
    assert_eq!(machine.open(&mut xs).err(), Some(Error::BackendTimedOut(XenbusState::CLOSING)));
    assert!(machine.xen.now() <= Duration::from_secs(10));
}

/// Linux' backends, when their driver is bound anew, take up what they find in the frontend's nodes, and may be late to say
/// so.
#[test]
fn a_backend_that_was_started_again_is_not_taken_for_one_that_knows_us() {
    for busy in 0..40 {
        let machine = Machine::new();
        machine.device();
        // As if it had connected to what stands there, and an earlier handshake were over.
        for (node, value) in [("state", "4"), ("ring-ref", "7")] {
            machine.store.write(&format!("{FRONT}/{node}"), value);
        }
        machine.back(2);
        let (store, taken) = (machine.store.clone(), Arc::new(AtomicU32::new(7)));
        let (mut left, ring) = (busy, taken.clone());
        machine.xen.add_actor("backend", move |_| {
            let front = |node: &str| store.read(&format!("{FRONT}/{node}")).unwrap_or_default();
            let state = store.read(&format!("{BACK}/state")).unwrap_or_default();
            let next = match (left, &*state, &*front("state")) {
                (1.., ..) => {
                    left -= 1;
                    return true;
                }
                // It has not looked again since it read the nodes.
                (0, "2", _) => {
                    left = -1;
                    "4"
                }
                (_, "2", "3") => {
                    ring.store(front("ring-ref").parse().unwrap(), SeqCst);
                    "4"
                }
                (_, "4", "5") => "5",
                (_, "2" | "4" | "5", "6") => "6",
                (_, "6", "1") => "2",
                _ => return false,
            };
            store.write(&format!("{BACK}/state"), next);
            true
        });
        let mut xs = machine.client();
        let device = machine.connect(&mut xs).unwrap_or_else(|error| panic!("{busy}: {error}"));
        assert_eq!(taken.load(SeqCst), 8, "{busy}");
        assert_eq!(device.is_closing(&mut xs), Ok(false), "{busy}");
    }
}

#[test]
fn nodes_without_sense_are_errors() {
    let long = "9".repeat(3000);
    for (node, value, expected) in [
        ("backend", "", Error::BadPath),
        ("backend", "/local//", Error::BadPath),
        ("backend", &*format!("/{}", "a".repeat(300)), Error::BadPath),
        ("backend-id", "", Error::BadValue),
        ("backend-id", "-1", Error::BadValue),
        ("backend-id", "65536", Error::BadValue),
        ("backend-id", "zero", Error::BadValue),
        ("backend-id", &long, Error::BadValue),
    ] {
        let machine = Machine::new();
        machine.device();
        machine.store.write(&format!("{FRONT}/{node}"), value);
        let mut xs = machine.client();
        assert_eq!(machine.open(&mut xs).err(), Some(expected), "{node} {value}");
        assert_eq!(machine.xen.now(), Duration::ZERO);
        assert_eq!(machine.store.watches(ID), 0);
    }
    for value in [&b"\xff\xfe"[..], b"", b"two", b"-2", b"2.0", long.as_bytes(), b"2\0"] {
        let machine = Machine::new();
        machine.device();
        machine.store.write_bytes(&format!("{BACK}/state"), value);
        let mut xs = machine.client();
        assert_eq!(machine.open(&mut xs).err(), Some(Error::BackendTimedOut(XenbusState::UNKNOWN)));
        // A backend that comes to its senses is believed.
        machine.store.write(&format!("{BACK}/state"), "2");
        let device = machine.open(&mut xs).unwrap();
        machine.store.write_bytes(&format!("{BACK}/feature"), value);
        let feature = device.read_backend::<MockDomain, u32>(&mut xs, "feature");
        assert!(matches!(feature, Err(Error::BadValue | Error::NotText)), "{feature:?}");
        assert_eq!(device.read_backend::<MockDomain, u32>(&mut xs, "none"), Ok(None));
        device.abandon(&mut xs).unwrap();
        assert_eq!(machine.store.watches(ID), 0);
    }
}

#[test]
fn publishing_is_one_step_and_is_tried_again() {
    let machine = Machine::new();
    machine.device();
    machine.backend(&[(1, "1", 2)]);
    let mut xs = machine.client();
    let device = machine.open(&mut xs).unwrap();
    machine.store.clash(5);
    let (store, mut runs) = (machine.store.clone(), 0);
    let device = device.publish(&mut xs, XenbusState::INITIALISED, |transaction, path| {
        runs += 1;
        transaction.write(&path.join("a")?, b"1")?;
        assert_eq!(store.read(&format!("{FRONT}/a")), None, "nobody sees a half of it");
        transaction.write(&path.join("b")?, b"2")
    });
    device.unwrap();
    assert_eq!(runs, 6);
    assert_eq!((machine.front(), machine.store.read(&format!("{FRONT}/b"))), ("3".into(), Some("2".into())));
    // What goes wrong inside leaves nothing, and the device is given up.
    let device = machine.open(&mut xs).unwrap();
    let failed = device.publish(&mut xs, XenbusState::INITIALISED, |transaction, path| {
        transaction.write(&path.join("a")?, b"3")?;
        Err(Error::BadValue)
    });
    assert_eq!(failed.err(), Some(Error::BadValue));
    assert_eq!((machine.front(), machine.store.read(&format!("{FRONT}/a"))), ("6".into(), Some("1".into())));
}

#[test]
fn states_have_names() {
    let names = ["Unknown", "Initialising", "InitWait", "Initialised", "Connected", "Closing", "Closed"];
    let names = names.into_iter().chain(["Reconfiguring", "Reconfigured", "state 9"]);
    for (number, name) in (0..).zip(names) {
        assert_eq!(XenbusState(number).to_string(), name);
        assert_eq!(number.to_string().parse(), Ok(XenbusState(number)));
        assert_eq!(XenbusState(number).is_gone(), [0, 5, 6].contains(&number));
    }
}
