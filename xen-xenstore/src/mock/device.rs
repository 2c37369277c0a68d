//! A device in the tree, as a toolstack makes it and takes it away.

use std::format;
use std::string::{String, ToString};

use xen_hypercall::DomId;
use xen_hypercall::mock::{ActorId, MockXen};

use super::MockXenstored;
use crate::xenbus::XenbusState;

/// Which toolstack makes the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Toolstack {
    /// `xl`: domain 0 owns the directory `device`, and the guest the device's own directory.
    #[default]
    Xl,
    /// XAPI: the guest owns `device` and all below it, so that it can make directories there itself.
    Xapi,
}

/// What a toolstack does with a device that has ended: both sides are Closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Then {
    /// It removes both directories.
    Remove,
    /// It makes the device anew at the same place.
    Renew,
}

/// A device of a guest with a backend in any domain. Clones are handles to the same device.
///
/// ```
/// use xen_hypercall::{DomId, mock::MockXen};
/// use xen_xenstore::mock::{MockDevice, MockXenstored};
///
/// let xen = MockXen::new();
/// xen_evtchn::mock::install(&xen);
/// let store = MockXenstored::new(&xen);
/// let device = MockDevice::new(&store, "vif", 0, DomId(1), DomId(3));
/// device.plug();
/// assert_eq!(store.read("/local/domain/3/backend/vif/1/0/frontend").as_deref(), Some("/local/domain/1/device/vif/0"));
/// ```
#[derive(Clone, Debug)]
pub struct MockDevice {
    store: MockXenstored,
    kind: String,
    index: u32,
    guest: DomId,
    backend: DomId,
    toolstack: Toolstack,
}

impl MockDevice {
    /// Device `index` of a kind, which is not plugged in yet. `backend` is the domain that serves it.
    pub fn new(store: &MockXenstored, kind: &str, index: u32, guest: DomId, backend: DomId) -> Self {
        let (store, kind, toolstack) = (store.clone(), kind.to_string(), Toolstack::Xl);
        Self { store, kind, index, guest, backend, toolstack }
    }

    /// The same device by another toolstack.
    #[must_use]
    pub fn by(mut self, toolstack: Toolstack) -> Self {
        self.toolstack = toolstack;
        self
    }

    /// The path of a node in the guest's directory of the device, or of the directory itself if `node` is empty.
    pub fn front_path(&self, node: &str) -> String {
        join(format!("/local/domain/{}/device/{}/{}", self.guest.0, self.kind, self.index), node)
    }

    /// The path of a node in the backend's directory of the device, or of the directory itself if `node` is empty.
    pub fn back_path(&self, node: &str) -> String {
        let (backend, guest) = (self.backend.0, self.guest.0);
        join(format!("/local/domain/{backend}/backend/{}/{guest}/{}", self.kind, self.index), node)
    }

    /// A node of the guest's directory.
    pub fn front(&self, node: &str) -> Option<String> {
        self.store.read(&self.front_path(node))
    }

    /// A node of the backend's directory.
    pub fn back(&self, node: &str) -> Option<String> {
        self.store.read(&self.back_path(node))
    }

    /// Sets a node of the backend's directory.
    pub fn set_back(&self, node: &str, value: &str) {
        self.store.write(&self.back_path(node), value);
    }

    /// Sets the backend's state.
    pub fn set_state(&self, state: XenbusState) {
        self.set_back("state", &state.0.to_string());
    }

    /// Whether the guest has a directory for the device.
    pub fn is_there(&self) -> bool {
        self.front("").is_some()
    }

    /// Makes both directories, with nodes as new as their owners want them: each side is Initialising.
    pub fn plug(&self) {
        let (store, guest, backend) = (&self.store, self.guest.0, self.backend.0);
        if self.toolstack == Toolstack::Xapi {
            let devices = format!("/local/domain/{guest}/device");
            for directory in [devices.clone(), format!("{devices}/{}", self.kind)] {
                store.write(&directory, "");
                store.set_permissions(&directory, &format!("n{guest}\0r{backend}"));
            }
        }
        // Each directory has its permissions before there is anything in it.
        let (front, back) = (self.front_path(""), self.back_path(""));
        store.write(&back, "");
        store.set_permissions(&back, &format!("n{backend}\0r{guest}"));
        store.write(&front, "");
        store.set_permissions(&front, &format!("n{guest}\0r{backend}"));
        for (node, value) in
            [("frontend", &*front), ("frontend-id", &guest.to_string()), ("online", "1"), ("state", "1")]
        {
            self.set_back(node, value);
        }
        for (node, value) in [("backend", &*back), ("backend-id", &backend.to_string()), ("state", "1")] {
            store.write(&self.front_path(node), value);
        }
    }

    /// What the hotplug script of the backend's domain says when it has done its part.
    pub fn hotplugged(&self) {
        self.set_back("hotplug-status", "connected");
    }

    /// Asks for the end of the device, as the toolstack does (`online` 0, the backend Closing).
    pub fn detach(&self) {
        self.set_back("online", "0");
        self.set_state(XenbusState::CLOSING);
    }

    /// Takes the device away without asking: both directories go.
    pub fn unplug(&self) {
        self.store.remove(&self.front_path(""));
        self.store.remove(&self.back_path(""));
    }

    /// A toolstack that looks at the states from now on: when both sides are Closed, it does this.
    pub fn follow(&self, xen: &MockXen, then: Then) -> ActorId {
        let device = self.clone();
        xen.add_actor("toolstack", move |_| {
            let closed = Some(XenbusState::CLOSED.0.to_string());
            if device.front("state") != closed || device.back("state") != closed {
                return false;
            }
            device.unplug();
            if then == Then::Renew {
                device.plug();
            }
            true
        })
    }
}

fn join(directory: String, node: &str) -> String {
    if node.is_empty() { directory } else { directory + "/" + node }
}
