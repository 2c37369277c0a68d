//! One ring with its event channel, and a record of each request in it.

use xen_evtchn::{Channel, EventChannels};
use xen_gnttab::{GrantRef, GrantTable};
use xen_hypercall::{DomId, Platform};
use xen_ring::Front;

use crate::abi::{Blkif, OP_INDIRECT, Response};
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
}

/// A request in the ring, or room for one.
#[derive(Clone, Copy)]
pub(crate) struct Slot {
    /// The operations that it is for: the first, and how many that follow.
    pub(crate) first: u16,
    pub(crate) count: u16,
    /// The pages that its segments are in.
    pub(crate) indirect: Chain,
    /// Changes with each use, and is in the number that the backend sends back: so a response that comes twice, or far
    /// too late, is one to no request.
    generation: u32,
    pub(crate) operation: u8,
    under_way: bool,
    next: u16,
}

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
            let _ = slots.push(Slot {
                first: NONE,
                count: 0,
                indirect: Chain::EMPTY,
                generation: 0,
                operation: 0,
                under_way: false,
                next,
            });
        }
        let channel = events.alloc_unbound(backend)?;
        // A backend that sends events without answers is listened to less and less often.
        channel.set_late_eoi(true);
        Ok(Self { ring, channel, slots, free })
    }

    /// The grants of the ring's pages.
    pub(crate) fn grefs(&self) -> impl Iterator<Item = GrantRef> {
        self.ring.get_ref().grefs()
    }

    /// Takes a slot; answers the request's number.
    pub(crate) fn begin(&mut self, operation: u8, first: u16, count: u16, indirect: Chain) -> Option<u64> {
        let index = self.free;
        let slot = self.slots.get_mut(usize::from(index))?;
        self.free = slot.next;
        let generation = slot.generation.wrapping_add(1);
        *slot = Slot { first, count, indirect, generation, operation, under_way: true, next: NONE };
        Some(u64::from(generation) << 16 | u64::from(index))
    }

    /// Finds the request of a response, which is believed only if that request is under way and of the same operation.
    /// The slot is free then.
    pub(crate) fn answer(&mut self, response: &Response) -> Result<Slot, Violation> {
        let violation = Violation::Id(response.id);
        let index = response.id as u16;
        let slot = self.slots.get_mut(usize::from(index)).ok_or(violation)?;
        if !slot.under_way || u64::from(slot.generation) != response.id >> 16 {
            return Err(violation);
        }
        // Backends differ in which operation an indirect request's response names.
        let same = response.operation == slot.operation
            || slot.indirect != Chain::EMPTY && response.operation == OP_INDIRECT;
        if !same {
            return Err(Violation::Operation { asked: slot.operation, answered: response.operation });
        }
        slot.under_way = false;
        slot.next = core::mem::replace(&mut self.free, index);
        Ok(*slot)
    }

    /// Gives up a slot whose request was not sent after all.
    pub(crate) fn cancel(&mut self, id: u64) {
        if let Some(slot) = self.slots.get_mut(usize::from(id as u16)) {
            slot.under_way = false;
            slot.next = core::mem::replace(&mut self.free, id as u16);
        }
    }

    /// The pages that the segments of all requests under way are in: the disk takes them back when the ring is gone.
    pub(crate) fn indirect(&self) -> impl Iterator<Item = Chain> {
        self.slots.iter().filter(|slot| slot.under_way).map(|slot| slot.indirect)
    }
}

static_assertions::const_assert!(abi::RING_SLOTS << abi::MAX_RING_ORDER < NONE as usize);
