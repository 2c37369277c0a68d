//! A toolstack and a daemon that do their part late, or not as asked; one that removes a disk that has ended, or makes it anew.
#![cfg(feature = "mock")]

mod common;

use std::time::Duration;

use common::{Machine, VBD};
use xen_blkfront::mock::Options;
use xen_blkfront::{Error, State};
use xen_hypercall::DomId;
use xen_xenstore::Xenstore;
use xen_xenstore::mock::{Then, Toolstack};
use xen_xenstore::wire::Operation;
use xen_xenstore::xenbus::XenbusState;

const FRONT: &str = "/local/domain/1/device/vbd/51712";
const BACK: &str = "/local/domain/0/backend/vbd/1/51712";

#[test]
fn a_directory_that_may_not_be_read_yet_is_waited_for() {
    for (directory, later) in [(BACK, "n0\0r1"), (FRONT, "n1\0r0")] {
        let machine = Machine::new();
        let _back = machine.disk(Options::default());
        machine.store.permit(directory, "n0");
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let start = machine.xen.now();
        // Not for ever.
        let refused = machine.connect(&mut xs).err();
        assert!(machine.xen.now() - start >= Duration::from_secs(5), "{directory}");
        let expected = match directory {
            BACK => refused == Some(waits(XenbusState::UNKNOWN)),
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
        let mut disk = machine.connect(&mut xs).unwrap_or_else(|error| panic!("{directory}: {error}"));
        assert_eq!(disk.write(0, &[7; 512]), Ok(()));
    }
}

fn waits(state: XenbusState) -> Error {
    Error::Xenstore(xen_xenstore::Error::BackendTimedOut(state))
}

#[test]
fn a_watch_that_is_gone_already_keeps_nothing_from_closing() {
    let machine = Machine::new();
    let back = machine.disk(Options::default());
    machine.store.refuse(Operation::UNWATCH, "ENOENT");
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let ports = xen_evtchn::mock::open_ports(&machine.guest);
    let front = || machine.store.read(&format!("{FRONT}/state"));
    // By itself, for another beginning, and by the backend's wish.
    let disk = machine.connect(&mut xs).unwrap();
    assert_eq!(disk.close(&mut xs, machine.soon()), Ok(()));
    assert_eq!(front().as_deref(), Some("6"));
    let mut disk = machine.connect(&mut xs).unwrap();
    assert_eq!(disk.reconnect(&mut xs, machine.soon()), Ok(()));
    assert_eq!(disk.write(0, &[7; 512]), Ok(()));
    back.detach();
    machine.xen.run_until_idle(100);
    assert_eq!(disk.service(&mut xs), Ok(State::Closing));
    assert_eq!(disk.close(&mut xs, machine.soon()), Ok(()));
    assert_eq!(front().as_deref(), Some("6"));
    machine.xen.run_until_idle(100);
    machine.grants.reclaim();
    assert_eq!((machine.grants.stats().in_use, machine.grants.stats().quarantined), (0, 0));
    assert_eq!(xen_evtchn::mock::open_ports(&machine.guest), ports);
}

#[test]
fn a_disk_that_has_ended_is_made_anew_and_works_again() {
    for toolstack in [Toolstack::Xl, Toolstack::Xapi] {
        let machine = Machine::new();
        let back = machine.disk(Options { toolstack, ..Options::default() });
        let node = |name: &str| machine.store.read(&format!("/local/domain/0/backend/vbd/1/{VBD}/{name}"));
        back.follow(Then::Renew);
        let mut xs = Xenstore::new(&machine.events).unwrap();
        for _ in 0..3 {
            let mut disk = machine.connect(&mut xs).unwrap();
            assert_eq!(
                (node("online").as_deref(), node("hotplug-status").as_deref()),
                (Some("1"), Some("connected"))
            );
            disk.write(0, &[7; 512]).unwrap();
            back.detach();
            assert_eq!(node("online").as_deref(), Some("0"));
            machine.xen.run_until_idle(100);
            assert_eq!(disk.service(&mut xs), Ok(State::Closing));
            disk.close(&mut xs, machine.soon()).unwrap();
            machine.xen.run_until_idle(100);
            let front = machine.store.read(&format!("/local/domain/1/device/vbd/{VBD}/state"));
            assert_eq!(front.as_deref(), Some("1"), "it is another device");
        }
        assert_eq!((machine.store.watches(DomId(1)), back.complaints()), (0, vec![]));
    }
}

#[test]
fn a_disk_that_has_ended_goes_and_stays_away() {
    for toolstack in [Toolstack::Xl, Toolstack::Xapi] {
        let machine = Machine::new();
        let back = machine.disk(Options { toolstack, ..Options::default() });
        let owner = machine.store.permissions("/local/domain/1/device/vbd").unwrap();
        assert_eq!(owner.starts_with("n1"), toolstack == Toolstack::Xapi, "{owner}");
        back.follow(Then::Remove);
        let mut xs = Xenstore::new(&machine.events).unwrap();
        machine.connect(&mut xs).unwrap().close(&mut xs, machine.soon()).unwrap();
        machine.xen.run_until_idle(100);
        assert_eq!(machine.store.list("/local/domain/1/device/vbd"), [""; 0], "{toolstack:?}");
        assert_eq!(machine.store.list("/local/domain/0/backend/vbd/1"), [""; 0], "{toolstack:?}");
        assert!(back.is_gone() && machine.store.watches(DomId(1)) == 0);
    }
}

#[test]
fn a_backend_whose_script_hangs_is_waited_for() {
    let machine = Machine::new();
    let back = machine.disk(Options::default());
    back.stall_hotplug(true);
    let mut xs = Xenstore::new(&machine.events).unwrap();
    assert_eq!(machine.connect(&mut xs).err(), Some(waits(XenbusState::INIT_WAIT)));
    back.stall_hotplug(false);
    assert_eq!(machine.connect(&mut xs).unwrap().read(0, &mut [0; 512]), Ok(()));
}
