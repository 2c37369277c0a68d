//! The driver of `embassy_time`, by the kernel's clock.
#![allow(unsafe_code, reason = "names the symbols by which embassy finds the driver")]

use core::cell::RefCell;
use core::fmt;
use core::task::Waker;
use core::time::Duration;

use embassy_time_driver::{Driver, TICK_HZ};
use xen_evtchn::EventChannels;
use xen_hypercall::{Platform, Wait};

use super::timers::Timers;
use crate::machine;

/// Nanoseconds of a second.
const SECOND: u128 = 1_000_000_000;

/// A time of the platform's clock in ticks; begun ones do not count.
pub(super) fn ticks(time: Duration) -> u64 {
    // Enough for five hundred years of nanoseconds, and more of what is coarser.
    (time.as_nanos() * u128::from(TICK_HZ) / SECOND) as u64
}

/// When so many ticks have passed, and not before.
pub(super) fn time(ticks: u64) -> Duration {
    let nanos = (u128::from(ticks) * SECOND).div_ceil(u128::from(TICK_HZ));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// What time it is, on some platform.
pub(super) trait Clock {
    fn now(&self) -> Duration;
}

impl<P: Platform + Wait> Clock for EventChannels<P> {
    fn now(&self) -> Duration {
        self.platform().now()
    }
}

/// The time of the tasks of one executor: what the driver finds on the vCPU on which the executor runs.
pub(crate) struct Heart {
    clock: &'static dyn Clock,
    timers: RefCell<Timers>,
}

impl Heart {
    pub(super) fn new(clock: &'static dyn Clock) -> Self {
        Self { clock, timers: RefCell::new(Timers::new()) }
    }

    fn now(&self) -> u64 {
        ticks(self.clock.now())
    }

    fn wake_at(&self, at: u64, waker: &Waker) {
        if !self.timers.borrow_mut().add(at, waker) {
            waker.wake_by_ref();
        }
    }

    /// Wakes the tasks whose time has come. Returns when the next one's comes, at the earliest; none: of no task.
    pub(super) fn wake_due(&self) -> Option<u64> {
        loop {
            // Whoever is woken may ask for another time, so nothing is borrowed by then.
            let due = self.timers.borrow_mut().due(self.now());
            match due {
                Some(waker) => waker.wake(),
                None => return self.timers.borrow().next(),
            }
        }
    }

    /// When the next task's time comes, at the earliest.
    pub(super) fn next(&self) -> Option<u64> {
        self.timers.borrow().next()
    }
}

impl fmt::Debug for Heart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heart").finish_non_exhaustive()
    }
}

/// Time is that of the executor which runs on this vCPU; where none runs, the kernel's.
#[derive(Debug)]
struct KernelTime;

impl Driver for KernelTime {
    fn now(&self) -> u64 {
        machine::heart().map_or_else(|| ticks(machine::now()), Heart::now)
    }

    fn schedule_wake(&self, at: u64, waker: &Waker) {
        match machine::heart() {
            Some(heart) => heart.wake_at(at, waker),
            // Nobody would wake the task at its time. It looks again at once.
            None => waker.wake_by_ref(),
        }
    }
}

embassy_time_driver::time_driver_impl!(static DRIVER: KernelTime = KernelTime);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_not_before_its_tick() {
        for at in [0, 1, 2, 999, 1_000_000, 123_456_789_012] {
            assert_eq!(ticks(time(at)), at);
            if at > 0 {
                assert_eq!(ticks(time(at) - Duration::from_nanos(1)), at - 1);
            }
        }
        assert_eq!(time(u64::MAX), Duration::from_nanos(u64::MAX));
    }
}
