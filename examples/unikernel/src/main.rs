//! A unikernel on Xen: a web server that boots straight on the hypervisor, put together from the SDK's crates.
//!
//! `xen-rt` carries it from Xen's entry to here, and to its end; `machine` gives the application its devices. To make another
//! unikernel of it, replace the application.
#![no_std]
#![no_main]

extern crate alloc;

mod devices;
mod machine;
mod platform;
#[cfg(feature = "suspend")]
mod suspend;

use webserver::config::Config;
use webserver::{App, Request};
use xen_hypercall::version;
use xen_rt::{Exit, Guest};

use crate::machine::XenMachine;

xen_rt::entry!(main);

fn main(guest: Guest) -> Exit {
    let config = Config::parse::<{ <devices::Nic as webserver::Nic>::PRESENT }>(guest.command_line());
    log::set_max_level(config.log.unwrap_or(log::LevelFilter::Info));
    greet(guest);
    if let Some(name) = config.selftest {
        xen_rt::selftest(name);
        log::warn!("selftest: there is panic, null, stack, text, rodata, exec");
    }
    let (machine, devices, config) = XenMachine::new(guest, config);
    let (_, request) = App::new(machine, &config, devices.nic, devices.disk).run();
    match request {
        Request::Reboot => Exit::Reboot,
        _ => Exit::PowerOff,
    }
}

/// The first line: who we are, on what.
fn greet(guest: Guest) {
    let kernel = guest.kernel();
    let (major, minor) = version::version(kernel).unwrap_or_default();
    let extra =
        version::extraversion(kernel).map_or_else(|_| Default::default(), |text| alloc::format!("{text}"));
    let mib = guest.ram() >> 20;
    log::info!("unikernel {} on Xen {major}.{minor}{extra}, {mib} MiB", env!("CARGO_PKG_VERSION"));
}
