//! The two handshakes of a ring, on their own: telling the peer of new work, and going to sleep.
//!
//! They are generic over the words they use, so that a model checker runs the very code that the rings run. Each
//! needs a full fence between its write and its read: without it, both sides can read what was there before the
//! other's write, the one does not notify, the other sleeps, and nobody wakes it.

use core::sync::atomic::{Ordering, fence};

use crate::mem::{OutOfRange, SharedMem};

/// A word that both domains read and write.
pub trait Word {
    /// What goes wrong when the word cannot be accessed.
    type Error;

    /// Reads it; later reads and writes stay behind (acquire).
    ///
    /// # Errors
    /// When it cannot be accessed.
    fn load(&self) -> Result<u32, Self::Error>;

    /// Writes it; earlier reads and writes stay before (release).
    ///
    /// # Errors
    /// When it cannot be accessed.
    fn store(&self, value: u32) -> Result<(), Self::Error>;

    /// Keeps everything before it before everything behind it (sequentially consistent).
    fn full_fence() {
        fence(Ordering::SeqCst);
    }
}

/// A word at an offset of shared memory.
#[derive(Debug)]
pub struct SharedWord<'m, 'a> {
    mem: &'m SharedMem<'a>,
    offset: usize,
}

impl<'m, 'a> SharedWord<'m, 'a> {
    /// The word at `offset`, in bytes.
    #[inline]
    pub fn new(mem: &'m SharedMem<'a>, offset: usize) -> Self {
        Self { mem, offset }
    }
}

impl Word for SharedWord<'_, '_> {
    type Error = OutOfRange;

    #[inline]
    fn load(&self) -> Result<u32, OutOfRange> {
        self.mem.load_u32(self.offset, Ordering::Acquire)
    }

    #[inline]
    fn store(&self, value: u32) -> Result<(), OutOfRange> {
        self.mem.store_u32(self.offset, value, Ordering::Release)
    }
}

/// Moves the producer's index from `old` to `new`, and returns whether the consumer asked to be notified of one
/// of the entries between (`RING_PUSH_*_AND_CHECK_NOTIFY` of `io/ring.h`).
///
/// # Errors
/// When a word cannot be accessed.
#[inline]
pub fn publish<W: Word>(producer: &W, event: &W, old: u32, new: u32) -> Result<bool, W::Error> {
    producer.store(new)?;
    W::full_fence();
    let event = event.load()?;
    // The event index lies within (old, new]. Both differences wrap, so this holds across the end of the numbers.
    Ok(new.wrapping_sub(event) < new.wrapping_sub(old))
}

/// Asks to be notified of the entry after `consumed`, and returns the producer's index as it is after asking: what
/// is there already will not be notified (`RING_FINAL_CHECK_FOR_*` of `io/ring.h`).
///
/// # Errors
/// When a word cannot be accessed.
#[inline]
pub fn arm<W: Word>(event: &W, producer: &W, consumed: u32) -> Result<u32, W::Error> {
    event.store(consumed.wrapping_add(1))?;
    W::full_fence();
    producer.load()
}
