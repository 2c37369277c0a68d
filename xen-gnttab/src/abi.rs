//! References and flags under Xen's names (`grant_table.h`). The entries themselves are in [`entry`](crate::entry).

use core::fmt;

use bitflags::bitflags;

/// Names one entry of a domain's grant table. The granter hands it to the peer, which maps or copies the page by it
/// (`grant_ref_t`).
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct GrantRef(pub u32);

impl GrantRef {
    /// The first references are the toolstack's: 0 for the console's page, 1 for xenstore's, the others for later use
    /// (`GNTTAB_NR_RESERVED_ENTRIES`). This crate never hands them out.
    pub const RESERVED: u32 = 8;
    /// The console's page (`GNTTAB_RESERVED_CONSOLE`).
    pub const CONSOLE: Self = Self(0);
    /// Xenstore's page (`GNTTAB_RESERVED_XENSTORE`).
    pub const XENSTORE: Self = Self(1);
}

impl fmt::Display for GrantRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "grant {}", self.0)
    }
}

bitflags! {
    /// An entry's flags (`GTF_*`). Unknown bits are kept.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct GrantFlags: u16 {
        /// The peer may map and copy the page (`GTF_permit_access`).
        const PERMIT_ACCESS = 1;
        /// The peer may transfer a page to this entry (`GTF_accept_transfer`), which is obsolete and not done here. With
        /// `PERMIT_ACCESS` together it is a transitive grant.
        const ACCEPT_TRANSFER = 2;
        /// Only reading is allowed (`GTF_readonly`).
        const READONLY = 1 << 2;
        /// Set by Xen while the peer has the page mapped or copies it (`GTF_reading`).
        const READING = 1 << 3;
        /// Set by Xen while the peer has the page mapped for writing or copies into it (`GTF_writing`).
        const WRITING = 1 << 4;
        /// Only a part of the page is granted (`GTF_sub_page`, version 2).
        const SUB_PAGE = 1 << 8;
        const _ = !0;
    }
}

impl GrantFlags {
    /// Both bits of the type (`GTF_type_mask`).
    pub const TYPE: Self = Self::PERMIT_ACCESS.union(Self::ACCEPT_TRANSFER);
    /// The type of a grant that passes another domain's grant on (`GTF_transitive`, version 2).
    pub const TRANSITIVE: Self = Self::TYPE;
    /// Either of Xen's bits: the peer uses the page now.
    pub const IN_USE: Self = Self::READING.union(Self::WRITING);
}

/// What the peer may do with a granted page.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Access {
    /// Read, map read-only, copy from.
    ReadOnly,
    /// Read and write.
    ReadWrite,
}

impl Access {
    pub(crate) fn flags(self) -> GrantFlags {
        match self {
            Self::ReadOnly => GrantFlags::PERMIT_ACCESS | GrantFlags::READONLY,
            Self::ReadWrite => GrantFlags::PERMIT_ACCESS,
        }
    }
}
