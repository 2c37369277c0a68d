//! `version.h` and `features.h`

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub const XENVER_VERSION: usize = 0;
pub const XENVER_EXTRAVERSION: usize = 1;
pub const XENVER_COMPILE_INFO: usize = 2;
pub const XENVER_CAPABILITIES: usize = 3;
pub const XENVER_CHANGESET: usize = 4;
pub const XENVER_PLATFORM_PARAMETERS: usize = 5;
pub const XENVER_GET_FEATURES: usize = 6;
pub const XENVER_PAGESIZE: usize = 7;
pub const XENVER_GUEST_HANDLE: usize = 8;
pub const XENVER_COMMANDLINE: usize = 9;
pub const XENVER_BUILD_ID: usize = 10;
/// Since Xen 4.20, as are the three below.
pub const XENVER_EXTRAVERSION2: usize = 11;
pub const XENVER_CAPABILITIES2: usize = 12;
pub const XENVER_CHANGESET2: usize = 13;
pub const XENVER_COMMANDLINE2: usize = 14;

// Numbers of bits.
pub const XENFEAT_WRITABLE_PAGE_TABLES: u32 = 0;
pub const XENFEAT_WRITABLE_DESCRIPTOR_TABLES: u32 = 1;
pub const XENFEAT_AUTO_TRANSLATED_PHYSMAP: u32 = 2;
pub const XENFEAT_SUPERVISOR_MODE_KERNEL: u32 = 3;
pub const XENFEAT_PAE_PGDIR_ABOVE_4GB: u32 = 4;
pub const XENFEAT_MMU_PT_UPDATE_PRESERVE_AD: u32 = 5;
pub const XENFEAT_HIGHMEM_ASSIST: u32 = 6;
pub const XENFEAT_GNTTAB_MAP_AVAIL_BITS: u32 = 7;
pub const XENFEAT_HVM_CALLBACK_VECTOR: u32 = 8;
pub const XENFEAT_HVM_SAFE_PVCLOCK: u32 = 9;
pub const XENFEAT_HVM_PIRQS: u32 = 10;
pub const XENFEAT_DOM0: u32 = 11;
pub const XENFEAT_MEMORY_OP_VNODE_SUPPORTED: u32 = 13;
pub const XENFEAT_ARM_SMCCC_SUPPORTED: u32 = 14;
pub const XENFEAT_LINUX_RSDP_UNRESTRICTED: u32 = 15;
pub const XENFEAT_NOT_DIRECT_MAPPED: u32 = 16;
pub const XENFEAT_DIRECT_MAPPED: u32 = 17;
/// Since Xen 4.18.
pub const XENFEAT_RUNSTATE_PHYS_AREA: u32 = 18;
/// Since Xen 4.18.
pub const XENFEAT_VCPU_TIME_PHYS_AREA: u32 = 19;
/// Since Xen 4.19.
pub const XENFEAT_DM_MSIX_ALL_WRITES: u32 = 20;

wire! {
    XenPlatformParameters = 8 { virt_start: u64, }
    XenFeatureInfo = 8 { submap_idx: u32, submap: u32, }
}

/// `XenCompileInfo` of the headers, 144 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct XenCompileInfo {
    pub compiler: [u8; 64],
    pub compile_by: [u8; 16],
    pub compile_domain: [u8; 32],
    pub compile_date: [u8; 32],
}
