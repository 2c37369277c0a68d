//! A far side that acts between two accesses of the near one.

use core::fmt;

use crate::{Backing, SharedMem};

/// Memory in which something happens whenever it is asked for.
///
/// The rings ask for their memory once for each thing that they do with it (a slot's copy, an index read, an index
/// written and the peer's event read), so the closure stands between any two of these, as a peer may that runs on
/// another processor at the same time. It may change bytes, or count the accesses.
pub struct Meddled<M, F> {
    mem: M,
    meddle: F,
}

impl<M: Backing, F: FnMut(&SharedMem<'_>)> Meddled<M, F> {
    /// Calls `meddle` with the memory before each access to `mem`.
    pub fn new(mem: M, meddle: F) -> Self {
        Self { mem, meddle }
    }

    /// The memory without the meddling.
    pub fn into_inner(self) -> M {
        self.mem
    }
}

impl<M: Backing, F: FnMut(&SharedMem<'_>)> Backing for Meddled<M, F> {
    fn mem(&mut self) -> SharedMem<'_> {
        (self.meddle)(&self.mem.mem());
        self.mem.mem()
    }
}

impl<M: fmt::Debug, F> fmt::Debug for Meddled<M, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meddled").field("mem", &self.mem).finish_non_exhaustive()
    }
}
