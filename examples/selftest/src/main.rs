//! A kernel that asks Xen for everything that the SDK's crates can ask for, and prints a line about each.
//!
//! As the first domain it needs neither
//! Linux nor a toolstack. Under `xl` its command line can name a role (`role=front` or `role=back`): then it checks
//! event channels and grants with a second domain of its own kind, too, whose number it is told by the node `data/peer`
//! of its xenstore. `abi=fifo` and `grants=2` choose what the two of them use.
//!
//! With `resume=WORD,WORD` it checks what it can in each of several lives: before each it asks dom0 for what the word says, a
//! `save` and a restore or a `checkpoint`, and afterwards it looks at what was made before, and checks all of it again.
//!
//! With `vcpus=COUNT` it has all its vCPUs at work, and checks nothing else; with `overflow`, too, one of them does nothing but
//! to use more stack than it has, which ends the domain.
#![no_std]
#![no_main]

extern crate alloc;

mod checks;
mod second;

use alloc::boxed::Box;

use check_report::{Report, Words};
use xen_evtchn::{Abi, EventChannels};
use xen_hypercall::version::{self, Features};
use xen_rt::{Boot, Exit, Guest, Kernel, crash};

use crate::checks::Domain;

xen_rt::entry!(main);

/// Event channels are among what is checked, so nothing is opened before.
fn main(boot: Boot) -> Exit {
    let kernel: &Kernel = boot.kernel();
    let words = Words::new(boot.command_line());
    let features = version::features(kernel)
        .unwrap_or_else(|error| crash(format_args!("Xen does not say what it has: {error}")));
    let domain = Domain { kernel, token: boot.domain(), first: features.contains(Features::DOM0) };
    let mut report = Report::new(env!("CARGO_PKG_NAME"));
    if let Some(plan) = words.get("resume") {
        let guest = open(boot, checks::abi(&words));
        checks::resume::run(guest, plan, checks::version(&words), &mut report);
        report.end();
        return Exit::PowerOff;
    }
    if let Some(count) = words.get("vcpus").and_then(|count| count.parse().ok()) {
        let guest = open(boot, checks::abi(&words));
        if words.has("overflow") {
            checks::smp::overflow(guest);
        }
        checks::smp::run(guest, count, &mut report);
        report.end();
        return Exit::PowerOff;
    }
    checks::run(&domain, &words, &mut report);
    report.end();
    Exit::PowerOff
}

/// Opens the domain as the runtime does, with the ABI of choice.
fn open(boot: Boot, abi: Abi) -> Guest {
    let opened =
        EventChannels::with_abi(boot.domain(), abi).and_then(|events| boot.with(Box::leak(Box::new(events))));
    opened.unwrap_or_else(|error| crash(format_args!("no events: {error}")))
}
