//! The back's end of a slot ring, in the hands of a test.

use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::Ordering;

use crate::header::{REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, slot_offset, slot_size, slots_in, too_small};
use crate::{Backing, OutOfRange, Protocol, RingError};

/// A word of a slot ring's header (`struct *_sring` of `io/ring.h`). The first and the last are the front's to write,
/// the others the back's; nothing keeps either from writing all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Field {
    /// `req_prod`: how many requests there were, counted through and wrapping.
    ReqProd,
    /// `req_event`: the request of which the back wants to be notified.
    ReqEvent,
    /// `rsp_prod`: how many responses there were.
    RspProd,
    /// `rsp_event`: the response of which the front wants to be notified.
    RspEvent,
}

impl Field {
    /// All of them, in the order of the header.
    pub const ALL: [Self; 4] = [Self::ReqProd, Self::ReqEvent, Self::RspProd, Self::RspEvent];

    /// Where it is in the page, in bytes.
    pub const fn offset(self) -> usize {
        match self {
            Self::ReqProd => REQ_PROD,
            Self::ReqEvent => REQ_EVENT,
            Self::RspProd => RSP_PROD,
            Self::RspEvent => RSP_EVENT,
        }
    }
}

/// One act of a [`HostileBack`]: plain data, for generators and fuzzers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackOp {
    /// Answers requests as they come, as a back does that keeps to the rules: see [`HostileBack::answer`].
    Answer {
        /// How many at most.
        count: u32,
    },
    /// Writes a header word.
    Set {
        /// Which.
        field: Field,
        /// What it is then.
        value: u32,
    },
    /// Adds to a header word, wrapping: negative numbers are large ones.
    Advance {
        /// Which.
        field: Field,
        /// How much.
        by: u32,
    },
    /// Writes bytes of a slot, as far as they are in it.
    Slot {
        /// Counted through, wrapping as a ring's indices do.
        index: u32,
        /// The first byte within the slot.
        offset: u16,
        /// The bytes.
        bytes: [u8; 8],
    },
    /// Writes all bytes of all slots.
    Fill {
        /// What each byte is then.
        value: u8,
    },
}

/// A back that does what it is told, however wrong.
///
/// Unlike [`Back`](crate::Back) it has no state: what it knows of the ring stands in the shared memory.
pub struct HostileBack<P, M> {
    mem: M,
    slots: u32,
    _protocol: PhantomData<fn() -> P>,
}

impl<P: Protocol, M: Backing> HostileBack<P, M> {
    /// Takes the other end of the ring in `mem`.
    ///
    /// # Errors
    /// [`RingError::TooSmall`] when not even one slot fits.
    pub fn new(mut mem: M) -> Result<Self, RingError> {
        let available = mem.mem().len();
        match slots_in::<P>(available) {
            0 => Err(too_small::<P>(available)),
            slots => Ok(Self { mem, slots, _protocol: PhantomData }),
        }
    }

    /// How many slots there are.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Reads a header word.
    pub fn get(&mut self, field: Field) -> u32 {
        self.mem.mem().load_u32(field.offset(), Ordering::Acquire).expect("the header is there")
    }

    /// Writes a header word.
    pub fn set(&mut self, field: Field, value: u32) {
        self.mem.mem().store_u32(field.offset(), value, Ordering::Release).expect("the header is there");
    }

    /// Adds to a header word, wrapping.
    pub fn advance(&mut self, field: Field, by: u32) {
        let value = self.get(field).wrapping_add(by);
        self.set(field, value);
    }

    /// Reads a request where it stands. It may have been overwritten by a response.
    pub fn request(&mut self, index: u32) -> P::Request {
        self.mem.mem().read(slot_offset::<P>(self.slots, index)).expect("an index wraps")
    }

    /// Writes a response, and shows it to nobody.
    pub fn respond(&mut self, index: u32, response: &P::Response) {
        self.mem.mem().write(slot_offset::<P>(self.slots, index), response).expect("an index wraps");
    }

    /// Writes bytes of a slot from `offset` on.
    ///
    /// # Errors
    /// [`OutOfRange`] when they go beyond the slot; nothing is written then.
    pub fn write_slot(&mut self, index: u32, offset: usize, bytes: &[u8]) -> Result<(), OutOfRange> {
        let slot = self.mem.mem().slice(slot_offset::<P>(self.slots, index), slot_size::<P>())?;
        slot.write_bytes(offset, bytes)
    }

    /// Answers up to `count` requests of those that the header says are there (never more than there are slots),
    /// with the first bytes of each, which is where most protocols have their id. Returns how many that were.
    pub fn answer(&mut self, count: u32) -> u32 {
        let waiting = self.get(Field::ReqProd).wrapping_sub(self.get(Field::RspProd));
        let count = count.min(waiting).min(self.slots);
        self.advance(Field::RspProd, count);
        count
    }

    /// Does one act.
    pub fn apply(&mut self, op: BackOp) {
        match op {
            BackOp::Answer { count } => {
                self.answer(count);
            }
            BackOp::Set { field, value } => self.set(field, value),
            BackOp::Advance { field, by } => self.advance(field, by),
            BackOp::Slot { index, offset, bytes } => {
                let offset = usize::from(offset).min(slot_size::<P>());
                let inside = bytes.len().min(slot_size::<P>() - offset);
                self.write_slot(index, offset, &bytes[..inside]).expect("within the slot");
            }
            BackOp::Fill { value } => {
                let (first, len) = (slot_offset::<P>(self.slots, 0), self.slots as usize * slot_size::<P>());
                self.mem.mem().fill(first, len, value).expect("all slots are there");
            }
        }
    }

    /// The memory again.
    pub fn into_inner(self) -> M {
        self.mem
    }
}

impl<P, M> fmt::Debug for HostileBack<P, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostileBack").field("slots", &self.slots).finish_non_exhaustive()
    }
}
