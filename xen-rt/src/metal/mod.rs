//! The machine itself: from the architecture's entry to a kernel that the crates can use, and to its end.

mod kernel;
#[cfg(not(target_os = "none"))]
mod mem;
mod memory;
mod place;
mod room;
mod vcpu;

use core::time::Duration;

#[cfg(feature = "smp")]
use xen_hypercall::VcpuId;
use xen_hypercall::sched::shutdown;
use xen_hypercall::version::Features;
use xen_hypercall::{Domain, Errno, Wait, console_io, version};

use crate::arch;
use crate::entry::{self, Boot, Exit, crash};
use crate::memory_map::BootInfo;

pub use kernel::Kernel;
pub use memory::{Memory, memory};

pub(crate) use arch::bind_timer;
pub(crate) use memory::{alloc_pages, keep, keep_pages};
pub(crate) use place::Place;
#[cfg(feature = "smp")]
pub(crate) use vcpu::{FIRST, Own, this};

static KERNEL: Place<Kernel> = Place::new();

/// Called by the architecture's entry, on the boot stack, with interrupts off. Makes the memory, the seal, the interrupts
/// and the log, in this order, then the kernel, and runs it.
#[allow(unsafe_code, reason = "its frame stays")]
pub(crate) fn start(info: BootInfo) -> ! {
    arch::enter();
    // SAFETY: this function never returns, and nothing unwinds, so what is in its frame is there for ever. It does not change.
    let info: &'static BootInfo = unsafe { &*core::ptr::from_ref(&info) };
    let Some(call) = arch::call() else { crash(format_args!("this processor has no way into Xen")) };
    memory::init(info);
    arch::seal(info);
    arch::install();
    #[cfg(feature = "log")]
    crate::logger::install();
    let domain =
        own(call, info).unwrap_or_else(|error| crash(format_args!("Xen refuses the basics: {error}")));
    entry::start(Boot::new(domain, info.cmdline(), info.ram()))
}

#[allow(unsafe_code, reason = "says that the domain is nobody else's")]
fn own(call: arch::Call, info: &'static BootInfo) -> Result<&'static Domain<&'static Kernel>, Errno> {
    let kernel = KERNEL.put(Kernel::new(call, info));
    // SAFETY: the architecture's entry comes here once, and nothing ran in this domain before that uses anything of Xen's
    // still.
    let domain: &'static Domain<_> = keep(unsafe { Domain::new(kernel) }?);
    kernel.start_clock(domain.shared_info());
    arch::enable_upcall(kernel)?;
    Ok(domain)
}

/// Starts another vCPU.
#[cfg(feature = "smp")]
pub(crate) fn start_vcpu(id: VcpuId, life: &'static dyn crate::smp::Life) -> Result<(), Errno> {
    let kernel = KERNEL.get().ok_or(Errno::ENOENT)?;
    arch::start_vcpu(kernel, keep(Own::new(id)), life)
}

/// What time it is; zero before the kernel is there.
pub(crate) fn now() -> Duration {
    KERNEL.get().map(Wait::now).unwrap_or_default()
}

/// What works before anything else does: Xen's console, which a release build of Xen shows for the first domain
/// alone, or Xen's log, which it shows for all others.
pub(crate) fn early(bytes: &[u8]) {
    let call = arch::call();
    let features = call.and_then(|call| version::features(&call).ok());
    match call.filter(|_| features.is_some_and(|features| features.contains(Features::DOM0))) {
        Some(call) => drop(console_io::write(&call, bytes)),
        None => arch::early(bytes),
    }
}

/// Ends the domain at once.
pub(crate) fn end(exit: Exit) -> ! {
    if let Some(call) = arch::call() {
        let _ = shutdown(&call, exit.into());
    }
    arch::halt()
}

/// Breaks what page tables and traps guard, to show what becomes of it: `panic`, `null`, `stack`, `text`, `rodata`, `exec`.
/// Returns only for another name.
pub fn selftest(name: &str) {
    arch::selftest(name);
}
