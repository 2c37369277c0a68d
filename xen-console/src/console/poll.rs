//! The console as tasks wait for it.

use core::task::{Context, Poll, ready};

use xen_hypercall::Platform;

use super::Console;
use crate::Error;

impl<P: Platform> Console<'_, P> {
    /// Ready when there is something to read or the console does not work any more; otherwise wakes the task then.
    /// Several tasks may wait, and a task that is dropped while it waits keeps the wake-up from no other
    /// ([`Channel::poll_event`](xen_evtchn::Channel::poll_event)).
    ///
    /// # Errors
    /// [`Error::Broken`] when the daemon broke the protocol; [`Error::Event`] when it cannot be notified.
    pub fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.poll_for(cx, |console| Ok(console.ring.readable()? > 0))
    }

    /// Ready when there is room to write or the console does not work any more; otherwise wakes the task then, as
    /// [`poll_readable`](Self::poll_readable) does.
    ///
    /// # Errors
    /// [`Error::Broken`] when the daemon broke the protocol; [`Error::Event`] when it cannot be notified.
    pub fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.poll_for(cx, |console| Ok(console.ring.writable()? > 0))
    }

    /// Ready when the daemon has taken everything or the console does not work any more; otherwise wakes the task then, as
    /// [`poll_readable`](Self::poll_readable) does.
    ///
    /// # Errors
    /// [`Error::Broken`] when the daemon broke the protocol; [`Error::Event`] when it cannot be notified.
    pub fn poll_drained(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.poll_for(cx, Self::is_drained)
    }

    /// Ready with how many bytes were read, one at least unless `out` is empty; otherwise wakes the task when there are some. A
    /// task that goes away while it waits has read nothing.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn poll_read(&mut self, cx: &mut Context<'_>, out: &mut [u8]) -> Poll<Result<usize, Error>> {
        if !out.is_empty() {
            ready!(self.poll_readable(cx))?;
        }
        Poll::Ready(self.read(out))
    }

    /// Ready with how many bytes were written, one at least unless `data` is empty; otherwise wakes the task when there is room. A
    /// task that goes away while it waits has written nothing.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Error>> {
        if !data.is_empty() {
            ready!(self.poll_writable(cx))?;
        }
        let count = self.write(data)?;
        if count == 0 && !data.is_empty() {
            // A daemon that takes room back lies, and holds up nobody but the task that writes.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(count))
    }

    /// Ready when all of `data` is written; otherwise wakes the task when there is room. What is written is taken off `data`.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn poll_write_all(&mut self, cx: &mut Context<'_>, data: &mut &[u8]) -> Poll<Result<(), Error>> {
        while !data.is_empty() {
            let count = ready!(self.poll_write(cx, data))?;
            *data = data.get(count..).unwrap_or_default();
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when so many bytes of text fit; otherwise wakes the task then. They fit at some time if they are a line's.
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<Result<(), Error>> {
        self.poll_for(cx, |console| console.has_room(len))
    }

    /// Ready when `look` finds what is waited for.
    ///
    /// No wake-up is lost. The waker is left after a look, and an event that comes from then on calls it. One that came between that look
    /// and the leaving has fired the channel: `poll_event` is ready, and there is another look. Who else waits for the console cannot
    /// have taken it, for the console is borrowed from the look on; and whoever takes an event has been woken with all
    /// others who wait, each of whom looks for himself.
    fn poll_for(
        &mut self,
        cx: &mut Context<'_>,
        look: impl Fn(&mut Self) -> Result<bool, Error>,
    ) -> Poll<Result<(), Error>> {
        loop {
            self.serve()?;
            // Whichever way the daemon broke the protocol, everybody hears of that.
            self.ring.readable().and(self.ring.writable())?;
            if look(self)? {
                return Poll::Ready(Ok(()));
            }
            // The event may be an old one: then the waker is not left yet, and asking again leaves it.
            if self.channel.poll_event(cx).is_pending() {
                return if look(self)? { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
        }
    }
}
