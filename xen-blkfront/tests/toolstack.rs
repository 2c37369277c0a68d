//! A toolstack that removes a disk that has ended, or makes it anew; a hotplug script that hangs.
#![cfg(feature = "mock")]

mod common;

use common::{Machine, VBD};
use xen_blkfront::mock::Options;
use xen_blkfront::{Error, State};
use xen_hypercall::DomId;
use xen_xenstore::Xenstore;
use xen_xenstore::mock::{Then, Toolstack};
use xen_xenstore::xenbus::XenbusState;

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
    let waits = xen_xenstore::Error::BackendTimedOut(XenbusState::INIT_WAIT);
    assert_eq!(machine.connect(&mut xs).err(), Some(Error::Xenstore(waits)));
    back.stall_hotplug(false);
    assert_eq!(machine.connect(&mut xs).unwrap().read(0, &mut [0; 512]), Ok(()));
}
