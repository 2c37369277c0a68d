//! A xenstore daemon for tests on the host.
//!
//! [`MockXenstored`] serves the guests that are connected to it by the real protocol in real shared pages. A test, and
//! the mock of a backend, are domain 0: they read and write the tree by the functions here.
//!
//! ```
//! use xen_evtchn::EventChannels;
//! use xen_hypercall::{DomId, mock::MockXen};
//! use xen_xenstore::{Xenstore, mock::MockXenstored};
//!
//! let xen = MockXen::new();
//! xen_evtchn::mock::install(&xen);
//! let store = MockXenstored::new(&xen);
//! let guest = xen.domain(DomId(1));
//! store.connect(&guest);
//! let token = guest.boot().unwrap();
//! let events = EventChannels::new(&token).unwrap();
//!
//! let mut xs = Xenstore::new(&events).unwrap();
//! assert_eq!(xs.read_str("name").unwrap(), "d1");
//! xs.write("data/greeting", b"hello").unwrap();
//! assert_eq!(store.read("/local/domain/1/data/greeting").as_deref(), Some("hello"));
//! ```

mod acts;
mod changes;
mod connection;
mod device;
mod faults;
mod hash;
mod requests;
mod still;
mod tree;

use core::ptr::NonNull;
use std::boxed::Box;
use std::format;
use std::string::{String, ToString};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

use xen_hypercall::hvm::HvmParam;
use xen_hypercall::mock::{Dice, MockDomain, MockXen};
use xen_hypercall::{DomId, Gfn, Page};

use crate::ServerFeatures;
use crate::wire::Header;
use connection::Connection;
pub use device::{MockDevice, Then, Toolstack};
pub use faults::Faults;
use faults::Trouble;
pub use still::Still;
use tree::{Change, Permissions, Tree};

/// Where the toolstack puts a guest's xenstore page.
const STORE_GFN: Gfn = Gfn(0xF_EFFE);

/// Changes a message on its way to a guest, or what its header says of it.
type Tamper = Box<dyn FnMut(&mut Header, &mut Vec<u8>) + Send>;

/// How much a guest may have. The default is what the C daemon allows; what is over is refused with its errors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// Nodes that it owns (`ENOSPC`).
    pub nodes: usize,
    /// Bytes of a node, with its name (`ENOSPC`).
    pub node_size: usize,
    /// Entries in a node's permissions (`ENOSPC`).
    pub permissions: usize,
    /// Watches (`E2BIG`).
    pub watches: usize,
    /// Transactions at the same time (`ENOSPC`).
    pub transactions: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { nodes: 1000, node_size: 2048, permissions: 5, watches: 128, transactions: 10 }
    }
}

/// The daemon. Clones are handles to the same one.
#[derive(Clone)]
pub struct MockXenstored(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    tree: Tree,
    connections: Vec<Connection>,
    tamper: Option<Tamper>,
    trouble: Trouble,
    clashes: usize,
    stalled: bool,
    /// Questions that are handled, and whose answers are not sent.
    unanswered: usize,
    /// Bytes that are moved in a step, each way.
    pace: Option<usize>,
}

impl std::fmt::Debug for MockXenstored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MockXenstored")
    }
}

impl MockXenstored {
    /// Starts a daemon with an empty tree. The mock of event channels must be installed.
    pub fn new(xen: &MockXen) -> Self {
        let daemon = Self(Arc::default());
        let actor = daemon.clone();
        xen.add_actor("xenstored", move |_| actor.state().step());
        let hook = daemon.clone();
        xen.on_migration(move |guest, old| hook.migrated(guest, old));
        daemon
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a guest its connection and its directory, as the toolstack does (`@introduceDomain`).
    ///
    /// # Panics
    /// When the guest is connected already.
    pub fn connect(&self, guest: &MockDomain) {
        self.prepare(guest);
        self.introduce(guest);
    }

    /// What Xen gives a guest that it starts itself (dom0less), before there is a daemon: an event channel, and
    /// `HVM_PARAM_STORE_PFN` says that a page will come. [`introduce`](Self::introduce) is the rest.
    ///
    /// # Panics
    /// When the guest is connected already.
    pub fn prepare(&self, guest: &MockDomain) {
        let page = guest.special_page(STORE_GFN);
        self.attach(guest, page);
    }

    fn attach(&self, guest: &MockDomain, page: NonNull<Page>) {
        let dom0 = guest.xen().inside().domain(DomId(0));
        dom0.ensure_shared_info();
        let local = xen_hypercall::event::alloc_unbound(guest, dom0.id()).expect("a port for the guest");
        let port =
            xen_hypercall::event::bind_interdomain(&dom0, guest.id(), local).expect("a port for the daemon");
        guest.set_hvm_param(HvmParam::STORE_PFN, u64::MAX);
        guest.set_hvm_param(HvmParam::STORE_EVTCHN, local.into());
        self.state().connections.push(Connection::new(guest, page, dom0, port));
    }

    /// The page of a [prepared](Self::prepare) guest is there, and no daemon yet: Xen has set the word `connection`, and no
    /// feature is offered. What the guest writes into the ring is lost.
    ///
    /// # Panics
    /// When the guest is not prepared.
    pub fn show_page(&self, guest: &MockDomain) {
        guest.set_hvm_param(HvmParam::STORE_PFN, STORE_GFN.0);
        self.with(guest.id(), Connection::show);
    }

    /// The daemon takes up a [prepared](Self::prepare) guest: it resets the ring and serves it.
    ///
    /// # Panics
    /// When the guest is not prepared.
    pub fn introduce(&self, guest: &MockDomain) {
        let id = guest.id();
        let home = format!("/local/domain/{}", id.0);
        for (name, value, permissions) in [
            ("", "", format!("n0\0r{}", id.0)),
            ("/name", &*format!("d{}", id.0), format!("n0\0r{}", id.0)),
            ("/domid", &*id.0.to_string(), format!("n0\0r{}", id.0)),
            ("/control", "", format!("n0\0r{}", id.0)),
            ("/control/shutdown", "", format!("n{}", id.0)),
            ("/control/feature-poweroff", "", format!("n{}", id.0)),
            ("/control/feature-reboot", "", format!("n{}", id.0)),
            ("/control/feature-suspend", "", format!("n{}", id.0)),
            ("/device", "", format!("n0\0r{}", id.0)),
            ("/data", "", format!("n{}", id.0)),
        ] {
            self.write(&format!("{home}{name}"), value);
            self.set_permissions(&format!("{home}{name}"), &permissions);
        }
        guest.set_hvm_param(HvmParam::STORE_PFN, STORE_GFN.0);
        let mut state = self.state();
        let connection = state.connections.iter_mut().find(|connection| connection.id() == id);
        connection.expect("a guest that was prepared").begin();
        state.tell_special("@introduceDomain");
    }

    /// A guest goes on as a new domain: the connection and the nodes of the one before end, and it has new ones, by the
    /// same page, which is empty. The toolstack does this before the guest runs.
    fn migrated(&self, guest: &MockDomain, old: DomId) {
        let mut state = self.state();
        // The handle that a connection has is one to the new domain.
        let Some(index) = state.connections.iter().position(|connection| connection.id() == guest.id())
        else {
            return;
        };
        let page = state.connections.remove(index).close();
        let gone = state.tree.remove(&format!("/local/domain/{}", old.0));
        state.tell(&gone);
        state.tell_special("@releaseDomain");
        drop(state);
        self.attach(guest, page);
        self.introduce(guest);
    }

    /// Ends a guest's connection, as when its domain is gone (`@releaseDomain`). Its nodes stay.
    pub fn disconnect(&self, guest: DomId) {
        let mut state = self.state();
        state.connections.retain(|connection| connection.id() != guest);
        state.tell_special("@releaseDomain");
    }

    /// Sets a node's value, making the nodes above it.
    ///
    /// # Panics
    /// When the path is none.
    pub fn write(&self, path: &str, value: &str) {
        self.write_bytes(path, value.as_bytes());
    }

    /// [`write`](Self::write) for a value that is not text.
    ///
    /// # Panics
    /// When the path is none.
    pub fn write_bytes(&self, path: &str, value: &[u8]) {
        let mut state = self.state();
        let changes = state.tree.write(path, value, DomId(0)).expect("an absolute path");
        state.tell(&changes);
    }

    /// A node's value; what is not text is shown with replacement characters.
    pub fn read(&self, path: &str) -> Option<String> {
        self.state().tree.get(path).map(|node| String::from_utf8_lossy(&node.value).into_owned())
    }

    /// A node's value as it is.
    pub fn read_bytes(&self, path: &str) -> Option<Vec<u8>> {
        self.state().tree.get(path).map(|node| node.value.clone())
    }

    /// Removes a node and all below it.
    pub fn remove(&self, path: &str) {
        let mut state = self.state();
        let changes = state.tree.remove(path);
        state.tell(&changes);
    }

    /// The names right below a path.
    pub fn list(&self, path: &str) -> Vec<String> {
        self.state().tree.children(path)
    }

    /// Every path that there is, in order.
    pub fn paths(&self) -> Vec<String> {
        self.state().tree.paths()
    }

    /// Says who may do what with a node: `"n1\0r0"`. Nothing happens when the node does not exist, or this is no
    /// such list.
    pub fn set_permissions(&self, path: &str, list: &str) {
        let mut state = self.state();
        let Some(permissions) = Permissions::parse(list) else { return };
        if let Ok(changes) = state.tree.set_permissions(path, permissions, DomId(0)) {
            state.tell(&changes);
        }
    }

    /// Who may do what with a node, as [`set_permissions`](Self::set_permissions) takes it.
    pub fn permissions(&self, path: &str) -> Option<String> {
        self.state().tree.get(path).map(|node| node.permissions.to_string())
    }

    /// How much each guest may have from now on.
    pub fn set_limits(&self, limits: Limits) {
        self.state().tree.limits = limits;
    }

    /// What goes wrong from now on, and when: the same every time for the same dice.
    pub fn set_faults(&self, dice: Dice, faults: Faults) {
        self.state().trouble = Trouble { dice, faults };
    }

    /// Lets the next `times` transactions clash, whatever they are.
    pub fn clash(&self, times: usize) {
        self.state().clashes = times;
    }

    /// A daemon that hangs: answers nothing until it is told otherwise.
    pub fn stall(&self, stalled: bool) {
        self.state().stalled = stalled;
    }

    /// A daemon that does what the next so many questions ask, and leaves them without an answer.
    pub fn leave_unanswered(&self, questions: usize) {
        self.state().unanswered = questions;
    }

    /// A daemon that ends, and is started again: it has forgotten all connections with their watches and transactions, and knows
    /// the tree. Each guest is told so where that is [offered](Self::offer), and has to ask for a new connection.
    pub fn restart(&self) {
        let mut state = self.state();
        state.connections.iter_mut().for_each(Connection::lose);
        (state.stalled, state.unanswered, state.clashes) = (false, 0, 0);
    }

    /// A daemon that is slow: moves so many bytes to and from each guest in a step, at least one; none: as many as it can.
    pub fn set_pace(&self, bytes: Option<usize>) {
        self.state().pace = bytes.map(|bytes| bytes.max(1));
    }

    /// A daemon that lies: every message to a guest passes through `tamper` first; none: no more.
    pub fn tamper(&self, tamper: Option<impl FnMut(&mut Header, &mut Vec<u8>) + Send + 'static>) {
        self.state().tamper = tamper.map(|hook| Box::new(hook) as Tamper);
    }

    /// Writes any value to a word of a guest's page (offsets as in `io/xs_wire.h`).
    ///
    /// # Panics
    /// When the guest is not connected, or the offset is not in the page.
    pub fn poke(&self, guest: DomId, offset: usize, value: u32) {
        self.with(guest, |connection| connection.poke(offset, value));
    }

    /// What the daemon says to a guest that it can do; at first [`RECONNECTION`](ServerFeatures::RECONNECTION) and
    /// [`ERROR`](ServerFeatures::ERROR).
    ///
    /// # Panics
    /// When the guest is not connected.
    pub fn offer(&self, guest: DomId, features: ServerFeatures) {
        self.with(guest, |connection| connection.offer(features));
    }

    /// Gives a guest's connection up for a reason (`XENSTORE_ERROR_*`), until it asks for a new one.
    ///
    /// # Panics
    /// When the guest is not connected.
    pub fn give_up(&self, guest: DomId, reason: u32) {
        self.with(guest, |connection| connection.give_up(reason));
    }

    /// How many watches a guest has set.
    ///
    /// # Panics
    /// When the guest is not connected.
    pub fn watches(&self, guest: DomId) -> usize {
        self.with(guest, |connection| connection.watches.len())
    }

    /// How many transactions of a guest are under way.
    ///
    /// # Panics
    /// When the guest is not connected.
    pub fn transactions(&self, guest: DomId) -> usize {
        self.with(guest, |connection| connection.transactions.len())
    }

    fn with<R>(&self, guest: DomId, f: impl FnOnce(&mut Connection) -> R) -> R {
        let mut state = self.state();
        f(state.connections.iter_mut().find(|c| c.id() == guest).expect("a connected guest"))
    }
}

impl State {
    fn step(&mut self) -> bool {
        if self.stalled {
            return false;
        }
        let mut progress = false;
        let pace = self.pace.unwrap_or(usize::MAX);
        for index in 0..self.connections.len() {
            let connection = &mut self.connections[index];
            // Only an event makes it look at the ring: a guest that forgets one waits here as it would on Xen.
            if connection.take_event() {
                connection.looks = true;
            }
            if !connection.looks {
                let Self { connections, tamper, .. } = self;
                progress |= connections[index].transmit(tamper.as_mut(), pace);
                continue;
            }
            progress |= connection.reconnect();
            while !self.connections[index].is_dead() {
                let Some((header, payload)) = self.connections[index].receive(pace) else { break };
                progress = true;
                self.handle(index, header, &payload);
                if self.pace.is_some() {
                    break;
                }
            }
            let Self { connections, tamper, .. } = self;
            let connection = &mut connections[index];
            connection.looks = connection.has_input() && !connection.is_dead();
            progress |= connection.looks;
            progress |= connection.transmit(tamper.as_mut(), pace);
        }
        progress
    }

    /// Fires the watches that changes concern.
    fn tell(&mut self, changes: &[Change]) {
        let Self { connections, trouble, .. } = self;
        for change in changes {
            for connection in connections.iter_mut().filter(|connection| !connection.is_dead()) {
                for event in connection.events_of(change) {
                    if trouble.hits(|f| f.doubled_event) {
                        connection.watch_event(&event);
                    }
                    connection.watch_event(&event);
                }
            }
        }
    }

    /// A domain came or went.
    fn tell_special(&mut self, name: &str) {
        if let Some(change) = self.tree.special(name) {
            self.tell(&[change]);
        }
    }
}
