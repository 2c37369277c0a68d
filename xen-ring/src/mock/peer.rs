//! The other end of two byte streams, in the hands of a test.

use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::Ordering;

use crate::{Backing, OutOfRange, RingError, StreamLayout};

/// An index of a page with two streams, named from the side of the code under test, as [`StreamLayout`] does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cursor {
    /// How far the peer has read what the code under test wrote: the peer's.
    OutCons,
    /// How far the code under test has written.
    OutProd,
    /// How far the code under test has read.
    InCons,
    /// How far the peer has written: the peer's.
    InProd,
}

impl Cursor {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::OutCons, Self::OutProd, Self::InCons, Self::InProd];

    /// Where layout `L` has it, in bytes.
    pub const fn offset<L: StreamLayout>(self) -> usize {
        match self {
            Self::OutCons => L::OUT_INDICES.0,
            Self::OutProd => L::OUT_INDICES.1,
            Self::InCons => L::IN_INDICES.0,
            Self::InProd => L::IN_INDICES.1,
        }
    }
}

/// One act of a [`HostilePeer`]: plain data, for generators and fuzzers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PeerOp {
    /// Writes bytes as a peer does that keeps to the rules: as many as fit, all of the same value.
    Send {
        /// How many at most.
        count: u16,
        /// What each is.
        value: u8,
    },
    /// Reads bytes as a peer does that keeps to the rules: as many as are there.
    Receive {
        /// How many at most.
        count: u16,
    },
    /// Writes an index.
    Set {
        /// Which.
        cursor: Cursor,
        /// What it is then.
        value: u32,
    },
    /// Adds to an index, wrapping: negative numbers are large ones.
    Advance {
        /// Which.
        cursor: Cursor,
        /// How much.
        by: u32,
    },
    /// Writes bytes anywhere in the page, as far as they are in it.
    Write {
        /// The first byte within the page.
        offset: u16,
        /// The bytes.
        bytes: [u8; 8],
    },
}

/// A peer that does what it is told, however wrong. `L` is the layout as the code under test sees it.
///
/// Unlike [`ByteRing`](crate::ByteRing) it has no state: what it knows of the streams stands in the shared memory.
pub struct HostilePeer<L, M> {
    mem: M,
    _layout: PhantomData<fn() -> L>,
}

impl<L: StreamLayout, M: Backing> HostilePeer<L, M> {
    /// Takes the other end of the streams in `mem`.
    ///
    /// # Errors
    /// [`RingError::TooSmall`] when the memory does not hold the layout.
    pub fn new(mut mem: M) -> Result<Self, RingError> {
        let view = mem.mem();
        for (offset, len) in [L::OUT, L::IN] {
            view.read_bytes(offset + len as usize, &mut [])?;
        }
        for cursor in Cursor::ALL {
            view.load_u32(cursor.offset::<L>(), Ordering::Acquire)?;
        }
        Ok(Self { mem, _layout: PhantomData })
    }

    /// Reads an index.
    pub fn get(&mut self, cursor: Cursor) -> u32 {
        self.mem.mem().load_u32(cursor.offset::<L>(), Ordering::Acquire).expect("checked by `new`")
    }

    /// Writes an index.
    pub fn set(&mut self, cursor: Cursor, value: u32) {
        self.mem.mem().store_u32(cursor.offset::<L>(), value, Ordering::Release).expect("checked by `new`");
    }

    /// Adds to an index, wrapping.
    pub fn advance(&mut self, cursor: Cursor, by: u32) {
        let value = self.get(cursor).wrapping_add(by);
        self.set(cursor, value);
    }

    /// Writes bytes anywhere in the memory.
    ///
    /// # Errors
    /// [`OutOfRange`] when they are not all within it; nothing is written then.
    pub fn write_raw(&mut self, offset: usize, bytes: &[u8]) -> Result<(), OutOfRange> {
        self.mem.mem().write_bytes(offset, bytes)
    }

    /// Writes into the stream that the code under test reads, as a peer does that keeps to the rules. Returns how many
    /// bytes fitted: none when the indices make no sense.
    pub fn send(&mut self, bytes: &[u8]) -> usize {
        let (start, size) = L::IN;
        let first = self.get(Cursor::InProd);
        let free = size.saturating_sub(first.wrapping_sub(self.get(Cursor::InCons)));
        let count = bytes.len().min(free as usize);
        for (i, byte) in (0..).zip(&bytes[..count]) {
            let place = start + (first.wrapping_add(i) & (size - 1)) as usize;
            self.write_raw(place, &[*byte]).expect("an index wraps");
        }
        self.advance(Cursor::InProd, count as u32);
        count
    }

    /// Reads from the stream that the code under test writes, as a peer does that keeps to the rules. Returns how many
    /// bytes were there: none when the indices make no sense.
    pub fn receive(&mut self, out: &mut [u8]) -> usize {
        let (start, size) = L::OUT;
        let first = self.get(Cursor::OutCons);
        let there = self.get(Cursor::OutProd).wrapping_sub(first);
        let count = if there > size { 0 } else { out.len().min(there as usize) };
        for (i, byte) in (0..).zip(&mut out[..count]) {
            let place = start + (first.wrapping_add(i) & (size - 1)) as usize;
            *byte = self.mem.mem().read(place).expect("an index wraps");
        }
        self.advance(Cursor::OutCons, count as u32);
        count
    }

    /// Does one act.
    pub fn apply(&mut self, op: PeerOp) {
        match op {
            PeerOp::Send { count, value } => {
                let bytes = std::vec![value; count.into()];
                self.send(&bytes);
            }
            PeerOp::Receive { count } => {
                let mut bytes = std::vec![0; count.into()];
                self.receive(&mut bytes);
            }
            PeerOp::Set { cursor, value } => self.set(cursor, value),
            PeerOp::Advance { cursor, by } => self.advance(cursor, by),
            PeerOp::Write { offset, bytes } => {
                let len = self.mem.mem().len();
                let offset = usize::from(offset).min(len);
                let inside = bytes.len().min(len - offset);
                self.write_raw(offset, &bytes[..inside]).expect("within the memory");
            }
        }
    }

    /// The memory again.
    pub fn into_inner(self) -> M {
        self.mem
    }
}

impl<L, M> fmt::Debug for HostilePeer<L, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostilePeer").finish_non_exhaustive()
    }
}
