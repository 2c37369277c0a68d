//! Every domain's table, and what Xen checks and notes when a page is used by a grant.
#![allow(unsafe_code)]

use core::ptr::NonNull;
use core::sync::atomic::Ordering::SeqCst;
use std::collections::BTreeMap;
use std::vec::Vec;

use xen_hypercall::mock::MockDomain;
use xen_hypercall::{DomId, Errno, Gfn, PAGE_SIZE, Page};

use crate::entry::v1::{Entry, PER_FRAME as ENTRIES};
use crate::{GrantFlags, GrantRef, GrantStatus};

/// Xen's default limit (`gnttab_max_frames`).
const DEFAULT_MAX_FRAMES: u32 = 64;

#[derive(Default)]
pub(super) struct Machine {
    tables: BTreeMap<DomId, Table>,
}

#[derive(Default)]
struct Table {
    /// Where the domain has each frame in its memory.
    frames: Vec<Option<Gfn>>,
    max_frames: Option<u32>,
    /// What is in use, as Xen notes it privately: the entry in the domain's own memory is not asked again.
    active: BTreeMap<GrantRef, Active>,
}

#[derive(Clone, Copy)]
struct Active {
    peer: DomId,
    frame: Gfn,
    readers: u32,
    writers: u32,
}

impl Table {
    fn max_frames(&self) -> u32 {
        self.max_frames.unwrap_or(DEFAULT_MAX_FRAMES)
    }

    /// Every domain has a frame from the start.
    fn nr_frames(&self) -> u32 {
        (self.frames.len() as u32).max(1)
    }
}

impl Machine {
    fn table(&mut self, domain: DomId) -> &mut Table {
        self.tables.entry(domain).or_default()
    }

    pub(super) fn set_max_frames(&mut self, domain: DomId, frames: u32) {
        self.table(domain).max_frames = Some(frames);
    }

    pub(super) fn mappings_of(&mut self, granter: DomId) -> usize {
        self.table(granter).active.values().map(|active| (active.readers + active.writers) as usize).sum()
    }

    /// Frames it has, and may have.
    pub(super) fn size(&mut self, domain: DomId) -> (u32, u32) {
        let table = self.table(domain);
        (table.nr_frames(), table.max_frames())
    }

    pub(super) fn any_active(&mut self, domain: DomId) -> bool {
        !self.table(domain).active.is_empty()
    }

    /// `XENMEM_add_to_physmap`: the page at `gfn` becomes the frame. A frame that is mapped elsewhere moves.
    pub(super) fn map_frame(&mut self, domain: &MockDomain, index: u64, gfn: Gfn) -> Result<(), Errno> {
        let table = self.table(domain.id());
        let index = usize::try_from(index).ok().filter(|index| *index < table.max_frames() as usize);
        let index = index.ok_or(Errno::EINVAL)?;
        let page = domain.page_at(gfn).ok_or(Errno::EINVAL)?;
        if table.frames.len() <= index {
            table.frames.resize(index + 1, None);
        }
        let old = table.frames.get_mut(index).and_then(|place| place.replace(gfn));
        let content = match old.filter(|old| *old != gfn).and_then(|old| domain.page_at(old)) {
            // SAFETY: a page of the domain, valid as long as the machine; nobody writes entries while they move.
            Some(old) => unsafe { old.cast::<[u8; PAGE_SIZE]>().read() },
            None if old == Some(gfn) => return Ok(()),
            None => [0; PAGE_SIZE],
        };
        // SAFETY: the domain gave this page up to be a frame of its table.
        unsafe { page.cast::<[u8; PAGE_SIZE]>().write(content) };
        Ok(())
    }

    /// `peer` starts to use `granter`'s page; the answer is the page. Checks, in Xen's order: the granter, the reference,
    /// then type, grantee and permission, then the frame.
    pub(super) fn begin(
        &mut self,
        peer: DomId,
        granter: &MockDomain,
        gref: GrantRef,
        write: bool,
    ) -> Result<NonNull<Page>, GrantStatus> {
        let table = self.table(granter.id());
        let page = entry_page(table, granter, gref)?;
        // SAFETY: a frame of the grant table, which the domain and its Xen access by atomics only.
        let entries = unsafe { page.cast::<[Entry; ENTRIES]>().as_ref() };
        let entry = entries.get(gref.0 as usize % ENTRIES).ok_or(GrantStatus::BAD_GNTREF)?;
        let mut active = match table.active.get(&gref) {
            Some(active) if active.peer == peer => *active,
            // Another domain than the one that has it mapped.
            Some(_) => return Err(GrantStatus::GENERAL_ERROR),
            None => Active { peer, frame: Gfn(0), readers: 0, writers: 0 },
        };
        let first = active.readers + active.writers == 0;
        if first || (write && active.writers == 0) {
            mark(entry, peer, write)?;
        }
        if first {
            active.frame = Gfn(entry.frame.load(SeqCst).into());
        }
        let Some(page) = granter.page_at(active.frame) else {
            if first {
                entry.flags.fetch_and(!GrantFlags::IN_USE.bits(), SeqCst);
            }
            return Err(GrantStatus::BAD_PAGE);
        };
        if write {
            active.writers += 1;
        } else {
            active.readers += 1;
        }
        table.active.insert(gref, active);
        Ok(page)
    }

    /// Ends one use that `begin` started.
    pub(super) fn end(&mut self, granter: &MockDomain, gref: GrantRef, write: bool) {
        let table = self.table(granter.id());
        let Some(active) = table.active.get_mut(&gref) else { return };
        if write {
            active.writers -= 1;
        } else {
            active.readers -= 1;
        }
        let Active { readers, writers, .. } = *active;
        let mut done = GrantFlags::empty();
        if writers == 0 {
            done |= GrantFlags::WRITING;
        }
        if readers + writers == 0 {
            done |= GrantFlags::READING;
            table.active.remove(&gref);
        }
        if let Ok(page) = entry_page(table, granter, gref) {
            // SAFETY: as in `begin`.
            let entries = unsafe { page.cast::<[Entry; ENTRIES]>().as_ref() };
            if let Some(entry) = entries.get(gref.0 as usize % ENTRIES) {
                entry.flags.fetch_and(!done.bits(), SeqCst);
            }
        }
    }
}

/// The page of the granter's memory in which the entry is.
fn entry_page(table: &Table, granter: &MockDomain, gref: GrantRef) -> Result<NonNull<Page>, GrantStatus> {
    if gref.0 as usize >= table.nr_frames() as usize * ENTRIES {
        return Err(GrantStatus::BAD_GNTREF);
    }
    match table.frames.get(gref.0 as usize / ENTRIES).copied().flatten() {
        Some(gfn) => granter.page_at(gfn).ok_or(GrantStatus::GENERAL_ERROR),
        // Xen has the frame, though nobody ever wrote to it: an entry that grants nothing.
        None => Err(GrantStatus::GENERAL_ERROR),
    }
}

/// Sets "reading", and "writing" if asked for, in an entry that grants that, in one exchange.
fn mark(entry: &Entry, peer: DomId, write: bool) -> Result<(), GrantStatus> {
    let mut now = entry.flags.load(SeqCst);
    loop {
        let flags = GrantFlags::from_bits_retain(now);
        let granted = flags.intersection(GrantFlags::TYPE) == GrantFlags::PERMIT_ACCESS
            && DomId(entry.domid.load(SeqCst)) == peer
            && !(write && flags.contains(GrantFlags::READONLY));
        if !granted {
            return Err(GrantStatus::GENERAL_ERROR);
        }
        let marked = flags | if write { GrantFlags::IN_USE } else { GrantFlags::READING };
        match entry.flags.compare_exchange(now, marked.bits(), SeqCst, SeqCst) {
            Ok(_) => return Ok(()),
            Err(other) => now = other,
        }
    }
}
