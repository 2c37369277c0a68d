//! The front's end of a slot ring: it sends requests and takes responses.

use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::Ordering;

use crate::error::{RingError, Violation};
use crate::header::{
    InSlot, Protocol, REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, known, read_slots, slot_units, slots_in,
    too_small, write_slots,
};
use crate::mem::{Backing, SharedMem};
use crate::responses::Responses;
use crate::word::{SharedWord, arm, publish};

/// The front's end. What it wrote it remembers itself, and never reads back from memory that the peer can change.
pub struct Front<P, M> {
    mem: M,
    slots: u32,
    /// Requests that may be under way: all slots, or none once the ring is broken.
    room: u32,
    /// Until here requests can be pushed as far as was found out: at this index one has to look how many responses were
    /// taken, and whether the ring is broken, which is then not asked at each request.
    until: u32,
    /// Requests written, published or not.
    pushed: u32,
    /// Requests that the peer was shown.
    published: u32,
    /// Responses taken.
    taken: u32,
    /// Responses known to be there: read from the peer once, checked, good for all of them.
    available: u32,
    broken: Option<Violation>,
    _protocol: PhantomData<fn() -> P>,
}

impl<P: Protocol, M: Backing> Front<P, M> {
    /// Makes an empty ring in `mem`.
    ///
    /// # Errors
    /// [`RingError::TooSmall`] when not even one slot fits.
    pub fn init(mem: M) -> Result<Self, RingError> {
        Self::init_at(mem, 0)
    }

    /// Makes an empty ring whose indices begin at `index` instead of zero. Every peer that follows the protocol
    /// goes on from there; tests begin shortly before the numbers wrap.
    ///
    /// # Errors
    /// [`RingError::TooSmall`] when not even one slot fits.
    pub fn init_at(mut mem: M, index: u32) -> Result<Self, RingError> {
        let slots = Self::lay_out(&mut mem, index)?;
        Ok(Self {
            mem,
            slots,
            room: slots,
            until: index.wrapping_add(slots),
            pushed: index,
            published: index,
            taken: index,
            available: index,
            broken: None,
            _protocol: PhantomData,
        })
    }

    /// Makes the ring an empty one again, in the same memory, for another peer: what was in it is forgotten, and so is what the
    /// peer before broke. That one must not have the memory any more, as after a resume in a new domain.
    ///
    /// # Errors
    /// As [`init`](Self::init).
    pub fn restart(&mut self) -> Result<(), RingError> {
        self.slots = Self::lay_out(&mut self.mem, 0)?;
        (self.room, self.until) = (self.slots, self.slots);
        (self.pushed, self.published, self.taken, self.available) = (0, 0, 0, 0);
        self.broken = None;
        Ok(())
    }

    /// Clears the memory for an empty ring whose indices begin at `index`; returns how many slots it has.
    fn lay_out(mem: &mut M, index: u32) -> Result<u32, RingError> {
        let view = mem.mem();
        let slots = slots_in::<P>(view.len());
        if slots == 0 {
            return Err(too_small::<P>(view.len()));
        }
        clear(view, index)?;
        Ok(slots)
    }

    /// How many requests fit.
    #[inline]
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// How many requests can be pushed before responses must be taken. None when the ring is broken.
    #[inline]
    pub fn free(&self) -> u32 {
        self.room.saturating_sub(self.pushed.wrapping_sub(self.taken))
    }

    /// How many requests were shown to the peer and not answered as far as we have looked.
    #[inline]
    pub fn in_flight(&self) -> u32 {
        self.published.wrapping_sub(self.taken)
    }

    /// Whether requests wait for [`publish`](Self::publish).
    #[inline]
    pub fn has_unpublished(&self) -> bool {
        self.pushed != self.published
    }

    /// Whether the peer broke the protocol.
    #[inline]
    pub fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    /// Writes a request. The peer does not see it before [`publish`](Self::publish). Returns its index, counted
    /// through from the first and wrapping.
    ///
    /// # Errors
    /// [`RingError::Full`]; [`RingError::Broken`] for ever after the peer broke the protocol.
    #[inline]
    pub fn push(&mut self, request: &P::Request) -> Result<u32, RingError> {
        let index = self.pushed;
        if index == self.until {
            self.make_room()?;
        }
        let slots = known::<P>(&self.mem, self.slots);
        self.mem.mem().write_at::<_, InSlot<P>>(slot_units::<P>(slots, index), request)?;
        self.pushed = index.wrapping_add(1);
        Ok(index)
    }

    /// Writes requests, as many as fit, at less cost than one by one. Returns how many; their indices follow one another.
    ///
    /// # Errors
    /// [`RingError::Broken`] for ever after the peer broke the protocol.
    #[inline]
    pub fn push_batch(&mut self, requests: &[P::Request]) -> Result<u32, RingError> {
        let fit = &requests[..requests.len().min(self.free() as usize)];
        if fit.is_empty() {
            return self.check().map(|()| 0);
        }
        write_slots::<P, _>(&self.mem.mem(), self.slots, self.pushed, fit)?;
        self.pushed = self.pushed.wrapping_add(fit.len() as u32);
        self.until = self.taken.wrapping_add(self.room);
        Ok(fit.len() as u32)
    }

    /// Takes the last request back, which the peer was not shown yet; false if there is none.
    #[inline]
    pub fn unpush(&mut self) -> bool {
        let any = self.has_unpublished() && !self.is_broken();
        self.pushed = self.pushed.wrapping_sub(any.into());
        any
    }

    /// Shows the peer all requests pushed so far, and returns whether it must be notified.
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
        let (producer, event) = (SharedWord::new(&mem, REQ_PROD), SharedWord::new(&mem, REQ_EVENT));
        let pushed = self.pushed;
        let notify = publish(&producer, &event, self.published, pushed)?;
        self.published = pushed;
        Ok(notify)
    }

    /// Takes the next response: a copy that the peer cannot change any more. What it says is still the peer's word.
    ///
    /// # Errors
    /// [`RingError::Broken`] when the peer claims more responses than there were requests, and for ever after.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<P::Response>, RingError> {
        // In a broken ring nothing is available.
        if self.available == self.taken && !self.look()? {
            return Ok(None);
        }
        let slots = known::<P>(&self.mem, self.slots);
        let response = self.mem.mem().read_at::<_, InSlot<P>>(slot_units::<P>(slots, self.taken))?;
        self.taken = self.taken.wrapping_add(1);
        Ok(Some(response))
    }

    /// The same to a place that is there, at less cost. Returns whether there was one.
    ///
    /// # Errors
    /// As [`pop`](Self::pop).
    #[inline]
    pub fn pop_into(&mut self, out: &mut P::Response) -> Result<bool, RingError> {
        if self.available == self.taken && !self.look()? {
            return Ok(false);
        }
        let slots = known::<P>(&self.mem, self.slots);
        self.mem.mem().read_into_at::<_, InSlot<P>>(slot_units::<P>(slots, self.taken), out)?;
        self.taken = self.taken.wrapping_add(1);
        Ok(true)
    }

    /// Looks once how many responses there are, and takes them one after the other: at the least cost for each, and without
    /// a place for all.
    ///
    /// # Errors
    /// As [`pop`](Self::pop).
    #[inline]
    pub fn responses(&mut self) -> Result<Responses<'_, P>, RingError> {
        self.look()?;
        let slots = known::<P>(&self.mem, self.slots);
        Ok(Responses::new(self.mem.mem(), slots, &mut self.taken, self.available)?)
    }

    /// The index that the next request will have, counted through and wrapping, as [`push`](Self::push) returns it.
    #[inline]
    pub fn request_index(&self) -> u32 {
        self.pushed
    }

    /// Takes responses, as many as are there and fit, at less cost than one by one. Returns how many.
    ///
    /// # Errors
    /// As [`pop`](Self::pop).
    #[inline]
    pub fn pop_batch(&mut self, out: &mut [P::Response]) -> Result<u32, RingError> {
        if (self.available.wrapping_sub(self.taken) as usize) < out.len() {
            self.look()?;
        }
        let count = out.len().min(self.available.wrapping_sub(self.taken) as usize);
        read_slots::<P, _>(&self.mem.mem(), self.slots, self.taken, &mut out[..count])?;
        self.taken = self.taken.wrapping_add(count as u32);
        Ok(count as u32)
    }

    /// The index that the next response will have, counted through like those of the requests.
    #[inline]
    pub fn response_index(&self) -> u32 {
        self.taken
    }

    /// Whether a response is there.
    ///
    /// # Errors
    /// As [`pop`](Self::pop).
    #[inline]
    pub fn has_responses(&mut self) -> Result<bool, RingError> {
        Ok(self.available != self.taken || self.look()?)
    }

    /// Asks to be notified of the next response, and returns whether one is there already: then there will be no
    /// notification for it, and sleeping would be wrong.
    ///
    /// # Errors
    /// As [`pop`](Self::pop).
    #[inline]
    pub fn arm(&mut self) -> Result<bool, RingError> {
        self.arm_after(0)
    }

    /// Like [`arm`](Self::arm), but asks for the event of the response that follows `skip` others: one event for all of them.
    /// Returns whether any response is there already.
    ///
    /// # Errors
    /// As [`pop`](Self::pop).
    #[inline]
    pub fn arm_after(&mut self, skip: u32) -> Result<bool, RingError> {
        self.check()?;
        let mem = self.mem.mem();
        let (event, producer) = (SharedWord::new(&mem, RSP_EVENT), SharedWord::new(&mem, RSP_PROD));
        let known = (self.taken, self.available, self.published);
        let index = arm(&event, &producer, self.taken.wrapping_add(skip))?;
        self.accept(index, known)
    }

    /// The memory again.
    pub fn into_inner(self) -> M {
        self.mem
    }

    /// What lends the memory, to be looked at.
    pub fn get_ref(&self) -> &M {
        &self.mem
    }

    /// The memory, while the ring is in it.
    pub fn backing(&mut self) -> &mut M {
        &mut self.mem
    }

    /// Reads the peer's index again.
    #[inline]
    fn look(&mut self) -> Result<bool, RingError> {
        self.check()?;
        // Read before the peer's index, after which the compiler would read them anew.
        let known = (self.taken, self.available, self.published);
        let index = self.mem.mem().load_u32(RSP_PROD, Ordering::Acquire)?;
        self.accept(index, known)
    }

    /// Believes the peer's index if there can be so many responses: with what was taken, available and published before.
    #[inline]
    fn accept(
        &mut self,
        index: u32,
        (taken, available, published): (u32, u32, u32),
    ) -> Result<bool, RingError> {
        let more = index.wrapping_sub(available);
        if more == 0 {
            return Ok(available != taken);
        }
        // An index that goes back would take away what the peer has said to be there: then this is a large number.
        if more > published.wrapping_sub(available) {
            return Err(self.give_up(index));
        }
        self.available = index;
        Ok(true)
    }

    /// Looks up to which index requests can be pushed; further than the next one's.
    #[cold]
    fn make_room(&mut self) -> Result<(), RingError> {
        self.check()?;
        self.until = self.taken.wrapping_add(self.slots);
        if self.until == self.pushed { Err(RingError::Full) } else { Ok(()) }
    }

    #[cold]
    fn give_up(&mut self, index: u32) -> RingError {
        let violation = Violation { index, ours: self.taken, limit: self.in_flight() };
        (self.room, self.until) = (0, self.pushed);
        (self.available, self.broken) = (self.taken, Some(violation));
        RingError::Broken(violation)
    }

    #[inline]
    fn check(&self) -> Result<(), RingError> {
        self.broken.map_or(Ok(()), |violation| Err(RingError::Broken(violation)))
    }
}

/// Clears memory for an empty ring whose indices begin at `index`. Once, not for each protocol and kind of memory.
#[inline(never)]
fn clear(mem: SharedMem<'_>, index: u32) -> Result<(), RingError> {
    mem.fill(0, mem.len(), 0)?;
    for (offset, value) in [
        (REQ_PROD, index),
        (RSP_PROD, index),
        (REQ_EVENT, index.wrapping_add(1)),
        (RSP_EVENT, index.wrapping_add(1)),
    ] {
        mem.store_u32(offset, value, Ordering::Release)?;
    }
    Ok(())
}

impl<P, M> fmt::Debug for Front<P, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Front")
            .field("slots", &self.slots)
            .field("pushed", &self.pushed)
            .field("published", &self.published)
            .field("taken", &self.taken)
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}
