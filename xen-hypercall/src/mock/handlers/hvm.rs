//! `hvm_op`

use super::{Answer, read, target, write};
use crate::abi::*;
use crate::hvm::{HvmParam, MemType};
use crate::mock::MockDomain;
use crate::{Errno, Gfn, VcpuId};

/// One past the last parameter of Xen 4.17 (`HVM_NR_PARAMS`).
const PARAMS: u32 = 39;
/// Parameters that nobody may set or read any more.
const DEPRECATED: [u32; 10] = [4, 13, 20, 21, 22, 23, 24, 25, 26, 30];

pub(super) fn hvm_op(domain: &MockDomain, [command, pointer, ..]: [usize; 5]) -> Answer {
    match command {
        HVMOP_GET_PARAM | HVMOP_SET_PARAM => param(domain, command == HVMOP_SET_PARAM, pointer),
        HVMOP_SET_EVTCHN_UPCALL_VECTOR => {
            let op: XenHvmEvtchnUpcallVector = read(pointer)?;
            if op.vector < 0x10 {
                return Err(Errno::EINVAL);
            }
            let set = domain.with_vcpu(VcpuId(op.vcpu), |vcpu| vcpu.upcall_vector = Some(op.vector));
            set.map(|()| 0).ok_or(Errno::ENOENT)
        }
        HVMOP_GET_TIME => write(pointer, XenHvmGetTime { now: domain.system_time().as_nanos() as u64 }),
        HVMOP_GET_MEM_TYPE => {
            let mut op: XenHvmGetMemType = read(pointer)?;
            let there = target(domain, op.domid)?.page_at(Gfn(op.pfn)).is_some();
            op.mem_type = if there { MemType::RAM.0 } else { MemType::MMIO.0 };
            write(pointer, op)
        }
        HVMOP_FLUSH_TLBS | HVMOP_GUEST_REQUEST_VM_EVENT => {
            if pointer == 0 {
                Ok(0)
            } else {
                Err(Errno::EINVAL)
            }
        }
        _ => Err(Errno::ENOSYS),
    }
}

fn param(caller: &MockDomain, set: bool, pointer: usize) -> Answer {
    let mut op: XenHvmParam = read(pointer)?;
    if op.index >= PARAMS {
        return Err(Errno::EINVAL);
    }
    let domain = target(caller, op.domid)?;
    let param = HvmParam(op.index);
    let both = [
        HvmParam::CALLBACK_IRQ,
        HvmParam::VM86_TSS,
        HvmParam::VM86_TSS_SIZED,
        HvmParam::ACPI_IOPORTS_LOCATION,
        HvmParam::VM_GENERATION_ID_ADDR,
        HvmParam::STORE_EVTCHN,
        HvmParam::CONSOLE_EVTCHN,
        HvmParam::X87_FIP_WIDTH,
    ];
    let only_read = [HvmParam::STORE_PFN, HvmParam::CONSOLE_PFN, HvmParam::ALTP2M];
    if DEPRECATED.contains(&op.index) {
        return Err(Errno::EINVAL);
    }
    let allowed = both.contains(&param) || !set && only_read.contains(&param);
    if !allowed && domain.id() == caller.id() {
        return Err(Errno::EPERM);
    }
    if set {
        domain.set_hvm_param(param, op.value);
        return Ok(0);
    }
    op.value = domain.hvm_param(param);
    write(pointer, op)
}
