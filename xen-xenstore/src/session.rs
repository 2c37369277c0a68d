//! The protocol without its transport: bytes that arrived become whole messages, of bounded length.

use zerocopy::{FromZeros, IntoBytes};

use crate::error::Violation;
use crate::wire::{HEADER_SIZE, Header, PAYLOAD_MAX};

/// Puts messages together from pieces. One message at a time; its payload stays until the next one begins.
pub(crate) struct Assembler {
    header: Header,
    payload: [u8; PAYLOAD_MAX],
    /// Bytes of header and payload that are there.
    filled: usize,
}

impl Assembler {
    pub(crate) fn new() -> Self {
        Self { header: Header::new_zeroed(), payload: [0; PAYLOAD_MAX], filled: 0 }
    }

    /// Where the next bytes are to be written: never past the end of the message.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        if self.filled >= HEADER_SIZE && self.filled == HEADER_SIZE + self.len() {
            self.filled = 0;
        }
        match self.filled.checked_sub(HEADER_SIZE) {
            None => self.header.as_mut_bytes().get_mut(self.filled..).unwrap_or_default(),
            Some(at) => {
                let end = self.len();
                self.payload.get_mut(at..end).unwrap_or_default()
            }
        }
    }

    /// Tells that `count` bytes of the room were written. Answers whether a message is complete.
    pub(crate) fn advance(&mut self, count: usize) -> Result<bool, Violation> {
        self.filled += count;
        if self.filled < HEADER_SIZE {
            return Ok(false);
        }
        if self.header.len as usize > PAYLOAD_MAX {
            return Err(Violation::Length(self.header.len));
        }
        Ok(self.filled == HEADER_SIZE + self.len())
    }

    /// The complete message.
    pub(crate) fn message(&self) -> (Header, &[u8]) {
        (self.header, self.payload.get(..self.len()).unwrap_or_default())
    }

    fn len(&self) -> usize {
        (self.header.len as usize).min(PAYLOAD_MAX)
    }
}
