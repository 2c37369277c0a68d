//! What the table and its pages do, one behaviour at a time.
#![cfg(feature = "mock")]

use xen_gnttab::{
    Access, Ended, EndedPages, Error, GrantRef, GrantStatus, GrantTable, GrantedPage, Version, mock,
};
use xen_hypercall::abi::{GNTTABOP_COPY, GnttabCopy, GnttabCopyPtr, XENMAPSPACE_GRANT_TABLE};
use xen_hypercall::mock::{MockDomain, MockXen};
use xen_hypercall::sched::Resumed;
use xen_hypercall::{DomId, Errno, Hypercall, HypercallNr, PAGE_SIZE, grant};
use xen_ring::Backing;

const DOM0: DomId = DomId(0);
const GUEST: DomId = DomId(1);
/// References in one frame that are not reserved.
const PER_FRAME: u32 = 512;
const FIRST_FRAME: u32 = PER_FRAME - GrantRef::RESERVED;

fn machine() -> (MockXen, MockDomain, MockDomain) {
    let xen = MockXen::new();
    mock::install(&xen);
    let (dom0, guest) = (xen.domain(DOM0), xen.domain(GUEST));
    (xen, dom0, guest)
}

fn back(ended: Ended<'_, MockDomain>) -> bool {
    matches!(ended, Ended::Page(_))
}

#[test]
fn a_granted_page_is_shared_until_it_ends() {
    let (_xen, dom0, guest) = machine();
    let table = GrantTable::new(&guest.boot().unwrap()).unwrap();
    let before = guest.pages_in_use();
    let mut page = table.share(DOM0, Access::ReadWrite).unwrap();
    assert_eq!((page.peer(), page.access(), page.gref()), (DOM0, Access::ReadWrite, GrantRef(8)));
    let mut bytes = [1; PAGE_SIZE];
    page.read_bytes(0, &mut bytes).unwrap();
    assert_eq!(bytes, [0; PAGE_SIZE], "zeroed");

    assert!(!page.in_use());
    let mut mapping = mock::map(&dom0, GUEST, page.gref(), true).unwrap();
    assert!(page.in_use());
    mapping.mem().write_bytes(4090, b"backen").unwrap();
    let mut six = [0; 6];
    page.read_bytes(4090, &mut six).unwrap();
    assert_eq!(&six, b"backen");
    assert!(page.write_bytes(4091, b"beyond").is_err());
    drop(mapping);
    assert!(!page.in_use());

    let gref = page.gref();
    let Ended::Page(page) = page.end() else { panic!("nobody uses it") };
    assert_eq!(&page.bytes()[4090..], b"backen", "the page itself came back");
    assert_eq!(mock::map(&dom0, GUEST, gref, false).unwrap_err(), GrantStatus::GENERAL_ERROR);
    drop(page);
    assert_eq!(guest.pages_in_use(), before);
    assert_eq!(table.stats().free, FIRST_FRAME);
}

#[test]
fn only_what_is_granted_can_be_used() {
    let (_xen, dom0, guest) = machine();
    let table = GrantTable::new(&guest.boot().unwrap()).unwrap();
    let page = table.share(DOM0, Access::ReadOnly).unwrap();
    let map = |gref, writable| mock::map(&dom0, GUEST, gref, writable).map(drop);
    assert_eq!(page.access(), Access::ReadOnly);
    assert_eq!(map(page.gref(), true), Err(GrantStatus::GENERAL_ERROR));
    assert_eq!(map(page.gref(), false), Ok(()));
    assert_eq!(map(GrantRef(9), false), Err(GrantStatus::GENERAL_ERROR), "grants nothing");
    assert_eq!(map(GrantRef(512), false), Err(GrantStatus::BAD_GNTREF));
    assert_eq!(map(GrantRef(u32::MAX), false), Err(GrantStatus::BAD_GNTREF));
    let missing = mock::map(&dom0, DomId(7), page.gref(), false).map(drop);
    assert_eq!(missing, Err(GrantStatus::BAD_DOMAIN));
    let stranger = guest.xen().domain(DomId(2));
    assert_eq!(mock::map(&stranger, GUEST, page.gref(), false).map(drop), Err(GrantStatus::GENERAL_ERROR));

    let mut out = [0; 4];
    assert_eq!(mock::copy_from(&dom0, GUEST, page.gref(), 4092, &mut out), Ok(()));
    assert_eq!(mock::copy_from(&dom0, GUEST, page.gref(), 4093, &mut out), Err(GrantStatus::BAD_COPY_ARG));
    assert_eq!(
        mock::copy_from(&dom0, GUEST, page.gref(), usize::MAX, &mut out),
        Err(GrantStatus::BAD_COPY_ARG)
    );
    assert_eq!(mock::copy_to(&dom0, GUEST, page.gref(), 0, &out), Err(GrantStatus::GENERAL_ERROR));
}

#[test]
fn a_page_in_use_is_neither_freed_nor_reused() {
    let (xen, dom0, guest) = machine();
    let table = GrantTable::new(&guest.boot().unwrap()).unwrap();
    let before = guest.pages_in_use();
    let mut page = table.share(DOM0, Access::ReadWrite).unwrap();
    page.write_bytes(0, b"kept").unwrap();
    let gref = page.gref();
    let (first, second) =
        (mock::map(&dom0, GUEST, gref, true).unwrap(), mock::map(&dom0, GUEST, gref, false).unwrap());
    assert_eq!(mock::mappings_of(&xen, GUEST), 2);
    assert!(!back(page.end()));
    assert_eq!((table.stats().quarantined, guest.pages_in_use()), (1, before + 1));
    drop(first);
    assert_eq!(table.reclaim(), 0, "still mapped for reading");
    let others: Vec<_> = (0..20).map(|_| table.share(DOM0, Access::ReadWrite).unwrap()).collect();
    assert!(others.iter().all(|other| other.gref() != gref));
    let mut second = second;
    let mut kept = [0; 4];
    second.mem().read_bytes(0, &mut kept).unwrap();
    assert_eq!(&kept, b"kept");
    drop((second, others));
    assert_eq!((table.reclaim(), table.reclaim()), (1, 0));
    assert_eq!(
        (table.stats().quarantined, table.stats().free, guest.pages_in_use()),
        (0, FIRST_FRAME, before)
    );
}

#[test]
fn dropping_is_ending() {
    let (_xen, dom0, guest) = machine();
    let table = GrantTable::new(&guest.boot().unwrap()).unwrap();
    let before = guest.pages_in_use();
    let (idle, busy) =
        (table.share(DOM0, Access::ReadWrite).unwrap(), table.share(DOM0, Access::ReadWrite).unwrap());
    let mapping = mock::map(&dom0, GUEST, busy.gref(), true).unwrap();
    drop((idle, busy));
    assert_eq!((table.stats().quarantined, guest.pages_in_use()), (1, before + 1));
    drop(mapping);
    table.reclaim();
    assert_eq!(guest.pages_in_use(), before);
}

#[test]
fn the_table_grows_to_its_limit_and_then_says_so() {
    let (xen, dom0, guest) = machine();
    mock::set_max_frames(&xen, GUEST, 2);
    let table = GrantTable::new(&guest.boot().unwrap()).unwrap();
    assert_eq!((table.stats().frames, table.stats().max_frames, table.stats().refs), (1, 2, FIRST_FRAME));
    let share = || table.share(DOM0, Access::ReadWrite);
    let mut pages: Vec<GrantedPage<'_, _>> = (0..FIRST_FRAME + PER_FRAME).map(|_| share().unwrap()).collect();
    assert_eq!((table.stats().frames, table.stats().free), (2, 0));
    let mut grefs: Vec<u32> = pages.iter().map(|page| page.gref().0).collect();
    grefs.sort_unstable();
    assert_eq!(grefs, (8..1024).collect::<Vec<u32>>(), "all of them, and no reserved one");
    let before = guest.pages_in_use();
    assert_eq!(share().unwrap_err(), Error::NoFreeReference);
    assert_eq!(guest.pages_in_use(), before, "the page that could not be granted was freed");

    // A peer that lets go of an ended page makes room, without anybody calling reclaim.
    let last = pages.pop().unwrap();
    let (gref, mapping) = (last.gref(), mock::map(&dom0, GUEST, last.gref(), true).unwrap());
    drop(last);
    assert_eq!(share().unwrap_err(), Error::NoFreeReference);
    drop(mapping);
    assert_eq!(share().unwrap().gref(), gref);
    drop(pages);
    assert_eq!(table.stats().free, table.stats().refs);
}

#[test]
fn a_page_that_cannot_be_granted_comes_back() {
    let (xen, _dom0, guest) = machine();
    mock::set_max_frames(&xen, GUEST, 1);
    let table = GrantTable::new(&guest.boot().unwrap()).unwrap();
    let pages: Vec<_> = (0..FIRST_FRAME).map(|_| table.share(DOM0, Access::ReadOnly).unwrap()).collect();
    let mut page = table.alloc_page().unwrap();
    page.bytes_mut()[7] = 7;
    let rejected = table.grant(page, DOM0, Access::ReadOnly).unwrap_err();
    assert_eq!((rejected.error, rejected.page.bytes()[7]), (Error::NoFreeReference, 7));
    drop(pages);
    let granted = table.grant(rejected.page, DOM0, Access::ReadOnly).unwrap();
    let mut seven = [0];
    mock::copy_from(&guest.xen().domain(DOM0), GUEST, granted.gref(), 7, &mut seven).unwrap();
    assert_eq!(seven, [7]);
}

#[test]
fn running_out_of_memory_leaves_everything_usable() {
    let (_xen, _dom0, guest) = machine();
    let token = guest.boot().unwrap();
    let before = guest.pages_in_use();
    for n in 0..3 {
        guest.fail_allocs_after(Some(n));
        assert_eq!(GrantTable::new(&token).unwrap_err(), Error::OutOfMemory);
        assert_eq!(guest.pages_in_use(), before);
    }
    guest.fail_allocs_after(None);
    let table = GrantTable::new(&token).unwrap();
    let mut pages: Vec<_> = (0..FIRST_FRAME).map(|_| table.share(DOM0, Access::ReadWrite).unwrap()).collect();
    let before = guest.pages_in_use();
    // One page to share, two of the next frame: each may be missing. The frame's slots are kept for the next try.
    for (n, kept) in [(0, 0), (1, 0), (2, 1), (1, 1)] {
        guest.fail_allocs_after(Some(n));
        let shared = table.share(DOM0, Access::ReadWrite);
        assert_eq!(shared.unwrap_err(), Error::OutOfMemory);
        assert_eq!(guest.pages_in_use(), before + kept, "after {n} allocations");
    }
    assert_eq!(table.stats().frames, 1);
    guest.fail_allocs_after(None);
    pages.push(table.share(DOM0, Access::ReadWrite).unwrap());
    assert_eq!(table.stats().frames, 2);
}

#[test]
fn a_refused_frame_is_not_taken_for_memory_again() {
    let (xen, _dom0, guest) = machine();
    let table = GrantTable::new(&guest.boot().unwrap()).unwrap();
    let _pages: Vec<_> = (0..FIRST_FRAME).map(|_| table.share(DOM0, Access::ReadWrite).unwrap()).collect();
    // Xen takes the page away and then fails, so nobody must get it as memory; but each try may take the same one.
    xen.register_physmap_space(XENMAPSPACE_GRANT_TABLE, |_, _, _| Err(Errno::ENOMEM));
    let before = guest.pages_in_use();
    for _ in 0..3 {
        let error = table.share(DOM0, Access::ReadWrite).unwrap_err();
        assert_eq!(error, Error::Hypercall { operation: "XENMEM_add_to_physmap", errno: Errno::ENOMEM });
        assert_eq!(guest.pages_in_use(), before + 2, "slots, and the page that may be no memory any more");
    }
    mock::install(&xen);
    let page = table.share(DOM0, Access::ReadWrite).unwrap();
    assert_eq!((page.gref(), guest.pages_in_use()), (GrantRef(512), before + 3));

    // A table that could not start leaves nothing but that page.
    let other = xen.domain(DomId(2));
    xen.register_physmap_space(XENMAPSPACE_GRANT_TABLE, |_, _, _| Err(Errno::EPERM));
    let token = other.boot().unwrap();
    let before = other.pages_in_use();
    GrantTable::new(&token).unwrap_err();
    assert_eq!(other.pages_in_use(), before + 1);
}

#[test]
fn a_second_table_does_not_touch_what_the_first_left_in_use() {
    let (_xen, dom0, guest) = machine();
    let first = GrantTable::new(&guest.boot().unwrap()).unwrap();
    let (idle, busy) =
        (first.share(DOM0, Access::ReadWrite).unwrap(), first.share(DOM0, Access::ReadWrite).unwrap());
    let mapping = mock::map(&dom0, GUEST, busy.gref(), true).unwrap();
    let gref = busy.gref();
    core::mem::forget((idle, busy));
    drop(first);

    let second = GrantTable::new(&guest.boot().unwrap()).unwrap();
    assert_eq!((second.stats().quarantined, second.stats().free), (1, FIRST_FRAME - 1));
    assert_eq!(second.reclaim(), 0);
    let pages: Vec<_> =
        (0..FIRST_FRAME - 1).map(|_| second.share(DOM0, Access::ReadWrite).unwrap()).collect();
    assert!(pages.iter().all(|page| page.gref() != gref));
    drop((mapping, pages));
    assert_eq!((second.reclaim(), second.stats().free), (1, FIRST_FRAME));
}

#[test]
fn the_hypercalls_answer_as_xen_does() {
    let (xen, dom0, guest) = machine();
    assert_eq!(grant::get_version(&guest), Ok(1));
    // SAFETY: nothing is granted.
    assert_eq!(unsafe { grant::set_version(&guest, 1) }, Ok(1));
    // SAFETY: nothing is granted.
    assert_eq!(unsafe { grant::set_version(&guest, 3) }, Err(Errno::EINVAL));
    let size = || grant::query_size(&guest).map(|size| (size.frames, size.max_frames));
    assert_eq!(size(), Ok((1, 64)));
    mock::set_max_frames(&xen, GUEST, 4);
    let table = GrantTable::new(&guest.boot().unwrap()).unwrap();
    assert_eq!(size(), Ok((1, 4)));

    // GNTTABOP_copy from the guest's page to a page of dom0's own, as netback does for transmitted packets.
    let mut page = table.share(DOM0, Access::ReadOnly).unwrap();
    page.write_bytes(100, b"packet").unwrap();
    let theirs = GrantTable::new(&dom0.boot().unwrap()).unwrap();
    let local = theirs.alloc_page().unwrap();
    let from = |reference: u32, domid: DomId, offset| GnttabCopyPtr {
        reference_or_gmfn: reference.into(),
        domid: domid.0,
        offset,
        pad0: 0,
    };
    let to = GnttabCopyPtr { reference_or_gmfn: local.gfn().0, domid: DomId::SELF.0, offset: 1, pad0: 0 };
    let op = |source| GnttabCopy { source, dest: to, len: 6, flags: 1, status: 1, pad0: 0 };
    let mut ops = [
        op(from(page.gref().0, GUEST, 100)),
        op(from(page.gref().0, GUEST, 4091)),
        op(from(600, GUEST, 0)),
        GnttabCopy { flags: 0, ..op(from(page.gref().0, GUEST, 0)) },
    ];
    let pointer = ops.as_mut_ptr().expose_provenance();
    // SAFETY: GNTTABOP_copy reads and fills the four operations, and writes to the local page, which only this test uses.
    let done =
        unsafe { dom0.hypercall(HypercallNr::GRANT_TABLE_OP, [GNTTABOP_COPY, pointer, ops.len(), 0, 0]) };
    assert_eq!(done, 0);
    let expected = [
        GrantStatus::OKAY,
        GrantStatus::BAD_COPY_ARG,
        GrantStatus::BAD_GNTREF,
        GrantStatus::PERMISSION_DENIED,
    ];
    assert_eq!(ops.map(|op| GrantStatus(op.status)), expected);
    assert_eq!(&local.bytes()[..8], b"\0packet\0");
    assert!(!page.in_use());
}

#[test]
fn pages_are_rings_backing() {
    fn first_byte(backing: &mut impl Backing) -> u8 {
        let mut byte = [0];
        backing.mem().read_bytes(0, &mut byte).unwrap();
        byte[0]
    }
    let (_xen, dom0, guest) = machine();
    let table = GrantTable::new(&guest.boot().unwrap()).unwrap();
    let mut owned = table.alloc_page().unwrap();
    owned.bytes_mut()[0] = 3;
    assert_eq!(first_byte(&mut owned), 3);
    let mut granted = table.grant(owned, DOM0, Access::ReadWrite).unwrap();
    assert_eq!(first_byte(&mut granted), 3);
    assert_eq!(first_byte(&mut mock::map(&dom0, GUEST, granted.gref(), false).unwrap()), 3);
}

#[test]
fn a_domain_has_one_table() {
    let (_xen, _dom0, guest) = machine();
    let token = guest.boot().unwrap();
    let table = GrantTable::new(&token).unwrap();
    assert_eq!(GrantTable::new(&token).unwrap_err(), Error::Claimed);
    assert_eq!(GrantTable::with_version(&token, Version::Best).unwrap_err(), Error::Claimed);
    drop(table);
    assert_eq!(GrantTable::new(&token).unwrap_err(), Error::Claimed, "Xen has its frames still");
}

#[test]
fn what_was_granted_before_a_resume_is_stale_and_comes_back_untouched() {
    let (xen, dom0, guest) = machine();
    let token = guest.boot().unwrap();
    let table = GrantTable::with_version(&token, Version::V2).unwrap();
    let before = guest.pages_in_use();
    let mut page = table.share(DOM0, Access::ReadWrite).unwrap();
    page.write_bytes(0, b"kept").unwrap();
    let lent = table.lend(table.alloc_page().unwrap(), DOM0).unwrap();
    let run = table.share_pages(2, DOM0, Access::ReadWrite).unwrap();
    let reference = table.reserve().unwrap();
    let held = table.share(DOM0, Access::ReadWrite).unwrap();
    let passed = table.grant_transitive(DOM0, Access::ReadOnly, DomId(7), GrantRef(9)).unwrap();
    // The peer of the old domain holds on to it; nothing of that reaches the new one.
    let mapping = mock::map(&dom0, GUEST, held.gref(), true).unwrap();
    // SAFETY: one vCPU, one thread, no page of another domain is mapped.
    assert_eq!(unsafe { token.suspend() }, Ok(Resumed::InNewDomain));
    let (stats, calls) = (table.stats(), xen.trace_text());
    assert!(!page.is_current() && !held.in_use() && run.in_use() == 0);
    assert_eq!(run.grefs().count(), 0, "there is no reference to tell anybody");
    assert_eq!(table.share(DOM0, Access::ReadOnly).unwrap_err(), Error::Stale);
    assert_eq!(table.reserve().unwrap_err(), Error::Stale);
    let rejected = reference.grant(table.alloc_page().unwrap(), DOM0, Access::ReadOnly).unwrap_err();
    assert_eq!(rejected.error, Error::Stale);
    drop(rejected);
    let back = page.end().page().expect("nobody can use it");
    assert!(back.bytes().starts_with(b"kept"));
    let (taken, stale) = held.take_back().expect("nobody can use it");
    assert_eq!(stale.grant(taken, DOM0, Access::ReadOnly).unwrap_err().error, Error::Stale);
    assert!(matches!(run.end(), EndedPages::Pages(_)) && passed.end());
    drop((back, lent));
    assert_eq!((table.reclaim(), table.stats()), (0, stats), "the table's entries are as they were");
    assert_eq!(guest.pages_in_use(), before);
    assert_eq!(xen.trace_text(), calls, "nothing was asked of Xen");
    drop(mapping);
    assert_eq!(table.close(), Err(Error::Stale));
}
