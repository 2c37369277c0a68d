//! Behaviours of Xen's that a guest may choose (`vm_assist`, `VMASST_*` of `xen.h`). Most are for PV guests; others have the
//! call since Xen 4.12.

use crate::abi::*;
use crate::call::{Plain, numbers};
use crate::{Errno, Hypercall};

/// What to switch (`VMASST_TYPE_*`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(transparent)]
pub struct Assist(pub usize);

impl Assist {
    /// 32-bit PV: segment limits are simulated.
    pub const SEGMENTS_4GB: Self = Self(VMASST_TYPE_4GB_SEGMENTS);
    /// 32-bit PV: a trap whenever that was done.
    pub const SEGMENTS_4GB_NOTIFY: Self = Self(VMASST_TYPE_4GB_SEGMENTS_NOTIFY);
    /// PV: writes to bottom-level page tables are done by Xen.
    pub const WRITABLE_PAGETABLES: Self = Self(VMASST_TYPE_WRITABLE_PAGETABLES);
    /// 32-bit PV: page directories may lie above 4 GiB.
    pub const PAE_EXTENDED_CR3: Self = Self(VMASST_TYPE_PAE_EXTENDED_CR3);
    /// PV: the I/O privilege level behaves as on a processor. Since Xen 4.7.
    pub const ARCHITECTURAL_IOPL: Self = Self(VMASST_TYPE_ARCHITECTURAL_IOPL);
    /// All guests: Xen marks when it writes to a
    /// [registered area of run times](crate::vcpu::register_runstate_area). Since Xen 4.8.
    pub const RUNSTATE_UPDATE_FLAG: Self = Self(VMASST_TYPE_RUNSTATE_UPDATE_FLAG);
    /// 64-bit PV: programs do not see the table from machine to guest frames. Since Xen 4.6.
    pub const M2P_STRICT: Self = Self(VMASST_TYPE_M2P_STRICT);
}

/// Switches a behaviour on.
///
/// # Errors
/// `EINVAL` for one that this kind of guest does not have.
pub fn enable(xen: &(impl Hypercall + ?Sized), assist: Assist) -> Result<(), Errno> {
    numbers(xen, Plain::AssistEnable, [assist.0, 0, 0, 0]).map(drop)
}

/// Switches a behaviour off.
///
/// # Errors
/// `EINVAL` for one that this kind of guest does not have.
pub fn disable(xen: &(impl Hypercall + ?Sized), assist: Assist) -> Result<(), Errno> {
    numbers(xen, Plain::AssistDisable, [assist.0, 0, 0, 0]).map(drop)
}
