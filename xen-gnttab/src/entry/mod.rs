//! The table's entries as Xen reads and writes them, in both layouts (`grant_table.h`).

#[cfg(not(loom))]
pub(crate) mod revoke;
#[cfg(loom)]
pub mod revoke;
pub(crate) mod v1;
pub(crate) mod v2;

use xen_hypercall::{DomId, Gfn};

use crate::abi::{Access, GrantFlags, GrantRef};
use crate::frames::Directory;

static_assertions::const_assert_eq!(GrantFlags::IN_USE.bits(), revoke::IN_USE);

/// What an entry can say.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Grant {
    /// A whole page.
    Page { frame: Gfn, access: Access },
    /// Bytes of a page, to be copied and not mapped. Version 2.
    Part { frame: Gfn, access: Access, offset: u16, length: u16 },
    /// What another domain granted us, to be copied and not mapped. Version 2.
    Transitive { domain: DomId, gref: GrantRef, access: Access },
}

/// The version 2 way of everything that the version decides. Only a table that was asked for version 2 refers to it, so the
/// code of version 2 is in the images that use it and in no others.
#[derive(Debug)]
pub(crate) struct Ops {
    pub(crate) write: fn(&Directory, GrantRef, DomId, &Grant) -> Option<()>,
    pub(crate) revoke: fn(&Directory, GrantRef) -> bool,
    pub(crate) flags: fn(&Directory, GrantRef) -> GrantFlags,
    pub(crate) peer: fn(&Directory, GrantRef) -> DomId,
}
