//! A toolstack and a daemon that do their part late, or not as asked.
#![cfg(feature = "mock")]

mod common;

use std::time::Duration;

use common::{GUEST, HOST, Machine, frame};
use xen_hypercall::DomId;
use xen_netfront::mock::{MockNetback, Options};
use xen_netfront::{Config, Error, NetFront, State};
use xen_xenstore::Xenstore;
use xen_xenstore::mock::{Then, Toolstack};
use xen_xenstore::wire::Operation;
use xen_xenstore::xenbus::XenbusState;

const FRONT: &str = "/local/domain/1/device/vif/0";
const BACK: &str = "/local/domain/0/backend/vif/1/0";

#[test]
fn a_directory_that_may_not_be_read_yet_is_waited_for() {
    for (directory, later) in [(BACK, "n0\0r1"), (FRONT, "n1\0r0")] {
        let machine = Machine::new();
        let back = machine.vif(Options::default());
        machine.store.permit(directory, "n0");
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let start = machine.xen.now();
        // Not for ever.
        let refused = machine.connect(&mut xs).err();
        assert!(machine.xen.now() - start >= Duration::from_secs(5), "{directory}");
        let expected = match directory {
            BACK => {
                matches!(
                    refused,
                    Some(Error::Xenstore(xen_xenstore::Error::BackendTimedOut(XenbusState::UNKNOWN)))
                )
            }
            _ => matches!(refused, Some(Error::Xenstore(error)) if error.is_absent()),
        };
        assert!(expected, "{directory}: {refused:?}");
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
        let mut front = machine.connect(&mut xs).unwrap_or_else(|error| panic!("{directory}: {error}"));
        passes(&machine, &back, &mut front);
    }
}

fn passes(
    machine: &Machine,
    back: &MockNetback,
    front: &mut xen_netfront::NetFront<'_, xen_hypercall::mock::MockDomain>,
) {
    front.transmit(&frame(HOST, GUEST, 60, 0)).unwrap();
    front.publish().unwrap();
    machine.run();
    assert!(machine.switch.receive().is_some());
    assert_eq!(back.complaints(), [""; 0]);
}

#[test]
fn a_watch_that_is_gone_already_keeps_nothing_from_closing() {
    for follow_link in [false, true] {
        let machine = Machine::new();
        let back = machine.vif(Options::default());
        machine.store.refuse(Operation::UNWATCH, "ENOENT");
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let ports = xen_evtchn::mock::open_ports(&machine.guest);
        let config = Config { follow_link, ..Config::default() };
        // By itself, by the backend's wish, and for another beginning.
        let front = machine.connect_with::<1>(&mut xs, config).unwrap();
        assert_eq!(front.close(&mut xs, machine.soon()), Ok(()));
        assert_eq!(back.front("state").as_deref(), Some("6"));
        let mut front = machine.connect_with::<1>(&mut xs, config).unwrap();
        assert_eq!(front.reconnect(&mut xs, machine.soon()), Ok(()));
        passes(&machine, &back, &mut front);
        back.detach();
        machine.run();
        front.service(&mut xs).unwrap();
        assert_eq!(front.close(&mut xs, machine.soon()), Ok(()));
        assert_eq!(back.front("state").as_deref(), Some("6"));
        machine.run();
        machine.grants.reclaim();
        assert_eq!((machine.grants.stats().in_use, machine.grants.stats().quarantined), (0, 0));
        assert_eq!(xen_evtchn::mock::open_ports(&machine.guest), ports);
    }
}

#[test]
fn a_device_that_has_ended_is_made_anew_and_works_again() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    assert_eq!(machine.store.read(&format!("{BACK}/online")).as_deref(), Some("1"));
    let mut xs = Xenstore::new(&machine.events).unwrap();
    for _ in 0..3 {
        let mut front = machine.connect(&mut xs).unwrap();
        assert_eq!(machine.store.read(&format!("{BACK}/hotplug-status")).as_deref(), Some("connected"));
        passes(&machine, &back, &mut front);
        back.follow(Then::Renew);
        back.detach();
        assert_eq!(machine.store.read(&format!("{BACK}/online")).as_deref(), Some("0"));
        machine.run();
        let state = front.service(&mut xs).unwrap();
        assert!(matches!(state, State::Closing | State::Closed));
        assert_eq!(front.close(&mut xs, machine.soon()), Ok(()));
        machine.run();
        assert_eq!(back.front("state").as_deref(), Some("1"), "it is another device");
    }
    assert_eq!(machine.store.watches(DomId(1)), 0);
}

#[test]
fn a_device_that_has_ended_goes_and_stays_away() {
    for toolstack in [Toolstack::Xl, Toolstack::Xapi] {
        let machine = Machine::new();
        let back = machine.vif(Options { toolstack, ..Options::default() });
        let owner = machine.store.permissions("/local/domain/1/device/vif").unwrap();
        assert_eq!(owner.starts_with("n1"), toolstack == Toolstack::Xapi, "{owner}");
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let front = machine.connect(&mut xs).unwrap();
        back.follow(Then::Remove);
        assert_eq!(front.close(&mut xs, machine.soon()), Ok(()));
        machine.run();
        assert_eq!(machine.store.list("/local/domain/1/device/vif"), [""; 0], "{toolstack:?}");
        assert_eq!(machine.store.list("/local/domain/0/backend/vif/1"), [""; 0], "{toolstack:?}");
        assert_eq!(machine.store.watches(DomId(1)), 0);
        assert_eq!((machine.grants.stats().in_use, machine.grants.stats().quarantined), (0, 0));
    }
}

#[test]
fn a_backend_whose_script_hangs_is_waited_for() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    back.stall_hotplug(true);
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let late = machine.connect(&mut xs).err();
    let waits = xen_xenstore::Error::BackendTimedOut(XenbusState::INIT_WAIT);
    assert_eq!(late, Some(Error::Xenstore(waits)));
    back.stall_hotplug(false);
    let mut front = machine.connect(&mut xs).unwrap();
    passes(&machine, &back, &mut front);
}

/// A backend writes its state again and again, and each look at it takes 10 ms.
#[test]
fn a_backend_that_rewrites_its_state_holds_nothing_beyond_its_deadline() {
    let in_time = |machine: &Machine, start: Duration, what: &str| {
        let took = machine.xen.now() - start;
        assert!(took < Duration::from_secs(6), "{what}: {took:?}");
    };
    for state in ["1", "2", "4", "6"] {
        let machine = Machine::new();
        let back = machine.vif(Options::default());
        back.stall(true);
        machine.store.flood(&machine.xen, &format!("{BACK}/state"), state);
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let start = machine.xen.now();
        let connected = machine.connect(&mut xs).is_ok();
        in_time(&machine, start, "connect");
        assert!(!connected, "{state}");
        for closes in [false, true] {
            let machine = Machine::new();
            let back = machine.vif(Options::default());
            let mut xs = Xenstore::new(&machine.events).unwrap();
            let mut front = machine.connect(&mut xs).unwrap();
            back.stall(true);
            machine.store.flood(&machine.xen, &format!("{BACK}/state"), state);
            let (start, soon) = (machine.xen.now(), machine.soon());
            let outcome = if closes { front.close(&mut xs, soon) } else { front.reconnect(&mut xs, soon) };
            in_time(&machine, start, if closes { "close" } else { "reconnect" });
            // The end needs nobody if the backend says that it has closed.
            assert!(outcome.is_err() || closes && state == "6", "{state}, closes {closes}");
            assert_eq!(machine.store.watches(DomId(1)), 0);
        }
    }
}

#[test]
fn many_cards_share_a_connection() {
    let machine = Machine::new();
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let config = Config { tx_pages: 16, rx_pages: 16, follow_link: true, ..Config::default() };
    let mut cards: Vec<_> = (0..16)
        .map(|index| {
            let back =
                MockNetback::new(&machine.switch, &machine.store, &machine.guest, index, Options::default());
            let (events, grants, soon) = (&machine.events, &machine.grants, machine.soon());
            let front = NetFront::<_, 1>::connect_with(&mut xs, events, grants, index, soon, config);
            (back, front.unwrap_or_else(|error| panic!("card {index}: {error}")))
        })
        .collect();
    for (back, front) in &mut cards {
        passes(&machine, back, front);
        assert_eq!(front.service(&mut xs), Ok(State::Connected));
    }
    for (_, front) in cards {
        front.close(&mut xs, machine.soon()).unwrap();
    }
    assert_eq!((machine.store.watches(DomId(1)), machine.grants.stats().in_use), (0, 0));
}
