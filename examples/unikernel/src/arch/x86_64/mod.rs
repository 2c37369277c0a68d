//! x86-64, started by Xen as a PVH guest.

mod boot;
mod paging;
mod traps;

use core::arch::asm;

pub(crate) use boot::{BootInfo, Range};
pub(crate) use paging::{map_special, seal, usable};
pub(crate) use traps::{UPCALL_VECTOR, install};

pub(crate) use xen_hypercall::arch::x86_64::VendorCall as Call;

/// A domain of Xen at ring 0, where we are, has one way into Xen.
pub(crate) fn call() -> Option<Call> {
    // SAFETY: the PVH entry is the only one of this image, so this is ring 0 of a PVH domain.
    unsafe { Call::detect() }
}

/// The processor's time stamp counter, not read ahead of what comes before.
pub(crate) fn counter() -> u64 {
    // SAFETY: both instructions are there on every x86-64 processor and touch no memory.
    unsafe {
        core::arch::x86_64::_mm_lfence();
        core::arch::x86_64::_rdtsc()
    }
}

/// A byte to Xen's log: the port that Xen watches in every HVM and PVH domain. Works before anything else does.
pub(crate) fn early_byte(byte: u8) {
    // SAFETY: a write to this port has no effect but the one on Xen's log.
    unsafe { asm!("out 0xE9, al", in("al") byte, options(nomem, nostack, preserves_flags)) }
}

/// Sleeps until an interrupt. This is the only place where interrupts are on, see `traps`: an event that is pending already
/// ends the sleep as it begins.
pub(crate) fn idle() {
    // SAFETY: this is ring 0, and the handler of the only interrupt is the one for this.
    unsafe { xen_hypercall::arch::x86_64::idle::sleep_unless(|| false) }
}

/// Nothing more can be done, and Xen was told so.
pub(crate) fn halt() -> ! {
    loop {
        // SAFETY: interrupts are off, so the processor stops here for good.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
    }
}

/// Breaks what page tables and traps guard, to show what becomes of it.
pub(crate) fn selftest(name: &str) {
    unsafe extern "C" {
        static text_start: u8;
        static text_end: u8;
    }
    fn overflow(depth: u64) -> u64 {
        let room = core::hint::black_box([depth; 64]);
        if depth == u64::MAX { 0 } else { overflow(depth + 1) + room[(depth % 64) as usize] }
    }
    // SAFETY: none of these is sound, and that is the point: each must end in the trap that it is named for. The
    // addresses are not referred to by any Rust object but the code and constants, which stay as they are.
    unsafe {
        match name {
            "panic" => panic!("asked for by the command line"),
            "null" => drop(core::ptr::without_provenance::<u8>(8).read_volatile()),
            "stack" => drop(core::hint::black_box(overflow(0))),
            "text" => (&raw const text_start).cast_mut().write_volatile(0),
            "rodata" => (&raw const text_end).cast_mut().write_volatile(0),
            "exec" => {
                let code = alloc::boxed::Box::new([0xC3_u8]);
                core::mem::transmute::<*const u8, extern "C" fn()>(code.as_ptr())();
            }
            _ => log::warn!("selftest: there is panic, null, stack, text, rodata, exec"),
        }
    }
}
