//! Asking: one question, or several whose answers come together.

use xen_evtchn::Deadline;
use xen_hypercall::{Platform, Wait};

use crate::error::Violation;
use crate::link::Sink;
use crate::question::Rest;
use crate::text::Text;
use crate::watch::Token;
use crate::wire::{ABS_PATH_MAX, Operation, PAYLOAD_MAX, REL_PATH_MAX};
use crate::{Error, Question, Xenstore, path};

impl<P: Platform + Wait> Xenstore<'_, P> {
    pub(crate) fn answered(&self, len: usize) -> &[u8] {
        self.link.answered(len)
    }

    /// An answer that makes no sense: whoever gives it is not to be believed again.
    pub(crate) fn malformed(&mut self) -> Error {
        let error = Error::Broken(Violation::Malformed);
        self.link.fail(error);
        error
    }

    /// Asks a question whose payload is a path, its zero byte, and `rest`.
    pub(crate) fn ask_path(
        &mut self,
        operation: Operation,
        transaction: u32,
        path: &str,
        rest: [&[u8]; 2],
    ) -> Result<usize, Error> {
        check_path("", path)?;
        self.ask(operation, transaction, &[path.as_bytes(), b"\0", rest[0], rest[1]])
    }

    /// Asks, and waits for the answer, whose length it tells.
    pub(crate) fn ask(
        &mut self,
        operation: Operation,
        transaction: u32,
        parts: &[&[u8]],
    ) -> Result<usize, Error> {
        let mut outcome = Err(Error::TimedOut(operation));
        let sink: &mut Sink<'_> = &mut |_, answer| outcome = answer.map(<[u8]>::len);
        self.link.give_up();
        self.post(operation, transaction, parts, 0, sink)?;
        self.settle(sink)?;
        outcome
    }

    /// Sends a question, and does not wait for its answer: `sink` gets it with the question's `tag`, in this call or the
    /// next ones, of which [`settle`](Self::settle) is the last. After an error nothing is waited for any more.
    pub(crate) fn post(
        &mut self,
        operation: Operation,
        transaction: u32,
        parts: &[&[u8]],
        tag: usize,
        sink: &mut Sink<'_>,
    ) -> Result<(), Error> {
        if parts.iter().map(|part| part.len()).sum::<usize>() > PAYLOAD_MAX {
            return Err(Error::TooLong);
        }
        self.link.poll(sink)?;
        let mut deadline = self.deadline();
        if self.link.open() == 0 {
            self.tidy_up(operation, &mut deadline)?;
        }
        while !self.link.has_place() {
            if !self.link.wait(&mut deadline, sink)? {
                self.link.give_up();
                return Err(Error::TimedOut(operation));
            }
        }
        self.link.send(operation, transaction, parts, &mut deadline, sink)?;
        self.link.stats.requests += 1;
        self.link.expect(operation, tag);
        Ok(())
    }

    /// [Posts](Self::post) a question of a conversation.
    #[inline(never)]
    pub(crate) fn post_question(
        &mut self,
        question: &Question<'_>,
        tag: usize,
        sink: &mut Sink<'_>,
    ) -> Result<(), Error> {
        match (question.rest, question.path()) {
            // Nobody else asks with a token.
            (Rest::Token(watch), _) => self.post_watch(watch, question.name, tag, sink),
            (Rest::Bytes(rest), Ok([directory, slash, name, zero])) => {
                self.post(question.operation, 0, &[directory, slash, name, zero, rest], tag, sink)
            }
            (_, Err(error)) => {
                sink(tag, Err(error));
                Ok(())
            }
        }
    }

    /// Waits until every question is answered. None may take longer than the patience after the one before.
    pub(crate) fn settle(&mut self, sink: &mut Sink<'_>) -> Result<(), Error> {
        self.link.announce()?;
        self.link.poll(sink)?;
        while let Some(operation) = self.link.oldest() {
            let (mut deadline, open) = (self.deadline(), self.link.open());
            while self.link.open() == open {
                if !self.link.wait(&mut deadline, sink)? {
                    self.link.give_up();
                    return Err(Error::TimedOut(operation));
                }
            }
        }
        Ok(())
    }

    /// Ends what questions that were given up have left, or may have left, at the daemon: it handles messages in their order.
    /// Whether it can does not matter, those answers are stray ones.
    pub(crate) fn tidy_up(&mut self, operation: Operation, deadline: &mut Deadline) -> Result<(), Error> {
        self.link.send_rest(operation, deadline)?;
        while let Some(orphan) = self.link.orphan() {
            self.link.send_rest(operation, deadline)?;
            self.order(Operation::TRANSACTION_END, orphan, &[b"F\0"], deadline)?;
            self.link.change_orphan(orphan, 0);
        }
        while let Some((watch, path)) = self.link.watches.given_up() {
            self.link.send_rest(operation, deadline)?;
            let token = Text::new(Token(watch))?;
            let parts = [path.as_bytes(), b"\0", token.as_bytes(), b"\0"];
            self.order(Operation::UNWATCH, 0, &parts, deadline)?;
            self.link.watches.free(watch.slot);
        }
        self.link.send_rest(operation, deadline)?;
        self.link.announce()
    }

    /// Sends what needs no answer. A message of which a part is in the ring is as good as sent.
    fn order(
        &mut self,
        operation: Operation,
        transaction: u32,
        parts: &[&[u8]],
        deadline: &mut Deadline,
    ) -> Result<(), Error> {
        match self.link.send(operation, transaction, parts, deadline, &mut |_, _| ()) {
            Err(Error::TimedOut(_)) if self.link.is_cut_off() => Ok(()),
            other => other,
        }
    }
}

/// Whether `name`, or `name` below a directory that is not empty, is a path that can be asked for.
pub(crate) fn check_path(directory: &str, name: &str) -> Result<(), Error> {
    let below = !directory.is_empty();
    let is_absolute = if below { directory } else { name }.starts_with('/');
    let max = if is_absolute { ABS_PATH_MAX } else { REL_PATH_MAX };
    let is_valid = path::is_valid(name) && !(below && (name.starts_with('/') || !path::is_valid(directory)));
    if is_valid && directory.len() + 1 + name.len() <= max { Ok(()) } else { Err(Error::BadPath) }
}
