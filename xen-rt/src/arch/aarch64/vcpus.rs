//! Other vCPUs than the first (feature `smp`). The machine's firmware starts and stops them (PSCI), which in a domain is Xen.

use core::arch::{asm, global_asm};
use core::mem::offset_of;

use smccc::Hvc;
use smccc::psci::{self, AffinityState, LowestAffinityLevel};
use xen_hypercall::{Errno, Hypercall, VcpuId};

use super::space::{Space, write_back};
use super::tree::affinity;
use super::{MACHINE, gic, halt, paging, traps};
use crate::machine::{FIRST, Own, keep};
use crate::smp::Life;

/// What a vCPU begins with. The space is read with the MMU and the caches off.
#[repr(C)]
struct Begin {
    space: Space,
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
    ldp     x1, x2, [x0, #{space}]
    ldp     x3, x4, [x0, #{space} + 16]
    bl      mmu_on
    ldr     x1, [x0, #{stack}]
    mov     sp, x1
    mov     x29, xzr
    mov     x30, xzr
    b       {begin}
    .popsection
    "#,
    space = const offset_of!(Begin, space),
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
    let (stack, exceptions) = (paging::stack(STACK), paging::stack(traps::STACK));
    let begins: &'static Begin = keep(Begin { space: Space::current(), stack, exceptions, own, life });
    write_back(begins);
    let context = core::ptr::from_ref(begins).expose_provenance() as u64;
    let entry = (&raw const another_vcpu).expose_provenance() as u64;
    psci::cpu_on::<Hvc>(affinity(own.id.0), entry, context).map_err(errno)
}
