//! Puts consecutive TCP segments of a flow together to a large packet, which the backend cuts again; of a few flows at
//! once, for a stack sends a segment of each in turn.
//!
//! A stack that cuts its stream itself pays for each segment; the way through the rings, and the host's network stack
//! behind it, need not. The segments are copied into shared pages one behind the other as they come.

use xen_hypercall::{PAGE_SIZE, Platform};

use crate::packet::{self, ETHERNET, Packet, TCP};
use crate::pool::FRAMES;
use crate::{Checksum, Error, FRAME_MAX, Gso, GsoKind, NetFront, TxMeta};

/// The longest headers that are kept: Ethernet, IP with options, TCP with options.
const HEADERS: usize = 14 + 60 + 60;

const FIN: u8 = 1;
const PSH: u8 = 8;
const ACK: u8 = 16;

/// A large packet that is being put together.
struct Open {
    /// Of the first segment.
    head: [u8; HEADERS],
    packet: Packet,
    /// Payload of each segment but the last.
    size: usize,
    /// Bytes so far, with the headers.
    len: usize,
    next: u32,
}

/// Large packets at once.
const FLOWS: usize = FRAMES - 1;

/// Frames on their way to a device: all go through here, so that those of a flow stay in order.
#[derive(Default)]
pub(crate) struct Coalescer {
    open: [Option<Open>; FLOWS],
    /// The one that goes when there are no more places.
    next: usize,
}

impl Coalescer {
    /// Slots that what is not sent will take, each with its extra information.
    pub(crate) fn slots(&self) -> usize {
        self.open.iter().flatten().map(|open| open.len.div_ceil(PAGE_SIZE) + 1).sum()
    }

    /// Sends a frame, now or, if others might be put to it, with the next [`push`](Self::push). TCP's checksum is
    /// not looked at and is made; all others are the caller's.
    pub(crate) fn send<P: Platform, const QUEUES: usize>(
        &mut self,
        front: &mut NetFront<'_, P, QUEUES>,
        frame: &[u8],
    ) -> Result<(), Error> {
        let Some(packet) = Packet::parse(frame).filter(|packet| packet.protocol == TCP) else {
            self.push(front)?;
            return front.transmit(frame);
        };
        let flags = frame.get(packet.transport + 13).copied().unwrap_or(0);
        let gso = Gso { kind: if packet.v6 { GsoKind::TcpV6 } else { GsoKind::TcpV4 }, size: 1 };
        let payload = frame.get(packet.payload..packet.end).unwrap_or_default();
        let joins = flags & !(FIN | PSH) == ACK
            && !payload.is_empty()
            && packet.payload <= HEADERS
            && front.features().contains(gso.feature());
        let flow = |open: &Option<Open>| open.as_ref().is_some_and(|open| open.is_of_flow(frame, &packet));
        let found = self.open.iter().position(flow);
        if !joins {
            found.map_or(Ok(()), |place| self.push_one(front, place))?;
            return front.transmit_with(&[frame], TxMeta { checksum: Checksum::Blank, gso: None });
        }
        let of_flow = found.and_then(|place| self.open.get(place)?.as_ref());
        let goes_on = of_flow.is_some_and(|open| open.goes_on_with(frame, &packet));
        let place = found.unwrap_or_else(|| {
            self.open.iter().position(Option::is_none).unwrap_or_else(|| {
                self.next = (self.next + 1) % FLOWS;
                self.next
            })
        });
        if !goes_on {
            self.push_one(front, place)?;
            let mut head = [0; HEADERS];
            if let (Some(to), Some(from)) = (head.get_mut(..packet.payload), frame.get(..packet.payload)) {
                to.copy_from_slice(from);
            }
            let next = sequence(frame, &packet);
            let open = Open { head, packet, size: payload.len(), len: packet.payload, next };
            if let Some(to) = self.open.get_mut(place) {
                *to = Some(open);
            }
        }
        let Some(Some(open)) = self.open.get_mut(place) else { return Ok(()) };
        if let Err(error) = front.stage(place + 1, &open.head, open.len, payload) {
            // What there is so far is whole. This segment is lost, as networks lose frames.
            let _ = self.push_one(front, place);
            return Err(error);
        }
        open.len += payload.len();
        open.next = open.next.wrapping_add(payload.len() as u32);
        if let Some(all) = open.head.get_mut(packet.transport + 13) {
            *all |= flags;
        }
        if flags & (FIN | PSH) != 0 || payload.len() < open.size {
            self.push_one(front, place)?;
        }
        Ok(())
    }

    /// Sends all that was put together.
    pub(crate) fn push<P: Platform, const QUEUES: usize>(
        &mut self,
        front: &mut NetFront<'_, P, QUEUES>,
    ) -> Result<(), Error> {
        let mut outcome = Ok(());
        for place in 0..FLOWS {
            outcome = outcome.and(self.push_one(front, place));
        }
        outcome
    }

    fn push_one<P: Platform, const QUEUES: usize>(
        &mut self,
        front: &mut NetFront<'_, P, QUEUES>,
        place: usize,
    ) -> Result<(), Error> {
        // Looked at where it is: to take it out would move it, also when there is none, which is how it is for most frames.
        let Some(at) = self.open.get_mut(place) else { return Ok(()) };
        let Some(open) = at else { return Ok(()) };
        let mut outcome = Ok(());
        if open.len > open.packet.payload {
            open.finish_headers();
            let kind = if open.packet.v6 { GsoKind::TcpV6 } else { GsoKind::TcpV4 };
            // A segment fits the MTU, which is of 16 bits.
            let gso = Some(Gso { kind, size: open.size as u16 });
            let head = open.head.get(..open.packet.payload).unwrap_or_default();
            outcome = front.send_staged(place + 1, head, open.len, TxMeta { checksum: Checksum::Blank, gso });
        }
        *at = None;
        outcome
    }
}

impl Open {
    /// Whether the frame has the same addresses and ports.
    fn is_of_flow(&self, frame: &[u8], packet: &Packet) -> bool {
        let Packet { v6, transport, .. } = *packet;
        let addresses = if v6 { ETHERNET + 8..ETHERNET + 40 } else { ETHERNET + 12..ETHERNET + 20 };
        self.packet.v6 == v6
            && self.head.get(addresses.clone()) == frame.get(addresses)
            && self.head.get(self.packet.transport..self.packet.transport + 4)
                == frame.get(transport..transport + 4)
    }

    /// Whether the frame, which [is of the flow](Self::is_of_flow), is the next segment of the same stream.
    fn goes_on_with(&self, frame: &[u8], packet: &Packet) -> bool {
        let Packet { v6, transport, payload, end, .. } = *packet;
        // Everything but what makes the flow, IP's length, number and checksum, TCP's sequence number, flags and checksum.
        let ip: &[_] = if v6 {
            &[(0, 18), (20, ETHERNET + 8), (ETHERNET + 40, transport)]
        } else {
            &[(0, 16), (20, 24), (ETHERNET + 20, transport)]
        };
        let tcp = [(8, 13), (14, 16), (18, payload - transport)];
        let same = |from: usize, to: usize| self.head.get(from..to) == frame.get(from..to);
        self.packet.payload == payload
            && self.packet.transport == transport
            && end - payload <= self.size
            && self.len + (end - payload) <= FRAME_MAX
            && sequence(frame, packet) == self.next
            && ip.iter().all(|(from, to)| same(*from, *to))
            && tcp.iter().all(|(from, to)| same(transport + from, transport + to))
    }

    /// Writes IP's length and checksum.
    fn finish_headers(&mut self) {
        let (len, transport) = ((self.len - ETHERNET) as u16, self.packet.transport);
        let mut put = |at: usize, value: u16| {
            if let Some(place) = self.head.get_mut(at..at + 2) {
                place.copy_from_slice(&value.to_be_bytes());
            }
        };
        if self.packet.v6 {
            return put(ETHERNET + 4, len - 40);
        }
        put(ETHERNET + 2, len);
        put(ETHERNET + 10, 0);
        let checksum = !packet::sum(self.head.get(ETHERNET..transport).unwrap_or_default());
        if let Some(place) = self.head.get_mut(ETHERNET + 10..ETHERNET + 12) {
            place.copy_from_slice(&checksum.to_be_bytes());
        }
    }
}

fn sequence(frame: &[u8], packet: &Packet) -> u32 {
    let bytes = frame.get(packet.transport + 4..packet.transport + 8).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u32::from_be_bytes)
}
