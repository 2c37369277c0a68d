//! Answers to the calls of this crate's own modules: those of Xen 4.17 to an HVM or PVH guest, with the same error for
//! each mistake.
#![allow(unsafe_code, reason = "reads and writes the caller's arguments, as Xen does")]

mod few;
mod hvm;
mod memory;
mod sched;
mod vcpu;
mod version;

use core::time::Duration;

use super::{MockDomain, MockXen};
use crate::{DomId, Errno, HypercallNr};

type Answer = Result<usize, Errno>;
type Handler = fn(&MockDomain, [usize; 5]) -> Answer;

pub(super) fn install(xen: &MockXen) {
    let handlers: [(HypercallNr, Handler); 10] = [
        (HypercallNr::SCHED_OP, sched::sched_op),
        (HypercallNr::HVM_OP, hvm::hvm_op),
        (HypercallNr::MEMORY_OP, memory::memory_op),
        (HypercallNr::XEN_VERSION, version::xen_version),
        (HypercallNr::VCPU_OP, vcpu::vcpu_op),
        (HypercallNr::SET_TIMER_OP, vcpu::set_timer_op),
        (HypercallNr::CONSOLE_IO, few::console_io),
        (HypercallNr::VM_ASSIST, few::vm_assist),
        (HypercallNr::MULTICALL, few::multicall),
        (HypercallNr::PHYSDEV_OP, few::physdev_op),
    ];
    for (nr, handler) in handlers {
        xen.register(nr, move |domain, args| match handler(domain, args) {
            Ok(value) => value as isize,
            Err(error) => error.as_return(),
        });
    }
}

/// Copies a hypercall's argument in.
fn read<T: zerocopy::FromBytes>(pointer: usize) -> Result<T, Errno> {
    read_at(pointer, 0)
}

/// Copies an element of a list in.
fn read_at<T: zerocopy::FromBytes>(pointer: usize, index: usize) -> Result<T, Errno> {
    if pointer == 0 {
        return Err(Errno::EFAULT);
    }
    let pointer = core::ptr::with_exposed_provenance::<T>(pointer).wrapping_add(index);
    // SAFETY: whoever made the hypercall promised that its argument is valid for what the call does with it, which is to
    // read a `T` here; every bit pattern is one.
    Ok(unsafe { pointer.read_unaligned() })
}

/// Copies an answer out.
fn write<T: zerocopy::IntoBytes>(pointer: usize, value: T) -> Answer {
    write_at(pointer, 0, value)
}

/// Copies an element of a list out.
fn write_at<T: zerocopy::IntoBytes>(pointer: usize, index: usize, value: T) -> Answer {
    if pointer == 0 {
        return Err(Errno::EFAULT);
    }
    let pointer = core::ptr::with_exposed_provenance_mut::<T>(pointer).wrapping_add(index);
    // SAFETY: whoever made the hypercall promised that its argument is valid for what the call does with it, which is to
    // write a `T` here.
    unsafe { pointer.write_unaligned(value) };
    Ok(0)
}

/// A point in time as Xen takes it from a guest: with the 64th bit set it is negative, and has passed.
fn at(nanoseconds: u64) -> Duration {
    Duration::from_nanos(i64::try_from(nanoseconds).map_or(0, i64::unsigned_abs))
}

/// The domain that an operation is about: the caller's own, or any if the caller is the privileged domain.
fn target(caller: &MockDomain, id: u16) -> Result<MockDomain, Errno> {
    let id = DomId(id);
    if id == DomId::SELF || id == caller.id() {
        Ok(caller.clone())
    } else if !caller.xen().has_domain(id) {
        Err(Errno::ESRCH)
    } else if caller.id() == DomId(0) {
        Ok(caller.xen().domain(id))
    } else {
        Err(Errno::EPERM)
    }
}
