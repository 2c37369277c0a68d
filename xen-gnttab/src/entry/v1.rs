//! Version 1 entries: eight bytes, which the guest and Xen both write to.

use core::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};

use xen_hypercall::{DomId, PAGE_SIZE};

use super::Grant;
use super::revoke::{FlagsV1, revoke_v1};
use crate::abi::{GrantFlags, GrantRef};
use crate::frames::Directory;

/// A version 1 entry (`struct grant_entry_v1`). Shared with Xen, so atomics only.
#[repr(C)]
#[derive(Debug)]
pub struct Entry {
    /// [`GrantFlags`]: the guest sets type and permission, Xen sets and clears "reading" and "writing".
    pub flags: AtomicU16,
    /// Who may use the grant.
    pub domid: AtomicU16,
    /// The granted guest frame.
    pub frame: AtomicU32,
}

/// Entries in one frame of the table.
pub(crate) const PER_FRAME: usize = PAGE_SIZE / size_of::<Entry>();

/// Makes the entry grant this. `None`: there is no such entry, or none of this version can say it.
pub(crate) fn write(directory: &Directory, gref: GrantRef, to: DomId, grant: &Grant) -> Option<()> {
    let &Grant::Page { frame, access } = grant else { return None };
    let frame = u32::try_from(frame.0).ok()?;
    let entry = directory.entry_v1(gref)?;
    entry.domid.store(to.0, Ordering::Relaxed);
    entry.frame.store(frame, Ordering::Relaxed);
    // The flags make the entry valid, so Xen must not see them before the rest, nor before what is in the page.
    fence(Ordering::Release);
    entry.flags.store(access.flags().bits(), Ordering::Relaxed);
    Some(())
}

impl FlagsV1 for AtomicU16 {
    fn load(&self) -> u16 {
        AtomicU16::load(self, Ordering::Relaxed)
    }

    fn clear(&self, old: u16) -> Result<(), u16> {
        // Acquire: what the peer did to the page before it let go is seen by whoever has the page next.
        self.compare_exchange(old, 0, Ordering::AcqRel, Ordering::Acquire).map(drop)
    }
}

/// Makes an entry grant nothing, if the peer does not use it. False: it does, and the entry is as it was.
pub(crate) fn revoke(directory: &Directory, gref: GrantRef) -> bool {
    directory.entry_v1(gref).is_some_and(|entry| revoke_v1(&entry.flags))
}

pub(crate) fn flags(directory: &Directory, gref: GrantRef) -> GrantFlags {
    let bits = directory.entry_v1(gref).map_or(0, |entry| entry.flags.load(Ordering::Relaxed));
    GrantFlags::from_bits_retain(bits)
}

pub(crate) fn peer(directory: &Directory, gref: GrantRef) -> DomId {
    directory.entry_v1(gref).map_or(DomId::INVALID, |entry| DomId(entry.domid.load(Ordering::Relaxed)))
}
