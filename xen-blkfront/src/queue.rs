//! One ring with its event channel, and a record of each request in it.

use xen_evtchn::{Channel, EventChannels};
use xen_gnttab::{GrantRef, GrantTable};
use xen_hypercall::{DomId, Platform};
use xen_ring::{Front, RingError};

use crate::abi::{Blkif, OP_INDIRECT, Request, Response};
use crate::error::Violation;
use crate::pool::{Chain, NONE};
use crate::table::Table;
use crate::transport::{RingMemory, share_ring};
use crate::{Error, abi};

pub(crate) struct Queue<'x, P: Platform> {
    pub(crate) ring: Front<Blkif, RingMemory<'x, P>>,
    pub(crate) channel: Channel<'x, P>,
    slots: Table<'x, P, Slot>,
    free: u16,
    /// Counts requests: the next one's number.
    next: u64,
}

/// A request in the ring, or room for one.
#[derive(Clone, Copy)]
pub(crate) struct Slot {
    /// The number that the backend sends back, or [`NO_ID`]. The slot's index is in it, and a count of all requests: so a
    /// response that comes twice, or far too late, is one to no request.
    id: u64,
    /// The operations that it is for: the first, and how many that follow.
    pub(crate) first: u16,
    pub(crate) count: u16,
    /// The pages that its segments are in.
    pub(crate) indirect: Chain,
    pub(crate) operation: u8,
    next: u16,
}

/// No request: there is no slot with the index in this number.
const NO_ID: u64 = u64::MAX;

impl<'x, P: Platform> Queue<'x, P> {
    pub(crate) fn new(
        events: &'x EventChannels<P>,
        grants: &'x GrantTable<P>,
        backend: DomId,
        pages: usize,
    ) -> Result<Self, Error> {
        // A page is large enough; `abi` has that checked.
        let ring = Front::init(share_ring(grants, backend, pages)?)
            .map_err(|error| Error::Broken(Violation::Ring(error)))?;
        let mut slots = Table::new(grants.platform(), ring.slots() as usize)?;
        let mut free = NONE;
        for index in 0..ring.slots() as u16 {
            let next = core::mem::replace(&mut free, index);
            let (first, indirect) = (NONE, Chain::EMPTY);
            let _ = slots.push(Slot { id: NO_ID, first, count: 0, indirect, operation: 0, next });
        }
        let channel = events.alloc_unbound(backend)?;
        // A backend that sends events without answers is listened to less and less often.
        channel.set_late_eoi(true);
        Ok(Self { ring, channel, slots, free, next: 1 })
    }

    /// The grants of the ring's pages.
    pub(crate) fn grefs(&self) -> impl Iterator<Item = GrantRef> {
        self.ring.get_ref().grefs()
    }

    /// Puts a request into the ring, which has room: `make` makes it, with the number that it is to have. It is for `count`
    /// operations, and the response is to name `operation`.
    #[inline(always)]
    pub(crate) fn send(
        &mut self,
        operation: u8,
        first: u16,
        count: u16,
        indirect: Chain,
        make: impl FnOnce(u64) -> Request,
    ) -> Result<(), Violation> {
        let index = self.free;
        // There is a slot for each request that the ring has room for.
        let Some(slot) = self.slots.get_mut(usize::from(index)) else {
            return Err(Violation::Ring(RingError::Full));
        };
        let id = self.next << 16 | u64::from(index);
        self.ring.push(&make(id)).map_err(Violation::Ring)?;
        self.next += 1;
        self.free = slot.next;
        *slot = Slot { id, first, count, indirect, operation, next: NONE };
        Ok(())
    }

    /// Takes the next response, and finds its request: it is believed only if that request is under way and of the same
    /// operation. The slot is free then. The backend's status comes with it.
    #[inline]
    pub(crate) fn take(&mut self) -> Result<Option<(Slot, i16)>, Violation> {
        let mut response = Response::default();
        if !self.ring.pop_into(&mut response).map_err(Violation::Ring)? {
            return Ok(None);
        }
        let index = response.id as u16;
        let Some(slot) = self.slots.get_mut(usize::from(index)).filter(|slot| slot.id == response.id) else {
            return Err(Violation::Id(response.id));
        };
        // Backends differ in which operation an indirect request's response names.
        let same = response.operation == slot.operation
            || slot.indirect != Chain::EMPTY && response.operation == OP_INDIRECT;
        if !same {
            return Err(Violation::Operation { asked: slot.operation, answered: response.operation });
        }
        slot.id = NO_ID;
        slot.next = core::mem::replace(&mut self.free, index);
        Ok(Some((*slot, response.status)))
    }

    /// The pages that the segments of all requests under way are in: the disk takes them back when the ring is gone.
    pub(crate) fn indirect(&self) -> impl Iterator<Item = Chain> {
        self.slots.iter().filter(|slot| slot.id != NO_ID).map(|slot| slot.indirect)
    }
}

static_assertions::const_assert!(abi::RING_SLOTS << abi::MAX_RING_ORDER < NONE as usize);
