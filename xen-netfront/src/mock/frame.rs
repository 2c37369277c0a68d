//! Frames between ports of a switch.

use std::vec::Vec;

use crate::packet::{self, ETHERNET, Packet, TCP};
use crate::{Checksum, Gso, GsoKind};

/// A frame on its way, with what its sender left to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Everything from the destination address on, without the frame check sequence.
    pub bytes: Vec<u8>,
    /// Whether the transport checksum is made.
    pub checksum: Checksum,
    /// Whether it is to be cut.
    pub gso: Option<Gso>,
}

impl Frame {
    /// A frame as it is on a wire.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: bytes.into(), checksum: Checksum::Complete, gso: None }
    }

    /// The frames that this one is on a wire: cut, and with all checksums made. None for what Linux does not let
    /// pass: a GSO packet that is not of its kind, or a blank checksum in what has none.
    pub fn to_wire(&self) -> Option<Vec<Vec<u8>>> {
        let pieces = match self.gso {
            Some(gso) => segment(&self.bytes, gso)?,
            None => [self.bytes.clone()].into(),
        };
        pieces.into_iter().map(|bytes| self.finish(bytes)).collect()
    }

    /// The same frames, but with blank checksums left blank.
    pub(super) fn cut(self) -> Option<Vec<Self>> {
        let Some(gso) = self.gso else { return Some([self].into()) };
        let checksum = self.checksum;
        let frames = segment(&self.bytes, gso)?.into_iter();
        Some(frames.map(|bytes| Self { bytes, checksum, gso: None }).collect())
    }

    /// The same frame with its checksum made.
    pub(super) fn filled(self) -> Option<Self> {
        let bytes = self.finish(self.bytes.clone())?;
        let checksum = if self.checksum == Checksum::Blank { Checksum::Validated } else { self.checksum };
        Some(Self { bytes, checksum, gso: self.gso })
    }

    fn finish(&self, mut bytes: Vec<u8>) -> Option<Vec<u8>> {
        if self.checksum == Checksum::Blank {
            let packet = Packet::parse(&bytes)?;
            packet::complete(&mut bytes, &packet);
        }
        Some(bytes)
    }
}

impl<T: Into<Vec<u8>>> From<T> for Frame {
    fn from(bytes: T) -> Self {
        Self::new(bytes)
    }
}

/// Cuts a TCP packet as a network card does. The pieces have partial checksums.
fn segment(bytes: &[u8], gso: Gso) -> Option<Vec<Vec<u8>>> {
    let packet = Packet::parse(bytes)?;
    if packet.protocol != TCP || packet.v6 != (gso.kind == GsoKind::TcpV6) || gso.size == 0 {
        return None;
    }
    let (headers, payload) = (bytes.get(..packet.payload)?, bytes.get(packet.payload..packet.end)?);
    let at = packet.transport;
    let first = u32::from_be_bytes(bytes.get(at + 4..at + 8)?.try_into().ok()?);
    let count = payload.len().div_ceil(gso.size.into()).max(1);
    let cut = (0..count).map(|index| {
        let start = index * usize::from(gso.size);
        let end = payload.len().min(start + usize::from(gso.size));
        let mut piece = [headers, &payload[start..end]].concat();
        piece[at + 4..at + 8].copy_from_slice(&first.wrapping_add(start as u32).to_be_bytes());
        if index + 1 < count {
            // FIN and PSH are the last piece's.
            piece[at + 13] &= !0b1001;
        }
        if index > 0 {
            // CWR is the first piece's.
            piece[at + 13] &= !0x80;
        }
        let len = (piece.len() - ETHERNET) as u16;
        if packet.v6 {
            piece[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&(len - 40).to_be_bytes());
        } else {
            let id =
                u16::from_be_bytes([piece[ETHERNET + 4], piece[ETHERNET + 5]]).wrapping_add(index as u16);
            piece[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&len.to_be_bytes());
            piece[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&id.to_be_bytes());
            piece[ETHERNET + 10..ETHERNET + 12].fill(0);
            let checksum = !packet::sum(&piece[ETHERNET..at]);
            piece[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&checksum.to_be_bytes());
        }
        let end = piece.len();
        packet::set_partial(&mut piece, &Packet { end, ..packet });
        piece
    });
    Some(cut.collect())
}
