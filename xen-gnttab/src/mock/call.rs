//! Unpacks the hypercall, as Xen copies arguments from and to the guest.
#![allow(unsafe_code)]

use std::vec;

use xen_hypercall::abi::*;
use xen_hypercall::mock::MockDomain;
use xen_hypercall::{DomId, Errno, Gfn, PAGE_SIZE};
use xen_ring::SharedMem;
use zerocopy::{FromBytes, IntoBytes};

use super::{copy_from, copy_to};
use crate::{GrantRef, GrantStatus};

/// `GNTCOPY_source_gref`: the source is a reference and not a frame of the caller's.
const SOURCE_GREF: u16 = 1;
/// `GNTCOPY_dest_gref`
const DEST_GREF: u16 = 2;

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
                Ok(_) => op.version = 1,
                Err(GrantStatus::BAD_DOMAIN) => return Err(Errno::ESRCH),
                Err(_) => return Err(Errno::EPERM),
            }
            Ok(())
        }),
        GNTTABOP_SET_VERSION => update(argument, 0, |op: &mut GnttabSetVersion| match op.version {
            1 => Ok(()),
            2 if super::with(caller.xen(), |machine| machine.any_active(caller.id())) => Err(Errno::EBUSY),
            2 => Err(Errno::ENOSYS),
            _ => Err(Errno::EINVAL),
        }),
        GNTTABOP_COPY => (0..count).try_for_each(|index| {
            update(argument, index, |op: &mut GnttabCopy| {
                op.status = match copy(caller, op) {
                    Ok(()) => GrantStatus::OKAY.0,
                    Err(status) => status.0,
                };
                Ok(())
            })
        }),
        _ => Err(Errno::ENOSYS),
    }
}

/// One operation of `GNTTABOP_copy`: each side is a reference of another domain, or a frame of the caller's own.
fn copy(caller: &MockDomain, op: &GnttabCopy) -> Result<(), GrantStatus> {
    let (source, dest) = (&op.source, &op.dest);
    let len = usize::from(op.len);
    let ours =
        |domid: u16| if DomId(domid) == DomId::SELF { Ok(()) } else { Err(GrantStatus::PERMISSION_DENIED) };
    if op.flags & SOURCE_GREF == 0 {
        ours(source.domid)?;
    }
    if op.flags & DEST_GREF == 0 {
        ours(dest.domid)?;
    }
    if [source, dest].iter().any(|side| usize::from(side.offset) + len > PAGE_SIZE) {
        return Err(GrantStatus::BAD_COPY_ARG);
    }
    let mut buffer = vec![0; len];
    if op.flags & SOURCE_GREF != 0 {
        let gref = GrantRef(source.reference_or_gmfn as u32);
        copy_from(caller, DomId(source.domid), gref, source.offset.into(), &mut buffer)?;
    } else {
        let own = own_page(caller, source)?;
        own.read_bytes(source.offset.into(), &mut buffer).map_err(|_| GrantStatus::BAD_COPY_ARG)?;
    }
    if op.flags & DEST_GREF != 0 {
        let gref = GrantRef(dest.reference_or_gmfn as u32);
        copy_to(caller, DomId(dest.domid), gref, dest.offset.into(), &buffer)
    } else {
        let own = own_page(caller, dest)?;
        own.write_bytes(dest.offset.into(), &buffer).map_err(|_| GrantStatus::BAD_COPY_ARG)
    }
}

fn own_page<'a>(caller: &'a MockDomain, side: &GnttabCopyPtr) -> Result<SharedMem<'a>, GrantStatus> {
    let page = caller.page_at(Gfn(side.reference_or_gmfn)).ok_or(GrantStatus::BAD_PAGE)?;
    // SAFETY: a page of the caller, valid as long as the machine. That the hypercall may read and write it is what the caller
    // of the hypercall promised.
    Ok(unsafe { SharedMem::new(page.cast(), PAGE_SIZE) })
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
