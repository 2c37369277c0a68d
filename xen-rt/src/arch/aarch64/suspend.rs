//! Suspend by the machine's firmware (PSCI's `SYSTEM_SUSPEND`, Arm DEN 0022), which in a domain is Xen, where it has that.
//!
//! Such a suspend is never moved to another domain. The vCPU goes on as a new one does: with the MMU and the caches off, at EL1, at an
//! address that it said before.

use core::arch::global_asm;

use smccc::Hvc;
use smccc::psci::{self, PSCI_SYSTEM_SUSPEND_64};
use xen_hypercall::sched::Resumed;
use xen_hypercall::{Errno, VcpuId};

use super::gic;

/// What the vCPU has to have again. Read with the MMU and the caches off.
#[repr(C, align(64))]
struct Saved([u64; 28]);

// The result is zero when the vCPU goes on, and what the firmware returned when it refused. The places in `Saved`: x19 to x30, d8 to
// d15, the two stack pointers (that of programs, which the kernel uses, and that of exceptions), then registers of the system. The tables
// map this code, and the memory of `Saved`, to themselves.
global_asm!(
    r#"
    .pushsection .text.suspend, "ax", @progbits
suspend_system:
    stp     x19, x20, [x0]
    stp     x21, x22, [x0, #16]
    stp     x23, x24, [x0, #32]
    stp     x25, x26, [x0, #48]
    stp     x27, x28, [x0, #64]
    stp     x29, x30, [x0, #80]
    stp     d8, d9, [x0, #96]
    stp     d10, d11, [x0, #112]
    stp     d12, d13, [x0, #128]
    stp     d14, d15, [x0, #144]
    mov     x1, sp
    msr     spsel, #1
    mov     x2, sp
    msr     spsel, #0
    stp     x1, x2, [x0, #160]
    mrs     x1, mair_el1
    mrs     x2, tcr_el1
    stp     x1, x2, [x0, #176]
    mrs     x1, ttbr0_el1
    mrs     x2, sctlr_el1
    stp     x1, x2, [x0, #192]
    mrs     x1, vbar_el1
    mrs     x2, tpidr_el1
    stp     x1, x2, [x0, #208]

    mrs     x1, ctr_el0
    ubfx    x1, x1, #16, #4
    mov     x2, #4
    lsl     x1, x2, x1      // bytes in a line of the cache
    sub     x2, x1, #1
    bic     x2, x0, x2
    add     x3, x0, #224
1:  dc      cvac, x2
    add     x2, x2, x1
    cmp     x2, x3
    b.lo    1b
    dsb     sy

    mov     x2, x0
    ldr     x0, ={function}
    adrp    x1, resume_system
    add     x1, x1, :lo12:resume_system
    mov     x3, xzr
    hvc     #0
    ret

resume_system:
    msr     daifset, #0xf
    mov     x1, #(3 << 20)
    msr     cpacr_el1, x1
    msr     fpcr, xzr       // as compiled code has it
    ldp     x1, x2, [x0, #176]
    ldp     x3, x4, [x0, #192]
    msr     mair_el1, x1
    msr     tcr_el1, x2
    msr     ttbr0_el1, x3
    isb
    tlbi    vmalle1
    ic      iallu
    dsb     nsh
    isb
    msr     sctlr_el1, x4
    isb
    ldp     x1, x2, [x0, #208]
    msr     vbar_el1, x1
    msr     tpidr_el1, x2
    ldp     x1, x2, [x0, #160]
    msr     spsel, #1
    mov     sp, x2
    msr     spsel, #0
    mov     sp, x1
    isb
    ldp     d8, d9, [x0, #96]
    ldp     d10, d11, [x0, #112]
    ldp     d12, d13, [x0, #128]
    ldp     d14, d15, [x0, #144]
    ldp     x19, x20, [x0]
    ldp     x21, x22, [x0, #16]
    ldp     x23, x24, [x0, #32]
    ldp     x25, x26, [x0, #48]
    ldp     x27, x28, [x0, #64]
    ldp     x29, x30, [x0, #80]
    mov     x0, xzr
    ret
    .ltorg
    .popsection
    "#,
    function = const PSCI_SYSTEM_SUSPEND_64,
);

unsafe extern "C" {
    fn suspend_system(saved: *mut Saved) -> i64;
}

/// Suspends the domain by the firmware. None: it cannot.
///
/// # Safety
/// As of [`Domain::suspend`](xen_hypercall::Domain::suspend).
pub(crate) unsafe fn suspend_by_firmware() -> Option<Result<Resumed, Errno>> {
    psci::psci_features::<Hvc>(PSCI_SYSTEM_SUSPEND_64).ok()?;
    let mut saved = Saved([0; 28]);
    // SAFETY: it writes to `saved` alone, and comes back with all that a function of C keeps as it was, whether the vCPU was
    // suspended or not. What nobody else may do meanwhile is the caller's promise.
    let result = unsafe { suspend_system(&raw mut saved) };
    Some(match result {
        // The controller's registers of the vCPU may be as they are at its start.
        0 => match gic::enable_here(VcpuId(0)) {
            Ok(()) => Ok(Resumed::InPlace),
            // An error would say that the domain was not suspended.
            Err(what) => crate::crash(format_args!("after a suspend the interrupt controller {what}")),
        },
        // NOT_SUPPORTED, INVALID_PARAMETERS, DENIED: another vCPU is up.
        -1 => return None,
        -3 => Err(Errno::EBUSY),
        _ => Err(Errno::EINVAL),
    })
}
