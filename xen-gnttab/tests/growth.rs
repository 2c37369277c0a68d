//! How the table grows: to the limit that Xen names, and what happens when Xen or the platform has no more.
#![cfg(feature = "mock")]

use std::task::{Context, Poll, Waker};

use xen_gnttab::{Access, Error, GrantRef, GrantTable, Reference, Version, mock};
use xen_hypercall::memory::{PhysmapSpace, add_to_physmap};
use xen_hypercall::mock::{Chance, Dice, HypercallFaults, MockDomain, MockXen};
use xen_hypercall::{DomId, Errno, HypercallNr, PageMemory, VcpuId, VcpuTime, grant};

/// Pages of the domain's token: its own, and shared_info.
const TOKEN: usize = 2;
const BACK: DomId = DomId(0);
const FRONT: DomId = DomId(1);

fn machine(max_frames: u32) -> (MockXen, MockDomain) {
    let xen = MockXen::new();
    mock::install(&xen);
    mock::set_max_frames(&xen, FRONT, max_frames);
    xen.domain(BACK);
    let guest = xen.domain(FRONT);
    (xen, guest)
}

/// Takes references until there are no more.
fn all(table: &GrantTable<MockDomain>) -> (Vec<Reference<'_, MockDomain>>, Error) {
    let mut references = Vec::new();
    loop {
        match table.reserve() {
            Ok(reference) => references.push(reference),
            Err(error) => return (references, error),
        }
    }
}

#[test]
fn every_reference_up_to_xens_limit_can_be_had() {
    for (version, limit, frames, per_frame) in [
        (Version::V1, 1, 1, 512),
        (Version::V1, 64, 64, 512),
        (Version::V1, 100, 100, 512),
        // The most that the directory has room for.
        (Version::V1, 256, 256, 512),
        (Version::V1, 1000, 256, 512),
        (Version::V2, 1, 1, 256),
        (Version::V2, 99, 99, 256),
        (Version::V2, 1000, 256, 256),
    ] {
        let (_xen, guest) = machine(limit);
        let token = guest.boot().unwrap();
        let before = guest.pages_in_use();
        let table = GrantTable::with_version(&token, version).unwrap();
        assert_eq!((table.stats().max_frames, table.stats().frames), (frames, 1));
        let (mut references, error) = all(&table);
        assert_eq!(error, Error::NoFreeReference);
        let grefs: Vec<u32> = references.iter().map(|reference| reference.gref().0).collect();
        let expected: Vec<u32> = (GrantRef::RESERVED..frames * per_frame).collect();
        assert!(grefs == expected, "{version:?}, {limit} frames");
        assert_eq!((table.stats().frames, table.stats().free), (frames, 0));
        // The last of all works.
        let last = references.pop().unwrap();
        let (gref, page) = (last.gref(), table.alloc_page().unwrap());
        let page = last.grant(page, BACK, Access::ReadOnly).unwrap();
        let mut byte = [1];
        mock::copy_from(&guest.xen().domain(BACK), FRONT, gref, 4095, &mut byte).unwrap();
        assert_eq!(byte, [0]);
        drop((page, references));
        assert_eq!(table.stats().free, table.stats().refs);
        let pages = guest.pages_in_use();
        drop(table);
        // What is shared with Xen stays, the rest is given back.
        let status = if version == Version::V2 { frames.div_ceil(8) } else { 0 };
        let slots = (frames * per_frame).div_ceil(512);
        assert_eq!(pages - before, (1 + slots + frames + status) as usize);
        assert_eq!(guest.pages_in_use() - before, (frames + status) as usize);
    }
}

#[test]
fn a_limit_that_xen_lowers_ends_growth_and_nothing_else() {
    let (xen, guest) = machine(4);
    let table = GrantTable::new(&guest.boot().unwrap()).unwrap();
    mock::set_max_frames(&xen, FRONT, 2);
    let (mut references, error) = all(&table);
    let refused = Error::Hypercall { operation: "XENMEM_add_to_physmap", errno: Errno::EINVAL };
    assert_eq!((error, references.len()), (refused, 2 * 512 - 8));
    // It is no reason to wait for.
    let mut waiter = table.waiter().unwrap();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(matches!(waiter.poll_reference(&mut cx), Poll::Ready(Err(error)) if error == refused));
    references.pop();
    assert!(matches!(waiter.poll_reference(&mut cx), Poll::Ready(Ok(_))));
    mock::set_max_frames(&xen, FRONT, 4);
    let (more, error) = all(&table);
    assert_eq!((error, more.len() + references.len()), (Error::NoFreeReference, 4 * 512 - 8));
}

#[test]
fn without_memory_the_table_stays_as_it_is_and_grows_later() {
    for version in [Version::V1, Version::V2] {
        let (_xen, guest) = machine(3);
        let table = GrantTable::with_version(&guest.boot().unwrap(), version).unwrap();
        guest.fail_allocs_after(Some(0));
        let (mut references, error) = all(&table);
        assert_eq!((error, table.stats().frames), (Error::OutOfMemory, 1));
        let mut waiter = table.waiter().unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(waiter.poll_reference(&mut cx).is_pending(), "one may be given back");
        references.pop();
        assert!(matches!(waiter.poll_reference(&mut cx), Poll::Ready(Ok(_))));
        // One page at a time: each try gets further, or no less far.
        let mut tries = 0;
        while table.stats().frames < 3 {
            guest.fail_allocs_after(Some(1));
            references.extend(all(&table).0);
            tries += 1;
            assert!(tries < 10);
        }
        guest.fail_allocs_after(None);
        drop((references, waiter));
        assert_eq!(table.stats().free, table.stats().refs);
    }
}

#[test]
fn a_table_that_cannot_start_says_why() {
    for (nth, operation) in [
        (HypercallNr::GRANT_TABLE_OP, "GNTTABOP_get_version"),
        (HypercallNr::MEMORY_OP, "XENMEM_add_to_physmap"),
    ] {
        let (xen, guest) = machine(4);
        let token = guest.boot().unwrap();
        let before = guest.pages_in_use();
        xen.set_faults(Dice::new(1), HypercallFaults::new().fail(nth, Chance::ALWAYS, Errno::EPERM));
        let error = GrantTable::new(&token).unwrap_err();
        assert_eq!(error, Error::Hypercall { operation, errno: Errno::EPERM });
        assert!(guest.pages_in_use() <= before + 1, "at most the page that Xen may have taken");
        xen.set_faults(Dice::new(1), HypercallFaults::new());
        assert!(GrantTable::new(&token).is_ok(), "nobody has the table");
    }
}

#[test]
fn hypercalls_that_fail_by_chance_cost_nothing_but_tries() {
    let (xen, guest) = machine(32);
    let table = GrantTable::new(&guest.boot().unwrap()).unwrap();
    let faults = HypercallFaults::new().fail(HypercallNr::MEMORY_OP, Chance::percent(80), Errno::ENOMEM);
    xen.set_faults(Dice::new(7), faults);
    let (mut pages, mut failures) = (Vec::new(), 0);
    while pages.len() < 5000 {
        match table.share_pages(8, BACK, Access::ReadOnly) {
            Ok(run) => pages.push(run),
            Err(Error::Hypercall { errno: Errno::ENOMEM, .. }) => failures += 1,
            Err(Error::NoFreeReference) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(failures > 20, "{failures}");
    assert_eq!((table.stats().frames, pages.len()), (32, (32 * 512 - 8) / 8));
    assert_eq!(guest.pages_in_use(), TOKEN + 1 + 64 + 8 * pages.len());
}

#[test]
fn what_can_never_be_granted_at_once_does_not_make_the_table_grow() {
    let (_xen, guest) = machine(3);
    let table = GrantTable::new(&guest.boot().unwrap()).unwrap();
    let before = guest.pages_in_use();
    let error = table.share_pages(3 * 512 - 7, BACK, Access::ReadOnly).unwrap_err();
    assert_eq!((error, table.stats().frames), (Error::NoFreeReference, 1));
    assert_eq!(guest.pages_in_use(), before);
    drop(table.share_pages(3 * 512 - 8, BACK, Access::ReadOnly).unwrap());
    assert_eq!(table.stats().frames, 3);
}

#[test]
fn a_table_is_closed_before_one_of_another_version_is_made() {
    let (xen, guest) = machine(4);
    let back = xen.domain(BACK);
    let token = guest.boot().unwrap();
    let before = guest.pages_in_use();
    let first = GrantTable::new(&token).unwrap();
    let held: Vec<_> = (0..1100).map(|_| first.reserve().unwrap()).collect();
    assert_eq!(first.stats().frames, 3);
    assert_eq!(GrantTable::with_version(&token, Version::V2).map(drop), Err(Error::Claimed));
    assert_eq!(GrantTable::new(&token).map(drop), Err(Error::Claimed));
    drop(held);
    first.close().unwrap();
    assert_eq!(guest.pages_in_use(), before, "the frames' pages are memory again");
    let second = GrantTable::with_version(&token, Version::V2).unwrap();
    assert_eq!((second.version(), second.stats().frames), (Version::V2, 3), "Xen has so many already");
    let page = second.share(BACK, Access::ReadWrite).unwrap();
    drop(mock::map(&back, FRONT, page.gref(), true).unwrap());
    drop(page);
    second.close().unwrap();
    assert_eq!(guest.pages_in_use(), before);
    // No memory: nobody has the table, and the version is what it was.
    guest.fail_allocs_after(Some(4));
    assert_eq!(GrantTable::new(&token).map(drop), Err(Error::OutOfMemory));
    guest.fail_allocs_after(None);
    assert_eq!(grant::get_version(&guest), Ok(2));
    assert_eq!(GrantTable::new(&token).unwrap().version(), Version::V1);
}

#[test]
fn a_table_that_a_peer_uses_is_not_closed() {
    let (xen, guest) = machine(4);
    let token = guest.boot().unwrap();
    let table = GrantTable::new(&token).unwrap();
    let page = table.share(BACK, Access::ReadWrite).unwrap();
    let mapping = mock::map(&xen.domain(BACK), FRONT, page.gref(), true).unwrap();
    drop(page);
    assert_eq!(table.close(), Err(Error::InUse));
    drop(mapping);
    assert_eq!(GrantTable::new(&token).map(drop), Err(Error::Claimed), "the peer may have had it for ever");
    // A handle that was forgotten grants its page still.
    let other = xen.domain(DomId(7));
    let token = other.boot().unwrap();
    let table = GrantTable::new(&token).unwrap();
    core::mem::forget(table.share(BACK, Access::ReadOnly).unwrap());
    assert_eq!(table.close(), Err(Error::InUse));
}

#[test]
fn a_frame_that_is_mapped_again_leaves_a_hole_or_is_refused_as_on_arm() {
    for arm in [false, true] {
        let (xen, guest) = machine(4);
        xen.refuse_second_mappings(arm);
        let token = guest.boot().unwrap();
        let table = GrantTable::new(&token).unwrap();
        let page = table.share(BACK, Access::ReadOnly).unwrap();
        let elsewhere = guest.gfn(guest.alloc_pages(1).unwrap());
        // SAFETY: the page is given for this; the table is not used afterwards where the frame has moved.
        let mapped = unsafe { add_to_physmap(&guest, PhysmapSpace::GRANT_TABLE, 0, elsewhere) };
        assert_eq!(mapped, if arm { Err(Errno::EBUSY) } else { Ok(()) });
        // The entries are where the frame is: what the guest writes to the first place reaches nobody.
        let next = table.share(BACK, Access::ReadOnly).unwrap();
        let mut byte = [1];
        let old = mock::copy_from(&xen.domain(BACK), FRONT, page.gref(), 0, &mut byte);
        let new = mock::copy_from(&xen.domain(BACK), FRONT, next.gref(), 0, &mut byte);
        assert_eq!((old.is_ok(), new.is_ok()), (true, arm));
        // shared_info, likewise.
        let shared = guest.gfn(guest.alloc_pages(1).unwrap());
        // SAFETY: as above.
        let mapped = unsafe { add_to_physmap(&guest, PhysmapSpace::SHARED_INFO, 0, shared) };
        assert_eq!(mapped, if arm { Err(Errno::EBUSY) } else { Ok(()) });
        // The page that was mapped first is a hole, where Xen writes nothing.
        let time = VcpuTime::new(7, 7, 7, 7);
        assert!(guest.set_time(VcpuId(0), time));
        assert_eq!(token.shared_info().time(VcpuId(0)) == Some(time), arm);
    }
}

#[test]
fn a_table_that_ended_or_could_not_start_leaves_the_next_one_nothing_to_be_refused() {
    for (before, after) in [(Version::V1, Version::V2), (Version::V2, Version::V1)] {
        let (xen, guest) = machine(4);
        xen.refuse_second_mappings(true);
        let token = guest.boot().unwrap();
        let first = GrantTable::with_version(&token, before).unwrap();
        drop((0..1100).map_while(|_| first.reserve().ok()).collect::<Vec<_>>());
        first.close().unwrap();
        let pages = guest.pages_in_use();
        // Memory for a few of the frames, then none.
        for allowed in 0..6 {
            guest.fail_allocs_after(Some(allowed));
            let made = GrantTable::with_version(&token, after);
            assert_eq!(made.as_ref().map(drop), Err(&Error::OutOfMemory), "{after:?} {allowed} {made:?}");
            guest.fail_allocs_after(None);
            assert_eq!(guest.pages_in_use(), pages);
        }
        let table = GrantTable::with_version(&token, after).unwrap();
        let page = table.share(BACK, Access::ReadOnly).unwrap();
        assert!(mock::map(&xen.domain(BACK), FRONT, page.gref(), false).is_ok());
    }
}
