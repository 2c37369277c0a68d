//! The two-level ABI's algorithms, apart from where the bits live.
//!
//! One pending and one mask bit per port; per vCPU one selector word with a bit for each word of pending bits, and one
//! byte that says an upcall is due (`struct shared_info` and `struct vcpu_info` in Xen's `xen.h`). Xen sets, from any
//! physical CPU and at any time: pending, then, if the port is not masked, selector, then the upcall byte. The guest
//! clears them in the opposite order, so whatever Xen sets meanwhile is seen by this pass or causes another upcall.
//!
//! Everything goes through [`Board`], so that the same code runs on the shared page and on loom's model of memory.
#![allow(unreachable_pub, reason = "public for the loom tests alone")]

mod board;

use core::sync::atomic::{Ordering, fence};

pub(crate) use board::TwoLevelAbi;

/// The bits that one vCPU and Xen share. Each method is one atomic access.
pub trait Board {
    /// Clears the upcall byte; says whether it was set.
    fn take_upcall(&self) -> bool;
    /// Takes the selector, leaving zero.
    fn take_selector(&self) -> u64;
    /// A word of pending bits.
    fn pending(&self, word: usize) -> u64;
    /// A word of mask bits.
    fn mask(&self, word: usize) -> u64;
    /// Clears pending bits, returns the word as it was.
    fn clear_pending(&self, word: usize, bits: u64) -> u64;
    /// Sets mask bits.
    fn set_mask(&self, word: usize, bits: u64);
    /// Clears mask bits.
    fn clear_mask(&self, word: usize, bits: u64);
    /// A full fence. Overridden where atomics are modelled.
    fn full_fence(&self) {
        fence(Ordering::SeqCst);
    }
}

/// What one [`scan`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Scan {
    /// Xen had asked for an upcall.
    pub upcall: bool,
    /// Events taken.
    pub events: usize,
}

/// Takes every event that is due, once, and hands its port to `fire`.
///
/// One pass over the selector as it was found: a peer that sends without end cannot hold the loop, because its next
/// event sets the selector and the upcall byte again, for the next call. At most 64 words and 4096 ports.
pub fn scan<B: Board + ?Sized>(board: &B, fire: impl FnMut(u32)) -> Scan {
    // The byte before the selector: Xen sets them the other way round, so an event that misses the selector taken here
    // finds the byte clear and asks for an upcall again.
    let upcall = board.take_upcall();
    let selector = board.take_selector();
    let mut pass = Pass { board, fire, selector, word: 0, taken: 0, events: 0 };
    pass.run();
    Scan { upcall, events: pass.events }
}

/// What was taken and not yet handed out. It is handed out even if `fire` panics, for nobody else knows of it any more.
struct Pass<'a, B: Board + ?Sized, F: FnMut(u32)> {
    board: &'a B,
    fire: F,
    /// Words that have not been looked at.
    selector: u64,
    /// The word that is being looked at, and events of it.
    word: usize,
    taken: u64,
    events: usize,
}

impl<B: Board + ?Sized, F: FnMut(u32)> Pass<'_, B, F> {
    fn run(&mut self) {
        loop {
            while self.taken != 0 {
                let index = self.taken.trailing_zeros();
                self.taken &= self.taken - 1;
                self.events += 1;
                (self.fire)(self.word as u32 * 64 + index);
            }
            if self.selector == 0 {
                return;
            }
            self.word = self.selector.trailing_zeros() as usize;
            self.selector &= self.selector - 1;
            let due = self.board.pending(self.word) & !self.board.mask(self.word);
            if due != 0 {
                // Cleared before the port's owner looks at its ring: what is sent after that look sets the bit again.
                // Another vCPU may have been here meanwhile; only bits that this call cleared are its events.
                self.taken = self.board.clear_pending(self.word, due) & due;
            }
        }
    }
}

impl<B: Board + ?Sized, F: FnMut(u32)> Drop for Pass<'_, B, F> {
    fn drop(&mut self) {
        self.run();
    }
}

/// Clears a port's mask bit and sees to it that an event that came meanwhile is delivered.
///
/// Xen sets neither selector nor upcall byte for a masked port, and it does not look again when the guest clears the mask.
/// So a pending event must be raised again, on the vCPU that the port is bound to, and only Xen can interrupt that one:
/// `EVTCHNOP_unmask`, here `refire`. That operation does nothing for a port whose mask bit is clear already, therefore
/// the bit is set again before. `refire` says whether Xen accepted; if not, the event is left to the caller (`false`).
#[must_use]
pub fn unmask<B: Board + ?Sized>(board: &B, word: usize, bit: u64, refire: impl FnOnce() -> bool) -> bool {
    board.clear_mask(word, bit);
    // Xen sets pending, then reads the mask; we clear the mask, then read pending. Without a full fence in between both
    // may miss each other's write, and the event is lost.
    board.full_fence();
    if board.pending(word) & bit == 0 {
        return true;
    }
    board.set_mask(word, bit);
    let refired = refire();
    if !refired {
        board.clear_mask(word, bit);
    }
    refired
}
