//! A queue: a ring for each direction, and how the two sides wake each other.

use core::task::{Context, Poll};

use xen_evtchn::{Channel, EventChannels, Progress};
use xen_gnttab::{Access, GrantTable, GrantedPage};
use xen_hypercall::{DomId, PageBox, Platform};
use xen_ring::{Front, Protocol};

use crate::rx::RxQueue;
use crate::tx::{TxQueue, broken};
use crate::wake::Sides;
use crate::{Config, Error, Stats};

/// The channels stand first, and so are closed first when it is dropped: no event comes for a ring that is gone.
pub(crate) struct Queue<'x, P: Platform> {
    /// For both directions, or for sending alone.
    pub(crate) channel: Channel<'x, P>,
    pub(crate) rx_channel: Option<Channel<'x, P>>,
    pub(crate) tx: TxQueue<'x, P>,
    pub(crate) rx: RxQueue<'x, P>,
}

impl<'x, P: Platform> Queue<'x, P> {
    pub(crate) fn new(
        events: &'x EventChannels<P>,
        grants: &'x GrantTable<P>,
        backend: DomId,
        config: &Config,
        split: bool,
    ) -> Result<PageBox<'x, P, Self>, Error> {
        let (tx, rx) = (share_ring(grants, backend)?, share_ring(grants, backend)?);
        let channel = events.alloc_unbound(backend)?;
        let rx_channel = if split { Some(events.alloc_unbound(backend)?) } else { None };
        let queue = PageBox::new(grants.platform(), || Self {
            channel,
            rx_channel,
            tx: TxQueue::new(tx),
            rx: RxQueue::new(rx),
        });
        let mut queue = queue.ok_or(xen_gnttab::Error::OutOfMemory)?;
        queue.tx.pool.fill(grants, backend, config.tx_pages)?;
        queue.rx.fill(grants, backend, config.rx_pages)?;
        Ok(queue)
    }

    /// The same rings and pages for another backend, after a resume in a new domain.
    pub(crate) fn restart(
        &mut self,
        events: &'x EventChannels<P>,
        backend: DomId,
        split: bool,
    ) -> Result<(), Error> {
        self.tx.restart(backend)?;
        self.rx.restart(backend)?;
        self.channel = events.alloc_unbound(backend)?;
        self.rx_channel = if split { Some(events.alloc_unbound(backend)?) } else { None };
        Ok(())
    }

    pub(crate) fn receive_channel(&self) -> &Channel<'x, P> {
        self.rx_channel.as_ref().unwrap_or(&self.channel)
    }

    /// Shows the backend what was queued, and notifies it at most once for each channel.
    pub(crate) fn publish(&mut self, stats: &mut Stats) -> Result<(), Error> {
        self.rx.refill()?;
        let mut tx = self.tx.ring.has_unpublished() && self.tx.ring.publish().map_err(broken)?;
        let rx = self.rx.ring.has_unpublished() && self.rx.ring.publish().map_err(broken)?;
        match &self.rx_channel {
            Some(channel) if rx => {
                stats.notifications += 1;
                channel.notify()?;
            }
            Some(_) => {}
            None => tx |= rx,
        }
        if tx {
            stats.notifications += 1;
            self.channel.notify()?;
        }
        Ok(())
    }

    /// Shows the backend the pages that are free again, without which no more frames would come, and asks for an event
    /// at the next frame; returns whether one is there.
    pub(crate) fn arm_receive(&mut self, stats: &mut Stats) -> Result<bool, Error> {
        self.rx.refill()?;
        if self.rx.ring.publish().map_err(broken)? {
            stats.notifications += 1;
            self.receive_channel().notify()?;
        }
        self.rx.ring.arm().map_err(broken)
    }

    /// Takes back what was sent if fewer than `wanted` pages are left, and asks for an event when half of what is still
    /// under way is sent, if they are too few even so: whoever has that much to send is better woken for many of them
    /// than for each. Returns whether as many came back as somebody may wait for, or all there are.
    pub(crate) fn arm_transmit(&mut self, wanted: usize, stats: &mut Stats) -> Result<bool, Error> {
        let before = self.tx.pool.available();
        // Ends, since there are no more responses than requests, and none is made meanwhile.
        while self.tx.available(wanted, stats)? < wanted {
            let half = self.tx.ring.in_flight() / 2;
            if !self.tx.ring.arm_after(half).map_err(broken)? {
                break;
            }
        }
        let (now, all) = (self.tx.pool.available(), self.tx.ring.in_flight() == 0);
        Ok(now > before && (all || now.min(self.tx.ring.free() as usize) >= wanted))
    }

    /// The end of a look by tasks that want these sides alone. What a channel serves that is looked at is looked at whole. Returns
    /// whether something is there, or came back.
    #[inline]
    pub(crate) fn arm_sides(
        &mut self,
        sides: Sides,
        wanted: usize,
        stats: &mut Stats,
    ) -> Result<bool, Error> {
        let split = self.rx_channel.is_some();
        let rx = (!split || sides != Sides::Transmit) && self.arm_receive(stats)?;
        let before = self.tx.pool.available();
        let tx = (!split || sides != Sides::Receive) && self.arm_transmit(wanted, stats)?;
        let again = rx | (self.tx.pool.available() > before);
        match &self.rx_channel {
            None => self.end_of_look(rx, tx),
            Some(_) if sides == Sides::Both => self.end_of_look(rx, tx),
            Some(channel) if sides == Sides::Receive => channel.done(Progress::of(rx | self.rx.worked())),
            Some(_) => {
                let worked = core::mem::take(&mut self.tx.worked);
                self.channel.done(Progress::of(tx | worked));
            }
        }
        Ok(again)
    }

    /// Shows the backend what was queued to be sent, if anything was.
    #[inline]
    pub(crate) fn publish_queued(&mut self, stats: &mut Stats) -> Result<(), Error> {
        if self.tx.ring.has_unpublished() && self.tx.ring.publish().map_err(broken)? {
            stats.notifications += 1;
            self.channel.notify()?;
        }
        Ok(())
    }

    /// Leaves the task's waker for the next event of these sides; returns whether there was one already.
    pub(crate) fn poll_sides(&self, cx: &mut Context<'_>, sides: Sides) -> bool {
        match (sides, &self.rx_channel) {
            (Sides::Both, _) => self.poll_event(cx),
            (Sides::Receive, Some(channel)) => channel.poll_event(cx).is_ready(),
            _ => self.channel.poll_event(cx).is_ready(),
        }
    }

    /// The end of a look at both rings: events may come again. `ready` is what the two above returned.
    pub(crate) fn end_of_look(&mut self, rx_ready: bool, tx_ready: bool) {
        let (rx, tx) = (rx_ready | self.rx.worked(), tx_ready | self.tx.worked);
        self.tx.worked = false;
        match &self.rx_channel {
            Some(channel) => {
                channel.done(Progress::of(rx));
                self.channel.done(Progress::of(tx));
            }
            None => self.channel.done(Progress::of(rx | tx)),
        }
    }

    /// Leaves the task's waker for the next event of either direction; returns whether there was one already.
    pub(crate) fn poll_event(&self, cx: &mut Context<'_>) -> bool {
        let rx = self.rx_channel.as_ref().is_some_and(|channel| channel.poll_event(cx).is_ready());
        matches!(self.channel.poll_event(cx), Poll::Ready(())) || rx
    }
}

/// An empty ring in a page that the backend may write to.
pub(crate) fn share_ring<'x, P: Platform, R: Protocol>(
    grants: &'x GrantTable<P>,
    backend: DomId,
) -> Result<Front<R, GrantedPage<'x, P>>, Error> {
    Front::init(grants.share(backend, Access::ReadWrite)?).map_err(broken)
}
