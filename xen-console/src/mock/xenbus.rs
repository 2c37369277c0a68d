//! The backend of a console with a number.

use core::str::FromStr;
use std::format;
use std::string::{String, ToString};

use xen_gnttab::GrantRef;
use xen_gnttab::mock::map;
use xen_hypercall::mock::MockDomain;
use xen_hypercall::{DomId, event};
use xen_ring::ByteRing;
use xen_xenstore::mock::MockXenstored;
use xen_xenstore::xenbus::XenbusState;

use super::page::DaemonPage;
use super::{Link, MockConsoled, State};

/// Where the device is in xenstore, and how far it is.
pub(super) struct Device {
    store: MockXenstored,
    front: String,
    back: String,
    index: u32,
    state: XenbusState,
}

impl MockConsoled {
    /// Gives a guest a console with a number, as the toolstack does, and serves it from domain 0. The mocks of event
    /// channels and grant tables must be installed.
    pub fn attach(store: &MockXenstored, guest: &MockDomain, index: u32) -> Self {
        Self::attach_from(store, guest, index, DomId(0))
    }

    /// As [`attach`](Self::attach), with a backend in any domain.
    pub fn attach_from(store: &MockXenstored, guest: &MockDomain, index: u32, home: DomId) -> Self {
        let home = guest.xen().domain(home);
        let daemon = Self::start(guest, &home, None);
        daemon.state().device = Some(Device::plug(store, guest.id(), home.id(), index));
        daemon
    }

    /// The toolstack takes the console away: the backend asks the guest to close it.
    pub fn detach(&self) {
        if let Some(device) = &mut self.state().device {
            device.switch(XenbusState::CLOSING);
        }
    }

    /// The backend is started again: it lets go of the page and the port without a word, and waits for a frontend to begin
    /// anew.
    pub fn restart(&self) {
        let mut state = self.state();
        let_go(state.link.take(), &state.home);
        if let Some(device) = &mut state.device {
            device.switch(XenbusState::INITIALISING);
            device.switch(XenbusState::INIT_WAIT);
        }
    }

    /// The backend's machine crashes, or the toolstack detaches the console by force: the backend is gone, and so are both
    /// directories.
    pub fn crash(&self) {
        let mut state = self.state();
        let_go(state.link.take(), &state.home);
        if let Some(device) = state.device.take() {
            device.store.remove(&device.front);
            device.store.remove(&device.back);
        }
    }
}

/// Unmaps the page and closes the port.
fn let_go(link: Option<Link>, home: &MockDomain) {
    if let Some(Link { port, ring }) = link {
        drop(ring);
        // The guest may have closed its end; ours is there in any case.
        let _ = event::close(home, port);
    }
}

impl Device {
    /// Makes the nodes that the toolstack makes.
    fn plug(store: &MockXenstored, guest: DomId, home: DomId, index: u32) -> Self {
        let (id, home_id) = (guest.0, home.0);
        let front = format!("/local/domain/{id}/device/console/{index}");
        let back = format!("/local/domain/{home_id}/backend/console/{id}/{index}");
        store.write(&front, "");
        store.set_permissions(&front, &format!("n{id}\0r{home_id}"));
        store.write(&back, "");
        store.set_permissions(&back, &format!("n{home_id}\0r{id}"));
        for (node, value) in [
            (format!("{front}/backend"), &*back),
            (format!("{front}/backend-id"), &home_id.to_string()),
            (format!("{front}/type"), "ioemu"),
            (format!("{front}/state"), "1"),
            (format!("{back}/frontend"), &front),
            (format!("{back}/frontend-id"), &id.to_string()),
            (format!("{back}/state"), "1"),
        ] {
            store.write(&node, value);
        }
        Self { store: store.clone(), front, back, index, state: XenbusState::INITIALISING }
    }

    fn switch(&mut self, state: XenbusState) {
        self.state = state;
        self.store.write(&format!("{}/state", self.back), &state.0.to_string());
    }

    fn front<T: FromStr>(&self, node: &str) -> Option<T> {
        self.store.read(&format!("{}/{node}", self.front))?.parse().ok()
    }
}

impl State {
    /// The guest goes on as a new domain, where the toolstack makes the device anew.
    pub(super) fn plug_again(&mut self) {
        let_go(self.link.take(), &self.home);
        if let Some(Device { store, back, index, .. }) = self.device.take() {
            store.remove(&back);
            self.device = Some(Device::plug(&store, self.guest.id(), self.home.id(), index));
        }
    }

    /// One move in the handshake, if there is one to make.
    pub(super) fn shake_hands(&mut self) -> bool {
        let Some(device) = &mut self.device else { return false };
        let front: XenbusState = device.front("state").unwrap_or(XenbusState::UNKNOWN);
        match (device.state, front) {
            (XenbusState::INITIALISING | XenbusState::CLOSED, XenbusState::INITIALISING) => {
                device.switch(XenbusState::INIT_WAIT);
            }
            (XenbusState::INIT_WAIT, XenbusState::INITIALISED) => {
                let (gref, port) = (device.front("ring-ref"), device.front("port"));
                let link = gref.zip(port).and_then(|(gref, port)| {
                    let page = map(&self.home, self.guest.id(), GrantRef(gref), true).ok()?;
                    let ring = ByteRing::new(DaemonPage::Granted(page)).ok()?;
                    let port = event::bind_interdomain(&self.home, self.guest.id(), port).ok()?;
                    Some(Link { ring, port })
                });
                let state = if link.is_some() { XenbusState::CONNECTED } else { XenbusState::CLOSED };
                self.link = link;
                device.switch(state);
            }
            (XenbusState::CONNECTED, XenbusState::CLOSING) => device.switch(XenbusState::CLOSING),
            (
                XenbusState::CONNECTED | XenbusState::CLOSING | XenbusState::INIT_WAIT,
                XenbusState::CLOSED | XenbusState::UNKNOWN,
            ) => {
                if let Some(Link { port, .. }) = self.link.take() {
                    // The guest may have closed its end; ours is there in any case.
                    let _ = event::close(&self.home, port);
                }
                device.switch(XenbusState::CLOSED);
            }
            _ => return false,
        }
        true
    }
}
