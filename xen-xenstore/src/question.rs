//! What is asked in a conversation, and what a transaction of it changes.

use core::fmt;

use crate::ask::check_path;
use crate::text::Text;
use crate::watch::Token;
use crate::wire::Operation;
use crate::{Error, Watch};

/// A question to xenstore, for [`Ask::together`](crate::way::tasks::Ask::together).
#[derive(Clone, Copy, Debug)]
pub struct Question<'q> {
    pub(crate) operation: Operation,
    directory: &'q str,
    pub(crate) name: &'q str,
    pub(crate) rest: Rest<'q>,
}

/// What comes behind the path and its zero byte.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rest<'q> {
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

    /// Ends a watch.
    pub(crate) fn unwatch(watch: Watch, path: &'q str) -> Self {
        Self { rest: Rest::Token(watch), ..Self::new(Operation::UNWATCH, path, b"") }
    }

    /// The parts of the message, of which a watch's token is kept in `token`.
    pub(crate) fn parts<'p>(&'p self, token: &'p mut Option<Text>) -> Result<[&'p [u8]; 6], Error> {
        let [directory, slash, name, zero] = self.path()?;
        let (rest, end): (&[u8], &[u8]) = match self.rest {
            Rest::Bytes(bytes) => (bytes, b""),
            Rest::Token(watch) => (token.insert(Text::new(Token(watch))?).as_bytes(), b"\0"),
        };
        Ok([directory, slash, name, zero, rest, end])
    }

    /// The parts of its path.
    pub(crate) fn path(&self) -> Result<[&'q [u8]; 4], Error> {
        let Self { directory, name, .. } = *self;
        check_path(directory, name)?;
        let slash: &[u8] = if directory.is_empty() || directory == "/" { b"" } else { b"/" };
        Ok([directory.as_bytes(), slash, name.as_bytes(), b"\0"])
    }
}

/// Changes of a transaction, for [`frontend::publish`](crate::way::tasks::frontend::publish).
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
