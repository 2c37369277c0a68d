//! A backend that is started again, and a toolstack that takes a device away without asking.
#![cfg(feature = "mock")]

mod common;

use common::{GUEST, HOST, Machine, frame};
use xen_hypercall::DomId;
use xen_hypercall::mock::{Chance, Dice, MockDomain};
use xen_netfront::mock::{Faults, MockNetback, Options};
use xen_netfront::{Config, Error, FRAME_MAX, Followup, GROUPS, Mac, Multicast, NetFront, State};
use xen_xenstore::Xenstore;

/// A frame gets through, each way.
fn assert_passes(machine: &Machine, front: &mut NetFront<'_, MockDomain>) {
    machine.run();
    while front.receive(&mut [0; FRAME_MAX]).unwrap().is_some() {}
    while machine.switch.receive().is_some() {}
    front.transmit(&frame(HOST, GUEST, 70, 1)).unwrap();
    machine.switch.send(frame(GUEST, HOST, 80, 2));
    front.publish().unwrap();
    machine.run();
    assert_eq!(machine.switch.receive().unwrap().bytes, frame(HOST, GUEST, 70, 1));
    assert_eq!(front.receive(&mut [0; FRAME_MAX]), Ok(Some(80)));
}

fn assert_refuses(front: &mut NetFront<'_, MockDomain>) {
    assert_eq!(front.transmit(&frame(HOST, GUEST, 60, 0)), Err(Error::Closed));
    assert_eq!(front.publish(), Err(Error::Closed));
    assert_eq!(front.arm(), Err(Error::Closed));
    assert_eq!(front.receive(&mut [0; 60]), Err(Error::Closed));
}

#[test]
fn a_backend_that_is_at_the_beginning_again_takes_no_frames() {
    for begun in ["1", "2", "3"] {
        let machine = Machine::new();
        let back = machine.vif(Options::default());
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let mut front = machine.connect(&mut xs).unwrap();
        assert_passes(&machine, &mut front);
        // It was closed, gone, and there again before the guest looked.
        back.stall(true);
        back.restart();
        back.set_back("state", begun);
        machine.run();
        assert_eq!(front.service(&mut xs), Ok(State::Closed), "{begun}");
        assert_refuses(&mut front);
        assert_eq!(front.is_backend_waiting(&mut xs), Ok(true));
        back.set_back("state", "2");
        back.stall(false);
        front.reconnect(&mut xs, machine.soon()).unwrap();
        assert_passes(&machine, &mut front);
        front.close(&mut xs, machine.soon()).unwrap();
        assert_eq!((machine.grants.stats().in_use, back.complaints()), (0, vec![]));
    }
}

#[test]
fn a_device_that_was_made_anew_takes_no_frames_and_keeps_its_nodes() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut front = machine.connect(&mut xs).unwrap();
    back.force_detach();
    back.come_back();
    machine.run();
    assert_eq!(front.service(&mut xs), Ok(State::Closed));
    assert_refuses(&mut front);
    assert_eq!(back.front("state").as_deref(), Some("1"), "it is another device's");
    assert_eq!(front.is_backend_waiting(&mut xs), Ok(true));
    front.reconnect(&mut xs, machine.soon()).unwrap();
    assert_passes(&machine, &mut front);
    front.close(&mut xs, machine.soon()).unwrap();
    assert_eq!((machine.grants.stats().in_use, back.complaints()), (0, vec![]));
}

#[test]
fn a_backend_that_takes_up_the_rings_again_is_gone_on_with() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut front = machine.connect(&mut xs).unwrap();
    for _ in 0..3 {
        assert_passes(&machine, &mut front);
        back.restart();
        machine.run();
        assert_eq!(front.service(&mut xs), Ok(State::Connected));
    }
    assert_passes(&machine, &mut front);
    assert_eq!((front.stats().reconnects, back.complaints()), (0, vec![]));
}

#[test]
fn what_was_asked_for_is_asked_of_the_next_backend_or_told() {
    let group = |number| Mac([1, 0, 0x5e, 0, 1, number]);
    // With fewer pages than addresses they are asked for in several rounds.
    for (tx_pages, kind) in [(256, Multicast::Dynamic), (4, Multicast::Dynamic), (256, Multicast::Static)] {
        let machine = Machine::new();
        let back = machine.vif(Options { multicast: kind, ..Options::default() });
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let config = Config { tx_pages, control_ring: true, multicast_filter: true, ..Config::default() };
        let mut front = machine.connect_with::<1>(&mut xs, config).unwrap();
        let want = |front: &mut NetFront<'_, MockDomain>, number, wanted| {
            let asked = front.want_multicast(group(number), wanted);
            front.publish().unwrap();
            machine.run();
            asked
        };
        for number in 0..GROUPS as u8 {
            want(&mut front, number, true).unwrap();
        }
        assert_eq!(want(&mut front, 64, true), Err(Error::TooManyGroups));
        want(&mut front, 7, false).unwrap();
        want(&mut front, 64, true).unwrap();
        let wanted = back.wanted();
        assert!(wanted.len() == GROUPS && !wanted.contains(&group(7).0) && wanted.contains(&group(64).0));
        let soon = machine.soon();
        front.control(soon).unwrap().set_hash_algorithm(1).unwrap();
        assert_eq!(front.take_followup(), Followup::empty());

        back.close();
        machine.run();
        assert_eq!((front.service(&mut xs), back.wanted()), (Ok(State::Closed), vec![]));
        back.vanish();
        // One that comes to nothing does not forget what the first one lost.
        assert!(front.reconnect(&mut xs, machine.soon()).is_err());
        back.come_back();
        front.reconnect(&mut xs, machine.soon()).unwrap();
        assert_eq!(front.take_followup(), Followup::ANNOUNCE | Followup::CONTROL);
        assert_eq!(front.take_followup(), Followup::empty());
        machine.run();
        assert_eq!((back.wanted(), front.stats().tx_errors), (wanted.clone(), 0));
        // So does the filter.
        machine.switch.send(frame(group(7).0, HOST, 60, 0));
        machine.switch.send(frame(group(8).0, HOST, 60, 0));
        machine.run();
        assert_eq!(front.receive(&mut [0; 60]), Ok(Some(60)));
        assert_eq!(front.receive(&mut [0; 60]), Ok(None));

        // A backend that takes the rings up knows nothing either, though nothing has to begin anew.
        if tx_pages == 256 {
            back.restart();
            machine.run();
            assert_eq!(front.service(&mut xs), Ok(State::Connected));
            assert_eq!(front.take_followup(), Followup::ANNOUNCE);
            machine.run();
            assert_eq!(back.wanted(), wanted);
        }
        // Who does not act is not waited for longer than was asked.
        back.close();
        back.come_back();
        back.set_faults(Dice::new(0), {
            let mut faults = Faults::default();
            faults.lost = Chance::ALWAYS;
            faults
        });
        let soon = machine.soon();
        if tx_pages < GROUPS {
            front.reconnect(&mut xs, soon).unwrap();
            assert_eq!(front.take_followup(), Followup::ANNOUNCE | Followup::MULTICAST);
            assert!(machine.xen.now() <= soon + std::time::Duration::from_secs(1));
        }
        assert_eq!(back.complaints(), [""; 0]);
    }
}

#[test]
fn a_filter_that_was_changed_stays_so() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut front = machine.connect(&mut xs).unwrap();
    front.filter_multicast(&mut xs, true).unwrap();
    for _ in 0..2 {
        assert_eq!(back.front("request-multicast-control").as_deref(), Some("1"));
        front.reconnect(&mut xs, machine.soon()).unwrap();
    }
}

/// A machine whose guest may write anything below `device`, as toolstacks of XAPI leave it.
fn machine_of_xapi() -> (Machine, MockNetback) {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    for directory in ["/local/domain/1/device", "/local/domain/1/device/vif"] {
        machine.store.set_permissions(directory, "n1\0r0");
    }
    (machine, back)
}

#[test]
fn a_device_that_was_removed_by_force_is_not_brought_back() {
    for (served, reconnects) in [(true, false), (true, true), (false, false), (false, true)] {
        let (machine, back) = machine_of_xapi();
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let ports = xen_evtchn::mock::open_ports(&machine.guest);
        let mut front = machine.connect(&mut xs).unwrap();
        assert_passes(&machine, &mut front);
        back.force_detach();
        machine.run();
        if served {
            assert_eq!(front.service(&mut xs), Ok(State::Closed));
            assert_refuses(&mut front);
            assert_eq!(front.service(&mut xs), Ok(State::Closed));
            assert_eq!(front.is_backend_waiting(&mut xs), Ok(false));
        }
        if reconnects {
            let again = front.reconnect(&mut xs, machine.soon());
            assert!(matches!(again, Err(Error::Xenstore(error)) if error.is_not_found()), "{again:?}");
        }
        assert_eq!(front.close(&mut xs, machine.soon()), Ok(()));
        assert_eq!(machine.store.list("/local/domain/1/device/vif"), [""; 0], "{served} {reconnects}");
        assert_eq!((machine.grants.stats().in_use, machine.grants.stats().quarantined), (0, 0));
        assert_eq!(xen_evtchn::mock::open_ports(&machine.guest), ports);
        // No watch is left behind, and a device in the same place works.
        assert_eq!(machine.store.watches(DomId(1)), 0);
        back.come_back();
        let mut front = machine.connect(&mut xs).unwrap();
        assert_passes(&machine, &mut front);
    }
}

/// The toolstack makes another device in the same place while the backend is waited for.
#[test]
fn a_device_that_is_made_anew_while_it_connects_keeps_its_nodes() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let begun = NetFront::<_, 1>::begin(
        &mut xs,
        &machine.events,
        &machine.grants,
        0,
        machine.soon(),
        Config::default(),
    );
    let begun = begun.unwrap();
    back.stall(true);
    back.force_detach();
    back.come_back();
    assert!(begun.finish(&mut xs, machine.soon()).is_err());
    assert_eq!(back.front("state").as_deref(), Some("1"), "it is another device's");
    back.stall(false);
    let mut front = machine.connect(&mut xs).unwrap();
    assert_passes(&machine, &mut front);
}

#[test]
fn a_device_that_is_removed_while_its_backend_is_waited_for_is_not_brought_back() {
    let (machine, back) = machine_of_xapi();
    back.stall(true);
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let (mut looks, toolstack, store) = (0, back.clone(), machine.store.clone());
    machine.xen.add_actor("toolstack", move |_| {
        // A while after the guest has begun.
        looks += usize::from(store.watches(DomId(1)) > 0);
        if looks == 60 {
            toolstack.force_detach();
        }
        (1..80).contains(&looks)
    });
    assert!(matches!(machine.connect(&mut xs).err(), Some(Error::Xenstore(_))));
    assert_eq!(machine.store.list("/local/domain/1/device/vif"), [""; 0]);
    assert_eq!((machine.grants.stats().in_use, machine.store.watches(DomId(1))), (0, 0));
}
