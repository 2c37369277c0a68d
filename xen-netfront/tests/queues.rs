//! Several queues, event channels for each direction, pages that are not copied, link state, and beginning anew.
#![cfg(feature = "mock")]

mod common;

use std::collections::BTreeSet;
use std::task::{Context, Poll, Waker};

use common::{GUEST, HOST, Machine, bytes, frame, tcp, udp};
use xen_evtchn::Port;
use xen_gnttab::Access;
use xen_hypercall::DomId;
use xen_hypercall::mock::MockDomain;
use xen_netfront::mock::Options;
use xen_netfront::{Config, Error, FRAME_MAX, Features, FramePage, NetFront, State, TxMeta};
use xen_xenstore::Xenstore;

#[test]
fn several_queues_carry_different_flows_and_keep_each_in_order() {
    for split_channels in [false, true] {
        let machine = Machine::new();
        let back = machine.vif(Options::default());
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let ports = xen_evtchn::mock::open_ports(&machine.guest);
        let config = Config { split_channels, tx_pages: 64, rx_pages: 64, ..Config::default() };
        let mut front = machine.connect_with::<3>(&mut xs, config).unwrap();
        assert_eq!(front.queues(), 3);
        assert_eq!(xen_evtchn::mock::open_ports(&machine.guest) - ports, if split_channels { 6 } else { 3 });
        assert_eq!(back.front("multi-queue-num-queues").as_deref(), Some("3"));
        assert_eq!(back.front("tx-ring-ref"), None);
        let mut used = BTreeSet::new();
        let mut buf = [0; 4096];
        for round in 0..40u8 {
            for flow in 0..8u8 {
                let mut sent = udp(false, true, &[round]);
                sent[34] = flow;
                front.transmit(&sent).unwrap();
                let mut got = udp(false, false, &[round]);
                got[34] = flow;
                machine.switch.send(got);
            }
            front.publish().unwrap();
            machine.run();
            let mut seen = BTreeSet::new();
            for _ in 0..8 {
                let sent = machine.switch.receive().unwrap().bytes;
                assert_eq!(sent[42], round);
                assert!(seen.insert(sent[34]));
                let meta = front.receive_with(&mut buf).unwrap().unwrap();
                assert_eq!(buf[42], round);
                used.insert(meta.queue);
            }
            assert_eq!(front.receive(&mut buf), Ok(None));
        }
        assert!(used.len() > 1, "{used:?}");
        assert_eq!(back.complaints(), [""; 0]);
        front.close(&mut xs, machine.soon()).unwrap();
        assert_eq!(machine.grants.stats().in_use, 0);
        assert_eq!(xen_evtchn::mock::open_ports(&machine.guest), ports);
        // One queue after several, without what they left behind.
        let front = machine.connect(&mut xs).unwrap();
        assert_eq!((front.queues(), back.front("multi-queue-num-queues")), (1, None));
        assert_eq!(back.complaints(), [""; 0]);
    }
}

#[test]
fn a_backend_decides_how_many_queues_there_are() {
    for (offered, wanted, used) in
        [(0, 4, 1), (1, 4, 1), (2, 4, 2), (4, 4, 4), (9, 4, 4), (4, 2, 2), (4, 0, 1)]
    {
        let machine = Machine::new();
        let back = machine.vif(Options { queues: offered, split: false, ..Options::default() });
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let config =
            Config { queues: wanted, split_channels: true, tx_pages: 20, rx_pages: 32, ..Config::default() };
        let front = machine.connect_with::<4>(&mut xs, config).unwrap();
        assert_eq!((front.queues(), back.complaints()), (used, vec![]));
        assert_eq!(front.channel(0).unwrap().port(), front.receive_channel(0).unwrap().port());
        assert!(front.channel(used).is_none());
    }
    for nonsense in ["", "x", "-1", "4294967296"] {
        let machine = Machine::new();
        let back = machine.vif(Options::default());
        back.lie("multi-queue-max-queues", Some(nonsense));
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let config = Config { tx_pages: 20, rx_pages: 32, ..Config::default() };
        assert_eq!(machine.connect_with::<4>(&mut xs, config).unwrap().queues(), 1);
    }
}

#[test]
fn there_are_fewer_queues_where_resources_do_not_suffice_for_all() {
    // A queue takes two rings, and pages; what else there is takes some, too.
    let whole = 2 + 64 + 64;
    let config = Config { tx_pages: 64, rx_pages: 64, ..Config::default() };
    let connect = |machine: &Machine, before: &dyn Fn(&Machine)| {
        let back = machine.vif(Options::default());
        let mut xs = Xenstore::new(&machine.events).unwrap();
        before(machine);
        let mut front = machine.connect_with::<4>(&mut xs, config)?;
        let queues = front.queues();
        let says = back.front("multi-queue-num-queues").map_or(1, |count| count.parse().unwrap());
        assert_eq!((says, back.complaints()), (queues, vec![]));
        for flow in 0..16 {
            let mut sent = udp(false, true, &[flow]);
            sent[34] = flow;
            front.transmit(&sent).unwrap();
        }
        front.publish().unwrap();
        machine.run();
        assert_eq!(std::iter::from_fn(|| machine.switch.receive()).count(), 16);
        front.close(&mut xs, machine.soon()).unwrap();
        assert_eq!(machine.grants.stats().in_use, 0);
        Ok::<_, Error>(queues)
    };
    // Memory.
    let mut seen = BTreeSet::new();
    for pages in (0..5 * (whole + 4)).step_by(29) {
        let machine = Machine::new();
        match connect(&machine, &|machine| machine.guest.fail_allocs_after(Some(pages))) {
            Ok(queues) => drop(seen.insert(queues)),
            Err(error) => {
                assert!(pages < whole + 8 && matches!(error, Error::Grant(_)), "{pages}: {error:?}")
            }
        }
    }
    assert_eq!(seen, BTreeSet::from([1, 2, 3, 4]));
    // Grant references: a frame of the table has 512, of which eight are not ours.
    let machine = Machine::new();
    xen_gnttab::mock::set_max_frames(&machine.xen, DomId(1), 1);
    assert_eq!(connect(&machine, &|_| ()), Ok(3));
    // Ports.
    let machine = Machine::new();
    let ports = |machine: &Machine| {
        let last = xen_evtchn::mock::alloc_for(&machine.guest, DomId(0)).unwrap();
        xen_evtchn::mock::set_max_port(&machine.guest, Port(last.0 + 2));
    };
    assert_eq!(connect(&machine, &ports), Ok(2));
}

#[test]
fn a_card_is_small_however_many_queues_it_has() {
    const WORDS: usize = 2 * size_of::<usize>();
    let one = size_of::<NetFront<'_, MockDomain, 1>>();
    assert!(one < 1216, "{one}");
    assert_eq!(size_of::<NetFront<'_, MockDomain, 8>>(), one + 7 * WORDS);
    // Eight queues come up and carry frames in a thread with little stack.
    let small = std::thread::Builder::new().stack_size(384 << 10).spawn(|| {
        let machine = Machine::new();
        let _back = machine.vif(Options { queues: 8, ..Options::default() });
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let config = Config { tx_pages: 20, rx_pages: 32, ..Config::default() };
        let mut front = machine.connect_with::<8>(&mut xs, config).unwrap();
        assert_eq!(front.queues(), 8);
        front.transmit(&frame(HOST, GUEST, 60, 0)).unwrap();
        front.publish().unwrap();
        machine.run();
        assert!(machine.switch.receive().is_some());
    });
    small.unwrap().join().unwrap();
}

#[test]
fn each_direction_wakes_its_own_channel() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let config = Config { split_channels: true, tx_pages: 4, ..Config::default() };
    let mut front = machine.connect_with::<1>(&mut xs, config).unwrap();
    machine.run();
    let (tx, rx) = (front.channel(0).unwrap().port(), front.receive_channel(0).unwrap().port());
    assert_ne!(tx, rx);
    assert_eq!(back.front("event-channel-tx"), Some(tx.0.to_string()));
    assert_eq!((back.front("event-channel-rx"), back.front("event-channel")), (Some(rx.0.to_string()), None));
    let _ = (front.channel(0).unwrap().take(), front.receive_channel(0).unwrap().take());

    assert_eq!(front.arm(), Ok(false));
    machine.switch.send(frame(GUEST, HOST, 60, 0));
    machine.run();
    assert!(front.receive_channel(0).unwrap().take() && !front.channel(0).unwrap().take());
    assert_eq!(front.receive(&mut [0; 60]), Ok(Some(60)));

    for _ in 0..4 {
        front.transmit(&frame(HOST, GUEST, 60, 0)).unwrap();
    }
    back.stall(true);
    front.publish().unwrap();
    assert_eq!(front.arm(), Ok(false));
    back.stall(false);
    machine.run();
    assert!(front.channel(0).unwrap().take() && !front.receive_channel(0).unwrap().take());
}

#[test]
fn a_task_is_woken_by_any_queue() {
    let machine = Machine::new();
    let _back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let config = Config { tx_pages: 20, rx_pages: 32, ..Config::default() };
    let mut front = machine.connect_with::<4>(&mut xs, config).unwrap();
    machine.run();
    let mut cx = Context::from_waker(Waker::noop());
    for flow in 0..16 {
        while front.receive(&mut [0; 100]).unwrap().is_some() {}
        assert_eq!(front.poll_receivable(&mut cx), Poll::Pending);
        let mut sent = udp(false, false, &[1]);
        sent[34] = flow;
        machine.switch.send(sent);
        machine.run();
        assert_eq!(front.poll_receivable(&mut cx), Poll::Ready(()));
    }
}

#[test]
fn pages_of_the_callers_own_are_not_copied() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let config = Config { receive: xen_netfront::Features::all(), ..Config::default() };
    let mut front = machine.connect_with::<1>(&mut xs, config).unwrap();
    let granted = |access| machine.grants.share(DomId(0), access).unwrap();
    let mut pages: Vec<FramePage<'_, _>> =
        (0..3).map(|_| FramePage::new(granted(Access::ReadOnly), 0, 0)).collect();
    let data = tcp(false, true, 1, &bytes(5000));
    // More often than there are pages: each comes back by exchange.
    for _ in 0..300 {
        for (part, (offset, range)) in pages.iter_mut().zip([(100, 0..60), (0, 60..4156), (4000, 4156..4200)])
        {
            part.page.write_bytes(offset, &data[range.clone()]).unwrap();
            (part.offset, part.len) = (offset, range.len());
        }
        // The rest of the packet is not there, so the length in its header is not true.
        front.transmit_pages(&mut pages, TxMeta::default()).unwrap();
        front.publish().unwrap();
        machine.run();
        assert!(machine.switch.receive().unwrap().bytes == data[..4200]);
    }
    assert_eq!(front.stats().copied_bytes, 0);
    let held = (pages.len() + 512 + 2) as u32;
    assert_eq!(machine.grants.stats().in_use, held);

    // The other way, by exchange as well.
    let mut spare: Vec<FramePage<'_, _>> =
        (0..3).map(|_| FramePage::new(granted(Access::ReadWrite), 0, 0)).collect();
    for _ in 0..300 {
        machine.switch.send(data.clone());
        machine.run();
        let meta = front.receive_pages(&mut spare).unwrap().unwrap();
        assert_eq!((meta.len, meta.slots), (data.len(), 2));
        let mut got = vec![0; 4096];
        let offset = spare[0].offset;
        spare[0].page.read_bytes(offset, &mut got).unwrap();
        assert!(got == data[..4096] && spare[1].len == data.len() - 4096);
        front.publish().unwrap();
    }
    // Too few pages for a frame: it is dropped.
    machine.switch.send(data.clone());
    machine.run();
    assert_eq!(front.receive_pages(&mut spare[..1]), Ok(None));
    assert_eq!((front.stats().rx_dropped, front.stats().copied_bytes), (1, 0));
    // A page received into can be sent on as it is.
    let mut whole = udp(false, true, &bytes(40));
    whole[..12].copy_from_slice(&[HOST, GUEST].concat());
    spare[0].page.write_bytes(7, &whole).unwrap();
    (spare[0].offset, spare[0].len) = (7, whole.len());
    let blank = TxMeta::new(xen_netfront::Checksum::Blank, None);
    front.transmit_pages(&mut spare[..1], blank).unwrap();
    front.publish().unwrap();
    machine.run();
    assert_eq!(machine.switch.receive().unwrap().to_wire().unwrap(), [whole]);
    assert_eq!(back.complaints(), [""; 0]);
}

#[test]
fn pages_that_are_not_the_backends_are_refused() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut front = machine.connect(&mut xs).unwrap();
    let _other = machine.xen.domain(DomId(7));
    machine.switch.send(frame(GUEST, HOST, 60, 0));
    machine.run();
    for (to, access, offset, len) in [
        (DomId(7), Access::ReadWrite, 0, 60),
        (DomId(0), Access::ReadOnly, 4090, 60),
        (DomId(0), Access::ReadOnly, 5000, 60),
        (DomId(0), Access::ReadOnly, usize::MAX, 60),
        (DomId(0), Access::ReadOnly, 0, 4097),
    ] {
        let page = machine.grants.share(to, access).unwrap();
        let mut part = [FramePage::new(page, offset, len)];
        assert_eq!(front.transmit_pages(&mut part, TxMeta::default()), Err(Error::Page));
        assert_eq!(front.receive_pages(&mut part), Err(Error::Page));
    }
    // The frame is still there for a page that is right.
    let page = machine.grants.share(DomId(0), Access::ReadWrite).unwrap();
    let mut part = [FramePage::new(page, 0, 0)];
    assert_eq!(front.receive_pages(&mut part).unwrap().map(|meta| meta.len), Some(60));
    assert_eq!(front.receive_pages(&mut part), Ok(None));
    let page = || machine.grants.share(DomId(0), Access::ReadOnly).unwrap();
    for (count, len) in [(0, 1), (2, 0), (19, 60), (1, 13)] {
        let mut parts: Vec<_> = (0..count).map(|_| FramePage::new(page(), 0, len)).collect();
        assert!(front.transmit_pages(&mut parts, TxMeta::default()).is_err());
    }
    front.publish().unwrap();
    machine.run();
    assert_eq!((back.stats().from_guest, back.complaints()), (0, vec![]));
}

#[test]
fn a_backend_that_is_not_trusted_gets_copies() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    back.set_front("trusted", Some("0"));
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut front = machine.connect(&mut xs).unwrap();
    assert!(!front.is_trusted());
    let page = || machine.grants.share(DomId(0), Access::ReadOnly).unwrap();
    let mut parts = [FramePage::new(page(), 1, 4000), FramePage::new(page(), 96, 999)];
    let data = frame(HOST, GUEST, 4999, 3);
    parts[0].page.write_bytes(1, &data[..4000]).unwrap();
    parts[1].page.write_bytes(96, &data[4000..]).unwrap();
    let grefs = [parts[0].page.gref(), parts[1].page.gref()];
    front.transmit_pages(&mut parts, TxMeta::default()).unwrap();
    assert_eq!([parts[0].page.gref(), parts[1].page.gref()], grefs, "the pages stay");
    assert_eq!(front.stats().copied_bytes, 4999);
    front.publish().unwrap();
    machine.run();
    assert!(machine.switch.receive().unwrap().bytes == data);
    assert_eq!(back.complaints(), [""; 0]);
}

#[test]
fn a_link_goes_down_and_up() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut front = machine.connect(&mut xs).unwrap();
    assert!(front.is_link_up());
    for (carrier, disconnect, up) in [
        ("0", None, false),
        ("1", None, true),
        ("1", Some("1"), false),
        ("1", Some("0"), true),
        ("x", Some("y"), true),
    ] {
        back.set_back("carrier", carrier);
        back.set_front("disconnect", disconnect);
        machine.run();
        assert_eq!(front.service(&mut xs), Ok(State::Connected));
        assert_eq!(front.is_link_up(), up, "{carrier} {disconnect:?}");
    }
    // It is known from the start, too.
    front.close(&mut xs, machine.soon()).unwrap();
    back.set_back("carrier", "0");
    let down = machine.connect(&mut xs).unwrap();
    assert!(!down.is_link_up());
    down.close(&mut xs, machine.soon()).unwrap();
    // Who does not ask after it is told nothing, and it costs nothing.
    let (watches, config) =
        (machine.store.watches(DomId(1)), Config { follow_link: false, ..Config::default() });
    let front = machine.connect_with::<1>(&mut xs, config).unwrap();
    assert!(front.is_link_up());
    assert_eq!(machine.store.watches(DomId(1)), watches + 1);
}

#[test]
fn what_an_earlier_kernel_left_is_removed_and_nothing_else_is_written() {
    let machine = Machine::new();
    let back = machine.vif(Options { queues: 2, ..Options::default() });
    let left =
        ["multi-queue-num-queues", "event-channel-rx", "ctrl-ring-ref", "feature-gso-tcpv4", "xdp-headroom"];
    left.iter().for_each(|node| back.set_front(node, Some("9")));
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let config = Config { queues: 1, receive: Features::CHECKSUM_V4, ..Config::default() };
    let front = machine.connect_with::<1>(&mut xs, config).unwrap();
    assert_eq!(left.map(|node| back.front(node)), left.map(|_| None));
    // Zero is what a node that is not there says.
    assert_eq!(back.front("feature-no-csum-offload"), None);
    assert_eq!(back.complaints(), [""; 0]);
    front.close(&mut xs, machine.soon()).unwrap();
    // A card that cannot do anything says so, and is asked for nothing it cannot do.
    let front = machine.connect(&mut xs).unwrap();
    assert_eq!(back.front("feature-no-csum-offload").as_deref(), Some("1"));
    assert_eq!(["feature-sg", "feature-ipv6-csum-offload"].map(|node| back.front(node)), [None, None]);
    assert_eq!(back.complaints(), [""; 0]);
    front.close(&mut xs, machine.soon()).unwrap();
}

#[test]
fn a_device_is_unplugged_and_plugged_in_under_traffic() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut front = machine.connect(&mut xs).unwrap();
    let mut buf = vec![0; FRAME_MAX];
    let ports = xen_evtchn::mock::open_ports(&machine.guest);
    for round in 0..24u8 {
        for i in 0..20 {
            front.transmit(&frame(HOST, GUEST, 60, i)).unwrap();
            machine.switch.send(frame(GUEST, HOST, 60, i));
        }
        front.publish().unwrap();
        // In the middle of it.
        match round % 4 {
            0 => back.detach(),
            1 => back.close(),
            2 => back.vanish(),
            _ => {}
        }
        machine.run();
        let ended = if round % 4 == 3 { State::Connected } else { State::Closed };
        if round % 4 == 0 {
            assert_eq!(front.service(&mut xs), Ok(State::Closing));
            machine.run();
        }
        assert_eq!(front.service(&mut xs), Ok(ended));
        if ended == State::Closed {
            assert_eq!(front.transmit(&frame(HOST, GUEST, 60, 0)), Err(Error::Closed));
        }
        if round % 4 == 2 {
            // Gone for longer than one is willing to wait: an error, and the guest goes on without.
            assert!(matches!(front.reconnect(&mut xs, machine.soon()), Err(Error::Xenstore(_))));
            assert_eq!((front.state(), machine.grants.stats().in_use), (State::Closed, 0));
        }
        if ended == State::Closed {
            assert_eq!(front.is_backend_waiting(&mut xs), Ok(false));
        }
        back.come_back();
        assert_eq!(front.is_backend_waiting(&mut xs), Ok(true));
        front.reconnect(&mut xs, machine.soon()).unwrap();
        machine.run();
        while front.receive(&mut buf).unwrap().is_some() {}
        while machine.switch.receive().is_some() {}
        front.transmit(&frame(HOST, GUEST, 99, round)).unwrap();
        machine.switch.send(frame(GUEST, HOST, 99, round));
        front.publish().unwrap();
        machine.run();
        assert_eq!(machine.switch.receive().unwrap().bytes, frame(HOST, GUEST, 99, round));
        assert_eq!(front.receive(&mut buf), Ok(Some(99)));
        assert_eq!(front.stats().reconnects, u64::from(round) + 1);
        assert_eq!((machine.grants.stats().in_use, machine.grants.stats().quarantined), (514, 0));
        assert_eq!(xen_evtchn::mock::open_ports(&machine.guest), ports);
    }
    assert_eq!(front.stats().tx_frames, 24 * 21);
    assert_eq!(back.complaints(), [""; 0]);
}
