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
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.0.fetch_max(now, Ordering::Relaxed).max(now))
    }
}

/// Xen's system time, for the platform of a kernel on x86: the `now` of its [`Wait`](crate::Wait).
///
/// The platform is there before the [`Domain`](crate::Domain) that is made from it, and so before `shared_info`. The clock stands in
/// the platform from the start, shows zero, and runs once it is [started](Self::start). It never goes back, whichever vCPU
/// looks at it.
#[derive(Debug, Default)]
pub struct Clock {
    shared: AtomicPtr<Page>,
    told: Monotonic,
}

impl Clock {
    /// A clock that shows zero.
    pub const fn new() -> Self {
        Self { shared: AtomicPtr::new(ptr::null_mut()), told: Monotonic::new() }
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

    /// Time since Xen started, as `vcpu` tells it, on which this runs; `counter` reads its time stamp counter, see
    /// [`SharedInfo::now`]. Zero before the start, and for a vCPU without a place in `shared_info`.
    pub fn now(&self, vcpu: VcpuId, counter: impl Fn() -> u64) -> Duration {
        let now = self.shared_info().and_then(|shared| shared.now(vcpu, counter));
        now.map_or(Duration::ZERO, |now| self.told.at_least(now))
    }

    /// Time since 1970-01-01 00:00 UTC. `now` is a reading of this clock. Zero before the start.
    pub fn unix_time(&self, now: Duration) -> Duration {
        self.shared_info().map_or(Duration::ZERO, |shared| shared.wall_clock().saturating_add(now))
    }
}
