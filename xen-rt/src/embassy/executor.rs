//! The executor: polls tasks, and sleeps by the event channels.
#![allow(unsafe_code, reason = "fulfils the contract of embassy's raw executor")]

use core::cell::Cell;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;

use embassy_executor::{Spawner, raw};
use xen_evtchn::{Channel, EventChannels, EventSeq};
use xen_hypercall::{Platform, VcpuId, Wait};

use super::time::{Heart, time};
use crate::Guest;
use crate::machine::{self, Kernel};

/// An executor of embassy for one vCPU of a domain, whose tasks sleep until an event or a time.
///
/// It belongs to the vCPU that made it, which alone runs it: [`run`](Self::run) or [`run_until`](Self::run_until). Tasks are
/// woken from anywhere: by each other, by drivers as their events arrive, and from other vCPUs, by an IPI.
///
/// Where several vCPUs have one each (feature `smp`), each is [given](crate::smp::Vcpu::run) a closure that makes one and runs it. A
/// [`SendSpawner`](embassy_executor::SendSpawner) starts tasks on another vCPU's.
pub struct Executor<P: Platform + Wait + Sync + 'static = &'static Kernel> {
    raw: raw::Executor,
    events: &'static EventChannels<P>,
    pender: &'static Pender,
    bell: Option<&'static Channel<'static, P>>,
    heart: Heart,
    /// What the vCPU does between two rounds.
    rest: fn(),
    running: Cell<bool>,
}

impl Executor {
    /// Makes one for the vCPU that calls this, in memory that is never freed.
    ///
    /// With feature `smp` the vCPU can be stopped for a suspend of the domain between two rounds of tasks, as by
    /// [`smp::rest`](crate::smp::rest), and takes a port for the IPI.
    ///
    /// # Panics
    /// When there is no such port.
    pub fn new(guest: Guest) -> &'static Self {
        #[cfg(feature = "smp")]
        let rest = crate::smp::rest;
        #[cfg(not(feature = "smp"))]
        let rest = || {};
        Self::with(guest.events(), rest)
    }
}

impl<P: Platform + Wait + Sync + 'static> Executor<P> {
    /// Makes one for the vCPU that calls this, on a platform that need not be the [`Kernel`], as the mock of a test, in memory that
    /// is never freed.
    ///
    /// # Panics
    /// As [`new`](Executor::new).
    pub fn on(events: &'static EventChannels<P>) -> &'static Self {
        Self::with(events, || {})
    }

    fn with(events: &'static EventChannels<P>, rest: fn()) -> &'static Self {
        let vcpu = events.platform().vcpu();
        let bell = bell(events, vcpu);
        let ring = bell.map(|bell| machine::keep(Bell { bell, vcpu }) as &'static (dyn Ring + Sync));
        let pender: &'static Pender = machine::keep(Pender { pending: AtomicBool::new(false), ring });
        let raw = raw::Executor::new(core::ptr::from_ref(pender).cast_mut().cast());
        let (heart, running) = (Heart::new(events), Cell::new(false));
        machine::keep(Self { raw, events, pender, bell, heart, rest, running })
    }

    /// What starts tasks on it.
    pub fn spawner(&'static self) -> Spawner {
        self.raw.spawner()
    }

    /// Runs `init`, which starts the first tasks, and then the tasks for ever.
    ///
    /// # Panics
    /// When it runs already: this is called by one of its tasks.
    pub fn run(&'static self, init: impl FnOnce(Spawner)) -> ! {
        self.run_until(init, || false);
        unreachable!("a loop without an end")
    }

    /// Runs `init`, which starts the first tasks, and then the tasks until `done` says so after a round of them. The executor
    /// can be run again.
    ///
    /// # Panics
    /// When it runs already: this is called by one of its tasks.
    pub fn run_until(&'static self, init: impl FnOnce(Spawner), mut done: impl FnMut() -> bool) {
        assert!(!self.running.replace(true), "an executor runs once at a time");
        let _running = Running::begin(&self.heart, &self.running);
        init(self.spawner());
        loop {
            let seen = self.round();
            if done() {
                return;
            }
            self.pause(seen);
        }
    }

    /// One round of the tasks that have something to do. Returns when it began, for the [pause](Self::pause) behind it.
    ///
    /// No wake-up is lost. Whatever wakes a task puts it into the run queue first, then sets `pending`, if the queue was empty, and
    /// then rings, if this is another vCPU than the executor's.
    /// - Before `pending` is cleared: the task is in the queue that is polled afterwards.
    /// - Between that and the look at `pending` after the poll: there is another round instead of a sleep.
    /// - After that look, on this vCPU: nothing but `dispatch` within `wait_since`, or an interrupt handler that dispatches, runs here. Both count
    ///   an event after `seen`, and for such a one `wait_since` does not sleep, or does not go on sleeping.
    /// - After that look, on another vCPU: its ring is an event of this vCPU's. Until somebody dispatches it Xen has this vCPU's upcall pending,
    ///   with which it does not sleep; and whoever dispatches it, this vCPU or another, counts it after `seen`.
    /// - A task whose time has come is woken by `wake_due`. A time that a task asks for in the poll is among those that the pause
    ///   asks for after the poll: the sleep ends then. No other vCPU adds one here.
    fn round(&'static self) -> EventSeq {
        (self.rest)();
        // In a new domain the port is another.
        if let Some(bell) = self.bell.filter(|bell| !bell.is_current()) {
            let _ = bell.rebind();
        }
        let seen = self.events.seq();
        self.heart.wake_due();
        self.pender.pending.store(false, Ordering::SeqCst);
        // SAFETY: this is the vCPU that made the executor, for it is not `Sync`, and no other call of this is under way, as `running`
        // says. The pender calls nothing of the executor's.
        unsafe { self.raw.poll() };
        seen
    }

    /// Sleeps, if no task has anything to do.
    fn pause(&self, seen: EventSeq) {
        let now = self.events.platform().now();
        let next = self.heart.next().map(time);
        let busy = self.pender.pending.load(Ordering::SeqCst) || next.is_some_and(|next| next <= now);
        if busy {
            self.breathe(seen, now);
        } else {
            self.events.wait_since(seen, next);
        }
    }

    /// Takes in what has happened outside, without a sleep: tasks that always have something to do hold up no other.
    fn breathe(&self, seen: EventSeq, now: Duration) {
        if cfg!(feature = "hosted") {
            // Nothing outside of a process acts but while it waits.
            self.events.wait_since(seen, Some(now));
        } else {
            self.events.unmask_due();
            self.events.dispatch(self.events.platform().vcpu());
        }
    }
}

/// An event for the executor's own vCPU.
#[cfg(feature = "smp")]
fn bell<P: Platform>(
    events: &'static EventChannels<P>,
    vcpu: VcpuId,
) -> Option<&'static Channel<'static, P>> {
    match events.bind_ipi(vcpu) {
        Ok(bell) => Some(machine::keep(bell)),
        Err(error) => panic!("an executor without an event for its vCPU: {error}"),
    }
}

/// A vCPU that is alone needs none.
#[cfg(not(feature = "smp"))]
fn bell<P: Platform>(_: &'static EventChannels<P>, _: VcpuId) -> Option<&'static Channel<'static, P>> {
    None
}

impl<P: Platform + Wait + Sync + 'static> fmt::Debug for Executor<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executor").field("running", &self.running.get()).finish_non_exhaustive()
    }
}

/// The time that the driver finds on this vCPU is the executor's, until this is dropped.
struct Running<'e> {
    before: Option<&'static Heart>,
    running: &'e Cell<bool>,
}

impl<'e> Running<'e> {
    fn begin(heart: &'static Heart, running: &'e Cell<bool>) -> Self {
        Self { before: machine::set_heart(Some(heart)), running }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        machine::set_heart(self.before);
        self.running.set(false);
    }
}

/// What wakes an executor.
struct Pender {
    /// There is a task to poll.
    pending: AtomicBool,
    /// None: nothing but the executor's own vCPU wakes its tasks.
    ring: Option<&'static (dyn Ring + Sync)>,
}

/// Ends the sleep of an executor's vCPU, if another one calls this.
trait Ring {
    fn ring(&self);
}

struct Bell<P: Platform + 'static> {
    bell: &'static Channel<'static, P>,
    vcpu: VcpuId,
}

impl<P: Platform + Wait> Ring for Bell<P> {
    fn ring(&self) {
        if self.bell.event_channels().platform().vcpu() != self.vcpu {
            // The bell of a vCPU that was suspended is another soon, and the vCPU looks around before it sleeps again.
            let _ = self.bell.notify();
        }
    }
}

/// Called by whoever wakes a task of an executor that has none to poll.
#[unsafe(export_name = "__pender")]
fn pender(context: *mut ()) {
    // SAFETY: the context is that of an executor, of which `Executor::with` makes all in a kernel that has this function, as there
    // cannot be two: the address of a `Pender` that stays.
    let pender = unsafe { &*context.cast_const().cast::<Pender>() };
    pender.pending.store(true, Ordering::SeqCst);
    if let Some(ring) = pender.ring {
        ring.ring();
    }
}
