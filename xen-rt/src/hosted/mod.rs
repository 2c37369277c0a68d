//! The kernel as a process of this machine, on mocks of Xen's side of every interface.
//!
//! What is a machine elsewhere is here a [`world`] around one domain of the mock: a store, a console on the terminal, disks in
//! files, a network card whose other side is a stack that carries connections from ports of this machine. Nothing in it runs by
//! itself: it acts while the kernel waits, see [`kernel`]. A vCPU is a [thread](vcpus).

mod args;
mod forward;
mod kernel;
pub(crate) mod lock;
mod outside;
mod vcpus;
mod world;

use std::boxed::Box;
use std::io::Write;
use std::process;
use std::string::ToString;
use std::sync::OnceLock;
use std::time::Duration;
use std::vec::Vec;

use anyhow::{Context, Result, ensure};
use xen_evtchn::{Error, EventChannels, Virq};
#[cfg(feature = "smp")]
use xen_hypercall::Errno;
use xen_hypercall::{Domain, PAGE_SIZE, VcpuId, sched};

use crate::channels;
use crate::entry::{self, Boot, Exit};
use args::Args;
use world::World;

pub use kernel::Kernel;

/// What Xen gives a kernel of its command line.
const COMMAND_LINE: usize = 1023;

/// How long what was written before a panic may take.
const LAST: Duration = Duration::from_secs(1);

static KERNEL: OnceLock<Kernel> = OnceLock::new();

/// Runs the kernel in this process, on the machine that its arguments ask for.
pub fn process() -> ! {
    match boot(&Args::of_process(entry::name())) {
        Ok(boot) => entry::start(boot),
        Err(error) => {
            std::eprintln!("error: {error:#}");
            process::exit(world::NO_MACHINE)
        }
    }
}

fn boot(args: &Args) -> Result<Boot> {
    let (memory, command_line) = (u64::from(args.memory) << 20, args.command_line());
    ensure!(
        command_line.len() <= COMMAND_LINE,
        "the command line has {} bytes, and Xen gives a kernel {COMMAND_LINE}",
        command_line.len()
    );
    let world = World::new(args)?;
    let kernel = KERNEL.get_or_init(|| Kernel::new(world, memory, command_line.leak()));
    show_what_was_written_before_a_panic(kernel);
    #[cfg(feature = "log")]
    crate::logger::install();
    let domain = own(kernel).context("the mock refuses the basics")?;
    Ok(Boot::new(domain))
}

#[allow(unsafe_code, reason = "says that the domain is nobody else's")]
fn own(kernel: &'static Kernel) -> Result<&'static Domain<&'static Kernel>> {
    // SAFETY: this process has made the domain, once, and it has no other kernel.
    let domain = unsafe { Domain::new(kernel) };
    Ok(keep(domain.map_err(|error| anyhow::anyhow!(error.to_string()))?))
}

/// A panic ends the guest as a crash, after what it wrote to its console until then.
fn show_what_was_written_before_a_panic(kernel: &'static Kernel) {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        // Not in this thread, which may have panicked in the middle of the mock with its locks held.
        let (done, wait) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            kernel.others().end();
            while let (None, true) = (finish(kernel), kernel.others().are_there()) {
                // Another vCPU is at the world, and about to leave it.
                std::thread::yield_now();
            }
            done.send(())
        });
        let _ = wait.recv_timeout(LAST);
        tell(info);
        process::exit(world::CRASHED)
    }));
}

/// Shows what is left, unless somebody is at the world.
fn finish(kernel: &Kernel) -> Option<()> {
    kernel.world().map(|mut world| world.finish())
}

/// What time it is; zero before the kernel is there.
#[cfg(any(feature = "log", feature = "embassy"))]
pub(crate) fn now() -> Duration {
    KERNEL.get().map(xen_hypercall::Wait::now).unwrap_or_default()
}

/// What works before anything else does.
pub(crate) fn early(bytes: &[u8]) {
    let bytes: Vec<u8> = bytes.iter().copied().filter(|byte| *byte != b'\r').collect();
    // Nobody may be there to read it.
    let _ = std::io::stderr().write_all(&bytes);
}

/// Ends the domain at once, and with it the process.
pub(crate) fn end(exit: Exit) -> ! {
    if let Some(kernel) = KERNEL.get() {
        // The process ends within this call, unless the world is what fails.
        let _ = sched::shutdown(&kernel, exit.into());
    }
    process::exit(world::CRASHED)
}

/// Has the event channels tell when the timer ends a wait.
pub(crate) fn bind_timer(events: &'static EventChannels<&'static Kernel>, vcpu: VcpuId) -> Result<(), Error> {
    channels::keep(events.bind_virq(Virq::TIMER, vcpu)?);
    Ok(())
}

/// The mock has no firmware.
///
/// # Safety
/// As of [`Domain::suspend`].
#[cfg(feature = "suspend")]
#[allow(unsafe_code, reason = "is as unsafe as the machine's")]
pub(crate) unsafe fn suspend_by_firmware() -> Option<Result<sched::Resumed, xen_hypercall::Errno>> {
    None
}

/// A process has no timer that it remembers to have set.
#[cfg(feature = "suspend")]
pub(crate) fn forget_timer() {}

/// Whether a vCPU is up.
#[cfg(feature = "smp")]
pub(crate) fn is_up(id: VcpuId) -> Result<bool, Errno> {
    let kernel = KERNEL.get().ok_or(Errno::ENOENT)?;
    xen_hypercall::vcpu::is_up(&kernel, id)
}

/// Starts another vCPU, as a thread.
#[cfg(feature = "smp")]
#[allow(unsafe_code, reason = "the mock runs nothing")]
pub(crate) fn start_vcpu(id: VcpuId, life: &'static dyn crate::smp::Life) -> Result<(), Errno> {
    use xen_hypercall::abi::VcpuHvmX8664;
    use xen_hypercall::vcpu;

    // Paging, in long mode.
    let (cr0, cr4, efer) = (1 << 31 | 1, 1 << 5, 1 << 10 | 1 << 8);
    let context = VcpuHvmX8664 { cr0, cr4, efer, ..VcpuHvmX8664::default() };
    let kernel = KERNEL.get().ok_or(Errno::ENOENT)?;
    kernel.others().join();
    // SAFETY: the mock takes note of the state, and runs nothing from it: the thread does what the vCPU is to do.
    unsafe { vcpu::initialise(&kernel, id, &context.into()) }?;
    vcpu::up(&kernel, id)?;
    let thread = std::thread::Builder::new().name(std::format!("vcpu{}", id.0));
    let started = thread.spawn(move || {
        vcpus::become_vcpu(id);
        life.live();
    });
    started.map(drop).map_err(|_| Errno::ENOMEM)
}

#[cfg(feature = "embassy")]
std::thread_local! {
    /// The time of the executor that runs on this thread.
    static HEART: std::cell::Cell<Option<&'static crate::embassy::Heart>> = const { std::cell::Cell::new(None) };
}

/// The time of the executor that runs on this vCPU.
#[cfg(feature = "embassy")]
pub(crate) fn heart() -> Option<&'static crate::embassy::Heart> {
    HEART.get()
}

/// Another executor runs on this vCPU, or none. Returns which did.
#[cfg(feature = "embassy")]
pub(crate) fn set_heart(
    heart: Option<&'static crate::embassy::Heart>,
) -> Option<&'static crate::embassy::Heart> {
    HEART.replace(heart)
}

/// Keeps a thing for as long as the process lives.
pub(crate) fn keep<T>(thing: T) -> &'static mut T {
    Box::leak(Box::new(thing))
}

/// How much of the domain's memory is in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Memory {
    /// Bytes that were given out as pages; the heap is the process's own.
    pub used: usize,
    /// Bytes that can be.
    pub free: usize,
}

/// How much of the domain's memory is in use.
pub fn memory() -> Memory {
    let (used, free) = KERNEL.get().map(Kernel::pages).unwrap_or_default();
    Memory { used: used * PAGE_SIZE, free: free * PAGE_SIZE }
}

/// Whether the operating system has random numbers, as all have.
#[cfg(feature = "rand_core")]
pub(crate) fn has_random() -> bool {
    random().is_some()
}

/// A random number of the operating system.
#[cfg(feature = "rand_core")]
pub(crate) fn random() -> Option<u64> {
    getrandom::u64().ok()
}

/// Breaks what an image guards, of which a process has only `panic`.
pub fn selftest(name: &str) {
    assert!(name != "panic", "asked for by the command line");
}

/// The symbol by which the C library's start finds the program.
#[doc(hidden)]
#[macro_export]
macro_rules! __process {
    () => {
        const _: () = {
            #[unsafe(export_name = "main")]
            extern "C" fn process() -> ! {
                $crate::__private::process()
            }
        };
    };
}
