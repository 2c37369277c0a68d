//! Watches: a fixed number, and however many events come, one mark each.

use core::fmt;
use core::task::{Context, Poll};
use core::time::Duration;

use atomic_waker::AtomicWaker;
use xen_hypercall::{Platform, Wait};

use crate::link::Sink;
use crate::text::Text;
use crate::wire::Operation;
use crate::{Error, Path, Xenstore};

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
    /// How many events came so far.
    events: u32,
    /// Nobody's any more, and to be ended at the daemon.
    given_up: bool,
    waker: AtomicWaker,
}

/// A token as it travels: slot and generation, so that an event of a watch long gone is recognised.
pub(crate) struct Token(pub(crate) Watch);

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0.slot, self.0.generation)
    }
}

impl<P: Platform + Wait> Xenstore<'_, P> {
    /// Begins to watch a node and all below it. Every watch fires once at the beginning.
    ///
    /// `@introduceDomain` and `@releaseDomain` are watched for domains that come and go; a guest is told only when
    /// the toolstack permits it.
    ///
    /// # Errors
    /// [`Error::TooManyWatches`], or [`Error::Refused`] when the daemon's quota is used up. After [`Error::TimedOut`] the
    /// daemon may set it some time later: then it is ended again before the next question.
    pub fn watch(&mut self, path: &str) -> Result<Watch, Error> {
        let [watch] = self.watch_all([path])?;
        watch
    }

    /// Begins to watch several nodes at once, which takes hardly longer than for one.
    ///
    /// # Errors
    /// Each watch has its own, as [`watch`](Self::watch). There is one for all, and none is set, when xenstore does not
    /// answer in time or the connection is of no use any more.
    pub fn watch_all<const N: usize>(
        &mut self,
        paths: [&str; N],
    ) -> Result<[Result<Watch, Error>; N], Error> {
        let mut watches = [Err(Error::TooManyWatches); N];
        let mut answers = [Ok(()); N];
        self.watch_into(&paths, &mut watches, &mut answers)?;
        Ok(watches)
    }

    fn watch_into(
        &mut self,
        paths: &[&str],
        watches: &mut [Result<Watch, Error>],
        answers: &mut [Result<(), Error>],
    ) -> Result<(), Error> {
        let asked = self.ask_for_watches(paths, watches, answers);
        for (place, answer) in watches.iter_mut().zip(answers) {
            if let (Ok(watch), Err(error)) = (*place, asked.and(*answer)) {
                self.give_watch_up(watch, error);
                *place = Err(error);
            }
        }
        asked
    }

    fn ask_for_watches(
        &mut self,
        paths: &[&str],
        watches: &mut [Result<Watch, Error>],
        answers: &mut [Result<(), Error>],
    ) -> Result<(), Error> {
        // Before the first question: to make room asks, too.
        for (path, place) in paths.iter().zip(&mut *watches) {
            *place = self.take_place(path);
        }
        self.link.give_up();
        let sink: &mut Sink<'_> = &mut |index, answer| {
            if let Some(place) = answers.get_mut(index) {
                *place = answer.map(drop);
            }
        };
        for (index, (path, place)) in paths.iter().zip(watches).enumerate() {
            if let Ok(watch) = *place {
                self.post_watch(watch, path, index, sink)?;
            }
        }
        self.settle(sink)
    }

    /// A place for a watch, which the daemon does not know of yet.
    pub(crate) fn take_place(&mut self, path: &str) -> Result<Watch, Error> {
        let name = Path::new(path)?;
        if let Some(watch) = self.link.watches.add(name) {
            return Ok(watch);
        }
        self.link.poll(&mut |_, _| ())?;
        self.tidy_up(Operation::WATCH, self.deadline())?;
        self.link.watches.add(name).ok_or(Error::TooManyWatches)
    }

    /// [Posts](Self::post) the question for a watch that has its place.
    pub(crate) fn post_watch(
        &mut self,
        watch: Watch,
        path: &str,
        tag: usize,
        sink: &mut Sink<'_>,
    ) -> Result<(), Error> {
        let token = Text::new(Token(watch))?;
        self.post(Operation::WATCH, 0, &[path.as_bytes(), b"\0", token.as_bytes(), b"\0"], tag, sink)
    }

    /// Whether the daemon knows a watch is not known, if the question was not answered in time.
    pub(crate) fn give_watch_up(&mut self, watch: Watch, error: Error) {
        match error {
            Error::TimedOut(_) => self.link.watches.give_up(watch),
            _ => drop(self.link.watches.remove(watch)),
        }
    }

    /// Ends a watch.
    ///
    /// # Errors
    /// [`Error::Refused`] when the daemon does not know it. After [`Error::TimedOut`] the daemon is asked again before the next
    /// question.
    pub fn unwatch(&mut self, watch: Watch) -> Result<(), Error> {
        let token = Text::new(Token(watch))?;
        let Some(path) = self.link.watches.path(watch) else { return Ok(()) };
        match self.ask_path(Operation::UNWATCH, 0, &path, [token.as_bytes(), b"\0"]) {
            Ok(_) => {
                self.link.watches.remove(watch);
                Ok(())
            }
            Err(error) => {
                self.give_watch_up(watch, error);
                Err(error)
            }
        }
    }

    /// Whether a watch fired since this was asked last, once for any number of events. A watch that is not there any
    /// more has.
    ///
    /// # Errors
    /// [`Error::Broken`] when the connection is of no use any more.
    pub fn fired(&mut self, watch: &Watch) -> Result<bool, Error> {
        self.poll()?;
        Ok(self.link.watches.take(*watch))
    }

    /// Waits until a watch fires or a time comes; answers whether it fired.
    ///
    /// # Errors
    /// As [`fired`](Self::fired).
    pub fn wait_fired(&mut self, watch: &Watch, deadline: Duration) -> Result<bool, Error> {
        loop {
            if self.fired(watch)? {
                return Ok(true);
            }
            if self.now() >= deadline {
                return Ok(false);
            }
            self.link.events.wait(Some(deadline));
        }
    }

    /// Ready when a watch fired; otherwise wakes the task then.
    ///
    /// # Errors
    /// As [`fired`](Self::fired).
    pub fn poll_fired(&mut self, watch: &Watch, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.link.watches.register(*watch, cx.waker());
        loop {
            if self.fired(watch)? {
                return Poll::Ready(Ok(()));
            }
            if self.channel().poll_event(cx).is_pending() {
                return if self.fired(watch)? { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
        }
    }

    /// Sets all watches again, at a daemon that knows none of them.
    pub(crate) fn watch_again(&mut self) -> Result<(), Error> {
        for slot in 0..WATCHES {
            let Some((watch, path)) = self.link.watches.at(slot) else { continue };
            let token = Text::new(Token(watch))?;
            self.ask_path(Operation::WATCH, 0, &path, [token.as_bytes(), b"\0"])?;
        }
        Ok(())
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
            .filter(|slot| slot.path.is_some() && !slot.given_up && slot.generation == watch.generation)
    }

    /// What is watched.
    fn path(&mut self, watch: Watch) -> Option<Path> {
        self.get(watch)?.path
    }

    /// Takes a watch from its owner; its place stays taken until it is [free](Self::free).
    fn give_up(&mut self, watch: Watch) {
        if let Some(slot) = self.get(watch) {
            slot.given_up = true;
            slot.waker.wake();
        }
    }

    /// A watch that was given up.
    pub(crate) fn given_up(&self) -> Option<(Watch, Path)> {
        let slot = self.slots.iter().position(|slot| slot.given_up)?;
        self.at(slot)
    }

    /// Lets a place be taken again.
    pub(crate) fn free(&mut self, slot: usize) {
        if let Some(slot) = self.slots.get_mut(slot) {
            (slot.path, slot.given_up) = (None, false);
        }
    }

    /// The daemon knows none of them any more.
    pub(crate) fn forget_given_up(&mut self) {
        while let Some((watch, _)) = self.given_up() {
            self.free(watch.slot);
        }
    }

    /// The watch in a place.
    pub(crate) fn at(&self, slot: usize) -> Option<(Watch, Path)> {
        let place = self.slots.get(slot)?;
        Some((Watch { slot, generation: place.generation }, place.path?))
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
        slot.events = slot.events.wrapping_add(1);
        slot.waker.wake();
        true
    }

    /// Changes with each event of a watch, whoever took the mark of it.
    pub(crate) fn events(&mut self, watch: Watch) -> u32 {
        self.get(watch).map_or(0, |slot| slot.events)
    }

    /// Whether a watch fired since it was asked for last. A watch that is gone has.
    pub(crate) fn take(&mut self, watch: Watch) -> bool {
        self.get(watch).is_none_or(|slot| core::mem::take(&mut slot.fired))
    }

    /// Lets a watch be as if it had fired: whoever took the mark could not act on it.
    pub(crate) fn mark(&mut self, watch: Watch) {
        if let Some(slot) = self.get(watch) {
            slot.fired = true;
        }
    }

    pub(crate) fn register(&mut self, watch: Watch, waker: &core::task::Waker) {
        if let Some(slot) = self.get(watch) {
            slot.waker.register(waker);
        }
    }
}
