//! What Xen and the toolstack tell an HVM or PVH guest, and how it takes interrupts (`hvm/hvm_op.h`, `hvm/params.h`).
//!
//! HVM and PVH guests on x86 have these calls, in every Xen since 4.0 unless a function says otherwise; on Arm there are
//! [`get_param`], [`set_param`] and [`guest_request_vm_event`].
#![allow(unsafe_code, reason = "names the structure of each command")]

use core::time::Duration;

use crate::abi::*;
use crate::call::{Command, Plain, numbers, run};
use crate::{DomId, Errno, Gfn, Hypercall, HypercallNr, VcpuId};

/// A parameter of the domain (`HVM_PARAM_*` of `hvm/params.h`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(transparent)]
pub struct HvmParam(pub u32);

impl HvmParam {
    /// How an event interrupts the guest, see [`callback_vector`].
    pub const CALLBACK_IRQ: Self = Self(HVM_PARAM_CALLBACK_IRQ);
    /// The frame of xenstore's ring. Guests only read it.
    pub const STORE_PFN: Self = Self(HVM_PARAM_STORE_PFN);
    /// The port of xenstore.
    pub const STORE_EVTCHN: Self = Self(HVM_PARAM_STORE_EVTCHN);
    /// The frame of the console's ring. Guests only read it.
    pub const CONSOLE_PFN: Self = Self(HVM_PARAM_CONSOLE_PFN);
    /// The port of the console.
    pub const CONSOLE_EVTCHN: Self = Self(HVM_PARAM_CONSOLE_EVTCHN);
    /// Where Xen keeps a task state segment for real mode, on older Intel processors; firmware sets it.
    pub const VM86_TSS: Self = Self(HVM_PARAM_VM86_TSS);
    /// The same, with the size in the upper half.
    pub const VM86_TSS_SIZED: Self = Self(HVM_PARAM_VM86_TSS_SIZED);
    /// Which version of the ACPI I/O ports a device model has.
    pub const ACPI_IOPORTS_LOCATION: Self = Self(HVM_PARAM_ACPI_IOPORTS_LOCATION);
    /// The guest-physical address of the generation id, a number that is another in each copy of a domain.
    pub const VM_GENERATION_ID_ADDR: Self = Self(HVM_PARAM_VM_GENERATION_ID_ADDR);
    /// Whether alternative memory views may be used. Guests only read it.
    pub const ALTP2M: Self = Self(HVM_PARAM_ALTP2M);
    /// How many bytes of the x87 instruction pointer are kept: 0, 4 or 8.
    pub const X87_FIP_WIDTH: Self = Self(HVM_PARAM_X87_FIP_WIDTH);

    /// Whether setting the parameter has an effect on nothing but what its value names, which is no memory.
    const fn is_harmless(self) -> bool {
        matches!(
            self.0,
            HVM_PARAM_STORE_EVTCHN
                | HVM_PARAM_CONSOLE_EVTCHN
                | HVM_PARAM_ACPI_IOPORTS_LOCATION
                | HVM_PARAM_X87_FIP_WIDTH
        )
    }
}

/// An interrupt vector that is no exception's: 32 to 255.
///
/// The processor has the vectors below 32 for exceptions. An event that came at one of them would run the handler of an
/// exception that did not happen. Safe code cannot make such a vector, nor hand one to Xen in the structure itself:
///
/// ```compile_fail,E0423
/// let page_fault = xen_hypercall::hvm::Vector(14);
/// ```
/// ```compile_fail,E0277
/// let mut page_fault = xen_hypercall::abi::XenHvmEvtchnUpcallVector { vector: 14, ..Default::default() };
/// xen_hypercall::multicall::Multicall::<1>::new().add(&mut page_fault);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Vector(u8);

impl Vector {
    /// The lowest vector that is no exception's.
    pub const FIRST: Self = Self(32);

    /// None: an exception's vector, below 32.
    ///
    /// ```
    /// use xen_hypercall::hvm::Vector;
    ///
    /// const UPCALL: Vector = Vector::new(0x20).expect("vectors below 32 are exceptions'");
    /// assert_eq!(UPCALL.number(), 0x20);
    /// // The page fault's.
    /// assert_eq!(Vector::new(14), None);
    /// ```
    pub const fn new(number: u8) -> Option<Self> {
        if number < Self::FIRST.0 { None } else { Some(Self(number)) }
    }

    /// Its number.
    pub const fn number(self) -> u8 {
        self.0
    }
}

/// The value of [`HvmParam::CALLBACK_IRQ`] that makes pending events interrupt every vCPU at `vector`.
///
/// The interrupt is level-triggered: it is asserted as long as `evtchn_upcall_pending` of the vCPU is set. A handler that
/// returns with interrupts on while that field is set is entered again at once. The interrupt needs no acknowledgement at a
/// local APIC. x86 only, since Xen 4.0.
pub const fn callback_vector(vector: Vector) -> u64 {
    HVM_PARAM_CALLBACK_TYPE_VECTOR << 56 | vector.0 as u64
}

/// Whether a value of [`HvmParam::CALLBACK_IRQ`] is one that safe code may set: none, a line of the interrupt controllers,
/// which the kernel routes itself, or a vector that is no exception's. Other kinds of callback may mean anything to a newer Xen.
const fn is_harmless_callback(value: u64) -> bool {
    match value >> 56 {
        HVM_PARAM_CALLBACK_TYPE_GSI | HVM_PARAM_CALLBACK_TYPE_PCI_INTX => true,
        // Xen looks at the lowest byte, and a future one may look at more.
        HVM_PARAM_CALLBACK_TYPE_VECTOR => {
            let number = value & (u64::MAX >> 8);
            number >= Vector::FIRST.0 as u64 && number <= u8::MAX as u64
        }
        _ => false,
    }
}

#[repr(transparent)]
struct Get(XenHvmParam);

#[repr(transparent)]
struct Set(#[allow(dead_code, reason = "Xen reads it")] XenHvmParam);

#[repr(transparent)]
struct Upcall(#[allow(dead_code, reason = "Xen reads it")] XenHvmEvtchnUpcallVector);

// SAFETY: HVMOP_get_param reads and fills a `xen_hvm_param`, which `Get` is.
unsafe impl Command for Get {
    const NR: HypercallNr = HypercallNr::HVM_OP;
    const CMD: usize = HVMOP_GET_PARAM;
}

// SAFETY: HVMOP_set_param reads a `xen_hvm_param`. `Set` is made by `set` alone, whose callers vouch for the value.
unsafe impl Command for Set {
    const NR: HypercallNr = HypercallNr::HVM_OP;
    const CMD: usize = HVMOP_SET_PARAM;
}

// SAFETY: HVMOP_set_evtchn_upcall_vector reads a `xen_hvm_evtchn_upcall_vector` and chooses a vector. `Upcall` is made with
// one that is no exception's.
unsafe impl Command for Upcall {
    const NR: HypercallNr = HypercallNr::HVM_OP;
    const CMD: usize = HVMOP_SET_EVTCHN_UPCALL_VECTOR;
}

/// Asks for a parameter of the calling domain. Zero usually means that it was never set.
///
/// # Errors
/// `EINVAL` for an unknown parameter, `EPERM` for one that guests may not see.
pub fn get_param(xen: &(impl Hypercall + ?Sized), param: HvmParam) -> Result<u64, Errno> {
    let mut argument = Get(XenHvmParam { domid: DomId::SELF.0, index: param.0, ..Default::default() });
    run(xen, &mut argument)?;
    Ok(argument.0.value)
}

/// Sets a parameter of the calling domain that cannot break a promise made to other code: [`HvmParam::CALLBACK_IRQ`] with a
/// value that names no exception's vector, [`HvmParam::STORE_EVTCHN`], [`HvmParam::CONSOLE_EVTCHN`],
/// [`HvmParam::ACPI_IOPORTS_LOCATION`], [`HvmParam::X87_FIP_WIDTH`]. All others need [`set_param_unchecked`].
///
/// # Errors
/// `EPERM` for a parameter that is not in the list, and `EINVAL` for a callback that is not allowed, without a call; `EINVAL`
/// for a value that Xen does not take, `EPERM` for a parameter that Xen does not let guests set, `EEXIST` for one that can be
/// set only once.
pub fn set_param(xen: &(impl Hypercall + ?Sized), param: HvmParam, value: u64) -> Result<(), Errno> {
    if param == HvmParam::CALLBACK_IRQ && !is_harmless_callback(value) {
        return Err(Errno::EINVAL);
    }
    if param != HvmParam::CALLBACK_IRQ && !param.is_harmless() {
        return Err(Errno::EPERM);
    }
    set(xen, param, value)
}

/// Sets any parameter of the calling domain, among them those that name memory: [`HvmParam::VM86_TSS`],
/// [`HvmParam::VM86_TSS_SIZED`], [`HvmParam::VM_GENERATION_ID_ADDR`].
///
/// # Errors
/// `EINVAL` for an unknown parameter or value, `EPERM` for a parameter that Xen does not let guests set, `EEXIST` for one that
/// can be set only once.
///
/// # Safety
/// The caller knows the parameter, and what Xen or the toolstack does with the value is sound: nobody uses memory that it
/// names for anything else, and no interrupt comes at a vector whose handler is not made for it.
pub unsafe fn set_param_unchecked(
    xen: &(impl Hypercall + ?Sized),
    param: HvmParam,
    value: u64,
) -> Result<(), Errno> {
    set(xen, param, value)
}

fn set(xen: &(impl Hypercall + ?Sized), param: HvmParam, value: u64) -> Result<(), Errno> {
    let argument = XenHvmParam { domid: DomId::SELF.0, pad0: 0, index: param.0, value };
    run(xen, &mut Set(argument)).map(drop)
}

/// Makes events interrupt one vCPU at a vector of its own, through its local APIC, to which the handler signals the end of
/// the interrupt. The interrupt is edge-triggered: one comes each time that `evtchn_upcall_pending` of the vCPU becomes set.
///
/// # Errors
/// `ENOENT` for a vCPU that does not exist, `ENOSYS` where Xen lacks the call (before 4.6, and on Arm).
pub fn set_evtchn_upcall_vector(
    xen: &(impl Hypercall + ?Sized),
    vcpu: VcpuId,
    vector: Vector,
) -> Result<(), Errno> {
    let argument = XenHvmEvtchnUpcallVector { vcpu: vcpu.0, vector: vector.0, pad0: [0; 3] };
    run(xen, &mut Upcall(argument)).map(drop)
}

// SAFETY: HVMOP_get_time fills a `xen_hvm_get_time`.
unsafe impl Command for XenHvmGetTime {
    const NR: HypercallNr = HypercallNr::HVM_OP;
    const CMD: usize = HVMOP_GET_TIME;
}

// SAFETY: HVMOP_get_mem_type reads and fills a `xen_hvm_get_mem_type`.
unsafe impl Command for XenHvmGetMemType {
    const NR: HypercallNr = HypercallNr::HVM_OP;
    const CMD: usize = HVMOP_GET_MEM_TYPE;
}

/// Xen's system time, by a call: for kernels that cannot read `shared_info` yet. x86 HVM and PVH.
///
/// # Errors
/// `ENOSYS` on Arm and for PV guests.
pub fn time(xen: &(impl Hypercall + ?Sized)) -> Result<Duration, Errno> {
    let mut argument = XenHvmGetTime::default();
    run(xen, &mut argument)?;
    Ok(Duration::from_nanos(argument.now))
}

/// What a frame is to Xen (`hvmmem_type_t`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(transparent)]
pub struct MemType(pub u16);

impl MemType {
    /// Memory, whole or shared or paged out.
    pub const RAM: Self = Self(HVMMEM_RAM_RW);
    /// Memory that cannot be written.
    pub const READ_ONLY: Self = Self(HVMMEM_RAM_RO);
    /// Nothing, or a device: accesses go to the device model.
    pub const MMIO: Self = Self(HVMMEM_MMIO_DM);
    /// Memory whose writes a device model sees.
    pub const IOREQ_SERVER: Self = Self(HVMMEM_IOREQ_SERVER);
}

/// What a frame of the calling domain is to Xen; for crash dumps, which must not read devices. x86 HVM and PVH, since
/// Xen 4.1.
///
/// # Errors
/// `EINVAL` for a PV guest, `ENOSYS` on Arm.
pub fn mem_type(xen: &(impl Hypercall + ?Sized), gfn: Gfn) -> Result<MemType, Errno> {
    let mut argument = XenHvmGetMemType { domid: DomId::SELF.0, mem_type: 0, pad: [0; 2], pfn: gfn.0 };
    run(xen, &mut argument)?;
    Ok(MemType(argument.mem_type))
}

/// Drops the address translations that all vCPUs of the domain have cached. x86 HVM and PVH.
///
/// # Errors
/// `ENOSYS` on Arm.
pub fn flush_tlbs(xen: &(impl Hypercall + ?Sized)) -> Result<(), Errno> {
    numbers(xen, Plain::FlushTlbs, [0; 4]).map(drop)
}

/// Sends an event to the domain that monitors this one; without a monitor the call has no effect. Since Xen 4.6.
///
/// # Errors
/// `ENOSYS` where Xen lacks the call.
pub fn guest_request_vm_event(xen: &(impl Hypercall + ?Sized)) -> Result<(), Errno> {
    numbers(xen, Plain::GuestRequestVmEvent, [0; 4]).map(drop)
}
