//! Several changes that happen together or not at all.

use core::cell::Cell;
use core::fmt;
use core::str::FromStr;

use xen_hypercall::{DomId, Platform, Wait};

use crate::ask::check_path;
use crate::link::{Sink, number};
use crate::nodes::{optional, parse, text};
use crate::text::Text;
use crate::wire::Operation;
use crate::{Error, Xenstore};

/// How often a transaction that clashes is run again.
const TRIES: usize = 64;

/// A transaction that is being put together; [`Xenstore::transaction`] begins and ends it.
///
/// What changes something ([`write`](Self::write), [`write_display`](Self::write_display), [`mkdir`](Self::mkdir),
/// [`remove`](Self::remove), [`set_permissions`](Self::set_permissions)) is sent, and its answer is not waited for, so that
/// any number of changes takes hardly longer than one. These calls return at once only what is wrong with the call itself:
/// [`Error::BadPath`], [`Error::TooLong`]. The answers are there when the transaction reads something or ends. If a
/// change was refused, the transaction comes to nothing: the next call on it that finds out returns the first refusal, so do
/// all after it, and so does [`Xenstore::transaction`] if the closure passes over it; an error of the closure's own comes first.
pub struct Transaction<'s, 'x, P: Platform> {
    store: &'s mut Xenstore<'x, P>,
    id: u32,
    /// Why it comes to nothing.
    failed: &'s Cell<Option<Error>>,
    /// Keeps the first refusal there, and takes what else was asked for.
    sink: &'s mut Sink<'s>,
}

impl<'x, P: Platform + Wait> Xenstore<'x, P> {
    /// Runs `f` as a transaction: others see all that it changes or nothing. When it clashed with another change,
    /// it is run again, at most 64 times.
    ///
    /// # Errors
    /// What `f` returns, or the first refusal of a change when `f` succeeds, and nothing is changed then;
    /// [`Error::Contended`] when it clashed every time;
    /// [`Error::TimedOut`] with [`Operation::TRANSACTION_END`] when it is not known whether it happened.
    pub fn transaction<R>(
        &mut self,
        f: impl FnMut(&mut Transaction<'_, 'x, P>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let failed = Cell::new(None);
        self.transaction_with(&failed, &mut |_, answer| note(&failed, answer), f)
    }

    /// The same, with [looks](Transaction::look). `sink` [notes](note) in `failed` what has the tag 0.
    pub(crate) fn transaction_with<R>(
        &mut self,
        failed: &Cell<Option<Error>>,
        sink: &mut Sink<'_>,
        mut f: impl FnMut(&mut Transaction<'_, 'x, P>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        for _ in 0..TRIES {
            let id = self.begin()?;
            failed.set(None);
            let mut transaction = Transaction { store: self, id, failed, sink: &mut *sink };
            let result = f(&mut transaction);
            let settled = transaction.settle();
            let result = result.and_then(|value| settled.map(|()| value));
            match (self.end(id, result.is_ok()), result) {
                (Err(error), Ok(_)) if error.is_again() => {}
                (Err(error), Ok(_)) => return Err(error),
                // A read that clashed may have failed for no other reason.
                (_, Err(error)) if error.is_again() => {}
                (_, result) => return result,
            }
        }
        Err(Error::Contended)
    }

    pub(crate) fn begin(&mut self) -> Result<u32, Error> {
        let len = self.ask(Operation::TRANSACTION_START, 0, &[b"\0"])?;
        match number(self.answered(len)) {
            Some(id) => Ok(id),
            None => Err(self.malformed()),
        }
    }

    pub(crate) fn end(&mut self, id: u32, commit: bool) -> Result<(), Error> {
        let ended = self.ask(Operation::TRANSACTION_END, id, &[if commit { b"T\0" } else { b"F\0" }]);
        if let Err(Error::TimedOut(_)) = ended {
            // There may have been no room for the question, and it is open still.
            self.link.change_orphan(0, id);
        }
        ended.map(drop)
    }
}

impl<'s, 'x, P: Platform + Wait> Transaction<'s, 'x, P> {
    /// A node's value as this transaction sees it.
    ///
    /// # Errors
    /// As [`Xenstore::read`], or why the transaction comes to nothing.
    pub fn read(&mut self, path: &str) -> Result<&[u8], Error> {
        self.settle()?;
        self.store.read_in(self.id, path)
    }

    /// A node's value as text.
    ///
    /// # Errors
    /// As [`Xenstore::read_str`].
    pub fn read_str(&mut self, path: &str) -> Result<&str, Error> {
        text(self.read(path)?)
    }

    /// A node's value as a number, or whatever else is written as text.
    ///
    /// # Errors
    /// As [`Xenstore::read_parsed`].
    pub fn read_parsed<T: FromStr>(&mut self, path: &str) -> Result<T, Error> {
        parse(self.read(path)?)
    }

    /// Like [`read_parsed`](Self::read_parsed), for a node that need not exist.
    ///
    /// # Errors
    /// As [`Xenstore::read_optional`].
    pub fn read_optional<T: FromStr>(&mut self, path: &str) -> Result<Option<T>, Error> {
        optional(self.read_parsed(path))
    }

    /// Sets a node's value.
    ///
    /// # Errors
    /// What is wrong with the path or the value, or why the transaction comes to nothing. A refusal is told
    /// [later](Transaction).
    pub fn write(&mut self, path: &str, value: &[u8]) -> Result<(), Error> {
        self.change(Operation::WRITE, path, [value, b""])
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
        self.change(Operation::MKDIR, path, [b"", b""])
    }

    /// Removes a node and everything below it. One that does not exist is removed well while the one above it exists;
    /// otherwise the transaction comes to nothing.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn remove(&mut self, path: &str) -> Result<(), Error> {
        self.change(Operation::RM, path, [b"", b""])
    }

    /// Calls `each` with the name of every node right below a path.
    ///
    /// # Errors
    /// As [`Xenstore::directory`].
    pub fn directory(&mut self, path: &str, mut each: impl FnMut(&str)) -> Result<(), Error> {
        self.settle()?;
        self.store.directory_in(self.id, path, &mut each)
    }

    /// Calls `each` with a domain and the letter of what it may do.
    ///
    /// # Errors
    /// As [`Xenstore::permissions`].
    pub fn permissions(&mut self, path: &str, mut each: impl FnMut(DomId, char)) -> Result<(), Error> {
        self.settle()?;
        self.store.permissions_in(self.id, path, &mut each)
    }

    /// Says who may do what with a node, as [`Xenstore::set_permissions`].
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn set_permissions(&mut self, path: &str, list: &str) -> Result<(), Error> {
        self.change(Operation::SET_PERMS, path, [list.as_bytes(), b"\0"])
    }

    /// Asks for a node's value, and does not wait for it: so it takes no time of its own beside changes. The answer is there after
    /// [`settle`](Self::settle), with the tag, which is not 0.
    pub(crate) fn look(&mut self, tag: usize, path: &str) -> Result<(), Error> {
        self.store.post(Operation::READ, self.id, &[path.as_bytes(), b"\0"], tag, self.sink)
    }

    /// Sends a change.
    pub(crate) fn change(&mut self, operation: Operation, path: &str, rest: [&[u8]; 2]) -> Result<(), Error> {
        self.check()?;
        check_path("", path)?;
        let parts = [path.as_bytes(), b"\0", rest[0], rest[1]];
        match self.store.post(operation, self.id, &parts, 0, self.sink) {
            Ok(()) => Ok(()),
            // It was not sent.
            Err(Error::TooLong) => Err(Error::TooLong),
            Err(error) => {
                note(self.failed, Err(error));
                self.check()
            }
        }
    }

    /// Waits for the answers to all changes and looks.
    pub(crate) fn settle(&mut self) -> Result<(), Error> {
        if let Err(error) = self.store.settle(self.sink) {
            note(self.failed, Err(error));
        }
        self.check()
    }

    fn check(&self) -> Result<(), Error> {
        self.failed.get().map_or(Ok(()), Err)
    }
}

/// Keeps the first refusal of a change.
#[inline(never)]
pub(crate) fn note(failed: &Cell<Option<Error>>, answer: Result<&[u8], Error>) {
    if let (None, Err(error)) = (failed.get(), answer) {
        failed.set(Some(error));
    }
}

impl<P: Platform> fmt::Debug for Transaction<'_, '_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").field("id", &self.id).finish_non_exhaustive()
    }
}
