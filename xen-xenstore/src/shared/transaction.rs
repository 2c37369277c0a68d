//! Transactions of tasks.

use core::fmt;
use core::future::poll_fn;
use core::str::FromStr;
use core::task::Poll;

use xen_hypercall::{Platform, Wait};

use super::SharedStore;
use super::batch::Batch;
use super::state::{Phase, Post, Stage};
use crate::ask::check_path;
use crate::error::Violation;
use crate::link::{Sink, number};
use crate::nodes::{optional, parse, text};
use crate::text::Text;
use crate::wire::Operation;
use crate::xenbus::Entry;
use crate::{Changes, Error};

/// How often a transaction that clashes is run again.
pub(super) const TRIES: usize = 64;

/// A transaction that a task puts together: [`Client::transaction`](super::Client::transaction) begins and ends it.
///
/// As with a [`Transaction`](crate::Transaction) of who blocks, the answers to changes are not waited for, and a refused one makes all
/// that follows fail. When it is dropped it comes to nothing.
pub struct Transaction<'s, 'x, P: Platform + Wait> {
    batch: Batch<'s, 'x, P>,
    id: u32,
    /// The connection that it is of.
    life: u32,
    /// Why it comes to nothing.
    failed: Option<Error>,
    place: Kept<'s, 'x, P>,
}

/// A transaction's place. When it is dropped the transaction is ended by the runner, unless it has ended.
struct Kept<'s, 'x, P: Platform + Wait> {
    store: &'s SharedStore<'x, P>,
    index: usize,
}

impl<P: Platform + Wait> Drop for Kept<'_, '_, P> {
    fn drop(&mut self) {
        let dropped = &self.store.dropped_transactions;
        dropped.set(dropped.get() | 1 << self.index);
        self.store.with(|_| ());
    }
}

impl<P: Platform + Wait> Kept<'_, '_, P> {
    fn set(&self, stage: Stage) {
        self.store.with(|state| {
            let life = state.life();
            if let Some(place) = state.transactions.get_mut(self.index) {
                place.state = stage;
                if stage == Stage::Asked {
                    place.life = life;
                }
            }
        });
    }

    /// The connection that it was asked for in.
    fn life(&self) -> u32 {
        let life = self.store.with(|state| state.transactions.get(self.index).map(|place| place.life));
        life.flatten().unwrap_or_default()
    }
}

impl<'s, 'x, P: Platform + Wait> Transaction<'s, 'x, P> {
    pub(super) async fn begin(store: &'s SharedStore<'x, P>) -> Result<Self, Error> {
        let index = poll_fn(|cx| {
            store.poll(cx, |state, cx| {
                state.check()?;
                let mut places = state.transactions.iter_mut().enumerate();
                match places.find(|(_, place)| state.phase == Phase::Up && place.state == Stage::Free) {
                    Some((index, place)) => {
                        place.state = Stage::Taken;
                        Poll::Ready(Ok(index))
                    }
                    None => {
                        state.room.register(cx.waker());
                        Poll::Pending
                    }
                }
            })
        });
        let place = Kept { store, index: index.await? };
        let mut begun = Self { batch: Batch::new(store), id: 0, life: 0, failed: None, place };
        let (operation, tag) = (Operation::TRANSACTION_START, begun.place.index);
        let mut answered = Err(Error::TimedOut(operation));
        let sink: &mut Sink<'_> = &mut |_, answer| answered = answer.map(number);
        let post = Post { operation, transaction: None, parts: &[b"\0"], tag };
        poll_fn(|cx| {
            let polled = begun.batch.poll_post(cx, &post, sink);
            if let Poll::Ready(Ok(())) = polled {
                begun.place.set(Stage::Asked);
            }
            polled
        })
        .await?;
        let settled = begun.batch.settle(sink).await;
        match settled.and(answered) {
            Ok(Some(id)) => {
                begun.place.set(Stage::Open(id));
                begun.id = id;
                begun.life = begun.place.life();
                Ok(begun)
            }
            other => {
                begun.place.set(Stage::Taken);
                Err(other.err().unwrap_or_else(|| {
                    let error = Error::Broken(Violation::Malformed);
                    store.with(|state| state.distrust(error));
                    error
                }))
            }
        }
    }

    /// Ends it. Whether it is to be run again is an error, too.
    pub(super) async fn end(&mut self, commit: bool) -> Result<(), Error> {
        let parts: &[&[u8]] = if commit { &[b"T\0"] } else { &[b"F\0"] };
        let (operation, transaction) = (Operation::TRANSACTION_END, Some((self.id, self.life)));
        let mut ended = Err(Error::TimedOut(operation));
        let sink: &mut Sink<'_> = &mut |tag, answer| {
            if tag == 1 {
                ended = answer.map(drop);
            }
        };
        let post = Post { operation, transaction, parts, tag: 1 };
        poll_fn(|cx| {
            let polled = self.batch.poll_post(cx, &post, sink);
            if let Poll::Ready(Ok(())) = polled {
                self.place.set(Stage::Closing);
            }
            polled
        })
        .await?;
        self.batch.settle(sink).await?;
        ended
    }

    /// Calls `take` with a node's value as this transaction sees it, and returns what that returns.
    ///
    /// # Errors
    /// As [`Transaction::read`](crate::Transaction::read), and what `take` returns.
    pub async fn read<R>(
        &mut self,
        path: &str,
        take: impl FnOnce(&[u8]) -> Result<R, Error>,
    ) -> Result<R, Error> {
        check_path("", path)?;
        self.settle().await?;
        let transaction = Some((self.id, self.life));
        self.batch.ask(Operation::READ, transaction, &[path.as_bytes(), b"\0"], take).await
    }

    /// A node's value as a number, or whatever else is written as text.
    ///
    /// # Errors
    /// As [`Transaction::read_parsed`](crate::Transaction::read_parsed).
    pub async fn read_parsed<T: FromStr>(&mut self, path: &str) -> Result<T, Error> {
        self.read(path, parse).await
    }

    /// Like [`read_parsed`](Self::read_parsed), for a node that need not exist.
    ///
    /// # Errors
    /// As [`Transaction::read_optional`](crate::Transaction::read_optional).
    pub async fn read_optional<T: FromStr>(&mut self, path: &str) -> Result<Option<T>, Error> {
        optional(self.read_parsed(path).await)
    }

    /// Calls `each` with the name of every node right below a path. A list that is too long for a message is refused with
    /// [`Refusal::TooBig`](crate::wire::Refusal::TooBig).
    ///
    /// # Errors
    /// As [`Transaction::directory`](crate::Transaction::directory).
    pub async fn directory(&mut self, path: &str, mut each: impl FnMut(&str)) -> Result<(), Error> {
        check_path("", path)?;
        self.settle().await?;
        let transaction = Some((self.id, self.life));
        let parts = [path.as_bytes(), b"\0"];
        let list = |list: &[u8]| crate::nodes::tell_names(list, &mut each);
        self.batch.ask(Operation::DIRECTORY, transaction, &parts, list).await
    }

    /// A part of a long directory.
    pub(super) async fn directory_part(
        &mut self,
        path: &str,
        parts: &mut crate::nodes::Parts,
        each: &mut dyn FnMut(&str),
    ) -> Result<bool, Error> {
        check_path("", path)?;
        let offset = parts.offset()?;
        let (transaction, sent) =
            (Some((self.id, self.life)), [path.as_bytes(), b"\0", offset.as_bytes(), b"\0"]);
        self.batch.ask(Operation::DIRECTORY_PART, transaction, &sent, |answer| parts.take(answer, each)).await
    }

    /// Sets a node's value.
    ///
    /// # Errors
    /// As [`Transaction::write`](crate::Transaction::write).
    pub async fn write(&mut self, path: &str, value: &[u8]) -> Result<(), Error> {
        self.change(Operation::WRITE, path, value).await
    }

    /// Sets a node's value to formatted text, of at most 256 bytes.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn write_display(&mut self, path: &str, value: impl fmt::Display) -> Result<(), Error> {
        let text = Text::new(value)?;
        self.write(path, text.as_bytes()).await
    }

    /// Makes an empty node unless it exists.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn mkdir(&mut self, path: &str) -> Result<(), Error> {
        self.change(Operation::MKDIR, path, b"").await
    }

    /// Removes a node and everything below it, as [`Transaction::remove`](crate::Transaction::remove).
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn remove(&mut self, path: &str) -> Result<(), Error> {
        self.change(Operation::RM, path, b"").await
    }

    async fn change(&mut self, operation: Operation, path: &str, value: &[u8]) -> Result<(), Error> {
        check_path("", path)?;
        self.check()?;
        let (transaction, parts) = (Some((self.id, self.life)), [path.as_bytes(), b"\0", value]);
        let post = Post { operation, transaction, parts: &parts, tag: 0 };
        let (batch, failed) = (&mut self.batch, &mut self.failed);
        let posted = poll_fn(|cx| batch.poll_post(cx, &post, &mut |_, answer| note(failed, answer))).await;
        match posted {
            // It was not sent.
            Err(Error::TooLong) => return posted,
            Err(error) => note(&mut self.failed, Err(error)),
            Ok(()) => {}
        }
        self.check()
    }

    /// Waits for the answers to all changes.
    pub(super) async fn settle(&mut self) -> Result<(), Error> {
        let failed = &mut self.failed;
        let settled = self.batch.settle(&mut |_, answer| note(failed, answer)).await;
        if let Err(error) = settled {
            note(&mut self.failed, Err(error));
        }
        self.check()
    }

    fn check(&self) -> Result<(), Error> {
        self.failed.map_or(Ok(()), Err)
    }

    /// Looks at what an entry wants to know, and sends its changes. `f` is run again, and passes over what is sent, when there was no
    /// room for all of it.
    pub(super) async fn enter(
        &mut self,
        entry: &Entry<'_>,
        f: &mut dyn FnMut(&mut Changes<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let transaction = Some((self.id, self.life));
        let sink: &mut Sink<'_> = &mut |tag, answer| entry.note(tag, answer);
        for (tag, path) in entry.begin() {
            let parts = [path.as_bytes(), b"\0"];
            let post = Post { operation: Operation::READ, transaction, parts: &parts, tag };
            poll_fn(|cx| self.batch.poll_post(cx, &post, sink)).await?;
        }
        let mut sent = 0;
        let written = loop {
            let (mut nth, mut is_full) = (0, false);
            let batch = &mut self.batch;
            let written = poll_fn(|cx| {
                (nth, is_full) = (0, false);
                let written = f(&mut Changes::new(&mut |operation, path, value| {
                    check_path("", path)?;
                    nth += 1;
                    if nth <= sent {
                        return Ok(());
                    }
                    entry.failed.get().map_or(Ok(()), Err)?;
                    let parts = [path.as_bytes(), b"\0", value];
                    let post = Post { operation, transaction, parts: &parts, tag: 0 };
                    match if is_full { Poll::Pending } else { batch.poll_post(cx, &post, sink) } {
                        Poll::Ready(Ok(())) => {
                            sent = nth;
                            Ok(())
                        }
                        Poll::Ready(Err(error)) => Err(error),
                        Poll::Pending => {
                            is_full = true;
                            Err(Error::NotReady)
                        }
                    }
                }));
                Poll::Ready(written)
            })
            .await;
            if !is_full {
                break written;
            }
            self.batch.wait_for_room(sink).await?;
        };
        let (path, next) = entry.next();
        let value = Text::new(next.0)?;
        let mut written = written.and(entry.failed.get().map_or(Ok(()), Err));
        if written.is_ok() {
            let parts = [path.as_bytes(), b"\0", value.as_bytes()];
            let post = Post { operation: Operation::WRITE, transaction, parts: &parts, tag: 0 };
            written = poll_fn(|cx| self.batch.poll_post(cx, &post, sink)).await;
        }
        let settled = self.batch.settle(sink).await;
        entry.decide(written.and(settled).and(entry.failed.get().map_or(Ok(()), Err)))
    }

    /// A value as text, for who reads.
    pub async fn read_str<R>(
        &mut self,
        path: &str,
        take: impl FnOnce(&str) -> Result<R, Error>,
    ) -> Result<R, Error> {
        self.read(path, |value| take(text(value)?)).await
    }
}

fn note(failed: &mut Option<Error>, answer: Result<&[u8], Error>) {
    if let (None, Err(error)) = (&failed, answer) {
        *failed = Some(error);
    }
}

impl<P: Platform + Wait> fmt::Debug for Transaction<'_, '_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").field("id", &self.id).finish_non_exhaustive()
    }
}
