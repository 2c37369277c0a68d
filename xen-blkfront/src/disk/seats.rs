//! Futures that wait for a disk: lists of seats, each of which is in its future.
//!
//! A list has no limit, for each who waits brings the memory of his seat along. All is of one thread.
#![allow(unsafe_code, reason = "lists of what is pinned elsewhere")]

use core::cell::Cell;
use core::marker::PhantomPinned;
use core::pin::Pin;
use core::ptr;
use core::task::Waker;

use xen_hypercall::Platform;

use crate::ops::Ops;
use crate::{Error, Ticket};

/// Operations of one future that are under way at once, at most.
pub(crate) const PARTS: usize = 8;
/// Wakers that are taken out of a list at once.
const BATCH: usize = 8;

/// What a future waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Line {
    /// Operations of its own that are under way.
    Answers,
    /// Room for an operation, or a disk: one after the other.
    Room,
    /// A change of the disk.
    Change,
}

/// The lists of a disk.
#[derive(Default)]
pub(crate) struct Seats {
    lists: [Ends; 3],
}

/// The ends of a list.
struct Ends {
    first: Cell<*const Links>,
    last: Cell<*const Links>,
}

impl Default for Ends {
    fn default() -> Self {
        Self { first: Cell::new(ptr::null()), last: Cell::new(ptr::null()) }
    }
}

/// A seat, as it is in a list.
struct Links {
    next: Cell<*const Links>,
    previous: Cell<*const Links>,
    line: Cell<Option<Line>>,
    /// None: it was woken, and is polled some time or dropped.
    waker: Cell<Option<Waker>>,
    tickets: [Cell<Option<Ticket>>; PARTS],
    /// How many there are, and no ticket from there on.
    used: Cell<usize>,
    /// Why nothing more comes of its operations: then it has none.
    ended: Cell<Option<Error>>,
    /// Other seats point here.
    _pinned: PhantomPinned,
}

/// The place of a future in one of the lists at a time. It leaves when it is dropped.
pub(crate) struct Seat<'d> {
    seats: &'d Seats,
    links: Links,
}

/// Wakers that were taken out of lists, to be called when nothing is borrowed.
#[derive(Default)]
pub(crate) struct Batch {
    wakers: [Option<Waker>; BATCH],
    count: usize,
}

impl Batch {
    pub(crate) fn is_full(&self) -> bool {
        self.count == BATCH
    }

    pub(crate) fn push(&mut self, waker: Option<Waker>) {
        if let (Some(place), true) = (self.wakers.get_mut(self.count), waker.is_some()) {
            *place = waker;
            self.count += 1;
        }
    }

    pub(crate) fn pop(&mut self) -> Option<Waker> {
        self.count = self.count.checked_sub(1)?;
        self.wakers.get_mut(self.count)?.take()
    }
}

impl Seats {
    fn ends(&self, line: Line) -> &Ends {
        &self.lists[line as usize]
    }

    pub(crate) fn is_empty(&self, line: Line) -> bool {
        self.ends(line).first.get().is_null()
    }

    /// The seats of a list, from the first on. Nobody may join or leave before the next one is asked for, so none of those who
    /// use it calls what is not of this crate.
    fn each(&self, line: Line) -> impl Iterator<Item = &Links> {
        let mut next = self.ends(line).first.get();
        core::iter::from_fn(move || {
            // SAFETY: a seat that is in a list is there: it is pinned, and leaves before it goes. It is written by cells alone.
            let links = unsafe { next.as_ref() }?;
            next = links.next.get();
            Some(links)
        })
    }

    /// Takes out the waker of the first of a list.
    pub(crate) fn call_first(&self, line: Line) -> Option<Waker> {
        self.each(line).next()?.waker.take()
    }

    /// Takes out the wakers of those in a list, as many as there is room for. False: there are more.
    pub(crate) fn call_all(&self, line: Line, batch: &mut Batch) -> bool {
        for links in self.each(line) {
            if batch.is_full() {
                return false;
            }
            batch.push(links.waker.take());
        }
        true
    }

    /// Takes out the wakers of those who have a result. False: there are more.
    pub(crate) fn call_answered<P: Platform>(&self, ops: &mut Ops<'_, P>, batch: &mut Batch) -> bool {
        for links in self.each(Line::Answers) {
            let mut tickets = links.tickets.iter().take(links.used.get()).filter_map(Cell::get);
            if !tickets.any(|ticket| ops.settled(ticket).is_some()) {
                continue;
            }
            if batch.is_full() {
                return false;
            }
            batch.push(links.waker.take());
        }
        true
    }

    /// Nothing more comes of operations that are under way: `each` is called with those that have no result. Those who wait for room
    /// are told the same.
    pub(crate) fn end(&self, error: Error, mut each: impl FnMut(Ticket) -> bool) {
        for links in self.each(Line::Answers) {
            for place in links.tickets.iter().take(links.used.get()) {
                if place.get().is_some_and(&mut each) {
                    place.set(None);
                    links.ended.set(Some(error));
                }
            }
            links.shrink();
        }
        for links in self.each(Line::Room) {
            links.ended.set(Some(error));
        }
    }
}

impl Links {
    /// The last of the places that are used has a ticket.
    #[inline]
    fn shrink(&self) {
        let used = self.tickets.get(..self.used.get()).unwrap_or_default();
        let last = used.iter().rposition(|place| place.get().is_some());
        self.used.set(last.map_or(0, |last| last + 1));
    }
}

impl<'d> Seat<'d> {
    pub(crate) fn new(seats: &'d Seats) -> Self {
        let links = Links {
            next: Cell::new(ptr::null()),
            previous: Cell::new(ptr::null()),
            line: Cell::new(None),
            waker: Cell::new(None),
            tickets: [const { Cell::new(None) }; PARTS],
            used: Cell::new(0),
            ended: Cell::new(None),
            _pinned: PhantomPinned,
        };
        Self { seats, links }
    }

    /// Which list it is in.
    pub(crate) fn line(&self) -> Option<Line> {
        self.links.line.get()
    }

    /// Whether it is the first of those that wait for room.
    pub(crate) fn is_first(&self) -> bool {
        self.line() == Some(Line::Room) && self.links.previous.get().is_null()
    }

    /// Joins a list at its end, and leaves another one. In the same list it stays where it is.
    pub(crate) fn sit(self: Pin<&Self>, line: Line) {
        if self.line() == Some(line) {
            return;
        }
        self.stand();
        let (links, ends) = (&self.get_ref().links, self.seats.ends(line));
        let last = ends.last.get();
        links.line.set(Some(line));
        links.previous.set(last);
        // SAFETY: as in `each`.
        match unsafe { last.as_ref() } {
            Some(last) => last.next.set(links),
            None => ends.first.set(links),
        }
        // The seat is pinned, and leaves when it is dropped, so that this is never of one that is gone.
        ends.last.set(links);
    }

    /// Leaves its list.
    pub(crate) fn stand(&self) {
        let links = &self.links;
        let Some(line) = links.line.take() else { return };
        let ends = self.seats.ends(line);
        let (previous, next) = (links.previous.replace(ptr::null()), links.next.replace(ptr::null()));
        // SAFETY: as in `each`.
        match unsafe { previous.as_ref() } {
            Some(previous) => previous.next.set(next),
            None => ends.first.set(next),
        }
        // SAFETY: as in `each`.
        match unsafe { next.as_ref() } {
            Some(next) => next.previous.set(previous),
            None => ends.last.set(previous),
        }
    }

    /// Leaves the waker of a task that is to be woken. Nothing may be borrowed that a waker may need when it is dropped.
    #[inline]
    pub(crate) fn leave(&self, waker: &Waker) {
        let before = self.links.waker.take();
        let same = before.filter(|before| before.will_wake(waker));
        drop(self.links.waker.replace(Some(same.unwrap_or_else(|| waker.clone()))));
    }

    /// The ticket in a place.
    #[inline]
    pub(crate) fn ticket(&self, place: usize) -> Option<Ticket> {
        self.links.tickets.get(place)?.get()
    }

    /// Places that may have a ticket.
    #[inline]
    pub(crate) fn used(&self) -> usize {
        self.links.used.get()
    }

    /// A place without a ticket.
    #[inline]
    pub(crate) fn vacancy(&self) -> Option<usize> {
        self.links.tickets.iter().position(|place| place.get().is_none())
    }

    #[inline]
    pub(crate) fn set(&self, place: usize, ticket: Ticket) {
        if let Some(at) = self.links.tickets.get(place) {
            at.set(Some(ticket));
            self.links.used.set(self.used().max(place + 1));
        }
    }

    #[inline]
    pub(crate) fn take(&self, place: usize) -> Option<Ticket> {
        let ticket = self.links.tickets.get(place)?.take();
        self.links.shrink();
        ticket
    }

    /// Whether it has no ticket.
    #[inline]
    pub(crate) fn is_idle(&self) -> bool {
        self.used() == 0
    }

    /// Why nothing more comes of what was under way.
    #[inline]
    pub(crate) fn ended(&self) -> Option<Error> {
        self.links.ended.get()
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.stand();
    }
}
