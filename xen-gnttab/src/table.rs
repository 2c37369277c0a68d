//! The grant table: references, their entries, and the quarantine.

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

use xen_hypercall::{DomId, Platform};

use crate::abi::{Access, ENTRIES, GrantFlags, GrantRef, MAX_FRAMES};
use crate::frames::Frames;
use crate::free_list::{self, Links};
use crate::granted::{Ended, GrantedPage};
use crate::page::{ExposedPage, OwnedPage, revoke};
use crate::{Error, xen};

/// A domain's grant table, version 1. One per domain; used by shared reference, from any vCPU.
///
/// It takes two pages for every 512 references, the first two at once, more when all references are in use. All
/// operations but that growth are lock-free.
///
/// Made to live as long as the kernel. When it is dropped the frames stay mapped, and pages in quarantine stay with the
/// peers that hold on to them: they are lost as memory, which is better than being reused.
pub struct GrantTable<P: Platform> {
    frames: Frames<P>,
    free_head: AtomicU64,
    max_frames: u32,
    growing: AtomicBool,
    free_count: AtomicU32,
    quarantined: AtomicU32,
    granted: AtomicU64,
}

/// The state of a [`GrantTable`]. While others use the table the numbers may be from slightly different moments.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// References that the table has now, without the eight reserved ones.
    pub refs: u32,
    /// Those that are free.
    pub free: u32,
    /// Those that grant a page.
    pub in_use: u32,
    /// Those whose grant was ended while the peer used the page, with their pages.
    pub quarantined: u32,
    /// Frames of the table, 512 references each.
    pub frames: u32,
    /// The most frames it may have.
    pub max_frames: u32,
    /// Grants made since the start.
    pub granted: u64,
}

/// A page that could not be granted, and why.
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
    /// Sets the table up: asks Xen for its size and maps the first frame.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Version`], or Xen's refusal.
    pub fn new(platform: P) -> Result<Self, Error> {
        xen::require_version_1(&platform)?;
        let max_frames = xen::max_frames(&platform)?.min(MAX_FRAMES as u32);
        let table = Self {
            frames: Frames::new(platform),
            free_head: AtomicU64::new(0),
            max_frames,
            growing: AtomicBool::new(false),
            free_count: AtomicU32::new(0),
            quarantined: AtomicU32::new(0),
            granted: AtomicU64::new(0),
        };
        table.grow()?;
        Ok(table)
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

    /// Grants a fresh zeroed page to a domain.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], or as [`grant`](Self::grant).
    pub fn share(&self, to: DomId, access: Access) -> Result<GrantedPage<'_, P>, Error> {
        let mut page = self.alloc_page()?;
        // The platform promised zeroes. What it would leak otherwise goes to another domain, so do not rely on it.
        page.bytes_mut().fill(0);
        Ok(self.grant(page, to, access)?)
    }

    /// Grants a page to a domain. All 4096 bytes of it: nothing that is not meant for that domain may be in it.
    ///
    /// # Errors
    /// The page comes back, with [`Error::NoFreeReference`], [`Error::OutOfMemory`] when the table cannot grow,
    /// [`Error::Growing`], [`Error::FrameTooHigh`], or Xen's refusal to let the table grow.
    pub fn grant<'g>(
        &'g self,
        page: OwnedPage<'g, P>,
        to: DomId,
        access: Access,
    ) -> Result<GrantedPage<'g, P>, Rejected<'g, P>> {
        let Ok(frame) = u32::try_from(page.gfn().0) else {
            return Err(Rejected { error: Error::FrameTooHigh(page.gfn()), page });
        };
        let gref = match self.take_reference() {
            Ok(gref) => gref,
            Err(error) => return Err(Rejected { error, page }),
        };
        let Some(entry) = self.frames.entry(gref) else {
            return Err(Rejected { error: Error::NoFreeReference, page });
        };
        let page = page.expose();
        entry.domid.store(to.0, Ordering::Relaxed);
        entry.frame.store(frame, Ordering::Relaxed);
        // The flags make the entry valid, so Xen must not see them before the rest, nor before what is in the page.
        fence(Ordering::Release);
        entry.flags.store(access.flags().bits(), Ordering::Relaxed);
        self.granted.fetch_add(1, Ordering::Relaxed);
        Ok(GrantedPage::new(self, page, gref))
    }

    /// Looks through the quarantine: frees the pages that peers have let go of, and their references. Answers how many.
    ///
    /// Happens by itself when the table has no free reference. A driver that closed a device calls it some time later, to
    /// get the memory back. Costs nothing while the quarantine is empty, otherwise a look at every reference.
    pub fn reclaim(&self) -> usize {
        if self.quarantined.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        let mut reclaimed = 0;
        for gref in (0..self.frames.count() * ENTRIES as u32).map(GrantRef) {
            let (Some(entry), Some(slot)) = (self.frames.entry(gref), self.frames.slot(gref)) else {
                continue;
            };
            let Some(page) = slot.take_quarantined() else { continue };
            let kept = match page {
                Some(page) => page.revoke(self.platform(), entry).map(drop).map_err(Some),
                None if revoke(entry) => Ok(()),
                None => Err(None),
            };
            match kept {
                Ok(()) => {
                    self.quarantined.fetch_sub(1, Ordering::Relaxed);
                    self.put_reference(gref);
                    reclaimed += 1;
                }
                Err(page) => slot.set_quarantined(page),
            }
        }
        reclaimed
    }

    /// The numbers at this moment.
    pub fn stats(&self) -> Stats {
        let frames = self.frames.count();
        let refs = (frames * ENTRIES as u32).saturating_sub(GrantRef::RESERVED);
        let free = self.free_count.load(Ordering::Relaxed);
        let quarantined = self.quarantined.load(Ordering::Relaxed);
        Stats {
            refs,
            free,
            in_use: refs.saturating_sub(free).saturating_sub(quarantined),
            quarantined,
            frames,
            max_frames: self.max_frames,
            granted: self.granted.load(Ordering::Relaxed),
        }
    }

    /// Ends the grant of `page` by `gref`, both of which were one [`GrantedPage`] until now.
    pub(crate) fn finish(&self, gref: GrantRef, page: ExposedPage) -> Ended<'_, P> {
        let (Some(entry), Some(slot)) = (self.frames.entry(gref), self.frames.slot(gref)) else {
            // A reference is handed out only after its frame was published. Keeping the page is right in any case.
            return Ended::Quarantined;
        };
        match page.revoke(self.platform(), entry) {
            Ok(page) => {
                self.put_reference(gref);
                Ended::Page(page)
            }
            Err(page) => {
                self.quarantined.fetch_add(1, Ordering::Relaxed);
                slot.set_quarantined(Some(page));
                Ended::Quarantined
            }
        }
    }

    pub(crate) fn flags(&self, gref: GrantRef) -> GrantFlags {
        let bits = self.frames.entry(gref).map_or(0, |entry| entry.flags.load(Ordering::Relaxed));
        GrantFlags::from_bits_retain(bits)
    }

    pub(crate) fn peer(&self, gref: GrantRef) -> DomId {
        self.frames.entry(gref).map_or(DomId::INVALID, |entry| DomId(entry.domid.load(Ordering::Relaxed)))
    }

    fn take_reference(&self) -> Result<GrantRef, Error> {
        loop {
            if let Some(gref) = free_list::pop(self).map(GrantRef) {
                self.free_count.fetch_sub(1, Ordering::Relaxed);
                if let Some(slot) = self.frames.slot(gref) {
                    slot.set_owned();
                }
                return Ok(gref);
            }
            // Every turn makes references free; it ends when there are none to be made.
            if self.reclaim() == 0 {
                self.grow()?;
            }
        }
    }

    fn put_reference(&self, gref: GrantRef) {
        self.free_count.fetch_add(1, Ordering::Relaxed);
        free_list::push(self, gref.0);
    }

    /// Adds a frame. One caller at a time; another is sent away instead of waiting, as it may be an interrupt handler that
    /// the first one cannot get past.
    fn grow(&self) -> Result<(), Error> {
        if self.growing.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return Err(Error::Growing);
        }
        let grown = self.add_frame();
        self.growing.store(false, Ordering::Release);
        grown
    }

    fn add_frame(&self) -> Result<(), Error> {
        if self.frames.count() >= self.max_frames {
            return Err(Error::NoFreeReference);
        }
        let first = self.frames.add()? * ENTRIES as u32;
        // Last to first, so that they are handed out in order.
        for gref in
            (first..first + ENTRIES as u32).rev().map(GrantRef).filter(|gref| gref.0 >= GrantRef::RESERVED)
        {
            let (Some(entry), Some(slot)) = (self.frames.entry(gref), self.frames.slot(gref)) else {
                continue;
            };
            // A boot loader may have left a grant behind. Its page is unknown, and not ours to free.
            if revoke(entry) {
                self.put_reference(gref);
            } else {
                self.quarantined.fetch_add(1, Ordering::Relaxed);
                slot.set_quarantined(None);
            }
        }
        Ok(())
    }
}

impl<P: Platform> Links for GrantTable<P> {
    fn head(&self) -> u64 {
        self.free_head.load(Ordering::Acquire)
    }

    fn exchange_head(&self, old: u64, new: u64) -> Result<(), u64> {
        self.free_head.compare_exchange_weak(old, new, Ordering::AcqRel, Ordering::Acquire).map(drop)
    }

    fn next(&self, reference: u32) -> Option<u32> {
        Some(self.frames.slot(GrantRef(reference))?.next_free())
    }

    fn set_next(&self, reference: u32, next: u32) {
        if let Some(slot) = self.frames.slot(GrantRef(reference)) {
            slot.set_free(next);
        }
    }
}

impl<P: Platform> fmt::Debug for GrantTable<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrantTable").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
