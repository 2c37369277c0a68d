//! The layout of the guest's memory (`memory.h`).
#![allow(unsafe_code, reason = "these calls change what lies behind an address")]

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::abi::{
    XENMAPSPACE_GRANT_TABLE, XENMAPSPACE_SHARED_INFO, XENMEM_ADD_TO_PHYSMAP, XENMEM_MEMORY_MAP,
    XenAddToPhysmap, XenMemoryMap,
};
use crate::{DomId, Errno, Gfn, Hypercall, HypercallNr};

/// Pages of Xen's that a guest can have in its memory (`XENMAPSPACE_*`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(transparent)]
pub struct PhysmapSpace(pub u32);

impl PhysmapSpace {
    /// The `shared_info` page; there is one, number 0.
    pub const SHARED_INFO: Self = Self(XENMAPSPACE_SHARED_INFO);
    /// Frames of the grant table.
    pub const GRANT_TABLE: Self = Self(XENMAPSPACE_GRANT_TABLE);
}

/// Puts page `index` of `space` at frame `gfn` of the calling domain.
///
/// The memory that was at `gfn` is lost: Xen frees it.
///
/// # Errors
/// `EINVAL` for a page that does not exist, `ENOMEM`, `EPERM`.
///
/// # Safety
/// Nothing else uses the memory at `gfn`, then or later: what is read there is Xen's, and changes at any time.
pub unsafe fn add_to_physmap(
    xen: &impl Hypercall,
    space: PhysmapSpace,
    index: u64,
    gfn: Gfn,
) -> Result<(), Errno> {
    let argument = XenAddToPhysmap { domid: DomId::SELF.0, size: 0, space: space.0, idx: index, gpfn: gfn.0 };
    let pointer = (&raw const argument).expose_provenance();
    // SAFETY: the call reads the structure; the caller vouches for what it does to the memory at `gfn`.
    Errno::check(unsafe { xen.hypercall(HypercallNr::MEMORY_OP, [XENMEM_ADD_TO_PHYSMAP, pointer, 0, 0, 0]) })
        .map(drop)
}

/// One range of the memory map that the toolstack, or for the first domain Xen, made (an e820 entry).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed(4))]
pub struct MemoryRange {
    /// Where it starts, in bytes.
    pub start: u64,
    /// How many bytes it has.
    pub size: u64,
    /// What is there: 1 is RAM.
    pub kind: u32,
}

static_assertions::const_assert_eq!(size_of::<MemoryRange>(), 20);

/// The calling domain's memory map, as much of it as fits; answers how many ranges were filled in (x86 only).
///
/// # Errors
/// `ENOSYS` when nobody made a map.
pub fn memory_map(xen: &impl Hypercall, ranges: &mut [MemoryRange]) -> Result<usize, Errno> {
    let room = u32::try_from(ranges.len()).unwrap_or(u32::MAX);
    let mut argument =
        XenMemoryMap { nr_entries: room, pad0: 0, buffer: ranges.as_mut_ptr().expose_provenance() as u64 };
    let pointer = (&raw mut argument).expose_provenance();
    // SAFETY: the call reads and writes the structure and at most `nr_entries` entries of 20 bytes, which are in
    // `ranges`, exclusively borrowed meanwhile.
    Errno::check(unsafe { xen.hypercall(HypercallNr::MEMORY_OP, [XENMEM_MEMORY_MAP, pointer, 0, 0, 0]) })?;
    Ok(argument.nr_entries.min(room) as usize)
}
