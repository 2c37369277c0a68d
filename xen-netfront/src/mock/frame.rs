//! Frames between ports of a switch.

use std::vec::Vec;

use crate::packet::{self, Packet};
use crate::segment::Segments;
use crate::{Checksum, Gso};

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
    let segments = Segments::new(bytes, gso)?;
    Some(
        segments
            .filter_map(|part| Some([part.headers(), bytes.get(part.payload.clone())?].concat()))
            .collect(),
    )
}
