//! What a task asks of a disk: operations one after the other, as many at once as there is room for.

use core::future::poll_fn;
use core::pin::{Pin, pin};
use core::task::{Context, Poll};

use xen_hypercall::{PAGE_SIZE, Platform};

use super::{Disk, Place};
use super::seats::{Line, PARTS, Seat};
use crate::abi::{MAX_SEGMENTS, SECTOR};
use crate::{BlkFront, Error, Piece, Ticket};

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

/// Does a job. Dropped before that is done, it forgets what is under way.
pub(super) async fn perform<'x, P: Platform>(disk: &Disk<'x, P>, job: impl Job<'x, P>) -> Result<(), Error> {
    let seat = pin!(Seat::new(&disk.seats));
    let mut task = Task { disk, seat: seat.as_ref(), job, whole: false, result: Ok(()) };
    poll_fn(|cx| task.poll(cx)).await
}

struct Task<'t, 'd, 'x, P: Platform, J> {
    disk: &'d Disk<'x, P>,
    seat: Pin<&'t Seat<'d>>,
    job: J,
    /// All was submitted.
    whole: bool,
    /// After an error nothing more is submitted.
    result: Result<(), Error>,
}

impl<'x, P: Platform, J: Job<'x, P>> Task<'_, '_, 'x, P, J> {
    #[inline]
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let (disk, seat) = (self.disk, self.seat);
        let mut place = disk.place.borrow_mut();
        if let Some(error) = seat.ended() {
            self.result = self.result.and(Err(error));
        }
        let taken = !seat.is_idle() && self.take(&mut place);
        let mut turn = if self.whole || self.result.is_err() { Turn::Over } else { self.ask(&mut place) };
        if J::AT_ONCE && turn == Turn::Asked && self.take(&mut place) {
            turn = Turn::Over;
        }
        drop(place);
        let waited = seat.line() == Some(Line::Room);
        if !seat.is_idle() {
            // What there is no room for follows when one of these is done.
            seat.sit(Line::Answers);
        } else if turn == Turn::Waits {
            seat.sit(Line::Room);
        } else {
            seat.stand();
        }
        let ended = seat.line().is_none();
        if !ended {
            seat.leave(cx.waker());
        }
        if turn == Turn::Asked {
            disk.call_driver();
        }
        // Who leaves the line for room may have left some.
        if taken || waited && seat.line() != Some(Line::Room) {
            disk.call_first();
        }
        if ended { Poll::Ready(self.result) } else { Poll::Pending }
    }

    /// Takes what is done. Returns whether something was.
    #[inline]
    fn take(&mut self, place: &mut Place<'x, P>) -> bool {
        let Some(front) = &mut place.front else { return false };
        let mut taken = false;
        for at in 0..self.seat.used() {
            let Some(ticket) = self.seat.ticket(at) else { continue };
            // Of a disk that is about to be connected again, what has no result may still have one.
            if front.ops.settled(ticket).is_none() {
                continue;
            }
            if let Some(result) = self.job.take(front, at, ticket) {
                let _ = self.seat.take(at);
                self.result = self.result.and(result);
                taken = true;
            }
        }
        taken
    }

    /// Submits as much as there is room for, if it is this one's turn.
    #[inline]
    fn ask(&mut self, place: &mut Place<'x, P>) -> Turn {
        let Some(front) = &mut place.front else {
            self.result = Err(Error::Closed);
            return Turn::Over;
        };
        let mut turn = Turn::Waits;
        if place.held || !(self.disk.seats.is_empty(Line::Room) || self.seat.is_first()) {
            return turn;
        }
        while let Some(at) = self.seat.vacancy() {
            match self.job.submit(front, at) {
                Ok((ticket, last)) => {
                    self.seat.set(at, ticket);
                    (turn, self.whole, place.dirty) = (Turn::Asked, last, true);
                    if last {
                        break;
                    }
                }
                Err(Error::Busy) => break,
                Err(error) => {
                    self.result = Err(error);
                    return if turn == Turn::Asked { turn } else { Turn::Over };
                }
            }
        }
        turn
    }
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

impl<P: Platform, J> Drop for Task<'_, '_, '_, P, J> {
    fn drop(&mut self) {
        let Self { disk, seat, .. } = self;
        let waited = seat.line() == Some(Line::Room);
        seat.stand();
        if seat.is_idle() && !waited {
            return;
        }
        if let Some(front) = &mut disk.place.borrow_mut().front {
            for at in 0..seat.used() {
                if let Some(ticket) = seat.take(at) {
                    front.forget(ticket);
                }
            }
        }
        disk.call_first();
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
