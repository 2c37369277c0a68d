//! A kernel that tries what `xen-blkfront` and `xen-netfront` can do on the backends that it is given, and prints a line
//! about each.
//!
//! What carries it (`arch`, `start`, `platform`, `mem`, `console`) is the unikernel's, and the lines are the self-test's.
//! Words of its command line say what to do: `block` checks disks, `net` network cards, `bench` measures the disk `xvda`,
//! whose content is lost. What dom0 has to do in between is asked for by lines that begin with `please`.
#![no_std]
#![no_main]

extern crate alloc;

#[path = "../../unikernel/src/arch/mod.rs"]
#[allow(dead_code, reason = "the unikernel uses all of it")]
mod arch;
mod bench;
mod block;
#[path = "../../unikernel/src/console.rs"]
#[allow(dead_code, reason = "the unikernel uses all of it")]
mod console;
#[path = "../../load/src/jobs.rs"]
mod jobs;
#[path = "../../unikernel/src/mem.rs"]
mod mem;
mod net;
mod pattern;
mod place;
#[path = "../../unikernel/src/platform.rs"]
#[allow(dead_code, reason = "the unikernel uses all of it")]
mod platform;
#[path = "../../selftest/src/report.rs"]
#[allow(dead_code, reason = "the self-test uses all of it")]
mod report;
#[path = "../../unikernel/src/start.rs"]
mod start;
#[path = "../../selftest/src/words.rs"]
#[allow(dead_code, reason = "the self-test uses all of it")]
mod words;

use xen_hypercall::sched::ShutdownReason;

use crate::place::Place;
use crate::report::Report;
use crate::start::crash;
use crate::words::Words;

/// Called by the architecture's entry, on the boot stack, with interrupts off.
fn main(info: &arch::BootInfo) -> ! {
    let domain = start::begin(info);
    let words = Words::new(info.cmdline());
    let mut place = Place::new(domain)
        .unwrap_or_else(|error| crash(format_args!("nothing to drive devices with: {}", error.0)));
    let mut report = Report::new(place.kernel);
    if words.has("block") {
        block::run(&mut place, &mut report);
    }
    if words.has("net") {
        net::run(&mut place, &words, &mut report);
    }
    if words.has("bench") {
        let measured = bench::run(&mut place, &words, &report);
        report.check("bench", || measured);
    }
    report.end();
    start::end(place.kernel, ShutdownReason::POWEROFF)
}
