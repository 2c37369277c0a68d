//! A conversation of a task.

use core::fmt;
use core::future::poll_fn;
use core::task::Poll;
use core::time::Duration;

use xen_hypercall::{Platform, Wait};

use super::batch::Batch;
use super::transaction::{TRIES, Transaction};
use super::{Client, SharedStore};
use crate::link::Sink;
use crate::watches::EachWatch;
use crate::way::tasks::Primitives;
use crate::xenbus::Entry;
use crate::{Changes, Error, Path, Question, Watch};

/// Asks xenstore for a task, in a conversation such as a device's handshake: see [`way`](crate::way).
///
/// Watches that are set in it end when it is dropped, those of devices too, unless it is [left](Self::leave). So a
/// handshake that is given up half way leaves nothing behind. A device that is ended in another conversation than the one in which it was
/// opened was left by that one.
pub struct Conversation<'s, 'x, P: Platform + Wait> {
    store: &'s SharedStore<'x, P>,
    /// A bit for each watch.
    watches: u128,
}

impl<'s, 'x, P: Platform + Wait> Conversation<'s, 'x, P> {
    pub(super) fn new(store: &'s SharedStore<'x, P>) -> Self {
        Self { store, watches: 0 }
    }

    /// Ends the conversation, and leaves its watches to who has them: a device that is connected has its own, and ends it when it is
    /// closed.
    pub fn leave(mut self) {
        self.watches = 0;
    }

    /// Leaves the watches that are set to who has them, as [`leave`](Self::leave), and goes on.
    pub fn keep_watches(&mut self) {
        self.watches = 0;
    }

    /// Returns the client of the same connection.
    pub fn client(&self) -> Client<'s, 'x, P> {
        Client::new(self.store)
    }
}

impl<P: Platform + Wait> Drop for Conversation<'_, '_, P> {
    fn drop(&mut self) {
        if self.watches != 0 {
            self.store.drop_watches(self.watches);
        }
    }
}

impl<P: Platform + Wait> Primitives for Conversation<'_, '_, P> {
    /// When it is over.
    type Notice = Duration;

    async fn ask_all(
        &mut self,
        questions: &mut dyn Iterator<Item = Question<'_>>,
        sink: &mut Sink<'_>,
    ) -> Result<(), Error> {
        Batch::new(self.store).ask_all(questions, sink).await
    }

    async fn transact(
        &mut self,
        entry: &Entry<'_>,
        f: &mut dyn FnMut(&mut Changes<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        for _ in 0..TRIES {
            let mut transaction = Transaction::begin(self.store).await?;
            entry.failed.set(None);
            let result = transaction.enter(entry, f).await;
            match (transaction.end(result.is_ok()).await, result) {
                (Err(error), Ok(())) if error.is_again() => {}
                (Err(error), Ok(())) => return Err(error),
                // A look that clashed may have failed for no other reason.
                (_, Err(error)) if error.is_again() => {}
                (_, result) => return result,
            }
        }
        Err(Error::Contended)
    }

    async fn set_watches(
        &mut self,
        paths: &[&str],
        watches: &mut [Result<Watch, Error>],
        answers: &mut [Result<(), Error>],
    ) -> Result<(), Error> {
        // Its own, so that they end if this is dropped.
        let mut setting = Self::new(self.store);
        for (path, place) in paths.iter().zip(&mut *watches) {
            *place = setting.take_place(path).await;
        }
        let taken = &*watches;
        let with_place = || taken.iter().enumerate().filter_map(|(at, taken)| Some((at, (*taken).ok()?)));
        let mut questions =
            with_place().filter_map(|(at, watch)| paths.get(at).map(|path| Question::watch(watch, path)));
        let mut sink = |index: usize, answer: Result<&[u8], Error>| {
            let place = with_place().nth(index).and_then(|(at, _)| answers.get_mut(at));
            if let Some(place) = place {
                *place = answer.map(drop);
            }
        };
        let asked = setting.ask_all(&mut questions, &mut sink).await;
        for (place, answer) in watches.iter_mut().zip(answers) {
            if let (Ok(watch), Err(error)) = (*place, asked.and(*answer)) {
                setting.give_watch_up(watch, error);
                *place = Err(error);
            }
        }
        self.watches |= core::mem::take(&mut setting.watches);
        asked
    }

    async fn take_place(&mut self, path: &str) -> Result<Watch, Error> {
        let path = Path::new(path)?;
        let store = self.store;
        let taken = poll_fn(|cx| {
            store.poll(cx, |state, cx| {
                state.check()?;
                if let Some(watch) = state.xs.link.watches.add(&path) {
                    return Poll::Ready(Ok(watch));
                }
                if !state.xs.link.watches.are_given_up() {
                    return Poll::Ready(Err(Error::TooManyWatches));
                }
                state.room.register(cx.waker());
                Poll::Pending
            })
        });
        let watch = taken.await?;
        self.adopt(watch);
        Ok(watch)
    }

    fn give_watch_up(&mut self, watch: Watch, error: Error) {
        match error {
            Error::Refused(..) => {
                self.watches &= !(1 << watch.slot);
                self.store.with(|state| state.xs.link.watches.remove(watch));
            }
            _ => self.drop_watch(watch),
        }
    }

    async fn end_watch(&mut self, watch: Watch) -> Result<(), Error> {
        self.drop_watch(watch);
        Ok(())
    }

    fn drop_watch(&mut self, watch: Watch) {
        self.watches &= !(1 << watch.slot);
        self.store.with(|state| {
            state.xs.link.watches.give_up(watch);
            state.wake_runner();
        });
    }

    fn adopt(&mut self, watch: Watch) {
        if self.store.with(|state| state.xs.link.watches.is_there(watch)) == Some(true) {
            self.watches |= 1 << watch.slot;
        }
    }

    fn look(&mut self) -> Result<(), Error> {
        self.store.with(|state| state.check()).unwrap_or(Ok(()))
    }

    fn has_fired(&mut self, watch: Watch) -> Result<bool, Error> {
        self.store.with(|state| state.fired(watch)).unwrap_or(Ok(false))
    }

    fn events(&mut self, watch: Watch) -> u32 {
        self.store.with(|state| state.xs.link.watches.events(watch)).unwrap_or_default()
    }

    fn mark(&mut self, watch: Watch) {
        self.store.with(|state| state.xs.link.watches.mark(watch));
    }

    async fn wait_event(&mut self, watch: Watch, notice: Option<&mut Duration>) -> Result<bool, Error> {
        let end = notice.map(|end| *end);
        poll_fn(|cx| {
            self.store.poll(cx, |state, cx| {
                if state.poll_fired(watch, cx.waker())?.is_ready() {
                    return Poll::Ready(Ok(true));
                }
                match end {
                    Some(at) if state.await_time(at, cx.waker()) => Poll::Ready(Ok(false)),
                    _ => Poll::Pending,
                }
            })
        })
        .await
    }

    async fn wait_any(&mut self, watches: &EachWatch<'_>) -> Result<bool, Error> {
        poll_fn(|cx| {
            self.store.poll(cx, |state, cx| {
                state.check()?;
                if state.xs.link.watches.any_fired(watches) {
                    return Poll::Ready(Ok(true));
                }
                watches(&mut |watch| state.xs.link.watches.register(watch, cx.waker()));
                Poll::Pending
            })
        })
        .await
    }

    fn resume(&mut self) {}

    fn notice(&mut self, time: Duration) -> Duration {
        self.store.with(|state| state.xs.now().saturating_add(time)).unwrap_or_default()
    }

    fn noticed(&mut self, _: Duration) -> bool {
        // The end of the conversation is the caller's.
        true
    }
}

impl<P: Platform + Wait> fmt::Debug for Conversation<'_, '_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conversation").field("watches", &self.watches.count_ones()).finish_non_exhaustive()
    }
}
