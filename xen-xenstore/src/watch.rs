//! Watches: a fixed number, and however many events come, one mark each.

use core::fmt;

use atomic_waker::AtomicWaker;

use crate::Path;

pub(crate) const WATCHES: usize = 32;

/// Names a watch of the client that set it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Watch {
    pub(crate) slot: usize,
    pub(crate) generation: u32,
}

/// The watches of a connection.
///
/// A daemon, or somebody who writes to a watched node without end, can make as many events as he likes: all that
/// they do is to set a mark, so they cost no memory, and whoever waits looks at the node once.
pub(crate) struct Watches {
    slots: [Slot; WATCHES],
    generation: u32,
}

#[derive(Default)]
struct Slot {
    path: Option<Path>,
    generation: u32,
    fired: bool,
    waker: AtomicWaker,
}

/// A token as it travels: slot and generation, so that an event of a watch long gone is recognised.
pub(crate) struct Token(pub(crate) Watch);

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0.slot, self.0.generation)
    }
}

impl Watches {
    pub(crate) fn new() -> Self {
        Self { slots: core::array::from_fn(|_| Slot::default()), generation: 0 }
    }

    /// Takes a place for a watch.
    pub(crate) fn add(&mut self, path: Path) -> Option<Watch> {
        let (slot, place) = self.slots.iter_mut().enumerate().find(|(_, slot)| slot.path.is_none())?;
        self.generation = self.generation.wrapping_add(1);
        *place = Slot { path: Some(path), generation: self.generation, ..Slot::default() };
        Some(Watch { slot, generation: self.generation })
    }

    fn get(&mut self, watch: Watch) -> Option<&mut Slot> {
        self.slots
            .get_mut(watch.slot)
            .filter(|slot| slot.path.is_some() && slot.generation == watch.generation)
    }

    /// Gives a place back; answers the path that was watched.
    pub(crate) fn remove(&mut self, watch: Watch) -> Option<Path> {
        let slot = self.get(watch)?;
        slot.waker.wake();
        slot.path.take()
    }

    /// Marks the watch of a token that arrived; false when there is none.
    pub(crate) fn fire(&mut self, token: &[u8]) -> bool {
        let parsed = core::str::from_utf8(token).ok().and_then(|token| {
            let (slot, generation) = token.split_once('-')?;
            Some(Watch { slot: slot.parse().ok()?, generation: generation.parse().ok()? })
        });
        let Some(slot) = parsed.and_then(|watch| self.get(watch)) else { return false };
        slot.fired = true;
        slot.waker.wake();
        true
    }

    /// Whether a watch fired since it was asked for last. A watch that is gone has.
    pub(crate) fn take(&mut self, watch: Watch) -> bool {
        self.get(watch).is_none_or(|slot| core::mem::take(&mut slot.fired))
    }

    pub(crate) fn register(&mut self, watch: Watch, waker: &core::task::Waker) {
        if let Some(slot) = self.get(watch) {
            slot.waker.register(waker);
        }
    }
}
