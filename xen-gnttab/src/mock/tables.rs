//! Every domain's table: its frames in the domain's memory, its version and its limits.
#![allow(unsafe_code)]

use core::ptr::NonNull;
use core::sync::atomic::AtomicU16;
use std::collections::BTreeMap;
use std::vec::Vec;

use xen_hypercall::abi::XENMAPIDX_GRANT_TABLE_STATUS;
use xen_hypercall::mock::{Dice, MockDomain};
use xen_hypercall::{DomId, Errno, Gfn, PAGE_SIZE, Page};

use super::active::{Active, EntryRef};
use super::faults::Faults;
use super::handles::Handles;
use crate::entry::{v1, v2};
use crate::{GrantRef, GrantStatus};

/// Xen's default limit (`gnttab_max_frames`).
const DEFAULT_MAX_FRAMES: u32 = 64;

#[derive(Default)]
pub(super) struct Machine {
    tables: BTreeMap<DomId, Table>,
    pub(super) handles: Handles,
    pub(super) faults: Option<(Dice, Faults)>,
    /// Uses that a fault made outlast their end.
    pub(super) kept: Vec<(DomId, GrantRef, bool)>,
}

/// Where frames are that are not in the domain's memory.
const HIDDEN: u64 = 0xFF_0000_0000;

pub(super) struct Table {
    /// Where the domain has each frame of entries, and each of status words, in its memory.
    frames: Vec<Option<Gfn>>,
    status: Vec<Option<Gfn>>,
    max_frames: u32,
    /// How many frames were ever hidden.
    hidden: u64,
    pub(super) version: u32,
    pub(super) max_version: u32,
    /// What is in use, as Xen notes it privately: the entry in the domain's own memory is not asked again.
    pub(super) active: BTreeMap<GrantRef, Active>,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            frames: Vec::new(),
            status: Vec::new(),
            max_frames: DEFAULT_MAX_FRAMES,
            hidden: 0,
            version: 1,
            max_version: 2,
            active: BTreeMap::new(),
        }
    }
}

fn per_frame(version: u32) -> usize {
    if version == 2 { v2::PER_FRAME } else { v1::PER_FRAME }
}

impl Table {
    /// Every domain has a frame from the start.
    fn nr_frames(&self) -> usize {
        self.frames.len().max(1)
    }

    /// The entry of a reference. `Ok(None)`: Xen has it, but the domain never mapped its frame, so nothing is in it.
    pub(super) fn entry<'d>(
        &self,
        owner: &'d MockDomain,
        gref: GrantRef,
    ) -> Result<Option<EntryRef<'d>>, GrantStatus> {
        let (index, per_frame) = (gref.0 as usize, per_frame(self.version));
        if index >= self.nr_frames() * per_frame {
            return Err(GrantStatus::BAD_GNTREF);
        }
        let page = |frames: &[Option<Gfn>], index: usize| -> Option<NonNull<Page>> {
            owner.page_at(frames.get(index).copied().flatten()?)
        };
        let Some(entries) = page(&self.frames, index / per_frame) else { return Ok(None) };
        if self.version == 1 {
            // SAFETY: a frame of the grant table, valid as long as the machine, which the domain and its Xen access by
            // atomics only.
            let entries = unsafe { entries.cast::<[v1::Entry; v1::PER_FRAME]>().as_ref() };
            return Ok(entries.get(index % per_frame).map(EntryRef::V1));
        }
        // SAFETY: as above.
        let entries = unsafe { entries.cast::<[v2::Entry; v2::PER_FRAME]>().as_ref() };
        let Some(status) = page(&self.status, index / v2::STATUS_PER_FRAME) else { return Ok(None) };
        // SAFETY: as above.
        let status = unsafe { status.cast::<[AtomicU16; v2::STATUS_PER_FRAME]>().as_ref() };
        let entry = entries.get(index % per_frame).zip(status.get(index % v2::STATUS_PER_FRAME));
        Ok(entry.map(|(entry, status)| EntryRef::V2(entry, status)))
    }
}

impl Machine {
    pub(super) fn table(&mut self, domain: DomId) -> &mut Table {
        self.tables.entry(domain).or_default()
    }

    pub(super) fn set_max_frames(&mut self, domain: DomId, frames: u32) {
        self.table(domain).max_frames = frames;
    }

    /// Frames it has, and may have.
    pub(super) fn size(&mut self, domain: DomId) -> (u32, u32) {
        let table = self.table(domain);
        (table.nr_frames() as u32, table.max_frames)
    }

    /// The domain is gone, with its table and what it had mapped; another has its limits. What others have mapped of it they
    /// still have, by no grant.
    pub(super) fn migrated(&mut self, domain: &MockDomain, old: DomId) {
        self.kept.retain(|(granter, ..)| *granter != old);
        self.unmap_all(domain, old);
        let gone = self.tables.remove(&old).unwrap_or_default();
        for gfn in gone.frames.iter().chain(&gone.status).flatten() {
            // SAFETY: a frame of Xen's, which is not in the new domain's memory; its kernel knows that.
            unsafe { domain.remove_page(*gfn) };
        }
        let (max_frames, max_version) = (gone.max_frames, gone.max_version);
        self.tables.insert(domain.id(), Table { max_frames, max_version, ..Table::default() });
    }

    /// `GNTTABOP_set_version`: refused while grants that are not reserved are in use; what is in the entries is lost, but
    /// for the reserved ones.
    pub(super) fn set_version(&mut self, domain: &MockDomain, version: u32) -> Result<(), Errno> {
        let table = self.table(domain.id());
        match version {
            1 => {}
            2 if table.max_version < 2 => return Err(Errno::ENOSYS),
            2 => {}
            _ => return Err(Errno::EINVAL),
        }
        if table.version == version {
            return Ok(());
        }
        if table.active.keys().any(|gref| gref.0 >= GrantRef::RESERVED) {
            return Err(Errno::EBUSY);
        }
        let reserved: Vec<_> = (0..GrantRef::RESERVED)
            .map_while(|gref| Some(table.entry(domain, GrantRef(gref)).ok().flatten()?.whole_page()))
            .collect();
        for gfn in table.frames.iter().chain(&table.status).flatten() {
            if let Some(page) = domain.page_at(*gfn) {
                // SAFETY: a page that the domain gave up to be a frame of its table.
                unsafe { page.cast::<[u8; PAGE_SIZE]>().write([0; PAGE_SIZE]) };
            }
        }
        // Xen takes the status frames out of the domain's memory.
        table.status.clear();
        table.version = version;
        let first = table.frames.first().copied().flatten().and_then(|gfn| domain.page_at(gfn));
        if let Some(first) = first {
            for (index, entry) in reserved.into_iter().enumerate() {
                // SAFETY: a frame of the table, whose first entries are of this version now.
                unsafe { entry.write(first, index, version) };
            }
        }
        Ok(())
    }

    /// `XENMEM_remove_from_physmap`: a frame that goes out of the domain's memory stays with Xen, here at a frame that the
    /// domain does not know.
    pub(super) fn unmap_frame(&mut self, domain: &MockDomain, gfn: Gfn) {
        let table = self.table(domain.id());
        let Some(place) = table.frames.iter_mut().chain(&mut table.status).find(|place| **place == Some(gfn))
        else {
            return;
        };
        let Some(from) = domain.page_at(gfn) else { return };
        let hidden = Gfn(HIDDEN + table.hidden);
        table.hidden += 1;
        let to = domain.special_page(hidden);
        // SAFETY: two pages of the domain, of which the new one is nobody's; nobody writes entries while they move.
        unsafe { to.copy_from_nonoverlapping(from, 1) };
        *place = Some(hidden);
    }

    /// `XENMEM_add_to_physmap`: the page at `gfn` becomes the frame. A frame that is mapped elsewhere moves and leaves a hole,
    /// or, if the machine is as Arm's, is refused.
    pub(super) fn map_frame(&mut self, domain: &MockDomain, index: u64, gfn: Gfn) -> Result<(), Errno> {
        let table = self.table(domain.id());
        let max = table.max_frames as usize;
        let (frames, index, max) = if table.version == 2 && index & XENMAPIDX_GRANT_TABLE_STATUS != 0 {
            // As many as the frames of entries need, or may need.
            let max = (max * v2::PER_FRAME).div_ceil(v2::STATUS_PER_FRAME);
            (&mut table.status, index & !XENMAPIDX_GRANT_TABLE_STATUS, max)
        } else {
            (&mut table.frames, index, max)
        };
        let index = usize::try_from(index).ok().filter(|index| *index < max).ok_or(Errno::EINVAL)?;
        let page = domain.page_at(gfn).ok_or(Errno::EINVAL)?;
        if frames.len() <= index {
            frames.resize(index + 1, None);
        }
        let place = frames.get_mut(index).ok_or(Errno::EINVAL)?;
        let hidden = |gfn: &Gfn| gfn.0 >= HIDDEN;
        if place.is_some_and(|old| !hidden(&old)) && domain.xen().refuses_second_mappings() {
            return Err(Errno::EBUSY);
        }
        let old = place.replace(gfn);
        let content = match old.filter(|old| *old != gfn).and_then(|old| domain.page_at(old)) {
            Some(page) => {
                // SAFETY: a page of the domain, valid as long as the machine; nobody writes entries while they move.
                let content = unsafe { page.cast::<[u8; PAGE_SIZE]>().read() };
                if let Some(old) = old.filter(|old| !hidden(old)) {
                    // SAFETY: whoever had Xen move the frame uses it where it is now.
                    unsafe { domain.remove_page(old) };
                }
                content
            }
            None if old == Some(gfn) => return Ok(()),
            None => [0; PAGE_SIZE],
        };
        // SAFETY: the domain gave this page up to be a frame of its table.
        unsafe { page.cast::<[u8; PAGE_SIZE]>().write(content) };
        Ok(())
    }
}
