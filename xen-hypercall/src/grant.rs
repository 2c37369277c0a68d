//! Grant tables, as bare calls (`grant_table.h`). The crate `xen-gnttab` makes owning pages of them.
#![allow(unsafe_code, reason = "names the structure of each command")]

use crate::abi::{
    GNTTABOP_GET_VERSION, GNTTABOP_QUERY_SIZE, GNTTABOP_SET_VERSION, GnttabGetVersion, GnttabQuerySize,
    GnttabSetVersion,
};
use crate::{DomId, Errno, Hypercall, HypercallNr};

/// Runs a command on one structure.
///
/// # Safety
/// `command` reads and fills exactly one `T`.
unsafe fn one<T>(xen: &impl Hypercall, command: usize, argument: &mut T) -> Result<usize, Errno> {
    let pointer = core::ptr::from_mut(argument).expose_provenance();
    // SAFETY: the caller vouches that one `T`, exclusively borrowed here, is all that is read and written.
    Errno::check(unsafe { xen.hypercall(HypercallNr::GRANT_TABLE_OP, [command, pointer, 1, 0, 0]) })
}

/// How large the table is and may become, in frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size {
    /// Frames it has.
    pub frames: u32,
    /// Frames it may have.
    pub max_frames: u32,
}

/// Asks for the size of the calling domain's table.
///
/// # Errors
/// The hypercall's own, or `EINVAL` when Xen answers with a status other than `GNTST_okay`.
pub fn query_size(xen: &impl Hypercall) -> Result<Size, Errno> {
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
pub fn get_version(xen: &impl Hypercall) -> Result<u32, Errno> {
    let mut op = GnttabGetVersion { dom: DomId::SELF.0, ..Default::default() };
    // SAFETY: GNTTABOP_get_version reads and fills a `gnttab_get_version`.
    unsafe { one(xen, GNTTABOP_GET_VERSION, &mut op) }?;
    Ok(op.version)
}

/// Chooses the version of the table's layout; answers the one in force afterwards.
///
/// # Errors
/// `EBUSY` while grants are in use, `ENOSYS` where Xen does not have that version.
///
/// # Safety
/// No grant is in force, and nobody reads or writes the table in the other layout any more.
pub unsafe fn set_version(xen: &impl Hypercall, version: u32) -> Result<u32, Errno> {
    let mut op = GnttabSetVersion { version };
    // SAFETY: GNTTABOP_set_version reads and fills a `gnttab_set_version`; the caller vouches for the table.
    unsafe { one(xen, GNTTABOP_SET_VERSION, &mut op) }?;
    Ok(op.version)
}
