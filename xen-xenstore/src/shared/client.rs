//! The client: the handle by which a task asks xenstore.

use core::fmt;
use core::str::FromStr;

use xen_hypercall::{DomId, Platform, Wait};

use super::batch::Batch;
use super::transaction::TRIES;
use super::{Conversation, SharedStore, ShutdownRequests, Transaction, Watching};
use crate::ask::check_path;
use crate::control::Request;
use crate::nodes::{Parts, parse, tell_names, tell_permissions, text};
use crate::text::Text;
use crate::way::tasks::Ask;
use crate::wire::{Operation, Refusal, strings};
use crate::{Error, Path, Question, Stats};

/// Asks xenstore for a task. Copies are handles to the same [`SharedStore`].
///
/// An error of the connection, such as [`Error::Disconnected`], concerns the question: another one may be answered, as soon as the
/// [`Runner`](super::Runner) has made the connection anew.
pub struct Client<'s, 'x, P: Platform + Wait> {
    store: &'s SharedStore<'x, P>,
}

impl<P: Platform + Wait> Clone for Client<'_, '_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: Platform + Wait> Copy for Client<'_, '_, P> {}

impl<'s, 'x, P: Platform + Wait> Client<'s, 'x, P> {
    pub(super) fn new(store: &'s SharedStore<'x, P>) -> Self {
        Self { store }
    }

    /// Begins a conversation, such as a device's handshake. It asks several questions at once, too.
    pub fn conversation(self) -> Conversation<'s, 'x, P> {
        Conversation::new(self.store)
    }

    /// Calls `take` with a node's value, and returns what that returns.
    ///
    /// # Errors
    /// As [`Xenstore::read`](crate::Xenstore::read), and what `take` returns.
    pub async fn read<R>(self, path: &str, take: impl FnOnce(&[u8]) -> Result<R, Error>) -> Result<R, Error> {
        self.ask_path(Operation::READ, path, b"", take).await
    }

    /// Copies a node's value to the beginning of `buf`, and returns it as text.
    ///
    /// # Errors
    /// As [`Xenstore::read_str`](crate::Xenstore::read_str); [`Error::TooLong`] when it does not fit.
    pub async fn read_str<'b>(self, path: &str, buf: &'b mut [u8]) -> Result<&'b str, Error> {
        let room = &mut *buf;
        let copy = |value: &[u8]| {
            room.get_mut(..value.len()).ok_or(Error::TooLong)?.copy_from_slice(value);
            Ok(value.len())
        };
        let len = self.read(path, copy).await?;
        text(buf.get(..len).unwrap_or_default())
    }

    /// A node's value as a number, or whatever else is written as text.
    ///
    /// # Errors
    /// As [`Xenstore::read_parsed`](crate::Xenstore::read_parsed).
    pub async fn read_parsed<T: FromStr>(self, path: &str) -> Result<T, Error> {
        self.read(path, parse).await
    }

    /// Like [`read_parsed`](Self::read_parsed), for a node that need not exist.
    ///
    /// # Errors
    /// As [`Xenstore::read_optional`](crate::Xenstore::read_optional).
    pub async fn read_optional<T: FromStr>(self, path: &str) -> Result<Option<T>, Error> {
        crate::nodes::optional(self.read_parsed(path).await)
    }

    /// Waits until a node's value is one that `accept` likes, and returns it. A node that does not exist, may not be read, or is no
    /// `T`, is waited for.
    ///
    /// # Errors
    /// As [`Xenstore::wait_for`](crate::Xenstore::wait_for).
    pub async fn wait_for<T: FromStr>(
        self,
        path: &str,
        mut accept: impl FnMut(&T) -> bool,
    ) -> Result<T, Error> {
        let mut watch = self.watch(path).await?;
        loop {
            match self.read_parsed(path).await {
                Ok(value) if accept(&value) => return Ok(value),
                Ok(_) | Err(Error::BadValue | Error::NotText) => {}
                Err(error) if error.is_absent() => {}
                Err(error) => return Err(error),
            }
            watch.changed().await?;
        }
    }

    /// Sets a node's value, as [`Xenstore::write`](crate::Xenstore::write).
    ///
    /// # Errors
    /// As [`Xenstore::write`](crate::Xenstore::write).
    pub async fn write(self, path: &str, value: &[u8]) -> Result<(), Error> {
        self.conversation().order(Question::write(path, value)).await
    }

    /// Sets a node's value to formatted text, of at most 256 bytes.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn write_display(self, path: &str, value: impl fmt::Display) -> Result<(), Error> {
        let text = Text::new(value)?;
        self.write(path, text.as_bytes()).await
    }

    /// Makes an empty node unless it exists.
    ///
    /// # Errors
    /// As [`Xenstore::mkdir`](crate::Xenstore::mkdir).
    pub async fn mkdir(self, path: &str) -> Result<(), Error> {
        self.conversation().order(Question::mkdir(path)).await
    }

    /// Removes a node and everything below it.
    ///
    /// # Errors
    /// As [`Xenstore::remove`](crate::Xenstore::remove).
    pub async fn remove(self, path: &str) -> Result<(), Error> {
        self.conversation().order(Question::remove(path)).await
    }

    /// Calls `each` with the name of every node right below a path, of each one once, however many there are.
    ///
    /// # Errors
    /// As [`Xenstore::directory`](crate::Xenstore::directory).
    pub async fn directory(self, path: &str, mut each: impl FnMut(&str)) -> Result<(), Error> {
        let listed = self.ask_path(Operation::DIRECTORY, path, b"", |list| tell_names(list, &mut each)).await;
        if !matches!(listed, Err(Error::Refused(_, Refusal::TooBig))) {
            return listed;
        }
        let mut transaction = Transaction::begin(self.store).await?;
        let mut parts = Parts::default();
        loop {
            match transaction.directory_part(path, &mut parts, &mut each).await {
                Ok(true) => break,
                Ok(false) => {}
                // The connection was made anew. A part is told already, so that it cannot begin again.
                Err(error) if error.is_again() => return Err(Error::Contended),
                Err(error) => return Err(error),
            }
        }
        // The list is whole, whatever becomes of a transaction that changes nothing.
        let _ = transaction.end(false).await;
        Ok(())
    }

    /// Calls `each` with a domain and the letter of what it may do, as [`Xenstore::permissions`](crate::Xenstore::permissions).
    ///
    /// # Errors
    /// As [`Xenstore::permissions`](crate::Xenstore::permissions).
    pub async fn permissions(self, path: &str, mut each: impl FnMut(DomId, char)) -> Result<(), Error> {
        self.ask_path(Operation::GET_PERMS, path, b"", |list| tell_permissions(list, &mut each)).await
    }

    /// Says who may do what with a node, as [`Xenstore::set_permissions`](crate::Xenstore::set_permissions).
    ///
    /// # Errors
    /// As [`Xenstore::set_permissions`](crate::Xenstore::set_permissions).
    pub async fn set_permissions(self, path: &str, list: &str) -> Result<(), Error> {
        check_path("", path)?;
        let parts = [path.as_bytes(), b"\0", list.as_bytes(), b"\0"];
        Batch::new(self.store).ask(Operation::SET_PERMS, None, &parts, |_| Ok(())).await
    }

    /// The path of a domain's directory, such as `/local/domain/3`.
    ///
    /// # Errors
    /// As [`Xenstore::domain_path`](crate::Xenstore::domain_path).
    pub async fn domain_path(self, domain: DomId) -> Result<Path, Error> {
        let id = Text::new(domain.0)?;
        let take = |path: &[u8]| Path::new(text(strings(path).next().unwrap_or_default())?);
        Batch::new(self.store).ask(Operation::GET_DOMAIN_PATH, None, &[id.as_bytes(), b"\0"], take).await
    }

    /// Begins to watch a node and all below it. The watch ends when it is dropped.
    ///
    /// # Errors
    /// As [`Xenstore::watch`](crate::Xenstore::watch).
    pub async fn watch(self, path: &str) -> Result<Watching<'s, 'x, P>, Error> {
        let mut conversation = self.conversation();
        let watch = conversation.watch(path).await?;
        conversation.leave();
        Ok(Watching::new(self.store, watch))
    }

    /// Runs `f` as a transaction, and again when it clashed, as [`Xenstore::transaction`](crate::Xenstore::transaction); also when the
    /// connection was made anew meanwhile.
    ///
    /// # Errors
    /// As [`Xenstore::transaction`](crate::Xenstore::transaction). After an error of the connection it is not known whether it happened.
    pub async fn transaction<R>(
        self,
        mut f: impl AsyncFnMut(&mut Transaction<'s, 'x, P>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        for _ in 0..TRIES {
            let mut transaction = Transaction::begin(self.store).await?;
            let result = f(&mut transaction).await;
            let settled = transaction.settle().await;
            let result = result.and_then(|value| settled.map(|()| value));
            match (transaction.end(result.is_ok()).await, result) {
                (Err(error), Ok(_)) if error.is_again() => {}
                (Err(error), Ok(_)) => return Err(error),
                // A read that clashed may have failed for no other reason.
                (_, Err(error)) if error.is_again() => {}
                (_, result) => return result,
            }
        }
        Err(Error::Contended)
    }

    /// Begins to watch what the toolstack asks of the domain, and tells it which requests the guest obeys, as a
    /// [`ShutdownWatch`](crate::control::ShutdownWatch) does.
    ///
    /// # Errors
    /// As [`ShutdownWatch::new`](crate::control::ShutdownWatch::new).
    pub async fn shutdown_requests(self, obeys: &[Request]) -> Result<ShutdownRequests<'s, 'x, P>, Error> {
        ShutdownRequests::new(self.store, obeys).await
    }

    /// What passed since the connection was made.
    pub fn stats(self) -> Stats {
        self.store.stats()
    }

    async fn ask_path<R>(
        self,
        operation: Operation,
        path: &str,
        rest: &[u8],
        take: impl FnOnce(&[u8]) -> Result<R, Error>,
    ) -> Result<R, Error> {
        check_path("", path)?;
        Batch::new(self.store).ask(operation, None, &[path.as_bytes(), b"\0", rest], take).await
    }
}

impl<P: Platform + Wait> fmt::Debug for Client<'_, '_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}
