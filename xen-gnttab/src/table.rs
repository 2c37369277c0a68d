//! The grant table: set up, granting, and its numbers.
#![allow(unsafe_code)]

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use xen_hypercall::{DomId, Domain, Gfn, Incarnation, Part, Platform};

use crate::abi::{Access, GrantFlags, GrantRef};
use crate::entry::Grant;
use crate::frames::{Frames, MAX_FRAMES};
use crate::free_list::{self, Links};
use crate::granted::{GrantedPage, LentPage};
use crate::growth::Grows;
use crate::page::OwnedPage;
use crate::pages::OwnedPages;
use crate::quarantine::Quarantine;
use crate::references::Waiters;
use crate::{Error, xen};

/// A domain's grant table. Used by shared reference, from any vCPU.
///
/// It takes two pages for every 512 references and one for itself; the first three at once, more when all references are
/// in use. All operations but that growth are lock-free.
///
/// Made once from the [`Domain`], to live as long as the kernel. When it is dropped the frames stay mapped, and pages in quarantine stay with
/// the peers that hold on to them: they are lost as memory, which is better than being reused.
pub struct GrantTable<P: Platform> {
    pub(crate) frames: Frames<P>,
    pub(crate) free_head: AtomicU64,
    pub(crate) max_frames: u32,
    pub(crate) growing: AtomicBool,
    pub(crate) free_count: AtomicU32,
    pub(crate) quarantine: Quarantine,
    pub(crate) waiters: Waiters,
    pub(crate) granted: AtomicU64,
    pub(crate) ended: AtomicU64,
    pub(crate) lost_room: AtomicU64,
}

/// The state of a [`GrantTable`]. While others use the table the numbers may be from slightly different moments.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// References that the table has now, without the eight reserved ones.
    pub refs: u32,
    /// Those that are free.
    pub free: u32,
    /// Those that grant a page, or are held to do so.
    pub in_use: u32,
    /// Those whose grant was ended while the peer used the page, with their pages.
    pub quarantined: u32,
    /// Frames of the table, each of 512 references in version 1.
    pub frames: u32,
    /// The most frames it may have.
    pub max_frames: u32,
    /// Grants made since the start.
    pub granted: u64,
    /// Grants that ended at once, or with the domain that had made them.
    pub ended: u64,
    /// Grants that went to the quarantine instead.
    pub quarantines: u64,
    /// Those of them that have left it since.
    pub reclaimed: u64,
    /// Frames of room that were lost, because Xen refused to unmap another domain's page.
    pub lost_room: u64,
}

/// A page that could not be granted, and why.
#[non_exhaustive]
pub struct Rejected<'g, P: Platform> {
    /// What went wrong.
    pub error: Error,
    /// The page, unchanged.
    pub page: OwnedPage<'g, P>,
}

impl<P: Platform> From<Rejected<'_, P>> for Error {
    fn from(rejected: Rejected<'_, P>) -> Self {
        rejected.error
    }
}

impl<P: Platform> fmt::Debug for Rejected<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rejected").field("error", &self.error).finish_non_exhaustive()
    }
}

impl<P: Platform> fmt::Display for Rejected<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<P: Platform> core::error::Error for Rejected<'_, P> {}

impl<P: Platform> GrantTable<P> {
    /// Sets a table of version 1 up: asks Xen for its size and maps the first frame. A domain has one table.
    ///
    /// # Errors
    /// [`Error::Claimed`], [`Error::OutOfMemory`], [`Error::Version`], or Xen's refusal.
    pub fn new(domain: &Domain<P>) -> Result<Self, Error>
    where
        P: Clone,
    {
        Self::version_1(Frames::new(domain.claim(Part::GrantTable).ok_or(Error::Claimed)?)?)
    }

    pub(crate) fn version_1(frames: Frames<P>) -> Result<Self, Error> {
        match xen::require_version(frames.platform(), 1) {
            Ok(foreign) => Self::start(frames, foreign),
            Err(error) => Err(frames.give_up(0, error)),
        }
    }

    /// Maps the first frame, and at least as many as `foreign`.
    pub(crate) fn start(frames: Frames<P>, foreign: u32) -> Result<Self, Error> {
        let max_frames = match xen::size(frames.platform()) {
            Ok(size) => size.max_frames.min(MAX_FRAMES),
            Err(error) => return Err(frames.give_up(foreign, error)),
        };
        let table = Self {
            frames,
            free_head: AtomicU64::new(0),
            max_frames,
            growing: AtomicBool::new(false),
            free_count: AtomicU32::new(0),
            quarantine: Quarantine::default(),
            waiters: Waiters::default(),
            granted: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            lost_room: AtomicU64::new(0),
        };
        let mut grown = table.grow();
        while grown.is_ok() && table.frames.refs() / table.frames.per_frame() < foreign.min(max_frames) {
            grown = table.grow();
        }
        match grown {
            Ok(()) => Ok(table),
            Err(error) => Err(table.frames.give_up(foreign, error)),
        }
    }

    /// Ends the table: takes its frames out of the domain's memory, gives their pages back, and lets another table be made,
    /// perhaps of another version.
    ///
    /// # Errors
    /// [`Error::InUse`] while a reference is in quarantine, or belongs to a handle that was forgotten instead of dropped;
    /// [`Error::Stale`]; Xen's. Then everything is lost as by dropping.
    pub fn close(self) -> Result<(), Error> {
        self.current()?;
        self.reclaim();
        let Stats { in_use, quarantined, .. } = self.stats();
        if in_use + quarantined > 0 {
            return Err(Error::InUse);
        }
        self.frames.close()
    }

    /// Sets the table up again after a resume in a new domain: with its version, and its frames where they were. All references
    /// are free, for whatever is stale grants nothing; so are the pages in quarantine, for the new domain has granted
    /// none of them. A stale page is [granted again](GrantedPage::regrant) in place. When nothing is to be done, nothing is.
    ///
    /// # Errors
    /// [`Error::Version`] where this Xen does not let the domain have the table's version; [`Error::Growing`] while somebody
    /// else does this; otherwise Xen's, as when it lets the domain have fewer frames than before. The table is of no use in this life
    /// then.
    pub fn resume(&self) -> Result<(), Error> {
        if self.frames.is_current() {
            return Ok(());
        }
        if !self.begin() {
            return Err(Error::Growing);
        }
        let restored = self.restore_all();
        self.end();
        restored?;
        self.waiters.wake();
        Ok(())
    }

    fn restore_all(&self) -> Result<(), Error> {
        self.frames.restore()?;
        // Of a table that is not current every grant is over. Nobody else sweeps until the life begins.
        self.sweep_all();
        let refs = self.frames.refs();
        let first = (GrantRef::RESERVED..refs).rev().fold(0, |next, gref| {
            self.set_next(gref, next);
            gref
        });
        free_list::replace(self, first);
        self.free_count.store(refs.saturating_sub(GrantRef::RESERVED), Ordering::Relaxed);
        let elsewhere = self.quarantine.entered.load(Ordering::Relaxed);
        self.ended.store(self.granted.load(Ordering::Relaxed).wrapping_sub(elsewhere), Ordering::Relaxed);
        self.frames.begin_life();
        Ok(())
    }

    /// Whether the domain is in the life in which the table was set up.
    pub(crate) fn current(&self) -> Result<(), Error> {
        if self.frames.is_current() { Ok(()) } else { Err(Error::Stale) }
    }

    /// The domain's life at the moment.
    #[inline]
    pub(crate) fn incarnation(&self) -> Incarnation {
        self.frames.incarnation()
    }

    /// The platform that everything runs on.
    pub fn platform(&self) -> &P {
        self.frames.platform()
    }

    /// A zeroed page that no other domain can reach, yet.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn alloc_page(&self) -> Result<OwnedPage<'_, P>, Error> {
        OwnedPage::alloc(self.platform()).ok_or(Error::OutOfMemory)
    }

    /// Zeroed pages in a row, at least one, that no other domain can reach, yet.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn alloc_pages(&self, count: usize) -> Result<OwnedPages<'_, P>, Error> {
        OwnedPages::alloc(self.platform(), count).ok_or(Error::OutOfMemory)
    }

    /// A page whose zeroes do not depend on the platform: it would leak to another domain what it has left there.
    pub(crate) fn alloc_clean_page(&self) -> Result<OwnedPage<'_, P>, Error> {
        let mut page = self.alloc_page()?;
        page.bytes_mut().fill(0);
        Ok(page)
    }

    /// Grants a fresh zeroed page to a domain.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], or as [`grant`](Self::grant).
    pub fn share(&self, to: DomId, access: Access) -> Result<GrantedPage<'_, P>, Error> {
        Ok(self.grant(self.alloc_clean_page()?, to, access)?)
    }

    /// Grants a page to a domain. All 4096 bytes of it: nothing that is not meant for that domain may be in it.
    ///
    /// # Errors
    /// The page comes back, with [`Error::NoFreeReference`], [`Error::OutOfMemory`] when the table cannot grow,
    /// [`Error::Growing`], [`Error::FrameTooHigh`], [`Error::ForeignPage`], or Xen's refusal to let the table grow.
    pub fn grant<'g>(
        &'g self,
        page: OwnedPage<'g, P>,
        to: DomId,
        access: Access,
    ) -> Result<GrantedPage<'g, P>, Rejected<'g, P>> {
        let gref = match self.check_page(&page).and_then(|()| self.take_reference()) {
            Ok(gref) => gref,
            Err(error) => return Err(Rejected { error, page }),
        };
        Ok(self.grant_checked(page, gref, to, access))
    }

    /// Lends a page to a domain, for reading only. Its owner can read it in place meanwhile.
    ///
    /// # Errors
    /// As [`grant`](Self::grant).
    pub fn lend<'g>(&'g self, page: OwnedPage<'g, P>, to: DomId) -> Result<LentPage<'g, P>, Rejected<'g, P>> {
        // SAFETY: for reading only.
        self.grant(page, to, Access::ReadOnly).map(|page| unsafe { LentPage::new(page) })
    }

    /// The numbers at this moment.
    pub fn stats(&self) -> Stats {
        let all = self.frames.refs();
        let refs = all.saturating_sub(GrantRef::RESERVED);
        let free = self.free_count.load(Ordering::Relaxed);
        let quarantined = self.quarantine.count.load(Ordering::Relaxed);
        Stats {
            refs,
            free,
            in_use: refs.saturating_sub(free).saturating_sub(quarantined),
            quarantined,
            frames: all / self.frames.per_frame(),
            max_frames: self.max_frames,
            granted: self.granted.load(Ordering::Relaxed),
            ended: self.ended.load(Ordering::Relaxed),
            quarantines: self.quarantine.entered.load(Ordering::Relaxed),
            reclaimed: self.quarantine.left.load(Ordering::Relaxed),
            lost_room: self.lost_room.load(Ordering::Relaxed),
        }
    }

    /// Whether a page can be granted by this table.
    pub(crate) fn check_page(&self, page: &OwnedPage<'_, P>) -> Result<(), Error> {
        if !page.is_of(self.platform()) {
            // It would be freed where it does not come from.
            return Err(Error::ForeignPage);
        }
        self.check_frame(page.gfn())
    }

    pub(crate) fn check_frame(&self, frame: Gfn) -> Result<(), Error> {
        if self.frames.is_version_2() || u32::try_from(frame.0).is_ok() {
            Ok(())
        } else {
            Err(Error::FrameTooHigh(frame))
        }
    }

    /// Grants a page that was checked by a reference that was taken for it, just now, in the table's life.
    pub(crate) fn grant_checked<'g>(
        &'g self,
        page: OwnedPage<'g, P>,
        gref: GrantRef,
        to: DomId,
        access: Access,
    ) -> GrantedPage<'g, P> {
        // Cannot fail: the frame was checked, and the reference is one of the table's.
        let _ = self.frames.write_current(gref, to, &Grant::Page { frame: page.gfn(), access });
        self.granted.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the page is of this table's memory, and the reference was taken for it.
        unsafe { GrantedPage::new(self, page.expose(), gref, to, access) }
    }

    /// Grants a frame that was checked before, by a reference that was taken for it just now.
    pub(crate) fn write_again(&self, gref: GrantRef, to: DomId, frame: Gfn, access: Access) {
        // Cannot fail, as in `grant_checked`.
        let _ = self.frames.write_current(gref, to, &Grant::Page { frame, access });
        self.granted.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn flags(&self, gref: GrantRef) -> GrantFlags {
        self.frames.flags(gref)
    }

    pub(crate) fn peer(&self, gref: GrantRef) -> DomId {
        self.frames.peer(gref)
    }
}

impl<P: Platform> fmt::Debug for GrantTable<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrantTable").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
