//! The calls that set a grant table up.
#![allow(unsafe_code)]

use xen_hypercall::memory::{PhysmapSpace, add_to_physmap};
use xen_hypercall::{Errno, Gfn, Platform, grant};

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

/// Puts a frame of the table, of entries or of status words, where the page `gfn` was.
///
/// # Safety
/// As [`add_to_physmap`]: the page is nobody else's and is not used as memory again.
pub(crate) unsafe fn map_frame(platform: &impl Platform, frame: u64, gfn: Gfn) -> Result<(), Error> {
    // SAFETY: the caller's promise is the one asked for here.
    unsafe { add_to_physmap(platform, PhysmapSpace::GRANT_TABLE, frame, gfn) }
        .map_err(|errno| Error::Hypercall { operation: "XENMEM_add_to_physmap", errno })
}
