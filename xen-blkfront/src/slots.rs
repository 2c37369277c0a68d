//! The table of requests: what is under way, with the pages that it uses.
//!
//! A request's pages belong to its slot and stay granted as long as the disk is connected, so the backend can keep
//! them mapped. A slot is used again only after its request was answered: before that its pages are the backend's.

use xen_gnttab::{Access, GrantTable, GrantedPage};
use xen_hypercall::{DomId, PAGE_SIZE, Platform};
use xen_ring::OutOfRange;

use crate::abi::{MAX_SEGMENTS, OP_READ, RING_SLOTS, Response, SECTOR, Segment};
use crate::error::Violation;
use crate::{Error, Ticket};

/// All slots. Free ones are used last in, first out, so that few pages are in use while there is little to do.
pub(crate) struct Slots<'x, P: Platform> {
    slots: [Option<Slot<'x, P>>; RING_SLOTS],
    free: [u8; RING_SLOTS],
    free_count: usize,
}

struct Slot<'x, P: Platform> {
    pages: [Option<GrantedPage<'x, P>>; MAX_SEGMENTS],
    /// Changes with each use, and is in the number that the backend sends back.
    generation: u32,
    state: State,
    operation: u8,
    /// Bytes read or written.
    len: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Free,
    /// The backend has it. `wanted`: somebody has a ticket for the result.
    InFlight {
        wanted: bool,
    },
    Done(Result<(), Error>),
}

/// What a response was about.
pub(crate) struct Answered {
    pub(crate) operation: u8,
    pub(crate) len: usize,
    pub(crate) result: Result<(), Error>,
}

impl<'x, P: Platform> Slots<'x, P> {
    /// `count` slots, at most 32, with all their pages.
    pub(crate) fn new(grants: &'x GrantTable<P>, backend: DomId, count: usize) -> Result<Self, Error> {
        let mut all = Self { slots: core::array::from_fn(|_| None), free: [0; RING_SLOTS], free_count: 0 };
        for slot in all.slots.iter_mut().take(count) {
            let mut pages = core::array::from_fn(|_| None);
            for page in &mut pages {
                *page = Some(grants.share(backend, Access::ReadWrite)?);
            }
            *slot = Some(Slot { pages, generation: 0, state: State::Free, operation: 0, len: 0 });
        }
        // The first slot is on top.
        for index in (0..count.min(RING_SLOTS)).rev() {
            all.release(index);
        }
        Ok(all)
    }

    pub(crate) fn free(&self) -> usize {
        self.free_count
    }

    /// Takes a slot for a request that is going to be sent.
    pub(crate) fn begin(&mut self, operation: u8, len: usize) -> Result<Ticket, Error> {
        let top = self.free_count.checked_sub(1).ok_or(Error::Busy)?;
        let index = *self.free.get(top).ok_or(Error::Busy)?;
        let slot = self.slots.get_mut(usize::from(index)).and_then(Option::as_mut).ok_or(Error::Busy)?;
        self.free_count = top;
        slot.generation = slot.generation.wrapping_add(1);
        slot.state = State::InFlight { wanted: true };
        (slot.operation, slot.len) = (operation, len);
        Ok(Ticket { index, generation: slot.generation })
    }

    /// The first pages of a request: what the backend is told about them, `None` past the last.
    pub(crate) fn segment(&self, ticket: Ticket, index: usize) -> Option<Segment> {
        let slot = self.get(ticket)?;
        let bytes = slot.len.saturating_sub(index * PAGE_SIZE).min(PAGE_SIZE);
        let last = (bytes / SECTOR).checked_sub(1)?;
        let gref = slot.pages.get(index)?.as_ref()?.gref().0;
        Some(Segment { gref, first: 0, last: last as u8, pad: 0 })
    }

    /// Copies what is to be written into a request's pages.
    pub(crate) fn fill(&mut self, ticket: Ticket, data: &[u8]) -> Result<(), OutOfRange> {
        let Some(slot) = self.get_mut(ticket) else { return Ok(()) };
        for (page, part) in slot.pages.iter_mut().flatten().zip(data.chunks(PAGE_SIZE)) {
            page.write_bytes(0, part)?;
        }
        Ok(())
    }

    /// Gives up a slot whose request was not sent after all, or whose answer is enough (a `flush` of nothing).
    pub(crate) fn settle(&mut self, ticket: Ticket, result: Result<(), Error>) {
        if let Some(slot) = self.get_mut(ticket) {
            slot.state = State::Done(result);
        }
    }

    /// Finds the request of a response, which is believed only if that request is under way and the same operation.
    pub(crate) fn answer(
        &mut self,
        response: Response,
        result: Result<(), Error>,
    ) -> Result<Answered, Violation> {
        let ticket = Ticket::from_id(response.id).ok_or(Violation::Id(response.id))?;
        let slot = self.get_mut(ticket).ok_or(Violation::Id(response.id))?;
        let State::InFlight { wanted } = slot.state else { return Err(Violation::Id(response.id)) };
        if slot.operation != response.operation {
            return Err(Violation::Operation { asked: slot.operation, answered: response.operation });
        }
        slot.state = State::Done(result);
        let answered = Answered { operation: slot.operation, len: slot.len, result };
        if !wanted {
            self.release(ticket.index.into());
        }
        Ok(answered)
    }

    /// The result of a request: `None` while it is under way. What was read is copied to `out`.
    pub(crate) fn take(&mut self, ticket: Ticket, out: &mut [u8]) -> Option<Result<(), Error>> {
        let Some(slot) = self.get_mut(ticket) else { return Some(Err(Error::StaleTicket)) };
        let result = match slot.state {
            State::InFlight { wanted: true } => return None,
            State::InFlight { wanted: false } | State::Free => return Some(Err(Error::StaleTicket)),
            State::Done(result) => result,
        };
        if slot.operation == OP_READ && result.is_ok() {
            if out.len() != slot.len {
                return Some(Err(Error::BufferLength));
            }
            for (page, part) in slot.pages.iter_mut().flatten().zip(out.chunks_mut(PAGE_SIZE)) {
                if page.read_bytes(0, part).is_err() {
                    return Some(Err(Error::BufferLength));
                }
            }
        }
        self.release(ticket.index.into());
        Some(result)
    }

    /// Nobody wants the result any more. The slot is free once its request is answered.
    pub(crate) fn forget(&mut self, ticket: Ticket) {
        let Some(slot) = self.get_mut(ticket) else { return };
        match &mut slot.state {
            State::InFlight { wanted } => *wanted = false,
            State::Done(_) => self.release(ticket.index.into()),
            State::Free => {}
        }
    }

    /// Whether a request of this kind is under way.
    pub(crate) fn any_in_flight(&self, operation: u8) -> bool {
        let is =
            |slot: &Slot<'_, P>| matches!(slot.state, State::InFlight { .. }) && slot.operation == operation;
        self.slots.iter().flatten().any(is)
    }

    fn get(&self, ticket: Ticket) -> Option<&Slot<'x, P>> {
        let slot = self.slots.get(usize::from(ticket.index))?.as_ref()?;
        (slot.generation == ticket.generation).then_some(slot)
    }

    fn get_mut(&mut self, ticket: Ticket) -> Option<&mut Slot<'x, P>> {
        let slot = self.slots.get_mut(usize::from(ticket.index))?.as_mut()?;
        (slot.generation == ticket.generation).then_some(slot)
    }

    fn release(&mut self, index: usize) {
        let slot = self.slots.get_mut(index).and_then(Option::as_mut);
        if let (Some(slot), Some(place)) = (slot, self.free.get_mut(self.free_count)) {
            slot.state = State::Free;
            *place = index as u8;
            self.free_count += 1;
        }
    }
}
