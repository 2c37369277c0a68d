//! Copying to and from granted pages without mapping them, as network backends do.

use xen_hypercall::mock::MockDomain;
use xen_hypercall::{DomId, PAGE_SIZE};

use crate::{GrantRef, GrantStatus};

/// Copies from a page that `granter` granted to `backend`, as `GNTTABOP_copy` with a source reference.
///
/// # Errors
/// [`GrantStatus::BAD_COPY_ARG`] if the bytes cross the page's end, otherwise as [`map`](super::map).
pub fn copy_from(
    backend: &MockDomain,
    granter: DomId,
    gref: GrantRef,
    offset: usize,
    out: &mut [u8],
) -> Result<(), GrantStatus> {
    check(offset, out.len())?;
    let mut page = super::map(backend, granter, gref, false)?;
    page.mem().read_bytes(offset, out).map_err(|_| GrantStatus::BAD_COPY_ARG)
}

/// Copies to a page that `granter` granted to `backend` for writing, as `GNTTABOP_copy` with a destination reference.
///
/// # Errors
/// [`GrantStatus::BAD_COPY_ARG`] if the bytes cross the page's end, otherwise as [`map`](super::map).
pub fn copy_to(
    backend: &MockDomain,
    granter: DomId,
    gref: GrantRef,
    offset: usize,
    data: &[u8],
) -> Result<(), GrantStatus> {
    check(offset, data.len())?;
    let mut page = super::map(backend, granter, gref, true)?;
    page.mem().write_bytes(offset, data).map_err(|_| GrantStatus::BAD_COPY_ARG)
}

fn check(offset: usize, len: usize) -> Result<(), GrantStatus> {
    if offset <= PAGE_SIZE && len <= PAGE_SIZE - offset { Ok(()) } else { Err(GrantStatus::BAD_COPY_ARG) }
}
