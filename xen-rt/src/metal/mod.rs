//! The machine itself: from the architecture's entry to a kernel that the crates can use, and to its end.

mod kernel;
#[cfg(not(target_os = "none"))]
mod mem;
mod memory;
mod place;
mod room;
#[cfg(feature = "smp")]
mod stacks;
mod vcpu;

#[cfg(feature = "smp")]
use xen_hypercall::VcpuId;
use xen_hypercall::sched::shutdown;
use xen_hypercall::{Domain, Errno, console_io};

use crate::arch;
use crate::entry::{self, Boot, Exit, crash};
use crate::memory_map::{BootInfo, Range};

pub use kernel::Kernel;
pub use memory::{Memory, memory};

pub(crate) use arch::bind_timer;
#[cfg(feature = "suspend")]
pub(crate) use arch::suspend_by_firmware;
#[cfg(feature = "rand_core")]
pub(crate) use arch::{has_random, random};
#[cfg(target_arch = "x86_64")]
pub(crate) use memory::alloc_pages;
pub(crate) use memory::{keep, keep_pages};
pub(crate) use place::Place;
#[cfg(any(feature = "smp", feature = "suspend", target_arch = "aarch64"))]
pub(crate) use vcpu::this;
#[cfg(feature = "embassy")]
pub(crate) use vcpu::{heart, set_heart};
#[cfg(feature = "smp")]
pub(crate) use {
    stacks::{STACKS, stack},
    vcpu::{FIRST, Own},
};

static KERNEL: Place<Kernel> = Place::new();

/// Called by the architecture's entry, on the boot stack, with interrupts off. Makes the memory, the seal, the interrupts
/// and the log, in this order, then the kernel, and runs it.
#[allow(unsafe_code, reason = "its frame stays")]
pub(crate) fn start(info: BootInfo) -> ! {
    arch::enter();
    // SAFETY: this function never returns, and nothing unwinds, so what is in its frame is there for ever. It does not change.
    let info: &'static BootInfo = unsafe { &*core::ptr::from_ref(&info) };
    let Some(call) = arch::call() else { crash(format_args!("this processor has no way into Xen")) };
    // What takes memory over writes into it, so what the entry's tables do not reach comes after the seal.
    let reach = arch::reach();
    memory::init(info, reach);
    arch::seal(info);
    memory::init(info, Range { start: 0, end: reach.start });
    memory::init(info, Range { start: reach.end, end: u64::MAX });
    arch::install();
    #[cfg(feature = "log")]
    crate::logger::install();
    let domain =
        own(call, info).unwrap_or_else(|error| crash(format_args!("Xen refuses the basics: {error}")));
    entry::start(Boot::new(domain))
}

#[allow(unsafe_code, reason = "says that the domain is nobody else's")]
fn own(call: arch::Call, info: &'static BootInfo) -> Result<&'static Domain<&'static Kernel>, Errno> {
    let kernel = KERNEL.put(Kernel::new(call, info));
    // SAFETY: the architecture's entry comes here once, and nothing ran in this domain before that uses anything of Xen's
    // still.
    let domain: &'static Domain<_> = keep(unsafe { Domain::new(kernel) }?);
    kernel.start_clock(domain.shared_info());
    arch::enable_upcall(domain)?;
    Ok(domain)
}

/// Whether a vCPU is up.
#[cfg(feature = "smp")]
pub(crate) fn is_up(id: VcpuId) -> Result<bool, Errno> {
    let kernel = KERNEL.get().ok_or(Errno::ENOENT)?;
    arch::is_up(kernel, id)
}

/// Starts another vCPU.
#[cfg(feature = "smp")]
pub(crate) fn start_vcpu(id: VcpuId, life: &'static dyn crate::smp::Life) -> Result<(), Errno> {
    let kernel = KERNEL.get().ok_or(Errno::ENOENT)?;
    arch::start_vcpu(kernel, keep(Own::new(id)), life)
}

/// The timer of the vCPU that asks is not set, whatever it was set to: the domain was suspended.
#[cfg(feature = "suspend")]
pub(crate) fn forget_timer() {
    this().timer.store(0, core::sync::atomic::Ordering::Relaxed);
}

/// What time it is; zero before the kernel is there.
#[cfg(any(feature = "log", feature = "embassy"))]
pub(crate) fn now() -> core::time::Duration {
    KERNEL.get().map(xen_hypercall::Wait::now).unwrap_or_default()
}

/// What works before anything else does: Xen's console where Xen lets the domain write to it, which is so of the first domain
/// and of those that Xen itself makes as it boots; otherwise Xen's log.
pub(crate) fn early(bytes: &[u8]) {
    let written = arch::call().map(|call| console_io::write(&call, bytes));
    if !matches!(written, Some(Ok(_))) {
        arch::early(bytes);
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
