//! A TCP/IP stack on the device: what it leaves to the backend, and that nothing gets lost or changed by that.
#![cfg(all(feature = "mock", feature = "smoltcp-v0-14-segmentation"))]

mod common;

use std::num::NonZeroU16;

use common::{GUEST, HOST, Machine, bytes, frame, tcp, udp};
use smoltcp::iface::{Config as IfaceConfig, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, PacketMeta, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};
use xen_hypercall::mock::MockDomain;
use xen_netfront::adapters::smoltcp::SmoltcpDevice;
use xen_netfront::mock::{Frame, HostDevice, MockNetback, Options};
use xen_netfront::packet::{self, Packet};
use xen_netfront::{Checksum, Config, FRAME_MAX, Features, Gso, GsoKind};
use xen_xenstore::Xenstore;

fn interface(device: &mut impl Device, mac: [u8; 6], last: u8) -> Interface {
    let mut config = IfaceConfig::new(EthernetAddress(mac).into());
    config.random_seed = last.into();
    let mut iface = Interface::new(config, device, Instant::ZERO);
    iface.update_ip_addrs(|addresses| {
        addresses.push(IpCidr::new(IpAddress::v4(10, 0, 0, last), 24)).unwrap();
        addresses.push(IpCidr::new(IpAddress::v6(0xfd00, 0, 0, 0, 0, 0, 0, last.into()), 64)).unwrap();
    });
    iface
}

fn socket(sockets: &mut SocketSet<'static>) -> SocketHandle {
    let buffer = || SocketBuffer::new(vec![0; 60_000]);
    sockets.add(Socket::new(buffer(), buffer()))
}

/// Sends as much as fits of what is left, and takes what arrived.
fn move_data(socket: &mut Socket<'_>, out: &mut &[u8], into: &mut Vec<u8>) {
    if socket.can_send() && !out.is_empty() {
        *out = &out[socket.send_slice(out).unwrap()..];
    }
    while socket.can_recv() {
        socket
            .recv(|data| {
                into.extend_from_slice(data);
                (data.len(), ())
            })
            .unwrap();
    }
}

/// A guest and the host send each other so much by TCP. Answers the backend and how many frames each way.
/// `buffer` bytes are for a frame that the guest sends.
fn exchange(options: Options, v6: bool, len: usize, buffer: usize) -> (MockNetback, xen_netfront::Stats) {
    let machine = Machine::new();
    let back = machine.vif(options);
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let config = Config { receive: Features::all(), ..Config::default() };
    let front = machine.connect_with::<1>(&mut xs, config).unwrap();
    let mut device = SmoltcpDevice::new(front, vec![0; FRAME_MAX], vec![0; buffer]);
    let mut host_device = HostDevice::new(&machine.switch);
    let (mut guest, mut host) = (interface(&mut device, GUEST, 2), interface(&mut host_device, HOST, 1));
    let (mut guest_sockets, mut host_sockets) = (SocketSet::new(vec![]), SocketSet::new(vec![]));
    let (client, server) = (socket(&mut guest_sockets), socket(&mut host_sockets));
    host_sockets.get_mut::<Socket<'_>>(server).listen(80).unwrap();
    let address = if v6 { IpAddress::v6(0xfd00, 0, 0, 0, 0, 0, 0, 1) } else { IpAddress::v4(10, 0, 0, 1) };
    guest_sockets.get_mut::<Socket<'_>>(client).connect(guest.context(), (address, 80), 50_000).unwrap();
    let data = bytes(len);
    let (mut up, mut down) = (&data[..], &data[..]);
    let (mut at_host, mut at_guest) = (Vec::new(), Vec::new());
    for turn in 0i64.. {
        assert!(turn < 20_000, "stuck at {} and {} of {len}", at_host.len(), at_guest.len());
        let now = Instant::from_millis(turn);
        guest.poll(now, &mut device, &mut guest_sockets);
        device.publish().unwrap();
        machine.run();
        host.poll(now, &mut host_device, &mut host_sockets);
        machine.run();
        move_data(guest_sockets.get_mut(client), &mut up, &mut at_guest);
        move_data(host_sockets.get_mut(server), &mut down, &mut at_host);
        if at_host.len() == len && at_guest.len() == len {
            break;
        }
    }
    assert!(at_host == data && at_guest == data);
    assert_eq!((back.complaints(), device.wrong_checksums(), machine.switch.dropped()), (vec![], 0, 0));
    let front = device.into_inner();
    let stats = front.stats();
    front.close(&mut xs, machine.soon()).unwrap();
    assert_eq!(machine.grants.stats().in_use, 0);
    (back, stats)
}

#[test]
fn a_stream_is_the_same_with_and_without_offloads() {
    const LEN: usize = 1_000_000;
    // Put together here, and left whole by the stack.
    for (v6, buffer) in [(false, 1514), (true, 1514), (false, FRAME_MAX), (false, 9000), (true, FRAME_MAX)] {
        let exchange = |options, v6, len| exchange(options, v6, len, buffer);
        let (back, stats) = exchange(Options::default(), v6, LEN);
        assert!(stats.tx_gso > 0 && back.stats().blank_from_guest > 0, "{stats:?}");
        let plain = Options { gso_v4: false, gso_v6: false, ..Options::default() };
        let (back, without) = exchange(plain, v6, LEN);
        assert_eq!((without.tx_gso, back.stats().gso_from_guest), (0, 0));
        // What it is for.
        assert!(stats.tx_frames * 2 < without.tx_frames, "{} of {}", stats.tx_frames, without.tx_frames);
        assert!(stats.tx_slots < without.tx_slots, "{} of {}", stats.tx_slots, without.tx_slots);
        let bare = Options { sg: false, csum_v4: false, csum_v6: false, ..plain };
        let (back, _) = exchange(bare, v6, LEN);
        assert_eq!(back.stats().blank_from_guest, 0);
    }
}

#[test]
fn the_stack_leaves_a_stream_whole_if_the_backend_cuts_it() {
    for (options, buffer, wanted) in [
        // As many whole segments as fit.
        (Options::default(), FRAME_MAX, Some(54 + 44 * 1460)),
        (Options::default(), 9000, Some(54 + 6 * 1460)),
        (Options { gso_v4: false, ..Options::default() }, FRAME_MAX, None),
        (Options::default(), 54 + 2 * 1460 - 1, None),
        (Options::default(), 1514, None),
        (Options::default(), 54, None),
        (Options::default(), 10, None),
    ] {
        let machine = Machine::new();
        let _back = machine.vif(options);
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let front = machine.connect(&mut xs).unwrap();
        let device = SmoltcpDevice::new(front, vec![0; 1514], vec![0; buffer]);
        let capabilities = device.capabilities();
        assert_eq!(capabilities.max_transmission_unit, buffer.min(1514));
        assert_eq!(capabilities.segmentation.tcpv4.map(usize::from), wanted, "{buffer}");
        assert_eq!(capabilities.segmentation.tcpv6, None);
    }
}

/// What the stack gets to see of a frame from the host.
fn seen(device: &mut SmoltcpDevice<'_, MockDomain, Vec<u8>>) -> Option<Vec<u8>> {
    Some(device.receive(Instant::ZERO)?.0.consume(<[u8]>::to_vec))
}

#[test]
fn the_stack_sees_no_frame_that_nobody_has_verified() {
    let machine = Machine::new();
    let _back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let config = Config { receive: Features::all(), ..Config::default() };
    let front = machine.connect_with::<1>(&mut xs, config).unwrap();
    let mut device = SmoltcpDevice::new(front, vec![0; FRAME_MAX], vec![0; 1514]);
    assert!(!device.capabilities().checksum.tcp.rx() && device.capabilities().checksum.udp.rx());
    let mut wrong = 0;
    for v6 in [false, true] {
        let good = tcp(v6, false, 1, &bytes(1001));
        for at in [34, 60, good.len() - 1] {
            let mut bad = Frame::new(good.clone());
            bad.bytes[at] ^= 1;
            machine.switch.send(bad);
            wrong += 1;
        }
        // A fragment, whose checksum only the whole would show.
        if !v6 {
            let mut fragment = good.clone();
            fragment[20] = 0x20;
            machine.switch.send(fragment);
            wrong += 1;
        }
        machine.switch.send(good.clone());
        // One that never was on a wire, whole or large.
        let mut blank = Frame::new(tcp(v6, false, 1, &bytes(9000)));
        let packet = Packet::parse(&blank.bytes).unwrap();
        packet::set_partial(&mut blank.bytes, &packet);
        blank.checksum = Checksum::Blank;
        let kind = if v6 { GsoKind::TcpV6 } else { GsoKind::TcpV4 };
        blank.gso = Some(Gso::new(kind, 1400));
        machine.switch.send(blank.clone());
        // The stack verifies UDP itself, so it must be there.
        let datagram = udp(v6, false, &bytes(99));
        let mut unfinished = Frame::new(datagram.clone());
        packet::set_partial(&mut unfinished.bytes, &Packet::parse(&datagram).unwrap());
        unfinished.checksum = Checksum::Blank;
        machine.switch.send(unfinished);
        let arp = frame(GUEST, HOST, 60, 0);
        machine.switch.send(arp.clone());
        machine.run();
        assert_eq!(seen(&mut device), Some(good));
        assert_eq!(seen(&mut device), Some(blank.bytes));
        assert_eq!(seen(&mut device), Some(datagram));
        assert_eq!(seen(&mut device), Some(arp));
        assert_eq!(seen(&mut device), None);
        assert_eq!(device.wrong_checksums(), wrong);
        device.publish().unwrap();
    }
}

/// Sends frames as a stack does, and answers what the switch got, with the size of its segments.
fn sent(frames: &[Vec<u8>]) -> Vec<(Vec<u8>, Option<u16>)> {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let front = machine.connect(&mut xs).unwrap();
    let mut device = SmoltcpDevice::new(front, vec![0; 1514], vec![0; 1514]);
    for frame in frames {
        let token = device.transmit(Instant::ZERO).unwrap();
        token.consume(frame.len(), |room| room.copy_from_slice(frame));
    }
    device.publish().unwrap();
    machine.run();
    assert_eq!(back.complaints(), [""; 0]);
    let got: Vec<Frame> = std::iter::from_fn(|| machine.switch.receive()).collect();
    let wire: Vec<Vec<u8>> = got.iter().flat_map(|frame| frame.to_wire().unwrap()).collect();
    // On the wire they are what the stack sent, but for the numbers and flags that cutting sets; each flow in its order.
    assert_eq!(wire.len(), frames.len());
    let flow = |frame: &&Vec<u8>| Packet::parse(frame).map(|packet| frame[packet.transport..][..4].to_vec());
    let (mut wire, mut frames): (Vec<_>, Vec<_>) = (wire.iter().collect(), frames.iter().collect());
    wire.sort_by_key(flow);
    frames.sort_by_key(flow);
    for (wire, frame) in wire.into_iter().zip(frames) {
        let packet = Packet::parse(frame);
        assert_eq!(
            wire[packet.map_or(0, |packet| packet.payload)..],
            frame[packet.map_or(0, |packet| packet.payload)..]
        );
        if let Some(packet) = packet {
            assert!(packet::verify(wire, &packet));
            assert_eq!(wire[packet.transport..][..8], frame[packet.transport..][..8], "ports and number");
        }
    }
    got.into_iter().map(|frame| (frame.bytes, frame.gso.map(|gso| gso.size))).collect()
}

#[test]
fn segments_of_a_stream_become_one_packet() {
    for v6 in [false, true] {
        let segment = |sequence: u32, len: usize, flags: u8| {
            let mut frame = tcp(v6, true, sequence, &bytes(len));
            let packet = Packet::parse(&frame).unwrap();
            frame[packet.transport + 13] = flags;
            frame
        };
        let headers = segment(0, 0, 16).len();
        let total = |got: &[(Vec<u8>, Option<u16>)]| -> Vec<(usize, Option<u16>)> {
            got.iter().map(|(bytes, size)| (bytes.len() - headers, *size)).collect()
        };
        // Consecutive ones, to the last that is shorter.
        let got = sent(&[
            segment(0, 1400, 16),
            segment(1400, 1400, 16),
            segment(2800, 100, 16),
            segment(2900, 50, 16),
        ]);
        assert_eq!(total(&got), [(2900, Some(1400)), (50, None)]);
        // A push ends it, and is in what goes out.
        let got = sent(&[segment(0, 1400, 16), segment(1400, 1400, 24), segment(2800, 1400, 16)]);
        assert_eq!(total(&got), [(2800, Some(1400)), (1400, None)]);
        assert_eq!(got[0].0[headers - 20 + 13], 24);
        // The sequence number wraps.
        let got = sent(&[segment(u32::MAX - 699, 1400, 16), segment(700, 1400, 16)]);
        assert_eq!(total(&got), [(2800, Some(1400))]);
        // A gap, a repetition, a larger one.
        let got = sent(&[
            segment(0, 1400, 16),
            segment(2800, 1400, 16),
            segment(2800, 1400, 16),
            segment(4200, 1410, 16),
        ]);
        assert_eq!(total(&got), [(1400, None), (1400, None), (1400, None), (1410, None)]);
        // Another acknowledgement, another flow, what is no data.
        let mut acknowledges = segment(1400, 1400, 16);
        acknowledges[headers - 20 + 11] = 10;
        let mut other = segment(2800, 1400, 16);
        other[headers - 20 + 1] = 1;
        let got = sent(&[
            segment(0, 1400, 16),
            acknowledges,
            other,
            segment(4200, 0, 16),
            frame(HOST, GUEST, 60, 0),
        ]);
        assert_eq!(got.len(), 5);
        // No more than fits.
        let many: Vec<Vec<u8>> = (0..100).map(|index| segment(index * 1400, 1400, 16)).collect();
        let got = total(&sent(&many));
        assert_eq!(got, [(46 * 1400, Some(1400)), (46 * 1400, Some(1400)), (8 * 1400, Some(1400))]);
    }
}

#[test]
fn segments_of_several_streams_in_turns_become_a_packet_each() {
    for v6 in [false, true] {
        let segment = |port: u8, sequence: u32, len: usize| {
            let mut frame = tcp(v6, true, sequence, &bytes(len));
            let packet = Packet::parse(&frame).unwrap();
            frame[packet.transport + 1] = port;
            frame[packet.transport + 13] = 16;
            frame
        };
        let headers = segment(0, 0, 0).len();
        let total = |frames: &[Vec<u8>]| -> Vec<(u8, usize, Option<u16>)> {
            let told = |(bytes, size): (Vec<u8>, _)| (bytes[headers - 19], bytes.len() - headers, size);
            sent(frames).into_iter().map(told).collect()
        };
        let turns = |ports: u8, rounds: u32| -> Vec<Vec<u8>> {
            (0..rounds).flat_map(|n| (0..ports).map(move |port| segment(port, n * 1400, 1400))).collect()
        };
        let whole = |port| (port, 10 * 1400, Some(1400));
        assert_eq!(total(&turns(4, 10)), [whole(0), whole(1), whole(2), whole(3)]);
        // What has no place takes another's. Nothing is lost by it, and nothing gets into another's stream.
        let got = total(&turns(7, 4));
        for port in 0..7 {
            let own = got.iter().filter(|(of, ..)| *of == port);
            assert_eq!(own.map(|(_, len, _)| len).sum::<usize>(), 4 * 1400, "{port} of {got:?}");
        }
        // Not even one that looks as if it went on with the stream whose place it takes.
        let mut frames = turns(4, 1);
        frames.push(segment(4, 1400, 1400));
        let mut got: Vec<_> = total(&frames).into_iter().map(|(port, len, _)| (port, len)).collect();
        got.sort_unstable();
        assert_eq!(got, [0, 1, 2, 3, 4].map(|port| (port, 1400)));
        // An acknowledgement ends only its own stream's packet.
        let mut frames = turns(2, 3);
        frames.push(segment(0, 3 * 1400, 0));
        frames.extend([segment(0, 3 * 1400, 1400), segment(1, 3 * 1400, 1400)]);
        let all = [(0, 3 * 1400, Some(1400)), (0, 0, None), (0, 1400, None), (1, 4 * 1400, Some(1400))];
        assert_eq!(total(&frames), all);
        // Of long streams each packet is as long as the stream lets it be.
        let got = total(&turns(4, 30));
        assert!(got.iter().all(|(_, len, _)| *len == 30 * 1400), "{got:?}");
    }
}

/// Gives the device a part of a stream as the stack does, to be cut in segments of this size if there is one.
fn give(
    device: &mut SmoltcpDevice<'_, MockDomain, Vec<u8>>,
    sequence: u32,
    len: usize,
    size: Option<NonZeroU16>,
) {
    let mut frame = tcp(false, true, sequence, &bytes(len));
    let packet = Packet::parse(&frame).unwrap();
    frame[packet.transport + 13] = 16;
    let mut token = device.transmit(Instant::ZERO).unwrap();
    let mut meta = PacketMeta::default();
    meta.segmentation_offload_size = size;
    token.set_meta(meta);
    token.consume(frame.len(), |room| room.copy_from_slice(&frame));
}

#[test]
fn the_backend_is_at_work_while_the_stack_goes_on() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let front = machine.connect(&mut xs).unwrap();
    machine.run();
    let mut device = SmoltcpDevice::new(front, vec![0; 1514], vec![0; 1514]);
    let events = back.stats().events;
    for sequence in (0..100).map(|index| index * 1400) {
        give(&mut device, sequence, 1400, None);
    }
    machine.run();
    let got = std::iter::from_fn(|| machine.switch.receive()).count();
    assert_eq!((got, back.stats().events - events), (2, 1), "two whole packets, one event for both");
    device.publish().unwrap();
    machine.run();
    assert_eq!(std::iter::from_fn(|| machine.switch.receive()).count(), 1);
    assert_eq!(back.complaints(), [""; 0]);
}

#[test]
fn a_large_packet_of_the_stack_goes_at_once_after_what_waited() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let front = machine.connect(&mut xs).unwrap();
    machine.run();
    let mut device = SmoltcpDevice::new(front, vec![0; 1514], vec![0; FRAME_MAX]);
    let events = back.stats().events;
    for (sequence, len, size) in [(0, 1400, None), (1400, 30_000, NonZeroU16::new(1400))] {
        give(&mut device, sequence, len, size);
    }
    machine.run();
    assert_eq!(back.stats().events - events, 1);
    let got: Vec<Frame> = std::iter::from_fn(|| machine.switch.receive()).collect();
    let told = |frame: &Frame| (frame.bytes.len() - 54, frame.gso.map(|gso| gso.size));
    assert_eq!(got.iter().map(told).collect::<Vec<_>>(), [(1400, None), (30_000, Some(1400))]);
    assert!(
        got.iter()
            .flat_map(|frame| frame.to_wire().unwrap())
            .all(|frame| { packet::verify(&frame, &Packet::parse(&frame).unwrap()) })
    );
    assert_eq!(back.complaints(), [""; 0]);
}
