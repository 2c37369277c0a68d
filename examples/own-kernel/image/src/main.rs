//! The sample kernel, booted: it tells a monitor in domain 0 that it lives, until the monitor goes.
//!
//! `boot` gets the processor from Xen's entry to `main`, and `interrupts` has the one interrupt. The platform, the memory and
//! the driver are the sample's, as its tests have them. Nothing here is shared with the other kernels of this
//! workspace, which stand on `xen-rt`.
#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "is a kernel")]

mod boot;
mod interrupts;
mod log;
mod mem;

use core::cell::UnsafeCell;
use core::fmt;
use core::mem::MaybeUninit;
use core::time::Duration;

use own_kernel_sample::{Error, Frames, Heart, OnXen};
use xen_gnttab::{Access, GrantTable};
use xen_hypercall::arch::x86_64::VendorCall;
use xen_hypercall::sched::{ShutdownReason, shutdown};
use xen_hypercall::{DomId, Domain, Wait, event};

use crate::log::say;

/// Where the monitor is.
const MONITOR: DomId = DomId(0);
/// What a port's status says that has an end in another domain.
const INTERDOMAIN: u32 = 2;

/// A place for a thing that lives as long as the domain, in a kernel without a heap.
struct Place<T>(UnsafeCell<MaybeUninit<T>>);

// SAFETY: `put` is called once, by the one vCPU; from then on the thing is shared as it allows.
unsafe impl<T: Send + Sync> Sync for Place<T> {}

impl<T> Place<T> {
    const fn new() -> Self {
        Self(UnsafeCell::new(MaybeUninit::uninit()))
    }

    /// # Safety
    /// Once.
    unsafe fn put(&'static self, thing: T) -> &'static T {
        // SAFETY: the caller says that nobody has looked at the place before.
        unsafe { (*self.0.get()).write(thing) }
    }
}

static KERNEL: Place<OnXen> = Place::new();
static DOMAIN: Place<Domain<&'static OnXen>> = Place::new();

/// Called by `boot`, on the boot stack, with interrupts off.
extern "C" fn main() -> ! {
    interrupts::install();
    match begin().and_then(live) {
        Ok(beats) => {
            say(format_args!("the monitor is gone after {beats} beats"));
            end(ShutdownReason::POWEROFF)
        }
        Err(why) => crash(format_args!("{why}")),
    }
}

/// Puts the kernel together.
fn begin() -> Result<&'static Domain<&'static OnXen>, &'static str> {
    let (first, count) = boot::memory();
    // SAFETY: the memory is the image's own, for this alone, and mapped where it is.
    let frames = unsafe { Frames::new(first, count) };
    // SAFETY: this is the only vCPU, in ring 0.
    let kernel = unsafe { OnXen::new(frames) }.ok_or("this processor has no way into Xen")?;
    // SAFETY: `main` comes here once.
    let kernel = unsafe { KERNEL.put(kernel) };
    // SAFETY: as above, and nothing ran in this domain before that uses anything of Xen's still.
    let domain = unsafe { Domain::new(kernel) }.map_err(|_| "Xen does not give its page")?;
    // SAFETY: as above.
    let domain = unsafe { DOMAIN.put(domain) };
    // SAFETY: the vector has that handler, and interrupts are off.
    unsafe { kernel.start(domain.shared_info(), interrupts::VECTOR) }
        .map_err(|_| "Xen refuses the vector or the timer")?;
    Ok(domain)
}

/// Beats as the monitor wants it, until it goes; returns how many beats it answered.
fn live(domain: &Domain<&'static OnXen>) -> Result<u32, &'static str> {
    let kernel = *domain.platform();
    let grants = GrantTable::new(domain).map_err(|_| "no grant table")?;
    let page = grants.share(MONITOR, Access::ReadWrite).map_err(|_| "no page to share")?;
    let port = event::alloc_unbound(kernel, MONITOR).map_err(|_| "no port")?;
    say(format_args!("page {} port {port}", page.gref().0));
    let mut heart = Heart::new(kernel, page, port).map_err(|_| "no ring")?;
    loop {
        match heart.beat() {
            Ok(next) => sleep(kernel, next),
            Err(Error::Silent | Error::Event(_)) => {}
            Err(_) => return Err("the monitor broke the protocol"),
        }
        let here = event::status(kernel, port).is_ok_and(|status| status.status == INTERDOMAIN);
        if !here && heart.answered() > 0 {
            return Ok(heart.answered());
        }
    }
}

/// Passes time, whatever events come.
fn sleep(kernel: &OnXen, time: Duration) {
    let until = kernel.now() + time;
    while kernel.now() < until {
        kernel.wait(Some(until), &|| false);
    }
}

fn end(reason: ShutdownReason) -> ! {
    // SAFETY: this is ring 0 of a PVH domain.
    if let Some(call) = unsafe { VendorCall::detect() } {
        let _ = shutdown(&call, reason);
    }
    interrupts::halt()
}

/// Tells Xen's log why, and ends the domain as crashed.
fn crash(why: fmt::Arguments<'_>) -> ! {
    say(why);
    end(ShutdownReason::CRASH)
}

#[cfg(not(feature = "hosted"))]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    crash(format_args!("{info}"))
}
