//! Which multicast frames are wanted (`feature-multicast-control`).

use xen_hypercall::{PageBox, Platform, Wait};
use xen_xenstore::{Blocking, Xenstore};

use crate::abi::{EXTRA_TYPE_MCAST_ADD, EXTRA_TYPE_MCAST_DEL, ExtraInfo};
use crate::tx::{Plan, Slot};
use crate::way::blocking;
use crate::{Error, Mac, NetFront, State};

/// What a backend can do about multicast frames.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Multicast {
    /// All of them arrive.
    #[default]
    Unfiltered,
    /// It filters if the guest asked for that when it connected ([`Config::multicast_filter`](crate::Config)).
    Static,
    /// It filters whenever the guest wants ([`NetFront::filter_multicast`]).
    Dynamic,
}

impl<'x, P: Platform, const QUEUES: usize> NetFront<'x, P, QUEUES> {
    /// What the backend can do about multicast frames.
    pub fn multicast(&self) -> Multicast {
        self.multicast
    }

    /// Adds an address to those whose frames are wanted, or takes it away. The list exists whether the backend filters or
    /// not, and is empty when a device was connected; after a [`reconnect`](Self::reconnect) the backend is asked for all of
    /// it again. The backend sees the request with the next [`publish`](Self::publish); one that it refuses counts as an error
    /// of sending.
    ///
    /// # Errors
    /// [`Error::NoMulticast`] when it has no such list, [`Error::TooManyGroups`] for more than [`GROUPS`] addresses,
    /// [`Error::Full`], [`Error::Closed`], [`Error::Broken`]; [`Error::Grant`]: there is no memory for the list.
    pub fn want_multicast(&mut self, address: Mac, wanted: bool) -> Result<(), Error> {
        self.check()?;
        if self.multicast == Multicast::Unfiltered {
            return Err(Error::NoMulticast);
        }
        let mut groups = match self.groups.take() {
            Some(groups) => groups,
            None => {
                PageBox::new(self.grants.platform(), Groups::default).ok_or(xen_gnttab::Error::OutOfMemory)?
            }
        };
        let asked = match wanted {
            true if !groups.has_room_for(address) => Err(Error::TooManyGroups),
            _ => self.ask_for(address, wanted),
        };
        if asked.is_ok() {
            groups.note(address, wanted);
        }
        self.groups = Some(groups);
        asked
    }

    fn ask_for(&mut self, address: Mac, wanted: bool) -> Result<(), Error> {
        let kind = if wanted { EXTRA_TYPE_MCAST_ADD } else { EXTRA_TYPE_MCAST_DEL };
        let plan = Plan::of_extra(ExtraInfo { kind, flags: 0, data: address.0 });
        let sent = self.on_queue(&[], |queue, stats| {
            if queue.tx.available(2, stats)? == 0 {
                return Err(Error::Full);
            }
            // A request needs a page to have an id, though there is nothing in it.
            queue.tx.send(0, &plan, [Slot { offset: 0, len: 0, page: None }].into_iter(), stats)
        });
        self.settle(sent)
    }

    /// Asks a backend that is new for the addresses of the list from one on. With an error, [`Error::Full`] above all, comes the
    /// first that it was not asked for.
    pub(crate) fn ask_again(&mut self, from: usize) -> Result<(), (usize, Error)> {
        if self.multicast == Multicast::Unfiltered || self.groups.is_none() {
            return Ok(());
        }
        let mut index = from;
        while let Some(address) = self.groups.as_ref().and_then(|groups| groups.get(index)) {
            self.ask_for(address, true).map_err(|error| (index, error))?;
            index += 1;
        }
        self.publish().map_err(|error| (index, error))
    }

    /// Notes whether to filter. Returns whether the backend can be told now.
    pub(crate) fn set_filter(&mut self, filter: bool) -> bool {
        self.config.multicast_filter = filter;
        self.state == State::Connected && self.multicast == Multicast::Dynamic
    }

    /// Lets the backend filter from now on, or no more; also one that takes its place later.
    ///
    /// # Errors
    /// [`Error::NoMulticast`] when it cannot change that while connected; [`Error::Closed`]; [`Error::Xenstore`].
    pub fn filter_multicast(&mut self, xs: &mut Xenstore<'x, P>, filter: bool) -> Result<(), Error>
    where
        P: Wait,
    {
        self.check()?;
        let tie = self.tie.as_ref().ok_or(Error::Closed)?;
        if self.multicast != Multicast::Dynamic {
            return Err(Error::NoMulticast);
        }
        blocking::follow::filter(&mut Blocking::new(xs), &tie.device, filter)?;
        self.config.multicast_filter = filter;
        Ok(())
    }
}

/// The most multicast addresses that can be wanted at a time, as many as Linux' backend takes.
pub const GROUPS: usize = 64;

/// The addresses that are wanted.
pub(crate) struct Groups {
    list: [Mac; GROUPS],
    count: usize,
}

impl Default for Groups {
    fn default() -> Self {
        Self { list: [Mac([0; 6]); GROUPS], count: 0 }
    }
}

impl Groups {
    fn get(&self, index: usize) -> Option<Mac> {
        self.list.get(..self.count)?.get(index).copied()
    }

    fn place(&self, address: Mac) -> Option<usize> {
        self.list.iter().take(self.count).position(|known| *known == address)
    }

    fn has_room_for(&self, address: Mac) -> bool {
        self.count < GROUPS || self.place(address).is_some()
    }

    fn note(&mut self, address: Mac, wanted: bool) {
        match (self.place(address), wanted) {
            (None, true) => {
                if let Some(place) = self.list.get_mut(self.count) {
                    *place = address;
                    self.count += 1;
                }
            }
            (Some(place), false) => {
                self.list.copy_within(place + 1..self.count, place);
                self.count -= 1;
            }
            _ => {}
        }
    }
}
