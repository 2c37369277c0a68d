//! A grant table after a resume in a new domain, in either version.
#![cfg(feature = "mock")]
#![allow(unsafe_code, reason = "suspends a domain")]

use xen_gnttab::{Access, Ended, Error, GrantTable, GrantedPage, Version, mock};
use xen_hypercall::mock::{MockDomain, MockXen};
use xen_hypercall::sched::Resumed;
use xen_hypercall::{DomId, Domain, Errno, Restore, SuspendError};

const DOM0: DomId = DomId(0);
const GUEST: DomId = DomId(1);
/// Where the backends are after a migration.
const BACK: DomId = DomId(0);

struct World {
    xen: MockXen,
    dom0: MockDomain,
    guest: MockDomain,
    token: Domain<MockDomain>,
    table: GrantTable<MockDomain>,
}

impl World {
    fn new(version: Version) -> Self {
        let xen = MockXen::new();
        mock::install(&xen);
        let (dom0, guest) = (xen.domain(DOM0), xen.domain(GUEST));
        let token = guest.boot().unwrap();
        let table = GrantTable::with_version(&token, version).unwrap();
        Self { xen, dom0, guest, token, table }
    }

    fn suspend(&self) -> Result<Resumed, SuspendError> {
        // SAFETY: one thread, which is between two calls; what is mapped is held.
        unsafe { self.token.suspend() }
    }

    fn resume(&self) {
        assert_eq!(self.suspend(), Ok(Resumed::InNewDomain));
        self.table.resume().unwrap();
    }

    /// What the backend sees in a page.
    fn seen(&self, page: &GrantedPage<'_, MockDomain>) -> [u8; 4] {
        let mut bytes = [0; 4];
        let mut mapping = mock::map(&self.dom0, self.guest.id(), page.gref(), false).unwrap();
        mapping.mem().read_bytes(0, &mut bytes).unwrap();
        bytes
    }
}

const VERSIONS: [Version; 2] = [Version::V1, Version::V2];

#[test]
fn a_page_is_granted_again_in_place_and_the_backend_sees_what_is_in_it() {
    for version in VERSIONS {
        let world = World::new(version);
        let (table, guest) = (&world.table, &world.guest);
        let mut page = table.share(DOM0, Access::ReadWrite).unwrap();
        page.write_bytes(0, b"kept").unwrap();
        assert_eq!(page.regrant(DOM0), Ok(()), "it is in force");
        assert_eq!(page.regrant(DomId(9)), Err(Error::InUse));
        let mut lent = table.lend(table.alloc_page().unwrap(), DOM0).unwrap();
        let mut run = table.share_pages(3, DOM0, Access::ReadWrite).unwrap();
        run.write_bytes(8190, b"over").unwrap();
        let (gfn, in_use) = (page.gfn(), guest.pages_in_use());
        assert_eq!(world.suspend(), Ok(Resumed::InNewDomain));
        assert_eq!(page.regrant(BACK), Err(Error::Stale), "the table comes first");
        (&mut &*table).restore().unwrap();
        table.resume().unwrap();
        assert_eq!((table.stats().in_use, table.stats().free), (0, table.stats().refs));
        assert!(mock::map(&world.dom0, guest.id(), page.gref(), false).is_err(), "nothing is granted yet");
        page.regrant(BACK).unwrap();
        lent.regrant(BACK).unwrap();
        run.regrant(BACK).unwrap();
        assert!(page.is_current() && lent.is_current() && run.is_current());
        assert_eq!((page.gfn(), guest.pages_in_use()), (gfn, in_use), "not copied");
        assert_eq!((page.peer(), lent.peer(), run.peer()), (BACK, BACK, BACK));
        assert_eq!(world.seen(&page), *b"kept");
        // For reading only, still.
        assert!(mock::map(&world.dom0, guest.id(), lent.gref(), true).is_err());
        assert!(mock::map(&world.dom0, guest.id(), lent.gref(), false).is_ok());
        let grefs: Vec<_> = run.grefs().collect();
        let mut ring = mock::map_row(&world.dom0, guest.id(), &grefs, true).unwrap();
        let mut bytes = [0; 4];
        ring.mem().read_bytes(8190, &mut bytes).unwrap();
        assert_eq!(&bytes, b"over");
        drop(ring);
        let stats = table.stats();
        assert_eq!((stats.in_use, stats.granted, stats.ended), (5, 10, 5));
        drop((page, lent, run));
        assert_eq!((table.stats().in_use, table.stats().ended), (0, 10));
    }
}

#[test]
fn marking_a_page_leaves_what_is_in_it() {
    let world = World::new(Version::V1);
    let mut page = world.table.share(DOM0, Access::ReadWrite).unwrap();
    let mut mapping = mock::map(&world.dom0, world.guest.id(), page.gref(), true).unwrap();
    mapping.mem().write_bytes(0, b"written by the peer").unwrap();
    let mut seen = [0; 19];
    page.mark_written();
    page.read_bytes(0, &mut seen).unwrap();
    assert_eq!(&seen, b"written by the peer");
    drop(mapping);
    world.resume();
    page.mark_written();
    page.read_bytes(0, &mut seen).unwrap();
    assert_eq!(&seen, b"written by the peer");
}

#[test]
fn all_references_are_free_and_no_page_is_lost() {
    for version in VERSIONS {
        let world = World::new(version);
        let (table, guest) = (&world.table, &world.guest);
        let before = guest.pages_in_use();
        // So many that the table grows.
        let pages: Vec<_> = (0..1500).map(|_| table.share(DOM0, Access::ReadWrite).unwrap()).collect();
        let frames = table.stats().frames;
        assert!(frames > 2);
        let reference = table.reserve().unwrap();
        let (one, run) = (
            table.share(DOM0, Access::ReadWrite).unwrap(),
            table.share_pages(4, DOM0, Access::ReadWrite).unwrap(),
        );
        // The old domain's peer keeps them, and for all we know it does so for ever.
        let last = run.grefs().last().unwrap();
        let kept = [one.gref(), last].map(|gref| mock::map(&world.dom0, GUEST, gref, true).unwrap());
        assert!(matches!(one.end(), Ended::Quarantined));
        drop(run);
        assert_eq!(table.stats().quarantined, 5);
        let grown = guest.pages_in_use();
        world.resume();
        let stats = table.stats();
        assert_eq!((stats.quarantined, stats.in_use, stats.free), (0, 0, stats.refs));
        assert_eq!(stats.frames, frames);
        assert_eq!(guest.pages_in_use(), grown - 5, "the quarantine is empty");
        assert_eq!(stats.granted, stats.ended + stats.quarantines);
        drop(kept);
        // Every reference is given out once.
        let again: Vec<_> = (0..stats.free).map(|_| table.share(BACK, Access::ReadWrite).unwrap()).collect();
        let mut grefs: Vec<_> = again.iter().map(GrantedPage::gref).collect();
        grefs.sort_unstable();
        grefs.dedup();
        assert_eq!(grefs.len(), stats.free as usize);
        assert_eq!(table.stats().frames, frames, "without growing");
        drop((pages, reference));
        assert_eq!(table.stats().in_use, stats.free, "what is stale gives nothing back");
        drop(again);
        // And it grows on.
        let more: Vec<_> =
            (0..stats.free + 600).map(|_| table.share(BACK, Access::ReadWrite).unwrap()).collect();
        assert!(table.stats().frames > frames);
        drop(more);
        let World { guest, table, .. } = world;
        table.close().unwrap();
        assert!(guest.pages_in_use() <= before, "{} pages, {before} before", guest.pages_in_use());
    }
}

#[test]
fn the_toolstacks_own_grants_are_left_alone_and_a_part_is_not_granted_whole() {
    let world = World::new(Version::V2);
    let table = &world.table;
    let page = table.alloc_page().unwrap();
    let mut part = table.grant_part(page, DOM0, Access::ReadWrite, 100, 50).unwrap();
    let gref = part.gref();
    assert_eq!(mock::uses_of(&world.xen, GUEST, gref), 0);
    world.resume();
    assert_eq!(part.regrant(BACK), Err(Error::BadRange));
    assert_eq!(part.gref(), gref);
    let page = part.end().page().unwrap();
    let part = table.grant_part(page, BACK, Access::ReadWrite, 100, 50).unwrap();
    let mut bytes = [0; 10];
    assert!(mock::copy_from(&world.dom0, world.guest.id(), part.gref(), 100, &mut bytes).is_ok());
    assert!(mock::map(&world.dom0, world.guest.id(), part.gref(), false).is_err());
    // A second life is as good as the first.
    world.resume();
    assert_eq!(table.version(), Version::V2);
    drop(part);
    assert!(table.share(BACK, Access::ReadOnly).is_ok());
}

#[test]
fn a_page_of_another_domain_forbids_a_suspend() {
    let world = World::new(Version::V1);
    let theirs = GrantTable::new(&world.dom0.boot().unwrap()).unwrap();
    let page = theirs.share(GUEST, Access::ReadWrite).unwrap();
    let mapped = world.table.map::<1>(DOM0, &[page.gref()]).unwrap();
    let reading = world.table.map_for_reading::<2>(DOM0, &[page.gref()]).unwrap();
    assert_eq!(world.suspend(), Err(SuspendError::Refused(Errno::EBUSY)));
    mapped.unmap().unwrap();
    assert_eq!(world.suspend(), Err(SuspendError::Refused(Errno::EBUSY)));
    drop(reading);
    // What could not be mapped is not there.
    assert!(world.table.map::<1>(DOM0, &[xen_gnttab::GrantRef(400)]).is_err());
    assert_eq!(world.suspend(), Ok(Resumed::InNewDomain));
    world.table.resume().unwrap();
    assert!(page.end().page().is_some(), "nobody uses it");
}

#[test]
fn a_xen_that_refuses_leaves_the_table_stale() {
    let world = World::new(Version::V2);
    let page = world.table.share(DOM0, Access::ReadWrite).unwrap();
    mock::set_max_version(&world.xen, GUEST, 1);
    assert_eq!(world.suspend(), Ok(Resumed::InNewDomain));
    assert_eq!(world.table.resume(), Err(Error::Version(1)));
    assert_eq!((&mut &world.table).restore().unwrap_err().errno, Errno::ENOSYS);
    assert_eq!(world.table.reserve().unwrap_err(), Error::Stale);
    let in_use = world.guest.pages_in_use();
    drop(page);
    assert_eq!(world.guest.pages_in_use(), in_use - 1);

    let world = World::new(Version::V1);
    let pages: Vec<_> = (0..1200).map(|_| world.table.share(DOM0, Access::ReadWrite).unwrap()).collect();
    let fewer = |domain: &MockDomain| {
        let new = domain.xen().migrate(domain);
        mock::set_max_frames(domain.xen(), new, 1);
        Resumed::InNewDomain
    };
    world.xen.set_toolstack(fewer);
    assert_eq!(world.suspend(), Ok(Resumed::InNewDomain));
    assert!(matches!(world.table.resume(), Err(Error::Hypercall { errno: Errno::EINVAL, .. })));
    assert_eq!(world.table.reserve().unwrap_err(), Error::Stale);
    drop(pages);
}
