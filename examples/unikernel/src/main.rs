//! A unikernel on Xen: a web server that boots straight on the hypervisor, put together from the SDK's crates.
//!
//! `arch` gets the processor from Xen's entry to here, `start` makes what every kernel needs, `platform` is the kernel that
//! the crates ask for, `machine` gives the application its devices. To make another unikernel of it, replace the
//! application.
#![no_std]
#![no_main]

extern crate alloc;

mod arch;
mod console;
mod devices;
mod machine;
mod mem;
mod platform;
mod start;

use alloc::boxed::Box;

use webserver::config::Config;
use webserver::{App, Request};
use xen_evtchn::{EventChannels, Virq};
use xen_hypercall::sched::ShutdownReason;
use xen_hypercall::{VcpuId, version};

use crate::machine::XenMachine;
use crate::platform::Kernel;
use crate::start::crash;

/// Called by the architecture's entry, on the boot stack, with interrupts off.
fn main(info: &arch::BootInfo) -> ! {
    let domain = start::begin(info);
    let kernel: &'static Kernel = domain.platform();
    // What runs from here on lives as long as the domain, so it is never freed.
    let command_line: &'static str = alloc::string::String::from(info.cmdline()).leak();
    let events = EventChannels::new(domain).unwrap_or_else(|error| crash(format_args!("{error}")));
    let events: &'static EventChannels<&'static Kernel> = Box::leak(Box::new(events));
    // The timer's event has nothing to tell but that it is time to look around.
    let _timer = events.bind_virq(Virq::TIMER, VcpuId(0)).inspect_err(|e| log::error!("timer: {e}"));
    console::open(events);
    let config = Config::parse::<{ <devices::Nic as webserver::Nic>::PRESENT }>(command_line);
    log::set_max_level(config.log.unwrap_or(log::LevelFilter::Info));
    greet(kernel, info);
    if let Some(name) = config.selftest {
        arch::selftest(name);
    }
    let (machine, devices, config) = XenMachine::new(domain, events, config);
    let (_, request) = App::new(machine, &config, devices.nic, devices.disk).run();
    let reason = match request {
        Request::PowerOff => ShutdownReason::POWEROFF,
        Request::Reboot => ShutdownReason::REBOOT,
    };
    start::end(kernel, reason)
}

/// The first line: who we are, on what.
fn greet(kernel: &Kernel, info: &arch::BootInfo) {
    let (major, minor) = version::version(kernel).unwrap_or_default();
    let extra =
        version::extraversion(kernel).map_or_else(|_| Default::default(), |text| alloc::format!("{text}"));
    let ram: u64 = info.ram().iter().map(|range| range.end - range.start).sum();
    log::info!("unikernel {} on Xen {major}.{minor}{extra}, {} MiB", env!("CARGO_PKG_VERSION"), ram >> 20);
}
