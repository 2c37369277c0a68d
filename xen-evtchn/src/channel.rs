//! One event channel, as an owning handle.

use core::fmt;
use core::task::{Context, Poll};

use xen_hypercall::{DomId, Errno, Platform, VcpuId, event};

use crate::port::Place;
use crate::records::Record;
use crate::two_level::{self, Board};
use crate::{Error, EventChannels, Port, Virq};

/// This domain's end of an event channel. Dropping it closes the port (an [adopted](EventChannels::adopt) one is only
/// masked), so that the number is never used after it may mean something else.
///
/// An event carries no data and is not counted: any number of them before the receiver looks is one. It says "look at
/// what we share", and may come without reason; a receiver looks and is content with finding nothing.
pub struct Channel<'e, P: Platform> {
    events: &'e EventChannels<P>,
    record: &'e Record,
    port: Port,
    place: Place,
    closes: bool,
}

/// One channel's counters since it was bound.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ChannelStats {
    /// Events that arrived and were delivered.
    pub events: u64,
    /// Events sent.
    pub notifications: u64,
}

/// What a port is connected to (`EVTCHNSTAT_*` in Xen's `event_channel.h`).
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// Nothing: the port is free.
    Closed,
    /// Waiting for this domain to bind to it; also after the other end closed.
    Unbound {
        /// Who may bind.
        remote: DomId,
    },
    /// Another domain's port.
    Interdomain {
        /// The other domain.
        remote: DomId,
        /// Its port.
        port: Port,
    },
    /// A physical interrupt.
    Pirq(u32),
    /// A virtual interrupt.
    Virq(Virq),
    /// The domain's own vCPU.
    Ipi,
    /// Something that this crate does not know.
    Unknown(u32),
}

impl<'e, P: Platform> Channel<'e, P> {
    pub(crate) fn new(
        events: &'e EventChannels<P>,
        port: Port,
        place: Place,
        record: &'e Record,
        closes: bool,
    ) -> Self {
        Self { events, record, port, place, closes }
    }

    /// The port's number, which the other end needs to bind to it.
    pub fn port(&self) -> Port {
        self.port
    }

    /// The domain's event channels, of which this is one.
    pub fn event_channels(&self) -> &'e EventChannels<P> {
        self.events
    }

    /// Sends an event to the other end. While nobody is bound there it is dropped (`EVTCHNOP_send`).
    ///
    /// # Errors
    /// Xen's: `EINVAL` if the channel cannot send, because it is a VIRQ's or its port was closed behind our back.
    pub fn notify(&self) -> Result<(), Error> {
        event::send(self.events.platform(), self.port.0).map_err(refused("EVTCHNOP_send"))?;
        self.record.notified();
        self.events.count_notification();
        Ok(())
    }

    /// Keeps events from being delivered; what comes meanwhile stays pending. No hypercall.
    pub fn mask(&self) {
        self.events.board().set_mask(self.place.word, self.place.bit());
    }

    /// Lets events be delivered again, including one that came while the port was masked.
    ///
    /// No hypercall unless an event is pending. Then Xen must raise it again (`EVTCHNOP_unmask`), because the upcall that
    /// masking suppressed does not come by itself, and the port may be bound to another vCPU.
    pub fn unmask(&self) {
        let (word, bit) = (self.place.word, self.place.bit());
        let board = self.events.board();
        let refire = || event::unmask(self.events.platform(), self.port.0).is_ok();
        if !two_level::unmask(&board, word, bit, refire) && board.clear_pending(word, bit) & bit != 0 {
            // Xen does not know the port any more. The event is here nevertheless, and its owner may wait for it.
            self.events.deliver(self.record);
        }
    }

    /// Whether events are kept from being delivered.
    pub fn is_masked(&self) -> bool {
        self.events.board().mask(self.place.word) & self.place.bit() != 0
    }

    /// Whether an event arrived since the last call, which this call thereby takes.
    pub fn take(&self) -> bool {
        self.record.take()
    }

    /// [`take`](Self::take) for a task: when there is no event yet the task is woken by the next one.
    ///
    /// One task per channel: the last that polled is the one that is woken.
    pub fn poll_event(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.take() {
            return Poll::Ready(());
        }
        self.record.waker().register(cx.waker());
        // An event between the look and the registration found no waker, so look again.
        if self.take() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Lets `vcpu` receive this channel's events (`EVTCHNOP_bind_vcpu`); at first that is vCPU 0.
    ///
    /// # Errors
    /// Xen's: `EINVAL` for IPIs and per-vCPU VIRQs, whose vCPU is fixed; `ENOENT` for a vCPU that does not exist.
    pub fn bind_vcpu(&self, vcpu: VcpuId) -> Result<(), Error> {
        event::bind_vcpu(self.events.platform(), self.port.0, vcpu).map_err(refused("EVTCHNOP_bind_vcpu"))
    }

    /// What the port is connected to now (`EVTCHNOP_status`).
    ///
    /// # Errors
    /// Xen's.
    pub fn status(&self) -> Result<Status, Error> {
        let status =
            event::status(self.events.platform(), self.port.0).map_err(refused("EVTCHNOP_status"))?;
        // The C structure ends in a union: a physical or virtual interrupt's number stands where the domain's does.
        let number = u32::from(status.pad1) << 16 | u32::from(status.remote_dom);
        Ok(match status.status {
            0 => Status::Closed,
            1 => Status::Unbound { remote: DomId(status.remote_dom) },
            2 => Status::Interdomain { remote: DomId(status.remote_dom), port: Port(status.remote_port) },
            3 => Status::Pirq(number),
            4 => Status::Virq(Virq(number)),
            5 => Status::Ipi,
            other => Status::Unknown(other),
        })
    }

    /// The channel's counters.
    pub fn stats(&self) -> ChannelStats {
        ChannelStats { events: self.record.events(), notifications: self.record.notifications() }
    }
}

impl<P: Platform> Drop for Channel<'_, P> {
    fn drop(&mut self) {
        // Masked first, so that nothing reaches the record after it is released; released before the close, because from
        // then on Xen may give the number to somebody else.
        self.mask();
        self.record.release();
        if self.closes {
            // Fails only for a port that is closed already, which is what is wanted.
            let _ = event::close(self.events.platform(), self.port.0);
        }
    }
}

impl<P: Platform> fmt::Debug for Channel<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("port", &self.port.0)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

fn refused(operation: &'static str) -> impl Fn(Errno) -> Error {
    move |errno| Error::Hypercall { operation, errno }
}
