//! The backend's state, and its part in the handshake.

use std::collections::VecDeque;
use std::format;
use std::io;
use std::string::{String, ToString};
use std::vec::Vec;

use xen_hypercall::mock::{Chance, Dice, MockDomain};
use xen_xenstore::mock::MockXenstored;
use xen_xenstore::xenbus::XenbusState;

use super::link::{Link, Mapped};
use super::storage::Storage;
use super::{Fault, Faults, Options, Order};
use crate::abi::{DiskInfo, Request, SECTOR};

pub(super) struct Backend {
    pub(super) store: MockXenstored,
    pub(super) guest: MockDomain,
    pub(super) dom0: MockDomain,
    pub(super) front_path: String,
    back_path: String,
    pub(super) options: Options,
    /// What it is like after the next migration.
    pub(super) next: Option<Options>,
    pub(super) storage: Storage,
    state: XenbusState,
    pub(super) lies: Vec<(String, Option<String>)>,
    pub(super) link: Option<Link>,
    pub(super) mapped: Mapped,
    pub(super) faults: VecDeque<Fault>,
    pub(super) chances: Option<(Dice, Faults)>,
    pub(super) hits: u64,
    pub(super) lied: u64,
    pub(super) served: Vec<Request>,
    pub(super) complaints: Vec<String>,
    /// Decides the order.
    pub(super) dice: Dice,
    pub(super) stalled: bool,
    pub(super) gone: bool,
}

impl Backend {
    pub(super) fn new(
        store: &MockXenstored,
        guest: &MockDomain,
        index: u32,
        options: Options,
        storage: Storage,
    ) -> Self {
        let (id, dom0) = (guest.id().0, guest.xen().inside().domain(options.domain));
        dom0.ensure_shared_info();
        let front_path = format!("/local/domain/{id}/device/vbd/{index}");
        let own = options.domain.0;
        let back_path = format!("/local/domain/{own}/backend/vbd/{id}/{index}");
        let backend = Self {
            store: store.clone(),
            guest: guest.inside(),
            dom0,
            front_path,
            back_path,
            options,
            next: None,
            storage,
            state: XenbusState::INITIALISING,
            lies: Vec::new(),
            link: None,
            mapped: Mapped::default(),
            faults: VecDeque::new(),
            chances: None,
            hits: 0,
            lied: 0,
            served: Vec::new(),
            complaints: Vec::new(),
            dice: Dice::new(if let Order::Shuffled(seed) = options.order { seed } else { 0 }),
            stalled: false,
            gone: false,
        };
        backend.plug();
        backend.appear();
        backend
    }

    /// What the toolstack writes for the guest.
    fn plug(&self) {
        let (store, front_path, own) = (&self.store, &self.front_path, self.options.domain.0);
        let id = self.guest.id().0;
        store.write(front_path, "");
        store.set_permissions(front_path, &format!("n{id}\0r{own}"));
        let kind = if self.options.cdrom { "cdrom" } else { "disk" };
        for (node, value) in [
            ("backend", &*self.back_path),
            ("backend-id", &own.to_string()),
            ("device-type", kind),
            ("state", "1"),
        ] {
            store.write(&format!("{front_path}/{node}"), value);
        }
    }

    /// The guest goes on as a new domain, where the toolstack makes the device anew. The disk is as it was.
    pub(super) fn migrated(&mut self) {
        self.disconnect();
        (self.mapped.pages, self.mapped.kept) = Default::default();
        self.store.remove(&self.back_path);
        if let Some(options) = self.next.take() {
            self.options = options;
            self.dom0 = self.guest.xen().domain(options.domain);
            self.dom0.ensure_shared_info();
            self.storage.resize(options.sectors * SECTOR as u64).expect("a disk that can be resized");
        }
        let (id, own) = (self.guest.id().0, self.options.domain.0);
        let index = self.front_path.rsplit('/').next().unwrap_or_default().to_string();
        self.front_path = format!("/local/domain/{id}/device/vbd/{index}");
        self.back_path = format!("/local/domain/{own}/backend/vbd/{id}/{index}");
        self.plug();
        if !self.gone {
            self.state = XenbusState::INITIALISING;
            self.appear();
        }
    }

    /// What the toolstack writes for a new backend.
    fn appear(&self) {
        let id = self.guest.id().0;
        self.store.write(&self.back_path, "");
        self.store.set_permissions(&self.back_path, &format!("n{}\0r{id}", self.options.domain.0));
        for (node, value) in [
            ("frontend", &*self.front_path),
            ("frontend-id", &*id.to_string()),
            ("mode", if self.options.read_only { "r" } else { "w" }),
            ("state", "1"),
        ] {
            self.store.write(&format!("{}/{node}", self.back_path), value);
        }
    }

    /// Whether a fault of this chance happens now. `lie`: the guest may believe what is not so.
    pub(super) fn hit(&mut self, lie: bool, chance: impl FnOnce(&Faults) -> Chance) -> bool {
        let hit = self.chances.as_ref().is_some_and(|(dice, faults)| dice.hit(chance(faults)));
        self.hits += u64::from(hit);
        self.lied += u64::from(hit && lie);
        hit
    }

    /// A number for a fault that happens.
    pub(super) fn random(&self, below: u64) -> u64 {
        self.chances.as_ref().map_or(0, |(dice, _)| dice.below(below))
    }

    pub(super) fn trace(&self, line: impl FnOnce() -> String) {
        self.guest.xen().trace(|| format!("blkback: {}", line()));
    }

    pub(super) fn switch(&mut self, state: XenbusState) {
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

    /// A value of the guest's directory.
    pub(super) fn front<T: core::str::FromStr>(&self, node: &str) -> Option<T> {
        self.store.read(&format!("{}/{node}", self.front_path))?.parse().ok()
    }

    /// One move: in the handshake, or in the rings.
    pub(super) fn step(&mut self) -> bool {
        if self.stalled || self.hit(false, |faults| faults.stall) {
            return false;
        }
        if self.gone {
            let comes = self.hit(false, |faults| faults.come_back);
            if comes {
                self.come_back();
            }
            return comes;
        }
        if self.link.is_some() && self.misbehave() {
            return true;
        }
        let front: XenbusState = self.front("state").unwrap_or(XenbusState::UNKNOWN);
        match (self.state, front) {
            (XenbusState::INITIALISING | XenbusState::CLOSED, XenbusState::INITIALISING) => {
                self.publish_offer();
                self.switch(XenbusState::INIT_WAIT);
            }
            (XenbusState::INIT_WAIT, XenbusState::INITIALISED | XenbusState::CONNECTED)
                if self.link.is_none() =>
            {
                match Link::connect(self) {
                    Ok(link) => {
                        self.link = Some(link);
                        self.publish_disk();
                        self.switch(XenbusState::CONNECTED);
                    }
                    Err(complaint) => {
                        self.complaints.push(complaint);
                        self.switch(XenbusState::CLOSED);
                    }
                }
            }
            // Said late, whatever the guest has come to meanwhile.
            (XenbusState::INIT_WAIT, _) if self.link.is_some() => self.switch(XenbusState::CONNECTED),
            (XenbusState::CONNECTED, XenbusState::CLOSING) => self.switch(XenbusState::CLOSING),
            (XenbusState::INIT_WAIT, XenbusState::CLOSED) => self.switch(XenbusState::CLOSED),
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

    /// What a backend may do to the whole device.
    fn misbehave(&mut self) -> bool {
        if self.hit(false, |faults| faults.die) {
            self.vanish();
        } else if self.hit(false, |faults| faults.drop_out) {
            self.drop_out();
        } else if self.state == XenbusState::CONNECTED && self.hit(false, |faults| faults.close) {
            self.switch(XenbusState::CLOSING);
        } else {
            return false;
        }
        self.trace(|| format!("is {} now, by chance", self.state));
        true
    }

    /// What the guest must know before it chooses.
    fn publish_offer(&self) {
        let Options { max_ring_page_order, max_ring_pages, max_queues, .. } = self.options;
        for (node, value) in [
            ("max-ring-page-order", max_ring_page_order),
            ("max-ring-pages", max_ring_pages),
            ("multi-queue-max-queues", max_queues),
            ("feature-max-indirect-segments", self.options.indirect_segments.map(u32::from)),
            ("feature-persistent", Some(u32::from(self.options.persistent))),
        ] {
            if let Some(value) = value {
                self.publish(node, &value.to_string());
            }
        }
    }

    fn publish_disk(&self) {
        let Options { sectors, sector_size, read_only, discard, .. } = self.options;
        let mut info = DiskInfo::empty();
        info.set(DiskInfo::READONLY, read_only);
        info.set(DiskInfo::CDROM, self.options.cdrom);
        info.set(DiskInfo::REMOVABLE, self.options.removable);
        self.publish("sectors", &sectors.to_string());
        self.publish("sector-size", &sector_size.to_string());
        self.publish("info", &info.bits().to_string());
        self.publish("mode", if read_only { "r" } else { "w" });
        self.publish("feature-flush-cache", if self.options.flush { "1" } else { "0" });
        self.publish("feature-barrier", if self.options.barrier { "1" } else { "0" });
        self.publish("feature-discard", if discard.is_some() { "1" } else { "0" });
        // Not told by an honest backend that has nothing to tell; the lies must be told all the same.
        for (node, value) in [
            ("physical-sector-size", self.options.physical_sector_size),
            ("discard-granularity", discard.and_then(|discard| discard.granularity)),
            ("discard-alignment", discard.and_then(|discard| discard.alignment)),
            ("discard-secure", discard.map(|discard| discard.secure.into())),
        ] {
            if value.is_some() || self.lies.iter().any(|(name, _)| name == node) {
                self.publish(node, &value.unwrap_or(0).to_string());
            }
        }
    }

    pub(super) fn hold(&mut self, holds: bool) {
        self.mapped.holds = holds;
        if !holds {
            self.mapped.kept.clear();
        }
    }

    pub(super) fn resize(&mut self, sectors: u64) -> io::Result<()> {
        self.storage.resize(sectors * SECTOR as u64)?;
        self.options.sectors = sectors;
        if self.state == XenbusState::CONNECTED {
            self.publish("sectors", &sectors.to_string());
            self.switch(XenbusState::CONNECTED);
        }
        Ok(())
    }

    pub(super) fn drop_out(&mut self) {
        self.disconnect();
        self.switch(XenbusState::CLOSED);
    }

    /// What Linux' does when its driver is bound anew: it takes up the rings that it finds in the guest's nodes.
    pub(super) fn restart(&mut self) {
        self.disconnect();
        self.publish_offer();
        self.switch(XenbusState::INIT_WAIT);
        match Link::connect(self) {
            Ok(link) => self.link = Some(link),
            Err(complaint) => self.complaints.push(complaint),
        }
    }

    pub(super) fn vanish(&mut self) {
        self.gone = true;
        self.disconnect();
        self.store.remove(&self.back_path);
        self.state = XenbusState::UNKNOWN;
    }

    pub(super) fn come_back(&mut self) {
        // What begins anew knows of no rings.
        self.disconnect();
        self.gone = false;
        self.state = XenbusState::INITIALISING;
        self.appear();
    }

    fn disconnect(&mut self) {
        if let Some(link) = self.link.take() {
            link.disconnect(&self.dom0, &mut self.mapped);
        }
    }
}
