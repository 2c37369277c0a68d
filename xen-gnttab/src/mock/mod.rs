//! The hypervisor's side of grant tables, on the host, and a backend's way to granted pages.
//!
//! [`install`] makes a [`MockXen`] keep a grant table for each domain, on the real pages that the domain maps it to. A
//! backend in a test maps with [`map`] or copies with [`copy_from`] and [`copy_to`]; both check what Xen checks, and set
//! "reading" and "writing" in the granter's entry for as long as they use the page:
//!
//! ```
//! use xen_gnttab::{Access, Ended, GrantTable, mock};
//! use xen_hypercall::{DomId, mock::MockXen};
//! use xen_ring::Backing;
//!
//! let xen = MockXen::new();
//! mock::install(&xen);
//! let (guest, dom0) = (xen.domain(DomId(1)), xen.domain(DomId(0)));
//! let table = GrantTable::new(guest.clone()).unwrap();
//!
//! let mut page = table.share(DomId(0), Access::ReadWrite).unwrap();
//! let mut mapping = mock::map(&dom0, DomId(1), page.gref(), true).unwrap();
//! page.write_bytes(0, b"hello").unwrap();
//! let mut seen = [0; 5];
//! mapping.mem().read_bytes(0, &mut seen).unwrap();
//! assert_eq!(&seen, b"hello");
//!
//! // The backend holds on, so the page cannot come back yet.
//! assert!(matches!(page.end(), Ended::Quarantined));
//! drop(mapping);
//! assert_eq!(table.reclaim(), 1);
//! ```
//!
//! Not there: version 2 (`set_version` refuses it, as Xen does when started with `gnttab=max-ver:1`), transfer, and the
//! hypercalls for mapping: a mock backend has no page tables, so it maps by the function.

mod call;
mod copy;
mod map;
mod tables;

use std::sync::PoisonError;

use xen_hypercall::abi::XENMAPSPACE_GRANT_TABLE;
use xen_hypercall::mock::MockXen;
use xen_hypercall::{DomId, HypercallNr};

pub use copy::{copy_from, copy_to};
pub use map::{MockMapping, map};
use tables::Machine;

/// Answers the grant table calls of every domain of `xen`, and maps grant table frames into their memory.
pub fn install(xen: &MockXen) {
    xen.register(HypercallNr::GRANT_TABLE_OP, call::grant_table_op);
    xen.register_physmap_space(XENMAPSPACE_GRANT_TABLE, |domain, index, gfn| {
        with(domain.xen(), |machine| machine.map_frame(domain, index, gfn))
    });
}

/// Limits the grant table of a domain to this many frames of 512 references; 64 if never set.
pub fn set_max_frames(xen: &MockXen, domain: DomId, frames: u32) {
    with(xen, |machine| machine.set_max_frames(domain, frames));
}

/// How many mappings of a domain's pages other domains hold at this moment.
pub fn mappings_of(xen: &MockXen, granter: DomId) -> usize {
    with(xen, |machine| machine.mappings_of(granter))
}

fn with<R>(xen: &MockXen, f: impl FnOnce(&mut Machine) -> R) -> R {
    let machine = xen.extension::<Machine>();
    // A test that panicked while it held the lock has failed already; let the others say what they see.
    f(&mut machine.lock().unwrap_or_else(PoisonError::into_inner))
}
