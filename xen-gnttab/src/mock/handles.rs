//! Mappings that domains made by hypercall, as `GNTTABOP_map_grant_ref` and `GNTTABOP_unmap_grant_ref` do.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::format;

use xen_hypercall::abi::{GNTMAP_HOST_MAP, GNTMAP_READONLY, GnttabMapGrantRef, GnttabUnmapGrantRef};
use xen_hypercall::mock::{MockDomain, MockXen};
use xen_hypercall::{DomId, Gfn, PAGE_SIZE, PageMemory};

use super::active::How;
use super::tables::Machine;
use crate::{GrantRef, GrantStatus};

#[derive(Default)]
pub(super) struct Handles {
    mapped: BTreeMap<(DomId, u32), Mapped>,
    next: u32,
}

#[derive(Clone, Copy)]
struct Mapped {
    granter: DomId,
    gref: GrantRef,
    write: bool,
    at: Gfn,
}

impl Handles {
    pub(super) fn count(&self, domain: DomId) -> usize {
        self.mapped.keys().filter(|(owner, _)| *owner == domain).count()
    }
}

pub(super) fn map(caller: &MockDomain, op: &mut GnttabMapGrantRef) {
    let (domain, gref) = (DomId(op.dom), GrantRef(op.reference));
    let result = try_map(caller, op);
    caller
        .xen()
        .trace(|| format!("{} maps {gref} of {domain} at {:#x}: {result:?}", caller.id(), op.host_addr));
    op.status = match result {
        Ok(handle) => {
            op.handle = handle;
            GrantStatus::OKAY.0
        }
        Err(status) => status.0,
    };
}

fn try_map(caller: &MockDomain, op: &GnttabMapGrantRef) -> Result<u32, GrantStatus> {
    if op.flags & 0b11 == 0 {
        return Err(GrantStatus::BAD_GNTREF);
    }
    // A guest whose memory Xen translates has no other mappings.
    if op.flags & !(GNTMAP_HOST_MAP | GNTMAP_READONLY) != 0 {
        return Err(GrantStatus::GENERAL_ERROR);
    }
    // Unlike a copy, which takes `DOMID_SELF`.
    if DomId(op.dom) == DomId::SELF {
        return Err(GrantStatus::BAD_DOMAIN);
    }
    let granter = super::granter(caller, DomId(op.dom))?;
    let (gref, write) = (GrantRef(op.reference), op.flags & GNTMAP_READONLY == 0);
    let at = Gfn(op.host_addr / PAGE_SIZE as u64);
    super::with(caller.xen(), |machine| {
        machine.chance(|faults| faults.map, GrantStatus::NO_SPACE)?;
        machine.chance(|faults| faults.again, GrantStatus::EAGAIN)?;
        let granted = machine.begin(caller.id(), &granter, gref, write, How::Map)?;
        let mapped = if op.host_addr % PAGE_SIZE as u64 != 0 {
            false
        } else if granter.id() == caller.id() {
            // SAFETY: whoever made the hypercall said that this may happen to the page.
            unsafe { caller.move_to_room(caller.gfn(granted.page), at) }
        } else {
            // SAFETY: a page of a domain, which stays as long as the machine.
            unsafe { caller.map_foreign(at, granted.page) }
        };
        if !mapped {
            machine.end(&granter, gref, write);
            return Err(GrantStatus::GENERAL_ERROR);
        }
        let handle = machine.handles.next;
        machine.handles.next += 1;
        machine
            .handles
            .mapped
            .insert((caller.id(), handle), Mapped { granter: granter.id(), gref, write, at });
        Ok(handle)
    })
}

pub(super) fn unmap(caller: &MockDomain, op: &mut GnttabUnmapGrantRef) {
    let result = super::with(caller.xen(), |machine| try_unmap(machine, caller, op));
    caller.xen().trace(|| format!("{} unmaps {:#x}: {result:?}", caller.id(), op.host_addr));
    op.status = result.err().unwrap_or(GrantStatus::OKAY).0;
}

fn try_unmap(
    machine: &mut Machine,
    caller: &MockDomain,
    op: &GnttabUnmapGrantRef,
) -> Result<(), GrantStatus> {
    let key = (caller.id(), op.handle);
    let mapped = machine.handles.mapped.get(&key).copied().ok_or(GrantStatus::BAD_HANDLE)?;
    if op.host_addr != mapped.at.0 * PAGE_SIZE as u64 || op.dev_bus_addr != 0 {
        return Err(GrantStatus::GENERAL_ERROR);
    }
    machine.chance(|faults| faults.unmap, GrantStatus::GENERAL_ERROR)?;
    machine.handles.mapped.remove(&key);
    caller.unmap_foreign(mapped.at);
    machine.end_of(caller.xen(), mapped.granter, mapped.gref, mapped.write);
    Ok(())
}

impl Machine {
    /// Ends one use of a domain's grant, if the domain is there still.
    pub(super) fn end_of(&mut self, xen: &MockXen, granter: DomId, gref: GrantRef, write: bool) {
        if xen.has_domain(granter) {
            self.end(&xen.domain(granter), gref, write);
        }
    }

    /// Unmaps all that a domain that is gone had mapped, out of the memory that it left to another.
    pub(super) fn unmap_all(&mut self, domain: &MockDomain, old: DomId) {
        let (gone, left): (BTreeMap<_, _>, BTreeMap<_, _>) =
            core::mem::take(&mut self.handles.mapped).into_iter().partition(|((owner, _), _)| *owner == old);
        self.handles.mapped = left;
        for mapped in gone.into_values() {
            domain.unmap_foreign(mapped.at);
            self.end_of(domain.xen(), mapped.granter, mapped.gref, mapped.write);
        }
    }
}
