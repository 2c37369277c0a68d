//! Several changes that happen together or not at all.

use core::fmt;
use core::str::FromStr;

use xen_hypercall::{DomId, Platform, Wait};

use crate::link::number;
use crate::nodes::{optional, parsed, text};
use crate::text::Text;
use crate::wire::Operation;
use crate::{Error, Xenstore};

/// How often a transaction that clashes is run again.
const TRIES: usize = 64;

/// A transaction that is being put together; [`Xenstore::transaction`] begins and ends it.
pub struct Transaction<'s, 'x, P: Platform> {
    store: &'s mut Xenstore<'x, P>,
    id: u32,
}

impl<'x, P: Platform + Wait> Xenstore<'x, P> {
    /// Runs `f` as a transaction: others see all that it changes or nothing. When it clashed with another change,
    /// it is run again, at most 64 times.
    ///
    /// # Errors
    /// What `f` answers, after which nothing is changed; [`Error::Contended`] when it clashed every time;
    /// [`Error::TimedOut`] with [`Operation::TRANSACTION_END`] when it is not known whether it happened.
    pub fn transaction<R>(
        &mut self,
        mut f: impl FnMut(&mut Transaction<'_, 'x, P>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        for _ in 0..TRIES {
            let id = self.begin()?;
            let result = f(&mut Transaction { store: self, id });
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
        self.ask(Operation::TRANSACTION_END, id, &[if commit { b"T\0" } else { b"F\0" }]).map(drop)
    }
}

impl<'s, 'x, P: Platform + Wait> Transaction<'s, 'x, P> {
    /// A node's value as this transaction sees it.
    ///
    /// # Errors
    /// As [`Xenstore::read`].
    pub fn read(&mut self, path: &str) -> Result<&[u8], Error> {
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
        parsed(self.read(path)?)
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
    /// As [`Xenstore::write`].
    pub fn write(&mut self, path: &str, value: &[u8]) -> Result<(), Error> {
        self.store.write_in(self.id, path, value)
    }

    /// Sets a node's value to formatted text, of at most 256 bytes.
    ///
    /// # Errors
    /// As [`Xenstore::write`].
    pub fn write_display(&mut self, path: &str, value: impl fmt::Display) -> Result<(), Error> {
        let text = Text::new(value)?;
        self.write(path, text.as_bytes())
    }

    /// Makes an empty node unless it exists.
    ///
    /// # Errors
    /// As [`Xenstore::mkdir`].
    pub fn mkdir(&mut self, path: &str) -> Result<(), Error> {
        self.store.mkdir_in(self.id, path)
    }

    /// Removes a node and everything below it.
    ///
    /// # Errors
    /// As [`Xenstore::remove`].
    pub fn remove(&mut self, path: &str) -> Result<(), Error> {
        self.store.remove_in(self.id, path)
    }

    /// Calls `each` with the name of every node right below a path.
    ///
    /// # Errors
    /// As [`Xenstore::directory`].
    pub fn directory(&mut self, path: &str, mut each: impl FnMut(&str)) -> Result<(), Error> {
        self.store.directory_in(self.id, path, &mut each)
    }

    /// Calls `each` with a domain and the letter of what it may do.
    ///
    /// # Errors
    /// As [`Xenstore::permissions`].
    pub fn permissions(&mut self, path: &str, mut each: impl FnMut(DomId, char)) -> Result<(), Error> {
        self.store.permissions_in(self.id, path, &mut each)
    }

    /// Says who may do what with a node.
    ///
    /// # Errors
    /// As [`Xenstore::set_permissions`].
    pub fn set_permissions(&mut self, path: &str, list: &str) -> Result<(), Error> {
        self.store.set_permissions_in(self.id, path, list)
    }
}

impl<P: Platform> fmt::Debug for Transaction<'_, '_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").field("id", &self.id).finish_non_exhaustive()
    }
}
