//! Any calls, against a backend that has bad days, lies, or writes anywhere in the rings, and what must hold of a device all
//! the time. Tests with random inputs and fuzzers share it.
//!
//! What arrives is what was sent, in order and once, as long as nobody lies; only a backend that lies breaks the device, and
//! a lie that cannot be overlooked always does; one that is broken stays so; every page comes back when the backend has let
//! go. A model panics when something does not hold.
#![allow(unsafe_code, reason = "suspends the guest")]

mod frames;
mod ops;

use core::time::Duration;
use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use xen_gnttab::{Access, GrantRef};
use xen_hypercall::mock::{Dice, MockDomain};
use xen_hypercall::sched::Resumed;
use xen_hypercall::{PAGE_SIZE, VcpuId};
use xen_xenstore::Xenstore;
use xen_xenstore::mock::Still;
use xen_xenstore::suspend::Suspension;

use super::{Faults, Frame};
use crate::packet::{self, Packet};
use crate::{
    Checksum, Config, Error, FRAME_MAX, Features, FramePage, Gso, Mac, NetFront, RxMeta, State, TxMeta,
};
use frames::{Direction, gso, segment};
pub use ops::{FRONT_NODES, NODES, Op, Place};

/// Queues that the device has room for.
pub const QUEUES: usize = 2;

type Front<'m> = NetFront<'m, MockDomain, QUEUES>;

/// A device, what is done with it, and what must hold.
pub struct Model<'m> {
    place: Place<'m>,
    xs: Xenstore<'m, MockDomain>,
    front: Front<'m>,
    /// Event channels before there was a device.
    ports: usize,
    up: Direction,
    down: Direction,
    /// Things go wrong by chance.
    faulty: bool,
    /// Something was done on purpose that lets frames be lost.
    disturbed: bool,
    /// What is not an accident was done to the device.
    tampered: bool,
    /// And that was more than wrong answers to what was sent.
    meddled: bool,
    /// The backend wrote over the rings.
    poked: bool,
    handshakes: usize,
    own: Vec<FramePage<'m, MockDomain>>,
    buffer: Vec<u8>,
}

impl core::fmt::Debug for Model<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Model").field("front", &self.front).finish_non_exhaustive()
    }
}

impl<'m> Model<'m> {
    /// Handshakes that there are at most: they take longer than anything else, and one does not differ much from the next.
    const HANDSHAKES: usize = 3;

    /// Connects the device, and lets things go wrong from then on.
    ///
    /// # Panics
    /// When that fails.
    pub fn new(place: Place<'m>, config: Config, dice: Dice, faults: Faults) -> Self {
        let mut xs = Xenstore::new(place.events).expect("a connection");
        xs.set_patience(Duration::from_millis(100));
        let ports = xen_evtchn::mock::open_ports(place.guest);
        let deadline = place.xen.now() + Duration::from_secs(5);
        let front = NetFront::connect_with(&mut xs, place.events, place.grants, 0, deadline, config);
        let front: Front<'m> = front.expect("a backend without faults so far");
        let backend = front.backend().expect("a backend");
        let page = || place.grants.share(backend, Access::ReadWrite).expect("pages enough");
        let own = (0..4).map(|_| FramePage { page: page(), offset: 0, len: 0 }).collect();
        let faulty = faults != Faults::default();
        place.back.set_faults(dice, faults);
        Self {
            place,
            xs,
            front,
            ports,
            up: Direction::default(),
            down: Direction::default(),
            faulty,
            disturbed: faulty,
            tampered: false,
            meddled: false,
            poked: false,
            handshakes: 0,
            own,
            buffer: vec![0; FRAME_MAX],
        }
    }

    fn after(&self, milliseconds: u64) -> Duration {
        self.place.xen.now() + Duration::from_millis(milliseconds)
    }

    fn lied(&self) -> bool {
        self.tampered || self.place.back.lies_hit() > 0
    }

    /// What the call returned; none: an error, which has to fit how the device is, and the backend.
    fn check<T>(&self, result: Result<T, Error>) -> Option<T> {
        let error = match result {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        match error {
            Error::Broken(violation) => {
                assert!(self.lied(), "an honest backend, and {violation:?}");
                assert_eq!(self.front.state(), State::Broken(violation));
            }
            Error::Closed => assert!(matches!(self.front.state(), State::Closing | State::Closed)),
            Error::Length(len) => {
                let sg = self.front.features().contains(Features::SCATTER_GATHER);
                assert!(!sg || len > FRAME_MAX, "{len} bytes");
            }
            Error::Full | Error::NotOffered(_) | Error::Page | Error::NoMulticast | Error::TooManyGroups => {}
            // The backend was away when the device began anew.
            Error::Xenstore(_) | Error::NoMac | Error::NoRxCopy => {}
            other => panic!("{other:?}"),
        }
        None
    }

    /// Lets the far sides act until they have nothing more to do, and takes what the host got.
    fn run(&mut self) {
        let xen = self.place.xen;
        assert!(xen.run_until_idle(1000) < 1000, "the far sides never end\n{}", xen.trace_text());
        self.place.events.dispatch(VcpuId(0));
        self.collect();
    }

    /// What the host got.
    fn collect(&mut self) {
        // A wrong answer does not change what the backend took out of the guest's pages. Two queues carry two flows, whose
        // parts come in any order.
        let checks = !self.meddled && self.place.back.lies_hit() == 0 && self.front.queues() == 1;
        while let Some(frame) = self.place.switch.receive() {
            if checks && Packet::parse(&frame.bytes).is_some() {
                self.up.arrive(&frame.to_wire().expect("a frame that can be cut"));
            }
        }
    }

    /// What the guest got.
    fn see(&mut self, frame: &Frame) {
        if self.lied() {
            return;
        }
        let gso = Features::GSO_V4 | Features::GSO_V6;
        assert!(self.front.accepted().intersects(gso) || frame.gso.is_none());
        let pieces = frame.to_wire().expect("a frame that can be cut");
        let first = pieces.first().expect("a piece");
        // What was cut for the guest comes in pieces, of which the first alone has the number.
        let packet = Packet::parse(first).expect("what was sent");
        if packet.protocol == packet::TCP && frame.gso.is_none() {
            assert!(packet::verify(first, &packet));
            return;
        }
        if self.front.queues() > 1 {
            self.down.forget_order();
        }
        self.down.arrive(&pieces);
    }

    fn transmit(&mut self, v6: bool, len: usize, cut: Option<u16>) {
        let offers = |gso: &Gso| self.front.features().contains(gso.feature());
        let gso = gso(v6, cut).filter(offers);
        let payload = self.up.payload(len);
        let frame = segment(v6, true, gso.is_some(), &payload);
        let (head, rest) = frame.split_at(frame.len().min(100));
        let sent = self.front.transmit_with(&[head, rest], TxMeta { checksum: Checksum::Blank, gso });
        if self.check(sent).is_none() {
            self.up.take_back();
        }
    }

    fn transmit_pages(&mut self, len: usize) {
        const EACH: usize = 3000;
        let payload = self.up.payload(len.min(9000));
        let frame = segment(false, true, false, &payload);
        for (part, chunk) in self.own.iter_mut().zip(frame.chunks(EACH)) {
            part.page.write_bytes(5, chunk).expect("within the page");
            (part.offset, part.len) = (5, chunk.len());
        }
        let parts = self.own.get_mut(..frame.len().div_ceil(EACH)).expect("pages enough");
        let sent = self.front.transmit_pages(parts, TxMeta::default());
        if self.check(sent).is_none() {
            self.up.take_back();
        }
    }

    fn host(&mut self, v6: bool, len: usize, cut: Option<u16>) {
        let payload = self.down.payload(len);
        let gso = gso(v6, cut);
        let mut frame = Frame::new(segment(v6, false, gso.is_some(), &payload));
        if gso.is_some() || len % 2 == 0 {
            let packet = Packet::parse(&frame.bytes).expect("TCP or UDP");
            packet::set_partial(&mut frame.bytes, &packet);
            (frame.checksum, frame.gso) = (Checksum::Blank, gso);
        }
        self.place.switch.send(frame);
    }

    /// Receives a frame; whether there was one.
    fn receive(&mut self, room: usize) -> bool {
        let room = room.min(FRAME_MAX);
        let received = self.front.receive_with(self.buffer.get_mut(..room).unwrap_or_default());
        match self.check(received) {
            Some(Some(meta)) => {
                assert!(meta.slots <= 256);
                if room == FRAME_MAX {
                    let bytes = self.buffer.get(..meta.len).expect("within the buffer").to_vec();
                    self.see(&Frame { bytes, checksum: meta.checksum, gso: meta.gso });
                }
                true
            }
            Some(None) => {
                // All responses were taken. One that cannot be was noticed.
                let lie = self.place.back.lied_about_received() && !self.poked;
                assert!(!lie, "a lie about a frame that arrived was believed");
                false
            }
            None => false,
        }
    }

    fn receive_pages(&mut self) {
        let received = self.front.receive_pages(&mut self.own);
        if let Some(Some(meta)) = self.check(received) {
            self.look_at_pages(meta);
        }
        // Pages for reading alone came back from sending, and another backend needs others, so have fresh ones.
        let backend = self.front.backend();
        for part in &mut self.own {
            let backend = backend.unwrap_or(part.page.peer());
            if part.page.access() == Access::ReadOnly || !part.page.is_granted_to(backend) {
                part.page = self.place.grants.share(backend, Access::ReadWrite).expect("pages enough");
            }
        }
    }

    fn look_at_pages(&mut self, meta: RxMeta) {
        let mut bytes = Vec::new();
        for part in self.own.get_mut(..meta.slots).expect("as many pages as slots") {
            let mut chunk = vec![0; part.len];
            part.page.read_bytes(part.offset, &mut chunk).expect("within the page");
            bytes.extend(chunk);
        }
        assert_eq!(bytes.len(), meta.len);
        self.see(&Frame { bytes, checksum: meta.checksum, gso: meta.gso });
    }

    fn suspend(&mut self, migrate: bool) {
        let Place { xen, token, events, mut grants, .. } = self.place;
        xen.set_toolstack(move |domain| match migrate {
            true => {
                domain.xen().migrate(domain);
                Resumed::InNewDomain
            }
            false => Resumed::InPlace,
        });
        let suspension = Suspension {
            domain: token,
            events,
            kernel: &Still,
            parts: &mut [&mut grants],
            patience: Duration::from_millis(100),
        };
        let were_current: Vec<bool> = self.own.iter().map(|part| part.page.is_current()).collect();
        // SAFETY: one thread, which is between two calls, and no page of another domain is mapped.
        let outcome = unsafe { suspension.run(&mut self.xs, None, &mut self.front) };
        let outcome = outcome.expect("a machine like the one before");
        assert_eq!(outcome.resumed == Resumed::InNewDomain, migrate);
        assert!(outcome.absent == 0 || self.front.state() == State::Closed);
        if let Some(backend) = self.front.backend() {
            for (part, was_current) in self.own.iter_mut().zip(were_current) {
                // One may be of a life in which there was no backend to grant it to at the end.
                let is_current = was_current && !migrate;
                assert!(part.page.is_current() == is_current || part.page.is_granted_to(backend));
                if !part.page.is_current() {
                    part.page.regrant(backend).expect("references enough");
                }
            }
        }
    }

    fn poke(&mut self, tx: bool, queue: usize, offset: usize, bytes: [u8; 4]) {
        let queue =
            if self.front.queues() > 1 { format!("queue-{}/", queue % QUEUES) } else { String::new() };
        let node = format!("{queue}{}", if tx { "tx-ring-ref" } else { "rx-ring-ref" });
        let Some(gref) = self.place.back.front(&node).and_then(|text| text.parse().ok()) else { return };
        let Some(backend) = self.front.backend() else { return };
        let own = self.place.xen.domain(backend);
        let offset = offset % (PAGE_SIZE - bytes.len());
        let poked =
            xen_gnttab::mock::copy_to(&own, self.place.guest.id(), GrantRef(gref), offset, &bytes).is_ok();
        self.poked |= poked;
        self.meddled |= poked;
        self.tampered |= poked;
    }

    /// Does it, and asks what must hold.
    ///
    /// # Panics
    /// When something does not hold.
    pub fn step(&mut self, op: &Op) {
        self.place.xen.trace(|| format!("-- {op:?}"));
        self.act(op);
        if let State::Broken(violation) = self.front.state() {
            let broken = Error::Broken(violation);
            assert_eq!(self.front.transmit(&[0; 60]), Err(broken));
            assert_eq!(self.front.can_transmit(), Err(broken));
            assert_eq!(self.front.receive(&mut [0; 60]), Err(broken));
            assert_eq!(self.front.publish(), Err(broken));
            assert_eq!(self.front.arm(), Err(broken));
        }
    }

    fn act(&mut self, op: &Op) {
        let back = self.place.back;
        match *op {
            Op::Transmit { v6, len, cut } => self.transmit(v6, len, cut),
            Op::TransmitPages { len } => self.transmit_pages(len),
            Op::TransmitAnything { ref bytes, blank, cut } => {
                let checksum = if blank { Checksum::Blank } else { Checksum::Complete };
                let meta = TxMeta { checksum, gso: gso(false, cut) };
                match self.front.transmit_with(&[bytes], meta) {
                    Err(Error::Headers | Error::Length(_)) => {}
                    sent => drop(self.check(sent)),
                }
            }
            Op::Host { v6, len, cut, times } => (0..times).for_each(|_| self.host(v6, len, cut)),
            Op::Receive { times } => drop((0..times).all(|_| self.receive(FRAME_MAX))),
            Op::ReceiveShort { room } => drop(self.receive(room)),
            Op::ReceivePages => self.receive_pages(),
            Op::Publish => {
                let published = self.front.publish();
                self.check(published);
            }
            Op::Arm => {
                let armed = self.front.arm();
                self.check(armed);
            }
            Op::Run => self.run(),
            Op::Service => {
                let served = self.front.service(&mut self.xs);
                self.check(served);
                self.collect();
            }
            Op::Reconnect if self.handshakes == Self::HANDSHAKES => {}
            Op::Reconnect => {
                self.handshakes += 1;
                let deadline = self.after(100);
                let again = self.front.reconnect(&mut self.xs, deadline);
                self.check(again);
                self.collect();
            }
            Op::Suspend { .. } if self.handshakes == Self::HANDSHAKES => {}
            Op::Suspend { migrate } => {
                self.handshakes += 1;
                self.suspend(migrate);
                self.collect();
            }
            Op::Multicast { number, wanted } => {
                let asked = self.front.want_multicast(Mac([1, 0, 0x5e, 0, 0, number]), wanted);
                self.check(asked);
            }
            Op::Stall(on) => back.stall(on),
            Op::Hold(on) => back.hold(on),
            Op::Spoil { tx, fault } => {
                self.tampered = true;
                self.meddled |= !tx;
                if tx { back.fault_tx(fault) } else { back.fault_rx(fault) }
            }
            Op::Say { node, ref value, next } => {
                (self.tampered, self.meddled) = (true, true);
                let node = NODES.get(node % NODES.len()).copied().unwrap_or_default();
                match value {
                    Some(text) if !next => back.set_back(node, text),
                    text => back.lie(node, text.as_deref()),
                }
            }
            Op::SayFront { node, ref value } => {
                (self.tampered, self.meddled) = (true, true);
                let node = FRONT_NODES.get(node % FRONT_NODES.len()).copied().unwrap_or_default();
                back.set_front(node, value.as_deref());
            }
            Op::Poke { tx, queue, offset, bytes } => self.poke(tx, queue, offset, bytes),
            Op::Detach => back.detach(),
            Op::Close => back.close(),
            Op::Vanish => back.vanish(),
            Op::ComeBack => back.come_back(),
            Op::Restart => {
                // What the backend of before took and did not answer is sent once more.
                self.up.forget_order();
                // Which that is it tells by their number: where answers were lost or late, it answers others twice.
                self.tampered |= self.faulty;
                back.restart();
            }
            Op::ForceDetach => back.force_detach(),
        }
        self.disturbed |= matches!(
            op,
            Op::Reconnect
                | Op::Detach
                | Op::Close
                | Op::Vanish
                | Op::ComeBack
                | Op::Restart
                | Op::Suspend { .. }
                | Op::ForceDetach
                | Op::Multicast { .. }
                | Op::TransmitAnything { .. }
        );
    }

    /// Without faults from now on: what is left comes through if the device is at work, and everything comes back when the
    /// backend has let go.
    ///
    /// # Panics
    /// When something does not hold.
    pub fn finish(mut self) {
        let Place { back, xen, guest, grants, .. } = self.place;
        let undisturbed = !self.disturbed && !self.tampered;
        back.set_faults(Dice::new(0), Faults::default());
        back.stall(false);
        // A lost event is lost; the next one makes up for it.
        let ops = [
            Op::Publish,
            Op::Transmit { v6: false, len: 1, cut: None },
            Op::Publish,
            Op::Run,
            Op::Receive { times: 255 },
        ];
        for op in ops.iter().cycle().take(4 * ops.len()) {
            self.step(op);
        }
        if undisturbed {
            assert_eq!(self.front.state(), State::Connected);
            assert!(self.front.queues() > 1 || self.up.is_complete(), "a frame did not arrive");
            assert_eq!((self.front.stats().tx_errors, back.complaints()), (0, vec![]));
        }
        self.take_all_answers();
        let deadline = self.after(5000);
        let Self { front, mut xs, own, ports, .. } = self;
        let _ = front.close(&mut xs, deadline);
        drop(own);
        back.vanish();
        back.hold(false);
        assert!(xen.run_until_idle(1000) < 1000, "the far sides never end\n{}", xen.trace_text());
        grants.reclaim();
        let stats = grants.stats();
        assert_eq!((stats.in_use, stats.quarantined), (0, 0));
        assert_eq!(xen_gnttab::mock::mappings_of(xen, guest.id()), 0);
        assert_eq!(xen_evtchn::mock::open_ports(guest), ports);
    }

    /// Sends until every answer to what was sent was looked at. One that cannot be was noticed.
    fn take_all_answers(&mut self) {
        self.place.back.stall(true);
        // Of different flows, so that every queue is asked.
        let mut frame = [0; 60];
        for first in 0..16 {
            frame[0] = first;
            while self.front.transmit(&frame).is_ok() {}
        }
        let lie = self.place.back.lied_about_sent() && !self.poked;
        assert!(
            !lie || self.front.state() != State::Connected,
            "a lie about a frame that was sent was believed"
        );
        self.place.back.stall(false);
    }
}
