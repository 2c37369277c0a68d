//! What a task asks of a disk: operations one after the other, as many at once as there is room for.

use core::future::poll_fn;
use core::pin::{Pin, pin};
use core::task::{Context, Poll};

use xen_hypercall::{PAGE_SIZE, Platform};

use super::seats::{Line, Row, Seat};
use super::{Disk, Place};
use crate::abi::{MAX_SEGMENTS, SECTOR};
use crate::{BlkFront, Error, Piece, Ticket};

/// Operations of a transfer that are under way at once, at most.
pub(super) const PARTS: usize = 8;
/// Bytes of an operation for which there are pages at all times, unless other operations have them.
const LITTLE: usize = MAX_SEGMENTS * PAGE_SIZE;

/// Operations of one call.
pub(super) trait Job<'x, P: Platform> {
    /// Whether an operation may have its result when it was submitted.
    const AT_ONCE: bool = false;

    /// Submits the next operation, which is the one in this place from then on. Returns whether it was the last.
    fn submit(&mut self, front: &mut BlkFront<'x, P>, place: usize) -> Result<(Ticket, bool), Error>;

    /// Takes the result of an operation that has one.
    fn take(
        &mut self,
        front: &mut BlkFront<'x, P>,
        place: usize,
        ticket: Ticket,
    ) -> Option<Result<(), Error>>;
}

/// Does a job, by at most `N` operations at once. Dropped before that is done, it forgets what is under way.
#[inline]
pub(super) async fn perform<'x, P: Platform, const N: usize>(
    disk: &Disk<'x, P>,
    job: impl Job<'x, P>,
) -> Result<(), Error> {
    let row = pin!(Row::<N>::new(&disk.seats));
    let mut task = Task { disk, row: row.as_ref(), job, used: 0, whole: false, error: None };
    poll_fn(|cx| task.poll(cx)).await
}

struct Task<'t, 'd, 'x, P: Platform, J, const N: usize> {
    disk: &'d Disk<'x, P>,
    row: Pin<&'t Row<'d, N>>,
    job: J,
    /// Seats that were used so far, from the first on. The first is the one that waits for room, while none has an operation.
    used: usize,
    /// All was submitted.
    whole: bool,
    /// After an error nothing more is submitted.
    error: Option<Error>,
}

/// What became of a look at what else is to be asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Something was.
    Asked,
    /// Nothing can be.
    Waits,
    /// Nothing is to be.
    Over,
}

impl<'t, 'd, 'x, P: Platform, J: Job<'x, P>, const N: usize> Task<'t, 'd, 'x, P, J, N> {
    #[inline]
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let disk = self.disk;
        let Some(first) = self.row.seat(0) else { return Poll::Ready(Ok(())) };
        let waited = first.line() == Some(Line::Room);
        let mut place = disk.place.borrow_mut();
        let taken = self.take(&mut place);
        let mut turn =
            if self.whole || self.error.is_some() { Turn::Over } else { self.ask(first, &mut place) };
        if J::AT_ONCE && turn == Turn::Asked && self.take(&mut place) {
            turn = Turn::Over;
        }
        drop(place);
        let mut waits = false;
        for seat in self.seats().filter(|seat| seat.ticket().is_some()) {
            // What there is no room for follows when one of these is done.
            seat.sit(Line::Answers);
            seat.leave(cx.waker());
            waits = true;
        }
        if !waits && turn == Turn::Waits {
            first.sit(Line::Room);
            first.leave(cx.waker());
            self.used = self.used.max(1);
            return Poll::Pending;
        }
        if turn == Turn::Asked {
            disk.call_driver();
        }
        if waited && first.line() == Some(Line::Room) {
            first.stand();
        }
        // Who leaves the line for room may have left some.
        if taken || waited {
            disk.call_first();
        }
        if waits { Poll::Pending } else { Poll::Ready(self.error.map_or(Ok(()), Err)) }
    }

    #[cold]
    fn fail(&mut self, error: Error) {
        let _ = self.error.get_or_insert(error);
    }

    /// The seats that were used so far.
    #[inline]
    fn seats(&self) -> impl Iterator<Item = Pin<&'t Seat<'d>>> + use<'t, 'd, 'x, P, J, N> {
        let row = self.row;
        // The compiler need not count to one.
        (0..if N == 1 { 1 } else { self.used }).filter_map(move |at| row.seat(at))
    }

    /// Takes what is done. Returns whether something was.
    #[inline]
    fn take(&mut self, place: &mut Place<'x, P>) -> bool {
        let mut taken = false;
        for (at, seat) in self.seats().enumerate() {
            let (Some(ticket), Some(front)) = (seat.ticket(), &mut place.front) else {
                if let Some(error) = seat.ended() {
                    self.fail(error);
                }
                continue;
            };
            // Of a disk that is about to be connected again, what has no result may still have one.
            if front.ops.settled(ticket).is_none() {
                continue;
            }
            if let Some(result) = self.job.take(front, at, ticket) {
                seat.set(None);
                taken = true;
                if let Err(error) = result {
                    self.fail(error);
                }
            }
        }
        taken
    }

    /// Submits as much as there is room for, if it is this one's turn.
    #[inline]
    fn ask(&mut self, first: Pin<&'t Seat<'d>>, place: &mut Place<'x, P>) -> Turn {
        let Some(front) = &mut place.front else {
            self.fail(Error::Closed);
            return Turn::Over;
        };
        let mut turn = Turn::Waits;
        if place.held || !(self.disk.seats.is_empty(Line::Room) || first.is_first()) {
            return turn;
        }
        for at in 0..N {
            let Some(seat) = self.row.seat(at).filter(|seat| seat.ticket().is_none()) else { continue };
            match self.job.submit(front, at) {
                Ok((ticket, last)) => {
                    seat.set(Some(ticket));
                    self.used = self.used.max(at + 1);
                    (turn, self.whole, place.dirty) = (Turn::Asked, last, true);
                    if last {
                        break;
                    }
                }
                Err(Error::Busy) => break,
                Err(error) => {
                    self.fail(error);
                    return if turn == Turn::Asked { turn } else { Turn::Over };
                }
            }
        }
        turn
    }
}

impl<P: Platform, J, const N: usize> Drop for Task<'_, '_, '_, P, J, N> {
    #[inline]
    fn drop(&mut self) {
        let (mut left, disk) = (false, self.disk);
        for at in 0..if N == 1 { 1 } else { self.used } {
            let Some(seat) = self.row.seat(at) else { continue };
            left |= seat.line() == Some(Line::Room);
            // It leaves its line when it is dropped; who waits for room then has to be another one.
            seat.stand();
            let Some(ticket) = seat.ticket() else { continue };
            if let Some(front) = &mut disk.place.borrow_mut().front {
                front.forget(ticket);
            }
            seat.set(None);
            left = true;
        }
        if left {
            disk.call_first();
        }
    }
}

/// One operation, without data of its own.
pub(super) struct Single<F>(pub(super) F);

impl<'x, P: Platform, F> Job<'x, P> for Single<F>
where
    F: FnMut(&mut BlkFront<'x, P>) -> Result<Ticket, Error>,
{
    const AT_ONCE: bool = true;

    fn submit(&mut self, front: &mut BlkFront<'x, P>, _: usize) -> Result<(Ticket, bool), Error> {
        Ok(((self.0)(front)?, true))
    }

    fn take(&mut self, front: &mut BlkFront<'x, P>, _: usize, ticket: Ticket) -> Option<Result<(), Error>> {
        front.take(ticket, &mut [])
    }
}

/// One operation on pages of the caller's.
pub(super) struct Lent<'b, 'x, P: Platform> {
    pub(super) lba: u64,
    pub(super) pieces: &'b mut [Option<Piece<'x, P>>],
    pub(super) write: bool,
}

impl<'x, P: Platform> Job<'x, P> for Lent<'_, 'x, P> {
    #[inline]
    fn submit(&mut self, front: &mut BlkFront<'x, P>, _: usize) -> Result<(Ticket, bool), Error> {
        let ticket = if self.write {
            front.submit_write_from(self.lba, self.pieces)?
        } else {
            front.submit_read_into(self.lba, self.pieces)?
        };
        Ok((ticket, true))
    }

    #[inline]
    fn take(&mut self, front: &mut BlkFront<'x, P>, _: usize, ticket: Ticket) -> Option<Result<(), Error>> {
        front.take_pages(ticket, self.pieces)
    }
}

/// The caller's buffer.
pub(super) enum Buffer<'b> {
    Read(&'b mut [u8]),
    Write(&'b [u8]),
}

impl Buffer<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Read(out) => out.len(),
            Self::Write(data) => data.len(),
        }
    }
}

/// A transfer of any length, in parts.
pub(super) struct Transfer<'b> {
    lba: u64,
    buffer: Buffer<'b>,
    /// The next byte that is not submitted.
    next: usize,
    /// Bytes of one operation; zero before the first.
    part: usize,
    /// Where the parts under way begin, and how long they are.
    parts: [(usize, usize); PARTS],
}

impl<'b> Transfer<'b> {
    pub(super) fn new(lba: u64, buffer: Buffer<'b>) -> Self {
        Self { lba, buffer, next: 0, part: 0, parts: [(0, 0); PARTS] }
    }

    /// Whether all of it is on the disk, and how it is cut.
    fn begin<P: Platform>(&mut self, front: &BlkFront<'_, P>) -> Result<(), Error> {
        front.check_state()?;
        if matches!(self.buffer, Buffer::Write(_)) && front.features.read_only {
            return Err(Error::ReadOnly);
        }
        let len = self.buffer.len();
        if len % SECTOR != 0 {
            return Err(Error::Unaligned);
        }
        front.features.check_range(self.lba, (len / SECTOR) as u64)?;
        self.part = front.request_sectors().min(front.max_sectors()) as usize * SECTOR;
        Ok(())
    }
}

impl<'x, P: Platform> Job<'x, P> for Transfer<'_> {
    fn submit(&mut self, front: &mut BlkFront<'x, P>, place: usize) -> Result<(Ticket, bool), Error> {
        if self.part == 0 {
            self.begin(front)?;
        }
        loop {
            let len = (self.buffer.len() - self.next).min(self.part);
            let lba = self.lba + (self.next / SECTOR) as u64;
            let submitted = match &self.buffer {
                Buffer::Read(_) => front.submit_read(lba, (len / SECTOR) as u64),
                Buffer::Write(data) => {
                    front.submit_write(lba, data.get(self.next..self.next + len).unwrap_or_default())
                }
            };
            match submitted {
                Ok(ticket) => {
                    if let Some(part) = self.parts.get_mut(place) {
                        *part = (self.next, len);
                    }
                    self.next += len;
                    return Ok((ticket, self.next == self.buffer.len()));
                }
                // There is no memory for more pages. Little is enough: some are there in any case.
                Err(Error::Grant(_)) if self.part > LITTLE => self.part = LITTLE,
                Err(error) => return Err(error),
            }
        }
    }

    fn take(
        &mut self,
        front: &mut BlkFront<'x, P>,
        place: usize,
        ticket: Ticket,
    ) -> Option<Result<(), Error>> {
        let (start, len) = self.parts.get(place).copied().unwrap_or_default();
        let out = match &mut self.buffer {
            Buffer::Read(out) => out.get_mut(start..start + len).unwrap_or_default(),
            Buffer::Write(_) => &mut [],
        };
        front.take(ticket, out)
    }
}
