//! How a disk ends: what the toolstack and the backend may do to it, in which order its parts go, and when waiting ends.
#![cfg(feature = "mock")]

mod common;

use std::sync::Mutex;
use std::time::Duration;

use common::{Machine, small};
use xen_blkfront::mock::Options;
use xen_blkfront::{Error, State};
use xen_hypercall::DomId;
use xen_xenstore::Xenstore;

const FRONT: &str = "/local/domain/1/device/vbd/51712";
const BACK: &str = "/local/domain/0/backend/vbd/1/51712";

#[test]
fn a_backend_that_begins_anew_has_closed_in_whatever_state_it_is_met() {
    for state in ["0", "1", "2", "3", "6", "99", "", "x"] {
        let machine = Machine::new();
        let back = machine.disk(Options::default());
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let mut disk = machine.connect(&mut xs).unwrap();
        back.stall(true);
        machine.store.write(&format!("{BACK}/state"), state);
        machine.xen.run_until_idle(100);
        assert_eq!(disk.service(&mut xs), Ok(State::Closed), "{state}");
        assert_eq!(disk.submit_read(0, 1), Err(Error::Closed));
        assert_eq!(disk.is_backend_waiting(&mut xs), Ok(["1", "2"].contains(&state)), "{state}");
    }
}

#[test]
fn a_disk_says_that_it_is_closing_until_it_has_closed() {
    let machine = Machine::new();
    let back = machine.disk(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    back.detach();
    machine.xen.run_until_idle(100);
    for _ in 0..2 {
        assert_eq!(disk.service(&mut xs), Ok(State::Closing));
    }
    assert_eq!((disk.submit_flush(), disk.is_backend_waiting(&mut xs)), (Err(Error::Closed), Ok(false)));
    back.drop_out();
    machine.xen.run_until_idle(100);
    assert_eq!(disk.service(&mut xs), Ok(State::Closed));
}

#[test]
fn a_disk_that_is_taken_away_by_force_is_closed_and_its_directory_stays_away() {
    for (owned, served, reconnects) in [
        (false, true, true),
        (true, true, false),
        (true, true, true),
        (true, false, false),
        (true, false, true),
    ] {
        let machine = Machine::new();
        let back = machine.disk(Options::default());
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let ports = xen_evtchn::mock::open_ports(&machine.guest);
        let mut disk = machine.connect(&mut xs).unwrap();
        if owned {
            // As some toolstacks have it: what is above the disk is the guest's, too.
            machine.store.set_permissions("/local/domain/1/device/vbd", "n1");
            machine.store.set_permissions("/local/domain/1/device", "n1");
        }
        back.vanish();
        machine.store.remove(FRONT);
        machine.xen.run_until_idle(100);
        if served {
            for _ in 0..2 {
                assert_eq!(disk.service(&mut xs), Ok(State::Closed));
            }
            assert_eq!(disk.is_backend_waiting(&mut xs), Ok(false));
        }
        if reconnects {
            let again = disk.reconnect(&mut xs, machine.soon());
            assert!(matches!(again, Err(Error::Xenstore(error)) if error.is_not_found()), "{again:?}");
        }
        assert_eq!(disk.close(&mut xs, machine.soon()), Ok(()));
        let left = machine.store.list("/local/domain/1/device/vbd");
        assert_eq!(left, [""; 0], "owned {owned}, served {served}, reconnects {reconnects}");
        machine.grants.reclaim();
        assert_eq!((machine.grants.stats().in_use, machine.grants.stats().quarantined), (0, 0));
        assert_eq!(xen_evtchn::mock::open_ports(&machine.guest), ports);
        assert_eq!(machine.store.watches(DomId(1)), 0);
    }
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
        let back = machine.disk(Options::default());
        back.stall(true);
        machine.store.flood(&machine.xen, &format!("{BACK}/state"), state);
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let start = machine.xen.now();
        assert!(machine.connect(&mut xs).is_err());
        in_time(&machine, start, "connect");
        for closes in [false, true] {
            let machine = Machine::new();
            let back = machine.disk(Options::default());
            let mut xs = Xenstore::new(&machine.events).unwrap();
            let mut disk = machine.connect(&mut xs).unwrap();
            back.stall(true);
            machine.store.flood(&machine.xen, &format!("{BACK}/state"), state);
            let (start, soon) = (machine.xen.now(), machine.soon());
            let outcome = if closes { disk.close(&mut xs, soon) } else { disk.reconnect(&mut xs, soon) };
            in_time(&machine, start, if closes { "close" } else { "reconnect" });
            // The end needs nobody if the backend says that it has closed.
            assert!(outcome.is_err() || closes && state == "6", "{state}, closes {closes}");
            assert_eq!(machine.store.watches(DomId(1)), 0);
        }
    }
}

#[test]
fn a_pause_of_the_guest_is_not_the_backends_fault() {
    let machine = Machine::new();
    let back = machine.disk(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect_with(&mut xs, small()).unwrap();
    back.stall(true);
    // The guest sleeps for twenty minutes at once, and the backend, which was paused as well, works again a second later.
    let (xen, handle, paused) = (machine.xen.clone(), back.clone(), Mutex::new(None::<Duration>));
    machine.xen.add_actor("pause", move |_| {
        let mut paused = paused.lock().unwrap();
        let now = xen.now();
        match *paused {
            None => {
                *paused = Some(now + Duration::from_secs(1201));
                xen.advance(Duration::from_secs(1200));
            }
            Some(end) if now >= end => {
                handle.stall(false);
                *paused = Some(Duration::MAX);
                return true;
            }
            _ => {}
        }
        false
    });
    assert_eq!(disk.read(0, &mut [0; 512]), Ok(()));
    assert!(machine.xen.now() < Duration::from_secs(1205));
}
