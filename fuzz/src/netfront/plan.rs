//! What is tried with a network device, and how it goes wrong.

use xen_hypercall::DomId;
use xen_netfront::mock::model::{self, QUEUES};
use xen_netfront::mock::{Fault, Faults, Options};
use xen_netfront::{Config, Features};

use crate::input::{Number, Ops, Value, chance, input};

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
        Publish,
        Arm,
        /// The far sides act.
        Run,
        Service,
        Reconnect,
        /// The guest wants a multicast address, or no more.
        Multicast { number: u8, wanted: bool },
        Stall { on: bool },
        Hold { on: bool },
        Detach,
        Close,
        Vanish,
        ComeBack,
        Restart,
        ForceDetach,
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
        Suspend { migrate: bool },
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
    pub(super) fn fault(&self) -> Fault {
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

impl Op {
    /// What it stands for.
    pub(super) fn model(&self) -> model::Op {
        use model::Op as To;
        match *self {
            Self::Transmit { v6, len, cut } => To::Transmit { v6, len: usize::from(len) % 9000, cut },
            Self::TransmitLarge { len } => {
                To::Transmit { v6: false, len: 58_000 + usize::from(len) % 7_400, cut: None }
            }
            Self::TransmitPages { len } => To::TransmitPages { len: usize::from(len) % 9000 },
            Self::TransmitAnything { bytes, len, blank, cut } => {
                let bytes = bytes[..usize::from(len) % 25].to_vec();
                To::TransmitAnything { bytes, blank, cut }
            }
            Self::Host { v6, len, cut, times } => {
                To::Host { v6, len: usize::from(len) % 9000, cut, times: usize::from(times) % 12 }
            }
            Self::Receive { times } => To::Receive { times: usize::from(times) % 64 },
            Self::ReceiveShort { room } => To::ReceiveShort { room: room.into() },
            Self::ReceivePages => To::ReceivePages,
            Self::Publish => To::Publish,
            Self::Arm => To::Arm,
            Self::Run => To::Run,
            Self::Service => To::Service,
            Self::Reconnect => To::Reconnect,
            Self::Multicast { number, wanted } => To::Multicast { number, wanted },
            Self::Stall { on } => To::Stall(on),
            Self::Hold { on } => To::Hold(on),
            Self::Detach => To::Detach,
            Self::Close => To::Close,
            Self::Vanish => To::Vanish,
            Self::ComeBack => To::ComeBack,
            Self::Restart => To::Restart,
            Self::ForceDetach => To::ForceDetach,
            Self::Suspend { migrate } => To::Suspend { migrate },
            Self::Spoil { tx, ref fault } => To::Spoil { tx, fault: fault.fault() },
            Self::Say { node, ref value, next } => To::Say { node: node.into(), value: value.text(), next },
            Self::SayFront { node, ref value } => To::SayFront { node: node.into(), value: value.text() },
            Self::Poke { tx, queue, offset, bytes } => {
                To::Poke { tx, queue: queue.into(), offset: offset.into(), bytes }
            }
            Self::Index { tx, queue, word, ref number } => {
                let (offset, bytes) = (usize::from(word % 16) * 4, number.get().to_le_bytes());
                To::Poke { tx, queue: queue.into(), offset, bytes }
            }
        }
    }
}

impl Plan {
    pub(super) fn options(&self) -> Options {
        let bit = |bit: u8| self.offers & 1 << bit != 0;
        Options {
            domain: DomId(if bit(7) { 3 } else { 0 }),
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

    pub(super) fn config(&self) -> Config {
        Config {
            send: Features::from_bits_truncate(self.send.into()),
            receive: Features::from_bits_truncate(self.receive.into()),
            tx_pages: 1 + usize::from(self.tx_pages) % 24,
            rx_pages: 1 + usize::from(self.rx_pages) % 32,
            queues: QUEUES,
            split_channels: self.split,
            // The machine has a device. Watches for its link cost as much as the rest of a handshake.
            await_device: false,
            follow_link: self.split,
            ..Config::default()
        }
    }

    pub(super) fn faults(&self) -> Faults {
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
