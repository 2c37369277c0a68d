//! `embedded_io` 0.7.

use core::time::Duration;

use embedded_io::{ErrorKind, ErrorType, Read, ReadReady, Write, WriteReady};
use xen_hypercall::{Platform, Wait};

use crate::{Console, Error};

/// A console as `embedded_io` streams. The calls wait, as these traits want it, but not longer than they are told to:
/// a console that nobody drains must not stop the guest.
#[derive(Debug)]
pub struct ConsoleIo<'c, 'x, P: Platform> {
    console: &'c mut Console<'x, P>,
    patience: Duration,
}

/// Why a stream did not go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum IoError {
    /// Nothing was typed, or nothing was taken, for as long as was allowed.
    TimedOut,
    /// The console does not work.
    Console(Error),
}

impl<'c, 'x, P: Platform + Wait> ConsoleIo<'c, 'x, P> {
    /// Streams whose calls wait for so long at most.
    pub fn new(console: &'c mut Console<'x, P>, patience: Duration) -> Self {
        Self { console, patience }
    }

    fn deadline(&self) -> Duration {
        self.console.event_channels().platform().now().saturating_add(self.patience)
    }
}

impl core::fmt::Display for IoError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::TimedOut => f.write_str("the console did not go on in time"),
            Self::Console(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for IoError {}

impl From<Error> for IoError {
    fn from(error: Error) -> Self {
        Self::Console(error)
    }
}

impl embedded_io::Error for IoError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::TimedOut => ErrorKind::TimedOut,
            Self::Console(Error::Broken(_)) => ErrorKind::InvalidData,
            Self::Console(_) => ErrorKind::Other,
        }
    }
}

impl<P: Platform> ErrorType for ConsoleIo<'_, '_, P> {
    type Error = IoError;
}

impl<P: Platform + Wait> Read for ConsoleIo<'_, '_, P> {
    fn read(&mut self, out: &mut [u8]) -> Result<usize, IoError> {
        if !out.is_empty() && !self.console.wait_readable(self.deadline())? {
            return Err(IoError::TimedOut);
        }
        Ok(self.console.read(out)?)
    }
}

impl<P: Platform + Wait> Write for ConsoleIo<'_, '_, P> {
    fn write(&mut self, data: &[u8]) -> Result<usize, IoError> {
        let deadline = self.deadline();
        loop {
            let count = self.console.write(data)?;
            if count > 0 || data.is_empty() {
                return Ok(count);
            }
            if !self.console.wait_writable(deadline)? {
                return Err(IoError::TimedOut);
            }
        }
    }

    /// Waits until the daemon has taken everything.
    fn flush(&mut self) -> Result<(), IoError> {
        if self.console.drain(self.patience)? { Ok(()) } else { Err(IoError::TimedOut) }
    }
}

impl<P: Platform + Wait> ReadReady for ConsoleIo<'_, '_, P> {
    fn read_ready(&mut self) -> Result<bool, IoError> {
        Ok(self.console.readable()? > 0)
    }
}

impl<P: Platform + Wait> WriteReady for ConsoleIo<'_, '_, P> {
    fn write_ready(&mut self) -> Result<bool, IoError> {
        Ok(self.console.writable()? > 0)
    }
}
