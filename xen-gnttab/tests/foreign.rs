//! What other domains granted: copied by Xen in batches, and mapped in room reserved for it.
#![cfg(feature = "mock")]

use xen_gnttab::{
    Access, CopyDest, CopySource, Ended, Error, GrantRef, GrantStatus, GrantTable, MappedGrants, mock,
};
use xen_hypercall::abi::{GNTMAP_HOST_MAP, GnttabMapGrantRef, GnttabUnmapGrantRef};
use xen_hypercall::mock::{Chance, Dice, HypercallFaults, MockDomain, MockXen};
use xen_hypercall::{DomId, Errno, GrantRoom, HypercallNr, PAGE_SIZE, grant};

const BACK: DomId = DomId(0);
const FRONT: DomId = DomId(1);

type Table = GrantTable<MockDomain>;

fn machine() -> (MockXen, Table, Table) {
    let xen = MockXen::new();
    mock::install(&xen);
    let table = |id| GrantTable::new(&xen.domain(id).boot().unwrap()).unwrap();
    let (back, front) = (table(BACK), table(FRONT));
    (xen, back, front)
}

#[test]
fn a_batch_copies_both_ways_and_tells_of_each() {
    let (_xen, back, front) = machine();
    let mut source = front.share(BACK, Access::ReadOnly).unwrap();
    source.write_bytes(4000, b"from the front").unwrap();
    let mut sink = front.share(BACK, Access::ReadWrite).unwrap();
    let mut local = back.alloc_page().unwrap();
    local.bytes_mut()[..5].copy_from_slice(b"local");
    let mut answer = back.alloc_page().unwrap();
    {
        let mut batch = back.copies::<6>();
        let from = CopySource::grant(FRONT, source.gref());
        let answer = CopyDest::page(&mut answer);
        batch.add(from.at(4000), answer.at(10), 14).unwrap();
        batch.add(from.at(4005), answer.at(100), 3).unwrap();
        batch.add(CopySource::page(&local), CopyDest::grant(FRONT, sink.gref()).at(4091), 5).unwrap();
        // Straight from one grant to another.
        batch.add(from.at(4000), CopyDest::grant(FRONT, sink.gref()), 4).unwrap();
        batch.add(from, CopyDest::grant(FRONT, source.gref()), 1).unwrap();
        assert_eq!(batch.add(CopySource::grant(FRONT, GrantRef(600)), answer, 1), Ok(5));
        assert_eq!(batch.add(from, answer, 1), Err(Error::BadCount));
        assert_eq!((batch.len(), batch.status(0)), (6, None));
        assert_eq!(batch.run(), Ok(0));
        let failed: Vec<_> = batch.failed().collect();
        assert_eq!(failed, [(4, GrantStatus::GENERAL_ERROR), (5, GrantStatus::BAD_GNTREF)]);
        assert_eq!((batch.status(3), batch.status(6)), (Some(GrantStatus::OKAY), None));
    }
    assert_eq!(&answer.bytes()[10..24], b"from the front");
    assert_eq!(&answer.bytes()[100..104], b"the\0");
    let (mut end, mut start) = ([0; 5], [0; 4]);
    sink.read_bytes(4091, &mut end).unwrap();
    sink.read_bytes(0, &mut start).unwrap();
    assert_eq!((&end, &start), (b"local", b"from"));
    assert!(!source.in_use() && !sink.in_use());
}

#[test]
fn copies_out_of_range_or_of_others_pages_are_refused_before_xen_sees_them() {
    let (xen, back, front) = machine();
    let theirs = front.alloc_page().unwrap();
    let mut granted = back.share(FRONT, Access::ReadWrite).unwrap();
    granted.write_bytes(0, b"mine").unwrap();
    let mut page = back.alloc_page().unwrap();
    let mut batch = back.copies::<4>();
    let to = CopyDest::page(&mut page);
    let from = CopySource::granted(&granted);
    for (a, b, len) in [
        (0, 0, 0),
        (0, 0, 4097),
        (1, 0, 4096),
        (0, 4095, 2),
        (4096, 0, 1),
        (usize::MAX, 0, 2),
        (0, 0, usize::MAX),
    ] {
        assert_eq!(batch.add(from.at(a), to.at(b), len), Err(Error::BadRange), "{a} {b} {len}");
    }
    assert_eq!(batch.add(CopySource::page(&theirs), to, 1), Err(Error::ForeignPage));
    assert!(batch.is_empty());
    batch.add(from, to.at(4092), 4).unwrap();
    xen.set_faults(
        Dice::new(1),
        HypercallFaults::new().fail(HypercallNr::GRANT_TABLE_OP, Chance::ALWAYS, Errno::EFAULT),
    );
    let failed = Error::Hypercall { operation: "GNTTABOP_copy", errno: Errno::EFAULT };
    assert_eq!((batch.run(), batch.status(0)), (Err(failed), None));
    xen.set_faults(Dice::new(1), HypercallFaults::new());
    assert_eq!((batch.run(), batch.status(0)), (Ok(0), Some(GrantStatus::OKAY)));
    assert_eq!(&page.bytes()[4091..], b"\0mine");
    // Into a page of ours that others see.
    let mut batch = back.copies::<1>();
    batch.add(CopySource::page(&page).at(4092), CopyDest::granted(&mut granted).at(8), 4).unwrap();
    assert_eq!(batch.run(), Ok(0));
    let mut seen = [0; 4];
    granted.read_bytes(8, &mut seen).unwrap();
    assert_eq!(&seen, b"mine");
}

#[test]
fn what_xen_asks_to_try_again_is_tried_again_and_nothing_else_is() {
    let (xen, back, front) = machine();
    let mut source = front.share(BACK, Access::ReadWrite).unwrap();
    let mut page = back.alloc_page().unwrap();
    let mut faults = mock::Faults::new();
    faults.again = Chance::percent(50);
    mock::set_faults(&xen, Dice::new(3), faults);
    let mut batch = back.copies::<32>();
    let to = CopyDest::page(&mut page);
    for index in 0..32 {
        let gref = if index == 7 { GrantRef(500) } else { source.gref() };
        batch.add(CopySource::grant(FRONT, gref).at(index), to.at(index), 1).unwrap();
    }
    let (mut left, mut rounds) = (batch.run().unwrap(), 0);
    assert!((8..24).contains(&left));
    assert!(batch.failed().count() >= left);
    // What was copied is not copied again.
    source.write_bytes(0, &[1; 32]).unwrap();
    let done: Vec<bool> = (0..32).map(|index| batch.status(index) == Some(GrantStatus::OKAY)).collect();
    while left > 0 {
        let before = left;
        left = batch.run().unwrap();
        assert!(left <= before);
        rounds += 1;
        assert!(rounds < 100);
    }
    assert_eq!(batch.failed().collect::<Vec<_>>(), [(7, GrantStatus::GENERAL_ERROR)]);
    for index in (0..32).filter(|index| *index != 7) {
        assert_eq!(page.bytes()[index] == 0, done[index], "{index}");
    }
}

#[test]
fn a_ring_of_several_pages_is_mapped_in_a_row() {
    let (xen, back, front) = machine();
    let guest = xen.domain(BACK);
    let mut ring = front.share_pages(4, BACK, Access::ReadWrite).unwrap();
    let grefs: Vec<GrantRef> = ring.grefs().collect();
    let mut mapped: MappedGrants<'_, _, 8> = back.map(FRONT, &grefs).unwrap();
    assert_eq!((mapped.count(), mapped.mem().len()), (4, 4 * PAGE_SIZE));
    assert_eq!((mock::mapped_by(&xen, BACK), guest.room_in_use(), ring.in_use()), (4, 4, 4));
    mapped.mem().write_bytes(PAGE_SIZE - 3, b"across").unwrap();
    let mut seen = [0; 6];
    ring.read_bytes(PAGE_SIZE - 3, &mut seen).unwrap();
    assert_eq!(&seen, b"across");
    drop(ring);
    assert_eq!(front.stats().quarantined, 4);
    mapped.mem().write_bytes(0, b"still there").unwrap();
    assert_eq!(mapped.unmap(), Ok(()));
    assert_eq!((mock::mapped_by(&xen, BACK), guest.room_in_use()), (0, 0));
    assert_eq!((front.reclaim(), front.stats().free), (4, front.stats().refs));
}

#[test]
fn a_slot_ring_runs_between_two_guests() {
    use xen_ring::{Back, Front, Protocol};
    struct Doubler;
    impl Protocol for Doubler {
        type Request = u32;
        type Response = u32;
    }
    let (_xen, back, front) = machine();
    let pages = front.share_pages(2, BACK, Access::ReadWrite).unwrap();
    let grefs: Vec<GrantRef> = pages.grefs().collect();
    let mut front: Front<Doubler, _> = Front::init(pages).unwrap();
    let mut back: Back<Doubler, _> = Back::attach(back.map::<2>(FRONT, &grefs).unwrap()).unwrap();
    assert!(front.slots() > 512, "more than one page of slots");
    let mut sum = 0;
    for round in 0..600 {
        front.push(&round).unwrap();
        front.publish().unwrap();
        while let Some(request) = back.pop().unwrap() {
            back.push(&(request * 2)).unwrap();
        }
        back.publish().unwrap();
        while let Some(response) = front.pop().unwrap() {
            sum += response;
        }
    }
    assert_eq!(sum, 2 * (0..600).sum::<u32>());
}

#[test]
fn mapping_is_all_or_nothing() {
    let (xen, back, front) = machine();
    let guest = xen.domain(BACK);
    let pages = front.share_pages(3, BACK, Access::ReadOnly).unwrap();
    let mut grefs: Vec<GrantRef> = pages.grefs().collect();
    let map = |grefs: &[GrantRef]| back.map_for_reading::<4>(FRONT, grefs).map(drop);
    assert_eq!(map(&grefs), Ok(()));
    assert_eq!(map(&[]), Err(Error::BadCount));
    assert_eq!(map(&[GrantRef(8); 5]), Err(Error::BadCount));
    let refused = |index: usize, status| Err(Error::Refused { gref: grefs[index], status });
    assert_eq!(back.map::<4>(FRONT, &grefs).map(drop), refused(0, GrantStatus::GENERAL_ERROR), "read-only");
    assert_eq!(back.map::<4>(DomId(9), &grefs).map(drop), refused(0, GrantStatus::BAD_DOMAIN));
    grefs.insert(1, GrantRef(70_000));
    assert_eq!(map(&grefs), Err(Error::Refused { gref: GrantRef(70_000), status: GrantStatus::BAD_GNTREF }));
    grefs.remove(1);
    guest.limit_room(Some(2));
    assert_eq!((map(&grefs), map(&grefs[..2])), (Err(Error::NoRoom), Ok(())));
    guest.limit_room(None);
    xen.set_faults(
        Dice::new(1),
        HypercallFaults::new().fail(HypercallNr::GRANT_TABLE_OP, Chance::ALWAYS, Errno::EFAULT),
    );
    let operation = "GNTTABOP_map_grant_ref";
    assert_eq!(map(&grefs), Err(Error::Hypercall { operation, errno: Errno::EFAULT }));
    xen.set_faults(Dice::new(1), HypercallFaults::new());
    let mut mapped = back.map_for_reading::<4>(FRONT, &grefs).unwrap();
    let mut zero = [1; 8];
    mapped.read_bytes(3 * PAGE_SIZE - 8, &mut zero).unwrap();
    assert_eq!((zero, mapped.count()), ([0; 8], 3));
    assert!(mapped.read_bytes(3 * PAGE_SIZE - 7, &mut zero).is_err());
    drop(mapped);
    assert_eq!((mock::mapped_by(&xen, BACK), guest.room_in_use(), pages.in_use()), (0, 0, 0));
    assert_eq!(back.stats().lost_room, 0);
}

#[test]
fn room_in_which_a_page_stays_mapped_is_never_used_again() {
    let (xen, back, front) = machine();
    let guest = xen.domain(BACK);
    let pages = front.share_pages(2, BACK, Access::ReadWrite).unwrap();
    let grefs: Vec<GrantRef> = pages.grefs().collect();
    let mut faults = mock::Faults::new();
    faults.unmap = Chance::ALWAYS;
    let first = back.map::<2>(FRONT, &grefs).unwrap();
    let second = back.map::<2>(FRONT, &grefs).unwrap();
    mock::set_faults(&xen, Dice::new(1), faults);
    let refused = Error::Refused { gref: grefs[0], status: GrantStatus::GENERAL_ERROR };
    assert_eq!(first.unmap(), Err(refused));
    assert_eq!((back.stats().lost_room, guest.room_in_use()), (2, 4));
    drop(second);
    assert_eq!((back.stats().lost_room, guest.room_in_use()), (4, 4));
    mock::set_faults(&xen, Dice::new(1), mock::Faults::new());
    // The granter's side of it: in use for good.
    drop(pages);
    assert_eq!((front.reclaim(), front.stats().quarantined), (0, 2));
    let others = front.share_pages(2, BACK, Access::ReadWrite).unwrap();
    drop(back.map::<2>(FRONT, &others.grefs().collect::<Vec<_>>()).unwrap());
    assert_eq!(guest.room_in_use(), 4);
}

#[test]
fn a_domain_copies_its_own_grants_and_does_not_map_them() {
    let (xen, _back, front) = machine();
    let guest = xen.domain(FRONT);
    let mut page = front.share(FRONT, Access::ReadWrite).unwrap();
    page.write_bytes(0, b"loop").unwrap();
    for own in [DomId::SELF, FRONT] {
        assert_eq!(front.map::<1>(own, &[page.gref()]).map(drop), Err(Error::OwnGrant));
        assert_eq!(front.map_for_reading::<1>(own, &[page.gref()]).map(drop), Err(Error::OwnGrant));
    }
    assert_eq!((guest.room_in_use(), mock::mapped_by(&xen, FRONT), page.in_use()), (0, 0, false));
    let mut copy = front.alloc_page().unwrap();
    for own in [DomId::SELF, FRONT] {
        let mut batch = front.copies::<1>();
        batch.add(CopySource::grant(own, page.gref()), CopyDest::page(&mut copy), 4).unwrap();
        assert_eq!((batch.run(), batch.status(0)), (Ok(0), Some(GrantStatus::OKAY)));
        assert_eq!(&copy.bytes_mut()[..5], b"loop\0");
        copy.bytes_mut().fill(0);
    }
    assert!(matches!(page.end(), Ended::Page(_)));
}

/// Why `map` refuses: what Xen does when it is asked all the same.
#[test]
#[expect(unsafe_code, reason = "does what the crate keeps from happening")]
fn xen_would_take_a_page_that_a_domain_maps_from_itself() {
    let (xen, _back, front) = machine();
    let guest = xen.domain(FRONT);
    let mut page = front.share(FRONT, Access::ReadWrite).unwrap();
    page.write_bytes(0, b"mine").unwrap();
    let room = guest.reserve_room(1).unwrap();
    let mut map = GnttabMapGrantRef {
        host_addr: room.0 * PAGE_SIZE as u64,
        flags: GNTMAP_HOST_MAP,
        reference: page.gref().0,
        dom: DomId::SELF.0,
        ..Default::default()
    };
    // SAFETY: nothing is in the room, and the page is looked at by `SharedMem` alone.
    unsafe { grant::map(&guest, core::slice::from_mut(&mut map)) }.unwrap();
    assert_eq!(GrantStatus(map.status), GrantStatus::BAD_DOMAIN);
    map.dom = FRONT.0;
    // SAFETY: as above.
    unsafe { grant::map(&guest, core::slice::from_mut(&mut map)) }.unwrap();
    assert_eq!(GrantStatus(map.status), GrantStatus::OKAY);
    // It is in the room now, and nothing is where its owner looks.
    let mut seen = [0; 4];
    page.read_bytes(0, &mut seen).unwrap();
    assert_eq!((seen, guest.page_at(page.gfn())), ([0xFF; 4], None));
    // SAFETY: something is mapped there.
    let moved = unsafe { guest.room_address(room, 1) }.unwrap();
    // SAFETY: a page of the machine that nobody writes to.
    assert_eq!(unsafe { moved.cast::<[u8; 4]>().read() }, *b"mine");
    let mut unmap =
        GnttabUnmapGrantRef { host_addr: map.host_addr, handle: map.handle, ..Default::default() };
    // SAFETY: nobody uses the mapping.
    unsafe { grant::unmap(&guest, core::slice::from_mut(&mut unmap)) }.unwrap();
    assert_eq!((GrantStatus(unmap.status), guest.page_at(room)), (GrantStatus::OKAY, None));
    // It does not come back.
    page.read_bytes(0, &mut seen).unwrap();
    assert_eq!(seen, [0xFF; 4]);
    // SAFETY: nothing is there.
    unsafe { guest.release_room(room, 1) };
}

#[test]
fn a_peer_that_only_seems_to_let_go_keeps_the_page() {
    let (xen, _back, front) = machine();
    let back = xen.domain(BACK);
    let mut faults = mock::Faults::new();
    faults.keep = Chance::ALWAYS;
    mock::set_faults(&xen, Dice::new(1), faults);
    let page = front.share(BACK, Access::ReadWrite).unwrap();
    mock::copy_to(&back, FRONT, page.gref(), 0, b"kept").unwrap();
    drop(mock::map(&back, FRONT, page.gref(), false).unwrap());
    assert!(page.in_use());
    drop(page);
    assert_eq!((front.reclaim(), front.stats().quarantined), (0, 1));
    mock::set_faults(&xen, Dice::new(1), mock::Faults::new());
    assert_eq!((mock::release_kept(&xen), mock::release_kept(&xen)), (2, 0));
    assert_eq!((front.reclaim(), mock::mappings_of(&xen, FRONT)), (1, 0));
}
