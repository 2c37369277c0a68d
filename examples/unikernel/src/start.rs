//! From the architecture's entry to a kernel that the crates can use, and to its end. Every kernel of this workspace
//! begins so.

use alloc::boxed::Box;
use core::fmt;

use xen_hypercall::hvm::{HvmParam, Vector, callback_vector, set_param};
use xen_hypercall::sched::{ShutdownReason, shutdown};
use xen_hypercall::{Domain, Errno};

use crate::platform::{self, Kernel, Owned};
use crate::{arch, console};

/// Makes the heap, the seal, the interrupts and the log, in this order, and then the kernel, which lives as long as
/// the domain. On the boot stack, with interrupts off.
pub(crate) fn begin(info: &arch::BootInfo) -> Owned {
    let Some(call) = arch::call() else { crash(format_args!("this processor has no way into Xen")) };
    platform::init_heap(info);
    arch::seal(info);
    arch::install();
    console::init_log();
    let domain = own(call).unwrap_or_else(|error| crash(format_args!("Xen refuses the basics: {error}")));
    console::set_clock(domain.platform());
    domain
}

#[allow(unsafe_code, reason = "says that the domain is nobody else's")]
fn own(call: arch::Call) -> Result<Owned, Errno> {
    const VECTOR: Vector = Vector::new(arch::UPCALL_VECTOR).expect("an exception's vector");
    let kernel: &'static Kernel = Box::leak(Box::new(Kernel::new(call)));
    // SAFETY: the architecture's entry comes here once, and nothing ran in this domain before that uses anything of Xen's
    // still.
    let domain: Owned = Box::leak(Box::new(unsafe { Domain::new(kernel) }?));
    kernel.start_clock(domain.shared_info());
    set_param(kernel, HvmParam::CALLBACK_IRQ, callback_vector(VECTOR))?;
    Ok(domain)
}

/// Ends the domain, once everything that was said is out.
pub(crate) fn end(kernel: &Kernel, reason: ShutdownReason) -> ! {
    console::drain();
    let _ = shutdown(kernel, reason);
    arch::halt()
}

/// Tells Xen's log and the console why, and ends the domain as crashed.
pub(crate) fn crash(why: fmt::Arguments<'_>) -> ! {
    console::last_words(why);
    if let Some(call) = arch::call() {
        let _ = shutdown(&call, ShutdownReason::CRASH);
    }
    arch::halt()
}

#[cfg(not(feature = "hosted"))]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    crash(format_args!("{info}"))
}
