//! The table of watches: a fixed number, and however many events come, one mark each.

use core::task::Waker;

use xen_evtchn::wake_all;

use crate::{Path, Watch};

/// What a daemon lets a guest have, unless its administrator sets another quota.
pub(crate) const WATCHES: usize = 128;
/// The bytes of all paths together.
pub(crate) const PATHS: usize = 8192;

/// Calls a closure with each of several watches.
pub(crate) type EachWatch<'w> = dyn Fn(&mut dyn FnMut(Watch)) + 'w;

/// The watches of a connection.
///
/// A daemon, or somebody who writes to a watched node without end, can make any number of events: all that they do is to
/// set a mark, so they cost no memory, and whoever waits looks at the node once.
pub(crate) struct Watches {
    slots: [Slot; WATCHES],
    generation: u32,
    /// How many of the watches were given up.
    given_up: usize,
    /// Each watch has an owner who ends it, whatever becomes of it before.
    pub(crate) are_owned: bool,
    /// The paths, one after the other without gaps.
    paths: [u8; PATHS],
    used: usize,
}

#[derive(Default)]
struct Slot {
    /// Where the path is, and how long. Nobody watches a path without a byte.
    at: u16,
    len: u16,
    generation: u32,
    fired: bool,
    stage: Stage,
    /// How many events came so far.
    events: u32,
    waker: Option<Waker>,
}

/// How far a watch is on its way.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
enum Stage {
    #[default]
    Watches,
    /// The daemon did not set it again. Its owner finds out.
    Ended,
    /// Has no owner any more, and is to be ended at the daemon.
    GivenUp,
}

impl Watches {
    pub(crate) fn new() -> Self {
        Self {
            slots: core::array::from_fn(|_| Slot::default()),
            generation: 0,
            given_up: 0,
            are_owned: false,
            paths: [0; PATHS],
            used: 0,
        }
    }

    /// Takes a place for a watch.
    pub(crate) fn add(&mut self, path: &str) -> Option<Watch> {
        let (slot, place) = self.slots.iter_mut().enumerate().find(|(_, slot)| slot.len == 0)?;
        self.paths.get_mut(self.used..self.used + path.len())?.copy_from_slice(path.as_bytes());
        self.generation = self.generation.wrapping_add(1);
        let (at, len) = (self.used as u16, path.len() as u16);
        *place = Slot { at, len, generation: self.generation, ..Slot::default() };
        self.used += path.len();
        Some(Watch { slot, generation: self.generation })
    }

    fn get(&mut self, watch: Watch) -> Option<&mut Slot> {
        self.find(watch, Stage::Watches)
    }

    /// A watch that is not farther than this stage.
    fn find(&mut self, watch: Watch, at_most: Stage) -> Option<&mut Slot> {
        self.slots
            .get_mut(watch.slot)
            .filter(|slot| slot.len > 0 && slot.stage <= at_most && slot.generation == watch.generation)
    }

    /// Whether a watch has an owner.
    pub(crate) fn is_there(&mut self, watch: Watch) -> bool {
        self.find(watch, Stage::Ended).is_some()
    }

    /// What is watched.
    pub(crate) fn path(&mut self, watch: Watch) -> Option<Path> {
        self.get(watch)?;
        self.at(watch.slot).map(|(_, path)| path)
    }

    /// Takes a watch from its owner. Its place stays taken until it is [free](Self::free).
    pub(crate) fn give_up(&mut self, watch: Watch) {
        match self.find(watch, Stage::Ended) {
            Some(slot) if slot.stage == Stage::Ended => self.free(watch.slot),
            Some(slot) => {
                slot.stage = Stage::GivenUp;
                slot.wake();
                self.given_up += 1;
            }
            None => {}
        }
    }

    /// A watch that was given up.
    pub(crate) fn given_up(&self) -> Option<(Watch, Path)> {
        if self.given_up == 0 {
            return None;
        }
        self.at(self.slots.iter().position(|slot| slot.stage == Stage::GivenUp)?)
    }

    /// Lets a place be taken again.
    pub(crate) fn free(&mut self, slot: usize) {
        let Some(slot) = self.slots.get_mut(slot) else { return };
        slot.wake();
        self.given_up -= usize::from(core::mem::take(&mut slot.stage) == Stage::GivenUp);
        let (from, len) = (slot.at, core::mem::take(&mut slot.len));
        let end = usize::from(from) + usize::from(len);
        self.paths.copy_within(end..self.used, from.into());
        self.used -= usize::from(len);
        for behind in self.slots.iter_mut().filter(|other| other.len > 0 && other.at > from) {
            behind.at -= len;
        }
    }

    /// The daemon did not set a watch again.
    pub(crate) fn refuse(&mut self, slot: usize) {
        match self.slots.get_mut(slot) {
            Some(place) if self.are_owned && place.stage == Stage::Watches => {
                place.stage = Stage::Ended;
                place.wake();
            }
            _ => self.free(slot),
        }
    }

    /// The owner of a watch has gone.
    pub(crate) fn leave(&mut self, slot: usize) {
        match self.at(slot) {
            Some((watch, _)) => self.give_up(watch),
            None => self.free(slot),
        }
    }

    /// Whether some watches are to be ended at the daemon, whose places will be free then.
    pub(crate) fn are_given_up(&self) -> bool {
        self.given_up > 0
    }

    /// The daemon knows none of them any more.
    pub(crate) fn forget_given_up(&mut self) {
        while let Some((watch, _)) = self.given_up() {
            self.free(watch.slot);
        }
    }

    /// The watch in a place.
    pub(crate) fn at(&self, slot: usize) -> Option<(Watch, Path)> {
        let place = self.slots.get(slot).filter(|place| place.len > 0 && place.stage != Stage::Ended)?;
        let (from, len) = (usize::from(place.at), usize::from(place.len));
        let path = core::str::from_utf8(self.paths.get(from..from + len)?).ok()?;
        Some((Watch { slot, generation: place.generation }, Path::new(path).ok()?))
    }

    /// Ends a watch, and gives its place back.
    pub(crate) fn remove(&mut self, watch: Watch) {
        if self.find(watch, Stage::Ended).is_some() {
            self.free(watch.slot);
        }
    }

    /// Marks the watch of a token that arrived; false when there is none.
    pub(crate) fn fire(&mut self, token: &[u8]) -> bool {
        let parsed = core::str::from_utf8(token).ok().and_then(|token| {
            let (slot, generation) = token.split_once('-')?;
            // Both of one type, for which there is one parser.
            let (slot, generation): (u32, u32) = (slot.parse().ok()?, generation.parse().ok()?);
            Some(Watch { slot: slot as usize, generation })
        });
        let Some(slot) = parsed.and_then(|watch| self.get(watch)) else { return false };
        slot.fired = true;
        slot.events = slot.events.wrapping_add(1);
        slot.wake();
        true
    }

    /// Changes with each event of a watch, whoever took the mark of it.
    pub(crate) fn events(&mut self, watch: Watch) -> u32 {
        self.get(watch).map_or(0, |slot| slot.events)
    }

    /// Whether a watch fired since it was asked for last. None: it has ended.
    pub(crate) fn take(&mut self, watch: Watch) -> Option<bool> {
        self.get(watch).map(|slot| core::mem::take(&mut slot.fired))
    }

    /// Whether one of several watches has fired, or has ended.
    pub(crate) fn any_fired(&mut self, watches: &EachWatch<'_>) -> bool {
        let mut any = false;
        watches(&mut |watch| any |= self.get(watch).is_none_or(|slot| slot.fired));
        any
    }

    /// Lets a watch be as if it had fired: whoever took the mark could not act on it.
    pub(crate) fn mark(&mut self, watch: Watch) {
        if let Some(slot) = self.get(watch) {
            slot.fired = true;
        }
    }

    /// Lets a task be woken by the next event of a watch.
    pub(crate) fn register(&mut self, watch: Watch, waker: &Waker) {
        let Some(slot) = self.get(watch) else { return };
        if !slot.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            // A task that waited for the same watch looks again, and does not sleep for ever.
            slot.wake();
            slot.waker = Some(waker.clone());
        }
    }

    /// Wakes all tasks that wait.
    pub(crate) fn wake_all(&mut self) {
        wake_all(self.slots.iter_mut(), Slot::wake);
    }
}

impl Slot {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}
