//! A guest that prints a line on its console and ends: what event channels and a console cost.
#![no_std]
#![no_main]

use xen_rt::{Exit, Guest, println};

xen_rt::entry!(main);

fn main(guest: Guest) -> Exit {
    println!("a line from {} MiB of memory", guest.ram() >> 20);
    Exit::PowerOff
}
