//! From the architecture's entry to a kernel that the crates can use, and to its end. Every kernel of this workspace
//! begins so.

use alloc::boxed::Box;
use core::fmt;

use xen_hypercall::hvm::{HvmParam, Vector, callback_vector, set_param};
use xen_hypercall::sched::{ShutdownReason, shutdown};
use xen_hypercall::{Errno, SharedInfo};

use crate::platform::{self, Kernel};
use crate::{arch, console};

/// Makes the heap, the seal, the interrupts and the log, in this order, and then the kernel, which lives as long as
/// the domain. On the boot stack, with interrupts off.
pub(crate) fn begin(info: &arch::BootInfo) -> (&'static Kernel, SharedInfo) {
    let Some(call) = arch::call() else { crash(format_args!("this processor has no way into Xen")) };
    platform::init_heap(info);
    arch::seal(info);
    arch::install();
    console::init_log();
    let (kernel, shared) =
        kernel(call).unwrap_or_else(|error| crash(format_args!("Xen refuses the basics: {error}")));
    console::set_clock(kernel);
    (kernel, shared)
}

fn kernel(call: arch::Call) -> Result<(&'static Kernel, SharedInfo), Errno> {
    const VECTOR: Vector = Vector::new(arch::UPCALL_VECTOR).expect("an exception's vector");
    let mut kernel = Kernel::new(call);
    let shared = SharedInfo::map(&kernel)?;
    kernel.set_shared_info(shared);
    set_param(&kernel, HvmParam::CALLBACK_IRQ, callback_vector(VECTOR))?;
    Ok((Box::leak(Box::new(kernel)), shared))
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
