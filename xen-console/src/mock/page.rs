//! The guest's page as the daemon has it.
#![allow(unsafe_code, reason = "accesses the guest's page")]

use core::ptr::NonNull;

#[cfg(feature = "xenbus")]
use xen_gnttab::mock::MockMapping;
use xen_hypercall::{PAGE_SIZE, Page};
use xen_ring::{Backing, SharedMem};

/// A console's page.
pub(super) enum DaemonPage {
    Special(SpecialPage),
    #[cfg(feature = "xenbus")]
    Granted(MockMapping),
}

/// A page that the toolstack made.
pub(super) struct SpecialPage(NonNull<Page>);

// SAFETY: the page belongs to nobody's thread.
unsafe impl Send for SpecialPage {}

impl DaemonPage {
    pub(super) fn special(page: NonNull<Page>) -> Self {
        Self::Special(SpecialPage(page))
    }
}

impl Backing for DaemonPage {
    fn mem(&mut self) -> SharedMem<'_> {
        match self {
            // SAFETY: the page is the guest's special page, valid as long as the machine; the daemon's side accesses
            // it here alone. The guest's side is, as in life, another party that accesses it by volatile means.
            Self::Special(page) => unsafe { SharedMem::new(page.0.cast(), PAGE_SIZE) },
            #[cfg(feature = "xenbus")]
            Self::Granted(page) => page.mem(),
        }
    }
}
