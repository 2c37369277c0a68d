//! The FIFO ABI's algorithms, apart from where the words live.
//!
//! One word per port: pending, masked, linked, busy, and the next port in its queue. Per vCPU one control block: sixteen
//! queues, one for each priority, with the first port of each and a bit that says whether to look at it (`event_word_t` and
//! `struct evtchn_fifo_control_block` in Xen's `event_channel.h`).
//!
//! Xen sets a port's pending bit; unless the port is masked or in a queue it sets its linked bit and puts it at the end of a
//! queue: into the link of the last port if that is still linked, otherwise the queue is empty and the port becomes its
//! head, the ready bit is set, and, if that was clear, the upcall byte. The guest takes the first port out by clearing its linked
//! bit and reading its link in one access, so either Xen's port is in that link or Xen sees an empty queue.
//!
//! Everything goes through [`Board`], so that the same code runs on the shared pages and on loom's model of memory.
#![allow(unreachable_pub, reason = "public for the loom tests alone")]

mod board;
mod pages;

use crate::abi::{
    EVTCHN_FIFO_BUSY, EVTCHN_FIFO_LINK_MASK, EVTCHN_FIFO_LINKED, EVTCHN_FIFO_MASKED, EVTCHN_FIFO_MAX_QUEUES,
    EVTCHN_FIFO_PENDING,
};
use crate::delivery::Dispatched;
use crate::two_level::Scan;

pub(crate) use board::FifoAbi;
pub(crate) use pages::Pages;

/// An event came.
pub const PENDING: u32 = 1 << EVTCHN_FIFO_PENDING;
/// Events are kept from being queued.
pub const MASKED: u32 = 1 << EVTCHN_FIFO_MASKED;
/// In a queue.
pub const LINKED: u32 = 1 << EVTCHN_FIFO_LINKED;
/// Xen is changing the link.
pub const BUSY: u32 = 1 << EVTCHN_FIFO_BUSY;
/// The next port in the queue.
pub const LINK: u32 = EVTCHN_FIFO_LINK_MASK;

/// Bits of the ready word that stand for a queue.
const READY: u32 = (1 << EVTCHN_FIFO_MAX_QUEUES) - 1;

/// How often to try to unmask a word that Xen keeps busy, before leaving it to Xen. Xen needs a few hundred nanoseconds.
const PATIENCE: usize = 100;

/// How often one [`dispatch`] goes over the queues again for those that came while it did.
const ROUNDS: usize = 4;

/// The words that one vCPU and Xen share, and who of the guest is at them. Each method is one atomic access.
pub trait Board {
    /// Clears the upcall byte; says whether it was set.
    fn take_upcall(&self) -> bool;
    /// Takes the ready bits, leaving zero.
    fn take_ready(&self) -> u32;
    /// The first port of a queue; 0 for a queue beyond the last.
    fn head(&self, queue: usize) -> u32;
    /// A port's word. None: it has none, because it is out of range.
    fn word(&self, port: u32) -> Option<u32>;
    /// Replaces a port's word if it is `old`; otherwise returns what it is.
    fn replace(&self, port: u32, old: u32, new: u32) -> Result<(), u32>;
    /// Sets bits, returns the word as it was.
    fn set(&self, port: u32, bits: u32) -> u32;
    /// Clears bits, returns the word as it was.
    fn clear(&self, port: u32, bits: u32) -> u32;
    /// Moves the gate of this vCPU's queues from one state to another; false if it is not in the first.
    fn gate(&self, from: Gate, to: Gate) -> bool;
}

/// Who is at a vCPU's queues.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Gate {
    /// Nobody.
    Open = 0,
    /// Somebody.
    Busy = 1,
    /// Somebody, who was asked to look once more before he leaves.
    Again = 2,
}

/// Takes every event that is due, most urgent first, and hands its port to `fire`.
///
/// A queue is a list that only one may take from at a time. Whoever finds another at it, such as an interrupt handler the
/// code that it interrupted, leaves a note and goes; the other looks again.
///
/// Bounded if `fire` masks a port that it gets a second time: a masked port is not put in a queue again.
pub fn dispatch<B: Board + ?Sized>(board: &B, mut fire: impl FnMut(u32)) -> Dispatched {
    let mut done = Dispatched::default();
    while !board.gate(Gate::Open, Gate::Busy) {
        if board.gate(Gate::Busy, Gate::Again) || board.gate(Gate::Again, Gate::Again) {
            done.more = true;
            return done;
        }
    }
    let gate = Busy(board);
    for _ in 0..ROUNDS {
        let scan = drain(board, &mut fire);
        done.scan.upcall |= scan.upcall;
        done.scan.events += scan.events;
        if board.gate(Gate::Busy, Gate::Open) {
            core::mem::forget(gate);
            return done;
        }
        board.gate(Gate::Again, Gate::Busy);
    }
    done.more = true;
    done
}

/// The turn at the queues. Who has it gives it back even if `fire` panics.
struct Busy<'a, B: Board + ?Sized>(&'a B);

impl<B: Board + ?Sized> Drop for Busy<'_, B> {
    fn drop(&mut self) {
        if !self.0.gate(Gate::Busy, Gate::Open) {
            self.0.gate(Gate::Again, Gate::Open);
        }
    }
}

/// Empties the queues.
fn drain<B: Board + ?Sized>(board: &B, fire: &mut impl FnMut(u32)) -> Scan {
    // The byte before the ready bits: Xen sets them the other way round, so what misses the bits taken here finds the byte
    // clear and asks for an upcall again.
    let upcall = board.take_upcall();
    let ready = board.take_ready() & READY;
    let mut pass = Pass { board, fire, ready, next: [0; EVTCHN_FIFO_MAX_QUEUES], events: 0 };
    pass.run();
    Scan { upcall, events: pass.events }
}

/// The queues that were taken and are not empty yet. They are emptied even if `fire` panics, for nobody else knows of them any
/// more.
struct Pass<'a, B: Board + ?Sized, F: FnMut(u32)> {
    board: &'a B,
    fire: F,
    ready: u32,
    /// Where each queue goes on; 0: at the head that Xen wrote.
    next: [u32; EVTCHN_FIFO_MAX_QUEUES],
    events: usize,
}

impl<B: Board + ?Sized, F: FnMut(u32)> Pass<'_, B, F> {
    fn run(&mut self) {
        while self.ready != 0 {
            let queue = self.ready.trailing_zeros() as usize;
            let Some(next) = self.next.get_mut(queue) else { break };
            let port = if *next == 0 { self.board.head(queue) } else { *next };
            // A word that is not linked does not happen while Xen keeps to the protocol. It ends the queue, so that each step
            // of this loop clears a bit that Xen has to set again.
            let word = unlink(self.board, port).unwrap_or(0);
            *next = word & LINK;
            if *next == 0 {
                self.ready &= !(1 << queue);
            }
            // Pending is cleared before the port's owner looks at its ring: what is sent after that look sets it again. Only
            // who clears it has the event.
            let due = word & PENDING != 0 && word & MASKED == 0;
            if due && self.board.clear(port, PENDING) & PENDING != 0 {
                self.events += 1;
                (self.fire)(port);
            }
            // A more urgent queue may have filled meanwhile.
            self.ready |= self.board.take_ready() & READY;
        }
    }
}

impl<B: Board + ?Sized, F: FnMut(u32)> Drop for Pass<'_, B, F> {
    fn drop(&mut self) {
        self.run();
    }
}

/// Takes a port out of its queue; returns its word as it was. None: it is in no queue.
///
/// Linked and link in one access: Xen links another port to this one only as long as this one is linked.
fn unlink<B: Board + ?Sized>(board: &B, port: u32) -> Option<u32> {
    let mut word = board.word(port)?;
    // Xen changes a linked word in few ways, each at most once until it is taken out; others of the guest only mask it.
    while word & LINKED != 0 {
        match board.replace(port, word, word & !(LINKED | LINK)) {
            Ok(()) => return Some(word),
            Err(now) => word = now,
        }
    }
    None
}

/// Clears a port's masked bit and sees to it that an event that came meanwhile is delivered.
///
/// Xen puts no masked port in a queue, and does not look again when the guest clears the bit. So the bit of a port with a
/// pending event must be cleared by Xen, which then queues it: `EVTCHNOP_unmask`, here `refire`. All are bits of one word, so
/// no event can come between the look and the clearing. `refire` says whether Xen accepted; if not, the event is left
/// to the caller (`false`).
#[must_use]
pub fn unmask<B: Board + ?Sized>(board: &B, port: u32, refire: impl FnOnce() -> bool) -> bool {
    let mut word = board.word(port).unwrap_or(0);
    for _ in 0..PATIENCE {
        if word & MASKED == 0 {
            return true;
        }
        if word & PENDING != 0 {
            break;
        }
        // While Xen is linking another port to this one the word is busy, and a masked bit that vanished would make Xen's
        // own attempts fail.
        let old = word & !BUSY;
        match board.replace(port, old, old & !MASKED) {
            Ok(()) => return true,
            Err(now) => word = now,
        }
    }
    let refired = refire();
    if !refired {
        board.clear(port, MASKED);
    }
    refired
}
