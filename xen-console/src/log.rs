//! Log lines (feature `log`): time, level and text of a record, in a fixed buffer, for any sink.

use core::fmt::{self, Write};
use core::time::Duration;

/// The longest line, in bytes, with its end; longer ones are cut.
pub const LINE: usize = 256;

/// A log line, ready to be written to a console.
#[derive(Clone)]
pub struct LogLine {
    buf: [u8; LINE],
    len: usize,
}

impl LogLine {
    /// Formats a record: seconds since the start, level, text, and an end that a terminal understands.
    pub fn new(now: Duration, record: &log::Record<'_>) -> Self {
        let mut line = Self { buf: [0; LINE], len: 0 };
        let (seconds, micros) = (now.as_secs(), now.subsec_micros());
        // It never fails: what does not fit is cut.
        let _ = write!(line, "[{seconds:>5}.{micros:06}] {:<5} {}", record.level(), record.args());
        line.end();
        line
    }

    /// The line.
    pub fn as_bytes(&self) -> &[u8] {
        self.buf.get(..self.len).unwrap_or_default()
    }

    fn end(&mut self) {
        for byte in *b"\r\n" {
            if let Some(place) = self.buf.get_mut(self.len) {
                *place = byte;
                self.len += 1;
            }
        }
    }
}

/// Keeps room for the line's end.
impl Write for LogLine {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if let Some(place) = self.buf.get_mut(self.len).filter(|_| self.len < LINE - 2) {
                // A record must not be able to forge another line.
                *place = if byte < b' ' { b' ' } else { byte };
                self.len += 1;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for LogLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogLine").field(&self.as_bytes().escape_ascii()).finish()
    }
}
