//! One event channel, as an owning handle.

use core::fmt;
use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::task::{Context, Poll};

use xen_hypercall::{DomId, Errno, Incarnation, Platform, VcpuId, event};

use crate::record::Record;
use crate::records::RecordRef;
use crate::{Error, EventChannels, Port, Priority, Virq};

/// This domain's end of an event channel. Dropping it masks the port, then closes it; an [adopted](EventChannels::adopt) port is
/// only masked. So the number is never used after it may mean something else.
///
/// An event carries no data and is not counted: any number of events before the receiver looks is one. An event is a hint to
/// look at what both ends share. It may come without reason, so a receiver may look and find nothing.
///
/// Where another domain sends the events ([`alloc_unbound`](EventChannels::alloc_unbound),
/// [`bind_interdomain`](EventChannels::bind_interdomain)) a channel is masked from the delivery of an event until the
/// receiver calls [`done`](Self::done); see [`set_late_eoi`](Self::set_late_eoi).
pub struct Channel<'e, P: Platform> {
    events: &'e EventChannels<P>,
    record: RecordRef<'e>,
    /// The port, and above it the life of the domain in which it means this channel.
    place: AtomicU64,
    closes: bool,
    /// Somebody is about to [bind](Self::rebind) it again.
    rebinding: AtomicBool,
    source: Source,
}

/// Who sends the events: what can be bound again without asking anybody.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    /// Xen, to a vCPU.
    Virq(Virq, VcpuId),
    /// This domain, to a vCPU of its own.
    Ipi(VcpuId),
    /// Another domain.
    Other,
}

impl Source {
    /// Which vCPU gets the events, if that is certain.
    pub(crate) fn vcpu(self) -> Option<VcpuId> {
        match self {
            Self::Virq(_, vcpu) | Self::Ipi(vcpu) => Some(vcpu),
            Self::Other => None,
        }
    }
}

/// A port in a life of the domain.
fn place(port: Port, life: Incarnation) -> u64 {
    u64::from(life.number()) << 32 | u64::from(port.0)
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
#[non_exhaustive]
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
    pub(crate) fn new(
        events: &'e EventChannels<P>,
        port: Port,
        record: &'e Record,
        closes: bool,
        source: Source,
    ) -> Self {
        Self {
            events,
            record: RecordRef::new(record),
            place: AtomicU64::new(place(port, events.life())),
            closes,
            rebinding: AtomicBool::new(false),
            source,
        }
    }

    /// Whether the port is still this channel's: the domain has not been resumed in a new domain since the channel was made.
    /// Of a stale channel all that asks Xen returns [`Error::Stale`], [`poll_event`](Self::poll_event) is ready at once, and
    /// nothing else does anything.
    #[inline]
    pub fn is_current(&self) -> bool {
        let life = self.place.load(Ordering::Acquire) >> 32;
        u64::from(self.events.incarnation().number()) == life
    }

    fn current(&self) -> Result<(), Error> {
        if self.is_current() { Ok(()) } else { Err(Error::Stale) }
    }

    /// Binds a stale channel of a VIRQ or an IPI to what it was bound to, in the domain's new life. A channel that is not stale
    /// stays as it is. It has another [`port`](Self::port) then, counts from zero, and is neither masked nor
    /// [ended late](Self::set_late_eoi).
    ///
    /// # Errors
    /// [`Error::Stale`] while the [event channels](EventChannels::resume) are, and for a channel of another domain's, which is to
    /// be made anew with that domain. [`Error::Busy`] while another vCPU does this. Otherwise as
    /// [`EventChannels::bind_virq`] and [`EventChannels::bind_ipi`].
    pub fn rebind(&self) -> Result<(), Error> {
        if self.is_current() {
            return Ok(());
        }
        if self.rebinding.swap(true, Ordering::Acquire) {
            return Err(Error::Busy);
        }
        let bound = match self.source {
            Source::Virq(virq, vcpu) => self.events.bind_virq(virq, vcpu),
            Source::Ipi(vcpu) => self.events.bind_ipi(vcpu),
            Source::Other => Err(Error::Stale),
        };
        let bound = bound.map(|fresh| {
            // Its port and record are this one's now.
            let fresh = ManuallyDrop::new(fresh);
            self.record.set(fresh.record.get());
            // Whoever finds the channel to be current finds the record.
            self.place.store(fresh.place.load(Ordering::Relaxed), Ordering::Release);
        });
        self.rebinding.store(false, Ordering::Release);
        bound
    }

    /// The port's number, which the other end needs to bind to it.
    pub fn port(&self) -> Port {
        Port(self.place.load(Ordering::Acquire) as u32)
    }

    /// The domain's event channels, of which this is one.
    pub fn event_channels(&self) -> &'e EventChannels<P> {
        self.events
    }

    #[inline]
    fn record(&self) -> &'e Record {
        self.record.get()
    }

    /// Sends an event to the other end. While nobody is bound there it is dropped (`EVTCHNOP_send`).
    ///
    /// # Errors
    /// Xen's: `EINVAL` if the channel cannot send, because it is a VIRQ's or its port was closed behind our back.
    pub fn notify(&self) -> Result<(), Error> {
        // Port and life by one look.
        let place = self.place.load(Ordering::Acquire);
        if u64::from(self.events.incarnation().number()) != place >> 32 {
            return Err(Error::Stale);
        }
        event::send(self.events.platform(), place as u32).map_err(refused("EVTCHNOP_send"))?;
        self.record().notified();
        Ok(())
    }

    /// Keeps events from being delivered; what comes meanwhile stays pending. No hypercall.
    pub fn mask(&self) {
        if self.is_current() {
            self.events.set_masked(self.port(), self.record(), true);
        }
    }

    /// Lets events be delivered again, including one that came while the port was masked.
    ///
    /// No hypercall unless an event is pending. Then Xen must raise it again (`EVTCHNOP_unmask`), because the upcall that
    /// masking suppressed does not come by itself, and the port may be bound to another vCPU.
    pub fn unmask(&self) {
        if self.is_current() {
            self.events.set_masked(self.port(), self.record(), false);
        }
    }

    /// Whether events are kept from being delivered, for whatever reason.
    pub fn is_masked(&self) -> bool {
        !self.is_current() || self.events.abi().is_masked(self.events.shared(), self.port())
    }

    /// Whether an event arrived since the last call, which this call thereby takes.
    pub fn take(&self) -> bool {
        self.is_current() && self.record().take()
    }

    /// [`take`](Self::take) for a task: when there is no event yet the task is woken by the next one.
    ///
    /// All tasks that wait are woken, and the first that looks takes the event. So a task that is dropped while it waits keeps
    /// the event from no other. A channel holds the wakers of four tasks. A fifth takes the place of another one, which is
    /// woken, looks again, and finds no event: more than four tasks that wait for one channel keep each other busy.
    pub fn poll_event(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.take() || !self.is_current() {
            return Poll::Ready(());
        }
        self.record().leave_waker(cx.waker());
        // An event between the look and the registration found no waker, so look again.
        if self.take() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Lets `vcpu` receive this channel's events (`EVTCHNOP_bind_vcpu`); at first that is vCPU 0.
    ///
    /// # Errors
    /// [`Error::VcpuOutOfRange`], [`Error::VcpuNotAdded`]; Xen's: `EINVAL` for IPIs and per-vCPU VIRQs, whose vCPU is fixed;
    /// `ENOENT` for a vCPU that does not exist.
    pub fn bind_vcpu(&self, vcpu: VcpuId) -> Result<(), Error> {
        self.current()?;
        self.events.has_vcpu(vcpu)?;
        event::bind_vcpu(self.events.platform(), self.port().0, vcpu).map_err(refused("EVTCHNOP_bind_vcpu"))
    }

    /// Chooses how urgent this channel's later events are (`EVTCHNOP_set_priority`). An event that is waiting to be
    /// dispatched stays where it is.
    ///
    /// # Errors
    /// Xen's: `ENOSYS` under the two-level ABI, which has no priorities; `EINVAL` above 15.
    pub fn set_priority(&self, priority: Priority) -> Result<(), Error> {
        self.current()?;
        event::set_priority(self.events.platform(), self.port().0, priority.0.into())
            .map_err(refused("EVTCHNOP_set_priority"))
    }

    /// Switches late end of events on or off: a defence against a peer that keeps the guest busy with events.
    ///
    /// With it the port is masked when an event is delivered, and stays masked until the receiver calls [`done`](Self::done).
    /// So a peer causes one interrupt for each look of the receiver, and not one for each event that it sends. No event is lost:
    /// those that are sent meanwhile are delivered afterwards, as one. A receiver that does not call `done` gets one event
    /// and no more.
    ///
    /// A new channel has it on if another domain sends the events ([`alloc_unbound`](EventChannels::alloc_unbound),
    /// [`bind_interdomain`](EventChannels::bind_interdomain)). A VIRQ, an IPI and an
    /// [adopted](EventChannels::adopt) port have it off. Switching it off ends the event that is under way.
    pub fn set_late_eoi(&self, on: bool) {
        if !self.is_current() {
            return;
        }
        self.record().set_late(on);
        if !on {
            self.events.finish(self.port(), self.record());
        }
    }

    /// Ends the event under way, if there is one: the receiver has looked at what it shares with the peer, and says whether
    /// there was work. Without [late end](Self::set_late_eoi) no event is ever under way, and this does nothing.
    ///
    /// A driver calls it at the end of its poll, after the last look at its ring, whether there was an event or not.
    /// [`Progress::Work`] unmasks the port at once. The first event that brought nothing is forgiven, for its work may have been
    /// found before the event came. From the second in a row on the channel is *throttled*: its port stays masked for 1 ms,
    /// then twice as long each time, up to 1 s. The pause ends early when the receiver finds work by polling. So a peer that
    /// sends events without reason gets about one per second through. A peer that gives work with each event is bounded by
    /// how fast the receiver does the work.
    ///
    /// The pause ends in [`EventChannels::wait_since`]. A receiver that sleeps by other means asks
    /// [`EventChannels::next_unmask`] for the time, then calls [`EventChannels::unmask_due`].
    #[inline]
    pub fn done(&self, progress: Progress) {
        match progress {
            Progress::Work => {
                // First what is nearly always so.
                if !self.record().is_quiet() && self.is_current() {
                    self.record().progressed();
                    self.events.finish(self.port(), self.record());
                }
            }
            Progress::Spurious => self.done_in_vain(),
        }
    }

    fn done_in_vain(&self) {
        if !self.record().is_unfinished() || !self.is_current() {
            // No event is under way, or its end has been told already: a driver that polls without reason.
            return;
        }
        match self.record().went_in_vain() {
            None => self.events.finish(self.port(), self.record()),
            Some(pause) => self.events.throttle(self.record(), pause),
        }
    }

    /// What the port is connected to now (`EVTCHNOP_status`).
    ///
    /// # Errors
    /// Xen's.
    pub fn status(&self) -> Result<Status, Error> {
        self.current()?;
        let status =
            event::status(self.events.platform(), self.port().0).map_err(refused("EVTCHNOP_status"))?;
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
            events: self.record().events(),
            notifications: self.record().notifications(),
            spurious: self.record().spurious(),
            throttled: self.record().throttled(),
        }
    }
}

impl<P: Platform> Drop for Channel<'_, P> {
    fn drop(&mut self) {
        if !self.is_current() {
            // Port and record may be another channel's.
            return;
        }
        self.events.abandon(self.port(), self.record(), self.closes);
    }
}

impl<P: Platform> fmt::Debug for Channel<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("port", &self.port().0)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

fn refused(operation: &'static str) -> impl Fn(Errno) -> Error {
    move |errno| Error::Hypercall { operation, errno }
}
