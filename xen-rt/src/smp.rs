//! Several vCPUs (feature `smp`).
//!
//! A domain starts with one vCPU; the others come by [`Vcpus::start`]. Each takes the events that are bound to it, sleeps
//! until there is one, and runs what it is [given](Vcpu::run). The heap, the console and all of the kernel are theirs, too.
//!
//! ```no_run
//! # #![no_main]
//! use core::sync::atomic::{AtomicU32, Ordering};
//! use xen_rt::smp::Vcpus;
//! use xen_rt::{Exit, Guest, println};
//!
//! xen_rt::entry!(main);
//!
//! fn main(guest: Guest) -> Exit {
//!     static DONE: AtomicU32 = AtomicU32::new(0);
//!     let vcpus = Vcpus::start(guest).unwrap_or_else(|error| xen_rt::crash(format_args!("{error}")));
//!     for vcpu in &vcpus {
//!         let _ = vcpu.run(|| _ = DONE.fetch_add(1, Ordering::Relaxed));
//!     }
//!     while DONE.load(Ordering::Relaxed) < vcpus.len() as u32 {
//!         core::hint::spin_loop();
//!     }
//!     println!("all {} vCPUs have been here", vcpus.len() + 1);
//!     Exit::PowerOff
//! }
//! ```

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use xen_evtchn::{Channel, EventChannels};
use xen_hypercall::{Errno, VcpuId};

use crate::lock::Lock;
use crate::machine::{self, Kernel, keep};
use crate::{Guest, channels};

mod rest;

pub use rest::rest;
#[cfg(feature = "suspend")]
pub(crate) use rest::{go, stop};

/// What a vCPU can be given.
type Job = Box<dyn FnOnce() + Send>;

/// The domain's vCPUs but the first, all up.
#[derive(Debug)]
pub struct Vcpus(Vec<Vcpu>);

impl Vcpus {
    /// Brings up all vCPUs that the domain has, beside the first. A domain with one has none of them.
    ///
    /// # Errors
    /// As [`Vcpu::start`].
    pub fn start(guest: Guest) -> Result<Self, Error> {
        let ids = (1..).map(VcpuId).take_while(|id| machine::is_up(*id).is_ok());
        ids.map(|id| Vcpu::start(guest, id)).collect::<Result<_, _>>().map(Self)
    }
}

impl core::ops::Deref for Vcpus {
    type Target = [Vcpu];

    fn deref(&self) -> &[Vcpu] {
        &self.0
    }
}

impl<'v> IntoIterator for &'v Vcpus {
    type Item = &'v Vcpu;
    type IntoIter = core::slice::Iter<'v, Vcpu>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

/// A vCPU that is up. It stays so, whatever becomes of this handle.
#[derive(Clone, Copy, Debug)]
pub struct Vcpu(&'static Desk);

/// Where a vCPU finds what it is to do.
struct Desk {
    id: VcpuId,
    events: &'static EventChannels<&'static Kernel>,
    bell: &'static Channel<'static, &'static Kernel>,
    work: Lock<Work>,
}

/// Desks whose vCPUs Xen did not start. What is bound for them stays so, and cannot be bound twice.
static UNUSED: Lock<Vec<&'static Desk>> = Lock::new(Vec::new());

impl Desk {
    /// That of a vCPU which is not up.
    fn of(
        id: VcpuId,
        events: &'static EventChannels<&'static Kernel>,
    ) -> Result<&'static Self, xen_evtchn::Error> {
        let before = UNUSED.with(|unused| {
            let place = unused.iter().position(|desk| desk.id == id)?;
            Some(unused.swap_remove(place))
        });
        if let Some(desk) = before.flatten() {
            return Ok(desk);
        }
        events.add_vcpu(id)?;
        let bell = events.bind_ipi(id)?;
        // The last, for it stays.
        machine::bind_timer(events, id)?;
        let bell = channels::keep(bell);
        Ok(keep(Self { id, events, bell, work: Lock::new(Work::Idle) }))
    }
}

enum Work {
    Idle,
    Given(Job),
    Running,
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Vcpu {
    /// Brings a vCPU up, with a stack of 128 KiB of its own. After an error it can be tried again.
    ///
    /// # Errors
    /// [`Error::Start`]: Xen's `ENOENT`, there is no such vCPU, or `EEXIST`, it is up already. [`Error::Events`]: its
    /// events cannot reach it.
    pub fn start(guest: Guest, id: VcpuId) -> Result<Self, Error> {
        let events = guest.events();
        if machine::is_up(id).map_err(Error::Start)? {
            return Err(Error::Start(Errno::EEXIST));
        }
        let desk = Desk::of(id, events).map_err(Error::Events)?;
        if let Err(error) = rest::begin(|| machine::start_vcpu(id, desk)) {
            let _ = UNUSED.with(|unused| unused.push(desk));
            return Err(Error::Start(error));
        }
        rest::know(Self(desk));
        Ok(Self(desk))
    }

    /// Its number.
    pub fn id(self) -> VcpuId {
        self.0.id
    }

    /// Has it run a closure, once it has done what it was given before.
    ///
    /// # Errors
    /// [`Error::Busy`]: it has not yet.
    pub fn run(self, job: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        let given = self.0.work.with(|work| match work {
            Work::Idle => {
                *work = Work::Given(Box::new(job));
                Ok(())
            }
            Work::Given(_) | Work::Running => Err(Error::Busy),
        });
        given.unwrap_or(Err(Error::Busy))?;
        self.wake()
    }

    /// Whether it has nothing to do.
    pub fn is_idle(self) -> bool {
        self.0.work.with(|work| matches!(work, Work::Idle)).unwrap_or(false)
    }

    /// Ends its sleep, that of a closure it runs included.
    ///
    /// # Errors
    /// [`Error::Events`].
    pub fn wake(self) -> Result<(), Error> {
        self.0.bell.notify().map_err(Error::Events)
    }
}

/// What a vCPU does from its start on. When that is over, it stops.
pub(crate) trait Life: Sync {
    fn live(&self);
}

/// Starts a vCPU that gets no events and runs this alone, for kernels that arrange all else themselves.
///
/// # Errors
/// [`Error::Start`]: Xen's `ENOENT`, there is no such vCPU, or `EEXIST`, it was started already.
pub fn start(id: VcpuId, run: impl Fn() + Send + Sync + 'static) -> Result<(), Error> {
    struct Alone<F>(F);
    impl<F: Fn() + Sync> Life for Alone<F> {
        fn live(&self) {
            (self.0)();
            rest::end();
        }
    }
    rest::begin(|| machine::start_vcpu(id, keep(Alone(run)))).map_err(Error::Start)
}

impl Life for Desk {
    fn live(&self) {
        loop {
            rest();
            // Whoever gives work rings the bell afterwards.
            let seen = self.events.seq();
            let given = self.work.with(|work| match core::mem::replace(work, Work::Running) {
                Work::Given(job) => Some(job),
                Work::Idle | Work::Running => {
                    *work = Work::Idle;
                    None
                }
            });
            match given.flatten() {
                Some(job) => {
                    job();
                    self.work.with(|work| *work = Work::Idle);
                }
                None => self.events.wait_since(seen, None),
            }
        }
    }
}

/// Why a vCPU does not come up, or does not do what it is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Error {
    /// Xen does not start it.
    Start(Errno),
    /// Its event channels.
    Events(xen_evtchn::Error),
    /// It has something to do.
    Busy,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(errno) => write!(f, "Xen does not start the vCPU: {errno}"),
            Self::Events(error) => write!(f, "the vCPU's events: {error}"),
            Self::Busy => f.write_str("the vCPU is busy; give it work later"),
        }
    }
}

impl core::error::Error for Error {}
