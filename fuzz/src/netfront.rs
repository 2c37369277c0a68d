//! A network device: any calls, against a backend that has bad days, lies, or writes anywhere in the rings.
//!
//! Frames arrive as they were sent, in order and once, as long as the backend does not lie; only one that does breaks
//! the device; every page comes back when the backend has let go.

mod frames;
mod plan;

use std::time::Duration;

use xen_gnttab::Access;
use xen_hypercall::mock::{Dice, MockDomain};
use xen_netfront::mock::{Faults, Frame, MockNetback, MockSwitch};
use xen_netfront::packet::{self, Packet};
use xen_netfront::{Checksum, Error, FRAME_MAX, Features, FramePage, Gso, GsoKind, NetFront, State, TxMeta};
use xen_xenstore::Xenstore;

use crate::input::{Input, Number, Ops};
use crate::machine::{BACK, Machine, attempt};
use frames::{Direction, gso, segment};
use plan::QUEUES;
pub use plan::{FaultInput, Op, Plan};

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

struct Run<'m> {
    machine: &'m Machine,
    switch: &'m MockSwitch,
    back: &'m MockNetback,
    up: Direction,
    down: Direction,
    /// What is not an accident was done to the device.
    tampered: bool,
    /// And that was more than wrong answers.
    meddled: bool,
    handshakes: u8,
    own: Vec<FramePage<'m, MockDomain>>,
    buffer: Vec<u8>,
}

impl<'m> Run<'m> {
    /// Handshakes that an input may ask for: they take longer than anything else, and one does not differ much from the next.
    const HANDSHAKES: u8 = 4;

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
            Error::Closed => assert!(matches!(front.state(), State::Closing | State::Closed)),
            Error::Length(_) => {}
            Error::Full | Error::NotOffered(_) | Error::Page => {}
            // The backend was away when the device began anew.
            Error::Xenstore(_) | Error::NoMac | Error::NoRxCopy => {}
            other => panic!("{other:?}"),
        }
        None
    }

    /// What the host got.
    fn collect(&mut self, front: &Front<'m>) {
        // A wrong answer does not change what the backend took out of the guest's pages.
        let checks = !self.meddled && self.back.lies_hit() == 0 && front.queues() == 1;
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
        self.meddled |= self.machine.poke(node, offset, &bytes);
        self.tampered |= self.meddled;
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
                let published = front.publish();
                self.check(front, published);
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
            Op::Reconnect if self.handshakes == Self::HANDSHAKES => {}
            Op::Reconnect => {
                self.handshakes += 1;
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
                self.meddled |= !tx;
                if tx { self.back.fault_tx(fault.fault()) } else { self.back.fault_rx(fault.fault()) }
            }
            Op::Say { node, ref value, next } => {
                (self.tampered, self.meddled) = (true, true);
                let node = NODES[usize::from(node) % NODES.len()];
                match value.text() {
                    Some(text) if !next => self.back.set_back(node, &text),
                    text => self.back.lie(node, text.as_deref()),
                }
            }
            Op::SayFront { node, ref value } => {
                (self.tampered, self.meddled) = (true, true);
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
        meddled: false,
        handshakes: 0,
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
            assert_eq!(front.publish(), Err(broken));
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
        ("rounds", {
            let ops = Ops((0..6).flat_map(|_| traffic()).collect());
            Plan { tx_pages: 15, rx_pages: 3, ops, ..one_queue.clone() }.bytes()
        }),
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
        ("twice", {
            let wrong = vec![
                Op::Transmit { v6: false, len: 100, cut: None },
                Op::Transmit { v6: false, len: 200, cut: None },
                Op::Spoil { tx: true, fault: FaultInput::Twice },
                Op::Flush,
                Op::Run,
            ];
            Plan {
                faults: std::array::from_fn(|i| if i == 2 { 250 } else { 0 }),
                ops: with(wrong),
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
