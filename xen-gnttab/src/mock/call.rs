//! Unpacks the hypercall, as Xen copies arguments from and to the guest.
#![allow(unsafe_code)]

use xen_hypercall::abi::*;
use xen_hypercall::mock::MockDomain;
use xen_hypercall::{DomId, Errno};
use zerocopy::{FromBytes, IntoBytes};

use super::{copy, handles};
use crate::GrantStatus;

pub(super) fn grant_table_op(caller: &MockDomain, args: [usize; 5]) -> isize {
    match run(caller, args) {
        Ok(()) => 0,
        Err(errno) => errno.as_return(),
    }
}

fn run(caller: &MockDomain, [command, argument, count, ..]: [usize; 5]) -> Result<(), Errno> {
    match command {
        GNTTABOP_QUERY_SIZE => {
            if count != 1 {
                return Err(Errno::EINVAL);
            }
            update(argument, 0, |op: &mut GnttabQuerySize| {
                match target(caller, DomId(op.dom)) {
                    Ok(domain) => {
                        (op.nr_frames, op.max_nr_frames) =
                            super::with(caller.xen(), |machine| machine.size(domain));
                        op.status = GrantStatus::OKAY.0;
                    }
                    Err(status) => op.status = status.0,
                }
                Ok(())
            })
        }
        GNTTABOP_GET_VERSION => update(argument, 0, |op: &mut GnttabGetVersion| {
            match target(caller, DomId(op.dom)) {
                Ok(domain) => {
                    op.version = super::with(caller.xen(), |machine| machine.table(domain).version);
                }
                Err(GrantStatus::BAD_DOMAIN) => return Err(Errno::ESRCH),
                Err(_) => return Err(Errno::EPERM),
            }
            Ok(())
        }),
        GNTTABOP_SET_VERSION => update(argument, 0, |op: &mut GnttabSetVersion| {
            super::with(caller.xen(), |machine| machine.set_version(caller, op.version))
        }),
        GNTTABOP_COPY => each(argument, count, |op: &mut GnttabCopy| {
            op.status = copy::run(caller, op).err().unwrap_or(GrantStatus::OKAY).0;
        }),
        GNTTABOP_MAP_GRANT_REF => each(argument, count, |op| handles::map(caller, op)),
        GNTTABOP_UNMAP_GRANT_REF => each(argument, count, |op| handles::unmap(caller, op)),
        _ => Err(Errno::ENOSYS),
    }
}

/// Runs an operation on each structure of an array.
fn each<T: Copy + FromBytes + IntoBytes>(
    address: usize,
    count: usize,
    mut run: impl FnMut(&mut T),
) -> Result<(), Errno> {
    (0..count).try_for_each(|index| {
        update(address, index, |op| {
            run(op);
            Ok(())
        })
    })
}

/// Copies element `index` of an array of arguments in, runs the command, and copies it back if it succeeded.
fn update<T: Copy + FromBytes + IntoBytes>(
    address: usize,
    index: usize,
    run: impl FnOnce(&mut T) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let array = core::ptr::with_exposed_provenance_mut::<T>(address);
    if array.is_null() {
        return Err(Errno::EFAULT);
    }
    // SAFETY: whoever made the hypercall promised that its argument is an array of as many structures of this type as it
    // says, valid for reading and writing; every bit pattern is one.
    let element = unsafe { array.add(index) };
    // SAFETY: as above.
    let mut argument = unsafe { element.read_unaligned() };
    run(&mut argument)?;
    // SAFETY: as above.
    unsafe { element.write_unaligned(argument) };
    Ok(())
}

fn target(caller: &MockDomain, id: DomId) -> Result<DomId, GrantStatus> {
    if id == DomId::SELF || id == caller.id() {
        Ok(caller.id())
    } else if !caller.xen().has_domain(id) {
        Err(GrantStatus::BAD_DOMAIN)
    } else if caller.id() == DomId(0) {
        Ok(id)
    } else {
        Err(GrantStatus::PERMISSION_DENIED)
    }
}
