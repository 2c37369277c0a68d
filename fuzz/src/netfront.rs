//! A network device: any calls, against a backend that has bad days, lies, or writes anywhere in the rings.
//!
//! Frames arrive as they were sent, in order and once, as long as the backend does not lie; only one that does breaks
//! the device; every page comes back when the backend has let go.

use std::time::Duration;

use xen_gnttab::Access;
use xen_hypercall::mock::{Dice, MockDomain};
use xen_netfront::mock::{Fault, Faults, Frame, MockNetback, MockSwitch, Options};
use xen_netfront::packet::{self, Packet};
use xen_netfront::{
    Checksum, Config, Error, FRAME_MAX, Features, FramePage, Gso, GsoKind, NetFront, State, TxMeta,
};
use xen_xenstore::Xenstore;

use crate::input::{Input, Number, Ops, Value, chance, input};
use crate::machine::{BACK, Machine, attempt};

const QUEUES: usize = 2;
type Front<'x> = NetFront<'x, MockDomain, QUEUES>;

/// Nodes of the backend that it may say anything in.
const NODES: [&str; 9] = [
    "state",
    "feature-rx-copy",
    "feature-sg",
    "feature-gso-tcpv4",
    "feature-no-csum-offload",
    "feature-ctrl-ring",
    "multi-queue-max-queues",
    "mac",
    "mtu",
];

input! {
    /// What is tried.
    pub struct Plan {
        /// What the backend offers: a bit each.
        offers: u8,
        /// What the guest uses to send, and to receive: [`Features`].
        send: u8,
        receive: u8,
        /// Pages for sending, and for receiving.
        tx_pages: u8,
        rx_pages: u8,
        /// Whether there is an event channel for each direction.
        split: bool,
        /// What decides on faults.
        seed: u32,
        /// How often each goes wrong: misfortunes first, lies behind.
        faults: [u8; 20],
        /// What happens.
        ops: Ops<Op>,
    }

    /// What happens next.
    pub enum Op {
        /// The guest sends a frame with so much payload: to be cut into segments of so much, or not at all.
        Transmit { v6: bool, len: u16, cut: Option<u16> },
        /// It sends one as long as any can be, or longer.
        TransmitLarge { len: u16 },
        /// It sends one from pages of its own.
        TransmitPages { len: u16 },
        /// It sends bytes that are no frame, with any claim about them.
        TransmitAnything { bytes: [u8; 24], len: u8, blank: bool, cut: Option<u16> },
        /// The host sends some.
        Host { v6: bool, len: u16, cut: Option<u16>, times: u8 },
        Receive { times: u8 },
        /// Receives into a buffer of so many bytes.
        ReceiveShort { room: u8 },
        ReceivePages,
        Flush,
        Arm,
        /// The far sides act.
        Run,
        Service,
        Reconnect,
        Stall { on: bool },
        Hold { on: bool },
        Detach,
        Drop,
        Vanish,
        ComeBack,
        /// The next response to a frame that was sent, or with one received, is wrong.
        Spoil { tx: bool, fault: FaultInput },
        /// A node of the backend says something else: at once, or when it is written next.
        Say { node: u8, value: Value, next: bool },
        /// The toolstack changes a node in the guest's directory.
        SayFront { node: u8, value: Value },
        /// The backend writes into a ring.
        Poke { tx: bool, queue: bool, offset: u16, bytes: [u8; 4] },
        /// It writes a number to a word at a ring's beginning: an index.
        Index { tx: bool, queue: bool, word: u8, number: Number },
    }

    /// What is wrong with a response.
    pub enum FaultInput {
        Id { id: u16 },
        Status { status: i16 },
        Offset { offset: u16 },
        Flags { flags: u16 },
        Missing,
        Twice,
        Index { by: Number },
    }
}

impl FaultInput {
    fn fault(&self) -> Fault {
        match *self {
            Self::Id { id } => Fault::Id(id),
            Self::Status { status } => Fault::Status(status),
            Self::Offset { offset } => Fault::Offset(offset),
            Self::Flags { flags } => Fault::Flags(flags),
            Self::Missing => Fault::Missing,
            Self::Twice => Fault::Twice,
            Self::Index { ref by } => Fault::Index(by.get()),
        }
    }
}

impl Plan {
    fn options(&self) -> Options {
        let bit = |bit: u8| self.offers & 1 << bit != 0;
        Options {
            sg: bit(0),
            gso_v4: bit(1),
            gso_v6: bit(2),
            csum_v4: bit(3),
            csum_v6: bit(4),
            split: bit(5),
            queues: if bit(6) { 4 } else { 0 },
            ..Options::default()
        }
    }

    fn config(&self) -> Config {
        Config {
            send: Features::from_bits_truncate(self.send.into()),
            receive: Features::from_bits_truncate(self.receive.into()),
            tx_pages: 1 + usize::from(self.tx_pages) % 48,
            rx_pages: 1 + usize::from(self.rx_pages) % 64,
            queues: QUEUES,
            split_channels: self.split,
            ..Config::default()
        }
    }

    fn faults(&self) -> Faults {
        let f = self.faults.map(chance);
        let mut faults = Faults::default();
        [faults.fail, faults.rx_error, faults.late, faults.lost, faults.lost_event] =
            [f[0], f[1], f[2], f[3], f[4]];
        [faults.late_event, faults.spurious_event, faults.keep_mapped] = [f[5], f[6], f[7]];
        [faults.close, faults.drop_out, faults.die, faults.come_back] = [f[8], f[9], f[10], f[11]];
        [faults.scribble, faults.wrong_id, faults.twice, faults.rx_missing] = [f[12], f[13], f[14], f[15]];
        [faults.rx_outside, faults.rx_flags, faults.rx_extra, faults.index_jump] =
            [f[16], f[17], f[18], f[19]];
        faults
    }
}

/// What went one way. Each frame begins with its number, from which all that it holds follows.
#[derive(Default)]
struct Direction {
    sent: Vec<Vec<u8>>,
    /// The number that the next frame to arrive has at least.
    next: usize,
}

impl Direction {
    fn payload(&mut self, len: usize) -> Vec<u8> {
        let number = self.sent.len();
        let mut payload = (number as u32).to_be_bytes().to_vec();
        payload.extend((0..len).map(|i| (i as u8).wrapping_mul(31) ^ (i >> 8) as u8 ^ number as u8));
        self.sent.push(payload.clone());
        payload
    }

    /// A frame arrived, or segments of it one after the other.
    fn arrive(&mut self, pieces: &[Vec<u8>]) {
        let mut whole = Vec::new();
        for piece in pieces {
            let packet = Packet::parse(piece).expect("what was sent");
            assert!(packet::verify(piece, &packet), "a wrong checksum");
            whole.extend_from_slice(&piece[packet.payload..packet.end]);
        }
        let number = u32::from_be_bytes(whole[..4].try_into().expect("four bytes")) as usize;
        assert!(number >= self.next, "frame {number} after {}", self.next);
        assert!(self.sent.get(number) == Some(&whole), "frame {number} is another one");
        self.next = number + 1;
    }
}

const HOST_MAC: [u8; 6] = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff];
const GUEST_MAC: [u8; 6] = [0x00, 0x16, 0x3e, 0x12, 0x34, 0x56];

/// A frame with TCP or UDP, to the host or back, whose checksum is right.
fn segment(v6: bool, to_host: bool, tcp: bool, payload: &[u8]) -> Vec<u8> {
    let (to, from, a, b) = if to_host { (HOST_MAC, GUEST_MAC, 2, 1) } else { (GUEST_MAC, HOST_MAC, 1, 2) };
    let mut frame = [&to[..], &from[..]].concat();
    let len = payload.len() + if tcp { 20 } else { 8 };
    let protocol = if tcp { 6 } else { 17 };
    if v6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend((len as u16).to_be_bytes());
        frame.extend([protocol, 64]);
        for last in [a, b] {
            frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        }
    } else {
        frame.extend([8, 0, 0x45, 0]);
        frame.extend((len as u16 + 20).to_be_bytes());
        frame.extend([0, 7, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, a, 10, 0, 0, b]);
        let checksum = !packet::sum(&frame[14..34]);
        frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    }
    if tcp {
        frame.extend([0x30, 0x39, 0, 80, 0, 0, 0, 1, 0, 0, 0, 9, 0x50, 0x18, 0x20, 0, 0, 0, 0, 0]);
    } else {
        frame.extend([0x30, 0x39, 0, 53]);
        frame.extend((len as u16).to_be_bytes());
        frame.extend([0, 0]);
    }
    frame.extend(payload);
    let found = Packet::parse(&frame).expect("TCP or UDP");
    packet::set_partial(&mut frame, &found);
    packet::complete(&mut frame, &found);
    frame
}

fn gso(v6: bool, cut: Option<u16>) -> Option<Gso> {
    cut.map(|size| Gso { kind: if v6 { GsoKind::TcpV6 } else { GsoKind::TcpV4 }, size: size.max(500) })
}

struct Run<'m> {
    machine: &'m Machine,
    switch: &'m MockSwitch,
    back: &'m MockNetback,
    up: Direction,
    down: Direction,
    /// What is not an accident was done to the device.
    tampered: bool,
    own: Vec<FramePage<'m, MockDomain>>,
    buffer: Vec<u8>,
}

impl<'m> Run<'m> {
    fn lied(&self) -> bool {
        self.tampered || self.back.lies_hit() > 0
    }

    /// What the call answered; none: an error, which has to fit how the device is, and the backend.
    fn check<T>(&self, front: &Front<'m>, result: Result<T, Error>) -> Option<T> {
        let error = match result {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        match error {
            Error::Broken(violation) => {
                assert!(self.lied(), "an honest backend, and {violation:?}");
                assert_eq!(front.state(), State::Broken(violation));
            }
            Error::Closed => assert_eq!(front.state(), State::Closed),
            Error::Length(_) => {}
            Error::Full | Error::NotOffered(_) | Error::Page => {}
            // The backend was away when the device began anew.
            Error::Store(_) | Error::NoMac | Error::NoRxCopy => {}
            other => panic!("{other:?}"),
        }
        None
    }

    /// What the host got.
    fn collect(&mut self, front: &Front<'m>) {
        let checks = !self.lied() && front.queues() == 1;
        while let Some(frame) = self.switch.receive() {
            // Two queues carry two flows, whose parts come in any order.
            if checks && Packet::parse(&frame.bytes).is_some() {
                self.up.arrive(&frame.to_wire().expect("a frame that can be cut"));
            }
        }
    }

    /// What the guest got.
    fn see(&mut self, front: &Front<'m>, frame: &Frame) {
        if self.lied() {
            return;
        }
        let gso = Features::GSO_V4 | Features::GSO_V6;
        assert!(front.accepted().intersects(gso) || frame.gso.is_none());
        let pieces = frame.to_wire().expect("a frame that can be cut");
        // What was cut for the guest comes in pieces, of which the first alone has the number.
        let packet = Packet::parse(&pieces[0]).expect("what was sent");
        if packet.protocol == packet::TCP && frame.gso.is_none() {
            assert!(packet::verify(&pieces[0], &packet));
            return;
        }
        if front.queues() > 1 {
            self.down.next = 0;
        }
        self.down.arrive(&pieces);
    }

    fn transmit(&mut self, front: &mut Front<'m>, v6: bool, len: usize, cut: Option<u16>) {
        let offered = |gso: &Gso| {
            let needs = if gso.kind == GsoKind::TcpV4 { Features::GSO_V4 } else { Features::GSO_V6 };
            front.features().contains(needs)
        };
        let gso = gso(v6, cut).filter(offered);
        let payload = self.up.payload(len);
        let frame = segment(v6, true, gso.is_some(), &payload);
        let at = frame.len().min(100);
        let sent =
            front.transmit_with(&[&frame[..at], &frame[at..]], TxMeta { checksum: Checksum::Blank, gso });
        if self.check(front, sent).is_none() {
            self.up.sent.pop();
        }
    }

    fn transmit_pages(&mut self, front: &mut Front<'m>, len: usize) {
        let payload = self.up.payload(len);
        let frame = segment(false, true, false, &payload);
        let count = frame.len().div_ceil(3000);
        for (part, chunk) in self.own.iter_mut().zip(frame.chunks(3000)) {
            part.page.write_bytes(5, chunk).expect("within the page");
            (part.offset, part.len) = (5, chunk.len());
        }
        let sent = front.transmit_pages(&mut self.own[..count], TxMeta::default());
        if self.check(front, sent).is_none() {
            self.up.sent.pop();
        }
    }

    fn host(&mut self, v6: bool, len: usize, cut: Option<u16>) {
        let payload = self.down.payload(len);
        let gso = gso(v6, cut);
        let mut frame = Frame::new(segment(v6, false, gso.is_some(), &payload));
        if gso.is_some() || len.is_multiple_of(2) {
            let packet = Packet::parse(&frame.bytes).expect("TCP or UDP");
            packet::set_partial(&mut frame.bytes, &packet);
            (frame.checksum, frame.gso) = (Checksum::Blank, gso);
        }
        self.switch.send(frame);
    }

    fn receive(&mut self, front: &mut Front<'m>, room: usize) -> bool {
        let received = front.receive_with(&mut self.buffer[..room]);
        let Some(Some(meta)) = self.check(front, received) else { return false };
        assert!(meta.slots <= 256);
        if room >= FRAME_MAX {
            assert!(meta.len <= room);
            let bytes = self.buffer[..meta.len].to_vec();
            self.see(front, &Frame { bytes, checksum: meta.checksum, gso: meta.gso });
        }
        true
    }

    fn receive_pages(&mut self, front: &mut Front<'m>) {
        let received = front.receive_pages(&mut self.own);
        if let Some(Some(meta)) = self.check(front, received) {
            let mut bytes = Vec::new();
            for part in &mut self.own[..meta.slots] {
                let start = bytes.len();
                bytes.resize(start + part.len, 0);
                part.page.read_bytes(part.offset, &mut bytes[start..]).expect("within the page");
            }
            assert_eq!(bytes.len(), meta.len);
            self.see(front, &Frame { bytes, checksum: meta.checksum, gso: meta.gso });
        }
        // Pages for reading alone came back from sending, so have fresh ones.
        for part in &mut self.own {
            if part.page.access() == Access::ReadOnly {
                part.page = self.machine.grants.share(BACK, Access::ReadWrite).expect("pages enough");
            }
        }
    }

    fn poke(&mut self, front: &Front<'m>, tx: bool, queue: bool, offset: u16, bytes: [u8; 4]) {
        let queue = if front.queues() > 1 { format!("queue-{}/", u8::from(queue)) } else { String::new() };
        let ring = if tx { "tx-ring-ref" } else { "rx-ring-ref" };
        let node = format!("/local/domain/1/device/vif/0/{queue}{ring}");
        self.tampered |= self.machine.poke(node, offset, &bytes);
    }

    fn step(&mut self, xs: &mut Xenstore<'m, MockDomain>, front: &mut Front<'m>, op: &Op) {
        match *op {
            Op::Transmit { v6, len, cut } => self.transmit(front, v6, usize::from(len) % 9000, cut),
            Op::TransmitLarge { len } => self.transmit(front, false, 58_000 + usize::from(len) % 7_400, None),
            Op::TransmitPages { len } => self.transmit_pages(front, usize::from(len) % 9000),
            Op::TransmitAnything { bytes, len, blank, cut } => {
                let checksum = if blank { Checksum::Blank } else { Checksum::Complete };
                let meta = TxMeta { checksum, gso: gso(false, cut) };
                match front.transmit_with(&[&bytes[..usize::from(len) % 25]], meta) {
                    Err(Error::Headers | Error::Length(_)) => {}
                    sent => drop(self.check(front, sent)),
                }
            }
            Op::Host { v6, len, cut, times } => {
                (0..times % 12).for_each(|_| self.host(v6, usize::from(len) % 9000, cut));
            }
            Op::Receive { times } => {
                let _ = (0..times % 64).all(|_| self.receive(front, FRAME_MAX));
            }
            Op::ReceiveShort { room } => drop(self.receive(front, room.into())),
            Op::ReceivePages => self.receive_pages(front),
            Op::Flush => {
                let flushed = front.flush();
                self.check(front, flushed);
            }
            Op::Arm => {
                let armed = front.arm();
                self.check(front, armed);
            }
            Op::Run => {
                self.machine.run();
                self.collect(front);
            }
            Op::Service => {
                let served = front.service(xs);
                self.check(front, served);
                self.collect(front);
            }
            Op::Reconnect => {
                let again = front.reconnect(xs, self.machine.after(100));
                self.check(front, again);
                self.collect(front);
            }
            Op::Stall { on } => self.back.stall(on),
            Op::Hold { on } => self.back.hold(on),
            Op::Detach => self.back.detach(),
            Op::Drop => self.back.close(),
            Op::Vanish => self.back.vanish(),
            Op::ComeBack => self.back.come_back(),
            Op::Spoil { tx, ref fault } => {
                self.tampered = true;
                if tx { self.back.fault_tx(fault.fault()) } else { self.back.fault_rx(fault.fault()) }
            }
            Op::Say { node, ref value, next } => {
                self.tampered = true;
                let node = NODES[usize::from(node) % NODES.len()];
                match value.text() {
                    Some(text) if !next => self.back.set_back(node, &text),
                    text => self.back.lie(node, text.as_deref()),
                }
            }
            Op::SayFront { node, ref value } => {
                self.tampered = true;
                let nodes = ["backend", "backend-id", "state", "mac"];
                self.back.set_front(nodes[usize::from(node) % 4], value.text().as_deref());
            }
            Op::Poke { tx, queue, offset, bytes } => self.poke(front, tx, queue, offset, bytes),
            Op::Index { tx, queue, word, ref number } => {
                self.poke(front, tx, queue, u16::from(word % 16) * 4, number.get().to_le_bytes());
            }
        }
    }
}

/// Tries an input.
pub fn run(data: &[u8]) {
    attempt(data, |plan: &Plan| attempt_plan(plan));
}

fn attempt_plan(plan: &Plan) {
    let machine = Machine::new();
    let switch = MockSwitch::new(&machine.xen);
    let back = MockNetback::new(&switch, &machine.store, &machine.guest, 0, plan.options());
    let mut xs = Xenstore::new(&machine.events).expect("a connection");
    xs.set_patience(Duration::from_millis(100));
    let ports = xen_evtchn::mock::open_ports(&machine.guest);
    let mut front: Front<'_> = NetFront::connect_with(
        &mut xs,
        &machine.events,
        &machine.grants,
        0,
        machine.after(5000),
        plan.config(),
    )
    .expect("a backend without faults so far");
    let page = || machine.grants.share(BACK, Access::ReadWrite).expect("pages enough");
    let own = (0..4).map(|_| FramePage { page: page(), offset: 0, len: 0 }).collect();
    let mut run = Run {
        machine: &machine,
        switch: &switch,
        back: &back,
        up: Direction::default(),
        down: Direction::default(),
        tampered: false,
        own,
        buffer: vec![0; FRAME_MAX],
    };
    back.set_faults(Dice::new(plan.seed.into()), plan.faults());
    for op in &plan.ops.0 {
        machine.xen.trace(|| format!("-- {op:?}"));
        run.step(&mut xs, &mut front, op);
        if let State::Broken(violation) = front.state() {
            let broken = Error::Broken(violation);
            assert_eq!(front.transmit(&[0; 60]), Err(broken));
            assert_eq!(front.receive(&mut [0; 60]), Err(broken));
            assert_eq!(front.flush(), Err(broken));
        }
    }
    // Everything comes back when the backend has let go.
    back.set_faults(Dice::new(0), Faults::default());
    back.stall(false);
    let _ = front.close(&mut xs, machine.after(5000));
    drop(run);
    back.vanish();
    back.hold(false);
    machine.run();
    machine.grants.reclaim();
    let stats = machine.grants.stats();
    assert_eq!((stats.in_use, stats.quarantined), (0, 0));
    assert_eq!(xen_gnttab::mock::mappings_of(&machine.xen, machine.guest.id()), 0);
    assert_eq!(xen_evtchn::mock::open_ports(&machine.guest), ports);
}

/// Inputs to begin with.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let plan = Plan {
        offers: 0x7f,
        send: 0xff,
        receive: 0xff,
        tx_pages: 40,
        rx_pages: 63,
        split: false,
        seed: 1,
        faults: [0; 20],
        ops: Ops(Vec::new()),
    };
    let traffic = || {
        vec![
            Op::Transmit { v6: false, len: 100, cut: None },
            Op::Transmit { v6: true, len: 8000, cut: Some(1400) },
            Op::TransmitPages { len: 5000 },
            Op::Host { v6: false, len: 3000, cut: Some(900), times: 3 },
            Op::Host { v6: true, len: 99, cut: None, times: 5 },
            Op::Flush,
            Op::Run,
            Op::Receive { times: 20 },
            Op::ReceivePages,
            Op::Arm,
        ]
    };
    let with = |more: Vec<Op>| Ops([traffic(), more, traffic()].concat());
    let one_queue = Plan { offers: 0x1f, ..plan.clone() };
    let lies = std::array::from_fn(|i| if i > 12 { 140 } else { 0 });
    let misfortunes = std::array::from_fn(|i| if i <= 12 { 140 } else { 0 });
    vec![
        ("traffic", Plan { ops: with(vec![]), ..one_queue.clone() }.bytes()),
        ("two-queues", Plan { ops: with(vec![Op::Service]), split: true, ..plan.clone() }.bytes()),
        ("plain", Plan { offers: 0, ops: with(vec![]), ..plan.clone() }.bytes()),
        (
            "misfortunes",
            Plan { faults: misfortunes, ops: with(vec![Op::Service, Op::Reconnect]), ..plan.clone() }.bytes(),
        ),
        ("lies", Plan { faults: lies, ops: with(vec![Op::Service]), ..one_queue.clone() }.bytes()),
        ("away-and-back", {
            let ops = with(vec![Op::Vanish, Op::Service, Op::Run, Op::ComeBack, Op::Service, Op::Reconnect]);
            Plan { ops, ..one_queue.clone() }.bytes()
        }),
        ("index", {
            let number = Number::Power { bit: 8, more: 1 };
            Plan {
                ops: with(vec![Op::Index { tx: false, queue: false, word: 2, number }]),
                ..one_queue.clone()
            }
            .bytes()
        }),
        ("wrong-id", {
            let fault = FaultInput::Id { id: 300 };
            Plan { ops: with(vec![Op::Spoil { tx: true, fault }]), ..one_queue.clone() }.bytes()
        }),
        (
            "held",
            Plan { ops: with(vec![Op::Hold { on: true }, Op::Detach, Op::Run, Op::Service]), ..one_queue }
                .bytes(),
        ),
    ]
}
