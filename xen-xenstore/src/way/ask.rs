//! The trait by which a conversation asks, compiled for either way.

use core::str::FromStr;

use super::{run, task, wait};
use crate::nodes::{optional, parse};
use crate::wire::Operation;
use crate::{Error, Question, Watch};

pub(crate) use sealed::Primitives;

/// A connection as a conversation uses it: the questions of several round trips, and watches. The trait is sealed.
pub trait Ask: Primitives {
    /// Asks several questions at once, which takes hardly longer than to ask one. `each` is called with a question's place and its
    /// answer, once for each question, as the answers come.
    ///
    /// # Errors
    /// Each question has its own, as the methods of [`Xenstore`](crate::Xenstore) that ask the same, and [`Error::BadPath`]. One that is
    /// returned ends all: `each` has seen a part of the questions then.
    fn together<'q>(
        &mut self,
        questions: impl IntoIterator<Item = Question<'q>>,
        mut each: impl FnMut(usize, Result<&[u8], Error>),
    ) -> task!(Result<(), Error>) {
        run!({ wait!(self.ask_all(&mut questions.into_iter(), &mut each)) })
    }

    /// The values of several nodes below a directory, as [`Xenstore::read_all`](crate::Xenstore::read_all).
    ///
    /// # Errors
    /// As [`Xenstore::read_all`](crate::Xenstore::read_all).
    fn read_all<T: FromStr, const N: usize>(
        &mut self,
        directory: &str,
        names: [&str; N],
    ) -> task!(Result<[Result<T, Error>; N], Error>) {
        run!({
            let mut values = core::array::from_fn(|_| Err(Error::TimedOut(Operation::READ)));
            let mut sink = |index: usize, value: Result<&[u8], Error>| {
                if let Some(place) = values.get_mut(index) {
                    *place = value.and_then(parse);
                }
            };
            let mut questions = names.iter().map(|name| Question::read(directory, name));
            wait!(self.ask_all(&mut questions, &mut sink))?;
            Ok(values)
        })
    }

    /// A node's value as a number, or whatever else is written as text.
    ///
    /// # Errors
    /// As [`Xenstore::read_parsed`](crate::Xenstore::read_parsed).
    fn read_parsed<T: FromStr>(&mut self, path: &str) -> task!(Result<T, Error>) {
        run!({
            let mut value = Err(Error::TimedOut(Operation::READ));
            let mut questions = core::iter::once(Question::read("", path));
            wait!(self.ask_all(&mut questions, &mut |_, answer| value = answer.and_then(parse)))?;
            value
        })
    }

    /// Like [`read_parsed`](Self::read_parsed), for a node that need not exist.
    ///
    /// # Errors
    /// As [`Xenstore::read_optional`](crate::Xenstore::read_optional).
    fn read_optional<T: FromStr>(&mut self, path: &str) -> task!(Result<Option<T>, Error>) {
        run!({ optional(wait!(self.read_parsed(path))) })
    }

    /// Asks one question whose answer says no more than that it was done: a [write](Question::write), or a
    /// [removal](Question::remove).
    ///
    /// # Errors
    /// As the methods of [`Xenstore`](crate::Xenstore) that ask the same.
    fn order(&mut self, question: Question<'_>) -> task!(Result<(), Error>) {
        run!({
            let mut done = Err(Error::TimedOut(question.operation));
            let mut questions = core::iter::once(question);
            wait!(self.ask_all(&mut questions, &mut |_, answer| done = answer.map(drop)))?;
            done
        })
    }

    /// Begins to watch several nodes at once, as [`Xenstore::watch_all`](crate::Xenstore::watch_all).
    ///
    /// # Errors
    /// As [`Xenstore::watch_all`](crate::Xenstore::watch_all).
    fn watch_all<const N: usize>(
        &mut self,
        paths: [&str; N],
    ) -> task!(Result<[Result<Watch, Error>; N], Error>) {
        run!({
            let mut watches = [Err(Error::TooManyWatches); N];
            let mut answers = [Ok(()); N];
            wait!(self.set_watches(&paths, &mut watches, &mut answers))?;
            Ok(watches)
        })
    }

    /// Begins to watch a node and all below it, as [`Xenstore::watch`](crate::Xenstore::watch).
    ///
    /// # Errors
    /// As [`Xenstore::watch`](crate::Xenstore::watch).
    fn watch(&mut self, path: &str) -> task!(Result<Watch, Error>) {
        run!({
            let [watch] = wait!(self.watch_all([path]))?;
            watch
        })
    }

    /// Ends a watch, as [`Xenstore::unwatch`](crate::Xenstore::unwatch).
    ///
    /// # Errors
    /// As [`Xenstore::unwatch`](crate::Xenstore::unwatch).
    fn unwatch(&mut self, watch: Watch) -> task!(Result<(), Error>) {
        run!({ wait!(self.end_watch(watch)) })
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
    fn wait_fired(&mut self, watch: &Watch) -> task!(Result<bool, Error>) {
        run!({ wait!(self.wait_event(*watch, None)) })
    }
}

impl<A: Primitives> Ask for A {}

/// What an asker has to be able to do. Its name is nobody's, so that nobody else is one.
#[allow(unreachable_pub, reason = "public in name alone, for the public trait")]
mod sealed {
    use core::time::Duration;

    use super::super::task;
    use crate::link::Sink;
    use crate::watches::EachWatch;
    use crate::xenbus::Entry;
    use crate::{Changes, Error, Question, Watch};

    pub trait Primitives {
        /// The end of a wait that ends by itself, without an end of the conversation.
        type Notice;

        /// Asks all questions, and gives `sink` each answer with the question's place.
        fn ask_all(
            &mut self,
            questions: &mut dyn Iterator<Item = Question<'_>>,
            sink: &mut Sink<'_>,
        ) -> task!(Result<(), Error>);

        /// Changes something together with our state in a device's directory, if the device is still ours. `f` may run more than
        /// once, and does the same each time.
        fn transact(
            &mut self,
            entry: &Entry<'_>,
            f: &mut dyn FnMut(&mut Changes<'_>) -> Result<(), Error>,
        ) -> task!(Result<(), Error>);

        /// Begins to watch several nodes. `answers` is room for as many answers.
        fn set_watches(
            &mut self,
            paths: &[&str],
            watches: &mut [Result<Watch, Error>],
            answers: &mut [Result<(), Error>],
        ) -> task!(Result<(), Error>);

        /// A place for a watch, which the daemon does not know of yet.
        fn take_place(&mut self, path: &str) -> task!(Result<Watch, Error>);

        /// Gives a watch up that was not set. Whether the daemon knows it is not known after a question that was not answered.
        fn give_watch_up(&mut self, watch: Watch, error: Error);

        fn end_watch(&mut self, watch: Watch) -> task!(Result<(), Error>);

        /// Ends a watch that nobody waits for the end of.
        fn drop_watch(&mut self, watch: Watch);

        /// Ends a watch if the conversation is dropped.
        fn adopt(&mut self, watch: Watch);

        /// Takes in what arrived, as far as that is for who asks to do.
        fn look(&mut self) -> Result<(), Error>;

        fn has_fired(&mut self, watch: Watch) -> Result<bool, Error>;

        /// Changes with each event of a watch.
        fn events(&mut self, watch: Watch) -> u32;

        /// Lets a watch be as if it had fired.
        fn mark(&mut self, watch: Watch);

        /// Waits for an event of a watch. Returns false when the time is up, that of the conversation or that of `notice`.
        fn wait_event(
            &mut self,
            watch: Watch,
            notice: Option<&mut Self::Notice>,
        ) -> task!(Result<bool, Error>);

        /// Waits until one of several watches has fired, which [`has_fired`](Self::has_fired) tells then. Returns false when the time
        /// is up.
        fn wait_any(&mut self, watches: &EachWatch<'_>) -> task!(Result<bool, Error>);

        /// Goes on with a conversation that others may have been held before.
        fn resume(&mut self);

        /// A time from now on, within that of the conversation.
        fn notice(&mut self, time: Duration) -> Self::Notice;

        /// That time is over. Returns whether the conversation has time left.
        fn noticed(&mut self, notice: Self::Notice) -> bool;
    }
}
