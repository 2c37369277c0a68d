//! The calls that set a grant table up.
#![allow(unsafe_code)]

use xen_hypercall::memory::{PhysmapSpace, add_to_physmap};
use xen_hypercall::{Errno, Gfn, Platform, grant};

use crate::Error;

/// Makes sure that entries have the layout of version 1, which is what a domain starts with; a boot loader may have
/// changed it. Called before anything is granted.
pub(crate) fn require_version_1(platform: &impl Platform) -> Result<(), Error> {
    match grant::get_version(platform) {
        // A Xen without this operation has version 1 alone.
        Ok(1) | Err(Errno::ENOSYS) => Ok(()),
        Ok(_) => {
            // SAFETY: nothing of the table is mapped by us yet, so nobody reads or writes it in the other layout. If grants of
            // an earlier kernel are in force Xen answers EBUSY.
            let now = unsafe { grant::set_version(platform, 1) }
                .map_err(|errno| Error::Hypercall { operation: "GNTTABOP_set_version", errno })?;
            if now == 1 { Ok(()) } else { Err(Error::Version(now)) }
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

/// Puts a frame of the table where the page `gfn` was.
///
/// # Safety
/// As [`add_to_physmap`]: the page is nobody else's and is not used as memory again.
pub(crate) unsafe fn map_frame(platform: &impl Platform, frame: u32, gfn: Gfn) -> Result<(), Error> {
    // SAFETY: the caller's promise is the one asked for here.
    unsafe { add_to_physmap(platform, PhysmapSpace::GRANT_TABLE, frame.into(), gfn) }
        .map_err(|errno| Error::Hypercall { operation: "XENMEM_add_to_physmap", errno })
}
