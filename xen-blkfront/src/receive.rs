//! From responses to results, and what happens with a request that failed.

use core::task::{Context, Poll};

use xen_evtchn::Progress;
use xen_hypercall::Platform;

use crate::abi::*;
use crate::error::Violation;
use crate::features::Features;
use crate::ops::{Kind, Ops, Stage};
use crate::pool::Pool;
use crate::queue::{Queue, Slot, Slots};
use crate::{BlkFront, Error, Piece, State, Stats, Ticket};

/// How often a task looks again before it lets others run.
const TURNS: usize = 4;

impl<'x, P: Platform> BlkFront<'x, P> {
    /// Takes the responses that are there, and sends what waited for room in the rings; answers how many there were.
    ///
    /// To be called after each event: until then the backend's further events are held back
    /// ([`Channel::set_late_eoi`](xen_evtchn::Channel::set_late_eoi)).
    ///
    /// # Errors
    /// [`Error::Broken`]; [`Error::Event`] when Xen does not send an event.
    pub fn poll(&mut self) -> Result<usize, Error> {
        self.check_broken()?;
        let Some(link) = &mut self.link else { return Ok(0) };
        let mut count = 0;
        for queue in link.queues.iter_mut() {
            let Self { ops, pool, features, stats, .. } = self;
            match receive(queue, ops, pool, features, stats) {
                Ok(found) => count += found,
                Err(violation) => return Err(self.broke(violation)),
            }
        }
        self.stats.responses += count as u64;
        if count > 0 && self.ops.head().is_some() {
            self.push_out()?;
        }
        Ok(count)
    }

    /// Gives a place and its pages back.
    pub(crate) fn release(&mut self, index: u16) {
        let pages = self.ops.release(index);
        self.pool.release(pages);
    }

    /// The result of an operation, once [`poll`](Self::poll) has taken its responses: `None` before. What was read is
    /// copied to `out`, which has exactly its length; for other operations, and for what was read into the caller's
    /// own pages, `out` may be empty. Pages that were lent are dropped; see [`take_pages`](Self::take_pages).
    ///
    /// While the backend is gone the result of what is under way is [`Error::Closing`], but it is not taken:
    /// [`reconnect`](Self::reconnect) asks for it again.
    ///
    /// # Errors
    /// The inner result is the operation's own. [`Error::BufferLength`] leaves the result to be taken again.
    pub fn take(&mut self, ticket: Ticket, out: &mut [u8]) -> Option<Result<(), Error>> {
        let Some(op) = self.ops.settled(ticket) else { return self.unsettled(ticket) };
        let (pages, result) = (op.pages, op.result);
        if op.kind == Kind::Read && result.is_ok() && !op.lent {
            if out.len() as u64 != op.sectors * SECTOR as u64 {
                return Some(Err(Error::BufferLength));
            }
            self.stats.bytes_copied += out.len() as u64;
            if self.pool.read(pages, out).is_none() {
                return Some(Err(Error::BufferLength));
            }
        }
        self.release(ticket.place());
        Some(result)
    }

    /// Like [`take`](Self::take) for an operation on pages that were lent: gives them back, in order, whatever the result is.
    /// There are to be as many `places` as pages were lent; what is in them is dropped.
    ///
    /// # Errors
    /// The inner result is the operation's own. [`Error::BufferLength`] leaves the result to be taken again.
    #[inline]
    pub fn take_pages(
        &mut self,
        ticket: Ticket,
        places: &mut [Option<Piece<'x, P>>],
    ) -> Option<Result<(), Error>> {
        match (self.ops.settled(ticket), places) {
            (Some(op), [place]) if op.result.is_ok() && op.piece.is_some() => {
                *place = op.piece.take();
                self.ops.vacate(ticket.place());
                Some(Ok(()))
            }
            (_, places) => self.take_several(ticket, places),
        }
    }

    /// [`take_pages`](Self::take_pages) of more pages than one, and of what failed.
    #[inline(never)]
    fn take_several(
        &mut self,
        ticket: Ticket,
        places: &mut [Option<Piece<'x, P>>],
    ) -> Option<Result<(), Error>> {
        let Some(op) = self.ops.settled(ticket) else { return self.unsettled(ticket) };
        let (pages, result) = (op.pages, op.result);
        let lent = if op.lent { op.count() } else { 0 };
        if places.len() != usize::from(lent) {
            return Some(Err(Error::BufferLength));
        }
        let mut places = places.iter_mut();
        let mut each = |piece| {
            if let Some(place) = places.next() {
                *place = Some(piece);
            }
        };
        if let Some(piece) = op.piece.take() {
            each(piece);
        }
        self.pool.release_to(pages, each);
        self.ops.release(ticket.place());
        Some(result)
    }

    /// Why there is no result: the ticket is not good, or there will be none, or there is none yet.
    #[cold]
    #[inline(never)]
    fn unsettled(&mut self, ticket: Ticket) -> Option<Result<(), Error>> {
        if self.ops.find(ticket).is_none() {
            return Some(Err(Error::StaleTicket));
        }
        match self.state {
            State::Broken(violation) => Some(Err(Error::Broken(violation))),
            State::Gone => Some(Err(Error::Closing)),
            _ => None,
        }
    }

    /// [`take`](Self::take) for a task: takes responses, and when the operation's are not there yet the task is woken by
    /// the next. One task per disk: the last that polled is the one that is woken.
    pub fn poll_take(
        &mut self,
        ticket: Ticket,
        out: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Error>> {
        for _ in 0..TURNS {
            // A disk that breaks here says so by the result.
            let polled = self.poll();
            if let Some(result) = self.take(ticket, out) {
                return Poll::Ready(result);
            }
            if let Err(error) = polled {
                return Poll::Ready(Err(error));
            }
            if self.poll_event(cx).is_pending() && !self.arm() {
                return Poll::Pending;
            }
        }
        // Others want to run, too.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Gives up an operation's result. The operation itself goes on.
    pub fn forget(&mut self, ticket: Ticket) {
        if self.ops.forget(ticket) {
            self.release(ticket.place());
        }
    }

    /// Asks for an event with the next response, and answers whether there is something to [`poll`](Self::poll)
    /// already, so that waiting would be wrong.
    pub fn arm(&mut self) -> bool {
        self.arm_after(0)
    }

    /// Like [`arm`](Self::arm), but for the response that follows `skip` others in its ring: who needs no single one of
    /// them is woken less often. No more are skipped than are under way.
    pub fn arm_after(&mut self, skip: u32) -> bool {
        let Some(link) = &mut self.link else { return false };
        let mut there = false;
        for queue in link.queues.iter_mut() {
            let most = queue.ring.in_flight().saturating_sub(1);
            // A ring that breaks here says so again when it is polled.
            there |= queue.ring.arm_after(skip.min(most)).unwrap_or(true);
        }
        there
    }

    /// Ready when an event arrived from the backend; otherwise wakes the task then. Call [`arm`](Self::arm) before.
    pub fn poll_event(&self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(link) = &self.link else { return Poll::Pending };
        let mut ready = Poll::Pending;
        for queue in link.queues.iter() {
            if queue.channel.poll_event(cx).is_ready() {
                ready = Poll::Ready(());
            }
        }
        ready
    }
}

/// Takes the responses that are in a ring.
#[inline]
fn receive<'x, P: Platform>(
    queue: &mut Queue<'x, P>,
    ops: &mut Ops<'x, P>,
    pool: &mut Pool<'x, P>,
    features: &mut Features,
    stats: &mut Stats,
) -> Result<usize, Violation> {
    let responses = queue.ring.responses().map_err(Violation::Ring)?;
    let count = responses.len();
    for response in responses {
        match ops.whole(response.id) {
            Some(op) if op.is_success(response) => op.moved(stats),
            _ => answer(response, &mut queue.slots, ops, pool, features, stats)?,
        }
    }
    queue.channel.done(Progress::of(count > 0));
    Ok(count)
}

/// Takes a response that is not just the success of an operation by itself. It is believed only if it is to a request under
/// way, and of the same operation.
#[cold]
#[inline(never)]
fn answer<P: Platform>(
    response: Response,
    slots: &mut Slots<'_, P>,
    ops: &mut Ops<'_, P>,
    pool: &mut Pool<'_, P>,
    features: &mut Features,
    stats: &mut Stats,
) -> Result<(), Violation> {
    let slot = match ops.whole(response.id) {
        Some(op) => op.recorded(response)?,
        None => slots.take(&response)?,
    };
    if response.status != RSP_OKAY {
        refused(ops, features, slot, response.status);
    }
    pool.release(slot.indirect);
    let mut index = slot.first;
    for _ in 0..slot.count {
        let Some(op) = ops.at(index) else { break };
        let next = op.next;
        op.in_flight = op.in_flight.saturating_sub(1);
        if op.in_flight == 0 && op.stage == Stage::Sent && !op.conclude(stats) {
            go_on(ops, pool, stats, index);
        }
        index = next;
    }
    Ok(())
}

/// The backend did not do what a request asks for: says so to each of its operations, or has it tried in another way.
#[cold]
#[inline(never)]
fn refused<P: Platform>(ops: &mut Ops<'_, P>, features: &mut Features, slot: Slot, status: i16) {
    let error = match status {
        RSP_ERROR => Error::Io,
        RSP_EOPNOTSUPP => Error::Unsupported,
        status => Error::Status(status),
    };
    let indirect = slot.indirect.count > 0;
    if error == Error::Unsupported {
        let secure = ops.get(slot.first).is_some_and(|op| op.kind == Kind::SecureDiscard);
        withdraw(features, slot.operation, indirect, secure);
    }
    let mut index = slot.first;
    for _ in 0..slot.count {
        let Some(op) = ops.at(index) else { return };
        match error {
            // What was in an indirect request is tried in others, from now on.
            Error::Unsupported if indirect => op.again = true,
            Error::Unsupported if op.kind == Kind::Flush && features.barrier => op.again = true,
            // One of them failed; each by itself will tell which.
            _ if slot.count > 1 => (op.again, op.alone) = (true, true),
            error => op.result = op.result.and(Err(error)),
        }
        index = op.next;
    }
}

/// What the backend does not do after all is not asked for again.
fn withdraw(features: &mut Features, operation: u8, indirect: bool, secure: bool) {
    match operation {
        OP_FLUSH => features.flush = false,
        OP_BARRIER => features.barrier = false,
        OP_DISCARD => match &mut features.discard {
            Some(discard) if secure && discard.secure => discard.secure = false,
            discard => *discard = None,
        },
        _ if indirect => features.indirect = None,
        _ => {}
    }
}

/// Nothing of an operation is in the ring any more, and nothing of it is left to be sent.
#[inline(never)]
pub(crate) fn conclude<P: Platform>(
    ops: &mut Ops<'_, P>,
    pool: &mut Pool<'_, P>,
    stats: &mut Stats,
    index: u16,
) {
    if ops.at(index).is_some_and(|op| !op.conclude(stats)) {
        go_on(ops, pool, stats, index);
    }
}

/// An operation is to be sent once more, or its place is to be given back.
#[cold]
#[inline(never)]
fn go_on<P: Platform>(ops: &mut Ops<'_, P>, pool: &mut Pool<'_, P>, stats: &mut Stats, index: u16) {
    if ops.get(index).is_some_and(|op| op.stage == Stage::Done) {
        pool.release(ops.release(index));
    } else {
        stats.retries += 1;
        ops.again(index);
    }
}
