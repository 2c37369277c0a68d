//! The task that drives a disk.

use core::convert::Infallible;
use core::fmt;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

use xen_hypercall::Platform;

use super::Disk;
use super::seats::Line;
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

    /// Looks at the disk, at its answers too if `look` says so or an event has come. Returns true when something has come meanwhile.
    /// `other`: the task that drove the disk before was another one.
    #[inline]
    fn turn(&self, cx: &mut Context<'_>, other: bool, look: bool) -> bool {
        let mut borrowed = self.place.borrow_mut();
        let place = &mut *borrowed;
        let unseen = core::mem::take(&mut place.unseen);
        let Some(front) = &mut place.front else { return false };
        let state = front.state();
        if let State::Broken(_) = state {
            return false;
        }
        // A waker first: what comes after it is told of. Without an event nothing has come, for one was asked for at the end of the
        // last look.
        let look = front.listen(cx, other || unseen) || unseen || look;
        let mut result = if core::mem::take(&mut place.dirty) { front.publish().map(|()| 0) } else { Ok(0) };
        let mut more = false;
        if look {
            if result.is_ok() {
                result = front.poll();
            }
            more = front.arm_after(0);
        }
        match result {
            Ok(count) if front.state() == state => {
                drop(borrowed);
                if count > 0 {
                    self.tell();
                }
            }
            result => {
                if let Err(error) = result {
                    // Nobody can be told of more.
                    place.end_all(&self.seats, error);
                }
                drop(borrowed);
                self.settle();
                self.call_all(Line::Answers);
                self.call_all(Line::Room);
            }
        }
        more
    }

    /// The task that drives the disk runs: returns whether it is another than before.
    #[inline]
    fn arrive(&self, waker: &Waker) -> bool {
        self.called.set(false);
        let known = self.driver.take();
        let other = !known.as_ref().is_some_and(|known| known.will_wake(waker));
        self.driver.set(if other { Some(waker.clone()) } else { known });
        other
    }
}

impl<P: Platform> Future for Drive<'_, '_, P> {
    type Output = Infallible;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Infallible> {
        let disk = self.disk;
        let mut other = disk.arrive(cx.waker());
        let mut look = false;
        for _ in 0..TURNS {
            if !disk.turn(cx, other, look) {
                return Poll::Pending;
            }
            (other, look) = (false, true);
        }
        disk.place.borrow_mut().unseen = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<P: Platform> BlkFront<'_, P> {
    /// Leaves the waker of a task at the event channels of which it may not be there any more: at all, or where an event has come. Returns
    /// whether one has.
    #[inline]
    fn listen(&self, cx: &mut Context<'_>, all: bool) -> bool {
        let mut came = false;
        for channel in self.channels() {
            let fired = channel.take();
            came |= fired;
            if fired || all {
                while channel.is_current() && channel.poll_event(cx).is_ready() {
                    came = true;
                }
            }
        }
        came
    }
}

impl<P: Platform> fmt::Debug for Drive<'_, '_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Drive").field(self.disk).finish()
    }
}
