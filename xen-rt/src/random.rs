//! Random numbers of the processor, as a source for `rand_core`.
//!
//! Xen gives a guest none. The processor may: by `RDRAND` on x86-64, and by `RNDR` on arm64 (`FEAT_RNG`), if Xen lets the guest have it. A
//! process has those of its operating system.
//!
//! ```
//! use rand_core::TryRng;
//! use xen_rt::random::Random;
//!
//! let seed = match Random::new() {
//!     Some(mut random) => random.try_next_u64()?,
//!     None => panic!("this guest needs a processor with random numbers"),
//! };
//! # let _ = seed;
//! # Ok::<(), xen_rt::random::Exhausted>(())
//! ```

use core::fmt;

use rand_core::{TryCryptoRng, TryRng};

use crate::machine;

/// How often the processor is asked for one number. Its makers tell to ask ten times.
const TRIES: usize = 10;

/// The generator of the processor.
///
/// Each number is asked for anew: nothing is kept that a suspend, or a second guest made of the same saved image, could repeat.
#[derive(Clone, Copy, Debug)]
pub struct Random(());

/// The generator gave no number in ten tries, or the same one again and again: too many ask, or it is broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exhausted;

impl Random {
    /// The generator, if the guest has one.
    pub fn new() -> Option<Self> {
        machine::has_random().then_some(Self(()))
    }
}

impl TryRng for Random {
    type Error = Exhausted;

    fn try_next_u32(&mut self) -> Result<u32, Exhausted> {
        Ok(self.try_next_u64()? as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Exhausted> {
        draw(machine::random)
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Exhausted> {
        for part in bytes.chunks_mut(8) {
            let number = self.try_next_u64()?.to_le_bytes();
            part.iter_mut().zip(number).for_each(|(byte, random)| *byte = random);
        }
        Ok(())
    }
}

impl TryCryptoRng for Random {}

/// A number, if two that follow one another differ. Some processors give the same one for ever after they were suspended, and call that a
/// success.
fn draw(mut ask: impl FnMut() -> Option<u64>) -> Result<u64, Exhausted> {
    let mut first = None;
    for _ in 0..TRIES {
        match (first, ask()) {
            (_, None) => {}
            (None, number) => first = number,
            (Some(first), Some(number)) if first != number => return Ok(number),
            _ => {}
        }
    }
    Err(Exhausted)
}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the processor gives no random numbers now")
    }
}

impl core::error::Error for Exhausted {}

#[cfg(test)]
mod tests {
    use super::{Exhausted, TRIES, draw};

    #[test]
    fn a_number_is_the_second_that_differs() {
        let mut numbers = [None, Some(1), None, Some(1), Some(2), Some(3)].into_iter();
        assert_eq!(draw(|| numbers.next().flatten()), Ok(2));
        assert_eq!(numbers.next(), Some(Some(3)), "no more is asked for");
    }

    #[test]
    fn a_generator_that_repeats_itself_or_is_silent_gives_none() {
        let mut asked = 0;
        assert_eq!(draw(|| Some(u64::MAX)), Err(Exhausted));
        let counted = draw(|| {
            asked += 1;
            None
        });
        assert_eq!((counted, asked), (Err(Exhausted), TRIES));
    }
}
