//! What the toolstack does: it gives the guest a disk, asks for its end, and removes it.

use std::format;
use std::string::ToString;

use xen_xenstore::mock::{Then, Toolstack};
use xen_xenstore::xenbus::XenbusState;

use super::backend::Backend;

impl Backend {
    /// Writes the guest's directory of a new disk.
    pub(super) fn give_disk(&self) {
        let (id, own) = (self.guest.id().0, self.options.domain.0);
        let permissions = format!("n{id}\0r{own}");
        if self.options.toolstack == Toolstack::Xapi {
            let devices = format!("/local/domain/{id}/device");
            for directory in [devices.clone(), devices + "/vbd"] {
                self.store.write(&directory, "");
                self.store.set_permissions(&directory, &permissions);
            }
        }
        self.store.write(&self.front_path, "");
        self.store.set_permissions(&self.front_path, &permissions);
        for (node, value) in [
            ("backend", &*self.back_path),
            ("backend-id", &own.to_string()),
            ("device-type", if self.options.cdrom { "cdrom" } else { "disk" }),
            ("state", "1"),
        ] {
            self.store.write(&format!("{}/{node}", self.front_path), value);
        }
    }

    /// Writes the directory of a new backend.
    pub(super) fn appear(&self) {
        let id = self.guest.id().0;
        self.store.write(&self.back_path, "");
        self.store.set_permissions(&self.back_path, &format!("n{}\0r{id}", self.options.domain.0));
        for (node, value) in [
            ("frontend", &*self.front_path),
            ("frontend-id", &*id.to_string()),
            ("online", "1"),
            ("mode", if self.options.read_only { "r" } else { "w" }),
            ("state", "1"),
        ] {
            self.store.write(&format!("{}/{node}", self.back_path), value);
        }
    }

    pub(super) fn detach(&mut self) {
        self.store.write(&format!("{}/online", self.back_path), "0");
        self.switch(XenbusState::CLOSING);
    }

    /// The hotplug script does its part, unless it hangs. Returns whether it has.
    pub(super) fn hotplug(&self) -> bool {
        if !self.unplugged {
            self.store.write(&format!("{}/hotplug-status", self.back_path), "connected");
        }
        !self.unplugged
    }

    /// The toolstack does what it does with a disk that has ended. Returns whether there was anything to do.
    pub(super) fn tidy_up(&mut self, front: XenbusState) -> bool {
        let Some(then) = self.then.filter(|_| [self.state, front] == [XenbusState::CLOSED; 2]) else {
            return false;
        };
        self.vanish();
        self.store.remove(&self.front_path);
        if then == Then::Renew {
            self.give_disk();
            self.come_back();
        }
        true
    }
}
