//! Structures and numbers of the hypercalls, as Xen's public headers define them.
//!
//! Names follow the headers: `struct evtchn_send` is [`EvtchnSend`], `SCHEDOP_block` is [`SCHEDOP_BLOCK`]. Fields
//! named `pad*` are holes that the C compiler leaves, made explicit so that no byte is ever undefined.
#![allow(missing_docs, reason = "the headers named with each section define these")]
#![allow(missing_debug_implementations, reason = "zerocopy's derives make helper types without it")]

use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

macro_rules! wire {
    ($($name:ident = $size:literal { $($field:ident: $type:ty,)* })*) => {$(
        #[doc = concat!("`", stringify!($name), "` of the headers, ", stringify!($size), " bytes.")]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name { $(pub $field: $type,)* }
        const_assert_eq!(size_of::<$name>(), $size);
    )*};
}

// sched.h
pub const SCHEDOP_YIELD: usize = 0;
pub const SCHEDOP_BLOCK: usize = 1;
pub const SCHEDOP_SHUTDOWN: usize = 2;
pub const SCHEDOP_POLL: usize = 3;

// version.h
pub const XENVER_VERSION: usize = 0;
pub const XENVER_EXTRAVERSION: usize = 1;
pub const XENVER_CAPABILITIES: usize = 3;
pub const XENVER_GET_FEATURES: usize = 6;
pub const XENVER_GUEST_HANDLE: usize = 8;

// console_io of xen.h
pub const CONSOLEIO_WRITE: usize = 0;
pub const CONSOLEIO_READ: usize = 1;

// vcpu.h
pub const VCPUOP_IS_UP: usize = 3;
pub const VCPUOP_SET_PERIODIC_TIMER: usize = 6;
pub const VCPUOP_STOP_PERIODIC_TIMER: usize = 7;
pub const VCPUOP_SET_SINGLESHOT_TIMER: usize = 8;
pub const VCPUOP_STOP_SINGLESHOT_TIMER: usize = 9;
pub const VCPU_SSHOTTMR_FUTURE: u32 = 1;

// memory.h
pub const XENMEM_ADD_TO_PHYSMAP: usize = 7;
pub const XENMEM_MEMORY_MAP: usize = 9;
pub const XENMAPSPACE_SHARED_INFO: u32 = 0;
pub const XENMAPSPACE_GRANT_TABLE: u32 = 1;
/// With the index: a frame of status words, not of entries (`XENMAPIDX_grant_table_status`).
pub const XENMAPIDX_GRANT_TABLE_STATUS: u64 = 0x8000_0000;

// hvm/hvm_op.h
pub const HVMOP_SET_PARAM: usize = 0;
pub const HVMOP_GET_PARAM: usize = 1;
pub const HVMOP_SET_EVTCHN_UPCALL_VECTOR: usize = 23;

// event_channel.h
pub const EVTCHNOP_BIND_INTERDOMAIN: usize = 0;
pub const EVTCHNOP_BIND_VIRQ: usize = 1;
pub const EVTCHNOP_CLOSE: usize = 3;
pub const EVTCHNOP_SEND: usize = 4;
pub const EVTCHNOP_STATUS: usize = 5;
pub const EVTCHNOP_ALLOC_UNBOUND: usize = 6;
pub const EVTCHNOP_BIND_IPI: usize = 7;
pub const EVTCHNOP_BIND_VCPU: usize = 8;
pub const EVTCHNOP_UNMASK: usize = 9;
pub const EVTCHNOP_RESET: usize = 10;
pub const EVTCHNOP_INIT_CONTROL: usize = 11;
pub const EVTCHNOP_EXPAND_ARRAY: usize = 12;
pub const EVTCHNOP_SET_PRIORITY: usize = 13;

// grant_table.h
pub const GNTTABOP_MAP_GRANT_REF: usize = 0;
pub const GNTTABOP_UNMAP_GRANT_REF: usize = 1;
pub const GNTTABOP_COPY: usize = 5;
pub const GNTTABOP_QUERY_SIZE: usize = 6;
pub const GNTTABOP_SET_VERSION: usize = 8;
pub const GNTTABOP_GET_VERSION: usize = 10;
/// The mapping is for the guest's processors (`GNTMAP_host_map`), as all are here.
pub const GNTMAP_HOST_MAP: u32 = 1 << 1;
pub const GNTMAP_READONLY: u32 = 1 << 2;
/// The source is a reference and not a frame of the caller's own (`GNTCOPY_source_gref`).
pub const GNTCOPY_SOURCE_GREF: u16 = 1 << 0;
pub const GNTCOPY_DEST_GREF: u16 = 1 << 1;

wire! {
    SchedShutdown = 4 { reason: u32, }
    SchedPoll = 24 { ports: u64, nr_ports: u32, pad0: u32, timeout: u64, }
    XenFeatureInfo = 8 { submap_idx: u32, submap: u32, }
    VcpuSetPeriodicTimer = 8 { period_ns: u64, }
    VcpuSetSingleshotTimer = 16 { timeout_abs_ns: u64, flags: u32, pad0: u32, }
    XenAddToPhysmap = 24 { domid: u16, size: u16, space: u32, idx: u64, gpfn: u64, }
    XenHvmParam = 16 { domid: u16, pad0: u16, index: u32, value: u64, }
    XenHvmEvtchnUpcallVector = 8 { vcpu: u32, vector: u8, pad0: [u8; 3], }
    EvtchnAllocUnbound = 8 { dom: u16, remote_dom: u16, port: u32, }
    EvtchnBindInterdomain = 12 { remote_dom: u16, pad0: u16, remote_port: u32, local_port: u32, }
    EvtchnBindVirq = 12 { virq: u32, vcpu: u32, port: u32, }
    EvtchnBindIpi = 8 { vcpu: u32, port: u32, }
    EvtchnClose = 4 { port: u32, }
    EvtchnSend = 4 { port: u32, }
    EvtchnStatus = 24 { dom: u16, pad0: u16, port: u32, status: u32, vcpu: u32, remote_dom: u16, pad1: u16, remote_port: u32, }
    EvtchnBindVcpu = 8 { port: u32, vcpu: u32, }
    EvtchnUnmask = 4 { port: u32, }
    EvtchnReset = 2 { dom: u16, }
    EvtchnInitControl = 24 { control_gfn: u64, offset: u32, vcpu: u32, link_bits: u8, pad0: [u8; 7], }
    EvtchnExpandArray = 8 { array_gfn: u64, }
    EvtchnSetPriority = 8 { port: u32, priority: u32, }
    GnttabQuerySize = 16 { dom: u16, pad0: u16, nr_frames: u32, max_nr_frames: u32, status: i16, pad1: u16, }
    GnttabMapGrantRef = 32 { host_addr: u64, flags: u32, reference: u32, dom: u16, status: i16, handle: u32, dev_bus_addr: u64, }
    GnttabUnmapGrantRef = 24 { host_addr: u64, dev_bus_addr: u64, handle: u32, status: i16, pad0: u16, }
    GnttabSetVersion = 4 { version: u32, }
    GnttabGetVersion = 8 { dom: u16, pad0: u16, version: u32, }
    GnttabCopyPtr = 16 { reference_or_gmfn: u64, domid: u16, offset: u16, pad0: u32, }
    GnttabCopy = 40 { source: GnttabCopyPtr, dest: GnttabCopyPtr, len: u16, flags: u16, status: i16, pad0: u16, }
}

const_assert_eq!(core::mem::offset_of!(SchedPoll, timeout), 16);
const_assert_eq!(core::mem::offset_of!(XenAddToPhysmap, gpfn), 16);
const_assert_eq!(core::mem::offset_of!(XenHvmParam, value), 8);
const_assert_eq!(core::mem::offset_of!(EvtchnStatus, remote_port), 20);
const_assert_eq!(core::mem::offset_of!(GnttabMapGrantRef, handle), 20);
const_assert_eq!(core::mem::offset_of!(GnttabUnmapGrantRef, status), 20);
const_assert_eq!(core::mem::offset_of!(GnttabQuerySize, status), 12);
const_assert_eq!(core::mem::offset_of!(GnttabCopy, status), 36);

/// Where things stand in the `shared_info` page and its parts (`xen.h`, `arch-x86/xen.h`, `arch-arm.h`), in bytes.
///
/// Both architectures' layouts are here whatever the target is, so that each can be compared with Xen's headers.
pub mod shared_info {
    macro_rules! layout {
        ($arch:ident, $name:literal: $vcpus:literal vCPUs of $size:literal bytes, time at $time:literal) => {
            #[doc = concat!("The layout that guests on ", $name, " see.")]
            pub mod $arch {
                /// How many vCPUs have their `vcpu_info` in this page (`XEN_LEGACY_MAX_VCPUS`).
                pub const VCPUS: usize = $vcpus;
                /// Size of a `vcpu_info`.
                pub const VCPU_INFO_SIZE: usize = $size;
                /// `vcpu_info.time`
                pub const VCPU_TIME: usize = $time;
                pub const EVTCHN_PENDING: usize = VCPUS * VCPU_INFO_SIZE;
                pub const EVTCHN_MASK: usize = EVTCHN_PENDING + 512;
                pub const WC_VERSION: usize = EVTCHN_MASK + 512;
                pub const WC_SEC: usize = WC_VERSION + 4;
                pub const WC_NSEC: usize = WC_VERSION + 8;
                pub const WC_SEC_HI: usize = WC_VERSION + 12;
            }
        };
    }

    layout!(x86_64, "x86-64": 32 vCPUs of 64 bytes, time at 32);
    layout!(aarch64, "arm64": 1 vCPUs of 48 bytes, time at 16);

    #[cfg(target_arch = "aarch64")]
    pub use aarch64::*;
    #[cfg(not(target_arch = "aarch64"))]
    pub use x86_64::*;

    pub const EVTCHN_UPCALL_PENDING: usize = 0;
    /// PV guests on x86 alone have it; elsewhere a byte of padding.
    pub const EVTCHN_UPCALL_MASK: usize = 1;
    pub const EVTCHN_PENDING_SEL: usize = 8;

    /// `vcpu_time_info`
    pub const TIME_VERSION: usize = 0;
    pub const TIME_TSC_TIMESTAMP: usize = 8;
    pub const TIME_SYSTEM_TIME: usize = 16;
    pub const TIME_TSC_TO_SYSTEM_MUL: usize = 24;
    /// `tsc_shift` and `flags` are bytes of the word here.
    pub const TIME_SHIFT_AND_FLAGS: usize = 28;
}

/// `struct xen_memory_map`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct XenMemoryMap {
    /// Entries that fit the buffer; then those that are in it.
    pub nr_entries: u32,
    /// Where the entries go.
    pub buffer: u64,
}
