//! Suspend by the machine's firmware (PSCI's `SYSTEM_SUSPEND`, Arm DEN 0022), which in a domain is Xen, where it has that.
//!
//! Such a suspend is never moved to another domain. The vCPU goes on as a new one does: with the MMU and the caches off, at EL1, at an
//! address that it said before.

use core::arch::global_asm;
use core::mem::offset_of;

use smccc::Hvc;
use smccc::psci::{self, PSCI_SYSTEM_SUSPEND_64};
use xen_hypercall::sched::Resumed;
use xen_hypercall::{Errno, VcpuId};

use super::gic;
use super::space::{Space, write_back};

/// What the vCPU has to have again. The space is read with the MMU and the caches off.
#[repr(C)]
struct Saved {
    space: Space,
    /// x19 to x30, d8 to d15, the two stack pointers (that of programs, which the kernel uses, and that of exceptions), VBAR and
    /// TPIDR.
    registers: [u64; 24],
}

// The result is zero when the vCPU goes on, and what the firmware returned when it refused. The tables map this code, and the memory
// of `Saved`, to themselves.
global_asm!(
    r#"
    .pushsection .text.suspend, "ax", @progbits
suspend_system:
    add     x9, x0, #{registers}
    stp     x19, x20, [x9]
    stp     x21, x22, [x9, #16]
    stp     x23, x24, [x9, #32]
    stp     x25, x26, [x9, #48]
    stp     x27, x28, [x9, #64]
    stp     x29, x30, [x9, #80]
    stp     d8, d9, [x9, #96]
    stp     d10, d11, [x9, #112]
    stp     d12, d13, [x9, #128]
    stp     d14, d15, [x9, #144]
    mov     x1, sp
    msr     spsel, #1
    mov     x2, sp
    msr     spsel, #0
    stp     x1, x2, [x9, #160]
    mrs     x1, vbar_el1
    mrs     x2, tpidr_el1
    stp     x1, x2, [x9, #176]

    mov     x2, x0
    ldr     x0, ={function}
    adrp    x1, resume_system
    add     x1, x1, :lo12:resume_system
    mov     x3, xzr
    hvc     #0
    ret

resume_system:
    ldp     x1, x2, [x0, #{space}]
    ldp     x3, x4, [x0, #{space} + 16]
    bl      mmu_on
    msr     fpcr, xzr       // as compiled code has it
    add     x9, x0, #{registers}
    ldp     x1, x2, [x9, #176]
    msr     vbar_el1, x1
    msr     tpidr_el1, x2
    ldp     x1, x2, [x9, #160]
    msr     spsel, #1
    mov     sp, x2
    msr     spsel, #0
    mov     sp, x1
    isb
    ldp     d8, d9, [x9, #96]
    ldp     d10, d11, [x9, #112]
    ldp     d12, d13, [x9, #128]
    ldp     d14, d15, [x9, #144]
    ldp     x19, x20, [x9]
    ldp     x21, x22, [x9, #16]
    ldp     x23, x24, [x9, #32]
    ldp     x25, x26, [x9, #48]
    ldp     x27, x28, [x9, #64]
    ldp     x29, x30, [x9, #80]
    mov     x0, xzr
    ret
    .ltorg
    .popsection
    "#,
    space = const offset_of!(Saved, space),
    registers = const offset_of!(Saved, registers),
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
    let mut saved = Saved { space: Space::current(), registers: [0; 24] };
    // The registers may stay in the caches, which are on when they are read again.
    write_back(&saved.space);
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
