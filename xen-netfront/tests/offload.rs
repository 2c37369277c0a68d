//! Large frames, checksums that are left to the other side, packets that are to be cut.
#![cfg(feature = "mock")]

mod common;

use common::{GUEST, HOST, Machine, bytes, frame, tcp, udp};
use xen_netfront::mock::{Frame, Options};
use xen_netfront::packet::{self, Packet};
use xen_netfront::{Checksum, Config, Error, FRAME_MAX, Features, Gso, GsoKind, TxMeta};
use xen_xenstore::Xenstore;

const BLANK: TxMeta = TxMeta::new(Checksum::Blank, None);

fn gso(v6: bool, size: u16) -> TxMeta {
    let kind = if v6 { GsoKind::TcpV6 } else { GsoKind::TcpV4 };
    TxMeta::new(Checksum::Blank, Some(Gso::new(kind, size)))
}

fn all() -> Config {
    Config { receive: Features::all(), ..Config::default() }
}

#[test]
fn frames_of_any_length_go_both_ways() {
    let machine = Machine::new();
    let back = machine.vif(Options { mtu: Some(65000), ..Options::default() });
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut front = machine.connect_with::<1>(&mut xs, all()).unwrap();
    assert_eq!(front.mtu(), 65000);
    let mut buf = vec![0; FRAME_MAX];
    for len in [14, 60, 1514, 4095, 4096, 4097, 8192, 9014, 20_000, 61_440, 61_441, 65_534, 65_535] {
        front.transmit(&frame(HOST, GUEST, len, 1)).unwrap();
        machine.switch.send(frame(GUEST, HOST, len, 2));
        front.publish().unwrap();
        machine.run();
        assert!(machine.switch.receive().unwrap().bytes == frame(HOST, GUEST, len, 1), "{len}");
        let meta = front.receive_with(&mut buf).unwrap().unwrap();
        assert_eq!((meta.len, meta.slots, meta.gso), (len, len.div_ceil(4096), None));
        assert!(buf[..len] == frame(GUEST, HOST, len, 2));
    }
    assert_eq!(front.transmit(&vec![0; 65_536]), Err(Error::Length(65_536)));
    assert_eq!(front.transmit(&[0; 13]), Err(Error::Length(13)));
    let stats = front.stats();
    assert_eq!(
        (stats.tx_slots, stats.rx_slots),
        (back.stats().slots_from_guest, back.stats().slots_to_guest)
    );
    assert_eq!(stats.copied_bytes, stats.tx_bytes + stats.rx_bytes);
    assert_eq!(back.complaints(), [""; 0]);
}

#[test]
fn a_backend_without_scatter_gather_gets_a_page_at_most() {
    let machine = Machine::new();
    let back = machine.vif(Options { sg: false, mtu: Some(9000), ..Options::default() });
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut front = machine.connect_with::<1>(&mut xs, Config::default()).unwrap();
    assert_eq!(front.features(), Features::CHECKSUM_V4 | Features::CHECKSUM_V6, "no cutting either");
    assert_eq!(front.mtu(), 4082);
    front.transmit(&frame(HOST, GUEST, 4096, 0)).unwrap();
    assert_eq!(front.transmit(&frame(HOST, GUEST, 4097, 0)), Err(Error::Length(4097)));
    front.publish().unwrap();
    machine.run();
    assert_eq!(machine.switch.receive().unwrap().bytes.len(), 4096);
    // One that is too large for the guest does not reach it.
    machine.switch.send(frame(GUEST, HOST, 4097, 0));
    machine.run();
    assert_eq!(front.receive(&mut [0; FRAME_MAX]), Ok(None));
    assert_eq!((back.complaints(), back.stats().undeliverable), (vec![], 1));
}

#[test]
fn as_much_as_the_mtu_says_can_be_sent_and_arrives() {
    for (sg, receive, tx_pages, headroom, mtu) in [
        (true, Features::all(), 256, 0, 9000),
        (true, Features::empty(), 256, 0, 4082),
        (false, Features::all(), 256, 0, 4082),
        (false, Features::empty(), 256, 0, 4082),
        // Too few pages for frames of several.
        (true, Features::all(), 16, 0, 4082),
        (true, Features::empty(), 256, 100, 3982),
        (false, Features::all(), 256, 100, 4082),
    ] {
        let machine = Machine::new();
        let back = machine.vif(Options { sg, mtu: Some(9000), ..Options::default() });
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let config = Config { receive, tx_pages, headroom, ..Config::default() };
        let mut front = machine.connect_with::<1>(&mut xs, config).unwrap();
        assert_eq!(front.mtu(), mtu, "{sg} {receive:?} {tx_pages} {headroom}");
        let (sent, got) =
            (frame(HOST, GUEST, mtu as usize + 14, 1), frame(GUEST, HOST, mtu as usize + 14, 2));
        front.transmit(&sent).unwrap();
        front.publish().unwrap();
        machine.switch.send(got.clone());
        machine.run();
        assert!(machine.switch.receive().unwrap().bytes == sent);
        let mut buffer = vec![0; FRAME_MAX];
        assert_eq!(front.receive(&mut buffer), Ok(Some(got.len())));
        assert!(buffer[..got.len()] == got);
        assert_eq!(back.complaints(), [""; 0]);
    }
}

#[test]
fn a_packet_that_is_cut_here_is_sent_whole_or_not_at_all() {
    let options = Options { gso_v4: false, mtu: Some(9000), ..Options::default() };
    for (pages, size, len) in [(20, 8000, 64_000), (24, 8000, 64_000), (17, 4500, 40_000), (40, 1400, 60_000)]
    {
        let machine = Machine::new();
        let back = machine.vif(options);
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let config = Config { tx_pages: pages, receive: Features::all(), ..Config::default() };
        let mut front = machine.connect_with::<1>(&mut xs, config).unwrap();
        back.stall(true);
        let large = tcp(false, true, 1, &bytes(len));
        let segments = len.div_ceil(size.into());
        let needed: usize = (0..segments)
            .map(|index| (54 + (len - index * usize::from(size)).min(size.into())).div_ceil(4096))
            .sum();
        let mut waiting = 0;
        loop {
            match front.transmit_with(&[&large], gso(false, size)) {
                Ok(()) => waiting += segments as u64,
                // With all pages here it would not fit.
                Err(Error::Length(_)) if needed > pages => break,
                Err(Error::Full) if needed <= pages => {}
                other => panic!("{pages} {size} {len}: {other:?}"),
            }
            assert_eq!(front.stats().tx_frames, waiting, "{pages} {size} {len}");
            if front.can_transmit().unwrap() == 0 {
                break;
            }
            // A page less each time.
            front.transmit(&frame(HOST, GUEST, 60, 0)).unwrap();
            waiting += 1;
        }
        assert_eq!(front.stats().tx_frames, waiting, "{pages} {size} {len}");
        assert_eq!(waiting == 0, needed > pages);
        front.publish().unwrap();
        back.stall(false);
        machine.run();
        assert_eq!(std::iter::from_fn(|| machine.switch.receive()).count() as u64, waiting);
        assert_eq!(back.complaints(), [""; 0]);
    }
}

#[test]
fn a_frame_in_parts_is_put_together() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut front = machine.connect(&mut xs).unwrap();
    let whole = tcp(false, true, 1, &bytes(9000));
    for cuts in [[54, 54], [100, 4096], [4097, 8191], [55, 56]] {
        let parts = [&whole[..cuts[0]], &whole[cuts[0]..cuts[1]], &whole[cuts[1]..]];
        for features in [true, false] {
            // With a checksum that is made here the parts may begin at odd places.
            let meta = if features { BLANK } else { TxMeta::default() };
            front.transmit_with(&parts, meta).unwrap();
            front.publish().unwrap();
            machine.run();
            let sent = machine.switch.receive().unwrap();
            assert!(sent.to_wire().unwrap() == [whole.clone()]);
        }
    }
    assert_eq!(back.complaints(), [""; 0]);
}

#[test]
fn a_blank_checksum_is_made_by_whoever_can() {
    for (options, blank_v4, blank_v6) in [
        (Options::default(), true, true),
        (Options { csum_v6: false, ..Options::default() }, true, false),
        (Options { csum_v4: false, ..Options::default() }, false, true),
    ] {
        let machine = Machine::new();
        let back = machine.vif(options);
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let mut front = machine.connect(&mut xs).unwrap();
        for v6 in [false, true] {
            for len in [0, 1, 2, 3, 101, 1440] {
                for good in [tcp(v6, true, 7, &bytes(len)), udp(v6, true, &bytes(len))] {
                    let mut frame = good.clone();
                    // What is in its place does not matter.
                    let at = Packet::parse(&frame).unwrap().checksum_at();
                    frame[at] ^= 0x5a;
                    let (head, rest) = frame.split_at(frame.len().min(77));
                    front.transmit_with(&[head, rest], BLANK).unwrap();
                    front.publish().unwrap();
                    machine.run();
                    let sent = machine.switch.receive().unwrap();
                    let blank = if v6 { blank_v6 } else { blank_v4 };
                    assert_eq!(sent.checksum == Checksum::Blank, blank);
                    assert_eq!(sent.to_wire().unwrap(), [good]);
                }
            }
        }
        assert_eq!(back.complaints(), [""; 0]);
    }
}

#[test]
fn what_a_backend_would_choke_on_is_refused() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut front = machine.connect(&mut xs).unwrap();
    let arp = frame(HOST, GUEST, 60, 0);
    let good = tcp(false, true, 1, &bytes(3000));
    let mut fragment = good.clone();
    fragment[20] = 0x20;
    let mut short = good.clone();
    short[16..18].copy_from_slice(&[0, 19]);
    let mut long = good.clone();
    long[16] = 0xff;
    for (frame, meta) in [
        (&arp, BLANK),
        (&arp, gso(false, 1000)),
        (&fragment, BLANK),
        (&short, BLANK),
        (&long, BLANK),
        (&good, gso(true, 1000)),
        (&good, gso(false, 0)),
        (&udp(false, true, &bytes(3000)), gso(false, 1000)),
    ] {
        assert_eq!(front.transmit_with(&[frame], meta), Err(Error::Headers));
    }
    // The headers must be in the first part.
    assert_eq!(front.transmit_with(&[&good[..50], &good[50..]], BLANK), Err(Error::Headers));
    front.publish().unwrap();
    machine.run();
    assert_eq!((back.stats().from_guest, back.complaints()), (0, vec![]));
}

#[test]
fn large_packets_are_cut_by_whoever_can() {
    for (options, uncut) in
        [(Options::default(), true), (Options { gso_v4: false, gso_v6: false, ..Options::default() }, false)]
    {
        let machine = Machine::new();
        let back = machine.vif(options);
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let mut front = machine.connect(&mut xs).unwrap();
        for v6 in [false, true] {
            for len in [1, 1400, 1401, 2800, 10_000, 65_400] {
                let (data, mss) = (bytes(len), 1400);
                front.transmit_with(&[&tcp(v6, true, 5, &data)], gso(v6, mss)).unwrap();
                front.publish().unwrap();
                machine.run();
                let sent: Vec<Frame> = std::iter::from_fn(|| machine.switch.receive()).collect();
                assert_eq!(sent.len(), if uncut { 1 } else { len.div_ceil(1400) });
                assert_eq!(sent[0].gso.is_some(), uncut && len > 1400);
                let wire: Vec<Vec<u8>> = sent.iter().flat_map(|frame| frame.to_wire().unwrap()).collect();
                let mut next = 5;
                for (index, piece) in wire.iter().enumerate() {
                    let packet = Packet::parse(piece).unwrap();
                    assert!(packet::verify(piece, &packet));
                    assert!(v6 || packet::sum(&piece[14..34]) == 0xffff);
                    let part = &data[next as usize - 5..][..1400.min(len - (next as usize - 5))];
                    assert!(piece[packet.payload..] == *part);
                    assert_eq!(piece[packet.transport + 4..][..4], u32::to_be_bytes(next));
                    // PSH is the last one's.
                    assert_eq!(
                        piece[packet.transport + 13],
                        if index + 1 == wire.len() { 0x18 } else { 0x10 }
                    );
                    next += part.len() as u32;
                }
                assert_eq!(next as usize, 5 + len);
            }
        }
        assert_eq!(back.complaints(), [""; 0]);
    }
}

#[test]
fn a_guest_that_wants_nothing_gets_whole_frames() {
    let machine = Machine::new();
    let _back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut front = machine.connect(&mut xs).unwrap();
    assert_eq!(front.accepted(), Features::empty());
    let mut buf = vec![0; FRAME_MAX];
    for v6 in [false, true] {
        let mut large = Frame::new(tcp(v6, false, 9, &bytes(5000)));
        let packet = Packet::parse(&large.bytes).unwrap();
        packet::set_partial(&mut large.bytes, &packet);
        (large.checksum, large.gso) = (Checksum::Blank, gso(v6, 1000).gso);
        machine.switch.send(large);
        machine.run();
        for part in 0..5 {
            let meta = front.receive_with(&mut buf).unwrap().unwrap();
            let frame = &buf[..meta.len];
            let packet = Packet::parse(frame).unwrap();
            assert_eq!((meta.checksum, meta.gso, meta.slots), (Checksum::Validated, None, 1));
            assert!(packet::verify(frame, &packet));
            assert!(frame[packet.payload..] == bytes(5000)[part * 1000..][..1000]);
        }
        assert_eq!(front.receive(&mut buf), Ok(None));
    }
}

#[test]
fn a_guest_that_wants_all_gets_packets_uncut() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut front = machine.connect_with::<1>(&mut xs, all()).unwrap();
    let mut buf = vec![0; FRAME_MAX];
    for v6 in [false, true] {
        for len in [2000, 4042, 4096, 60_000] {
            let mut large = Frame::new(tcp(v6, false, 9, &bytes(len)));
            let packet = Packet::parse(&large.bytes).unwrap();
            packet::set_partial(&mut large.bytes, &packet);
            (large.checksum, large.gso) = (Checksum::Blank, gso(v6, 1000).gso);
            machine.switch.send(large.clone());
            machine.run();
            let meta = front.receive_with(&mut buf).unwrap().unwrap();
            assert_eq!((meta.len, meta.checksum, meta.gso), (large.bytes.len(), Checksum::Blank, large.gso));
            assert!(buf[..meta.len] == large.bytes);
            front.publish().unwrap();
        }
    }
    // A checksum that is blank is made for those who do not want to know.
    let good = udp(false, false, &bytes(99));
    let mut blank = Frame::new(good.clone());
    packet::set_partial(&mut blank.bytes, &Packet::parse(&good).unwrap());
    blank.checksum = Checksum::Blank;
    machine.switch.send(blank);
    machine.run();
    assert_eq!(front.receive(&mut buf), Ok(Some(good.len())));
    assert_eq!(buf[..good.len()], good);
    assert_eq!(back.complaints(), [""; 0]);
}

#[test]
fn a_frame_that_does_not_fit_is_dropped_and_the_next_is_whole() {
    let machine = Machine::new();
    let _back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut front = machine.connect_with::<1>(&mut xs, all()).unwrap();
    machine.switch.send(frame(GUEST, HOST, 9000, 1));
    machine.switch.send(frame(GUEST, HOST, 5000, 2));
    machine.run();
    let mut buf = [0; 8000];
    assert_eq!(front.receive(&mut buf), Ok(Some(5000)));
    assert_eq!(buf[..5000], frame(GUEST, HOST, 5000, 2));
    assert_eq!((front.stats().rx_dropped, front.stats().rx_frames), (1, 1));
}

#[test]
fn few_pages_do() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    for (tx_pages, rx_pages) in [(1, 1), (2, 3), (17, 32), (300, 500)] {
        let config = Config { tx_pages, rx_pages, ..Config::default() };
        let mut front = machine.connect_with::<1>(&mut xs, config).unwrap();
        machine.run();
        assert_eq!(back.room(), 1 << rx_pages.min(256).ilog2());
        assert_eq!(front.features().contains(Features::SCATTER_GATHER), tx_pages >= 16);
        assert_eq!(front.can_transmit(), Ok(tx_pages.min(256)));
        for round in 0..600usize {
            front.transmit(&frame(HOST, GUEST, 60, round as u8)).unwrap();
            machine.switch.send(frame(GUEST, HOST, 60, round as u8));
            front.publish().unwrap();
            machine.run();
            assert_eq!(front.receive(&mut [0; 100]), Ok(Some(60)));
            assert_eq!(machine.switch.receive().unwrap().bytes, frame(HOST, GUEST, 60, round as u8));
        }
        front.close(&mut xs, machine.soon()).unwrap();
    }
    assert_eq!(back.complaints(), [""; 0]);
}
