//! `sched_op`

use core::sync::atomic::Ordering::Acquire;
use core::time::Duration;
use std::vec::Vec;

use super::{Answer, at, read, read_at};
use crate::abi::*;
use crate::mock::MockDomain;
use crate::sched::{Resumed, ShutdownCode};
use crate::{DomId, Errno, Wait};

/// Processors that a Xen may have at most (`CONFIG_NR_CPUS` as Debian sets it).
const CPUS: i32 = 512;

pub(super) fn sched_op(domain: &MockDomain, [command, pointer, ..]: [usize; 5]) -> Answer {
    match command {
        SCHEDOP_YIELD => {
            domain.xen().step();
            Ok(0)
        }
        SCHEDOP_BLOCK => {
            domain.wait(None, &|| false);
            Ok(0)
        }
        SCHEDOP_POLL => poll(domain, read(pointer)?),
        SCHEDOP_SHUTDOWN => match reason(read::<SchedShutdown>(pointer)?.reason) {
            ShutdownCode::SUSPEND => Ok(usize::from(domain.xen().suspend(domain) == Resumed::InPlace)),
            reason => {
                domain.set_shutdown(reason);
                Ok(0)
            }
        },
        SCHEDOP_SHUTDOWN_CODE => {
            let reason = reason(read::<SchedShutdown>(pointer)?.reason);
            domain.state().shutdown_code.get_or_insert(reason);
            Ok(0)
        }
        SCHEDOP_REMOTE_SHUTDOWN => {
            let op: SchedRemoteShutdown = read(pointer)?;
            // DOMID_SELF names nobody here.
            if !domain.xen().has_domain(DomId(op.domain_id)) {
                return Err(Errno::ESRCH);
            }
            if domain.id() != DomId(0) {
                return Err(Errno::EPERM);
            }
            domain.xen().domain(DomId(op.domain_id)).set_shutdown(reason(op.reason));
            Ok(0)
        }
        SCHEDOP_WATCHDOG => watchdog(domain, read(pointer)?),
        SCHEDOP_PIN_OVERRIDE => {
            if domain.id() != DomId(0) {
                return Err(Errno::EPERM);
            }
            let op: SchedPinOverride = read(pointer)?;
            if op.pcpu >= CPUS { Err(Errno::EINVAL) } else { Ok(0) }
        }
        _ => Err(Errno::ENOSYS),
    }
}

/// Xen looks at the lowest byte.
fn reason(reason: u32) -> ShutdownCode {
    ShutdownCode(reason & 0xFF)
}

/// Whether a port is valid is known to the mock of event channels alone: here those of the two-level ABI are.
fn poll(domain: &MockDomain, op: SchedPoll) -> Answer {
    if op.nr_ports > 128 {
        return Err(Errno::EINVAL);
    }
    let ports: Result<Vec<u32>, _> =
        (0..op.nr_ports as usize).map(|index| read_at(op.ports as usize, index)).collect();
    let ports = ports?;
    let pending = || {
        let shared = domain.shared_info();
        domain.upcall_pending()
            || ports.iter().any(|port| {
                let word = shared.as_ref().and_then(|shared| shared.evtchn_pending(*port as usize / 64));
                word.is_some_and(|word| word.load(Acquire) & 1 << (port % 64) != 0)
            })
    };
    if !pending() {
        domain.wait((op.timeout != 0).then(|| domain.machine_time(at(op.timeout))), &|| false);
    }
    Ok(0)
}

fn watchdog(domain: &MockDomain, op: SchedWatchdog) -> Answer {
    let due = domain.xen().now().saturating_add(Duration::from_secs(op.timeout.into()));
    let mut state = domain.state();
    let watchdogs = &mut state.watchdogs;
    match op.id as usize {
        0 => {
            let free = watchdogs.iter().position(Option::is_none).ok_or(Errno::ENOSPC)?;
            watchdogs[free] = Some(due);
            Ok(free + 1)
        }
        id => {
            let place = watchdogs.get_mut(id - 1).filter(|place| place.is_some()).ok_or(Errno::EINVAL)?;
            *place = (op.timeout != 0).then_some(due);
            Ok(0)
        }
    }
}
