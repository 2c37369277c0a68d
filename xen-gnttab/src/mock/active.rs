//! What Xen checks and notes when a grant is used.
#![allow(unsafe_code)]

use core::ptr::NonNull;
use core::sync::atomic::AtomicU16;
use core::sync::atomic::Ordering::SeqCst;

use xen_hypercall::mock::{MockDomain, MockXen};
use xen_hypercall::{DomId, Gfn, PAGE_SIZE, Page};

use super::tables::Machine;
use crate::entry::{v1, v2};
use crate::{GrantFlags, GrantRef, GrantStatus};

/// An entry in use.
#[derive(Clone, Copy)]
pub(super) struct Active {
    peer: DomId,
    /// Where it led when its use began.
    target: Target,
    readers: u32,
    writers: u32,
}

#[derive(Clone, Copy)]
enum Target {
    Frame {
        frame: Gfn,
        offset: usize,
        len: usize,
    },
    /// Another domain's grant, which is in use, too.
    Passed {
        domain: DomId,
        gref: GrantRef,
    },
}

impl Target {
    fn is_page(&self) -> bool {
        matches!(self, Self::Frame { offset: 0, len: PAGE_SIZE, .. })
    }
}

/// What somebody has got by a grant.
#[derive(Clone, Copy, Debug)]
pub(super) struct Granted {
    pub(super) page: NonNull<Page>,
    /// The bytes of it that were granted.
    pub(super) offset: usize,
    pub(super) len: usize,
}

/// How a grant is to be used.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum How {
    Map,
    Copy,
}

/// An entry in a domain's memory.
pub(super) enum EntryRef<'d> {
    V1(&'d v1::Entry),
    V2(&'d v2::Entry, &'d AtomicU16),
}

/// A reserved entry, to be kept when the version changes.
pub(super) struct WholePage {
    flags: u16,
    domid: u16,
    frame: u64,
}

impl WholePage {
    /// # Safety
    /// `frame` is a frame of entries of this version, and `index` one of them.
    pub(super) unsafe fn write(&self, frame: NonNull<Page>, index: usize, version: u32) {
        let header = if version == 1 {
            // SAFETY: the caller's promise; entries are atomics.
            let entry = unsafe { frame.cast::<v1::Entry>().add(index).as_ref() };
            entry.frame.store(self.frame as u32, SeqCst);
            (&entry.domid, &entry.flags)
        } else {
            // SAFETY: as above.
            let entry = unsafe { frame.cast::<v2::Entry>().add(index).as_ref() };
            entry.frame_or_gref.store(self.frame, SeqCst);
            (&entry.domid, &entry.flags)
        };
        header.0.store(self.domid, SeqCst);
        header.1.store(self.flags, SeqCst);
    }
}

impl EntryRef<'_> {
    fn domid(&self) -> DomId {
        match self {
            Self::V1(entry) => DomId(entry.domid.load(SeqCst)),
            Self::V2(entry, _) => DomId(entry.domid.load(SeqCst)),
        }
    }

    fn header(&self) -> &AtomicU16 {
        match self {
            Self::V1(entry) => &entry.flags,
            Self::V2(entry, _) => &entry.flags,
        }
    }

    /// Where Xen notes that the grant is in use.
    fn used(&self) -> &AtomicU16 {
        match self {
            Self::V1(entry) => &entry.flags,
            Self::V2(_, status) => status,
        }
    }

    pub(super) fn whole_page(&self) -> WholePage {
        let frame = match self {
            Self::V1(entry) => entry.frame.load(SeqCst).into(),
            Self::V2(entry, _) => entry.frame_or_gref.load(SeqCst),
        };
        WholePage { flags: self.header().load(SeqCst), domid: self.domid().0, frame }
    }

    fn target(&self, flags: GrantFlags) -> Target {
        match self {
            Self::V1(entry) => {
                Target::Frame { frame: Gfn(entry.frame.load(SeqCst).into()), offset: 0, len: PAGE_SIZE }
            }
            Self::V2(entry, _) if flags.contains(GrantFlags::TRANSITIVE) => Target::Passed {
                domain: DomId(entry.offset_or_domain.load(SeqCst)),
                gref: GrantRef(entry.frame_or_gref.load(SeqCst) as u32),
            },
            Self::V2(entry, _) => {
                let (offset, len) = if flags.contains(GrantFlags::SUB_PAGE) {
                    (entry.offset_or_domain.load(SeqCst).into(), entry.length.load(SeqCst).into())
                } else {
                    (0, PAGE_SIZE)
                };
                Target::Frame { frame: Gfn(entry.frame_or_gref.load(SeqCst)), offset, len }
            }
        }
    }

    /// Whether these flags, read from the entry, grant that.
    fn grants(&self, flags: GrantFlags, peer: DomId, write: bool, how: How) -> bool {
        let kind = flags.intersection(GrantFlags::TYPE);
        let fits = match self {
            Self::V1(_) => kind == GrantFlags::PERMIT_ACCESS,
            Self::V2(..) if how == How::Map => {
                kind == GrantFlags::PERMIT_ACCESS && !flags.contains(GrantFlags::SUB_PAGE)
            }
            Self::V2(..) => kind == GrantFlags::PERMIT_ACCESS || kind == GrantFlags::TRANSITIVE,
        };
        fits && self.domid() == peer && !(write && flags.contains(GrantFlags::READONLY))
    }

    /// Sets "reading", and "writing" if asked for, in an entry that grants that. Returns its flags.
    ///
    /// In version 1 in one exchange; in version 2 first the status word, then the entry is looked at once more.
    fn mark(&self, peer: DomId, write: bool, how: How) -> Result<GrantFlags, GrantStatus> {
        let used = if write { GrantFlags::IN_USE } else { GrantFlags::READING };
        let mut now = self.header().load(SeqCst);
        loop {
            let flags = GrantFlags::from_bits_retain(now);
            if !self.grants(flags, peer, write, how) {
                return Err(GrantStatus::GENERAL_ERROR);
            }
            if let Self::V2(entry, status) = self {
                let before = status.fetch_or(used.bits(), SeqCst);
                if entry.flags.load(SeqCst) == now {
                    return Ok(flags);
                }
                status.store(before, SeqCst);
                return Err(GrantStatus::GENERAL_ERROR);
            }
            match self.header().compare_exchange(now, (flags | used).bits(), SeqCst, SeqCst) {
                Ok(_) => return Ok(flags),
                Err(other) => now = other,
            }
        }
    }
}

impl Machine {
    pub(super) fn mappings_of(&mut self, granter: DomId) -> usize {
        self.table(granter).active.values().map(|active| (active.readers + active.writers) as usize).sum()
    }

    pub(super) fn uses_of(&mut self, granter: DomId, gref: GrantRef) -> usize {
        let active = self.table(granter).active.get(&gref);
        active.map_or(0, |active| (active.readers + active.writers) as usize)
    }

    /// `peer` starts to use what `granter` granted; the answer is the page. Checks, in Xen's order: the granter, the
    /// reference, then type, grantee and permission, then the frame.
    pub(super) fn begin(
        &mut self,
        peer: DomId,
        granter: &MockDomain,
        gref: GrantRef,
        write: bool,
        how: How,
    ) -> Result<Granted, GrantStatus> {
        self.begin_at(peer, granter, gref, write, how, true)
    }

    fn begin_at(
        &mut self,
        peer: DomId,
        granter: &MockDomain,
        gref: GrantRef,
        write: bool,
        how: How,
        may_pass: bool,
    ) -> Result<Granted, GrantStatus> {
        let table = self.table(granter.id());
        let entry = table.entry(granter, gref)?.ok_or(GrantStatus::GENERAL_ERROR)?;
        let used = table.active.get(&gref).copied();
        let active = match used {
            // Another domain than the one that has it in use.
            Some(active) if active.peer != peer => return Err(GrantStatus::GENERAL_ERROR),
            // A part that is being copied.
            Some(active) if how == How::Map && !active.target.is_page() => {
                return Err(GrantStatus::GENERAL_ERROR);
            }
            // The entry is not looked at again, even if it grants nothing more, unless more is asked for than is in use.
            Some(active) if !write || active.writers > 0 => active,
            used => {
                let flags = entry.mark(peer, write, how)?;
                used.unwrap_or_else(|| Active { peer, target: entry.target(flags), readers: 0, writers: 0 })
            }
        };
        let found = match active.target {
            Target::Frame { frame, offset, len } => match granter.page_at(frame) {
                Some(page) => Ok(Granted { page, offset, len }),
                None => Err(GrantStatus::BAD_PAGE),
            },
            // Not to be mapped, not to itself, and not a second time.
            Target::Passed { domain, .. } if !may_pass || how == How::Map || domain == granter.id() => {
                Err(GrantStatus::GENERAL_ERROR)
            }
            Target::Passed { domain, gref } => {
                if granter.xen().has_domain(domain) {
                    let owner = granter.xen().domain(domain);
                    self.begin_at(granter.id(), &owner, gref, write, how, false)
                } else {
                    Err(GrantStatus::BAD_DOMAIN)
                }
            }
        };
        let mut active = active;
        if found.is_ok() {
            *(if write { &mut active.writers } else { &mut active.readers }) += 1;
            self.table(granter.id()).active.insert(gref, active);
        } else if used.is_none() {
            entry.used().fetch_and(!GrantFlags::IN_USE.bits(), SeqCst);
        }
        found
    }

    /// Ends one use that `begin` started, unless a fault keeps it.
    pub(super) fn end(&mut self, granter: &MockDomain, gref: GrantRef, write: bool) {
        let keep = self.faults.as_ref().is_some_and(|(dice, faults)| dice.hit(faults.keep));
        if keep {
            self.kept.push((granter.id(), gref, write));
        } else {
            self.release(granter, gref, write);
        }
    }

    /// Lets go of what faults have kept.
    pub(super) fn release_kept(&mut self, xen: &MockXen) -> usize {
        let kept = core::mem::take(&mut self.kept);
        kept.iter().for_each(|(granter, gref, write)| self.release(&xen.domain(*granter), *gref, *write));
        kept.len()
    }

    fn release(&mut self, granter: &MockDomain, gref: GrantRef, write: bool) {
        let table = self.table(granter.id());
        let Some(active) = table.active.get_mut(&gref) else { return };
        let count = if write { &mut active.writers } else { &mut active.readers };
        *count = count.saturating_sub(1);
        let Active { readers, writers, target, .. } = *active;
        let mut done = GrantFlags::empty();
        if writers == 0 {
            done |= GrantFlags::WRITING;
        }
        if readers + writers == 0 {
            done |= GrantFlags::READING;
            table.active.remove(&gref);
        }
        if let Ok(Some(entry)) = table.entry(granter, gref) {
            entry.used().fetch_and(!done.bits(), SeqCst);
        }
        if let Target::Passed { domain, gref } = target {
            let owner = granter.xen().domain(domain);
            self.release(&owner, gref, write);
        }
    }
}
