//! What a network device does with a backend that does its part.
#![cfg(feature = "mock")]

mod common;

use common::{GUEST, HOST, Machine, frame};
use xen_hypercall::mock::MockDomain;
use xen_netfront::mock::{MockNetback, Options};
use xen_netfront::{Config, Connecting, Error, FRAME_MAX, Mac, NetFront, State};
use xen_xenstore::Xenstore;

#[test]
fn a_device_comes_up_and_goes_down_and_leaves_nothing() {
    let machine = Machine::new();
    let back = machine.vif(Options { mtu: Some(1400), ..Options::default() });
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let ports = xen_evtchn::mock::open_ports(&machine.guest);
    for round in 0..20u8 {
        let (pages, in_use) = (machine.guest.pages_in_use(), machine.grants.stats().in_use);
        let mut front = machine.connect(&mut xs).unwrap();
        assert_eq!((front.mac(), front.mtu(), front.state()), (Mac(GUEST), 1400, State::Connected));
        front.transmit(&frame(HOST, GUEST, 100, round)).unwrap();
        front.publish().unwrap();
        machine.run();
        assert_eq!(machine.switch.receive().unwrap().bytes, frame(HOST, GUEST, 100, round));
        front.close(&mut xs, machine.soon()).unwrap();
        assert_eq!(machine.grants.stats().in_use, in_use);
        assert_eq!(machine.grants.stats().quarantined, 0);
        // The table keeps the frames that it grew by.
        assert!(round == 0 || machine.guest.pages_in_use() == pages);
        assert_eq!(xen_evtchn::mock::open_ports(&machine.guest), ports);
        assert_eq!(xen_gnttab::mock::mappings_of(&machine.xen, machine.guest.id()), 0);
    }
    assert_eq!(back.complaints(), [""; 0]);
}

#[test]
fn nothing_is_left_in_xenstore_however_often_it_is_tried() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let config = xen_netfront::Config { tx_pages: 1, rx_pages: 1, ..Default::default() };
    // More often than there are places for watches.
    for round in 0..100 {
        let mut front = machine.connect_with::<1>(&mut xs, config).unwrap();
        if round % 2 == 0 {
            front.reconnect(&mut xs, machine.soon()).unwrap();
        }
        // The link is watched still.
        back.set_back("carrier", "0");
        machine.run();
        front.service(&mut xs).unwrap();
        assert!(!front.is_link_up(), "{round}");
        back.set_back("carrier", "1");
        front.close(&mut xs, machine.soon()).unwrap();
    }
    assert_eq!(back.complaints(), [""; 0]);
}

#[test]
fn frames_go_both_ways_in_order_and_whole() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut front = machine.connect(&mut xs).unwrap();
    let mut buf = [0; FRAME_MAX];
    // Several times around the rings.
    for round in 0..40 {
        for i in 0..30 {
            let len = 60 + (round * 30 + i) % 1440;
            front.transmit(&frame(HOST, GUEST, len, i as u8)).unwrap();
            machine.switch.send(frame(GUEST, HOST, len, !i as u8));
        }
        front.publish().unwrap();
        machine.run();
        for i in 0..30 {
            let len = 60 + (round * 30 + i) % 1440;
            assert_eq!(machine.switch.receive().unwrap().bytes, frame(HOST, GUEST, len, i as u8));
            assert_eq!(front.receive(&mut buf), Ok(Some(len)));
            assert_eq!(buf[..len], frame(GUEST, HOST, len, !i as u8));
        }
        assert_eq!(front.receive(&mut buf), Ok(None));
        assert_eq!(machine.switch.receive(), None);
    }
    let stats = front.stats();
    assert_eq!((stats.tx_frames, stats.rx_frames, stats.tx_errors, stats.rx_dropped), (1200, 1200, 0, 0));
    assert_eq!((back.stats().from_guest, back.stats().to_guest), (1200, 1200));
    assert_eq!(back.complaints(), [""; 0]);
    front.close(&mut xs, machine.soon()).unwrap();
}

#[test]
fn many_frames_are_one_event() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut front = machine.connect(&mut xs).unwrap();
    machine.run();
    let (sent, events) = (front.stats().notifications, back.stats().events);
    for i in 0..100 {
        front.transmit(&frame(HOST, GUEST, 60, i)).unwrap();
    }
    machine.run();
    assert_eq!(machine.switch.receive(), None, "nothing is seen before it is shown");
    front.publish().unwrap();
    machine.run();
    assert_eq!((front.stats().notifications - sent, back.stats().events - events), (1, 1));
    assert_eq!(std::iter::from_fn(|| machine.switch.receive()).count(), 100);
}

#[test]
fn who_only_receives_need_not_publish() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut front = machine.connect(&mut xs).unwrap();
    let mut buffer = [0; 100];
    // Several times as many as there are pages.
    for seed in 0..1000 {
        machine.switch.send(frame(GUEST, HOST, 100, seed as u8));
        machine.run();
        assert_eq!(front.receive(&mut buffer), Ok(Some(100)), "frame {seed}");
        assert!(buffer[..] == frame(GUEST, HOST, 100, seed as u8));
        assert_eq!(front.arm(), Ok(false));
    }
    assert_eq!(back.complaints(), [""; 0]);
}

#[test]
fn a_full_device_says_so_and_goes_on_when_frames_are_sent() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut front = machine.connect(&mut xs).unwrap();
    back.stall(true);
    let mut sent = 0;
    while front.can_transmit().unwrap() > 0 {
        front.transmit(&frame(HOST, GUEST, 60, sent as u8)).unwrap();
        sent += 1;
    }
    assert_eq!(sent, 256);
    assert_eq!(front.transmit(&frame(HOST, GUEST, 60, 0)), Err(Error::Full));
    front.publish().unwrap();
    assert_eq!(front.arm(), Ok(false));
    back.stall(false);
    machine.run();
    assert_eq!(front.arm(), Ok(true), "pages came back");
    assert!(front.can_transmit().unwrap() > 0);
    front.transmit(&frame(HOST, GUEST, 60, 0)).unwrap();
}

#[test]
fn frames_that_cannot_be_are_refused() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut front = machine.connect(&mut xs).unwrap();
    for len in [0, 70_000] {
        assert_eq!(front.transmit(&vec![0; len]), Err(Error::Length(len)));
    }
    front.publish().unwrap();
    machine.run();
    assert_eq!(back.stats().from_guest, 0);
}

#[test]
fn two_guests_talk_by_the_switch_and_wireshark_can_listen() {
    let machine = Machine::new();
    let _back = machine.vif(Options::default());
    let other = machine.xen.domain(xen_hypercall::DomId(2));
    machine.store.connect(&other);
    let options = Options { mac: Mac([0, 22, 62, 0, 0, 2]), ..Options::default() };
    let _other_back =
        xen_netfront::mock::MockNetback::new(&machine.switch, &machine.store, &other, 0, options);
    let token = other.boot().unwrap();
    let events = xen_evtchn::EventChannels::new(&token).unwrap();
    let grants = xen_gnttab::GrantTable::new(&token).unwrap();
    let (mut xs, mut other_xs) = (Xenstore::new(&machine.events).unwrap(), Xenstore::new(&events).unwrap());
    let mut a = machine.connect(&mut xs).unwrap();
    let mut b = xen_netfront::NetFront::connect(&mut other_xs, &events, &grants, 0, machine.soon()).unwrap();

    let mut buf = [0; FRAME_MAX];
    a.transmit(&frame(b.mac().0, GUEST, 200, 1)).unwrap();
    a.publish().unwrap();
    machine.run();
    assert_eq!(b.receive(&mut buf), Ok(Some(200)));
    b.transmit(&frame(GUEST, b.mac().0, 300, 2)).unwrap();
    b.publish().unwrap();
    machine.run();
    assert_eq!(a.receive(&mut buf), Ok(Some(300)));
    assert_eq!(buf[..300], frame(GUEST, b.mac().0, 300, 2));
    // The host saw the first, whose address nobody had shown yet, and not the second.
    assert_eq!(machine.switch.receive().unwrap().bytes.len(), 200);
    assert_eq!(machine.switch.receive(), None);

    let pcap = machine.switch.pcap();
    assert_eq!(pcap.len(), 24 + 2 * 16 + 500);
    assert_eq!((&pcap[..4], &pcap[20..24]), (&[0x4d, 0x3c, 0xb2, 0xa1][..], &[1, 0, 0, 0][..]));
    assert_eq!(pcap[24 + 16..][..200], frame(b.mac().0, GUEST, 200, 1));
}

#[test]
fn a_guest_with_few_pages_sleeps_nevertheless() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let config = xen_netfront::Config { tx_pages: 20, ..Default::default() };
    let mut front = machine.connect_with::<1>(&mut xs, config).unwrap();
    machine.run();
    // Fewer pages than the largest frame takes, and all that was sent is answered.
    for _ in 0..10 {
        front.transmit(&frame(HOST, GUEST, 60, 0)).unwrap();
    }
    front.publish().unwrap();
    machine.run();
    assert_eq!(front.arm(), Ok(true), "pages came back");
    assert_eq!(front.arm(), Ok(false), "and no more than once");
    back.stall(true);
    for _ in 0..10 {
        front.transmit(&frame(HOST, GUEST, 60, 0)).unwrap();
    }
    front.publish().unwrap();
    assert_eq!((front.arm(), front.arm()), (Ok(false), Ok(false)));
    let _ = front.channel(0).unwrap().take();
    back.stall(false);
    machine.run();
    assert!(front.channel(0).unwrap().take(), "an event when half of them are sent");
    assert_eq!((front.arm(), front.can_transmit()), (Ok(true), Ok(20)));
}

#[test]
fn a_guest_that_waits_for_pages_is_woken_for_many() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut front = machine.connect(&mut xs).unwrap();
    machine.run();
    let send = |front: &mut xen_netfront::NetFront<'_, _>, count: usize| {
        for _ in 0..count {
            front.transmit(&frame(HOST, GUEST, 60, 0)).unwrap();
        }
        front.publish().unwrap();
    };
    send(&mut front, 4);
    machine.run();
    back.stall(true);
    send(&mut front, 252);
    let _ = front.channel(0).unwrap().take();
    assert_eq!(front.arm(), Ok(false), "four that came back are not worth a round");
    assert_eq!(front.can_transmit(), Ok(4), "though they can be had");
    assert!(!front.channel(0).unwrap().take());
    back.stall(false);
    machine.run();
    assert!(front.channel(0).unwrap().take(), "an event when half of them are sent");
    assert_eq!((front.arm(), front.can_transmit()), (Ok(true), Ok(256)));
}

fn begin<'x>(
    machine: &'x Machine,
    xs: &mut Xenstore<'x, MockDomain>,
    index: u32,
) -> Connecting<'x, MockDomain> {
    let (soon, config) = (machine.soon(), Config::default());
    NetFront::begin(xs, &machine.events, &machine.grants, index, soon, config).unwrap()
}

#[test]
fn a_device_connects_while_the_guest_does_something_else() {
    let machine = Machine::new();
    let _back = machine.vif(Options::default());
    let other = Options { mac: Mac([0, 22, 62, 0, 0, 2]), ..Options::default() };
    let _other_back = MockNetback::new(&machine.switch, &machine.store, &machine.guest, 1, other);
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let (first, second) = (begin(&machine, &mut xs, 0), begin(&machine, &mut xs, 1));
    machine.run();
    // Both backends are connected by now, and nobody waits.
    let now = machine.xen.now();
    let mut fronts = [second, first].map(|begun| begun.finish(&mut xs, machine.soon()).unwrap());
    assert_eq!(machine.xen.now(), now);
    for front in &mut fronts {
        assert_eq!(front.state(), State::Connected);
        front.transmit(&frame(HOST, front.mac().0, 60, 0)).unwrap();
        front.publish().unwrap();
    }
    machine.run();
    assert_eq!(std::iter::from_fn(|| machine.switch.receive()).count(), 2);

    // One that is not finished leaves the pages to the backend, and nothing to anybody else.
    let [_, first] = fronts;
    first.close(&mut xs, machine.soon()).unwrap();
    let begun = begin(&machine, &mut xs, 0);
    machine.run();
    drop(begun);
    assert_eq!(machine.grants.stats().quarantined, 2, "both rings");
}

#[test]
fn a_backend_that_ends_before_the_second_half_is_an_error_and_no_more() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let begun = begin(&machine, &mut xs, 0);
    machine.run();
    back.close();
    machine.run();
    let error = begun.finish(&mut xs, machine.soon()).unwrap_err();
    assert!(matches!(error, Error::Xenstore(xen_xenstore::Error::BackendGone(_))), "{error:?}");
    machine.run();
    assert_eq!(back.front("state").as_deref(), Some("6"));
    assert_eq!(machine.grants.stats().quarantined, 0);
}
