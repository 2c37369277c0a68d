//! What the guest keeps for each port.

use core::sync::atomic::Ordering::{AcqRel, Relaxed};
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};
use core::task::Waker;
use core::time::Duration;

use atomic_waker::AtomicWaker;

use crate::state::{self, FIRED, FREE, HELD, LATE, PLACES, THROTTLED, UNFINISHED, Word};
use crate::waiting::{self, Left, Places, wake_all};

/// The first wait of a port whose events bring nothing; then it doubles.
const FIRST_DELAY: Duration = Duration::from_millis(1);
/// The longest.
const LAST_DELAY: Duration = Duration::from_secs(1);

/// The pause has not begun, because nobody has looked at the clock since.
const NOT_YET: u64 = 1 << 63;

/// One port's private state. Touched by the interrupt side, hence atomics only.
#[derive(Debug)]
pub(crate) struct Record {
    /// See [`state`].
    word: AtomicU64,
    /// Tasks that wait for the next event.
    wakers: [AtomicWaker; PLACES],
    /// While the port is throttled, when it is to be unmasked, in nanoseconds of the platform's clock; or with [`NOT_YET`] how
    /// long it is to stay masked.
    due: AtomicU64,
    /// The last pass that delivered an event here.
    pass: AtomicU32,
    /// The next port in that pass's list of those that came twice.
    next: AtomicU32,
    /// Events in a row that brought nothing.
    streak: AtomicU8,
    /// The place that gives way next, when all are taken.
    turn: AtomicU8,
    events: AtomicU64,
    notifications: AtomicU64,
    spurious: AtomicU64,
    throttled: AtomicU64,
}

impl Record {
    pub(crate) const fn new() -> Self {
        Self {
            word: AtomicU64::new(FREE),
            wakers: [const { AtomicWaker::new() }; PLACES],
            due: AtomicU64::new(0),
            pass: AtomicU32::new(0),
            next: AtomicU32::new(0),
            streak: AtomicU8::new(0),
            turn: AtomicU8::new(0),
            events: AtomicU64::new(0),
            notifications: AtomicU64::new(0),
            spurious: AtomicU64::new(0),
            throttled: AtomicU64::new(0),
        }
    }

    /// Makes the caller the port's only owner, as [`state::claim`] does. The port stays [`FREE`], and so without events, until
    /// the caller opens it. Returns how many notifications the owner before had sent; none: the port has an owner.
    pub(crate) fn claim(&self, fresh: bool) -> Option<u64> {
        state::claim(&self.word, fresh).then(|| {
            for counter in [&self.events, &self.spurious, &self.throttled] {
                counter.store(0, Relaxed);
            }
            self.notifications.swap(0, Relaxed)
        })
    }

    /// What [`state`] does with the word.
    pub(crate) fn word(&self) -> &AtomicU64 {
        &self.word
    }

    /// Forgets all that the owner left, when the port gets no more events. True: it was throttled.
    pub(crate) fn forget(&self) -> bool {
        self.wakers.iter().for_each(|waker| drop(waker.take()));
        self.streak.store(0, Relaxed);
        state::forget(&self.word)
    }

    /// Forgets the owner, whose port is gone with the domain; returns how many notifications he had sent.
    pub(crate) fn retire(&self) -> u64 {
        state::retire(&self.word);
        self.streak.store(0, Relaxed);
        self.notifications.swap(0, Relaxed)
    }

    /// Wakes all that wait for an event of an owner who is gone.
    pub(crate) fn wake_all(&self) {
        wake_all(self.wakers.iter(), AtomicWaker::wake);
    }

    /// Adds reasons to mask the port; returns the word as it was.
    pub(crate) fn hold(&self, reasons: u64) -> u64 {
        self.word.set(reasons)
    }

    /// Takes reasons away; returns the word as it was.
    pub(crate) fn let_go(&self, reasons: u64) -> u64 {
        self.word.clear(reasons)
    }

    /// Whether there is a reason to mask the port.
    #[inline]
    pub(crate) fn is_held(&self) -> bool {
        Word::load(&self.word) & HELD != 0
    }

    pub(crate) fn is_free(&self) -> bool {
        Word::load(&self.word) & FREE != 0
    }

    /// Counts an event that [`state::deliver`] gave to the owner, and wakes those who wait. `word` is what that returned.
    pub(crate) fn wake(&self, word: u64) {
        self.events.fetch_add(1, Relaxed);
        let left = self.wakers.get(..state::places_left(word));
        wake_all(left.unwrap_or_default().iter(), AtomicWaker::wake);
    }

    /// Whether an event came since the last call.
    pub(crate) fn take(&self) -> bool {
        // A plain load first: polling an idle port costs no locked access.
        Word::load(&self.word) & FIRED != 0 && self.word.clear(FIRED) & FIRED != 0
    }

    /// Leaves a waker for the next event, as [`waiting::leave`] does. The caller looks again.
    pub(crate) fn leave_waker(&self, waker: &Waker) {
        match waiting::leave(&self.word, self, waker) {
            Left::Beside => {}
            Left::InPlaceOf(other) => other.wake(),
            Left::Nowhere => waker.wake_by_ref(),
        }
    }

    /// Whether `pass` has been here before.
    pub(crate) fn came_in(&self, pass: u32) -> bool {
        self.pass.swap(pass, Relaxed) == pass
    }

    /// The link of the list of ports that came twice; only for the pass that holds the port for that.
    pub(crate) fn next(&self) -> &AtomicU32 {
        &self.next
    }

    pub(crate) fn set_late(&self, late: bool) {
        if late {
            self.word.set(LATE);
        } else {
            self.word.clear(LATE);
        }
    }

    /// The owner found work.
    pub(crate) fn progressed(&self) {
        self.streak.store(0, Relaxed);
    }

    /// Whether there is nothing to end when the owner found work: by plain loads, for drivers say so all the time.
    #[inline]
    pub(crate) fn is_quiet(&self) -> bool {
        self.streak.load(Relaxed) == 0 && Word::load(&self.word) & UNFINISHED == 0
    }

    /// Whether an event is under way whose end nobody has told.
    pub(crate) fn is_unfinished(&self) -> bool {
        Word::load(&self.word) & (UNFINISHED | THROTTLED) == UNFINISHED
    }

    /// The owner found no work. Returns how long the port is to stay masked: not at all the first time, because the work of
    /// an event may have been found before the event arrived.
    pub(crate) fn went_in_vain(&self) -> Option<Duration> {
        self.spurious.fetch_add(1, Relaxed);
        let streak = self.streak.load(Relaxed);
        self.streak.store(streak.saturating_add(1), Relaxed);
        let doublings = streak.checked_sub(1)?;
        let factor = 1u32.checked_shl(doublings.into()).unwrap_or(u32::MAX);
        Some(FIRST_DELAY.saturating_mul(factor).min(LAST_DELAY))
    }

    /// Lets the port stay masked for a while, from the next look at the clock on. False if that was so already, or the event
    /// has ended.
    pub(crate) fn throttle(&self, pause: Duration) -> bool {
        self.due.store(nanoseconds(pause) | NOT_YET, Relaxed);
        let set = state::throttle(&self.word);
        if set {
            self.throttled.fetch_add(1, Relaxed);
        }
        set
    }

    /// Until when the port is throttled, if it is. A pause that has not begun does so `now`.
    pub(crate) fn due(&self, now: u64) -> Option<u64> {
        if Word::load(&self.word) & THROTTLED == 0 {
            return None;
        }
        let due = self.due.load(Relaxed);
        if due & NOT_YET == 0 {
            return Some(due);
        }
        let until = now.saturating_add(due & !NOT_YET).min(NOT_YET - 1);
        // Of several who look, the first decides.
        let _ = self.due.compare_exchange(due, until, AcqRel, Relaxed);
        Some(until)
    }

    #[inline]
    pub(crate) fn notified(&self) {
        self.notifications.fetch_add(1, Relaxed);
    }

    pub(crate) fn events(&self) -> u64 {
        self.events.load(Relaxed)
    }

    pub(crate) fn notifications(&self) -> u64 {
        self.notifications.load(Relaxed)
    }

    pub(crate) fn spurious(&self) -> u64 {
        self.spurious.load(Relaxed)
    }

    pub(crate) fn throttled(&self) -> u64 {
        self.throttled.load(Relaxed)
    }
}

impl Places for Record {
    type Waker = Waker;

    fn take(&self, place: usize) -> Option<Waker> {
        self.wakers.get(place)?.take()
    }

    fn put(&self, place: usize, waker: &Waker) {
        if let Some(place) = self.wakers.get(place) {
            place.register(waker);
        }
    }

    fn same(one: &Waker, other: &Waker) -> bool {
        one.will_wake(other)
    }

    fn turn(&self) -> usize {
        let turn = self.turn.load(Relaxed);
        self.turn.store(turn.wrapping_add(1), Relaxed);
        usize::from(turn) % PLACES
    }
}

pub(crate) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
