//! The one task that runs the connection.

use core::fmt;
use core::future::poll_fn;
use core::pin::pin;
use core::task::{Context, Poll};
use core::time::Duration;

use xen_hypercall::{Platform, Wait};

use super::SharedStore;
use crate::Error;

/// Runs a [`SharedStore`]: takes in what arrives, sends what there was no room for, ends what dropped futures have left, and makes
/// the connection anew when the daemon gives it up and offers another.
///
/// It holds nothing: it may be dropped at any time, and another one goes on. Two at a time keep each other busy.
pub struct Runner<'s, 'x, P: Platform + Wait> {
    store: &'s SharedStore<'x, P>,
}

impl<'s, 'x, P: Platform + Wait> Runner<'s, 'x, P> {
    pub(super) fn new(store: &'s SharedStore<'x, P>) -> Self {
        Self { store }
    }

    /// Runs the connection. Returns what is wrong with it when it is of no use any more and the daemon does not offer another; who asks
    /// gets that error, too. Another run goes on when [`block`](SharedStore::block) has made it anew.
    ///
    /// Time is nothing to it but for one wait: in a handshake with a device whose backend was started again, that backend has two
    /// seconds to notice that the guest begins anew. Here these are over at once; [`run_with`](Self::run_with) keeps them.
    pub async fn run(self) -> Error {
        self.keep_time(false);
        poll_fn(|cx| self.poll(cx)).await
    }

    /// Runs the connection as [`run`](Self::run) does, with a timer: `sleep` returns a future that is ready at a time of the platform's
    /// clock.
    pub async fn run_with<F: Future<Output = ()>>(self, mut sleep: impl FnMut(Duration) -> F) -> Error {
        self.keep_time(true);
        loop {
            // Until it ends, or there is a time to sleep until.
            let first = poll_fn(|cx| match self.poll(cx) {
                Poll::Ready(error) => Poll::Ready(Err(error)),
                Poll::Pending => self.alarm().map_or(Poll::Pending, |at| Poll::Ready(Ok(at))),
            });
            let at = match first.await {
                Ok(at) => at,
                Err(error) => return error,
            };
            let mut slept = pin!(sleep(at));
            let ended = poll_fn(|cx| match self.poll(cx) {
                Poll::Ready(error) => Poll::Ready(Some(error)),
                Poll::Pending if self.alarm() != Some(at) => Poll::Ready(None),
                Poll::Pending => slept.as_mut().poll(cx).map(|()| None),
            });
            if let Some(error) = ended.await {
                return error;
            }
            self.store.with(|state| state.ring());
        }
    }

    fn keep_time(&self, does: bool) {
        self.store.with(|state| state.has_clock = does);
    }

    fn alarm(&self) -> Option<Duration> {
        self.store.with(|state| state.alarm).flatten()
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<Error> {
        let polled = self.store.poll(cx, |state, cx| {
            match &state.runner {
                Some(known) if known.will_wake(cx.waker()) => {}
                _ => {
                    if let Some(other) = state.runner.replace(cx.waker().clone()) {
                        other.wake();
                    }
                }
            }
            // Before the look: what comes from here on wakes the task. An event that was there is taken first.
            let channel = &state.xs.link.channel;
            if channel.is_current() && channel.poll_event(cx).is_ready() && channel.poll_event(cx).is_ready()
            {
                // There is no end of them. Others run before the next look.
                cx.waker().wake_by_ref();
            }
            match state.step() {
                Ok(()) => Poll::Pending,
                Err(error) => Poll::<Result<(), _>>::Ready(Err(error)),
            }
        });
        polled.map(|ended| ended.err().unwrap_or(Error::NotReady))
    }
}

impl<P: Platform + Wait> fmt::Debug for Runner<'_, '_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Runner")
    }
}
