//! A kernel that tries what `xen-blkfront` and `xen-netfront` can do on the backends that it is given, and prints a line
//! about each.
//!
//! Words of its command line say what to do: `block` checks disks, `net` network cards, `bench` measures the disk `xvda`,
//! whose content is lost. `block-lives=WORD,WORD` and `net-lives=WORD,WORD` have a disk, or two cards, at work while the domain
//! is suspended, once for each word: a `migrate`, a `save` or a `checkpoint`. What dom0 has to do in between is asked for by lines that begin with `please`.
#![no_std]
#![no_main]

extern crate alloc;

mod bench;
mod block;
mod net;
mod pattern;
mod place;

use check_report::{Report, Words};
use xen_rt::{Exit, Guest, crash};

use crate::place::Place;

xen_rt::entry!(main);

fn main(guest: Guest) -> Exit {
    let words = Words::new(guest.command_line());
    let mut place = Place::new(guest)
        .unwrap_or_else(|error| crash(format_args!("nothing to drive devices with: {}", error.0)));
    let mut report = Report::new(env!("CARGO_PKG_NAME"));
    if words.has("block") {
        block::run(&mut place, &mut report);
    }
    if words.has("net") {
        net::run(&mut place, &words, &mut report);
    }
    if let Some(plan) = words.get("block-lives") {
        block::lives::run(&mut place, plan, &mut report);
    }
    if let Some(plan) = words.get("net-lives") {
        net::lives::run(&mut place, plan, &mut report);
    }
    if words.has("bench") {
        let measured = bench::run(&mut place, &words, &report);
        report.check("bench", || measured);
    }
    report.end();
    Exit::PowerOff
}
