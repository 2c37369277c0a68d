//! A kernel that asks Xen for everything that the SDK's crates can ask for, and prints a line about each.
//!
//! What carries it (`arch`, `start`, `platform`, `mem`, `console`) is the unikernel's. As the first domain it needs neither
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
#[path = "../../unikernel/src/start.rs"]
mod start;
#[allow(dead_code, reason = "the other kernel that has it uses all of it")]
mod words;

use xen_hypercall::sched::ShutdownReason;
use xen_hypercall::version::{self, Features};

use crate::checks::Domain;
use crate::report::Report;
use crate::start::crash;
use crate::words::Words;

/// Called by the architecture's entry, on the boot stack, with interrupts off.
fn main(info: &arch::BootInfo) -> ! {
    let token = start::begin(info);
    let kernel: &platform::Kernel = token.platform();
    let words = Words::new(info.cmdline());
    let features = version::features(kernel)
        .unwrap_or_else(|error| crash(format_args!("Xen does not say what it has: {error}")));
    let domain = Domain { kernel, token, first: features.contains(Features::DOM0) };
    let mut report = Report::new(kernel);
    checks::run(&domain, &words, &mut report);
    report.end();
    start::end(kernel, ShutdownReason::POWEROFF)
}
