//! A device whose domain is suspended and goes on in a new one.
#![cfg(feature = "mock")]

mod common;

use common::{GUEST, HOST, Machine, frame, tcp};
use xen_gnttab::Access;
use xen_hypercall::DomId;
use xen_hypercall::mock::MockDomain;
use xen_hypercall::sched::Resumed;
use xen_netfront::abi::*;
use xen_netfront::mock::{ControlLimits, Options};
use xen_netfront::{
    Config, Error, FRAME_MAX, Features, Followup, FramePage, Mac, Multicast, NetFront, State, TxMeta,
};
use xen_xenstore::Xenstore;

/// Frames get through, each way.
fn assert_passes<const QUEUES: usize>(machine: &Machine, front: &mut NetFront<'_, MockDomain, QUEUES>) {
    machine.run();
    while front.receive(&mut [0; FRAME_MAX]).unwrap().is_some() {}
    while machine.switch.receive().is_some() {}
    for round in 0..50 {
        front.transmit(&frame(HOST, GUEST, 70, round)).unwrap();
        machine.switch.send(frame(GUEST, HOST, 80, round));
        front.publish().unwrap();
        machine.run();
        assert_eq!(machine.switch.receive().unwrap().bytes, frame(HOST, GUEST, 70, round));
        let mut buf = [0; FRAME_MAX];
        assert_eq!(front.receive(&mut buf), Ok(Some(80)));
        assert_eq!(buf[..80], frame(GUEST, HOST, 80, round));
    }
}

#[test]
fn a_device_goes_on_with_its_own_pages() {
    for split_channels in [false, true] {
        let machine = Machine::new();
        let back = machine.vif(Options::default());
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let config = Config { split_channels, ..Config::default() };
        let mut front = machine.connect_with::<3>(&mut xs, config).unwrap();
        assert_passes(&machine, &mut front);
        let (pages, watches) = (machine.guest.pages_in_use(), machine.store.watches(machine.guest.id()));
        let ports = xen_evtchn::mock::open_ports(&machine.guest);
        for life in 1..4 {
            // Frames are under way in both directions.
            for number in 0..100 {
                front.transmit(&frame(HOST, GUEST, 70, number)).unwrap();
                machine.switch.send(frame(GUEST, HOST, 80, number));
            }
            assert_eq!(machine.suspend(&mut xs, &mut front), (Resumed::InNewDomain, 0));
            assert_eq!(front.state(), State::Connected);
            assert_eq!((front.queues(), front.stats().reconnects), (3, life));
            assert_eq!(front.take_followup(), Followup::ANNOUNCE);
            assert_eq!(machine.guest.pages_in_use(), pages, "nothing was copied or lost");
            assert_passes(&machine, &mut front);
            assert_eq!(machine.store.watches(machine.guest.id()), watches);
            assert_eq!(xen_evtchn::mock::open_ports(&machine.guest), ports);
            assert_eq!(back.complaints(), [""; 0]);
        }
        front.close(&mut xs, machine.soon()).unwrap();
        assert_eq!(machine.grants.stats().in_use, 0);
    }
}

#[test]
fn a_backend_in_another_domain_may_offer_less_or_more() {
    let machine = Machine::new();
    let back = machine.vif(Options { queues: 4, ..Options::default() });
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let config = Config { control_ring: true, split_channels: true, ..Config::default() };
    let mut front = machine.connect_with::<4>(&mut xs, config).unwrap();
    assert_eq!((front.queues(), front.mtu()), (4, 1500));
    let lean =
        Options { domain: DomId(7), queues: 2, split: false, control: None, sg: false, ..Options::default() };
    back.set_next(Options { gso_v4: false, gso_v6: false, csum_v4: false, csum_v6: false, ..lean });
    assert_eq!(machine.suspend(&mut xs, &mut front), (Resumed::InNewDomain, 0));
    assert_eq!((front.queues(), front.backend()), (2, Some(DomId(7))));
    assert_eq!(front.features(), Features::empty());
    let soon = machine.soon();
    assert!(front.control(soon).is_none());
    assert_passes(&machine, &mut front);
    assert_eq!(front.channel(0).unwrap().port(), front.receive_channel(0).unwrap().port());
    back.set_next(Options { queues: 8, ..Options::default() });
    assert_eq!(machine.suspend(&mut xs, &mut front), (Resumed::InNewDomain, 0));
    assert_eq!((front.queues(), front.backend()), (4, Some(DomId(0))));
    assert!(front.features().contains(Features::SCATTER_GATHER) && front.control(soon).is_some());
    assert_passes(&machine, &mut front);
    front.transmit_with(&[&[frame(HOST, GUEST, 9000, 1).as_slice()].concat()], TxMeta::default()).unwrap();
    assert_eq!(back.complaints(), [""; 0]);
}

#[test]
fn multicast_addresses_and_hash_settings_are_sent_again() {
    let group = |number| Mac([1, 0, 0x5e, 0, 0, number]);
    let machine = Machine::new();
    let options = Options { multicast: Multicast::Dynamic, queues: 2, ..Options::default() };
    let back = machine.vif(options);
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let config = Config { control_ring: true, multicast_filter: true, tx_pages: 32, ..Config::default() };
    let mut front = machine.connect_with::<2>(&mut xs, config).unwrap();
    for number in 0..60 {
        front.want_multicast(group(number), true).unwrap();
        front.publish().unwrap();
        machine.run();
    }
    let (key, soon): ([u8; 40], _) = (core::array::from_fn(|index| index as u8), machine.soon());
    let mut control = front.control(soon).unwrap();
    control.set_hash_algorithm(HASH_ALGORITHM_TOEPLITZ).unwrap();
    control.set_hash_types(HashTypes::IPV4_TCP).unwrap();
    control.set_hash_key(&key).unwrap();
    control.set_hash_mapping(&[1, 1, 1]).unwrap();
    let mapped = control.map_pages().unwrap();
    assert!(mapped > 0);
    // Where a packet comes, and with which hash.
    let look = |front: &mut NetFront<'_, MockDomain, 2>| {
        machine.switch.send(tcp(false, false, 5, b"hello"));
        machine.run();
        let meta = front.receive_with(&mut [0; FRAME_MAX]).unwrap().unwrap();
        front.publish().unwrap();
        (meta.queue, meta.hash.expect("it is hashed"))
    };
    let before = look(&mut front);
    assert_eq!(before.0, 1);
    let wanted = back.wanted();
    assert_eq!(wanted.len(), 60);
    assert_eq!(machine.suspend(&mut xs, &mut front), (Resumed::InNewDomain, 0));
    machine.run();
    assert_eq!(front.take_followup(), Followup::ANNOUNCE);
    assert_eq!((back.wanted(), back.mapped_pages()), (wanted, mapped as usize));
    assert_eq!(look(&mut front), before);
    assert_eq!(back.complaints(), [""; 0]);
    // A backend that hashes nothing: told, and no more.
    back.set_next(Options { control: None, ..options });
    assert_eq!(machine.suspend(&mut xs, &mut front), (Resumed::InNewDomain, 0));
    assert_eq!(front.take_followup(), Followup::ANNOUNCE | Followup::CONTROL);
}

#[test]
fn what_does_not_fit_the_memory_for_it_is_told() {
    let machine = Machine::new();
    let control = Some(ControlLimits { mapping: 256, ..ControlLimits::default() });
    let back = machine.vif(Options { control, ..Options::default() });
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let config = Config { control_ring: true, ..Config::default() };
    let mut front = machine.connect_with::<1>(&mut xs, config).unwrap();
    let soon = machine.soon();
    // More than Linux' takes.
    let limit = front.control(soon).unwrap().hash_mapping_size().unwrap();
    assert!(limit >= 129, "{limit}");
    front.control(soon).unwrap().set_hash_mapping(&[0; 129]).unwrap();
    assert_eq!(machine.suspend(&mut xs, &mut front), (Resumed::InNewDomain, 0));
    assert_eq!(front.take_followup(), Followup::ANNOUNCE | Followup::CONTROL);
    assert_passes(&machine, &mut front);
    assert_eq!(back.complaints(), [""; 0]);
}

#[test]
fn pages_of_the_callers_own_are_refused_until_they_are_granted_again() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut front = machine.connect(&mut xs).unwrap();
    let page = |seed| {
        let mut page = machine.grants.alloc_page().unwrap();
        page.bytes_mut()[..70].copy_from_slice(&frame(HOST, GUEST, 70, seed));
        let page = machine.grants.grant(page, DomId(0), Access::ReadWrite).unwrap();
        FramePage::new(page, 0, 70)
    };
    let (mut own, mut spare) = ([page(1)], [page(2)]);
    assert_eq!(machine.suspend(&mut xs, &mut front), (Resumed::InNewDomain, 0));
    assert_eq!(front.transmit_pages(&mut own, TxMeta::default()), Err(Error::Page));
    machine.switch.send(frame(GUEST, HOST, 80, 2));
    machine.run();
    assert_eq!(front.receive_pages(&mut spare), Err(Error::Page));
    for part in own.iter_mut().chain(&mut spare) {
        part.page.regrant(front.backend().unwrap()).unwrap();
    }
    front.transmit_pages(&mut own, TxMeta::default()).unwrap();
    front.publish().unwrap();
    machine.run();
    assert_eq!(machine.switch.receive().unwrap().bytes, frame(HOST, GUEST, 70, 1));
    assert!(front.receive_pages(&mut spare).unwrap().is_some());
    assert_eq!(back.complaints(), [""; 0]);
}

#[test]
fn devices_that_were_not_at_work_do_not_stop_the_others() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut front = machine.connect(&mut xs).unwrap();
    // The backend's domain is dead: nothing is there, and nobody waits for long.
    back.force_detach();
    machine.run();
    assert_eq!(front.service(&mut xs), Ok(State::Closed));
    let before = machine.xen.now();
    assert_eq!(machine.suspend(&mut xs, &mut front), (Resumed::InNewDomain, 0));
    assert_eq!((front.state(), machine.xen.now()), (State::Closed, before));
    back.come_back();
    front.reconnect(&mut xs, machine.soon()).unwrap();
    assert_passes(&machine, &mut front);
    // One that was closed is connected, if it is there.
    back.close();
    machine.run();
    assert_eq!(front.service(&mut xs), Ok(State::Closed));
    assert_eq!(machine.suspend(&mut xs, &mut front), (Resumed::InNewDomain, 0));
    assert_passes(&machine, &mut front);
    // One that does not come in time.
    back.stall(true);
    assert_eq!(machine.suspend(&mut xs, &mut front), (Resumed::InNewDomain, 1));
    assert_eq!(front.transmit(&frame(HOST, GUEST, 60, 0)), Err(Error::Closed));
    assert_eq!(machine.grants.stats().in_use, 0);
    back.stall(false);
    front.reconnect(&mut xs, machine.soon()).unwrap();
    assert_passes(&machine, &mut front);
    // A backend that breaks its word.
    back.lie("feature-rx-copy", Some("0"));
    assert_eq!(machine.suspend(&mut xs, &mut front), (Resumed::InNewDomain, 1));
    assert_eq!(front.state(), State::Closed);
    // Half connected: the other half comes to nothing, in time, and leaves the new device alone.
    back.lie("feature-rx-copy", Some("1"));
    machine.run();
    let begun = NetFront::<_, 1>::begin(
        &mut xs,
        &machine.events,
        &machine.grants,
        0,
        machine.soon(),
        Config::default(),
    );
    let begun = begun.unwrap();
    assert_eq!(machine.suspend(&mut xs, &mut ()), (Resumed::InNewDomain, 0));
    assert!(begun.finish(&mut xs, machine.soon()).is_err());
    machine.run();
    let mut front = machine.connect(&mut xs).unwrap();
    assert_passes(&machine, &mut front);
}

#[test]
fn a_checkpoint_leaves_the_device_as_it_is() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut front = machine.connect(&mut xs).unwrap();
    machine.xen.set_toolstack(|_| Resumed::InPlace);
    for number in 0..20 {
        front.transmit(&frame(HOST, GUEST, 70, number)).unwrap();
    }
    assert_eq!(machine.suspend(&mut xs, &mut front), (Resumed::InPlace, 0));
    machine.run();
    for number in 0..20 {
        assert_eq!(machine.switch.receive().unwrap().bytes, frame(HOST, GUEST, 70, number), "none is lost");
    }
    assert_eq!((front.stats().reconnects, front.take_followup()), (0, Followup::empty()));
    assert_passes(&machine, &mut front);
    assert_eq!(back.complaints(), [""; 0]);
}
