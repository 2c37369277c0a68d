//! What the caller asked for, each thing with its pages, and how far it is.
//!
//! One operation may be several requests of the ring, when it is long, and several may be one, when they follow each
//! other on the disk. Operations wait in a queue until the ring has room, and are done when all their requests are
//! answered.

use xen_hypercall::Platform;

use crate::pool::{Chain, NONE};
use crate::table::Table;
use crate::{Error, Ticket};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Read,
    Write,
    Barrier,
    Flush,
    Discard,
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
    next: u16,
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

    pub(crate) fn at(&mut self, index: u16) -> Option<&mut Op> {
        self.ops.get_mut(usize::from(index))
    }

    pub(crate) fn get(&self, index: u16) -> Option<&Op> {
        self.ops.get(usize::from(index))
    }

    /// The operation of a ticket, as long as the ticket is good.
    pub(crate) fn find(&mut self, ticket: Ticket) -> Option<&mut Op> {
        let op = self.at(ticket.index)?;
        (op.generation == ticket.generation && op.stage != Stage::Free && op.wanted).then_some(op)
    }

    /// Puts an operation at the queue's end.
    pub(crate) fn add(&mut self, kind: Kind, lba: u64, sectors: u64, pages: Chain) -> Option<Ticket> {
        let ticket = self.begin(Op { kind, lba, sectors, pages, stage: Stage::Queued, ..Op::FREE })?;
        self.enqueue(ticket.index);
        Some(ticket)
    }

    /// An operation that is done already.
    pub(crate) fn settled(&mut self, kind: Kind) -> Option<Ticket> {
        self.begin(Op { kind, stage: Stage::Done, ..Op::FREE })
    }

    fn begin(&mut self, new: Op) -> Option<Ticket> {
        let (index, order) = (self.free, self.made);
        let op = self.at(index)?;
        let generation = op.generation.wrapping_add(1);
        let free = op.next;
        *op = Op { generation, order, wanted: true, ..new };
        op.restart();
        self.free = free;
        self.free_count -= 1;
        self.made += 1;
        Some(Ticket { index, generation })
    }

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

    /// The first of the queue that the backend may see.
    pub(crate) fn head(&self) -> Option<u16> {
        self.get(self.head).filter(|op| op.order < self.published).map(|_| self.head)
    }

    /// The one after it, if the two are of a kind, follow each other on the disk, and may go together.
    pub(crate) fn follower(&self, index: u16) -> Option<u16> {
        let op = self.get(index)?;
        let next = self.get(op.next)?;
        let fits = next.kind == op.kind
            && next.order < self.published
            && !(op.alone || next.alone)
            && op.lba.checked_add(op.sectors) == Some(next.lba);
        fits.then_some(op.next)
    }

    /// The one after another that left the queue with it.
    pub(crate) fn next(&self, index: u16) -> u16 {
        self.get(index).map_or(NONE, |op| op.next)
    }

    /// Takes the first out of the queue: all of it was sent, or it is done.
    pub(crate) fn leave(&mut self, stage: Stage) {
        let index = self.head;
        let Some(op) = self.at(index) else { return };
        op.stage = stage;
        self.head = op.next;
        if self.head == NONE {
            self.tail = NONE;
        }
    }

    /// Puts an operation that was sent back at the queue's front, to be sent from its beginning.
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

    /// A result. The place is free when nobody wants it: then true, and its pages go back.
    pub(crate) fn finish(&mut self, index: u16, result: Result<(), Error>) -> bool {
        let Some(op) = self.at(index) else { return false };
        (op.stage, op.result) = (Stage::Done, result);
        !op.wanted
    }

    /// Nobody wants the result any more: true when the place is free and its pages go back.
    pub(crate) fn forget(&mut self, ticket: Ticket) -> bool {
        let Some(op) = self.find(ticket) else { return false };
        op.wanted = false;
        op.stage == Stage::Done
    }

    /// Gives the place back.
    pub(crate) fn release(&mut self, index: u16) -> Chain {
        let next = self.free;
        let Some(op) = self.at(index) else { return Chain::EMPTY };
        (op.stage, op.next) = (Stage::Free, next);
        let pages = core::mem::replace(&mut op.pages, Chain::EMPTY);
        self.free = index;
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

    fn restart(&mut self) {
        (self.cursor, self.left, self.sent) = (self.pages.first, self.pages.count, 0);
        (self.in_flight, self.result, self.again) = (0, Ok(()), false);
    }

    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted
    }
}
