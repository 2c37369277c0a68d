//! Where tasks that wait for one port leave their wakers.
//!
//! Generic, so that the same code runs on loom's model of memory.
#![allow(unreachable_pub, reason = "public for the loom tests alone")]

use crate::state::{self, PLACES, POLLING, Word};

/// The places of one port, of which each holds one waker at most.
pub trait Places {
    /// What wakes a task.
    type Waker;
    /// Takes the waker out of a place.
    fn take(&self, place: usize) -> Option<Self::Waker>;
    /// Puts a waker into a place.
    fn put(&self, place: usize, waker: &Self::Waker);
    /// Whether two wakers wake the same task.
    fn same(one: &Self::Waker, other: &Self::Waker) -> bool;
    /// Which place gives way when all are taken: each in turn. Called by one task at a time.
    fn turn(&self) -> usize;
}

/// Wakes all of several tasks, by calling `wake` with each waker. If one of them panics the others are woken all the same, then
/// the panic goes on. For those who keep wakers of their own, as a driver does whose tasks wait for one of its events.
///
/// ```
/// use core::task::Waker;
/// use xen_evtchn::wake_all;
///
/// let mut places = [Some(Waker::noop().clone()), None];
/// wake_all(places.iter_mut().filter_map(Option::take), Waker::wake);
/// ```
pub fn wake_all<I: Iterator>(wakers: I, wake: fn(I::Item)) {
    struct Rest<I: Iterator>(I, fn(I::Item));
    impl<I: Iterator> Drop for Rest<I> {
        fn drop(&mut self) {
            self.0.by_ref().for_each(self.1);
        }
    }
    // Without a panic it is dropped empty.
    let Rest(wakers, wake) = &mut Rest(wakers, wake);
    wakers.for_each(*wake);
}

/// What became of a waker that was to be [left](leave).
#[derive(Debug)]
pub enum Left<W> {
    /// It has a place, as all others have.
    Beside,
    /// It has the place of this one, which is to be woken, and so leaves its waker anew.
    InPlaceOf(W),
    /// Another task is leaving its waker. Waiting for that could be waiting for what this code interrupted, so the task is to
    /// be woken.
    Nowhere,
}

/// Leaves a waker for the next event. An event that comes meanwhile may not find it, nor those of others, so the caller looks
/// again: then it has come.
///
/// As many tasks as there are places wait without disturbing each other. One more takes the place of another.
pub fn leave<P: Places>(word: &impl Word, places: &P, waker: &P::Waker) -> Left<P::Waker> {
    /// The turn to leave a waker, given back however that ends.
    struct Turn<'a, W: Word>(&'a W);
    impl<W: Word> Drop for Turn<'_, W> {
        fn drop(&mut self) {
            self.0.clear(POLLING);
        }
    }
    let before = word.set(POLLING);
    if before & POLLING != 0 {
        return Left::Nowhere;
    }
    let _turn = Turn(word);
    let mut free = None;
    for place in 0..state::places_left(before) {
        match places.take(place) {
            None => free = free.or(Some(place)),
            Some(known) if P::same(&known, waker) => {
                places.put(place, waker);
                return Left::Beside;
            }
            Some(other) => places.put(place, &other),
        }
    }
    let next = state::places_left(before);
    match free {
        Some(place) => places.put(place, waker),
        None if next < PLACES => {
            places.put(next, waker);
            word.set(state::left(next));
        }
        None => {
            let place = places.turn();
            let other = places.take(place);
            places.put(place, waker);
            return other.map_or(Left::Beside, Left::InPlaceOf);
        }
    }
    Left::Beside
}
