//! Other vCPUs than the first (feature `smp`). The machine's firmware starts and stops them (PSCI), which in a domain is Xen.

use core::arch::{asm, global_asm};
use core::mem::offset_of;

use smccc::Hvc;
use smccc::psci::{self, AffinityState, LowestAffinityLevel};
use xen_hypercall::{Errno, Hypercall, VcpuId};

use super::tree::affinity;
use super::{MACHINE, gic, halt, paging, traps};
use crate::machine::{FIRST, Own, keep};
use crate::smp::Life;

/// What a vCPU begins with. The first part is read with the MMU and the caches off.
#[repr(C)]
struct Begin {
    mair: u64,
    tcr: u64,
    ttbr0: u64,
    sctlr: u64,
    /// The upper end of its stack.
    stack: u64,
    /// The upper end of its stack for exceptions.
    exceptions: u64,
    own: &'static Own,
    life: &'static dyn Life,
}

/// The pages of a vCPU's stack.
const STACK: usize = 32;

// As the first vCPU, this one comes with the MMU and the caches off, at EL1; x0 leads to a `Begin`. The tables are those of all,
// and map this code to itself.
global_asm!(
    r#"
    .pushsection .text.vcpus, "ax", @progbits
another_vcpu:
    msr     daifset, #0xf
    mov     x1, #(3 << 20)
    msr     cpacr_el1, x1
    ldr     x1, [x0, #{mair}]
    ldr     x2, [x0, #{tcr}]
    ldr     x3, [x0, #{ttbr0}]
    ldr     x4, [x0, #{sctlr}]
    ldr     x5, [x0, #{stack}]
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
    mov     sp, x5
    mov     x29, xzr
    mov     x30, xzr
    b       {begin}
    .popsection
    "#,
    mair = const offset_of!(Begin, mair),
    tcr = const offset_of!(Begin, tcr),
    ttbr0 = const offset_of!(Begin, ttbr0),
    sctlr = const offset_of!(Begin, sctlr),
    stack = const offset_of!(Begin, stack),
    begin = sym begin,
);

/// What the vCPU that asks has for itself. Not before [`enter`].
pub(crate) fn this() -> &'static Own {
    let own: *const Own;
    // SAFETY: reading the register has no effect.
    unsafe { asm!("mrs {}, tpidr_el1", out(reg) own, options(nomem, nostack, preserves_flags, pure)) };
    // SAFETY: a reference was put there in the vCPU's first steps.
    unsafe { &*own }
}

/// The first vCPU's first step.
pub(super) fn enter() {
    lead(&FIRST);
}

fn lead(own: &'static Own) {
    // SAFETY: the register is for this, and has no other effect.
    unsafe { asm!("msr tpidr_el1, {}", in(reg) own, options(nomem, nostack, preserves_flags)) };
}

/// Another's first steps.
extern "C" fn begin(begin: &'static Begin) -> ! {
    lead(begin.own);
    traps::install(begin.exceptions);
    if let Err(what) = gic::enable_here(begin.own.id) {
        crate::crash(format_args!("the interrupt controller {what}"));
    }
    begin.life.live();
    // It comes back only if that is refused.
    let _refused = psci::cpu_off::<Hvc>();
    halt()
}

fn errno(error: psci::Error) -> Errno {
    match error {
        psci::Error::AlreadyOn | psci::Error::OnPending => Errno::EEXIST,
        psci::Error::InvalidParameters | psci::Error::NotPresent => Errno::ENOENT,
        psci::Error::NotSupported => Errno::ENOSYS,
        psci::Error::Denied | psci::Error::Disabled => Errno::EPERM,
        psci::Error::InvalidAddress => Errno::EFAULT,
        _ => Errno::EINVAL,
    }
}

/// Whether a vCPU is up. Xen says of one that does not exist that it is not, so how many there are is the tree's to say.
pub(crate) fn is_up(_: &impl Hypercall, vcpu: VcpuId) -> Result<bool, Errno> {
    if vcpu.0 as usize >= MACHINE.get().map_or(1, |machine| machine.vcpus) {
        return Err(Errno::ENOENT);
    }
    let state = psci::affinity_info::<Hvc>(affinity(vcpu.0), LowestAffinityLevel::All).map_err(errno)?;
    Ok(state != AffinityState::Off)
}

/// Starts a vCPU in the first one's address space, on stacks of its own.
pub(crate) fn start_vcpu(
    xen: &impl Hypercall,
    own: &'static Own,
    life: &'static dyn Life,
) -> Result<(), Errno> {
    unsafe extern "C" {
        static another_vcpu: u8;
    }
    // Before it is given stacks.
    if is_up(xen, own.id)? {
        return Err(Errno::EEXIST);
    }
    let (mair, tcr, ttbr0, sctlr);
    // SAFETY: reading these registers has no effect.
    unsafe {
        asm!(
            "mrs {}, mair_el1", "mrs {}, tcr_el1", "mrs {}, ttbr0_el1", "mrs {}, sctlr_el1",
            out(reg) mair, out(reg) tcr, out(reg) ttbr0, out(reg) sctlr,
            options(nomem, nostack, preserves_flags),
        );
    }
    let (stack, exceptions) = (paging::stack(STACK), paging::stack(traps::STACK));
    let begins: &'static Begin = keep(Begin { mair, tcr, ttbr0, sctlr, stack, exceptions, own, life });
    write_back(begins);
    let context = core::ptr::from_ref(begins).expose_provenance() as u64;
    let entry = (&raw const another_vcpu).expose_provenance() as u64;
    psci::cpu_on::<Hvc>(affinity(own.id.0), entry, context).map_err(errno)
}

/// Writes what caches have of a thing to memory, where it is read by who has none.
fn write_back<T>(thing: &'static T) {
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
