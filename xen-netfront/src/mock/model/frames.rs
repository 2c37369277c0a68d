//! Frames that tell which they are, and whether they arrive as they were sent.

use std::sync::OnceLock;
use std::vec::Vec;

use crate::packet::{self, Packet};
use crate::{FRAME_MAX, Gso, GsoKind};

/// Places in the pattern from which a frame's bytes may begin.
const SHIFTS: usize = 4096;

/// Bytes that differ from those around them, made once: what a fuzzer tries in a second has many of them.
fn pattern() -> &'static [u8] {
    static PATTERN: OnceLock<Vec<u8>> = OnceLock::new();
    let byte = |i: usize| (i as u8).wrapping_mul(31) ^ (i >> 8) as u8;
    PATTERN.get_or_init(|| (0..SHIFTS + FRAME_MAX).map(byte).collect())
}

/// What went one way. Each frame begins with its number, from which all that it holds follows.
#[derive(Default)]
pub(super) struct Direction {
    sent: Vec<Vec<u8>>,
    /// The number that the next frame to arrive has at least.
    next: usize,
    arrived: usize,
}

impl Direction {
    /// The payload of the next frame.
    pub(super) fn payload(&mut self, len: usize) -> Vec<u8> {
        let number = self.sent.len();
        let mut payload = (number as u32).to_be_bytes().to_vec();
        // From another place for each, so that no frame is like the one before it.
        let pattern = pattern();
        let rest = pattern.get(number * 7 % SHIFTS..).and_then(|rest| rest.get(..len));
        payload.extend_from_slice(rest.expect("no longer than any frame"));
        self.sent.push(payload.clone());
        payload
    }

    /// The last frame was not sent after all.
    pub(super) fn take_back(&mut self) {
        self.sent.pop();
    }

    /// Frames may overtake each other from now on.
    pub(super) fn forget_order(&mut self) {
        self.next = 0;
    }

    pub(super) fn is_complete(&self) -> bool {
        self.arrived == self.sent.len()
    }

    /// A frame arrived, or segments of it one after the other.
    pub(super) fn arrive(&mut self, pieces: &[Vec<u8>]) {
        let mut whole = Vec::new();
        for piece in pieces {
            let packet = Packet::parse(piece).expect("what was sent");
            assert!(packet::verify(piece, &packet), "a wrong checksum");
            whole.extend_from_slice(piece.get(packet.payload..packet.end).unwrap_or_default());
        }
        let number = whole.first_chunk::<4>().expect("a number");
        let number = u32::from_be_bytes(*number) as usize;
        assert!(number >= self.next, "frame {number} after {}", self.next);
        assert!(self.sent.get(number) == Some(&whole), "frame {number} is another one");
        self.next = number + 1;
        self.arrived += 1;
    }
}

const HOST: [u8; 6] = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff];
const GUEST: [u8; 6] = [0x00, 0x16, 0x3e, 0x12, 0x34, 0x56];

/// A frame with TCP or UDP, to the host or back, whose checksum is right.
pub(super) fn segment(v6: bool, to_host: bool, tcp: bool, payload: &[u8]) -> Vec<u8> {
    let (to, from, a, b) = if to_host { (HOST, GUEST, 2, 1) } else { (GUEST, HOST, 1, 2) };
    let mut frame = [&to[..], &from[..]].concat();
    let len = payload.len() + if tcp { 20 } else { 8 };
    let protocol = if tcp { packet::TCP } else { packet::UDP };
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

/// What a frame with TCP says that is to be cut.
pub(super) fn gso(v6: bool, cut: Option<u16>) -> Option<Gso> {
    cut.map(|size| Gso { kind: if v6 { GsoKind::TcpV6 } else { GsoKind::TcpV4 }, size: size.max(500) })
}
