//! What tasks do with the device of a place: they send and receive, and wait for that.

use core::future::{Future, poll_fn};
use core::task::{Context, Poll};

use xen_hypercall::Platform;

use super::{Card, Place};
use crate::wake::Sides;
use crate::{Error, Followup, Mac, NetFront, RxMeta, State, TxMeta};

/// Looks at a device that a single poll of a task takes at most. More of them are needed only if events come meanwhile.
const LOOKS: usize = 4;

impl<'x, P: Platform, const QUEUES: usize> Card<'x, P, QUEUES> {
    /// Receives a frame as [`NetFront::receive`] does: waits for one, and for a device.
    ///
    /// # Errors
    /// [`Error::Closed`]: the place was [closed](Self::close).
    pub fn receive(&self, buf: &mut [u8]) -> impl Future<Output = Result<usize, Error>> {
        self.frame(move |front| front.receive(buf))
    }

    /// Receives a frame as [`NetFront::receive_with`] does: waits for one, and for a device.
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    pub fn receive_with(&self, buf: &mut [u8]) -> impl Future<Output = Result<RxMeta, Error>> {
        self.frame(move |front| front.receive_with(buf))
    }

    /// Queues a frame as [`NetFront::transmit`] does: waits for room, and for a device. The backend is shown it by
    /// [`publish`](Self::publish), or when a task waits for frames or room.
    ///
    /// # Errors
    /// [`Error::Length`] for a frame that the backend does not take. [`Error::Closed`]: the place was [closed](Self::close).
    pub fn transmit(&self, frame: &[u8]) -> impl Future<Output = Result<(), Error>> {
        self.send(move |front| front.transmit(frame))
    }

    /// Queues a frame as [`NetFront::transmit_with`] does: waits for room, and for a device.
    ///
    /// # Errors
    /// As [`NetFront::transmit_with`], but for what is waited for. [`Error::Closed`]: the place was [closed](Self::close).
    pub fn transmit_with(&self, parts: &[&[u8]], meta: TxMeta) -> impl Future<Output = Result<(), Error>> {
        self.send(move |front| front.transmit_with(parts, meta))
    }

    /// Waits until so many pages can be filled with frames, as [`NetFront::can_transmit`] tells, or all that there are if those
    /// are fewer. Returns how many.
    ///
    /// # Errors
    /// [`Error::Closed`]: the place was [closed](Self::close).
    pub async fn room(&self, pages: usize) -> Result<usize, Error> {
        let mut enough = |front: &mut NetFront<'x, P, QUEUES>, _: &mut u32| {
            let wanted = pages.min(front.tx_pages());
            let room = front.can_transmit_each(wanted)?;
            Ok((room >= wanted).then_some(room))
        };
        poll_fn(|cx| self.look(cx, Sides::Transmit, &mut enough)).await
    }

    /// Wants frames for a multicast address, or no more, as [`NetFront::want_multicast`] does: waits for room, and for a device.
    ///
    /// # Errors
    /// As [`NetFront::want_multicast`], but for what is waited for. [`Error::Closed`]: the place was [closed](Self::close).
    pub async fn want_multicast(&self, address: Mac, wanted: bool) -> Result<(), Error> {
        self.send(|front| {
            front.want_multicast(address, wanted)?;
            front.publish()
        })
        .await
    }

    /// Returns whether a device is at work and its link is up, once that is not what was `known`.
    pub async fn link(&self, known: bool) -> bool {
        poll_fn(|cx| self.poll_link(cx, known)).await
    }

    /// Ready when the link is not as it was `known`: a device is at work, and its link is up. Otherwise the task is woken then.
    pub fn poll_link(&self, cx: &mut Context<'_>, known: bool) -> Poll<bool> {
        self.wait(cx, |place, cx| {
            let up = place.front.as_ref().is_some_and(NetFront::is_link_up);
            if up != known {
                return Poll::Ready(up);
            }
            place.waiting.link.leave(cx.waker());
            Poll::Pending
        })
    }

    /// Returns what the owner of the device has to see to, once there is something ([`NetFront::take_followup`]).
    pub async fn followup(&self) -> Followup {
        poll_fn(|cx| {
            self.wait(cx, |place, cx| {
                let followup = place.front.as_mut().map(NetFront::take_followup).unwrap_or_default();
                if !followup.is_empty() {
                    return Poll::Ready(followup);
                }
                place.waiting.followup.leave(cx.waker());
                Poll::Pending
            })
        })
        .await
    }

    /// Calls `f` with the place; within [`with`](Self::with) the task comes again.
    pub(super) fn wait<R>(
        &self,
        cx: &mut Context<'_>,
        f: impl FnOnce(&mut Place<'x, P, QUEUES>, &mut Context<'_>) -> Poll<R>,
    ) -> Poll<R> {
        if let Ok(mut place) = self.place.try_borrow_mut() {
            return f(&mut place, cx);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes a frame by `f`, at once or as soon as there is one.
    #[inline]
    fn frame<R>(
        &self,
        mut f: impl FnMut(&mut NetFront<'x, P, QUEUES>) -> Result<Option<R>, Error>,
    ) -> impl Future<Output = Result<R, Error>> {
        poll_fn(move |cx| {
            // First what is nearly always so. It changes nothing that others wait for.
            if let Some(Ok(Some(frame))) = self.now(&mut f) {
                return Poll::Ready(Ok(frame));
            }
            self.look_again(cx, Sides::Receive, |front, _| f(front))
        })
    }

    /// Sends something by `f`, at once or as soon as there is room.
    #[inline]
    fn send(
        &self,
        mut f: impl FnMut(&mut NetFront<'x, P, QUEUES>) -> Result<(), Error>,
    ) -> impl Future<Output = Result<(), Error>> {
        poll_fn(move |cx| {
            if let Some(Ok(())) = self.now(&mut f) {
                return Poll::Ready(Ok(()));
            }
            self.look(cx, Sides::Transmit, |front, _| match f(front) {
                Err(Error::Full) => Ok(None),
                result => result.map(Some),
            })
        })
    }

    #[inline]
    pub(super) fn now<R>(&self, f: impl FnOnce(&mut NetFront<'x, P, QUEUES>) -> R) -> Option<R> {
        let mut place = self.place.try_borrow_mut().ok()?;
        place.front.as_mut().map(f)
    }

    /// Calls `f` until there is a result, in this poll of the task or in one that the device wakes it for, or the device after
    /// it. What was queued is shown to the backend before the task waits.
    pub(crate) fn look<R>(
        &self,
        cx: &mut Context<'_>,
        sides: Sides,
        mut f: impl FnMut(&mut NetFront<'x, P, QUEUES>, &mut u32) -> Result<Option<R>, Error>,
    ) -> Poll<Result<R, Error>> {
        if let Some(result) = self.with_stamp(&mut f).and_then(ended) {
            return Poll::Ready(result);
        }
        self.look_again(cx, sides, f)
    }

    /// [`look`](Self::look) after a first look without a result.
    #[inline(never)]
    fn look_again<R>(
        &self,
        cx: &mut Context<'_>,
        sides: Sides,
        f: impl FnMut(&mut NetFront<'x, P, QUEUES>, &mut u32) -> Result<Option<R>, Error>,
    ) -> Poll<Result<R, Error>> {
        let mut ended = false;
        let looked = self.wait(cx, |place, cx| {
            let looked = place.sleep(cx, sides, f);
            ended = place.front.as_ref().is_some_and(|front| front.state != State::Connected);
            looked
        });
        if ended {
            self.tell();
        }
        looked
    }
}

impl<'x, P: Platform, const QUEUES: usize> Place<'x, P, QUEUES> {
    /// The end of a look without a result.
    #[inline]
    fn sleep<R>(
        &mut self,
        cx: &mut Context<'_>,
        sides: Sides,
        mut f: impl FnMut(&mut NetFront<'x, P, QUEUES>, &mut u32) -> Result<Option<R>, Error>,
    ) -> Poll<Result<R, Error>> {
        if self.closed {
            return Poll::Ready(Err(Error::Closed));
        }
        // For the device that comes next.
        if sides != Sides::Transmit {
            self.waiting.receive.leave(cx.waker());
        }
        if sides != Sides::Receive {
            self.waiting.transmit.leave(cx.waker());
        }
        let Self { front: Some(front), stamp, .. } = self else { return Poll::Pending };
        for _ in 0..LOOKS {
            match front.arm_sides(sides) {
                // What came before it was armed has no event.
                Ok(true) => {
                    if let Some(result) = ended(f(front, stamp)) {
                        return Poll::Ready(result);
                    }
                }
                Ok(false) => {}
                // One that is not at work is replaced, or its place is closed: then the task is woken.
                Err(_) => return Poll::Pending,
            }
            if !front.poll_sides(cx, sides) {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// What is to be told; none while the task waits. A device that is at its end is waited for as one that is not there.
#[inline]
fn ended<R>(result: Result<Option<R>, Error>) -> Option<Result<R, Error>> {
    match result {
        Ok(None) | Err(Error::Closed | Error::Broken(_)) => None,
        Ok(Some(result)) => Some(Ok(result)),
        Err(error) => Some(Err(error)),
    }
}
