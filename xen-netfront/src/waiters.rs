//! Tasks that wait for the same thing.

use core::task::Waker;

use xen_evtchn::wake_all;

/// Tasks that find a place at the same time.
const PLACES: usize = 4;

/// Wakers of tasks. One more than there are places for takes the place of another, which is woken, and leaves its waker anew
/// if it still waits: so nobody is forgotten, however many there are, and whichever of them is dropped.
#[derive(Default)]
pub(crate) struct Waiters {
    list: [Option<Waker>; PLACES],
    /// The one that goes next.
    next: usize,
}

impl Waiters {
    pub(crate) const fn new() -> Self {
        Self { list: [const { None }; PLACES], next: 0 }
    }

    pub(crate) fn leave(&mut self, waker: &Waker) {
        if self.list.iter().flatten().any(|known| known.will_wake(waker)) {
            return;
        }
        let free = self.list.iter().position(Option::is_none);
        let place = free.unwrap_or_else(|| {
            self.next = (self.next + 1) % PLACES;
            self.next
        });
        if let Some(place) = self.list.get_mut(place) {
            place.replace(waker.clone()).into_iter().for_each(Waker::wake);
        }
    }

    pub(crate) fn wake_all(&mut self) {
        wake_all(self.list.iter_mut().filter_map(Option::take), Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::sync::Arc;
    use std::task::Wake;
    use std::vec::Vec;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    #[test]
    fn nobody_is_forgotten() {
        let tasks: Vec<Arc<Woken>> = (0..3 * PLACES).map(|_| Arc::default()).collect();
        let mut waiters = Waiters::default();
        for _ in 0..2 {
            tasks.iter().for_each(|task| waiters.leave(&task.clone().into()));
        }
        waiters.wake_all();
        assert!(tasks.iter().all(|task| task.0.load(SeqCst) > 0));
        // A task that waits already takes no second place.
        let before = tasks[0].0.load(SeqCst);
        (0..3 * PLACES).for_each(|_| waiters.leave(&tasks[0].clone().into()));
        assert_eq!(tasks[0].0.load(SeqCst), before);
        waiters.wake_all();
        assert_eq!(tasks[0].0.load(SeqCst), before + 1);
    }
}
