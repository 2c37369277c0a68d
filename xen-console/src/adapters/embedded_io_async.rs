//! `embedded_io_async` 0.7.

use embedded_io_async::{ErrorKind, ErrorType, Read, Write};
use xen_hypercall::Platform;

use crate::{Error, SharedConsole};

impl embedded_io_async::Error for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Broken(_) => ErrorKind::InvalidData,
            #[cfg(feature = "xenbus")]
            Self::Closed => ErrorKind::NotConnected,
            _ => ErrorKind::Other,
        }
    }
}

impl<P: Platform> ErrorType for SharedConsole<'_, P> {
    type Error = Error;
}

impl<P: Platform> ErrorType for &SharedConsole<'_, P> {
    type Error = Error;
}

impl<P: Platform> Read for SharedConsole<'_, P> {
    async fn read(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        SharedConsole::read(self, out).await
    }
}

/// A task that reads and one that writes have one each.
impl<P: Platform> Read for &SharedConsole<'_, P> {
    async fn read(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        SharedConsole::read(self, out).await
    }
}

impl<P: Platform> Write for SharedConsole<'_, P> {
    async fn write(&mut self, data: &[u8]) -> Result<usize, Error> {
        SharedConsole::write(self, data).await
    }

    async fn flush(&mut self) -> Result<(), Error> {
        SharedConsole::flush(self).await
    }
}

/// A task that reads and one that writes have one each.
impl<P: Platform> Write for &SharedConsole<'_, P> {
    async fn write(&mut self, data: &[u8]) -> Result<usize, Error> {
        SharedConsole::write(self, data).await
    }

    async fn flush(&mut self) -> Result<(), Error> {
        SharedConsole::flush(self).await
    }
}
