//! Any calls against any faults, with a model beside: what arrives is what was sent, in order and once; only a backend
//! that lies breaks the device; every page comes back when the backend has let go; nothing panics, and everything ends.
#![cfg(feature = "mock")]

mod common;

use std::time::Duration;

use common::{Machine, bytes, tcp, udp};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use xen_gnttab::Access;
use xen_hypercall::DomId;
use xen_hypercall::mock::{Chance, Dice, MockDomain};
use xen_netfront::mock::{Faults, Frame, MockNetback, Options};
use xen_netfront::packet::{self, Packet};
use xen_netfront::{
    Checksum, Config, Error, FRAME_MAX, Features, FramePage, Gso, GsoKind, NetFront, State, TxMeta,
};
use xen_xenstore::Xenstore;

const QUEUES: usize = 2;
type Front<'x> = NetFront<'x, MockDomain, QUEUES>;

#[derive(Clone, Copy, Debug)]
enum Op {
    /// Sends a frame: with so much payload, to be cut into segments of so much or not at all.
    Transmit {
        v6: bool,
        len: usize,
        cut: Option<u16>,
    },
    /// The same from pages of the caller's own.
    TransmitPages {
        len: usize,
    },
    /// The host sends one, or several.
    Host {
        v6: bool,
        len: usize,
        cut: Option<u16>,
        times: u8,
    },
    Receive {
        times: u8,
    },
    ReceivePages,
    Flush,
    Arm,
    /// The far sides act.
    Run,
    Service,
    Reconnect,
    Stall(bool),
    LetGo,
    Detach,
}

fn op() -> impl Strategy<Value = Op> {
    let len = prop_oneof![4 => 0..1400usize, 1 => 1400..9000usize, 1 => 0..65_000usize];
    let cut = prop_oneof![2 => Just(None), 1 => (1..9000u16).prop_map(Some)];
    prop_oneof![
        12 => (any::<bool>(), len.clone(), cut.clone()).prop_map(|(v6, len, cut)| Op::Transmit { v6, len, cut }),
        4 => (0..9000usize).prop_map(|len| Op::TransmitPages { len }),
        10 => (any::<bool>(), len, cut, 1..12u8).prop_map(|(v6, len, cut, times)| Op::Host { v6, len, cut, times }),
        10 => (1..60u8).prop_map(|times| Op::Receive { times }),
        4 => Just(Op::ReceivePages),
        10 => Just(Op::Flush),
        4 => Just(Op::Arm),
        12 => Just(Op::Run),
        2 => Just(Op::Service),
        1 => Just(Op::Reconnect),
        1 => any::<bool>().prop_map(Op::Stall),
        1 => Just(Op::LetGo),
        1 => Just(Op::Detach),
    ]
}

fn rare() -> impl Strategy<Value = Chance> {
    prop_oneof![3 => Just(Chance::NEVER), 1 => (1..60u16).prop_map(Chance::permille)]
}

/// Faults of an honest backend on a bad day.
fn misfortunes() -> impl Strategy<Value = Faults> {
    (prop::array::uniform8(rare()), prop::array::uniform5(rare())).prop_map(|(a, b)| {
        let mut faults = Faults::default();
        [faults.fail, faults.rx_error, faults.late, faults.lost, faults.lost_event] =
            [a[0], a[1], a[2], a[3], a[4]];
        [faults.late_event, faults.spurious_event, faults.keep_mapped] = [a[5], a[6], a[7]];
        [faults.close, faults.drop_out, faults.die, faults.come_back, faults.scribble] = b;
        faults
    })
}

fn lies() -> impl Strategy<Value = Faults> {
    (misfortunes(), prop::array::uniform7(rare())).prop_map(|(mut faults, lies)| {
        [faults.wrong_id, faults.twice, faults.rx_missing, faults.rx_outside] =
            [lies[0], lies[1], lies[2], lies[3]];
        [faults.rx_flags, faults.rx_extra, faults.index_jump] = [lies[4], lies[5], lies[6]];
        faults
    })
}

fn options() -> impl Strategy<Value = Options> {
    prop::array::uniform7(any::<bool>()).prop_map(|[sg, gso_v4, gso_v6, csum_v4, csum_v6, split, several]| {
        let queues = if several { 4 } else { 0 };
        Options { sg, gso_v4, gso_v6, csum_v4, csum_v6, split, queues, ..Options::default() }
    })
}

fn config() -> impl Strategy<Value = Config> {
    let pages = prop_oneof![1 => 1..300usize, 2 => 17..257usize];
    let features = || any::<u16>().prop_map(Features::from_bits_truncate);
    (features(), features(), pages.clone(), pages, any::<bool>(), any::<bool>(), 0..300u16).prop_map(
        |(send, receive, tx, rx, split, control, headroom)| Config {
            send,
            receive,
            tx_pages: tx,
            rx_pages: rx,
            queues: QUEUES,
            split_channels: split,
            await_device: split,
            follow_link: true,
            control_ring: control,
            multicast_filter: control,
            headroom,
        },
    )
}

/// What one direction has seen: numbers of frames. Each frame's content follows from its number.
#[derive(Default)]
struct Direction {
    /// Payloads by number.
    sent: Vec<Vec<u8>>,
    /// The number that the next frame to arrive has at least.
    next: usize,
    arrived: usize,
}

impl Direction {
    fn payload(&mut self, len: usize) -> Vec<u8> {
        let number = self.sent.len() as u32;
        let mut payload = number.to_be_bytes().to_vec();
        payload.extend(bytes(len).iter().map(|byte| byte ^ number as u8));
        self.sent.push(payload.clone());
        payload
    }

    /// A frame arrived, or segments of it one after the other.
    fn arrive(&mut self, pieces: &[Vec<u8>]) -> Result<(), TestCaseError> {
        let mut whole = Vec::new();
        for piece in pieces {
            let packet = Packet::parse(piece).ok_or_else(|| TestCaseError::fail("not what was sent"))?;
            prop_assert!(packet::verify(piece, &packet), "a wrong checksum");
            whole.extend_from_slice(&piece[packet.payload..packet.end]);
        }
        prop_assert!(whole.len() >= 4);
        let number = u32::from_be_bytes([whole[0], whole[1], whole[2], whole[3]]) as usize;
        prop_assert!(number >= self.next, "{number} after {}", self.next);
        prop_assert!(self.sent.get(number).is_some_and(|sent| *sent == whole), "frame {number} is another");
        self.next = number + 1;
        self.arrived += 1;
        Ok(())
    }
}

fn gso(v6: bool, cut: Option<u16>) -> Option<Gso> {
    cut.map(|size| Gso { kind: if v6 { GsoKind::TcpV6 } else { GsoKind::TcpV4 }, size: size.max(500) })
}

struct Run<'m> {
    machine: &'m Machine,
    back: &'m MockNetback,
    up: Direction,
    down: Direction,
    /// Whether a frame may arrive in pieces that other frames come between, so that they cannot be put together here.
    cut_up: bool,
    own: Vec<FramePage<'m, MockDomain>>,
    buffer: Vec<u8>,
}

impl<'m> Run<'m> {
    fn deadline(&self) -> Duration {
        self.machine.xen.now() + Duration::from_millis(100)
    }

    /// The error must fit how the device is, and the backend.
    fn check<T>(&self, front: &Front<'m>, result: Result<T, Error>) -> Result<Option<T>, TestCaseError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(Error::Broken(violation)) => {
                prop_assert!(self.back.lies_hit() > 0, "an honest backend, and {violation:?}");
                prop_assert_eq!(front.state(), State::Broken(violation));
                Ok(None)
            }
            Err(Error::Closed) => {
                prop_assert!(matches!(front.state(), State::Closing | State::Closed));
                Ok(None)
            }
            Err(Error::Full | Error::NotOffered(_) | Error::Page) => Ok(None),
            Err(Error::Length(_)) => {
                prop_assert!(!front.features().contains(Features::SCATTER_GATHER));
                Ok(None)
            }
            // The backend was away when the device began anew.
            Err(Error::Xenstore(_) | Error::NoMac | Error::NoRxCopy) => Ok(None),
            Err(other) => Err(TestCaseError::fail(format!("{other:?}"))),
        }
    }

    fn collect(&mut self) -> Result<(), TestCaseError> {
        let lied = self.back.lies_hit() > 0;
        while let Some(frame) = self.machine.switch.receive() {
            let Some(pieces) = frame.to_wire() else {
                return Err(TestCaseError::fail("a frame that nobody can cut"));
            };
            // Cut in the guest: each segment is a frame of its own.
            if !lied && !self.cut_up {
                self.up.arrive(&pieces)?;
            }
        }
        Ok(())
    }

    fn step(
        &mut self,
        xs: &mut Xenstore<'m, MockDomain>,
        front: &mut Front<'m>,
        op: Op,
    ) -> Result<(), TestCaseError> {
        match op {
            Op::Transmit { v6, len, cut } => {
                let cut = cut.filter(|_| {
                    front.features().contains(gso(v6, cut).map_or(Features::empty(), |gso| {
                        if gso.kind == GsoKind::TcpV4 { Features::GSO_V4 } else { Features::GSO_V6 }
                    }))
                });
                let payload = self.up.payload(len);
                let frame = if cut.is_some() { tcp(v6, true, 1, &payload) } else { udp(v6, true, &payload) };
                let meta = TxMeta { checksum: Checksum::Blank, gso: gso(v6, cut) };
                let at = frame.len().min(100);
                let sent = front.transmit_with(&[&frame[..at], &frame[at..]], meta);
                if self.check(front, sent)?.is_none() {
                    self.up.sent.pop();
                }
            }
            Op::TransmitPages { len } => {
                let payload = self.up.payload(len);
                let frame = udp(false, true, &payload);
                let count = frame.len().div_ceil(3000);
                for (part, chunk) in self.own.iter_mut().zip(frame.chunks(3000)) {
                    part.page.write_bytes(5, chunk).unwrap();
                    (part.offset, part.len) = (5, chunk.len());
                }
                let sent = front.transmit_pages(&mut self.own[..count], TxMeta::default());
                if self.check(front, sent)?.is_none() {
                    self.up.sent.pop();
                }
            }
            Op::Host { v6, len, cut, times } => {
                for _ in 0..times {
                    let payload = self.down.payload(len);
                    let gso = gso(v6, cut).filter(|_| self.machine.switch.receive().is_none());
                    let mut frame = Frame::new(if gso.is_some() {
                        tcp(v6, false, 1, &payload)
                    } else {
                        udp(v6, false, &payload)
                    });
                    if gso.is_some() || len % 2 == 0 {
                        let packet = Packet::parse(&frame.bytes).unwrap();
                        packet::set_partial(&mut frame.bytes, &packet);
                        (frame.checksum, frame.gso) = (Checksum::Blank, gso);
                    }
                    self.machine.switch.send(frame);
                }
            }
            Op::Receive { times } => {
                for _ in 0..times {
                    let received = front.receive_with(&mut self.buffer);
                    let Some(Some(meta)) = self.check(front, received)? else { break };
                    prop_assert!(meta.len <= self.buffer.len() && meta.slots <= 256);
                    let (checksum, gso) = (meta.checksum, meta.gso);
                    let frame = Frame { bytes: self.buffer[..meta.len].to_vec(), checksum, gso };
                    self.see(front, frame)?;
                }
            }
            Op::ReceivePages => {
                let received = front.receive_pages(&mut self.own);
                if let Some(Some(meta)) = self.check(front, received)? {
                    let mut bytes = Vec::new();
                    for part in &mut self.own[..meta.slots] {
                        let start = bytes.len();
                        bytes.resize(start + part.len, 0);
                        part.page.read_bytes(part.offset, &mut bytes[start..]).unwrap();
                    }
                    prop_assert_eq!(bytes.len(), meta.len);
                    self.see(front, Frame { bytes, checksum: meta.checksum, gso: meta.gso })?;
                }
                // Pages for reading alone came back from sending, so have fresh ones.
                for part in &mut self.own {
                    if part.page.access() == Access::ReadOnly {
                        part.page = self.machine.grants.share(DomId(0), Access::ReadWrite).unwrap();
                    }
                }
            }
            Op::Flush => {
                let published = front.publish();
                self.check(front, published)?;
            }
            Op::Arm => {
                let armed = front.arm();
                self.check(front, armed)?;
            }
            Op::Run => {
                self.machine.run();
                self.collect()?;
            }
            Op::Service => {
                let served = front.service(xs);
                self.check(front, served)?;
                self.collect()?;
            }
            Op::Reconnect => {
                let deadline = self.deadline();
                let again = front.reconnect(xs, deadline);
                self.check(front, again)?;
                self.collect()?;
            }
            Op::Stall(stalled) => self.back.stall(stalled),
            Op::LetGo => self.back.hold(false),
            Op::Detach => self.back.detach(),
        }
        Ok(())
    }

    /// A frame that the guest got.
    fn see(&mut self, front: &Front<'m>, frame: Frame) -> Result<(), TestCaseError> {
        if self.back.lies_hit() > 0 {
            return Ok(());
        }
        prop_assert!(front.accepted().intersects(Features::GSO_V4 | Features::GSO_V6) || frame.gso.is_none());
        let pieces = frame.to_wire().ok_or_else(|| TestCaseError::fail("a frame that nobody can cut"))?;
        // What was cut for the guest comes in pieces, of which the first alone has the number.
        let packet = Packet::parse(&pieces[0]).ok_or_else(|| TestCaseError::fail("not what was sent"))?;
        if packet.protocol == packet::TCP && frame.gso.is_none() {
            prop_assert!(packet::verify(&pieces[0], &packet));
            return Ok(());
        }
        // Two queues carry two flows, which may overtake each other.
        if front.queues() > 1 {
            self.down.next = 0;
        }
        self.down.arrive(&pieces)
    }
}

fn run(options: Options, config: Config, faults: Faults, seed: u64, ops: &[Op]) -> Result<(), TestCaseError> {
    let machine = Machine::new();
    let back = machine.vif(options);
    let mut xs = Xenstore::new(&machine.events).unwrap();
    xs.set_patience(Duration::from_millis(100));
    let ports = xen_evtchn::mock::open_ports(&machine.guest);
    let mut front: Front<'_> = machine.connect_with(&mut xs, config).unwrap();
    let page = || machine.grants.share(DomId(0), Access::ReadWrite).unwrap();
    let own = (0..4).map(|_| FramePage { page: page(), offset: 0, len: 0 }).collect();
    // The parts of two queues arrive in any order at the host.
    let cut_up = front.queues() > 1;
    let buffer = vec![0; FRAME_MAX];
    let mut run = Run {
        machine: &machine,
        back: &back,
        up: Direction::default(),
        down: Direction::default(),
        cut_up,
        own,
        buffer,
    };
    back.set_faults(Dice::new(seed), faults);
    for op in ops {
        run.step(&mut xs, &mut front, *op)?;
    }

    // Without faults from now on: what is left comes through, if the device is at work.
    back.set_faults(Dice::new(seed), Faults::default());
    back.stall(false);
    for _ in 0..4 {
        run.step(&mut xs, &mut front, Op::Flush)?;
        // A lost event is lost; the next one makes up for it.
        run.step(&mut xs, &mut front, Op::Transmit { v6: false, len: 1, cut: None })?;
        run.step(&mut xs, &mut front, Op::Flush)?;
        run.step(&mut xs, &mut front, Op::Run)?;
        run.step(&mut xs, &mut front, Op::Receive { times: 255 })?;
    }
    if faults == Faults::default()
        && front.state() == State::Connected
        && front.stats().reconnects == 0
        && !cut_up
    {
        prop_assert_eq!(run.up.arrived, run.up.sent.len(), "every frame arrives");
        prop_assert_eq!(front.stats().tx_errors, 0);
    }
    if faults == Faults::default() {
        prop_assert_eq!(back.complaints(), [""; 0]);
    }

    // Everything comes back when the backend has let go.
    let deadline = machine.soon();
    let _ = front.close(&mut xs, deadline);
    drop(run);
    back.vanish();
    back.hold(false);
    machine.run();
    machine.grants.reclaim();
    let stats = machine.grants.stats();
    prop_assert_eq!((stats.in_use, stats.quarantined), (0, 0));
    prop_assert_eq!(xen_gnttab::mock::mappings_of(&machine.xen, machine.guest.id()), 0);
    prop_assert_eq!(xen_evtchn::mock::open_ports(&machine.guest), ports);
    Ok(())
}

fn few() -> ProptestConfig {
    ProptestConfig {
        cases: 20,
        max_shrink_iters: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(few())]

    #[test]
    fn all_arrives_when_nothing_goes_wrong(
        options in options(), config in config(), ops in prop::collection::vec(op(), 1..120),
    ) {
        run(options, config, Faults::default(), 0, &ops)?;
    }

    #[test]
    fn misfortunes_lose_frames_and_no_more(
        options in options(), config in config(), faults in misfortunes(), seed: u64,
        ops in prop::collection::vec(op(), 1..120),
    ) {
        run(options, config, faults, seed, &ops)?;
    }

    #[test]
    fn lies_break_the_device_and_no_more(
        options in options(), config in config(), faults in lies(), seed: u64,
        ops in prop::collection::vec(op(), 1..120),
    ) {
        run(options, config, faults, seed, &ops)?;
    }
}
