//! Other vCPUs than the first (feature `smp`).

use core::arch::asm;

use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, Segment};
use x86_64::registers::control::{Cr0, Cr3, Cr4};
use x86_64::registers::model_specific::{Efer, GsBase};
use xen_hypercall::abi::VcpuHvmX8664;
use xen_hypercall::{Errno, Hypercall, vcpu};

use super::{halt, paging, traps};
use crate::machine::{FIRST, Own, keep};
use crate::smp::Life;

/// What a vCPU begins with, and where its register `gs` leads from then on.
#[repr(C)]
struct Begin {
    /// What [`this`] returns.
    own: &'static Own,
    life: Option<&'static dyn Life>,
    /// The upper end of its stack for faults.
    faults: u64,
}

static BEGIN: Begin = Begin { own: &FIRST, life: None, faults: 0 };

/// The pages of a vCPU's stack, and of its stack for faults.
const STACK: usize = 32;
const FAULTS: usize = 4;

/// What the vCPU that asks has for itself. Not before [`enter`].
pub(crate) fn this() -> &'static Own {
    let own: *const Own;
    // SAFETY: `gs` leads to a `Begin` that stays, since the vCPU's first steps.
    unsafe { asm!("mov {}, gs:[0]", out(reg) own, options(nostack, preserves_flags, pure, readonly)) };
    // SAFETY: that is a reference.
    unsafe { &*own }
}

/// The first vCPU's first step.
pub(super) fn enter() {
    lead(&BEGIN);
}

fn lead(begin: &'static Begin) {
    GsBase::write(VirtAddr::from_ptr(begin));
}

/// Another's first steps.
extern "C" fn begin(begin: &'static Begin) -> ! {
    lead(begin);
    traps::install(begin.faults);
    // SAFETY: the selector is that of the table's code segment for 64 bits, which is what this runs in. Xen lets a vCPU begin
    // in such a segment without a selector, and no interrupt could return there.
    unsafe { CS::set_reg(traps::CODE) };
    if let Some(life) = begin.life {
        life.live();
    }
    halt()
}

/// Starts a vCPU in the first one's address space, on stacks of its own.
pub(crate) fn start_vcpu(
    xen: &impl Hypercall,
    own: &'static Own,
    life: &'static dyn Life,
) -> Result<(), Errno> {
    let begins = keep(Begin { own, life: Some(life), faults: paging::stack(FAULTS) });
    let context = VcpuHvmX8664 {
        rdi: core::ptr::from_mut(begins).expose_provenance() as u64,
        // As after a call: 8 below a multiple of 16.
        rsp: paging::stack(STACK) - 8,
        rip: (begin as extern "C" fn(_) -> _ as *const ()).expose_provenance() as u64,
        rflags: 2,
        cr0: Cr0::read_raw(),
        cr3: Cr3::read_raw().0.start_address().as_u64(),
        cr4: Cr4::read_raw(),
        efer: Efer::read_raw(),
        ..VcpuHvmX8664::default()
    };
    // SAFETY: the code is `begin`, which is for this; the stack and what `rdi` leads to are this vCPU's alone.
    unsafe { vcpu::initialise(&xen, own.id, &context.into()) }?;
    vcpu::up(&xen, own.id)
}
