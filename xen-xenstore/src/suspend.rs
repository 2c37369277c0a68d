//! Suspending the domain as a whole: for a file, for another machine, or for a checkpoint.
//!
//! A toolstack asks by `control/shutdown` ([`ShutdownWatch`]). The guest brings everything to rest, accepts, and hands itself to Xen.
//! When it goes on it is a new domain, or the same one, if that was cancelled. In a new domain nothing is left but memory,
//! and all is set up again, in an order: the kernel's own ([`Kernel::renew`]), event channels, the [parts](Restore) (grants, console,
//! VIRQs), xenstore, and then the [devices](Device), all of which begin before the first is waited for.
//!
//! [`Suspension`] does this. It needs nothing of a kernel but a [`Kernel`]. Here is one that has a domain with event channels, xenstore and no
//! device, on the mock, whose toolstack migrates each domain that suspends itself:
//!
//! ```
//! use core::time::Duration;
//! use xen_evtchn::EventChannels;
//! use xen_hypercall::sched::Resumed;
//! use xen_hypercall::{DomId, RestoreError, mock::MockXen};
//! use xen_xenstore::control::{Request, ShutdownWatch};
//! use xen_xenstore::suspend::{Kernel, Suspension};
//! use xen_xenstore::{Xenstore, mock::MockXenstored};
//!
//! struct OneVcpu;
//!
//! impl Kernel for OneVcpu {
//!     fn stand_still(&self, suspend: &mut dyn FnMut()) {
//!         // Interrupts are off, and there is no other vCPU to stop.
//!         suspend();
//!     }
//!
//!     fn renew(&self) -> Result<(), RestoreError> {
//!         // A kernel on Xen: its clock, and where it is interrupted.
//!         Ok(())
//!     }
//!
//!     fn lost(&self, why: RestoreError) -> ! {
//!         panic!("{why}")
//!     }
//! }
//!
//! let xen = MockXen::new();
//! xen_evtchn::mock::install(&xen);
//! let store = MockXenstored::new(&xen);
//! let guest = xen.domain(DomId(1));
//! store.connect(&guest);
//! let domain = guest.boot()?;
//! let events = EventChannels::new(&domain)?;
//! let mut xs = Xenstore::new(&events)?;
//! let requests = ShutdownWatch::new(&mut xs, &[Request::Suspend])?;
//!
//! // What `xl migrate` does first.
//! store.write("/local/domain/1/control/shutdown", "suspend");
//! xen.run_until_idle(100);
//! assert_eq!(requests.poll(&mut xs)?, Some(Request::Suspend));
//!
//! let suspension = Suspension {
//!     domain: &domain,
//!     events: &events,
//!     kernel: &OneVcpu,
//!     parts: &mut [],
//!     patience: Duration::from_secs(10),
//! };
//! // SAFETY: one thread, between two calls; no page of another domain is mapped, and no device writes to memory.
//! let outcome = unsafe { suspension.run(&mut xs, Some(&requests), &mut ()) }?;
//! assert_eq!((outcome.resumed, outcome.absent), (Resumed::InNewDomain, 0));
//! assert_eq!(xs.read_str("name")?, "d2");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![allow(unsafe_code, reason = "suspends the domain")]

use core::fmt;
use core::time::Duration;

use xen_evtchn::EventChannels;
use xen_hypercall::sched::{self, Resumed};
use xen_hypercall::{Domain, Errno, Platform, Restore, RestoreError, SpecialPages, SuspendError, Wait};

use crate::Xenstore;
use crate::control::{Request, ShutdownWatch};

/// What only the kernel can do.
pub trait Kernel {
    /// Lets everything else stand still, calls `suspend` once, and lets everything go on: all other vCPUs are down, and this one,
    /// vCPU 0, has its interrupts off. What is stopped is stopped between two calls of what stands on the [`Domain`], and not
    /// within one.
    fn stand_still(&self, suspend: &mut dyn FnMut());

    /// Suspends the domain in another way than by `SCHEDOP_shutdown`: on arm64 by PSCI's `SYSTEM_SUSPEND`, for those who have it. None:
    /// there is no other way. Called within [`stand_still`](Self::stand_still). Returns where the domain goes on, and an error, Xen's or the
    /// firmware's as an `Errno`, only if the domain was not suspended.
    ///
    /// # Safety
    /// What [`Domain::suspend`] asks for holds.
    unsafe fn suspend(&self) -> Option<Result<Resumed, Errno>> {
        None
    }

    /// First of all in a new domain, within [`stand_still`](Self::stand_still): the clock
    /// ([`Clock::go_on`](xen_hypercall::Clock::go_on)), where each vCPU is interrupted, areas of vCPUs, assists, and whatever else
    /// the kernel has told Xen by itself.
    ///
    /// # Errors
    /// What Xen refused. The domain is [lost](Self::lost) then.
    fn renew(&self) -> Result<(), RestoreError>;

    /// The domain has been resumed in a new one, and a part of it could not be set up again. Called within
    /// [`stand_still`](Self::stand_still), before anything else goes on: ends the domain as crashed, and uses nothing for that which
    /// was made from the [`Domain`], a console among them.
    fn lost(&self, why: RestoreError) -> !;
}

/// A device, or several, that is connected again in a new domain. Implemented by the drivers, and for references, options,
/// arrays and tuples of devices.
pub trait Device<'x, P: Platform> {
    /// What is between [`begin`](Self::begin) and [`finish`](Self::finish).
    type Begun;

    /// The domain is about to be suspended. Looks what has become of the backend, and takes in what that has answered.
    fn quiesce(&mut self, xs: &mut Xenstore<'x, P>);

    /// In a new domain: tells the backend, whatever domain that is in now, what it needs to connect. What does not work leaves the
    /// device closed.
    fn begin(&mut self, xs: &mut Xenstore<'x, P>, deadline: Duration) -> Self::Begun;

    /// Waits for the backend, and goes on where the device was. Returns how many devices are not at work that were before.
    fn finish(&mut self, begun: Self::Begun, xs: &mut Xenstore<'x, P>, deadline: Duration) -> usize;

    /// The domain goes on where it was: nothing is lost but events, perhaps, on both sides.
    fn go_on(&mut self);
}

/// What takes part in a suspend, besides xenstore and the devices.
pub struct Suspension<'s, 'x, P: Platform> {
    /// The token.
    pub domain: &'s Domain<P>,
    /// Its event channels.
    pub events: &'x EventChannels<P>,
    /// The kernel.
    pub kernel: &'s dyn Kernel,
    /// What is set up again after the event channels, in this order: the grant table before what has grants, then the console,
    /// VIRQs and IPIs.
    pub parts: &'s mut [&'s mut dyn Restore],
    /// How long to wait for the backends of all devices together, in the new domain.
    pub patience: Duration,
}

/// How the domain went on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Outcome {
    /// In a new domain, or where it was.
    pub resumed: Resumed,
    /// How many devices are not at work that were before. A backend may still come; a driver's `reconnect` tries again.
    pub absent: usize,
}

/// Why the domain was not suspended, or cannot go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The toolstack took its request back, or asks for something else. All is as before.
    TakenBack,
    /// A part does not let the domain be suspended. All is as before.
    NotReady(RestoreError),
    /// Xen did not suspend the domain, or a page of another domain is mapped. All is as before.
    Refused(Errno),
    /// Xenstore could not be asked before the suspend. All is as before, but the toolstack may take the request to be accepted.
    Xenstore(crate::Error),
    /// The domain has been resumed in a new one, and has no xenstore there: all devices are stale.
    /// [`Xenstore::resume`] may be tried again, and then each device's `reconnect`.
    NoXenstore(crate::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TakenBack => f.write_str("the toolstack does not ask for a suspend any more"),
            Self::NotReady(error) => write!(f, "the domain was not suspended: {error}"),
            Self::Refused(errno) => write!(f, "the domain was not suspended: {errno}"),
            Self::Xenstore(error) => write!(f, "the domain was not suspended: {error}"),
            Self::NoXenstore(error) => write!(f, "the resumed domain has no xenstore: {error}"),
        }
    }
}

impl core::error::Error for Error {}

impl<'x, P: Platform + Wait + SpecialPages> Suspension<'_, 'x, P> {
    /// Suspends the domain, and returns when it goes on and all is set up again. With `request` the toolstack is told that
    /// it will be obeyed, when nothing of ours is in the way any more; none: nobody asked.
    ///
    /// # Errors
    /// See [`Error`].
    ///
    /// # Safety
    /// The kernel does in [`Kernel::stand_still`] and in [`Kernel::suspend`] what is asked there, and the rest of what [`Domain::suspend`] asks for holds
    /// meanwhile: no device writes to the domain's memory, and nobody uses what is of Xen's in it but by what is made from
    /// the token.
    pub unsafe fn run<D: Device<'x, P>>(
        self,
        xs: &mut Xenstore<'x, P>,
        request: Option<&ShutdownWatch>,
        devices: &mut D,
    ) -> Result<Outcome, Error> {
        let Self { domain, events, kernel, parts, patience } = self;
        let mut slept = get_ready(domain, parts).and_then(|()| accept(xs, request));
        if slept.is_ok() {
            devices.quiesce(xs);
            slept = match xs.quiesce() {
                Err(error) => Err(Error::Xenstore(error)),
                Ok(()) => {
                    let mut resumed = Err(Error::Refused(Errno::EINVAL));
                    kernel.stand_still(&mut || {
                        // SAFETY: the kernel lets everything stand still around this, tells truly where the domain goes on, and the
                        // rest is the caller's promise.
                        let suspended = unsafe {
                            domain.suspend_by(|platform| {
                                kernel.suspend().unwrap_or_else(|| sched::suspend(platform))
                            })
                        };
                        resumed = match suspended {
                            Ok(Resumed::InNewDomain) => match set_up(events, kernel, parts) {
                                Ok(()) => Ok(Resumed::InNewDomain),
                                Err(why) => kernel.lost(why),
                            },
                            Ok(resumed) => Ok(resumed),
                            Err(SuspendError::Refused(errno)) => Err(Error::Refused(errno)),
                            Err(SuspendError::Lost(errno)) => kernel.lost(RestoreError {
                                operation: "XENMEM_add_to_physmap of shared_info",
                                errno,
                            }),
                        };
                    });
                    match resumed {
                        Ok(Resumed::InPlace) => Ok(()),
                        Ok(resumed) => return reconnect(resumed, xs, devices, patience),
                        Err(error) => Err(error),
                    }
                }
            };
            // Whatever came, or went out, while nobody ran.
            devices.go_on();
            xs.look_again();
        }
        parts.iter_mut().for_each(|part| part.go_on());
        slept.map(|()| Outcome { resumed: Resumed::InPlace, absent: 0 })
    }
}

/// Asks every part whether it has something against it.
fn get_ready<P: Platform>(domain: &Domain<P>, parts: &mut [&mut dyn Restore]) -> Result<(), Error> {
    if domain.is_held() {
        return Err(Error::Refused(Errno::EBUSY));
    }
    parts.iter_mut().try_for_each(|part| part.prepare()).map_err(Error::NotReady)
}

fn accept<P: Platform + Wait>(
    xs: &mut Xenstore<'_, P>,
    request: Option<&ShutdownWatch>,
) -> Result<(), Error> {
    match request.map_or(Ok(true), |watch| watch.accept(xs, Request::Suspend)) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::TakenBack),
        Err(error) => Err(Error::Xenstore(error)),
    }
}

/// All that waits for nobody, in a new domain.
fn set_up<P: Platform>(
    events: &EventChannels<P>,
    kernel: &dyn Kernel,
    parts: &mut [&mut dyn Restore],
) -> Result<(), RestoreError> {
    kernel.renew()?;
    events.resume()?;
    parts.iter_mut().try_for_each(|part| part.restore())
}

/// The rest, with everything running.
fn reconnect<'x, P: Platform + Wait + SpecialPages, D: Device<'x, P>>(
    resumed: Resumed,
    xs: &mut Xenstore<'x, P>,
    devices: &mut D,
    patience: Duration,
) -> Result<Outcome, Error> {
    match xs.resume() {
        // Nodes of backends that are not there any more; their watches are given up now in any case.
        Ok(()) | Err(crate::Error::Refused(..)) => {}
        Err(error) => return Err(Error::NoXenstore(error)),
    }
    let deadline = xs.now().saturating_add(patience);
    let begun = devices.begin(xs, deadline);
    let absent = devices.finish(begun, xs, deadline);
    Ok(Outcome { resumed, absent })
}

impl<P: Platform> fmt::Debug for Suspension<'_, '_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Suspension")
            .field("domain", &self.domain)
            .field("parts", &self.parts.len())
            .field("patience", &self.patience)
            .finish_non_exhaustive()
    }
}

/// No device.
impl<P: Platform> Device<'_, P> for () {
    type Begun = ();

    fn quiesce(&mut self, _: &mut Xenstore<'_, P>) {}

    fn begin(&mut self, _: &mut Xenstore<'_, P>, _: Duration) {}

    fn finish(&mut self, (): (), _: &mut Xenstore<'_, P>, _: Duration) -> usize {
        0
    }

    fn go_on(&mut self) {}
}

impl<'x, P: Platform, D: Device<'x, P> + ?Sized> Device<'x, P> for &mut D {
    type Begun = D::Begun;

    fn quiesce(&mut self, xs: &mut Xenstore<'x, P>) {
        (**self).quiesce(xs);
    }

    fn begin(&mut self, xs: &mut Xenstore<'x, P>, deadline: Duration) -> D::Begun {
        (**self).begin(xs, deadline)
    }

    fn finish(&mut self, begun: D::Begun, xs: &mut Xenstore<'x, P>, deadline: Duration) -> usize {
        (**self).finish(begun, xs, deadline)
    }

    fn go_on(&mut self) {
        (**self).go_on();
    }
}

impl<'x, P: Platform, D: Device<'x, P>> Device<'x, P> for Option<D> {
    type Begun = Option<D::Begun>;

    fn quiesce(&mut self, xs: &mut Xenstore<'x, P>) {
        self.iter_mut().for_each(|device| device.quiesce(xs));
    }

    fn begin(&mut self, xs: &mut Xenstore<'x, P>, deadline: Duration) -> Option<D::Begun> {
        self.as_mut().map(|device| device.begin(xs, deadline))
    }

    fn finish(&mut self, begun: Option<D::Begun>, xs: &mut Xenstore<'x, P>, deadline: Duration) -> usize {
        self.as_mut().zip(begun).map_or(0, |(device, begun)| device.finish(begun, xs, deadline))
    }

    fn go_on(&mut self) {
        self.iter_mut().for_each(D::go_on);
    }
}

impl<'x, P: Platform, D: Device<'x, P>, const N: usize> Device<'x, P> for [D; N] {
    type Begun = [D::Begun; N];

    fn quiesce(&mut self, xs: &mut Xenstore<'x, P>) {
        self.iter_mut().for_each(|device| device.quiesce(xs));
    }

    fn begin(&mut self, xs: &mut Xenstore<'x, P>, deadline: Duration) -> [D::Begun; N] {
        self.each_mut().map(|device| device.begin(xs, deadline))
    }

    fn finish(&mut self, begun: [D::Begun; N], xs: &mut Xenstore<'x, P>, deadline: Duration) -> usize {
        self.iter_mut().zip(begun).map(|(device, begun)| device.finish(begun, xs, deadline)).sum()
    }

    fn go_on(&mut self) {
        self.iter_mut().for_each(D::go_on);
    }
}

macro_rules! tuples {
    ($($($name:ident $place:tt),+;)*) => {$(
        impl<'x, P: Platform, $($name: Device<'x, P>),+> Device<'x, P> for ($($name,)+) {
            type Begun = ($($name::Begun,)+);

            fn quiesce(&mut self, xs: &mut Xenstore<'x, P>) {
                $(self.$place.quiesce(xs);)+
            }

            fn begin(&mut self, xs: &mut Xenstore<'x, P>, deadline: Duration) -> Self::Begun {
                ($(self.$place.begin(xs, deadline),)+)
            }

            fn finish(&mut self, begun: Self::Begun, xs: &mut Xenstore<'x, P>, deadline: Duration) -> usize {
                0 $(+ self.$place.finish(begun.$place, xs, deadline))+
            }

            fn go_on(&mut self) {
                $(self.$place.go_on();)+
            }
        }
    )*};
}

tuples! {
    A 0;
    A 0, B 1;
    A 0, B 1, C 2;
    A 0, B 1, C 2, D 3;
}
