//! Paths without a heap.

use core::fmt::{self, Write};
use core::ops::Deref;

use crate::Error;

/// The longest path that fits, in bytes. Those of devices are far shorter.
const CAPACITY: usize = 256;

/// A path in xenstore, in a buffer of its own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Path {
    buf: [u8; CAPACITY],
    len: usize,
}

impl Path {
    /// A path of the given text: ASCII letters and digits and `-/_@`, not empty, without `//`, without an end in `/`
    /// (but `/` itself). One that does not begin with `/` is below the domain's own directory.
    ///
    /// # Errors
    /// [`Error::BadPath`] when it is none, or longer than 256 bytes.
    pub fn new(text: &str) -> Result<Self, Error> {
        let mut path = Self { buf: [0; CAPACITY], len: 0 };
        path.write_str(text).map_err(|_| Error::BadPath)?;
        path.check()
    }

    /// A path of formatted text.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn format(text: fmt::Arguments<'_>) -> Result<Self, Error> {
        let mut path = Self { buf: [0; CAPACITY], len: 0 };
        path.write_fmt(text).map_err(|_| Error::BadPath)?;
        path.check()
    }

    /// The path of `name` below this one.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn join(&self, name: impl fmt::Display) -> Result<Self, Error> {
        Self::format(format_args!("{}/{name}", self.trim_end_matches('/')))
    }

    fn check(self) -> Result<Self, Error> {
        if is_valid(&self) { Ok(self) } else { Err(Error::BadPath) }
    }
}

/// Whether text is a path that the protocol allows (special names begin with `@`).
pub(crate) fn is_valid(path: &str) -> bool {
    let mut before = 0;
    let valid = path.bytes().all(|byte| {
        let doubled = byte == b'/' && before == b'/';
        before = byte;
        !doubled && (byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'/' | b'_' | b'@'))
    });
    valid && !path.is_empty() && (path == "/" || before != b'/')
}

impl Deref for Path {
    type Target = str;

    fn deref(&self) -> &str {
        core::str::from_utf8(self.buf.get(..self.len).unwrap_or_default()).unwrap_or_default()
    }
}

impl AsRef<str> for Path {
    fn as_ref(&self) -> &str {
        self
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &**self)
    }
}

impl fmt::Write for Path {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        self.buf.get_mut(self.len..end).ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}
