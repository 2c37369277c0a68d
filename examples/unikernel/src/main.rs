//! A unikernel on Xen: a web server that boots straight on the hypervisor, put together from the SDK's crates.
//!
//! `arch` gets the processor from Xen's entry to here, `platform` is the kernel that the crates ask for, `machine`
//! gives the application its devices. To make another unikernel of it, replace the application.
#![no_std]
#![no_main]

extern crate alloc;

mod arch;
mod console;
mod devices;
mod machine;
mod mem;
mod platform;

use alloc::boxed::Box;
use core::fmt;

use webserver::config::Config;
use webserver::{App, Request};
use xen_evtchn::{EventChannels, Virq};
use xen_hypercall::hvm::{HvmParam, callback_vector, set_param};
use xen_hypercall::sched::{ShutdownReason, shutdown};
use xen_hypercall::{Errno, SharedInfo, VcpuId, version};

use crate::machine::XenMachine;
use crate::platform::Kernel;

/// Called by the architecture's entry, on the boot stack, with interrupts off.
fn main(info: &arch::BootInfo) -> ! {
    let Some(call) = arch::call() else { crash(format_args!("this processor has no way into Xen")) };
    platform::init_heap(info);
    arch::seal(info);
    arch::install();
    console::init_log();
    // What runs from here on lives as long as the domain, so it is never freed.
    let command_line: &'static str = alloc::string::String::from(info.cmdline()).leak();
    let kernel = kernel(call).unwrap_or_else(|error| crash(format_args!("Xen refuses the basics: {error}")));
    let (kernel, shared) = kernel;
    console::set_clock(kernel);
    let events = EventChannels::new(kernel, shared).unwrap_or_else(|error| crash(format_args!("{error}")));
    let events: &'static EventChannels<&'static Kernel> = Box::leak(Box::new(events));
    // The timer's event has nothing to tell but that it is time to look around.
    let _timer = events.bind_virq(Virq::TIMER, VcpuId(0)).inspect_err(|e| log::error!("timer: {e}"));
    console::open(events);
    let config = Config::parse(command_line);
    log::set_max_level(config.log.unwrap_or(log::LevelFilter::Info));
    greet(kernel, info);
    if let Some(name) = config.selftest {
        arch::selftest(name);
    }
    let (machine, devices, config) = XenMachine::new(events, config);
    let (_, request) = App::new(machine, &config, devices.nic, devices.disk).run();
    let reason = match request {
        Request::PowerOff => ShutdownReason::POWEROFF,
        Request::Reboot => ShutdownReason::REBOOT,
    };
    console::drain();
    let _ = shutdown(&kernel, reason);
    arch::halt()
}

/// The first line: who we are, on what.
fn greet(kernel: &Kernel, info: &arch::BootInfo) {
    let (major, minor) = version::version(kernel).unwrap_or_default();
    let extra =
        version::extraversion(kernel).map_or_else(|_| Default::default(), |text| alloc::format!("{text}"));
    let ram: u64 = info.ram().iter().map(|range| range.end - range.start).sum();
    log::info!("unikernel {} on Xen {major}.{minor}{extra}, {} MiB", env!("CARGO_PKG_VERSION"), ram >> 20);
}

fn kernel(call: arch::Call) -> Result<(&'static Kernel, SharedInfo), Errno> {
    let mut kernel = Kernel::new(call);
    let shared = SharedInfo::map(&kernel)?;
    kernel.set_shared_info(shared);
    set_param(&kernel, HvmParam::CALLBACK_IRQ, callback_vector(arch::UPCALL_VECTOR))?;
    Ok((Box::leak(Box::new(kernel)), shared))
}

/// Tells Xen's log and the console why, and ends the domain as crashed.
fn crash(why: fmt::Arguments<'_>) -> ! {
    console::last_words(why);
    if let Some(call) = arch::call() {
        let _ = shutdown(&call, ShutdownReason::CRASH);
    }
    arch::halt()
}

#[cfg(not(feature = "hosted"))]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    crash(format_args!("{info}"))
}
