//! What is asked of a backend beside frames: which multicast frames are wanted, how packets are hashed, which pages stay
//! mapped, how much room there is before frames; and how often it may wake the guest.
#![cfg(feature = "mock")]

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::{GUEST, HOST, Machine, bytes, frame, tcp, udp};
use xen_evtchn::Port;
use xen_gnttab::Access;
use xen_hypercall::{DomId, VcpuId};
use xen_netfront::abi::*;
use xen_netfront::mock::{ControlLimits, Fault, Options};
use xen_netfront::{Config, Error, FRAME_MAX, Features, FramePage, Mac, Multicast, State, Violation, hash};
use xen_xenstore::Xenstore;

const GROUP: [u8; 6] = [1, 0, 0x5e, 0, 0, 1];
const OTHER: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const KEY: [u8; 40] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
    0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
    0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];

#[test]
fn multicast_frames_are_filtered_as_the_guest_wants() {
    for (offered, asked) in [
        (Multicast::Unfiltered, true),
        (Multicast::Static, false),
        (Multicast::Static, true),
        (Multicast::Dynamic, false),
        (Multicast::Dynamic, true),
    ] {
        let machine = Machine::new();
        let back = machine.vif(Options { multicast: offered, ..Options::default() });
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let config = Config { multicast_filter: asked, ..Config::default() };
        let mut front = machine.connect_with::<1>(&mut xs, config).unwrap();
        assert_eq!(front.multicast(), offered);
        let arrives = |front: &mut xen_netfront::NetFront<'_, _>, to| {
            machine.switch.send(frame(to, HOST, 60, 0));
            machine.run();
            front.receive(&mut [0; 60]).unwrap().is_some()
        };
        let filters = asked && offered != Multicast::Unfiltered;
        assert_eq!(arrives(&mut front, GROUP), !filters);
        assert!(arrives(&mut front, GUEST) && arrives(&mut front, [0xff; 6]));
        if offered == Multicast::Unfiltered {
            assert_eq!(front.want_multicast(Mac(GROUP), true), Err(Error::NoMulticast));
            assert_eq!(front.filter_multicast(&mut xs, true), Err(Error::NoMulticast));
            continue;
        }
        front.want_multicast(Mac(GROUP), true).unwrap();
        front.publish().unwrap();
        assert!(arrives(&mut front, GROUP));
        assert_eq!(back.wanted(), [GROUP]);
        assert_eq!(arrives(&mut front, OTHER), !filters);
        let dynamic = front.filter_multicast(&mut xs, !asked);
        assert_eq!(dynamic, if offered == Multicast::Dynamic { Ok(()) } else { Err(Error::NoMulticast) });
        let filters = asked != (offered == Multicast::Dynamic);
        assert_eq!(arrives(&mut front, OTHER), !filters);
        assert!(arrives(&mut front, GROUP));
        front.want_multicast(Mac(GROUP), false).unwrap();
        front.publish().unwrap();
        assert_eq!(arrives(&mut front, GROUP), !filters);
        assert!(back.wanted().is_empty());
        // What is refused is an error of sending and no more; none of it is a frame.
        front.want_multicast(Mac(GROUP), false).unwrap();
        for _ in 0..300 {
            front.want_multicast(Mac(GROUP), true).unwrap();
            front.want_multicast(Mac(GROUP), false).unwrap();
            front.publish().unwrap();
            machine.run();
        }
        assert_eq!((front.stats().tx_errors, front.stats().tx_frames, back.stats().from_guest), (1, 0, 0));
        assert_eq!(back.complaints(), [""; 0]);
    }
}

#[test]
fn packets_come_by_the_queue_that_their_hash_says() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let config = Config {
        control_ring: true,
        tx_pages: 20,
        rx_pages: 64,
        receive: Features::all(),
        ..Config::default()
    };
    let mut front = machine.connect_with::<4>(&mut xs, config).unwrap();
    let soon = machine.soon();
    let mut control = front.control(soon).unwrap();
    assert_eq!(control.hash_types(), Err(Error::Refused(CTRL_GET_HASH_FLAGS, CTRL_NOT_SUPPORTED)));
    assert_eq!(
        control.set_hash_algorithm(7),
        Err(Error::Refused(CTRL_SET_HASH_ALGORITHM, CTRL_INVALID_PARAMETER))
    );
    control.set_hash_algorithm(HASH_ALGORITHM_TOEPLITZ).unwrap();
    let types = control.hash_types().unwrap();
    assert_eq!(types, HashTypes::IPV4 | HashTypes::IPV4_TCP | HashTypes::IPV6 | HashTypes::IPV6_TCP);
    control.set_hash_types(types).unwrap();
    control.set_hash_key(&KEY).unwrap();
    assert_eq!(control.set_hash_key(&[0; 41]), Err(Error::Refused(CTRL_SET_HASH_KEY, CTRL_BUFFER_OVERFLOW)));
    assert_eq!(control.set_hash_key(&[0; 4097]), Err(Error::Length(4097)));
    assert_eq!(control.hash_mapping_size(), Ok(128));
    let mapping: Vec<u32> = (0..128).map(|index| index * 7 % 4).collect();
    control.set_hash_mapping(&mapping).unwrap();
    assert_eq!(control.set_hash_mapping(&[0, 4]), Err(Error::Queue(4)));
    assert_eq!(
        control.set_hash_mapping(&[0; 129]),
        Err(Error::Refused(CTRL_SET_HASH_MAPPING_SIZE, CTRL_INVALID_PARAMETER))
    );
    let (mut queues, mut buf) = (BTreeSet::new(), vec![0; FRAME_MAX]);
    for port in 0..32 {
        for v6 in [false, true] {
            let mut got = tcp(v6, false, 1, &bytes(5000));
            let at = if v6 { 54 } else { 34 };
            got[at] = port;
            let (kind, value) = hash::of_frame(&KEY, types, &got).unwrap();
            machine.switch.send(got);
            machine.run();
            let meta = front.receive_with(&mut buf).unwrap().unwrap();
            let hash = meta.hash.unwrap();
            let expected = (kind, HASH_ALGORITHM_TOEPLITZ as u8, value);
            assert_eq!((hash.types, hash.algorithm, hash.value), expected);
            assert_eq!(meta.queue as u32, mapping[value as usize % 128]);
            queues.insert(meta.queue);
            front.publish().unwrap();
        }
    }
    assert_eq!(queues.len(), 4);
    // What is no IP has no hash.
    machine.switch.send(frame(GUEST, HOST, 60, 0));
    machine.run();
    assert_eq!(front.receive_with(&mut buf).unwrap().unwrap().hash, None);
    assert_eq!(back.complaints(), [""; 0]);
    front.close(&mut xs, machine.soon()).unwrap();
    assert_eq!((machine.grants.stats().in_use, machine.grants.stats().quarantined), (0, 0));
}

#[test]
fn a_hash_that_nobody_asked_for_breaks_the_device() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut front = machine.connect(&mut xs).unwrap();
    // The frame says that extra information follows; what follows is the next frame's slot.
    back.fault_rx(Fault::Flags(8));
    machine.switch.send(frame(GUEST, HOST, 60, 0));
    machine.switch.send(frame(GUEST, HOST, 60, 0));
    machine.run();
    assert_eq!(front.receive(&mut [0; 60]), Err(Error::Broken(Violation::Extra(1))));
}

#[test]
fn the_backend_keeps_as_many_pages_mapped_as_it_can() {
    for (limit, tx_pages, rx_pages) in
        [(0, 20, 32), (10, 20, 32), (52, 20, 32), (1000, 20, 32), (1000, 256, 256)]
    {
        let machine = Machine::new();
        let control = Some(ControlLimits { pages: limit, ..ControlLimits::default() });
        let back = machine.vif(Options { control, ..Options::default() });
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let config = Config { control_ring: true, tx_pages, rx_pages, ..Config::default() };
        let mut front = machine.connect_with::<2>(&mut xs, config).unwrap();
        let mapped = (limit as usize).min(tx_pages + rx_pages) * 2;
        let soon = machine.soon();
        assert_eq!(front.control(soon).unwrap().map_pages(), Ok(mapped as u32));
        assert_eq!(back.mapped_pages(), mapped);
        front.transmit(&udp(false, true, &bytes(700))).unwrap();
        machine.switch.send(udp(false, false, &bytes(700)));
        front.publish().unwrap();
        machine.run();
        assert_eq!(machine.switch.receive().unwrap().bytes, udp(false, true, &bytes(700)));
        assert_eq!(front.receive(&mut [0; 800]), Ok(Some(742)));
        assert_eq!(back.complaints(), [""; 0]);
        // They come back when it has closed.
        front.close(&mut xs, machine.soon()).unwrap();
        machine.grants.reclaim();
        assert_eq!((machine.grants.stats().in_use, machine.grants.stats().quarantined), (0, 0));
    }
}

#[test]
fn a_control_ring_that_is_not_there_or_does_not_answer() {
    let machine = Machine::new();
    let back = machine.vif(Options { control: None, ..Options::default() });
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let config = Config { control_ring: true, ..Config::default() };
    let soon = machine.soon();
    let mut front = machine.connect_with::<1>(&mut xs, config).unwrap();
    assert!(front.control(soon).is_none() && back.front("ctrl-ring-ref").is_none());
    front.close(&mut xs, machine.soon()).unwrap();
    drop(back);

    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut front = machine.connect_with::<1>(&mut xs, config).unwrap();
    back.stall(true);
    let soon = machine.xen.now() + Duration::from_millis(10);
    assert_eq!(front.control(soon).unwrap().set_hash_algorithm(1), Err(Error::TimedOut));
    // The page may be in the backend's hands, so nothing else is put into it.
    let soon = machine.xen.now() + Duration::from_millis(10);
    assert_eq!(front.control(soon).unwrap().set_hash_key(&KEY), Err(Error::TimedOut));
    back.stall(false);
    let soon = machine.soon();
    front.control(soon).unwrap().set_hash_algorithm(1).unwrap();
    front.control(soon).unwrap().set_hash_key(&KEY).unwrap();
    // An answer to another question: the ring is of no use, the frames go on.
    back.fault_control(Fault::Id(77));
    let broken = Error::Broken(Violation::Id(77));
    assert_eq!(front.control(soon).unwrap().hash_types(), Err(broken));
    assert_eq!(front.control(soon).unwrap().hash_types(), Err(broken));
    assert_eq!(front.state(), State::Connected);
    front.transmit(&frame(HOST, GUEST, 60, 0)).unwrap();
    front.publish().unwrap();
    machine.run();
    assert!(machine.switch.receive().is_some());
}

/// Guest and backend are paused for twenty minutes while the first of several questions is open.
#[test]
fn a_pause_is_not_counted_against_a_backend_that_is_asked() {
    for what in 0..3 {
        let machine = Machine::new();
        let back = machine.vif(Options::default());
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let config = Config { control_ring: true, tx_pages: 20, rx_pages: 64, ..Config::default() };
        let mut front = machine.connect_with::<1>(&mut xs, config).unwrap();
        back.stall(true);
        let (handle, mut turn) = (back.clone(), 0);
        machine.xen.add_actor("a pause", move |xen| {
            turn += 1;
            match turn {
                2 => xen.advance(Duration::from_secs(1200)),
                5 => handle.stall(false),
                _ => {}
            }
            turn <= 5
        });
        let soon = machine.soon();
        let mut control = front.control(soon).unwrap();
        match what {
            0 => control.set_hash_mapping(&[0; 128]).unwrap(),
            1 => assert_eq!(control.map_pages(), Ok(84)),
            _ => {
                control.set_hash_algorithm(HASH_ALGORITHM_TOEPLITZ).unwrap();
                control.set_hash_key(&KEY).unwrap();
            }
        }
        assert!(machine.xen.now() >= Duration::from_secs(1200));
    }
}

/// What was told to have timed out may be done later: then frames come with their hash, which breaks nothing.
#[test]
fn a_backend_that_answers_too_late_may_hash() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let config = Config { control_ring: true, ..Config::default() };
    let mut front = machine.connect_with::<1>(&mut xs, config).unwrap();
    back.stall(true);
    let soon = machine.soon();
    let late = front.control(soon).unwrap().set_hash_algorithm(HASH_ALGORITHM_TOEPLITZ);
    assert_eq!(late, Err(Error::TimedOut));
    back.stall(false);
    let soon = machine.soon();
    let mut control = front.control(soon).unwrap();
    // As the backend has done what it was asked.
    control.set_hash_types(HashTypes::IPV4_TCP).unwrap();
    control.set_hash_key(&KEY).unwrap();
    machine.switch.send(tcp(false, false, 1, &bytes(100)));
    machine.run();
    let meta = front.receive_with(&mut [0; 200]).unwrap().unwrap();
    assert!(meta.hash.is_some());
}

#[test]
fn there_is_room_before_frames() {
    for (offered, wanted, room) in [(true, 256, 256), (true, 9000, 2048), (true, 0, 0), (false, 256, 0)] {
        let machine = Machine::new();
        let back = machine.vif(Options { headroom: offered, ..Options::default() });
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let config = Config { headroom: wanted, receive: Features::all(), ..Config::default() };
        let mut front = machine.connect_with::<1>(&mut xs, config).unwrap();
        let page = || machine.grants.share(DomId(0), Access::ReadWrite).unwrap();
        let mut pages: Vec<_> = (0..4).map(|_| FramePage::new(page(), 0, 0)).collect();
        for len in [60, 1500, 4096, 8000] {
            machine.switch.send(frame(GUEST, HOST, len, 1));
            machine.run();
            let meta = front.receive_pages(&mut pages).unwrap().unwrap();
            assert_eq!((meta.len, pages[0].offset), (len, room));
            let mut got = Vec::new();
            for part in &mut pages[..meta.slots] {
                got.resize(got.len() + part.len, 0);
                let from = got.len() - part.len;
                part.page.read_bytes(part.offset, &mut got[from..]).unwrap();
            }
            assert!(got == frame(GUEST, HOST, len, 1));
            machine.switch.send(frame(GUEST, HOST, len, 2));
            machine.run();
            let mut buf = vec![0; len];
            assert_eq!(front.receive(&mut buf), Ok(Some(len)));
            assert!(buf == frame(GUEST, HOST, len, 2));
        }
        assert_eq!(back.complaints(), [""; 0]);
    }
}

#[test]
fn a_backend_that_sends_events_without_reason_is_throttled() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut front = machine.connect(&mut xs).unwrap();
    machine.run();
    let begin = machine.xen.now();
    let before = front.channel(0).unwrap().stats();
    let mut woken = 0;
    // It sends whenever the guest has gone to sleep, for ten seconds.
    while machine.xen.now() - begin < Duration::from_secs(10) {
        back.spurious_event();
        let seen = machine.events.seq();
        assert_eq!(front.arm(), Ok(false));
        machine.events.wait_since(seen, Some(machine.xen.now() + Duration::from_millis(1)));
        woken += u64::from(front.channel(0).unwrap().take());
        assert!(woken < 1000, "nothing holds it back");
        assert_eq!(front.receive(&mut [0; 60]), Ok(None));
    }
    let after = front.channel(0).unwrap().stats();
    assert_eq!(after.events - before.events, woken);
    assert!((2..40).contains(&woken), "{woken} events in ten seconds");
    assert!(after.throttled > before.throttled);
    // A frame gets through nevertheless, and the device is as quick as before.
    machine.switch.send(frame(GUEST, HOST, 60, 0));
    let begin = machine.xen.now();
    loop {
        let seen = machine.events.seq();
        if front.receive(&mut [0; 60]) != Ok(None) {
            break;
        }
        assert_eq!(front.arm(), Ok(false));
        machine.events.wait_since(seen, Some(machine.xen.now() + Duration::from_secs(2)));
    }
    assert!(machine.xen.now() - begin <= Duration::from_secs(1));
    assert_eq!(front.state(), State::Connected);
}

#[test]
fn a_backend_that_sends_events_for_the_control_ring_without_reason_is_throttled() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let config = Config { control_ring: true, ..Config::default() };
    let mut front = machine.connect_with::<1>(&mut xs, config).unwrap();
    machine.run();
    let port = Port(back.front("event-channel-ctrl").unwrap().parse().unwrap());
    let storm = |millis| {
        for _ in 0..millis {
            machine.xen.advance(Duration::from_millis(1));
            assert!(xen_evtchn::mock::inject(&machine.guest, port));
            machine.events.unmask_due();
            machine.events.dispatch(VcpuId(0));
        }
    };
    for ask in 0..4u32 {
        let before = machine.events.stats().events;
        storm(10_000);
        let _ = (front.arm(), front.service(&mut xs));
        let came = machine.events.stats().events - before;
        assert!(came < 40, "{came} events in ten seconds");
        // It is asked nevertheless, and answers.
        let soon = machine.soon();
        front.control(soon).unwrap().set_hash_algorithm(ask % 2).unwrap();
    }
    // One that sends events instead of an answer wakes the guest now and then until the time is up.
    back.stall(true);
    let (guest, begin) = (machine.guest.clone(), machine.xen.now());
    machine.xen.add_actor("storm", move |_| {
        xen_evtchn::mock::inject(&guest, port);
        false
    });
    let before = machine.events.stats().events;
    let soon = begin + Duration::from_secs(10);
    assert_eq!(front.control(soon).unwrap().set_hash_algorithm(1), Err(Error::TimedOut));
    assert!(machine.xen.now() >= soon && machine.xen.now() - soon < Duration::from_secs(2));
    let came = machine.events.stats().events - before;
    assert!(came < 40, "{came} events in ten seconds");
}
