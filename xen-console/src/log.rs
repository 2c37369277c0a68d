//! Log lines (feature `log`): time, level and text of a record, in a fixed buffer, for any sink.

use core::fmt::{self, Write};
use core::time::Duration;

use crate::LINE;

/// A log line, ready to be [written](crate::Console::write_text) to a console. [`Display`](fmt::Display) shows it without an
/// end.
#[derive(Clone)]
pub struct LogLine {
    /// Room for the end is left, so that a console writes the line whole.
    buf: [u8; LINE - 2],
    len: usize,
}

impl LogLine {
    /// Formats a record: seconds since the start, level, and text. What is longer than [`LINE`] with the end that a
    /// terminal wants is cut.
    pub fn new(now: Duration, record: &log::Record<'_>) -> Self {
        let mut line = Self { buf: [0; LINE - 2], len: 0 };
        let (seconds, micros) = (now.as_secs(), now.subsec_micros());
        // It never fails: what does not fit is cut.
        let _ = write!(line, "[{seconds:>5}.{micros:06}] {:<5} {}", record.level(), record.args());
        line
    }

    /// The line, without an end.
    pub fn as_str(&self) -> &str {
        let text = self.buf.get(..self.len).unwrap_or_default();
        // Only the last character can have been cut.
        core::str::from_utf8(text).unwrap_or_else(|cut| {
            let whole = text.get(..cut.valid_up_to()).unwrap_or_default();
            core::str::from_utf8(whole).unwrap_or_default()
        })
    }
}

impl Write for LogLine {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if let Some(place) = self.buf.get_mut(self.len) {
                // A record must not be able to forge another line.
                *place = if byte.is_ascii_control() { b' ' } else { byte };
                self.len += 1;
            }
        }
        Ok(())
    }
}

impl fmt::Display for LogLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for LogLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogLine").field(&self.as_str()).finish()
    }
}
