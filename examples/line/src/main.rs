//! The least that a guest is. What its image holds is what every image of the runtime holds.
#![no_std]
#![no_main]

use xen_rt::{Exit, Guest, println};

xen_rt::entry!(main);

fn main(guest: Guest) -> Exit {
    println!("a line from {} MiB of memory", guest.ram() >> 20);
    Exit::PowerOff
}
