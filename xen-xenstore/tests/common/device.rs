//! A device of the guest's, and what its backend and the toolstack do.

use xen_hypercall::mock::{ActorId, MockDomain};
use xen_xenstore::xenbus::{BackendReady, Connected, Frontend, Published, XenbusState};
use xen_xenstore::{Error, Xenstore};

use super::Machine;

pub const BACK: &str = "/local/domain/0/backend/test/1/0";
pub const FRONT: &str = "/local/domain/1/device/test/0";

/// As backends of Linux do: from one state, when the frontend is in another, to a third.
pub const LINUX: &[(u32, &str, u32)] = &[
    (1, "1", 2),
    (6, "1", 2),
    (2, "3", 4),
    (2, "4", 4),
    (2, "6", 6),
    (4, "5", 5),
    (5, "6", 6),
    (4, "6", 6),
    (3, "5", 5),
    (2, "5", 5),
];

impl Machine {
    /// What the toolstack writes for a new device.
    pub fn device(&self) {
        self.store.write(BACK, "");
        self.store.set_permissions(BACK, "n0\0r1");
        self.back(1);
        self.store.write(FRONT, "");
        self.store.set_permissions(FRONT, "n1\0r0");
        for (node, value) in [("backend", BACK), ("backend-id", "0"), ("state", "1")] {
            self.store.write(&format!("{FRONT}/{node}"), value);
        }
    }

    pub fn back(&self, state: u32) {
        self.store.write(&format!("{BACK}/state"), &state.to_string());
    }

    pub fn front(&self) -> String {
        self.store.read(&format!("{FRONT}/state")).unwrap_or_default()
    }

    /// A backend that goes from a state to another when the frontend comes to one.
    pub fn backend(&self, moves: &'static [(u32, &'static str, u32)]) -> ActorId {
        let store = self.store.clone();
        self.xen.add_actor("backend", move |_| {
            let (back, front) = (format!("{BACK}/state"), format!("{FRONT}/state"));
            let (back, front) = (store.read(&back), store.read(&front).unwrap_or_default());
            let next =
                moves.iter().find(|(from, frontend, _)| back == Some(from.to_string()) && *frontend == front);
            if let Some((_, _, to)) = next {
                store.write(&format!("{BACK}/state"), &to.to_string());
            }
            next.is_some()
        })
    }

    pub fn open<'x>(&'x self, xs: &mut Xenstore<'x, MockDomain>) -> Result<Frontend<BackendReady>, Error> {
        Frontend::open(xs, "test", 0, self.after(5))?.wait_for_backend(xs, self.after(5))
    }

    pub fn publish<'x>(&'x self, xs: &mut Xenstore<'x, MockDomain>) -> Result<Frontend<Published>, Error> {
        let device = self.open(xs)?;
        device.publish(xs, XenbusState::INITIALISED, |transaction, path| {
            transaction.write_display(&path.join("ring-ref")?, 8)
        })
    }

    pub fn connect<'x>(&'x self, xs: &mut Xenstore<'x, MockDomain>) -> Result<Frontend<Connected>, Error> {
        let device = self.publish(xs)?.wait_connected(xs, self.after(5))?;
        assert_eq!(device.switch(xs, XenbusState::CONNECTED), Ok(true));
        Ok(device)
    }
}
