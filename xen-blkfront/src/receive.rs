//! From responses to results, and what happens with a request that failed.

use core::task::{Context, Poll};

use xen_evtchn::Progress;
use xen_hypercall::Platform;

use crate::abi::*;
use crate::error::Violation;
use crate::ops::{Kind, Stage};
use crate::queue::Slot;
use crate::{BlkFront, Error, Piece, State, Ticket};

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
        let mut count = 0;
        for queue in 0..self.link.as_ref().map_or(0, |link| link.queues.len()) {
            let before = count;
            // Ends, since a ring has no more responses than there were requests.
            while let Some((slot, status)) = self.pop(queue)? {
                self.answered(slot, status);
                count += 1;
            }
            if let Some(queue) = self.link.as_ref().and_then(|link| link.queues.get(queue)) {
                queue.channel.done(if count > before { Progress::Work } else { Progress::Spurious });
            }
        }
        if count > 0 && self.ops.head().is_some() {
            self.push_out()?;
        }
        Ok(count)
    }

    fn pop(&mut self, queue: usize) -> Result<Option<(Slot, i16)>, Error> {
        let Some(queue) = self.link.as_mut().and_then(|link| link.queues.get_mut(queue)) else {
            return Ok(None);
        };
        let mut response = Response::default();
        let popped = match queue.ring.pop_into(&mut response) {
            Ok(false) => return Ok(None),
            Ok(true) => queue.answer(&response).map(|slot| (slot, response.status)),
            Err(error) => Err(Violation::Ring(error)),
        };
        popped.map(Some).map_err(|violation| self.broke(violation))
    }

    /// A request was answered, and each operation in it with it.
    fn answered(&mut self, slot: Slot, status: i16) {
        self.stats.responses += 1;
        let result = match status {
            RSP_OKAY => Ok(()),
            RSP_ERROR => Err(Error::Io),
            RSP_EOPNOTSUPP => Err(Error::Unsupported),
            status => Err(Error::Status(status)),
        };
        let indirect = slot.indirect.count > 0;
        self.pool.release(slot.indirect);
        if result == Err(Error::Unsupported) {
            self.withdraw(&slot);
        }
        let mut index = slot.first;
        for _ in 0..slot.count {
            let next = self.ops.next(index);
            let Some(op) = self.ops.at(index) else { break };
            op.in_flight = op.in_flight.saturating_sub(1);
            match result {
                Ok(()) => {}
                // What was in an indirect request is tried in others, from now on.
                Err(Error::Unsupported) if indirect => op.again = true,
                Err(Error::Unsupported) if op.kind == Kind::Flush && self.features.barrier => op.again = true,
                // One of them failed; each by itself will tell which.
                Err(_) if slot.count > 1 => (op.again, op.alone) = (true, true),
                Err(error) => op.result = op.result.and(Err(error)),
            }
            if op.in_flight == 0 && op.stage == Stage::Sent {
                self.conclude(index);
            }
            index = next;
        }
    }

    /// What the backend does not do after all is not asked for again.
    fn withdraw(&mut self, slot: &Slot) {
        let secure = self.ops.get(slot.first).is_some_and(|op| op.kind == Kind::SecureDiscard);
        match slot.operation {
            OP_FLUSH => self.features.flush = false,
            OP_BARRIER => self.features.barrier = false,
            OP_DISCARD => match &mut self.features.discard {
                Some(discard) if secure && discard.secure => discard.secure = false,
                discard => *discard = None,
            },
            _ if slot.indirect.count > 0 => self.features.indirect = None,
            _ => {}
        }
    }

    /// Nothing of an operation is in the ring any more, and nothing of it is left to be sent.
    pub(crate) fn conclude(&mut self, index: u16) {
        let Some(op) = self.ops.at(index) else { return };
        if op.again && op.result.is_ok() {
            self.stats.retries += 1;
            self.ops.again(index);
            return;
        }
        let result = op.result;
        let bytes = op.sectors.saturating_mul(SECTOR as u64);
        match (op.kind, result) {
            (Kind::Read, Ok(())) => self.stats.bytes_read += bytes,
            (Kind::Write | Kind::Barrier, Ok(())) => self.stats.bytes_written += bytes,
            (Kind::Discard | Kind::SecureDiscard, Ok(())) => self.stats.bytes_discarded += bytes,
            (Kind::Flush, Ok(())) => self.stats.flushes += 1,
            (_, Err(_)) => self.stats.errors += 1,
        }
        if self.ops.finish(index, result) {
            self.release(index);
        }
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
        let result = match self.done(ticket) {
            Some(Ok(result)) => result,
            Some(Err(error)) => return Some(Err(error)),
            None => return None,
        };
        let op = self.ops.find(ticket)?;
        let (pages, copies) = (op.pages, op.kind == Kind::Read && result.is_ok() && !op.lent);
        if copies {
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
        let result = match self.done(ticket) {
            Some(Ok(result)) => result,
            Some(Err(error)) => return Some(Err(error)),
            None => return None,
        };
        let pages = self.ops.find(ticket)?.pages;
        self.pool.take_lent(pages, each);
        self.release(ticket.index);
        Some(result)
    }

    /// The result of a ticket's operation, which stays where it is; the outer error is the ticket's.
    fn done(&mut self, ticket: Ticket) -> Option<Result<Result<(), Error>, Error>> {
        let state = self.state;
        let Some(op) = self.ops.find(ticket) else { return Some(Err(Error::StaleTicket)) };
        match (op.stage, state) {
            (Stage::Done, _) => Some(Ok(op.result)),
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
