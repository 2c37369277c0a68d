//! What becomes of a device that was connected: it is followed, begins anew, and ends.

use core::time::Duration;

use xen_evtchn::Deadline;
use xen_hypercall::{DomId, Platform, Wait};
use xen_xenstore::xenbus::XenbusState;
use xen_xenstore::{Blocking, Error as StoreError, Path, Until, Xenstore};

use crate::link::News;
use crate::way::blocking;
use crate::{Config, Error, Followup, NetFront, State, Stats};

impl<'x, P: Platform + Wait, const QUEUES: usize> NetFront<'x, P, QUEUES> {
    /// Begins anew in the same place: for a device that was closed by the backend, whose backend was started again
    /// or moved to another domain, that was unplugged and plugged in again, or that is broken. What was agreed on
    /// may differ afterwards, the [MTU](Self::mtu) too; the counters go on. Frames under way are lost, as networks lose frames.
    ///
    /// The multicast addresses that are wanted are asked for again. What else the owner has to see to
    /// [`take_followup`](Self::take_followup) tells.
    ///
    /// # Errors
    /// As [`connect_with`](Self::connect_with); the device is [`State::Closed`] then, and this may be tried again.
    pub fn reconnect<'d>(
        &mut self,
        xs: &mut Xenstore<'x, P>,
        deadline: impl Into<Until<'d>>,
    ) -> Result<(), Error> {
        self.reconnect_by(xs, deadline.into().deadline())
    }

    fn reconnect_by(&mut self, xs: &mut Xenstore<'x, P>, deadline: &mut Deadline) -> Result<(), Error> {
        // The backend may hang, or be gone; that is often why we are here.
        let _ = self.end(xs, deadline);
        let again =
            Self::connect_by(xs, self.events, self.grants, self.index, deadline, self.config_again())?;
        self.succeed(again);
        self.want_again(deadline.at());
        self.told_up = false;
        self.tell();
        Ok(())
    }

    /// Asks the new backend for all multicast addresses that are wanted, as many at a time as there are pages.
    pub(crate) fn want_again(&mut self, deadline: Duration) {
        let (events, mut deadline, mut from) = (self.events, Deadline::new(deadline), 0);
        loop {
            let seen = events.seq();
            match self.ask_again(from) {
                Ok(()) => return,
                Err((next, Error::Full)) => from = next,
                // It is not at work any more, and there will be another one.
                Err(_) => break,
            }
            if self.publish().is_err() {
                break;
            }
            if self.arm() == Ok(false) {
                let Some(until) = deadline.until(events.platform().now()) else { break };
                events.wait_since(seen, Some(until));
            }
        }
        self.followup |= Followup::MULTICAST;
    }

    /// Whether a backend is there for this device, so that [`reconnect`](Self::reconnect) would not wait long: one that is
    /// new, or was started again. Asks xenstore, so it is for a device that is not at work, when xenstore has an event.
    ///
    /// # Errors
    /// [`Error::Xenstore`] when the connection to xenstore is of no use any more.
    pub fn is_backend_waiting(&self, xs: &mut Xenstore<'x, P>) -> Result<bool, Error> {
        let path = Path::format(format_args!("device/vif/{}/backend", self.index))?;
        let waits = xs
            .read_str(&path)
            .and_then(Path::new)
            .and_then(|path| path.join("state"))
            .and_then(|path| Ok(is_waiting(xs.read_parsed(&path)?)));
        match waits {
            // There is none, or no sense in it.
            Err(StoreError::Refused(..) | StoreError::BadValue) => Ok(false),
            Err(StoreError::NotText | StoreError::BadPath) => Ok(false),
            waits => Ok(waits?),
        }
    }

    /// Ends the device in good order: the backend lets go, the pages come back. Pages that it holds on to stay in the
    /// grant table's quarantine.
    ///
    /// A device that the toolstack removed, or put another one in the place of, is ended here alone.
    ///
    /// # Errors
    /// [`Error::Xenstore`] when the backend did not close by `deadline`; the device is closed nevertheless.
    pub fn close<'d>(
        mut self,
        xs: &mut Xenstore<'x, P>,
        deadline: impl Into<Until<'d>>,
    ) -> Result<(), Error> {
        self.end(xs, deadline.into().deadline())
    }

    pub(crate) fn end(&mut self, xs: &mut Xenstore<'x, P>, deadline: &mut Deadline) -> Result<(), Error> {
        let tie = self.tie.take();
        blocking::follow::end(&mut Blocking::until(xs, deadline), self, tie)
    }

    /// Follows the backend: when it ends the device, or is no longer the one that was connected to, so do we; and looks
    /// whether the link is up. Cheap when nothing has happened; to be called when xenstore has an event.
    ///
    /// # Errors
    /// [`Error::Xenstore`] when the connection to xenstore is of no use any more.
    pub fn service(&mut self, xs: &mut Xenstore<'x, P>) -> Result<State, Error> {
        let Some(tie) = self.tie.as_ref().filter(|_| self.state != State::Closed) else {
            return Ok(self.state);
        };
        let news = blocking::follow::follow(&mut Blocking::new(xs), tie, self.state)?;
        self.heed(news);
        Ok(self.state)
    }
}

impl<P: Platform, const QUEUES: usize> NetFront<'_, P, QUEUES> {
    /// Is what a look at the backend says.
    pub(crate) fn heed(&mut self, news: News) {
        if let Some(up) = news.up {
            self.link_up = up;
        }
        if news.taken_up {
            self.taken_up();
        }
        // It may have broken the protocol since the look began.
        if !(news.is_at_work() && matches!(self.state, State::Broken(_))) {
            self.state = news.state;
        }
        self.tell();
    }

    /// The backend says once more that it is connected.
    fn taken_up(&mut self) {
        self.followup |= Followup::ANNOUNCE;
        if self.control.as_ref().is_some_and(|control| control.changed) {
            self.followup |= Followup::CONTROL;
        }
        if self.ask_again(0).is_err() {
            self.followup |= Followup::MULTICAST;
        }
    }

    /// Gives up what is shared with a backend that has it no more.
    pub(crate) fn release(&mut self) {
        self.backend = DomId::INVALID;
        self.give_up_queues();
        self.state = State::Closed;
        self.tell();
    }

    /// What the device that takes this one's place is to be connected with.
    pub(crate) fn config_again(&self) -> Config {
        Config { send: self.wanted, ..self.config }
    }
}

impl<'x, P: Platform, const QUEUES: usize> NetFront<'x, P, QUEUES> {
    /// Is the device that takes this one's place, with what the owner knows of this one.
    pub(crate) fn succeed(&mut self, again: Self) {
        let mut stats = Stats { reconnects: self.stats.reconnects + 1, ..self.stats };
        stats.notifications += again.stats.notifications;
        let (groups, followup) = (self.groups.take(), self.followup | Followup::ANNOUNCE);
        let waiters = core::mem::take(&mut self.waiters);
        *self = Self { groups, followup, stats, waiters, ..again };
    }
}

/// Whether a backend in this state waits for the device. One that was started again takes up the rings of before by itself, if nobody
/// hinders it.
pub(crate) fn is_waiting(state: XenbusState) -> bool {
    is_beginning(state) || state == XenbusState::CONNECTED
}

/// Whether a backend in this state begins a handshake.
fn is_beginning(state: XenbusState) -> bool {
    matches!(state, XenbusState::INITIALISING | XenbusState::INIT_WAIT | XenbusState::INITIALISED)
}

/// A value that is text.
pub(crate) fn text(value: &[u8]) -> Result<&str, StoreError> {
    core::str::from_utf8(value).map_err(|_| StoreError::NotText)
}
