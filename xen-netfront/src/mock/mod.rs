//! A netback for tests on the host, and the switch that its guests are on.
//!
//! [`MockNetback`] gives a guest a network device. It is served by domain 0 or any other, takes part in the handshake by a
//! [`MockXenstored`], maps the rings and copies from and to the guest's pages by the mock of the grant table, under
//! the rules of Linux' netback: what that one would not take is a [complaint](MockNetback::complaints), and ends the
//! device where it does there. It looks at its ring of frames to send only when it got an event, so a driver that
//! forgets one hangs here as it would on Xen. See the crate's first page for an example.

mod control;
mod deliver;
mod faults;
mod frame;
#[cfg(feature = "smoltcp-v0-14")]
mod host;
mod link;
pub mod model;
mod options;
mod pcap;
mod serve;
mod switch;

use std::collections::{BTreeSet, VecDeque};
use std::format;
use std::string::{String, ToString};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

use xen_gnttab::mock::MockMapping;
use xen_hypercall::DomId;
use xen_hypercall::mock::{Dice, MockDomain};
use xen_xenstore::mock::{MockXenstored, Then, Toolstack};
use xen_xenstore::xenbus::XenbusState;

use link::{Queue, Takes};

pub use faults::Faults;
pub use frame::Frame;
#[cfg(feature = "smoltcp-v0-14")]
pub use host::HostDevice;
pub use options::{BackStats, ControlLimits, Fault, Options};
pub use switch::MockSwitch;

/// A backend for one network device of one guest. Clones are handles to the same one.
#[derive(Clone)]
pub struct MockNetback(Arc<Mutex<Backend>>);

impl core::fmt::Debug for MockNetback {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("MockNetback")
    }
}

struct Backend {
    store: MockXenstored,
    switch: MockSwitch,
    port: usize,
    guest: MockDomain,
    /// The domain that it is in.
    own: MockDomain,
    front_path: String,
    back_path: String,
    options: Options,
    /// What it can do as it told the guest, which it keeps to.
    word: Options,
    /// What it is like after the next migration.
    next: Option<Options>,
    state: XenbusState,
    lies: Vec<(String, Option<String>)>,
    queues: Vec<Queue>,
    /// What the guest takes.
    guest_takes: Takes,
    control: Option<control::Control>,
    /// Bytes before each frame for the guest.
    headroom: usize,
    /// Whether multicast frames are dropped but those to these addresses.
    filters: bool,
    wanted: BTreeSet<[u8; 6]>,
    backlog: VecDeque<Frame>,
    tx_faults: VecDeque<Fault>,
    rx_faults: VecDeque<Fault>,
    ctrl_faults: VecDeque<Fault>,
    chances: Option<(Dice, Faults)>,
    hits: u64,
    lied: u64,
    late_events: Vec<u32>,
    /// Pages kept mapped although the backend is done with them.
    kept: Vec<MockMapping>,
    holds: bool,
    complaints: Vec<String>,
    stats: BackStats,
    stalled: bool,
    gone: bool,
    /// What the toolstack does when both sides are Closed.
    then: Option<Then>,
    /// The hotplug script hangs.
    unplugged: bool,
    /// A guest broke a rule that Linux ends the device for.
    disabled: bool,
}

impl MockNetback {
    /// Gives a guest a network device on a switch, as the toolstack does, and serves it from a domain. The mocks of
    /// event channels and grant tables must be installed.
    ///
    /// # Panics
    /// When the backend's domain cannot be made ready.
    pub fn new(
        switch: &MockSwitch,
        store: &MockXenstored,
        guest: &MockDomain,
        index: u32,
        options: Options,
    ) -> Self {
        let (id, own) = (guest.id().0, guest.xen().inside().domain(options.domain));
        own.ensure_shared_info();
        let backend = Self(Arc::new(Mutex::new(Backend {
            store: store.clone(),
            switch: switch.clone(),
            port: switch.add_port(),
            guest: guest.inside(),
            own,
            front_path: format!("/local/domain/{id}/device/vif/{index}"),
            back_path: format!("/local/domain/{}/backend/vif/{id}/{index}", options.domain.0),
            options,
            word: options,
            next: None,
            state: XenbusState::INITIALISING,
            lies: Vec::new(),
            queues: Vec::new(),
            guest_takes: Takes::default(),
            control: None,
            headroom: 0,
            filters: false,
            wanted: BTreeSet::new(),
            backlog: VecDeque::new(),
            tx_faults: VecDeque::new(),
            rx_faults: VecDeque::new(),
            ctrl_faults: VecDeque::new(),
            chances: None,
            hits: 0,
            lied: 0,
            late_events: Vec::new(),
            kept: Vec::new(),
            holds: false,
            complaints: Vec::new(),
            stats: BackStats::default(),
            stalled: false,
            gone: false,
            then: None,
            unplugged: false,
            disabled: false,
        })));
        backend.state().create();
        let actor = backend.clone();
        guest.xen().add_actor("netback", move |_| actor.state().step());
        let hook = backend.clone();
        guest.xen().on_migration(move |domain, old| {
            let mut state = hook.state();
            // The handle that a backend has is one to the new domain.
            if state.guest.id() == domain.id() {
                state.migrated(old);
            }
        });
        backend
    }

    /// What the backend is like from the guest's next migration on, in another domain perhaps.
    pub fn set_next(&self, options: Options) {
        self.state().next = Some(options);
    }

    fn state(&self) -> MutexGuard<'_, Backend> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the guest did that Linux' netback does not take.
    pub fn complaints(&self) -> Vec<String> {
        self.state().complaints.clone()
    }

    /// What passed so far.
    pub fn stats(&self) -> BackStats {
        self.state().stats
    }

    /// Pages for receiving that the guest has given and that are not used yet.
    pub fn room(&self) -> usize {
        let mut state = self.state();
        (0..state.queues.len()).for_each(|queue| state.look_for_room(queue));
        state.queues.iter().map(|queue| queue.room.len()).sum()
    }

    /// The addresses of multicast frames that the guest wants.
    pub fn wanted(&self) -> Vec<[u8; 6]> {
        self.state().wanted.iter().copied().collect()
    }

    /// How many pages the guest lets the backend keep mapped.
    pub fn mapped_pages(&self) -> usize {
        self.state().control.as_ref().map_or(0, |control| control.pages.len())
    }

    /// Gives a node of the backend another value when it is written, or none.
    pub fn lie(&self, node: &str, value: Option<&str>) {
        self.state().lies.push((node.to_string(), value.map(ToString::to_string)));
    }

    /// Gives a node in the guest's own directory another value, as the toolstack can, or removes it.
    pub fn set_front(&self, node: &str, value: Option<&str>) {
        let state = self.state();
        let path = format!("{}/{node}", state.front_path);
        match value {
            Some(value) => state.store.write(&path, value),
            None => state.store.remove(&path),
        }
    }

    /// Gives a node in the backend's directory another value, at once.
    pub fn set_back(&self, node: &str, value: &str) {
        let state = self.state();
        state.store.write(&format!("{}/{node}", state.back_path), value);
    }

    /// What the guest wrote to a node in its own directory.
    pub fn front(&self, node: &str) -> Option<String> {
        self.state().front(node)
    }

    /// Spoils the next response to a frame that the guest sent that is not spoilt yet.
    pub fn fault_tx(&self, fault: Fault) {
        self.state().tx_faults.push_back(fault);
    }

    /// Spoils the next response with a frame for the guest that is not spoilt yet.
    pub fn fault_rx(&self, fault: Fault) {
        self.state().rx_faults.push_back(fault);
    }

    /// Sends events to all of the device's channels without reason.
    pub fn spurious_event(&self) {
        let mut state = self.state();
        let ports: BTreeSet<u32> =
            state.queues.iter().flat_map(|queue| [queue.tx_port, queue.rx_port]).collect();
        ports.into_iter().for_each(|port| state.send_event(port));
    }

    /// Spoils the next answer of the control ring; of the faults, only [`Fault::Id`] is known there.
    pub fn fault_control(&self, fault: Fault) {
        self.state().ctrl_faults.push_back(fault);
    }

    /// Lets things go wrong by chance from now on, instead of those before.
    pub fn set_faults(&self, dice: Dice, faults: Faults) {
        self.state().chances = Some((dice, faults));
    }

    /// How many faults happened by chance so far.
    pub fn faults_hit(&self) -> u64 {
        self.state().hits
    }

    /// How many of them were lies, which an honest backend has none of.
    pub fn lies_hit(&self) -> u64 {
        self.state().lied
    }

    /// Whether the guest was shown a response to a frame that it sent that no honest backend shows, since it connected.
    pub fn lied_about_sent(&self) -> bool {
        self.state().queues.iter().any(|queue| queue.tx_lie)
    }

    /// Whether the guest was shown a response with a frame that no honest backend shows, and that it cannot take for anything
    /// else, since it connected.
    pub fn lied_about_received(&self) -> bool {
        self.state().queues.iter().any(|queue| queue.rx_lie)
    }

    /// A backend that hangs: does nothing until it is told otherwise.
    pub fn stall(&self, stalled: bool) {
        self.state().stalled = stalled;
    }

    /// A backend that keeps each page that it uses mapped, until it is told otherwise.
    pub fn hold(&self, holds: bool) {
        let mut state = self.state();
        state.holds = holds;
        if !holds {
            state.kept.clear();
        }
    }

    /// The toolstack takes the device away (`online` is 0): the backend asks the guest to close it.
    pub fn detach(&self) {
        let mut state = self.state();
        state.store.write(&format!("{}/online", state.back_path), "0");
        state.switch(XenbusState::CLOSING);
    }

    /// A toolstack that looks at the states from now on: when both sides are Closed, it does this.
    pub fn follow(&self, then: Then) {
        self.state().then = Some(then);
    }

    /// A hotplug script that hangs, until it is told otherwise: the backend does not connect before `hotplug-status` is
    /// `connected`, as Linux' does.
    pub fn stall_hotplug(&self, stalled: bool) {
        self.state().unplugged = stalled;
    }

    /// The backend goes without asking: it is closed at once, and answers nothing any more until the guest begins
    /// anew.
    pub fn close(&self) {
        self.state().drop_out();
    }

    /// The backend's domain dies: its nodes are gone, and nothing is answered any more.
    pub fn vanish(&self) {
        self.state().vanish();
    }

    /// The toolstack takes the device away by force: nobody is asked, and both directories are gone.
    pub fn force_detach(&self) {
        let mut state = self.state();
        state.vanish();
        state.store.remove(&state.front_path);
    }

    /// The backend is started again and waits. As Linux' does it then takes up the rings where they are, unless the guest
    /// begins anew before.
    pub fn restart(&self) {
        self.state().restart();
    }

    /// The device is there again after [`vanish`](Self::vanish), or after the guest closed it: a new one in its place,
    /// as the toolstack makes it.
    pub fn come_back(&self) {
        self.state().come_back();
    }
}

impl Backend {
    /// Writes the nodes that the toolstack writes.
    fn create(&mut self) {
        let (id, index) = (self.guest.id().0, self.front_path.rsplit('/').next().unwrap_or_default());
        let (front, back, own) = (&self.front_path, &self.back_path, self.own.id().0.to_string());
        if self.options.toolstack == Toolstack::Xapi {
            let devices = format!("/local/domain/{id}/device");
            for directory in [devices.clone(), devices + "/vif"] {
                self.store.write(&directory, "");
                self.store.set_permissions(&directory, &format!("n{id}\0r{own}"));
            }
        }
        self.store.write(front, "");
        self.store.set_permissions(front, &format!("n{id}\0r{own}"));
        self.store.write(back, "");
        self.store.set_permissions(back, &format!("n{own}\0r{id}"));
        let mac = self.options.mac.to_string();
        for (node, value) in
            [("backend", &**back), ("backend-id", &*own), ("handle", index), ("mac", &*mac), ("state", "1")]
        {
            self.store.write(&[&**front, "/", node].concat(), value);
        }
        if let Some(mtu) = self.options.mtu {
            self.store.write(&format!("{front}/mtu"), &mtu.to_string());
        }
        for (node, value) in [
            ("frontend", &**front),
            ("frontend-id", &*id.to_string()),
            ("online", "1"),
            ("mac", &*mac),
            ("state", "1"),
        ] {
            self.store.write(&[&**back, "/", node].concat(), value);
        }
    }

    /// The hotplug script does its part, unless it hangs. Returns whether it has.
    fn hotplug(&self) -> bool {
        if !self.unplugged {
            self.store.write(&format!("{}/hotplug-status", self.back_path), "connected");
        }
        !self.unplugged
    }

    /// The toolstack does what it does with a device that has ended. Returns whether there was anything to do.
    fn tidy_up(&mut self, front: XenbusState) -> bool {
        let Some(then) = self.then.filter(|_| [self.state, front] == [XenbusState::CLOSED; 2]) else {
            return false;
        };
        self.vanish();
        self.store.remove(&self.front_path);
        if then == Then::Renew {
            self.come_back();
        }
        true
    }

    /// The guest goes on as a new domain, where the toolstack makes the device anew, unless the backend's domain is dead.
    fn migrated(&mut self, old: DomId) {
        self.disconnect();
        self.kept.clear();
        self.store.remove(&self.back_path);
        if let Some(options) = self.next.take() {
            (self.options, self.word) = (options, options);
            self.own = self.guest.xen().domain(options.domain);
            self.own.ensure_shared_info();
        }
        let (id, own) = (self.guest.id().0, self.options.domain.0);
        let index = self.front_path.rsplit('/').next().unwrap_or_default().to_string();
        self.guest.xen().trace(|| format!("netback: {old} is another"));
        self.front_path = format!("/local/domain/{id}/device/vif/{index}");
        self.back_path = format!("/local/domain/{own}/backend/vif/{id}/{index}");
        if !self.gone {
            self.come_back();
        }
    }

    fn drop_out(&mut self) {
        self.disconnect();
        self.switch(XenbusState::CLOSED);
    }

    fn vanish(&mut self) {
        self.gone = true;
        self.disconnect();
        self.store.remove(&self.back_path);
    }

    fn restart(&mut self) {
        self.disconnect();
        (self.gone, self.disabled) = (false, false);
        self.offer();
        self.switch(XenbusState::INIT_WAIT);
    }

    fn come_back(&mut self) {
        self.disconnect();
        (self.gone, self.disabled, self.state) = (false, false, XenbusState::INITIALISING);
        self.create();
    }

    fn switch(&mut self, state: XenbusState) {
        self.state = state;
        self.publish("state", &state.0.to_string());
    }

    fn publish(&self, node: &str, value: &str) {
        let path = [&*self.back_path, "/", node].concat();
        match self.lies.iter().rev().find(|(name, _)| name == node) {
            None => self.store.write(&path, value),
            Some((_, Some(lie))) => self.store.write(&path, lie),
            Some((_, None)) => self.store.remove(&path),
        }
    }

    fn front<T: core::str::FromStr>(&self, node: &str) -> Option<T> {
        self.store.read(&[&*self.front_path, "/", node].concat())?.parse().ok()
    }

    fn says(&self, node: &str) -> bool {
        self.front::<u32>(node).unwrap_or(0) != 0
    }

    fn complain(&mut self, complaint: impl Into<String>) {
        let complaint = complaint.into();
        self.guest.xen().trace(|| format!("netback: {complaint}"));
        self.complaints.push(complaint);
    }

    /// One move: in the handshake, or in the rings.
    fn step(&mut self) -> bool {
        if self.stalled || !self.happen() {
            return false;
        }
        let front: XenbusState = self.front("state").unwrap_or(XenbusState::UNKNOWN);
        if self.tidy_up(front) {
            return true;
        }
        match (self.state, front) {
            (XenbusState::INIT_WAIT, XenbusState::CONNECTED) if !self.hotplug() => return false,
            (XenbusState::INITIALISING | XenbusState::CLOSED, XenbusState::INITIALISING) => {
                self.offer();
                self.switch(XenbusState::INIT_WAIT);
            }
            (XenbusState::INIT_WAIT, XenbusState::CONNECTED) => match self.connect() {
                Ok(()) => self.switch(XenbusState::CONNECTED),
                Err(complaint) => {
                    self.disconnect();
                    self.complain(complaint);
                    self.switch(XenbusState::CLOSED);
                }
            },
            (XenbusState::INIT_WAIT, XenbusState::CLOSED) => self.switch(XenbusState::CLOSED),
            // Linux' goes along before it is connected, too.
            (XenbusState::INIT_WAIT, XenbusState::CLOSING) => self.switch(XenbusState::CLOSING),
            (XenbusState::CONNECTED, XenbusState::CLOSING) => {
                self.disconnect();
                self.switch(XenbusState::CLOSING);
            }
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
}
