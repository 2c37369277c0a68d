//! What the caller asked for, each thing with its pages, and how far it is.
//!
//! One operation may be several requests of the ring, when it is long, and several may be one, when they follow each
//! other on the disk. Operations wait in a queue until the ring has room, and are done when all their requests are
//! answered.

use xen_hypercall::Platform;

use crate::abi::{
    MAX_SEGMENTS, OP_BARRIER, OP_DISCARD, OP_FLUSH, OP_READ, OP_WRITE, RSP_OKAY, Response, SECTOR,
};
use crate::error::Violation;
use crate::pool::{Chain, NONE};
use crate::queue::{FIRST_SLOT, Slot};
use crate::table::Table;
use crate::{Error, Piece, Stats, Ticket};

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
    /// Whether it moves data, and nothing else.
    #[inline]
    pub(crate) fn moves(self) -> bool {
        matches!(self, Self::Read | Self::Write)
    }

    /// Whether it changes the disk.
    pub(crate) fn writes(self) -> bool {
        !matches!(self, Self::Read | Self::Flush)
    }
}

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Free,
    /// In the queue, at least in part.
    Queued,
    /// Wholly in the ring, in requests that are recorded there.
    Sent,
    /// In the ring as a request by itself, which has the operation's number.
    Whole,
    Done,
}

/// Who waits for an operation's result.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd)]
#[repr(u8)]
pub(crate) enum Asker {
    /// Somebody has a ticket.
    Waits,
    /// Somebody has, and a flush has waited for it in vain.
    WaitsLong,
    /// Nobody: it was forgotten before it had a result.
    Left,
    /// Nobody: the result was told before there was one, as that it did not come in time. It is final: what was not sent is
    /// not sent any more.
    Told,
}

impl Stage {
    fn is_pending(self) -> bool {
        matches!(self, Self::Queued | Self::Sent | Self::Whole)
    }
}

pub(crate) struct Op<'x, P: Platform> {
    /// Counts through all operations, by [`EACH`]; the place is in the low bits.
    pub(crate) id: u64,
    /// Of a flush: how much had been written when it was submitted, which is durable when it is done.
    pub(crate) lba: u64,
    /// Of 512 bytes.
    pub(crate) sectors: u64,
    /// The only page, which is the caller's.
    pub(crate) piece: Option<Piece<'x, P>>,
    /// The pages, if that is none.
    pub(crate) pages: Chain,
    pub(crate) kind: Kind,
    pub(crate) stage: Stage,
    asker: Asker,
    /// The pages are the caller's.
    pub(crate) lent: bool,
    /// Is not sent together with others.
    pub(crate) alone: bool,
    /// To be sent once more when nothing of it is in the ring.
    pub(crate) again: bool,
    /// The next in the queue (as it was when this one left), or of the free ones.
    pub(crate) next: u16,
    pub(crate) result: Result<(), Error>,
    // What follows has a meaning once the operation was in the queue.
    /// The first page that was not sent, and how many were not, and how many sectors were.
    pub(crate) cursor: u16,
    pub(crate) left: u16,
    pub(crate) sent: u64,
    /// Requests of the ring that it is in.
    pub(crate) in_flight: u16,
}

/// What of an operation's pages is needed when its backend is gone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    Nothing,
    Pages,
    Content,
}

/// From one operation's number to the next one's: the place is below.
const EACH: u64 = 1 << 16;
/// Above that the numbers tell from one another what several have made for the same disk.
const TIMES: u32 = 48;
/// Where no operation begins.
const NOWHERE: u64 = u64::MAX;

pub(crate) struct Ops<'x, P: Platform> {
    ops: Table<'x, P, Op<'x, P>>,
    free: u16,
    free_count: usize,
    head: u16,
    tail: u16,
    /// The last one that went into the ring without having been in the queue, and where it ends on the disk; not once the
    /// backend was shown it.
    last: u16,
    end: u64,
    /// The next one's number, and what those are before that the backend may see.
    made: u64,
    published: u64,
    /// How much of what was written is known to survive a crash of the backend's machine.
    durable: u64,
}

impl<'x, P: Platform> Ops<'x, P> {
    pub(crate) fn new(platform: &'x P, count: usize) -> Result<Self, Error> {
        let count = count.clamp(1, usize::from(FIRST_SLOT));
        let mut all = Self {
            ops: Table::new(platform, count)?,
            free: NONE,
            free_count: count,
            head: NONE,
            tail: NONE,
            last: NONE,
            end: NOWHERE,
            made: EACH,
            published: EACH,
            durable: 0,
        };
        for index in 0..count as u16 {
            let next = core::mem::replace(&mut all.free, index);
            let _ = all.ops.push(Op { next, ..Op::FREE });
        }
        Ok(all)
    }

    pub(crate) fn len(&self) -> usize {
        self.ops.len()
    }

    pub(crate) fn free(&self) -> usize {
        self.free_count
    }

    /// How many are not done.
    pub(crate) fn pending(&self) -> usize {
        self.ops.iter().filter(|op| op.stage.is_pending()).count()
    }

    /// Whether a flush has to wait for some: they change the disk, and none has waited for them in vain.
    pub(crate) fn are_changing(&self) -> bool {
        self.ops.iter().any(|op| op.is_changing())
    }

    /// Whether something that changes the disk was forgotten before it had a result.
    pub(crate) fn are_left(&self) -> bool {
        self.ops.iter().any(|op| op.stage.is_pending() && op.kind.writes() && op.asker == Asker::Left)
    }

    /// A flush has waited in vain: the next ones do not wait for the same.
    pub(crate) fn are_late(&mut self) {
        for op in self.ops.iter_mut().filter(|op| op.is_changing()) {
            op.asker = if op.is_wanted() { Asker::WaitsLong } else { Asker::Told };
        }
    }

    /// Whether a barrier is in the ring that was asked for after an operation.
    pub(crate) fn is_barred(&self, id: u64) -> bool {
        let mut barriers = self.ops.iter().filter(|op| op.kind == Kind::Barrier && op.stage == Stage::Sent);
        barriers.any(|barrier| is_before(id, barrier.id))
    }

    /// A number for a request that is not an operation by itself: of no other request, nor operation.
    pub(crate) fn number(&mut self) -> u64 {
        let number = self.made;
        self.made = number.wrapping_add(EACH);
        number
    }

    #[inline]
    pub(crate) fn at(&mut self, index: u16) -> Option<&mut Op<'x, P>> {
        self.ops.get_mut(usize::from(index))
    }

    #[inline]
    pub(crate) fn get(&self, index: u16) -> Option<&Op<'x, P>> {
        self.ops.get(usize::from(index))
    }

    /// The operation of a ticket, as long as the ticket is good.
    pub(crate) fn find(&mut self, ticket: Ticket) -> Option<&mut Op<'x, P>> {
        let op = self.at(ticket.place())?;
        (op.id == ticket.id && op.stage != Stage::Free && op.is_wanted()).then_some(op)
    }

    /// The operation of a ticket, if it has its result. One whose result nobody wants is not kept so long.
    #[inline]
    pub(crate) fn settled(&mut self, ticket: Ticket) -> Option<&mut Op<'x, P>> {
        let op = self.at(ticket.place())?;
        (op.id == ticket.id && op.stage == Stage::Done).then_some(op)
    }

    /// The operation that a request was by itself, if that is under way: the number is of no request before or after it,
    /// since each operation has its own and is such a request once in a ring; and the backend was shown it.
    #[inline]
    pub(crate) fn whole(&mut self, id: u64) -> Option<&mut Op<'x, P>> {
        let published = self.published;
        let op = self.at(id as u16)?;
        (op.id == id && op.stage == Stage::Whole && is_before(id, published)).then_some(op)
    }

    /// Takes a free place for an operation, without pages yet, that goes into a [ring](Self::went) or the
    /// [queue](Self::enqueue) then. `lent` says that its pages will be the caller's.
    #[inline(always)]
    pub(crate) fn begin(
        &mut self,
        kind: Kind,
        lba: u64,
        sectors: u64,
        lent: bool,
    ) -> Option<(Ticket, &mut Op<'x, P>)> {
        let (index, made) = (self.free, self.made);
        let op = self.ops.get_mut(usize::from(index))?;
        let id = made | u64::from(index);
        self.free = op.next;
        self.free_count -= 1;
        self.made = made.wrapping_add(EACH);
        (op.id, op.lba, op.sectors, op.kind) = (id, lba, sectors, kind);
        (op.asker, op.lent, op.alone, op.again) = (Asker::Waits, lent, false, false);
        op.result = Ok(());
        Some((Ticket { id }, op))
    }

    /// Whether an operation that begins here need not wait in the queue: nothing does, and it does not follow what could
    /// be one request with it.
    #[inline]
    pub(crate) fn may_go(&self, lba: u64) -> bool {
        self.is_empty() && self.end != lba
    }

    /// An operation went into the ring as it is, and ends here.
    #[inline]
    pub(crate) fn went(&mut self, index: u16, end: u64) {
        (self.last, self.end) = (index, end);
    }

    /// The last that [went](Self::went) into the ring, if it is to be one request with this one: it is in the queue then,
    /// and has to be taken out of the ring. False if there is none.
    pub(crate) fn call_back(&mut self, index: u16) -> bool {
        let (Some(op), Some(last)) = (self.get(index), self.get(self.last)) else { return false };
        let follows = op.lba == self.end && op.kind == last.kind;
        if follows {
            self.end = NOWHERE;
            self.enqueue(self.last);
        }
        follows
    }

    /// Puts an operation at the queue's end.
    pub(crate) fn enqueue(&mut self, index: u16) {
        let tail = core::mem::replace(&mut self.tail, index);
        match self.at(tail) {
            Some(last) => last.next = index,
            None => self.head = index,
        }
        if let Some(op) = self.at(index) {
            op.restart();
            (op.stage, op.next) = (Stage::Queued, NONE);
        }
    }

    /// Lets the backend see all there are.
    #[inline]
    pub(crate) fn publish(&mut self) {
        (self.published, self.end) = (self.made, NOWHERE);
    }

    /// The ring is shown to the backend, with what is in it already.
    pub(crate) fn publish_sent(&mut self) {
        if self.end != NOWHERE {
            // What was made after it waits in the queue.
            let last = self.get(self.last).map(|op| op.id.wrapping_add(1));
            self.published = last.unwrap_or(self.published);
            self.end = NOWHERE;
        }
    }

    /// Whether the queue is empty.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.head == NONE
    }

    /// The first of the queue, if the backend may see it.
    #[inline]
    pub(crate) fn head(&mut self) -> Option<(u16, &mut Op<'x, P>)> {
        let (index, published) = (self.head, self.published);
        let op = self.at(index)?;
        is_before(op.id, published).then_some((index, op))
    }

    /// The one after it, if the two are of a kind, follow each other on the disk, and may go together.
    #[inline]
    pub(crate) fn follower(&self, op: &Op<'x, P>) -> Option<&Op<'x, P>> {
        let next = self.get(op.next)?;
        let fits = op.lba.checked_add(op.sectors) == Some(next.lba)
            && next.kind == op.kind
            && is_before(next.id, self.published)
            && next.result.is_ok()
            && !(op.alone || next.alone);
        fits.then_some(next)
    }

    /// Whether an operation is a request by itself: nothing of it was sent, it fits one, and nothing is to go with it.
    #[inline]
    pub(crate) fn is_plain(&self, index: u16) -> bool {
        let op = self.get(index);
        op.is_some_and(|op| {
            op.sent == 0 && usize::from(op.left) <= MAX_SEGMENTS && self.follower(op).is_none()
        })
    }

    /// Takes the first out of the queue: all of it was sent, or it is done.
    pub(crate) fn leave(&mut self) {
        let Some(op) = self.at(self.head) else { return };
        op.stage = Stage::Sent;
        let next = op.next;
        self.left(next);
    }

    /// The first left the queue, and was followed by another or none.
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

    /// Nobody wants the result any more: it when there is one, so that the place is free and its pages go back.
    pub(crate) fn forget(&mut self, ticket: Ticket) -> Option<Result<(), Error>> {
        let op = self.find(ticket)?;
        op.asker = Asker::Left;
        (op.stage == Stage::Done).then_some(op.result)
    }

    /// An operation's result is told before there is one.
    #[cold]
    pub(crate) fn tell(&mut self, ticket: Ticket, error: Error) {
        if let Some(op) = self.find(ticket) {
            (op.asker, op.result) = (Asker::Told, Err(error));
        }
    }

    /// An operation of which nothing is in a ring, or left to be sent, is done, and counted; as [`Op::conclude`].
    pub(crate) fn conclude(&mut self, index: u16, stats: &mut Stats) -> bool {
        let Some(op) = self.ops.get_mut(usize::from(index)) else { return true };
        let wanted = op.conclude(stats);
        if op.stage == Stage::Done && op.result.is_ok() && op.kind == Kind::Flush {
            self.durable = self.durable.max(op.lba);
        }
        wanted
    }

    /// Whether a part of what was `written` may be lost with the backend.
    pub(crate) fn is_volatile(&self, written: u64) -> bool {
        self.durable != written
    }

    /// How much of what was written is known to survive.
    pub(crate) fn durable(&self) -> u64 {
        self.durable
    }

    /// So much is known to survive, or more.
    pub(crate) fn survived(&mut self, durable: u64) {
        self.durable = self.durable.max(durable);
    }

    /// Begins with other numbers, before the first operation: those of the `time`-th queue that was taken from a disk.
    pub(crate) fn begin_at(&mut self, time: u64) {
        (self.made, self.published) = (time << TIMES | EACH, time << TIMES | EACH);
    }

    /// Whether something that changes the disk is not done, and was not given up.
    pub(crate) fn are_open(&self) -> bool {
        self.ops.iter().any(|op| op.stage.is_pending() && op.kind.writes() && !op.is_told())
    }

    /// Gives a place back, and returns what pages there are but the only one.
    pub(crate) fn release(&mut self, index: u16) -> Chain {
        let Some(op) = self.at(index) else { return Chain::EMPTY };
        op.piece = None;
        let pages = core::mem::replace(&mut op.pages, Chain::EMPTY);
        self.vacate(index);
        pages
    }

    /// Takes the page of an operation that has one alone and is done as it was to be, and gives its place back.
    #[inline]
    pub(crate) fn take_piece(&mut self, ticket: Ticket) -> Option<Piece<'x, P>> {
        let op = self.ops.get_mut(usize::from(ticket.place()))?;
        if op.id != ticket.id || op.stage != Stage::Done || op.result.is_err() {
            return None;
        }
        let piece = op.piece.take()?;
        op.stage = Stage::Free;
        op.next = core::mem::replace(&mut self.free, ticket.place());
        self.free_count += 1;
        Some(piece)
    }

    /// Gives a place back that has no pages any more.
    #[inline]
    pub(crate) fn vacate(&mut self, index: u16) {
        let Some(op) = self.ops.get_mut(usize::from(index)) else { return };
        op.stage = Stage::Free;
        op.next = core::mem::replace(&mut self.free, index);
        self.free_count += 1;
    }

    /// The rings are gone with what was in them: everything that is not done is in the queue again, in the order in
    /// which it was asked for, unless `check` has a result for it.
    pub(crate) fn restart(
        &mut self,
        mut check: impl FnMut(&Op<'x, P>) -> Option<Result<(), Error>>,
    ) -> usize {
        (self.head, self.tail, self.end) = (NONE, NONE, NOWHERE);
        let mut before = u64::MAX;
        let mut count = 0;
        while let Some((age, index)) = self.oldest(before) {
            let Some(op) = self.at(index) else { break };
            before = age;
            op.alone = false;
            if let Some(result) = check(op) {
                (op.stage, op.result) = (Stage::Done, result);
                continue;
            }
            self.enqueue(index);
            count += 1;
        }
        count
    }

    /// The oldest of those that are younger than this and not done. An age counts the operations made since.
    fn oldest(&self, than: u64) -> Option<(u64, u16)> {
        let pending = self.ops.iter().filter(|op| op.stage.is_pending());
        let ages = pending.map(|op| (self.made.wrapping_sub(op.id), op.id as u16));
        ages.filter(|(age, _)| *age < than).max()
    }

    /// Places whose results nobody wants.
    pub(crate) fn unwanted(&self) -> Option<u16> {
        let found = self.ops.iter().position(|op| op.stage == Stage::Done && !op.is_wanted());
        found.map(|index| index as u16)
    }

    /// Reads that are answered, and not taken.
    pub(crate) fn answered_reads(&mut self) -> impl Iterator<Item = &mut Op<'x, P>> {
        self.ops.iter_mut().filter(|op| op.stage == Stage::Done && op.kind == Kind::Read)
    }

    /// All that were asked for, and not taken.
    pub(crate) fn all(&mut self) -> impl Iterator<Item = &mut Op<'x, P>> {
        self.ops.iter_mut().filter(|op| op.stage != Stage::Free)
    }
}

/// Whether one number was given before another: they start anew some time.
#[inline]
fn is_before(id: u64, other: u64) -> bool {
    (id.wrapping_sub(other) as i64) < 0
}

impl<'x, P: Platform> Op<'x, P> {
    const FREE: Self = Self {
        id: 0,
        lba: 0,
        sectors: 0,
        piece: None,
        pages: Chain::EMPTY,
        kind: Kind::Read,
        stage: Stage::Free,
        asker: Asker::Left,
        lent: false,
        alone: false,
        again: false,
        next: NONE,
        cursor: NONE,
        left: 0,
        sent: 0,
        in_flight: 0,
        result: Ok(()),
    };

    /// How many pages it has.
    pub(crate) fn count(&self) -> u16 {
        if self.piece.is_some() { 1 } else { self.pages.count }
    }

    fn restart(&mut self) {
        (self.cursor, self.left, self.sent) = (self.pages.first, self.count(), 0);
        (self.in_flight, self.again) = (0, false);
        if !self.is_told() {
            self.result = Ok(());
        }
    }

    /// A response to the request that it is by itself, if it is one: to go on as if a slot had recorded it.
    pub(crate) fn recorded(&mut self, response: Response) -> Result<Slot, Violation> {
        let asked = self.kind as u8;
        if response.operation != asked {
            return Err(Violation::Operation { asked, answered: response.operation });
        }
        (self.stage, self.in_flight) = (Stage::Sent, 1);
        Ok(Slot::of_one(self.id as u16, asked))
    }

    /// Nothing of it is in the ring any more, and nothing of it is left to be sent: it is done, and counted. False if there
    /// is more to do: it is to be sent once more, or nobody wants its result.
    pub(crate) fn conclude(&mut self, stats: &mut Stats) -> bool {
        if self.again && self.result.is_ok() {
            return false;
        }
        self.stage = Stage::Done;
        match self.kind {
            _ if self.result.is_err() => stats.errors += 1,
            Kind::Discard | Kind::SecureDiscard => stats.bytes_discarded += self.sectors * SECTOR as u64,
            Kind::Flush => stats.flushes += 1,
            _ => self.moved(stats),
        }
        self.is_wanted()
    }

    /// It is done, and counted: a read or a write.
    #[inline]
    pub(crate) fn moved(&mut self, stats: &mut Stats) {
        self.stage = Stage::Done;
        let bytes = if self.kind == Kind::Read { &mut stats.bytes_read } else { &mut stats.bytes_written };
        *bytes += self.sectors * SECTOR as u64;
    }

    /// Whether a response to the request that it is by itself says that it is done, and somebody wants to know.
    #[inline]
    pub(crate) fn is_success(&self, response: Response) -> bool {
        response.operation == self.kind as u8 && response.status == RSP_OKAY && self.is_wanted()
    }

    #[inline]
    pub(crate) fn is_wanted(&self) -> bool {
        self.asker <= Asker::WaitsLong
    }

    /// Whether it changes the disk, and was forgotten before it had a result: nobody knows that it is not done.
    pub(crate) fn is_left(&self) -> bool {
        self.asker == Asker::Left && self.kind.writes()
    }

    /// Whether it is over, as far as those know who asked for it.
    pub(crate) fn is_told(&self) -> bool {
        self.asker == Asker::Told
    }

    fn is_changing(&self) -> bool {
        self.stage.is_pending() && self.kind.writes() && matches!(self.asker, Asker::Waits | Asker::Left)
    }

    /// What of its pages is needed with another backend: nothing, the pages, or what is in them, too.
    pub(crate) fn needs(&self) -> Needs {
        match self.stage {
            // It is not asked for again.
            _ if !self.is_wanted() => Needs::Nothing,
            Stage::Done if self.lent || self.kind == Kind::Read => Needs::Content,
            Stage::Done => Needs::Nothing,
            _ if self.kind.writes() => Needs::Content,
            _ => Needs::Pages,
        }
    }
}
