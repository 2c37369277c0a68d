//! The device as other crates want it, a feature for each.

#[cfg(any(feature = "embassy-net-driver-v0-2", feature = "smoltcp-v0-13", feature = "smoltcp-v0-14"))]
mod coalesce;
#[cfg(feature = "embassy-net-driver-v0-2")]
pub mod embassy;
#[cfg(any(feature = "smoltcp-v0-13", feature = "smoltcp-v0-14"))]
pub mod smoltcp;
#[cfg(any(feature = "embassy-net-driver-v0-2", feature = "smoltcp-v0-13", feature = "smoltcp-v0-14"))]
mod stack;

#[cfg(any(feature = "embassy-net-driver-v0-2", feature = "smoltcp-v0-13", feature = "smoltcp-v0-14"))]
pub use stack::{Hold, ToSend};

#[cfg(any(feature = "embassy-net-driver-v0-2", feature = "smoltcp-v0-13", feature = "smoltcp-v0-14"))]
mod vet {
    use crate::Checksum;
    use crate::packet::{self, ETHERNET, Packet, TCP};

    /// Whether a stack that does not verify TCP's checksums may see a frame: its own is right, or the backend vouches
    /// for it. Makes UDP's if it is blank.
    pub(super) fn vet(frame: &mut [u8], checksum: Checksum) -> bool {
        let Some(packet) = Packet::parse(frame) else {
            // The stack would not verify TCP in fragments when it has put them together.
            return !is_tcp_v4(frame);
        };
        match (packet.protocol, checksum) {
            (TCP, Checksum::Complete) => packet::verify(frame, &packet),
            (TCP, _) => true,
            (_, Checksum::Blank) => {
                packet::complete(frame, &packet);
                true
            }
            _ => true,
        }
    }

    fn is_tcp_v4(frame: &[u8]) -> bool {
        frame.get(12..14) == Some(&[8, 0]) && frame.get(ETHERNET + 9) == Some(&TCP)
    }
}
