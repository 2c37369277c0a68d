//! Version 2 entries: sixteen bytes that the guest writes, and a status word apart that Xen writes.

use core::sync::atomic::{AtomicU16, AtomicU64, Ordering, fence};

use xen_hypercall::{DomId, PAGE_SIZE};

use super::revoke::{WordsV2, revoke_v2};
use super::{Grant, Ops};
use crate::abi::{GrantFlags, GrantRef};
use crate::frames::Directory;

/// A version 2 entry (`union grant_entry_v2`), all of its forms in one. Xen reads it at any time, so atomics only.
#[repr(C)]
#[derive(Debug)]
pub struct Entry {
    /// [`GrantFlags`] but Xen's bits, which are in the status word.
    pub flags: AtomicU16,
    /// Who may use the grant.
    pub domid: AtomicU16,
    /// A part's first byte (`sub_page.page_off`), or whose grant is passed on (`transitive.trans_domid`).
    pub offset_or_domain: AtomicU16,
    /// How many bytes a part has (`sub_page.length`).
    pub length: AtomicU16,
    /// The granted guest frame, or the reference that is passed on (`transitive.gref`, the low half).
    pub frame_or_gref: AtomicU64,
}

/// Entries in one frame of the table.
pub(crate) const PER_FRAME: usize = PAGE_SIZE / size_of::<Entry>();
/// Status words in a frame of those (`grant_status_t`).
pub(crate) const STATUS_PER_FRAME: usize = PAGE_SIZE / size_of::<u16>();

/// What [`GrantTable`](crate::GrantTable) calls by if the table has version 2.
pub(crate) static OPS: Ops = Ops { write, revoke, flags, peer };

fn write(directory: &Directory, gref: GrantRef, to: DomId, grant: &Grant) -> Option<()> {
    let (entry, _) = directory.entry_v2(gref)?;
    let (flags, first, length, last) = match *grant {
        Grant::Page { frame, access } => (access.flags(), 0, 0, frame.0),
        Grant::Part { frame, access, offset, length } => {
            (access.flags() | GrantFlags::SUB_PAGE, offset, length, frame.0)
        }
        Grant::Transitive { domain, gref, access } => {
            (access.flags() | GrantFlags::TRANSITIVE, domain.0, 0, gref.0.into())
        }
    };
    entry.domid.store(to.0, Ordering::Relaxed);
    entry.offset_or_domain.store(first, Ordering::Relaxed);
    entry.length.store(length, Ordering::Relaxed);
    entry.frame_or_gref.store(last, Ordering::Relaxed);
    // The flags make the entry valid, so Xen must not see them before the rest, nor before what is in the page.
    fence(Ordering::Release);
    entry.flags.store(flags.bits(), Ordering::Relaxed);
    Some(())
}

impl WordsV2 for (&Entry, &AtomicU16) {
    fn clear_flags(&self) {
        self.0.flags.store(0, Ordering::Relaxed);
    }

    fn fence(&self) {
        fence(Ordering::SeqCst);
    }

    fn status(&self) -> u16 {
        // Acquire: what the peer did to the page before it let go is seen by whoever has the page next.
        self.1.load(Ordering::Acquire)
    }
}

/// Makes an entry grant nothing more. False: the peer still uses what it got.
fn revoke(directory: &Directory, gref: GrantRef) -> bool {
    directory.entry_v2(gref).is_some_and(|words| revoke_v2(&words))
}

fn flags(directory: &Directory, gref: GrantRef) -> GrantFlags {
    directory.entry_v2(gref).map_or(GrantFlags::empty(), |(entry, status)| {
        let status = GrantFlags::from_bits_retain(status.load(Ordering::Relaxed)) & GrantFlags::IN_USE;
        GrantFlags::from_bits_retain(entry.flags.load(Ordering::Relaxed)) | status
    })
}

fn peer(directory: &Directory, gref: GrantRef) -> DomId {
    directory.entry_v2(gref).map_or(DomId::INVALID, |(entry, _)| DomId(entry.domid.load(Ordering::Relaxed)))
}
