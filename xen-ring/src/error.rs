//! What can go wrong with a ring.

use core::fmt;

use crate::mem::OutOfRange;

/// Why a ring did not do what it was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum RingError {
    /// Every slot is in use; some come back with the responses.
    Full,
    /// The peer broke the protocol. The ring stays in this state.
    Broken(Violation),
    /// The memory is too small for the ring, or not aligned as its words must be.
    TooSmall(OutOfRange),
}

/// How the peer broke the protocol: its index is where it cannot be, further ahead than there is room or work, or
/// behind what it was.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Violation {
    /// The index that the peer wrote.
    pub index: u32,
    /// Our own index at that moment.
    pub ours: u32,
    /// By how much they may differ at most.
    pub limit: u32,
}

impl Violation {
    /// What was found.
    pub const fn new(index: u32, ours: u32, limit: u32) -> Self {
        Self { index, ours, limit }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { index, ours, limit } = self;
        write!(f, "the peer's index {index} is not within {limit} of {ours}")
    }
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("the ring is full"),
            Self::Broken(violation) => write!(f, "the ring is broken: {violation}"),
            Self::TooSmall(access) => write!(f, "the ring does not fit its memory: {access}"),
        }
    }
}

impl core::error::Error for RingError {}

impl From<OutOfRange> for RingError {
    fn from(error: OutOfRange) -> Self {
        Self::TooSmall(error)
    }
}
