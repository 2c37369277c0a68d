//! Toeplitz' hash, by which a backend chooses queues (`io/netif.h`).

use crate::abi::{EXTRA_TYPE_HASH, ExtraInfo, HashTypes};
use crate::packet::{ETHERNET, Packet, TCP};

/// The hash of a frame, as the backend says.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hash {
    /// What was hashed: one of the types, empty when it is none that is known.
    pub types: HashTypes,
    /// How (`XEN_NETIF_CTRL_HASH_ALGORITHM_*`).
    pub algorithm: u8,
    /// The hash.
    pub value: u32,
}

impl Hash {
    /// What `XEN_NETIF_EXTRA_TYPE_HASH` says, if it is that.
    pub(crate) fn from_abi(info: ExtraInfo) -> Option<Self> {
        let [kind, algorithm, value @ ..] = info.data;
        let types = HashTypes::from_bits_retain(1u32.checked_shl(kind.into()).unwrap_or(0));
        let value = u32::from_le_bytes(value);
        (info.kind == EXTRA_TYPE_HASH).then_some(Self { types, algorithm, value })
    }
}

/// The hash of some bytes with a key, which counts as if zeroes followed.
pub fn toeplitz(key: &[u8], bytes: impl Iterator<Item = u8>) -> u32 {
    let mut key = key.iter().copied().chain(core::iter::repeat(0));
    // The leftmost 64 bits of what is left of the key.
    let mut window = key.by_ref().take(8).fold(0u64, |window, byte| window << 8 | u64::from(byte));
    let mut hash = 0u64;
    for byte in bytes {
        for bit in (0..8).rev() {
            if byte >> bit & 1 == 1 {
                hash ^= window;
            }
            window <<= 1;
        }
        window |= u64::from(key.next().unwrap_or(0));
    }
    (hash >> 32) as u32
}

/// The hash of a frame by the most that `types` allow, and by what; none for a frame that they do not concern.
pub fn of_frame(key: &[u8], types: HashTypes, frame: &[u8]) -> Option<(HashTypes, u32)> {
    let kind = frame.get(12..14)?;
    let (addresses, plain, with_ports) = match kind {
        [0x08, 0x00] => (ETHERNET + 12..ETHERNET + 20, HashTypes::IPV4, HashTypes::IPV4_TCP),
        [0x86, 0xdd] => (ETHERNET + 8..ETHERNET + 40, HashTypes::IPV6, HashTypes::IPV6_TCP),
        _ => return None,
    };
    let addresses = frame.get(addresses)?.iter().copied();
    let tcp = Packet::parse(frame).filter(|packet| packet.protocol == TCP && types.contains(with_ports));
    if let Some(packet) = tcp {
        let ports = frame.get(packet.transport..packet.transport + 4)?.iter().copied();
        return Some((with_ports, toeplitz(key, addresses.chain(ports))));
    }
    types.contains(plain).then(|| (plain, toeplitz(key, addresses)))
}

#[cfg(test)]
mod tests {
    use super::toeplitz;

    /// The key and the values that Microsoft publishes for receive side scaling.
    const KEY: [u8; 40] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
        0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
        0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];

    #[test]
    fn known_values() {
        let addresses = [66, 9, 149, 187, 161, 142, 100, 80];
        assert_eq!(toeplitz(&KEY, addresses.into_iter()), 0x323e_8fc2);
        let ports = [0x0a, 0xea, 0x06, 0xe6];
        assert_eq!(toeplitz(&KEY, addresses.into_iter().chain(ports)), 0x51cc_c178);
        assert_eq!(toeplitz(&[], addresses.into_iter()), 0);
    }
}
