//! In which order things go: the event channels first, then what their events are about.
#![cfg(feature = "mock")]
#![allow(unsafe_code, reason = "is a platform, which owns memory")]

use std::ptr::NonNull;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use xen_evtchn::EventChannels;
use xen_gnttab::{GrantRef, GrantTable};
use xen_hypercall::mock::{MockDomain, MockXen};
use xen_hypercall::{DomId, Domain, Gfn, Hypercall, HypercallNr, Page, PageMemory, SpecialPages, Wait};
use xen_netfront::mock::{MockNetback, MockSwitch, Options};
use xen_netfront::{Config, NetFront};
use xen_xenstore::Xenstore;
use xen_xenstore::mock::MockXenstored;

/// `EVTCHNOP_close`.
const CLOSE: usize = 3;

/// The rings, and for each channel that was closed whether all of them could be reached then.
#[derive(Default)]
struct Seen {
    rings: Vec<GrantRef>,
    closed: Vec<bool>,
}

/// A domain that looks at its rings whenever it closes an event channel.
#[derive(Clone)]
struct Watching {
    domain: MockDomain,
    seen: Arc<Mutex<Seen>>,
}

// SAFETY: the mock's domain does what it promises.
unsafe impl Hypercall for Watching {
    unsafe fn hypercall(&self, nr: HypercallNr, args: [usize; 5]) -> isize {
        if nr == HypercallNr::EVENT_CHANNEL_OP && args[0] == CLOSE {
            let own = self.domain.xen().domain(DomId(0));
            let mut seen = self.seen.lock().unwrap();
            let there = |gref: &GrantRef| xen_gnttab::mock::map(&own, self.domain.id(), *gref, true).is_ok();
            let all = !seen.rings.is_empty() && seen.rings.iter().all(there);
            seen.closed.push(all);
        }
        // SAFETY: the caller's promise.
        unsafe { self.domain.hypercall(nr, args) }
    }
}

// SAFETY: the mock's domain does what it promises.
unsafe impl PageMemory for Watching {
    fn alloc_pages(&self, count: usize) -> Option<NonNull<Page>> {
        self.domain.alloc_pages(count)
    }
    unsafe fn free_pages(&self, first: NonNull<Page>, count: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.domain.free_pages(first, count) }
    }
    fn gfn(&self, page: NonNull<Page>) -> Gfn {
        self.domain.gfn(page)
    }
}

// SAFETY: the mock's domain does what it promises.
unsafe impl SpecialPages for Watching {
    unsafe fn map_special(&self, gfn: Gfn, count: usize) -> Option<NonNull<Page>> {
        // SAFETY: the caller's promise.
        unsafe { self.domain.map_special(gfn, count) }
    }
}

impl Wait for Watching {
    fn now(&self) -> Duration {
        self.domain.now()
    }
    fn wait(&self, deadline: Option<Duration>, is_due: &dyn Fn() -> bool) {
        self.domain.wait(deadline, is_due);
    }
}

#[test]
fn event_channels_are_closed_before_the_rings_go() {
    for (split_channels, closes) in [(false, true), (false, false), (true, true), (true, false)] {
        let xen = MockXen::new();
        xen_evtchn::mock::install(&xen);
        xen_gnttab::mock::install(&xen);
        let store = MockXenstored::new(&xen);
        let guest = xen.domain(DomId(1));
        store.connect(&guest);
        let switch = MockSwitch::new(&xen);
        let back = MockNetback::new(&switch, &store, &guest, 0, Options::default());
        let seen = Arc::new(Mutex::new(Seen::default()));
        let platform = || Watching { domain: guest.clone(), seen: seen.clone() };
        // SAFETY: the guest has no other kernel.
        let token = unsafe { Domain::new(platform()) }.unwrap();
        let events = EventChannels::new(&token).unwrap();
        let grants = GrantTable::new(&token).unwrap();
        let mut xs = Xenstore::new(&events).unwrap();
        let soon = xs.now() + Duration::from_secs(5);
        let config =
            Config { split_channels, control_ring: true, tx_pages: 20, rx_pages: 32, ..Config::default() };
        let front: NetFront<'_, Watching, 2> =
            NetFront::connect_with(&mut xs, &events, &grants, 0, soon, config).unwrap();
        let nodes = ["queue-0/tx-ring-ref", "queue-0/rx-ring-ref", "queue-1/tx-ring-ref"];
        let rings = nodes.map(|node| GrantRef(back.front(node).unwrap().parse().unwrap()));
        let control = GrantRef(back.front("ctrl-ring-ref").unwrap().parse().unwrap());
        // Each queue ends by itself: while its channels are closed its own rings are there.
        seen.lock().unwrap().rings = vec![rings[2]];
        if closes {
            front.close(&mut xs, soon).unwrap();
        } else {
            drop(front);
        }
        let each = if split_channels { 2 } else { 1 };
        let closed = std::mem::take(&mut seen.lock().unwrap().closed);
        // Those of the first queue and of the second, and the control ring's.
        assert_eq!(closed[..2 * each], vec![true; 2 * each], "{split_channels} {closes}");
        assert_eq!(closed.len(), 2 * each + 1);
        assert_eq!(grants.stats().in_use, 0, "{control:?}");
    }
}

#[test]
fn a_queue_that_cannot_be_made_closes_its_channel_first() {
    let xen = MockXen::new();
    xen_evtchn::mock::install(&xen);
    xen_gnttab::mock::install(&xen);
    let store = MockXenstored::new(&xen);
    let guest = xen.domain(DomId(1));
    store.connect(&guest);
    let switch = MockSwitch::new(&xen);
    let _back = MockNetback::new(&switch, &store, &guest, 0, Options::default());
    let seen = Arc::new(Mutex::new(Seen::default()));
    let platform = || Watching { domain: guest.clone(), seen: seen.clone() };
    // SAFETY: the guest has no other kernel.
    let token = unsafe { Domain::new(platform()) }.unwrap();
    let events = EventChannels::new(&token).unwrap();
    let grants = GrantTable::new(&token).unwrap();
    let mut xs = Xenstore::new(&events).unwrap();
    // The ring's reference is the next one that is free.
    let gref = grants.share(DomId(0), xen_gnttab::Access::ReadWrite).unwrap().gref();
    seen.lock().unwrap().rings = vec![gref];
    guest.fail_allocs_after(Some(100));
    let soon = xs.now() + Duration::from_secs(5);
    assert!(NetFront::connect(&mut xs, &events, &grants, 0, soon).is_err());
    assert_eq!(seen.lock().unwrap().closed, [true]);
    assert_eq!(grants.stats().in_use, 0);
}
