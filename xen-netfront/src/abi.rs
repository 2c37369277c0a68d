//! The records of the two rings (`io/netif.h`).

use static_assertions::const_assert_eq;
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

const_assert_eq!(size_of::<TxRequest>(), 12);
const_assert_eq!(size_of::<TxResponse>(), 4);
const_assert_eq!(size_of::<RxRequest>(), 8);
const_assert_eq!(size_of::<RxResponse>(), 8);

bitflags::bitflags! {
    /// `NETTXF_*`.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
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
