//! What is said of a frame beside its bytes.

/// What is known of the TCP or UDP checksum of a frame (`NETTXF_*`, `NETRXF_*` of `io/netif.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Checksum {
    /// It is in the frame, and whoever cares verifies it.
    #[default]
    Complete,
    /// It was verified, or the data never left the machine: there is no need to look at it.
    Validated,
    /// It is not made yet: its field holds the sum over the pseudo header alone, not inverted
    /// ([`packet::set_partial`](crate::packet::set_partial)). Whoever puts the frame on a wire adds the rest.
    Blank,
}

/// A TCP packet that is larger than the path allows; whoever puts it on a wire cuts it into segments
/// (`XEN_NETIF_EXTRA_TYPE_GSO`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gso {
    /// Which headers it has.
    pub kind: GsoKind,
    /// The most payload of each segment, in bytes: TCP's MSS. Not zero.
    pub size: u16,
}

/// The headers of a packet that is to be cut (`XEN_NETIF_GSO_TYPE_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GsoKind {
    /// TCP in IPv4.
    TcpV4,
    /// TCP in IPv6.
    TcpV6,
}
