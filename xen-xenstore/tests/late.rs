//! A domain that runs before domain 0 has its xenstore, as one that Xen starts itself (dom0less).
#![cfg(feature = "mock")]

use std::time::Duration;

use xen_evtchn::EventChannels;
use xen_hypercall::DomId;
use xen_hypercall::mock::{MockDomain, MockXen};
use xen_ring::XenstoreLayout;
use xen_xenstore::mock::MockXenstored;
use xen_xenstore::{Error, ServerFeatures, Xenstore};

const ID: DomId = DomId(1);

struct Machine {
    xen: MockXen,
    guest: MockDomain,
    store: MockXenstored,
    events: EventChannels<MockDomain>,
}

/// A guest that Xen has started, and a domain 0 that is not there yet.
fn machine() -> Machine {
    let xen = MockXen::new();
    xen_evtchn::mock::install(&xen);
    let store = MockXenstored::new(&xen);
    let guest = xen.domain(ID);
    store.prepare(&guest);
    let events = EventChannels::new(&guest.boot().unwrap()).unwrap();
    Machine { xen, guest, store, events }
}

impl Machine {
    /// Domain 0 starts: the page comes, and later the daemon.
    fn boot(&self, page: Duration, daemon: Duration) {
        let (store, guest) = (self.store.clone(), self.guest.inside());
        let (mut shown, mut introduced) = (false, false);
        self.xen.add_actor("dom0", move |xen| {
            if xen.now() >= page && !shown {
                store.show_page(&guest);
                shown = true;
                return true;
            }
            if xen.now() >= daemon && !introduced {
                store.introduce(&guest);
                introduced = true;
                return true;
            }
            false
        });
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn page_and_daemon_may_come_later() {
    for (page, daemon) in [(0, 0), (0, 3), (3, 3), (2, 5)] {
        let machine = machine();
        machine.boot(page * SECOND, daemon * SECOND);
        let mut xs =
            Xenstore::new(&machine.events).unwrap_or_else(|error| panic!("{page} {daemon}: {error}"));
        assert_eq!(xs.read_str("name"), Ok("d1"));
        assert!(machine.xen.now() <= daemon * SECOND + SECOND, "{:?}", machine.xen.now());
    }
}

#[test]
fn nothing_is_written_into_a_ring_that_is_about_to_be_reset() {
    let machine = machine();
    machine.store.show_page(&machine.guest);
    assert_eq!(Xenstore::new(&machine.events).err(), Some(Error::NotReady));
    let page = machine.guest.page_at(xen_hypercall::Gfn(0xF_EFFE)).unwrap();
    // SAFETY: the page is the guest's, and nobody uses it at this moment.
    let indices = unsafe { page.cast::<[u8; 4096]>().read_volatile() };
    assert_eq!(&indices[2048..2064], &[0; 16], "the ring's indices");
}

#[test]
fn a_guest_that_waits_in_vain_may_try_again() {
    let machine = machine();
    for late in [1, 10] {
        let start = machine.xen.now();
        let waited = match late {
            10 => Xenstore::new(&machine.events).err(),
            seconds => Xenstore::new_until(&machine.events, start + seconds * SECOND).err(),
        };
        assert_eq!((waited, machine.xen.now() - start), (Some(Error::NotReady), late * SECOND));
    }
    assert!(Error::NotReady.to_string().contains("try again"));
    // With a limit that fits, it waits as long as domain 0 takes.
    let (page, daemon) = (machine.xen.now() + 60 * SECOND, machine.xen.now() + 90 * SECOND);
    machine.boot(page, daemon);
    let mut xs = Xenstore::new_until(&machine.events, daemon + 10 * SECOND).unwrap();
    assert_eq!(xs.read_str("name"), Ok("d1"));
    assert!(machine.xen.now() <= daemon + SECOND);
}

#[test]
fn words_that_are_not_offered_mean_nothing() {
    let machine = machine();
    machine.store.introduce(&machine.guest);
    machine.store.offer(ID, ServerFeatures::empty());
    machine.store.poke(ID, XenstoreLayout::ERROR, 7);
    machine.store.poke(ID, XenstoreLayout::CONNECTION, 9);
    let mut xs = Xenstore::new(&machine.events).unwrap();
    assert_eq!(xs.read_str("name"), Ok("d1"));
    machine.store.offer(ID, ServerFeatures::ERROR);
    assert_eq!(xs.read("name").map(drop), Err(Error::Disconnected(7)));
}
