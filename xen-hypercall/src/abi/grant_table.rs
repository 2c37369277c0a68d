//! `grant_table.h`

pub const GNTTABOP_MAP_GRANT_REF: usize = 0;
pub const GNTTABOP_UNMAP_GRANT_REF: usize = 1;
pub const GNTTABOP_SETUP_TABLE: usize = 2;
pub const GNTTABOP_COPY: usize = 5;
pub const GNTTABOP_QUERY_SIZE: usize = 6;
pub const GNTTABOP_SET_VERSION: usize = 8;
pub const GNTTABOP_GET_STATUS_FRAMES: usize = 9;
pub const GNTTABOP_GET_VERSION: usize = 10;
pub const GNTTABOP_SWAP_GRANT_REF: usize = 11;
pub const GNTTABOP_CACHE_FLUSH: usize = 12;
/// The mapping is for the guest's processors (`GNTMAP_host_map`), as all are here.
pub const GNTMAP_HOST_MAP: u32 = 1 << 1;
pub const GNTMAP_READONLY: u32 = 1 << 2;
/// The source is a reference and not a frame of the caller's own (`GNTCOPY_source_gref`).
pub const GNTCOPY_SOURCE_GREF: u16 = 1 << 0;
pub const GNTCOPY_DEST_GREF: u16 = 1 << 1;
pub const GNTTAB_CACHE_CLEAN: u32 = 1 << 0;
pub const GNTTAB_CACHE_INVAL: u32 = 1 << 1;
/// The memory is named by a reference and not by its address (`GNTTAB_CACHE_SOURCE_GREF`).
pub const GNTTAB_CACHE_SOURCE_GREF: u32 = 1 << 31;

wire! {
    GnttabQuerySize = 16 { dom: u16, pad0: u16, nr_frames: u32, max_nr_frames: u32, status: i16, pad1: u16, }
    GnttabMapGrantRef = 32 { host_addr: u64, flags: u32, reference: u32, dom: u16, status: i16, handle: u32, dev_bus_addr: u64, }
    GnttabUnmapGrantRef = 24 { host_addr: u64, dev_bus_addr: u64, handle: u32, status: i16, pad0: u16, }
    GnttabSetVersion = 4 { version: u32, }
    GnttabGetVersion = 8 { dom: u16, pad0: u16, version: u32, }
    GnttabCopyPtr = 16 { reference_or_gmfn: u64, domid: u16, offset: u16, pad0: u32, }
    GnttabCopy = 40 { source: GnttabCopyPtr, dest: GnttabCopyPtr, len: u16, flags: u16, status: i16, pad0: u16, }
    GnttabSetupTable = 24 { dom: u16, pad0: u16, nr_frames: u32, status: i16, pad1: [u16; 3], frame_list: u64, }
    GnttabGetStatusFrames = 16 { nr_frames: u32, dom: u16, status: i16, frame_list: u64, }
    GnttabSwapGrantRef = 12 { ref_a: u32, ref_b: u32, status: i16, pad0: u16, }
    GnttabCacheFlush = 16 { address_or_reference: u64, offset: u16, length: u16, op: u32, }
}
