//! Text for people: lines that are written whole or not at all, and the mark that tells of those that were not.

use core::fmt::{self, Write};
use core::task::{Context, Poll, ready};
use core::time::Duration;

use xen_hypercall::{Platform, Wait};

use crate::{Console, Error};

/// The longest line that is written as one, in bytes, with its end. A longer one is written in pieces of this length.
pub const LINE: usize = 256;

/// Text that found no room, and of which no mark has told yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Lost {
    /// Lines of which some or all is lost.
    pub(crate) lines: u32,
    pub(crate) bytes: u32,
    /// The last line of them has not ended: what belongs to it is not another line.
    open: bool,
}

impl Lost {
    /// Counts lost text. Returns how many lines are lost by it that were not before.
    pub(crate) fn add(&mut self, text: &[u8]) -> u32 {
        let mut lines = 0;
        for byte in text {
            lines += u32::from(!self.open);
            self.open = *byte != b'\n';
        }
        self.lines = self.lines.saturating_add(lines);
        self.bytes = self.bytes.saturating_add(text.len() as u32);
        lines
    }
}

/// The line that tells a reader what is missing at its place.
pub(crate) struct Mark(Buffer<{ Mark::LEN }>);

impl Mark {
    /// Its greatest length, in bytes, with the largest numbers.
    pub(crate) const LEN: usize = 72;

    /// `after_text`: the line that was written last has not ended.
    pub(crate) fn new(lost: Lost, after_text: bool) -> Self {
        let mut text = Buffer::new();
        let begin = if after_text { "\r\n" } else { "" };
        let Lost { lines, bytes, .. } = lost;
        let plural = if lines == 1 { "" } else { "s" };
        let _ = write!(text, "{begin}[{lines} line{plural} lost, {bytes} bytes]\r\n");
        Self(text)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// Bytes in a row; what does not fit is cut.
struct Buffer<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Buffer<N> {
    const fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    fn push(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.len) {
            *place = byte;
            self.len += 1;
        }
    }
}

impl<const N: usize> Write for Buffer<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| self.push(byte));
        Ok(())
    }
}

/// Waits until so many bytes fit, or does not wait at all. Returns whether they fit.
type Room<'r, 'x, P> = &'r mut dyn FnMut(&mut Console<'x, P>, usize) -> Result<bool, Error>;

/// What one call writes.
struct Text<'c, 'r, 'x, P: Platform> {
    console: &'c mut Console<'x, P>,
    room: Room<'r, 'x, P>,
    line: Buffer<LINE>,
    /// The line that is being written has lost a piece: its other pieces are lost as well.
    losing: bool,
    lost: bool,
    error: Option<Error>,
}

impl<P: Platform> Text<'_, '_, '_, P> {
    /// Writes the line as it is so far, whole or not at all.
    fn line(&mut self) -> fmt::Result {
        let line = self.line.as_bytes();
        let Some(last) = line.last() else { return Ok(()) };
        let room = if self.losing { Ok(false) } else { (self.room)(self.console, line.len()) };
        match room.and_then(|room| self.console.put(line, room)) {
            Ok(written) => {
                self.losing = !written && *last != b'\n';
                self.lost |= !written;
                self.line.len = 0;
                Ok(())
            }
            Err(error) => {
                self.error = Some(error);
                Err(fmt::Error)
            }
        }
    }
}

impl<P: Platform> Write for Text<'_, '_, '_, P> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // Room for both bytes of a line's end.
            if self.line.len + 2 > LINE {
                self.line()?;
            }
            if byte == b'\n' {
                self.line.push(b'\r');
                self.line.push(b'\n');
                self.line()?;
            } else {
                self.line.push(byte);
            }
        }
        Ok(())
    }
}

impl<'x, P: Platform> Console<'x, P> {
    /// Writes text for people: each line whole or not at all, its end with the carriage return that a terminal wants. A
    /// line longer than [`LINE`] bytes goes in pieces, and once one of them is lost so are those behind it. All of it is
    /// one notification, if the daemon need not make room meanwhile.
    ///
    /// Waits for room until `patience` is over, for all of the text together. A line that finds none is lost. As soon as
    /// there is room again, and before any other text, a line of its own tells how many lines and bytes were lost. After
    /// a wait in vain text waits no more until the daemon has taken something, so that a console that nobody drains does
    /// not stop the guest.
    ///
    /// Returns whether all of it was written.
    ///
    /// # Errors
    /// [`Error::Broken`] when the daemon broke the protocol; [`Error::Event`] when it cannot be notified.
    pub fn write_text(&mut self, text: fmt::Arguments<'_>, patience: Duration) -> Result<bool, Error>
    where
        P: Wait,
    {
        let mut deadline = self.deadline(patience);
        self.text(text, &mut |console, len| console.wait_room(len, &mut deadline))
    }

    /// Ready when all of a text is written, as [`write_text`](Self::write_text) writes it; otherwise wakes the task when there is room for
    /// its next line, so that none is lost. What is written is taken off `text`.
    ///
    /// # Errors
    /// [`Error::Broken`] when the daemon broke the protocol; [`Error::Event`] when it cannot be notified.
    pub fn poll_text(&mut self, cx: &mut Context<'_>, text: &mut &str) -> Poll<Result<(), Error>> {
        while !text.is_empty() {
            // All pieces that there is room for are one notification.
            let (mut fits, mut bytes) = (0, 0);
            let mut rest = *text;
            while !rest.is_empty() {
                let piece = piece(rest);
                // With the carriage return before its end.
                let len = piece.len() + 1;
                if fits == 0 {
                    ready!(self.poll_room(cx, len))?;
                } else if !self.has_room(bytes + len)? {
                    break;
                }
                (fits, bytes) = (fits + piece.len(), bytes + len);
                rest = rest.get(piece.len()..).unwrap_or_default();
            }
            self.print(format_args!("{}", text.get(..fits).unwrap_or_default()))?;
            *text = rest;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes text without waiting for room, as `write!` does. Returns whether all of it was written.
    pub(crate) fn print(&mut self, text: fmt::Arguments<'_>) -> Result<bool, Error> {
        self.text(text, &mut |console, len| console.has_room(len))
    }

    /// Writes text, and tells the daemon once.
    fn text(&mut self, text: fmt::Arguments<'_>, room: Room<'_, 'x, P>) -> Result<bool, Error> {
        // Broken means broken, also for no text at all.
        self.writable()?;
        let mut lines =
            Text { console: self, room, line: Buffer::new(), losing: false, lost: false, error: None };
        // A `Display` that fails of its own accord has written what it wrote.
        let _ = lines.write_fmt(text).and_then(|()| lines.line());
        let (lost, error) = (lines.lost, lines.error);
        if let Some(error) = error {
            return Err(error);
        }
        self.announce()?;
        self.looked(0);
        Ok(!lost)
    }
}

/// What of a text goes as one: a line with its end, or a part of one that is too long.
fn piece(text: &str) -> &str {
    let line = text.find('\n').map_or(text.len(), |end| end + 1);
    // A carriage return goes with it, too.
    let mut len = line.min(LINE - 2);
    while !text.is_char_boundary(len) {
        len -= 1;
    }
    text.get(..len).unwrap_or_default()
}

/// Text for people, as [`Console::write_text`] writes it, without waiting for room. What one `write!` writes is together:
/// one notification, and each line whole or not at all.
impl<P: Platform> Write for Console<'_, P> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.write_fmt(format_args!("{text}"))
    }

    fn write_fmt(&mut self, text: fmt::Arguments<'_>) -> fmt::Result {
        match self.print(text) {
            Ok(_) => Ok(()),
            Err(_) => Err(fmt::Error),
        }
    }
}
