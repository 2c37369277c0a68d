//! The word of one port: who owns it, why it is masked, and whether an event came. Every change of it is one atomic access,
//! so that of an interrupt, a task and an owner that comes or goes each sees all of it or nothing.
//!
//! A port's number has many lives: Xen gives the number of a closed port to the next who asks. The word counts them, so that
//! whoever was interrupted in one life does not end or change the next.
//!
//! Everything goes through [`Word`], so that the same code runs on loom's model of memory.
#![allow(unreachable_pub, reason = "public for the loom tests alone")]

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::SeqCst;

/// Nobody owns the port, or its owner is not ready for events.
pub const FREE: u64 = 1;
/// The owner said so.
pub const MASKED: u64 = 1 << 1;
/// An event was delivered, and the owner, who ends events himself, has not done so.
pub const UNFINISHED: u64 = 1 << 2;
/// The port came twice in one pass; the rest of the pass goes without it. This belongs to the pass and not to the owner.
pub const TWICE: u64 = 1 << 3;
/// The reasons to mask the port. It is to be unmasked exactly if there is none.
pub const HELD: u64 = FREE | MASKED | UNFINISHED | TWICE;

/// An event that is [`UNFINISHED`] has been found to bring nothing, and its end waits for the clock.
pub const THROTTLED: u64 = 1 << 4;
/// Somebody owns the port.
pub const OWNED: u64 = 1 << 5;
/// The owner is closing the port: whoever gets the number from Xen is the next owner.
pub const CLOSING: u64 = 1 << 6;
/// The owner ends events himself.
pub const LATE: u64 = 1 << 7;
/// An event came, and nobody took it.
pub const FIRED: u64 = 1 << 8;
/// An event came while nobody owned the port. Perhaps the next owner's, who has the number but not the record, yet.
pub const MISSED: u64 = 1 << 9;
/// A task is leaving its waker.
pub const POLLING: u64 = 1 << 10;
/// In which of the places for wakers one was left: a bit for each. They are taken in order, so behind the first that is not
/// set there is none.
pub const LEFT: u64 = ((1 << PLACES) - 1) << LEFT_SHIFT;
/// Places for wakers.
pub const PLACES: usize = 4;
const LEFT_SHIFT: usize = 11;

/// The bit of a place in [`LEFT`].
pub const fn left(place: usize) -> u64 {
    (1 << (LEFT_SHIFT + place)) & LEFT
}

/// How many places, from the first on, may have a waker in them.
pub const fn places_left(word: u64) -> usize {
    (word & LEFT).count_ones() as usize
}

/// The least bit of the count of lives. The count goes round after 2^48 of them.
const LIFE: u64 = 1 << 16;
/// All bits below the count.
const FLAGS: u64 = LIFE - 1;
/// What of a life does not end with it.
const LASTING: u64 = TWICE | MISSED;

/// A word shared by all vCPUs. Each method is one atomic access, in one order with all others.
pub trait Word {
    /// Reads it.
    fn load(&self) -> u64;
    /// Replaces it if it is `old`; otherwise returns what it is.
    fn replace(&self, old: u64, new: u64) -> Result<(), u64>;
    /// Sets bits, returns the word as it was.
    fn set(&self, bits: u64) -> u64;
    /// Clears bits, returns the word as it was.
    fn clear(&self, bits: u64) -> u64;
}

impl Word for AtomicU64 {
    #[inline]
    fn load(&self) -> u64 {
        self.load(SeqCst)
    }
    #[inline]
    fn replace(&self, old: u64, new: u64) -> Result<(), u64> {
        self.compare_exchange(old, new, SeqCst, SeqCst).map(drop)
    }
    #[inline]
    fn set(&self, bits: u64) -> u64 {
        self.fetch_or(bits, SeqCst)
    }
    #[inline]
    fn clear(&self, bits: u64) -> u64 {
        self.fetch_and(!bits, SeqCst)
    }
}

/// Changes the word by `change`, unless that says "no"; returns the word as it was.
fn update(word: &impl Word, change: impl Fn(u64) -> Option<u64>) -> Option<u64> {
    let mut old = word.load();
    loop {
        match word.replace(old, change(old)?) {
            Ok(()) => return Some(old),
            Err(now) => old = now,
        }
    }
}

/// Begins a life, whose owner is the caller alone; nothing of an earlier one is left. False: the port has an owner. The port
/// stays [`FREE`] until the owner calls [`open`].
///
/// `fresh`: Xen has just given the number to the caller. Then an owner who is still [`CLOSING`] it has been served, and does
/// not come in the way.
pub fn claim(word: &impl Word, fresh: bool) -> bool {
    let change = |old: u64| {
        let taken = old & OWNED != 0 && !(fresh && old & CLOSING != 0);
        (!taken).then_some((old & !FLAGS).wrapping_add(LIFE) | old & LASTING | OWNED | FREE)
    };
    update(word, change).is_some()
}

/// Lets events reach the owner. True: one came while he was not ready.
#[must_use]
pub fn open(word: &impl Word) -> bool {
    word.clear(FREE | MISSED) & MISSED != 0
}

/// An event came for the port. Returns the word as it was: with [`FREE`] there is no owner, and the event is noted for the
/// next. With [`LATE`] the port is to be masked.
///
/// Whether there is an owner, how he wants events, and that he has one, is one exchange: he cannot have gone between.
pub fn deliver(word: &impl Word) -> u64 {
    let change = |old: u64| {
        let bits = match old & (FREE | LATE) {
            0 => FIRED,
            LATE => FIRED | UNFINISHED,
            _ => MISSED,
        };
        Some(old | bits)
    };
    // There always is a change.
    update(word, change).unwrap_or(FREE)
}

/// Says that the event under way brought nothing, and that its end waits. False: there is none, or its end waits already.
pub fn throttle(word: &impl Word) -> bool {
    let change = |old| (old & (UNFINISHED | THROTTLED) == UNFINISHED).then_some(old | THROTTLED);
    update(word, change).is_some()
}

/// Ends an event whose end waits. False: no event does.
pub fn unthrottle(word: &impl Word) -> bool {
    let change = |old| (old & THROTTLED != 0).then_some(old & !(THROTTLED | UNFINISHED));
    update(word, change).is_some()
}

/// Begins the end of a life: the port gets no more events. Returns the word as it was, for [`vacate`].
pub fn leave(word: &impl Word, closing: bool) -> u64 {
    word.set(if closing { FREE | CLOSING } else { FREE })
}

/// Forgets what the owner wanted, after [`leave`]. True: an event's end was waiting.
pub fn forget(word: &impl Word) -> bool {
    word.clear(FLAGS & !(LASTING | FREE | OWNED | CLOSING)) & THROTTLED != 0
}

/// Ends the life that [`leave`] returned, unless the next one has begun.
pub fn vacate(word: &impl Word, life: u64) {
    let change = |old: u64| ((old ^ life) & !FLAGS == 0).then_some(old & !(OWNED | CLOSING));
    let _: Option<u64> = update(word, change);
}

/// Ends a life whose port is gone with the domain that it was of. Nothing of it is left, and who thinks that it goes on does not
/// change the next one.
pub fn retire(word: &impl Word) {
    let _: Option<u64> = update(word, |old| Some((old & !FLAGS).wrapping_add(LIFE) | FREE));
}
