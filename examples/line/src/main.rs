//! The least that a guest is: a line in Xen's log, and the end. What its image holds is what every image of the runtime holds.
#![no_std]
#![no_main]

use xen_rt::{Boot, Exit, println};

xen_rt::entry!(main);

/// Nothing is opened, so the line goes to Xen's log, and the image holds neither event channels nor a console.
fn main(boot: Boot) -> Exit {
    println!("a line from {} MiB of memory", boot.ram() >> 20);
    Exit::PowerOff
}
