//! The layout of the guest's memory (`memory.h`).
#![allow(unsafe_code, reason = "these calls change what lies behind an address")]

use crate::abi::{XENMAPSPACE_GRANT_TABLE, XENMAPSPACE_SHARED_INFO, XENMEM_ADD_TO_PHYSMAP, XenAddToPhysmap};
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
