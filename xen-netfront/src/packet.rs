//! The little that a driver must know of what is in a frame: where its TCP or UDP checksum is, and how to make one.

/// The length of an Ethernet header, in bytes.
pub const ETHERNET: usize = 14;
/// The number of TCP in IP's header.
pub const TCP: u8 = 6;
/// The number of UDP in IP's header.
pub const UDP: u8 = 17;

/// Where things are in an Ethernet frame that holds TCP or UDP in IPv4 or IPv6, not in fragments and without VLAN tag.
/// Offsets are from the start of the frame, in bytes, and lie within it.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet {
    /// Whether it is IPv6.
    pub v6: bool,
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    /// Where TCP's or UDP's header begins.
    pub transport: usize,
    /// Where the payload begins.
    pub payload: usize,
    /// Where the IP packet ends; behind it there may be padding.
    pub end: usize,
}

impl Packet {
    /// Looks at a frame; none when it is anything else, or its lengths make no sense.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        Self::parse_head(frame, frame.len())
    }

    /// The same for a frame of `len` bytes of which only the first are here, with all its headers.
    pub fn parse_head(frame: &[u8], len: usize) -> Option<Self> {
        let (v6, protocol, transport, end) = match (be16(frame, 12)?, frame.get(ETHERNET)? >> 4) {
            (0x0800, 4) => {
                let header = usize::from(frame.get(ETHERNET)? & 15) * 4;
                let fragment = be16(frame, ETHERNET + 6)? & 0x3fff != 0;
                if header < 20 || fragment {
                    return None;
                }
                let end = ETHERNET + usize::from(be16(frame, ETHERNET + 2)?);
                (false, *frame.get(ETHERNET + 9)?, ETHERNET + header, end)
            }
            (0x86dd, 6) => {
                let end = ETHERNET + 40 + usize::from(be16(frame, ETHERNET + 4)?);
                let (mut next, mut at) = (*frame.get(ETHERNET + 6)?, ETHERNET + 40);
                // Hop-by-hop options, routing, destination options. Each takes at least 8 bytes, so this ends.
                while matches!(next, 0 | 43 | 60) {
                    next = *frame.get(at)?;
                    at += (usize::from(*frame.get(at + 1)?) + 1) * 8;
                }
                (true, next, at, end)
            }
            _ => return None,
        };
        let header = match protocol {
            TCP => usize::from(frame.get(transport + 12)? >> 4) * 4,
            UDP => 8,
            _ => return None,
        };
        let payload = transport + header;
        let sound =
            (protocol == UDP || header >= 20) && payload <= end && payload <= frame.len() && end <= len;
        sound.then_some(Self { v6, protocol, transport, payload, end })
    }

    /// Where the checksum's two bytes are.
    pub fn checksum_at(&self) -> usize {
        self.transport + if self.protocol == TCP { 16 } else { 6 }
    }

    /// The checksum of a packet whose sum, with the pseudo header's, is this.
    pub(crate) fn checksum_of(&self, sum: u16) -> u16 {
        // UDP has zero for "none", and another zero.
        if sum == 0xffff && self.protocol == UDP { sum } else { !sum }
    }

    /// The sum over the pseudo header, not inverted. `frame` need hold no more than the headers.
    pub fn pseudo_sum(&self, frame: &[u8]) -> u16 {
        let len = self.end - self.transport;
        let addresses = if self.v6 { ETHERNET + 8..ETHERNET + 40 } else { ETHERNET + 12..ETHERNET + 20 };
        let mut sum = u32::from(sum(frame.get(addresses).unwrap_or_default()));
        sum += (len >> 16) as u32 + (len & 0xffff) as u32 + u32::from(self.protocol);
        fold(sum)
    }
}

/// The ones' complement sum over bytes as 16-bit words in network order, a last odd byte as if a zero followed.
pub fn sum(bytes: &[u8]) -> u16 {
    let chunks = bytes.chunks_exact(4);
    let mut last = [0; 4];
    let rest = chunks.remainder();
    last[..rest.len()].copy_from_slice(rest);
    // The sum does not care about the order of the bytes in its words, as long as it is the same in all.
    let word = |chunk: &[u8]| u64::from(chunk.try_into().map_or(0, u32::from_ne_bytes));
    // There are fewer than 2^32 words.
    let total = chunks.fold(word(&last), |total, chunk| total.wrapping_add(word(chunk)));
    let total = (total >> 32) + (total & 0xffff_ffff);
    let total = (total >> 32) + (total & 0xffff_ffff);
    u16::from_be(fold((total >> 16) as u32 + (total & 0xffff) as u32))
}

/// Adds two sums, the second over bytes that begin at an odd or even place of what the first is over.
pub(crate) fn add(first: u16, second: u16, odd: bool) -> u16 {
    fold(u32::from(first) + u32::from(if odd { second.swap_bytes() } else { second }))
}

fn fold(sum: u32) -> u16 {
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}

fn be16(frame: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?))
}

fn put(frame: &mut [u8], at: usize, value: u16) {
    if let Some(place) = frame.get_mut(at..at + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

/// Writes the sum over the pseudo header into the checksum's place: what
/// [`Checksum::Blank`](crate::Checksum::Blank) means.
pub fn set_partial(frame: &mut [u8], packet: &Packet) {
    let sum = packet.pseudo_sum(frame);
    put(frame, packet.checksum_at(), sum);
}

/// Whether the checksum's place holds the sum over the pseudo header.
pub fn has_partial(frame: &[u8], packet: &Packet) -> bool {
    be16(frame, packet.checksum_at()) == Some(packet.pseudo_sum(frame))
}

/// Makes the checksum of a frame that has a [partial](set_partial) one.
pub fn complete(frame: &mut [u8], packet: &Packet) {
    let sum = sum(frame.get(packet.transport..packet.end).unwrap_or_default());
    put(frame, packet.checksum_at(), packet.checksum_of(sum));
}

/// Whether the checksum is right.
pub fn verify(frame: &[u8], packet: &Packet) -> bool {
    if packet.protocol == UDP && !packet.v6 && be16(frame, packet.checksum_at()) == Some(0) {
        return true;
    }
    let sum = sum(frame.get(packet.transport..packet.end).unwrap_or_default());
    let pseudo = packet.pseudo_sum(frame);
    fold(u32::from(sum) + u32::from(pseudo)) == 0xffff
}
