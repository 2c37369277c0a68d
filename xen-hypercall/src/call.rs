//! The one place that makes hypercalls for the typed modules.
#![allow(unsafe_code)]

use crate::{Errno, Hypercall, HypercallNr};

/// The argument structure of one command of a hypercall of the form `(command, pointer)`, see
/// [`multicall`](crate::multicall).
///
/// # Safety
/// Command `CMD` of call `NR` takes a pointer to exactly this structure, reads and writes nothing of the guest's
/// memory beyond it, and changes nothing that safe code relies on, whatever the fields say.
pub unsafe trait Command {
    /// The call.
    const NR: HypercallNr;
    /// Its first argument.
    const CMD: usize;
}

/// Runs a command. Xen fills `argument` in.
pub(crate) fn run<C: Command>(xen: &(impl Hypercall + ?Sized), argument: &mut C) -> Result<usize, Errno> {
    let pointer = core::ptr::from_mut(argument).expose_provenance();
    // SAFETY: `Command` promises that the call reaches only `argument`, which is exclusively borrowed meanwhile.
    Errno::check(unsafe { xen.hypercall(C::NR, [C::CMD, pointer, 0, 0, 0]) })
}

/// Runs a call all of whose arguments are plain numbers, named here as having no effect on memory.
pub(crate) fn numbers(
    xen: &(impl Hypercall + ?Sized),
    call: Plain,
    args: [usize; 4],
) -> Result<usize, Errno> {
    let (nr, command) = call.parts();
    let [a, b, c, d] = args;
    // SAFETY: each command of `Plain` takes no pointer (a null where it has an unused one) and touches no memory.
    Errno::check(unsafe { xen.hypercall(nr, [command, a, b, c, d]) })
}

macro_rules! plain {
    ($($name:ident = $nr:ident, $cmd:ident;)*) => {
        /// Commands without a pointer.
        #[derive(Clone, Copy)]
        pub(crate) enum Plain { $($name,)* }

        impl Plain {
            const fn parts(self) -> (HypercallNr, usize) {
                match self { $(Self::$name => (HypercallNr::$nr, crate::abi::$cmd),)* }
            }
        }
    };
}

plain! {
    Yield = SCHED_OP, SCHEDOP_YIELD;
    Block = SCHED_OP, SCHEDOP_BLOCK;
    Version = XEN_VERSION, XENVER_VERSION;
    PageSize = XEN_VERSION, XENVER_PAGESIZE;
    VcpuUp = VCPU_OP, VCPUOP_UP;
    VcpuDown = VCPU_OP, VCPUOP_DOWN;
    VcpuIsUp = VCPU_OP, VCPUOP_IS_UP;
    StopPeriodic = VCPU_OP, VCPUOP_STOP_PERIODIC_TIMER;
    StopSingleshot = VCPU_OP, VCPUOP_STOP_SINGLESHOT_TIMER;
    SendNmi = VCPU_OP, VCPUOP_SEND_NMI;
    FlushTlbs = HVM_OP, HVMOP_FLUSH_TLBS;
    GuestRequestVmEvent = HVM_OP, HVMOP_GUEST_REQUEST_VM_EVENT;
    MaximumRamPage = MEMORY_OP, XENMEM_MAXIMUM_RAM_PAGE;
    AssistEnable = VM_ASSIST, VMASST_CMD_ENABLE;
    AssistDisable = VM_ASSIST, VMASST_CMD_DISABLE;
}

/// Runs a command of the form `(command, pointer)` that fills a buffer of fixed size.
///
/// # Safety
/// The command writes at most `N` bytes to the pointer and has no other effect.
pub(crate) unsafe fn fill<const N: usize>(
    xen: &(impl Hypercall + ?Sized),
    nr: HypercallNr,
    command: usize,
) -> Result<[u8; N], Errno> {
    let mut buffer = [0; N];
    let pointer = buffer.as_mut_ptr().expose_provenance();
    // SAFETY: the caller vouches that the command writes within `buffer`.
    Errno::check(unsafe { xen.hypercall(nr, [command, pointer, 0, 0, 0]) })?;
    Ok(buffer)
}
