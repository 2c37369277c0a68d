//! A kernel's clock.
#![allow(unsafe_code, reason = "keeps the address of shared_info")]

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use core::time::Duration;

use crate::{Page, SharedInfo, VcpuId};

/// The largest time that was told, for a clock that never goes back.
#[derive(Debug, Default)]
pub struct Monotonic(AtomicU64);

impl Monotonic {
    /// Nothing was told yet.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Returns `now`, or what was returned before if that was later. Whole nanoseconds.
    #[inline]
    pub fn at_least(&self, now: Duration) -> Duration {
        let now = nanoseconds(now);
        Duration::from_nanos(self.0.fetch_max(now, Ordering::Relaxed).max(now))
    }
}

/// Xen's system time, for the platform of a kernel on x86: the `now` of its [`Wait`](crate::Wait).
///
/// The platform is there before the [`Domain`](crate::Domain) that is made from it, and so before `shared_info`. The clock stands in
/// the platform from the start, shows zero, and runs once it is [started](Self::start). It never goes back, whichever vCPU
/// looks at it.
///
/// A domain that is saved or migrated finds another system time, of another machine perhaps. The clock goes on from where it
/// was, once it is told by [`go_on`](Self::go_on). From then on its times are not Xen's: a timer of Xen's takes
/// [`system_time`](Self::system_time).
#[derive(Debug, Default)]
pub struct Clock {
    shared: AtomicPtr<Page>,
    /// What it is ahead of Xen's system time, in nanoseconds; what it is behind is a number close to 2^64.
    ahead: AtomicU64,
    told: Monotonic,
}

impl Clock {
    /// A clock that shows zero.
    pub const fn new() -> Self {
        Self { shared: AtomicPtr::new(ptr::null_mut()), ahead: AtomicU64::new(0), told: Monotonic::new() }
    }

    /// Lets it run.
    pub fn start(&self, shared: SharedInfo<'static>) {
        self.shared.store(shared.page().as_ptr(), Ordering::Release);
    }

    /// The page that it was started with.
    pub fn shared_info(&self) -> Option<SharedInfo<'static>> {
        let page = NonNull::new(self.shared.load(Ordering::Acquire))?;
        // SAFETY: the page is of a `SharedInfo` without an end, which `start` took.
        Some(unsafe { SharedInfo::from_page(page) })
    }

    /// Time since Xen started, as `vcpu` tells it, on which this runs, or where it [went on](Self::go_on); `counter` reads
    /// its time stamp counter, see [`SharedInfo::now`]. For a vCPU without a place in `shared_info` as vCPU 0 tells it, which
    /// is right as far as the counters of both agree. Zero before the start.
    pub fn now(&self, vcpu: VcpuId, counter: impl Fn() -> u64) -> Duration {
        let now = self
            .shared_info()
            .and_then(|shared| shared.now(vcpu, &counter).or_else(|| shared.now(VcpuId(0), &counter)));
        now.map_or(Duration::ZERO, |now| self.told.at_least(Self::shifted(now, self.ahead())))
    }

    /// Goes on from the last time that was told, for a domain that has just been resumed in a new one: Xen's system time is
    /// another. The time in which the domain did not run is left out. Before anybody else looks at the clock: what is told
    /// in between may be far ahead, and the clock never goes back.
    pub fn go_on(&self, vcpu: VcpuId, counter: impl Fn() -> u64) {
        if let Some(now) = self.shared_info().and_then(|shared| shared.now(vcpu, counter)) {
            let last = self.told.0.load(Ordering::Relaxed);
            self.ahead.store(last.wrapping_sub(nanoseconds(now)), Ordering::Relaxed);
        }
    }

    /// What Xen's system time is when this clock shows `at`: for a timer, or for Xen's deadline of a sleep. Zero if that was
    /// before the machine began.
    pub fn system_time(&self, at: Duration) -> Duration {
        Self::shifted(at, self.ahead().wrapping_neg())
    }

    /// Time since 1970-01-01 00:00 UTC. `now` is a reading of this clock. Zero before the start.
    pub fn unix_time(&self, now: Duration) -> Duration {
        let system_time = self.system_time(now);
        self.shared_info().map_or(Duration::ZERO, |shared| shared.wall_clock().saturating_add(system_time))
    }

    fn ahead(&self) -> u64 {
        self.ahead.load(Ordering::Relaxed)
    }

    /// `time`, and `by` nanoseconds more, or less if that is close to 2^64.
    fn shifted(time: Duration, by: u64) -> Duration {
        let by = by as i64;
        Duration::from_nanos(nanoseconds(time).saturating_add_signed(by))
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
