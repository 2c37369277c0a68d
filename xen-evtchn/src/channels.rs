//! The domain's event channels, and the interrupt side of all of them.

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;

use xen_hypercall::{DomId, Errno, Platform, SharedInfo, VcpuId, Wait, event};

use crate::board::VcpuBoard;
use crate::port::Place;
use crate::records::{Record, Records};
use crate::two_level::{self, Board, Scan};
use crate::{Channel, Error, Port, Virq};

/// All event channels of a domain, with the two-level ABI. One per domain; used by shared reference.
///
/// Nothing in it blocks, and everything that an interrupt handler may call touches atomics only.
pub struct EventChannels<P: Platform> {
    records: Records<P>,
    shared: SharedInfo,
    totals: Totals,
    /// Something fired since [`EventChannels::wait`] returned last.
    unseen: AtomicBool,
}

#[derive(Default)]
struct Totals {
    notifications: AtomicU64,
    upcalls: AtomicU64,
    events: AtomicU64,
    stray: AtomicU64,
}

/// Totals over all channels since the start; each wraps around after 2^64.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Events sent by this domain: hypercalls `EVTCHNOP_send` that succeeded.
    pub notifications: u64,
    /// Times [`EventChannels::dispatch`] found that Xen had asked for an upcall.
    pub upcalls: u64,
    /// Events delivered to channels.
    pub events: u64,
    /// Events for ports without an owner, dropped. Ports without owner are masked, so this counts the few that come while a
    /// channel is closed, and misbehaviour of other code in the guest.
    pub stray: u64,
}

impl<P: Platform> EventChannels<P> {
    /// Takes over event delivery. Masks every port: none is delivered before it has an owner.
    ///
    /// Events that are pending already, such as xenstore's from before the guest started, stay so and are delivered when
    /// their port is [adopted](Self::adopt).
    ///
    /// # Errors
    /// None at present; the FIFO ABI, which needs hypercalls here, will have some.
    pub fn new(platform: P, shared: SharedInfo) -> Result<Self, Error> {
        let channels = Self {
            records: Records::new(platform),
            shared,
            totals: Totals::default(),
            unseen: AtomicBool::new(false),
        };
        for word in 0..64 {
            channels.board().set_mask(word, !0);
        }
        Ok(channels)
    }

    /// The platform that everything runs on.
    pub fn platform(&self) -> &P {
        self.records.memory()
    }

    /// The page shared with Xen.
    pub fn shared_info(&self) -> SharedInfo {
        self.shared
    }

    /// A new port that `remote` may bind to, once. Its number goes to `remote` by xenstore.
    ///
    /// # Errors
    /// Xen's (`ENOSPC`: no port left), or [`Error::OutOfMemory`].
    pub fn alloc_unbound(&self, remote: DomId) -> Result<Channel<'_, P>, Error> {
        self.bound("EVTCHNOP_alloc_unbound", event::alloc_unbound(self.platform(), remote))
    }

    /// Connects to a port that `remote` allocated for this domain.
    ///
    /// The new channel has an event at once: `remote` may have sent before anybody could receive it.
    ///
    /// # Errors
    /// Xen's (`EINVAL`: no such port, or not for this domain; `ESRCH`: no such domain), or [`Error::OutOfMemory`].
    pub fn bind_interdomain(&self, remote: DomId, remote_port: Port) -> Result<Channel<'_, P>, Error> {
        let port = event::bind_interdomain(self.platform(), remote, remote_port.0);
        self.bound("EVTCHNOP_bind_interdomain", port)
    }

    /// A channel for a virtual interrupt.
    ///
    /// # Errors
    /// Xen's (`EEXIST`: bound already; `EINVAL`: no such VIRQ, or a global one not on vCPU 0; `ENOENT`: no such vCPU), or
    /// [`Error::OutOfMemory`].
    pub fn bind_virq(&self, virq: Virq, vcpu: VcpuId) -> Result<Channel<'_, P>, Error> {
        self.bound("EVTCHNOP_bind_virq", event::bind_virq(self.platform(), virq.0, vcpu))
    }

    /// A channel by which this domain interrupts its own vCPU: [`Channel::notify`] sends.
    ///
    /// # Errors
    /// Xen's (`ENOENT`: no such vCPU), or [`Error::OutOfMemory`].
    pub fn bind_ipi(&self, vcpu: VcpuId) -> Result<Channel<'_, P>, Error> {
        self.bound("EVTCHNOP_bind_ipi", event::bind_ipi(self.platform(), vcpu))
    }

    /// Takes a port that the toolstack bound for this domain before it started: xenstore's and the console's.
    ///
    /// Such a port cannot be bound a second time, so dropping the channel masks it and does not close it; it can be adopted
    /// again. Closing the xenstore's port would leave the domain without xenstore for good.
    ///
    /// # Errors
    /// [`Error::PortOutOfRange`], [`Error::PortClosed`], [`Error::PortInUse`], [`Error::OutOfMemory`], or Xen's.
    pub fn adopt(&self, port: Port) -> Result<Channel<'_, P>, Error> {
        let place = port.place().ok_or(Error::PortOutOfRange(port))?;
        let status = event::status(self.platform(), port.0)
            .map_err(|errno| Error::Hypercall { operation: "EVTCHNOP_status", errno })?;
        if status.status == 0 {
            return Err(Error::PortClosed(port));
        }
        self.own(port, place, false)
    }

    /// The interrupt side: takes the events that are due on a vCPU and wakes their channels. Answers how many there were.
    ///
    /// Call it on vCPU `vcpu` when Xen's upcall arrives, or from the main loop instead ([`wait`](Self::wait) does). It only
    /// touches atomics, takes each event once and ends, so it may run in an interrupt handler, nested, and on several vCPUs
    /// at once. The wakers that tasks left with [`Channel::poll_event`] are called here, so they must allow that.
    pub fn dispatch(&self, vcpu: VcpuId) -> usize {
        let Some(info) = self.shared.vcpu(vcpu) else { return 0 };
        // Plain loads first: a main loop that polls pays two of them while nothing happens.
        if info.upcall_pending.load(Ordering::Relaxed) == 0 && info.pending_sel.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        let Scan { upcall, events } = two_level::scan(&VcpuBoard { shared: &self.shared, vcpu }, |port| {
            let record = Port(port).place().and_then(|place| self.records.get(place));
            match record.filter(|record| record.is_owned()) {
                Some(record) => self.deliver(record),
                None => {
                    self.totals.stray.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        if upcall {
            self.totals.upcalls.fetch_add(1, Ordering::Relaxed);
        }
        events
    }

    /// Lets the time pass until something fired on vCPU 0, the deadline came, or for no reason; callers look again.
    ///
    /// Takes pending events; if there are none, and none were dispatched by an interrupt handler since the last `wait`,
    /// leaves the waiting to the platform. For one waiter at a time.
    ///
    /// When the platform's interrupt handler itself calls [`dispatch`](Self::dispatch), an event may come and be taken
    /// between the look here and the platform going to sleep. [`Wait::wait`] of such a platform must see to that, by
    /// returning if its handler ran since the last return, checked with interrupts off. A handler that only acknowledges
    /// the interrupt and leaves the dispatching to `wait` has nothing to see to: the upcall byte stays set.
    pub fn wait(&self, deadline: Option<Duration>)
    where
        P: Wait,
    {
        self.dispatch(VcpuId(0));
        if !self.unseen.swap(false, Ordering::AcqRel) {
            self.platform().wait(deadline);
            self.dispatch(VcpuId(0));
            self.unseen.store(false, Ordering::Release);
        }
    }

    /// The totals so far.
    pub fn stats(&self) -> Stats {
        Stats {
            notifications: self.totals.notifications.load(Ordering::Relaxed),
            upcalls: self.totals.upcalls.load(Ordering::Relaxed),
            events: self.totals.events.load(Ordering::Relaxed),
            stray: self.totals.stray.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn board(&self) -> VcpuBoard<'_> {
        VcpuBoard { shared: &self.shared, vcpu: VcpuId(0) }
    }

    pub(crate) fn deliver(&self, record: &Record) {
        record.fire();
        self.totals.events.fetch_add(1, Ordering::Relaxed);
        self.unseen.store(true, Ordering::Release);
    }

    pub(crate) fn count_notification(&self) {
        self.totals.notifications.fetch_add(1, Ordering::Relaxed);
    }

    /// Makes a channel of what a bind operation answered.
    fn bound(&self, operation: &'static str, port: Result<u32, Errno>) -> Result<Channel<'_, P>, Error> {
        let port = Port(port.map_err(|errno| Error::Hypercall { operation, errno })?);
        let channel = match port.place() {
            Some(place) => self.own(port, place, true),
            None => Err(Error::PortOutOfRange(port)),
        };
        if channel.is_err() {
            // Nobody can own it, so it must not stay open; if closing fails as well the first error says more.
            let _ = event::close(self.platform(), port.0);
        }
        channel
    }

    fn own(&self, port: Port, place: Place, closes: bool) -> Result<Channel<'_, P>, Error> {
        let record = self.records.ensure(place)?;
        if !record.claim() {
            return Err(Error::PortInUse(port));
        }
        let channel = Channel::new(self, port, place, record, closes);
        // A port without owner is masked. Only now may events reach the record.
        channel.unmask();
        Ok(channel)
    }
}

impl<P: Platform> fmt::Debug for EventChannels<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventChannels").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
