//! A kernel that asks Xen for everything that the SDK's crates can ask for, and prints a line about each.
//!
//! What carries it (`arch`, `platform`, `mem`, `console`) is the unikernel's. As the first domain it needs neither
//! Linux nor a toolstack. Under `xl` its command line can name a role (`role=front` or `role=back`): then it checks
//! event channels and grants with a second domain of its own kind, too, whose number it is told by the node `data/peer`
//! of its xenstore. `abi=fifo` and `grants=2` choose what the two of them use.
#![no_std]
#![no_main]

extern crate alloc;

#[path = "../../unikernel/src/arch/mod.rs"]
#[allow(dead_code, reason = "the unikernel uses all of it")]
mod arch;
mod checks;
#[path = "../../unikernel/src/console.rs"]
#[allow(dead_code, reason = "the unikernel uses all of it")]
mod console;
#[path = "../../unikernel/src/mem.rs"]
mod mem;
#[path = "../../unikernel/src/platform.rs"]
#[allow(dead_code, reason = "the unikernel uses all of it")]
mod platform;
#[allow(dead_code, reason = "the other kernel that has it uses all of it")]
mod report;
mod room;
mod second;
#[allow(dead_code, reason = "the other kernel that has it uses all of it")]
mod words;

use alloc::boxed::Box;
use core::fmt;

use xen_hypercall::hvm::{HvmParam, callback_vector, set_param};
use xen_hypercall::sched::{ShutdownReason, shutdown};
use xen_hypercall::version::Features;
use xen_hypercall::{Errno, SharedInfo, version};

use crate::checks::Domain;
use crate::platform::Kernel;
use crate::report::Report;
use crate::words::Words;

/// Called by the architecture's entry, on the boot stack, with interrupts off.
fn main(info: &arch::BootInfo) -> ! {
    let Some(call) = arch::call() else { crash(format_args!("this processor has no way into Xen")) };
    platform::init_heap(info);
    arch::seal(info);
    arch::install();
    console::init_log();
    let words = Words::new(info.cmdline());
    let domain = domain(call).unwrap_or_else(|error| crash(format_args!("Xen refuses the basics: {error}")));
    console::set_clock(domain.kernel);
    let mut report = Report::new(domain.kernel);
    checks::run(&domain, &words, &mut report);
    report.end();
    console::drain();
    let _ = shutdown(&call, ShutdownReason::POWEROFF);
    arch::halt()
}

fn domain(call: arch::Call) -> Result<Domain, Errno> {
    let mut kernel = Kernel::new(call);
    let shared = SharedInfo::map(&kernel)?;
    kernel.set_shared_info(shared);
    set_param(&kernel, HvmParam::CALLBACK_IRQ, callback_vector(arch::UPCALL_VECTOR))?;
    let first = version::features(&kernel)?.contains(Features::DOM0);
    Ok(Domain { kernel: Box::leak(Box::new(kernel)), shared, first })
}

/// Tells Xen's log and the console why, and ends the domain as crashed.
fn crash(why: fmt::Arguments<'_>) -> ! {
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
