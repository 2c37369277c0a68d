//! Which multicast frames are wanted (`feature-multicast-control`).

use xen_hypercall::{Platform, Wait};
use xen_xenstore::Xenstore;

use crate::abi::{EXTRA_TYPE_MCAST_ADD, EXTRA_TYPE_MCAST_DEL, ExtraInfo};
use crate::tx::{Plan, Slot};
use crate::{Error, Mac, NetFront};

/// What a backend can do about multicast frames.
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
    /// not, and is empty when a device was connected or began anew. The backend sees the request with the next
    /// [`publish`](Self::publish); one that it refuses counts as an error of sending.
    ///
    /// # Errors
    /// [`Error::NoMulticast`] when it has no such list, [`Error::Full`], [`Error::Closed`], [`Error::Broken`].
    pub fn want_multicast(&mut self, address: Mac, wanted: bool) -> Result<(), Error> {
        self.check()?;
        if self.multicast == Multicast::Unfiltered {
            return Err(Error::NoMulticast);
        }
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

    /// Lets the backend filter from now on, or no more.
    ///
    /// # Errors
    /// [`Error::NoMulticast`] when it cannot change that while connected; [`Error::Closed`]; [`Error::Store`].
    pub fn filter_multicast(&mut self, xs: &mut Xenstore<'x, P>, filter: bool) -> Result<(), Error>
    where
        P: Wait,
    {
        self.check()?;
        let device = self.device.as_ref().ok_or(Error::Closed)?;
        if self.multicast != Multicast::Dynamic {
            return Err(Error::NoMulticast);
        }
        xs.write_display(&device.frontend_path().join("request-multicast-control")?, u32::from(filter))?;
        Ok(())
    }
}
