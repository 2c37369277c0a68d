//! Faults, which end the domain with a report, and the one interrupt, which ends a sleep.
//!
//! Interrupts are off everywhere but inside the sleep of the SDK's `idle`, so nothing is ever interrupted in the middle of
//! work, and no lock is needed. Xen asserts the upcall vector as long as `evtchn_upcall_pending` of the vCPU is set, and
//! the handler, which is the SDK's too, does not clear it: the main loop does, when it looks at the events.

use core::arch::{asm, global_asm};

use xen_hypercall::PAGE_SIZE;
use xen_hypercall::arch::x86_64::idle;

use super::paging;
use crate::machine::{keep, keep_pages};

/// The interrupt by which Xen tells of events.
pub(super) const UPCALL_VECTOR: u8 = 0x20;

const CODE: u16 = 8;
const TSS: u16 = 16;
/// Vectors from here on to 31 are reserved, or of features that no guest of this kind has.
const FAULTS: usize = 22;
/// Faults run on a stack of their own: the one they come from may be what is broken.
const FAULT_STACK: usize = 4 * PAGE_SIZE;

global_asm!(
    r#"
    .balign 16
fault_entries:
    .set vector, 0
    .rept {faults}
    .balign 16
    .if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21)
    .else
    push 0
    .endif
    .byte 0x6A, vector // push
    jmp fault_entry
    .set vector, vector + 1
    .endr
fault_entry:
    cld
    mov rdi, rsp
    mov rsi, cr2
    and rsp, -16
    call {fault}
    "#,
    faults = const FAULTS,
    fault = sym fault,
);

#[repr(C)]
struct Frame {
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

extern "C" fn fault(frame: &Frame, cr2: u64) -> ! {
    let Frame { vector, error, rip, rsp, .. } = *frame;
    let name = match vector {
        0 => "divide error",
        6 => "invalid instruction",
        8 => "double fault",
        13 => "general protection fault",
        14 => "page fault",
        _ => "fault",
    };
    if vector == 14 {
        let access = match error {
            error if error & 16 != 0 => "executing",
            error if error & 2 != 0 => "writing",
            _ => "reading",
        };
        let why = match (paging::describe(cr2), error & 16) {
            ("", 16) => ", which may not be executed",
            (place, _) => place,
        };
        crate::crash(format_args!(
            "{name}: {access} {cr2:#x}{why}; rip {rip:#x} rsp {rsp:#x} error {error:#x}"
        ))
    }
    crate::crash(format_args!("{name} (vector {vector}); rip {rip:#x} rsp {rsp:#x} error {error:#x}"))
}

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Tss {
    reserved0: u32,
    rsp: [u64; 3],
    reserved1: u64,
    ist: [u64; 7],
    reserved2: [u16; 5],
    iomap: u16,
}

/// Gives faults and the upcall their handlers. What is made here is never freed.
pub(crate) fn install() {
    unsafe extern "C" {
        static fault_entries: u8;
    }
    let stack = keep_pages(FAULT_STACK / PAGE_SIZE).as_ptr().expose_provenance() as u64 + FAULT_STACK as u64;
    let mut tss = Tss {
        reserved0: 0,
        rsp: [0; 3],
        reserved1: 0,
        ist: [0; 7],
        reserved2: [0; 5],
        iomap: size_of::<Tss>() as u16,
    };
    tss.ist = [stack, 0, 0, 0, 0, 0, 0];
    let tss = (keep(tss) as *mut Tss).expose_provenance() as u64;
    let limit = size_of::<Tss>() as u64 - 1;
    let low = limit | (tss & 0xFF_FFFF) << 16 | 0x89 << 40 | (tss >> 24 & 0xFF) << 56;
    let gdt = keep([0, 0x00AF_9B00_0000_FFFF_u64, low, tss >> 32]);
    let gate = |handler: u64, ist: u64| {
        let selector = u64::from(CODE);
        [
            handler & 0xFFFF | selector << 16 | ist << 32 | 0x8E << 40 | (handler >> 16 & 0xFFFF) << 48,
            handler >> 32,
        ]
    };
    let idt = keep([[0_u64; 2]; UPCALL_VECTOR as usize + 1]);
    let entries = (&raw const fault_entries).expose_provenance() as u64;
    for (vector, slot) in idt.iter_mut().enumerate().take(FAULTS) {
        *slot = gate(entries + vector as u64 * 16, 1);
    }
    idt[UPCALL_VECTOR as usize] = gate(idle::upcall_entry() as u64, 0);
    let gdt = Pointer { limit: size_of_val(gdt) as u16 - 1, base: gdt.as_ptr().expose_provenance() as u64 };
    let idt = Pointer { limit: size_of_val(idt) as u16 - 1, base: idt.as_ptr().expose_provenance() as u64 };
    // SAFETY: the tables are well-formed and live for ever; the code segment stays the same as the boot code's.
    unsafe {
        asm!("lgdt [{}]", "lidt [{}]", "ltr {:x}", in(reg) &raw const gdt, in(reg) &raw const idt, in(reg) TSS);
    }
}
