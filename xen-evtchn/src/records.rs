//! What the guest keeps for each port, in pages from the platform's memory.
#![allow(unsafe_code)]

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

use atomic_waker::AtomicWaker;
use xen_hypercall::{PAGE_SIZE, Page, PageMemory};

use crate::Error;
use crate::port::Place;

/// Ports per page: as many as there are bits in a word of the shared bitmaps.
const CHUNK: usize = 64;
const CHUNKS: usize = 64;

/// One port's private state. Touched by the interrupt side, hence atomics only.
#[derive(Debug)]
pub(crate) struct Record {
    waker: AtomicWaker,
    fired: AtomicBool,
    owned: AtomicBool,
    events: AtomicU64,
    notifications: AtomicU64,
}

impl Record {
    const fn new() -> Self {
        Self {
            waker: AtomicWaker::new(),
            fired: AtomicBool::new(false),
            owned: AtomicBool::new(false),
            events: AtomicU64::new(0),
            notifications: AtomicU64::new(0),
        }
    }

    /// Makes the caller the port's only owner; nothing of an earlier owner is left. False if it has an owner.
    pub(crate) fn claim(&self) -> bool {
        if self.owned.compare_exchange(false, true, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return false;
        }
        self.forget();
        self.events.store(0, Ordering::Relaxed);
        self.notifications.store(0, Ordering::Relaxed);
        true
    }

    /// Ends ownership.
    pub(crate) fn release(&self) {
        self.forget();
        self.owned.store(false, Ordering::Release);
    }

    fn forget(&self) {
        drop(self.waker.take());
        self.fired.store(false, Ordering::Release);
    }

    pub(crate) fn is_owned(&self) -> bool {
        self.owned.load(Ordering::Acquire)
    }

    /// An event arrived.
    pub(crate) fn fire(&self) {
        self.events.fetch_add(1, Ordering::Relaxed);
        // Release: what the peer wrote before it sent, which the pending bit's clearing acquired, is passed on to take().
        self.fired.store(true, Ordering::Release);
        self.waker.wake();
    }

    pub(crate) fn take(&self) -> bool {
        // A plain load first: polling an idle port costs no locked access.
        self.fired.load(Ordering::Relaxed) && self.fired.swap(false, Ordering::AcqRel)
    }

    pub(crate) fn waker(&self) -> &AtomicWaker {
        &self.waker
    }

    pub(crate) fn notified(&self) {
        self.notifications.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn events(&self) -> u64 {
        self.events.load(Ordering::Relaxed)
    }

    pub(crate) fn notifications(&self) -> u64 {
        self.notifications.load(Ordering::Relaxed)
    }
}

type Chunk = [Record; CHUNK];
const _: () = assert!(size_of::<Chunk>() <= PAGE_SIZE && align_of::<Chunk>() <= PAGE_SIZE);

/// Records for every port, of which only the pages in use exist. Owns the memory they come from.
#[derive(Debug)]
pub(crate) struct Records<P: PageMemory> {
    memory: P,
    chunks: [AtomicPtr<Chunk>; CHUNKS],
}

impl<P: PageMemory> Records<P> {
    pub(crate) const fn new(memory: P) -> Self {
        Self { memory, chunks: [const { AtomicPtr::new(ptr::null_mut()) }; CHUNKS] }
    }

    pub(crate) fn memory(&self) -> &P {
        &self.memory
    }

    /// The port's record, if a port near it was ever bound.
    pub(crate) fn get(&self, place: Place) -> Option<&Record> {
        let chunk = self.chunks.get(place.word)?.load(Ordering::Acquire);
        // SAFETY: a pointer in the table is null or leads to a chunk that `ensure` initialised before it published the
        // pointer (Release there, Acquire here) and that is freed only by `drop`, which has `&mut self`.
        let chunk = unsafe { chunk.as_ref() }?;
        chunk.get(place.index)
    }

    /// The port's record; allocates its page when this is the first port in it.
    ///
    /// Lock-free: of several callers that allocate at once one publishes, the others free their page and use that one's.
    pub(crate) fn ensure(&self, place: Place) -> Result<&Record, Error> {
        if let Some(record) = self.get(place) {
            return Ok(record);
        }
        let slot = self.chunks.get(place.word).ok_or(Error::OutOfMemory)?;
        let page = self.memory.alloc_pages(1).ok_or(Error::OutOfMemory)?;
        let first = page.cast::<Record>();
        for index in 0..CHUNK {
            // SAFETY: the page is exclusively ours, aligned to its size, and holds CHUNK records (asserted above).
            unsafe { first.add(index).write(Record::new()) };
        }
        let chunk = page.cast::<Chunk>().as_ptr();
        if slot.compare_exchange(ptr::null_mut(), chunk, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // SAFETY: the page came from this memory just above, and nobody else has seen it: publishing failed. Records
            // fresh from `new` own nothing that would need dropping.
            unsafe { self.memory.free_pages(page, 1) };
        }
        self.get(place).ok_or(Error::OutOfMemory)
    }
}

impl<P: PageMemory> Drop for Records<P> {
    fn drop(&mut self) {
        for slot in &mut self.chunks {
            let Some(chunk) = NonNull::new(*slot.get_mut()) else { continue };
            // SAFETY: published by `ensure`, so initialised and from this memory; `&mut self` proves that no reference to a
            // record is left. Dropping first releases wakers of channels that were leaked instead of dropped.
            unsafe {
                chunk.drop_in_place();
                self.memory.free_pages(chunk.cast::<Page>(), 1);
            }
        }
    }
}
