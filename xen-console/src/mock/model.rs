//! What a console has to do, whatever its daemon does: for property tests and fuzzers.
//!
//! The model follows each call, and knows from what it returned which bytes have to come out at the daemon, and in which
//! order: written bytes, whole lines of text, and the mark for those that were lost. It panics, as tests do, when the
//! console does another thing.

use core::fmt::Write;
use core::task::{Context, Poll, Waker};
use core::time::Duration;
use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use xen_evtchn::EventChannels;
use xen_hypercall::VcpuId;
use xen_hypercall::mock::MockDomain;

use super::MockConsoled;
use crate::{Console, Error, LINE};

/// What the guest, its daemon, or Xen does. Lengths are in bytes.
#[non_exhaustive]
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Act {
    /// [`Console::write`].
    Write(usize),
    /// [`Console::write_all`], with this patience.
    WriteAll(usize, Duration),
    /// [`Console::write_text`], with this patience: a line, or text that does not end it. [`LINE`] bytes at most.
    Text(usize, bool, Duration),
    /// `writeln!`. [`LINE`] bytes at most.
    Print(usize),
    /// [`Console::read`].
    Read(usize),
    /// [`Console::drain`], with this patience.
    Drain(Duration),
    /// [`Console::wait_readable`], for this time.
    WaitReadable(Duration),
    /// [`Console::wait_writable`], for this time.
    WaitWritable(Duration),
    /// [`Console::wait_connected`], for this time.
    WaitConnected(Duration),
    /// [`Console::poll_readable`].
    PollReadable,
    /// [`Console::readable`].
    Readable,
    /// [`Console::writable`].
    Writable,
    /// [`Console::emergency`].
    Emergency(usize),
    /// Somebody types.
    Type(usize),
    /// The daemon acts until it has nothing to do.
    Run,
    /// The daemon acts once.
    Step,
    /// Events are delivered.
    Dispatch,
    /// The daemon hangs, or goes on.
    Stall(bool),
    /// Nobody reads what the guest writes, or somebody does again.
    StallReader(bool),
    /// What the daemon says of itself.
    SayConnected(bool),
    /// Time passes.
    Pass(Duration),
    /// An event without reason.
    Event,
}

/// Text that was lost, and of which no mark has told.
#[derive(Clone, Copy, Default)]
struct Lost {
    lines: u64,
    bytes: u64,
    /// The last line of it has not ended.
    open: bool,
}

/// One console, and all that it has to do.
pub struct Model<'m> {
    daemon: &'m MockConsoled,
    events: &'m EventChannels<MockDomain>,
    guest: &'m MockDomain,
    /// What may come out next: one way, or two after last words that went before a mark or behind it.
    out: Vec<Vec<u8>>,
    /// Bytes typed, and bytes read of them.
    typed: usize,
    read: usize,
    /// Numbers what is written, so that each piece differs from its neighbours.
    next: usize,
    lost: Lost,
    after_text: bool,
    /// The daemon may lie: a broken console is no fault of the guest's, and bytes may be any.
    lies: bool,
    broken: Option<Error>,
}

impl core::fmt::Debug for Model<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Model")
            .field("lies", &self.lies)
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}

fn typed_byte(at: usize) -> u8 {
    (at % 251) as u8
}

impl<'m> Model<'m> {
    /// The model of a console that was opened just now, and that `daemon` serves.
    pub fn new(
        guest: &'m MockDomain,
        events: &'m EventChannels<MockDomain>,
        daemon: &'m MockConsoled,
    ) -> Self {
        Self {
            daemon,
            events,
            guest,
            out: vec![Vec::new()],
            typed: 0,
            read: 0,
            next: 0,
            lost: Lost::default(),
            after_text: false,
            lies: false,
            broken: None,
        }
    }

    /// From now on the daemon may write any bytes and indices.
    pub fn lies(&mut self) {
        self.lies = true;
    }

    /// Whether the daemon may have lied.
    pub fn is_lied_to(&self) -> bool {
        self.lies
    }

    /// The console was closed, and another one opened at the same daemon: what was on its way is lost.
    pub fn reopened(&mut self) {
        self.lies |= self.read < self.typed || self.out.iter().any(|out| !out.is_empty());
        (self.lost, self.after_text, self.broken) = (Lost::default(), false, None);
        self.collect();
    }

    /// The console was connected anew, and its [`Stats`](crate::Stats) were `before` until then: what the last daemon did not
    /// take is written to the next one, and what it typed is lost.
    pub fn reconnected(&mut self, console: &mut Console<'_, MockDomain>, before: crate::Stats) {
        self.forget_typed(console);
        let mark = self.mark();
        self.marked(console.stats().written - before.written, mark);
        self.collect();
    }

    /// The domain was resumed in a new one, and its first console [set up again](Console::resume): what was typed and not read is
    /// lost. The daemon has taken what was written, or that is lost, too, if it hung or had no reader.
    ///
    /// # Panics
    /// When something is missing that the daemon was there to take.
    pub fn resumed(&mut self, console: &mut Console<'_, MockDomain>) {
        self.forget_typed(console);
        self.collect();
        let hung = {
            let daemon = self.daemon.state();
            daemon.stalled || daemon.unread
        };
        let all = self.out.iter().any(Vec::is_empty);
        assert!(all || hung || self.lies, "what was written before comes out: {:?}", self.out);
        self.out = vec![Vec::new()];
    }

    /// The page is another one.
    fn forget_typed(&mut self, console: &mut Console<'_, MockDomain>) {
        self.broken = None;
        // The next daemon may have typed already.
        self.read = self.typed - self.daemon.untyped();
        if !self.lies {
            self.read -= console.readable().unwrap_or(0);
        }
    }

    /// Does something, and looks that the console did what it has to do.
    ///
    /// # Panics
    /// When it did not.
    pub fn act<'x>(&mut self, console: &mut Console<'x, MockDomain>, act: &Act) {
        let xen = self.guest.xen();
        let (start, before) = (xen.now(), Totals::of(console));
        let (mut most, mut waits) = (Duration::ZERO, true);
        let mark = self.mark();
        match *act {
            Act::Write(len) => {
                waits = false;
                let data = self.bytes(len);
                let count = self.check(console.write(&data));
                self.wrote(console, before, mark, data, count);
            }
            Act::WriteAll(len, patience) => {
                most = patience;
                let data = self.bytes(len);
                let count = self.check(console.write_all(&data, patience));
                self.wrote(console, before, mark, data, count);
            }
            Act::Text(len, ends, patience) => {
                most = patience;
                let text = self.line(len, if ends { "\n" } else { "" });
                let written = self.check(console.write_text(format_args!("{text}"), patience));
                self.printed(console, before, &mark, &text.replace('\n', "\r\n"), written);
            }
            Act::Print(len) => {
                waits = false;
                let text = self.line(len, "\n");
                let written = match (console.write_str(&text), console.readable().and(console.writable())) {
                    (Ok(()), _) => Some(console.stats().dropped == before.dropped),
                    (Err(_), Err(error)) => self.check(Err(error)),
                    (Err(_), Ok(_)) => panic!("text is refused for no reason"),
                };
                self.printed(console, before, &mark, &text.replace('\n', "\r\n"), written);
            }
            Act::Read(len) => {
                waits = false;
                let mut out = vec![0; len];
                let count = self.check(console.read(&mut out)).unwrap_or(0);
                if !self.lies {
                    for byte in &out[..count] {
                        assert!(
                            self.read < self.typed && *byte == typed_byte(self.read),
                            "another byte is read"
                        );
                        self.read += 1;
                    }
                }
                self.told(console, before, mark);
            }
            Act::Drain(patience) => {
                most = patience;
                let drained = self.check(console.drain(patience));
                self.told(console, before, mark);
                assert!(
                    drained != Some(true) || self.lies || self.lost.lines == 0,
                    "drained, and nothing told"
                );
            }
            Act::WaitReadable(time) => {
                most = time;
                let there = self.check(console.wait_readable(start + time));
                self.told(console, before, mark);
                if let Some(there) = there.filter(|_| !self.lies) {
                    assert_eq!(there, console.readable().is_ok_and(|count| count > 0));
                }
            }
            Act::WaitWritable(time) => {
                most = time;
                let room = self.check(console.wait_writable(start + time));
                self.told(console, before, mark);
                if let Some(room) = room.filter(|_| !self.lies) {
                    assert_eq!(room, console.writable().is_ok_and(|count| count > 0));
                }
            }
            Act::WaitConnected(time) => {
                most = time;
                let there = self.check(console.wait_connected(start + time));
                assert!(there.is_none_or(|there| there == console.is_connected()));
                self.told(console, before, mark);
            }
            Act::PollReadable => {
                if let Poll::Ready(ready) = console.poll_readable(&mut Context::from_waker(Waker::noop())) {
                    self.check(ready);
                }
                self.told(console, before, mark);
            }
            Act::Readable => assert!(self.check(console.readable()).is_none_or(|count| count <= 1024)),
            Act::Writable => assert!(self.check(console.writable()).is_none_or(|count| count <= 2048)),
            Act::Emergency(len) => {
                let mut data = self.bytes(len);
                if let Some(last) = data.last_mut() {
                    *last = b'\n';
                }
                console.emergency(&data);
                self.last_words(console, before, mark, data);
            }
            Act::Type(len) => {
                let bytes: Vec<u8> = (self.typed..self.typed + len).map(typed_byte).collect();
                self.daemon.type_in(&bytes);
                self.typed += len;
            }
            Act::Run => assert!(xen.run_until_idle(10_000) < 10_000, "the daemon never ends"),
            Act::Step => {
                xen.step();
            }
            Act::Dispatch => {
                self.events.unmask_due();
                self.events.dispatch(VcpuId(0));
            }
            Act::Stall(on) => self.daemon.stall(on),
            Act::StallReader(on) => self.daemon.stall_reader(on),
            Act::SayConnected(connected) => self.daemon.say_connected(connected),
            Act::Pass(time) => {
                most = time;
                xen.advance(time);
            }
            Act::Event => {
                xen_evtchn::mock::inject(self.guest, console.channel().port());
            }
        }
        let took = xen.now() - start;
        assert!(took <= most, "{act:?} took {took:?}");
        let after = Totals::of(console);
        if !waits && self.broken.is_none() {
            let something = after.written > before.written || after.read > before.read;
            let notified = after.notifications - before.notifications;
            assert_eq!(notified, u64::from(something), "{act:?} sent {notified} events");
        }
        self.collect();
    }

    /// The daemon does its work from here on, all of it: everything arrives.
    ///
    /// # Panics
    /// When it does not.
    pub fn settle<'x>(&mut self, console: &mut Console<'x, MockDomain>) {
        if self.lies {
            return;
        }
        self.daemon.stall(false);
        self.daemon.stall_reader(false);
        let second = Duration::from_secs(1);
        for _ in 0..2 + self.typed / 1024 {
            for act in [Act::Pass(second), Act::Dispatch, Act::Run, Act::Read(2048)] {
                self.act(console, &act);
            }
        }
        self.act(console, &Act::Drain(second));
        assert_eq!(self.lost.lines, 0, "what was lost is told");
        assert!(self.out.iter().any(Vec::is_empty), "what was written comes out: {:?}", self.out);
        assert_eq!(self.read, self.typed, "what was typed comes in");
    }

    /// What a call returned. Once broken, always broken, and for the same reason.
    fn check<T>(&mut self, result: Result<T, Error>) -> Option<T> {
        match result {
            Ok(value) => {
                assert!(self.broken.is_none(), "broken means broken");
                Some(value)
            }
            Err(error @ Error::Broken(_)) => {
                assert!(self.lies, "an honest daemon, and {error}");
                assert_eq!(*self.broken.get_or_insert(error), error);
                None
            }
            Err(other) => panic!("{other}"),
        }
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        self.next += 1;
        (0..len).map(|at| ((self.next + at) % 251) as u8).collect()
    }

    /// A line of this length, its end included.
    fn line(&mut self, len: usize, end: &str) -> String {
        self.next += 1;
        // The terminal's end has two bytes.
        let text = len.clamp(2, LINE) - 2;
        format!("{:.text$}{end}", format!("{:a<256}", self.next))
    }

    /// The mark that is due.
    fn mark(&self) -> Option<Vec<u8>> {
        let Lost { lines, bytes, .. } = self.lost;
        let begin = if self.after_text { "\r\n" } else { "" };
        let plural = if lines == 1 { "" } else { "s" };
        (lines > 0).then(|| format!("{begin}[{lines} line{plural} lost, {bytes} bytes]\r\n").into_bytes())
    }

    fn comes(&mut self, bytes: &[u8]) {
        self.out.iter_mut().for_each(|out| out.extend_from_slice(bytes));
        if let Some(last) = bytes.last() {
            self.after_text = *last != b'\n';
        }
    }

    fn loses(&mut self, text: &[u8]) {
        let Some(last) = text.last() else { return };
        let lines = text.split_inclusive(|byte| *byte == b'\n').count() as u64;
        self.lost.lines += lines - u64::from(self.lost.open);
        self.lost.bytes += text.len() as u64;
        self.lost.open = *last != b'\n';
    }

    /// A mark was written, if anything was that is not accounted for otherwise.
    fn marked(&mut self, bytes: u64, mark: Option<Vec<u8>>) {
        if self.lies || bytes == 0 {
            return;
        }
        let mark = mark.expect("a mark for nothing");
        assert_eq!(bytes, mark.len() as u64);
        self.comes(&mark);
        self.lost = Lost::default();
    }

    fn told(&mut self, console: &Console<'_, MockDomain>, before: Totals, mark: Option<Vec<u8>>) {
        self.marked(console.stats().written - before.written, mark);
    }

    /// Bytes were written.
    fn wrote(
        &mut self,
        console: &Console<'_, MockDomain>,
        before: Totals,
        mark: Option<Vec<u8>>,
        data: Vec<u8>,
        count: Option<usize>,
    ) {
        let Some(count) = count else { return };
        let written = console.stats().written - before.written;
        assert!(written >= count as u64 && count <= data.len());
        self.marked(written - count as u64, mark);
        self.comes(&data[..count]);
    }

    /// Text was written, or lost.
    fn printed(
        &mut self,
        console: &mut Console<'_, MockDomain>,
        before: Totals,
        mark: &Option<Vec<u8>>,
        text: &str,
        written: Option<bool>,
    ) {
        let after = console.stats();
        let Some(written) = written.filter(|_| !self.lies) else { return };
        let mark_len = mark.as_ref().map_or(0, Vec::len);
        if written {
            assert_eq!((after.dropped, after.dropped_lines), (before.dropped, before.dropped_lines));
            let due = if text.is_empty() { 0 } else { mark_len + text.len() };
            assert_eq!(
                after.written - before.written,
                due as u64,
                "text without its mark, or the other way round"
            );
            if !text.is_empty() {
                self.marked(mark_len as u64, mark.clone());
                self.comes(text.as_bytes());
            }
        } else {
            assert_eq!((after.written, after.dropped), (before.written, before.dropped + text.len() as u64));
            let room = console.writable().unwrap_or(0);
            // The mark has as much room as the longest may need.
            let due = if mark.is_some() { 72 } else { 0 };
            assert!(room < due + text.len(), "lost, and {room} bytes are free");
            let lines = self.lost.lines;
            self.loses(text.as_bytes());
            assert_eq!(after.dropped_lines - before.dropped_lines, self.lost.lines - lines);
        }
    }

    /// Last words were said: a mark that was due went before them or behind them.
    fn last_words(
        &mut self,
        console: &mut Console<'_, MockDomain>,
        before: Totals,
        mark: Option<Vec<u8>>,
        data: Vec<u8>,
    ) {
        let after = console.stats();
        let dropped = (after.dropped - before.dropped) as usize;
        if self.lies || self.broken.is_some() {
            return;
        }
        let (said, unsaid) = data.split_at(data.len() - dropped);
        let rest = (after.written - before.written) as usize - said.len();
        if rest == 0 {
            self.comes(said);
        } else {
            let first = mark.expect("a mark for nothing");
            // They end a line, if all of them were said, and a mark behind them needs no new one.
            self.after_text &= said.is_empty();
            let behind = self.mark().filter(|_| unsaid.is_empty());
            let ways = [Some([&first[..], said].concat()), behind.map(|mark| [said, &mark[..]].concat())];
            let all = core::mem::take(&mut self.out);
            for way in ways.iter().flatten().filter(|way| way.len() == rest + said.len()) {
                self.out.extend(all.iter().map(|out| [&out[..], &way[..]].concat()));
            }
            assert!(!self.out.is_empty(), "neither a mark nor the last words");
            self.after_text = said.last().is_some_and(|last| *last != b'\n');
            self.lost = Lost::default();
        }
        self.loses(unsaid);
    }

    /// What came out has to be what was to come.
    fn collect(&mut self) {
        let output = self.daemon.take_output();
        if !self.lies {
            self.out.retain(|out| out.starts_with(&output));
            assert!(!self.out.is_empty(), "other bytes came out: {}", output.escape_ascii());
            self.out.iter_mut().for_each(|out| drop(out.drain(..output.len())));
        }
    }
}

/// Counters of a console at some moment.
#[derive(Clone, Copy)]
struct Totals {
    written: u64,
    read: u64,
    dropped: u64,
    dropped_lines: u64,
    notifications: u64,
}

impl Totals {
    fn of(console: &Console<'_, MockDomain>) -> Self {
        let stats = console.stats();
        Self {
            written: stats.written,
            read: stats.read,
            dropped: stats.dropped,
            dropped_lines: stats.dropped_lines,
            notifications: console.channel().stats().notifications,
        }
    }
}
