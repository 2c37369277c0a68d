//! The page that the toolstack shared with the xenstore daemon.
#![allow(unsafe_code, reason = "turns a page that Xen named into shared memory")]

use core::ptr::NonNull;

use xen_hypercall::{Gfn, PAGE_SIZE, Page, SpecialPages};
use xen_ring::{Backing, SharedMem};

/// Xenstore's page, which stays mapped as long as the platform exists.
pub(crate) struct StorePage(NonNull<Page>);

// SAFETY: the page belongs to nobody's thread, and is accessed by `mem` alone, which takes the one owner.
unsafe impl Send for StorePage {}

impl StorePage {
    /// The page at the frame that `HVM_PARAM_STORE_PFN` names.
    pub(crate) fn map(platform: &impl SpecialPages, gfn: Gfn) -> Option<Self> {
        // SAFETY: the toolstack put xenstore's page at this frame, and it is used as just that.
        unsafe { platform.map_special(gfn, 1) }.map(Self)
    }
}

impl Backing for StorePage {
    fn mem(&mut self) -> SharedMem<'_> {
        // SAFETY: `map_special` promises a whole page for as long as the platform exists, and only this client
        // accesses xenstore's page in this domain; the borrow lasts as long as this one's.
        unsafe { SharedMem::new(self.0.cast(), PAGE_SIZE) }
    }
}
