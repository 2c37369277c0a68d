//! The records of the two rings (`io/netif.h`).

use xen_ring::Protocol;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `netif_tx_request_t`: a frame to send, or a part of one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TxRequest {
    /// The page it is in.
    pub gref: u32,
    /// Where in the page, in bytes.
    pub offset: u16,
    /// [`TxFlags`].
    pub flags: u16,
    /// Chosen by the front; the response has the same.
    pub id: u16,
    /// Bytes of the whole frame.
    pub size: u16,
}

/// `netif_tx_response_t`: a page may be used again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TxResponse {
    /// The request's.
    pub id: u16,
    /// Zero, or below zero for a frame that was not sent (`NETIF_RSP_*`).
    pub status: i16,
}

/// `netif_rx_request_t`: a page to receive into.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RxRequest {
    /// Chosen by the front; the response has the same.
    pub id: u16,
    /// Zero.
    pub pad: u16,
    /// The page.
    pub gref: u32,
}

/// `netif_rx_response_t`: a frame that arrived, or a part of one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RxResponse {
    /// The request's.
    pub id: u16,
    /// Where in the page it begins, in bytes.
    pub offset: u16,
    /// [`RxFlags`].
    pub flags: u16,
    /// Bytes, or below zero an error.
    pub status: i16,
}

/// `netif_extra_info_t`: more about a frame, in a slot of its own; as long as the shorter of the two kinds of slots.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(2))]
pub struct ExtraInfo {
    /// `XEN_NETIF_EXTRA_TYPE_*`.
    pub kind: u8,
    /// [`EXTRA_FLAG_MORE`] or nothing.
    pub flags: u8,
    /// What the kind says.
    pub data: [u8; 6],
}

/// An [`ExtraInfo`] in a slot of the ring of frames to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TxExtra {
    /// The information.
    pub info: ExtraInfo,
    /// What a request is longer; zero.
    pub pad: [u8; 4],
}

impl ExtraInfo {
    /// Information of [`EXTRA_TYPE_GSO`], with the size of the segments and `XEN_NETIF_GSO_TYPE_*`.
    pub fn gso(size: u16, kind: u8) -> Self {
        let [low, high] = size.to_le_bytes();
        Self { kind: EXTRA_TYPE_GSO, flags: 0, data: [low, high, kind, 0, 0, 0] }
    }

    /// The size of the segments and their kind, if that is what it is.
    pub fn as_gso(&self) -> Option<(u16, u8)> {
        let [low, high, kind, ..] = self.data;
        (self.kind == EXTRA_TYPE_GSO).then_some((u16::from_le_bytes([low, high]), kind))
    }
}

/// `XEN_NETIF_EXTRA_FLAG_MORE`: the next slot is one of these, too.
pub const EXTRA_FLAG_MORE: u8 = 1;
/// `XEN_NETIF_EXTRA_TYPE_GSO`: the frame is to be cut.
pub const EXTRA_TYPE_GSO: u8 = 1;
/// `XEN_NETIF_EXTRA_TYPE_MCAST_ADD`: no frame, but an address whose frames are wanted.
pub const EXTRA_TYPE_MCAST_ADD: u8 = 2;
/// `XEN_NETIF_EXTRA_TYPE_MCAST_DEL`: no frame, but an address whose frames are not wanted any more.
pub const EXTRA_TYPE_MCAST_DEL: u8 = 3;
/// `XEN_NETIF_EXTRA_TYPE_HASH`: the frame's hash.
pub const EXTRA_TYPE_HASH: u8 = 4;
/// `XEN_NETIF_EXTRA_TYPE_XDP`: the room before the frame. In Linux' `io/netif.h` alone, as the nodes that ask for it are.
pub const EXTRA_TYPE_XDP: u8 = 5;
/// `XEN_NETIF_EXTRA_TYPE_MAX`: one more than the last kind that Xen's own header has.
pub const EXTRA_TYPE_MAX: u8 = 5;

/// `XEN_NETIF_GSO_TYPE_TCPV4`.
pub const GSO_TYPE_TCPV4: u8 = 1;
/// `XEN_NETIF_GSO_TYPE_TCPV6`.
pub const GSO_TYPE_TCPV6: u8 = 2;

/// `XEN_NETIF_NR_SLOTS_MIN`: the slots of one frame that every backend takes.
pub const NR_SLOTS_MIN: usize = 18;
/// `XEN_NETIF_MAX_TX_SIZE`: the longest frame, in bytes.
pub const MAX_TX_SIZE: usize = 0xffff;

/// `NETIF_RSP_DROPPED`: the frame was not sent.
pub const RSP_DROPPED: i16 = -2;
/// `NETIF_RSP_ERROR`: the frame made no sense, or did not arrive whole.
pub const RSP_ERROR: i16 = -1;
/// `NETIF_RSP_OKAY`: the frame was sent.
pub const RSP_OKAY: i16 = 0;
/// `NETIF_RSP_NULL`: answers a slot that held no request. The response's id means nothing.
pub const RSP_NULL: i16 = 1;

bitflags::bitflags! {
    /// `NETTXF_*`.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct TxFlags: u16 {
        /// The transport checksum is not filled in.
        const CSUM_BLANK = 1 << 0;
        /// The data is known to be whole.
        const DATA_VALIDATED = 1 << 1;
        /// The frame goes on in the next slot.
        const MORE_DATA = 1 << 2;
        /// The next slot holds more about the frame.
        const EXTRA_INFO = 1 << 3;
        const _ = !0;
    }
}

bitflags::bitflags! {
    /// `NETRXF_*`.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct RxFlags: u16 {
        /// The data is known to be whole.
        const DATA_VALIDATED = 1 << 0;
        /// The transport checksum is not filled in.
        const CSUM_BLANK = 1 << 1;
        /// The frame goes on in the next slot.
        const MORE_DATA = 1 << 2;
        /// The next slot holds more about the frame.
        const EXTRA_INFO = 1 << 3;
        const _ = !0;
    }
}

/// The ring of frames to send.
#[derive(Debug)]
pub struct Tx;

impl Protocol for Tx {
    type Request = TxRequest;
    type Response = TxResponse;
}

/// The ring of frames that arrive.
#[derive(Debug)]
pub struct Rx;

impl Protocol for Rx {
    type Request = RxRequest;
    type Response = RxResponse;
}

/// `struct xen_netif_ctrl_request`: asks the backend for something beside frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CtrlRequest {
    /// Chosen by the front; the response has the same.
    pub id: u16,
    /// `XEN_NETIF_CTRL_TYPE_*`.
    pub kind: u16,
    /// What the kind says.
    pub data: [u32; 3],
}

/// `struct xen_netif_ctrl_response`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CtrlResponse {
    /// The request's.
    pub id: u16,
    /// The request's.
    pub kind: u16,
    /// `XEN_NETIF_CTRL_STATUS_*`.
    pub status: u32,
    /// What the kind says.
    pub data: u32,
}

/// `struct xen_netif_gref`: a page that the backend is to keep mapped, or to let go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GrefEntry {
    /// The page.
    pub gref: u32,
    /// [`GREF_READONLY`] or nothing.
    pub flags: u16,
    /// `XEN_NETIF_CTRL_STATUS_*`, written by the backend.
    pub status: u16,
}

/// `XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS`.
pub const CTRL_GET_HASH_FLAGS: u16 = 1;
/// `XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS`.
pub const CTRL_SET_HASH_FLAGS: u16 = 2;
/// `XEN_NETIF_CTRL_TYPE_SET_HASH_KEY`.
pub const CTRL_SET_HASH_KEY: u16 = 3;
/// `XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE`.
pub const CTRL_GET_HASH_MAPPING_SIZE: u16 = 4;
/// `XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE`.
pub const CTRL_SET_HASH_MAPPING_SIZE: u16 = 5;
/// `XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING`.
pub const CTRL_SET_HASH_MAPPING: u16 = 6;
/// `XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM`.
pub const CTRL_SET_HASH_ALGORITHM: u16 = 7;
/// `XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE`.
pub const CTRL_GET_GREF_MAPPING_SIZE: u16 = 8;
/// `XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING`.
pub const CTRL_ADD_GREF_MAPPING: u16 = 9;
/// `XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING`.
pub const CTRL_DEL_GREF_MAPPING: u16 = 10;

/// `XEN_NETIF_CTRL_STATUS_SUCCESS`.
pub const CTRL_SUCCESS: u32 = 0;
/// `XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED`.
pub const CTRL_NOT_SUPPORTED: u32 = 1;
/// `XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER`.
pub const CTRL_INVALID_PARAMETER: u32 = 2;
/// `XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW`.
pub const CTRL_BUFFER_OVERFLOW: u32 = 3;

/// `XEN_NETIF_CTRL_HASH_ALGORITHM_NONE`: the backend chooses queues as it likes.
pub const HASH_ALGORITHM_NONE: u32 = 0;
/// `XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ`.
pub const HASH_ALGORITHM_TOEPLITZ: u32 = 1;

/// `XEN_NETIF_CTRLF_GREF_readonly`: the page is for sending.
pub const GREF_READONLY: u16 = 1;

bitflags::bitflags! {
    /// `XEN_NETIF_CTRL_HASH_TYPE_*`: what of a packet is hashed.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct HashTypes: u32 {
        /// The addresses of IPv4.
        const IPV4 = 1 << 0;
        /// The addresses of IPv4 and the ports of TCP.
        const IPV4_TCP = 1 << 1;
        /// The addresses of IPv6.
        const IPV6 = 1 << 2;
        /// The addresses of IPv6 and the ports of TCP.
        const IPV6_TCP = 1 << 3;
        const _ = !0;
    }
}

/// The ring of questions beside frames.
#[derive(Debug)]
pub struct Ctrl;

impl Protocol for Ctrl {
    type Request = CtrlRequest;
    type Response = CtrlResponse;
}
