//! The layout of the guest's memory (`memory.h`).
//!
//! Unless a function says otherwise, all guests have these calls: PV, HVM and PVH on x86, and those on Arm, in every Xen
//! since 4.0 (on Arm 4.3).
#![allow(unsafe_code, reason = "these calls change what lies behind an address")]

use core::ops::BitOr;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::abi::*;
use crate::call::{Command, Plain, numbers, run};
use crate::{DomId, Errno, Gfn, Hypercall, HypercallNr};

/// Pages of Xen's that a guest can have in its memory (`XENMAPSPACE_*`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(transparent)]
pub struct PhysmapSpace(pub u32);

impl PhysmapSpace {
    /// The `shared_info` page; there is one, number 0.
    pub const SHARED_INFO: Self = Self(XENMAPSPACE_SHARED_INFO);
    /// Frames of the grant table; with `XENMAPIDX_GRANT_TABLE_STATUS` in the index, those of its status words.
    pub const GRANT_TABLE: Self = Self(XENMAPSPACE_GRANT_TABLE);
    /// A page that the guest has already: it moves.
    pub const GMFN: Self = Self(XENMAPSPACE_GMFN);
    /// A page of another domain, for the privileged domain; by [`add_to_physmap_batch`] only.
    pub const GMFN_FOREIGN: Self = Self(XENMAPSPACE_GMFN_FOREIGN);
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
    xen: &(impl Hypercall + ?Sized),
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

/// Puts several pages of `space` at frames of the calling domain, `indexes[i]` at `frames[i]`; the result of each is put
/// in `results`, zero or a negated error number. `foreign` names the other domain of [`PhysmapSpace::GMFN_FOREIGN`].
/// Since Xen 4.4 on x86.
///
/// # Errors
/// `EINVAL` when the slices are not equally long, `E2BIG` for more than 65535, `EPERM`, `EOPNOTSUPP` for a space that
/// this call does not take, and the first error of a single page from some versions of Xen.
///
/// # Safety
/// As for [`add_to_physmap`], for each of the frames.
pub unsafe fn add_to_physmap_batch(
    xen: &(impl Hypercall + ?Sized),
    space: PhysmapSpace,
    foreign: Option<DomId>,
    indexes: &[u64],
    frames: &[Gfn],
    results: &mut [i32],
) -> Result<(), Errno> {
    if indexes.len() != frames.len() || indexes.len() != results.len() {
        return Err(Errno::EINVAL);
    }
    let argument = XenAddToPhysmapBatch {
        domid: DomId::SELF.0,
        space: u16::try_from(space.0).map_err(|_| Errno::EINVAL)?,
        size: u16::try_from(indexes.len()).map_err(|_| Errno::E2BIG)?,
        foreign_domid: foreign.map_or(0, |domain| domain.0),
        idxs: indexes.as_ptr().expose_provenance() as u64,
        gpfns: frames.as_ptr().expose_provenance() as u64,
        errs: results.as_mut_ptr().expose_provenance() as u64,
    };
    let pointer = (&raw const argument).expose_provenance();
    let args = [XENMEM_ADD_TO_PHYSMAP_BATCH, pointer, 0, 0, 0];
    // SAFETY: the call reads the structure and `size` indexes and frames, and writes `size` results, all borrowed
    // here; the caller vouches for what it does to the memory at the frames.
    Errno::check(unsafe { xen.hypercall(HypercallNr::MEMORY_OP, args) }).map(drop)
}

/// Takes the page at a frame away from there: a hole is left. Memory goes back to Xen; a page of Xen's (grant table
/// frames) stays its.
///
/// # Errors
/// `ENOENT` when nothing is there.
///
/// # Safety
/// Nobody uses the memory at `gfn` any more.
pub unsafe fn remove_from_physmap(xen: &(impl Hypercall + ?Sized), gfn: Gfn) -> Result<(), Errno> {
    let argument = XenRemoveFromPhysmap { domid: DomId::SELF.0, pad0: [0; 3], gpfn: gfn.0 };
    let pointer = (&raw const argument).expose_provenance();
    // SAFETY: the call reads the structure; the caller vouches for the memory at `gfn`.
    Errno::check(unsafe {
        xen.hypercall(HypercallNr::MEMORY_OP, [XENMEM_REMOVE_FROM_PHYSMAP, pointer, 0, 0, 0])
    })
    .map(drop)
}

/// Where memory is to come from (`XENMEMF_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MemFlags(u32);

impl MemFlags {
    /// Anywhere.
    pub const NONE: Self = Self(0);
    /// A frame gets its memory when it is first used; for what a domain starts with.
    pub const POPULATE_ON_DEMAND: Self = Self(XENMEMF_POPULATE_ON_DEMAND);
    /// From the node named and from no other.
    pub const EXACT_NODE: Self = Self(XENMEMF_EXACT_NODE_REQUEST);
    /// The node named is one of the guest's own.
    pub const VNODE: Self = Self(XENMEMF_VNODE);

    /// At machine addresses of so many bits at most, for devices that reach no further.
    pub const fn address_bits(bits: u8) -> Self {
        Self(bits as u32)
    }

    /// From a NUMA node. 255 means none.
    pub const fn node(node: u8) -> Self {
        Self(((node as u32 + 1) & 0xFF) << 8)
    }

    /// The flags as Xen takes them.
    pub const fn bits(self) -> u32 {
        self.0
    }
}

impl BitOr for MemFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Hands a list of extents to Xen. Returns the number of extents done.
///
/// # Safety
/// What `command` does to the memory at the extents is right, and the list is valid for what it does with it.
unsafe fn reservation(
    xen: &(impl Hypercall + ?Sized),
    command: usize,
    (extents, count): (*mut Gfn, usize),
    order: u32,
    flags: MemFlags,
) -> Result<usize, Errno> {
    let argument = XenMemoryReservation {
        extent_start: extents.expose_provenance() as u64,
        nr_extents: count as u64,
        extent_order: order,
        mem_flags: flags.0,
        domid: DomId::SELF.0,
        pad0: [0; 3],
    };
    let pointer = (&raw const argument).expose_provenance();
    // SAFETY: the call reads the structure and `nr_extents` frames at `extent_start`; the caller vouches for the rest.
    let done = Errno::check(unsafe { xen.hypercall(HypercallNr::MEMORY_OP, [command, pointer, 0, 0, 0]) })?;
    Ok(done.min(count))
}

/// Puts fresh memory at frames of the calling domain: `2^order` pages from each of `extents` on, which are multiples of
/// that. Returns the number of extents done, in order. Fewer than asked for: Xen has no more memory, or the domain has
/// reached [`maximum_reservation`]. A balloon driver deflates by this call.
///
/// The list must be writable, since Xen may put machine frames there (it does for PV guests).
///
/// # Errors
/// None that Xen documents.
///
/// # Safety
/// Nothing is at these frames that anybody uses.
pub unsafe fn populate_physmap(
    xen: &(impl Hypercall + ?Sized),
    extents: &mut [Gfn],
    order: u32,
    flags: MemFlags,
) -> Result<usize, Errno> {
    let list = (extents.as_mut_ptr(), extents.len());
    // SAFETY: the list is exclusively borrowed; the caller vouches for the frames.
    unsafe { reservation(xen, XENMEM_POPULATE_PHYSMAP, list, order, flags) }
}

/// Gives memory back to Xen: `2^order` pages from each of `extents` on. Returns the number of extents done, in order.
/// Fewer than asked for: the next one is not memory of this domain. A balloon driver inflates by this call.
///
/// # Errors
/// None that Xen documents.
///
/// # Safety
/// Nobody uses this memory any more.
pub unsafe fn decrease_reservation(
    xen: &(impl Hypercall + ?Sized),
    extents: &[Gfn],
    order: u32,
) -> Result<usize, Errno> {
    let list = (extents.as_ptr().cast_mut(), extents.len());
    // SAFETY: XENMEM_decrease_reservation only reads the list; the caller vouches for the frames.
    unsafe { reservation(xen, XENMEM_DECREASE_RESERVATION, list, order, MemFlags::NONE) }
}

macro_rules! of_domain {
    ($($(#[$doc:meta])* $name:ident, $wrapper:ident = $cmd:ident;)*) => {$(
        #[repr(transparent)]
        struct $wrapper(#[allow(dead_code, reason = "Xen reads it")] XenMemoryDomain);

        // SAFETY: the command reads a `xen_memory_domain` and writes no memory.
        unsafe impl Command for $wrapper {
            const NR: HypercallNr = HypercallNr::MEMORY_OP;
            const CMD: usize = $cmd;
        }

        $(#[$doc])*
        ///
        /// # Errors
        /// `ESRCH` for a domain that does not exist, `EPERM` for want of privilege over another domain; none for
        /// [`DomId::SELF`].
        pub fn $name(xen: &(impl Hypercall + ?Sized), domain: DomId) -> Result<usize, Errno> {
            run(xen, &mut $wrapper(XenMemoryDomain { domid: domain.0 }))
        }
    )*};
}

of_domain! {
    /// How many pages a domain has.
    current_reservation, Current = XENMEM_CURRENT_RESERVATION;
    /// How many pages a domain may have.
    maximum_reservation, Maximum = XENMEM_MAXIMUM_RESERVATION;
    /// The highest frame in use by a domain.
    maximum_gpfn, MaximumGpfn = XENMEM_MAXIMUM_GPFN;
}

/// The number behind the highest page of memory in the whole machine.
///
/// # Errors
/// None that Xen documents.
pub fn maximum_ram_page(xen: &(impl Hypercall + ?Sized)) -> Result<usize, Errno> {
    numbers(xen, Plain::MaximumRamPage, [0; 4])
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

/// Copies the calling domain's memory map, as much of it as fits. Returns the number of ranges filled in. x86 only.
///
/// # Errors
/// `ENOSYS` when nobody made a map.
pub fn memory_map(xen: &(impl Hypercall + ?Sized), ranges: &mut [MemoryRange]) -> Result<usize, Errno> {
    let room = u32::try_from(ranges.len()).unwrap_or(u32::MAX);
    let mut argument =
        XenMemoryMap { nr_entries: room, pad0: 0, buffer: ranges.as_mut_ptr().expose_provenance() as u64 };
    let pointer = (&raw mut argument).expose_provenance();
    // SAFETY: the call reads and writes the structure and at most `nr_entries` entries of 20 bytes, which are in
    // `ranges`, exclusively borrowed meanwhile.
    Errno::check(unsafe { xen.hypercall(HypercallNr::MEMORY_OP, [XENMEM_MEMORY_MAP, pointer, 0, 0, 0]) })?;
    Ok(argument.nr_entries.min(room) as usize)
}
