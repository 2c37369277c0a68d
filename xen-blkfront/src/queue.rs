//! One ring with its event channel, and a record of each request in it that is not an operation by itself.

use xen_evtchn::{Channel, EventChannels};
use xen_gnttab::{GrantRef, GrantTable};
use xen_hypercall::{DomId, Platform};
use xen_ring::Front;

use crate::abi::{Blkif, OP_INDIRECT, Request, Response};
use crate::error::Violation;
use crate::pool::{Chain, NONE};
use crate::table::Table;
use crate::transport::{RingMemory, share_ring};
use crate::{Error, abi};

pub(crate) struct Queue<'x, P: Platform> {
    // Dropped in this order: no event may find a ring that is gone, or memory that is another's by then.
    pub(crate) channel: Channel<'x, P>,
    pub(crate) ring: Front<Blkif, RingMemory<'x, P>>,
    pub(crate) slots: Slots<'x, P>,
    /// As the backend has it.
    pub(crate) number: usize,
}

/// Records of requests that are not just one operation.
pub(crate) struct Slots<'x, P: Platform> {
    slots: Table<'x, P, Slot>,
    free: u16,
}

/// A request in the ring, or room for one.
#[derive(Clone, Copy)]
pub(crate) struct Slot {
    /// The number that the backend sends back, or [`NO_ID`]. The slot's index is in it, above that a count that it has in
    /// common with all operations: so a response that comes twice, or far too late, is one to no request.
    id: u64,
    /// The operations that it is for: the first, and how many that follow.
    pub(crate) first: u16,
    pub(crate) count: u16,
    /// The pages that its segments are in.
    pub(crate) indirect: Chain,
    pub(crate) operation: u8,
    next: u16,
}

/// The place that the first slot has in the number of a request. Those before it are operations', each of which can be a
/// request by itself.
pub(crate) const FIRST_SLOT: u16 = NONE - MAX_SLOTS;
const MAX_SLOTS: u16 = (abi::RING_SLOTS << abi::MAX_RING_ORDER) as u16;
/// No request: there is no slot with the index in this number.
const NO_ID: u64 = u64::MAX;

impl<'x, P: Platform> Queue<'x, P> {
    pub(crate) fn new(
        events: &'x EventChannels<P>,
        grants: &'x GrantTable<P>,
        backend: DomId,
        pages: usize,
        number: usize,
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
        Ok(Self { channel, ring, slots: Slots { slots, free }, number })
    }

    /// Whether there is no request in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.ring.in_flight() == 0 && !self.ring.has_unpublished()
    }

    /// The grants of the ring's pages.
    pub(crate) fn grefs(&self) -> impl Iterator<Item = GrantRef> {
        self.ring.get_ref().grefs()
    }

    /// Puts a request into the ring, which has room, and records it. Its number is `number`, with the record's place in
    /// the low bits. It is for `count` operations, and the response is to name `operation`.
    #[inline(never)]
    pub(crate) fn send(
        &mut self,
        number: u64,
        operation: u8,
        first: u16,
        count: u16,
        indirect: Chain,
        mut request: Request,
    ) {
        let Slots { slots, free } = &mut self.slots;
        let index = *free;
        // There is a slot for each request that the ring has room for.
        let Some(slot) = slots.get_mut(usize::from(index)) else { return };
        let id = number | u64::from(FIRST_SLOT + index);
        *free = slot.next;
        *slot = Slot { id, first, count, indirect, operation, next: NONE };
        request.id = id;
        self.push(&request);
    }

    /// Puts a request into the ring, which has room.
    #[inline(never)]
    pub(crate) fn push(&mut self, request: &Request) {
        let pushed = self.ring.push(request);
        debug_assert!(pushed.is_ok(), "the ring has room");
    }
}

impl Slot {
    /// What a slot would say of an operation that is a request by itself.
    pub(crate) fn of_one(op: u16, operation: u8) -> Self {
        Self { id: NO_ID, first: op, count: 1, indirect: Chain::EMPTY, operation, next: NONE }
    }
}

impl<P: Platform> Slots<'_, P> {
    /// The request that a response is to, whose slot is free then. It is believed only if that request is under way and of
    /// the same operation.
    pub(crate) fn take(&mut self, response: &Response) -> Result<Slot, Violation> {
        let index = (response.id as u16).wrapping_sub(FIRST_SLOT);
        let slot = self.slots.get_mut(usize::from(index)).filter(|slot| slot.id == response.id);
        let slot = slot.ok_or(Violation::Id(response.id))?;
        // Backends differ in which operation an indirect request's response names.
        let same = response.operation == slot.operation
            || slot.indirect != Chain::EMPTY && response.operation == OP_INDIRECT;
        if !same {
            return Err(Violation::Operation { asked: slot.operation, answered: response.operation });
        }
        slot.id = NO_ID;
        slot.next = core::mem::replace(&mut self.free, index);
        Ok(*slot)
    }

    /// The pages that the segments of all requests under way are in: the disk takes them back when the ring is gone.
    pub(crate) fn indirect(&self) -> impl Iterator<Item = Chain> {
        self.slots.iter().filter(|slot| slot.id != NO_ID).map(|slot| slot.indirect)
    }
}
