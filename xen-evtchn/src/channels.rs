//! The domain's event channels, and the interrupt side of all of them.

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use core::time::Duration;

use xen_hypercall::{
    AtomicIncarnation, Claim, DomId, Domain, Errno, Incarnation, Part, Platform, SharedInfo, VcpuArea,
    VcpuId, Wait, event,
};

use crate::channel::Source;
use crate::delivery::{Abi, Delivery, Shared, Vcpu};
use crate::fifo::{FifoAbi, Pages};
use crate::records::Records;
use crate::two_level::TwoLevelAbi;
use crate::{Channel, Error, Port, Virq};

/// All event channels of a domain, of which it has one set: made once from its [`Domain`]. Used by shared reference.
///
/// Nothing in it blocks, and everything that an interrupt handler may call touches atomics only.
pub struct EventChannels<P: Platform> {
    records: Records<P>,
    /// The pages of the FIFO ABI, if that is in use.
    fifo: Option<Pages>,
    /// The life of the domain whose channels these are.
    life: AtomicIncarnation,
    /// Somebody is about to [set all up again](Self::resume).
    resuming: AtomicBool,
    abi: &'static dyn Delivery,
    totals: Totals,
    /// Numbers the passes of [`EventChannels::dispatch`]. A number that comes again after 2^32 does no harm.
    passes: AtomicU32,
    /// How many channels are throttled now.
    throttled: AtomicU32,
    /// Counts what a waiter has to look at again for.
    sequence: AtomicU64,
}

/// A moment in the row of a domain's events, see [`EventChannels::seq`]. A later event makes another number, of 64 bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct EventSeq(u64);

#[derive(Default)]
struct Totals {
    /// Those of channels whose port has had another owner since.
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
    /// Events for ports without an owner. Ports without owner are masked, so these come while a channel is closed or bound,
    /// or because other code in the guest unmasks ports. The next owner of the port gets one event for all of them.
    pub stray: u64,
    /// How many channels are [throttled](Channel::done) at the moment.
    pub throttled_now: u32,
}

impl<P: Platform> EventChannels<P> {
    /// Takes over event delivery, with the two-level ABI. Masks every port: none is delivered before it has an owner.
    ///
    /// Events that are pending already, such as xenstore's from before the guest started, stay so and are delivered when
    /// their port is [adopted](Self::adopt).
    ///
    /// # Errors
    /// [`Error::Claimed`].
    pub fn new(domain: &Domain<P>) -> Result<Self, Error>
    where
        P: Clone,
    {
        let claim = domain.claim(Part::EventChannels).ok_or(Error::Claimed)?;
        Ok(Self::two_level(claim))
    }

    /// Takes over event delivery with the ABI of choice, as [`new`](Self::new) does otherwise.
    ///
    /// Xen keeps to the choice until the domain ends or [resets](Self::reset) its channels; dropping the value does not change
    /// that and leaves the pages of the FIFO ABI with Xen. An image that never calls this does not hold the code of the FIFO
    /// ABI.
    ///
    /// # Errors
    /// [`Error::Claimed`]. With [`Abi::Fifo`], Xen's: `ENOSYS` if it has no FIFO ABI, `EINVAL` if a value from before was not
    /// reset. With [`Abi::Best`], whatever is not "this Xen has no FIFO ABI". [`Error::OutOfMemory`] with both.
    pub fn with_abi(domain: &Domain<P>, abi: Abi) -> Result<Self, Error>
    where
        P: Clone,
    {
        if abi == Abi::TwoLevel {
            return Self::new(domain);
        }
        let claim = domain.claim(Part::EventChannels).ok_or(Error::Claimed)?;
        match Pages::start(claim.platform()) {
            Ok(pages) => Ok(Self::start(claim, Some(pages), &FifoAbi)),
            Err(Error::Hypercall { errno: Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EPERM, .. })
                if abi == Abi::Best =>
            {
                Ok(Self::two_level(claim))
            }
            Err(error) => {
                claim.release();
                Err(error)
            }
        }
    }

    fn two_level(claim: Claim<P>) -> Self {
        TwoLevelAbi::mask_all(Shared { info: claim.shared_info(), fifo: None });
        Self::start(claim, None, &TwoLevelAbi)
    }

    fn start(claim: Claim<P>, fifo: Option<Pages>, abi: &'static dyn Delivery) -> Self {
        Self {
            life: AtomicIncarnation::new(claim.incarnation()),
            resuming: AtomicBool::new(false),
            records: Records::new(claim),
            fifo,
            abi,
            totals: Totals::default(),
            passes: AtomicU32::new(0),
            throttled: AtomicU32::new(0),
            sequence: AtomicU64::new(0),
        }
    }

    /// Closes every port of the domain, those of xenstore and the console included, and goes back to the two-level ABI
    /// (`EVTCHNOP_reset`): what a kernel does before it starts another one in its place. The domain's event channels can be
    /// claimed again.
    ///
    /// # Errors
    /// [`Error::Stale`], or Xen's. Then everything is lost as by dropping: the pages of the FIFO ABI stay with Xen.
    pub fn reset(self) -> Result<(), Error> {
        self.current()?;
        let Self { records, fifo, abi, .. } = self;
        abi.reset(fifo, records.claim().platform())?;
        records.release();
        Ok(())
    }

    /// Sets event delivery up again after a resume in a new domain, with the same ABI: every port is masked and has no
    /// owner, whatever numbers stale channels have, and new channels can be made. vCPUs that were
    /// [added](Self::add_vcpu) are there. All that wait are woken, and find their channels stale: those of VIRQs and IPIs
    /// [bind themselves again](Channel::rebind), the others are made anew with the other domain. When nothing is to be done,
    /// nothing is.
    ///
    /// Where Xen interrupts each vCPU is the kernel's to say again.
    ///
    /// # Errors
    /// Xen's, with the FIFO ABI: `ENOSYS` if this Xen has none. Then no channel can be made in this life. [`Error::Busy`] while somebody else does this.
    pub fn resume(&self) -> Result<(), Error> {
        let now = self.incarnation();
        if self.life() == now {
            return Ok(());
        }
        if self.resuming.swap(true, Ordering::Acquire) {
            return Err(Error::Busy);
        }
        let set_up = self.abi.resume(self.shared(), self.platform());
        if set_up.is_ok() {
            let notifications = &self.totals.notifications;
            self.records.each(&mut |_, record| {
                notifications.fetch_add(record.retire(), Ordering::Relaxed);
            });
            self.throttled.store(0, Ordering::Relaxed);
            self.life.set(now);
            self.sequence.fetch_add(1, Ordering::AcqRel);
        }
        self.resuming.store(false, Ordering::Release);
        set_up?;
        self.records.each(&mut |_, record| record.wake_all());
        Ok(())
    }

    /// Whether the domain is in the life in which this value was made, or [set up again](Self::resume).
    #[inline]
    pub(crate) fn is_current(&self) -> bool {
        self.incarnation() == self.life()
    }

    pub(crate) fn current(&self) -> Result<(), Error> {
        if self.is_current() { Ok(()) } else { Err(Error::Stale) }
    }

    /// Which ABI is in use: [`Abi::TwoLevel`] or [`Abi::Fifo`].
    pub fn abi_in_use(&self) -> Abi {
        self.abi.abi()
    }

    /// Lets another vCPU receive events. vCPU 0 is there from the start; for every other this comes before anything is bound
    /// to it. The kernel arranges the vCPU's upcall itself ([`set_evtchn_upcall_vector`](xen_hypercall::hvm)).
    ///
    /// A vCPU that has no place in `shared_info` (32 and up on x86, 1 and up on Arm) gets one elsewhere
    /// (`VCPUOP_register_vcpu_info`): before it is brought up, on any vCPU, or later by itself. Xen tells it at once
    /// that everything is pending, so its first [`dispatch`](Self::dispatch) looks at all ports.
    ///
    /// One that was added already stays as it is, so that who failed with something later can begin anew.
    ///
    /// # Errors
    /// [`Error::VcpuOutOfRange`], [`Error::Stale`], [`Error::OutOfMemory`]; for a vCPU that gets a place, Xen's (`ENOENT`: no such
    /// vCPU; `EINVAL`: it is up, and another); with the FIFO ABI also Xen's (`ENOENT`).
    pub fn add_vcpu(&self, vcpu: VcpuId) -> Result<(), Error> {
        self.current()?;
        if vcpu.0 >= VcpuArea::VCPUS {
            return Err(Error::VcpuOutOfRange(vcpu));
        }
        if self.records.claim().area(vcpu).is_none() {
            self.records.claim().register_area(vcpu).map_err(|errno| match errno {
                Errno::ENOMEM => Error::OutOfMemory,
                errno => Error::Hypercall { operation: "VCPUOP_register_vcpu_info", errno },
            })?;
        }
        self.abi.add_vcpu(self.shared(), self.platform(), vcpu)
    }

    /// The platform that everything runs on.
    pub fn platform(&self) -> &P {
        self.records.claim().platform()
    }

    /// The page shared with Xen.
    pub fn shared_info(&self) -> SharedInfo<'_> {
        self.records.claim().shared_info()
    }

    /// A new port that `remote` may bind to, once. Its number goes to `remote` by xenstore. Its events are
    /// [ended late](Channel::set_late_eoi).
    ///
    /// # Errors
    /// Xen's (`ENOSPC`: no port left), [`Error::OutOfMemory`], or [`Error::Stale`].
    pub fn alloc_unbound(&self, remote: DomId) -> Result<Channel<'_, P>, Error> {
        self.bound("EVTCHNOP_alloc_unbound", Source::Other, |xen| event::alloc_unbound(xen, remote))
    }

    /// Connects to a port that `remote` allocated for this domain.
    ///
    /// The new channel has an event at once: `remote` may have sent before anybody could receive it. Its events are
    /// [ended late](Channel::set_late_eoi).
    ///
    /// # Errors
    /// Xen's (`EINVAL`: no such port, or not for this domain; `ESRCH`: no such domain), or [`Error::OutOfMemory`].
    pub fn bind_interdomain(&self, remote: DomId, remote_port: Port) -> Result<Channel<'_, P>, Error> {
        self.bound("EVTCHNOP_bind_interdomain", Source::Other, |xen| {
            event::bind_interdomain(xen, remote, remote_port.0)
        })
    }

    /// A channel for a virtual interrupt.
    ///
    /// # Errors
    /// Xen's (`EEXIST`: bound already; `EINVAL`: no such VIRQ, or a global one not on vCPU 0; `ENOENT`: no such vCPU),
    /// [`Error::VcpuOutOfRange`], [`Error::VcpuNotAdded`], or [`Error::OutOfMemory`].
    pub fn bind_virq(&self, virq: Virq, vcpu: VcpuId) -> Result<Channel<'_, P>, Error> {
        self.bound("EVTCHNOP_bind_virq", Source::Virq(virq, vcpu), |xen| event::bind_virq(xen, virq.0, vcpu))
    }

    /// A channel by which this domain interrupts its own vCPU: [`Channel::notify`] sends.
    ///
    /// # Errors
    /// Xen's (`ENOENT`: no such vCPU), [`Error::VcpuOutOfRange`], [`Error::VcpuNotAdded`], or [`Error::OutOfMemory`].
    pub fn bind_ipi(&self, vcpu: VcpuId) -> Result<Channel<'_, P>, Error> {
        self.bound("EVTCHNOP_bind_ipi", Source::Ipi(vcpu), |xen| event::bind_ipi(xen, vcpu))
    }

    /// Takes a port that the toolstack bound for this domain before it started: xenstore's and the console's.
    ///
    /// Such a port cannot be bound a second time, so dropping the channel masks it and does not close it; it can be adopted
    /// again. Its events are not [ended late](Channel::set_late_eoi) unless it is told to. Closing the xenstore's port would leave the domain without xenstore for good.
    ///
    /// # Errors
    /// [`Error::PortOutOfRange`], [`Error::PortClosed`], [`Error::PortInUse`], [`Error::OutOfMemory`], or Xen's.
    pub fn adopt(&self, port: Port) -> Result<Channel<'_, P>, Error> {
        self.in_range(port)?;
        self.current()?;
        let status = event::status(self.platform(), port.0)
            .map_err(|errno| Error::Hypercall { operation: "EVTCHNOP_status", errno })?;
        if status.status == 0 {
            return Err(Error::PortClosed(port));
        }
        self.own(port, false, false, Source::Other)
    }

    /// Whether events for a vCPU would reach it.
    pub(crate) fn has_vcpu(&self, vcpu: VcpuId) -> Result<(), Error> {
        if self.records.claim().area(vcpu).is_none() {
            let beyond = vcpu.0 >= VcpuArea::VCPUS;
            return Err(if beyond { Error::VcpuOutOfRange(vcpu) } else { Error::VcpuNotAdded(vcpu) });
        }
        self.abi.has_vcpu(self.shared(), vcpu)
    }

    /// The interrupt side: takes the events that are due on a vCPU and wakes their channels. Returns how many there were.
    ///
    /// Call it on vCPU `vcpu` when Xen's upcall arrives, or from the main loop instead ([`wait_since`](Self::wait_since) does). It only
    /// touches atomics, takes each event once and ends, so it may run in an interrupt handler, nested, and on several vCPUs
    /// at once. The wakers that tasks left with [`Channel::poll_event`] are called here, so they must allow that.
    ///
    /// A peer that sends without end cannot hold it: each port is delivered at most once in a pass, with the FIFO ABI
    /// twice, and what comes after that makes another upcall. With the FIFO ABI a call that finds another at the same
    /// vCPU's queues leaves the events to that one, which looks again before it ends.
    ///
    /// If a waker panics the other channels get their events all the same, then the panic goes on. A second waker that panics
    /// meanwhile aborts, as a panic during a panic does.
    pub fn dispatch(&self, vcpu: VcpuId) -> usize {
        if !self.is_current() {
            return 0;
        }
        let Some(area) = self.records.claim().area(vcpu) else { return 0 };
        let vcpu = Vcpu { id: vcpu, info: area.info() };
        let mut pass = Pass { events: self, number: None, twice: Port(0) };
        let done = self.abi.dispatch(self.shared(), vcpu, &mut |port| pass.arrived(Port(port)));
        drop(pass);
        let Some(done) = done else { return 0 };
        if done.scan.upcall {
            self.totals.upcalls.fetch_add(1, Ordering::Relaxed);
        }
        if done.more {
            self.sequence.fetch_add(1, Ordering::AcqRel);
        }
        done.scan.events
    }

    /// The number of the last event that was delivered to a channel. A loop takes it before it looks at its devices, and
    /// hands it to [`wait_since`](Self::wait_since) when it has found nothing to do.
    #[inline]
    pub fn seq(&self) -> EventSeq {
        EventSeq(self.sequence.load(Ordering::Acquire))
    }

    /// Sleeps until an event has been delivered after `seen`, until `deadline` on the platform's clock, or for no reason;
    /// the caller looks again. Returns at once for an event that was delivered after `seen` already.
    ///
    /// So a loop loses no event, however many devices it looks at, and whatever else waits meanwhile:
    ///
    /// ```ignore
    /// loop {
    ///     let seen = events.seq();
    ///     let worked = look_at_the_card() | ask_xenstore() | look_at_the_disk();
    ///     if !worked {
    ///         events.wait_since(seen, Some(deadline));
    ///     }
    /// }
    /// ```
    ///
    /// Takes the events that are pending on [this vCPU](Wait::vcpu) before and after the sleep, and
    /// [unmasks](Self::unmask_due) throttled channels whose time has come. Any number of waiters is right, on the vCPU that the
    /// events they wait for are [bound to](Channel::bind_vcpu): an event that is delivered on one vCPU does not wake another.
    pub fn wait_since(&self, seen: EventSeq, deadline: Option<Duration>)
    where
        P: Wait,
    {
        let is_due = || self.seq() != seen;
        self.unmask_due();
        self.dispatch(self.platform().vcpu());
        if !is_due() {
            let deadline = deadline.into_iter().chain(self.next_unmask()).min();
            self.platform().wait(deadline, &is_due);
            self.unmask_due();
            self.dispatch(self.platform().vcpu());
        }
    }

    /// The totals so far.
    pub fn stats(&self) -> Stats {
        let mut notifications = self.totals.notifications.load(Ordering::Relaxed);
        self.records
            .each(&mut |_, record| notifications = notifications.wrapping_add(record.notifications()));
        Stats {
            notifications,
            upcalls: self.totals.upcalls.load(Ordering::Relaxed),
            events: self.totals.events.load(Ordering::Relaxed),
            stray: self.totals.stray.load(Ordering::Relaxed),
            throttled_now: self.throttled.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn abi(&self) -> &'static dyn Delivery {
        self.abi
    }

    pub(crate) fn shared(&self) -> Shared<'_> {
        Shared { info: self.shared_info(), fifo: self.fifo.as_ref() }
    }

    pub(crate) fn life(&self) -> Incarnation {
        self.life.get()
    }

    /// The domain's life at the moment.
    #[inline]
    pub(crate) fn incarnation(&self) -> Incarnation {
        self.records.claim().incarnation()
    }

    pub(crate) fn records(&self) -> &Records<P> {
        &self.records
    }

    pub(crate) fn throttled_now(&self) -> &AtomicU32 {
        &self.throttled
    }

    pub(crate) fn count_event(&self) {
        self.totals.events.fetch_add(1, Ordering::Relaxed);
        self.sequence.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn count_stray(&self) {
        self.totals.stray.fetch_add(1, Ordering::Relaxed);
    }

    /// Makes a channel of what a bind operation returns. Another domain's events come to vCPU 0 at first, and are ended late.
    fn bound(
        &self,
        operation: &'static str,
        source: Source,
        bind: impl FnOnce(&P) -> Result<u32, Errno>,
    ) -> Result<Channel<'_, P>, Error> {
        self.current()?;
        let port = Port(bind(self.platform()).map_err(|errno| Error::Hypercall { operation, errno })?);
        let channel = self
            .in_range(port)
            .and_then(|()| source.vcpu().map_or(Ok(()), |vcpu| self.has_vcpu(vcpu)))
            .and_then(|()| self.own(port, true, source == Source::Other, source));
        if channel.is_err() {
            // Nobody can own it, so it must not stay open; if closing fails as well the first error says more.
            let _ = event::close(self.platform(), port.0);
        }
        channel
    }

    fn in_range(&self, port: Port) -> Result<(), Error> {
        if port.0 == 0 || port.0 >= self.abi.limit() { Err(Error::PortOutOfRange(port)) } else { Ok(()) }
    }

    fn own(&self, port: Port, closes: bool, late: bool, source: Source) -> Result<Channel<'_, P>, Error> {
        let record = self.records.ensure(port)?;
        self.abi.ensure(self.shared(), self.platform(), port)?;
        // A number that is to be closed is one that Xen has just given out.
        let earlier = record.claim(closes).ok_or(Error::PortInUse(port))?;
        self.totals.notifications.fetch_add(earlier, Ordering::Relaxed);
        let channel = Channel::new(self, port, record, closes, source);
        record.set_late(late);
        // A port without owner is masked. Only now may events reach the record.
        self.open(port, record);
        Ok(channel)
    }
}

/// One pass of [`EventChannels::dispatch`]. However it ends, no port stays masked because of it.
struct Pass<'e, P: Platform> {
    events: &'e EventChannels<P>,
    /// None before its first event.
    number: Option<u32>,
    /// The first of the ports that came twice.
    twice: Port,
}

impl<P: Platform> Pass<'_, P> {
    fn arrived(&mut self, port: Port) {
        let passes = &self.events.passes;
        let number =
            *self.number.get_or_insert_with(|| passes.fetch_add(1, Ordering::Relaxed).wrapping_add(1));
        self.events.arrived(port, number, &mut self.twice);
    }
}

impl<P: Platform> Drop for Pass<'_, P> {
    fn drop(&mut self) {
        self.events.finish_pass(self.twice);
    }
}

impl<P: Platform> fmt::Debug for EventChannels<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventChannels").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
