//! What Xen and the toolstack tell an HVM or PVH guest, and how it takes interrupts (`hvm/hvm_op.h`, `hvm/params.h`).
#![allow(unsafe_code, reason = "names the structure of each command")]

use crate::abi::{
    HVMOP_GET_PARAM, HVMOP_SET_EVTCHN_UPCALL_VECTOR, HVMOP_SET_PARAM, XenHvmEvtchnUpcallVector, XenHvmParam,
};
use crate::call::{Command, run};
use crate::{DomId, Errno, Hypercall, HypercallNr, VcpuId};

/// A parameter of the domain (`HVM_PARAM_*` of `hvm/params.h`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(transparent)]
pub struct HvmParam(pub u32);

impl HvmParam {
    /// How an event interrupts the guest, see [`callback_vector`].
    pub const CALLBACK_IRQ: Self = Self(0);
    /// The frame of xenstore's ring.
    pub const STORE_PFN: Self = Self(1);
    /// The port of xenstore.
    pub const STORE_EVTCHN: Self = Self(2);
    /// The frame of the console's ring.
    pub const CONSOLE_PFN: Self = Self(17);
    /// The port of the console.
    pub const CONSOLE_EVTCHN: Self = Self(18);
}

/// The value of [`HvmParam::CALLBACK_IRQ`] that makes pending events interrupt every vCPU at `vector`.
///
/// The interrupt is asserted as long as `evtchn_upcall_pending` of the vCPU is set, and needs no acknowledgement
/// at a local APIC.
pub const fn callback_vector(vector: u8) -> u64 {
    2 << 56 | vector as u64
}

#[repr(transparent)]
struct Get(XenHvmParam);

#[repr(transparent)]
struct Set(#[allow(dead_code, reason = "Xen reads it")] XenHvmParam);

// SAFETY: HVMOP_get_param reads and fills a `xen_hvm_param`, which `Get` is.
unsafe impl Command for Get {
    const NR: HypercallNr = HypercallNr::HVM_OP;
    const CMD: usize = HVMOP_GET_PARAM;
}

// SAFETY: HVMOP_set_param reads a `xen_hvm_param`. The parameters that a guest may set choose how it is
// interrupted; none gives memory away.
unsafe impl Command for Set {
    const NR: HypercallNr = HypercallNr::HVM_OP;
    const CMD: usize = HVMOP_SET_PARAM;
}

// SAFETY: HVMOP_set_evtchn_upcall_vector reads a `xen_hvm_evtchn_upcall_vector` and chooses a vector.
unsafe impl Command for XenHvmEvtchnUpcallVector {
    const NR: HypercallNr = HypercallNr::HVM_OP;
    const CMD: usize = HVMOP_SET_EVTCHN_UPCALL_VECTOR;
}

/// Asks for a parameter of the calling domain. Zero usually means that it was never set.
///
/// # Errors
/// `EINVAL` for an unknown parameter, `EPERM` for one that guests may not see.
pub fn get_param(xen: &impl Hypercall, param: HvmParam) -> Result<u64, Errno> {
    let mut argument = Get(XenHvmParam { domid: DomId::SELF.0, index: param.0, ..Default::default() });
    run(xen, &mut argument)?;
    Ok(argument.0.value)
}

/// Sets a parameter of the calling domain.
///
/// # Errors
/// `EINVAL` for an unknown parameter or value, `EPERM` for one that guests may not set, `EEXIST` for one that
/// may be set only once.
pub fn set_param(xen: &impl Hypercall, param: HvmParam, value: u64) -> Result<(), Errno> {
    let argument = XenHvmParam { domid: DomId::SELF.0, pad0: 0, index: param.0, value };
    run(xen, &mut Set(argument)).map(drop)
}

/// Makes events interrupt one vCPU at a vector of its own (0x10 and up), through its local APIC, which wants to
/// be told of the interrupt's end.
///
/// # Errors
/// `EINVAL` for a vector below 0x10, `ENOENT` for a vCPU that does not exist, `ENOSYS` where Xen lacks the call.
pub fn set_evtchn_upcall_vector(xen: &impl Hypercall, vcpu: VcpuId, vector: u8) -> Result<(), Errno> {
    run(xen, &mut XenHvmEvtchnUpcallVector { vcpu: vcpu.0, vector, pad0: [0; 3] }).map(drop)
}
