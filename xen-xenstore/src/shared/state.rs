//! What tasks share: the connection, the questions that wait, and what is to be tidied up.

use core::task::{Poll, Waker};
use core::time::Duration;

use xen_hypercall::{Platform, Wait};

use super::waiters::Waiters;
use crate::link::number;
use crate::wire::{Operation, PAYLOAD_MAX, Refusal};
use crate::{Error, Watch, Xenstore};

/// Questions of tasks that can wait for their answers, or hold them, at the same time.
pub const QUESTIONS: usize = 16;
/// Bytes of an answer that its question has room for.
pub const BYTES: usize = 256;
/// Transactions at the same time.
pub const TRANSACTIONS: usize = 8;

pub(super) struct State<'x, P: Platform> {
    pub(super) xs: Xenstore<'x, P>,
    pub(super) slots: [Slot; QUESTIONS],
    /// The question whose answer is too long for its place. Nothing is taken in until its task has it.
    pub(super) held: Option<usize>,
    pub(super) transactions: [Place; TRANSACTIONS],
    pub(super) phase: Phase,
    /// Why nobody makes the connection anew.
    pub(super) ended: Option<Error>,
    /// The task that runs the connection.
    pub(super) runner: Option<Waker>,
    /// Who waits for room of any kind.
    pub(super) room: Waiters<64>,
    /// The time of the first alarm, and who waits for one.
    pub(super) alarm: Option<Duration>,
    pub(super) alarmed: Waiters<8>,
    /// Somebody tells when it is time.
    pub(super) has_clock: bool,
}

/// How far the connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    Up,
    /// The daemon is asked for a new one.
    Joining,
    /// The watches are set again, those from this place on are not asked for yet.
    Watching(usize),
}

/// A place for a question.
pub(super) struct Slot {
    pub(super) answer: Answer,
    pub(super) operation: Operation,
    /// The asker's name for it.
    pub(super) tag: usize,
    /// Nobody waits for the answer, which says whether a transaction has begun.
    pub(super) is_left: bool,
    waker: Option<Waker>,
    bytes: [u8; BYTES],
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// Nobody asks.
    None,
    Awaited,
    /// So many bytes in the place.
    Short(usize),
    /// In the buffer of what comes in.
    Long,
    Refused(Error),
    /// There will be none.
    Lost(Error),
}

/// A place for a transaction.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) state: Stage,
    /// The connection that it is of.
    pub(super) life: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Free,
    /// Taken, and nothing is asked yet.
    Taken,
    /// It is to begin.
    Asked,
    Open(u32),
    /// It is to end.
    Closing,
    /// Its task has gone before it was known that it began.
    Abandoned,
    /// It is to be ended for a task that has gone.
    Orphan(u32),
}

/// A question as it is sent.
pub(super) struct Post<'m> {
    pub(super) operation: Operation,
    /// The transaction's number, and the connection that it is of.
    pub(super) transaction: Option<(u32, u32)>,
    pub(super) parts: &'m [&'m [u8]],
    pub(super) tag: usize,
}

/// An answer that a task takes.
pub(super) enum Taken {
    Bytes(usize),
    /// To be taken by [`State::take_long`].
    Long(usize),
    Refused(Error),
    Lost(Error),
}

impl<'x, P: Platform + Wait> State<'x, P> {
    pub(super) fn new(mut xs: Xenstore<'x, P>) -> Self {
        xs.link.give_up();
        xs.link.is_shared = true;
        xs.link.watches.are_owned = true;
        Self {
            xs,
            slots: core::array::from_fn(|_| Slot {
                answer: Answer::None,
                operation: Operation::READ,
                tag: 0,
                is_left: false,
                waker: None,
                bytes: [0; BYTES],
            }),
            held: None,
            transactions: [Place { state: Stage::Free, life: 0 }; TRANSACTIONS],
            phase: Phase::Up,
            ended: None,
            runner: None,
            room: Waiters::default(),
            alarm: None,
            alarmed: Waiters::default(),
            has_clock: false,
        }
    }

    /// Whether the connection can be asked, or will be.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.ended.map_or(Ok(()), Err)
    }

    pub(super) fn wake_runner(&mut self) {
        if let Some(waker) = self.runner.take() {
            waker.wake();
        }
    }

    /// Which connection it is.
    pub(super) fn life(&self) -> u32 {
        self.xs.link.resets
    }

    /// Asks, if there is room for the question; otherwise the task waits for that. `mine` are the places of its questions.
    pub(super) fn post(&mut self, mine: &mut u16, post: &Post<'_>, waker: &Waker) -> Poll<Result<(), Error>> {
        self.check()?;
        if post.parts.iter().map(|part| part.len()).sum::<usize>() > PAYLOAD_MAX {
            return Poll::Ready(Err(Error::TooLong));
        }
        let transaction = match post.transaction {
            // What it was in is gone with its connection.
            Some((_, life)) if life != self.life() => {
                return Poll::Ready(Err(Error::Refused(post.operation, Refusal::Again)));
            }
            Some((id, _)) => id,
            None => 0,
        };
        if let Some(slot) = self.room() {
            if self.xs.link.send_now(post.operation, transaction, post.parts).is_ok() {
                self.xs.link.stats.requests += 1;
                self.xs.link.expect(post.operation, slot);
                if let Some(place) = self.slots.get_mut(slot) {
                    (place.answer, place.operation, place.tag) = (Answer::Awaited, post.operation, post.tag);
                }
                *mine |= 1 << slot;
                return Poll::Ready(Ok(()));
            }
            // The connection is of no use any more, and the runner makes it anew.
            self.wake_runner();
        }
        self.room.register(waker);
        self.await_answers(*mine, waker);
        Poll::Pending
    }

    /// A place for a question that can be sent.
    pub(super) fn room(&mut self) -> Option<usize> {
        if self.phase != Phase::Up || self.xs.link.broken.is_some() || !self.xs.link.has_place() {
            return None;
        }
        let slot = self.slots.iter().position(|slot| slot.answer == Answer::None)?;
        // What goes wrong the runner finds out.
        matches!(self.xs.link.send_more(), Ok(true)).then_some(slot)
    }

    /// Lets a task be woken by the answers to its questions. The daemon is told of them.
    pub(super) fn await_answers(&mut self, mine: u16, waker: &Waker) {
        for slot in self.places(mine) {
            let known = slot.waker.as_ref().is_some_and(|known| known.will_wake(waker));
            if !known {
                slot.waker = Some(waker.clone());
            }
        }
        self.announce();
    }

    /// Tells the daemon what was written.
    pub(super) fn announce(&mut self) {
        if self.xs.link.announce().is_err() {
            self.wake_runner();
        }
    }

    fn places(&mut self, mine: u16) -> impl Iterator<Item = &mut Slot> {
        let slots = self.slots.iter_mut().enumerate();
        slots.filter(move |(index, _)| mine & 1 << index != 0).map(|(_, slot)| slot)
    }

    /// Takes an answer to one of a task's questions, if there is one: its tag. A short one is copied to `buf`.
    pub(super) fn take(&mut self, mine: &mut u16, buf: &mut [u8; BYTES]) -> Option<(usize, Taken)> {
        for (index, slot) in self.slots.iter_mut().enumerate().filter(|(index, _)| *mine & 1 << index != 0) {
            let tag = slot.tag;
            let taken = match slot.answer {
                Answer::None | Answer::Awaited => continue,
                Answer::Short(len) => {
                    *buf = slot.bytes;
                    Taken::Bytes(len)
                }
                Answer::Long => return Some((tag, Taken::Long(index))),
                Answer::Refused(error) => Taken::Refused(error),
                Answer::Lost(error) => Taken::Lost(error),
            };
            (slot.answer, slot.waker) = (Answer::None, None);
            *mine &= !(1 << index);
            self.room.wake();
            return Some((tag, taken));
        }
        None
    }

    /// Takes an answer that its place has no room for.
    pub(super) fn take_long(&mut self, mine: &mut u16, index: usize, buf: &mut [u8; PAYLOAD_MAX]) -> usize {
        let payload = self.xs.link.payload();
        if let Some(room) = buf.get_mut(..payload.len()) {
            room.copy_from_slice(payload);
        }
        let len = payload.len();
        *mine &= !(1 << index);
        self.forget(index);
        len
    }

    /// A task has no use for an answer any more.
    pub(super) fn forget(&mut self, index: usize) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        let (answer, tag) = (slot.answer, slot.tag);
        slot.answer = Answer::None;
        // Its waker may be the last of a task, which is dropped with it.
        drop(slot.waker.take());
        let Some(slot) = self.slots.get_mut(index) else { return };
        if slot.operation == Operation::TRANSACTION_START {
            let begun = match answer {
                Answer::None => return,
                Answer::Awaited => {
                    (slot.answer, slot.is_left) = (answer, true);
                    return;
                }
                Answer::Short(len) => Ok(slot.bytes.get(..len).unwrap_or_default()),
                Answer::Refused(error) | Answer::Lost(error) => Err(error),
                Answer::Long => Ok(&b""[..]),
            };
            let life = self.xs.link.resets;
            if let Some(place) = self.transactions.get_mut(tag) {
                // What began in an earlier connection is gone with that.
                place.began(
                    begun.and_then(|id| if place.life == life { Ok(id) } else { Err(Error::NotReady) }),
                );
            }
            self.wake_runner();
        }
        match answer {
            Answer::None => return,
            Answer::Awaited => self.xs.link.forget(index),
            Answer::Long => {
                self.held = None;
                self.wake_runner();
            }
            _ => {}
        }
        self.room.wake();
    }

    /// The task of a transaction has gone, or it has ended.
    pub(super) fn leave_transaction(&mut self, index: usize) {
        let life = self.life();
        let Some(place) = self.transactions.get_mut(index) else { return };
        place.state = match place.state {
            _ if place.life != life => Stage::Free,
            Stage::Asked => Stage::Abandoned,
            Stage::Open(id) => Stage::Orphan(id),
            Stage::Orphan(id) => Stage::Orphan(id),
            _ => Stage::Free,
        };
        self.wake_runner();
        self.room.wake();
    }

    /// The owner of a watch has gone.
    pub(super) fn leave_watch(&mut self, slot: usize) {
        self.xs.link.watches.leave(slot);
        self.wake_runner();
        self.room.wake();
    }

    /// Whether a watch fired since the last call for it.
    pub(super) fn fired(&mut self, watch: Watch) -> Result<bool, Error> {
        self.check()?;
        self.xs.link.watches.take(watch).ok_or(Error::Stale)
    }

    /// The same for a task that waits.
    pub(super) fn poll_fired(&mut self, watch: Watch, waker: &Waker) -> Poll<Result<(), Error>> {
        if self.fired(watch)? {
            return Poll::Ready(Ok(()));
        }
        self.xs.link.watches.register(watch, waker);
        Poll::Pending
    }

    /// The daemon gave an answer without sense, and is not to be believed again.
    pub(super) fn distrust(&mut self, error: Error) {
        self.xs.link.fail(error);
        self.wake_runner();
    }

    /// Whether a question waits for its answer.
    pub(super) fn is_waiting(&self) -> bool {
        self.slots.iter().any(|slot| slot.answer == Answer::Awaited) || self.xs.link.is_cut_off()
    }

    /// How many places are taken: of questions, and of transactions.
    pub(super) fn taken(&self) -> (usize, usize) {
        let questions = self.slots.iter().filter(|slot| slot.answer != Answer::None).count();
        let transactions = self.transactions.iter().filter(|place| place.state != Stage::Free).count();
        (questions, transactions)
    }

    /// Lets a task be woken at a time. Without somebody who tells the time it is that time now.
    pub(super) fn await_time(&mut self, at: Duration, waker: &Waker) -> bool {
        if !self.has_clock || self.xs.now() >= at {
            return true;
        }
        self.alarmed.register(waker);
        if self.alarm.is_none_or(|first| at < first) {
            self.alarm = Some(at);
            self.wake_runner();
        }
        false
    }

    /// Wakes who waits for a time that has come.
    pub(super) fn ring(&mut self) {
        if self.alarm.is_some_and(|at| at <= self.xs.now()) {
            self.alarm = None;
            self.alarmed.wake();
        }
    }
}

impl Place {
    /// Whether it began, when nobody has a use for it any more.
    pub(super) fn began(&mut self, answer: Result<&[u8], Error>) {
        self.state = match (answer.ok().and_then(number), self.state) {
            (Some(id), Stage::Asked | Stage::Abandoned) => Stage::Orphan(id),
            // Its task is about to leave it.
            (None, Stage::Asked) => Stage::Taken,
            (None, Stage::Abandoned) => Stage::Free,
            (_, state) => state,
        };
    }
}

impl Slot {
    /// Keeps the answer. Returns whether it has to stay where it is.
    pub(super) fn answered(&mut self, answer: Result<&[u8], Error>) -> bool {
        self.answer = match answer {
            // The token is of nobody else: it was set when all watches were set again.
            Err(Error::Refused(Operation::WATCH, Refusal::Exists)) => Answer::Short(0),
            Err(error) => Answer::Refused(error),
            Ok(payload) => match self.bytes.get_mut(..payload.len()) {
                Some(room) => {
                    room.copy_from_slice(payload);
                    Answer::Short(payload.len())
                }
                None => Answer::Long,
            },
        };
        self.wake();
        self.answer == Answer::Long
    }

    pub(super) fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}
