//! The protocol without its transport: bytes that arrived become whole messages, of bounded length.

use zerocopy::{FromZeros, IntoBytes};

use crate::error::Violation;
use crate::wire::{HEADER_SIZE, Header, PAYLOAD_MAX};

/// Puts messages together from pieces, of any sizes. One message at a time; its payload stays until the next begins.
///
/// Read at most as many bytes as there is [`room`](Self::room) for into it, tell how many those were, and look at the
/// [message](Self::message) when it is complete. No byte of the next message is asked for before that.
#[derive(Debug)]
pub struct Assembler {
    header: Header,
    payload: [u8; PAYLOAD_MAX],
    /// Bytes of header and payload that are there.
    filled: usize,
}

impl Default for Assembler {
    fn default() -> Self {
        Self::new()
    }
}

impl Assembler {
    /// Waits for the first byte of a header.
    pub fn new() -> Self {
        Self { header: Header::new_zeroed(), payload: [0; PAYLOAD_MAX], filled: 0 }
    }

    /// Where the next bytes are to be written: never past the end of the message.
    pub fn room(&mut self) -> &mut [u8] {
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

    /// Notes that `count` bytes of the room were written. Returns whether a message is complete.
    ///
    /// # Errors
    /// [`Violation::Length`] when the header says that it is longer than any may be. Where the next one begins is not
    /// known then, so there is nothing to go on with.
    pub fn advance(&mut self, count: usize) -> Result<bool, Violation> {
        self.filled += count.min(self.room().len());
        if self.filled < HEADER_SIZE {
            return Ok(false);
        }
        if self.header.len as usize > PAYLOAD_MAX {
            return Err(Violation::Length(self.header.len));
        }
        Ok(self.filled == HEADER_SIZE + self.len())
    }

    /// The header, and the payload as it is so far: all of it once the message is complete.
    pub fn message(&self) -> (Header, &[u8]) {
        (self.header, self.payload.get(..self.len()).unwrap_or_default())
    }

    fn len(&self) -> usize {
        (self.header.len as usize).min(PAYLOAD_MAX)
    }
}
