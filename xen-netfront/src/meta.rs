//! What is said of a frame beside its bytes.

use crate::abi::{ExtraInfo, GSO_TYPE_TCPV4, GSO_TYPE_TCPV6};
use crate::{Features, Hash};

/// What is known of the TCP or UDP checksum of a frame (`NETTXF_*`, `NETRXF_*` of `io/netif.h`).
#[non_exhaustive]
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
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gso {
    /// Which headers it has.
    pub kind: GsoKind,
    /// The most payload of each segment, in bytes: TCP's MSS. Not zero.
    pub size: u16,
}

/// The headers of a packet that is to be cut (`XEN_NETIF_GSO_TYPE_*`).
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GsoKind {
    /// TCP in IPv4.
    TcpV4,
    /// TCP in IPv6.
    TcpV6,
}

/// What is said of a frame that is sent.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TxMeta {
    /// With [`Checksum::Blank`] it does not matter what is in the checksum's place: the device does what is needed,
    /// and makes the checksum itself when the backend does not take blank ones.
    pub checksum: Checksum,
    /// The frame is to be cut. Its checksum is then blank, whatever `checksum` says. Only when
    /// [`features`](crate::NetFront::features) say that the backend takes it.
    pub gso: Option<Gso>,
}

/// What is said of a frame that arrived.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RxMeta {
    /// Its length in bytes.
    pub len: usize,
    /// Blank only if [`Config::receive`](crate::Config::receive) allows.
    pub checksum: Checksum,
    /// It is several segments in one; only if [`Config::receive`](crate::Config::receive) allows.
    pub gso: Option<Gso>,
    /// Its hash, once the [control ring](crate::NetFront::control) asked for hashes.
    pub hash: Option<Hash>,
    /// The slots in which it was, without those of extra information.
    pub slots: usize,
    /// The queue it came by.
    pub queue: usize,
}

impl TxMeta {
    /// The checksum of a frame, and whether it is to be cut.
    pub const fn new(checksum: Checksum, gso: Option<Gso>) -> Self {
        Self { checksum, gso }
    }

    /// Whether nothing is said.
    #[inline]
    pub(crate) fn is_plain(self) -> bool {
        self.checksum == Checksum::Complete && self.gso.is_none()
    }
}

impl Gso {
    /// A packet with these headers, to be cut into segments of `size` bytes.
    pub const fn new(kind: GsoKind, size: u16) -> Self {
        Self { kind, size }
    }

    /// What `XEN_NETIF_EXTRA_TYPE_GSO` says; none when that makes no sense.
    pub(crate) fn from_abi((size, kind): (u16, u8)) -> Option<Self> {
        let kind = match kind {
            GSO_TYPE_TCPV4 => GsoKind::TcpV4,
            GSO_TYPE_TCPV6 => GsoKind::TcpV6,
            _ => return None,
        };
        (size != 0).then_some(Self { kind, size })
    }

    /// As extra information.
    pub(crate) fn to_abi(self) -> ExtraInfo {
        ExtraInfo::gso(self.size, if self.kind == GsoKind::TcpV4 { GSO_TYPE_TCPV4 } else { GSO_TYPE_TCPV6 })
    }

    /// What the other side must have said for it.
    pub(crate) fn feature(self) -> Features {
        if self.kind == GsoKind::TcpV4 { Features::GSO_V4 } else { Features::GSO_V6 }
    }
}
