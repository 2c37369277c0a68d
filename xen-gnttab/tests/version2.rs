//! Tables of version 2: the same pages, status words apart, parts of pages, and grants passed on.
#![cfg(feature = "mock")]

use xen_gnttab::{Access, Ended, Error, GrantRef, GrantStatus, GrantTable, Version, mock};
use xen_hypercall::abi::XENMAPSPACE_GRANT_TABLE;
use xen_hypercall::mock::{MockDomain, MockXen};
use xen_hypercall::{DomId, Errno, Hypercall, HypercallNr, PAGE_SIZE, PageMemory, grant};

const DOM0: DomId = DomId(0);
const GUEST: DomId = DomId(1);
/// References in a frame of version 2.
const PER_FRAME: u32 = 256;

fn machine() -> (MockXen, MockDomain, MockDomain) {
    let xen = MockXen::new();
    mock::install(&xen);
    let (dom0, guest) = (xen.domain(DOM0), xen.domain(GUEST));
    (xen, dom0, guest)
}

#[test]
fn the_version_is_what_was_asked_for_or_what_xen_has() {
    let (xen, _dom0, guest) = machine();
    let token = guest.boot().unwrap();
    let table = GrantTable::new(&token).unwrap();
    assert_eq!((table.version(), grant::get_version(&guest)), (Version::V1, Ok(1)));
    table.close().unwrap();
    for (version, now) in [(Version::V2, 2), (Version::V1, 1), (Version::Best, 2)] {
        let table = GrantTable::with_version(&token, version).unwrap();
        assert_eq!(grant::get_version(&guest), Ok(now));
        assert_eq!(table.version(), if now == 2 { Version::V2 } else { Version::V1 });
        drop(table.share(DOM0, Access::ReadWrite).unwrap());
        table.close().unwrap();
    }
    let other = xen.domain(DomId(2));
    mock::set_max_version(&xen, DomId(2), 1);
    let token = other.boot().unwrap();
    let before = other.pages_in_use();
    let refused = GrantTable::with_version(&token, Version::V2).unwrap_err();
    assert_eq!((refused, other.pages_in_use()), (Error::Version(1), before));
    // A site that forbids version 2 (`gnttab=max-ver:1`) loses nothing.
    let table = GrantTable::with_version(&token, Version::Best).unwrap();
    assert_eq!(table.version(), Version::V1);
    // A Xen that never heard of versions.
    let old = MockXen::new();
    mock::install(&old);
    let guest = old.domain(GUEST);
    old.register(HypercallNr::GRANT_TABLE_OP, |caller, args| {
        match args[0] {
            // query_size: a structure of 16 bytes, whose maximum is at 8.
            // SAFETY: the caller lent a `gnttab_query_size`.
            6 => unsafe { core::ptr::with_exposed_provenance_mut::<u32>(args[1] + 8).write(4) },
            _ => return Errno::ENOSYS.as_return(),
        }
        assert_eq!(caller.id(), GUEST);
        0
    });
    let table = GrantTable::with_version(&guest.boot().unwrap(), Version::Best).unwrap();
    assert_eq!((table.version(), table.stats().max_frames), (Version::V1, 4));
    drop(table);
    assert_eq!(GrantTable::with_version(&guest.boot().unwrap(), Version::V2).unwrap_err(), Error::Version(1));
}

#[test]
fn the_version_stays_while_grants_are_in_use() {
    let (_xen, dom0, guest) = machine();
    let table = GrantTable::new(&guest.boot().unwrap()).unwrap();
    let page = table.share(DOM0, Access::ReadWrite).unwrap();
    let mapping = mock::map(&dom0, GUEST, page.gref(), true).unwrap();
    core::mem::forget(page);
    drop(table);
    // Another kernel takes over.
    let token = guest.boot().unwrap();
    let busy = Error::Hypercall { operation: "GNTTABOP_set_version", errno: Errno::EBUSY };
    assert_eq!(GrantTable::with_version(&token, Version::V2).unwrap_err(), busy);
    assert_eq!(GrantTable::with_version(&token, Version::Best).unwrap_err(), busy);
    drop(mapping);
    assert!(GrantTable::with_version(&token, Version::V2).is_ok());
}

#[test]
fn reserved_entries_outlast_a_change_of_version() {
    let (_xen, dom0, guest) = machine();
    let token = guest.boot().unwrap();
    let first = GrantTable::new(&token).unwrap();
    // The toolstack made an entry for xenstore's page. Where the frame is the guest knows; here it is looked for.
    let page = first.share(DOM0, Access::ReadWrite).unwrap();
    let entries = (0..guest.pages_in_use() as u64)
        .filter_map(|index| guest.page_at(xen_hypercall::Gfn(0x1000 + index)))
        .find(|at| {
            // SAFETY: a page of the guest, read as a test's own.
            let entry = unsafe { at.cast::<[u64; 16]>().read()[8] };
            // For domain 0, and a frame that is not 0.
            entry & 0xFFFF_FFFF == 1 && entry >> 32 != 0
        })
        .expect("the frame with the entry of reference 8");
    let store = guest.alloc_pages(1).unwrap();
    // SAFETY: as above: entry 1, of eight bytes, is as entry 8, for another page, which is the test's own.
    unsafe {
        store.cast::<[u8; 5]>().write(*b"store");
        entries.cast::<u64>().add(1).write(1 | guest.gfn(store).0 << 32);
    }
    let xenstore = |gref| {
        let mut out = [0; 5];
        mock::copy_from(&dom0, GUEST, gref, 0, &mut out).map(|()| out)
    };
    assert_eq!(xenstore(GrantRef::XENSTORE), Ok(*b"store"));
    drop(page);
    first.close().unwrap();
    for version in [Version::V2, Version::V1, Version::V2] {
        let table = GrantTable::with_version(&token, version).unwrap();
        assert_eq!(xenstore(GrantRef::XENSTORE), Ok(*b"store"), "{version:?}");
        assert_eq!(xenstore(GrantRef(8)), Err(GrantStatus::GENERAL_ERROR));
        table.close().unwrap();
    }
}

#[test]
fn pages_are_shared_and_come_back_as_in_version_1() {
    let (_xen, dom0, guest) = machine();
    let table = GrantTable::with_version(&guest.boot().unwrap(), Version::V2).unwrap();
    let before = guest.pages_in_use();
    let mut page = table.share(DOM0, Access::ReadWrite).unwrap();
    assert_eq!((page.peer(), page.access(), page.gref()), (DOM0, Access::ReadWrite, GrantRef(8)));
    let gref = page.gref();
    let mut mapping = mock::map(&dom0, GUEST, gref, true).unwrap();
    mapping.mem().write_bytes(0, b"theirs").unwrap();
    let mut seen = [0; 6];
    page.read_bytes(0, &mut seen).unwrap();
    assert!(page.in_use() && &seen == b"theirs");
    assert!(matches!(page.end(), Ended::Quarantined));
    assert_eq!((table.reclaim(), guest.pages_in_use()), (0, before + 1));
    let stranger = mock::map(&guest.xen().domain(DomId(2)), GUEST, gref, false).map(drop);
    assert_eq!(stranger, Err(GrantStatus::GENERAL_ERROR));
    // Xen does not look at the entry again while it is in use.
    let again = mock::map(&dom0, GUEST, gref, false).unwrap();
    drop(mapping);
    assert_eq!(table.reclaim(), 0);
    drop(again);
    assert_eq!((table.reclaim(), guest.pages_in_use()), (1, before));
    assert_eq!(mock::map(&dom0, GUEST, gref, false).map(drop), Err(GrantStatus::GENERAL_ERROR));

    let readonly = table.share(DOM0, Access::ReadOnly).unwrap();
    let map = |writable| mock::map(&dom0, GUEST, readonly.gref(), writable).map(drop);
    assert_eq!((map(true), map(false)), (Err(GrantStatus::GENERAL_ERROR), Ok(())));
    drop(readonly);
    let ring = table.share_pages(4, DOM0, Access::ReadWrite).unwrap();
    let held = mock::map(&dom0, GUEST, ring.grefs().nth(3).unwrap(), false).unwrap();
    drop(ring);
    assert_eq!((table.stats().quarantined, table.reclaim()), (4, 0));
    drop(held);
    assert_eq!((table.reclaim(), guest.pages_in_use()), (4, before));
}

#[test]
fn the_table_grows_with_its_status_frames() {
    let (xen, dom0, guest) = machine();
    mock::set_max_frames(&xen, GUEST, 10);
    let table = GrantTable::with_version(&guest.boot().unwrap(), Version::V2).unwrap();
    assert_eq!((table.stats().refs, table.stats().max_frames), (PER_FRAME - 8, 10));
    let pages: Vec<_> =
        (0..10 * PER_FRAME - 8).map(|_| table.share(DOM0, Access::ReadWrite).unwrap()).collect();
    assert_eq!(table.share(DOM0, Access::ReadWrite).unwrap_err(), Error::NoFreeReference);
    let grefs: Vec<u32> = pages.iter().map(|page| page.gref().0).collect();
    assert_eq!(grefs, (8..10 * PER_FRAME).collect::<Vec<_>>());
    // Ten frames of entries, five of slots for them, two of status words for eight frames each, and the directory.
    assert_eq!(guest.pages_in_use(), 2 + pages.len() + 10 + 5 + 2 + 1, "and the domain's token");
    // In the second status frame.
    let page = pages.iter().find(|page| page.gref().0 == 2100).unwrap();
    let mapping = mock::map(&dom0, GUEST, page.gref(), true).unwrap();
    assert_eq!(pages.iter().filter(|page| page.in_use()).count(), 1);
    assert!(page.in_use());
    drop(mapping);
    drop(pages);
    assert_eq!(table.stats().free, table.stats().refs);
}

#[test]
fn a_frame_without_its_status_frame_is_finished_later() {
    let (xen, _dom0, guest) = machine();
    let token = guest.boot().unwrap();
    let before = guest.pages_in_use();
    for n in 0..4 {
        guest.fail_allocs_after(Some(n));
        let error = GrantTable::with_version(&token, Version::V2).unwrap_err();
        // A table that did not start has its frames taken out again.
        assert_eq!((error, guest.pages_in_use()), (Error::OutOfMemory, before));
    }
    guest.fail_allocs_after(None);
    let empty = guest.pages_in_use();
    let table = GrantTable::with_version(&token, Version::V2).unwrap();
    let mut pages: Vec<_> =
        (0..8 * PER_FRAME - 8).map(|_| table.share(DOM0, Access::ReadWrite).unwrap()).collect();
    let before = guest.pages_in_use();
    // Slots and entries of the ninth frame are there, then Xen refuses the second status frame.
    xen.register_physmap_space(XENMAPSPACE_GRANT_TABLE, |_, index, _| {
        if index >= 0x8000_0000 { Err(Errno::ENOMEM) } else { Ok(()) }
    });
    for _ in 0..2 {
        let error = table.share(DOM0, Access::ReadWrite).unwrap_err();
        assert_eq!(error, Error::Hypercall { operation: "XENMEM_add_to_physmap", errno: Errno::ENOMEM });
        assert_eq!((table.stats().frames, guest.pages_in_use()), (8, before + 3));
    }
    mock::install(&xen);
    pages.push(table.share(DOM0, Access::ReadWrite).unwrap());
    assert_eq!(table.stats().frames, 9);
    assert_eq!(guest.pages_in_use(), pages.len() + 9 + 5 + 2 + 1 + empty);
}

#[test]
fn a_part_is_copied_and_nothing_beside_it() {
    let (_xen, dom0, guest) = machine();
    let table = GrantTable::with_version(&guest.boot().unwrap(), Version::V2).unwrap();
    let mut page = table.alloc_page().unwrap();
    page.bytes_mut()[100..110].copy_from_slice(b"for others");
    let mut part = table.grant_part(page, DOM0, Access::ReadWrite, 100, 10).unwrap();
    let gref = part.gref();
    let read = |offset, len: usize| {
        let mut out = vec![0; len];
        mock::copy_from(&dom0, GUEST, gref, offset, &mut out).map(|()| out)
    };
    assert_eq!(read(100, 10).unwrap(), b"for others");
    assert_eq!(read(104, 6).unwrap(), b"others");
    for (offset, len) in [(99, 2), (100, 11), (0, 1), (110, 1), (4095, 1)] {
        assert_eq!(read(offset, len), Err(GrantStatus::GENERAL_ERROR), "{offset}, {len}");
    }
    assert_eq!(read(4090, 10), Err(GrantStatus::BAD_COPY_ARG));
    assert_eq!(mock::copy_to(&dom0, GUEST, gref, 104, b"owners"), Ok(()));
    assert_eq!(mock::copy_to(&dom0, GUEST, gref, 105, b"owners"), Err(GrantStatus::GENERAL_ERROR));
    assert_eq!(mock::map(&dom0, GUEST, gref, false).map(drop), Err(GrantStatus::GENERAL_ERROR));
    let mut seen = [0; 12];
    part.read_bytes(99, &mut seen).unwrap();
    assert_eq!(&seen, b"\0for owners\0");
    let page = part.end().page().unwrap();

    for (offset, len) in [(0, 0), (0, 4097), (4096, 1), (1, 4096), (usize::MAX, 2), (2, usize::MAX)] {
        let page = table.alloc_page().unwrap();
        let rejected = table.grant_part(page, DOM0, Access::ReadOnly, offset, len).unwrap_err();
        assert_eq!(rejected.error, Error::BadRange, "{offset}, {len}");
    }
    let whole = table.grant_part(page, DOM0, Access::ReadOnly, 0, PAGE_SIZE).unwrap();
    assert_eq!(mock::copy_to(&dom0, GUEST, whole.gref(), 0, b"x"), Err(GrantStatus::GENERAL_ERROR));
    drop(whole);
    assert_eq!(table.stats().free, table.stats().refs);
}

#[test]
fn a_grant_is_passed_on_for_copies() {
    let (xen, dom0, guest) = machine();
    let other = xen.domain(DomId(2));
    let owners = GrantTable::new(&guest.boot().unwrap()).unwrap();
    let table = GrantTable::with_version(&other.boot().unwrap(), Version::V2).unwrap();
    let mut page = owners.share(DomId(2), Access::ReadOnly).unwrap();
    page.write_bytes(0, b"passed").unwrap();

    let passed = table.grant_transitive(DOM0, Access::ReadWrite, GUEST, page.gref()).unwrap();
    let read = |granter, gref| {
        let mut out = [0; 6];
        mock::copy_from(&dom0, granter, gref, 0, &mut out).map(|()| out)
    };
    assert_eq!((passed.peer(), read(DomId(2), passed.gref())), (DOM0, Ok(*b"passed")));
    assert_eq!(read(GUEST, page.gref()), Err(GrantStatus::GENERAL_ERROR), "not its grant");
    // No more than the owner allows, and nothing but copies.
    let write = mock::copy_to(&dom0, DomId(2), passed.gref(), 0, b"x");
    assert_eq!(write, Err(GrantStatus::GENERAL_ERROR));
    let mapped = mock::map(&dom0, DomId(2), passed.gref(), false).map(drop);
    assert_eq!(mapped, Err(GrantStatus::GENERAL_ERROR));
    assert!(!passed.in_use() && !page.in_use(), "a use that failed leaves no trace");
    // Not a second time, not its own, not what does not exist.
    let theirs = GrantTable::with_version(&dom0.boot().unwrap(), Version::V2).unwrap();
    let twice = theirs.grant_transitive(GUEST, Access::ReadOnly, DomId(2), passed.gref()).unwrap();
    let mut out = [0; 6];
    let copied = mock::copy_from(&guest, DOM0, twice.gref(), 0, &mut out);
    assert_eq!(copied, Err(GrantStatus::GENERAL_ERROR));
    for (owner, gref, status) in [
        (DomId(2), page.gref(), GrantStatus::GENERAL_ERROR),
        (DomId(9), page.gref(), GrantStatus::BAD_DOMAIN),
        (GUEST, GrantRef(5000), GrantStatus::BAD_GNTREF),
    ] {
        let wrong = table.grant_transitive(DOM0, Access::ReadOnly, owner, gref).unwrap();
        assert_eq!(read(DomId(2), wrong.gref()), Err(status));
        assert!(wrong.end());
    }
    drop(page);
    assert_eq!(read(DomId(2), passed.gref()), Err(GrantStatus::GENERAL_ERROR), "the owner has ended it");
    assert!(passed.end() && twice.end());
    assert_eq!(table.stats().free, table.stats().refs);
}

#[test]
fn version_1_grants_whole_pages_only() {
    let (_xen, _dom0, guest) = machine();
    let table = GrantTable::new(&guest.boot().unwrap()).unwrap();
    let rejected = table.grant_part(table.alloc_page().unwrap(), DOM0, Access::ReadOnly, 0, 16).unwrap_err();
    assert_eq!(rejected.error, Error::NeedsVersion2);
    let passed = table.grant_transitive(DOM0, Access::ReadOnly, DomId(2), GrantRef(8));
    assert_eq!(passed.unwrap_err(), Error::NeedsVersion2);
    assert_eq!(table.stats().free, table.stats().refs);
}

#[test]
fn a_second_table_does_not_touch_what_the_first_left_in_use() {
    let (_xen, dom0, guest) = machine();
    let first = GrantTable::with_version(&guest.boot().unwrap(), Version::V2).unwrap();
    let busy = first.share(DOM0, Access::ReadWrite).unwrap();
    let (gref, mapping) = (busy.gref(), mock::map(&dom0, GUEST, busy.gref(), true).unwrap());
    core::mem::forget(busy);
    drop(first);
    let second = GrantTable::with_version(&guest.boot().unwrap(), Version::V2).unwrap();
    assert_eq!((second.stats().quarantined, second.reclaim()), (1, 0));
    let pages = second.share_many::<247>(DOM0, Access::ReadWrite).unwrap();
    assert!(pages.iter().all(|page| page.gref() != gref));
    drop(mapping);
    assert_eq!(second.reclaim(), 1);
}

#[test]
fn unknown_versions_are_refused() {
    let (_xen, _dom0, guest) = machine();
    for version in [0, 3, u32::MAX] {
        // SAFETY: nothing is granted.
        assert_eq!(unsafe { grant::set_version(&guest, version) }, Err(Errno::EINVAL));
    }
    // SAFETY: an operation that does not exist reads nothing.
    let unknown = unsafe { guest.hypercall(HypercallNr::GRANT_TABLE_OP, [77, 0, 0, 0, 0]) };
    assert_eq!(Errno::check(unknown), Err(Errno::ENOSYS));
}
