//! From the queue of operations to requests in the rings: long ones are cut, those that follow each other are merged.

use xen_hypercall::{PAGE_SIZE, Platform};

use crate::abi::*;
use crate::error::Violation;
use crate::features::Features;
use crate::ops::{Kind, Ops, Stage};
use crate::pool::{Chain, Pool};
use crate::queue::Queue;
use crate::receive::conclude;
use crate::{BlkFront, Error, Stats};

/// What goes into one request: so many segments, of the first operation and of those that follow.
#[derive(Clone, Copy)]
struct Plan {
    segments: usize,
    count: u16,
}

impl<'x, P: Platform> BlkFront<'x, P> {
    /// Fills the rings from the queue as far as they have room, and shows the backends' side what is new.
    pub(crate) fn push_out(&mut self) -> Result<(), Error> {
        while let Some((first, op)) = self.ops.head() {
            if op.again || op.result.is_err() {
                give_up(&mut self.ops, &mut self.pool, &mut self.stats);
                continue;
            }
            let kind = op.kind;
            let data = matches!(kind, Kind::Read | Kind::Write);
            if !data && is_withdrawn(&self.features, kind) {
                op.result = Err(Error::Unsupported);
                continue;
            }
            let Some(queue) = self.link.as_mut().and_then(|link| roomiest(&mut link.queues)) else { break };
            let handle = self.index as u16;
            let sent = if data && self.ops.is_plain(first) {
                whole(queue, &mut self.ops, &self.pool, &mut self.stats, first, handle)
            } else if data || kind == Kind::Barrier {
                let most = self.features.max_segments(&self.config);
                transfer(queue, &mut self.ops, &mut self.pool, &mut self.stats, first, handle, most)
            } else {
                without_data(queue, &mut self.ops, first, handle, self.features.flush)
            };
            if let Err(violation) = sent {
                return Err(self.broke(violation));
            }
            self.stats.requests += 1;
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

/// The ring with the most room, if one has any.
#[inline]
fn roomiest<'q, 'x, P: Platform>(queues: &'q mut [Queue<'x, P>]) -> Option<&'q mut Queue<'x, P>> {
    let queue = match queues {
        [only] => only,
        several => several.get_mut(best(several))?,
    };
    (queue.ring.free() > 0).then_some(queue)
}

/// Which of several has the most room.
#[inline(never)]
fn best<P: Platform>(queues: &[Queue<'_, P>]) -> usize {
    let queues = queues.iter().map(|queue| queue.ring.free()).enumerate();
    // The first of several, so that one queue does while there is little to do.
    queues.reduce(|most, next| if next.1 > most.1 { next } else { most }).map_or(0, |(index, _)| index)
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

/// Puts the first of the queue, all that is left of it, into a ring that has room.
#[inline(always)]
fn whole<'x, P: Platform>(
    queue: &mut Queue<'x, P>,
    ops: &mut Ops<'x, P>,
    pool: &Pool<'x, P>,
    stats: &mut Stats,
    first: u16,
    handle: u16,
) -> Result<(), Violation> {
    let Some(op) = ops.at(first) else { return Ok(()) };
    let mut segment = [Segment::default(); MAX_SEGMENTS];
    let (mut segments, mut cursor) = (0, op.cursor);
    for place in segment.iter_mut().take(op.left.into()) {
        let Some((next, after)) = pool.segment(cursor) else { break };
        (*place, cursor) = (next, after);
        segments += 1;
    }
    stats.segments += u64::from(segments);
    let (operation, sector) = (op.kind as u8, op.lba + op.sent);
    (op.left, op.stage) = (0, Stage::Sent);
    op.in_flight += 1;
    let next = op.next;
    ops.left(next);
    queue.send(operation, first, 1, Chain::EMPTY, |id| {
        Request::of_data(operation, segments, handle, id, sector, segment)
    })
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
) -> Result<(), Violation> {
    let Some(op) = ops.get(first) else { return Ok(()) };
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
    let mut segment = [Segment::default(); MAX_SEGMENTS];
    let (mut index, mut place, mut page) = (first, 0, indirect.first);
    for _ in 0..plan.count {
        let Some(op) = ops.at(index) else { break };
        while op.left > 0 && place < plan.segments {
            let Some((next, after)) = pool.segment(op.cursor) else { break };
            if indirect == Chain::EMPTY {
                if let Some(to) = segment.get_mut(place) {
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
    stats.segments += place as u64;
    stats.merged += u64::from(plan.count - 1);
    stats.indirect += u64::from(indirect != Chain::EMPTY);
    queue.send(operation, first, plan.count, indirect, |id| {
        if indirect == Chain::EMPTY {
            Request::of_data(operation, place as u8, handle, id, sector, segment)
        } else {
            indirect_request(pool, indirect, operation, place as u16, sector, handle, id)
        }
    })
}

/// The request whose segments are in these pages.
fn indirect_request<P: Platform>(
    pool: &Pool<'_, P>,
    pages: Chain,
    operation: u8,
    segments: u16,
    sector: u64,
    handle: u16,
    id: u64,
) -> Request {
    let mut request = RequestIndirect {
        operation: OP_INDIRECT,
        indirect_op: operation,
        segments,
        sector,
        handle,
        id,
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
) -> Result<(), Violation> {
    let Some(op) = ops.at(first) else { return Ok(()) };
    let (kind, sector, sectors) = (op.kind, op.lba, op.sectors);
    op.in_flight += 1;
    ops.leave();
    if matches!(kind, Kind::Discard | Kind::SecureDiscard) {
        let flag = if kind == Kind::SecureDiscard { DISCARD_SECURE } else { 0 };
        let operation = OP_DISCARD;
        return queue.send(operation, first, 1, Chain::EMPTY, |id| {
            RequestDiscard { operation, flag, handle, id, sector, sectors, ..RequestDiscard::default() }
                .into()
        });
    }
    // A barrier without data does as much, where it is all there is.
    let operation = if flush { OP_FLUSH } else { OP_BARRIER };
    let none = [Segment::default(); MAX_SEGMENTS];
    queue.send(operation, first, 1, Chain::EMPTY, |id| Request::of_data(operation, 0, handle, id, 0, none))
}
