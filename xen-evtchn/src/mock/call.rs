//! Unpacks the hypercall, as Xen copies arguments from and to the guest.
#![allow(unsafe_code)]

use std::format;

use xen_hypercall::abi::*;
use xen_hypercall::mock::MockDomain;
use xen_hypercall::{DomId, Errno, Gfn, VcpuId};

use super::ports::Machine;
use crate::Virq;
use crate::abi::EVTCHN_FIFO_LINK_BITS;

/// `EVTCHNOP_bind_pirq`. None of the domains here has physical interrupts.
const EVTCHNOP_BIND_PIRQ: usize = 2;

/// A structure that is plain data and comes with the command of its kind.
trait Argument: Copy + zerocopy::FromBytes + zerocopy::IntoBytes {}

impl<T: Copy + zerocopy::FromBytes + zerocopy::IntoBytes> Argument for T {}

pub(super) fn event_channel_op(caller: &MockDomain, args: [usize; 5]) -> isize {
    match super::with(caller.xen(), |machine| run(machine, caller, args)) {
        Ok(()) => 0,
        Err(errno) => errno.as_return(),
    }
}

fn run(machine: &mut Machine, caller: &MockDomain, [command, argument, ..]: [usize; 5]) -> Result<(), Errno> {
    let me = caller.id();
    machine.deliver_early(caller);
    match command {
        EVTCHNOP_ALLOC_UNBOUND => update(argument, |op: &mut EvtchnAllocUnbound| {
            let owner = target(caller, DomId(op.dom))?;
            let remote = or_self(me, DomId(op.remote_dom));
            op.port = machine.alloc_unbound(&caller.xen().domain(owner), remote)?;
            Ok(())
        }),
        EVTCHNOP_BIND_INTERDOMAIN => update(argument, |op: &mut EvtchnBindInterdomain| {
            let remote = or_self(me, DomId(op.remote_dom));
            op.local_port = machine.bind_interdomain(caller, remote, op.remote_port)?;
            Ok(())
        }),
        EVTCHNOP_BIND_VIRQ => update(argument, |op: &mut EvtchnBindVirq| {
            op.port = machine.bind_virq(caller, Virq(op.virq), VcpuId(op.vcpu))?;
            Ok(())
        }),
        EVTCHNOP_BIND_IPI => update(argument, |op: &mut EvtchnBindIpi| {
            op.port = machine.bind_ipi(caller, VcpuId(op.vcpu))?;
            Ok(())
        }),
        EVTCHNOP_CLOSE => update(argument, |op: &mut EvtchnClose| machine.close(caller, op.port)),
        EVTCHNOP_SEND => update(argument, |op: &mut EvtchnSend| {
            caller.xen().trace(|| format!("{me} sends an event on port {}", op.port));
            machine.send(caller, op.port)
        }),
        EVTCHNOP_STATUS => update(argument, |op: &mut EvtchnStatus| {
            let owner = target(caller, DomId(op.dom))?;
            *op = machine
                .status(owner, EvtchnStatus { dom: op.dom, port: op.port, ..EvtchnStatus::default() })?;
            Ok(())
        }),
        EVTCHNOP_BIND_VCPU => {
            update(argument, |op: &mut EvtchnBindVcpu| machine.bind_vcpu(caller, op.port, VcpuId(op.vcpu)))
        }
        EVTCHNOP_UNMASK => update(argument, |op: &mut EvtchnUnmask| machine.unmask(caller, op.port)),
        EVTCHNOP_RESET => update(argument, |op: &mut EvtchnReset| {
            let owner = target(caller, DomId(op.dom))?;
            machine.reset(&caller.xen().domain(owner));
            Ok(())
        }),
        EVTCHNOP_INIT_CONTROL..=EVTCHNOP_SET_PRIORITY if machine.two_level_only => Err(Errno::ENOSYS),
        EVTCHNOP_INIT_CONTROL => update(argument, |op: &mut EvtchnInitControl| {
            machine.init_control(caller, Gfn(op.control_gfn), op.offset, VcpuId(op.vcpu))?;
            op.link_bits = EVTCHN_FIFO_LINK_BITS as u8;
            Ok(())
        }),
        EVTCHNOP_EXPAND_ARRAY => {
            update(argument, |op: &mut EvtchnExpandArray| machine.expand_array(caller, Gfn(op.array_gfn)))
        }
        EVTCHNOP_SET_PRIORITY => {
            update(argument, |op: &mut EvtchnSetPriority| machine.set_priority(caller, op.port, op.priority))
        }
        EVTCHNOP_BIND_PIRQ => Err(Errno::EINVAL),
        _ => Err(Errno::ENOSYS),
    }
}

/// Copies the argument in, runs the command, and copies it back if the command succeeded.
fn update<T: Argument>(address: usize, run: impl FnOnce(&mut T) -> Result<(), Errno>) -> Result<(), Errno> {
    let pointer = core::ptr::with_exposed_provenance_mut::<T>(address);
    if pointer.is_null() {
        return Err(Errno::EFAULT);
    }
    // SAFETY: whoever made the hypercall promised that its argument is valid for what the command does, which is to read and
    // write one structure of this type; every bit pattern is one.
    let mut argument = unsafe { pointer.read_unaligned() };
    run(&mut argument)?;
    // SAFETY: as above.
    unsafe { pointer.write_unaligned(argument) };
    Ok(())
}

fn or_self(me: DomId, id: DomId) -> DomId {
    if id == DomId::SELF { me } else { id }
}

/// The domain that an operation is about: the caller's own, or any if the caller is the privileged domain.
fn target(caller: &MockDomain, id: DomId) -> Result<DomId, Errno> {
    let id = or_self(caller.id(), id);
    if id == caller.id() {
        Ok(id)
    } else if !caller.xen().has_domain(id) {
        Err(Errno::ESRCH)
    } else if caller.id() == DomId(0) {
        Ok(id)
    } else {
        Err(Errno::EPERM)
    }
}
