//! The kernel: its tasks are those of the library, on one executor.
#![no_std]
#![no_main]

use embassy_kernel::{Domain, Ending, Terminal};
use xen_console::Error;
use xen_gnttab::GrantTable;
use xen_rt::console::task;
use xen_rt::embassy::Executor;
use xen_rt::{Exit, Guest, println};
use xen_xenstore::Xenstore;

extern crate alloc;

xen_rt::entry!(main);

/// The console that the toolstack gave the domain.
struct Console;

impl Terminal for Console {
    async fn read(&self, buf: &mut [u8]) -> Result<usize, Error> {
        task::read(buf).await
    }

    async fn write_text(&self, text: &str) -> Result<(), Error> {
        task::write_text(text).await
    }
}

fn main(guest: Guest) -> Result<Exit, xen_xenstore::Error> {
    println!("{} on {} MiB of memory", env!("CARGO_PKG_NAME"), guest.ram() >> 20);
    let grants = match GrantTable::new(guest.domain()) {
        Ok(grants) => alloc::boxed::Box::leak(alloc::boxed::Box::new(grants)),
        Err(error) => xen_rt::crash(format_args!("no grants: {error}")),
    };
    let domain = Domain::new(guest.events(), grants, Xenstore::new(guest.events())?);
    let executor = Executor::new(guest);
    executor.run_until(|spawner| domain.start(spawner, &Console), || domain.ending().is_some());
    println!("the end");
    Ok(match domain.ending() {
        Some(Ending::Reboot) => Exit::Reboot,
        _ => Exit::PowerOff,
    })
}
