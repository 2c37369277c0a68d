//! A disk that goes on after the domain was resumed in a new one.

use core::fmt;
use core::time::Duration;

use xen_hypercall::{Platform, Wait};
use xen_xenstore::suspend::Device;
use xen_xenstore::xenbus::Frontend;
use xen_xenstore::{Blocking, Xenstore};

use crate::blocking_way::steps;
use crate::connect::{Begun, Link};
use crate::features::Features;
use crate::lifecycle::check_again;
use crate::{BlkFront, Error, State};

/// A disk whose new backend is about to connect, after a resume.
#[must_use = "the backend waits for the other half"]
pub struct Resuming<'x, P: Platform> {
    /// The disk was at work.
    was: bool,
    /// None: there is no backend.
    begun: Option<Begun<'x, P>>,
}

impl<'x, P: Platform + Wait> Resuming<'x, P> {
    /// Whether [`finish`](Device::finish) has nothing to wait for any more: the backend has connected, or does not come. A kernel that has
    /// other things to do meanwhile asks when xenstore has an event. Asks xenstore only if something has happened.
    pub fn is_decided(&mut self, xs: &mut Xenstore<'x, P>) -> bool {
        self.begun.as_mut().is_none_or(|begun| begun.is_decided(xs))
    }
}

impl<P: Platform> fmt::Debug for Resuming<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resuming").field("begun", &self.begun.is_some()).finish_non_exhaustive()
    }
}

/// The rings are new, and the pages are granted again in place, those under way that were [lent](crate::Piece) too. What is not
/// answered is issued again, in the order in which it was submitted, and also a write that was forgotten: it may change the disk
/// once more in the same way. What is answered never is. Tickets stay good.
///
/// Nothing that was answered is lost with a backend that ends in good order, so flushes and barriers that are under way
/// mean what they did; with one that had gone before they tell of a loss, as after a [reconnect](BlkFront::reconnect). The size and all that the backend offers are read again. What does not fit the disk any more, such as a write
/// beyond a new end, fails by itself.
///
/// A disk that was not at work is connected if it is there, but not one that is [broken](State::Broken), nor one of which queues
/// are [taken](BlkFront::take_queue): these have closed then, with what was under way in them, and when they are put back
/// [`reconnect`](BlkFront::reconnect) connects it.
impl<'x, P: Platform + Wait> Device<'x, P> for BlkFront<'x, P> {
    type Begun = Resuming<'x, P>;

    fn quiesce(&mut self, xs: &mut Xenstore<'x, P>) {
        // A backend that has gone may have taken writes with it.
        let _ = self.service_by_asking(xs);
        // What the backend has answered by now is not asked for again.
        let _ = self.poll();
        // A backend that keeps pages mapped has written to them unseen by a live migration.
        for op in self.ops.answered_reads() {
            if let Some(piece) = &mut op.piece {
                piece.page.mark_written();
            }
            self.pool.mark_written(op.pages);
        }
    }

    fn begin(&mut self, xs: &mut Xenstore<'x, P>, deadline: Duration) -> Resuming<'x, P> {
        let was = matches!(self.state, State::Connected | State::Closing);
        if let Some(Link { device, queues, .. }) = self.link.take() {
            for chain in queues.iter().flat_map(|queue| queue.slots.indirect()) {
                self.pool.release(chain);
            }
            // One that was lent out is forgotten by who has it. If that fails the watch is ended later.
            let _ = device.map(|device| device.forget(xs));
        }
        if matches!(self.state, State::Broken(_)) {
            return Resuming { was, begun: None };
        }
        self.change(State::Closed);
        if self.has_taken() {
            return Resuming { was, begun: None };
        }
        self.gather();
        Resuming { was, begun: self.begin_again(xs, deadline).ok() }
    }

    fn finish(&mut self, begun: Resuming<'x, P>, xs: &mut Xenstore<'x, P>, deadline: Duration) -> usize {
        let Resuming { was, begun } = begun;
        let at_work = match begun.map(|begun| steps::finish(begun, &mut Blocking::until(xs, deadline))) {
            Some(Ok((link, features))) => {
                let ordered = link.queues.len() == 1;
                if was {
                    self.go_on_with(&features, ordered);
                } else {
                    self.issue_again(&features, ordered);
                }
                (self.features, self.link) = (features, Some(link));
                self.change(State::Connected);
                // What goes wrong with that the next call says.
                let _ = self.push_out();
                true
            }
            _ => false,
        };
        usize::from(was && !at_work)
    }

    fn go_on(&mut self) {
        self.look_after_events();
        if let Some(shared) = &self.shared {
            shared.announce_pause();
        }
    }
}

impl<'x, P: Platform + Wait> BlkFront<'x, P> {
    /// Puts into the queue what was under way, of which nothing was lost.
    fn go_on_with(&mut self, features: &Features, ordered: bool) {
        self.stats.reconnects += 1;
        self.stats.reissued += self.ops.restart(|op| match op.is_wanted() || op.is_left() {
            true => check_again(features, op, ordered),
            // Nobody is there to take the result; or there was one.
            false => Some(Err(Error::Closed)),
        }) as u64;
        while let Some(index) = self.ops.unwanted() {
            self.release(index);
        }
        self.wake();
    }

    fn begin_again(&mut self, xs: &mut Xenstore<'x, P>, deadline: Duration) -> Result<Begun<'x, P>, Error> {
        let device = Frontend::open_present(xs, "vbd", self.index, deadline)?;
        let device = device.wait_for_backend(xs, deadline)?;
        if let Err(error) = self.pool.regrant(device.backend_id(), self.ops.all()) {
            let _ = device.abandon(xs);
            return Err(error);
        }
        steps::begin_with(&mut Blocking::until(xs, deadline), device, self.events, self.grants, &self.config)
    }
}
