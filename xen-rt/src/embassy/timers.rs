//! Tasks that wait for a time.

use core::task::Waker;

/// How many tasks wait at once. One more is woken at once, and looks again and again until another has come to its end.
const PLACES: usize = 64;

#[derive(Debug)]
struct Timer {
    at: u64,
    waker: Waker,
}

/// When each of them is to be woken, in ticks.
#[derive(Debug)]
pub(super) struct Timers {
    places: [Option<Timer>; PLACES],
    /// Not later than the first of them.
    first: u64,
}

impl Timers {
    pub(super) const fn new() -> Self {
        Self { places: [const { None }; PLACES], first: u64::MAX }
    }

    /// Has a task woken at a time. One that is to be woken earlier stays so, and asks again then. False: there is no place.
    pub(super) fn add(&mut self, at: u64, waker: &Waker) -> bool {
        let known = |place: &Option<Timer>| place.as_ref().is_some_and(|timer| timer.waker.will_wake(waker));
        let place = self.places.iter().position(known);
        let place = place.or_else(|| self.places.iter().position(Option::is_none));
        let Some(place) = place.and_then(|place| self.places.get_mut(place)) else { return false };
        match place {
            Some(timer) => timer.at = timer.at.min(at),
            None => *place = Some(Timer { at, waker: waker.clone() }),
        }
        self.first = self.first.min(at);
        true
    }

    /// A task whose time has come.
    pub(super) fn due(&mut self, now: u64) -> Option<Waker> {
        if now < self.first {
            return None;
        }
        let mut first = u64::MAX;
        for place in &mut self.places {
            match place.take() {
                Some(timer) if timer.at <= now => return Some(timer.waker),
                Some(timer) => {
                    first = first.min(timer.at);
                    *place = Some(timer);
                }
                None => {}
            }
        }
        self.first = first;
        None
    }

    /// When the next one is due, at the earliest.
    pub(super) fn next(&self) -> Option<u64> {
        Some(self.first).filter(|first| *first < u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
    use std::task::Wake;
    use std::vec::Vec;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    fn task() -> (Arc<Count>, Waker) {
        let count = Arc::new(Count::default());
        (Arc::clone(&count), Waker::from(count))
    }

    fn wake_due(timers: &mut Timers, now: u64) {
        while let Some(waker) = timers.due(now) {
            waker.wake();
        }
    }

    #[test]
    fn each_is_woken_once_at_its_time() {
        let mut timers = Timers::new();
        let tasks: Vec<_> = (0..PLACES as u64).map(|at| (at, task())).collect();
        for (at, (_, waker)) in tasks.iter().rev() {
            assert!(timers.add(10 + *at, waker));
        }
        let (none, waker) = task();
        assert!(!timers.add(1, &waker), "no place is left");
        for now in 0..200 {
            wake_due(&mut timers, now);
            for (at, (count, _)) in &tasks {
                assert_eq!(count.0.load(SeqCst), u32::from(10 + *at <= now));
            }
            let next = tasks.iter().map(|(at, _)| 10 + at).find(|at| *at > now);
            assert_eq!(timers.next(), next);
        }
        assert_eq!(none.0.load(SeqCst), 0);
    }

    #[test]
    fn a_task_that_asks_twice_is_woken_at_the_earlier_time() {
        let mut timers = Timers::new();
        let (count, waker) = task();
        for at in [50, 20, 40] {
            assert!(timers.add(at, &waker));
        }
        wake_due(&mut timers, 19);
        assert_eq!(count.0.load(SeqCst), 0);
        wake_due(&mut timers, 20);
        wake_due(&mut timers, 100);
        assert_eq!((count.0.load(SeqCst), timers.next()), (1, None));
    }

    #[test]
    fn a_task_that_never_is_to_be_woken_is_not() {
        let mut timers = Timers::new();
        let (count, waker) = task();
        assert!(timers.add(u64::MAX, &waker));
        wake_due(&mut timers, u64::MAX - 1);
        assert_eq!((count.0.load(SeqCst), timers.next()), (0, None));
    }
}
