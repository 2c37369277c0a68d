//! A guest with what consoles beside the first need.

use std::time::Duration;

use xen_console::{Error, SecondaryConsole};
use xen_evtchn::EventChannels;
use xen_gnttab::GrantTable;
use xen_hypercall::DomId;
use xen_hypercall::mock::{MockDomain, MockXen};
use xen_xenstore::Xenstore;
use xen_xenstore::mock::MockXenstored;

pub struct Machine {
    pub xen: MockXen,
    pub guest: MockDomain,
    pub store: MockXenstored,
    pub events: EventChannels<MockDomain>,
    pub grants: GrantTable<MockDomain>,
}

impl Machine {
    pub fn new() -> Self {
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

    pub fn connect_within<'x>(
        &'x self,
        xs: &mut Xenstore<'x, MockDomain>,
        index: u32,
        time: Duration,
    ) -> Result<SecondaryConsole<'x, MockDomain>, Error> {
        SecondaryConsole::connect(xs, &self.events, &self.grants, index, self.xen.now() + time)
    }

    /// Within a second.
    pub fn connect<'x>(
        &'x self,
        xs: &mut Xenstore<'x, MockDomain>,
        index: u32,
    ) -> Result<SecondaryConsole<'x, MockDomain>, Error> {
        self.connect_within(xs, index, Duration::from_secs(1))
    }
}
