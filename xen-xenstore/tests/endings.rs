//! What becomes of a connected device: its backend closes, comes back, is another; its directories are taken away.
#![cfg(feature = "mock")]

mod common;

use common::device::LINUX;
use common::{ID, Machine};
use xen_hypercall::DomId;
use xen_hypercall::mock::MockDomain;
use xen_xenstore::mock::{MockDevice, Then, Toolstack};
use xen_xenstore::wire::{Header, Operation};
use xen_xenstore::xenbus::{BackendChange, Connected, Frontend, XenbusState};
use xen_xenstore::{Error, Xenstore};

/// The domain of the backends.
const DRIVER: DomId = DomId(3);

/// A device with a backend that does as those of Linux do, unless it has stopped.
fn plugged(machine: &Machine, toolstack: Toolstack) -> MockDevice {
    let device = MockDevice::new(&machine.store, "test", 0, ID, DRIVER).by(toolstack);
    device.plug();
    serve(machine, &device);
    device
}

fn serve(machine: &Machine, device: &MockDevice) {
    let device = device.clone();
    machine.xen.add_actor("backend", move |_| {
        let (back, front) = (device.back("state"), device.front("state").unwrap_or_default());
        if device.back("stopped").is_some() {
            return false;
        }
        let next = LINUX.iter().find(|(from, ours, _)| back == Some(from.to_string()) && *ours == front);
        if let Some((.., to)) = next {
            device.set_state(XenbusState(*to));
        }
        next.is_some()
    });
}

fn connect<'x>(machine: &'x Machine, xs: &mut Xenstore<'x, MockDomain>) -> Frontend<Connected> {
    let device = machine.connect(xs).unwrap();
    assert_eq!(device.backend_id(), DRIVER);
    assert_eq!(device.is_closing(xs), Ok(false));
    device
}

#[test]
fn a_backend_that_has_cycled_is_noticed_wherever_it_is() {
    for state in [XenbusState::INITIALISING, XenbusState::INIT_WAIT, XenbusState::INITIALISED] {
        let machine = Machine::new();
        let there = plugged(&machine, Toolstack::Xl);
        let mut xs = machine.client();
        let device = connect(&machine, &mut xs);
        there.set_back("stopped", "");
        for state in [XenbusState::CLOSING, XenbusState::CLOSED, state] {
            there.set_state(state);
        }
        machine.settle();
        assert_eq!(device.change(&mut xs), Ok(BackendChange::Restarted), "{state}");
        assert_eq!(device.is_closing(&mut xs), Ok(true));
        // Whatever it does next: this connection is over.
        there.set_state(XenbusState::CONNECTED);
        machine.settle();
        assert_eq!(device.change(&mut xs), Ok(BackendChange::Restarted));
    }
}

#[test]
fn each_state_has_one_meaning() {
    for (state, expected) in [
        ("4", BackendChange::Told(XenbusState::CONNECTED)),
        ("7", BackendChange::Told(XenbusState::RECONFIGURING)),
        ("8", BackendChange::Told(XenbusState::RECONFIGURED)),
        ("5", BackendChange::Closing),
        ("6", BackendChange::Closed),
        ("0", BackendChange::Gone),
        ("9", BackendChange::Gone),
        ("none", BackendChange::Gone),
    ] {
        let machine = Machine::new();
        let there = plugged(&machine, Toolstack::Xl);
        let mut xs = machine.client();
        let device = connect(&machine, &mut xs);
        there.set_back("state", state);
        machine.settle();
        assert_eq!(device.change(&mut xs), Ok(expected), "{state}");
        let again = if expected.is_over() { expected } else { BackendChange::Same };
        assert_eq!(device.change(&mut xs), Ok(again), "{state}");
        assert_eq!(device.is_closing(&mut xs), Ok(expected.is_over()), "{state}");
    }
}

#[test]
fn a_backend_that_closes_has_closed_in_the_end() {
    let machine = Machine::new();
    let there = plugged(&machine, Toolstack::Xl);
    let mut xs = machine.client();
    let device = connect(&machine, &mut xs);
    there.detach();
    machine.settle();
    assert_eq!(device.change(&mut xs), Ok(BackendChange::Closing));
    // It does not become connected by saying so.
    there.set_state(XenbusState::CONNECTED);
    machine.settle();
    assert_eq!(device.change(&mut xs), Ok(BackendChange::Closing));
    there.set_state(XenbusState::CLOSED);
    machine.settle();
    assert_eq!(device.change(&mut xs), Ok(BackendChange::Closed));
}

#[test]
fn a_device_that_was_made_anew_is_another_one() {
    let machine = Machine::new();
    let there = plugged(&machine, Toolstack::Xl);
    let mut xs = machine.client();
    let device = connect(&machine, &mut xs);
    there.unplug();
    there.plug();
    // A backend that says so is not connected to us.
    there.set_state(XenbusState::CONNECTED);
    machine.settle();
    assert_eq!(device.change(&mut xs), Ok(BackendChange::Restarted));
    // Its nodes are not ours to write.
    assert_eq!(device.switch(&mut xs, XenbusState::CLOSED), Ok(false));
    device.close(&mut xs, machine.after(5)).unwrap();
    assert_eq!(there.front("state").as_deref(), Some("1"));
    assert_eq!(machine.store.watches(ID), 0);
    there.set_state(XenbusState::INITIALISING);
    connect(&machine, &mut xs);
}

#[test]
fn a_device_that_was_taken_away_is_gone_and_stays_so() {
    for toolstack in [Toolstack::Xl, Toolstack::Xapi] {
        let machine = Machine::new();
        let there = plugged(&machine, toolstack);
        let mut xs = machine.client();
        let device = connect(&machine, &mut xs);
        there.unplug();
        machine.settle();
        for _ in 0..3 {
            assert_eq!(device.change(&mut xs), Ok(BackendChange::Gone), "{toolstack:?}");
        }
        assert_eq!(device.switch(&mut xs, XenbusState::CLOSED), Ok(false));
        assert!(!there.is_there());
        device.close(&mut xs, machine.after(5)).unwrap();
        assert!(!there.is_there(), "{toolstack:?}: closing made the directory anew");
        assert_eq!(machine.store.watches(ID), 0);
    }
}

#[test]
fn no_step_makes_the_directory_of_a_device_anew() {
    // At any time of the handshake: so many turns of the machine after its beginning.
    for toolstack in [Toolstack::Xl, Toolstack::Xapi] {
        for turns in 0..60 {
            let machine = Machine::new();
            let there = plugged(&machine, toolstack);
            let mut xs = machine.client();
            let (device, mut left) = (there.clone(), turns);
            machine.xen.add_actor("toolstack", move |_| {
                if left == 0 {
                    device.unplug();
                }
                left -= 1;
                left >= 0
            });
            if let Ok(device) = machine.open(&mut xs) {
                let published = device.publish(&mut xs, XenbusState::INITIALISED, |transaction, path| {
                    transaction.write_display(&path.join("ring-ref")?, 8)
                });
                if let Ok(device) =
                    published.and_then(|device| device.wait_connected(&mut xs, machine.after(5)))
                {
                    let _ = device.switch(&mut xs, XenbusState::CONNECTED);
                    machine.settle();
                    let _ = device.close(&mut xs, machine.after(5));
                }
            }
            machine.settle();
            assert!(!there.is_there(), "{toolstack:?}, {turns}\n{}", machine.xen.trace_text());
            assert_eq!(machine.store.watches(ID), 0, "{toolstack:?}, {turns}");
        }
    }
}

#[test]
fn a_device_that_was_given_up_leaves_no_directory() {
    let machine = Machine::new();
    let there = plugged(&machine, Toolstack::Xapi);
    let mut xs = machine.client();
    let device = machine.open(&mut xs).unwrap();
    there.unplug();
    device.abandon(&mut xs).unwrap();
    assert!(!there.is_there());
    // Nor does one that is to publish.
    there.plug();
    let device = machine.open(&mut xs).unwrap();
    there.unplug();
    let published = device.publish(&mut xs, XenbusState::INITIALISED, |transaction, path| {
        transaction.write(&path.join("ring-ref")?, b"8")
    });
    assert_eq!(published.err(), Some(Error::BackendGone(XenbusState::UNKNOWN)));
    assert!(!there.is_there());
    assert_eq!(machine.store.watches(ID), 0);
}

#[test]
fn a_toolstack_that_follows_the_states_meets_a_guest_that_does() {
    for (then, is_there) in [(Then::Remove, false), (Then::Renew, true)] {
        let machine = Machine::new();
        let there = plugged(&machine, Toolstack::Xapi);
        there.follow(&machine.xen, then);
        there.hotplugged();
        let mut xs = machine.client();
        let device = connect(&machine, &mut xs);
        there.detach();
        machine.settle();
        assert_eq!(device.change(&mut xs), Ok(BackendChange::Closing));
        assert_eq!(device.close(&mut xs, machine.after(5)), Ok(()));
        machine.settle();
        assert_eq!(there.is_there(), is_there);
        if is_there {
            connect(&machine, &mut xs);
        }
    }
}

#[test]
fn a_directory_that_may_not_be_read_yet_is_waited_for() {
    let machine = Machine::new();
    let device = MockDevice::new(&machine.store, "test", 0, ID, DRIVER);
    device.plug();
    serve(&machine, &device);
    let secret = format!("n{}", DRIVER.0);
    for node in ["", "state"] {
        machine.store.set_permissions(&device.back_path(node), &secret);
    }
    for node in ["", "backend", "backend-id"] {
        machine.store.set_permissions(&device.front_path(node), "n0");
    }
    let (store, mut turn) = (machine.store.clone(), 0);
    let (front, back) = (device.front_path(""), device.back_path(""));
    machine.xen.add_actor("toolstack", move |_| {
        turn += 1;
        match turn {
            20 => {
                for path in [front.clone(), format!("{front}/backend"), format!("{front}/backend-id")] {
                    store.set_permissions(&path, "n1\0r3");
                }
            }
            60 => {
                for path in [back.clone(), format!("{back}/state")] {
                    store.set_permissions(&path, "n3\0r1");
                }
            }
            _ => {}
        }
        turn < 80
    });
    let mut xs = machine.client();
    connect(&machine, &mut xs);
    // And no longer than until the deadline.
    let machine = Machine::new();
    let device = MockDevice::new(&machine.store, "test", 0, ID, DRIVER);
    device.plug();
    for node in ["", "state"] {
        machine.store.set_permissions(&device.back_path(node), &secret);
    }
    let mut xs = machine.client();
    assert_eq!(machine.open(&mut xs).err(), Some(Error::BackendTimedOut(XenbusState::UNKNOWN)));
    assert_eq!(machine.xen.now().as_secs(), 5);
}

#[test]
fn a_watch_that_cannot_be_ended_skips_nothing() {
    let machine = Machine::new();
    let there = plugged(&machine, Toolstack::Xl);
    machine.store.refuse(Operation::UNWATCH, "ENOENT");
    let mut xs = machine.client();
    machine.store.write("/local/domain/1/data/n", "7");
    assert_eq!(xs.wait_for("data/n", machine.after(5), |number: &u32| *number == 7), Ok(Some(7)));
    let device = machine.open(&mut xs).unwrap();
    device.abandon(&mut xs).unwrap();
    assert_eq!(there.front("state").as_deref(), Some("6"));
    let device = connect(&machine, &mut xs);
    device.close(&mut xs, machine.after(5)).unwrap();
    assert_eq!(there.front("state").as_deref(), Some("6"));
    let watch = xs.watch("data/n").unwrap();
    assert_eq!(xs.unwatch(watch), Ok(()));
    assert_eq!(xs.fired(&watch), Err(Error::Stale));
}

#[test]
fn the_end_is_told_although_its_beginning_was_not() {
    let machine = Machine::new();
    let there = plugged(&machine, Toolstack::Xl);
    let mut xs = machine.client();
    let device = connect(&machine, &mut xs);
    there.set_back("stopped", "");
    xs.set_patience(std::time::Duration::from_secs(1));
    // The first question of closing is lost.
    machine.store.leave_unanswered(1);
    assert_eq!(device.close(&mut xs, machine.after(5)), Err(Error::TimedOut(Operation::TRANSACTION_START)));
    assert_eq!(there.front("state").as_deref(), Some("6"));
    assert_eq!(machine.store.watches(ID), 0);
}

#[test]
fn a_write_whose_answer_was_lost_leaves_the_device_ours() {
    let machine = Machine::new();
    let there = plugged(&machine, Toolstack::Xl);
    let mut xs = machine.client();
    xs.set_patience(std::time::Duration::from_secs(1));
    for lost in 0..5 {
        let device = connect(&machine, &mut xs);
        there.set_back("stopped", "");
        // Begin, read, write, end.
        let mut left = lost;
        machine.store.tamper(Some(move |header: &mut Header, _: &mut Vec<u8>| {
            let answers = header.kind != Operation::WATCH_EVENT.0;
            if answers && left == 0 {
                header.request_id = 0;
            }
            left -= i32::from(answers);
        }));
        let switched = device.switch(&mut xs, XenbusState::RECONFIGURING);
        assert_eq!(switched.is_err(), lost < 4, "{lost}: {switched:?}");
        machine.store.tamper(None::<fn(&mut Header, &mut Vec<u8>)>);
        machine.store.remove(&there.back_path("stopped"));
        device.close(&mut xs, machine.after(5)).unwrap();
        assert_eq!(there.front("state").as_deref(), Some("6"), "{lost}");
    }
}

/// The backend may have been told of rings although nobody said so: they are about to go, and it must not use them.
#[test]
fn a_device_whose_publication_may_have_been_done_is_closed() {
    let machine = Machine::new();
    let there = plugged(&machine, Toolstack::Xl);
    let mut xs = machine.client();
    xs.set_patience(std::time::Duration::from_secs(1));
    // Begin, read twice, write twice, end.
    for lost in 0..6 {
        there.set_back("stopped", "");
        there.set_state(XenbusState::INIT_WAIT);
        let device = machine.open(&mut xs).unwrap();
        let mut left = lost;
        machine.store.tamper(Some(move |header: &mut Header, _: &mut Vec<u8>| {
            let answers = header.kind != Operation::WATCH_EVENT.0;
            if answers && left == 0 {
                header.request_id = 0;
            }
            left -= i32::from(answers);
        }));
        let published = device.publish(&mut xs, XenbusState::INITIALISED, |transaction, path| {
            transaction.write(&path.join("ring-ref")?, b"8")
        });
        assert!(matches!(published, Err(Error::TimedOut(_))), "{lost}: {published:?}");
        machine.store.tamper(None::<fn(&mut Header, &mut Vec<u8>)>);
        assert_eq!(there.front("state").as_deref(), Some("6"), "{lost}");
        assert_eq!(machine.store.watches(ID), 0);
        machine.store.remove(&there.back_path("stopped"));
        let device = connect(&machine, &mut xs);
        device.close(&mut xs, machine.after(5)).unwrap();
    }
}

#[test]
fn a_daemon_that_was_started_again_is_asked_anew() {
    let machine = Machine::new();
    let there = plugged(&machine, Toolstack::Xl);
    let mut xs = machine.client();
    let device = connect(&machine, &mut xs);
    machine.store.restart();
    machine.settle();
    assert!(matches!(device.change(&mut xs), Err(Error::Disconnected(_))));
    there.set_state(XenbusState::CLOSING);
    xs.reconnect().unwrap();
    assert_eq!(machine.store.watches(ID), 1);
    // What happened meanwhile is not lost.
    machine.settle();
    assert_eq!(device.change(&mut xs), Ok(BackendChange::Closing));
}
