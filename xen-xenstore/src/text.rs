//! Short text, formatted without a heap.

use core::fmt::{self, Write};

use crate::Error;

/// At most 256 bytes of text.
pub(crate) struct Text {
    buf: [u8; 256],
    len: usize,
}

impl Text {
    pub(crate) fn new(value: impl fmt::Display) -> Result<Self, Error> {
        let mut text = Self { buf: [0; 256], len: 0 };
        write!(text, "{value}").map_err(|_| Error::TooLong)?;
        Ok(text)
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        Self::new(core::str::from_utf8(bytes).map_err(|_| Error::NotText)?)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.buf.get(..self.len).unwrap_or_default()
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        self.buf.get_mut(self.len..end).ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}
