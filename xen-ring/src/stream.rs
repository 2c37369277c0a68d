//! Byte rings: the two streams that share a page in the console and xenstore interfaces.

use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::{Ordering, fence};

use crate::error::{RingError, Violation};
use crate::mem::Backing;

/// Where the two streams stand in a page, in bytes. Sizes are powers of two.
pub trait StreamLayout {
    /// Bytes that we write: where they are, and how many.
    const OUT: (usize, u32);
    /// Bytes that we read: where they are, and how many.
    const IN: (usize, u32);
    /// The consumer's and the producer's index of what we write.
    const OUT_INDICES: (usize, usize);
    /// The consumer's and the producer's index of what we read.
    const IN_INDICES: (usize, usize);
}

/// The guest's view of a console page (`struct xencons_interface`, `io/console.h`).
#[derive(Debug)]
pub struct ConsoleLayout;

impl ConsoleLayout {
    /// Whether the daemon serves the console: the low byte of this word, from Xen 4.21 on. Zero where nobody has heard of it.
    pub const CONNECTION: usize = 3088;
    /// The daemon serves the console (`XENCONSOLE_CONNECTED`).
    pub const CONNECTED: u8 = 0;
    /// It does not yet, or not any more (`XENCONSOLE_DISCONNECTED`).
    pub const DISCONNECTED: u8 = 1;
}

impl StreamLayout for ConsoleLayout {
    const IN: (usize, u32) = (0, 1024);
    const OUT: (usize, u32) = (1024, 2048);
    const IN_INDICES: (usize, usize) = (3072, 3076);
    const OUT_INDICES: (usize, usize) = (3080, 3084);
}

/// The guest's view of the xenstore page (`struct xenstore_domain_interface`, `io/xs_wire.h`).
#[derive(Debug)]
pub struct XenstoreLayout;

impl XenstoreLayout {
    /// What the server can do beside the protocol's base, bits.
    pub const SERVER_FEATURES: usize = 2064;
    /// Whether the connection is up (0) or the guest asked for a new one (1).
    pub const CONNECTION: usize = 2068;
    /// Why the server gave the ring up; zero while it did not.
    pub const ERROR: usize = 2072;
}

impl StreamLayout for XenstoreLayout {
    const OUT: (usize, u32) = (0, 1024);
    const IN: (usize, u32) = (1024, 1024);
    const OUT_INDICES: (usize, usize) = (2048, 2052);
    const IN_INDICES: (usize, usize) = (2056, 2060);
}

/// The same page seen from the other side.
#[derive(Debug)]
pub struct Reversed<L>(PhantomData<L>);

impl<L: StreamLayout> StreamLayout for Reversed<L> {
    const OUT: (usize, u32) = L::IN;
    const IN: (usize, u32) = L::OUT;
    const OUT_INDICES: (usize, usize) = L::IN_INDICES;
    const IN_INDICES: (usize, usize) = L::OUT_INDICES;
}

/// One end of a page with two streams. Unlike a slot ring it has no event indices: whoever has written or read
/// something notifies the other.
pub struct ByteRing<L, M> {
    mem: M,
    /// How far we have written and read; the page holds copies for the peer, which are never read back.
    written: u32,
    read: u32,
    /// The furthest that the peer has written and read when [`progressed`](Self::progressed) was asked last.
    peer_written: u32,
    peer_read: u32,
    broken: Option<Violation>,
    _layout: PhantomData<fn() -> L>,
}

impl<L: StreamLayout, M: Backing> ByteRing<L, M> {
    /// Joins the streams where they are. This is the one time that our own indices are read from the page: what an
    /// earlier user of it (a boot loader, the toolstack) left is gone on from.
    ///
    /// # Errors
    /// [`RingError::TooSmall`] when the memory does not hold the layout.
    pub fn new(mut mem: M) -> Result<Self, RingError> {
        let view = mem.mem();
        let written = view.load_u32(L::OUT_INDICES.1, Ordering::Acquire)?;
        let read = view.load_u32(L::IN_INDICES.0, Ordering::Acquire)?;
        for (offset, len) in [L::OUT, L::IN] {
            view.read_bytes(offset + len as usize, &mut [])?;
        }
        let peer_read = view.load_u32(L::OUT_INDICES.0, Ordering::Acquire)?;
        Ok(Self { mem, written, read, peer_written: read, peer_read, broken: None, _layout: PhantomData })
    }

    /// Joins the streams where they are now, as [`new`](Self::new) does. For a peer that has reset the page as its
    /// protocol allows; that it broke the protocol before is forgotten.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn rejoin(&mut self) -> Result<(), RingError> {
        let view = self.mem.mem();
        self.written = view.load_u32(L::OUT_INDICES.1, Ordering::Acquire)?;
        self.read = view.load_u32(L::IN_INDICES.0, Ordering::Acquire)?;
        self.peer_read = view.load_u32(L::OUT_INDICES.0, Ordering::Acquire)?;
        self.peer_written = self.read;
        self.broken = None;
        Ok(())
    }

    /// How many bytes can be read.
    ///
    /// # Errors
    /// [`RingError::Broken`] when the peer claims more than fit, and for ever after.
    pub fn readable(&mut self) -> Result<usize, RingError> {
        self.check()?;
        let index = self.mem.mem().load_u32(L::IN_INDICES.1, Ordering::Acquire)?;
        Ok(self.accept(index, self.read, index.wrapping_sub(self.read), L::IN.1)? as usize)
    }

    /// How many bytes can be written.
    ///
    /// # Errors
    /// [`RingError::Broken`] when the peer claims to have read more than was written, and for ever after.
    pub fn writable(&mut self) -> Result<usize, RingError> {
        self.check()?;
        let index = self.mem.mem().load_u32(L::OUT_INDICES.0, Ordering::Acquire)?;
        let unread = self.accept(index, self.written, self.written.wrapping_sub(index), L::OUT.1)?;
        Ok((L::OUT.1 - unread) as usize)
    }

    /// Whether the peer has read all that was written.
    ///
    /// # Errors
    /// As [`writable`](Self::writable).
    pub fn is_drained(&mut self) -> Result<bool, RingError> {
        Ok(self.writable()? == L::OUT.1 as usize)
    }

    /// Whether the peer has written or read anything since this was asked last: whether its event had a reason.
    ///
    /// What counts is what goes beyond all that was seen of it, so that an index which goes to and fro is progress once.
    ///
    /// # Errors
    /// As [`readable`](Self::readable) and [`writable`](Self::writable).
    pub fn progressed(&mut self) -> Result<bool, RingError> {
        let peer_written = self.read.wrapping_add(self.readable()? as u32);
        let unread = L::OUT.1 - self.writable()? as u32;
        let peer_read = self.written.wrapping_sub(unread);
        let mut progress = false;
        for (seen, now) in [(&mut self.peer_written, peer_written), (&mut self.peer_read, peer_read)] {
            if (1..1 << 31).contains(&now.wrapping_sub(*seen)) {
                *seen = now;
                progress = true;
            }
        }
        Ok(progress)
    }

    /// Writes as much as fits. Returns how many bytes that was. The peer is to be notified when it was any.
    ///
    /// # Errors
    /// As [`writable`](Self::writable).
    pub fn write(&mut self, data: &[u8]) -> Result<usize, RingError> {
        let count = self.writable()?.min(data.len());
        // The peer's reads of these places come before our writes: its index said that it is done with them.
        fence(Ordering::SeqCst);
        let mem = self.mem.mem();
        let (first, second) = split(data.get(..count).unwrap_or_default(), self.written, L::OUT.1);
        mem.write_bytes(L::OUT.0 + place(self.written, L::OUT.1), first)?;
        mem.write_bytes(L::OUT.0, second)?;
        if count > 0 {
            self.written = self.written.wrapping_add(count as u32);
            mem.store_u32(L::OUT_INDICES.1, self.written, Ordering::Release)?;
        }
        Ok(count)
    }

    /// Reads as much as is there and fits. Returns how many bytes that was. The peer is to be notified when it was
    /// any.
    ///
    /// # Errors
    /// As [`readable`](Self::readable).
    pub fn read(&mut self, out: &mut [u8]) -> Result<usize, RingError> {
        let count = self.readable()?.min(out.len());
        let mem = self.mem.mem();
        let out = out.get_mut(..count).unwrap_or_default();
        let until_end = L::IN.1 as usize - place(self.read, L::IN.1);
        let (first, second) = out.split_at_mut(until_end.min(count));
        mem.read_bytes(L::IN.0 + place(self.read, L::IN.1), first)?;
        mem.read_bytes(L::IN.0, second)?;
        if count > 0 {
            // Our reads come before the peer's next writes to these places, which the index allows.
            fence(Ordering::SeqCst);
            self.read = self.read.wrapping_add(count as u32);
            mem.store_u32(L::IN_INDICES.0, self.read, Ordering::Release)?;
        }
        Ok(count)
    }

    /// Reads a word of the page beside the streams.
    ///
    /// # Errors
    /// [`RingError::TooSmall`] when it is not within the memory.
    pub fn word(&mut self, offset: usize) -> Result<u32, RingError> {
        Ok(self.mem.mem().load_u32(offset, Ordering::Acquire)?)
    }

    /// Writes a word of the page beside the streams.
    ///
    /// # Errors
    /// [`RingError::TooSmall`] when it is not within the memory.
    pub fn set_word(&mut self, offset: usize, value: u32) -> Result<(), RingError> {
        Ok(self.mem.mem().store_u32(offset, value, Ordering::Release)?)
    }

    /// Has a live migration take along what the peer has written to the page so far: this end's own index is written once more. A
    /// hypervisor does not see what is written by a mapping that a peer keeps, and may have sent the page before.
    ///
    /// # Errors
    /// [`RingError::TooSmall`] when there is no such word.
    pub fn mark_written(&mut self) -> Result<(), RingError> {
        self.set_word(L::OUT_INDICES.1, self.written)
    }

    /// Copies bytes that were written and that the peer has not read, from the one behind `skip` others on: what is to be
    /// written again when another peer takes this one's place. Returns how many bytes that was. The peer may have changed
    /// them.
    ///
    /// # Errors
    /// As [`writable`](Self::writable).
    pub fn untaken(&mut self, skip: usize, out: &mut [u8]) -> Result<usize, RingError> {
        let unread = L::OUT.1 as usize - self.writable()?;
        let count = unread.saturating_sub(skip).min(out.len());
        let from = self.written.wrapping_sub((unread - skip.min(unread)) as u32);
        let out = out.get_mut(..count).unwrap_or_default();
        let until_end = L::OUT.1 as usize - place(from, L::OUT.1);
        let (first, second) = out.split_at_mut(until_end.min(count));
        let mem = self.mem.mem();
        mem.read_bytes(L::OUT.0 + place(from, L::OUT.1), first)?;
        mem.read_bytes(L::OUT.0, second)?;
        Ok(count)
    }

    /// Whether the peer broke the protocol.
    pub fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    /// How the peer broke the protocol, if it did.
    pub fn violation(&self) -> Option<Violation> {
        self.broken
    }

    /// The memory again.
    pub fn into_inner(self) -> M {
        self.mem
    }

    /// Believes the peer's index if it is no further from ours, in the direction of the stream, than fits.
    fn accept(&mut self, index: u32, ours: u32, distance: u32, limit: u32) -> Result<u32, RingError> {
        if distance > limit {
            self.broken = Some(Violation { index, ours, limit });
        }
        self.check().map(|()| distance)
    }

    fn check(&self) -> Result<(), RingError> {
        self.broken.map_or(Ok(()), |violation| Err(RingError::Broken(violation)))
    }
}

fn place(index: u32, size: u32) -> usize {
    (index & (size - 1)) as usize
}

/// What fits before the end of the stream's bytes, and what goes on at their beginning.
fn split(data: &[u8], index: u32, size: u32) -> (&[u8], &[u8]) {
    data.split_at((size as usize - place(index, size)).min(data.len()))
}

impl<L, M> fmt::Debug for ByteRing<L, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByteRing")
            .field("written", &self.written)
            .field("read", &self.read)
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}
