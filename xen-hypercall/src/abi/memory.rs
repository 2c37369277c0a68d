//! `memory.h`

pub const XENMEM_DECREASE_RESERVATION: usize = 1;
pub const XENMEM_MAXIMUM_RAM_PAGE: usize = 2;
pub const XENMEM_CURRENT_RESERVATION: usize = 3;
pub const XENMEM_MAXIMUM_RESERVATION: usize = 4;
pub const XENMEM_POPULATE_PHYSMAP: usize = 6;
pub const XENMEM_ADD_TO_PHYSMAP: usize = 7;
pub const XENMEM_MEMORY_MAP: usize = 9;
pub const XENMEM_MAXIMUM_GPFN: usize = 14;
pub const XENMEM_REMOVE_FROM_PHYSMAP: usize = 15;
pub const XENMEM_ADD_TO_PHYSMAP_BATCH: usize = 23;

pub const XENMAPSPACE_SHARED_INFO: u32 = 0;
pub const XENMAPSPACE_GRANT_TABLE: u32 = 1;
pub const XENMAPSPACE_GMFN: u32 = 2;
pub const XENMAPSPACE_GMFN_RANGE: u32 = 3;
pub const XENMAPSPACE_GMFN_FOREIGN: u32 = 4;
pub const XENMAPSPACE_DEV_MMIO: u32 = 5;
/// With the index: a frame of status words, not of entries (`XENMAPIDX_grant_table_status`).
pub const XENMAPIDX_GRANT_TABLE_STATUS: u64 = 0x8000_0000;

pub const XENMEMF_POPULATE_ON_DEMAND: u32 = 1 << 16;
pub const XENMEMF_EXACT_NODE_REQUEST: u32 = 1 << 17;
pub const XENMEMF_VNODE: u32 = 1 << 18;

wire! {
    XenMemoryReservation = 32 {
        extent_start: u64, nr_extents: u64, extent_order: u32, mem_flags: u32, domid: u16, pad0: [u16; 3],
    }
    XenMemoryDomain = 2 { domid: u16, }
    XenAddToPhysmap = 24 { domid: u16, size: u16, space: u32, idx: u64, gpfn: u64, }
    XenAddToPhysmapBatch = 32 {
        domid: u16, space: u16, size: u16, foreign_domid: u16, idxs: u64, gpfns: u64, errs: u64,
    }
    XenRemoveFromPhysmap = 16 { domid: u16, pad0: [u16; 3], gpfn: u64, }
    XenMemoryMap = 16 { nr_entries: u32, pad0: u32, buffer: u64, }
}
