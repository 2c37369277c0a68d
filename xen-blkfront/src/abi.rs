//! The records of the ring as the backend reads and writes them (`io/blkif.h`), on 64-bit machines.

use bitflags::bitflags;
use xen_ring::Protocol;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Most pages in one request (`BLKIF_MAX_SEGMENTS_PER_REQUEST`).
pub const MAX_SEGMENTS: usize = 11;
/// Most pages of segments in one indirect request (`BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST`).
pub const MAX_INDIRECT_PAGES: usize = 8;
/// Segments that fit such a page.
pub const SEGMENTS_PER_PAGE: usize = xen_hypercall::PAGE_SIZE / size_of::<Segment>();
/// Requests that fit a ring of one page; twice as many for each doubling of the pages.
pub const RING_SLOTS: usize = 32;
/// Most pages of a ring, as a power of two: what Linux's backend takes (`XENBUS_MAX_RING_GRANT_ORDER`).
pub const MAX_RING_ORDER: u32 = 4;
/// What sector numbers count, whatever the disk's own sector size is.
pub const SECTOR: usize = 512;

/// `BLKIF_OP_READ`.
pub const OP_READ: u8 = 0;
/// `BLKIF_OP_WRITE`.
pub const OP_WRITE: u8 = 1;
/// `BLKIF_OP_WRITE_BARRIER`: a write after all writes before it on the ring, and before all that follow.
pub const OP_BARRIER: u8 = 2;
/// `BLKIF_OP_FLUSH_DISKCACHE`: what was written survives a loss of power once this is answered.
pub const OP_FLUSH: u8 = 3;
/// `BLKIF_OP_DISCARD`: what is in these sectors is not needed any more ([`RequestDiscard`]).
pub const OP_DISCARD: u8 = 5;
/// `BLKIF_OP_INDIRECT`: a read or write whose segments are in pages of their own ([`RequestIndirect`]).
pub const OP_INDIRECT: u8 = 6;

/// `BLKIF_DISCARD_SECURE`: no copy of the discarded sectors may be left.
pub const DISCARD_SECURE: u8 = 1;

/// `BLKIF_RSP_OKAY`.
pub const RSP_OKAY: i16 = 0;
/// `BLKIF_RSP_ERROR`.
pub const RSP_ERROR: i16 = -1;
/// `BLKIF_RSP_EOPNOTSUPP`.
pub const RSP_EOPNOTSUPP: i16 = -2;

/// What the records' layout is called on x86-64 (`XEN_IO_PROTO_ABI_X86_64` of `io/protocols.h`).
pub const ABI_X86_64: &str = "x86_64-abi";
/// What it is called on arm64 (`XEN_IO_PROTO_ABI_ARM`).
pub const ABI_ARM: &str = "arm-abi";
/// What it is called here (`XEN_IO_PROTO_ABI_NATIVE`).
pub const ABI: &str = if cfg!(target_arch = "aarch64") { ABI_ARM } else { ABI_X86_64 };

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

/// The pages of a request.
pub type Segments = [Segment; MAX_SEGMENTS];

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
    pub segment: Segments,
}

/// A request with [`OP_DISCARD`] (`blkif_request_discard`); the rest of its slot means nothing.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RequestDiscard {
    /// [`OP_DISCARD`].
    pub operation: u8,
    /// [`DISCARD_SECURE`] or zero.
    pub flag: u8,
    /// The device's number, cut to 16 bits.
    pub handle: u16,
    /// Nothing.
    pub pad: u32,
    /// Comes back in the response.
    pub id: u64,
    /// First sector on the disk.
    pub sector: u64,
    /// How many.
    pub sectors: u64,
}

/// A request with [`OP_INDIRECT`] (`blkif_request_indirect`); the rest of its slot means nothing.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RequestIndirect {
    /// [`OP_INDIRECT`].
    pub operation: u8,
    /// [`OP_READ`] or [`OP_WRITE`].
    pub indirect_op: u8,
    /// How many segments there are, [`SEGMENTS_PER_PAGE`] in each page.
    pub segments: u16,
    /// Nothing.
    pub pad: u32,
    /// Comes back in the response.
    pub id: u64,
    /// First sector on the disk.
    pub sector: u64,
    /// The device's number, cut to 16 bits.
    pub handle: u16,
    /// Nothing.
    pub pad2: u16,
    /// The grants of the pages that the segments are in.
    pub grefs: [u32; MAX_INDIRECT_PAGES],
    /// Nothing.
    pub pad3: u32,
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

impl From<RequestDiscard> for Request {
    fn from(discard: RequestDiscard) -> Self {
        Self::holding(discard.as_bytes())
    }
}

impl From<RequestIndirect> for Request {
    fn from(indirect: RequestIndirect) -> Self {
        Self::holding(indirect.as_bytes())
    }
}

impl Request {
    /// A request to move data.
    #[inline]
    pub(crate) fn of_data(
        operation: u8,
        segments: u8,
        handle: u16,
        id: u64,
        sector: u64,
        segment: Segments,
    ) -> Self {
        /// The same record with its first fields as one number, which they are written as.
        #[repr(C)]
        #[derive(IntoBytes, Immutable)]
        struct Words {
            first: u64,
            id: u64,
            sector: u64,
            segment: Segments,
        }
        let [low, high] = handle.to_ne_bytes();
        let first = u64::from_ne_bytes([operation, segments, low, high, 0, 0, 0, 0]);
        zerocopy::transmute!(Words { first, id, sector, segment })
    }

    /// A slot that begins with these bytes.
    fn holding(bytes: &[u8]) -> Self {
        let mut request = Self::default();
        for (to, from) in request.as_mut_bytes().iter_mut().zip(bytes) {
            *to = *from;
        }
        request
    }

    /// The slot's bytes as another kind of request's.
    pub fn as_kind<T: FromBytes + KnownLayout + Immutable>(&self) -> Option<T> {
        Some(T::read_from_prefix(self.as_bytes()).ok()?.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_made_of_words_is_the_one_of_its_fields() {
        let mut segment = [Segment::default(); MAX_SEGMENTS];
        for (place, gref) in segment.iter_mut().zip(100..) {
            *place = Segment { gref, first: 1, last: 6, pad: 0 };
        }
        let (operation, segments, handle, id, sector) = (OP_WRITE, 11, 0x1234, u64::MAX - 1, 1 << 40);
        assert_eq!(
            Request::of_data(operation, segments, handle, id, sector, segment),
            Request { operation, segments, handle, pad: 0, id, sector, segment }
        );
    }
}
