//! Watches: set, waited for, ended.

use core::fmt;
use core::task::{Context, Poll};

use xen_evtchn::Deadline;
use xen_hypercall::{Platform, Wait};

use crate::link::Sink;
use crate::text::Text;
use crate::watches::{EachWatch, WATCHES};
use crate::wire::Operation;
use crate::{Error, Path, Until, Xenstore};

/// Names a watch of the client that set it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Watch {
    pub(crate) slot: usize,
    pub(crate) generation: u32,
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

    pub(crate) fn watch_into(
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
        if let Some(watch) = self.link.watches.add(&name) {
            return Ok(watch);
        }
        self.link.poll(&mut |_, _| ())?;
        let mut deadline = self.deadline();
        self.tidy_up(Operation::WATCH, &mut deadline)?;
        self.link.watches.add(&name).ok_or(Error::TooManyWatches)
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
            _ => self.link.watches.remove(watch),
        }
    }

    /// Ends a watch. One that has ended already is no error, whoever ended it.
    ///
    /// # Errors
    /// After [`Error::TimedOut`] the daemon is asked again before the next question. After every error the watch is gone here.
    pub fn unwatch(&mut self, watch: Watch) -> Result<(), Error> {
        let token = Text::new(Token(watch))?;
        let Some(path) = self.link.watches.path(watch) else {
            self.link.watches.remove(watch);
            return Ok(());
        };
        match self.ask_path(Operation::UNWATCH, 0, &path, [token.as_bytes(), b"\0"]) {
            Err(error) if !error.is_not_found() => {
                self.give_watch_up(watch, error);
                Err(error)
            }
            _ => {
                self.link.watches.remove(watch);
                Ok(())
            }
        }
    }

    /// Returns whether a watch fired since the last call for it: once for any number of events.
    ///
    /// # Errors
    /// [`Error::Stale`] for a watch that has ended. [`Error::Broken`] when the connection is of no use any more.
    pub fn fired(&mut self, watch: &Watch) -> Result<bool, Error> {
        self.poll()?;
        self.link.watches.take(*watch).ok_or(Error::Stale)
    }

    /// Waits until a watch fires or the time is up. Returns whether it fired in time.
    ///
    /// When the time is up at the call, it returns `false` although the watch may have fired, and [`fired`](Self::fired) tells of
    /// that later. So this loop ends at its deadline, however often somebody writes to the node:
    ///
    /// ```ignore
    /// while !look(&mut xs)? && xs.wait_fired(&watch, &mut deadline)? {}
    /// ```
    ///
    /// # Errors
    /// As [`fired`](Self::fired).
    pub fn wait_fired<'d>(&mut self, watch: &Watch, deadline: impl Into<Until<'d>>) -> Result<bool, Error> {
        self.wait_event(*watch, deadline.into().deadline())
    }

    pub(crate) fn wait_event(&mut self, watch: Watch, deadline: &mut Deadline) -> Result<bool, Error> {
        self.link.pauses.resume(deadline);
        let mut waited = false;
        loop {
            // After each sleep: so a pause is found out.
            let until = deadline.until(self.now());
            // What comes with the last moment is in time.
            if (until.is_some() || waited) && self.fired(&watch)? {
                self.link.pauses.keep(deadline);
                return Ok(true);
            }
            if until.is_none() {
                // No more than whether there is a connection.
                return self.poll().map(|()| false);
            }
            self.link.events.wait_since(self.link.seen, until);
            waited = true;
        }
    }

    /// Waits until one of several watches has fired, or the time is up.
    pub(crate) fn wait_any(
        &mut self,
        watches: &EachWatch<'_>,
        deadline: &mut Deadline,
    ) -> Result<bool, Error> {
        self.link.pauses.resume(deadline);
        loop {
            let until = deadline.until(self.now());
            self.poll()?;
            if self.link.watches.any_fired(watches) {
                self.link.pauses.keep(deadline);
                return Ok(true);
            }
            if until.is_none() {
                return Ok(false);
            }
            self.link.events.wait_since(self.link.seen, until);
        }
    }

    /// Calls `look` at first and after each event of a watch, until it has found something or the time is up. Returns whether it
    /// has. `look` may ask questions. It is called at least once.
    pub(crate) fn watch_until(
        &mut self,
        watch: Watch,
        deadline: &mut Deadline,
        look: &mut dyn FnMut(&mut Self) -> Result<bool, Error>,
    ) -> Result<bool, Error> {
        let mut in_time = true;
        loop {
            let found = look(self)?;
            if found || !in_time {
                return Ok(found);
            }
            in_time = self.wait_event(watch, deadline)?;
            // What happened during the last look is looked at: once.
            if !in_time && !self.fired(&watch)? {
                return Ok(false);
            }
        }
    }

    /// Ready when a watch fired; otherwise the task is woken then. For any number of tasks, each with a watch of its own.
    ///
    /// Whoever takes an event out of the ring wakes the task of its watch, so a task that is dropped takes nothing from the
    /// others.
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

    /// Sets all watches again, at a daemon that knows none of them: all are asked for at once. One that is refused ends, and
    /// the others are set all the same. Returns the first refusal. In a new domain, whose nodes are others, the toolstack is told
    /// which requests are obeyed; one that refuses to be told is told nothing.
    pub(crate) fn watch_again(&mut self, new_domain: bool) -> Result<Result<(), Error>, Error> {
        let mut refused = [false; WATCHES];
        let mut first = Ok(());
        let sink: &mut Sink<'_> = &mut |slot, answer| {
            if let (Err(error), Some(place)) = (answer, refused.get_mut(slot)) {
                *place = true;
                first = first.and(Err(error));
            }
        };
        self.link.give_up();
        for slot in 0..WATCHES {
            if let Some((watch, path)) = self.link.watches.at(slot) {
                self.post_watch(watch, &path, slot, sink)?;
            }
        }
        if new_domain {
            self.post_obeyed(sink)?;
        }
        self.settle(sink)?;
        for (slot, _) in refused.iter().enumerate().filter(|(_, refused)| **refused) {
            self.link.watches.refuse(slot);
        }
        Ok(first)
    }
}
