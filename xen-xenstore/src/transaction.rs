//! Several changes that happen together or not at all.

use core::fmt;
use core::str::FromStr;

use xen_hypercall::{Platform, Wait};

use crate::client::Text;
use crate::{Error, Xenstore};

/// A transaction that is being put together; [`Xenstore::transaction`] begins and ends it.
pub struct Transaction<'s, 'x, P: Platform> {
    store: &'s mut Xenstore<'x, P>,
    id: u32,
}

impl<'s, 'x, P: Platform + Wait> Transaction<'s, 'x, P> {
    pub(crate) fn new(store: &'s mut Xenstore<'x, P>, id: u32) -> Self {
        Self { store, id }
    }

    /// A node's value as this transaction sees it.
    ///
    /// # Errors
    /// As [`Xenstore::read`].
    pub fn read(&mut self, path: &str) -> Result<&[u8], Error> {
        self.store.read_in(self.id, path)
    }

    /// A node's value as a number, or whatever else is written as text.
    ///
    /// # Errors
    /// As [`Xenstore::read_parsed`].
    pub fn read_parsed<T: FromStr>(&mut self, path: &str) -> Result<T, Error> {
        let text = core::str::from_utf8(self.read(path)?).map_err(|_| Error::NotText)?;
        text.trim().parse().map_err(|_| Error::BadValue)
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

    /// Removes a node and everything below it.
    ///
    /// # Errors
    /// As [`Xenstore::remove`].
    pub fn remove(&mut self, path: &str) -> Result<(), Error> {
        self.store.remove_in(self.id, path)
    }
}

impl<P: Platform> fmt::Debug for Transaction<'_, '_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").field("id", &self.id).finish_non_exhaustive()
    }
}
