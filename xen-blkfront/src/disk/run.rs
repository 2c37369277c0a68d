//! The task that drives a disk.

use core::convert::Infallible;
use core::fmt;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};

use xen_hypercall::Platform;

use super::Disk;
use crate::{BlkFront, State};

/// How often the disk is looked at again before other tasks run.
const TURNS: usize = 4;

/// Shows the backend of a [`Disk`] what tasks ask for, takes the answers, and wakes the tasks that they are for. Never done.
#[must_use = "a disk that nobody drives does nothing"]
pub struct Drive<'d, 'x, P: Platform> {
    disk: &'d Disk<'x, P>,
}

impl<'x, P: Platform> Disk<'x, P> {
    /// What drives the disk, to be awaited by one task. Without it nothing is done, and with two the last that ran does all.
    /// It may be dropped, and begun anew at any time.
    pub fn drive(&self) -> Drive<'_, 'x, P> {
        Drive { disk: self }
    }

    /// Looks at the disk. Returns true when something has come meanwhile.
    fn turn(&self, cx: &mut Context<'_>) -> bool {
        let mut borrowed = self.place.borrow_mut();
        let place = &mut *borrowed;
        let Some(front) = &mut place.front else { return false };
        let state = front.state();
        if let State::Broken(_) = state {
            return false;
        }
        // A waker first: what comes after it is told of.
        let fired = front.listen(cx);
        let shown = if core::mem::take(&mut place.dirty) { front.publish() } else { Ok(()) };
        let polled = shown.and_then(|()| front.poll());
        let more = front.arm_after(0) | fired;
        let same = front.state() == state;
        match polled {
            Ok(0) if same => return more,
            Ok(_) if same => {
                drop(borrowed);
                self.tell();
            }
            polled => {
                if let Err(error) = polled {
                    // Nobody can be told of more.
                    place.end_all(&self.seats, error);
                    drop(borrowed);
                    self.call_all(super::Line::Answers);
                    self.call_all(super::Line::Room);
                }
                self.settle();
            }
        }
        more
    }
}

impl<P: Platform> Future for Drive<'_, '_, P> {
    type Output = Infallible;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Infallible> {
        let disk = self.disk;
        for _ in 0..TURNS {
            let more = disk.turn(cx);
            // Tasks that it woke itself may ask for something before it is woken again.
            let before = disk.driver.take();
            let same = before.filter(|before| before.will_wake(cx.waker()));
            drop(disk.driver.replace(Some(same.unwrap_or_else(|| cx.waker().clone()))));
            if !more {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<P: Platform> BlkFront<'_, P> {
    /// Leaves the waker of a task at all event channels. Returns true when an event has come at one.
    fn listen(&self, cx: &mut Context<'_>) -> bool {
        let mut fired = false;
        for channel in self.channels().filter(|channel| channel.is_current()) {
            // Of an event that has come only the next is told.
            while channel.poll_event(cx).is_ready() {
                fired = true;
            }
        }
        fired
    }
}

impl<P: Platform> fmt::Debug for Drive<'_, '_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Drive").field(self.disk).finish()
    }
}
