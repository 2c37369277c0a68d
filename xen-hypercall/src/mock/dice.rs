//! Chance from a seed, for faults that come back the same in every run.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// How much the state grows at each number (2^64 divided by the golden ratio, odd).
const STRIDE: u64 = 0x9E37_79B9_7F4A_7C15;

/// A seeded generator of numbers. Clones draw from the same sequence, so that one seed decides a whole run.
///
/// The numbers are SplitMix64's: good enough to spread faults, and no secret.
#[derive(Clone)]
pub struct Dice(Arc<Inner>);

struct Inner {
    seed: u64,
    state: AtomicU64,
}

impl Dice {
    /// The sequence of this seed, from its start.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Inner { seed, state: AtomicU64::new(seed) }))
    }

    /// What it was made with, to name a run by.
    pub fn seed(&self) -> u64 {
        self.0.seed
    }

    /// The next number.
    pub fn next_u64(&self) -> u64 {
        let mut z = self.0.state.fetch_add(STRIDE, Ordering::Relaxed).wrapping_add(STRIDE);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number from 0 to `n - 1`; 0 when `n` is 0.
    pub fn below(&self, n: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(n)) >> 64) as u64
    }

    /// Whether something of this chance happens now. What never or always happens draws no number, so that a fault
    /// that is switched off leaves the others where they were.
    pub fn hit(&self, chance: Chance) -> bool {
        match chance.0 {
            0 => false,
            1000.. => true,
            permille => self.below(1000) < u64::from(permille),
        }
    }
}

impl fmt::Debug for Dice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dice").field("seed", &self.0.seed).finish_non_exhaustive()
    }
}

/// How often something happens, in thousandths. The default is never.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Chance(u16);

impl Chance {
    /// It does not happen.
    pub const NEVER: Self = Self(0);
    /// It happens each time.
    pub const ALWAYS: Self = Self(1000);

    /// So many times in a hundred; 100 and above is always.
    pub const fn percent(percent: u8) -> Self {
        Self::permille(percent as u16 * 10)
    }

    /// So many times in a thousand; 1000 and above is always.
    pub const fn permille(permille: u16) -> Self {
        Self(if permille > 1000 { 1000 } else { permille })
    }
}

impl fmt::Debug for Chance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{} %", self.0 / 10, self.0 % 10)
    }
}
