//! What becomes of a disk: it closes, its backend goes and comes back, its size changes.

use core::time::Duration;

use xen_hypercall::{Platform, Wait};
use xen_xenstore::Xenstore;
use xen_xenstore::xenbus::{BackendChange, Frontend, XenbusState};

use crate::connect::{Link, bring_up};
use crate::features::Features;
use crate::ops::{Kind, Op};
use crate::{BlkFront, Error, State};

impl<'x, P: Platform + Wait> BlkFront<'x, P> {
    /// Looks whether the backend wants the disk to end, is gone, or says that the disk has another size
    /// ([`capacity`](Self::capacity)). Call it now and then: nothing else does.
    ///
    /// # Errors
    /// When xenstore is of no use any more; [`Error::BadNode`] for a new size that cannot be, and the one before stays.
    pub fn service(&mut self, xs: &mut Xenstore<'x, P>) -> Result<State, Error> {
        if !matches!(self.state, State::Connected | State::Closing) {
            return Ok(self.state);
        }
        let Some(link) = &self.link else { return Ok(self.state) };
        self.state = match link.device.change(xs)? {
            // Linux and QEMU write their state once more after they have written a new size.
            BackendChange::Told(XenbusState::CONNECTED) if self.state == State::Connected => {
                match self.features.reread_size(xs, &link.device) {
                    // It was taken away after that.
                    Err(Error::Xenstore(error)) if error.is_absent() => State::Gone,
                    read => read.map(|()| State::Connected)?,
                }
            }
            BackendChange::Same | BackendChange::Told(_) => self.state,
            BackendChange::Closing => State::Closing,
            // Closed, or beginning anew.
            _ => State::Gone,
        };
        Ok(self.state)
    }

    /// Connects to the disk anew, after its backend went away and came back (a driver domain was restarted, the
    /// toolstack changed the backend), and asks again for what was under way, in the order in which it was asked for.
    /// Tickets stay good. Waits for the backend until `deadline`; can be called again after a failure.
    ///
    /// A page that the earlier backend may still have is not used again. What does not fit the disk any more, such as a
    /// write beyond a new end, fails by itself.
    ///
    /// # Errors
    /// As [`connect_with`](Self::connect_with); [`Error::Broken`]: a backend that broke the protocol is not tried again.
    pub fn reconnect(&mut self, xs: &mut Xenstore<'x, P>, deadline: Duration) -> Result<(), Error> {
        self.check_broken()?;
        let was = core::mem::replace(&mut self.state, State::Gone);
        self.unlink(xs, was, deadline)?;
        let device = Frontend::open(xs, "vbd", self.index, deadline)?.wait_for_backend(xs, deadline)?;
        if let Err(error) = self.pool.renew(device.backend_id(), self.ops.under_way()) {
            let _ = device.abandon(xs);
            return Err(error);
        }
        let (link, features) = bring_up(xs, device, self.events, self.grants, &self.config, deadline)?;
        let ordered = link.queues.len() == 1;
        (self.features, self.link, self.state) = (features, Some(link), State::Connected);
        self.stats.reconnects += 1;
        self.stats.reissued += self.ops.restart(|op| check_again(&features, op, ordered)) as u64;
        while let Some(index) = self.ops.unwanted() {
            self.release(index);
        }
        self.push_out()
    }

    /// Ends the disk: waits for what is under way, tells the backend, and waits until it has let go.
    ///
    /// Whatever the outcome is, the disk is closed. Pages that the backend still uses stay in the grant table's
    /// quarantine. Nothing is flushed.
    ///
    /// # Errors
    /// The handshake's, when the backend did not follow by `deadline`.
    pub fn close(mut self, xs: &mut Xenstore<'x, P>, deadline: Duration) -> Result<(), Error> {
        if matches!(self.state, State::Connected | State::Closing) {
            // Requests that are not answered are lost; the backend, not they, decides how closing goes on.
            let _ = self.drain(deadline);
        }
        let Some(Link { device, queues }) = self.link.take() else { return Ok(()) };
        let closed = device.close(xs, deadline);
        // Only now: before, the backend had every right to the pages.
        drop((queues, self));
        Ok(closed?)
    }

    /// Ends what there is with a backend, whatever it is up to.
    fn unlink(&mut self, xs: &mut Xenstore<'x, P>, was: State, deadline: Duration) -> Result<(), Error> {
        let Some(Link { device, queues }) = self.link.take() else { return Ok(()) };
        for chain in queues.iter().flat_map(|queue| queue.slots.indirect()) {
            self.pool.release(chain);
        }
        let ended = match was {
            // Until it has closed it must not see us begin anew.
            State::Connected | State::Closing => device.close(xs, deadline),
            _ => device.abandon(xs),
        };
        drop(queues);
        match ended {
            Err(xen_xenstore::Error::Broken(_) | xen_xenstore::Error::Disconnected(_)) => Ok(ended?),
            // The new handshake says what is the matter, if anything is.
            _ => Ok(()),
        }
    }
}

/// What becomes of an operation on a disk that may be another: nothing, or a result.
fn check_again<P: Platform>(features: &Features, op: &Op<'_, P>, ordered: bool) -> Option<Result<(), Error>> {
    let result = match op.kind {
        // Nobody is there to take what it reads.
        Kind::Read if !op.is_wanted() => Ok(()),
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
