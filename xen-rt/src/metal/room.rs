//! Room for pages of other domains: addresses beyond all memory of this domain.

use xen_hypercall::Gfn;

use crate::lock::Lock;

/// How many frames there are.
const FRAMES: usize = 4096;
const WORDS: usize = FRAMES / 64;

struct Room {
    /// The first frame; zero: not known yet.
    first: u64,
    /// A bit for each frame that is taken.
    taken: [u64; WORDS],
}

static ROOM: Lock<Room> = Lock::new(Room { first: 0, taken: [0; WORDS] });

/// Says where it is.
pub(super) fn init(first: u64) {
    ROOM.with(|room| room.first = first);
}

impl Room {
    fn bit(&mut self, at: usize) -> Option<(&mut u64, u64)> {
        Some((self.taken.get_mut(at / 64)?, 1 << (at % 64)))
    }

    fn is_free(&mut self, at: usize) -> bool {
        self.bit(at).is_some_and(|(word, bit)| *word & bit == 0)
    }

    fn reserve(&mut self, count: usize) -> Option<u64> {
        let mut free = 0;
        // Where `count` frames in a row end that are free.
        let last = (0..FRAMES).find(|at| {
            free = if self.is_free(*at) { free + 1 } else { 0 };
            free == count
        })?;
        for at in last + 1 - count..=last {
            if let Some((word, bit)) = self.bit(at) {
                *word |= bit;
            }
        }
        Some(self.first + (last + 1 - count) as u64)
    }

    fn release(&mut self, first: u64, count: usize) {
        let Some(from) = first.checked_sub(self.first).and_then(|from| usize::try_from(from).ok()) else {
            return;
        };
        for at in from..from.saturating_add(count).min(FRAMES) {
            if let Some((word, bit)) = self.bit(at) {
                *word &= !bit;
            }
        }
    }
}

/// `count` frames in a row that nobody has.
pub(super) fn reserve(count: usize) -> Option<Gfn> {
    ROOM.with(|room| if room.first == 0 { None } else { room.reserve(count) }).flatten().map(Gfn)
}

/// Takes frames back.
pub(super) fn release(first: Gfn, count: usize) {
    ROOM.with(|room| room.release(first.0, count));
}
