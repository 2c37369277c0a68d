//! Virtual processors: starting and stopping them, their timers, and where Xen writes about them (`vcpu.h`,
//! `hvm/hvm_vcpu.h`).
//!
//! Timers raise `VIRQ_TIMER` of their vCPU. There are two of them, of which the one-shot timer is enough for most
//! kernels; time is Xen's system time, which [`VcpuTime`](crate::VcpuTime) tells.
//!
//! Unless a function says otherwise, PV, HVM and PVH guests on x86 have these calls in every Xen since 4.0. HVM guests had
//! few of them before 4.7, and none that starts a vCPU. On Arm there are [`register_vcpu_info`] and
//! [`register_runstate_area`]; all others return `EINVAL`, [`set_timer`] `ENOSYS`: a guest there has PSCI and the generic timer.
#![allow(unsafe_code, reason = "hands over structures")]

use core::ptr::NonNull;
use core::time::Duration;

use zerocopy::IntoBytes;

use crate::abi::*;
use crate::call::{Plain, numbers};
use crate::sched::nanoseconds;
use crate::{Errno, Gfn, Hypercall, HypercallNr, PAGE_SIZE, VcpuId};

/// Runs a command on a vCPU with a structure.
///
/// # Safety
/// `command` reads and fills at most one `T`, and what else it does to memory is right.
unsafe fn on<T>(
    xen: &(impl Hypercall + ?Sized),
    command: usize,
    vcpu: VcpuId,
    argument: *mut T,
) -> Result<usize, Errno> {
    let pointer = argument.expose_provenance();
    // SAFETY: the caller vouches that one `T` is all that is read and written.
    Errno::check(unsafe { xen.hypercall(HypercallNr::VCPU_OP, [command, vcpu.0 as usize, pointer, 0, 0]) })
}

impl From<VcpuHvmX8664> for VcpuHvmContext {
    /// A vCPU that starts in long mode.
    fn from(registers: VcpuHvmX8664) -> Self {
        let mut context = Self { mode: VCPU_HVM_MODE_64B, ..Self::default() };
        for (to, from) in context.cpu_regs.as_mut_bytes().iter_mut().zip(registers.as_bytes()) {
            *to = *from;
        }
        context
    }
}

impl From<VcpuHvmX8632> for VcpuHvmContext {
    /// A vCPU that starts in protected mode, with or without paging.
    fn from(registers: VcpuHvmX8632) -> Self {
        let mut context = Self { mode: VCPU_HVM_MODE_32B, ..Self::default() };
        for (to, from) in context.cpu_regs.as_mut_bytes().iter_mut().zip(registers.as_bytes()) {
            *to = *from;
        }
        context
    }
}

/// Says in which state a vCPU starts when [`up`] lets it run for the first time. HVM and PVH guests on x86, since Xen
/// 4.7 (before, and always on Arm, other ways lead there: the local APIC, PSCI).
///
/// In long mode `cr0` has `PG`, `cr4` has `PAE` and `efer` has `LME` set; segments are made up by Xen. In protected
/// mode segments are given, with their attributes in the form of the processor's virtualisation (`*_ar`).
///
/// # Errors
/// `ENOENT` for a vCPU that does not exist, `EEXIST` for one that has a state already, `EINVAL` for a state that no
/// processor can be in.
///
/// # Safety
/// Running from this state is sound: code, stack and page tables are there and nobody else's.
pub unsafe fn initialise(
    xen: &(impl Hypercall + ?Sized),
    vcpu: VcpuId,
    context: &VcpuHvmContext,
) -> Result<(), Errno> {
    // SAFETY: VCPUOP_initialise reads a `vcpu_hvm_context`; the caller vouches for what runs then.
    unsafe { on(xen, VCPUOP_INITIALISE, vcpu, core::ptr::from_ref(context).cast_mut()) }.map(drop)
}

/// Lets a vCPU run, from the state of [`initialise`] or from where it went down.
///
/// # Errors
/// `ENOENT` for a vCPU that does not exist, `EINVAL` for one without a state.
pub fn up(xen: &(impl Hypercall + ?Sized), vcpu: VcpuId) -> Result<(), Errno> {
    numbers(xen, Plain::VcpuUp, [vcpu.0 as usize, 0, 0, 0]).map(drop)
}

/// Stops a vCPU where it is, until [`up`]. The last one that goes down powers the domain off.
///
/// # Errors
/// `ENOENT` for a vCPU that does not exist.
pub fn down(xen: &(impl Hypercall + ?Sized), vcpu: VcpuId) -> Result<(), Errno> {
    numbers(xen, Plain::VcpuDown, [vcpu.0 as usize, 0, 0, 0]).map(drop)
}

/// Whether a vCPU runs.
///
/// # Errors
/// `ENOENT` for a vCPU that does not exist.
pub fn is_up(xen: &(impl Hypercall + ?Sized), vcpu: VcpuId) -> Result<bool, Errno> {
    numbers(xen, Plain::VcpuIsUp, [vcpu.0 as usize, 0, 0, 0]).map(|up| up != 0)
}

/// What a vCPU is doing (`RUNSTATE_*`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(transparent)]
pub struct RunState(pub i32);

impl RunState {
    /// It runs on a processor.
    pub const RUNNING: Self = Self(RUNSTATE_RUNNING);
    /// It could run but does not: the processor is given to others. This is what a guest sees as stolen time.
    pub const RUNNABLE: Self = Self(RUNSTATE_RUNNABLE);
    /// It waits for an event.
    pub const BLOCKED: Self = Self(RUNSTATE_BLOCKED);
    /// It is down, or paused.
    pub const OFFLINE: Self = Self(RUNSTATE_OFFLINE);
}

/// How a vCPU spent its time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct RunTimes {
    /// What it does now.
    pub state: RunState,
    /// Since which system time.
    pub since: Duration,
    /// How long it ran.
    pub running: Duration,
    /// How long it could have run.
    pub runnable: Duration,
    /// How long it waited.
    pub blocked: Duration,
    /// How long it was down.
    pub offline: Duration,
}

/// How a vCPU spent its time so far.
///
/// # Errors
/// `ENOENT` for a vCPU that does not exist.
pub fn run_times(xen: &(impl Hypercall + ?Sized), vcpu: VcpuId) -> Result<RunTimes, Errno> {
    let mut info = VcpuRunstateInfo::default();
    // SAFETY: VCPUOP_get_runstate_info fills a `vcpu_runstate_info`.
    unsafe { on(xen, VCPUOP_GET_RUNSTATE_INFO, vcpu, &raw mut info) }?;
    let [running, runnable, blocked, offline] = info.time.map(Duration::from_nanos);
    Ok(RunTimes {
        state: RunState(info.state),
        since: Duration::from_nanos(info.state_entry_time & !XEN_RUNSTATE_UPDATE),
        running,
        runnable,
        blocked,
        offline,
    })
}

/// Lets Xen write a vCPU's times to memory each time it is scheduled, so that they can be read without a call. With
/// [`Assist::RUNSTATE_UPDATE_FLAG`](crate::assist::Assist::RUNSTATE_UPDATE_FLAG), `XEN_RUNSTATE_UPDATE` is set in
/// `state_entry_time` meanwhile. A null pointer in place of an area ends it.
///
/// Xen takes the address in the guest's address space as it is when the vCPU is scheduled, and gives up silently when
/// nothing is mapped there.
///
/// # Errors
/// `ENOENT` for a vCPU that does not exist, `EFAULT` for an address that no guest has.
///
/// # Safety
/// Xen writes to `area` at any time until the domain ends or another area is registered, by its address in whatever
/// page tables are then in use. Nobody has a reference to it or uses it otherwise.
pub unsafe fn register_runstate_area(
    xen: &(impl Hypercall + ?Sized),
    vcpu: VcpuId,
    area: *mut VcpuRunstateInfo,
) -> Result<(), Errno> {
    let mut argument = VcpuRegisterRunstateMemoryArea { addr: area.expose_provenance() as u64 };
    // SAFETY: the command reads the structure; the caller vouches for the area.
    unsafe { on(xen, VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, vcpu, &raw mut argument) }.map(drop)
}

/// Lets Xen write a vCPU's `vcpu_time_info` to memory, besides the copy in `vcpu_info`: a page that programs may read,
/// say. x86 only, since Xen 4.0.
///
/// # Errors
/// `ENOENT` for a vCPU that does not exist, `EFAULT` for an address that no guest has, `EINVAL` on Arm.
///
/// # Safety
/// As for [`register_runstate_area`]: 32 bytes at `area`.
pub unsafe fn register_time_area(
    xen: &(impl Hypercall + ?Sized),
    vcpu: VcpuId,
    area: NonNull<[u64; 4]>,
) -> Result<(), Errno> {
    let mut argument = VcpuRegisterTimeMemoryArea { addr: area.as_ptr().expose_provenance() as u64 };
    // SAFETY: the command reads the structure; the caller vouches for the area.
    unsafe { on(xen, VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA, vcpu, &raw mut argument) }.map(drop)
}

/// The guest-physical address of a place in a page, or the number that means none.
fn physical(place: Option<(Gfn, u32)>) -> Result<u64, Errno> {
    let Some((gfn, offset)) = place else { return Ok(u64::MAX) };
    if offset as usize >= PAGE_SIZE || offset % 8 != 0 {
        return Err(Errno::ENXIO);
    }
    gfn.0.checked_mul(PAGE_SIZE as u64).map(|page| page + u64::from(offset)).ok_or(Errno::EINVAL)
}

/// Lets Xen write a vCPU's times to byte `offset` of a page, as [`register_runstate_area`] does to an address; none: ends it.
/// It works whatever page tables are in use, and costs Xen less. While such a place is registered Xen does not write to that
/// of the older call. `XEN_RUNSTATE_UPDATE` is set in `state_entry_time` while Xen writes.
///
/// Since Xen 4.18, which says so by [`Features::RUNSTATE_PHYS_AREA`](crate::version::Features::RUNSTATE_PHYS_AREA).
///
/// # Errors
/// `ENOENT` for a vCPU that does not exist, `ENXIO` for an offset that is not a multiple of 8 or from which the 48 bytes of
/// a [`VcpuRunstateInfo`] cross the page's end, `EINVAL` for a frame that is not the guest's, `EACCES` for one that cannot be
/// written, `ENOSYS` from a Xen before 4.18.
///
/// # Safety
/// Xen writes there at any time until the domain ends or another place is registered. Nobody has a reference to the place or
/// uses it otherwise than by atomics.
pub unsafe fn register_runstate_page(
    xen: &(impl Hypercall + ?Sized),
    vcpu: VcpuId,
    place: Option<(Gfn, u32)>,
) -> Result<(), Errno> {
    let mut argument = VcpuRegisterRunstateMemoryArea { addr: physical(place)? };
    // SAFETY: the command reads the structure; the caller vouches for the place.
    unsafe { on(xen, VCPUOP_REGISTER_RUNSTATE_PHYS_AREA, vcpu, &raw mut argument) }.map(drop)
}

/// Lets Xen write a vCPU's `vcpu_time_info` to byte `offset` of a page, as the older call for it does to an address; none:
/// ends it. Otherwise as [`register_runstate_page`]. x86 only.
///
/// Since Xen 4.18, which says so by [`Features::VCPU_TIME_PHYS_AREA`](crate::version::Features::VCPU_TIME_PHYS_AREA).
///
/// # Errors
/// As for [`register_runstate_page`], with the 32 bytes of a `vcpu_time_info`.
///
/// # Safety
/// As for [`register_runstate_page`].
pub unsafe fn register_time_page(
    xen: &(impl Hypercall + ?Sized),
    vcpu: VcpuId,
    place: Option<(Gfn, u32)>,
) -> Result<(), Errno> {
    let mut argument = VcpuRegisterTimeMemoryArea { addr: physical(place)? };
    // SAFETY: the command reads the structure; the caller vouches for the place.
    unsafe { on(xen, VCPUOP_REGISTER_VCPU_TIME_PHYS_AREA, vcpu, &raw mut argument) }.map(drop)
}

/// Moves a vCPU's `vcpu_info` from `shared_info` to byte `offset` of a page; those numbered 32 and above on x86, and 1 and
/// above on Arm, have none otherwise. It can be done once, by the vCPU itself or while it is down. Afterwards all its
/// events are marked as pending, so that none is lost. [`VcpuArea::register`](crate::VcpuArea::register) does this on
/// a page of its own.
///
/// # Errors
/// `ENOENT` for a vCPU that does not exist, `ENXIO` for an offset that is not a multiple of 8 or too near the page's
/// end, `EINVAL` for a vCPU that is running, or a frame that is not the guest's RAM, and for a vCPU that has been moved before
/// (`EBUSY` since Xen 4.18).
///
/// # Safety
/// Xen writes there until the domain ends. Nobody uses the place otherwise than by atomics.
pub unsafe fn register_vcpu_info(
    xen: &(impl Hypercall + ?Sized),
    vcpu: VcpuId,
    gfn: Gfn,
    offset: u32,
) -> Result<(), Errno> {
    let mut argument = VcpuRegisterVcpuInfo { mfn: gfn.0, offset, rsvd: 0 };
    // SAFETY: the command reads the structure; the caller vouches for the page.
    unsafe { on(xen, VCPUOP_REGISTER_VCPU_INFO, vcpu, &raw mut argument) }.map(drop)
}

/// Interrupts a vCPU by an NMI. x86 only.
///
/// # Errors
/// `ENOENT` for a vCPU that does not exist, `EINVAL` on Arm.
pub fn send_nmi(xen: &(impl Hypercall + ?Sized), vcpu: VcpuId) -> Result<(), Errno> {
    numbers(xen, Plain::SendNmi, [vcpu.0 as usize, 0, 0, 0]).map(drop)
}

/// The physical processor that a vCPU is pinned to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct PhysicalId {
    /// Its local APIC.
    pub apic: u32,
    /// Its number in the ACPI tables.
    pub acpi: u32,
}

/// Where a vCPU of the hardware domain is pinned (`dom0_vcpus_pin`). x86 only.
///
/// # Errors
/// `ENOENT` for a vCPU that does not exist, `EINVAL` for one that is not pinned or of another domain, and on Arm.
pub fn physical_id(xen: &(impl Hypercall + ?Sized), vcpu: VcpuId) -> Result<PhysicalId, Errno> {
    let mut argument = VcpuGetPhysid::default();
    // SAFETY: VCPUOP_get_physid fills a `vcpu_get_physid`.
    unsafe { on(xen, VCPUOP_GET_PHYSID, vcpu, &raw mut argument) }?;
    Ok(PhysicalId { apic: argument.phys_id as u32, acpi: (argument.phys_id >> 32) as u32 })
}

/// Makes the timer of a vCPU fire every `period`, from now on. A vCPU that does not run when it is due misses it.
///
/// # Errors
/// `ENOENT` for a vCPU that does not exist, `EINVAL` for less than a millisecond or more than 146 years.
pub fn set_periodic_timer(
    xen: &(impl Hypercall + ?Sized),
    vcpu: VcpuId,
    period: Duration,
) -> Result<(), Errno> {
    let mut argument = VcpuSetPeriodicTimer { period_ns: nanoseconds(period) };
    // SAFETY: VCPUOP_set_periodic_timer reads the structure and sets a timer.
    unsafe { on(xen, VCPUOP_SET_PERIODIC_TIMER, vcpu, &raw mut argument) }.map(drop)
}

/// Stops the periodic timer, which Xen starts some guests with (PV: at 100 Hz).
///
/// # Errors
/// `ENOENT` for a vCPU that does not exist.
pub fn stop_periodic_timer(xen: &(impl Hypercall + ?Sized), vcpu: VcpuId) -> Result<(), Errno> {
    numbers(xen, Plain::StopPeriodic, [vcpu.0 as usize, 0, 0, 0]).map(drop)
}

/// Makes `VIRQ_TIMER` of the vCPU fire once, when Xen's system time is `at`. When that has passed already, it fires at
/// once or, with a Xen before 4.17, the call fails with `ETIME`.
///
/// # Errors
/// `ETIME` when `at` has passed (Xen before 4.17; the timer is then not set), `ENOENT` for a vCPU that does not exist,
/// `EINVAL` for one that is not the caller.
pub fn set_singleshot_timer(
    xen: &(impl Hypercall + ?Sized),
    vcpu: VcpuId,
    at: Duration,
) -> Result<(), Errno> {
    let mut argument =
        VcpuSetSingleshotTimer { timeout_abs_ns: nanoseconds(at), flags: VCPU_SSHOTTMR_FUTURE, pad0: 0 };
    // SAFETY: VCPUOP_set_singleshot_timer reads the structure and sets a timer.
    unsafe { on(xen, VCPUOP_SET_SINGLESHOT_TIMER, vcpu, &raw mut argument) }.map(drop)
}

/// Sets the calling vCPU's one-shot timer, or takes it back, by `set_timer_op`: the older call for the same timer, which
/// never fails. A time that has passed fires at once. One more than 13 days ahead fires in 100 ms, for the sake of
/// guests that wrap around.
///
/// # Errors
/// None that Xen documents.
pub fn set_timer(xen: &(impl Hypercall + ?Sized), at: Option<Duration>) -> Result<(), Errno> {
    let at = at.map_or(0, |at| nanoseconds(at).max(1));
    // SAFETY: the call takes a number and sets a timer. Numbers of 64 bits are one register on 64-bit guests.
    Errno::check(unsafe { xen.hypercall(HypercallNr::SET_TIMER_OP, [at as usize, 0, 0, 0, 0]) }).map(drop)
}

/// Takes the timer back.
///
/// # Errors
/// `ENOENT` for a vCPU that does not exist, `EINVAL` for one that is not the caller's.
pub fn stop_singleshot_timer(xen: &(impl Hypercall + ?Sized), vcpu: VcpuId) -> Result<(), Errno> {
    numbers(xen, Plain::StopSingleshot, [vcpu.0 as usize, 0, 0, 0]).map(drop)
}
