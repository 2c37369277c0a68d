//! A console that several tasks use.

use core::cell::RefCell;
use core::fmt;
use core::future::poll_fn;

use xen_hypercall::Platform;

use crate::{Console, Error};

/// A console that tasks of one executor share: some read, some write, and each waits for itself.
///
/// A task that waits holds nothing: others read and write meanwhile, and a console that nobody reads holds up those alone that
/// write to it. Any future may be dropped at any time. What it has read or written then, its method says.
///
/// ```
/// use xen_console::{Console, SharedConsole, mock::MockConsoled};
/// use xen_hypercall::{DomId, mock::MockXen};
/// # use core::future::Future;
/// # use core::pin::pin;
/// # use core::task::{Context, Poll, Waker};
/// # let xen = MockXen::new();
/// # xen_evtchn::mock::install(&xen);
/// # let (guest, events) = xen_console::mock::guest(&xen, DomId(1));
/// # let daemon = MockConsoled::connect(&xen, &guest);
///
/// let console = SharedConsole::new(Console::new(&events)?);
/// daemon.type_in(b"ping");
/// let echo = async {
///     let mut bytes = [0; 16];
///     let count = console.read(&mut bytes).await?;
///     console.write_all(&bytes[..count]).await?;
///     console.flush().await
/// };
/// # let (mut echo, mut cx) = (pin!(echo), Context::from_waker(Waker::noop()));
/// # loop {
/// #     let seen = events.seq();
/// #     if let Poll::Ready(echoed) = echo.as_mut().poll(&mut cx) { echoed?; break }
/// #     events.wait_since(seen, None);
/// # }
/// // Once an executor has run it:
/// assert_eq!(daemon.output(), b"ping");
/// # Ok::<(), xen_console::Error>(())
/// ```
///
/// The waiting is that of [`Console::poll_readable`]: tasks may come and go as they like, and four may wait at once without extra
/// wake-ups.
pub struct SharedConsole<'x, P: Platform>(RefCell<Console<'x, P>>);

impl<'x, P: Platform> SharedConsole<'x, P> {
    /// Shares a console.
    pub const fn new(console: Console<'x, P>) -> Self {
        Self(RefCell::new(console))
    }

    /// Returns the console.
    pub fn into_inner(self) -> Console<'x, P> {
        self.0.into_inner()
    }

    /// Does something with the console at once.
    ///
    /// # Panics
    /// When it is called from within itself.
    pub fn with<R>(&self, f: impl FnOnce(&mut Console<'x, P>) -> R) -> R {
        f(&mut self.0.borrow_mut())
    }

    /// Reads the bytes that are there, or waits until there are some. Returns how many were read, which is none for an empty
    /// `out` alone. When it is dropped nothing was read.
    ///
    /// # Errors
    /// As [`Console::read`].
    pub async fn read(&self, out: &mut [u8]) -> Result<usize, Error> {
        poll_fn(|cx| self.with(|console| console.poll_read(cx, out))).await
    }

    /// Writes as many bytes as there is room for, or waits until there is some. Returns how many were written, which is none for
    /// empty `data` alone. When it is dropped nothing was written.
    ///
    /// # Errors
    /// As [`Console::write`].
    pub async fn write(&self, data: &[u8]) -> Result<usize, Error> {
        poll_fn(|cx| self.with(|console| console.poll_write(cx, data))).await
    }

    /// Writes all bytes, and waits for room as often as it takes. What others write meanwhile may come between two parts. When it is
    /// dropped a part was written.
    ///
    /// # Errors
    /// As [`Console::write`]. How many bytes were written by then is not told.
    pub async fn write_all(&self, data: &[u8]) -> Result<(), Error> {
        let mut rest = data;
        poll_fn(|cx| self.with(|console| console.poll_write_all(cx, &mut rest))).await
    }

    /// Writes text for people, as [`Console::write_text`] does, but waits for the room of each line for as long as it takes, so that
    /// none is lost. What others write comes between lines, or between the pieces of a line that is longer than
    /// [`LINE`](crate::LINE). When it is dropped some first lines were written.
    ///
    /// # Errors
    /// As [`Console::write`].
    pub async fn write_text(&self, text: &str) -> Result<(), Error> {
        let mut rest = text;
        poll_fn(|cx| self.with(|console| console.poll_text(cx, &mut rest))).await
    }

    /// Waits until the daemon has taken everything that was written.
    ///
    /// # Errors
    /// [`Error::Broken`] when the daemon broke the protocol; [`Error::Event`] when it cannot be notified.
    pub async fn flush(&self) -> Result<(), Error> {
        poll_fn(|cx| self.with(|console| console.poll_drained(cx))).await
    }
}

impl<P: Platform> fmt::Debug for SharedConsole<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SharedConsole").field(&self.0).finish()
    }
}
