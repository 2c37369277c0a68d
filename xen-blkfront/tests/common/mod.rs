//! A guest with everything that a disk needs.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]
#![allow(unsafe_code, reason = "suspends a domain")]

pub mod executor;

use std::time::Duration;

use xen_blkfront::mock::{MockBlkback, Options};
use xen_blkfront::{BlkFront, Config, Error};
use xen_evtchn::EventChannels;
use xen_gnttab::GrantTable;
use xen_hypercall::mock::{MockDomain, MockXen};
use xen_hypercall::sched::Resumed;
use xen_hypercall::{DomId, Domain};
use xen_xenstore::Xenstore;
use xen_xenstore::mock::{MockXenstored, Still};
use xen_xenstore::suspend::{Device, Suspension};

pub const VBD: u32 = 51712;

pub struct Machine {
    pub xen: MockXen,
    pub guest: MockDomain,
    pub store: MockXenstored,
    pub token: Domain<MockDomain>,
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
        Self { xen, guest, store, events, grants, token }
    }

    pub fn disk(&self, options: Options) -> MockBlkback {
        MockBlkback::new(&self.store, &self.guest, VBD, options)
    }

    /// Suspends the guest, which goes on as the machine's toolstack wants it. Returns how, and how many devices did not come
    /// back.
    pub fn suspend<'x>(
        &'x self,
        xs: &mut Xenstore<'x, MockDomain>,
        devices: &mut impl Device<'x, MockDomain>,
    ) -> (Resumed, usize) {
        let suspension = Suspension {
            domain: &self.token,
            events: &self.events,
            kernel: &Still,
            parts: &mut [&mut &self.grants],
            patience: Duration::from_secs(5),
        };
        // SAFETY: one thread, which is between two calls, and no page of another domain is mapped.
        let outcome = unsafe { suspension.run(xs, None, devices) }.unwrap();
        (outcome.resumed, outcome.absent)
    }

    pub fn soon(&self) -> Duration {
        self.xen.now() + Duration::from_secs(5)
    }

    pub fn connect<'x>(
        &'x self,
        xs: &mut Xenstore<'x, MockDomain>,
    ) -> Result<BlkFront<'x, MockDomain>, Error> {
        self.connect_with(xs, small())
    }

    pub fn connect_with<'x>(
        &'x self,
        xs: &mut Xenstore<'x, MockDomain>,
        config: Config,
    ) -> Result<BlkFront<'x, MockDomain>, Error> {
        BlkFront::connect_with(xs, &self.events, &self.grants, VBD, self.soon(), config)
    }
}

/// Eight operations, and pages for as many requests without indirect segments.
pub fn small() -> Config {
    Config { requests: 8, pages: 88, segments: 11, timeout: Duration::from_secs(2), ..Config::default() }
}

/// Bytes that differ from sector to sector.
pub fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i / 512) as u8 ^ (i as u8).wrapping_mul(7) ^ seed).collect()
}
