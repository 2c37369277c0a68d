//! The client: one question at a time, and watch events whenever they come.

use core::fmt::{self, Write};
use core::str::FromStr;
use core::task::{Context, Poll};
use core::time::Duration;

use xen_evtchn::{Channel, EventChannels, Port};
use xen_hypercall::hvm::{HvmParam, get_param};
use xen_hypercall::{Gfn, Platform, Wait};
use xen_ring::{ByteRing, XenstoreLayout};
use zerocopy::IntoBytes;

use crate::error::Violation;
use crate::page::StorePage;
use crate::session::Assembler;
use crate::watch::{Token, Watches};
use crate::wire::{ABS_PATH_MAX, Header, Operation, PAYLOAD_MAX, REL_PATH_MAX, Refusal, strings};
use crate::{Error, Path, Transaction, Watch, path};

/// How long to wait for an answer, unless it is set otherwise.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to xenstore (`docs/misc/xenstore.txt` of Xen, and `io/xs_wire.h`).
pub struct Xenstore<'x, P: Platform> {
    ring: ByteRing<XenstoreLayout, StorePage>,
    channel: Channel<'x, P>,
    events: &'x EventChannels<P>,
    incoming: Assembler,
    /// The answer to the last question, until the next.
    answer: [u8; PAYLOAD_MAX],
    watches: Watches,
    last_id: u32,
    /// The question that waits for its answer.
    pending: Option<Question>,
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
            answer: [0; PAYLOAD_MAX],
            watches: Watches::new(),
            last_id: 0,
            pending: None,
            patience: PATIENCE,
            broken: None,
            stats: Stats::default(),
        };
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

    /// A node's value.
    ///
    /// # Errors
    /// [`Error::Refused`] when it does not exist ([`Error::is_not_found`]) or may not be read.
    pub fn read(&mut self, path: &str) -> Result<&[u8], Error> {
        self.read_in(0, path)
    }

    /// A node's value as text.
    ///
    /// # Errors
    /// As [`read`](Self::read), and [`Error::NotText`].
    pub fn read_str(&mut self, path: &str) -> Result<&str, Error> {
        core::str::from_utf8(self.read(path)?).map_err(|_| Error::NotText)
    }

    /// A node's value as a number, or whatever else is written as text. Blanks around it do not matter.
    ///
    /// # Errors
    /// As [`read_str`](Self::read_str), and [`Error::BadValue`].
    pub fn read_parsed<T: FromStr>(&mut self, path: &str) -> Result<T, Error> {
        self.read_str(path)?.trim().parse().map_err(|_| Error::BadValue)
    }

    /// Like [`read_parsed`](Self::read_parsed), for a node that need not exist.
    ///
    /// # Errors
    /// As [`read_parsed`](Self::read_parsed), but not for a node that does not exist.
    pub fn read_optional<T: FromStr>(&mut self, path: &str) -> Result<Option<T>, Error> {
        match self.read_parsed(path) {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets a node's value; the node and those above it are made when they do not exist.
    ///
    /// # Errors
    /// [`Error::Refused`] when it may not be written or a quota is used up; [`Error::TooLong`].
    pub fn write(&mut self, path: &str, value: &[u8]) -> Result<(), Error> {
        self.write_in(0, path, value)
    }

    /// Sets a node's value to formatted text, of at most 256 bytes.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_display(&mut self, path: &str, value: impl fmt::Display) -> Result<(), Error> {
        let text = Text::new(value)?;
        self.write(path, text.as_bytes())
    }

    /// Makes an empty node unless it exists.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn mkdir(&mut self, path: &str) -> Result<(), Error> {
        self.ask_path(Operation::MKDIR, 0, path, &[]).map(drop)
    }

    /// Removes a node and everything below it.
    ///
    /// # Errors
    /// [`Error::Refused`]; a node that does not exist is no error while the one above it exists.
    pub fn remove(&mut self, path: &str) -> Result<(), Error> {
        self.remove_in(0, path)
    }

    /// Calls `each` with the name of every node right below a path.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn directory(&mut self, path: &str, mut each: impl FnMut(&str)) -> Result<(), Error> {
        let len = match self.ask_path(Operation::DIRECTORY, 0, path, &[]) {
            Err(Error::Refused(_, Refusal::TooBig)) => return self.directory_parts(path, &mut each),
            other => other?,
        };
        names(self.answered(len), &mut each)
    }

    /// A directory too large for one message, in parts; begins again when it changes meanwhile.
    fn directory_parts(&mut self, path: &str, each: &mut dyn FnMut(&str)) -> Result<(), Error> {
        const TRIES: usize = 16;
        let mut offset = Text::new(0)?;
        let mut seen = 0_usize;
        let mut generation: Option<Text> = None;
        for _ in 0..TRIES * WHOLE {
            let len =
                self.ask_path(Operation::DIRECTORY_PART, 0, path, &[b"\0", offset.as_bytes(), b"\0"])?;
            let answer = self.answer.get(..len).unwrap_or_default();
            let mut parts = answer.splitn(2, |byte| *byte == 0);
            let tag = parts.next().unwrap_or_default();
            let list = parts.next().ok_or(Error::Broken(Violation::Malformed))?;
            let tag = Text::from_bytes(tag)?;
            if generation.as_ref().is_some_and(|known| known.as_bytes() != tag.as_bytes()) {
                return Err(Error::Contended);
            }
            generation = Some(tag);
            // An empty name is the end of the list.
            let ends = list.is_empty() || list == b"\0" || list.ends_with(b"\0\0");
            let list = if ends { list.strip_suffix(b"\0").unwrap_or(list) } else { list };
            names(list, each)?;
            if ends {
                return Ok(());
            }
            seen += list.len();
            offset = Text::new(seen)?;
        }
        Err(Error::Contended)
    }

    /// Calls `each` with a domain and the letter of what it may do: `n`othing, `r`ead, `w`rite, `b`oth. The first
    /// is the owner, with what all others may do.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn permissions(
        &mut self,
        path: &str,
        mut each: impl FnMut(xen_hypercall::DomId, char),
    ) -> Result<(), Error> {
        let len = self.ask_path(Operation::GET_PERMS, 0, path, &[])?;
        for entry in strings(self.answered(len)) {
            let text = core::str::from_utf8(entry).map_err(|_| Error::NotText)?;
            let mut chars = text.chars();
            let letter = chars.next().ok_or(Error::BadValue)?;
            each(xen_hypercall::DomId(chars.as_str().parse().map_err(|_| Error::BadValue)?), letter);
        }
        Ok(())
    }

    /// Says who may do what with a node, as [`permissions`](Self::permissions) tells it, such as `"b1\0r0"`.
    ///
    /// # Errors
    /// [`Error::Refused`] when the node is not this domain's.
    pub fn set_permissions(&mut self, path: &str, list: &str) -> Result<(), Error> {
        self.ask_path(Operation::SET_PERMS, 0, path, &[b"\0", list.as_bytes(), b"\0"]).map(drop)
    }

    /// Runs `f` as a transaction: others see all that it changes or nothing. When it clashed with another change,
    /// it is run again, a bounded number of times.
    ///
    /// # Errors
    /// What `f` answers, after which nothing is changed; [`Error::Contended`] when it clashed every time.
    pub fn transaction<R>(
        &mut self,
        mut f: impl FnMut(&mut Transaction<'_, 'x, P>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        const TRIES: usize = 64;
        for _ in 0..TRIES {
            let len = self.ask(Operation::TRANSACTION_START, 0, &[b"\0"])?;
            let id =
                strings(self.answered(len)).next().and_then(|id| core::str::from_utf8(id).ok()?.parse().ok());
            let id = id.filter(|id| *id != 0).ok_or(Error::Broken(Violation::Malformed))?;
            let result = f(&mut Transaction::new(self, id));
            let end: &[u8] = if result.is_ok() { b"T\0" } else { b"F\0" };
            match (self.ask(Operation::TRANSACTION_END, id, &[end]), result) {
                (Err(error), Ok(_)) if error.is_again() => {}
                (Err(error), Ok(_)) => return Err(error),
                // A read that clashed may have failed for no other reason.
                (_, Err(error)) if error.is_again() => {}
                (_, result) => return result,
            }
        }
        Err(Error::Contended)
    }

    /// Begins to watch a node and all below it. Every watch fires once at the beginning.
    ///
    /// # Errors
    /// [`Error::TooManyWatches`], or [`Error::Refused`] when the daemon's quota is used up.
    pub fn watch(&mut self, path: &str) -> Result<Watch, Error> {
        let watch = self.watches.add(Path::new(path)?).ok_or(Error::TooManyWatches)?;
        let token = Text::new(Token(watch))?;
        match self.ask_path(Operation::WATCH, 0, path, &[b"\0", token.as_bytes(), b"\0"]) {
            Ok(_) => Ok(watch),
            Err(error) => {
                self.watches.remove(watch);
                Err(error)
            }
        }
    }

    /// Ends a watch.
    ///
    /// # Errors
    /// [`Error::Refused`] when the daemon does not know it.
    pub fn unwatch(&mut self, watch: Watch) -> Result<(), Error> {
        let token = Text::new(Token(watch))?;
        let Some(path) = self.watches.remove(watch) else { return Ok(()) };
        self.ask_path(Operation::UNWATCH, 0, &path, &[b"\0", token.as_bytes(), b"\0"]).map(drop)
    }

    /// Whether a watch fired since this was asked last, once for any number of events.
    ///
    /// # Errors
    /// [`Error::Broken`] when the connection is of no use any more.
    pub fn fired(&mut self, watch: &Watch) -> Result<bool, Error> {
        self.poll()?;
        Ok(self.watches.take(*watch))
    }

    /// Waits until a watch fires or a time comes; answers whether it fired.
    ///
    /// # Errors
    /// As [`fired`](Self::fired).
    pub fn wait_fired(&mut self, watch: &Watch, deadline: Duration) -> Result<bool, Error> {
        loop {
            if self.fired(watch)? {
                return Ok(true);
            }
            if self.now() >= deadline {
                return Ok(false);
            }
            self.events.wait(Some(deadline));
        }
    }

    /// Ready when a watch fired; otherwise wakes the task then.
    ///
    /// # Errors
    /// As [`fired`](Self::fired).
    pub fn poll_fired(&mut self, watch: &Watch, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.watches.register(*watch, cx.waker());
        loop {
            if self.fired(watch)? {
                return Poll::Ready(Ok(()));
            }
            if self.channel.poll_event(cx).is_pending() {
                return if self.fired(watch)? { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
        }
    }

    /// The path of a domain's directory, such as `/local/domain/3`.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn domain_path(&mut self, domain: xen_hypercall::DomId) -> Result<Path, Error> {
        let id = Text::new(domain.0)?;
        let len = self.ask(Operation::GET_DOMAIN_PATH, 0, &[id.as_bytes(), b"\0"])?;
        let path = strings(self.answered(len)).next().ok_or(Error::Broken(Violation::Malformed))?;
        Path::new(core::str::from_utf8(path).map_err(|_| Error::NotText)?)
    }

    /// The time by the platform's clock, in which deadlines are given.
    pub fn now(&self) -> Duration {
        self.events.platform().now()
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

    pub(crate) fn read_in(&mut self, transaction: u32, path: &str) -> Result<&[u8], Error> {
        let len = self.ask_path(Operation::READ, transaction, path, &[])?;
        Ok(self.answered(len))
    }

    pub(crate) fn write_in(&mut self, transaction: u32, path: &str, value: &[u8]) -> Result<(), Error> {
        check_path(path)?;
        self.ask(Operation::WRITE, transaction, &[path.as_bytes(), b"\0", value]).map(drop)
    }

    pub(crate) fn remove_in(&mut self, transaction: u32, path: &str) -> Result<(), Error> {
        self.ask_path(Operation::RM, transaction, path, &[]).map(drop)
    }

    /// Asks a question whose payload is a path, its zero byte, and `rest` (which begins with that zero byte when it
    /// is not empty).
    fn ask_path(
        &mut self,
        operation: Operation,
        transaction: u32,
        path: &str,
        rest: &[&[u8]],
    ) -> Result<usize, Error> {
        check_path(path)?;
        let mut parts: [&[u8]; 4] = [path.as_bytes(), b"\0", b"", b""];
        for (to, from) in parts.iter_mut().skip(1).zip(rest) {
            *to = from;
        }
        self.ask(operation, transaction, &parts)
    }

    /// Asks, and waits for the answer, whose length it tells.
    fn ask(&mut self, operation: Operation, transaction: u32, parts: &[&[u8]]) -> Result<usize, Error> {
        self.poll()?;
        let len: usize = parts.iter().map(|part| part.len()).sum();
        if len > PAYLOAD_MAX {
            return Err(Error::TooLong);
        }
        self.last_id = self.last_id.wrapping_add(1);
        let (id, kind) = (self.last_id, operation.0);
        self.pending = Some(Question { id, operation, outcome: None });
        self.stats.requests += 1;
        let deadline = self.now().saturating_add(self.patience);
        let header = Header { kind, request_id: id, transaction_id: transaction, len: len as u32 };
        for part in core::iter::once(header.as_bytes()).chain(parts.iter().copied()) {
            self.send(part, operation, deadline)?;
        }
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

    fn send(&mut self, mut bytes: &[u8], operation: Operation, deadline: Duration) -> Result<(), Error> {
        while !bytes.is_empty() {
            let count = self.ring.write(bytes).map_err(|error| {
                let error = error.into();
                self.broken = Some(error);
                error
            })?;
            bytes = bytes.get(count..).unwrap_or_default();
            if count > 0 {
                self.channel.notify()?;
            }
            if !bytes.is_empty() {
                if self.now() >= deadline {
                    // Half a message is in the ring: what follows would be taken for its rest.
                    let error = Error::TimedOut(operation);
                    self.broken = Some(error);
                    return Err(error);
                }
                self.events.wait(Some(deadline));
                self.poll()?;
            }
        }
        Ok(())
    }
}

/// Messages that one very large directory may take; the daemon's own limits are far lower.
const WHOLE: usize = 64;

fn check_path(text: &str) -> Result<(), Error> {
    let max = if text.starts_with('/') { ABS_PATH_MAX } else { REL_PATH_MAX };
    if text.len() < max && path::is_valid(text) { Ok(()) } else { Err(Error::BadPath) }
}

fn names(list: &[u8], each: &mut dyn FnMut(&str)) -> Result<(), Error> {
    for name in strings(list) {
        each(core::str::from_utf8(name).map_err(|_| Error::NotText)?);
    }
    Ok(())
}

/// A short text, formatted without a heap.
pub(crate) struct Text {
    buf: [u8; 256],
    len: usize,
}

impl Text {
    pub(crate) fn new(value: impl fmt::Display) -> Result<Self, Error> {
        let mut text = Self { buf: [0; 256], len: 0 };
        write!(text, "{value}").map_err(|_| Error::TooLong)?;
        Ok(text)
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        Self::new(core::str::from_utf8(bytes).map_err(|_| Error::NotText)?)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.buf.get(..self.len).unwrap_or_default()
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        self.buf.get_mut(self.len..end).ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
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
