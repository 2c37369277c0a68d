//! xen-blkfront.

use xen_blkfront::abi::{self, DiskInfo, Request, RequestDiscard, RequestIndirect, Response, Segment};

use crate::{List, consts, texts, types};

pub(super) fn add(list: &mut List) {
    types!(list, {
        Segment = blkif_request_segment { gref, first: "first_sect", last: "last_sect", pad: _ }
        Request = blkif_request {
            operation, segments: "nr_segments", handle, pad: _, id, sector: "sector_number", segment: "seg",
        }
        RequestDiscard = blkif_request_discard {
            operation, flag, handle, pad: _, id, sector: "sector_number", sectors: "nr_sectors",
        }
        RequestIndirect = blkif_request_indirect {
            operation, indirect_op, segments: "nr_segments", pad: _, id, sector: "sector_number", handle, pad2: _,
            grefs: "indirect_grefs", pad3: _,
        }
        Response = blkif_response { id, operation, pad: _, status, pad2: _ }
    });
    consts!(list, abi {
        MAX_SEGMENTS = "BLKIF_MAX_SEGMENTS_PER_REQUEST", MAX_INDIRECT_PAGES = "BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST",
        OP_BARRIER = "BLKIF_OP_WRITE_BARRIER", OP_FLUSH = "BLKIF_OP_FLUSH_DISKCACHE",
    });
    consts!(list, abi "BLKIF_" {
        OP_READ, OP_WRITE, OP_DISCARD, OP_INDIRECT, DISCARD_SECURE, RSP_OKAY, RSP_ERROR, RSP_EOPNOTSUPP,
    });
    texts!(list, { "XEN_IO_PROTO_ABI_X86_64" = abi::ABI_X86_64, "XEN_IO_PROTO_ABI_ARM" = abi::ABI_ARM });
    list.only("x86_64", |list| {
        texts!(list, { "XEN_IO_PROTO_ABI_NATIVE" = abi::ABI_X86_64 });
    });
    list.only("aarch64", |list| {
        texts!(list, { "XEN_IO_PROTO_ABI_NATIVE" = abi::ABI_ARM });
    });
    consts!(list, DiskInfo "VDISK_" [.bits()] { CDROM, REMOVABLE, READONLY });
}
