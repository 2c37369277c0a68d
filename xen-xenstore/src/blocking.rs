//! Conversations that wait by blocking.

use core::fmt;
use core::time::Duration;

use xen_evtchn::Deadline;
use xen_hypercall::{Platform, Wait};

use crate::link::Sink;
use crate::watches::EachWatch;
use crate::way::blocking::Primitives;
use crate::xenbus::Entry;
use crate::{Changes, Error, Question, Transaction, Until, Watch, Xenstore};

/// Asks xenstore in a conversation, and blocks until there is an answer: see [`way`](crate::way).
pub struct Blocking<'a, 'x, P: Platform> {
    xs: &'a mut Xenstore<'x, P>,
    until: Until<'a>,
}

impl<'a, 'x, P: Platform + Wait> Blocking<'a, 'x, P> {
    /// For a conversation that asks, and waits for no watch.
    pub fn new(xs: &'a mut Xenstore<'x, P>) -> Self {
        Self::until(xs, Duration::ZERO)
    }

    /// For a conversation that waits for watches until `deadline`, at a time of the platform's clock, or a `&mut Deadline`. Each
    /// question waits for its answer, as long as the connection has [patience](Xenstore::set_patience).
    pub fn until<'d: 'a>(xs: &'a mut Xenstore<'x, P>, deadline: impl Into<Until<'d>>) -> Self {
        Self { xs, until: deadline.into() }
    }

    /// The connection.
    pub fn xenstore(&mut self) -> &mut Xenstore<'x, P> {
        self.xs
    }

    /// The end of the conversation's waits.
    pub fn deadline(&mut self) -> &mut Deadline {
        self.until.deadline()
    }
}

impl<P: Platform> fmt::Debug for Blocking<'_, '_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blocking").field("until", &self.until).finish_non_exhaustive()
    }
}

impl<P: Platform + Wait> Primitives for Blocking<'_, '_, P> {
    /// The time as it was set, and what the wait has made of that.
    type Notice = (Duration, Deadline);

    fn ask_all(
        &mut self,
        questions: &mut dyn Iterator<Item = Question<'_>>,
        sink: &mut Sink<'_>,
    ) -> Result<(), Error> {
        self.xs.ask_questions(questions, sink)
    }

    fn transact(
        &mut self,
        entry: &Entry<'_>,
        f: &mut dyn FnMut(&mut Changes<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.xs.transact(entry, &mut |transaction: &mut Transaction<'_, '_, P>| {
            f(&mut Changes::new(&mut |operation, path, value| {
                transaction.change(operation, path, [value, b""])
            }))
        })
    }

    fn set_watches(
        &mut self,
        paths: &[&str],
        watches: &mut [Result<Watch, Error>],
        answers: &mut [Result<(), Error>],
    ) -> Result<(), Error> {
        self.xs.watch_into(paths, watches, answers)
    }

    fn take_place(&mut self, path: &str) -> Result<Watch, Error> {
        self.xs.take_place(path)
    }

    fn give_watch_up(&mut self, watch: Watch, error: Error) {
        self.xs.give_watch_up(watch, error);
    }

    fn end_watch(&mut self, watch: Watch) -> Result<(), Error> {
        self.xs.unwatch(watch)
    }

    fn drop_watch(&mut self, watch: Watch) {
        self.xs.link.watches.give_up(watch);
    }

    fn adopt(&mut self, _: Watch) {}

    fn look(&mut self) -> Result<(), Error> {
        self.xs.poll()
    }

    fn has_fired(&mut self, watch: Watch) -> Result<bool, Error> {
        self.xs.fired(&watch)
    }

    fn events(&mut self, watch: Watch) -> u32 {
        self.xs.link.watches.events(watch)
    }

    fn mark(&mut self, watch: Watch) {
        self.xs.link.watches.mark(watch);
    }

    fn wait_event(&mut self, watch: Watch, notice: Option<&mut Self::Notice>) -> Result<bool, Error> {
        let deadline = match notice {
            Some((_, deadline)) => deadline,
            None => self.until.deadline(),
        };
        self.xs.wait_event(watch, deadline)
    }

    fn wait_any(&mut self, watches: &EachWatch<'_>) -> Result<bool, Error> {
        self.xs.wait_any(watches, self.until.deadline())
    }

    fn resume(&mut self) {
        self.xs.link.pauses.resume(self.until.deadline());
    }

    fn notice(&mut self, time: Duration) -> Self::Notice {
        let limit = self.until.deadline().at().min(self.xs.now().saturating_add(time));
        (limit, Deadline::new(limit))
    }

    fn noticed(&mut self, (limit, notice): Self::Notice) -> bool {
        let deadline = self.until.deadline();
        // A pause meanwhile counts for neither.
        *deadline = Deadline::new(deadline.at().saturating_add(notice.at().saturating_sub(limit)));
        deadline.until(self.xs.now()).is_some()
    }
}

impl<'x, P: Platform + Wait> Xenstore<'x, P> {
    pub(crate) fn ask_questions(
        &mut self,
        questions: &mut dyn Iterator<Item = Question<'_>>,
        sink: &mut Sink<'_>,
    ) -> Result<(), Error> {
        self.link.give_up();
        for (tag, question) in questions.enumerate() {
            self.post_question(&question, tag, sink)?;
        }
        self.settle(sink)
    }

    pub(crate) fn transact(
        &mut self,
        entry: &Entry<'_>,
        f: &mut dyn FnMut(&mut Transaction<'_, 'x, P>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.transaction_with(&entry.failed, &mut |tag, answer| entry.note(tag, answer), |transaction| {
            for (tag, path) in entry.begin() {
                transaction.look(tag, path)?;
            }
            let (state, next) = entry.next();
            let written = f(transaction).and_then(|()| transaction.write_display(state, next.0));
            let written = written.and(transaction.settle());
            entry.decide(written)
        })
    }
}
