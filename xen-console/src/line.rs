//! Lines out of what a person types.

/// Collects bytes to lines of at most `N` bytes, with a backspace that works.
#[derive(Debug)]
pub struct LineReader<const N: usize> {
    buf: [u8; N],
    len: usize,
    /// The last line ended by a carriage return: a line feed that follows belongs to it.
    after_return: bool,
}

/// What became of a byte.
#[non_exhaustive]
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// Nothing to show: it was no part of a line.
    Nothing,
    /// It was added; show it.
    Added(u8),
    /// The last byte of the line is gone; take it off the screen.
    Erased,
    /// The line is complete. Bytes that are no ASCII text never get in, so it is a string.
    Complete(&'a str),
}

impl<const N: usize> Default for LineReader<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> LineReader<N> {
    /// An empty line.
    pub const fn new() -> Self {
        Self { buf: [0; N], len: 0, after_return: false }
    }

    /// Takes the next byte. A line that is full takes no more; its end still completes it.
    pub fn push(&mut self, byte: u8) -> Line<'_> {
        let after_return = core::mem::replace(&mut self.after_return, byte == b'\r');
        match byte {
            b'\n' if after_return => Line::Nothing,
            b'\r' | b'\n' => {
                let len = core::mem::take(&mut self.len);
                let line = self.buf.get(..len).unwrap_or_default();
                Line::Complete(core::str::from_utf8(line).unwrap_or_default())
            }
            8 | 127 if self.len > 0 => {
                self.len -= 1;
                Line::Erased
            }
            b' '..=b'~' => match self.buf.get_mut(self.len) {
                Some(place) => {
                    *place = byte;
                    self.len += 1;
                    Line::Added(byte)
                }
                None => Line::Nothing,
            },
            _ => Line::Nothing,
        }
    }
}
