//! Sleep until an interrupt, in HVM and PVH guests, without losing one.
//!
//! A kernel looks for work, finds none, and sleeps. An event that comes between the look and the sleep must end the sleep.
//! [`sleep_unless`] sleeps so; [`wait`] is the body of a [`Wait::wait`](crate::Wait::wait) with it. Both need a part of the
//! upcall's interrupt handler, in one of two forms:
//!
//! - A kernel whose interrupts are off everywhere else needs no handler of its own. [`upcall_entry`] is a complete one:
//!   it ends the sleep and leaves the events to the main loop.
//! - A kernel whose handler dispatches events gives the instruction pointer that the interrupt saved to [`resume_at`],
//!   and returns to the address that comes back.
//!
//! # Why no event is lost
//!
//! ```text
//!         cli
//!         ; is_due
//!         sti
//! begin:  nop
//!         nop
//!         hlt
//! end:    cli
//! ```
//!
//! 1. An event that comes before `cli` is seen by `is_due`: its `upcall_pending` is set, or the handler has dispatched it.
//! 2. An event that comes between `cli` and `sti` interrupts nothing yet. Xen keeps the interrupt pending: the vector of
//!    `HVM_PARAM_CALLBACK_IRQ` for as long as `upcall_pending` is set, a vector of the local APIC in that APIC.
//! 3. After `sti` a pending interrupt is delivered between two instructions. By the manuals the first place is behind the
//!    instruction that follows `sti` (Intel SDM volume 2 and AMD APM volume 3, "STI"). This proof uses no place in particular:
//!    wherever the interrupt comes before `hlt` is executed, the saved instruction pointer is in `begin..end`, and the
//!    handler returns to `end`. `hlt` is then not executed.
//! 4. So `hlt` is executed only if no interrupt was delivered since `sti`. It is executed with interrupts on, and at least
//!    two instructions behind `sti`, where no interrupt is held back by `sti` any more. A pending interrupt ends it at once
//!    and a later one ends it then ("HLT" in both manuals). The saved instruction pointer is then `end`, which stays.
//! 5. In a guest, `hlt` exits to Xen. Xen moves the instruction pointer behind it, which also ends what `sti` may hold back,
//!    marks the vCPU as blocked, and then looks whether an interrupt can be delivered. If one can, the vCPU does not sleep;
//!    one that comes afterwards takes the mark away (`hvm_hlt` and `vcpu_block` in Xen).
//!
//! The hypercall `SCHEDOP_block` in place of `hlt` rests on more. Xen makes a hypercall before it moves the instruction
//! pointer, so the look of step 5 sees the processor's state before the instruction. With interrupts off, or while the
//! processor still reports that `sti` holds interrupts back, a pending event does not end that sleep, and since its
//! upcall is pending already, no later event does. QEMU's emulation is known to report that for longer than one instruction.
//!
//! Step 3 holds for each interrupt by itself. A handler of another interrupt that runs with interrupts on may itself be
//! interrupted by the upcall, whose saved instruction pointer is then in that handler: such a handler returns by
//! [`resume_at`], too. A sleep that ends early is no harm.
#![allow(unsafe_code, reason = "halts the processor")]

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU8, Ordering};
use core::time::Duration;

use crate::{Hypercall, VcpuId, vcpu};

/// The flag of `rflags` that lets interrupts through.
const IF: u64 = 1 << 9;

// The names carry the version, so that two incompatible versions of this crate can be in one kernel.
global_asm!(
    r#"
    .pushsection .text.xen_hypercall_0_1_idle, "ax", @progbits
    .globl xen_hypercall_0_1_idle
    .hidden xen_hypercall_0_1_idle
    .globl xen_hypercall_0_1_idle_begin
    .hidden xen_hypercall_0_1_idle_begin
    .globl xen_hypercall_0_1_idle_end
    .hidden xen_hypercall_0_1_idle_end
    .globl xen_hypercall_0_1_idle_upcall
    .hidden xen_hypercall_0_1_idle_upcall

xen_hypercall_0_1_idle:
    sti
xen_hypercall_0_1_idle_begin:
    nop
    nop
    hlt
xen_hypercall_0_1_idle_end:
    cli
    ret

xen_hypercall_0_1_idle_upcall: // the saved instruction pointer is at rsp, the saved flags are at rsp + 16
    push rax
    lea rax, [rip + xen_hypercall_0_1_idle_begin]
    cmp [rsp + 8], rax
    jb 3f
    lea rax, [rip + xen_hypercall_0_1_idle_end]
    cmp [rsp + 8], rax
    jae 3f
    mov [rsp + 8], rax
3:  and qword ptr [rsp + 24], ~{flag}
    pop rax
    iretq
    .popsection
    "#,
    flag = const IF,
);

unsafe extern "C" {
    #[link_name = "xen_hypercall_0_1_idle"]
    fn idle();
    #[link_name = "xen_hypercall_0_1_idle_begin"]
    static BEGIN: u8;
    #[link_name = "xen_hypercall_0_1_idle_end"]
    static END: u8;
    #[link_name = "xen_hypercall_0_1_idle_upcall"]
    static UPCALL: u8;
}

/// The address of a complete handler for the upcall's interrupt, for the kernel's interrupt descriptor table.
///
/// The handler ends [`sleep_unless`], and returns with interrupts off: the vector stays asserted until the kernel clears
/// `upcall_pending`, which is the main loop's to do. It changes no register but the flags, and needs 48 bytes of stack.
///
/// It is for a kernel whose interrupts are off but within [`sleep_unless`], and for the vector of
/// `HVM_PARAM_CALLBACK_IRQ`: it does not tell a local APIC that the interrupt is over, which a vector of
/// [`hvm::set_evtchn_upcall_vector`](crate::hvm::set_evtchn_upcall_vector) needs.
pub fn upcall_entry() -> usize {
    (&raw const UPCALL).expose_provenance()
}

/// Where an interrupt handler has to return to when the interrupt saved the instruction pointer `rip`.
///
/// That is `rip`, unless the interrupt came within [`sleep_unless`] before the processor slept. Call it in every handler that
/// leaves work to code that sleeps so, and in every handler that can itself be interrupted by such a one.
#[inline]
pub fn resume_at(rip: u64) -> u64 {
    let (begin, end) =
        ((&raw const BEGIN).expose_provenance() as u64, (&raw const END).expose_provenance() as u64);
    if (begin..end).contains(&rip) { end } else { rip }
}

/// Sleeps until an interrupt, unless `is_due` returns true. `is_due` is called once, with interrupts off.
///
/// `is_due` returns whether there is work that no interrupt will announce any more: `upcall_pending` of the vCPU is set, or
/// a handler has dispatched an event since the caller looked. The sleep may end early for no reason. Interrupts are on
/// afterwards if they were on before.
///
/// # Safety
/// The code runs in ring 0, and can be interrupted here. Each interrupt that is to end the sleep has a handler that is
/// [`upcall_entry`], or that returns to where [`resume_at`] says.
#[inline]
pub unsafe fn sleep_unless(is_due: impl FnOnce() -> bool) {
    let flags: u64;
    // SAFETY: in ring 0 both instructions are allowed, and to hold interrupts back breaks nothing.
    unsafe { asm!("pushfq", "pop {}", "cli", out(reg) flags) };
    if !is_due() {
        // SAFETY: the caller allows interrupts here; the routine keeps to the C calling convention.
        unsafe { idle() };
    }
    if flags & IF != 0 {
        // SAFETY: interrupts were on when this function was called.
        unsafe { asm!("sti") };
    }
}

/// Sleeps as [`Wait::wait`](crate::Wait::wait) demands, with the one-shot timer of the calling vCPU for the deadline.
///
/// Returns at once if `upcall_pending`, which is the one of this vCPU's `vcpu_info`, is set, if `is_due` returns true, or
/// if Xen refuses the timer. It does so for a deadline that has passed before Xen 4.17 (`ETIME`); later versions raise the
/// timer's event at once, which ends the sleep as well. The timer's event needs a channel that is bound to
/// `VIRQ_TIMER` of the vCPU and not masked.
///
/// # Safety
/// As for [`sleep_unless`]. `vcpu` is the vCPU that calls.
pub unsafe fn wait(
    xen: &(impl Hypercall + ?Sized),
    vcpu: VcpuId,
    upcall_pending: &AtomicU8,
    deadline: Option<Duration>,
    is_due: &dyn Fn() -> bool,
) {
    if let Some(at) = deadline {
        if vcpu::set_singleshot_timer(&xen, vcpu, at).is_err() {
            return;
        }
    }
    // SAFETY: the caller keeps the same promises to this call.
    unsafe { sleep_unless(|| upcall_pending.load(Ordering::Acquire) != 0 || is_due()) }
}
