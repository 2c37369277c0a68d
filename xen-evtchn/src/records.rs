//! Where the records of all ports are: in pages from the platform's memory, of which only those in use exist.
#![allow(unsafe_code)]

use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, Ordering};

use xen_hypercall::{Claim, PAGE_SIZE, Page, Platform};

use crate::record::Record;
use crate::{Error, Port};

/// Records in a page.
const CHUNK: usize = PAGE_SIZE / size_of::<Record>();
/// Pointers in a page.
const TABLE: usize = PAGE_SIZE / size_of::<AtomicPtr<Chunk>>();
/// Pages of pointers: enough for every port of the FIFO ABI.
const TABLES: usize = (Port::FIFO_LIMIT as usize).div_ceil(CHUNK * TABLE);

type Chunk = [Record; CHUNK];
type Table = [AtomicPtr<Chunk>; TABLE];

const _: () = assert!(size_of::<Chunk>() <= PAGE_SIZE && align_of::<Chunk>() <= PAGE_SIZE);
const _: () = assert!(size_of::<Table>() <= PAGE_SIZE && TABLES * TABLE * CHUNK >= Port::FIFO_LIMIT as usize);

/// A record that is exchanged for another when a channel gets another port.
#[derive(Debug)]
pub(crate) struct RecordRef<'e> {
    record: AtomicPtr<Record>,
    _borrows: PhantomData<&'e Record>,
}

impl<'e> RecordRef<'e> {
    pub(crate) const fn new(record: &'e Record) -> Self {
        Self { record: AtomicPtr::new(ptr::from_ref(record).cast_mut()), _borrows: PhantomData }
    }

    #[inline]
    pub(crate) fn get(&self) -> &'e Record {
        // SAFETY: `new` and `set` alone make the pointer, of a reference that is good for as long. It is only read from.
        unsafe { &*self.record.load(Ordering::Acquire) }
    }

    pub(crate) fn set(&self, record: &'e Record) {
        self.record.store(ptr::from_ref(record).cast_mut(), Ordering::Release);
    }
}

/// Records for every port. Owns the platform whose memory they are in, as a part of the domain.
pub(crate) struct Records<P: Platform> {
    /// Taken by `release` alone.
    claim: ManuallyDrop<Claim<P>>,
    tables: [AtomicPtr<Table>; TABLES],
}

impl<P: Platform> Records<P> {
    pub(crate) const fn new(claim: Claim<P>) -> Self {
        Self { claim: ManuallyDrop::new(claim), tables: [const { AtomicPtr::new(ptr::null_mut()) }; TABLES] }
    }

    pub(crate) fn claim(&self) -> &Claim<P> {
        &self.claim
    }

    /// Frees the records, and gives the part of the domain back that they are for.
    pub(crate) fn release(self) {
        let mut this = ManuallyDrop::new(self);
        this.free();
        // SAFETY: `this` is not used, nor dropped, afterwards.
        unsafe { ManuallyDrop::take(&mut this.claim) }.release();
    }

    /// The port's record, if a port near it was ever bound.
    pub(crate) fn get(&self, port: Port) -> Option<&Record> {
        let (table, slot, index) = place(port);
        let table = published(self.tables.get(table)?)?;
        published(table.get(slot)?)?.get(index)
    }

    /// The port's record; allocates its page when this is the first port in it.
    pub(crate) fn ensure(&self, port: Port) -> Result<&Record, Error> {
        let (table, slot, index) = place(port);
        let table = self.tables.get(table).ok_or(Error::PortOutOfRange(port))?;
        // SAFETY: a null pointer is a valid entry, and the page has room for TABLE of them (asserted above).
        let table = unsafe { self.filled::<_, TABLE>(table, || AtomicPtr::new(ptr::null_mut())) }?;
        let chunk = table.get(slot).ok_or(Error::PortOutOfRange(port))?;
        // SAFETY: the page has room for CHUNK records (asserted above).
        let chunk = unsafe { self.filled::<_, CHUNK>(chunk, Record::new) }?;
        chunk.get(index).ok_or(Error::PortOutOfRange(port))
    }

    /// Calls `f` with all records that exist. At most one for each port.
    #[inline(never)]
    pub(crate) fn each(&self, f: &mut dyn FnMut(Port, &Record)) {
        let places = |index: usize, count: usize| index as u32 * count as u32..;
        for (i, table) in self.tables.iter().enumerate() {
            for (j, chunk) in places(i, TABLE).zip(published(table).into_iter().flatten()) {
                for (port, record) in places(j as usize, CHUNK).zip(published(chunk).into_iter().flatten()) {
                    f(Port(port), record);
                }
            }
        }
    }

    /// What a pointer leads to; allocates a page and fills it when it leads nowhere yet.
    ///
    /// Lock-free: of several callers that allocate at once one publishes, the others free their page and use that one's.
    ///
    /// # Safety
    /// `N` values of `T` fit in a page, whose alignment is enough for them.
    unsafe fn filled<'a, T, const N: usize>(
        &self,
        slot: &'a AtomicPtr<[T; N]>,
        new: impl Fn() -> T,
    ) -> Result<&'a [T; N], Error> {
        if let Some(there) = published(slot) {
            return Ok(there);
        }
        let page = self.claim.platform().alloc_pages(1).ok_or(Error::OutOfMemory)?;
        let first = page.cast::<T>();
        for index in 0..N {
            // SAFETY: the page is exclusively ours, and the caller promises that N values fit.
            unsafe { first.add(index).write(new()) };
        }
        let fresh = page.cast::<[T; N]>().as_ptr();
        if slot.compare_exchange(ptr::null_mut(), fresh, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // SAFETY: the page came from this memory just above, and nobody else has seen it: publishing failed. Neither
            // fresh records nor null pointers own anything that would need dropping.
            unsafe { self.claim.platform().free_pages(page, 1) };
        }
        published(slot).ok_or(Error::OutOfMemory)
    }
}

/// Table, chunk and index of a port. The table does not exist for ports out of range.
fn place(port: Port) -> (usize, usize, usize) {
    let port = port.0 as usize;
    (port / (CHUNK * TABLE), port / CHUNK % TABLE, port % CHUNK)
}

/// What a pointer of the tables leads to.
fn published<T>(slot: &AtomicPtr<T>) -> Option<&T> {
    // SAFETY: a pointer in the tables is null or leads to what `filled` initialised before it published the pointer
    // (Release there, Acquire here), which is freed only by `drop`, with `&mut self`, and so not while the slot is
    // borrowed.
    unsafe { slot.load(Ordering::Acquire).as_ref() }
}

impl<P: Platform> Records<P> {
    /// Frees all records. None is there afterwards.
    fn free(&mut self) {
        let memory = self.claim.platform();
        for slot in &mut self.tables {
            let Some(mut table) = NonNull::new(*slot.get_mut()) else { continue };
            // SAFETY: published by `filled`, so initialised; `&mut self` proves that nobody else uses it.
            for slot in unsafe { table.as_mut() } {
                let Some(chunk) = NonNull::new(*slot.get_mut()) else { continue };
                // SAFETY: as above, and from this memory. Dropping first releases wakers of channels that were leaked
                // instead of dropped.
                unsafe {
                    chunk.drop_in_place();
                    memory.free_pages(chunk.cast::<Page>(), 1);
                }
            }
            // SAFETY: from this memory; what it led to is gone, and pointers need no dropping.
            unsafe { memory.free_pages(table.cast::<Page>(), 1) };
            *slot.get_mut() = ptr::null_mut();
        }
    }
}

impl<P: Platform> Drop for Records<P> {
    fn drop(&mut self) {
        self.free();
        // SAFETY: only here and in `release`, which keeps this from running.
        unsafe { ManuallyDrop::drop(&mut self.claim) };
    }
}
