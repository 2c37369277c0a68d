//! The way into Xen, sleep, and last words.

use core::arch::asm;
use core::sync::atomic::Ordering;

use xen_hypercall::{Domain, Errno, Hypercall, PAGE_SIZE};

use super::{MACHINE, gic, traps};
use crate::machine::{Kernel, Place, keep, keep_pages, this};
use crate::memory_map::BootInfo;

pub(crate) use xen_hypercall::arch::aarch64::Hvc as Call;

/// A domain of Xen at EL1, where we are, has one way into Xen.
pub(crate) fn call() -> Option<Call> {
    // SAFETY: the entry is that of a guest of Xen, at EL1; it turns the MMU on before it comes to Rust.
    Some(unsafe { Call::new() })
}

/// Where pages of other domains can be mapped: where Xen says that nothing is, or above all memory.
pub(crate) fn room(_: &impl Hypercall, info: &BootInfo) -> u64 {
    let end = info.end();
    let room = MACHINE.get().and_then(|machine| machine.room);
    room.map_or(end.next_multiple_of(1 << 30), |room| room.start).div_ceil(PAGE_SIZE as u64)
}

static DOMAIN: Place<&'static Domain<&'static Kernel>> = Place::new();

/// Xen tells of events by the interrupt that the device tree names. From here on a sleep does not begin while there are events
/// that nobody has looked at.
pub(crate) fn enable_upcall(domain: &'static Domain<&'static Kernel>) -> Result<(), Errno> {
    DOMAIN.put(domain);
    Ok(())
}

/// In a new domain it is the same interrupt.
#[cfg(feature = "suspend")]
pub(crate) fn enable_upcall_again(_: &Domain<&'static Kernel>) -> Result<(), Errno> {
    Ok(())
}

/// Whether the vCPU has events that nobody has looked at.
fn upcall_pending() -> bool {
    let area = DOMAIN.get().and_then(|domain| domain.area(this().id));
    area.is_some_and(|area| area.info().upcall_pending.load(Ordering::SeqCst) != 0)
}

/// The first steps of the first vCPU, before any other. They may be taken twice.
pub(crate) fn enter() {
    #[cfg(feature = "smp")]
    super::vcpus::enter();
}

/// Gives exceptions their handler, on a stack of their own, and interrupts their controller, on the first vCPU.
pub(crate) fn install() {
    let stack = keep_pages(traps::STACK).as_ptr().expose_provenance() + traps::STACK * PAGE_SIZE;
    traps::install(stack as u64);
    if let Err(what) = gic::enable() {
        crate::crash(format_args!("the interrupt controller {what}"));
    }
}

/// Words to Xen's log, three bytes a line: a call that Xen does not know, which it puts there with its number. Works before
/// anything else does.
pub(crate) fn early(bytes: &[u8]) {
    /// A number of the range for a secure system, which no guest has.
    const UNKNOWN: u32 = 0x3F << 24;
    for part in bytes.chunks(3) {
        let word = part.iter().fold(0, |word, byte| word << 8 | u32::from(*byte));
        let _unknown = smccc::hvc32(UNKNOWN | word, [0; 7]);
    }
}

/// Sleeps until an interrupt, unless something is due. Interrupts are masked here and everywhere, so none is taken, and one that is pending ends the
/// sleep as it begins.
///
/// Xen makes the interrupt for events pending when the first event comes since somebody looked, not as long as there are
/// some. One that comes before the look here is seen by it; one that comes later makes the interrupt pending, which is not
/// acknowledged before the sleep has ended.
pub(crate) fn idle(is_due: &dyn Fn() -> bool) {
    if gic::acknowledge() || upcall_pending() || is_due() {
        return;
    }
    // SAFETY: the processor goes on with the next instruction, once an interrupt is pending. What was written before is
    // visible to others by then.
    unsafe { asm!("dsb sy", "wfi", options(nostack, preserves_flags)) };
    gic::acknowledge();
}

/// Whether the processor has random numbers (`FEAT_RNG`).
#[cfg(feature = "rand_core")]
pub(crate) fn has_random() -> bool {
    let features: u64;
    // SAFETY: the register can be read at EL1, where this is.
    unsafe { asm!("mrs {}, id_aa64isar0_el1", out(reg) features, options(nomem, nostack, preserves_flags)) };
    features >> 60 != 0
}

/// A random number, if there is one now.
#[cfg(feature = "rand_core")]
pub(crate) fn random() -> Option<u64> {
    if !has_random() {
        return None;
    }
    let (number, failed): (u64, u64);
    // SAFETY: the processor has the register (RNDR), as was asked. It says by the flags whether the number is one.
    unsafe {
        asm!("mrs {}, s3_3_c2_c4_0", "cset {}, eq", out(reg) number, out(reg) failed, options(nomem, nostack))
    };
    (failed == 0).then_some(number)
}

/// Nothing more can be done, and Xen was told so.
pub(crate) fn halt() -> ! {
    loop {
        // SAFETY: interrupts are off, so the processor does nothing but sleep.
        unsafe { asm!("wfi", options(nomem, nostack)) }
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
                // `ret`
                let code = keep(0xD65F_03C0_u32);
                core::mem::transmute::<*const u32, extern "C" fn()>(code)();
            }
            _ => {}
        }
    }
}
