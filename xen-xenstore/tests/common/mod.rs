//! A guest with a connection to a xenstore daemon.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

pub mod device;
pub mod executor;

use std::time::Duration;

use xen_evtchn::EventChannels;
use xen_hypercall::mock::{MockDomain, MockXen};
use xen_hypercall::{DomId, Domain};
use xen_xenstore::mock::MockXenstored;
use xen_xenstore::wire::{Operation, Refusal};
use xen_xenstore::{Error, Xenstore};

pub const ID: DomId = DomId(1);
pub const HOME: &str = "/local/domain/1";

/// Until when somebody writes to a node all the time.
pub const FLOOD: Duration = Duration::from_secs(600);

pub struct Machine {
    pub xen: MockXen,
    pub guest: MockDomain,
    pub store: MockXenstored,
    pub token: Domain<MockDomain>,
    pub events: EventChannels<MockDomain>,
}

impl Machine {
    pub fn new() -> Self {
        let xen = MockXen::new();
        xen_evtchn::mock::install(&xen);
        let store = MockXenstored::new(&xen);
        let guest = xen.domain(ID);
        store.connect(&guest);
        let token = guest.boot().unwrap();
        let events = EventChannels::new(&token).unwrap();
        Self { xen, guest, store, token, events }
    }

    /// The guest's client.
    pub fn client(&self) -> Xenstore<'_, MockDomain> {
        Xenstore::new(&self.events).unwrap()
    }

    pub fn after(&self, seconds: u64) -> Duration {
        self.xen.now() + Duration::from_secs(seconds)
    }

    /// The guest is paused once, for so long, when it has waited `turns` times from now; time goes on without it.
    pub fn pause(&self, turns: u32, time: Duration) {
        let mut left = turns;
        self.xen.add_actor("pause", move |xen| {
            if left == 1 {
                xen.advance(time);
            }
            left = left.saturating_sub(1);
            false
        });
    }

    /// Somebody writes a node all the time.
    pub fn flood(&self, path: &str, value: &str) {
        self.store.flood(&self.xen, path, value);
    }

    /// Lets the daemon do all that it can.
    pub fn settle(&self) {
        self.xen.run_until_idle(1000);
    }
}

/// A path in the guest's directory that it may write.
pub fn data(name: &str) -> String {
    format!("{HOME}/data/{name}")
}

pub fn refused<T: std::fmt::Debug>(result: Result<T, Error>) -> Refusal {
    match result {
        Err(Error::Refused(_, refusal)) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

pub fn names(xs: &mut Xenstore<'_, MockDomain>, path: &str) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    xs.directory(path, |name| names.push(name.to_owned())).map(|()| names)
}

pub fn timed_out(operation: Operation) -> Error {
    Error::TimedOut(operation)
}
