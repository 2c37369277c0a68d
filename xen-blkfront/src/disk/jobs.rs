//! What a task asks of a disk: operations one after the other, as many at once as there is room for.

use core::future::poll_fn;
use core::pin::{Pin, pin};
use core::task::{Context, Poll};

use xen_hypercall::{PAGE_SIZE, Platform};

use super::Disk;
use super::seats::{Line, PARTS, Seat};
use crate::abi::{MAX_SEGMENTS, SECTOR};
use crate::{BlkFront, Error, Piece, Ticket};

/// Bytes of an operation for which there are pages at all times, unless other operations have them.
const LITTLE: usize = MAX_SEGMENTS * PAGE_SIZE;

/// Operations of one call.
pub(super) trait Job<'x, P: Platform> {
    /// Submits the next operation, which is the one in this place from then on. None: all were.
    fn submit(&mut self, front: &mut BlkFront<'x, P>, place: usize) -> Result<Option<Ticket>, Error>;

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
        let Self { disk, seat, job, whole, result } = self;
        let mut borrowed = disk.place.borrow_mut();
        let place = &mut *borrowed;
        if let Some(error) = seat.ended() {
            *result = result.and(Err(error));
        }
        let (mut asked, mut taken, mut waits) = (false, false, false);
        loop {
            if let Some(front) = &mut place.front {
                for at in 0..seat.used() {
                    // Of a disk that is about to be connected again, what has no result may still have one.
                    let settled = seat.ticket(at).filter(|ticket| front.ops.settled(*ticket).is_some());
                    let Some(ticket) = settled else { continue };
                    if let Some(ended) = job.take(front, at, ticket) {
                        let _ = seat.take(at);
                        *result = result.and(ended);
                        taken = true;
                    }
                }
            }
            let mut settled = false;
            while result.is_ok() && !*whole {
                let Some(at) = seat.vacancy() else { break };
                let first = disk.seats.is_empty(Line::Room) || seat.is_first();
                if !first || place.held {
                    waits = true;
                    break;
                }
                let submitted = match &mut place.front {
                    Some(front) => job.submit(front, at),
                    None => Err(Error::Closed),
                };
                match submitted {
                    Ok(Some(ticket)) => {
                        seat.set(at, ticket);
                        asked = true;
                        settled |=
                            place.front.as_mut().is_some_and(|front| front.ops.settled(ticket).is_some());
                    }
                    Ok(None) => *whole = true,
                    Err(Error::Busy) => {
                        waits = true;
                        break;
                    }
                    Err(error) => *result = Err(error),
                }
            }
            if !settled {
                break;
            }
        }
        place.dirty |= asked;
        drop(borrowed);
        // Who leaves the line for room may have left some.
        let mut next = taken;
        if !seat.is_idle() {
            // What there is no room for follows when one of these is done.
            next |= seat.line() == Some(Line::Room);
            seat.sit(Line::Answers);
        } else if waits {
            seat.sit(Line::Room);
        } else {
            next |= seat.line() == Some(Line::Room);
            seat.stand();
        }
        let ended = seat.line().is_none();
        if !ended {
            seat.leave(cx.waker());
        }
        if asked {
            disk.call_driver();
        }
        if next {
            disk.call_first();
        }
        if ended { Poll::Ready(*result) } else { Poll::Pending }
    }
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
pub(super) struct Single<F> {
    /// None: it was submitted.
    submit: Option<F>,
}

impl<F> Single<F> {
    pub(super) fn new(submit: F) -> Self {
        Self { submit: Some(submit) }
    }
}

impl<'x, P: Platform, F> Job<'x, P> for Single<F>
where
    F: FnMut(&mut BlkFront<'x, P>) -> Result<Ticket, Error>,
{
    fn submit(&mut self, front: &mut BlkFront<'x, P>, _: usize) -> Result<Option<Ticket>, Error> {
        let Some(submit) = &mut self.submit else { return Ok(None) };
        let ticket = submit(front)?;
        self.submit = None;
        Ok(Some(ticket))
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
    pub(super) submitted: bool,
}

impl<'x, P: Platform> Job<'x, P> for Lent<'_, 'x, P> {
    #[inline]
    fn submit(&mut self, front: &mut BlkFront<'x, P>, _: usize) -> Result<Option<Ticket>, Error> {
        if self.submitted {
            return Ok(None);
        }
        let ticket = if self.write {
            front.submit_write_from(self.lba, self.pieces)?
        } else {
            front.submit_read_into(self.lba, self.pieces)?
        };
        self.submitted = true;
        Ok(Some(ticket))
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
    fn submit(&mut self, front: &mut BlkFront<'x, P>, place: usize) -> Result<Option<Ticket>, Error> {
        if self.part == 0 {
            self.begin(front)?;
        }
        loop {
            let len = (self.buffer.len() - self.next).min(self.part);
            if len == 0 {
                return Ok(None);
            }
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
                    return Ok(Some(ticket));
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
