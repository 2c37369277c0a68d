//! From operations to requests in the rings: long ones are cut, those that follow each other are merged. For that they wait in
//! a queue, but for the page that need not.

use xen_hypercall::{PAGE_SIZE, Platform};

use crate::abi::*;
use crate::error::Violation;
use crate::features::Features;
use crate::ops::{Kind, Op, Ops, Stage};
use crate::pool::{Chain, NONE, Pool};
use crate::queue::Queue;
use crate::receive::conclude;
use crate::{BlkFront, Error, Piece, Stats, Ticket};

/// What goes into one request: so many segments, of the first operation and of those that follow.
#[derive(Clone, Copy)]
struct Plan {
    segments: usize,
    count: u16,
}

impl<'x, P: Platform> BlkFront<'x, P> {
    /// Begins an operation on one page of the caller's: it goes into the ring at once if it need not wait for others, or with
    /// others.
    #[inline(always)]
    pub(crate) fn start(
        &mut self,
        kind: Kind,
        lba: u64,
        sectors: u64,
        segment: Segment,
        place: &mut Option<Piece<'x, P>>,
    ) -> Option<Ticket> {
        let may_go = self.ops.may_go(lba);
        let (ticket, op) = self.ops.begin(kind, lba, sectors, true)?;
        let before = core::mem::replace(&mut op.piece, place.take());
        debug_assert!(before.is_none(), "a free place has no page");
        // Nothing, which the compiler does not know, and would look for something to drop.
        core::mem::forget(before);
        self.stats.operations += 1;
        // Of several rings the one with the most room is chosen when all is published.
        let link = if may_go { self.link.as_mut() } else { None };
        if let Some([queue]) = link.map(|link| &mut link.queues[..]) {
            let mut segments = Segments::default();
            segments[0] = segment;
            let request = Request::of_data(kind as u8, 1, self.index as u16, op.id, lba, segments);
            if queue.ring.push(&request).is_ok() {
                op.stage = Stage::Whole;
                self.stats.requests += 1;
                self.stats.segments += 1;
                self.ops.went(ticket.place(), lba + sectors);
                return Some(ticket);
            }
        }
        // A ring that is full, or broken, says so again when all is published.
        self.join(ticket.place());
        Some(ticket)
    }

    /// Puts an operation into the queue, after the one before it in the ring, if the two are to be one request.
    #[inline(never)]
    pub(crate) fn join(&mut self, index: u16) {
        let queue = self.link.as_mut().and_then(|link| link.queues.first_mut());
        if let (true, Some(queue)) = (self.ops.call_back(index), queue) {
            queue.ring.unpush();
            self.stats.requests -= 1;
            self.stats.segments -= 1;
        }
        self.ops.enqueue(index);
    }

    /// Sends what waits and may be sent, as far as the rings have room, and shows the backend's side what is new.
    pub(crate) fn push_out(&mut self) -> Result<(), Error> {
        self.ops.publish_sent();
        self.fill();
        self.show()
    }

    /// Fills the rings from the queue as far as they have room. One that is broken has none, and says so when it is
    /// [shown](Self::show).
    #[inline(never)]
    pub(crate) fn fill(&mut self) {
        while let Some((first, op)) = self.ops.head() {
            if op.again || op.result.is_err() {
                give_up(&mut self.ops, &mut self.pool, &mut self.stats);
                continue;
            }
            let kind = op.kind;
            if !kind.moves() && is_withdrawn(&self.features, kind) {
                op.result = Err(Error::Unsupported);
                continue;
            }
            let Some(queue) = self.link.as_mut().and_then(|link| roomiest(&mut link.queues)) else { break };
            let handle = self.index as u16;
            if kind.moves() && self.ops.is_plain(first) {
                whole(queue, &mut self.ops, &self.pool, &mut self.stats, handle);
            } else if kind.moves() || kind == Kind::Barrier {
                let most = self.features.max_segments(&self.config);
                transfer(queue, &mut self.ops, &mut self.pool, &mut self.stats, first, handle, most);
            } else {
                self.stats.requests += 1;
                without_data(queue, &mut self.ops, first, handle, self.features.flush);
            }
        }
    }

    /// Shows the backend's side what is in the rings.
    #[inline]
    pub(crate) fn show(&mut self) -> Result<(), Error> {
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
}

/// Leaves the rest of the first of the queue, which would be in vain.
#[cold]
#[inline(never)]
fn give_up<P: Platform>(ops: &mut Ops<'_, P>, pool: &mut Pool<'_, P>, stats: &mut Stats) {
    let Some((first, op)) = ops.head() else { return };
    let waits = op.in_flight > 0;
    ops.leave();
    if !waits {
        conclude(ops, pool, stats, first);
    }
}

/// Whether it turned out, since an operation was submitted, that the backend does not do it.
#[inline(never)]
fn is_withdrawn(features: &Features, kind: Kind) -> bool {
    match kind {
        Kind::Read | Kind::Write => false,
        Kind::Barrier => !features.barrier,
        Kind::Flush => !features.can_flush(),
        Kind::Discard => features.discard.is_none(),
        Kind::SecureDiscard => !features.discard.is_some_and(|discard| discard.secure),
    }
}

/// The ring with the most room, if one has any; of several the first, so that one does while there is little to do.
fn roomiest<'q, 'x, P: Platform>(queues: &'q mut [Queue<'x, P>]) -> Option<&'q mut Queue<'x, P>> {
    let queues = queues.iter_mut();
    let most = queues.reduce(|most, next| if next.ring.free() > most.ring.free() { next } else { most });
    most.filter(|queue| queue.ring.free() > 0)
}

/// How much of the queue goes into a request of at most `limit` segments.
fn plan<P: Platform>(ops: &Ops<'_, P>, first: u16, limit: usize) -> Plan {
    let mut plan = Plan { segments: 0, count: 0 };
    let mut next = ops.get(first);
    while let Some(op) = next {
        let room = limit - plan.segments;
        if room == 0 {
            break;
        }
        plan.count += 1;
        plan.segments += room.min(op.left.into());
        if usize::from(op.left) > room || op.kind == Kind::Barrier {
            break;
        }
        next = ops.follower(op);
    }
    plan
}

/// Puts the first of the queue into a ring that has room, as a request by itself, which has the operation's number and needs
/// no other record.
fn whole<'x, P: Platform>(
    queue: &mut Queue<'x, P>,
    ops: &mut Ops<'x, P>,
    pool: &Pool<'x, P>,
    stats: &mut Stats,
    handle: u16,
) {
    let Some((_, op)) = ops.head() else { return };
    let mut segments = Segments::default();
    let (mut count, mut cursor) = (0, op.cursor);
    for place in segments.iter_mut().take(op.left.into()) {
        let Some((next, after)) = segment_at(op, pool, cursor) else { break };
        (*place, cursor) = (next, after);
        count += 1;
    }
    queue.push(&Request::of_data(op.kind as u8, count, handle, op.id, op.lba, segments));
    op.stage = Stage::Whole;
    stats.requests += 1;
    stats.segments += u64::from(count);
    let next = op.next;
    ops.left(next);
}

/// Puts the first of the queue, or a part of it, or more than it, into a ring that has room. `most` is how many segments
/// a request can have.
#[inline(never)]
fn transfer<'x, P: Platform>(
    queue: &mut Queue<'x, P>,
    ops: &mut Ops<'x, P>,
    pool: &mut Pool<'x, P>,
    stats: &mut Stats,
    first: u16,
    handle: u16,
    most: usize,
) {
    let Some(op) = ops.get(first) else { return };
    let (operation, sector) = (op.kind as u8, op.lba + op.sent);
    let mut plan = self::plan(ops, first, if op.kind == Kind::Barrier { MAX_SEGMENTS } else { most });
    let mut indirect = Chain::EMPTY;
    if plan.segments > MAX_SEGMENTS {
        match pool.alloc(plan.segments.div_ceil(SEGMENTS_PER_PAGE) * PAGE_SIZE) {
            Ok(pages) => indirect = pages,
            // Without pages for them it is more requests.
            Err(_) => plan = self::plan(ops, first, MAX_SEGMENTS),
        }
    }
    let mut segments = Segments::default();
    let (mut index, mut place, mut page) = (first, 0, indirect.first);
    for _ in 0..plan.count {
        let Some(op) = ops.at(index) else { break };
        while op.left > 0 && place < plan.segments {
            let Some((next, after)) = segment_at(op, pool, op.cursor) else { break };
            if indirect == Chain::EMPTY {
                if let Some(to) = segments.get_mut(place) {
                    *to = next;
                }
            } else {
                let within = place % SEGMENTS_PER_PAGE;
                if within == 0 && place > 0 {
                    page = pool.next(page);
                }
                // The page is there, and has room.
                if let Some(mem) = pool.mem(page) {
                    let _ = mem.write(within * size_of::<Segment>(), &next);
                }
            }
            (op.cursor, op.left) = (after, op.left - 1);
            op.sent += u64::from(next.last - next.first) + 1;
            place += 1;
        }
        op.in_flight += 1;
        index = op.next;
        if op.left == 0 {
            ops.leave();
        }
    }
    stats.requests += 1;
    stats.segments += place as u64;
    stats.merged += u64::from(plan.count - 1);
    stats.indirect += u64::from(indirect != Chain::EMPTY);
    let request = if indirect == Chain::EMPTY {
        Request::of_data(operation, place as u8, handle, 0, sector, segments)
    } else {
        indirect_request(pool, indirect, operation, place as u16, sector, handle)
    };
    queue.send(ops.number(), operation, first, plan.count, indirect, request);
}

/// What the backend is told about a page of an operation, and the next one's place.
fn segment_at<P: Platform>(op: &Op<'_, P>, pool: &Pool<'_, P>, place: u16) -> Option<(Segment, u16)> {
    match &op.piece {
        Some(piece) => Some((piece.segment(), NONE)),
        None => pool.segment(place),
    }
}

/// The request whose segments are in these pages.
fn indirect_request<P: Platform>(
    pool: &Pool<'_, P>,
    pages: Chain,
    operation: u8,
    segments: u16,
    sector: u64,
    handle: u16,
) -> Request {
    let mut request = RequestIndirect {
        operation: OP_INDIRECT,
        indirect_op: operation,
        segments,
        sector,
        handle,
        ..RequestIndirect::default()
    };
    let mut page = pages.first;
    for gref in request.grefs.iter_mut().take(pages.count.into()) {
        let Some((segment, next)) = pool.segment(page) else { break };
        (*gref, page) = (segment.gref, next);
    }
    request.into()
}

/// A request without data, for the first of the queue, which leaves it. `flush` tells whether the backend has flushes.
#[inline(never)]
fn without_data<'x, P: Platform>(
    queue: &mut Queue<'x, P>,
    ops: &mut Ops<'x, P>,
    first: u16,
    handle: u16,
    flush: bool,
) {
    let Some(op) = ops.at(first) else { return };
    let (kind, sector, sectors) = (op.kind, op.lba, op.sectors);
    op.in_flight += 1;
    ops.leave();
    let number = ops.number();
    if matches!(kind, Kind::Discard | Kind::SecureDiscard) {
        let flag = if kind == Kind::SecureDiscard { DISCARD_SECURE } else { 0 };
        let operation = OP_DISCARD;
        let request =
            RequestDiscard { operation, flag, handle, sector, sectors, ..RequestDiscard::default() };
        queue.send(number, operation, first, 1, Chain::EMPTY, request.into());
        return;
    }
    // A barrier without data does as much, where it is all there is.
    let operation = if flush { OP_FLUSH } else { OP_BARRIER };
    let request = Request { operation, handle, ..Request::default() };
    queue.send(number, operation, first, 1, Chain::EMPTY, request);
}
