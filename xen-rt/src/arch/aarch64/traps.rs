//! Exceptions, which end the domain with a report.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use xen_hypercall::PAGE_SIZE;

use super::{gic, paging};
use crate::machine::keep_pages;

/// They run on a stack of their own: the one they come from may be what is broken.
const STACK_PAGES: usize = 4;

static STACK: AtomicU64 = AtomicU64::new(0);
static REPORTED: AtomicBool = AtomicBool::new(false);

// Sixteen entries of 128 bytes. Nothing returns from here, so registers need not be kept.
global_asm!(
    r#"
    .pushsection .text.vectors, "ax", @progbits
    .balign 2048
vectors:
    .set    vector, 0
    .rept   16
    .balign 128
    mov     x1, sp
    mov     x0, #vector
    b       vector_entry
    .set    vector, vector + 1
    .endr
vector_entry:
    adrp    x2, {stack}
    ldr     x2, [x2, :lo12:{stack}]
    mov     sp, x2
    mov     x29, xzr
    bl      {exception}
    .popsection
    "#,
    stack = sym STACK,
    exception = sym exception,
);

/// Gives exceptions their handler, and interrupts their controller.
pub(crate) fn install() {
    let top = keep_pages(STACK_PAGES).as_ptr().expose_provenance() + STACK_PAGES * PAGE_SIZE;
    STACK.store(top as u64, Ordering::Relaxed);
    // SAFETY: the vectors are well-formed, in the text, and use the stack that was just made.
    unsafe {
        asm!(
            "adrp {0}, vectors", "add {0}, {0}, :lo12:vectors", "msr vbar_el1, {0}", "isb",
            out(reg) _, options(nostack, preserves_flags),
        );
    }
    if let Err(what) = gic::enable() {
        crate::crash(format_args!("the interrupt controller {what}"));
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
    if REPORTED.swap(true, Ordering::Relaxed) {
        // The report itself faults.
        crate::machine::end(crate::Exit::Crash);
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
