//! A guest with everything that a network device needs.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]
#![allow(unsafe_code, reason = "suspends a domain")]

use std::time::Duration;

use xen_evtchn::EventChannels;
use xen_gnttab::GrantTable;
use xen_hypercall::mock::{MockDomain, MockXen};
use xen_hypercall::sched::Resumed;
use xen_hypercall::{DomId, Domain};
use xen_netfront::mock::{MockNetback, MockSwitch, Options};
use xen_netfront::packet::{self, Packet};
use xen_netfront::{Config, Error, NetFront};
use xen_xenstore::Xenstore;
use xen_xenstore::mock::{MockXenstored, Still};
use xen_xenstore::suspend::{Device, Suspension};

pub const HOST: [u8; 6] = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff];
pub const GUEST: [u8; 6] = [0x00, 0x16, 0x3e, 0x12, 0x34, 0x56];

pub struct Machine {
    pub xen: MockXen,
    pub guest: MockDomain,
    pub store: MockXenstored,
    pub switch: MockSwitch,
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
        let switch = MockSwitch::new(&xen);
        let token = guest.boot().unwrap();
        let events = EventChannels::new(&token).unwrap();
        let grants = GrantTable::new(&token).unwrap();
        Self { xen, guest, store, switch, events, grants, token }
    }

    pub fn vif(&self, options: Options) -> MockNetback {
        MockNetback::new(&self.switch, &self.store, &self.guest, 0, options)
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
    ) -> Result<NetFront<'x, MockDomain>, Error> {
        NetFront::connect(xs, &self.events, &self.grants, 0, self.soon())
    }

    pub fn connect_with<'x, const QUEUES: usize>(
        &'x self,
        xs: &mut Xenstore<'x, MockDomain>,
        config: Config,
    ) -> Result<NetFront<'x, MockDomain, QUEUES>, Error> {
        NetFront::connect_with(xs, &self.events, &self.grants, 0, self.soon(), config)
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

/// TCP from the guest to the host, or back; the checksum is right.
pub fn tcp(v6: bool, to_host: bool, sequence: u32, payload: &[u8]) -> Vec<u8> {
    transport(v6, to_host, 6, sequence, payload)
}

/// UDP, as [`tcp`].
pub fn udp(v6: bool, to_host: bool, payload: &[u8]) -> Vec<u8> {
    transport(v6, to_host, 17, 0, payload)
}

fn transport(v6: bool, to_host: bool, protocol: u8, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let (to, from, a, b) = if to_host { (HOST, GUEST, 2, 1) } else { (GUEST, HOST, 1, 2) };
    let mut frame = [&to[..], &from[..]].concat();
    let len = payload.len() + if protocol == 6 { 20 } else { 8 };
    if v6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend((len as u16).to_be_bytes());
        frame.extend([protocol, 64]);
        for last in [a, b] {
            frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        }
    } else {
        frame.extend([8, 0, 0x45, 0]);
        frame.extend((len as u16 + 20).to_be_bytes());
        frame.extend([0, 7, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, a, 10, 0, 0, b]);
        let checksum = !packet::sum(&frame[14..34]);
        frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    }
    if protocol == 6 {
        frame.extend([0x30, 0x39, 0, 80]);
        frame.extend(sequence.to_be_bytes());
        frame.extend([0, 0, 0, 9, 0x50, 0x18, 0x20, 0, 0, 0, 0, 0]);
    } else {
        frame.extend([0x30, 0x39, 0, 53]);
        frame.extend((len as u16).to_be_bytes());
        frame.extend([0, 0]);
    }
    frame.extend(payload);
    let found = Packet::parse(&frame).unwrap();
    packet::set_partial(&mut frame, &found);
    packet::complete(&mut frame, &found);
    assert!(packet::verify(&frame, &found));
    frame
}

/// Bytes that differ.
pub fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31) ^ (i >> 8) as u8).collect()
}
