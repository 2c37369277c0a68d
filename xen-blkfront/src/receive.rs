//! From responses to results, and what happens with a request that failed.

use core::task::{Context, Poll};

use xen_evtchn::Progress;
use xen_hypercall::Platform;

use crate::abi::*;
use crate::features::Features;
use crate::ops::{Kind, Op, Ops, Stage};
use crate::pool::Pool;
use crate::queue::Slot;
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
            let before = count;
            // Ends, since a ring has no more responses than there were requests.
            loop {
                let (slot, status) = match queue.take() {
                    Ok(Some(answer)) => answer,
                    Ok(None) => break,
                    Err(violation) => return Err(self.broke(violation)),
                };
                count += 1;
                self.stats.responses += 1;
                if status != RSP_OKAY {
                    refused(&mut self.ops, &mut self.features, slot, status);
                }
                if slot.indirect.count > 0 {
                    self.pool.release(slot.indirect);
                }
                let mut index = slot.first;
                for _ in 0..slot.count {
                    let Some(op) = self.ops.at(index) else { break };
                    let next = op.next;
                    op.in_flight = op.in_flight.saturating_sub(1);
                    if op.in_flight == 0 && op.stage == Stage::Sent && !op.conclude(&mut self.stats) {
                        go_on(&mut self.ops, &mut self.pool, &mut self.stats, index);
                    }
                    index = next;
                }
            }
            queue.channel.done(if count > before { Progress::Work } else { Progress::Spurious });
        }
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
        let op = match self.done(ticket)? {
            Ok(op) => op,
            Err(error) => return Some(Err(error)),
        };
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
        self.release(ticket.index);
        Some(result)
    }

    /// Like [`take`](Self::take) for an operation on pages that were lent: gives them back, in order, to `each`, whatever
    /// the result is.
    ///
    /// # Errors
    /// The inner result is the operation's own.
    pub fn take_pages(
        &mut self,
        ticket: Ticket,
        each: impl FnMut(Piece<'x, P>),
    ) -> Option<Result<(), Error>> {
        let good = match self.done(ticket)? {
            Ok(op) => op.result.is_ok(),
            Err(error) => return Some(Err(error)),
        };
        let pages = self.ops.release(ticket.index);
        self.pool.release_to(pages, each);
        // Errors are large, and copied only if there is one.
        if good { Some(Ok(())) } else { self.ops.failure(ticket.index) }
    }

    /// The operation of a ticket, if it is done; the error is the ticket's.
    #[inline]
    fn done(&mut self, ticket: Ticket) -> Option<Result<&mut Op, Error>> {
        let Some(op) = self.ops.find(ticket) else { return Some(Err(Error::StaleTicket)) };
        match (op.stage, self.state) {
            (Stage::Done, _) => Some(Ok(op)),
            (_, State::Broken(violation)) => Some(Err(Error::Broken(violation))),
            (_, State::Gone) => Some(Err(Error::Closing)),
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
            self.release(ticket.index);
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
