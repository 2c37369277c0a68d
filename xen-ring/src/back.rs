//! The back's end of a slot ring: it takes requests and sends responses.

use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::Ordering;

use crate::error::{RingError, Violation};
use crate::header::{
    InSlot, Protocol, REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, known, read_slots, slot_units, slots_in,
    too_small, write_slots,
};
use crate::mem::Backing;
use crate::word::{SharedWord, arm, publish};

/// The back's end, as careful of its front as [`Front`](crate::Front) is of its back.
pub struct Back<P, M> {
    mem: M,
    slots: u32,
    /// Requests taken.
    taken: u32,
    /// Requests known to be there.
    available: u32,
    /// Responses written, published or not.
    pushed: u32,
    /// Responses that the peer was shown.
    published: u32,
    broken: Option<Violation>,
    _protocol: PhantomData<fn() -> P>,
}

impl<P: Protocol, M: Backing> Back<P, M> {
    /// Takes part in a ring that a front has made, from the first request on.
    ///
    /// # Errors
    /// [`RingError::TooSmall`] when not even one slot fits.
    pub fn attach(mem: M) -> Result<Self, RingError> {
        Self::attach_at(mem, 0)
    }

    /// Takes part in a ring whose indices began at `index`.
    ///
    /// # Errors
    /// [`RingError::TooSmall`] when not even one slot fits.
    pub fn attach_at(mut mem: M, index: u32) -> Result<Self, RingError> {
        let available = mem.mem().len();
        let slots = slots_in::<P>(available);
        if slots == 0 {
            return Err(too_small::<P>(available));
        }
        Ok(Self {
            mem,
            slots,
            taken: index,
            available: index,
            pushed: index,
            published: index,
            broken: None,
            _protocol: PhantomData,
        })
    }

    /// How many requests fit.
    #[inline]
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Requests taken and not answered yet. None when the ring is broken.
    #[inline]
    pub fn unanswered(&self) -> u32 {
        self.taken.wrapping_sub(self.pushed)
    }

    /// The index that the next response will have, counted through from the first and wrapping.
    pub fn response_index(&self) -> u32 {
        self.pushed
    }

    /// Takes the next request: a copy that the peer cannot change any more.
    ///
    /// # Errors
    /// [`RingError::Broken`] when the peer claims more requests than fit, and for ever after.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<P::Request>, RingError> {
        // In a broken ring nothing is available.
        if self.available == self.taken && !self.look()? {
            return Ok(None);
        }
        let slots = known::<P>(&self.mem, self.slots);
        let request = self.mem.mem().read_at::<_, InSlot<P>>(slot_units::<P>(slots, self.taken))?;
        self.taken = self.taken.wrapping_add(1);
        Ok(Some(request))
    }

    /// The same to a place that is there, at less cost. Returns whether there was one.
    ///
    /// # Errors
    /// As [`pop`](Self::pop).
    #[inline]
    pub fn pop_into(&mut self, out: &mut P::Request) -> Result<bool, RingError> {
        if self.available == self.taken && !self.look()? {
            return Ok(false);
        }
        let slots = known::<P>(&self.mem, self.slots);
        self.mem.mem().read_into_at::<_, InSlot<P>>(slot_units::<P>(slots, self.taken), out)?;
        self.taken = self.taken.wrapping_add(1);
        Ok(true)
    }

    /// Whether a request is there.
    ///
    /// # Errors
    /// As [`pop`](Self::pop).
    #[inline]
    pub fn has_requests(&mut self) -> Result<bool, RingError> {
        Ok(self.available != self.taken || self.look()?)
    }

    /// Takes requests, as many as are there and fit, at less cost than one by one. Returns how many.
    ///
    /// # Errors
    /// As [`pop`](Self::pop).
    #[inline]
    pub fn pop_batch(&mut self, out: &mut [P::Request]) -> Result<u32, RingError> {
        if (self.available.wrapping_sub(self.taken) as usize) < out.len() {
            self.look()?;
        }
        let count = out.len().min(self.available.wrapping_sub(self.taken) as usize);
        read_slots::<P, _>(&self.mem.mem(), self.slots, self.taken, &mut out[..count])?;
        self.taken = self.taken.wrapping_add(count as u32);
        Ok(count as u32)
    }

    /// Writes a response. The peer does not see it before [`publish`](Self::publish).
    ///
    /// # Errors
    /// [`RingError::Full`] when every request taken is answered; [`RingError::Broken`] for ever after the peer broke
    /// the protocol.
    #[inline]
    pub fn push(&mut self, response: &P::Response) -> Result<(), RingError> {
        // In a broken ring nothing is to be answered.
        if self.unanswered() == 0 {
            return Err(self.refused());
        }
        let slots = known::<P>(&self.mem, self.slots);
        self.mem.mem().write_at::<_, InSlot<P>>(slot_units::<P>(slots, self.pushed), response)?;
        self.pushed = self.pushed.wrapping_add(1);
        Ok(())
    }

    /// Writes responses, as many as requests were taken, at less cost than one by one. Returns how many.
    ///
    /// # Errors
    /// [`RingError::Broken`] for ever after the peer broke the protocol.
    #[inline]
    pub fn push_batch(&mut self, responses: &[P::Response]) -> Result<u32, RingError> {
        self.check()?;
        let due = &responses[..responses.len().min(self.unanswered() as usize)];
        write_slots::<P, _>(&self.mem.mem(), self.slots, self.pushed, due)?;
        self.pushed = self.pushed.wrapping_add(due.len() as u32);
        Ok(due.len() as u32)
    }

    /// Shows the peer all responses pushed so far, and returns whether it must be notified.
    ///
    /// # Errors
    /// [`RingError::Broken`] for ever after the peer broke the protocol.
    #[inline]
    pub fn publish(&mut self) -> Result<bool, RingError> {
        self.check()?;
        if self.pushed == self.published {
            return Ok(false);
        }
        let mem = self.mem.mem();
        let (producer, event) = (SharedWord::new(&mem, RSP_PROD), SharedWord::new(&mem, RSP_EVENT));
        let notify = publish(&producer, &event, self.published, self.pushed)?;
        self.published = self.pushed;
        Ok(notify)
    }

    /// Asks to be notified of the next request, and returns whether one is there already.
    ///
    /// # Errors
    /// As [`pop`](Self::pop).
    #[inline]
    pub fn arm(&mut self) -> Result<bool, RingError> {
        self.check()?;
        let mem = self.mem.mem();
        let (event, producer) = (SharedWord::new(&mem, REQ_EVENT), SharedWord::new(&mem, REQ_PROD));
        let index = arm(&event, &producer, self.taken)?;
        self.accept(index)
    }

    /// Whether the peer broke the protocol.
    #[inline]
    pub fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    /// The memory again.
    pub fn into_inner(self) -> M {
        self.mem
    }

    /// The memory, while the ring is in it.
    pub fn backing(&mut self) -> &mut M {
        &mut self.mem
    }

    /// Reads the peer's index again.
    #[inline]
    fn look(&mut self) -> Result<bool, RingError> {
        self.check()?;
        let index = self.mem.mem().load_u32(REQ_PROD, Ordering::Acquire)?;
        self.accept(index)
    }

    /// Believes the peer's index if so many requests fit beside those that are not answered yet.
    #[inline]
    fn accept(&mut self, index: u32) -> Result<bool, RingError> {
        let more = index.wrapping_sub(self.available);
        if more == 0 {
            return Ok(self.available != self.taken);
        }
        let known = self.available.wrapping_sub(self.published);
        // An index that goes back would take away what the peer has said to be there: then this is a large number.
        if more > self.slots.wrapping_sub(known) {
            return Err(self.give_up(index));
        }
        self.available = index;
        Ok(true)
    }

    /// Why nothing can be pushed.
    #[cold]
    fn refused(&self) -> RingError {
        self.check().err().unwrap_or(RingError::Full)
    }

    #[cold]
    fn give_up(&mut self, index: u32) -> RingError {
        let limit = self.slots.wrapping_sub(self.taken.wrapping_sub(self.published));
        let violation = Violation { index, ours: self.taken, limit };
        (self.taken, self.available, self.broken) = (self.pushed, self.pushed, Some(violation));
        RingError::Broken(violation)
    }

    #[inline]
    fn check(&self) -> Result<(), RingError> {
        self.broken.map_or(Ok(()), |violation| Err(RingError::Broken(violation)))
    }
}

impl<P, M> fmt::Debug for Back<P, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Back")
            .field("slots", &self.slots)
            .field("taken", &self.taken)
            .field("published", &self.published)
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}
