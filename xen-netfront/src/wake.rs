//! The end of a look at a device: what wakes the guest, or a task, for the next one.

use core::task::{Context, Poll};

use xen_hypercall::Platform;

use crate::front::{LARGE, each};
use crate::{Error, Features, NetFront, State};

/// What a task waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sides {
    /// Frames.
    Receive,
    /// Room.
    Transmit,
    /// Either.
    Both,
}

impl<P: Platform, const QUEUES: usize> NetFront<'_, P, QUEUES> {
    /// The end of a look at the device, before sleeping: gives the backend the pages whose frames were taken, asks for an
    /// event at the next frame and, when pages for sending are short, when half of those under way have come back: few at a
    /// time would be an event for each. Returns whether there is something to do at once: then no event will come for it,
    /// and sleeping would be wrong. The sleep begins with the number of the last event as it was before the look
    /// (`EventChannels::seq`, `EventChannels::wait_since`).
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Broken`], [`Error::Event`].
    pub fn arm(&mut self) -> Result<bool, Error> {
        self.check_and_tell()?;
        // With less than that a large frame does not get out.
        let wanted = if self.config.send.contains(Features::SCATTER_GATHER) { LARGE } else { 1 };
        let Self { queues, stats, .. } = self;
        let ready = each(queues).try_fold(false, |ready, queue| {
            let (rx, tx) = (queue.arm_receive(stats)?, queue.arm_transmit(wanted, stats)?);
            queue.end_of_look(rx, tx);
            Ok(ready | rx | tx)
        });
        self.settle(ready)
    }

    /// Ready when a frame has arrived, pages for sending came back that were short, or the device is not at work any
    /// more; otherwise wakes the task then. An executor that waits by other means than `EventChannels::wait_since` has to call
    /// `EventChannels::unmask_due` now and then, for a backend that sent events without reason. Any number of tasks may wait.
    pub fn poll_receivable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.arm() != Ok(false) {
                return Poll::Ready(());
            }
            // For a device that is closed, or begins anew with other channels.
            self.waiters.leave(cx.waker());
            // All of them, so that each has the waker.
            let fired = self.queues.iter().flatten().fold(false, |fired, queue| queue.poll_event(cx) | fired);
            if !fired {
                // Armed before the waker was left: look once more.
                return if self.arm() == Ok(false) { Poll::Pending } else { Poll::Ready(()) };
            }
        }
    }

    /// Shows the backend what was queued, and is the end of a look by tasks that want these sides alone: others may look at the
    /// other side. Returns whether to look again, for something is there at once, or came back.
    pub(crate) fn arm_sides(&mut self, sides: Sides) -> Result<bool, Error> {
        self.check_and_tell()?;
        // Whatever room a task waits for, an event comes when half of what is under way has come back.
        let wanted = if sides == Sides::Receive { LARGE } else { usize::MAX };
        let Self { queues, stats, .. } = self;
        let again = each(queues).try_fold(false, |again, queue| {
            queue.publish_queued(stats)?;
            Ok(queue.arm_sides(sides, wanted, stats)? | again)
        });
        self.settle(again)
    }

    /// Leaves the task's waker for the next event of these sides; returns whether there was one already.
    pub(crate) fn poll_sides(&self, cx: &mut Context<'_>, sides: Sides) -> bool {
        self.queues.iter().flatten().fold(false, |fired, queue| queue.poll_sides(cx, sides) | fired)
    }

    /// Whether the link is up, once that is not what was `known`. Otherwise the task is woken then, by
    /// [`service`](Self::service), [`reconnect`](Self::reconnect), [`publish`](Self::publish) or [`arm`](Self::arm).
    pub fn poll_link(&mut self, cx: &mut Context<'_>, known: bool) -> Poll<bool> {
        if self.is_link_up() != known {
            return Poll::Ready(self.is_link_up());
        }
        self.waiters.leave(cx.waker());
        Poll::Pending
    }

    /// Wakes the tasks that wait for a change of the link, or of the device, if there was one.
    pub(crate) fn tell(&mut self) {
        if self.state != State::Connected {
            // Dropping it tells those who took queues.
            self.lent = None;
        }
        if self.told_up != self.is_link_up() {
            self.told_up = self.is_link_up();
            self.waiters.wake_all();
        }
    }
}
