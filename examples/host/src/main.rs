//! The unikernel's application as an ordinary process: the same drivers, on a mock of Xen instead of the real one.
//!
//! `machine` and `devices` are the unikernel's own files. What differs is the kernel below them ([`platform`]) and the
//! world around ([`world`]): a daemon for the store, backends for disk and card, and a stack of the host's that carries
//! TCP connections from a port of this machine to the guest. No Xen, no root.

extern crate alloc;

mod console;
#[path = "../../unikernel/src/devices/mod.rs"]
mod devices;
#[path = "../../unikernel/src/machine.rs"]
mod machine;
mod platform;
mod proxy;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use webserver::config::Config;
use webserver::{App, Request};
use xen_evtchn::{EventChannels, Virq};
use xen_hypercall::{Domain, VcpuId};

use machine::{XenMachine, leak};
use world::World;

/// Run the unikernel's web server on a mock of Xen
#[derive(Debug, Parser)]
struct Args {
    /// The port of this machine that leads to the web server
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// A raw FAT disk image to serve, written to by PUT and DELETE
    #[arg(long, value_name = "FILE")]
    disk: Option<PathBuf>,
    /// The guest's command line
    #[arg(long, default_value = "ip=10.0.0.2/24 gw=10.0.0.1")]
    cmdline: String,
    /// Write what passes the network card to FILE when the guest ends, for Wireshark
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<()> {
    let world = World::new(args.port, args.disk.as_deref(), &args.cmdline)?;
    let switch = world.switch();
    let kernel: &'static platform::Kernel = leak(platform::Kernel::new(world));
    console::init_log();
    console::set_clock(kernel);
    // SAFETY: this process has made the machine, and its guest has no other kernel.
    let domain: platform::Owned =
        leak(unsafe { Domain::new(kernel) }.context("the mock refuses shared_info")?);
    let events = leak(EventChannels::new(domain).context("no event channels")?);
    let _timer = events.bind_virq(Virq::TIMER, VcpuId(0)).context("no timer")?;
    console::open(events);
    let config = Config::parse::<true>(args.cmdline.leak());
    log::set_max_level(config.log.unwrap_or(log::LevelFilter::Info));
    log::info!("unikernel {} on a mock of Xen, in a process", env!("CARGO_PKG_VERSION"));
    let (machine, devices, config) = XenMachine::new(domain, events, config);
    println!(
        "\n    http://127.0.0.1:{0}/          the files of its disk\n    http://127.0.0.1:{0}/-/status  how it does\n",
        args.port
    );
    let (_, request) = App::new(machine, &config, devices.nic, devices.disk).run();
    console::drain();
    kernel.show();
    if let Some(path) = &args.pcap {
        std::fs::write(path, switch.pcap()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if request == Request::Reboot {
        println!("A process does not start again by itself.");
    }
    Ok(())
}
