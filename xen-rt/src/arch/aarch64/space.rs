//! The address space, for a vCPU that is to enter it with the MMU and the caches off: one that begins, and one that was suspended.

use core::arch::asm;

/// What `mmu_on` (in `boot`) takes, in its order. Read with the MMU and the caches off, so it is to be [written
/// back](write_back).
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Space {
    mair: u64,
    tcr: u64,
    ttbr0: u64,
    sctlr: u64,
}

impl Space {
    /// That of the vCPU that asks, which is that of all.
    pub(super) fn current() -> Self {
        let (mair, tcr, ttbr0, sctlr);
        // SAFETY: reading these registers has no effect.
        unsafe {
            asm!(
                "mrs {}, mair_el1", "mrs {}, tcr_el1", "mrs {}, ttbr0_el1", "mrs {}, sctlr_el1",
                out(reg) mair, out(reg) tcr, out(reg) ttbr0, out(reg) sctlr,
                options(nomem, nostack, preserves_flags),
            );
        }
        Self { mair, tcr, ttbr0, sctlr }
    }
}

/// Writes what caches have of a thing to memory, where it is read by who has none.
pub(super) fn write_back<T>(thing: &T) {
    let caches: u64;
    // SAFETY: reading the register has no effect.
    unsafe { asm!("mrs {}, ctr_el0", out(reg) caches, options(nomem, nostack, preserves_flags)) };
    // The size of the smallest line, as a power of two of words.
    let line = 4 << (caches >> 16 & 0xF);
    let start = core::ptr::from_ref(thing).expose_provenance();
    for at in (start & !(line - 1)..start + size_of::<T>()).step_by(line) {
        // SAFETY: memory keeps its contents.
        unsafe { asm!("dc cvac, {}", in(reg) at, options(nostack, preserves_flags)) };
    }
    // SAFETY: a barrier has no other effect.
    unsafe { asm!("dsb sy", options(nostack, preserves_flags)) };
}
