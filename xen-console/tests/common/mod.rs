//! A guest with a console.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

pub mod acts;
#[cfg(feature = "xenbus")]
pub mod devices;
pub mod tasks;

use xen_console::Console;
use xen_console::mock::{MockConsoled, guest};
use xen_evtchn::EventChannels;
use xen_hypercall::DomId;
use xen_hypercall::mock::{MockDomain, MockXen};

pub struct Machine {
    pub xen: MockXen,
    pub guest: MockDomain,
    pub daemon: MockConsoled,
    pub events: EventChannels<MockDomain>,
}

impl Machine {
    pub fn new() -> Self {
        let xen = MockXen::new();
        xen_evtchn::mock::install(&xen);
        let (guest, events) = guest(&xen, DomId(1));
        let daemon = MockConsoled::connect(&xen, &guest);
        Self { xen, guest, daemon, events }
    }

    pub fn console(&self) -> Console<'_, MockDomain> {
        Console::new(&self.events).unwrap()
    }

    /// Lets the daemon do all that it can.
    pub fn settle(&self) {
        self.xen.run_until_idle(1000);
    }
}

/// Bytes that differ from place to place.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}
