//! The two streams of the page: messages go out whole, and what arrives finds the question that it answers.

use core::fmt;
use core::sync::atomic::{Ordering, fence};
use core::time::Duration;

use xen_evtchn::{Channel, Deadline, EventChannels, EventSeq, Progress};
use xen_hypercall::{Platform, Wait};
use xen_ring::{ByteRing, StreamLayout, XenstoreLayout};
use zerocopy::IntoBytes;

use crate::error::Violation;
use crate::page::StorePage;
use crate::session::Assembler;
use crate::until::Pauses;
use crate::watches::Watches;
use crate::wire::{HEADER_SIZE, Header, Operation, PAYLOAD_MAX, Refusal, strings};
use crate::{Error, ServerFeatures, Stats};

/// Questions that can wait for their answers at the same time, a power of two.
const WINDOW: usize = 32;

/// Transactions that can wait for their end.
const ORPHANS: usize = 8;

/// Takes the answers to questions, in whatever order they come: the question's tag, and what the daemon says.
pub(crate) type Sink<'s> = dyn FnMut(usize, Result<&[u8], Error>) + 's;

/// A question that waits for its answer.
#[derive(Clone, Copy)]
struct Question {
    id: u32,
    operation: Operation,
    /// The caller's name for it.
    tag: usize,
}

pub(crate) struct Link<'x, P: Platform> {
    pub(crate) ring: ByteRing<XenstoreLayout, StorePage>,
    pub(crate) channel: Channel<'x, P>,
    pub(crate) events: &'x EventChannels<P>,
    /// The last event before the last look at the ring.
    pub(crate) seen: EventSeq,
    pub(crate) pauses: Pauses,
    incoming: Assembler,
    /// The last answer, until the next; or the rest of a message that was given up when a part of it was in the ring
    /// already, which has to come before anything else. Nothing waits for an answer then.
    answer: [u8; HEADER_SIZE + PAYLOAD_MAX],
    /// Where in `answer` such a rest is.
    unsent: (usize, usize),
    pub(crate) watches: Watches,
    last_id: u32,
    /// Each at the place that its number says.
    questions: [Option<Question>; WINDOW],
    /// How many of these there are.
    open: usize,
    /// Transactions that began after their questions were given up. Zero is none.
    orphans: [u32; ORPHANS],
    /// Bytes were written that the daemon was not told of.
    silent: bool,
    /// Each answer is kept where its question says, and `answer` is for a rest alone.
    pub(crate) is_shared: bool,
    /// How often the daemon has forgotten everything.
    pub(crate) resets: u32,
    pub(crate) broken: Option<Error>,
    pub(crate) stats: Stats,
}

impl<'x, P: Platform + Wait> Link<'x, P> {
    pub(crate) fn new(
        events: &'x EventChannels<P>,
        page: StorePage,
        channel: Channel<'x, P>,
    ) -> Result<Self, Error> {
        let link = Self {
            ring: ByteRing::new(page)?,
            channel,
            events,
            seen: events.seq(),
            pauses: Pauses::default(),
            incoming: Assembler::new(),
            answer: [0; HEADER_SIZE + PAYLOAD_MAX],
            unsent: (0, 0),
            watches: Watches::new(),
            last_id: 0,
            questions: [None; WINDOW],
            open: 0,
            orphans: [0; ORPHANS],
            silent: false,
            is_shared: false,
            resets: 0,
            broken: None,
            stats: Stats::default(),
        };
        link.channel.set_late_eoi(true);
        Ok(link)
    }

    /// Goes on with another port and page, from where its streams are.
    pub(crate) fn move_to(&mut self, page: StorePage, channel: Channel<'x, P>) -> Result<(), Error> {
        self.ring = ByteRing::new(page)?;
        channel.set_late_eoi(true);
        self.channel = channel;
        Ok(())
    }

    /// Begins anew with a daemon that has forgotten everything.
    pub(crate) fn reset(&mut self) {
        self.incoming = Assembler::new();
        self.resets = self.resets.wrapping_add(1);
        self.give_up();
        (self.unsent, self.orphans, self.silent, self.broken) = ((0, 0), [0; ORPHANS], false, None);
        self.watches.forget_given_up();
    }

    pub(crate) fn now(&self) -> Duration {
        self.events.platform().now()
    }

    /// After a resume in a new domain the page is another daemon's.
    pub(crate) fn check_life(&self) -> Result<(), Error> {
        if self.channel.is_current() { Ok(()) } else { Err(Error::Event(xen_evtchn::Error::Stale)) }
    }

    /// Takes in what arrived; answers go to `sink`.
    pub(crate) fn poll(&mut self, sink: &mut Sink<'_>) -> Result<(), Error> {
        if let Some(error) = self.broken {
            return Err(error);
        }
        self.check_life()?;
        // Before the look: what comes from here on ends the next sleep.
        self.seen = self.events.seq();
        let result = self.take_in(sink);
        if let Err(error) = result {
            self.fail(error);
        }
        result
    }

    /// Gives the connection up. Whoever waits finds out.
    pub(crate) fn fail(&mut self, error: Error) {
        self.broken = Some(error);
        self.watches.wake_all();
    }

    fn take_in(&mut self, sink: &mut Sink<'_>) -> Result<(), Error> {
        let mut taken = 0;
        let limit = self.ring.readable()?;
        while taken < limit && self.take_piece(&mut taken, sink)? {}
        self.took(taken)
    }

    /// Takes in a piece of a message, or the rest of it. Returns whether there was any.
    pub(crate) fn take_piece(&mut self, taken: &mut usize, sink: &mut Sink<'_>) -> Result<bool, Error> {
        let room = self.incoming.room();
        let count = self.ring.read(room)?;
        *taken += count;
        let complete = self.incoming.advance(count).map_err(Error::Broken)?;
        if complete {
            self.deliver(sink)?;
        }
        Ok(complete || count > 0)
    }

    /// So many bytes were taken in, and no more are for now.
    pub(crate) fn took(&mut self, taken: usize) -> Result<(), Error> {
        if taken > 0 {
            // Only a daemon that found the ring full waits for room. With the fence, either it sees the room that was
            // made, or its index is seen here to have filled the ring.
            fence(Ordering::SeqCst);
            if self.ring.readable()? + taken >= XenstoreLayout::IN.1 as usize {
                self.channel.notify()?;
            }
        }
        // A daemon that broke the protocol does not get here, and is not listened to any more.
        let progress = self.ring.progressed()? || taken > 0;
        self.channel.done(Progress::of(progress));
        match self.ring.word(XenstoreLayout::ERROR)? {
            0 => Ok(()),
            // A daemon that does not offer this does not know the word, and may use it for anything.
            _ if !self.features()?.contains(ServerFeatures::ERROR) => Ok(()),
            reason => Err(Error::Disconnected(reason)),
        }
    }

    /// What the daemon offers.
    pub(crate) fn features(&mut self) -> Result<ServerFeatures, Error> {
        Ok(ServerFeatures::from_bits_retain(self.ring.word(XenstoreLayout::SERVER_FEATURES)?))
    }

    /// Handles one whole message.
    fn deliver(&mut self, sink: &mut Sink<'_>) -> Result<(), Error> {
        let (header, payload) = self.incoming.message();
        let kind = Operation(header.kind);
        if kind == Operation::WATCH_EVENT {
            self.stats.watch_events += 1;
            let token = strings(payload).nth(1).unwrap_or_default();
            if !self.watches.fire(token) {
                self.stats.stray += 1;
            }
            return Ok(());
        }
        let place = self.questions.get_mut(place(header.request_id));
        let asked = place.and_then(|place| place.take_if(|question| question.id == header.request_id));
        let Some(Question { operation, tag, .. }) = asked else {
            self.stats.stray += 1;
            if kind == Operation::TRANSACTION_START {
                // Its question was given up. Left open it would count against our quota for ever.
                let orphan = number(payload);
                self.change_orphan(0, orphan.unwrap_or(0));
            }
            return Ok(());
        };
        self.open -= 1;
        match kind {
            Operation::ERROR => sink(tag, Err(Error::Refused(operation, Refusal::from_payload(payload)))),
            kind if kind == operation => {
                if let Some(room) = self.answer.get_mut(..payload.len()).filter(|_| !self.is_shared) {
                    room.copy_from_slice(payload);
                }
                sink(tag, Ok(payload));
            }
            kind => return Err(Error::Broken(Violation::Kind(kind))),
        }
        Ok(())
    }

    /// Puts a transaction that is to be ended in the place of another. Zero is none.
    pub(crate) fn change_orphan(&mut self, from: u32, to: u32) {
        if let Some(place) = self.orphans.iter_mut().find(|orphan| **orphan == from) {
            *place = to;
        }
    }

    /// A transaction that is to be ended.
    pub(crate) fn orphan(&self) -> Option<u32> {
        self.orphans.iter().copied().find(|orphan| *orphan != 0)
    }

    /// The answer that was taken in last, of so many bytes.
    pub(crate) fn answered(&self, len: usize) -> &[u8] {
        self.answer.get(..len).unwrap_or_default()
    }

    /// How many questions wait for their answers.
    pub(crate) fn open(&self) -> usize {
        self.open
    }

    /// Waits for no answer any more: those that come are nobody's.
    pub(crate) fn give_up(&mut self) {
        (self.questions, self.open) = ([None; WINDOW], 0);
    }

    /// The operation of the oldest question that waits.
    pub(crate) fn oldest(&self) -> Option<Operation> {
        (0..WINDOW as u32)
            .filter_map(|age| *self.questions.get(place(self.last_id.wrapping_add(1 + age)))?)
            .map(|question| question.operation)
            .next()
    }

    /// Whether the next question has a place to wait in.
    pub(crate) fn has_place(&self) -> bool {
        self.questions.get(place(self.last_id.wrapping_add(1))).is_some_and(Option::is_none)
    }

    /// Remembers that the message that was sent last is a question.
    pub(crate) fn expect(&mut self, operation: Operation, tag: usize) {
        if let Some(place) = self.questions.get_mut(place(self.last_id)) {
            *place = Some(Question { id: self.last_id, operation, tag });
            self.open += 1;
        }
    }

    /// Tells the daemon what was written since it was told last: of several messages at once, for it is woken each time.
    pub(crate) fn announce(&mut self) -> Result<(), Error> {
        if core::mem::take(&mut self.silent) {
            self.channel.notify()?;
        }
        Ok(())
    }

    /// Waits for the daemon to do something, and takes in what. Returns false when the time is up.
    pub(crate) fn wait(&mut self, deadline: &mut Deadline, sink: &mut Sink<'_>) -> Result<bool, Error> {
        self.announce()?;
        let end = deadline.at();
        let until = deadline.until(self.now());
        if until.is_some() {
            self.events.wait_since(self.seen, until);
            // This may have been the last sleep, and a pause.
            deadline.until(self.now());
            self.poll(sink)?;
        }
        self.pauses.note(end, deadline);
        Ok(until.is_some())
    }

    /// Writes a whole message, of which the daemon is still to be [told](Self::announce).
    ///
    /// While there is no room, answers are taken in: the daemon may wait for that before it reads on. When there is no
    /// room for all of the message in time, the rest is kept, and all questions are given up.
    pub(crate) fn send(
        &mut self,
        operation: Operation,
        transaction: u32,
        parts: &[&[u8]],
        deadline: &mut Deadline,
        sink: &mut Sink<'_>,
    ) -> Result<(), Error> {
        self.last_id = self.last_id.wrapping_add(1);
        let len = parts.iter().map(|part| part.len() as u32).sum();
        let header = Header { kind: operation.0, request_id: self.last_id, transaction_id: transaction, len };
        let (mut late, mut sent) = (false, 0);
        for part in core::iter::once(header.as_bytes()).chain(parts.iter().copied()) {
            let count = if late { 0 } else { self.write(part, deadline, sink)? };
            sent += count;
            if count < part.len() && !late {
                late = true;
                self.give_up();
            }
            if late && sent == 0 {
                // Not even begun, so there is nothing to go on with.
                break;
            }
            let rest = part.get(count..).unwrap_or_default();
            let (from, to) = self.unsent;
            if let Some(room) = self.answer.get_mut(to..to + rest.len()).filter(|room| !room.is_empty()) {
                room.copy_from_slice(rest);
                self.unsent = (from, to + rest.len());
            }
        }
        if late { Err(Error::TimedOut(operation)) } else { Ok(()) }
    }

    /// Writes a whole message without waiting: what there is no room for is kept, and is to be [sent](Self::send_more) before
    /// anything else.
    pub(crate) fn send_now(
        &mut self,
        operation: Operation,
        transaction: u32,
        parts: &[&[u8]],
    ) -> Result<(), Error> {
        self.last_id = self.last_id.wrapping_add(1);
        let len = parts.iter().map(|part| part.len() as u32).sum();
        let header = Header { kind: operation.0, request_id: self.last_id, transaction_id: transaction, len };
        for part in core::iter::once(header.as_bytes()).chain(parts.iter().copied()) {
            let mut rest = part;
            while !self.is_cut_off() && !rest.is_empty() {
                let count = self.ring.write(rest);
                match self.written(count)? {
                    0 => break,
                    count => rest = rest.get(count..).unwrap_or_default(),
                }
            }
            let (from, to) = self.unsent;
            if let Some(room) = self.answer.get_mut(to..to + rest.len()).filter(|room| !room.is_empty()) {
                room.copy_from_slice(rest);
                self.unsent = (from, to + rest.len());
            }
        }
        Ok(())
    }

    /// Goes on with a message of which a part is in the ring already, without waiting. Returns whether all of it is sent.
    pub(crate) fn send_more(&mut self) -> Result<bool, Error> {
        while self.is_cut_off() {
            let (from, to) = self.unsent;
            let count = self.ring.write(self.answer.get(from..to).unwrap_or_default());
            match self.written(count)? {
                0 => return Ok(false),
                count => self.unsent.0 += count,
            }
        }
        self.unsent = (0, 0);
        Ok(true)
    }

    /// Waits no more for the answer to a question: it is nobody's.
    pub(crate) fn forget(&mut self, tag: usize) {
        let mut places = self.questions.iter_mut();
        if places.any(|place| place.take_if(|question| question.tag == tag).is_some()) {
            self.open -= 1;
        }
    }

    /// The payload of the message that was taken in last.
    pub(crate) fn payload(&self) -> &[u8] {
        self.incoming.message().1
    }

    /// Whether a message was cut off, so that the rest of it is sent before anything else.
    pub(crate) fn is_cut_off(&self) -> bool {
        self.unsent.0 < self.unsent.1
    }

    /// Goes on with a message of which a part is in the ring already.
    pub(crate) fn send_rest(&mut self, operation: Operation, deadline: &mut Deadline) -> Result<(), Error> {
        while self.is_cut_off() {
            let (from, to) = self.unsent;
            let count = self.ring.write(self.answer.get(from..to).unwrap_or_default());
            let count = self.written(count)?;
            self.unsent.0 += count;
            if count == 0 && !self.wait(deadline, &mut |_, _| ())? {
                return Err(Error::TimedOut(operation));
            }
        }
        self.unsent = (0, 0);
        Ok(())
    }

    /// Writes bytes; returns how many there was room for in time.
    fn write(&mut self, bytes: &[u8], deadline: &mut Deadline, sink: &mut Sink<'_>) -> Result<usize, Error> {
        let mut sent = 0;
        while let Some(rest @ [_, ..]) = bytes.get(sent..) {
            let count = self.ring.write(rest);
            let count = self.written(count)?;
            sent += count;
            if count == 0 && !self.wait(deadline, sink)? {
                break;
            }
        }
        Ok(sent)
    }

    fn written(&mut self, count: Result<usize, xen_ring::RingError>) -> Result<usize, Error> {
        match count {
            Ok(count) => {
                self.silent |= count > 0;
                Ok(count)
            }
            Err(error) => {
                let error = error.into();
                self.fail(error);
                Err(error)
            }
        }
    }
}

/// Where a question of this number waits.
fn place(id: u32) -> usize {
    id as usize % WINDOW
}

/// The number that an answer consists of.
pub(crate) fn number(payload: &[u8]) -> Option<u32> {
    let text = strings(payload).next()?;
    core::str::from_utf8(text).ok()?.parse().ok().filter(|number| *number != 0)
}

impl<P: Platform> fmt::Debug for Link<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("ring", &self.ring)
            .field("open", &self.open)
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}
