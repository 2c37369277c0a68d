//! Exceptions, which end the domain with a report.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU32, Ordering};

use super::{halt, paging};
use crate::machine::this;

/// The pages of the stack that exceptions run on, for the one they come from may be what is broken.
pub(super) const STACK: usize = 4;

/// The vCPU that reports, counted from one; zero: none does.
static REPORTS: AtomicU32 = AtomicU32::new(0);

// Sixteen entries of 128 bytes. Nothing returns from here, so registers need not be kept.
//
// The processor has two stack pointers for this level. The kernel uses that of programs, SP_EL0, which is this level's to use
// as there are none; an exception comes with the other one, which leads to its own stack.
global_asm!(
    r#"
    .pushsection .text.vectors, "ax", @progbits
    .balign 2048
vectors:
    .set    vector, 0
    .rept   16
    .balign 128
    mrs     x1, sp_el0
    mov     x0, #vector
    b       vector_entry
    .set    vector, vector + 1
    .endr
vector_entry:
    mov     x29, xzr
    bl      {exception}
    .popsection
    "#,
    exception = sym exception,
);

/// Gives exceptions their handler, on the vCPU that runs this, and their stack.
pub(super) fn install(stack: u64) {
    // SAFETY: the vectors are well-formed and in the text; the stack is for this alone. What is on the stack in use stays there,
    // for the other pointer leads to the same place, and no interrupt comes in between.
    unsafe {
        asm!(
            "adrp {0}, vectors", "add {0}, {0}, :lo12:vectors", "msr vbar_el1, {0}",
            "mov {0}, sp",
            "msr spsel, #1", "mov sp, {stack}",
            "msr spsel, #0", "mov sp, {0}",
            "isb",
            out(reg) _, stack = in(reg) stack, options(preserves_flags),
        );
    }
}

/// What happened where.
struct Syndrome {
    esr: u64,
    elr: u64,
    far: u64,
}

impl Syndrome {
    fn read() -> Self {
        let (esr, elr, far);
        // SAFETY: reading these registers has no effect.
        unsafe {
            asm!(
                "mrs {}, esr_el1", "mrs {}, elr_el1", "mrs {}, far_el1",
                out(reg) esr, out(reg) elr, out(reg) far, options(nomem, nostack, preserves_flags),
            );
        }
        Self { esr, elr, far }
    }
}

extern "C" fn exception(vector: u64, sp: u64) -> ! {
    let Syndrome { esr, elr, far } = Syndrome::read();
    let me = this().id.0 + 1;
    match REPORTS.compare_exchange(0, me, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => {}
        // The report itself faults.
        Err(who) if who == me => crate::machine::end(crate::Exit::Crash),
        // Another vCPU's ends the domain.
        Err(_) => halt(),
    }
    let name = match (vector % 4, esr >> 26) {
        (0, 0x00) => "invalid instruction",
        (0, 0x07) => "use of floating point registers that are off",
        (0, 0x15) => "supervisor call",
        (0, 0x20 | 0x21) => fault("executing", far, elr, sp, esr),
        (0, 0x24 | 0x25) if esr & 1 << 6 != 0 => fault("writing", far, elr, sp, esr),
        (0, 0x24 | 0x25) => fault("reading", far, elr, sp, esr),
        (0, 0x22) => "a program counter that is not aligned",
        (0, 0x26) => "a stack pointer that is not aligned",
        (0, 0x3C) => "breakpoint",
        (1 | 2, _) => "an interrupt while interrupts are off",
        (3, _) => "an error of the system",
        _ => "an exception that is not known",
    };
    crate::crash(format_args!("{name} (vector {vector}); pc {elr:#x} sp {sp:#x} syndrome {esr:#x}"))
}

fn fault(access: &str, far: u64, elr: u64, sp: u64, esr: u64) -> ! {
    // The low bits say why: a translation that is not there, or rights that are missing, each at a level of the tables.
    let name = match esr & 0x3F {
        0x04..=0x0F => "page fault",
        0x21 => "alignment fault",
        _ => "memory fault",
    };
    let why = match (paging::describe(far), access) {
        ("", "executing") => ", which may not be executed",
        (place, _) => place,
    };
    crate::crash(format_args!("{name}: {access} {far:#x}{why}; pc {elr:#x} sp {sp:#x} syndrome {esr:#x}"))
}
