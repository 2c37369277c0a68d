//! `memory_op`

use std::boxed::Box;
use std::collections::BTreeMap;
use std::sync::PoisonError;

use super::{Answer, read, read_at, target, write, write_at};
use crate::abi::*;
use crate::mock::{MockDomain, MockXen};
use crate::{Errno, Gfn};

/// One past the last page of the machine, a terabyte.
const MAX_PAGE: usize = 1 << 28;
/// The largest extents that Xen takes of a guest.
const MAX_ORDER: u32 = 9;

/// Told of a frame that a domain is about to remove, to keep what is Xen's there.
type RemovalHook = Box<dyn FnMut(&MockDomain, Gfn) + Send>;

/// Handles spaces other than `shared_info`, set by the mock of whoever owns them.
type SpaceHook = Box<dyn FnMut(&MockDomain, u64, Gfn) -> Result<(), Errno> + Send>;

#[derive(Default)]
struct Spaces {
    hooks: BTreeMap<u32, SpaceHook>,
    removal: Option<RemovalHook>,
}

/// Whether a frame of Xen's that is in a domain's memory is refused at a second place.
#[derive(Default)]
struct OnePlace(bool);

impl MockXen {
    /// Refuses a second mapping of `shared_info` or of a frame of the grant table with `EBUSY`, until the first is removed: what
    /// Xen does on Arm. Otherwise, as on x86, the frame moves, and where it was is a hole.
    pub fn refuse_second_mappings(&self, on: bool) {
        self.extension::<OnePlace>().lock().unwrap_or_else(PoisonError::into_inner).0 = on;
    }

    /// Whether a second mapping is refused; see [`refuse_second_mappings`](Self::refuse_second_mappings).
    pub fn refuses_second_mappings(&self) -> bool {
        self.extension::<OnePlace>().lock().unwrap_or_else(PoisonError::into_inner).0
    }

    /// Answers `XENMEM_add_to_physmap` of a space (`XENMAPSPACE_*`): the hook gets the caller, the index and the
    /// frame, and makes the memory there what the space says.
    pub fn register_physmap_space(
        &self,
        space: u32,
        hook: impl FnMut(&MockDomain, u64, Gfn) -> Result<(), Errno> + Send + 'static,
    ) {
        let spaces = self.extension::<Spaces>();
        let mut spaces = spaces.lock().unwrap_or_else(PoisonError::into_inner);
        spaces.hooks.insert(space, Box::new(hook));
    }

    /// Calls `hook` before the page at a frame is removed from a domain (`XENMEM_remove_from_physmap`): what Xen keeps in a
    /// page of its own there stays with Xen.
    pub fn set_removal_hook(&self, hook: impl FnMut(&MockDomain, Gfn) + Send + 'static) {
        let spaces = self.extension::<Spaces>();
        spaces.lock().unwrap_or_else(PoisonError::into_inner).removal = Some(Box::new(hook));
    }
}

pub(super) fn memory_op(domain: &MockDomain, [command, pointer, ..]: [usize; 5]) -> Answer {
    match command {
        XENMEM_ADD_TO_PHYSMAP => {
            let XenAddToPhysmap { domid, space, idx, gpfn, .. } = read(pointer)?;
            if space == XENMAPSPACE_GMFN_FOREIGN {
                return Err(Errno::ENOSYS);
            }
            add_to_physmap(&target(domain, domid)?, space, idx, Gfn(gpfn)).map(|()| 0)
        }
        XENMEM_ADD_TO_PHYSMAP_BATCH => {
            let op: XenAddToPhysmapBatch = read(pointer)?;
            if u32::from(op.space) == XENMAPSPACE_GMFN_RANGE {
                return Err(Errno::EOPNOTSUPP);
            }
            let target = target(domain, op.domid)?;
            for index in 0..op.size.into() {
                let (idx, gfn) = (read_at(op.idxs as usize, index)?, read_at(op.gpfns as usize, index)?);
                let result = match add_to_physmap(&target, op.space.into(), idx, Gfn(gfn)) {
                    Ok(()) => 0,
                    Err(error) => -error.0,
                };
                write_at(op.errs as usize, index, result)?;
            }
            Ok(0)
        }
        XENMEM_REMOVE_FROM_PHYSMAP => {
            let op: XenRemoveFromPhysmap = read(pointer)?;
            let (target, gfn) = (target(domain, op.domid)?, Gfn(op.gpfn));
            let spaces = domain.xen().extension::<Spaces>();
            if let Some(hook) = &mut spaces.lock().unwrap_or_else(PoisonError::into_inner).removal {
                hook(&target, gfn);
            }
            if target.take_page(gfn) { Ok(0) } else { Err(Errno::ENOENT) }
        }
        XENMEM_POPULATE_PHYSMAP => Ok(extents(domain, pointer, MockDomain::give_page)),
        XENMEM_DECREASE_RESERVATION => Ok(extents(domain, pointer, MockDomain::take_page)),
        XENMEM_CURRENT_RESERVATION => Ok(target(domain, read::<XenMemoryDomain>(pointer)?.domid)?.pages()),
        XENMEM_MAXIMUM_RESERVATION => {
            Ok(target(domain, read::<XenMemoryDomain>(pointer)?.domid)?.max_pages())
        }
        XENMEM_MAXIMUM_GPFN => Ok(target(domain, read::<XenMemoryDomain>(pointer)?.domid)?.highest_gfn()),
        XENMEM_MAXIMUM_RAM_PAGE => Ok(MAX_PAGE),
        XENMEM_MEMORY_MAP => {
            let mut op: XenMemoryMap = read(pointer)?;
            let map = domain.memory_map().ok_or(Errno::ENOSYS)?;
            op.nr_entries = op.nr_entries.min(map.len() as u32);
            for (index, range) in map.iter().enumerate().take(op.nr_entries as usize) {
                write_at(op.buffer as usize, index, *range)?;
            }
            write(pointer, op)
        }
        _ => Err(Errno::ENOSYS),
    }
}

fn add_to_physmap(domain: &MockDomain, space: u32, idx: u64, gfn: Gfn) -> Result<(), Errno> {
    match (space, idx) {
        (XENMAPSPACE_SHARED_INFO, 0) => {
            if domain.page_at(gfn).is_none() && !domain.give_page(gfn) {
                return Err(Errno::ENOMEM);
            }
            if domain.has_shared_info() && domain.xen().refuses_second_mappings() {
                return Err(Errno::EBUSY);
            }
            let first = !domain.has_shared_info();
            domain.move_shared_info(gfn);
            if first {
                domain.tell_time();
            }
            Ok(())
        }
        (XENMAPSPACE_SHARED_INFO, _) => Err(Errno::EINVAL),
        _ => {
            if domain.page_at(gfn).is_none() && !domain.give_page(gfn) {
                return Err(Errno::ENOMEM);
            }
            let spaces = domain.xen().extension::<Spaces>();
            let mut spaces = spaces.lock().unwrap_or_else(PoisonError::into_inner);
            let hook = spaces.hooks.get_mut(&space).ok_or(Errno::EINVAL)?;
            hook(domain, idx, gfn)
        }
    }
}

/// Does something to each page of a list's extents; returns how many extents were done whole. Xen never answers an
/// error here.
fn extents(caller: &MockDomain, pointer: usize, each: fn(&MockDomain, Gfn) -> bool) -> usize {
    let Ok(op) = read::<XenMemoryReservation>(pointer) else { return 0 };
    let Ok(domain) = target(caller, op.domid) else { return 0 };
    if op.extent_order > MAX_ORDER {
        return 0;
    }
    let pages = 1u64 << op.extent_order;
    let whole = |index: &usize| {
        let Ok(first) = read_at::<u64>(op.extent_start as usize, *index) else { return false };
        (0..pages).all(|page| first.checked_add(page).is_some_and(|gfn| each(&domain, Gfn(gfn))))
    };
    (0..op.nr_extents as usize).take_while(whole).count()
}
