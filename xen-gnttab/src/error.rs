//! What can go wrong.

use core::fmt;

use xen_hypercall::{Errno, Gfn};

use crate::{GrantRef, GrantStatus};

/// Why a grant table operation failed.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// The domain's grant table has an owner already, or had one that did not [close](crate::GrantTable::close) it.
    Claimed,
    /// The domain has been resumed in a new domain since this handle, or this table, was made. What it granted is granted no
    /// more, and the reference may be another's now.
    Stale,
    /// A peer uses what the table granted, or a handle was forgotten.
    InUse,
    /// Every reference is in use or in quarantine, and the table has its greatest size.
    NoFreeReference,
    /// The platform had no page left.
    OutOfMemory,
    /// Another caller is adding a frame to the table at this moment; try again.
    Growing,
    /// The page lies above 16 TiB: a version 1 entry has 32 bits for the frame's number.
    FrameTooHigh(Gfn),
    /// Xen refused a hypercall.
    Hypercall {
        /// The operation under Xen's name, such as `"GNTTABOP_query_size"`.
        operation: &'static str,
        /// Xen's reason.
        errno: Errno,
    },
    /// The domain's table has entries of this version, and Xen does not change it to the one asked for.
    Version(u32),
    /// The page comes from another table's platform, where it would have to go back to.
    ForeignPage,
    /// Only a table of version 2 can grant this.
    NeedsVersion2,
    /// A part of a page that reaches beyond its end, or is empty.
    BadRange,
    /// The platform has no room left for pages of other domains, or cannot show these in a row.
    NoRoom,
    /// What was to be mapped are grants of this domain itself: Xen would take the pages from where this domain uses them.
    OwnGrant,
    /// Too many at once for the batch, or none.
    BadCount,
    /// Xen did not let us use what another domain granted.
    Refused {
        /// The reference.
        gref: GrantRef,
        /// Xen's reason. After [`GrantStatus::EAGAIN`] it may work some time later.
        status: GrantStatus,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claimed => f.write_str("the domain's grant table has an owner already"),
            Self::Stale => f.write_str("the grant is of a life before the domain's last resume"),
            Self::InUse => f.write_str("what the grant table granted is in use still"),
            Self::NoFreeReference => f.write_str("no free grant reference"),
            Self::OutOfMemory => f.write_str("no memory for a granted page or the grant table"),
            Self::Growing => f.write_str("the grant table is growing, try again"),
            Self::FrameTooHigh(gfn) => write!(f, "{gfn} does not fit a version 1 grant entry"),
            Self::Hypercall { operation, errno } => write!(f, "{operation} failed: {errno}"),
            Self::Version(version) => write!(f, "the grant table stays at version {version}"),
            Self::ForeignPage => f.write_str("the page comes from another platform than the grant table's"),
            Self::NeedsVersion2 => f.write_str("only a grant table of version 2 can grant this"),
            Self::NoRoom => f.write_str("no room for a page of another domain"),
            Self::OwnGrant => f.write_str("a domain cannot map what it granted itself, only copy it"),
            Self::BadCount => f.write_str("more than the batch has places for, or none"),
            Self::Refused { gref, status } => write!(f, "Xen refused {gref}: {status}"),
            Self::BadRange => f.write_str("the part is empty or reaches beyond the page's end"),
        }
    }
}

impl core::error::Error for Error {}
