//! The records of the ring as the backend reads and writes them (`io/blkif.h`), on 64-bit machines.

use bitflags::bitflags;
use static_assertions::const_assert_eq;
use xen_ring::{Protocol, slots_in};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Most pages in one request (`BLKIF_MAX_SEGMENTS_PER_REQUEST`).
pub const MAX_SEGMENTS: usize = 11;
/// Requests that fit a ring of one page.
pub const RING_SLOTS: usize = 32;
/// What sector numbers count, whatever the disk's own sector size is.
pub const SECTOR: usize = 512;

/// `BLKIF_OP_READ`.
pub const OP_READ: u8 = 0;
/// `BLKIF_OP_WRITE`.
pub const OP_WRITE: u8 = 1;
/// `BLKIF_OP_FLUSH_DISKCACHE`.
pub const OP_FLUSH: u8 = 3;

/// `BLKIF_RSP_OKAY`.
pub const RSP_OKAY: i16 = 0;
/// `BLKIF_RSP_ERROR`.
pub const RSP_ERROR: i16 = -1;
/// `BLKIF_RSP_EOPNOTSUPP`.
pub const RSP_EOPNOTSUPP: i16 = -2;

/// What the records' layout is called (`XEN_IO_PROTO_ABI_*` of `io/protocols.h`).
#[cfg(target_arch = "x86_64")]
pub(crate) const ABI: &str = "x86_64-abi";
#[cfg(target_arch = "aarch64")]
pub(crate) const ABI: &str = "arm-abi";

/// One page of a request (`blkif_request_segment`).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Segment {
    /// The page's grant.
    pub gref: u32,
    /// First sector in the page.
    pub first: u8,
    /// Last sector in the page.
    pub last: u8,
    /// Nothing.
    pub pad: u16,
}

/// A request (`blkif_request`).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Request {
    /// `OP_*`.
    pub operation: u8,
    /// How many of the segments are meant.
    pub segments: u8,
    /// The device's number, cut to 16 bits.
    pub handle: u16,
    /// Nothing.
    pub pad: u32,
    /// Comes back in the response.
    pub id: u64,
    /// First sector on the disk.
    pub sector: u64,
    /// The pages.
    pub segment: [Segment; MAX_SEGMENTS],
}

/// A response (`blkif_response`).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Response {
    /// The request's.
    pub id: u64,
    /// The request's.
    pub operation: u8,
    /// Nothing.
    pub pad: u8,
    /// `RSP_*`.
    pub status: i16,
    /// Nothing.
    pub pad2: u32,
}

bitflags! {
    /// What kind of disk it is (`VDISK_*`). Unknown bits are kept.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct DiskInfo: u32 {
        /// A CD-ROM drive.
        const CDROM = 1;
        /// Its medium can be changed.
        const REMOVABLE = 2;
        /// It cannot be written.
        const READONLY = 4;
        /// Bits without a name.
        const _ = !0;
    }
}

/// The block device's protocol.
#[derive(Debug)]
pub enum Blkif {}

impl Protocol for Blkif {
    type Request = Request;
    type Response = Response;
}

const_assert_eq!(size_of::<Request>(), 112);
const_assert_eq!(size_of::<Response>(), 16);
const_assert_eq!(slots_in::<Blkif>(4096), RING_SLOTS as u32);
