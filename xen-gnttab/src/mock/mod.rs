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
//! let table = GrantTable::new(&guest.boot().unwrap()).unwrap();
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
//! Both versions of the table are there, with what only version 2 grants; domains start with version 1, and
//! [`set_max_version`] forbids version 2 as Xen does when started with `gnttab=max-ver:1`. So are the hypercalls for mapping
//! and copying, for domains that are guests themselves. [`set_faults`] lets uses fail, and peers hold on, by chance.
//!
//! Not there: transfer, `GNTTABOP_swap_grant_ref`, `cache_flush` and what PV guests need.

mod active;
mod call;
mod copy;
mod faults;
mod handles;
mod map;
pub mod model;
mod row;
mod tables;

use std::sync::PoisonError;

use xen_hypercall::abi::XENMAPSPACE_GRANT_TABLE;
use xen_hypercall::mock::{Chance, Dice, MockDomain, MockXen};
use xen_hypercall::{DomId, HypercallNr};

pub use copy::{copy_from, copy_to};
pub use faults::Faults;
pub use map::{MockMapping, map};
pub use row::{MockMappings, map_row};
use tables::Machine;

use crate::{GrantRef, GrantStatus};

/// Answers the grant table calls of every domain of `xen`, and maps grant table frames into their memory.
pub fn install(xen: &MockXen) {
    xen.register(HypercallNr::GRANT_TABLE_OP, call::grant_table_op);
    xen.register_physmap_space(XENMAPSPACE_GRANT_TABLE, |domain, index, gfn| {
        with(domain.xen(), |machine| machine.map_frame(domain, index, gfn))
    });
    xen.set_removal_hook(|domain, gfn| with(domain.xen(), |machine| machine.unmap_frame(domain, gfn)));
    xen.on_migration(|domain, old| with(domain.xen(), |machine| machine.migrated(domain, old)));
}

/// Limits the grant table of a domain to this many frames of 512 references; 64 if never set.
pub fn set_max_frames(xen: &MockXen, domain: DomId, frames: u32) {
    with(xen, |machine| machine.set_max_frames(domain, frames));
}

/// Limits the version of a domain's table: 1 forbids version 2. It is 2 if never set.
pub fn set_max_version(xen: &MockXen, domain: DomId, version: u32) {
    with(xen, |machine| machine.table(domain).max_version = version);
}

/// Lets uses of grants go wrong from now on, everywhere on the machine.
pub fn set_faults(xen: &MockXen, dice: Dice, faults: Faults) {
    with(xen, |machine| machine.faults = Some((dice, faults)));
}

/// Lets go of everything that [`Faults::keep`] has kept in use; returns how many uses that were.
pub fn release_kept(xen: &MockXen) -> usize {
    with(xen, |machine| machine.release_kept(xen))
}

/// How many uses of one grant there are at this moment: while it is not 0, a peer can reach the page.
pub fn uses_of(xen: &MockXen, granter: DomId, gref: GrantRef) -> usize {
    with(xen, |machine| machine.uses_of(granter, gref))
}

/// How many pages a domain has mapped by hypercall at this moment.
pub fn mapped_by(xen: &MockXen, domain: DomId) -> usize {
    with(xen, |machine| machine.handles.count(domain))
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

/// The domain that a caller names as the granter.
fn granter(caller: &MockDomain, id: DomId) -> Result<MockDomain, GrantStatus> {
    let id = if id == DomId::SELF { caller.id() } else { id };
    if caller.xen().has_domain(id) { Ok(caller.xen().domain(id)) } else { Err(GrantStatus::BAD_DOMAIN) }
}

impl Machine {
    /// Fails with `status` if a fault says so.
    fn chance(&self, which: impl FnOnce(&Faults) -> Chance, status: GrantStatus) -> Result<(), GrantStatus> {
        match &self.faults {
            Some((dice, faults)) if dice.hit(which(faults)) => Err(status),
            _ => Ok(()),
        }
    }
}
