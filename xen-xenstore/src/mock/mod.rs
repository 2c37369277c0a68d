//! A xenstore daemon for tests on the host.
//!
//! [`MockXenstored`] serves the guests that are connected to it by the real protocol in real shared pages. A test, and
//! the mock of a backend, are domain 0: they read and write the tree by the functions here.
//!
//! ```
//! use xen_evtchn::EventChannels;
//! use xen_hypercall::{DomId, SharedInfo, mock::MockXen};
//! use xen_xenstore::{Xenstore, mock::MockXenstored};
//!
//! let xen = MockXen::new();
//! xen_evtchn::mock::install(&xen);
//! let store = MockXenstored::new(&xen);
//! let guest = xen.domain(DomId(1));
//! store.connect(&guest);
//! let events = EventChannels::new(guest.clone(), SharedInfo::map(&guest).unwrap()).unwrap();
//!
//! let mut xs = Xenstore::new(&events).unwrap();
//! assert_eq!(xs.read_str("name").unwrap(), "d1");
//! xs.write("data/greeting", b"hello").unwrap();
//! assert_eq!(store.read("/local/domain/1/data/greeting").as_deref(), Some("hello"));
//! ```

mod connection;
mod requests;
mod tree;

use std::boxed::Box;
use std::format;
use std::string::{String, ToString};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

use xen_hypercall::hvm::HvmParam;
use xen_hypercall::mock::{MockDomain, MockXen};
use xen_hypercall::{DomId, Gfn};

use crate::wire::Header;
use connection::Connection;
use tree::Tree;

/// Where the toolstack puts a guest's xenstore page.
const STORE_GFN: Gfn = Gfn(0xF_EFFE);

/// Changes a message on its way to a guest, or what its header says of it.
type Tamper = Box<dyn FnMut(&mut Header, &mut Vec<u8>) + Send>;

/// The daemon. Clones are handles to the same one.
#[derive(Clone)]
pub struct MockXenstored(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    tree: Tree,
    connections: Vec<Connection>,
    tamper: Option<Tamper>,
    clashes: usize,
    stalled: bool,
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
        daemon
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a guest its connection and its directory, as the toolstack does.
    ///
    /// # Panics
    /// When the guest is connected already.
    pub fn connect(&self, guest: &MockDomain) {
        let id = guest.id();
        let page = guest.special_page(STORE_GFN);
        let dom0 = guest.xen().domain(DomId(0));
        let local = xen_hypercall::event::alloc_unbound(guest, dom0.id()).expect("a port for the guest");
        let port = xen_hypercall::event::bind_interdomain(&dom0, id, local).expect("a port for the daemon");
        guest.set_hvm_param(HvmParam::STORE_PFN, STORE_GFN.0);
        guest.set_hvm_param(HvmParam::STORE_EVTCHN, local.into());
        let home = format!("/local/domain/{}", id.0);
        for (name, value, permissions) in [
            ("", "", format!("n0\0r{}", id.0)),
            ("/name", &*format!("d{}", id.0), format!("n0\0r{}", id.0)),
            ("/domid", &*id.0.to_string(), format!("n0\0r{}", id.0)),
            ("/control", "", format!("n0\0r{}", id.0)),
            ("/control/shutdown", "", format!("n{}", id.0)),
            ("/control/feature-poweroff", "", format!("n{}", id.0)),
            ("/control/feature-reboot", "", format!("n{}", id.0)),
            ("/device", "", format!("n0\0r{}", id.0)),
            ("/data", "", format!("n{}", id.0)),
        ] {
            self.write(&format!("{home}{name}"), value);
            self.set_permissions(&format!("{home}{name}"), &permissions);
        }
        self.state().connections.push(Connection::new(guest, page, dom0, port));
    }

    /// Sets a node's value, making the nodes above it.
    pub fn write(&self, path: &str, value: &str) {
        let mut state = self.state();
        state.tree.write(path, value.as_bytes(), DomId(0));
        state.tell(path);
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
        state.tree.remove(path);
        state.tell(path);
    }

    /// The names right below a path.
    pub fn list(&self, path: &str) -> Vec<String> {
        self.state().tree.children(path)
    }

    /// Says who may do what with a node: `"n1\0r0"`.
    pub fn set_permissions(&self, path: &str, list: &str) {
        self.state().tree.set_permissions(path, list);
    }

    /// Lets the next `times` transactions clash, whatever they are.
    pub fn clash(&self, times: usize) {
        self.state().clashes = times;
    }

    /// A daemon that hangs: answers nothing until it is told otherwise.
    pub fn stall(&self, stalled: bool) {
        self.state().stalled = stalled;
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
        let mut state = self.state();
        let connection = state.connections.iter_mut().find(|c| c.id() == guest).expect("a connected guest");
        connection.poke(offset, value);
    }
}

impl State {
    fn step(&mut self) -> bool {
        if self.stalled {
            return false;
        }
        let mut progress = false;
        for index in 0..self.connections.len() {
            while let Some((header, payload)) = self.connections[index].receive() {
                progress = true;
                self.handle(index, header, &payload);
            }
            let Self { connections, tamper, .. } = self;
            progress |= connections[index].transmit(tamper.as_mut());
        }
        progress
    }

    /// Fires the watches that a change at `path` concerns.
    fn tell(&mut self, path: &str) {
        for connection in &mut self.connections {
            connection.tell(path);
        }
    }
}
