//! The one interrupt of this kernel. It ends a sleep, and its handler is the SDK's.
//!
//! Faults have no handler here: Xen ends a domain that faults, as crashed, and says where in its log.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use xen_hypercall::arch::x86_64::idle;
use xen_hypercall::hvm::Vector;

/// The vector by which Xen tells of events.
pub(crate) const VECTOR: Vector = Vector::FIRST;
const GATES: usize = VECTOR.number() as usize + 1;
/// The code segment that `boot` made.
const CODE: u64 = 8;

/// The interrupt table: gates of two words.
static TABLE: [[AtomicU64; 2]; GATES] = [const { [const { AtomicU64::new(0) }; 2] }; GATES];

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

/// Makes the table the processor's.
pub(crate) fn install() {
    let handler = idle::upcall_entry() as u64;
    // An interrupt gate: present, for ring 0, on the stack that is in use.
    let low = handler & 0xFFFF | CODE << 16 | 0x8E << 40 | (handler >> 16 & 0xFFFF) << 48;
    let [.., [first, second]] = &TABLE;
    first.store(low, Ordering::Relaxed);
    second.store(handler >> 32, Ordering::Relaxed);
    let base = (&raw const TABLE).expose_provenance() as u64;
    let pointer = Pointer { limit: size_of_val(&TABLE) as u16 - 1, base };
    // SAFETY: the table is well-formed, and stays.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer, options(readonly, nostack, preserves_flags)) };
}

/// Stops for good.
pub(crate) fn halt() -> ! {
    loop {
        // SAFETY: interrupts are off, so the processor stops here.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
    }
}
