//! The backend's state, and its part in the handshake.

use std::collections::VecDeque;
use std::format;
use std::io;
use std::string::{String, ToString};
use std::vec::Vec;

use xen_hypercall::mock::{Chance, Dice, MockDomain};
use xen_xenstore::mock::{MockXenstored, Then};
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
    pub(super) back_path: String,
    pub(super) options: Options,
    /// What it can do as it told the guest, which it keeps to.
    pub(super) word: Options,
    /// What it is like after the next migration.
    pub(super) next: Option<Options>,
    pub(super) storage: Storage,
    pub(super) state: XenbusState,
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
    /// What the toolstack does when both sides are Closed.
    pub(super) then: Option<Then>,
    /// The hotplug script hangs.
    pub(super) unplugged: bool,
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
        let back_path = format!("/local/domain/{}/backend/vbd/{id}/{index}", options.domain.0);
        let backend = Self {
            store: store.clone(),
            guest: guest.inside(),
            dom0,
            front_path,
            back_path,
            options,
            word: options,
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
            then: None,
            unplugged: false,
        };
        backend.give_disk();
        backend.appear();
        backend
    }

    /// The guest goes on as a new domain, where the toolstack makes the device anew. The disk is as it was.
    pub(super) fn migrated(&mut self) {
        self.disconnect();
        (self.mapped.pages, self.mapped.kept) = Default::default();
        self.store.remove(&self.back_path);
        if let Some(options) = self.next.take() {
            // It is another, which does not hang.
            self.stalled = false;
            self.options = options;
            self.dom0 = self.guest.xen().domain(options.domain);
            self.dom0.ensure_shared_info();
            self.storage.resize(options.sectors * SECTOR as u64).expect("a disk that can be resized");
        }
        let (id, own) = (self.guest.id().0, self.options.domain.0);
        let index = self.front_path.rsplit('/').next().unwrap_or_default().to_string();
        self.front_path = format!("/local/domain/{id}/device/vbd/{index}");
        self.back_path = format!("/local/domain/{own}/backend/vbd/{id}/{index}");
        self.give_disk();
        if !self.gone {
            self.state = XenbusState::INITIALISING;
            self.appear();
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
        let path = [&*self.back_path, "/", node].concat();
        match self.lies.iter().rev().find(|(name, _)| name == node) {
            None => self.store.write(&path, value),
            Some((_, Some(lie))) => self.store.write(&path, lie),
            Some((_, None)) => self.store.remove(&path),
        }
    }

    /// Whether a node is written though an honest backend has nothing to tell.
    fn is_lied_about(&self, node: &str) -> bool {
        self.lies.iter().any(|(name, _)| name == node)
    }

    /// A value of the guest's directory.
    pub(super) fn front<T: core::str::FromStr>(&self, node: &str) -> Option<T> {
        self.store.read(&[&*self.front_path, "/", node].concat())?.parse().ok()
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
        if self.tidy_up(front) {
            return true;
        }
        match (self.state, front) {
            (XenbusState::INIT_WAIT, XenbusState::INITIALISED | XenbusState::CONNECTED)
                if !self.hotplug() =>
            {
                return false;
            }
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
            (XenbusState::INIT_WAIT, _) if self.link.is_some() => {
                self.publish_disk();
                self.switch(XenbusState::CONNECTED);
            }
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
    fn publish_offer(&mut self) {
        let Options { max_ring_page_order, max_ring_pages, max_queues, .. } = self.options;
        for (node, value) in [
            ("max-ring-page-order", max_ring_page_order),
            ("max-ring-pages", max_ring_pages),
            ("multi-queue-max-queues", max_queues),
            ("feature-max-indirect-segments", self.options.indirect_segments.map(u32::from)),
            ("feature-persistent", Some(u32::from(self.options.persistent))),
        ] {
            if value.is_some() || self.is_lied_about(node) {
                self.publish(node, &value.unwrap_or(0).to_string());
            }
        }
        self.word = self.given_word();
    }

    fn publish_disk(&mut self) {
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
        for (node, value) in [
            ("physical-sector-size", self.options.physical_sector_size),
            ("discard-granularity", discard.and_then(|discard| discard.granularity)),
            ("discard-alignment", discard.and_then(|discard| discard.alignment)),
            ("discard-secure", discard.map(|discard| discard.secure.into())),
        ] {
            if value.is_some() || self.is_lied_about(node) {
                self.publish(node, &value.unwrap_or(0).to_string());
            }
        }
        self.word = self.given_word();
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
            self.word = self.given_word();
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
