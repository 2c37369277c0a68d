//! The connection: one question at a time, and watch events whenever they come.

use core::fmt;
use core::time::Duration;

use bitflags::bitflags;
use xen_evtchn::{Channel, EventChannels, Port, Progress};
use xen_hypercall::hvm::{HvmParam, get_param};
use xen_hypercall::{Gfn, Platform, Wait};
use xen_ring::{ByteRing, XenstoreLayout};
use zerocopy::IntoBytes;

use crate::error::Violation;
use crate::page::StorePage;
use crate::session::Assembler;
use crate::text::Text;
use crate::watch::{Token, Watches};
use crate::wire::{
    ABS_PATH_MAX, HEADER_SIZE, Header, Operation, PAYLOAD_MAX, REL_PATH_MAX, Refusal, strings,
};
use crate::{Error, path};

/// How long to wait for an answer, unless it is set otherwise.
const PATIENCE: Duration = Duration::from_secs(10);

/// The word `connection` of the page (`XENSTORE_CONNECTED`, `XENSTORE_RECONNECT`).
const CONNECTED: u32 = 0;
const RECONNECT: u32 = 1;

/// A connection to xenstore (`docs/misc/xenstore.txt` and `docs/misc/xenstore-ring.txt` of Xen, and `io/xs_wire.h`).
///
/// Calls wait for the daemon's answer, at most as long as [`set_patience`](Self::set_patience) says.
pub struct Xenstore<'x, P: Platform> {
    ring: ByteRing<XenstoreLayout, StorePage>,
    channel: Channel<'x, P>,
    pub(crate) events: &'x EventChannels<P>,
    incoming: Assembler,
    /// The answer to the last question, until the next; or the rest of a question that was given up when a part of
    /// it was in the ring already, which has to come before anything else.
    pub(crate) answer: [u8; HEADER_SIZE + PAYLOAD_MAX],
    /// Where in `answer` such a rest is.
    unsent: (usize, usize),
    pub(crate) watches: Watches,
    last_id: u32,
    /// The question that waits for its answer.
    pending: Option<Question>,
    /// A transaction that began after it was given up.
    orphan: Option<u32>,
    patience: Duration,
    broken: Option<Error>,
    stats: Stats,
}

#[derive(Clone, Copy)]
struct Question {
    id: u32,
    operation: Operation,
    /// Once it is answered.
    outcome: Option<Result<usize, Refusal>>,
}

/// What passed since the connection was made.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Questions asked.
    pub requests: u64,
    /// Watch events that arrived.
    pub watch_events: u64,
    /// Messages that belong to nothing: late answers, events of watches that are gone.
    pub stray: u64,
    /// Times that the connection was made anew.
    pub reconnects: u64,
}

bitflags! {
    /// What the daemon can do beside the base of the protocol (`XENSTORE_SERVER_FEATURE_*`, `io/xs_wire.h`). It may
    /// begin to offer more at any time. Unknown bits are kept.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
    pub struct ServerFeatures: u32 {
        /// The guest may ask for the connection to be made anew: [`Xenstore::reconnect`].
        const RECONNECTION = 1 << 0;
        /// It tells when it gives the connection up: [`Error::Disconnected`].
        const ERROR = 1 << 1;
        const _ = !0;
    }
}

impl<'x, P: Platform + Wait> Xenstore<'x, P> {
    /// Connects to the xenstore that the toolstack gave the domain (`HVM_PARAM_STORE_PFN` and `_EVTCHN`), and
    /// forgets the watches that an earlier kernel of the same domain may have left.
    ///
    /// # Errors
    /// [`Error::NoStore`] when it gave none; otherwise what Xen or the daemon answers.
    pub fn new(events: &'x EventChannels<P>) -> Result<Self, Error> {
        let platform = events.platform();
        let gfn = Gfn(get_param(platform, HvmParam::STORE_PFN)?);
        let port = get_param(platform, HvmParam::STORE_EVTCHN)?;
        let port = u32::try_from(port).ok().filter(|port| *port != 0 && gfn.0 != 0).ok_or(Error::NoStore)?;
        let page = StorePage::map(platform, gfn).ok_or(Error::Unreachable(gfn))?;
        let mut store = Self {
            ring: ByteRing::new(page)?,
            channel: events.adopt(Port(port))?,
            events,
            incoming: Assembler::new(),
            answer: [0; HEADER_SIZE + PAYLOAD_MAX],
            unsent: (0, 0),
            watches: Watches::new(),
            last_id: 0,
            pending: None,
            orphan: None,
            patience: PATIENCE,
            broken: None,
            stats: Stats::default(),
        };
        store.channel.set_late_eoi(true);
        if store.server_features()?.contains(ServerFeatures::RECONNECTION) {
            // Whoever made the domain may have left it to us to wait until the daemon is there.
            store.await_connection()?;
        }
        match store.ask(Operation::RESET_WATCHES, 0, &[b"\0"]) {
            // An old daemon does not know it, and one that is strict wants no argument.
            Ok(_) | Err(Error::Refused(..)) => Ok(store),
            Err(error) => Err(error),
        }
    }

    /// How long to wait for an answer before [`Error::TimedOut`]; ten seconds unless it is set.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// What the daemon offers.
    ///
    /// # Errors
    /// None while the page is as large as Xen makes it.
    pub fn server_features(&mut self) -> Result<ServerFeatures, Error> {
        Ok(ServerFeatures::from_bits_retain(self.ring.word(XenstoreLayout::SERVER_FEATURES)?))
    }

    /// Makes the connection anew, which is the way out of [`Error::Broken`] and [`Error::Disconnected`]. The daemon
    /// forgets everything about the old one; the watches are set again here, and fire as every new watch does.
    ///
    /// # Errors
    /// [`Error::NoReconnect`] when the daemon does not offer it ([`ServerFeatures::RECONNECTION`]), after which
    /// nothing has changed; [`Error::ReconnectTimedOut`] when it does not do it; otherwise what it answers to the
    /// watches. After these there is no connection until another try succeeds.
    pub fn reconnect(&mut self) -> Result<(), Error> {
        if !self.server_features()?.contains(ServerFeatures::RECONNECTION) {
            return Err(Error::NoReconnect);
        }
        // From here on the old connection is none, whatever happens.
        self.broken = Some(Error::ReconnectTimedOut);
        self.ring.set_word(XenstoreLayout::CONNECTION, RECONNECT)?;
        self.channel.notify()?;
        self.await_connection()?;
        self.incoming = Assembler::new();
        (self.unsent, self.pending, self.orphan, self.broken) = ((0, 0), None, None, None);
        self.watches.forget_given_up();
        self.stats.reconnects += 1;
        let watched = self.watch_again();
        if let Err(error) = watched {
            // Whoever waits for a watch that is not set would wait for ever.
            self.broken = Some(error);
        }
        watched
    }

    /// Waits until the daemon says that the connection is up, and joins the streams as they are then.
    fn await_connection(&mut self) -> Result<(), Error> {
        let deadline = self.deadline();
        while self.ring.word(XenstoreLayout::CONNECTION)? != CONNECTED {
            if self.now() >= deadline {
                return Err(Error::ReconnectTimedOut);
            }
            self.channel.done(Progress::Spurious);
            self.events.wait(Some(deadline));
        }
        Ok(self.ring.rejoin()?)
    }

    /// The time by the platform's clock, in which deadlines are given.
    pub fn now(&self) -> Duration {
        self.events.platform().now()
    }

    /// When an answer to what is asked now is late.
    pub(crate) fn deadline(&self) -> Duration {
        self.now().saturating_add(self.patience)
    }

    /// What passed so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// The event channel of the connection.
    pub fn channel(&self) -> &Channel<'x, P> {
        &self.channel
    }

    /// Takes in what arrived: never waits, and ends after as many bytes as the ring holds.
    ///
    /// # Errors
    /// [`Error::Broken`], or [`Error::Disconnected`], when the connection is of no use any more.
    pub fn poll(&mut self) -> Result<(), Error> {
        if let Some(error) = self.broken {
            return Err(error);
        }
        let result = self.take_in();
        if let Err(error) = result {
            self.broken = Some(error);
        }
        result
    }

    fn take_in(&mut self) -> Result<(), Error> {
        let mut taken = 0;
        let limit = self.ring.readable()?;
        while taken < limit {
            let room = self.incoming.room();
            let count = self.ring.read(room)?;
            taken += count;
            let complete = self.incoming.advance(count).map_err(Error::Broken)?;
            if complete {
                self.deliver()?;
            } else if count == 0 {
                break;
            }
        }
        if taken > 0 {
            self.channel.notify()?;
        }
        // A daemon that broke the protocol does not get here, and is not listened to any more.
        let progress = self.ring.progressed()? || taken > 0;
        self.channel.done(Progress::of(progress));
        match self.ring.word(XenstoreLayout::ERROR)? {
            0 => Ok(()),
            reason => Err(Error::Disconnected(reason)),
        }
    }

    /// Handles one whole message.
    fn deliver(&mut self) -> Result<(), Error> {
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
        let question = self.pending.as_mut().filter(|q| q.id == header.request_id && q.outcome.is_none());
        let Some(question) = question else {
            self.stats.stray += 1;
            if kind == Operation::TRANSACTION_START {
                // Its question was given up. Left open it would count against our quota for ever.
                self.orphan = number(payload);
            }
            return Ok(());
        };
        question.outcome = Some(match kind {
            Operation::ERROR => Err(Refusal::from_payload(payload)),
            kind if kind == question.operation => {
                if let Some(room) = self.answer.get_mut(..payload.len()) {
                    room.copy_from_slice(payload);
                }
                Ok(payload.len())
            }
            kind => return Err(Error::Broken(Violation::Kind(kind))),
        });
        Ok(())
    }

    pub(crate) fn answered(&self, len: usize) -> &[u8] {
        self.answer.get(..len).unwrap_or_default()
    }

    /// An answer that makes no sense: whoever gives it is not to be believed again.
    pub(crate) fn malformed(&mut self) -> Error {
        let error = Error::Broken(Violation::Malformed);
        self.broken = Some(error);
        error
    }

    /// Asks a question whose payload is a path, its zero byte, and `rest`.
    pub(crate) fn ask_path(
        &mut self,
        operation: Operation,
        transaction: u32,
        path: &str,
        rest: [&[u8]; 2],
    ) -> Result<usize, Error> {
        check_path(path)?;
        self.ask(operation, transaction, &[path.as_bytes(), b"\0", rest[0], rest[1]])
    }

    /// Asks, and waits for the answer, whose length it tells.
    pub(crate) fn ask(
        &mut self,
        operation: Operation,
        transaction: u32,
        parts: &[&[u8]],
    ) -> Result<usize, Error> {
        if parts.iter().map(|part| part.len()).sum::<usize>() > PAYLOAD_MAX {
            return Err(Error::TooLong);
        }
        self.poll()?;
        let deadline = self.deadline();
        self.tidy_up(operation, deadline)?;
        let id = self.send_message(operation, transaction, parts, deadline)?;
        self.stats.requests += 1;
        self.pending = Some(Question { id, operation, outcome: None });
        loop {
            self.poll()?;
            if let Some(outcome) = self.pending.and_then(|question| question.outcome) {
                self.pending = None;
                return outcome.map_err(|refusal| Error::Refused(operation, refusal));
            }
            if self.now() >= deadline {
                self.pending = None;
                return Err(Error::TimedOut(operation));
            }
            self.events.wait(Some(deadline));
        }
    }

    /// Ends what questions that were given up have left, or may have left, at the daemon: it handles messages in their order.
    /// Whether it can does not matter, those answers are stray ones.
    pub(crate) fn tidy_up(&mut self, operation: Operation, deadline: Duration) -> Result<(), Error> {
        self.send_rest(operation, deadline)?;
        if let Some(orphan) = self.orphan {
            self.send_message(Operation::TRANSACTION_END, orphan, &[b"F\0"], deadline)
                .or_else(|error| self.begun(error))?;
            self.orphan = None;
        }
        while let Some((watch, path)) = self.watches.given_up() {
            self.send_rest(operation, deadline)?;
            let token = Text::new(Token(watch))?;
            let parts = [path.as_bytes(), b"\0", token.as_bytes(), b"\0"];
            self.send_message(Operation::UNWATCH, 0, &parts, deadline).or_else(|error| self.begun(error))?;
            self.watches.free(watch.slot);
        }
        self.send_rest(operation, deadline)
    }

    /// A message of which a part is in the ring is as good as sent.
    fn begun(&self, error: Error) -> Result<u32, Error> {
        if self.unsent == (0, 0) { Err(error) } else { Ok(self.last_id) }
    }

    /// Sends a whole message; answers its number. When there is no room for all of it in time, the rest is kept.
    fn send_message(
        &mut self,
        operation: Operation,
        transaction: u32,
        parts: &[&[u8]],
        deadline: Duration,
    ) -> Result<u32, Error> {
        self.last_id = self.last_id.wrapping_add(1);
        let len = parts.iter().map(|part| part.len() as u32).sum();
        let header = Header { kind: operation.0, request_id: self.last_id, transaction_id: transaction, len };
        let (mut late, mut sent) = (false, 0);
        for part in core::iter::once(header.as_bytes()).chain(parts.iter().copied()) {
            let rest = if late { part } else { self.send(part, deadline)? };
            sent += part.len() - rest.len();
            late |= !rest.is_empty();
            if late && sent == 0 {
                // Not even begun, so there is nothing to go on with.
                break;
            }
            let (from, to) = self.unsent;
            if let Some(room) = self.answer.get_mut(to..to + rest.len()) {
                room.copy_from_slice(rest);
                self.unsent = (from, to + rest.len());
            }
        }
        if late { Err(Error::TimedOut(operation)) } else { Ok(self.last_id) }
    }

    /// Goes on with a message of which a part is in the ring already.
    fn send_rest(&mut self, operation: Operation, deadline: Duration) -> Result<(), Error> {
        while self.unsent.0 < self.unsent.1 {
            let (from, to) = self.unsent;
            let count = self.ring.write(self.answer.get(from..to).unwrap_or_default());
            let count = self.check(count)?;
            self.unsent.0 += count;
            if count > 0 {
                self.channel.notify()?;
            } else if self.now() >= deadline {
                return Err(Error::TimedOut(operation));
            } else {
                self.events.wait(Some(deadline));
                self.poll()?;
            }
        }
        self.unsent = (0, 0);
        Ok(())
    }

    /// Sends bytes; answers those for which there was no room in time.
    fn send<'b>(&mut self, mut bytes: &'b [u8], deadline: Duration) -> Result<&'b [u8], Error> {
        while !bytes.is_empty() {
            let count = self.ring.write(bytes);
            let count = self.check(count)?;
            bytes = bytes.get(count..).unwrap_or_default();
            if count > 0 {
                self.channel.notify()?;
            } else if self.now() >= deadline {
                break;
            } else {
                self.events.wait(Some(deadline));
                self.poll()?;
            }
        }
        Ok(bytes)
    }

    fn check<T>(&mut self, result: Result<T, xen_ring::RingError>) -> Result<T, Error> {
        result.map_err(|error| {
            let error = error.into();
            self.broken = Some(error);
            error
        })
    }
}

/// The number that an answer consists of.
pub(crate) fn number(payload: &[u8]) -> Option<u32> {
    let text = strings(payload).next()?;
    core::str::from_utf8(text).ok()?.parse().ok().filter(|number| *number != 0)
}

fn check_path(text: &str) -> Result<(), Error> {
    let max = if text.starts_with('/') { ABS_PATH_MAX } else { REL_PATH_MAX };
    if text.len() < max && path::is_valid(text) { Ok(()) } else { Err(Error::BadPath) }
}

impl<P: Platform> fmt::Debug for Xenstore<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Xenstore")
            .field("ring", &self.ring)
            .field("broken", &self.broken)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}
