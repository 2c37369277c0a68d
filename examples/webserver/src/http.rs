//! HTTP/1.1 on one connection: a request is read, answered in pieces as the peer takes them, and the next one begins.

use alloc::string::String;
use alloc::vec::Vec;
use core::cell::Cell;
use core::fmt::{self, Write};
use core::time::Duration;

use smoltcp::iface::{Interface, SocketHandle};
use smoltcp::socket::tcp::{Socket, State as Tcp};

use crate::clock::Date;
use crate::net::report_all;
use crate::report::{Html, Metrics, Report};
use crate::site::{self, Body};
use crate::slots::has_memory;
use crate::transfer::Transfer;
use crate::{Context, Machine};

const PORT: u16 = 80;
/// The longest request line and headers together, in bytes.
const MAX_HEAD: usize = 8 * 1024;
const MAX_HEADERS: usize = 64;
/// A connection on which nothing moves for this long is cut.
const PATIENCE: Duration = Duration::from_secs(30);

/// As much of an answer as is made in advance, in bytes.
const LOADED: usize = 128 * 1024;

/// What a connection works with, beside its own state.
pub(crate) struct Server<'a, M: Machine> {
    pub(crate) context: &'a Context<'a, M>,
    pub(crate) nic: &'a M::Nic,
    pub(crate) iface: &'a Interface,
    pub(crate) figures: &'a Figures,
    pub(crate) now: Duration,
    pub(crate) active: usize,
    pub(crate) full: bool,
    /// Nobody is to ask anything of the files now.
    pub(crate) awaits_files: bool,
    /// Responses are prepared and held back: the machine is about to be suspended.
    pub(crate) holds: bool,
}

/// What the server has done so far.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    connections: Cell<u64>,
    requests: Cell<u64>,
    failures: Cell<u64>,
    sent: Cell<u64>,
    received: Cell<u64>,
}

impl Figures {
    pub(crate) fn report(&self, to: &mut dyn Report) {
        to.figure("http_connections_total", self.connections.get());
        to.figure("http_requests_total", self.requests.get());
        to.figure("http_error_responses_total", self.failures.get());
        to.figure("http_sent_bytes_total", self.sent.get());
        to.figure("http_received_bytes_total", self.received.get());
    }
}

fn add(to: &Cell<u64>, n: usize) {
    to.set(to.get() + n as u64);
}

/// The head of a request, as far as this server looks at it.
#[derive(Debug, Default)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) length: Option<u64>,
    pub(super) range: Option<String>,
    pub(super) chunked: bool,
    expects: bool,
    keep: bool,
}

/// An answer: its head's variable parts and its body.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) kind: &'static str,
    pub(super) headers: String,
    pub(super) body: Body,
}

impl Answer {
    /// A page of text made for this answer.
    pub(super) fn text(status: u16, kind: &'static str, text: impl Into<String>) -> Self {
        Self { status, kind, headers: String::new(), body: Body::Text(text.into()) }
    }

    /// A plain explanation of an outcome other than a page.
    pub(super) fn plain(status: u16, why: impl fmt::Display) -> Self {
        let mut text = String::new();
        let _ = writeln!(text, "{status} {}: {why}", reason(status));
        Self::text(status, "text/plain; charset=utf-8", text)
    }

    /// Adds a header line.
    pub(super) fn with(mut self, name: &str, value: impl fmt::Display) -> Self {
        let _ = write!(self.headers, "{name}: {value}\r\n");
        self
    }
}

/// One connection, for ever: when a peer is gone it listens for the next.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) handle: SocketHandle,
    active: bool,
    state: State,
    /// Received and not yet looked at.
    input: Vec<u8>,
    /// Head and text of the answer, and how much of it the peer was sent.
    output: Vec<u8>,
    sent: usize,
    transfer: Transfer,
    keep: bool,
    /// When something last moved.
    since: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Head,
    Upload { left: u64 },
    Answer,
    Closing,
}

impl Connection {
    pub(crate) fn new(handle: SocketHandle) -> Self {
        Self {
            handle,
            active: false,
            state: State::Head,
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            transfer: Transfer::None,
            keep: false,
            since: Duration::ZERO,
        }
    }

    /// Whether a peer is connected.
    pub(crate) fn is_active(&self) -> bool {
        self.active
    }

    /// Whether a file is open for it.
    pub(crate) fn moves_file(&self) -> bool {
        matches!(self.transfer, Transfer::Download(_) | Transfer::Upload(_))
    }

    /// Whether there is an answer of which nothing was sent.
    pub(crate) fn has_answer(&self) -> bool {
        self.state == State::Answer && self.sent == 0
    }

    /// Whether nothing can be done without the file that is open for it.
    fn needs_file(&self) -> bool {
        self.moves_file() && (self.state != State::Answer || self.sent == self.output.len())
    }

    /// Time that does not count against the peer.
    pub(crate) fn wait_longer(&mut self, time: Duration) {
        self.since += time;
    }

    /// When the peer's patience with us, or ours with it, ends.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.active.then(|| self.since + PATIENCE)
    }

    /// Waits for a peer.
    pub(crate) fn listen(&mut self, socket: &mut Socket<'_>) {
        if let Err(e) = socket.listen(PORT) {
            log::error!("http: cannot listen: {e}");
        }
    }

    /// Drops the peer.
    pub(crate) fn cut<M: Machine>(&mut self, socket: &mut Socket<'_>, context: &Context<'_, M>) {
        socket.abort();
        self.transfer.end(context, false);
        *self = Self::new(self.handle);
    }

    /// Does what can be done now; true when there is more to do without waiting.
    pub(crate) fn serve<M: Machine>(&mut self, socket: &mut Socket<'_>, server: &Server<'_, M>) -> bool {
        if M::SUSPENDS && server.awaits_files && self.needs_file() {
            self.since = server.now;
            return false;
        }
        if self.deadline().is_some_and(|at| at <= server.now) {
            self.cut(socket, server.context);
            // The stack has to tell the peer before the slot can be used again.
            return true;
        }
        // Both sides are through: waiting out TIME-WAIT would only keep the next peer from this slot.
        if socket.state() == Tcp::TimeWait {
            self.cut(socket, server.context);
        }
        if !socket.is_open() {
            self.cut(socket, server.context);
            self.listen(socket);
            return false;
        }
        if !self.active {
            if !socket.may_send() {
                return false;
            }
            self.active = true;
            self.since = server.now;
            add(&server.figures.connections, 1);
            if server.full {
                let answer = Answer::plain(503, "too many connections; try again");
                self.answer(&Request::default(), answer.with("Retry-After", 1), server);
            }
        }
        let moved = match self.state {
            State::Head => self.head(socket, server),
            State::Upload { left } => self.upload(left, socket, server),
            State::Answer if M::SUSPENDS && server.holds => self.load(server.context),
            State::Answer => self.send(socket, server),
            State::Closing => false,
        };
        if moved {
            self.since = server.now;
        }
        moved
    }

    /// Collects a request's head.
    fn head<M: Machine>(&mut self, socket: &mut Socket<'_>, server: &Server<'_, M>) -> bool {
        let room = MAX_HEAD.saturating_sub(self.input.len());
        let got = socket.recv(|data| {
            let take = data.get(..room).unwrap_or(data);
            self.input.extend_from_slice(take);
            (take.len(), take.len())
        });
        let got = got.unwrap_or(0);
        add(&server.figures.received, got);
        if got == 0 && self.input.is_empty() {
            if !socket.may_recv() {
                socket.close();
                self.state = State::Closing;
            }
            return false;
        }
        let (request, used) = match parse(&self.input) {
            Ok(Some(parsed)) => parsed,
            Ok(None) if self.input.len() < MAX_HEAD => {
                if got == 0 && !socket.may_recv() {
                    socket.abort();
                }
                return got > 0;
            }
            Ok(None) => return self.refuse(431, "the request's head is too long", server),
            Err(httparse::Error::TooManyHeaders) => {
                return self.refuse(431, "too many header lines", server);
            }
            Err(e) => return self.refuse(400, e, server),
        };
        if M::SUSPENDS && server.awaits_files && !request.target.starts_with("/-/") {
            self.since = server.now;
            return false;
        }
        self.input.drain(..used);
        add(&server.figures.requests, 1);
        let left = request.length.unwrap_or(0);
        server.context.set_time();
        match site::handle(&request, server) {
            Ok(transfer) => {
                self.keep = request.keep;
                self.transfer = transfer;
                self.state = State::Upload { left };
                if request.expects && self.input.is_empty() {
                    let _ = socket.send_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                }
            }
            Err(answer) => {
                // A body that nobody asked for is not read: the connection ends with the answer.
                let keep = request.keep && left == 0 && !request.chunked;
                self.answer(&Request { keep, ..request }, answer, server);
            }
        }
        true
    }

    /// Takes in a body as it comes, then answers.
    fn upload<M: Machine>(&mut self, left: u64, socket: &mut Socket<'_>, server: &Server<'_, M>) -> bool {
        server.context.set_time();
        let mut outcome = Ok(());
        let mut write = |data: &[u8]| {
            let n = usize::try_from(left).unwrap_or(usize::MAX).min(data.len());
            outcome = self.transfer.append(server.context, data.get(..n).unwrap_or_default());
            n
        };
        let n = if left == 0 {
            0
        } else if self.input.is_empty() {
            socket
                .recv(|data| {
                    let n = write(data);
                    (n, n)
                })
                .unwrap_or(0)
        } else {
            let n = write(&self.input);
            self.input.drain(..n);
            n
        };
        add(&server.figures.received, n);
        self.state = State::Upload { left: left - n as u64 };
        let answer = match outcome.map(|()| left - n as u64) {
            Err(answer) => answer,
            Ok(0) => match self.transfer.finish(server.context) {
                Some(answer) => answer,
                None => return true,
            },
            Ok(_) => {
                if n == 0 && !socket.may_recv() {
                    self.cut(socket, server.context);
                }
                return n > 0;
            }
        };
        let done = self.state == State::Upload { left: 0 } && answer.status < 300;
        self.transfer.end(server.context, done);
        let request = Request { keep: self.keep && done, ..Request::default() };
        self.answer(&request, answer, server);
        true
    }

    fn refuse<M: Machine>(&mut self, status: u16, why: impl fmt::Display, server: &Server<'_, M>) -> bool {
        add(&server.figures.requests, 1);
        self.answer(&Request::default(), Answer::plain(status, why), server);
        true
    }

    /// Puts an answer's head together and begins to send it.
    fn answer<M: Machine>(&mut self, request: &Request, answer: Answer, server: &Server<'_, M>) {
        let Answer { status, kind, headers, body } = answer;
        if status >= 400 {
            add(&server.figures.failures, 1);
        }
        log::debug!("http: {} {} -> {status}", request.method, request.target);
        let mut head = String::with_capacity(256);
        let _ = write!(
            head,
            "HTTP/1.1 {status} {}\r\nDate: {}\r\nServer: xen-sdk-unikernel\r\n",
            reason(status),
            Date::from(server.context.machine.unix_time()),
        );
        if status != 204 {
            let _ = write!(head, "Content-Length: {}\r\n", body.len());
        }
        if !kind.is_empty() {
            let _ = write!(head, "Content-Type: {kind}\r\n");
        }
        head.push_str(&headers);
        head.push_str(if request.keep { "\r\n" } else { "Connection: close\r\n\r\n" });
        self.keep = request.keep;
        self.output = head.into_bytes();
        self.sent = 0;
        self.transfer.end(server.context, false);
        self.transfer = match body {
            _ if request.method == "HEAD" => {
                body.release(server.context);
                Transfer::None
            }
            Body::Text(text) => {
                self.output.extend_from_slice(text.as_bytes());
                Transfer::None
            }
            Body::File(download) => Transfer::Download(download),
            Body::Made(length) => Transfer::Made(length),
        };
        self.state = State::Answer;
    }

    /// Reads what is next of a file into memory, if there is room: it can be sent without the disk.
    fn load<M: Machine>(&mut self, context: &Context<'_, M>) -> bool {
        let (have, most) = (self.output.len(), self.transfer.left().min(LOADED));
        if self.sent > 0 || most == 0 || !has_memory(most) {
            return false;
        }
        self.output.resize(have + most, 0);
        let mut filled = have;
        while let Some(room @ [_, ..]) = self.output.get_mut(filled..) {
            match self.transfer.fill(context, room) {
                (n, Ok(_)) if n > 0 => filled += n,
                // Read again when it is sent.
                _ => break,
            }
        }
        self.output.truncate(filled);
        if self.transfer.is_sent() {
            self.transfer.end(context, true);
        }
        filled > have
    }

    /// Sends what the peer has room for.
    fn send<M: Machine>(&mut self, socket: &mut Socket<'_>, server: &Server<'_, M>) -> bool {
        if !socket.may_send() {
            self.cut(socket, server.context);
            return false;
        }
        let mut total = 0;
        if let Some(rest) = self.output.get(self.sent..).filter(|rest| !rest.is_empty()) {
            total = socket.send_slice(rest).unwrap_or(0);
            self.sent += total;
        }
        if self.sent == self.output.len() && !(M::SUSPENDS && server.awaits_files && self.needs_file()) {
            while socket.can_send() {
                match socket.send(|room| self.transfer.fill(server.context, room)) {
                    Ok(Ok(0)) => break,
                    Ok(Ok(n)) => total += n,
                    Ok(Err(())) | Err(_) => {
                        // The promised length cannot be kept: only a cut tells the peer so.
                        self.cut(socket, server.context);
                        return true;
                    }
                }
            }
            if self.transfer.is_sent() {
                self.transfer.end(server.context, true);
                self.output.clear();
                self.state = if self.keep {
                    State::Head
                } else {
                    socket.close();
                    State::Closing
                };
                add(&server.figures.sent, total);
                return true;
            }
        }
        add(&server.figures.sent, total);
        // More fits only when the peer has taken what it was sent, and that wakes us.
        if total > 0 {
            self.since = server.now;
        }
        false
    }
}

/// The request at the start of `input` and the length of its head; none while it is incomplete.
fn parse(input: &[u8]) -> Result<Option<(Request, usize)>, httparse::Error> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(used) = parsed.parse(input)? else {
        return Ok(None);
    };
    let mut request = Request {
        method: parsed.method.unwrap_or_default().into(),
        target: parsed.path.unwrap_or_default().into(),
        keep: parsed.version == Some(1),
        ..Request::default()
    };
    for header in parsed.headers.iter() {
        let value = core::str::from_utf8(header.value).map_err(|_| httparse::Error::HeaderValue)?;
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        let says = |word: &str| value.split(',').any(|v| v.trim_ascii().eq_ignore_ascii_case(word));
        if is("content-length") {
            let length = Some(value.trim_ascii().parse().map_err(|_| httparse::Error::HeaderValue)?);
            // Two lengths would let a proxy and us disagree on where the next request begins.
            if request.length.is_some_and(|other| Some(other) != length) {
                return Err(httparse::Error::HeaderValue);
            }
            request.length = length;
        } else if is("transfer-encoding") {
            request.chunked = true;
        } else if is("range") {
            request.range = Some(value.trim_ascii().into());
        } else if is("expect") {
            request.expects = says("100-continue");
        } else if is("connection") {
            request.keep = (request.keep || says("keep-alive")) && !says("close");
        }
    }
    Ok(Some((request, used)))
}

/// The pages the server makes itself.
pub(super) fn own_page<M: Machine>(name: &str, server: &Server<'_, M>) -> Option<Answer> {
    match name {
        "status" => {
            let mut page = Html::new();
            report_all(server, &mut page);
            Some(Answer::text(200, "text/html; charset=utf-8", page.finish()))
        }
        "metrics" => {
            let mut metrics = Metrics::default();
            report_all(server, &mut metrics);
            Some(Answer::text(200, "text/plain; version=0.0.4; charset=utf-8", metrics.0))
        }
        _ => None,
    }
    .map(|answer| answer.with("Cache-Control", "no-store"))
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        416 => "Range Not Satisfiable",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        507 => "Insufficient Storage",
        _ => "Internal Server Error",
    }
}
