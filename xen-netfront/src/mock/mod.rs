//! A netback for tests on the host, and the switch that its guests are on.
//!
//! [`MockNetback`] gives a guest a network device. It is served by domain 0, takes part in the handshake by a
//! [`MockXenstored`], maps the rings and copies from and to the guest's pages by the mock of the grant table, under
//! the rules of Linux' netback: what that one would not take is a [complaint](MockNetback::complaints), and ends the
//! device where it does there. It looks at its ring of frames to send only when it got an event, so a driver that
//! forgets one hangs here as it would on Xen. See the crate's first page for an example.

mod deliver;
mod faults;
mod frame;
#[cfg(feature = "smoltcp-v0-14")]
mod host;
mod pcap;
mod serve;
mod switch;

use core::sync::atomic::Ordering::SeqCst;
use std::collections::{BTreeSet, VecDeque};
use std::format;
use std::string::{String, ToString};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

use xen_gnttab::GrantRef;
use xen_gnttab::mock::{MockMapping, map};
use xen_hypercall::mock::{Dice, MockDomain};
use xen_hypercall::{DomId, SharedInfo, event};
use xen_ring::Back;
use xen_xenstore::mock::MockXenstored;
use xen_xenstore::xenbus::XenbusState;

use crate::Mac;
use crate::abi::{Rx, RxRequest, RxResponse, Tx, TxResponse};
pub use faults::Faults;
pub use frame::Frame;
#[cfg(feature = "smoltcp-v0-14")]
pub use host::HostDevice;
pub use switch::MockSwitch;

/// What kind of device it is, and what its backend can do. By default all that Linux' can.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// The device's address.
    pub mac: Mac,
    /// What the toolstack says the MTU is, if anything.
    pub mtu: Option<u32>,
    /// Frames of several slots (`feature-sg`).
    pub sg: bool,
    /// Large TCP packets in IPv4 (`feature-gso-tcpv4`).
    pub gso_v4: bool,
    /// Large TCP packets in IPv6 (`feature-gso-tcpv6`).
    pub gso_v6: bool,
    /// Blank checksums in IPv4 (not `feature-no-csum-offload`, which Linux does not say).
    pub csum_v4: bool,
    /// Blank checksums in IPv6 (`feature-ipv6-csum-offload`).
    pub csum_v6: bool,
    /// Copying to the guest (`feature-rx-copy`).
    pub rx_copy: bool,
    /// Two event channels for a queue (`feature-split-event-channels`).
    pub split: bool,
    /// The most queues (`multi-queue-max-queues`); zero: it does not say.
    pub queues: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mac: Mac([0x00, 0x16, 0x3e, 0x12, 0x34, 0x56]),
            mtu: None,
            sg: true,
            gso_v4: true,
            gso_v6: true,
            csum_v4: true,
            csum_v6: true,
            rx_copy: true,
            split: true,
            queues: 4,
        }
    }
}

/// What is wrong with a response.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It names this request.
    Id(u16),
    /// This is its status: an error, or the length of what was received.
    Status(i16),
    /// The frame is at this place of the page. For frames received.
    Offset(u16),
    /// These are its flags. For frames received.
    Flags(u16),
    /// It does not come: the request stays unanswered.
    Missing,
    /// It comes twice, if there is another request whose answer it takes the place of.
    Twice,
    /// After it the ring's producer index is ahead by so much more.
    Index(u32),
}

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
    dom0: MockDomain,
    front_path: String,
    back_path: String,
    options: Options,
    state: XenbusState,
    lies: Vec<(String, Option<String>)>,
    queues: Vec<Queue>,
    /// What the guest takes.
    guest_takes: Takes,
    backlog: VecDeque<Frame>,
    tx_faults: VecDeque<Fault>,
    rx_faults: VecDeque<Fault>,
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
    /// A guest broke a rule that Linux ends the device for.
    disabled: bool,
}

/// What the guest said it takes.
#[derive(Clone, Copy, Default)]
struct Takes {
    sg: bool,
    gso_v4: bool,
    gso_v6: bool,
    csum_v4: bool,
    csum_v6: bool,
}

/// What a backend has of a queue while it is connected.
struct Queue {
    tx: Back<Tx, MockMapping>,
    rx: Back<Rx, MockMapping>,
    tx_port: u32,
    rx_port: u32,
    /// Pages to receive into that were taken from the ring and not used yet.
    room: VecDeque<RxRequest>,
    /// Responses that are not written yet.
    tx_answers: Vec<TxResponse>,
    rx_answers: Vec<RxResponse>,
    /// How much too far the guest is told that they go.
    tx_jump: Option<u32>,
    rx_jump: Option<u32>,
    /// A ring is of no use.
    dead: bool,
}

/// What passed through a backend.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BackStats {
    /// Frames from the guest.
    pub from_guest: u64,
    /// Slots in which they were.
    pub slots_from_guest: u64,
    /// Of these frames, the ones with blank checksums.
    pub blank_from_guest: u64,
    /// Of these frames, the ones to be cut.
    pub gso_from_guest: u64,
    /// Frames to the guest.
    pub to_guest: u64,
    /// Slots in which they were.
    pub slots_to_guest: u64,
    /// Of these frames, the ones with blank checksums.
    pub blank_to_guest: u64,
    /// Of these frames, the ones to be cut.
    pub gso_to_guest: u64,
    /// Frames that the guest cannot take, in one piece or several.
    pub undeliverable: u64,
    /// Events received from the guest.
    pub events: u64,
    /// Events sent to the guest.
    pub notifications: u64,
}

impl MockNetback {
    /// Gives a guest a network device on a switch, as the toolstack does, and serves it from domain 0. The mocks of
    /// event channels and grant tables must be installed.
    ///
    /// # Panics
    /// When domain 0 cannot be made ready.
    pub fn new(
        switch: &MockSwitch,
        store: &MockXenstored,
        guest: &MockDomain,
        index: u32,
        options: Options,
    ) -> Self {
        let (id, dom0) = (guest.id().0, guest.xen().domain(DomId(0)));
        if dom0.shared_info().is_none() {
            SharedInfo::map(&dom0).expect("shared_info of domain 0");
        }
        let backend = Self(Arc::new(Mutex::new(Backend {
            store: store.clone(),
            switch: switch.clone(),
            port: switch.add_port(),
            guest: guest.clone(),
            dom0,
            front_path: format!("/local/domain/{id}/device/vif/{index}"),
            back_path: format!("/local/domain/0/backend/vif/{id}/{index}"),
            options,
            state: XenbusState::INITIALISING,
            lies: Vec::new(),
            queues: Vec::new(),
            guest_takes: Takes::default(),
            backlog: VecDeque::new(),
            tx_faults: VecDeque::new(),
            rx_faults: VecDeque::new(),
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
            disabled: false,
        })));
        backend.state().create();
        let actor = backend.clone();
        guest.xen().add_actor("netback", move |_| actor.state().step());
        backend
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

    /// The toolstack takes the device away: the backend asks the guest to close it.
    pub fn detach(&self) {
        self.state().switch(XenbusState::CLOSING);
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
        let (front, back) = (&self.front_path, &self.back_path);
        self.store.write(front, "");
        self.store.set_permissions(front, &format!("n{id}\0r0"));
        self.store.write(back, "");
        self.store.set_permissions(back, &format!("n0\0r{id}"));
        let mac = self.options.mac.to_string();
        for (node, value) in
            [("backend", &**back), ("backend-id", "0"), ("handle", index), ("mac", &*mac), ("state", "1")]
        {
            self.store.write(&format!("{front}/{node}"), value);
        }
        if let Some(mtu) = self.options.mtu {
            self.store.write(&format!("{front}/mtu"), &mtu.to_string());
        }
        for (node, value) in
            [("frontend", &**front), ("frontend-id", &*id.to_string()), ("mac", &*mac), ("state", "1")]
        {
            self.store.write(&format!("{back}/{node}"), value);
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
        match (self.state, front) {
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

    fn offer(&self) {
        let Options { sg, gso_v4, gso_v6, csum_v4, csum_v6, rx_copy, split, queues, .. } = self.options;
        for (node, there) in [
            ("feature-sg", sg),
            ("feature-gso-tcpv4", gso_v4),
            ("feature-gso-tcpv6", gso_v6),
            ("feature-no-csum-offload", !csum_v4),
            ("feature-ipv6-csum-offload", csum_v6),
            ("feature-rx-copy", rx_copy),
            ("feature-rx-flip", false),
            ("feature-split-event-channels", split),
        ] {
            self.publish(node, if there { "1" } else { "0" });
        }
        if queues > 0 {
            self.publish("multi-queue-max-queues", &queues.to_string());
        }
    }

    fn connect(&mut self) -> Result<(), String> {
        self.guest_takes = Takes {
            sg: self.says("feature-sg"),
            gso_v4: self.says("feature-gso-tcpv4"),
            gso_v6: self.says("feature-gso-tcpv6"),
            csum_v4: !self.says("feature-no-csum-offload"),
            csum_v6: self.says("feature-ipv6-csum-offload"),
        };
        if !self.says("request-rx-copy") {
            return Err("no request-rx-copy".into());
        }
        if !self.says("feature-rx-notify") {
            return Err("no feature-rx-notify".into());
        }
        let count: u32 = self.front("multi-queue-num-queues").unwrap_or(1);
        if count == 0 || count > self.options.queues.max(1) {
            return Err(format!("{count} queues"));
        }
        for index in 0..count {
            let below = if count == 1 { String::new() } else { format!("queue-{index}/") };
            let queue = self.connect_queue(&below)?;
            self.queues.push(queue);
        }
        if count > 1 && self.front::<u32>("tx-ring-ref").is_some() {
            return Err("keys of a single queue beside those of several".into());
        }
        self.switch.set_up(self.port, true);
        Ok(())
    }

    fn connect_queue(&mut self, below: &str) -> Result<Queue, String> {
        let guest = self.guest.id();
        let ring = |name: &str| {
            let gref = self.front(&format!("{below}{name}")).ok_or(format!("no {below}{name}"))?;
            map(&self.dom0, guest, GrantRef(gref), true).map_err(|status| format!("{name}: {status:?}"))
        };
        let tx = Back::attach(ring("tx-ring-ref")?).map_err(|error| error.to_string())?;
        let rx = Back::attach(ring("rx-ring-ref")?).map_err(|error| error.to_string())?;
        let bind = |name: &str| {
            let port = self.front(&format!("{below}{name}")).ok_or(format!("no {below}{name}"))?;
            event::bind_interdomain(&self.dom0, guest, port).map_err(|errno| errno.to_string())
        };
        let (tx_port, rx_port) = if self.front::<u32>(&format!("{below}event-channel-tx")).is_some() {
            if !self.options.split {
                return Err("split event channels".into());
            }
            (bind("event-channel-tx")?, bind("event-channel-rx")?)
        } else {
            let port = bind("event-channel")?;
            (port, port)
        };
        Ok(Queue {
            tx,
            rx,
            tx_port,
            rx_port,
            room: VecDeque::new(),
            tx_answers: Vec::new(),
            rx_answers: Vec::new(),
            tx_jump: None,
            rx_jump: None,
            dead: false,
        })
    }

    fn disconnect(&mut self) {
        self.switch.set_up(self.port, false);
        self.backlog.clear();
        self.late_events.clear();
        for queue in core::mem::take(&mut self.queues) {
            // The guest may have closed its ends; ours are there in any case.
            for port in BTreeSet::from([queue.tx_port, queue.rx_port]) {
                let _ = event::close(&self.dom0, port);
            }
            if self.holds {
                self.kept.extend([queue.tx.into_inner(), queue.rx.into_inner()]);
            }
        }
    }

    /// Whether an event came to a port since the last look.
    fn notified(&mut self, port: u32) -> bool {
        let Some(shared) = self.dom0.shared_info() else { return false };
        let bit = 1 << (port % 64);
        let word = shared.evtchn_pending(port as usize / 64);
        let came = word.is_some_and(|word| word.fetch_and(!bit, SeqCst) & bit != 0);
        self.stats.events += u64::from(came);
        came
    }

    fn notify(&mut self, port: u32) {
        if self.roll(|faults| faults.lost_event) {
            return;
        }
        if self.roll(|faults| faults.late_event) {
            return self.late_events.push(port);
        }
        self.send_event(port);
    }

    fn send_event(&mut self, port: u32) {
        // Fails when the guest has closed its end, who then does not care.
        let _ = event::send(&self.dom0, port);
        self.stats.notifications += 1;
    }
}
