//! Faults, which end the domain with a report, and the one interrupt, which ends a sleep.
//!
//! Interrupts are off everywhere but inside the sleep of the SDK's `idle`, so nothing is ever interrupted in the middle of
//! work, and no lock is needed. Xen asserts the upcall vector as long as `evtchn_upcall_pending` of the vCPU is set, and
//! the handler, which is the SDK's too, does not clear it: the main loop does, when it looks at the events.

use core::arch::global_asm;

use x86_64::instructions::tables;
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::gdt::{Descriptor, DescriptorFlags, SegmentSelector};
use x86_64::structures::tss::TaskStateSegment;
use x86_64::{PrivilegeLevel, VirtAddr};
use xen_hypercall::arch::x86_64::idle;

use super::paging;
use crate::machine::keep;

/// The interrupt by which Xen tells of events.
pub(super) const UPCALL_VECTOR: u8 = 0x20;

pub(super) const CODE: SegmentSelector = SegmentSelector::new(1, PrivilegeLevel::Ring0);
const TSS: SegmentSelector = SegmentSelector::new(2, PrivilegeLevel::Ring0);
/// Vectors from here on to 31 are reserved, or of features that no guest of this kind has.
const FAULTS: usize = 22;

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

/// Gives faults and the upcall their handlers, on the vCPU that runs this. What is made here is never freed. Faults run on a stack of their own: the one
/// they come from may be what is broken.
pub(super) fn install(stack: u64) {
    unsafe extern "C" {
        static fault_entries: u8;
    }
    let mut tss = TaskStateSegment::new();
    tss.interrupt_stack_table[0] = VirtAddr::new_truncate(stack);
    let Descriptor::SystemSegment(low, high) = Descriptor::tss_segment(keep(tss)) else { return };
    // The library's tables check each entry, and have all 256 vectors; this one ends with the last that is used.
    let gdt = keep([0, DescriptorFlags::KERNEL_CODE64.bits(), low, high]);
    let idt = keep([[0_u64; 2]; UPCALL_VECTOR as usize + 1]);
    let gate = |handler: u64, ist: u64| {
        let selector = u64::from(CODE.0);
        [
            handler & 0xFFFF | selector << 16 | ist << 32 | 0x8E << 40 | (handler >> 16 & 0xFFFF) << 48,
            handler >> 32,
        ]
    };
    let entries = (&raw const fault_entries).expose_provenance() as u64;
    for (vector, slot) in idt.iter_mut().enumerate().take(FAULTS) {
        *slot = gate(entries + vector as u64 * 16, 1);
    }
    idt[UPCALL_VECTOR as usize] = gate(idle::upcall_entry() as u64, 0);
    // SAFETY: the tables are well-formed and live for ever; the code segment stays the same as the boot code's.
    unsafe {
        tables::lgdt(&pointer(gdt));
        tables::lidt(&pointer(idt));
        tables::load_tss(TSS);
    }
}

fn pointer<T>(table: &'static [T]) -> DescriptorTablePointer {
    let base = address(table.as_ptr().expose_provenance());
    DescriptorTablePointer { limit: size_of_val(table) as u16 - 1, base }
}

fn address(at: usize) -> VirtAddr {
    VirtAddr::new_truncate(at as u64)
}
