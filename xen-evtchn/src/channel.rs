//! One event channel, as an owning handle.

use core::fmt;
use core::task::{Context, Poll};

use xen_hypercall::{DomId, Errno, Incarnation, Platform, VcpuId, event};

use crate::record::{Record, UNFINISHED};
use crate::{Error, EventChannels, Port, Priority, Virq};

/// This domain's end of an event channel. Dropping it closes the port (an [adopted](EventChannels::adopt) one is only
/// masked), so that the number is never used after it may mean something else.
///
/// An event carries no data and is not counted: any number of them before the receiver looks is one. It says "look at
/// what we share", and may come without reason; a receiver looks and is content with finding nothing.
pub struct Channel<'e, P: Platform> {
    events: &'e EventChannels<P>,
    record: &'e Record,
    port: Port,
    closes: bool,
    /// The life of the domain in which the port means this channel.
    life: Incarnation,
}

/// One channel's counters since it was bound.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ChannelStats {
    /// Events that arrived and were delivered.
    pub events: u64,
    /// Events sent.
    pub notifications: u64,
    /// Events whose end was [`Progress::Spurious`].
    pub spurious: u64,
    /// How often the channel was throttled for that.
    pub throttled: u64,
}

/// What an event brought, as its receiver says at the [end](Channel::done) of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// There was something to do.
    Work,
    /// There was nothing to do.
    Spurious,
}

impl Progress {
    /// [`Work`](Self::Work) if anything was done.
    pub const fn of(worked: bool) -> Self {
        if worked { Self::Work } else { Self::Spurious }
    }
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
    pub(crate) fn new(events: &'e EventChannels<P>, port: Port, record: &'e Record, closes: bool) -> Self {
        Self { events, record, port, closes, life: events.life() }
    }

    /// Whether the port is still this channel's: the domain has not been resumed in a new domain since the channel was made.
    /// Of a stale channel all that asks Xen returns [`Error::Stale`], [`poll_event`](Self::poll_event) is ready at once, and
    /// nothing else does anything.
    #[inline]
    pub fn is_current(&self) -> bool {
        self.events.incarnation() == self.life
    }

    fn current(&self) -> Result<(), Error> {
        if self.is_current() { Ok(()) } else { Err(Error::Stale) }
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
        self.current()?;
        event::send(self.events.platform(), self.port.0).map_err(refused("EVTCHNOP_send"))?;
        self.record.notified();
        self.events.count_notification();
        Ok(())
    }

    /// Keeps events from being delivered; what comes meanwhile stays pending. No hypercall.
    pub fn mask(&self) {
        if self.is_current() {
            self.events.set_masked(self.port, self.record, true);
        }
    }

    /// Lets events be delivered again, including one that came while the port was masked.
    ///
    /// No hypercall unless an event is pending. Then Xen must raise it again (`EVTCHNOP_unmask`), because the upcall that
    /// masking suppressed does not come by itself, and the port may be bound to another vCPU.
    pub fn unmask(&self) {
        if self.is_current() {
            self.events.set_masked(self.port, self.record, false);
        }
    }

    /// Whether events are kept from being delivered, for whatever reason.
    pub fn is_masked(&self) -> bool {
        !self.is_current() || self.events.abi().is_masked(self.events.shared(), self.port)
    }

    /// Whether an event arrived since the last call, which this call thereby takes.
    pub fn take(&self) -> bool {
        self.is_current() && self.record.take()
    }

    /// [`take`](Self::take) for a task: when there is no event yet the task is woken by the next one.
    ///
    /// One task per channel: the last that polled is the one that is woken.
    pub fn poll_event(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.take() || !self.is_current() {
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
        self.current()?;
        event::bind_vcpu(self.events.platform(), self.port.0, vcpu).map_err(refused("EVTCHNOP_bind_vcpu"))
    }

    /// Chooses how urgent this channel's later events are (`EVTCHNOP_set_priority`). An event that is waiting to be
    /// dispatched stays where it is.
    ///
    /// # Errors
    /// Xen's: `ENOSYS` under the two-level ABI, which has no priorities; `EINVAL` above 15.
    pub fn set_priority(&self, priority: Priority) -> Result<(), Error> {
        self.current()?;
        event::set_priority(self.events.platform(), self.port.0, priority.0.into())
            .map_err(refused("EVTCHNOP_set_priority"))
    }

    /// Switches to ending events late: a defence against a peer that keeps the guest busy with events.
    ///
    /// From then on the port is masked when an event is delivered, and stays so until the receiver calls [`done`](Self::done),
    /// so that a peer causes one interrupt each time the receiver looks, and not one each time it sends. Nothing is lost:
    /// what is sent meanwhile is delivered after that. A receiver that switches this on and does not call `done` gets one
    /// event and no more. A new channel has it off; switching off ends the event that is under way.
    pub fn set_late_eoi(&self, on: bool) {
        if !self.is_current() {
            return;
        }
        self.record.set_late(on);
        if !on {
            self.end();
        }
    }

    /// Ends the event under way, if there is one: the receiver has looked at what it shares with the peer, and says whether
    /// there was anything to do. For channels with [late end](Self::set_late_eoi); without that it does nothing but count.
    ///
    /// The place for it is the end of a driver's poll, after the last look at its ring, event or not. Work unmasks the port at
    /// once. An event that brought nothing is forgiven the first time, for what it announced may have been found before
    /// it came; from the second in a row on the port stays masked for a while, 1 ms at first, then twice as long each time
    /// up to 1 s, until work is found, be it by polling, or the time is up. So a peer that sends events without reason
    /// gets about one per second through, whatever it does. One that does give work with each event is bounded by how
    /// fast the receiver does it.
    ///
    /// The time passes in [`EventChannels::wait_since`]; who waits by other means asks [`EventChannels::next_unmask`] how long that
    /// may be, then calls [`EventChannels::unmask_due`].
    #[inline]
    pub fn done(&self, progress: Progress) {
        if !self.is_current() {
            return;
        }
        match progress {
            Progress::Work => {
                if !self.record.is_quiet() {
                    self.record.progressed();
                    self.end();
                }
            }
            Progress::Spurious => self.done_in_vain(),
        }
    }

    fn done_in_vain(&self) {
        if self.record.held() & UNFINISHED == 0 || self.record.is_throttled() {
            // No event is under way, or its end has been told already: a driver that polls without reason.
            return;
        }
        match self.record.went_in_vain() {
            None => self.end(),
            Some(pause) => self.events.throttle(self.record, pause),
        }
    }

    fn end(&self) {
        self.events.unthrottle(self.record);
        self.events.let_go(self.port, self.record, UNFINISHED);
    }

    /// What the port is connected to now (`EVTCHNOP_status`).
    ///
    /// # Errors
    /// Xen's.
    pub fn status(&self) -> Result<Status, Error> {
        self.current()?;
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
        if !self.is_current() {
            return ChannelStats::default();
        }
        ChannelStats {
            events: self.record.events(),
            notifications: self.record.notifications(),
            spurious: self.record.spurious(),
            throttled: self.record.throttled(),
        }
    }
}

impl<P: Platform> Drop for Channel<'_, P> {
    fn drop(&mut self) {
        if !self.is_current() {
            // Port and record may be another channel's.
            return;
        }
        // Masked first, so that nothing reaches the record after it is released; released before the close, because from
        // then on Xen may give the number to somebody else.
        self.events.abandon(self.port, self.record);
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
