//! The one place that makes hypercalls for the typed modules.
#![allow(unsafe_code)]

use crate::{Errno, Hypercall, HypercallNr};

/// The argument structure of one command of a hypercall of the form `(command, pointer)`.
///
/// # Safety
/// Command `CMD` of call `NR` takes a pointer to exactly this structure, reads and writes nothing of the guest's
/// memory beyond it, and changes nothing that safe code relies on.
pub(crate) unsafe trait Command {
    const NR: HypercallNr;
    const CMD: usize;
}

/// Runs a command; what it answers is in `argument` afterwards.
pub(crate) fn run<C: Command>(xen: &impl Hypercall, argument: &mut C) -> Result<usize, Errno> {
    let pointer = core::ptr::from_mut(argument).expose_provenance();
    // SAFETY: `Command` promises that the call reaches only `argument`, which is exclusively borrowed meanwhile.
    Errno::check(unsafe { xen.hypercall(C::NR, [C::CMD, pointer, 0, 0, 0]) })
}

/// Runs a call all of whose arguments are plain numbers, named in its module as having no effect on memory.
pub(crate) fn numbers(xen: &impl Hypercall, call: Plain, args: [usize; 4]) -> Result<usize, Errno> {
    let (nr, command) = match call {
        Plain::Yield => (HypercallNr::SCHED_OP, crate::abi::SCHEDOP_YIELD),
        Plain::Block => (HypercallNr::SCHED_OP, crate::abi::SCHEDOP_BLOCK),
        Plain::Version => (HypercallNr::XEN_VERSION, crate::abi::XENVER_VERSION),
        Plain::StopSingleshot => (HypercallNr::VCPU_OP, crate::abi::VCPUOP_STOP_SINGLESHOT_TIMER),
        Plain::VcpuIsUp => (HypercallNr::VCPU_OP, crate::abi::VCPUOP_IS_UP),
    };
    let [a, b, c, d] = args;
    // SAFETY: each command above takes no pointer (a null where it has an unused one) and touches no memory.
    Errno::check(unsafe { xen.hypercall(nr, [command, a, b, c, d]) })
}

/// Commands without a pointer.
#[derive(Clone, Copy)]
pub(crate) enum Plain {
    Yield,
    Block,
    Version,
    StopSingleshot,
    VcpuIsUp,
}

/// Runs a command of the form `(command, pointer)` that fills a buffer of fixed size.
///
/// # Safety
/// The command writes at most `N` bytes to the pointer and has no other effect.
pub(crate) unsafe fn fill<const N: usize>(
    xen: &impl Hypercall,
    nr: HypercallNr,
    command: usize,
) -> Result<[u8; N], Errno> {
    let mut buffer = [0; N];
    let pointer = buffer.as_mut_ptr().expose_provenance();
    // SAFETY: the caller vouches that the command writes within `buffer`.
    Errno::check(unsafe { xen.hypercall(nr, [command, pointer, 0, 0, 0]) })?;
    Ok(buffer)
}
