//! Conversations with xenstore that are written once, for those who wait by blocking and for tasks.

use core::fmt;
use core::str::FromStr;

use crate::ask::check_path;
use crate::nodes::{optional, parse};
use crate::text::Text;
use crate::watch::Token;
use crate::wire::Operation;
use crate::{Error, Watch};

pub(crate) use sealed::Primitives;

/// Who asks xenstore in a conversation: one that [blocks](crate::Blocking), or a task.
///
/// A conversation that is written with this trait, such as a device's handshake, runs either way. It is `async`; by a
/// [`Blocking`](crate::Blocking) none of its futures is ever pending.
///
/// Nobody else implements the trait.
#[allow(async_fn_in_trait, reason = "the trait is sealed, and its futures are for one vCPU")]
pub trait Ask: Primitives {
    /// Asks several questions at once, which takes hardly longer than to ask one. `each` is called with a question's place and its
    /// answer, once for each question, as the answers come.
    ///
    /// # Errors
    /// Each question has its own, as the methods of [`Xenstore`](crate::Xenstore) that ask the same, and [`Error::BadPath`]. One that is
    /// returned ends all: `each` has seen a part of the questions then.
    async fn together<'q>(
        &mut self,
        questions: impl IntoIterator<Item = Question<'q>>,
        mut each: impl FnMut(usize, Result<&[u8], Error>),
    ) -> Result<(), Error> {
        self.ask_all(&mut questions.into_iter(), &mut each).await
    }

    /// The values of several nodes below a directory, as [`Xenstore::read_all`](crate::Xenstore::read_all).
    ///
    /// # Errors
    /// As [`Xenstore::read_all`](crate::Xenstore::read_all).
    async fn read_all<T: FromStr, const N: usize>(
        &mut self,
        directory: &str,
        names: [&str; N],
    ) -> Result<[Result<T, Error>; N], Error> {
        let mut values = core::array::from_fn(|_| Err(Error::TimedOut(Operation::READ)));
        let mut sink = |index: usize, value: Result<&[u8], Error>| {
            if let Some(place) = values.get_mut(index) {
                *place = value.and_then(parse);
            }
        };
        self.ask_all(&mut names.iter().map(|name| Question::read(directory, name)), &mut sink).await?;
        Ok(values)
    }

    /// A node's value as a number, or whatever else is written as text.
    ///
    /// # Errors
    /// As [`Xenstore::read_parsed`](crate::Xenstore::read_parsed).
    async fn read_parsed<T: FromStr>(&mut self, path: &str) -> Result<T, Error> {
        let mut value = Err(Error::TimedOut(Operation::READ));
        let mut questions = core::iter::once(Question::read("", path));
        self.ask_all(&mut questions, &mut |_, answer| value = answer.and_then(parse)).await?;
        value
    }

    /// Like [`read_parsed`](Self::read_parsed), for a node that need not exist.
    ///
    /// # Errors
    /// As [`Xenstore::read_optional`](crate::Xenstore::read_optional).
    async fn read_optional<T: FromStr>(&mut self, path: &str) -> Result<Option<T>, Error> {
        optional(self.read_parsed(path).await)
    }

    /// Asks one question whose answer says no more than that it was done: a [write](Question::write), or a
    /// [removal](Question::remove).
    ///
    /// # Errors
    /// As the methods of [`Xenstore`](crate::Xenstore) that ask the same.
    async fn order(&mut self, question: Question<'_>) -> Result<(), Error> {
        let mut done = Err(Error::TimedOut(question.operation));
        let mut questions = core::iter::once(question);
        self.ask_all(&mut questions, &mut |_, answer| done = answer.map(drop)).await?;
        done
    }

    /// Begins to watch several nodes at once, as [`Xenstore::watch_all`](crate::Xenstore::watch_all).
    ///
    /// # Errors
    /// As [`Xenstore::watch_all`](crate::Xenstore::watch_all).
    async fn watch_all<const N: usize>(
        &mut self,
        paths: [&str; N],
    ) -> Result<[Result<Watch, Error>; N], Error> {
        let mut watches = [Err(Error::TooManyWatches); N];
        for (path, place) in paths.iter().zip(&mut watches) {
            *place = self.take_place(path).await;
        }
        let mut answers = [Ok(()); N];
        let taken = watches;
        let mut questions = paths.iter().zip(&taken).filter_map(|(path, taken)| {
            let watch = (*taken).ok()?;
            Some(Question::watch(watch, path))
        });
        let mut places = taken.iter().enumerate().filter(|(_, taken)| taken.is_ok()).map(|(place, _)| place);
        // The answers are told by the place among those that were asked.
        let mut asked_at = [usize::MAX; N];
        asked_at.fill_with(|| places.next().unwrap_or(usize::MAX));
        let asked = self
            .ask_all(&mut questions, &mut |index, answer| {
                let place = asked_at.get(index).and_then(|place| answers.get_mut(*place));
                if let Some(place) = place {
                    *place = answer.map(drop);
                }
            })
            .await;
        for (place, answer) in watches.iter_mut().zip(answers) {
            if let (Ok(watch), Err(error)) = (*place, asked.and(answer)) {
                self.give_watch_up(watch, error);
                *place = Err(error);
            }
        }
        asked.map(|()| watches)
    }

    /// Begins to watch a node and all below it, as [`Xenstore::watch`](crate::Xenstore::watch).
    ///
    /// # Errors
    /// As [`Xenstore::watch`](crate::Xenstore::watch).
    async fn watch(&mut self, path: &str) -> Result<Watch, Error> {
        let [watch] = self.watch_all([path]).await?;
        watch
    }

    /// Ends a watch, as [`Xenstore::unwatch`](crate::Xenstore::unwatch).
    ///
    /// # Errors
    /// As [`Xenstore::unwatch`](crate::Xenstore::unwatch).
    async fn unwatch(&mut self, watch: Watch) -> Result<(), Error> {
        self.end_watch(watch).await
    }

    /// Returns whether a watch fired since the last call for it, as [`Xenstore::fired`](crate::Xenstore::fired).
    ///
    /// # Errors
    /// As [`Xenstore::fired`](crate::Xenstore::fired).
    fn fired(&mut self, watch: &Watch) -> Result<bool, Error> {
        self.has_fired(*watch)
    }

    /// Waits until a watch fires, or the time is up of who asks. Returns whether it fired in time. A task has no such time.
    ///
    /// # Errors
    /// As [`Xenstore::fired`](crate::Xenstore::fired).
    async fn wait_fired(&mut self, watch: &Watch) -> Result<bool, Error> {
        self.wait_event(*watch, None).await
    }
}

impl<A: Primitives> Ask for A {}

/// A question to xenstore, for [`Ask::together`].
#[derive(Clone, Copy, Debug)]
pub struct Question<'q> {
    pub(crate) operation: Operation,
    directory: &'q str,
    name: &'q str,
    rest: Rest<'q>,
}

/// What comes behind the path and its zero byte.
#[derive(Clone, Copy, Debug)]
enum Rest<'q> {
    Bytes(&'q [u8]),
    Token(Watch),
}

impl<'q> Question<'q> {
    fn new(operation: Operation, path: &'q str, rest: &'q [u8]) -> Self {
        Self { operation, directory: "", name: path, rest: Rest::Bytes(rest) }
    }

    /// What is the value of a node below a directory, or of a path if that is empty?
    pub fn read(directory: &'q str, name: &'q str) -> Self {
        Self { directory, ..Self::new(Operation::READ, name, b"") }
    }

    /// What is right below a path? The answer is a list of [`names`](crate::names). One that is too long for a message is refused
    /// with [`Refusal::TooBig`](crate::wire::Refusal::TooBig).
    pub fn directory(path: &'q str) -> Self {
        Self::new(Operation::DIRECTORY, path, b"")
    }

    /// Sets a node's value, as [`Xenstore::write`](crate::Xenstore::write).
    pub fn write(path: &'q str, value: &'q [u8]) -> Self {
        Self::new(Operation::WRITE, path, value)
    }

    /// Makes an empty node unless it exists.
    pub fn mkdir(path: &'q str) -> Self {
        Self::new(Operation::MKDIR, path, b"")
    }

    /// Removes a node and everything below it, as [`Xenstore::remove`](crate::Xenstore::remove).
    pub fn remove(path: &'q str) -> Self {
        Self::new(Operation::RM, path, b"")
    }

    /// Sets a watch that has its place.
    pub(crate) fn watch(watch: Watch, path: &'q str) -> Self {
        Self { rest: Rest::Token(watch), ..Self::new(Operation::WATCH, path, b"") }
    }

    /// Calls `ask` with the parts of the message, unless the path is none.
    #[inline(never)]
    pub(crate) fn put(
        &self,
        ask: &mut dyn FnMut(Operation, &[&[u8]]) -> Result<(), Error>,
    ) -> Result<Result<(), Error>, Error> {
        let Self { operation, directory, name, rest } = *self;
        if let Err(error) = check_path(directory, name) {
            return Ok(Err(error));
        }
        let slash: &[u8] = if directory.is_empty() || directory == "/" { b"" } else { b"/" };
        let token;
        let rest: [&[u8]; 2] = match rest {
            Rest::Bytes(bytes) => [bytes, b""],
            Rest::Token(watch) => {
                token = Text::new(Token(watch))?;
                [token.as_bytes(), b"\0"]
            }
        };
        let parts = [directory.as_bytes(), slash, name.as_bytes(), b"\0", rest[0], rest[1]];
        ask(operation, &parts).map(Ok)
    }
}

/// Changes of a transaction, for [`Frontend::publish_async`](crate::xenbus::Frontend::publish_async).
///
/// Each is sent, and its answer is not waited for, as with a [`Transaction`](crate::Transaction).
pub struct Changes<'c> {
    post: &'c mut Post<'c>,
}

/// Sends a change: its operation, path and value.
pub(crate) type Post<'c> = dyn FnMut(Operation, &str, &[u8]) -> Result<(), Error> + 'c;

impl<'c> Changes<'c> {
    pub(crate) fn new(post: &'c mut Post<'c>) -> Self {
        Self { post }
    }

    /// Sets a node's value.
    ///
    /// # Errors
    /// As [`Transaction::write`](crate::Transaction::write).
    pub fn write(&mut self, path: &str, value: &[u8]) -> Result<(), Error> {
        (self.post)(Operation::WRITE, path, value)
    }

    /// Sets a node's value to formatted text, of at most 256 bytes.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_display(&mut self, path: &str, value: impl fmt::Display) -> Result<(), Error> {
        let text = Text::new(value)?;
        self.write(path, text.as_bytes())
    }

    /// Makes an empty node unless it exists.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn mkdir(&mut self, path: &str) -> Result<(), Error> {
        (self.post)(Operation::MKDIR, path, b"")
    }

    /// Removes a node and everything below it, as [`Transaction::remove`](crate::Transaction::remove).
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn remove(&mut self, path: &str) -> Result<(), Error> {
        (self.post)(Operation::RM, path, b"")
    }
}

impl fmt::Debug for Changes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Changes")
    }
}

/// What an asker has to be able to do. Its name is nobody's, so that nobody else is one.
#[allow(unreachable_pub, reason = "public in name alone, for the public trait")]
mod sealed {
    use core::time::Duration;

    use super::{Changes, Question};
    use crate::link::Sink;
    use crate::xenbus::Entry;
    use crate::{Error, Watch};

    #[allow(async_fn_in_trait, reason = "the trait is sealed, and its futures are for one vCPU")]
    pub trait Primitives {
        /// The end of a wait that ends by itself, without an end of the conversation.
        type Notice;

        /// Asks all questions, and gives `sink` each answer with the question's place.
        async fn ask_all<'q>(
            &mut self,
            questions: &mut dyn Iterator<Item = Question<'q>>,
            sink: &mut Sink<'_>,
        ) -> Result<(), Error>;

        /// Changes something together with our state in a device's directory, if the device is still ours. `f` may run more than
        /// once, and does the same each time.
        async fn transact(
            &mut self,
            entry: &Entry<'_>,
            f: &mut dyn FnMut(&mut Changes<'_>) -> Result<(), Error>,
        ) -> Result<(), Error>;

        /// A place for a watch, which the daemon does not know of yet.
        async fn take_place(&mut self, path: &str) -> Result<Watch, Error>;

        /// Gives a watch up that was not set. Whether the daemon knows it is not known after a question that was not answered.
        fn give_watch_up(&mut self, watch: Watch, error: Error);

        async fn end_watch(&mut self, watch: Watch) -> Result<(), Error>;

        /// Ends a watch that nobody waits for the end of.
        fn drop_watch(&mut self, watch: Watch);

        /// Takes in what arrived, as far as that is for who asks to do.
        fn look(&mut self) -> Result<(), Error>;

        fn has_fired(&mut self, watch: Watch) -> Result<bool, Error>;

        /// Changes with each event of a watch.
        fn events(&mut self, watch: Watch) -> u32;

        /// Lets a watch be as if it had fired.
        fn mark(&mut self, watch: Watch);

        /// Waits for an event of a watch. Returns false when the time is up, that of the conversation or that of `notice`.
        async fn wait_event(
            &mut self,
            watch: Watch,
            notice: Option<&mut Self::Notice>,
        ) -> Result<bool, Error>;

        /// Goes on with a conversation that others may have been held before.
        fn resume(&mut self);

        /// A time from now on, within that of the conversation.
        fn notice(&mut self, time: Duration) -> Self::Notice;

        /// That time is over. Returns whether the conversation has time left.
        fn noticed(&mut self, notice: Self::Notice) -> bool;
    }
}
