//! A device that goes on after the domain was resumed in a new one.

use core::time::Duration;

use xen_hypercall::{DomId, Platform, Wait};
use xen_xenstore::suspend::Device;
use xen_xenstore::xenbus::{Frontend, Published};
use xen_xenstore::{Until, Xenstore};

use crate::front::each;
use crate::link::Tie;
use crate::{Followup, NetFront, State};

/// The rings are new, in the same memory, and the pages are granted again in place. What was agreed on may differ, the
/// number of queues and the [MTU](NetFront::mtu) too. Frames under way are lost, as networks lose frames. Multicast addresses are
/// asked for again, and so is what was set by the [control ring](NetFront::control).
/// [`take_followup`](NetFront::take_followup) tells what else is to be done: [`Followup::ANNOUNCE`] at least.
///
/// Pages of the caller's own are to be [granted again](xen_gnttab::GrantedPage::regrant) before they are used. A device that
/// was not at work is connected if it is there.
impl<'x, P: Platform + Wait, const QUEUES: usize> Device<'x, P> for NetFront<'x, P, QUEUES> {
    type Begun = (bool, Option<Frontend<Published>>);

    fn quiesce(&mut self, xs: &mut Xenstore<'x, P>) {
        // What cannot be found out now shows afterwards.
        let _ = self.service(xs);
        // What was queued goes out. If it does not, it is lost.
        let _ = self.publish();
    }

    fn begin(&mut self, xs: &mut Xenstore<'x, P>, deadline: Duration) -> Self::Begun {
        let was = self.state == State::Connected;
        self.backend = DomId::INVALID;
        if let Some(Tie { device, watches }) = self.tie.take() {
            for watch in watches.into_iter().flatten() {
                let _ = xs.unwatch(watch);
            }
            // If that fails the watch is ended later.
            let _ = device.forget(xs);
        }
        self.state = State::Closed;
        // Queues that were taken are of the life before: whoever has them is told.
        self.tell();
        let begun = self.begin_again(xs, Until::from(deadline).deadline()).ok();
        if begun.is_none() {
            self.give_up_queues();
        }
        (was, begun)
    }

    fn finish(&mut self, (was, begun): Self::Begun, xs: &mut Xenstore<'x, P>, deadline: Duration) -> usize {
        let mut until = Until::from(deadline);
        let finished = begun.is_some_and(|device| self.finish_again(device, xs, until.deadline()).is_ok());
        if !finished {
            self.backend = DomId::INVALID;
            if let Some(tie) = self.tie.take() {
                let _ = tie.device.close(xs, deadline);
            }
            self.state = State::Closed;
            self.give_up_queues();
        }
        self.told_up = false;
        self.waiters.wake_all();
        self.tell();
        usize::from(was && !finished)
    }

    fn go_on(&mut self) {
        // Events may have been missed on both sides. Whatever is wrong the next call says.
        for queue in each(&mut self.queues) {
            let _ = queue.channel.notify();
            let _ = queue.rx_channel.as_ref().map_or(Ok(()), |channel| channel.notify());
        }
        self.waiters.wake_all();
    }
}

impl<P: Platform, const QUEUES: usize> NetFront<'_, P, QUEUES> {
    /// Pages and rings that no backend has.
    pub(crate) fn give_up_queues(&mut self) {
        self.queues.iter_mut().for_each(|queue| *queue = None);
        if self.control.take().is_some_and(|control| control.changed) {
            self.followup |= Followup::CONTROL;
        }
    }
}
