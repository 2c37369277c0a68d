//! A watch of a task.

use core::fmt;
use core::future::poll_fn;
use core::task::{Context, Poll};

use xen_hypercall::{Platform, Wait};

use super::SharedStore;
use crate::{Error, Watch};

/// A watch, which ends when it is dropped. Any number of them may be on the same path.
#[must_use = "a watch that is dropped has ended"]
pub struct Watching<'s, 'x, P: Platform + Wait> {
    store: &'s SharedStore<'x, P>,
    watch: Watch,
}

impl<'s, 'x, P: Platform + Wait> Watching<'s, 'x, P> {
    pub(super) fn new(store: &'s SharedStore<'x, P>, watch: Watch) -> Self {
        Self { store, watch }
    }

    /// Waits until the node, or something below it, has changed since the last call; at first, until the watch is set. Any number of
    /// changes are one. After the connection was made anew it is ready once, for nobody knows what has happened meanwhile.
    ///
    /// # Errors
    /// [`Error::Stale`] when the daemon did not set the watch again. Otherwise why there is no connection any more.
    pub async fn changed(&mut self) -> Result<(), Error> {
        poll_fn(|cx| self.poll_changed(cx)).await
    }

    /// [`changed`](Self::changed) as it is polled. The task that polled last is woken.
    ///
    /// # Errors
    /// As [`changed`](Self::changed).
    pub fn poll_changed(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.store.poll(cx, |state, cx| state.poll_fired(self.watch, cx.waker()))
    }

    /// Whether it has changed since the last call. Waits for nothing.
    ///
    /// # Errors
    /// As [`changed`](Self::changed).
    pub fn has_changed(&mut self) -> Result<bool, Error> {
        self.store.with(|state| state.fired(self.watch)).unwrap_or(Ok(false))
    }
}

impl<P: Platform + Wait> Drop for Watching<'_, '_, P> {
    fn drop(&mut self) {
        self.store.drop_watches(1 << self.watch.slot);
    }
}

impl<P: Platform + Wait> fmt::Debug for Watching<'_, '_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watching").field(&self.watch).finish()
    }
}
