//! A blkback for tests on the host: a disk in memory behind the real protocol.
//!
//! It is served by domain 0, takes part in the handshake by a [`MockXenstored`], and maps the guest's pages by the
//! mock of the grant table. It looks at its ring only when it got an event, so a driver that forgets one hangs here
//! as it would on Xen. See the crate's first page for an example.

mod serve;

use core::sync::atomic::Ordering::SeqCst;
use std::collections::{BTreeMap, VecDeque};
use std::format;
use std::string::{String, ToString};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

use xen_gnttab::GrantRef;
use xen_gnttab::mock::{MockMapping, map};
use xen_hypercall::mock::MockDomain;
use xen_hypercall::{DomId, SharedInfo, event};
use xen_ring::Back;
use xen_xenstore::mock::MockXenstored;
use xen_xenstore::xenbus::XenbusState;

use crate::abi::{Blkif, DiskInfo, Request, SECTOR};

/// What kind of disk it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Size, in units of 512 bytes.
    pub sectors: u64,
    /// The disk's own sectors, in bytes; requests for parts of one fail.
    pub sector_size: u32,
    /// Whether writes fail, and whether the disk says so.
    pub read_only: bool,
    /// Whether it offers flushes.
    pub flush: bool,
    /// Whether it keeps pages mapped, and says so.
    pub persistent: bool,
    /// In which order requests are served and answered.
    pub order: Order,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            sectors: 2048,
            sector_size: SECTOR as u32,
            read_only: false,
            flush: true,
            persistent: true,
            order: Order::Sent,
        }
    }
}

/// In which order requests are served and answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// As they were sent.
    Sent,
    /// The last first.
    Reversed,
    /// Any, some of them later than others; the same every time for the same number.
    Shuffled(u64),
}

/// What is wrong with a response.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It names this request.
    Id(u64),
    /// It names this operation.
    Operation(u8),
    /// The request is not done, and this is the response's status.
    Status(i16),
    /// It is there twice, if there is another request whose answer it takes the place of.
    Twice,
    /// After it the ring's producer index is ahead by so much more.
    Index(u32),
}

/// A backend for one disk of one guest. Clones are handles to the same one.
#[derive(Clone)]
pub struct MockBlkback(Arc<Mutex<Backend>>);

impl std::fmt::Debug for MockBlkback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MockBlkback")
    }
}

struct Backend {
    store: MockXenstored,
    guest: MockDomain,
    dom0: MockDomain,
    front_path: String,
    back_path: String,
    options: Options,
    disk: Vec<u8>,
    state: XenbusState,
    lies: Vec<(String, Option<String>)>,
    link: Option<Link>,
    mapped: BTreeMap<GrantRef, MockMapping>,
    faults: VecDeque<Fault>,
    requests: Vec<Request>,
    served: Vec<Request>,
    complaints: Vec<String>,
    random: u64,
    stalled: bool,
    holds: bool,
    gone: bool,
}

/// What the backend has while it is connected.
struct Link {
    ring: Back<Blkif, MockMapping>,
    port: u32,
}

impl MockBlkback {
    /// Gives a guest a disk, as the toolstack does, and serves it from domain 0. The mocks of event channels and
    /// grant tables must be installed.
    ///
    /// # Panics
    /// When the size does not fit this machine's memory.
    pub fn new(store: &MockXenstored, guest: &MockDomain, index: u32, options: Options) -> Self {
        let (id, dom0) = (guest.id().0, guest.xen().domain(DomId(0)));
        if dom0.shared_info().is_none() {
            SharedInfo::map(&dom0).expect("shared_info of domain 0");
        }
        let front_path = format!("/local/domain/{id}/device/vbd/{index}");
        let back_path = format!("/local/domain/0/backend/vbd/{id}/{index}");
        store.write(&front_path, "");
        store.set_permissions(&front_path, &format!("n{id}\0r0"));
        store.write(&back_path, "");
        store.set_permissions(&back_path, &format!("n0\0r{id}"));
        for (node, value) in [("backend", &*back_path), ("backend-id", "0"), ("state", "1")] {
            store.write(&format!("{front_path}/{node}"), value);
        }
        for (node, value) in [
            ("frontend", &*front_path),
            ("frontend-id", &*id.to_string()),
            ("mode", if options.read_only { "r" } else { "w" }),
            ("state", "1"),
        ] {
            store.write(&format!("{back_path}/{node}"), value);
        }
        let len = usize::try_from(options.sectors).expect("a small disk") * SECTOR;
        let backend = Self(Arc::new(Mutex::new(Backend {
            store: store.clone(),
            guest: guest.clone(),
            dom0,
            front_path,
            back_path,
            options,
            disk: std::vec![0; len],
            state: XenbusState::INITIALISING,
            lies: Vec::new(),
            link: None,
            mapped: BTreeMap::new(),
            faults: VecDeque::new(),
            requests: Vec::new(),
            served: Vec::new(),
            complaints: Vec::new(),
            random: if let Order::Shuffled(seed) = options.order { seed | 1 } else { 1 },
            stalled: false,
            holds: false,
            gone: false,
        })));
        let actor = backend.clone();
        guest.xen().add_actor("blkback", move |_| actor.state().step());
        backend
    }

    fn state(&self) -> MutexGuard<'_, Backend> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fills the disk from its beginning.
    ///
    /// # Panics
    /// When it is too small.
    pub fn load(&self, content: &[u8]) {
        self.state()
            .disk
            .get_mut(..content.len())
            .expect("a disk that is large enough")
            .copy_from_slice(content);
    }

    /// What is on the disk.
    pub fn disk(&self) -> Vec<u8> {
        self.state().disk.clone()
    }

    /// The requests served so far, in the order in which they were.
    pub fn served(&self) -> Vec<Request> {
        self.state().served.clone()
    }

    /// What the guest did that the protocol does not allow.
    pub fn complaints(&self) -> Vec<String> {
        self.state().complaints.clone()
    }

    /// Gives a node of the backend another value when it connects, or none.
    pub fn lie(&self, node: &str, value: Option<&str>) {
        self.state().lies.push((node.to_string(), value.map(ToString::to_string)));
    }

    /// Spoils the next response that is not spoilt yet.
    pub fn fault(&self, fault: Fault) {
        self.state().faults.push_back(fault);
    }

    /// A backend that hangs: neither serves nor answers anything until it is told otherwise.
    pub fn stall(&self, stalled: bool) {
        self.state().stalled = stalled;
    }

    /// A backend that keeps pages mapped whatever happens, until it is told otherwise.
    pub fn hold(&self, holds: bool) {
        let mut state = self.state();
        state.holds = holds;
        if !holds && state.link.is_none() {
            state.mapped.clear();
        }
    }

    /// The toolstack takes the disk away: the backend asks the guest to close it.
    pub fn detach(&self) {
        self.state().switch(XenbusState::CLOSING);
    }

    /// The backend's domain dies: its nodes are gone, and nothing is answered any more.
    pub fn vanish(&self) {
        let mut state = self.state();
        state.gone = true;
        state.disconnect();
        let path = state.back_path.clone();
        state.store.remove(&path);
    }
}

impl Backend {
    fn switch(&mut self, state: XenbusState) {
        self.state = state;
        self.publish("state", &state.0.to_string());
    }

    fn publish(&self, node: &str, value: &str) {
        let path = format!("{}/{node}", self.back_path);
        match self.lies.iter().rev().find(|(name, _)| name == node) {
            None => self.store.write(&path, value),
            Some((_, Some(lie))) => self.store.write(&path, lie),
            Some((_, None)) => self.store.remove(&path),
        }
    }

    fn front<T: core::str::FromStr>(&self, node: &str) -> Option<T> {
        self.store.read(&format!("{}/{node}", self.front_path))?.parse().ok()
    }

    /// One move: in the handshake, or in the ring.
    fn step(&mut self) -> bool {
        if self.stalled || self.gone {
            return false;
        }
        let front: XenbusState = self.front("state").unwrap_or(XenbusState::UNKNOWN);
        match (self.state, front) {
            (XenbusState::INITIALISING | XenbusState::CLOSED, XenbusState::INITIALISING) => {
                self.switch(XenbusState::INIT_WAIT);
            }
            (XenbusState::INIT_WAIT, XenbusState::INITIALISED | XenbusState::CONNECTED) => {
                match self.connect() {
                    Ok(()) => {
                        self.publish_disk();
                        self.switch(XenbusState::CONNECTED);
                    }
                    Err(complaint) => {
                        self.complaints.push(complaint);
                        self.switch(XenbusState::CLOSED);
                    }
                }
            }
            (XenbusState::CONNECTED, XenbusState::CLOSING) => self.switch(XenbusState::CLOSING),
            (
                XenbusState::CONNECTED | XenbusState::CLOSING,
                XenbusState::CLOSED | XenbusState::INITIALISING | XenbusState::UNKNOWN,
            ) => {
                self.disconnect();
                self.switch(XenbusState::CLOSED);
            }
            _ => return self.serve(),
        }
        true
    }

    fn connect(&mut self) -> Result<(), String> {
        let gref: u32 = self.front("ring-ref").ok_or("no ring-ref")?;
        let port: u32 = self.front("event-channel").ok_or("no event-channel")?;
        let protocol: Option<String> = self.front("protocol");
        if protocol.as_deref() != Some(crate::abi::ABI) {
            return Err(format!("protocol {protocol:?}"));
        }
        let guest = self.guest.id();
        let page =
            map(&self.dom0, guest, GrantRef(gref), true).map_err(|status| format!("ring: {status:?}"))?;
        let ring = Back::attach(page).map_err(|error| error.to_string())?;
        let port = event::bind_interdomain(&self.dom0, guest, port).map_err(|errno| errno.to_string())?;
        self.link = Some(Link { ring, port });
        Ok(())
    }

    fn publish_disk(&self) {
        let Options { sectors, sector_size, read_only, flush, persistent, .. } = self.options;
        let info = if read_only { DiskInfo::READONLY } else { DiskInfo::empty() };
        self.publish("sectors", &sectors.to_string());
        self.publish("sector-size", &sector_size.to_string());
        self.publish("info", &info.bits().to_string());
        self.publish("mode", if read_only { "r" } else { "w" });
        self.publish("feature-flush-cache", if flush { "1" } else { "0" });
        self.publish("feature-persistent", if persistent { "1" } else { "0" });
    }

    fn disconnect(&mut self) {
        if let Some(link) = self.link.take() {
            // The guest may have closed its end; ours is there in any case.
            let _ = event::close(&self.dom0, link.port);
            if self.holds {
                let page = link.ring.into_inner();
                self.mapped.insert(page.gref(), page);
            }
        }
        self.requests.clear();
        if !self.holds {
            self.mapped.clear();
        }
    }

    /// Whether an event came since the last look.
    fn notified(&self, port: u32) -> bool {
        let Some(shared) = self.dom0.shared_info() else { return false };
        let bit = 1 << (port % 64);
        let word = shared.evtchn_pending(port as usize / 64);
        word.is_some_and(|word| word.fetch_and(!bit, SeqCst) & bit != 0)
    }
}
