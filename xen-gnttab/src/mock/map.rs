//! A backend's mapping of a granted page.
#![allow(unsafe_code)]

use core::fmt;
use core::ptr::NonNull;
use std::format;

use xen_hypercall::mock::MockDomain;
use xen_hypercall::{DomId, PAGE_SIZE, Page};
use xen_ring::{Backing, SharedMem};

use super::active::How;
use crate::{GrantRef, GrantStatus};

/// Another domain's page in a mock backend's hands. Dropping it unmaps.
pub struct MockMapping {
    pub(super) granter: MockDomain,
    /// The granter's number then: it may be migrated, and have another.
    owner: DomId,
    gref: GrantRef,
    writable: bool,
    pub(super) page: NonNull<Page>,
}

// SAFETY: the page lives as long as the machine, which `granter` keeps; nothing ties it to a thread.
unsafe impl Send for MockMapping {}

/// Maps a granted page, as `GNTTABOP_map_grant_ref` does.
///
/// # Errors
/// [`GrantStatus::BAD_DOMAIN`] and [`GrantStatus::BAD_GNTREF`] for what does not exist, [`GrantStatus::GENERAL_ERROR`] for
/// an entry that does not grant this access to this domain, [`GrantStatus::BAD_PAGE`] for one that names no page; what
/// [`Faults`](super::Faults) say.
pub fn map(
    backend: &MockDomain,
    granter: DomId,
    gref: GrantRef,
    writable: bool,
) -> Result<MockMapping, GrantStatus> {
    let (xen, granter) = (backend.xen(), super::granter(backend, granter)?);
    let granted = super::with(xen, |machine| {
        machine.chance(|faults| faults.map, GrantStatus::NO_SPACE)?;
        machine.chance(|faults| faults.again, GrantStatus::EAGAIN)?;
        machine.begin(backend.id(), &granter, gref, writable, How::Map)
    });
    xen.trace(|| format!("{} maps {gref} of {}: {:?}", backend.id(), granter.id(), granted.map(drop)));
    Ok(MockMapping { page: granted?.page, owner: granter.id(), granter, gref, writable })
}

impl MockMapping {
    /// The reference it was mapped by.
    pub fn gref(&self) -> GrantRef {
        self.gref
    }

    /// Whether the backend may write.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// The page's bytes. Writing to a read-only mapping is the test's own mistake; on real hardware it faults.
    pub fn mem(&mut self) -> SharedMem<'_> {
        // SAFETY: a page of the granter, valid as long as the machine; `&mut self` makes this view the mapping's only one, and
        // other domains' views are what `SharedMem` allows for.
        unsafe { SharedMem::new(self.page.cast(), PAGE_SIZE) }
    }
}

impl Backing for MockMapping {
    fn mem(&mut self) -> SharedMem<'_> {
        MockMapping::mem(self)
    }
}

impl fmt::Debug for MockMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MockMapping")
            .field("granter", &self.owner)
            .field("gref", &self.gref)
            .field("writable", &self.writable)
            .finish_non_exhaustive()
    }
}

impl Drop for MockMapping {
    fn drop(&mut self) {
        let xen = self.granter.xen();
        super::with(xen, |machine| machine.end_of(xen, self.owner, self.gref, self.writable));
    }
}
