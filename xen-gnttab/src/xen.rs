//! The calls that set a grant table up.
#![allow(unsafe_code)]

use xen_hypercall::memory::{PhysmapSpace, add_to_physmap};
use xen_hypercall::{Errno, Gfn, Platform, grant};

use crate::Error;

/// Makes sure that entries have this version's layout. A domain starts with version 1, but a boot loader may have changed
/// that. Called before anything is granted.
pub(crate) fn require_version(platform: &impl Platform, version: u32) -> Result<(), Error> {
    match grant::get_version(platform) {
        Ok(now) if now == version => Ok(()),
        // A Xen without this operation has version 1 alone.
        Err(Errno::ENOSYS) if version == 1 => Ok(()),
        Err(Errno::ENOSYS) => Err(Error::Version(1)),
        Ok(before) => {
            // SAFETY: nothing of the table is mapped by us yet, so nobody reads or writes it in the other layout. If grants of
            // an earlier kernel are in force Xen answers EBUSY.
            match unsafe { grant::set_version(platform, version) } {
                Ok(now) if now == version => Ok(()),
                Ok(now) => Err(Error::Version(now)),
                // What Xen answers that has this version forbidden.
                Err(Errno::ENOSYS) => Err(Error::Version(before)),
                Err(errno) => Err(Error::Hypercall { operation: "GNTTABOP_set_version", errno }),
            }
        }
        Err(errno) => Err(Error::Hypercall { operation: "GNTTABOP_get_version", errno }),
    }
}

/// The most frames that the table may have.
pub(crate) fn max_frames(platform: &impl Platform) -> Result<u32, Error> {
    grant::query_size(platform)
        .map(|size| size.max_frames)
        .map_err(|errno| Error::Hypercall { operation: "GNTTABOP_query_size", errno })
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
