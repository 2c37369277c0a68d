//! The place of a device that may be absent, for tasks that use it and one that controls it.

mod control;
mod data;
mod places;
mod suspend;

use core::cell::RefCell;
use core::fmt;

use xen_hypercall::Platform;

use crate::{Error, Followup, Mac, NetFront, State, Stats};
pub use control::Controller;
use places::Places;

/// The place of a network device, for the tasks of one vCPU: some send and receive, while another takes the device away and
/// puts it, or another one, there again.
///
/// A place is empty at first, and may be empty at any time. Who receives or sends then waits until a device is at work in it. A
/// place that was [closed](Self::close) is not waited for: what waits ends with [`Error::Closed`].
///
/// The device is borrowed for no longer than a call, and never while a task waits. All futures may be dropped at any time: what
/// one has not returned has not happened.
///
/// Each device has room for the wakers of four tasks for each of its event channels. More than four tasks that wait for one
/// channel lose nothing, but keep each other busy. With [`Config::split_channels`](crate::Config::split_channels) who receives
/// and who sends have a channel each.
pub struct Card<'x, P: Platform, const QUEUES: usize = 1> {
    place: RefCell<Place<'x, P, QUEUES>>,
}

pub(crate) struct Place<'x, P: Platform, const QUEUES: usize> {
    front: Option<NetFront<'x, P, QUEUES>>,
    closed: bool,
    controlled: bool,
    /// Whether multicast frames are to be filtered, until the one who controls the device knows.
    filter: Option<bool>,
    /// Another one whenever another device is here, or another user puts frames together: what was staged is void then.
    stamp: u32,
    /// What was told last.
    told: Told,
    waiting: Places,
}

/// What tasks wait for beside frames and room.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Told {
    up: bool,
    followup: bool,
    /// Whether the device's backend broke the protocol.
    broken: bool,
    /// How often it began anew: then its rings are others.
    reconnects: u64,
}

impl<P: Platform, const QUEUES: usize> Place<'_, P, QUEUES> {
    fn now(&self) -> Told {
        match &self.front {
            None => Told::default(),
            Some(front) => Told {
                up: front.is_link_up(),
                followup: !front.followup.is_empty(),
                broken: matches!(front.state, State::Broken(_)),
                reconnects: front.stats.reconnects,
            },
        }
    }
}

impl<'x, P: Platform, const QUEUES: usize> Card<'x, P, QUEUES> {
    /// An empty place.
    pub const fn new() -> Self {
        Self {
            place: RefCell::new(Place {
                front: None,
                closed: false,
                controlled: false,
                filter: None,
                stamp: 0,
                told: Told { up: false, followup: false, broken: false, reconnects: 0 },
                waiting: Places::new(),
            }),
        }
    }

    /// Puts a device into the place, and returns the one that was there. What waits goes on with the new one. Within
    /// [`with`](Self::with) it comes back at once.
    pub fn put(&self, front: NetFront<'x, P, QUEUES>) -> Option<NetFront<'x, P, QUEUES>> {
        self.exchange(Some(front), false)
    }

    /// Takes the device out of the place. What waits goes on to wait, for the next one.
    pub fn take(&self) -> Option<NetFront<'x, P, QUEUES>> {
        self.exchange(None, false)
    }

    /// Takes the device out of the place, and says that no other will come, unless one is [put](Self::put) there: what waits
    /// ends.
    pub fn close(&self) -> Option<NetFront<'x, P, QUEUES>> {
        self.exchange(None, true)
    }

    fn exchange(
        &self,
        front: Option<NetFront<'x, P, QUEUES>>,
        closed: bool,
    ) -> Option<NetFront<'x, P, QUEUES>> {
        let before = {
            // It is borrowed only within `with`, whose device is not to vanish.
            let Ok(mut place) = self.place.try_borrow_mut() else { return front };
            place.stamp = place.stamp.wrapping_add(1);
            place.closed = closed;
            core::mem::replace(&mut place.front, front)
        };
        self.tell_all();
        before
    }

    /// Whether a device is in the place, at work or not.
    pub fn is_present(&self) -> bool {
        self.ask(false, |_| true)
    }

    /// Whether the place was [closed](Self::close).
    pub fn is_closed(&self) -> bool {
        self.place.try_borrow().is_ok_and(|place| place.closed)
    }

    /// Calls `f` with the device, for all that does not wait. None: there is no device, or this is within such a call. What `f`
    /// changes tasks that wait are told afterwards.
    pub fn with<R>(&self, f: impl FnOnce(&mut NetFront<'x, P, QUEUES>) -> R) -> Option<R> {
        self.with_stamp(|front, _| f(front))
    }

    /// The same, with what tells whose frames are put together.
    pub(crate) fn with_stamp<R>(
        &self,
        f: impl FnOnce(&mut NetFront<'x, P, QUEUES>, &mut u32) -> R,
    ) -> Option<R> {
        let result = {
            let mut place = self.place.try_borrow_mut().ok()?;
            let Place { front, stamp, .. } = &mut *place;
            f(front.as_mut()?, stamp)
        };
        self.tell();
        Some(result)
    }

    pub(crate) fn ask<R>(&self, otherwise: R, f: impl FnOnce(&NetFront<'x, P, QUEUES>) -> R) -> R {
        match self.place.try_borrow() {
            Ok(place) => place.front.as_ref().map_or(otherwise, f),
            Err(_) => otherwise,
        }
    }

    /// Whether a device is at work here, and its link is up.
    pub fn is_link_up(&self) -> bool {
        self.ask(false, NetFront::is_link_up)
    }

    /// The device's hardware address; none without a device.
    pub fn mac(&self) -> Option<Mac> {
        self.ask(None, |front| Some(front.mac()))
    }

    /// As [`NetFront::mtu`]; none without a device. Another device may have another.
    pub fn mtu(&self) -> Option<u32> {
        self.ask(None, |front| Some(front.mtu()))
    }

    /// How the device is; [`State::Closed`] without one.
    pub fn state(&self) -> State {
        self.ask(State::Closed, NetFront::state)
    }

    /// What passed through the device; nothing without one.
    pub fn stats(&self) -> Stats {
        self.ask(Stats::default(), NetFront::stats)
    }

    /// Shows the backend what was queued, as [`NetFront::publish`] does. Who waits for frames or for room has it done.
    ///
    /// # Errors
    /// As [`NetFront::publish`]; [`Error::Closed`] also without a device.
    pub fn publish(&self) -> Result<(), Error> {
        let published = self.now(NetFront::publish).unwrap_or(Err(Error::Closed));
        if published.is_err() {
            self.tell();
        }
        published
    }

    /// As [`NetFront::take_followup`]; nothing without a device.
    pub fn take_followup(&self) -> Followup {
        self.with(NetFront::take_followup).unwrap_or_default()
    }

    /// Wakes whoever waits for what is another now than when it was told last.
    #[inline]
    fn tell(&self) {
        let same = self.place.try_borrow().is_ok_and(|place| place.now() == place.told);
        if !same {
            self.tell_change();
        }
    }

    #[cold]
    #[inline(never)]
    fn tell_change(&self) {
        let Ok(mut place) = self.place.try_borrow_mut() else { return };
        let (now, before) = (place.now(), place.told);
        if now.reconnects != before.reconnects {
            place.stamp = place.stamp.wrapping_add(1);
            drop(place);
            return self.tell_all();
        }
        place.told = now;
        let waiting = &mut place.waiting;
        let mut link = (now.up != before.up).then(|| core::mem::take(&mut waiting.link));
        let mut followup = now.followup.then(|| core::mem::take(&mut waiting.followup));
        let mut control = now.broken.then(|| core::mem::take(&mut waiting.control));
        // A waker is another's code, which may come back here.
        drop(place);
        for waiters in [&mut link, &mut followup, &mut control].into_iter().flatten() {
            waiters.wake_all();
        }
    }

    /// Wakes all, for all may have changed.
    fn tell_all(&self) {
        let Ok(mut place) = self.place.try_borrow_mut() else { return };
        place.told = place.now();
        let mut waiting = core::mem::take(&mut place.waiting);
        drop(place);
        waiting.wake_all();
    }
}

impl<P: Platform, const QUEUES: usize> Default for Card<'_, P, QUEUES> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'x, P: Platform, const QUEUES: usize> From<NetFront<'x, P, QUEUES>> for Card<'x, P, QUEUES> {
    fn from(front: NetFront<'x, P, QUEUES>) -> Self {
        let card = Self::new();
        card.put(front);
        card
    }
}

impl<P: Platform, const QUEUES: usize> fmt::Debug for Card<'_, P, QUEUES> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_struct("Card");
        if let Ok(place) = self.place.try_borrow() {
            text.field("device", &place.front).field("closed", &place.closed);
        }
        text.finish_non_exhaustive()
    }
}
