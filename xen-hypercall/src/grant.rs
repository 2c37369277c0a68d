//! Grant tables, as bare calls (`grant_table.h`). The crate `xen-gnttab` makes owning pages of them.
//!
//! Unless a function says otherwise, all guests have these calls: PV, HVM and PVH on x86, and those on Arm, in every Xen
//! since 4.0 (on Arm 4.3).
#![allow(unsafe_code, reason = "names the structure of each command")]

use crate::abi::*;
use crate::{DomId, Errno, Gfn, Hypercall, HypercallNr};

/// Runs a command on one structure.
///
/// # Safety
/// `command` reads and fills exactly one `T`.
unsafe fn one<T>(xen: &(impl Hypercall + ?Sized), command: usize, argument: &mut T) -> Result<usize, Errno> {
    // SAFETY: the caller vouches for it.
    unsafe { each(xen, command, core::slice::from_mut(argument)) }
}

/// Runs a command on several structures.
///
/// # Safety
/// `command` reads and fills so many `T`; what else it does is right.
unsafe fn each<T>(
    xen: &(impl Hypercall + ?Sized),
    command: usize,
    arguments: &mut [T],
) -> Result<usize, Errno> {
    let pointer = arguments.as_mut_ptr().expose_provenance();
    let args = [command, pointer, arguments.len(), 0, 0];
    // SAFETY: the caller vouches that these `T`, exclusively borrowed here, are all that is read and written.
    Errno::check(unsafe { xen.hypercall(HypercallNr::GRANT_TABLE_OP, args) })
}

/// The size of the table and its limit, in frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Size {
    /// Frames that the table has.
    pub frames: u32,
    /// Frames that the table may grow to.
    pub max_frames: u32,
}

/// Asks for the size of the calling domain's table.
///
/// # Errors
/// The hypercall's own, or `EINVAL` when the status is not `GNTST_okay`.
pub fn query_size(xen: &(impl Hypercall + ?Sized)) -> Result<Size, Errno> {
    let mut op = GnttabQuerySize { dom: DomId::SELF.0, ..Default::default() };
    // SAFETY: GNTTABOP_query_size reads and fills a `gnttab_query_size`.
    unsafe { one(xen, GNTTABOP_QUERY_SIZE, &mut op) }?;
    if op.status != 0 {
        return Err(Errno::EINVAL);
    }
    Ok(Size { frames: op.nr_frames, max_frames: op.max_nr_frames })
}

/// The version of the table's layout in force, 1 or 2.
///
/// # Errors
/// `ENOSYS` where Xen knows version 1 alone.
pub fn get_version(xen: &(impl Hypercall + ?Sized)) -> Result<u32, Errno> {
    let mut op = GnttabGetVersion { dom: DomId::SELF.0, ..Default::default() };
    // SAFETY: GNTTABOP_get_version reads and fills a `gnttab_get_version`.
    unsafe { one(xen, GNTTABOP_GET_VERSION, &mut op) }?;
    Ok(op.version)
}

/// Chooses the version of the table's layout. Returns the version in force afterwards.
///
/// # Errors
/// `EBUSY` while grants are in use, `ENOSYS` where Xen does not have that version.
///
/// # Safety
/// No grant is in force, and nobody reads or writes the table in the other layout any more.
pub unsafe fn set_version(xen: &(impl Hypercall + ?Sized), version: u32) -> Result<u32, Errno> {
    let mut op = GnttabSetVersion { version };
    // SAFETY: GNTTABOP_set_version reads and fills a `gnttab_set_version`; the caller vouches for the table.
    unsafe { one(xen, GNTTABOP_SET_VERSION, &mut op) }?;
    Ok(op.version)
}

/// Copies bytes between granted pages and the domain's own, each copy within one page at both ends
/// (`GNTTABOP_copy`). Xen puts the outcome of each copy into its `status` (`GNTST_*`).
///
/// # Errors
/// `EFAULT`; single copies may have been done then.
///
/// # Safety
/// Nothing in this domain has references to the bytes that copies into its own frames write to, and none has exclusive
/// ones to those that are read.
pub unsafe fn copy(xen: &(impl Hypercall + ?Sized), copies: &mut [GnttabCopy]) -> Result<(), Errno> {
    // SAFETY: GNTTABOP_copy reads and fills `gnttab_copy`s; the caller vouches for the memory they name.
    unsafe { each(xen, GNTTABOP_COPY, copies) }.map(drop)
}

/// Maps pages that other domains granted at guest-physical addresses of this one (`GNTTABOP_map_grant_ref`). Xen
/// puts the outcome of each into its `status`, and into `handle` the number that [`unmap`] takes.
///
/// # Errors
/// `EFAULT`; single pages may be mapped then.
///
/// # Safety
/// `host_addr` is in room that was reserved for this, see [`GrantRoom`](crate::GrantRoom), and nothing is mapped there. The
/// granter is another domain: on x86, Xen moves a page that this one granted itself, and there is nothing any more where the
/// page was.
pub unsafe fn map(xen: &(impl Hypercall + ?Sized), maps: &mut [GnttabMapGrantRef]) -> Result<(), Errno> {
    // SAFETY: GNTTABOP_map_grant_ref reads and fills `gnttab_map_grant_ref`s; the caller vouches for the room.
    unsafe { each(xen, GNTTABOP_MAP_GRANT_REF, maps) }.map(drop)
}

/// Removes mappings that [`map`] made (`GNTTABOP_unmap_grant_ref`). Xen puts the outcome of each into its `status`. When the
/// call returns, no processor has a translation of them any more.
///
/// # Errors
/// `EFAULT`; single pages may be unmapped then.
///
/// # Safety
/// Nobody uses the mapped memory any more.
pub unsafe fn unmap(
    xen: &(impl Hypercall + ?Sized),
    unmaps: &mut [GnttabUnmapGrantRef],
) -> Result<(), Errno> {
    // SAFETY: GNTTABOP_unmap_grant_ref reads and fills `gnttab_unmap_grant_ref`s; the caller vouches for the memory.
    unsafe { each(xen, GNTTABOP_UNMAP_GRANT_REF, unmaps) }.map(drop)
}

/// Asks for a table of at least so many frames and for where they are, for PV guests. An HVM or PVH guest has them where
/// it puts them itself by [`memory::add_to_physmap`](crate::memory::add_to_physmap).
///
/// # Errors
/// The hypercall's own, `EINVAL` when the status is not `GNTST_okay`, and when `frames` is longer
/// than Xen's numbers.
pub fn setup_table(xen: &(impl Hypercall + ?Sized), frames: &mut [Gfn]) -> Result<(), Errno> {
    let mut op = GnttabSetupTable {
        dom: DomId::SELF.0,
        nr_frames: u32::try_from(frames.len()).map_err(|_| Errno::EINVAL)?,
        frame_list: frames.as_mut_ptr().expose_provenance() as u64,
        ..Default::default()
    };
    // SAFETY: GNTTABOP_setup_table reads and fills a `gnttab_setup_table`, and writes `nr_frames` frames to the list,
    // which is exclusively borrowed.
    unsafe { one(xen, GNTTABOP_SETUP_TABLE, &mut op) }?;
    okay(op.status)
}

/// Where the frames of the status words of a table of version 2 are, for PV guests, as for [`setup_table`].
///
/// # Errors
/// As for [`setup_table`]; `ENOSYS` for HVM and PVH guests on x86.
pub fn status_frames(xen: &(impl Hypercall + ?Sized), frames: &mut [Gfn]) -> Result<(), Errno> {
    let mut op = GnttabGetStatusFrames {
        dom: DomId::SELF.0,
        nr_frames: u32::try_from(frames.len()).map_err(|_| Errno::EINVAL)?,
        status: 0,
        frame_list: frames.as_mut_ptr().expose_provenance() as u64,
    };
    // SAFETY: GNTTABOP_get_status_frames reads and fills a `gnttab_get_status_frames`, and writes `nr_frames` frames to
    // the list, which is exclusively borrowed.
    unsafe { one(xen, GNTTABOP_GET_STATUS_FRAMES, &mut op) }?;
    okay(op.status)
}

/// Exchanges two entries of the calling domain's table, neither of which is in use by others: each reference then
/// means what the other meant. Since Xen 4.2.
///
/// # Errors
/// `EINVAL` when the status is not `GNTST_okay`: a reference is out of range or in use.
///
/// # Safety
/// The owners of both references expect the exchange; nobody writes to one of the entries meanwhile.
pub unsafe fn swap(xen: &(impl Hypercall + ?Sized), a: u32, b: u32) -> Result<(), Errno> {
    let mut op = GnttabSwapGrantRef { ref_a: a, ref_b: b, ..Default::default() };
    // SAFETY: GNTTABOP_swap_grant_ref reads and fills a `gnttab_swap_grant_ref`; the caller vouches for the entries.
    unsafe { one(xen, GNTTABOP_SWAP_GRANT_REF, &mut op) }?;
    okay(op.status)
}

/// What to do with cached data (`GNTTAB_CACHE_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Cache {
    /// Write it to memory.
    Clean,
    /// Write it to memory and forget it.
    CleanInvalidate,
}

/// Cleans the processor's caches of part of a page, `length` bytes from `offset` on, for devices that see memory only. `machine` is the
/// page's address on the machine: the `dev_bus_addr` that [`map`] told when it mapped the page, which is another domain's or one of this
/// domain's own. Arm, since Xen 4.5. On x86 PV guests alone had it, until Xen 4.20.
///
/// A page cannot be named by a grant reference: Xen's header has that, no version of Xen does it.
///
/// # Errors
/// `ENOSYS` on x86 (for PV guests since Xen 4.21), `EINVAL` for a range that leaves the page or an address without memory, `EPERM` for a
/// page of Xen's, `ENODEV` for one of a domain whose grants this domain has not mapped, `EFAULT`.
pub fn flush_cache(
    xen: &(impl Hypercall + ?Sized),
    machine: u64,
    offset: u16,
    length: u16,
    what: Cache,
) -> Result<(), Errno> {
    let op = match what {
        Cache::Clean => GNTTAB_CACHE_CLEAN,
        // To forget without writing would lose what others wrote: Xen lets nobody do that to part of a line anyhow.
        Cache::CleanInvalidate => GNTTAB_CACHE_CLEAN | GNTTAB_CACHE_INVAL,
    };
    let mut op = GnttabCacheFlush { address_or_reference: machine, offset, length, op };
    // SAFETY: GNTTABOP_cache_flush reads a `gnttab_cache_flush`. Cleaning a cache changes no value that a program sees.
    unsafe { one(xen, GNTTABOP_CACHE_FLUSH, &mut op) }.map(drop)
}

fn okay(status: i16) -> Result<(), Errno> {
    if status == 0 { Ok(()) } else { Err(Errno::EINVAL) }
}
