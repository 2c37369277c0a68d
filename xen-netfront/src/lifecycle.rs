//! What becomes of a device that was connected: it is followed, begins anew, and ends.

use core::time::Duration;

use xen_evtchn::Deadline;
use xen_hypercall::{DomId, Platform, Wait};
use xen_xenstore::xenbus::{BackendChange, XenbusState};
use xen_xenstore::{Path, Until, Xenstore};

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
        let config = Config { send: self.wanted, ..self.config };
        let again = Self::connect_by(xs, self.events, self.grants, self.index, deadline, config)?;
        let mut stats = Stats { reconnects: self.stats.reconnects + 1, ..self.stats };
        stats.notifications += again.stats.notifications;
        let (groups, followup) = (self.groups.take(), self.followup | Followup::ANNOUNCE);
        let waiters = core::mem::take(&mut self.waiters);
        *self = Self { groups, followup, stats, waiters, ..again };
        self.want_again(deadline.at());
        self.told_up = false;
        self.tell();
        Ok(())
    }

    /// The backend says once more that it is connected: it was started again, and took up the rings where they were.
    fn taken_up(&mut self) {
        self.followup |= Followup::ANNOUNCE;
        if self.control.as_ref().is_some_and(|control| control.changed) {
            self.followup |= Followup::CONTROL;
        }
        if self.ask_again(0).is_err() {
            self.followup |= Followup::MULTICAST;
        }
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
        let waits =
            xs.read_str(&path).and_then(Path::new).and_then(|path| path.join("state")).and_then(|path| {
                let state: XenbusState = xs.read_parsed(&path)?;
                // One that was started again takes up the rings of before by itself, if nobody hinders it.
                Ok(is_beginning(state) || state == XenbusState::CONNECTED)
            });
        match waits {
            // There is none, or no sense in it.
            Err(xen_xenstore::Error::Refused(..) | xen_xenstore::Error::BadValue) => Ok(false),
            Err(xen_xenstore::Error::NotText | xen_xenstore::Error::BadPath) => Ok(false),
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
        // A backend that is not connected any more would be waited for in vain. An error comes again below.
        let _ = self.service(xs);
        self.link.end(xs);
        self.backend = DomId::INVALID;
        let closed = match self.device.take() {
            None => Ok(()),
            Some(device) if self.state == State::Closed => device.abandon(xs),
            Some(device) => device.close(xs, deadline),
        };
        // Only now: before, the backend had every right to the pages.
        self.queues.iter_mut().for_each(|queue| *queue = None);
        if self.control.take().is_some_and(|control| control.changed) {
            self.followup |= Followup::CONTROL;
        }
        self.state = State::Closed;
        self.tell();
        Ok(closed?)
    }

    /// Follows the backend: when it ends the device, or is no longer the one that was connected to, so do we; and looks
    /// whether the link is up. Cheap when nothing has happened; to be called when xenstore has an event.
    ///
    /// # Errors
    /// [`Error::Xenstore`] when the connection to xenstore is of no use any more.
    pub fn service(&mut self, xs: &mut Xenstore<'x, P>) -> Result<State, Error> {
        let Some(device) = self.device.as_ref().filter(|_| self.state != State::Closed) else {
            return Ok(self.state);
        };
        let change = device.change(xs)?;
        let next = match change {
            BackendChange::Same => self.state,
            BackendChange::Told(_) if self.state != State::Closing => self.state,
            BackendChange::Closing => State::Closing,
            // Nobody is behind the rings.
            _ => State::Closed,
        };
        if matches!(next, State::Connected | State::Broken(_)) {
            self.link.service(xs, device)?;
            if change == BackendChange::Told(XenbusState::CONNECTED) {
                self.taken_up();
            }
        } else if next != self.state {
            // One that begins again must not be told: it waits for us to begin, too.
            if change != BackendChange::Restarted {
                // The device is closed whether this succeeds or not.
                let _ = device.switch(xs, XenbusState::CLOSED);
            }
            self.state = next;
        }
        self.tell();
        Ok(self.state)
    }
}

/// Whether a backend in this state begins a handshake.
fn is_beginning(state: XenbusState) -> bool {
    matches!(state, XenbusState::INITIALISING | XenbusState::INIT_WAIT | XenbusState::INITIALISED)
}
