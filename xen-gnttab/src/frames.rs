//! The memory of the table: frames shared with Xen, and beside each a private page with a slot per reference.
#![allow(unsafe_code)]

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use xen_hypercall::{PAGE_SIZE, Page, Platform};

use crate::abi::{ENTRIES, Entry, GrantRef, MAX_FRAMES};
use crate::page::ExposedPage;
use crate::{Error, xen};

type Slots = [Slot; ENTRIES];
type Entries = [Entry; ENTRIES];

const _: () = assert!(size_of::<Entries>() == PAGE_SIZE && size_of::<Slots>() <= PAGE_SIZE);
const _: () = assert!(align_of::<Slots>() <= PAGE_SIZE && align_of::<Entries>() <= PAGE_SIZE);

/// What the guest knows of one reference. One word, so that every change of hands is one atomic access: the two low
/// bits are the kind, the rest is the next free reference or the address of the quarantined page.
#[repr(transparent)]
#[derive(Debug)]
pub(crate) struct Slot(AtomicPtr<Page>);

const KIND: usize = 0b11;
const OWNED: usize = 0b01;
const FREE: usize = 0b10;
const QUARANTINED: usize = 0b11;

impl Slot {
    fn is(word: *mut Page, kind: usize) -> bool {
        word.addr() & KIND == kind
    }

    /// A granted page, or whoever moves the reference just now, has it.
    pub(crate) fn set_owned(&self) {
        self.0.store(ptr::without_provenance_mut(OWNED), Ordering::Relaxed);
    }

    pub(crate) fn set_free(&self, next: u32) {
        self.0.store(ptr::without_provenance_mut((next as usize) << 2 | FREE), Ordering::Relaxed);
    }

    /// The reference after this one in the free list; meaningless if this one is not in it at the moment.
    pub(crate) fn next_free(&self) -> u32 {
        (self.0.load(Ordering::Relaxed).addr() >> 2) as u32
    }

    /// Leaves the page, if it is known, to the slot.
    pub(crate) fn set_quarantined(&self, page: Option<ExposedPage>) {
        let page = page.map_or(ptr::null_mut(), |page| page.into_raw().as_ptr());
        // Release: what the last owner did with the page comes before what the sweeper does.
        self.0.store(page.map_addr(|address| address | QUARANTINED), Ordering::Release);
    }

    /// Takes a quarantined reference, and its page, out of the slot; of several sweepers one succeeds.
    pub(crate) fn take_quarantined(&self) -> Option<Option<ExposedPage>> {
        let word = self.0.load(Ordering::Relaxed);
        if !Self::is(word, QUARANTINED) {
            return None;
        }
        let owned = ptr::without_provenance_mut(OWNED);
        self.0.compare_exchange(word, owned, Ordering::AcqRel, Ordering::Relaxed).ok()?;
        let page = NonNull::new(word.map_addr(|address| address & !KIND));
        // SAFETY: only `set_quarantined` makes such a word, of a page from `into_raw`, and the exchange took it out, once.
        Some(page.map(|page| unsafe { ExposedPage::from_raw(page) }))
    }
}

/// The frames mapped so far. Owns the memory that everything comes from.
#[derive(Debug)]
pub(crate) struct Frames<P: Platform> {
    platform: P,
    entries: [AtomicPtr<Entries>; MAX_FRAMES],
    slots: [AtomicPtr<Slots>; MAX_FRAMES],
    count: AtomicU32,
}

impl<P: Platform> Frames<P> {
    pub(crate) const fn new(platform: P) -> Self {
        Self {
            platform,
            entries: [const { AtomicPtr::new(ptr::null_mut()) }; MAX_FRAMES],
            slots: [const { AtomicPtr::new(ptr::null_mut()) }; MAX_FRAMES],
            count: AtomicU32::new(0),
        }
    }

    pub(crate) fn platform(&self) -> &P {
        &self.platform
    }

    /// How many frames there are.
    pub(crate) fn count(&self) -> u32 {
        self.count.load(Ordering::Acquire)
    }

    /// The entry that Xen sees of a reference. `None` if its frame is not mapped.
    pub(crate) fn entry(&self, gref: GrantRef) -> Option<&Entry> {
        let (frame, index) = place(gref);
        let entries = self.entries.get(frame)?.load(Ordering::Acquire);
        // SAFETY: null or published by `add`, which mapped a frame of the grant table there; it stays mapped for good. Xen
        // writes to it, therefore an entry is atomics only, for which every bit pattern is a value.
        unsafe { entries.as_ref() }?.get(index)
    }

    /// The private word of a reference. `None` if its frame is not mapped.
    pub(crate) fn slot(&self, gref: GrantRef) -> Option<&Slot> {
        let (frame, index) = place(gref);
        let slots = self.slots.get(frame)?.load(Ordering::Acquire);
        // SAFETY: null or published by `add` after it was initialised; freed only by `drop`, which has `&mut self`.
        unsafe { slots.as_ref() }?.get(index)
    }

    /// Adds the next frame: takes two pages, puts the grant table's frame of that number over the first, and publishes
    /// both. Every slot is "owned"; the caller frees those that may be handed out. One caller at a time.
    pub(crate) fn add(&self) -> Result<u32, Error> {
        let frame = self.count();
        let (Some(entries_at), Some(slots_at)) =
            (self.entries.get(frame as usize), self.slots.get(frame as usize))
        else {
            return Err(Error::NoFreeReference);
        };
        let memory = &self.platform;
        let shared = memory.alloc_pages(1).ok_or(Error::OutOfMemory)?;
        let Some(private) = memory.alloc_pages(1) else {
            // SAFETY: allocated above, used by nobody.
            unsafe { memory.free_pages(shared, 1) };
            return Err(Error::OutOfMemory);
        };
        // SAFETY: the page was allocated for this just above; from here on it is used as entries only, and never freed.
        if let Err(error) = unsafe { xen::map_frame(memory, frame, memory.gfn(shared)) } {
            // SAFETY: allocated above; nothing was mapped over the first and neither was published.
            unsafe {
                memory.free_pages(shared, 1);
                memory.free_pages(private, 1);
            }
            return Err(error);
        }
        let first = private.cast::<Slot>();
        for index in 0..ENTRIES {
            // SAFETY: the page is exclusively ours and has room for ENTRIES slots (asserted above).
            unsafe { first.add(index).write(Slot(AtomicPtr::new(ptr::without_provenance_mut(OWNED)))) };
        }
        slots_at.store(private.cast().as_ptr(), Ordering::Release);
        entries_at.store(shared.cast().as_ptr(), Ordering::Release);
        self.count.store(frame + 1, Ordering::Release);
        Ok(frame)
    }
}

impl<P: Platform> Drop for Frames<P> {
    fn drop(&mut self) {
        for slots in &mut self.slots {
            let Some(private) = NonNull::new(*slots.get_mut()) else { continue };
            // SAFETY: from `add`, so from this memory, and `&mut self` proves that no slot is in use. Slots need no drop. The
            // frames shared with Xen stay: Xen put them where our pages were, they are no memory that could be given back.
            // Quarantined pages stay as well, for the peer still has them.
            unsafe { self.platform.free_pages(private.cast(), 1) };
        }
    }
}

fn place(gref: GrantRef) -> (usize, usize) {
    (gref.0 as usize / ENTRIES, gref.0 as usize % ENTRIES)
}
