//! From responses to results, and what happens with a request that failed.

use core::task::{Context, Poll};

use xen_evtchn::Progress;
use xen_hypercall::Platform;

use crate::abi::*;
use crate::error::Violation;
use crate::features::Features;
use crate::ops::{Kind, Ops, Stage};
use crate::pool::{Chain, Pool};
use crate::queue::{Queue, Slot, Slots};
use crate::waiters::Waiters;
use crate::{BlkFront, Error, Piece, State, Stats, Ticket};

/// How often a task looks again before it lets others run.
const TURNS: usize = 4;

impl<'x, P: Platform> BlkFront<'x, P> {
    /// Takes the responses that are there, and sends what waited for room in the rings. Returns how many there were.
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
        if count > 0 && !self.ops.is_empty() && self.ops.head().is_some() {
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
    /// When the disk is [closed](State::Closed) or [broken](State::Broken) the result of what is under way is that error,
    /// and final: it is not issued again. To have it issued again, [`reconnect`](Self::reconnect) before.
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
        self.has_room();
        Some(result)
    }

    /// Like [`take`](Self::take) for an operation on pages that were lent: gives them back, in order, whatever the result is.
    /// There are to be as many `places` as pages were lent; what is in them is dropped. What was read is then the caller's, also in
    /// another life of the domain.
    ///
    /// # Errors
    /// The inner result is the operation's own. [`Error::BufferLength`] leaves the result to be taken again.
    #[inline]
    pub fn take_pages(
        &mut self,
        ticket: Ticket,
        places: &mut [Option<Piece<'x, P>>],
    ) -> Option<Result<(), Error>> {
        // With tasks that wait for room, and queues that were taken, it takes longer.
        if let ([place], true) = (&mut *places, self.alone) {
            if let Some(mut piece) = self.ops.take_piece(ticket) {
                // A backend may have it mapped still. To mark each costs less than to find out.
                piece.page.mark_written();
                *place = Some(piece);
                return Some(Ok(()));
            }
        }
        self.take_several(ticket, places)
    }

    /// [`take_pages`](Self::take_pages) of more pages than one, and of what failed.
    #[inline(never)]
    fn take_several(
        &mut self,
        ticket: Ticket,
        places: &mut [Option<Piece<'x, P>>],
    ) -> Option<Result<(), Error>> {
        let end = self.end();
        let Some(op) = self.ops.find(ticket) else { return Some(Err(Error::StaleTicket)) };
        let result = if op.stage == Stage::Done { op.result } else { Err(end?) };
        let lent = if op.lent { op.count() } else { 0 };
        if places.len() != usize::from(lent) {
            return Some(Err(Error::BufferLength));
        }
        if !op.lent {
            self.retire(ticket, result);
            return Some(result);
        }
        let pages = core::mem::replace(&mut op.pages, Chain::EMPTY);
        let mut places = places.iter_mut();
        let mut each = |mut piece: Piece<'x, P>| {
            piece.page.mark_written();
            if let Some(place) = places.next() {
                *place = Some(piece);
            }
        };
        if let Some(piece) = op.piece.take() {
            each(piece);
        }
        self.pool.release_to(pages, each);
        self.retire(ticket, result);
        Some(result)
    }

    /// An operation's result was told: it is over, or will be once nothing of it is in a ring.
    fn retire(&mut self, ticket: Ticket, result: Result<(), Error>) {
        match result {
            Err(error) if self.ops.settled(ticket).is_none() => self.ops.tell(ticket, error),
            _ => self.release(ticket.place()),
        }
        self.has_room();
    }

    /// Why there is no result: the ticket is not good, or there will be none, or there is none yet.
    #[cold]
    #[inline(never)]
    fn unsettled(&mut self, ticket: Ticket) -> Option<Result<(), Error>> {
        if self.ops.find(ticket).is_none() {
            return Some(Err(Error::StaleTicket));
        }
        let result = Err(self.end()?);
        self.retire(ticket, result);
        Some(result)
    }

    /// Why what is under way has no other result, if it has none.
    fn end(&self) -> Option<Error> {
        match self.state {
            State::Broken(violation) => Some(Error::Broken(violation)),
            State::Closed => Some(Error::Closed),
            _ => None,
        }
    }

    /// [`take`](Self::take) for a task: takes responses, and when the operation's are not there yet the task is woken by
    /// the next event, and when [`service`](Self::service) finds that the disk has closed.
    ///
    /// Any number of tasks can wait, one for each operation. Each event wakes all of them: the first that runs takes the
    /// responses for all.
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
            self.leave(Some(ticket), cx);
            if self.fired(cx).is_pending() && !self.arm_after(0) {
                return Poll::Pending;
            }
        }
        // Others want to run, too.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Gives up an operation's result. The operation itself goes on.
    pub fn forget(&mut self, ticket: Ticket) {
        if let Some(result) = self.ops.forget(ticket) {
            if result == Err(Error::Lost) {
                self.set_lost(true);
            }
            self.release(ticket.place());
            self.has_room();
        }
    }

    /// An operation's result is told to be this, and is final: what was not sent of it is not sent.
    pub(crate) fn give_up(&mut self, ticket: Ticket, error: Error) {
        if self.ops.settled(ticket).is_some() {
            self.forget(ticket);
        } else {
            self.ops.tell(ticket, error);
        }
    }

    /// Asks for an event with the next response. Returns true when there is something to [`poll`](Self::poll) already,
    /// so that waiting would be wrong.
    ///
    /// # Errors
    /// [`Error::Closed`] and [`Error::Broken`]: no response will come.
    pub fn arm(&mut self) -> Result<bool, Error> {
        match self.end() {
            None => Ok(self.arm_after(0)),
            // What came before the end is taken first.
            Some(_) if self.arm_after(0) => Ok(true),
            Some(error) => Err(error),
        }
    }

    /// Like [`arm`](Self::arm) of a disk at work, but asks for an event at the response that follows `skip` others in its ring: one
    /// event for `skip + 1` responses. `skip` is cut to one less than the requests under way.
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

    /// Ready when an event arrived from the backend; otherwise the task is woken then. Call [`arm`](Self::arm) before.
    ///
    /// Any number of tasks can wait; an event wakes all of them, and is an event for the first that asks.
    pub fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.leave(None, cx);
        self.fired(cx)
    }

    /// Ready when another operation may be submitted, or never will: after [`Error::Busy`]. Takes responses; otherwise
    /// the task is woken when there may be room. What there is room for is known only by trying.
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..TURNS {
            self.leave(None, cx);
            if self.state != State::Connected || self.poll() != Ok(0) {
                return Poll::Ready(());
            }
            if self.fired(cx).is_pending() && !self.arm_after(0) {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Leaves a task's waker, in the place of its operation if it waits for one.
    fn leave(&mut self, ticket: Option<Ticket>, cx: &Context<'_>) {
        if self.waiters.is_none() {
            self.waiters = Waiters::new(self.grants.platform(), self.ops.len());
        }
        self.alone = false;
        match (&mut self.waiters, ticket) {
            (Some(waiters), Some(ticket)) => waiters.leave(ticket.place(), cx.waker()),
            (Some(waiters), None) => waiters.leave_other(cx.waker()),
            // Without memory it is tried again and again.
            (None, _) => cx.waker().wake_by_ref(),
        }
        if let (Some(shared), Some(waiters)) = (&self.shared, &self.waiters) {
            shared.leave(&waiters.waker());
            // What became of the disk before that wakes nobody.
            self.look();
        }
    }

    /// Whether an event came; the next one wakes all tasks.
    fn fired(&self, cx: &Context<'_>) -> Poll<()> {
        let Some(link) = &self.link else { return Poll::Pending };
        let all = self.waiters.as_ref().map(Waiters::waker);
        let waker = all.as_ref().unwrap_or(cx.waker());
        let mut ready = Poll::Pending;
        for queue in link.queues.iter() {
            if queue.channel.poll_event(&mut Context::from_waker(waker)).is_ready() {
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
        if op.in_flight == 0 && op.stage == Stage::Sent && !ops.conclude(index, stats) {
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
        // What is tried again must not get behind a barrier that was asked for later: then it fails.
        let barred = ops.get(index).is_some_and(|op| op.kind == Kind::Write && ops.is_barred(op.id));
        let Some(op) = ops.at(index) else { return };
        match error {
            // What was in an indirect request is tried in others, from now on.
            Error::Unsupported if indirect && !barred => op.again = true,
            Error::Unsupported if op.kind == Kind::Flush && features.barrier => op.again = true,
            // One of them failed; each by itself will tell which.
            _ if slot.count > 1 && !barred => (op.again, op.alone) = (true, true),
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
    if !ops.conclude(index, stats) {
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
