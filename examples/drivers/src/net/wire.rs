//! Frames of UDP and TCP.

use alloc::vec;
use alloc::vec::Vec;

use xen_netfront::{Mac, packet};

use crate::pattern;

/// What a frame is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Kind {
    pub(super) v6: bool,
    pub(super) tcp: bool,
}

pub(super) const KINDS: [(&str, Kind); 4] = [
    ("udp4", Kind { v6: false, tcp: false }),
    ("tcp4", Kind { v6: false, tcp: true }),
    ("udp6", Kind { v6: true, tcp: false }),
    ("tcp6", Kind { v6: true, tcp: true }),
];

impl Kind {
    /// Bytes before the payload.
    pub(super) fn headers(self) -> usize {
        14 + if self.v6 { 40 } else { 20 } + if self.tcp { 20 } else { 8 }
    }
}

/// A payload unlike those of other seeds.
pub(super) fn payload(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    pattern::fill(seed << 16, 1, &mut bytes);
    bytes
}

/// A frame with an IP checksum and no other.
pub(super) fn frame(kind: Kind, from: Mac, to: Mac, port: u16, payload: &[u8]) -> Vec<u8> {
    let transport = kind.headers() - if kind.tcp { 20 } else { 8 };
    let behind = kind.headers() - transport + payload.len();
    let protocol = if kind.tcp { packet::TCP } else { packet::UDP };
    let mut frame = Vec::with_capacity(kind.headers() + payload.len());
    frame.extend(to.0);
    frame.extend(from.0);
    let last = |mac: Mac| mac.0[5];
    if kind.v6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend((behind as u16).to_be_bytes());
        frame.extend([protocol, 64]);
        for mac in [from, to] {
            frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last(mac)]);
        }
    } else {
        frame.extend([0x08, 0x00, 0x45, 0]);
        frame.extend((behind as u16 + 20).to_be_bytes());
        frame.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
        for mac in [from, to] {
            frame.extend([10, 9, 9, last(mac)]);
        }
        let sum = !packet::sum(frame.get(14..).unwrap_or_default());
        frame.splice(24..26, sum.to_be_bytes());
    }
    frame.extend(port.to_be_bytes());
    frame.extend(5001_u16.to_be_bytes());
    if kind.tcp {
        // Sequence number 1, acknowledgement 1, ACK, a window.
        frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    } else {
        frame.extend((behind as u16).to_be_bytes());
        frame.extend([0, 0]);
    }
    frame.extend(payload);
    frame
}
