//! Tasks that wait for the same thing.

use core::task::Waker;

use xen_evtchn::wake_all;

/// The wakers of tasks that wait. With more tasks than places one gives way: it is woken, looks again, and waits again.
pub(super) struct Waiters<const PLACES: usize> {
    wakers: [Option<Waker>; PLACES],
    turn: usize,
}

impl<const PLACES: usize> Default for Waiters<PLACES> {
    fn default() -> Self {
        Self { wakers: [const { None }; PLACES], turn: 0 }
    }
}

impl<const PLACES: usize> Waiters<PLACES> {
    pub(super) fn register(&mut self, waker: &Waker) {
        if self.wakers.iter().flatten().any(|known| known.will_wake(waker)) {
            return;
        }
        let free = self.wakers.iter().position(Option::is_none);
        let place = free.unwrap_or_else(|| {
            self.turn = (self.turn + 1) % PLACES;
            self.turn
        });
        if let Some(displaced) = self.wakers.get_mut(place).and_then(|known| known.replace(waker.clone())) {
            displaced.wake();
        }
    }

    pub(super) fn wake(&mut self) {
        wake_all(self.wakers.iter_mut().filter_map(Option::take), Waker::wake);
    }
}
