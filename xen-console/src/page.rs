//! The page that is shared with the console daemon.
#![allow(unsafe_code, reason = "turns a page that Xen named into shared memory")]

use core::marker::PhantomData;
use core::ptr::NonNull;

#[cfg(feature = "xenbus")]
use xen_gnttab::GrantedPage;
use xen_hypercall::{Gfn, PAGE_SIZE, Page, Platform, SpecialPages};
use xen_ring::{Backing, SharedMem};

/// A console's page.
pub(crate) enum ConsolePage<'x, P: Platform> {
    /// The first console's, which the toolstack made.
    Special(SpecialPage, PhantomData<&'x P>),
    /// Another console's, which the driver made.
    #[cfg(feature = "xenbus")]
    Granted(GrantedPage<'x, P>),
}

/// A page that stays mapped as long as the platform exists.
pub(crate) struct SpecialPage(NonNull<Page>);

// SAFETY: the page belongs to nobody's thread, and is accessed by `mem` alone, which takes the one owner.
unsafe impl Send for SpecialPage {}

impl<P: Platform> ConsolePage<'_, P> {
    /// The page at the frame that `HVM_PARAM_CONSOLE_PFN` names.
    pub(crate) fn map(platform: &P, gfn: Gfn) -> Option<Self>
    where
        P: SpecialPages,
    {
        // SAFETY: the toolstack put the console's page at this frame, and it is used as just that.
        let page = unsafe { platform.map_special(gfn, 1) }?;
        Some(Self::Special(SpecialPage(page), PhantomData))
    }
}

impl<P: Platform> Backing for ConsolePage<'_, P> {
    fn mem(&mut self) -> SharedMem<'_> {
        match self {
            // SAFETY: `map_special` promises a whole page for as long as the platform exists, and only the console
            // driver accesses the console's page in this domain; the borrow lasts as long as this one's.
            Self::Special(page, _) => unsafe { SharedMem::new(page.0.cast(), PAGE_SIZE) },
            #[cfg(feature = "xenbus")]
            Self::Granted(page) => page.mem(),
        }
    }
}
