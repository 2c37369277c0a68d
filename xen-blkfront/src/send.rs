//! From the queue of operations to requests in the rings: long ones are cut, those that follow each other are merged.

use xen_hypercall::{PAGE_SIZE, Platform};
use xen_ring::RingError;

use crate::abi::*;
use crate::error::Violation;
use crate::ops::{Kind, Op, Stage};
use crate::pool::Chain;
use crate::{BlkFront, Error};

/// What goes into one request.
#[derive(Clone, Copy)]
struct Plan {
    segments: usize,
    /// The first operation, and how many that follow.
    first: u16,
    count: u16,
}

/// Where the segments of a request go.
struct Target {
    request: Request,
    /// For an indirect request its pages, and the one that is filled.
    indirect: Chain,
    page: u16,
}

impl<'x, P: Platform> BlkFront<'x, P> {
    /// Fills the rings from the queue as far as they have room, and shows the backends' side what is new.
    pub(crate) fn push_out(&mut self) -> Result<(), Error> {
        while let Some(first) = self.ops.head() {
            let Some(op) = self.ops.at(first) else { break };
            if op.again || op.result.is_err() {
                // The rest of it would be in vain.
                let waits = op.in_flight > 0;
                self.ops.leave(Stage::Sent);
                if !waits {
                    self.conclude(first);
                }
                continue;
            }
            let kind = op.kind;
            if self.is_withdrawn(kind) {
                if let Some(op) = self.ops.at(first) {
                    op.result = Err(Error::Unsupported);
                }
                continue;
            }
            let Some(queue) = self.roomiest() else { break };
            self.send(queue, first, kind)?;
        }
        let Some(link) = &mut self.link else { return Ok(()) };
        for queue in link.queues.iter_mut() {
            let notify = match queue.ring.publish() {
                Ok(notify) => notify,
                Err(error) => return Err(self.broke(Violation::Ring(error))),
            };
            if notify {
                queue.channel.notify()?;
                self.stats.notifications += 1;
            }
        }
        Ok(())
    }

    /// Whether it turned out, since an operation was submitted, that the backend does not do it.
    fn is_withdrawn(&self, kind: Kind) -> bool {
        match kind {
            Kind::Read | Kind::Write => false,
            Kind::Barrier => !self.features.barrier,
            Kind::Flush => !self.can_flush(),
            Kind::Discard => self.features.discard.is_none(),
            Kind::SecureDiscard => !self.features.discard.is_some_and(|discard| discard.secure),
        }
    }

    /// The ring with the most room, if one has any.
    fn roomiest(&self) -> Option<usize> {
        let queues = self.link.as_ref()?.queues.iter().enumerate();
        // The first of several, so that one queue does while there is little to do.
        let (index, free) = queues
            .map(|(index, queue)| (index, queue.ring.free()))
            .reduce(|most, next| if next.1 > most.1 { next } else { most })?;
        (free > 0).then_some(index)
    }

    /// Puts the first of the queue, or a part of it, or more than it, into a ring that has room.
    fn send(&mut self, queue: usize, first: u16, kind: Kind) -> Result<(), Error> {
        let handle = self.index as u16;
        let Some(Op { lba, sectors, sent, .. }) = self.ops.get(first) else { return Ok(()) };
        let (sector, sectors) = (lba + sent, *sectors);
        match kind {
            Kind::Read | Kind::Write | Kind::Barrier => self.transfer(queue, first, kind, sector),
            Kind::Flush => {
                // A barrier without data does as much, where it is all there is.
                let operation = if self.features.flush { OP_FLUSH } else { OP_BARRIER };
                let request = Request { operation, handle, ..Request::default() };
                self.push(queue, request, Plan { segments: 0, first, count: 1 }, Chain::EMPTY)
            }
            Kind::Discard | Kind::SecureDiscard => {
                let flag = if kind == Kind::SecureDiscard { DISCARD_SECURE } else { 0 };
                let operation = OP_DISCARD;
                let request =
                    RequestDiscard { operation, flag, handle, sector, sectors, ..RequestDiscard::default() };
                self.push(queue, request.into(), Plan { segments: 0, first, count: 1 }, Chain::EMPTY)
            }
        }
    }

    /// Most segments of one request.
    pub(crate) fn max_segments(&self) -> usize {
        let most = self.features.indirect.unwrap_or(MAX_SEGMENTS);
        most.min(self.config.segments.max(MAX_SEGMENTS))
    }

    /// How much of the queue goes into a request of at most `limit` segments.
    fn plan(&self, first: u16, limit: usize) -> Plan {
        let mut plan = Plan { segments: 0, first, count: 0 };
        let mut next = Some(first);
        while let Some((index, op)) = next.and_then(|index| Some((index, self.ops.get(index)?))) {
            let room = limit - plan.segments;
            if room == 0 {
                break;
            }
            plan.count += 1;
            plan.segments += room.min(op.left.into());
            if usize::from(op.left) > room || op.kind == Kind::Barrier {
                break;
            }
            next = self.ops.follower(index);
        }
        plan
    }

    fn transfer(&mut self, queue: usize, first: u16, kind: Kind, sector: u64) -> Result<(), Error> {
        let operation = match kind {
            Kind::Read => OP_READ,
            Kind::Write => OP_WRITE,
            _ => OP_BARRIER,
        };
        let limit = if kind == Kind::Barrier { MAX_SEGMENTS } else { self.max_segments() };
        let mut plan = self.plan(first, limit);
        let mut indirect = Chain::EMPTY;
        if plan.segments > MAX_SEGMENTS {
            let pages = plan.segments.div_ceil(SEGMENTS_PER_PAGE);
            match self.pool.alloc(pages * PAGE_SIZE) {
                Ok(chain) => indirect = chain,
                // Without pages for them it is more requests.
                Err(_) => plan = self.plan(first, MAX_SEGMENTS),
            }
        }
        let mut target = Target { request: Request::default(), indirect, page: indirect.first };
        let mut index = first;
        let mut place = 0;
        for _ in 0..plan.count {
            let Some(op) = self.ops.at(index) else { break };
            while op.left > 0 && place < plan.segments {
                let Some((segment, after)) = self.pool.segment(op.cursor) else { break };
                target.put(&mut self.pool, place, segment)?;
                (op.cursor, op.left) = (after, op.left - 1);
                op.sent += u64::from(segment.last - segment.first) + 1;
                place += 1;
            }
            op.in_flight += 1;
            let (whole, next) = (op.left == 0, self.ops.next(index));
            if whole {
                self.ops.leave(Stage::Sent);
            }
            index = next;
        }
        let request = if indirect == Chain::EMPTY {
            let mut request = target.request;
            (request.operation, request.segments, request.sector) = (operation, place as u8, sector);
            request
        } else {
            let mut request = RequestIndirect {
                operation: OP_INDIRECT,
                indirect_op: operation,
                segments: place as u16,
                sector,
                handle: self.index as u16,
                ..RequestIndirect::default()
            };
            let mut page = indirect.first;
            for gref in request.grefs.iter_mut().take(indirect.count.into()) {
                let Some((segment, next)) = self.pool.segment(page) else { break };
                (*gref, page) = (segment.gref, next);
            }
            self.stats.indirect += 1;
            request.into()
        };
        self.stats.segments += place as u64;
        self.stats.merged += u64::from(plan.count - 1);
        self.put(queue, request, plan, indirect, operation)
    }

    /// A request without data, for the first of the queue, which leaves it.
    fn push(&mut self, queue: usize, request: Request, plan: Plan, indirect: Chain) -> Result<(), Error> {
        if let Some(op) = self.ops.at(plan.first) {
            op.in_flight += 1;
        }
        self.ops.leave(Stage::Sent);
        self.put(queue, request, plan, indirect, request.operation)
    }

    fn put(
        &mut self,
        queue: usize,
        mut request: Request,
        plan: Plan,
        indirect: Chain,
        operation: u8,
    ) -> Result<(), Error> {
        let Plan { first, count, .. } = plan;
        let Some(queue) = self.link.as_mut().and_then(|link| link.queues.get_mut(queue)) else {
            return Ok(());
        };
        // The ring had room, and has a slot for each request.
        let Some(id) = queue.begin(operation, first, count, indirect) else {
            return Err(self.broke(Violation::Ring(RingError::Full)));
        };
        request.id = id;
        if request.operation != OP_INDIRECT && request.operation != OP_DISCARD {
            // Longer numbers than the protocol's exist; the backend knows the device by its ring.
            request.handle = self.index as u16;
        }
        match queue.ring.push(&request) {
            Ok(_) => {
                self.stats.requests += 1;
                Ok(())
            }
            Err(error) => {
                queue.cancel(id);
                Err(self.broke(Violation::Ring(error)))
            }
        }
    }
}

impl Target {
    fn put<P: Platform>(
        &mut self,
        pool: &mut crate::pool::Pool<'_, P>,
        place: usize,
        segment: Segment,
    ) -> Result<(), Error> {
        if self.indirect == Chain::EMPTY {
            if let Some(to) = self.request.segment.get_mut(place) {
                *to = segment;
            }
            return Ok(());
        }
        let index = place % SEGMENTS_PER_PAGE;
        if index == 0 && place > 0 {
            self.page = pool.next(self.page);
        }
        let mem = pool.mem(self.page).ok_or(Error::Busy)?;
        mem.write(index * size_of::<Segment>(), &segment).map_err(|_| Error::TooLong)
    }
}
