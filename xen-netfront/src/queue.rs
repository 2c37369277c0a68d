//! A queue: a ring for each direction, and how the two sides wake each other.

use core::task::{Context, Poll};

use xen_evtchn::{Channel, EventChannels, Progress};
use xen_gnttab::GrantTable;
use xen_hypercall::{DomId, Platform};

use crate::rx::RxQueue;
use crate::tx::{TxQueue, broken};
use crate::{Config, Error, Stats};

pub(crate) struct Queue<'x, P: Platform> {
    pub(crate) tx: TxQueue<'x, P>,
    pub(crate) rx: RxQueue<'x, P>,
    /// For both directions, or for sending alone.
    pub(crate) channel: Channel<'x, P>,
    pub(crate) rx_channel: Option<Channel<'x, P>>,
}

impl<'x, P: Platform> Queue<'x, P> {
    pub(crate) fn new(
        events: &'x EventChannels<P>,
        grants: &'x GrantTable<P>,
        backend: DomId,
        config: &Config,
        split: bool,
    ) -> Result<Self, Error> {
        let tx = TxQueue::new(grants, backend, config.tx_pages)?;
        let rx = RxQueue::new(grants, backend, config.rx_pages)?;
        let channel = events.alloc_unbound(backend)?;
        let rx_channel = if split { Some(events.alloc_unbound(backend)?) } else { None };
        Ok(Self { tx, rx, channel, rx_channel })
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
    /// at the next frame; answers whether one is there.
    pub(crate) fn arm_receive(&mut self, stats: &mut Stats) -> Result<bool, Error> {
        self.rx.refill()?;
        if self.rx.ring.publish().map_err(broken)? {
            stats.notifications += 1;
            self.receive_channel().notify()?;
        }
        self.rx.ring.arm().map_err(broken)
    }

    /// Shows the backend what was queued to be sent, and notifies it if it sleeps.
    #[cfg(feature = "smoltcp-v0-14")]
    pub(crate) fn publish_transmit(&mut self, stats: &mut Stats) -> Result<(), Error> {
        if self.tx.ring.publish().map_err(broken)? {
            stats.notifications += 1;
            self.channel.notify()?;
        }
        Ok(())
    }

    /// Takes back what was sent if fewer than `wanted` pages are left, and asks for an event when half of what is still
    /// under way is sent, if they are too few even so: whoever has that much to send is better woken for many of them
    /// than for each. Answers whether as many came back as somebody may wait for, or all there are.
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

    /// The end of a look at both rings: events may come again. `ready` are the answers of the two above.
    pub(crate) fn end_of_look(&mut self, rx_ready: bool, tx_ready: bool) {
        let (rx, tx) = (rx_ready | self.rx.worked, tx_ready | self.tx.worked);
        (self.rx.worked, self.tx.worked) = (false, false);
        match &self.rx_channel {
            Some(channel) => {
                channel.done(Progress::of(rx));
                self.channel.done(Progress::of(tx));
            }
            None => self.channel.done(Progress::of(rx | tx)),
        }
    }

    /// Leaves the task's waker for the next event of either direction; answers whether there was one already.
    pub(crate) fn poll_event(&self, cx: &mut Context<'_>) -> bool {
        let rx = self.rx_channel.as_ref().is_some_and(|channel| channel.poll_event(cx).is_ready());
        matches!(self.channel.poll_event(cx), Poll::Ready(())) || rx
    }
}
