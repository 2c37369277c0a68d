//! `vcpu_op` and `set_timer_op`

use core::sync::atomic::Ordering::SeqCst;
use core::time::Duration;

use super::{Answer, at, read, write};
use crate::abi::*;
use crate::mock::MockDomain;
use crate::sched::ShutdownCode;
use crate::vcpu::RunState;
use crate::{Errno, Gfn, PAGE_SIZE, VcpuArea, VcpuId};

/// The longest period of a timer, in nanoseconds (`STIME_DELTA_MAX`).
const PERIOD_MAX: u64 = u64::MAX >> 2;

pub(super) fn vcpu_op(domain: &MockDomain, [command, vcpu, pointer, ..]: [usize; 5]) -> Answer {
    let vcpu = u32::try_from(vcpu).map(VcpuId).map_err(|_| Errno::ENOENT)?;
    let now = domain.system_time();
    let with = |f: &mut dyn FnMut(&mut super::super::vcpu::Vcpu) -> Answer| {
        domain.with_vcpu(vcpu, |state| f(state)).unwrap_or(Err(Errno::ENOENT))
    };
    with(&mut |_| Ok(0))?;
    let its_own = || if vcpu == domain.vcpu() { Ok(()) } else { Err(Errno::EINVAL) };
    match command {
        VCPUOP_INITIALISE => {
            let context: VcpuHvmContext = read(pointer)?;
            with(&mut |state| {
                if state.initialised {
                    return Err(Errno::EEXIST);
                }
                check(&context)?;
                state.initialised = true;
                state.context = Some(context);
                Ok(0)
            })
        }
        VCPUOP_UP => with(&mut |state| {
            if !state.initialised {
                return Err(Errno::EINVAL);
            }
            state.set_up(true, now);
            Ok(0)
        }),
        VCPUOP_DOWN => {
            if !domain.another_is_up(vcpu) {
                domain.set_shutdown(ShutdownCode::POWEROFF);
                return Ok(0);
            }
            with(&mut |state| {
                state.set_up(false, now);
                Ok(0)
            })
        }
        VCPUOP_IS_UP => with(&mut |state| Ok(usize::from(state.up))),
        VCPUOP_GET_RUNSTATE_INFO => {
            let info = run_times(domain, vcpu, now);
            write(pointer, info)
        }
        VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA => {
            let area: VcpuRegisterRunstateMemoryArea = read(pointer)?;
            // Nothing is scheduled here, so once is all.
            if area.addr != 0 {
                write(area.addr as usize, run_times(domain, vcpu, now))?;
            }
            Ok(0)
        }
        VCPUOP_SET_PERIODIC_TIMER => {
            let period = read::<VcpuSetPeriodicTimer>(pointer)?.period_ns;
            if !(1_000_000..=PERIOD_MAX).contains(&period) {
                return Err(Errno::EINVAL);
            }
            let period = Duration::from_nanos(period);
            with(&mut |state| {
                state.periodic = Some((domain.xen().now() + period, period));
                Ok(0)
            })
        }
        VCPUOP_STOP_PERIODIC_TIMER => with(&mut |state| {
            state.periodic = None;
            Ok(0)
        }),
        VCPUOP_SET_SINGLESHOT_TIMER => {
            its_own()?;
            set_singleshot(domain, at(read::<VcpuSetSingleshotTimer>(pointer)?.timeout_abs_ns))
        }
        VCPUOP_STOP_SINGLESHOT_TIMER => {
            its_own()?;
            with(&mut |state| {
                state.singleshot = None;
                Ok(0)
            })
        }
        VCPUOP_REGISTER_VCPU_INFO => register_vcpu_info(domain, vcpu, read(pointer)?),
        VCPUOP_SEND_NMI => {
            if pointer != 0 {
                return Err(Errno::EINVAL);
            }
            with(&mut |state| {
                state.nmis += 1;
                Ok(0)
            })
        }
        VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA => {
            let area: VcpuRegisterTimeMemoryArea = read(pointer)?;
            // A counter that counts nanoseconds: half of one, shifted left by one. The version is even.
            let scale = 1 << 31 | 1 << 32;
            write(area.addr as usize, [2, now.as_nanos() as u64, now.as_nanos() as u64, scale])
        }
        // No vCPU is pinned.
        VCPUOP_GET_PHYSID => Err(Errno::EINVAL),
        _ => Err(Errno::ENOSYS),
    }
}

/// The checks that say something about a kernel; a processor makes more.
fn check(context: &VcpuHvmContext) -> Result<(), Errno> {
    const PG: u64 = 1 << 31;
    const PAE: u64 = 1 << 5;
    const LME: u64 = 1 << 8;
    if context.pad != 0 {
        return Err(Errno::EINVAL);
    }
    match context.mode {
        VCPU_HVM_MODE_32B => Ok(()),
        VCPU_HVM_MODE_64B => {
            let [.., rip, _, cr0, _, cr4, efer, _] = context.cpu_regs;
            let canonical = (rip as i64) << 16 >> 16 == rip as i64;
            let long = cr0 & PG != 0 && cr4 & PAE != 0 && efer & LME != 0;
            if canonical && long { Ok(()) } else { Err(Errno::EINVAL) }
        }
        _ => Err(Errno::EINVAL),
    }
}

fn run_times(domain: &MockDomain, vcpu: VcpuId, now: Duration) -> VcpuRunstateInfo {
    let (up, since, mut spent) =
        domain.with_vcpu(vcpu, |state| (state.up, state.since, state.spent)).unwrap_or_default();
    let state = if up { RunState::RUNNING } else { RunState::OFFLINE };
    spent[state.0 as usize] += now.saturating_sub(since);
    VcpuRunstateInfo {
        state: state.0,
        pad0: 0,
        state_entry_time: since.as_nanos() as u64,
        time: spent.map(|time| time.as_nanos() as u64),
    }
}

fn set_singleshot(domain: &MockDomain, at: Duration) -> Answer {
    let past = at < domain.system_time();
    let at = domain.machine_time(at);
    domain.with_vcpu(domain.vcpu(), |state| state.singleshot = (!past).then_some(at));
    if past {
        domain.xen().raise_timer(domain, domain.vcpu());
    }
    Ok(0)
}

pub(super) fn set_timer_op(domain: &MockDomain, [at, ..]: [usize; 5]) -> Answer {
    let now = domain.system_time();
    let at = Duration::from_nanos(at as u64);
    // 2^50 ns; so far ahead, or with the sign bit set, a guest has wrapped around.
    let far = now.saturating_add(Duration::from_nanos(1 << 50));
    if at.is_zero() {
        domain.with_vcpu(domain.vcpu(), |state| state.singleshot = None);
        Ok(0)
    } else if at >= far {
        set_singleshot(domain, now + Duration::from_millis(100))
    } else {
        set_singleshot(domain, at)
    }
}

fn register_vcpu_info(domain: &MockDomain, vcpu: VcpuId, op: VcpuRegisterVcpuInfo) -> Answer {
    let (placed, up) =
        domain.with_vcpu(vcpu, |state| (state.area.is_some(), state.up)).ok_or(Errno::ENOENT)?;
    let offset = op.offset as usize;
    if offset > PAGE_SIZE - shared_info::VCPU_INFO_SIZE || offset % 8 != 0 {
        return Err(Errno::ENXIO);
    }
    if placed || (up && vcpu != domain.vcpu()) {
        return Err(Errno::EINVAL);
    }
    let page = domain.page_at(Gfn(op.mfn)).ok_or(Errno::EINVAL)?;
    // SAFETY: the caller vouches for the place, whose bounds were checked above.
    let new = unsafe { VcpuArea::from_page(page, offset) };
    // What was there comes along; a vCPU that had no place begins with its events masked.
    new.copy_from(domain.vcpu_area(vcpu));
    domain.with_vcpu(vcpu, |state| state.area = Some((Gfn(op.mfn), offset)));
    // Whatever was pending is now said to be here.
    new.info().pending_sel.store(u64::MAX, SeqCst);
    new.info().upcall_pending.store(1, SeqCst);
    Ok(0)
}
