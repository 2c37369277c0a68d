//! The memory of the table: frames shared with Xen, and private pages with a slot per reference.
#![allow(unsafe_code)]

use core::mem::ManuallyDrop;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU16, AtomicU32, Ordering};

use xen_hypercall::abi::XENMAPIDX_GRANT_TABLE_STATUS;
use xen_hypercall::{
    AtomicIncarnation, Claim, DomId, Errno, GrantRoom, Incarnation, PAGE_SIZE, Page, Platform,
};

use crate::abi::{GrantFlags, GrantRef};
use crate::entry::{Grant, Ops, v1, v2};
use crate::slot::Slot;
use crate::{Error, xen};

/// Frames of the table that the directory has room for: 131,072 references of version 1, half as many of version 2.
pub(crate) const MAX_FRAMES: u32 = 256;
/// Slots in a page of them.
const SLOTS: usize = 512;

type Slots = [Slot; SLOTS];
type Pointers = [AtomicPtr<Page>; 512];

/// Where in the directory the frames with entries begin, those with slots (of either version), and those with the status
/// words of version 2, which has half as many slots for as many frames.
const ENTRIES_AT: usize = 0;
const SLOTS_AT: usize = MAX_FRAMES as usize;
const STATUS_AT: usize = SLOTS_AT + MAX_FRAMES as usize * v2::PER_FRAME / SLOTS;

const _: () = assert!(size_of::<Slots>() <= PAGE_SIZE && align_of::<Slots>() <= PAGE_SIZE);
const _: () = assert!(size_of::<Pointers>() <= PAGE_SIZE && align_of::<Pointers>() <= PAGE_SIZE);
const _: () = assert!(SLOTS_AT + MAX_FRAMES as usize * v1::PER_FRAME / SLOTS <= 512);
const _: () = assert!(STATUS_AT + MAX_FRAMES as usize * v2::PER_FRAME / v2::STATUS_PER_FRAME <= 512);
// Entries fill a page of either version and fit its alignment.
const _: () = assert!(size_of::<[v1::Entry; v1::PER_FRAME]>() == PAGE_SIZE);
const _: () = assert!(size_of::<[v2::Entry; v2::PER_FRAME]>() == PAGE_SIZE);
const _: () = assert!(size_of::<[AtomicU16; v2::STATUS_PER_FRAME]>() == PAGE_SIZE);

/// Finds entries and slots: a page of pointers, made once, and how many references it leads to.
#[derive(Debug)]
pub(crate) struct Directory {
    pointers: NonNull<Pointers>,
    per_frame: u32,
    /// References whose frames and slots are all there.
    refs: AtomicU32,
}

// SAFETY: the page of pointers is private to the directory, and only atomics are in it; so are the pages it leads to.
unsafe impl Send for Directory {}
// SAFETY: as above.
unsafe impl Sync for Directory {}

impl Directory {
    fn pointer(&self, index: usize) -> Option<&AtomicPtr<Page>> {
        // SAFETY: `Frames::new` made the page, initialised; it is freed when `Frames` is dropped.
        unsafe { self.pointers.as_ref() }.get(index)
    }

    /// How many references there are.
    pub(crate) fn refs(&self) -> u32 {
        self.refs.load(Ordering::Acquire)
    }

    /// A page of the directory that holds the element `index` of an array of which `per_page` are in a page, and its place
    /// there; if `gref` is a reference of this table.
    fn find(&self, gref: GrantRef, at: usize, per_page: usize) -> Option<(NonNull<Page>, usize)> {
        if gref.0 >= self.refs() {
            return None;
        }
        let page = self.pointer(at + gref.0 as usize / per_page)?.load(Ordering::Relaxed);
        Some((NonNull::new(page)?, gref.0 as usize % per_page))
    }

    /// The entry that Xen sees of a reference, in a table of version 1.
    pub(crate) fn entry_v1(&self, gref: GrantRef) -> Option<&v1::Entry> {
        if self.per_frame as usize != v1::PER_FRAME {
            return None;
        }
        let (page, index) = self.find(gref, ENTRIES_AT, v1::PER_FRAME)?;
        // SAFETY: `add` mapped a frame of the grant table at this page, for good. Xen writes to it, therefore an entry is
        // atomics only, for which every bit pattern is a value.
        unsafe { page.cast::<[v1::Entry; v1::PER_FRAME]>().as_ref() }.get(index)
    }

    /// The entry of a reference and its status word, in a table of version 2.
    pub(crate) fn entry_v2(&self, gref: GrantRef) -> Option<(&v2::Entry, &AtomicU16)> {
        if self.per_frame as usize != v2::PER_FRAME {
            return None;
        }
        let (page, index) = self.find(gref, ENTRIES_AT, v2::PER_FRAME)?;
        // SAFETY: as in `entry_v1`.
        let entry = unsafe { page.cast::<[v2::Entry; v2::PER_FRAME]>().as_ref() }.get(index)?;
        let (page, index) = self.find(gref, STATUS_AT, v2::STATUS_PER_FRAME)?;
        // SAFETY: likewise, a status frame.
        let status = unsafe { page.cast::<[AtomicU16; v2::STATUS_PER_FRAME]>().as_ref() }.get(index)?;
        Some((entry, status))
    }

    /// The private word of a reference.
    pub(crate) fn slot(&self, gref: GrantRef) -> Option<&Slot> {
        let (page, index) = self.find(gref, SLOTS_AT, SLOTS)?;
        // SAFETY: `add` made slots of this page before it counted the reference; freed only by `Frames::drop`.
        unsafe { page.cast::<Slots>().as_ref() }.get(index)
    }
}

/// What a table of version 2 does in place of what stands in the code.
struct Version2<P: Platform> {
    ops: &'static Ops,
    add_status: fn(&Frames<P>, u32) -> Result<(), Error>,
}

/// The frames mapped so far. Owns the memory that everything comes from.
pub(crate) struct Frames<P: Platform> {
    /// Taken by `close` alone.
    claim: ManuallyDrop<Claim<P>>,
    /// The life of the domain in which the frames are where the directory says.
    life: AtomicIncarnation,
    directory: Directory,
    /// A page that a frame could not be put over. Perhaps Xen had taken its memory away by then, so it is good for
    /// another try and for nothing else.
    spare: AtomicPtr<Page>,
    version_2: Option<Version2<P>>,
}

impl<P: Platform> Frames<P> {
    /// A directory for a table of version 1.
    pub(crate) fn new(claim: Claim<P>) -> Result<Self, Error> {
        let Some(page) = claim.platform().alloc_pages(1) else {
            claim.release();
            return Err(Error::OutOfMemory);
        };
        let pointers = page.cast::<Pointers>();
        let first = pointers.cast::<AtomicPtr<Page>>();
        for index in 0..size_of::<Pointers>() / size_of::<AtomicPtr<Page>>() {
            // SAFETY: within the page, which is exclusively ours.
            unsafe { first.add(index).write(AtomicPtr::new(ptr::null_mut())) };
        }
        let directory = Directory { pointers, per_frame: v1::PER_FRAME as u32, refs: AtomicU32::new(0) };
        Ok(Self {
            life: AtomicIncarnation::new(claim.incarnation()),
            claim: ManuallyDrop::new(claim),
            directory,
            spare: AtomicPtr::new(ptr::null_mut()),
            version_2: None,
        })
    }

    /// Makes it a directory for a table of version 2, before the first frame.
    pub(crate) fn use_version_2(&mut self) {
        self.directory.per_frame = v2::PER_FRAME as u32;
        self.version_2 = Some(Version2 { ops: &v2::OPS, add_status: Self::add_status });
    }

    pub(crate) fn platform(&self) -> &P {
        self.claim.platform()
    }

    /// The domain's life at the moment.
    #[inline]
    pub(crate) fn incarnation(&self) -> Incarnation {
        self.claim.incarnation()
    }

    /// The number by which Xen knows this domain.
    pub(crate) fn own_domain(&self) -> Result<DomId, Errno>
    where
        P: GrantRoom,
    {
        self.claim.own_domain()
    }

    /// Whether the frames are where the directory says. After a resume nothing is there, and must not be accessed.
    #[inline]
    pub(crate) fn is_current(&self) -> bool {
        self.incarnation() == self.life()
    }

    /// The life of the domain in which the table was made, or set up again.
    #[inline]
    pub(crate) fn life(&self) -> Incarnation {
        self.life.get()
    }

    /// By which the domain's suspend is forbidden.
    pub(crate) fn claim(&self) -> &Claim<P> {
        &self.claim
    }

    pub(crate) fn is_version_2(&self) -> bool {
        self.version_2.is_some()
    }

    /// References in a frame.
    pub(crate) fn per_frame(&self) -> u32 {
        self.directory.per_frame
    }

    /// How many references there are.
    pub(crate) fn refs(&self) -> u32 {
        self.directory.refs()
    }

    pub(crate) fn slot(&self, gref: GrantRef) -> Option<&Slot> {
        self.directory.slot(gref)
    }

    /// Makes an entry grant something; `None` if it cannot say that, or is not there any more.
    pub(crate) fn write(&self, gref: GrantRef, to: DomId, grant: &Grant) -> Option<()> {
        if self.is_current() { self.write_current(gref, to, grant) } else { None }
    }

    /// As [`write`](Self::write), for a caller who has just found the frames where the directory says.
    #[inline]
    pub(crate) fn write_current(&self, gref: GrantRef, to: DomId, grant: &Grant) -> Option<()> {
        match &self.version_2 {
            None => v1::write(&self.directory, gref, to, grant),
            Some(version_2) => (version_2.ops.write)(&self.directory, gref, to, grant),
        }
    }

    /// Makes an entry grant nothing. False: the peer still uses what was granted.
    pub(crate) fn revoke(&self, gref: GrantRef) -> bool {
        // Nobody uses what a domain granted that is gone.
        !self.is_current() || self.revoke_current(gref)
    }

    /// As [`revoke`](Self::revoke), for a caller who has just found the frames where the directory says.
    #[inline]
    pub(crate) fn revoke_current(&self, gref: GrantRef) -> bool {
        match &self.version_2 {
            None => v1::revoke(&self.directory, gref),
            Some(version_2) => (version_2.ops.revoke)(&self.directory, gref),
        }
    }

    pub(crate) fn flags(&self, gref: GrantRef) -> GrantFlags {
        if !self.is_current() {
            return GrantFlags::empty();
        }
        match &self.version_2 {
            None => v1::flags(&self.directory, gref),
            Some(version_2) => (version_2.ops.flags)(&self.directory, gref),
        }
    }

    pub(crate) fn peer(&self, gref: GrantRef) -> DomId {
        if !self.is_current() {
            return DomId::INVALID;
        }
        match &self.version_2 {
            None => v1::peer(&self.directory, gref),
            Some(version_2) => (version_2.ops.peer)(&self.directory, gref),
        }
    }

    /// Adds the frame whose first reference is `first`: its entries, the status words if the version has any, and slots, all of
    /// which are "owned". They are there once they are [published](Self::publish). One caller at a time.
    ///
    /// What was done before a failure is kept for the next try.
    pub(crate) fn add(&self, first: u32) -> Result<(), Error> {
        let frame = first / self.per_frame();
        if frame >= MAX_FRAMES {
            return Err(Error::NoFreeReference);
        }
        self.add_slots(first as usize / SLOTS)?;
        self.add_frame(ENTRIES_AT + frame as usize, frame.into())?;
        match &self.version_2 {
            Some(version_2) => (version_2.add_status)(self, first),
            None => Ok(()),
        }
    }

    /// Says that so many references are there.
    pub(crate) fn publish(&self, refs: u32) {
        // Release: who sees the number sees the pointers and slots.
        self.directory.refs.store(refs, Ordering::Release);
    }

    fn add_slots(&self, index: usize) -> Result<(), Error> {
        let place = self.directory.pointer(SLOTS_AT + index).ok_or(Error::NoFreeReference)?;
        if !place.load(Ordering::Relaxed).is_null() {
            return Ok(());
        }
        let page = self.platform().alloc_pages(1).ok_or(Error::OutOfMemory)?;
        for index in 0..SLOTS {
            // SAFETY: the page is exclusively ours and has room for the slots (asserted above).
            unsafe { page.cast::<Slot>().add(index).write(Slot::owned()) };
        }
        place.store(page.as_ptr(), Ordering::Relaxed);
        Ok(())
    }

    fn add_status(&self, first: u32) -> Result<(), Error> {
        let index = first as usize / v2::STATUS_PER_FRAME;
        self.add_frame(STATUS_AT + index, XENMAPIDX_GRANT_TABLE_STATUS | index as u64)
    }

    /// Puts a frame of Xen's over a page of ours, unless that was done.
    fn add_frame(&self, at: usize, frame: u64) -> Result<(), Error> {
        let place = self.directory.pointer(at).ok_or(Error::NoFreeReference)?;
        if !place.load(Ordering::Relaxed).is_null() {
            return Ok(());
        }
        let spare = NonNull::new(self.spare.swap(ptr::null_mut(), Ordering::Relaxed));
        let page = spare.or_else(|| self.platform().alloc_pages(1)).ok_or(Error::OutOfMemory)?;
        // SAFETY: the page was allocated for this; it is used as a frame of the table only, and never freed.
        if let Err(error) = unsafe { xen::map_frame(self.platform(), frame, self.platform().gfn(page)) } {
            self.spare.store(page.as_ptr(), Ordering::Relaxed);
            return Err(error);
        }
        place.store(page.as_ptr(), Ordering::Relaxed);
        Ok(())
    }
}

/// After a resume.
impl<P: Platform> Frames<P> {
    /// Puts the frames of a new domain where those of the one before were, in the version that they had.
    pub(crate) fn restore(&self) -> Result<(), Error> {
        xen::require_version(self.platform(), if self.is_version_2() { 2 } else { 1 })?;
        self.restore_row(ENTRIES_AT..SLOTS_AT, 0)?;
        if self.is_version_2() {
            self.restore_row(STATUS_AT..512, XENMAPIDX_GRANT_TABLE_STATUS)?;
        }
        Ok(())
    }

    fn restore_row(&self, places: core::ops::Range<usize>, first: u64) -> Result<(), Error> {
        for (frame, at) in (first..).zip(places) {
            let page = self.directory.pointer(at).map(|page| page.load(Ordering::Relaxed));
            let Some(page) = page.and_then(NonNull::new) else { break };
            // SAFETY: from `add_frame`, so it is used as a frame of the table only. Nobody accesses it while the table is of
            // another life.
            unsafe { xen::map_frame(self.platform(), frame, self.platform().gfn(page)) }?;
        }
        Ok(())
    }

    /// Lets the table be used in the domain's present life.
    pub(crate) fn begin_life(&self) {
        self.life.set(self.incarnation());
    }
}

impl<P: Platform> core::fmt::Debug for Frames<P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Frames").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl<P: Platform> Frames<P> {
    /// Takes the frames out of the domain's memory, and lets another table be made.
    pub(crate) fn close(self) -> Result<(), Error> {
        let closed = self.unmap();
        self.release(closed.is_ok());
        closed
    }

    /// The end of a table that could not be started, and why: nobody has a reference of it. `foreign`: how many frames others
    /// have mapped in the other layout, which entries get again.
    #[cold]
    pub(crate) fn give_up(self, foreign: u32, error: Error) -> Error {
        // Before the layout changes, with which the status frames go. And on Arm Xen would refuse the next table a frame that
        // stays mapped.
        let unmapped = self.unmap();
        if foreign > 0 {
            xen::change_back(self.platform(), if self.is_version_2() { 1 } else { 2 });
        }
        self.release(unmapped.is_ok());
        error
    }

    /// Takes all frames out of the domain's memory. Nothing of the table is accessed afterwards.
    fn unmap(&self) -> Result<(), Error> {
        let status = if self.is_version_2() { STATUS_AT..512 } else { 0..0 };
        let mut unmapped = Ok(());
        for index in (ENTRIES_AT..SLOTS_AT).chain(status) {
            let page = self.directory.pointer(index).map(|page| page.load(Ordering::Relaxed));
            if let Some(page) = page.and_then(NonNull::new) {
                // SAFETY: from `add_frame`. The callers own the table, so nobody has a reference of it, and access no entry
                // afterwards.
                unmapped = unmapped.and(unsafe { xen::unmap_frame(self.platform(), page) });
            }
        }
        unmapped
    }

    /// Frees the memory, and lets another table be made, or not: if Xen keeps a frame of this one mapped.
    fn release(self, others_may: bool) {
        let mut this = ManuallyDrop::new(self);
        this.free();
        // SAFETY: `this` is not used, nor dropped, afterwards.
        let claim = unsafe { ManuallyDrop::take(&mut this.claim) };
        if others_may {
            claim.release();
        }
    }

    /// Frees what is not shared with Xen.
    fn free(&mut self) {
        let pages = if self.is_version_2() { SLOTS_AT..STATUS_AT } else { SLOTS_AT..512 };
        // The frames shared with Xen stay: Xen put them where our pages were, they are no memory that could be given back.
        // The spare page may be no memory either. Quarantined pages stay, for the peer still has them.
        for index in pages {
            let page = self.directory.pointer(index).map(|page| page.load(Ordering::Relaxed));
            if let Some(page) = page.and_then(NonNull::new) {
                // SAFETY: from `add_slots`, so from this memory, and `&mut self` proves that no slot is in use. Slots need
                // no drop.
                unsafe { self.platform().free_pages(page, 1) };
            }
        }
        // SAFETY: from `new`; nothing uses the directory any more.
        unsafe { self.platform().free_pages(self.directory.pointers.cast(), 1) };
    }
}

impl<P: Platform> Drop for Frames<P> {
    fn drop(&mut self) {
        self.free();
        // SAFETY: only here and in the methods that keep this from running.
        unsafe { ManuallyDrop::drop(&mut self.claim) };
    }
}
