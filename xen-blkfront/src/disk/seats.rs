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

/// What a future waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Line {
    /// An operation of its own that is under way.
    Answers,
    /// Room for an operation, or a disk: one after the other.
    Room,
    /// A change of the disk.
    Change,
    /// The operation has a result, and who waits for it is to be woken, or was.
    Told,
    /// The operation is of a disk that was taken away, and is to be forgotten there.
    Evicted,
}

/// The lists of a disk.
#[derive(Default)]
pub(crate) struct Seats {
    lists: [Ends; 5],
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
    ticket: Cell<Option<Ticket>>,
    /// Why nothing more comes of its operation: then that is not its own any more.
    ended: Cell<Option<Error>>,
    /// Other seats point here.
    _pinned: PhantomPinned,
}

/// The place of a future in one of the lists at a time. It leaves when it is dropped.
pub(crate) struct Seat<'d> {
    seats: &'d Seats,
    links: Links,
}

/// Seats of one future.
pub(crate) struct Row<'d, const N: usize>([Seat<'d>; N]);

impl Seats {
    #[inline]
    fn ends(&self, line: Line) -> &Ends {
        &self.lists[line as usize]
    }

    #[inline]
    pub(crate) fn is_empty(&self, line: Line) -> bool {
        self.ends(line).first.get().is_null()
    }

    /// The seats of a list, from the first on. One may leave when the next one has been asked for. Nobody else may join or leave
    /// meanwhile, so none of those who use it calls what is not of this crate.
    #[inline]
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
    #[inline]
    pub(crate) fn call_first(&self, line: Line) -> Option<Waker> {
        self.each(line).next()?.waker.take()
    }

    /// Takes out the first waker that there is in a list.
    #[inline]
    pub(crate) fn call_any(&self, line: Line) -> Option<Waker> {
        self.each(line).find_map(|links| links.waker.take())
    }

    /// Those who have a result are to be [told](Line::Told).
    #[inline]
    pub(crate) fn sort_out<P: Platform>(&self, ops: &mut Ops<'_, P>) {
        for links in self.each(Line::Answers) {
            if links.ticket.get().is_some_and(|ticket| ops.settled(ticket).is_some()) {
                self.remove(links);
                self.add(links, Line::Told);
            }
        }
    }

    /// Nothing more comes of operations that are under way: `each` is called with all, and returns whether it is so. It calls nothing
    /// that is not of this crate. Those who wait for room are told the same.
    pub(crate) fn end(&self, error: Error, mut each: impl FnMut(Ticket) -> bool) {
        for line in [Line::Answers, Line::Told] {
            for links in self.each(line) {
                if links.ticket.get().is_some_and(&mut each) {
                    links.ticket.set(None);
                    links.ended.set(Some(error));
                }
            }
        }
        for links in self.each(Line::Room) {
            links.ended.set(Some(error));
        }
    }

    /// Nothing more comes of all operations, nor of waiting for room: the disk is taken away. Each operation is to be asked for by
    /// [`evicted`](Self::evicted), and forgotten.
    pub(crate) fn evict(&self, error: Error) {
        for line in [Line::Answers, Line::Told] {
            for links in self.each(line).filter(|links| links.ticket.get().is_some()) {
                links.ended.set(Some(error));
                self.remove(links);
                self.add(links, Line::Evicted);
            }
        }
        for links in self.each(Line::Room) {
            links.ended.set(Some(error));
        }
    }

    /// The next operation to forget. To forget one may call wakers, which may drop futures, so no list is gone through meanwhile.
    pub(crate) fn evicted(&self) -> Option<Ticket> {
        let links = self.each(Line::Evicted).next()?;
        self.remove(links);
        self.add(links, Line::Told);
        links.ticket.take()
    }

    /// Adds a seat, which is in none, to a list at its end.
    #[inline]
    fn add(&self, links: &Links, line: Line) {
        let ends = self.ends(line);
        let last = ends.last.get();
        links.line.set(Some(line));
        links.previous.set(last);
        // SAFETY: as in `each`.
        match unsafe { last.as_ref() } {
            Some(last) => last.next.set(links),
            None => ends.first.set(links),
        }
        ends.last.set(links);
    }

    /// Takes a seat out of its list, if it is in one.
    #[inline]
    fn remove(&self, links: &Links) {
        let Some(line) = links.line.take() else { return };
        let ends = self.ends(line);
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
}

impl<'d> Seat<'d> {
    #[inline]
    pub(crate) fn new(seats: &'d Seats) -> Self {
        let links = Links {
            next: Cell::new(ptr::null()),
            previous: Cell::new(ptr::null()),
            line: Cell::new(None),
            waker: Cell::new(None),
            ticket: Cell::new(None),
            ended: Cell::new(None),
            _pinned: PhantomPinned,
        };
        Self { seats, links }
    }

    /// Which list it is in.
    #[inline]
    pub(crate) fn line(&self) -> Option<Line> {
        self.links.line.get()
    }

    /// Whether it is the first of those that wait for room.
    #[inline]
    pub(crate) fn is_first(&self) -> bool {
        self.line() == Some(Line::Room) && self.links.previous.get().is_null()
    }

    /// Joins a list at its end, and leaves another one. In the same list it stays where it is.
    ///
    /// A seat that is pinned leaves when it is dropped, so that no list has one that is gone.
    #[inline]
    pub(crate) fn sit(self: Pin<&Self>, line: Line) {
        if self.line() != Some(line) {
            self.stand();
            self.seats.add(&self.get_ref().links, line);
        }
    }

    /// Leaves its list.
    #[inline]
    pub(crate) fn stand(&self) {
        self.seats.remove(&self.links);
    }

    /// Leaves the waker of a task that is to be woken. Nothing may be borrowed that a waker may need when it is dropped.
    #[inline]
    pub(crate) fn leave(&self, waker: &Waker) {
        match self.links.waker.take() {
            Some(before) if before.will_wake(waker) => self.links.waker.set(Some(before)),
            before => {
                self.links.waker.set(Some(waker.clone()));
                drop(before);
            }
        }
    }

    #[inline]
    pub(crate) fn ticket(&self) -> Option<Ticket> {
        self.links.ticket.get().filter(|_| self.links.ended.get().is_none())
    }

    #[inline]
    pub(crate) fn set(&self, ticket: Option<Ticket>) {
        self.links.ticket.set(ticket);
    }

    /// Why nothing more comes of what was under way.
    #[inline]
    pub(crate) fn ended(&self) -> Option<Error> {
        self.links.ended.get()
    }
}

impl Drop for Seat<'_> {
    #[inline]
    fn drop(&mut self) {
        self.stand();
    }
}

impl<'d, const N: usize> Row<'d, N> {
    #[inline]
    pub(crate) fn new(seats: &'d Seats) -> Self {
        Self(core::array::from_fn(|_| Seat::new(seats)))
    }

    /// A seat of it.
    #[inline]
    pub(crate) fn seat(self: Pin<&Self>, at: usize) -> Option<Pin<&Seat<'d>>> {
        let seat = self.get_ref().0.get(at)?;
        // SAFETY: it is pinned with the row, which never gives a seat out otherwise, nor moves one.
        Some(unsafe { Pin::new_unchecked(seat) })
    }
}
