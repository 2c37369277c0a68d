//! A guest with everything that a network device needs.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

use std::time::Duration;

use xen_evtchn::EventChannels;
use xen_gnttab::GrantTable;
use xen_hypercall::mock::{MockDomain, MockXen};
use xen_hypercall::{DomId, SharedInfo};
use xen_netfront::mock::{MockNetback, MockSwitch, Options};
use xen_netfront::{Error, NetFront};
use xen_xenstore::Xenstore;
use xen_xenstore::mock::MockXenstored;

pub const HOST: [u8; 6] = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff];
pub const GUEST: [u8; 6] = [0x00, 0x16, 0x3e, 0x12, 0x34, 0x56];

pub struct Machine {
    pub xen: MockXen,
    pub guest: MockDomain,
    pub store: MockXenstored,
    pub switch: MockSwitch,
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
        let switch = MockSwitch::new(&xen);
        let events = EventChannels::new(guest.clone(), SharedInfo::map(&guest).unwrap()).unwrap();
        let grants = GrantTable::new(guest.clone()).unwrap();
        Self { xen, guest, store, switch, events, grants }
    }

    pub fn vif(&self, options: Options) -> MockNetback {
        MockNetback::new(&self.switch, &self.store, &self.guest, 0, options)
    }

    pub fn soon(&self) -> Duration {
        self.xen.now() + Duration::from_secs(5)
    }

    pub fn connect<'x>(
        &'x self,
        xs: &mut Xenstore<'x, MockDomain>,
    ) -> Result<NetFront<'x, MockDomain>, Error> {
        NetFront::connect(xs, &self.events, &self.grants, 0, self.soon())
    }

    /// Lets the far sides act until they are done.
    pub fn run(&self) {
        assert!(self.xen.run_until_idle(1000) < 1000, "{}", self.xen.trace_text());
        self.events.dispatch(xen_hypercall::VcpuId(0));
    }
}

/// A frame of an unknown kind with `len` bytes that differ.
pub fn frame(to: [u8; 6], from: [u8; 6], len: usize, seed: u8) -> Vec<u8> {
    let mut frame = [&to[..], &from[..], &[0x88, 0xb5]].concat();
    frame.extend((frame.len()..len).map(|i| (i as u8).wrapping_mul(7) ^ (i >> 8) as u8 ^ seed));
    frame
}
