//! The place of a disk that tasks use, which may be empty.

mod control;
mod handle;
mod jobs;
mod run;
mod seats;
mod suspended;
mod waiting;

use core::cell::{Cell, RefCell};
use core::fmt;
use core::task::Waker;

use xen_hypercall::Platform;
use xen_xenstore::xenbus::{Connected, Frontend};

use crate::{BlkFront, Error, State};
use seats::{Line, Seats};

pub use control::Control;
pub use handle::DiskHandle;
pub use run::Drive;

/// The place of a disk that the tasks of an executor use, all of one vCPU. It may be empty: the disk comes and goes, and is
/// connected again, under tasks that use the place by its [handles](Self::handle).
///
/// Somebody has to [drive](Self::drive) it, in a task of its own: that alone shows the backend what was asked for, takes the answers,
/// and wakes the tasks that they are for. What several tasks ask for in one round of the executor goes out with one notification: asking
/// wakes the driving task, whose turn comes when those that were ready before it have had theirs.
///
/// A call that uses the disk borrows the place and gives it back before it returns. Nothing is borrowed while a task waits.
pub struct Disk<'x, P: Platform> {
    place: RefCell<Place<'x, P>>,
    seats: Seats,
    /// Of the task that drives the disk.
    driver: Cell<Option<Waker>>,
    /// That one was called, and has not run since.
    called: Cell<bool>,
    /// Counts changes of what is in the place.
    changes: Cell<u64>,
    /// Somebody looks after the disk.
    controlled: Cell<bool>,
}

struct Place<'x, P: Platform> {
    front: Option<BlkFront<'x, P>>,
    /// A disk that has closed, and is about to be connected again with all that is under way.
    held: bool,
    /// Something was asked for and not shown.
    dirty: bool,
    /// The disk is to be looked at although there was no event, and its event channels may be others.
    unseen: bool,
    /// A number that is another after each disk that was put into the place, and after each connection that was not made by `Control`.
    epoch: u32,
    /// A device that is no longer the disk's, and has a watch.
    stale: Option<Frontend<Connected>>,
    /// How the disk was when tasks were told last: with its epoch and size, and whether queues of it were taken.
    known: Option<(State, u32, u64, bool)>,
}

impl<P: Platform> Default for Disk<'_, P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'x, P: Platform> Disk<'x, P> {
    /// An empty place.
    pub fn new() -> Self {
        let place = Place {
            front: None,
            held: false,
            dirty: false,
            unseen: true,
            epoch: 0,
            stale: None,
            known: None,
        };
        Self {
            place: RefCell::new(place),
            seats: Seats::default(),
            driver: Cell::new(None),
            called: Cell::new(false),
            changes: Cell::new(0),
            controlled: Cell::new(false),
        }
    }

    /// The place of a disk that is there.
    pub fn of(front: BlkFront<'x, P>) -> Self {
        let disk = Self::new();
        drop(disk.put(front));
        disk
    }

    /// What a task uses the disk by.
    pub fn handle(&self) -> DiskHandle<'_, 'x, P> {
        DiskHandle::new(self)
    }

    /// Puts a disk into the place. Returns the one before: what tasks asked of that fails with [`Error::Closed`], and is
    /// forgotten.
    pub fn put(&self, front: BlkFront<'x, P>) -> Option<BlkFront<'x, P>> {
        let before = self.take();
        {
            let mut place = self.place.borrow_mut();
            place.front = Some(front);
            place.epoch = place.epoch.wrapping_add(1);
        }
        self.settle();
        before
    }

    /// Takes the disk out of the place, as [`put`](Self::put) does. None: it is empty.
    pub fn take(&self) -> Option<BlkFront<'x, P>> {
        let mut place = self.place.borrow_mut();
        let mut front = place.front.take()?;
        // Their tickets are of this disk, whatever comes after it.
        self.seats.evict(Error::Closed);
        (place.held, place.dirty) = (false, false);
        place.epoch = place.epoch.wrapping_add(1);
        drop(place);
        while let Some(ticket) = self.seats.evicted() {
            front.forget(ticket);
        }
        self.settle();
        Some(front)
    }

    /// Calls `f` with the disk, if there is one. It must use neither the place nor a handle of it. Whatever it does with the disk,
    /// tasks that are concerned are woken afterwards.
    pub fn with<R>(&self, f: impl FnOnce(&mut BlkFront<'x, P>) -> R) -> Option<R> {
        let result = self.place.borrow_mut().front.as_mut().map(f);
        if result.is_some() {
            self.settle();
        }
        result
    }

    /// As [`with`](Self::with), and nobody is told of what `f` does.
    fn as_it_is<R>(&self, f: impl FnOnce(&mut BlkFront<'x, P>) -> R) -> Option<R> {
        self.place.borrow_mut().front.as_mut().map(f)
    }

    /// Calls `f` with the disk, which it only looks at.
    pub(crate) fn look<R>(&self, f: impl FnOnce(&BlkFront<'x, P>) -> R) -> Option<R> {
        self.place.borrow().front.as_ref().map(f)
    }

    /// Something may be otherwise with the disk: whom that concerns is woken.
    fn settle(&self) {
        let mut place = self.place.borrow_mut();
        let end = place.end();
        if let Some(error) = end {
            place.end_all(&self.seats, error);
        }
        let epoch = place.epoch;
        let now = place.front.as_ref();
        let now = now.map(|front| (front.state(), epoch, front.capacity(), front.has_taken()));
        let changed = now != core::mem::replace(&mut place.known, now);
        (place.dirty, place.unseen) = (true, true);
        drop(place);
        if changed {
            self.changes.set(self.changes.get().wrapping_add(1));
            self.call_all(Line::Change);
        }
        if changed || end.is_some() {
            self.call_all(Line::Answers);
            self.call_all(Line::Room);
        }
        self.tell();
        self.call_driver();
    }

    /// Wakes those who have results, and who may have room.
    #[inline]
    fn tell(&self) {
        if let Some(front) = &mut self.place.borrow_mut().front {
            self.seats.sort_out(&mut front.ops);
        }
        wake(|| self.seats.call_any(Line::Told));
        self.call_first();
    }

    /// Wakes who waits for room first.
    #[inline]
    fn call_first(&self) {
        if let Some(waker) = self.seats.call_first(Line::Room) {
            waker.wake();
        }
    }

    fn call_all(&self, line: Line) {
        wake(|| self.seats.call_any(line));
    }

    /// Wakes the task that drives the disk, once until it runs.
    #[inline]
    fn call_driver(&self) {
        if !self.called.replace(true) {
            let driver = self.driver.take();
            if let Some(waker) = &driver {
                waker.wake_by_ref();
            }
            self.driver.set(driver);
        }
    }
}

/// Wakes all that `next` takes out. One waker that panics takes nothing from the others.
#[inline]
fn wake<F: FnMut() -> Option<Waker>>(next: F) {
    /// After a panic of a waker it goes on with the rest.
    struct Rest<F: FnMut() -> Option<Waker>>(F);
    impl<F: FnMut() -> Option<Waker>> Drop for Rest<F> {
        #[inline]
        fn drop(&mut self) {
            while let Some(waker) = (self.0)() {
                waker.wake();
            }
        }
    }
    let mut rest = Rest(next);
    while let Some(waker) = (rest.0)() {
        waker.wake();
    }
    // Without a panic there is no rest.
    core::mem::forget(rest);
}

impl<'x, P: Platform> Place<'x, P> {
    /// Why nothing more comes of what is under way, if it is so.
    fn end(&self) -> Option<Error> {
        match self.front.as_ref().map(BlkFront::state) {
            Some(State::Broken(violation)) => Some(Error::Broken(violation)),
            Some(State::Closed) | None if !self.held => Some(Error::Closed),
            _ => None,
        }
    }

    /// All that is under way has this result, but what was answered.
    fn end_all(&mut self, seats: &Seats, error: Error) {
        let Some(front) = &mut self.front else { return seats.end(error, |_| true) };
        seats.end(error, |ticket| {
            let open = front.ops.settled(ticket).is_none();
            if open {
                front.ops.tell(ticket, error);
            }
            open
        });
    }
}

impl<P: Platform> fmt::Debug for Disk<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place.try_borrow() {
            Ok(place) => f.debug_tuple("Disk").field(&place.front).finish(),
            Err(_) => f.write_str("Disk"),
        }
    }
}
