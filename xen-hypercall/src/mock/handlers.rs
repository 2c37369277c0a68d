//! Answers to the calls of this crate's own modules.
#![allow(unsafe_code, reason = "reads and writes the caller's arguments, as Xen does")]

use core::time::Duration;

use super::{MockDomain, MockXen};
use crate::abi::*;
use crate::hvm::HvmParam;
use crate::sched::ShutdownReason;
use crate::{Errno, Gfn, HypercallNr, VcpuId};

/// The version that the mock says it is.
const VERSION: usize = 4 << 16 | 17;

pub(super) fn install(xen: &MockXen) {
    xen.register(HypercallNr::SCHED_OP, |domain, args| answer(sched_op(domain, args)));
    xen.register(HypercallNr::HVM_OP, |domain, args| answer(hvm_op(domain, args)));
    xen.register(HypercallNr::MEMORY_OP, |domain, args| answer(memory_op(domain, args)));
    xen.register(HypercallNr::XEN_VERSION, |domain, args| answer(xen_version(domain, args)));
    xen.register(HypercallNr::VCPU_OP, |domain, args| answer(vcpu_op(domain, args)));
    xen.register(HypercallNr::CONSOLE_IO, |domain, args| answer(console_io(domain, args)));
}

fn answer(result: Result<usize, Errno>) -> isize {
    match result {
        Ok(value) => value as isize,
        Err(error) => error.as_return(),
    }
}

/// Borrows a hypercall's argument in the caller's memory.
fn argument<'a, T>(pointer: usize) -> Result<&'a mut T, Errno> {
    let pointer = core::ptr::with_exposed_provenance_mut::<T>(pointer);
    // SAFETY: whoever made the hypercall promised that its argument is valid for what the call does with it; the
    // typed modules of this crate lend exactly this structure for the duration of the call.
    unsafe { pointer.as_mut() }.ok_or(Errno::EFAULT)
}

fn sched_op(domain: &MockDomain, [command, pointer, ..]: [usize; 5]) -> Result<usize, Errno> {
    match command {
        SCHEDOP_YIELD | SCHEDOP_BLOCK | SCHEDOP_POLL => {
            domain.xen().step();
            Ok(0)
        }
        SCHEDOP_SHUTDOWN => {
            let reason = argument::<SchedShutdown>(pointer)?.reason;
            if reason > ShutdownReason::SOFT_RESET.0 {
                return Err(Errno::EINVAL);
            }
            domain.set_shutdown(ShutdownReason(reason));
            Ok(0)
        }
        _ => Err(Errno::ENOSYS),
    }
}

fn hvm_op(domain: &MockDomain, [command, pointer, ..]: [usize; 5]) -> Result<usize, Errno> {
    /// One past the last parameter of Xen 4.17 (`HVM_NR_PARAMS`).
    const PARAMS: u32 = 39;
    match command {
        HVMOP_GET_PARAM | HVMOP_SET_PARAM => {
            let op = argument::<XenHvmParam>(pointer)?;
            if op.index >= PARAMS {
                return Err(Errno::EINVAL);
            }
            let param = HvmParam(op.index);
            if command == HVMOP_GET_PARAM {
                op.value = domain.hvm_param(param);
            } else {
                let toolstack = [
                    HvmParam::STORE_PFN,
                    HvmParam::STORE_EVTCHN,
                    HvmParam::CONSOLE_PFN,
                    HvmParam::CONSOLE_EVTCHN,
                ];
                if toolstack.contains(&param) {
                    return Err(Errno::EPERM);
                }
                domain.set_hvm_param(param, op.value);
            }
            Ok(0)
        }
        HVMOP_SET_EVTCHN_UPCALL_VECTOR => {
            let op = argument::<XenHvmEvtchnUpcallVector>(pointer)?;
            if op.vector < 0x10 {
                return Err(Errno::EINVAL);
            }
            let set = domain.with_vcpu(VcpuId(op.vcpu), |vcpu| vcpu.upcall_vector = Some(op.vector));
            set.map(|()| 0).ok_or(Errno::ENOENT)
        }
        _ => Err(Errno::ENOSYS),
    }
}

/// Handles spaces other than `shared_info`, set by the mock of whoever owns them.
pub(super) type SpaceHook = std::boxed::Box<dyn FnMut(&MockDomain, u64, Gfn) -> Result<(), Errno> + Send>;

#[derive(Default)]
struct Spaces(std::collections::BTreeMap<u32, SpaceHook>);

impl MockXen {
    /// Answers `XENMEM_add_to_physmap` of a space (`XENMAPSPACE_*`): the hook gets the caller, the index and the
    /// frame, and makes the memory there what the space says.
    pub fn register_physmap_space(
        &self,
        space: u32,
        hook: impl FnMut(&MockDomain, u64, Gfn) -> Result<(), Errno> + Send + 'static,
    ) {
        let spaces = self.extension::<Spaces>();
        let mut spaces = spaces.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        spaces.0.insert(space, std::boxed::Box::new(hook));
    }
}

fn memory_op(domain: &MockDomain, [command, pointer, ..]: [usize; 5]) -> Result<usize, Errno> {
    if command != XENMEM_ADD_TO_PHYSMAP {
        return Err(Errno::ENOSYS);
    }
    let XenAddToPhysmap { space, idx, gpfn, .. } = *argument::<XenAddToPhysmap>(pointer)?;
    let gfn = Gfn(gpfn);
    if domain.page_at(gfn).is_none() {
        return Err(Errno::EINVAL);
    }
    match (space, idx) {
        (XENMAPSPACE_SHARED_INFO, 0) => {
            domain.state().shared_info = Some(gfn);
            Ok(0)
        }
        (XENMAPSPACE_SHARED_INFO, _) => Err(Errno::EINVAL),
        _ => {
            let spaces = domain.xen().extension::<Spaces>();
            let mut spaces = spaces.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let hook = spaces.0.get_mut(&space).ok_or(Errno::EINVAL)?;
            hook(domain, idx, gfn).map(|()| 0)
        }
    }
}

fn xen_version(domain: &MockDomain, [command, pointer, ..]: [usize; 5]) -> Result<usize, Errno> {
    match command {
        XENVER_VERSION => Ok(VERSION),
        XENVER_EXTRAVERSION => {
            *argument::<[u8; 16]>(pointer)? = *b".0-mock\0\0\0\0\0\0\0\0\0";
            Ok(0)
        }
        XENVER_GUEST_HANDLE => {
            let [high, low] = domain.id().0.to_be_bytes();
            *argument::<[u8; 16]>(pointer)? = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, high, low];
            Ok(0)
        }
        XENVER_GET_FEATURES => {
            let info = argument::<XenFeatureInfo>(pointer)?;
            let features = crate::version::Features::AUTO_TRANSLATED_PHYSMAP
                | crate::version::Features::HVM_CALLBACK_VECTOR
                | crate::version::Features::HVM_SAFE_PVCLOCK;
            info.submap = if info.submap_idx == 0 { features.bits() } else { 0 };
            Ok(0)
        }
        _ => Err(Errno::ENOSYS),
    }
}

fn vcpu_op(domain: &MockDomain, [command, vcpu, pointer, ..]: [usize; 5]) -> Result<usize, Errno> {
    /// Past this, Xen takes no period (`STIME_DELTA_MAX`).
    const PERIOD_MAX: u64 = u64::MAX >> 2;
    let vcpu = u32::try_from(vcpu).map(VcpuId).map_err(|_| Errno::ENOENT)?;
    domain.with_vcpu(vcpu, |_| ()).ok_or(Errno::ENOENT)?;
    let its_own = || if vcpu == domain.vcpu() { Ok(()) } else { Err(Errno::EINVAL) };
    let now = domain.xen().now();
    match command {
        VCPUOP_IS_UP => Ok(usize::from(domain.with_vcpu(vcpu, |state| state.up) == Some(true))),
        VCPUOP_SET_SINGLESHOT_TIMER => {
            its_own()?;
            let at = Duration::from_nanos(argument::<VcpuSetSingleshotTimer>(pointer)?.timeout_abs_ns);
            let past = at < now;
            domain.with_vcpu(vcpu, |state| state.singleshot = (!past).then_some(at));
            if past {
                domain.xen().raise_timer(domain, vcpu);
            }
            Ok(0)
        }
        VCPUOP_STOP_SINGLESHOT_TIMER => {
            its_own()?;
            domain.with_vcpu(vcpu, |state| state.singleshot = None);
            Ok(0)
        }
        VCPUOP_SET_PERIODIC_TIMER => {
            let period = argument::<VcpuSetPeriodicTimer>(pointer)?.period_ns;
            if !(1_000_000..=PERIOD_MAX).contains(&period) {
                return Err(Errno::EINVAL);
            }
            let period = Duration::from_nanos(period);
            domain.with_vcpu(vcpu, |state| state.periodic = Some((now + period, period)));
            Ok(0)
        }
        VCPUOP_STOP_PERIODIC_TIMER => {
            domain.with_vcpu(vcpu, |state| state.periodic = None);
            Ok(0)
        }
        _ => Err(Errno::ENOSYS),
    }
}

fn console_io(domain: &MockDomain, [command, count, pointer, ..]: [usize; 5]) -> Result<usize, Errno> {
    match command {
        CONSOLEIO_WRITE => {
            let pointer = core::ptr::with_exposed_provenance::<u8>(pointer);
            // SAFETY: whoever made the hypercall lent `count` bytes at the pointer for its duration.
            domain.add_console_output(unsafe { core::slice::from_raw_parts(pointer, count) });
            Ok(0)
        }
        CONSOLEIO_READ => Err(Errno::EPERM),
        _ => Err(Errno::ENOSYS),
    }
}
