//! Copying to and from granted pages without mapping them, as network backends do.
#![allow(unsafe_code)]

use xen_hypercall::abi::{GNTCOPY_DEST_GREF, GNTCOPY_SOURCE_GREF, GnttabCopy, GnttabCopyPtr};
use xen_hypercall::mock::MockDomain;
use xen_hypercall::{DomId, Gfn, PAGE_SIZE};
use xen_ring::SharedMem;

use super::active::{Granted, How};
use crate::{GrantRef, GrantStatus};

/// Copies from a page that `granter` granted to `backend`, as `GNTTABOP_copy` with a source reference.
///
/// # Errors
/// [`GrantStatus::BAD_COPY_ARG`] if the bytes cross the page's end, [`GrantStatus::GENERAL_ERROR`] if they are not all in the
/// part that was granted, otherwise as [`map`](super::map).
pub fn copy_from(
    backend: &MockDomain,
    granter: DomId,
    gref: GrantRef,
    offset: usize,
    out: &mut [u8],
) -> Result<(), GrantStatus> {
    let source = Side::grant(backend, granter, gref, false)?;
    source.check(offset, out.len())?;
    source.mem().read_bytes(offset, out).map_err(|_| GrantStatus::BAD_COPY_ARG)
}

/// Copies to a page that `granter` granted to `backend` for writing, as `GNTTABOP_copy` with a destination reference.
///
/// # Errors
/// As [`copy_from`].
pub fn copy_to(
    backend: &MockDomain,
    granter: DomId,
    gref: GrantRef,
    offset: usize,
    data: &[u8],
) -> Result<(), GrantStatus> {
    let dest = Side::grant(backend, granter, gref, true)?;
    dest.check(offset, data.len())?;
    dest.mem().write_bytes(offset, data).map_err(|_| GrantStatus::BAD_COPY_ARG)
}

/// One operation of `GNTTABOP_copy`: each side is a reference of another domain, or a frame of the caller's own.
pub(super) fn run(caller: &MockDomain, op: &GnttabCopy) -> Result<(), GrantStatus> {
    let len = usize::from(op.len);
    // Both domains first, then both references, then the bytes.
    for (side, by_reference) in
        [(&op.source, op.flags & GNTCOPY_SOURCE_GREF != 0), (&op.dest, op.flags & GNTCOPY_DEST_GREF != 0)]
    {
        if by_reference {
            super::granter(caller, DomId(side.domid))?;
        } else if DomId(side.domid) != DomId::SELF {
            return Err(GrantStatus::PERMISSION_DENIED);
        }
    }
    let source = Side::new(caller, &op.source, op.flags & GNTCOPY_SOURCE_GREF != 0, false)?;
    let dest = Side::new(caller, &op.dest, op.flags & GNTCOPY_DEST_GREF != 0, true)?;
    let (from, to) = (usize::from(op.source.offset), usize::from(op.dest.offset));
    if from + len > PAGE_SIZE || to + len > PAGE_SIZE {
        return Err(GrantStatus::BAD_COPY_ARG);
    }
    source.check(from, len)?;
    dest.check(to, len)?;
    let mut buffer = std::vec![0; len];
    source.mem().read_bytes(from, &mut buffer).map_err(|_| GrantStatus::BAD_COPY_ARG)?;
    dest.mem().write_bytes(to, &buffer).map_err(|_| GrantStatus::BAD_COPY_ARG)
}

/// One end of a copy, in use as long as it exists.
struct Side {
    granted: Granted,
    used: Option<(MockDomain, GrantRef, bool)>,
}

impl Side {
    fn new(
        caller: &MockDomain,
        side: &GnttabCopyPtr,
        by_reference: bool,
        write: bool,
    ) -> Result<Self, GrantStatus> {
        if by_reference {
            return Self::grant(caller, DomId(side.domid), GrantRef(side.reference_or_gmfn as u32), write);
        }
        let page = caller.page_at(Gfn(side.reference_or_gmfn)).ok_or(GrantStatus::BAD_PAGE)?;
        Ok(Self { granted: Granted { page, offset: 0, len: PAGE_SIZE }, used: None })
    }

    fn grant(caller: &MockDomain, granter: DomId, gref: GrantRef, write: bool) -> Result<Self, GrantStatus> {
        let granter = super::granter(caller, granter)?;
        let granted = super::with(caller.xen(), |machine| {
            machine.chance(|faults| faults.again, GrantStatus::EAGAIN)?;
            machine.chance(|faults| faults.copy, GrantStatus::GENERAL_ERROR)?;
            machine.begin(caller.id(), &granter, gref, write, How::Copy)
        })?;
        Ok(Self { granted, used: Some((granter, gref, write)) })
    }

    fn check(&self, offset: usize, len: usize) -> Result<(), GrantStatus> {
        if offset > PAGE_SIZE || len > PAGE_SIZE - offset {
            return Err(GrantStatus::BAD_COPY_ARG);
        }
        let end = self.granted.offset + self.granted.len;
        if offset < self.granted.offset || offset + len > end {
            return Err(GrantStatus::GENERAL_ERROR);
        }
        Ok(())
    }

    fn mem(&self) -> SharedMem<'_> {
        // SAFETY: a page of a domain, valid as long as the machine. One view at a time is made of it here; that the hypercall
        // may read and write a page of the caller's own is what the caller of the hypercall promised.
        unsafe { SharedMem::new(self.granted.page.cast(), PAGE_SIZE) }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        if let Some((granter, gref, write)) = self.used.take() {
            super::with(granter.xen(), |machine| machine.end(&granter, gref, write));
        }
    }
}
