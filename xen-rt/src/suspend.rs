//! Suspend and resume of the whole domain (feature `suspend`): for a file (`xl save`), for another machine (`xl migrate`), or for
//! a checkpoint (`xl save -c`).
//!
//! The toolstack asks by `control/shutdown`, and [`Guest::suspend`] does all that follows.
//!
//! ```no_run
//! # #![no_main]
//! # use core::time::Duration;
//! use xen_rt::{Exit, Guest, println};
//! use xen_xenstore::control::{Request, ShutdownWatch};
//! use xen_xenstore::Xenstore;
//!
//! xen_rt::entry!(main);
//!
//! fn main(guest: Guest) -> Result<Exit, xen_xenstore::Error> {
//!     let mut xs = Xenstore::new(guest.events())?;
//!     let watch = ShutdownWatch::new(&mut xs, &[Request::PowerOff, Request::Suspend])?;
//!     loop {
//!         let seen = guest.events().seq();
//!         match watch.poll(&mut xs)? {
//!             Some(request @ Request::PowerOff) if watch.accept(&mut xs, request)? => return Ok(Exit::PowerOff),
//!             Some(Request::Suspend) => {
//!                 let patience = Duration::from_secs(10);
//!                 match guest.suspend(&mut xs, Some(&watch), &mut [], &mut (), patience) {
//!                     Ok(outcome) => println!("here again: {outcome:?}"),
//!                     Err(error) => println!("{error}"),
//!                 }
//!             }
//!             _ => guest.events().wait_since(seen, None),
//!         }
//!     }
//! }
//! ```
#![allow(unsafe_code, reason = "suspends the domain")]

use core::cell::Cell;
use core::time::Duration;

use xen_hypercall::sched::Resumed;
use xen_hypercall::{Domain, Errno, Restore, RestoreError, VcpuId, Wait};
use xen_xenstore::Xenstore;
use xen_xenstore::control::ShutdownWatch;
use xen_xenstore::suspend::Suspension;

pub use xen_xenstore::suspend::{Device, Error, Outcome};

use crate::console::{self, Early};
use crate::machine::{self, Kernel};
use crate::{Exit, Guest, channels};

/// How long other vCPUs may take to come to rest.
#[cfg(feature = "smp")]
const REST: Duration = Duration::from_secs(1);

impl Guest {
    /// Suspends the domain, and returns when it goes on and all is set up again: the clock, which goes on from where it was, event
    /// channels, the console, xenstore, `parts` and `devices`, all of which find themselves in a new domain or, if the suspend
    /// was cancelled, in the same one as before.
    ///
    /// `request` is the toolstack's, which is accepted when nothing of ours is in the way any more; none: nobody asked. `parts` are
    /// set up again in their order, before xenstore: the grant table first, and what the kernel has told Xen by itself. `devices` have
    /// `patience` in all to connect again.
    ///
    /// With several vCPUs this is called on the first. The others are stopped where they are idle, or call
    /// [`smp::rest`](crate::smp::rest).
    ///
    /// A part that cannot be set up again ends the domain as crashed.
    ///
    /// # Errors
    /// See [`Error`]. [`Error::NotReady`] on another vCPU than the first (`EINVAL`), while another vCPU is at work or somebody
    /// writes to the console (`EBUSY`), and when a part is not ready.
    pub fn suspend<D: Device<'static, &'static Kernel>>(
        self,
        xs: &mut Xenstore<'static, &'static Kernel>,
        request: Option<&ShutdownWatch>,
        parts: &mut [&mut dyn Restore],
        devices: &mut D,
        patience: Duration,
    ) -> Result<Outcome, Error> {
        let stopped = Cell::new(false);
        let kernel = Runtime { domain: self.domain(), stopped: &stopped };
        let suspension = Suspension {
            domain: self.domain(),
            events: self.events(),
            kernel: &kernel,
            parts: &mut [&mut Own { kernel: self.kernel(), stopped: &stopped }, &mut All(parts)],
            patience,
        };
        // SAFETY: interrupts are off everywhere but in a sleep, and their handler uses nothing of the domain. `Own` lets this
        // go on when this is the first vCPU and every other one is in `smp::rest`, or at its end, where it makes no call; or there is
        // no other, as without the feature. `Runtime` lets them go on afterwards. Pages of other domains are mapped by the grant
        // table, which holds the domain then, and there is no device that writes to memory by itself. Nobody but what is made
        // from the token uses what it owns, as its making promised.
        unsafe { suspension.run(xs, request, devices) }
    }
}

/// The kernel, as the coordinator sees it.
struct Runtime<'s> {
    domain: &'static Domain<&'static Kernel>,
    stopped: &'s Cell<bool>,
}

impl xen_xenstore::suspend::Kernel for Runtime<'_> {
    fn stand_still(&self, suspend: &mut dyn FnMut()) {
        suspend();
        go(self.stopped);
    }

    unsafe fn suspend(&self) -> Option<Result<Resumed, Errno>> {
        // SAFETY: the caller keeps the same promises to this call.
        unsafe { machine::suspend_by_firmware() }
    }

    fn renew(&self) -> Result<(), RestoreError> {
        machine::forget_timer();
        self.domain.platform().renew(self.domain)
    }

    fn lost(&self, why: RestoreError) -> ! {
        let _ = core::fmt::Write::write_fmt(
            &mut Early,
            format_args!("{}: the resumed domain has to end: {why}\n", crate::entry::name()),
        );
        machine::end(Exit::Crash)
    }
}

/// Lets the other vCPUs go on, if this suspend has stopped them.
fn go(stopped: &Cell<bool>) {
    if stopped.take() {
        #[cfg(feature = "smp")]
        crate::smp::go();
    }
}

/// What the runtime itself has set up on the event channels, and the other vCPUs.
struct Own<'s> {
    kernel: &'static Kernel,
    stopped: &'s Cell<bool>,
}

impl Restore for Own<'_> {
    fn prepare(&mut self) -> Result<(), RestoreError> {
        if self.kernel.vcpu() != VcpuId(0) {
            return Err(RestoreError {
                operation: "a suspend by another vCPU than the first",
                errno: Errno::EINVAL,
            });
        }
        #[cfg(feature = "smp")]
        if !crate::smp::stop(self.kernel, REST) {
            let operation = "bringing all vCPUs to rest";
            return Err(RestoreError { operation, errno: Errno::EBUSY });
        }
        self.stopped.set(true);
        let prepared = console::with_part(|console| console.as_mut().map_or(Ok(()), Restore::prepare));
        prepared
            .unwrap_or(Err(RestoreError { operation: "the console, which is in use,", errno: Errno::EBUSY }))
    }

    fn restore(&mut self) -> Result<(), RestoreError> {
        channels::rebind()?;
        console::with_part(|console| console.as_mut().map_or(Ok(()), Restore::restore)).unwrap_or(Ok(()))
    }

    fn go_on(&mut self) {
        go(self.stopped);
        machine::forget_timer();
        console::with_part(|console| console.as_mut().map(Restore::go_on));
    }
}

/// The caller's parts, one after the other.
struct All<'p, 'q>(&'p mut [&'q mut dyn Restore]);

impl Restore for All<'_, '_> {
    fn prepare(&mut self) -> Result<(), RestoreError> {
        self.0.iter_mut().try_for_each(|part| part.prepare())
    }

    fn restore(&mut self) -> Result<(), RestoreError> {
        self.0.iter_mut().try_for_each(|part| part.restore())
    }

    fn go_on(&mut self) {
        self.0.iter_mut().for_each(|part| part.go_on());
    }
}
