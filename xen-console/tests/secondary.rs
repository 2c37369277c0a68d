//! Consoles beside the first.
#![cfg(all(feature = "mock", feature = "xenbus"))]

use std::time::Duration;

use xen_console::mock::MockConsoled;
use xen_console::{Error, SecondaryConsole};
use xen_evtchn::EventChannels;
use xen_gnttab::GrantTable;
use xen_hypercall::DomId;
use xen_hypercall::mock::{MockDomain, MockXen};
use xen_xenstore::Xenstore;
use xen_xenstore::mock::MockXenstored;
use xen_xenstore::xenbus::XenbusState;

const SECOND: Duration = Duration::from_secs(1);

struct Machine {
    xen: MockXen,
    guest: MockDomain,
    store: MockXenstored,
    events: EventChannels<MockDomain>,
    grants: GrantTable<MockDomain>,
}

impl Machine {
    fn new() -> Self {
        let xen = MockXen::new();
        xen_evtchn::mock::install(&xen);
        xen_gnttab::mock::install(&xen);
        let store = MockXenstored::new(&xen);
        let guest = xen.domain(DomId(1));
        store.connect(&guest);
        let token = guest.boot().unwrap();
        let events = EventChannels::new(&token).unwrap();
        let grants = GrantTable::new(&token).unwrap();
        Self { xen, guest, store, events, grants }
    }

    fn connect<'x>(
        &'x self,
        xs: &mut Xenstore<'x, MockDomain>,
        index: u32,
    ) -> Result<SecondaryConsole<'x, MockDomain>, Error> {
        SecondaryConsole::connect(xs, &self.events, &self.grants, index, self.xen.now() + SECOND)
    }
}

#[test]
fn a_second_console_works_like_the_first() {
    let machine = Machine::new();
    let first = MockConsoled::connect(&machine.xen, &machine.guest);
    let second = MockConsoled::attach(&machine.store, &machine.guest, 1);
    let third = MockConsoled::attach(&machine.store, &machine.guest, 2);
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let ports = xen_evtchn::mock::open_ports(&machine.guest);
    let mut one = xen_console::Console::new(&machine.events).unwrap();
    let mut two = machine.connect(&mut xs, 1).unwrap();
    let mut three = machine.connect(&mut xs, 2).unwrap();
    assert_eq!(two.device().index(), 1);
    one.write_all(b"to one", SECOND).unwrap();
    two.console().write_all(&[7; 5000], SECOND).unwrap();
    three.console().write_all(b"to three", SECOND).unwrap();
    second.type_in(b"from two");
    machine.xen.run_until_idle(100);
    assert_eq!(
        (first.output(), second.output(), third.output()),
        (b"to one".into(), vec![7; 5000], b"to three".into())
    );
    let mut buf = [0; 20];
    assert_eq!((two.console().read(&mut buf), &buf[..8]), (Ok(8), &b"from two"[..]));
    assert_eq!(two.is_closing(&mut xs), Ok(false));
    for console in [two, three] {
        console.close(&mut xs, machine.xen.now() + SECOND).unwrap();
    }
    let stats = machine.grants.stats();
    assert_eq!((stats.in_use, stats.quarantined), (0, 0));
    assert_eq!(xen_evtchn::mock::open_ports(&machine.guest), ports);
    assert_eq!(machine.store.watches(DomId(1)), 0);
    assert_eq!(machine.xen.now(), Duration::ZERO);
    // And again.
    machine.connect(&mut xs, 1).unwrap();
}

#[test]
fn a_console_that_is_taken_away_is_noticed() {
    let machine = Machine::new();
    let daemon = MockConsoled::attach(&machine.store, &machine.guest, 1);
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let console = machine.connect(&mut xs, 1).unwrap();
    daemon.detach();
    machine.xen.run_until_idle(100);
    assert_eq!(console.is_closing(&mut xs), Ok(true));
    console.close(&mut xs, machine.xen.now() + SECOND).unwrap();
}

#[test]
fn what_does_not_come_up_leaves_nothing() {
    let machine = Machine::new();
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let pages = machine.guest.pages_in_use();
    assert_eq!(machine.connect(&mut xs, 0).err(), Some(Error::NoConsole));
    let none = machine.connect(&mut xs, 1).err();
    assert!(matches!(none, Some(Error::Store(error)) if error.is_not_found()), "{none:?}");
    let daemon = MockConsoled::attach(&machine.store, &machine.guest, 1);
    daemon.stall(true);
    let hangs = Error::Store(xen_xenstore::Error::BackendTimedOut(XenbusState::INITIALISING));
    assert_eq!(machine.connect(&mut xs, 1).err(), Some(hangs));
    daemon.stall(false);
    machine.guest.fail_allocs_after(Some(0));
    assert!(matches!(machine.connect(&mut xs, 1).err(), Some(Error::Grant(_) | Error::Event(_))));
    machine.guest.fail_allocs_after(None);
    assert_eq!(machine.store.watches(DomId(1)), 0);
    assert_eq!(machine.grants.stats().in_use, 0);
    assert!(machine.guest.pages_in_use() <= pages + 2, "a record page at most");
    machine.connect(&mut xs, 1).unwrap();
}

#[test]
fn a_backend_that_keeps_the_page_does_not_get_it_freed() {
    let machine = Machine::new();
    let daemon = MockConsoled::attach(&machine.store, &machine.guest, 1);
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let console = machine.connect(&mut xs, 1).unwrap();
    daemon.stall(true);
    let closed = console.close(&mut xs, machine.xen.now() + SECOND);
    let hangs = Error::Store(xen_xenstore::Error::BackendTimedOut(XenbusState::CONNECTED));
    assert_eq!(closed, Err(hangs));
    assert_eq!(machine.grants.stats().quarantined, 1);
    daemon.stall(false);
    machine.xen.run_until_idle(100);
    assert_eq!(machine.grants.reclaim(), 1);
    assert_eq!(machine.grants.stats().in_use, 0);
}
