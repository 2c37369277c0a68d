//! Cutting a large TCP packet, for backends that do not.

use core::ops::Range;

use crate::packet::{self, ETHERNET, Packet, TCP};
use crate::{Gso, GsoKind};

/// The longest headers: Ethernet, IP with options, TCP with options.
const HEADERS: usize = 14 + 60 + 60;

/// The segments of a packet, one after the other.
pub(crate) struct Segments<'f> {
    frame: &'f [u8],
    packet: Packet,
    size: usize,
    index: usize,
}

/// A segment: its headers, with a [partial](packet::set_partial) checksum, and where in the frame its payload is.
pub(crate) struct Segment {
    headers: [u8; HEADERS],
    len: usize,
    pub(crate) payload: Range<usize>,
}

impl Segment {
    pub(crate) fn headers(&self) -> &[u8] {
        self.headers.get(..self.len).unwrap_or_default()
    }
}

impl<'f> Segments<'f> {
    /// None when the packet is not of the kind that it is said to be.
    pub(crate) fn new(frame: &'f [u8], gso: Gso) -> Option<Self> {
        let packet = Packet::parse(frame)?;
        let fits = packet.protocol == TCP && packet.v6 == (gso.kind == GsoKind::TcpV6);
        (fits && gso.size > 0 && packet.payload <= HEADERS).then_some(Self {
            frame,
            packet,
            size: gso.size.into(),
            index: 0,
        })
    }

    /// How many there are.
    pub(crate) fn total(&self) -> usize {
        (self.packet.end - self.packet.payload).div_ceil(self.size).max(1)
    }

    /// How long the frames of all segments but the last are, and how long the last one's is.
    pub(crate) fn lengths(&self) -> (usize, usize) {
        let Packet { payload, end, .. } = self.packet;
        let before = (self.total() - 1) * self.size;
        (payload + self.size.min(end - payload), end - before)
    }

    fn cut(&self, index: usize) -> Option<Segment> {
        let Packet { v6, transport, payload, end, .. } = self.packet;
        let start = payload + index * self.size;
        let stop = end.min(start + self.size);
        let mut segment = Segment { headers: [0; HEADERS], len: payload, payload: start..stop };
        let headers = segment.headers.get_mut(..payload)?;
        headers.copy_from_slice(self.frame.get(..payload)?);
        let sequence = headers.get_mut(transport + 4..transport + 8)?;
        let first = u32::from_be_bytes(sequence.try_into().ok()?);
        sequence.copy_from_slice(&first.wrapping_add((start - payload) as u32).to_be_bytes());
        let flags = headers.get_mut(transport + 13)?;
        if stop < end {
            // FIN and PSH are the last one's.
            *flags &= !0b1001;
        }
        if index > 0 {
            // CWR is the first one's.
            *flags &= !0x80;
        }
        let len = (payload - ETHERNET + (stop - start)) as u16;
        if v6 {
            headers.get_mut(ETHERNET + 4..ETHERNET + 6)?.copy_from_slice(&(len - 40).to_be_bytes());
        } else {
            headers.get_mut(ETHERNET + 2..ETHERNET + 4)?.copy_from_slice(&len.to_be_bytes());
            let id = headers.get_mut(ETHERNET + 4..ETHERNET + 6)?;
            let number = u16::from_be_bytes((&*id).try_into().ok()?).wrapping_add(index as u16);
            id.copy_from_slice(&number.to_be_bytes());
            headers.get_mut(ETHERNET + 10..ETHERNET + 12)?.fill(0);
            let checksum = !packet::sum(headers.get(ETHERNET..transport)?);
            headers.get_mut(ETHERNET + 10..ETHERNET + 12)?.copy_from_slice(&checksum.to_be_bytes());
        }
        packet::set_partial(headers, &Packet { end: payload + (stop - start), ..self.packet });
        Some(segment)
    }
}

impl Iterator for Segments<'_> {
    type Item = Segment;

    fn next(&mut self) -> Option<Segment> {
        if self.index >= self.total() {
            return None;
        }
        self.index += 1;
        self.cut(self.index - 1)
    }
}
