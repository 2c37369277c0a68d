//! What the guest keeps for each port.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64};
use core::time::Duration;

use atomic_waker::AtomicWaker;

/// Nobody owns the port.
pub(crate) const FREE: u8 = 1;
/// The owner said so.
pub(crate) const MASKED: u8 = 2;
/// An event was delivered, and the owner, who ends events himself, has not done so.
pub(crate) const UNFINISHED: u8 = 4;
/// The port came twice in one pass; the rest of the pass goes without it.
pub(crate) const TWICE: u8 = 8;

/// The first wait of a port whose events bring nothing; then it doubles.
const FIRST_DELAY: Duration = Duration::from_millis(1);
/// The longest.
const LAST_DELAY: Duration = Duration::from_secs(1);

/// The pause has not begun, because nobody has looked at the clock since.
const NOT_YET: u64 = 1 << 63;

/// One port's private state. Touched by the interrupt side, hence atomics only.
#[derive(Debug)]
pub(crate) struct Record {
    waker: AtomicWaker,
    fired: AtomicBool,
    owned: AtomicBool,
    /// The owner ends events himself.
    late: AtomicBool,
    /// Why the port is masked. It is to be unmasked exactly if there is no reason.
    held: AtomicU8,
    /// Events in a row that brought nothing.
    streak: AtomicU8,
    /// The last pass that delivered an event here.
    pass: AtomicU32,
    /// The next port in that pass's list of those that came twice.
    next: AtomicU32,
    /// When a throttled port is to be unmasked, in nanoseconds of the platform's clock, or with [`NOT_YET`] how long it is
    /// to stay masked; 0: it is not throttled.
    due: AtomicU64,
    events: AtomicU64,
    notifications: AtomicU64,
    spurious: AtomicU64,
    throttled: AtomicU64,
}

impl Record {
    pub(crate) const fn new() -> Self {
        Self {
            waker: AtomicWaker::new(),
            fired: AtomicBool::new(false),
            owned: AtomicBool::new(false),
            late: AtomicBool::new(false),
            held: AtomicU8::new(FREE),
            streak: AtomicU8::new(0),
            pass: AtomicU32::new(0),
            next: AtomicU32::new(0),
            due: AtomicU64::new(0),
            events: AtomicU64::new(0),
            notifications: AtomicU64::new(0),
            spurious: AtomicU64::new(0),
            throttled: AtomicU64::new(0),
        }
    }

    /// Makes the caller the port's only owner; nothing of an earlier owner is left. False if it has an owner. The port
    /// stays [`FREE`], and so without events, until the caller lets go of that.
    pub(crate) fn claim(&self) -> bool {
        if self.owned.compare_exchange(false, true, AcqRel, Acquire).is_err() {
            return false;
        }
        self.forget();
        for counter in [&self.events, &self.notifications, &self.spurious, &self.throttled] {
            counter.store(0, Relaxed);
        }
        true
    }

    /// Ends ownership. The caller made the port [`FREE`] before.
    pub(crate) fn release(&self) {
        self.forget();
        self.owned.store(false, Release);
    }

    fn forget(&self) {
        drop(self.waker.take());
        self.fired.store(false, Release);
        self.late.store(false, Relaxed);
        self.streak.store(0, Relaxed);
        self.held.fetch_and(!(MASKED | UNFINISHED), SeqCst);
    }

    /// Adds reasons to mask the port; answers which there were.
    pub(crate) fn hold(&self, reasons: u8) -> u8 {
        self.held.fetch_or(reasons, SeqCst)
    }

    /// Takes reasons away; answers which there were.
    pub(crate) fn let_go(&self, reasons: u8) -> u8 {
        self.held.fetch_and(!reasons, SeqCst)
    }

    /// The reasons why the port is masked.
    #[inline]
    pub(crate) fn held(&self) -> u8 {
        self.held.load(SeqCst)
    }

    pub(crate) fn is_free(&self) -> bool {
        self.held() & FREE != 0
    }

    /// An event arrived.
    pub(crate) fn fire(&self) {
        self.events.fetch_add(1, Relaxed);
        // Release: what the peer wrote before it sent, which the pending bit's clearing acquired, is passed on to take().
        self.fired.store(true, Release);
        self.waker.wake();
    }

    pub(crate) fn take(&self) -> bool {
        // A plain load first: polling an idle port costs no locked access.
        self.fired.load(Relaxed) && self.fired.swap(false, AcqRel)
    }

    /// Whether `pass` has been here before.
    pub(crate) fn came_in(&self, pass: u32) -> bool {
        self.pass.swap(pass, Relaxed) == pass
    }

    /// The link of the list of ports that came twice; only for the pass that made the port [`TWICE`].
    pub(crate) fn next(&self) -> &AtomicU32 {
        &self.next
    }

    pub(crate) fn waker(&self) -> &AtomicWaker {
        &self.waker
    }

    pub(crate) fn is_late(&self) -> bool {
        self.late.load(Relaxed)
    }

    pub(crate) fn set_late(&self, late: bool) {
        self.late.store(late, Relaxed);
    }

    /// The owner found work.
    pub(crate) fn progressed(&self) {
        self.streak.store(0, Relaxed);
    }

    /// Whether there is nothing to end when the owner found work: by plain loads, for drivers say so all the time.
    #[inline]
    pub(crate) fn is_quiet(&self) -> bool {
        self.streak.load(Relaxed) == 0 && !self.is_throttled() && self.held() & UNFINISHED == 0
    }

    /// The owner found no work. Answers how long the port is to stay masked: not at all the first time, because the work of
    /// an event may have been found before the event arrived.
    pub(crate) fn went_in_vain(&self) -> Option<Duration> {
        self.spurious.fetch_add(1, Relaxed);
        let streak = self.streak.load(Relaxed);
        self.streak.store(streak.saturating_add(1), Relaxed);
        let doublings = streak.checked_sub(1)?;
        let factor = 1u32.checked_shl(doublings.into()).unwrap_or(u32::MAX);
        Some(FIRST_DELAY.saturating_mul(factor).min(LAST_DELAY))
    }

    /// Lets the port stay masked for a while, from the next look at the clock on. False if that was so already.
    pub(crate) fn throttle(&self, pause: Duration) -> bool {
        let pause = nanoseconds(pause) | NOT_YET;
        let set = self.due.compare_exchange(0, pause, AcqRel, Relaxed).is_ok();
        if set {
            self.throttled.fetch_add(1, Relaxed);
        }
        set
    }

    #[inline]
    pub(crate) fn is_throttled(&self) -> bool {
        self.due.load(Relaxed) != 0
    }

    /// Until when the port is throttled, if it is. A pause that has not begun does so `now`.
    pub(crate) fn due(&self, now: Duration) -> Option<Duration> {
        let due = self.due.load(Relaxed);
        if due & NOT_YET == 0 {
            return Some(due).filter(|due| *due != 0).map(Duration::from_nanos);
        }
        let until = nanoseconds(now).saturating_add(due & !NOT_YET).clamp(1, NOT_YET - 1);
        // Of several who look, the first decides; and who finds it ended meanwhile leaves that.
        let _ = self.due.compare_exchange(due, until, AcqRel, Relaxed);
        Some(Duration::from_nanos(until))
    }

    /// Ends the throttling. False if it was not throttled.
    #[inline]
    pub(crate) fn unthrottle(&self) -> bool {
        self.due.load(Relaxed) != 0 && self.due.swap(0, AcqRel) != 0
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

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
