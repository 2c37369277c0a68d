//! What the caller asked for, each thing with its pages, and how far it is.
//!
//! One operation may be several requests of the ring, when it is long, and several may be one, when they follow each
//! other on the disk. Operations wait in a queue until the ring has room, and are done when all their requests are
//! answered.

use xen_hypercall::Platform;

use crate::abi::{MAX_SEGMENTS, OP_BARRIER, OP_DISCARD, OP_FLUSH, OP_READ, OP_WRITE, SECTOR};
use crate::pool::{Chain, NONE};
use crate::table::Table;
use crate::{Error, Stats, Ticket};

/// As a number it is the request's operation, but for the last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    Read = OP_READ,
    Write = OP_WRITE,
    Barrier = OP_BARRIER,
    Flush = OP_FLUSH,
    Discard = OP_DISCARD,
    SecureDiscard,
}

impl Kind {
    /// Whether it changes the disk.
    pub(crate) fn writes(self) -> bool {
        !matches!(self, Self::Read | Self::Flush)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Free,
    /// In the queue, at least in part.
    Queued,
    /// Wholly in the ring.
    Sent,
    Done,
}

pub(crate) struct Op {
    pub(crate) kind: Kind,
    pub(crate) stage: Stage,
    /// Somebody has a ticket for the result.
    wanted: bool,
    /// Its pages are the caller's.
    pub(crate) lent: bool,
    /// Is not sent together with others.
    pub(crate) alone: bool,
    /// Changes with each use.
    generation: u32,
    /// Counts through all operations.
    order: u64,
    pub(crate) lba: u64,
    /// Of 512 bytes.
    pub(crate) sectors: u64,
    pub(crate) pages: Chain,
    /// The first page that was not sent, and how many were not, and how many sectors were.
    pub(crate) cursor: u16,
    pub(crate) left: u16,
    pub(crate) sent: u64,
    /// Requests of the ring that it is in.
    pub(crate) in_flight: u16,
    pub(crate) result: Result<(), Error>,
    /// To be sent once more when nothing of it is in the ring.
    pub(crate) again: bool,
    /// The next in the queue (as it was when this one left), or of the free ones.
    pub(crate) next: u16,
}

pub(crate) struct Ops<'x, P: Platform> {
    ops: Table<'x, P, Op>,
    free: u16,
    free_count: usize,
    head: u16,
    tail: u16,
    /// How many were made, and how many of those the backend may see.
    made: u64,
    published: u64,
}

impl<'x, P: Platform> Ops<'x, P> {
    pub(crate) fn new(platform: &'x P, count: usize) -> Result<Self, Error> {
        let count = count.clamp(1, usize::from(NONE) - 1);
        let mut all = Self {
            ops: Table::new(platform, count)?,
            free: NONE,
            free_count: count,
            head: NONE,
            tail: NONE,
            made: 0,
            published: 0,
        };
        for index in 0..count as u16 {
            let next = core::mem::replace(&mut all.free, index);
            let _ = all.ops.push(Op { next, ..Op::FREE });
        }
        Ok(all)
    }

    pub(crate) fn free(&self) -> usize {
        self.free_count
    }

    /// How many are not done.
    pub(crate) fn pending(&self, is: impl Fn(Kind) -> bool) -> usize {
        let pending = |op: &&Op| matches!(op.stage, Stage::Queued | Stage::Sent) && is(op.kind);
        self.ops.iter().filter(pending).count()
    }

    #[inline]
    pub(crate) fn at(&mut self, index: u16) -> Option<&mut Op> {
        self.ops.get_mut(usize::from(index))
    }

    #[inline]
    pub(crate) fn get(&self, index: u16) -> Option<&Op> {
        self.ops.get(usize::from(index))
    }

    /// The operation of a ticket, as long as the ticket is good.
    #[inline]
    pub(crate) fn find(&mut self, ticket: Ticket) -> Option<&mut Op> {
        let op = self.at(ticket.index)?;
        (op.generation == ticket.generation && op.stage != Stage::Free).then_some(op)
    }

    /// Puts an operation at the queue's end. `lent` says that its pages are the caller's.
    #[inline(always)]
    pub(crate) fn add(
        &mut self,
        kind: Kind,
        lba: u64,
        sectors: u64,
        pages: Chain,
        lent: bool,
    ) -> Option<Ticket> {
        let (ticket, op) = self.begin(kind, Stage::Queued, pages)?;
        (op.lba, op.sectors, op.lent) = (lba, sectors, lent);
        self.enqueue(ticket.index);
        Some(ticket)
    }

    /// An operation that is done already.
    pub(crate) fn settled(&mut self, kind: Kind) -> Option<Ticket> {
        let (ticket, op) = self.begin(kind, Stage::Done, Chain::EMPTY)?;
        (op.lba, op.sectors, op.lent) = (0, 0, false);
        Some(ticket)
    }

    /// Takes a free place. What the operation is about is for the caller to say.
    #[inline(always)]
    fn begin(&mut self, kind: Kind, stage: Stage, pages: Chain) -> Option<(Ticket, &mut Op)> {
        let (index, order) = (self.free, self.made);
        let op = self.ops.get_mut(usize::from(index))?;
        let generation = op.generation.wrapping_add(1);
        self.free = op.next;
        self.free_count -= 1;
        self.made = order + 1;
        (op.generation, op.order, op.kind, op.stage) = (generation, order, kind, stage);
        (op.pages, op.wanted, op.alone, op.next) = (pages, true, false, NONE);
        op.restart();
        Some((Ticket { index, generation }, op))
    }

    #[inline]
    fn enqueue(&mut self, index: u16) {
        let tail = core::mem::replace(&mut self.tail, index);
        match self.at(tail) {
            Some(last) => last.next = index,
            None => self.head = index,
        }
    }

    /// Lets the backend see all there are.
    pub(crate) fn publish(&mut self) {
        self.published = self.made;
    }

    /// The first of the queue, if the backend may see it.
    #[inline]
    pub(crate) fn head(&mut self) -> Option<(u16, &mut Op)> {
        let (index, published) = (self.head, self.published);
        let op = self.at(index)?;
        (op.order < published).then_some((index, op))
    }

    /// The one after it, if the two are of a kind, follow each other on the disk, and may go together.
    #[inline]
    pub(crate) fn follower(&self, op: &Op) -> Option<&Op> {
        let next = self.get(op.next)?;
        let fits = op.lba.checked_add(op.sectors) == Some(next.lba)
            && next.kind == op.kind
            && next.order < self.published
            && !(op.alone || next.alone);
        fits.then_some(next)
    }

    /// Whether what is left of an operation is a request by itself: it fits one, and nothing is to go with it.
    #[inline]
    pub(crate) fn is_plain(&self, index: u16) -> bool {
        let op = self.get(index);
        op.is_some_and(|op| usize::from(op.left) <= MAX_SEGMENTS && self.follower(op).is_none())
    }

    /// Takes the first out of the queue: all of it was sent, or it is done.
    pub(crate) fn leave(&mut self) {
        let Some(op) = self.at(self.head) else { return };
        op.stage = Stage::Sent;
        let next = op.next;
        self.left(next);
    }

    /// The first left the queue, and was followed by another or none.
    #[inline]
    pub(crate) fn left(&mut self, next: u16) {
        self.head = next;
        if next == NONE {
            self.tail = NONE;
        }
    }

    /// Puts an operation that was sent back at the queue's front, to be sent from its beginning.
    #[cold]
    pub(crate) fn again(&mut self, index: u16) {
        let head = self.head;
        let Some(op) = self.at(index) else { return };
        op.restart();
        if op.stage == Stage::Queued {
            // A part of it is there already.
            return;
        }
        op.stage = Stage::Queued;
        op.next = head;
        self.head = index;
        if self.tail == NONE {
            self.tail = index;
        }
    }

    /// The result of an operation that failed.
    #[cold]
    #[inline(never)]
    pub(crate) fn failure(&self, index: u16) -> Option<Result<(), Error>> {
        self.get(index).map(|op| op.result)
    }

    /// Nobody wants the result any more: true when the place is free and its pages go back.
    pub(crate) fn forget(&mut self, ticket: Ticket) -> bool {
        let Some(op) = self.find(ticket) else { return false };
        op.wanted = false;
        // The ticket is not good any more.
        op.generation = op.generation.wrapping_add(1);
        op.stage == Stage::Done
    }

    /// Gives the place back.
    #[inline]
    pub(crate) fn release(&mut self, index: u16) -> Chain {
        let Some(op) = self.ops.get_mut(usize::from(index)) else { return Chain::EMPTY };
        op.stage = Stage::Free;
        op.next = core::mem::replace(&mut self.free, index);
        let pages = core::mem::replace(&mut op.pages, Chain::EMPTY);
        self.free_count += 1;
        pages
    }

    /// The rings are gone with what was in them: everything that is not done is in the queue again, in the order in
    /// which it was asked for, unless `check` has a result for it.
    pub(crate) fn restart(&mut self, check: impl Fn(&Op) -> Option<Result<(), Error>>) -> usize {
        (self.head, self.tail) = (NONE, NONE);
        let mut from = 0;
        let mut count = 0;
        while let Some(index) = self.oldest(from) {
            let Some(op) = self.at(index) else { break };
            from = op.order + 1;
            op.restart();
            (op.stage, op.next, op.alone) = (Stage::Queued, NONE, false);
            if let Some(result) = check(op) {
                (op.stage, op.result) = (Stage::Done, result);
                continue;
            }
            self.enqueue(index);
            count += 1;
        }
        count
    }

    fn oldest(&self, from: u64) -> Option<u16> {
        let pending = self
            .ops
            .iter()
            .enumerate()
            .filter(|(_, op)| matches!(op.stage, Stage::Queued | Stage::Sent) && op.order >= from);
        pending.min_by_key(|(_, op)| op.order).map(|(index, _)| index as u16)
    }

    /// Places whose results nobody wants.
    pub(crate) fn unwanted(&self) -> Option<u16> {
        let found = self.ops.iter().position(|op| op.stage == Stage::Done && !op.wanted);
        found.map(|index| index as u16)
    }

    /// The pages of what is not done, and whether they hold data.
    pub(crate) fn under_way(&self) -> impl Iterator<Item = (Chain, bool)> {
        let pending = |op: &&Op| matches!(op.stage, Stage::Queued | Stage::Sent);
        self.ops.iter().filter(pending).map(|op| (op.pages, op.kind.writes()))
    }
}

impl Op {
    const FREE: Self = Self {
        kind: Kind::Read,
        stage: Stage::Free,
        wanted: false,
        lent: false,
        alone: false,
        generation: 0,
        order: 0,
        lba: 0,
        sectors: 0,
        pages: Chain::EMPTY,
        cursor: NONE,
        left: 0,
        sent: 0,
        in_flight: 0,
        result: Ok(()),
        again: false,
        next: NONE,
    };

    #[inline]
    fn restart(&mut self) {
        (self.cursor, self.left, self.sent) = (self.pages.first, self.pages.count, 0);
        (self.in_flight, self.result, self.again) = (0, Ok(()), false);
    }

    /// Nothing of it is in the ring any more, and nothing of it is left to be sent: it is done, and counted. False if there
    /// is more to do: it is to be sent once more, or nobody wants its result.
    #[inline]
    pub(crate) fn conclude(&mut self, stats: &mut Stats) -> bool {
        if self.again && self.result.is_ok() {
            return false;
        }
        self.stage = Stage::Done;
        let bytes = self.sectors * SECTOR as u64;
        if self.result.is_err() {
            stats.errors += 1;
        } else if self.kind == Kind::Read {
            stats.bytes_read += bytes;
        } else {
            match self.kind {
                Kind::Discard | Kind::SecureDiscard => stats.bytes_discarded += bytes,
                Kind::Flush => stats.flushes += 1,
                _ => stats.bytes_written += bytes,
            }
        }
        self.wanted
    }

    #[inline]
    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted
    }
}
