//! The calls that set a grant table up.
#![allow(unsafe_code)]

use core::ptr::NonNull;

use xen_hypercall::memory::{MemFlags, PhysmapSpace, add_to_physmap, populate_physmap, remove_from_physmap};
use xen_hypercall::{Errno, Gfn, Page, Platform, grant};

use crate::Error;

/// The version whose layout entries have now.
pub(crate) fn version(platform: &impl Platform) -> Result<u32, Error> {
    match grant::get_version(platform) {
        // A Xen without this operation has version 1 alone.
        Err(Errno::ENOSYS) => Ok(1),
        now => now.map_err(|errno| Error::Hypercall { operation: "GNTTABOP_get_version", errno }),
    }
}

/// Makes sure that entries have this version's layout. A domain starts with version 1, but a boot loader may have changed
/// that. Called before anything is granted. Answers how many frames there may be that others have mapped and take to be in
/// the other layout: they are to be taken from them.
pub(crate) fn require_version(platform: &impl Platform, version: u32) -> Result<u32, Error> {
    match self::version(platform)? {
        now if now == version => Ok(0),
        before => {
            // SAFETY: nothing of the table is mapped by us yet, and what an earlier kernel or table has mapped is taken from it
            // before anything is granted, so nobody writes to it in the other layout. If grants of theirs are in force Xen
            // answers EBUSY.
            match unsafe { grant::set_version(platform, version) } {
                Ok(now) if now == version => Ok(size(platform)?.frames),
                Ok(now) => Err(Error::Version(now)),
                // What Xen answers that has this version forbidden.
                Err(Errno::ENOSYS) => Err(Error::Version(before)),
                Err(errno) => Err(Error::Hypercall { operation: "GNTTABOP_set_version", errno }),
            }
        }
    }
}

/// Gives entries the layout again that they had before [`require_version`].
pub(crate) fn change_back(platform: &impl Platform, version: u32) {
    // SAFETY: who required the other version has granted nothing and gives up; what others have mapped is of this one.
    // Refused, it stays as it is: none of those can be told.
    let _ = unsafe { grant::set_version(platform, version) };
}

/// How many frames the table has and may have.
pub(crate) fn size(platform: &impl Platform) -> Result<grant::Size, Error> {
    grant::query_size(platform).map_err(|errno| Error::Hypercall { operation: "GNTTABOP_query_size", errno })
}

/// Takes a frame of the table away from where [`map_frame`] put it, and gives the page back to the platform if Xen has memory
/// to put there.
///
/// # Safety
/// The page is of [`map_frame`], and nobody uses it any more.
pub(crate) unsafe fn unmap_frame(platform: &impl Platform, page: NonNull<Page>) -> Result<(), Error> {
    let gfn = platform.gfn(page);
    // SAFETY: a frame of the table is there, and nobody uses it.
    unsafe { remove_from_physmap(platform, gfn) }
        .map_err(|errno| Error::Hypercall { operation: "XENMEM_remove_from_physmap", errno })?;
    // SAFETY: there is nothing at this frame, which is the caller's.
    if unsafe { populate_physmap(platform, &mut [gfn], 0, MemFlags::default()) } == Ok(1) {
        // SAFETY: a page of the platform's, with memory at it again, that nobody uses.
        unsafe { platform.free_pages(page, 1) };
    }
    Ok(())
}

/// Puts a frame of the table, of entries or of status words, where the page `gfn` was.
///
/// # Safety
/// As [`add_to_physmap`]: the page is nobody else's and is not used as memory again.
pub(crate) unsafe fn map_frame(platform: &impl Platform, frame: u64, gfn: Gfn) -> Result<(), Error> {
    // SAFETY: the caller's promise is the one asked for here.
    unsafe { add_to_physmap(platform, PhysmapSpace::GRANT_TABLE, frame, gfn) }
        .map_err(|errno| Error::Hypercall { operation: "XENMEM_add_to_physmap", errno })
}
