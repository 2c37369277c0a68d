//! The domain's console: two byte streams shared with the console daemon.

use core::fmt;
use core::task::{Context, Poll};
use core::time::Duration;

use xen_evtchn::{Channel, EventChannels, Port, Progress};
use xen_hypercall::hvm::{HvmParam, get_param};
use xen_hypercall::{Gfn, Platform, Wait};
use xen_ring::{ByteRing, ConsoleLayout};

use crate::Error;
use crate::page::ConsolePage;

/// The console of a domain, from the guest's side (`io/console.h`).
pub struct Console<'x, P: Platform> {
    ring: ByteRing<ConsoleLayout, ConsolePage<'x, P>>,
    channel: Channel<'x, P>,
    events: &'x EventChannels<P>,
    stats: Stats,
}

/// What passed since the console was opened, in bytes.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Written.
    pub written: u64,
    /// Read.
    pub read: u64,
    /// Not written because the daemon did not make room in time.
    pub dropped: u64,
}

impl<'x, P: Platform> Console<'x, P> {
    /// Opens the console that the toolstack gave the domain (`HVM_PARAM_CONSOLE_PFN` and `_EVTCHN`).
    ///
    /// # Errors
    /// [`Error::NoConsole`] when it gave none; otherwise what Xen answers.
    pub fn new(events: &'x EventChannels<P>) -> Result<Self, Error> {
        let platform = events.platform();
        let gfn = Gfn(get_param(platform, HvmParam::CONSOLE_PFN)?);
        let port = get_param(platform, HvmParam::CONSOLE_EVTCHN)?;
        let port = u32::try_from(port).ok().filter(|port| *port != 0).ok_or(Error::NoConsole)?;
        if gfn.0 == 0 {
            return Err(Error::NoConsole);
        }
        let page = ConsolePage::map(platform, gfn).ok_or(Error::Unreachable(gfn))?;
        Self::on(page, events.adopt(Port(port))?)
    }

    /// A console whose page and event channel are there.
    pub(crate) fn on(page: ConsolePage<'x, P>, channel: Channel<'x, P>) -> Result<Self, Error> {
        let events = channel.event_channels();
        channel.set_late_eoi(true);
        Ok(Self { ring: ByteRing::new(page)?, channel, events, stats: Stats::default() })
    }

    /// Whether the daemon says that it serves the console. One that is older than this question, and one that stopped
    /// without a word, seem to: what is written may stay in the ring all the same.
    pub fn is_connected(&mut self) -> bool {
        // One byte, of which zero is `XENCONSOLE_CONNECTED`.
        self.ring.word(ConsoleLayout::CONNECTION).is_ok_and(|word| word & 0xff == 0)
    }

    /// Ends the event under way, if there is one: every call that looks at the ring does so, before it may wait for the next.
    /// A daemon that broke the protocol is not listened to any more.
    fn looked(&mut self, read: usize) {
        if let Ok(progress) = self.ring.progressed() {
            self.channel.done(Progress::of(progress || read > 0));
        }
    }

    /// Writes as much as there is room for, at once; answers how many bytes that was.
    ///
    /// # Errors
    /// [`Error::Broken`] when the daemon broke the protocol.
    pub fn write(&mut self, data: &[u8]) -> Result<usize, Error> {
        let count = self.ring.write(data)?;
        self.stats.written += count as u64;
        if count > 0 {
            self.channel.notify()?;
        }
        self.looked(0);
        Ok(count)
    }

    /// Reads what is there, at once; answers how many bytes that was.
    ///
    /// # Errors
    /// [`Error::Broken`] when the daemon broke the protocol.
    pub fn read(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        let count = self.ring.read(out)?;
        self.stats.read += count as u64;
        if count > 0 {
            self.channel.notify()?;
        }
        self.looked(count);
        Ok(count)
    }

    /// Writes everything, waiting for room. What finds no room within `patience` is dropped and counted: a console
    /// that nobody drains must not stop the guest. For a daemon that says that it [is not there](Self::is_connected)
    /// nothing is waited for. Answers how many bytes were written.
    ///
    /// # Errors
    /// [`Error::Broken`] when the daemon broke the protocol.
    pub fn write_all(&mut self, mut data: &[u8], patience: Duration) -> Result<usize, Error>
    where
        P: Wait,
    {
        let deadline = self.events.platform().now().saturating_add(patience);
        let len = data.len();
        loop {
            let count = self.write(data)?;
            data = data.get(count..).unwrap_or_default();
            if data.is_empty() {
                return Ok(len);
            }
            if self.events.platform().now() >= deadline || !self.is_connected() {
                self.stats.dropped += data.len() as u64;
                return Ok(len - data.len());
            }
            self.events.wait(Some(deadline));
        }
    }

    /// Waits until the daemon has taken everything, at most for `patience`. Answers whether it has.
    ///
    /// # Errors
    /// [`Error::Broken`] when the daemon broke the protocol.
    pub fn drain(&mut self, patience: Duration) -> Result<bool, Error>
    where
        P: Wait,
    {
        let deadline = self.events.platform().now().saturating_add(patience);
        loop {
            self.looked(0);
            if self.ring.is_drained()? {
                return Ok(true);
            }
            if self.events.platform().now() >= deadline {
                return Ok(false);
            }
            self.events.wait(Some(deadline));
        }
    }

    /// Ready when there is something to read or the console is broken; otherwise wakes the task then.
    ///
    /// # Errors
    /// [`Error::Broken`] when the daemon broke the protocol.
    pub fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        loop {
            self.looked(0);
            if self.ring.readable()? > 0 {
                return Poll::Ready(Ok(()));
            }
            // The event may be an old one: then the waker is not left yet, and asking again leaves it.
            if self.channel.poll_event(cx).is_pending() {
                return match self.ring.readable()? {
                    0 => Poll::Pending,
                    _ => Poll::Ready(Ok(())),
                };
            }
        }
    }

    /// A last word, as a panic or a fault has it: does not wait for events and takes no lock. Polls for room a
    /// bounded number of times and gives up what does not fit by then.
    pub fn emergency(&mut self, data: &[u8]) {
        /// About a tenth of a second of hypercalls.
        const TRIES: usize = 10_000;
        let mut rest = data;
        for _ in 0..TRIES {
            match self.write(rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(_) => return,
            }
            if rest.is_empty() && self.ring.is_drained() != Ok(false) {
                return;
            }
            let _ = xen_hypercall::sched::yield_now(self.events.platform());
        }
        self.stats.dropped += rest.len() as u64;
    }

    /// Waits until there is something to read, at most until `deadline`. Answers whether there is.
    ///
    /// # Errors
    /// [`Error::Broken`] when the daemon broke the protocol.
    pub fn wait_readable(&mut self, deadline: Duration) -> Result<bool, Error>
    where
        P: Wait,
    {
        loop {
            self.looked(0);
            if self.ring.readable()? > 0 {
                return Ok(true);
            }
            if self.events.platform().now() >= deadline {
                return Ok(false);
            }
            self.events.wait(Some(deadline));
        }
    }

    /// How many bytes can be read at once.
    ///
    /// # Errors
    /// [`Error::Broken`] when the daemon broke the protocol.
    pub fn readable(&mut self) -> Result<usize, Error> {
        Ok(self.ring.readable()?)
    }

    /// How many bytes can be written at once.
    ///
    /// # Errors
    /// [`Error::Broken`] when the daemon broke the protocol.
    pub fn writable(&mut self) -> Result<usize, Error> {
        Ok(self.ring.writable()?)
    }

    /// The event channels that the console's is one of.
    pub fn event_channels(&self) -> &'x EventChannels<P> {
        self.events
    }

    /// What passed so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// The console's event channel.
    pub fn channel(&self) -> &Channel<'x, P> {
        &self.channel
    }
}

/// Text for people: a line's end gets the carriage return that a terminal wants. What finds no room at once is
/// dropped and counted; [`Console::write_all`] waits.
impl<P: Platform> fmt::Write for Console<'_, P> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.split_inclusive('\n') {
            let (line, end) = part.strip_suffix('\n').map_or((part, ""), |line| (line, "\r\n"));
            for piece in [line, end] {
                let count = self.write(piece.as_bytes()).map_err(|_| fmt::Error)?;
                self.stats.dropped += (piece.len() - count) as u64;
            }
        }
        Ok(())
    }
}

impl<P: Platform> fmt::Debug for Console<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console")
            .field("ring", &self.ring)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}
