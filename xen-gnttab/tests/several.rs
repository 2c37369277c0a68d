//! Several pages at once, references held for later, pages lent, and waiting for a reference.
#![cfg(feature = "mock")]

use std::future::Future;
use std::pin::pin;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use xen_gnttab::{Access, Ended, EndedPages, Error, GrantRef, GrantStatus, GrantTable, GrantedPage, mock};
use xen_hypercall::mock::{MockDomain, MockXen};
use xen_hypercall::{DomId, Domain, Gfn, Hypercall, HypercallNr, PAGE_SIZE, Page, PageMemory, SpecialPages};

const DOM0: DomId = DomId(0);
const GUEST: DomId = DomId(1);
const FIRST_FRAME: u32 = 512 - GrantRef::RESERVED;

fn machine() -> (MockXen, MockDomain, MockDomain) {
    let xen = MockXen::new();
    mock::install(&xen);
    let (dom0, guest) = (xen.domain(DOM0), xen.domain(GUEST));
    (xen, dom0, guest)
}

fn all_free(table: &GrantTable<MockDomain>) -> bool {
    let stats = table.stats();
    stats.free == stats.refs
}

#[test]
fn many_pages_are_granted_or_none() {
    let (xen, dom0, guest) = machine();
    mock::set_max_frames(&xen, GUEST, 1);
    let table = GrantTable::new(&guest.boot().unwrap()).unwrap();
    let before = guest.pages_in_use();
    let pages = table.share_many::<16>(DOM0, Access::ReadOnly).unwrap();
    let grefs: Vec<u32> = pages.iter().map(|page| page.gref().0).collect();
    assert_eq!(grefs, (8..24).collect::<Vec<u32>>());
    for page in &pages {
        drop(mock::map(&dom0, GUEST, page.gref(), false).unwrap());
    }
    assert_eq!(table.stats().granted, 16);

    // References are short.
    let short = table.share_many::<489>(DOM0, Access::ReadOnly).unwrap_err();
    assert_eq!((short, guest.pages_in_use()), (Error::NoFreeReference, before + 16));
    drop(table.share_many::<488>(DOM0, Access::ReadOnly).unwrap());

    // Memory is short: no page was granted, not even for a while.
    let granted = table.stats().granted;
    for n in 0..8 {
        guest.fail_allocs_after(Some(n));
        assert_eq!(table.share_many::<8>(DOM0, Access::ReadOnly).unwrap_err(), Error::OutOfMemory);
        assert_eq!((table.stats().granted, table.stats().in_use), (granted, 16));
        assert_eq!(guest.pages_in_use(), before + 16);
    }
    guest.fail_allocs_after(None);
    drop(pages);
    assert!(all_free(&table));
    assert!(table.share_many::<504>(DOM0, Access::ReadOnly).is_ok());
    assert!(table.share_many::<0>(DOM0, Access::ReadOnly).is_ok());
}

#[test]
fn a_batch_that_fails_touches_no_page_of_others_whatever_its_number() {
    let (xen, dom0, guest) = machine();
    let table = GrantTable::new(&guest.boot().unwrap()).unwrap();
    let other = GrantTable::new(&xen.domain(DomId(2)).boot().unwrap()).unwrap();
    // Each table hands out the same numbers.
    let page = other.share(DOM0, Access::ReadWrite).unwrap();
    let mut ours = table.share(DOM0, Access::ReadWrite).unwrap();
    assert_eq!(page.gref(), ours.gref());
    ours.write_bytes(0, b"ours").unwrap();
    let mut mapping = mock::map(&dom0, GUEST, ours.gref(), true).unwrap();
    let before = guest.pages_in_use();
    for allowed in 0..3 {
        guest.fail_allocs_after(Some(allowed));
        assert_eq!(table.share_many::<3>(DOM0, Access::ReadOnly).unwrap_err(), Error::OutOfMemory);
        guest.fail_allocs_after(None);
        assert_eq!((guest.pages_in_use(), table.stats().in_use), (before, 1));
    }
    let mut seen = [0; 4];
    mapping.mem().read_bytes(0, &mut seen).unwrap();
    assert_eq!(&seen, b"ours");
    // What is granted is what was allocated for it, and by this table.
    let fresh = table.share_many::<3>(DOM0, Access::ReadOnly).unwrap();
    for page in &fresh {
        let mut byte = [1];
        mock::copy_from(&dom0, GUEST, page.gref(), 0, &mut byte).unwrap();
        assert_eq!(byte, [0]);
        assert_ne!(page.gref(), ours.gref());
    }
    let mine = table.alloc_page().unwrap();
    assert_eq!(other.grant(mine, DOM0, Access::ReadOnly).unwrap_err().error, Error::ForeignPage);
}

#[test]
fn pages_in_a_row_are_one_memory_with_a_reference_each() {
    let (_xen, dom0, guest) = machine();
    let table = GrantTable::new(&guest.boot().unwrap()).unwrap();
    let before = guest.pages_in_use();
    // Take some and give every second back, so that references are not in a row.
    let mut scattered = Vec::from(table.share_many::<12>(DOM0, Access::ReadWrite).unwrap());
    (0..6).for_each(|index| drop(scattered.remove(index)));
    let mut run = table.share_pages(4, DOM0, Access::ReadWrite).unwrap();
    let grefs: Vec<GrantRef> = run.grefs().collect();
    assert_eq!((run.count(), grefs.len(), run.peer(), run.in_use()), (4, 4, DOM0, 0));
    assert!(grefs.windows(2).any(|pair| pair[1].0 != pair[0].0 + 1), "{grefs:?}");
    assert_eq!(run.mem().len(), 4 * PAGE_SIZE);
    run.write_bytes(2 * PAGE_SIZE - 2, b"across").unwrap();
    assert!(run.write_bytes(4 * PAGE_SIZE - 5, b"across").is_err());

    let mut mappings: Vec<_> =
        grefs.iter().map(|gref| mock::map(&dom0, GUEST, *gref, true).unwrap()).collect();
    let (mut end, mut start) = ([0; 2], [0; 4]);
    mappings[1].mem().read_bytes(PAGE_SIZE - 2, &mut end).unwrap();
    mappings[2].mem().read_bytes(0, &mut start).unwrap();
    assert_eq!((&end, &start), (b"ac", b"ross"));
    assert_eq!(run.in_use(), 4);

    // As long as one page is in use none is freed, and none can be mapped anew.
    mappings.truncate(3);
    mappings.remove(0);
    assert!(matches!(run.end(), EndedPages::Quarantined));
    assert_eq!((table.stats().quarantined, table.stats().quarantines), (4, 4));
    let again = mock::map(&dom0, GUEST, grefs[0], false).map(drop);
    assert_eq!(again, Err(GrantStatus::GENERAL_ERROR));
    assert_eq!((table.reclaim(), guest.pages_in_use()), (0, before + 6 + 4));
    mappings.pop();
    assert_eq!((table.reclaim(), table.stats().quarantined), (0, 4));
    mappings[0].mem().write_bytes(0, b"still there").unwrap();
    mappings.pop();
    assert_eq!((table.reclaim_some(), table.stats().reclaimed), (4, 4));
    assert_eq!(guest.pages_in_use(), before + 6);

    // Nobody uses them: they come back as they are.
    let mut run = table.share_pages(3, DOM0, Access::ReadOnly).unwrap();
    run.write_bytes(0, b"mine").unwrap();
    let EndedPages::Pages(mut pages) = run.end() else { panic!("nobody uses them") };
    assert_eq!((&pages.bytes()[..4], pages.count(), pages.bytes().len()), (&b"mine"[..], 3, 3 * PAGE_SIZE));
    assert_eq!(pages.gfn(2).map(|gfn| gfn.0), pages.gfn(0).map(|gfn| gfn.0 + 2));
    assert_eq!(pages.gfn(3), None);
    pages.bytes_mut()[PAGE_SIZE] = 9;
    let run = table.grant_pages(pages, DOM0, Access::ReadOnly).unwrap();
    let mut nine = [0];
    mock::copy_from(&dom0, GUEST, run.grefs().nth(1).unwrap(), 0, &mut nine).unwrap();
    assert_eq!(nine, [9]);
    drop((run, scattered));
    assert!(all_free(&table));
    assert_eq!(guest.pages_in_use(), before);
}

#[test]
fn one_page_is_a_run_as_well() {
    let (_xen, dom0, guest) = machine();
    let table = GrantTable::new(&guest.boot().unwrap()).unwrap();
    let before = guest.pages_in_use();
    let run = table.share_pages(1, DOM0, Access::ReadWrite).unwrap();
    let mapping = mock::map(&dom0, GUEST, run.grefs().next().unwrap(), true).unwrap();
    assert_eq!(run.grefs().count(), 1);
    drop(run);
    assert_eq!((table.reclaim(), table.stats().quarantined), (0, 1));
    drop(mapping);
    assert_eq!((table.reclaim(), guest.pages_in_use()), (1, before));
    assert_eq!(table.share_pages(0, DOM0, Access::ReadWrite).unwrap_err(), Error::OutOfMemory);
}

#[test]
fn runs_fail_as_a_whole() {
    let (xen, _dom0, guest) = machine();
    mock::set_max_frames(&xen, GUEST, 1);
    let table = GrantTable::new(&guest.boot().unwrap()).unwrap();
    let before = guest.pages_in_use();
    let too_many = table.share_pages(505, DOM0, Access::ReadWrite).unwrap_err();
    assert_eq!((too_many, guest.pages_in_use()), (Error::NoFreeReference, before));
    guest.fail_allocs_after(Some(0));
    assert_eq!(table.share_pages(2, DOM0, Access::ReadWrite).unwrap_err(), Error::OutOfMemory);
    guest.fail_allocs_after(None);
    let held = table.share_many::<503>(DOM0, Access::ReadOnly).unwrap();
    let mut pages = table.alloc_pages(2).unwrap();
    pages.bytes_mut()[0] = 1;
    let (error, pages) = table.grant_pages(pages, DOM0, Access::ReadOnly).unwrap_err();
    assert_eq!((error, pages.bytes()[0]), (Error::NoFreeReference, 1));
    drop(held);
    drop(table.grant_pages(pages, DOM0, Access::ReadOnly).unwrap());
    assert!(all_free(&table));
}

#[test]
fn a_batch_larger_than_what_is_free_makes_the_table_grow() {
    let (_xen, _dom0, guest) = machine();
    let table = GrantTable::new(&guest.boot().unwrap()).unwrap();
    let first = table.share_many::<500>(DOM0, Access::ReadOnly).unwrap();
    let run = table.share_pages(600, DOM0, Access::ReadOnly).unwrap();
    assert_eq!(run.grefs().count(), 600);
    assert_eq!(table.stats().frames, 3);
    drop((first, run));
    assert!(all_free(&table));
}

#[test]
fn a_held_reference_grants_again_and_again() {
    let (xen, dom0, guest) = machine();
    mock::set_max_frames(&xen, GUEST, 1);
    let table = GrantTable::new(&guest.boot().unwrap()).unwrap();
    let mut reference = table.reserve().unwrap();
    let mut page = table.alloc_page().unwrap();
    let others: Vec<_> = (1..FIRST_FRAME).map(|_| table.share(DOM0, Access::ReadOnly).unwrap()).collect();
    guest.fail_allocs_after(Some(0));
    let gref = reference.gref();
    for round in 0..10 {
        page.bytes_mut()[0] = round;
        let granted = reference.grant(page, DOM0, Access::ReadOnly).unwrap();
        assert_eq!(granted.gref(), gref);
        let mut seen = [0xFF];
        mock::copy_from(&dom0, GUEST, gref, 0, &mut seen).unwrap();
        assert_eq!(seen, [round]);
        (page, reference) = granted.take_back().unwrap();
        assert_eq!(mock::copy_from(&dom0, GUEST, gref, 0, &mut seen), Err(GrantStatus::GENERAL_ERROR));
    }
    let stats = table.stats();
    assert_eq!((stats.granted, stats.ended, stats.quarantines), (u64::from(FIRST_FRAME) - 1 + 10, 10, 0));

    // In use, so neither comes back.
    let granted = reference.grant(page, DOM0, Access::ReadOnly).unwrap();
    let mapping = mock::map(&dom0, GUEST, gref, false).unwrap();
    assert!(granted.take_back().is_none());
    assert_eq!((table.stats().quarantined, table.stats().free), (1, 0));
    drop(mapping);
    assert_eq!(table.reclaim(), 1);
    drop(table.reserve().unwrap());
    drop(others);
    assert!(all_free(&table));
}

#[test]
fn a_lent_page_stays_readable() {
    let (_xen, dom0, guest) = machine();
    let table = GrantTable::new(&guest.boot().unwrap()).unwrap();
    let mut page = table.alloc_page().unwrap();
    page.bytes_mut()[..5].copy_from_slice(b"mine!");
    let lent = table.lend(page, DOM0).unwrap();
    assert_eq!((lent.peer(), &lent.bytes()[..5]), (DOM0, &b"mine!"[..]));
    assert_eq!(mock::map(&dom0, GUEST, lent.gref(), true).map(drop), Err(GrantStatus::GENERAL_ERROR));
    let mapping = mock::map(&dom0, GUEST, lent.gref(), false).unwrap();
    assert!(lent.in_use());
    drop(mapping);
    let Ended::Page(page) = lent.end() else { panic!("nobody uses it") };
    let (page, reference) = table.lend(page, DOM0).unwrap().take_back().unwrap();
    assert_eq!(&page.bytes()[..5], b"mine!");
    drop((page, reference));
    assert!(all_free(&table));
}

#[test]
fn pages_of_another_platform_are_refused() {
    let (_xen, dom0, guest) = machine();
    let (ours, theirs) =
        (GrantTable::new(&guest.boot().unwrap()).unwrap(), GrantTable::new(&dom0.boot().unwrap()).unwrap());
    let before = (guest.pages_in_use(), dom0.pages_in_use());
    let rejected = ours.grant(theirs.alloc_page().unwrap(), DOM0, Access::ReadOnly).unwrap_err();
    assert_eq!(rejected.error, Error::ForeignPage);
    let rejected = ours.reserve().unwrap().grant(rejected.page, DOM0, Access::ReadOnly).unwrap_err();
    assert_eq!(rejected.error, Error::ForeignPage);
    let (error, pages) =
        ours.grant_pages(theirs.alloc_pages(2).unwrap(), DOM0, Access::ReadOnly).unwrap_err();
    assert_eq!(error, Error::ForeignPage);
    drop((rejected, pages));
    assert_eq!((guest.pages_in_use(), dom0.pages_in_use()), before);
    assert!(all_free(&ours));
}

/// A platform that leaves in its pages what was there.
#[derive(Clone)]
struct Dirty(MockDomain);

// SAFETY: the inner one keeps the promises.
unsafe impl Hypercall for Dirty {
    unsafe fn hypercall(&self, nr: HypercallNr, args: [usize; 5]) -> isize {
        // SAFETY: the caller's promise is the one asked for here.
        unsafe { self.0.hypercall(nr, args) }
    }
}

// SAFETY: the inner one keeps the promises.
unsafe impl PageMemory for Dirty {
    fn alloc_pages(&self, count: usize) -> Option<NonNull<Page>> {
        let pages = self.0.alloc_pages(count)?;
        // SAFETY: allocated just now.
        unsafe { pages.as_ptr().cast::<u8>().write_bytes(0x55, count * PAGE_SIZE) };
        Some(pages)
    }
    unsafe fn free_pages(&self, first: NonNull<Page>, count: usize) {
        // SAFETY: the caller's promise is the one asked for here.
        unsafe { self.0.free_pages(first, count) };
    }
    fn gfn(&self, page: NonNull<Page>) -> Gfn {
        self.0.gfn(page)
    }
}

// SAFETY: the inner one keeps the promises.
unsafe impl SpecialPages for Dirty {
    unsafe fn map_special(&self, gfn: Gfn, count: usize) -> Option<NonNull<Page>> {
        // SAFETY: the caller's promise is the one asked for here.
        unsafe { self.0.map_special(gfn, count) }
    }
}

#[test]
fn nothing_that_was_in_a_page_reaches_another_domain() {
    let (_xen, dom0, guest) = machine();
    // SAFETY: nobody else uses this domain.
    let token = unsafe { Domain::new(Dirty(guest)) }.unwrap();
    let table = GrantTable::new(&token).unwrap();
    let one = table.share(DOM0, Access::ReadOnly).unwrap();
    let many = table.share_many::<2>(DOM0, Access::ReadOnly).unwrap();
    let run = table.share_pages(3, DOM0, Access::ReadOnly).unwrap();
    let grefs = many.iter().map(GrantedPage::gref).chain(run.grefs()).chain([one.gref()]);
    for gref in grefs {
        let mut bytes = [1; PAGE_SIZE];
        mock::copy_from(&dom0, GUEST, gref, 0, &mut bytes).unwrap();
        assert_eq!(bytes, [0; PAGE_SIZE], "{gref}");
    }
}

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn who_waits_for_a_reference_is_woken_by_the_next_one_given_back() {
    let (xen, dom0, guest) = machine();
    mock::set_max_frames(&xen, GUEST, 1);
    let table = GrantTable::new(&guest.boot().unwrap()).unwrap();
    let (first, second) = (Arc::new(Count::default()), Arc::new(Count::default()));
    let woken = || (first.0.load(Ordering::Relaxed), second.0.load(Ordering::Relaxed));
    let (one, two) = (Waker::from(first.clone()), Waker::from(second.clone()));
    let (mut one, mut two) = (Context::from_waker(&one), Context::from_waker(&two));
    let mut waiter = table.waiter().unwrap();
    assert!(waiter.poll_reference(&mut one).is_ready());
    let mut pages = Vec::from(table.share_many::<504>(DOM0, Access::ReadOnly).unwrap());
    let mut waiters: Vec<_> = std::iter::from_fn(|| table.waiter()).collect();
    assert_eq!(waiters.len(), 3, "four places");

    assert!(waiter.poll_reference(&mut one).is_pending());
    assert!(waiters[0].poll_reference(&mut two).is_pending());
    assert_eq!(woken(), (0, 0));
    drop(pages.pop());
    assert_eq!(woken(), (1, 1));
    let Poll::Ready(Ok(reference)) = waiter.poll_reference(&mut one) else { panic!("one is free") };
    assert!(waiters[0].poll_reference(&mut two).is_pending());
    drop(reference);
    assert_eq!(woken(), (1, 2), "who is served does not wait any more");

    // What a peer lets go is found by a sweep, which wakes.
    let reference = waiters[0].poll_reference(&mut two);
    let page = pages.pop().unwrap();
    let mapping = mock::map(&dom0, GUEST, page.gref(), false).unwrap();
    drop(page);
    let mut future = pin!(waiter.reference());
    assert!(future.as_mut().poll(&mut one).is_pending());
    drop(mapping);
    assert_eq!(woken().0, 1);
    assert_eq!((table.reclaim_some(), woken().0), (1, 2));
    assert!(matches!(future.as_mut().poll(&mut one), Poll::Ready(Ok(_))));
    drop((reference, waiters));
    assert!(table.waiter().is_some(), "places come back");
}

#[test]
fn a_sweep_in_portions_comes_round() {
    let (_xen, dom0, guest) = machine();
    let table = GrantTable::new(&guest.boot().unwrap()).unwrap();
    let pages = Vec::from(table.share_many::<1500>(DOM0, Access::ReadOnly).unwrap());
    // Something in the quarantine in each of three portions, of which the middle one stays.
    let mut kept = Vec::new();
    for page in &pages {
        if matches!(page.gref().0, 100 | 700 | 701 | 1400) {
            kept.push(mock::map(&dom0, GUEST, page.gref(), false).unwrap());
        }
    }
    drop(pages);
    assert_eq!(table.stats().quarantined, 4);
    kept.retain(|mapping| matches!(mapping.gref().0, 700 | 701));
    let mut portions: Vec<usize> = (0..3).map(|_| table.reclaim_some()).collect();
    portions.sort_unstable();
    assert_eq!(portions, [0, 1, 1]);
    assert_eq!((0..5).map(|_| table.reclaim_some()).sum::<usize>(), 0);
    kept.pop();
    assert_eq!(table.reclaim(), 1);
    kept.pop();
    assert_eq!((table.reclaim_some(), table.reclaim_some()), (1, 0));
    let stats = table.stats();
    assert_eq!((stats.free, stats.quarantines, stats.reclaimed, stats.ended), (stats.refs, 4, 4, 1496));
}

/// A waker that panics.
struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("a waker")
    }
}

#[test]
fn a_waker_that_panics_keeps_no_reference_and_no_turn_from_others() {
    let (xen, _dom0, guest) = machine();
    mock::set_max_frames(&xen, GUEST, 2);
    let table = GrantTable::new(&guest.boot().unwrap()).unwrap();
    guest.fail_allocs_after(Some(0));
    let held: Vec<_> = std::iter::from_fn(|| table.reserve().ok()).collect();
    assert_eq!(held.len() as u32, FIRST_FRAME);
    let (mut first, mut second) = (table.waiter().unwrap(), table.waiter().unwrap());
    let woken = Arc::new(Count::default());
    let panics = Waker::from(Arc::new(Panics));
    let counts = Waker::from(woken.clone());
    let mut wait = |round: usize| {
        assert!(first.poll_reference(&mut Context::from_waker(&panics)).is_pending());
        assert!(second.poll_reference(&mut Context::from_waker(&counts)).is_pending());
        assert_eq!(woken.0.load(Ordering::Relaxed), round);
    };
    // One reference is given back, and what gives it back panics.
    wait(0);
    let mut held = held.into_iter();
    let back = std::panic::AssertUnwindSafe(held.next());
    assert!(std::panic::catch_unwind(move || drop(back)).is_err());
    let again = table.reserve().unwrap();
    // The table grows, and panics at the end of that.
    wait(1);
    guest.fail_allocs_after(None);
    let grow = std::panic::AssertUnwindSafe(|| table.reserve().map(drop));
    assert!(std::panic::catch_unwind(grow).is_err());
    assert_eq!(woken.0.load(Ordering::Relaxed), 2);
    drop((again, held));
    let stats = table.stats();
    assert_eq!((stats.frames, stats.free, stats.in_use), (2, stats.refs, 0));
}
