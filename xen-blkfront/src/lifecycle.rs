//! What becomes of a disk: it closes, its backend goes and comes back, its size changes.

use xen_evtchn::{Deadline, EventChannels};
use xen_gnttab::GrantTable;
use xen_hypercall::{Platform, Wait};
use xen_xenstore::xenbus::{BackendChange, Connected, Frontend, XenbusState};
use xen_xenstore::{Blocking, Path, Until, Xenstore};

use crate::blocking_way::steps;
use crate::connect::{Config, Link};
use crate::features::Features;
use crate::ops::{Kind, Op};
use crate::{BlkFront, Error, State};

impl<'x, P: Platform + Wait> BlkFront<'x, P> {
    /// Looks whether the backend wants the disk to end, is gone, or says that the disk has another size
    /// ([`capacity`](Self::capacity)), and returns how the disk is then. Wakes all tasks that wait if that is another
    /// state. Call it when xenstore has an event: nothing else does. Writes nothing.
    ///
    /// A backend that begins anew, in whatever state it is met, has closed.
    ///
    /// # Errors
    /// [`Error::Xenstore`] when xenstore cannot be asked; [`Error::BadNode`] for a new size that cannot be, and the one
    /// before stays.
    pub fn service(&mut self, xs: &mut Xenstore<'x, P>) -> Result<State, Error> {
        if !matches!(self.state, State::Connected | State::Closing) {
            return Ok(self.state);
        }
        let Some(device) = self.device() else { return Ok(self.state) };
        let change = device.change(xs)?;
        self.follow(xs, change)
    }

    /// The same for a disk whose events no longer come in time: asks xenstore in any case.
    pub(crate) fn service_by_asking(&mut self, xs: &mut Xenstore<'x, P>) -> Result<State, Error> {
        match self.device() {
            Some(device) if matches!(self.state, State::Connected | State::Closing) => {
                let change = device.change_by_asking(xs)?;
                self.follow(xs, change)
            }
            _ => Ok(self.state),
        }
    }

    fn device(&self) -> Option<&Frontend<Connected>> {
        self.link.as_ref()?.device.as_ref()
    }

    fn follow(&mut self, xs: &mut Xenstore<'x, P>, change: BackendChange) -> Result<State, Error> {
        let mut sectors = None;
        if let (BackendChange::Told(XenbusState::CONNECTED), State::Connected, Some(device)) =
            (change, self.state, self.device())
        {
            sectors = Some(device.read_backend(xs, "sectors"));
        }
        self.heed(change, sectors)
    }

    /// Whether a backend waits for this disk, so that [`reconnect`](Self::reconnect) would not wait long: one that is
    /// new, or was started again. Asks xenstore, so it is for a disk that is not at work, when xenstore has an event.
    ///
    /// # Errors
    /// [`Error::Xenstore`] when the connection to xenstore is of no use any more.
    pub fn is_backend_waiting(&self, xs: &mut Xenstore<'x, P>) -> Result<bool, Error> {
        let path = Path::format(format_args!("device/vbd/{}/backend", self.index))?;
        let path = xs.read_str(&path).and_then(Path::new).and_then(|path| path.join("state"));
        match path.and_then(|path| xs.read_parsed(&path)) {
            Ok(state) => Ok(matches!(state, XenbusState::INITIALISING | XenbusState::INIT_WAIT)),
            // There is none, or no sense in it.
            Err(
                xen_xenstore::Error::Refused(..)
                | xen_xenstore::Error::BadValue
                | xen_xenstore::Error::NotText
                | xen_xenstore::Error::BadPath,
            ) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Connects to the disk anew, after its backend went away and came back (a driver domain was restarted, the
    /// toolstack changed the backend), and issues again what was under way, in the order in which it was submitted.
    /// Tickets stay good. Waits for the backend until `deadline`; can be called again after a failure.
    ///
    /// Only what has no result and somebody has a ticket for is issued again: never what was told to have failed or to
    /// have timed out, nor what was forgotten. What does not fit the disk any more, such as a write beyond a new end,
    /// fails by itself. A page that the earlier backend may still have is not used again.
    ///
    /// Writes that were answered and not flushed may be gone with the earlier backend, and so may those that were
    /// forgotten before they were answered. Flushes and barriers that are under way return [`Error::Lost`] then, or else
    /// the next one does.
    ///
    /// # Errors
    /// As [`connect_with`](Self::connect_with); [`Error::Broken`]: a backend that broke the protocol is not tried again.
    /// [`Error::QueuesTaken`], before anything is done: queues that were taken are to be [put back](Self::put_queue) first, or
    /// dropped.
    pub fn reconnect<'d>(
        &mut self,
        xs: &mut Xenstore<'x, P>,
        deadline: impl Into<Until<'d>>,
    ) -> Result<(), Error> {
        self.reconnect_by(xs, deadline.into().deadline())
    }

    fn reconnect_by(&mut self, xs: &mut Xenstore<'x, P>, deadline: &mut Deadline) -> Result<(), Error> {
        self.check_broken()?;
        // A backend that is not connected any more would be waited for in vain. An error comes again below.
        let _ = self.service(xs);
        if self.has_taken() {
            return Err(Error::QueuesTaken);
        }
        steps::reconnect(&mut &mut *self, &mut Blocking::until(xs, deadline))
    }

    /// Ends the disk: waits for what is under way, tells the backend, and waits until it has let go.
    ///
    /// Whatever the outcome is, the disk is closed, and queues that were [taken](Self::take_queue) are told. Pages that the
    /// backend still uses stay in the grant table's quarantine. Nothing is flushed.
    ///
    /// # Errors
    /// The handshake's, when the backend did not follow by `deadline`.
    pub fn close<'d>(self, xs: &mut Xenstore<'x, P>, deadline: impl Into<Until<'d>>) -> Result<(), Error> {
        self.close_by(xs, deadline.into().deadline())
    }

    fn close_by(mut self, xs: &mut Xenstore<'x, P>, deadline: &mut Deadline) -> Result<(), Error> {
        if matches!(self.state, State::Connected | State::Closing) {
            if let Some(shared) = &self.shared {
                shared.announce(State::Closing);
            }
            // Requests that are not answered are lost; the backend, not they, decides how closing goes on.
            let _ = self.drain(deadline);
        }
        let Some(Link { device: Some(device), queues, .. }) = self.link.take() else { return Ok(()) };
        let closed = match self.state {
            State::Closed => device.abandon(xs),
            _ => device.close(xs, deadline),
        };
        // Only now: before, the backend had every right to the pages.
        drop((queues, self));
        Ok(closed?)
    }
}

/// Where a disk is that is connected anew.
pub(crate) trait Site<'x, P: Platform> {
    /// Calls `f` with the disk.
    ///
    /// # Errors
    /// When it is not there any more, or somebody else has connected it.
    fn with<R>(&mut self, f: impl FnOnce(&mut BlkFront<'x, P>) -> R) -> Result<R, Error>;
}

impl<'x, P: Platform> Site<'x, P> for &mut BlkFront<'x, P> {
    #[inline]
    fn with<R>(&mut self, f: impl FnOnce(&mut BlkFront<'x, P>) -> R) -> Result<R, Error> {
        Ok(f(self))
    }
}

impl<'x, P: Platform> BlkFront<'x, P> {
    /// Takes out what there is with a backend, and returns how the disk was. It is closed then.
    pub(crate) fn unlink(&mut self) -> (State, Option<Link<'x, P>>) {
        self.gather();
        let was = self.state;
        self.change(State::Closed);
        let link = self.link.take();
        for chain in link.iter().flat_map(|link| link.queues.iter()).flat_map(|queue| queue.slots.indirect())
        {
            self.pool.release(chain);
        }
        (was, link)
    }

    /// What it is connected with.
    pub(crate) fn means(&self) -> (&'x EventChannels<P>, &'x GrantTable<P>, u32, Config) {
        (self.events, self.grants, self.index, self.config)
    }

    /// Another backend is connected.
    pub(crate) fn go_on_anew(&mut self, link: Link<'x, P>, features: Features) -> Result<(), Error> {
        self.issue_again(&features, link.queues.len() == 1);
        (self.features, self.link) = (features, Some(link));
        self.change(State::Connected);
        self.push_out()
    }

    /// The backend has changed so. It has told a size, if that was asked for. Returns how the disk is then.
    pub(crate) fn heed(
        &mut self,
        change: BackendChange,
        sectors: Option<Result<Option<u64>, xen_xenstore::Error>>,
    ) -> Result<State, Error> {
        let state = match (change, sectors) {
            (BackendChange::Same, _) => return Ok(self.state),
            // Linux and QEMU write their state once more after they have written a new size.
            (BackendChange::Told(XenbusState::CONNECTED), Some(sectors))
                if self.state == State::Connected =>
            {
                match self.features.resize(sectors) {
                    // It was taken away after that.
                    Err(Error::Xenstore(error)) if error.is_absent() => State::Closed,
                    read => read.map(|()| State::Connected)?,
                }
            }
            (BackendChange::Told(_), _) => self.state,
            (BackendChange::Closing, _) => State::Closing,
            // Closed, gone, or beginning anew.
            _ => State::Closed,
        };
        if let Some(shared) = &self.shared {
            shared.announce_size(self.features.sectors);
        }
        self.change(state);
        Ok(self.state)
    }

    /// Puts into the queue what is to be issued again to a backend with these features.
    pub(crate) fn issue_again(&mut self, features: &Features, ordered: bool) {
        let written = self.written();
        // Of a backend that never offered to flush all is durable.
        let mut lost = self.lost || self.features.volatile && self.ops.is_volatile(written);
        lost |= self.ops.are_left();
        let mut told = false;
        self.stats.reconnects += 1;
        self.stats.reissued += self.ops.restart(|op| match op.kind {
            // Nobody is there to take the result; or there was one.
            _ if !op.is_wanted() => Some(Err(Error::Closed)),
            Kind::Flush | Kind::Barrier if lost => {
                told = true;
                Some(Err(Error::Lost))
            }
            _ => check_again(features, op, ordered),
        }) as u64;
        self.lost = lost && !told;
        while let Some(index) = self.ops.unwanted() {
            self.release(index);
        }
        self.wake();
    }
}

/// What becomes of an operation on a disk that may be another: nothing, or a result.
pub(crate) fn check_again<P: Platform>(
    features: &Features,
    op: &Op<'_, P>,
    ordered: bool,
) -> Option<Result<(), Error>> {
    let result = match op.kind {
        Kind::Flush if !features.can_flush() => Ok(()),
        Kind::Barrier if !features.barrier || !ordered => Err(Error::Unsupported),
        kind if kind.writes() && features.read_only => Err(Error::ReadOnly),
        Kind::Discard if features.discard.is_none() => Err(Error::Unsupported),
        Kind::SecureDiscard if !features.discard.is_some_and(|discard| discard.secure) => {
            Err(Error::Unsupported)
        }
        Kind::Flush => return None,
        _ => match features.check_range(op.lba, op.sectors) {
            Ok(()) => return None,
            Err(error) => Err(error),
        },
    };
    Some(result)
}
