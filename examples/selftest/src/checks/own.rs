//! Grants of the domain to itself, mapped: the crate refuses, and Xen shows why.
#![allow(unsafe_code, reason = "asks Xen for what the crate refuses")]

use check_report::{Failure, Report, ensure};
use xen_gnttab::{Access, Error, GrantRef, GrantStatus};
use xen_hypercall::abi::{GNTMAP_HOST_MAP, GNTMAP_READONLY, GnttabMapGrantRef, GnttabUnmapGrantRef};
use xen_hypercall::grant::{self, Cache};
use xen_hypercall::memory::{self, MemFlags};
use xen_hypercall::{DomId, Errno, GrantRoom, PAGE_SIZE};

use super::{ARM, Grants};

/// A grant mapped, or not, at one frame of the room.
struct Raw<'g> {
    table: &'g Grants,
    map: GnttabMapGrantRef,
}

impl<'g> Raw<'g> {
    fn new(table: &'g Grants, owner: DomId, gref: GrantRef, flags: u32) -> Result<Self, Failure> {
        let xen = *table.platform();
        let room = xen.reserve_room(1).ok_or(Failure("no room".into()))?;
        let mut map = GnttabMapGrantRef {
            host_addr: room.0 * PAGE_SIZE as u64,
            flags: GNTMAP_HOST_MAP | flags,
            reference: gref.0,
            dom: owner.0,
            status: GrantStatus::GENERAL_ERROR.0,
            ..Default::default()
        };
        // SAFETY: nothing is in the room; callers know that a page of their own may move.
        unsafe { grant::map(&xen, core::slice::from_mut(&mut map)) }?;
        Ok(Self { table, map })
    }

    fn status(&self) -> GrantStatus {
        GrantStatus(self.map.status)
    }

    fn end(self) -> Result<(), Failure> {
        let xen = *self.table.platform();
        let GnttabMapGrantRef { host_addr, handle, .. } = self.map;
        if self.status() == GrantStatus::OKAY {
            let mut unmap = GnttabUnmapGrantRef { host_addr, handle, ..Default::default() };
            // SAFETY: callers do not use the mapping any more.
            unsafe { grant::unmap(&xen, core::slice::from_mut(&mut unmap)) }?;
            ensure!(GrantStatus(unmap.status) == GrantStatus::OKAY, "unmap: {}", GrantStatus(unmap.status));
        }
        // SAFETY: reserved by `new`; nothing is mapped there.
        unsafe { xen.release_room(xen_hypercall::Gfn(host_addr / PAGE_SIZE as u64), 1) };
        Ok(())
    }
}

pub(super) fn run(
    table: &Grants,
    own: DomId,
    name: &impl Fn(&str) -> alloc::string::String,
    report: &mut Report,
) {
    for (what, owner) in [("map-own", own), ("map-self", DomId::SELF)] {
        let mapped = table
            .share(own, Access::ReadWrite)
            .and_then(|page| table.map::<1>(owner, &[page.gref()]).map(drop));
        report.fails_with(&name(what), mapped, |error| *error == Error::OwnGrant);
    }
    let mut xen_refuses =
        |what: &str, gref: Result<GrantRef, Error>, owner, flags, wanted: &[GrantStatus]| {
            report.check(&name(what), || {
                let raw = Raw::new(table, owner, gref?, flags)?;
                let status = raw.status();
                raw.end()?;
                ensure!(wanted.contains(&status), "{status:?} in place of {wanted:?}");
                Ok(())
            });
        };
    let (general, bad) = ([GrantStatus::GENERAL_ERROR], [GrantStatus::BAD_GNTREF]);
    xen_refuses("xen-knows-no-self-to-map", Ok(GrantRef(8)), DomId::SELF, 0, &[GrantStatus::BAD_DOMAIN]);
    xen_refuses("map-what-is-not-granted", Ok(GrantRef(100)), own, 0, &general);
    xen_refuses("map-beyond-the-table", Ok(GrantRef(1 << 30)), own, 0, &bad);
    let shared = |to, access| table.share(to, access);
    if let (Ok(lent), Ok(not_ours)) =
        (shared(own, Access::ReadOnly), shared(DomId(0x6FFF), Access::ReadWrite))
    {
        xen_refuses("map-read-only-for-writing", Ok(lent.gref()), own, 0, &general);
        xen_refuses("map-what-others-were-granted", Ok(not_ours.gref()), own, GNTMAP_READONLY, &general);
    }
    caches(table, own, name, report);
    moves(table, own, name, report);
    report.check(&name("room-comes-back"), || {
        ensure!(table.stats().lost_room == 0, "{:?}", table.stats());
        Ok(())
    });
}

/// Caches are cleaned on Arm alone.
fn caches(table: &Grants, own: DomId, name: &impl Fn(&str) -> alloc::string::String, report: &mut Report) {
    if !ARM {
        let flushed = grant::flush_cache(*table.platform(), 0, 0, 64, Cache::Clean);
        return report.refused(&name("flush-cache"), flushed, Errno::ENOSYS);
    }
    report.check(&name("flush-cache"), || {
        let page = table.share(own, Access::ReadWrite)?;
        let raw = Raw::new(table, own, page.gref(), 0)?;
        let machine = raw.map.dev_bus_addr;
        let flush = |offset, what| grant::flush_cache(*table.platform(), machine, offset, 64, what);
        let results =
            [flush(0, Cache::Clean), flush(4032, Cache::CleanInvalidate), flush(4033, Cache::Clean)];
        raw.end()?;
        let wanted = [Ok(()), Ok(()), Err(Errno::EINVAL)];
        ensure!(results == wanted, "{results:?} in place of {wanted:?}");
        Ok(())
    });
}

/// On x86 a page of the domain's own is at one place: with the mapping it goes there, and from there nowhere.
fn moves(table: &Grants, own: DomId, name: &impl Fn(&str) -> alloc::string::String, report: &mut Report) {
    report.check(&name(if ARM { "xen-maps-a-second-time" } else { "xen-moves-what-is-mapped" }), || {
        let mut page = table.share(own, Access::ReadWrite)?;
        page.write_bytes(0, b"here")?;
        let raw = Raw::new(table, own, page.gref(), 0)?;
        let status = raw.status();
        let mut seen = [0; 4];
        page.read_bytes(0, &mut seen)?;
        raw.end()?;
        ensure!(status == GrantStatus::OKAY, "{status:?}");
        if !ARM {
            // The page went with the mapping; the frame needs other memory before anybody has it again.
            // SAFETY: the page is ours alone, and is reached by `SharedMem` only.
            let filled =
                unsafe { memory::populate_physmap(*table.platform(), &mut [page.gfn()], 0, MemFlags::NONE) }?;
            ensure!(filled == 1, "no memory for {}", page.gfn());
        }
        let wanted = if ARM { *b"here" } else { [0xFF; 4] };
        ensure!(seen == wanted, "{seen:?} in place of {wanted:?}");
        Ok(())
    });
}
