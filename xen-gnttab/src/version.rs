//! The version of the table's layout, and what only version 2 can grant.
#![allow(unsafe_code)]

use core::fmt;
use core::sync::atomic::Ordering;

use xen_hypercall::{DomId, Domain, Incarnation, PAGE_SIZE, Part, Platform};

use crate::abi::{Access, GrantFlags, GrantRef};
use crate::entry::Grant;
use crate::frames::Frames;
use crate::granted::GrantedPage;
use crate::page::OwnedPage;
use crate::{Error, GrantTable, Rejected, xen};

/// Which layout a table's entries have.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Version {
    /// Entries of 8 bytes with frame numbers of 32 bits. Every Xen has it, and nothing that common drivers do needs more.
    V1,
    /// Entries of 16 bytes with frame numbers of 64 bits and apart from Xen's own bits; parts of pages and transitive
    /// grants. Half as many references in a table. Often forbidden by the host (`gnttab=max-ver:1`).
    V2,
    /// Version 2 where Xen has it, otherwise version 1.
    Best,
}

/// A reference by which a domain may use what a third domain granted us, as if it were granted to that domain. There is
/// no page of ours in it.
///
/// Dropping it ends the grant like [`end`](Self::end).
#[must_use = "dropping it ends the grant"]
pub struct TransitiveGrant<'g, P: Platform> {
    table: &'g GrantTable<P>,
    gref: GrantRef,
    life: Incarnation,
}

impl<P: Platform> TransitiveGrant<'_, P> {
    /// What the peer needs to reach the page.
    pub fn gref(&self) -> GrantRef {
        self.gref
    }

    /// Who may use it.
    pub fn peer(&self) -> DomId {
        self.table.peer(self.gref)
    }

    /// Whether the peer copies by it at this moment.
    pub fn in_use(&self) -> bool {
        self.table.flags(self.gref).intersects(GrantFlags::IN_USE)
    }

    /// Takes the peer's access away. False: it copies at this moment; the reference is in quarantine until that is done.
    pub fn end(self) -> bool {
        core::mem::ManuallyDrop::new(self).finish()
    }

    fn finish(&self) -> bool {
        // A stale reference grants nothing, and may be another's.
        self.table.incarnation() != self.life || self.table.finish_without_page(self.gref)
    }
}

impl<P: Platform> fmt::Debug for TransitiveGrant<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransitiveGrant").field("gref", &self.gref).field("peer", &self.peer()).finish()
    }
}

impl<P: Platform> Drop for TransitiveGrant<'_, P> {
    fn drop(&mut self) {
        self.finish();
    }
}

impl<P: Platform> GrantTable<P> {
    /// Sets a table up with the version that is asked for. An image that calls [`new`](Self::new) only has no code for
    /// version 2.
    ///
    /// # Errors
    /// As [`new`](Self::new). [`Error::Version`] for [`Version::V2`] where Xen does not let the domain have it.
    pub fn with_version(domain: &Domain<P>, version: Version) -> Result<Self, Error>
    where
        P: Clone,
    {
        if version == Version::V1 {
            return Self::new(domain);
        }
        let mut frames = Frames::new(domain.claim(Part::GrantTable).ok_or(Error::Claimed)?)?;
        match xen::require_version(frames.platform(), 2) {
            Ok(foreign) => {
                frames.use_version_2();
                Self::start(frames, foreign)
            }
            Err(Error::Version(1)) if version == Version::Best => Self::version_1(frames),
            Err(error) => Err(frames.give_up(0, error)),
        }
    }

    /// The version of the table's layout.
    pub fn version(&self) -> Version {
        if self.frames.is_version_2() { Version::V2 } else { Version::V1 }
    }

    /// Grants `len` bytes of a page at `offset`, which the peer can copy but not map; the rest of the page it cannot reach.
    /// Needs version 2.
    ///
    /// # Errors
    /// The page comes back, with [`Error::NeedsVersion2`], [`Error::BadRange`], or as of [`grant`](Self::grant).
    pub fn grant_part<'g>(
        &'g self,
        page: OwnedPage<'g, P>,
        to: DomId,
        access: Access,
        offset: usize,
        len: usize,
    ) -> Result<GrantedPage<'g, P>, Rejected<'g, P>> {
        let range = match (u16::try_from(offset), u16::try_from(len)) {
            _ if !self.frames.is_version_2() => Err(Error::NeedsVersion2),
            (Ok(first), Ok(length)) if len > 0 && offset + len <= PAGE_SIZE => Ok((first, length)),
            _ => Err(Error::BadRange),
        };
        let taken = range.and_then(|range| {
            self.check_page(&page)?;
            Ok((range, self.take_reference()?))
        });
        let ((offset, length), gref) = match taken {
            Ok(taken) => taken,
            Err(error) => return Err(Rejected { error, page }),
        };
        // Cannot fail: the table has version 2, and the reference is one of its own.
        let _ = self.frames.write(gref, to, &Grant::Part { frame: page.gfn(), access, offset, length });
        self.granted.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the page is of this table's memory, and the reference was taken for it.
        Ok(unsafe { GrantedPage::new(self, page.expose(), gref, to, access) }.of_part())
    }

    /// Lets `to` use what `owner` granted this domain by `granted`, to copy and not to map. Needs version 2.
    ///
    /// Nothing of that grant is checked now: Xen does when `to` copies. When `owner` ends its grant this one leads nowhere.
    ///
    /// # Errors
    /// [`Error::NeedsVersion2`], or as [`reserve`](Self::reserve).
    pub fn grant_transitive(
        &self,
        to: DomId,
        access: Access,
        owner: DomId,
        granted: GrantRef,
    ) -> Result<TransitiveGrant<'_, P>, Error> {
        if !self.frames.is_version_2() {
            return Err(Error::NeedsVersion2);
        }
        let gref = self.take_reference()?;
        // Cannot fail: the table has version 2, and the reference is one of its own.
        let _ = self.frames.write(gref, to, &Grant::Transitive { domain: owner, gref: granted, access });
        self.granted.fetch_add(1, Ordering::Relaxed);
        Ok(TransitiveGrant { table: self, gref, life: self.incarnation() })
    }
}
