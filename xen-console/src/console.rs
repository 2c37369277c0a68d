//! The domain's console: two byte streams shared with the console daemon.

mod poll;

use core::fmt;
use core::time::Duration;

use xen_evtchn::{Channel, Deadline, EventChannels, Port, Progress};
use xen_hypercall::hvm::{HvmParam, get_param};
use xen_hypercall::{Gfn, Platform, SpecialPages, Wait};
#[cfg(feature = "xenbus")]
use xen_ring::RingError;
use xen_ring::{ByteRing, ConsoleLayout};

use crate::Error;
use crate::page::ConsolePage;
use crate::text::{Lost, Mark};

/// The console of a domain, from the guest's side (`io/console.h`).
///
/// There are two ways to write. Bytes ([`write`](Self::write), [`write_all`](Self::write_all)) go as they are, and the
/// caller hears how many went. Text ([`write_text`](Self::write_text), `write!`) goes in
/// whole lines, and a line that finds no room is told of at its place as soon as there is room.
pub struct Console<'x, P: Platform> {
    // Before the ring, so that it is dropped first: the port is closed before the page may be somebody else's.
    channel: Channel<'x, P>,
    ring: ByteRing<ConsoleLayout, ConsolePage<'x, P>>,
    events: &'x EventChannels<P>,
    lost: Lost,
    /// What was written last does not end a line.
    after_text: bool,
    /// Something was written that the daemon was not told of.
    unannounced: bool,
    /// Text was waited for in vain, and the daemon has done nothing since.
    unattended: bool,
    stats: Stats,
}

/// What passed since the console was opened.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Bytes written.
    pub written: u64,
    /// Bytes read.
    pub read: u64,
    /// Bytes of text that were lost because the daemon did not make room in time.
    pub dropped: u64,
    /// Lines of which these bytes are all or a part.
    pub dropped_lines: u64,
}

impl<'x, P: Platform> Console<'x, P> {
    /// Opens the console that the toolstack gave the domain (`HVM_PARAM_CONSOLE_PFN` and `_EVTCHN`).
    ///
    /// # Errors
    /// [`Error::NoConsole`] when the toolstack gave none; [`Error::Unreachable`] when the platform cannot map its page;
    /// [`Error::Event`] when its port is in use or closed; [`Error::Hypercall`] when Xen refuses the parameters.
    pub fn new(events: &'x EventChannels<P>) -> Result<Self, Error>
    where
        P: SpecialPages,
    {
        let (page, channel) = find(events)?;
        Self::on(page, channel)
    }

    /// Goes on after the domain was resumed in a new one, with another port and an empty page: in the middle of a line, with what
    /// is to be told of lost text, and with the counters. The event channels have to be
    /// [set up again](EventChannels::resume) by then. What was typed and not read is lost. When nothing is to be done, nothing is.
    ///
    /// For the console of [`new`](Self::new); others have a handshake.
    ///
    /// # Errors
    /// As [`new`](Self::new). The console stays [`Error::Stale`] then.
    pub fn resume(&mut self) -> Result<(), Error>
    where
        P: SpecialPages,
    {
        if self.channel.is_current() {
            return Ok(());
        }
        let (page, channel) = find(self.events)?;
        self.ring = ByteRing::new(page)?;
        channel.set_late_eoi(true);
        self.channel = channel;
        (self.unannounced, self.unattended) = (false, false);
        Ok(())
    }

    /// A console whose page and event channel are there.
    pub(crate) fn on(page: ConsolePage<'x, P>, channel: Channel<'x, P>) -> Result<Self, Error> {
        let events = channel.event_channels();
        channel.set_late_eoi(true);
        Ok(Self {
            channel,
            ring: ByteRing::new(page)?,
            events,
            lost: Lost::default(),
            after_text: false,
            unannounced: false,
            unattended: false,
            stats: Stats::default(),
        })
    }

    /// Whether the daemon serves the console, as the byte `connection` of the page says: all but `XENCONSOLE_DISCONNECTED`.
    ///
    /// From Xen 4.21 on the toolstack makes the page disconnected, and the daemon sets the byte when it comes, and sends an
    /// event. Before that the byte is zero, which is `XENCONSOLE_CONNECTED`, whether there is a daemon or not. What is
    /// written to a console without a daemon stays in the ring until one comes.
    pub fn is_connected(&mut self) -> bool {
        self.ring.word(ConsoleLayout::CONNECTION).is_ok_and(|word| word as u8 != ConsoleLayout::DISCONNECTED)
    }

    /// Waits until the daemon [serves](Self::is_connected) the console, until `deadline` on the platform's clock. Returns
    /// whether it does. For a guest that writes more at its start than the ring holds, and may wait for its reader.
    ///
    /// # Errors
    /// [`Error::Broken`] when the daemon broke the protocol.
    pub fn wait_connected(&mut self, deadline: Duration) -> Result<bool, Error>
    where
        P: Wait,
    {
        self.wait_for(&mut Deadline::new(deadline), &mut |console| {
            console.serve()?;
            console.readable()?;
            Ok(console.is_connected())
        })
    }

    /// Writes as many bytes as there is room for, at once. Returns how many that was.
    ///
    /// # Errors
    /// [`Error::Broken`] when the daemon broke the protocol; [`Error::Event`] when it cannot be notified.
    pub fn write(&mut self, data: &[u8]) -> Result<usize, Error> {
        self.tell(0)?;
        let rest = self.push_some(data)?;
        Ok(data.len() - rest.len())
    }

    /// Reads the bytes that are there, at once. Returns how many that was.
    ///
    /// # Errors
    /// [`Error::Broken`] when the daemon broke the protocol; [`Error::Event`] when it cannot be notified.
    pub fn read(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        self.check_life()?;
        let count = self.ring.read(out)?;
        self.stats.read += count as u64;
        self.unannounced |= count > 0;
        self.tell(0)?;
        self.announce()?;
        self.looked(count);
        Ok(count)
    }

    /// Writes bytes, and waits for room until `patience` is over. Returns how many were written; the others are the
    /// caller's to write again.
    ///
    /// # Errors
    /// [`Error::Broken`] when the daemon broke the protocol; [`Error::Event`] when it cannot be notified. How many bytes
    /// were written by then is not told.
    pub fn write_all(&mut self, data: &[u8], patience: Duration) -> Result<usize, Error>
    where
        P: Wait,
    {
        let mut rest = data;
        self.tell(0)?;
        self.wait_for(&mut self.deadline(patience), &mut |console| {
            rest = console.push_some(rest)?;
            Ok(rest.is_empty())
        })?;
        Ok(data.len() - rest.len())
    }

    /// Waits until the daemon has taken everything, until `patience` is over. Returns whether it has.
    ///
    /// # Errors
    /// [`Error::Broken`] when the daemon broke the protocol; [`Error::Event`] when it cannot be notified.
    pub fn drain(&mut self, patience: Duration) -> Result<bool, Error>
    where
        P: Wait,
    {
        self.wait_for(&mut self.deadline(patience), &mut |console| {
            console.serve()?;
            console.is_drained()
        })
    }

    /// Whether the daemon has taken everything.
    fn is_drained(&mut self) -> Result<bool, Error> {
        Ok(self.lost.lines == 0 && self.ring.is_drained()?)
    }

    /// Waits until there is something to read, until `deadline` on the platform's clock. Returns whether there is.
    ///
    /// # Errors
    /// [`Error::Broken`] when the daemon broke the protocol; [`Error::Event`] when it cannot be notified.
    pub fn wait_readable(&mut self, deadline: Duration) -> Result<bool, Error>
    where
        P: Wait,
    {
        self.wait_for(&mut Deadline::new(deadline), &mut |console| {
            console.serve()?;
            Ok(console.ring.readable()? > 0)
        })
    }

    /// Waits until there is room to write, until `deadline` on the platform's clock. Returns whether there is.
    ///
    /// # Errors
    /// [`Error::Broken`] when the daemon broke the protocol; [`Error::Event`] when it cannot be notified.
    pub fn wait_writable(&mut self, deadline: Duration) -> Result<bool, Error>
    where
        P: Wait,
    {
        self.wait_for(&mut Deadline::new(deadline), &mut |console| {
            console.serve()?;
            Ok(console.ring.writable()? > 0)
        })
    }

    /// A last word, as a panic or a fault has it: does not wait for events and takes no lock. Asks for room a bounded
    /// number of times; text that finds none by then is lost, as with [`write_text`](Self::write_text).
    pub fn emergency(&mut self, data: &[u8]) {
        /// About a tenth of a second of hypercalls.
        const TRIES: usize = 10_000;
        let mut rest = data;
        for _ in 0..TRIES {
            // Before the last word, or behind it.
            let told = if rest.is_empty() || rest.len() == data.len() { self.tell(0) } else { Ok(()) };
            match told.and_then(|()| self.push_some(rest)) {
                Ok(more) => rest = more,
                Err(_) => return,
            }
            if rest.is_empty() && self.lost.lines == 0 && self.ring.is_drained() != Ok(false) {
                return;
            }
            let _ = xen_hypercall::sched::yield_now(self.events.platform());
        }
        self.lose(rest);
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

/// The page and the port that the toolstack gave the domain.
fn find<'x, P: Platform + SpecialPages>(
    events: &'x EventChannels<P>,
) -> Result<(ConsolePage<'x, P>, Channel<'x, P>), Error> {
    let platform = events.platform();
    let gfn = Gfn(get_param(platform, HvmParam::CONSOLE_PFN)?);
    let port = get_param(platform, HvmParam::CONSOLE_EVTCHN)?;
    let port = u32::try_from(port).ok().filter(|port| *port != 0).ok_or(Error::NoConsole)?;
    if gfn.0 == 0 {
        return Err(Error::NoConsole);
    }
    let page = ConsolePage::map(platform, gfn).ok_or(Error::Unreachable(gfn))?;
    Ok((page, events.adopt(Port(port))?))
}

/// What the ways to write have in common.
impl<P: Platform> Console<'_, P> {
    /// How the daemon broke the protocol, if it did.
    #[cfg(feature = "xenbus")]
    pub(crate) fn violation(&self) -> Option<crate::Violation> {
        self.ring.violation().map(|violation| crate::Violation::Ring(RingError::Broken(violation)))
    }

    /// Goes on where an earlier console of the same device ended: what its daemon did not take comes first.
    #[cfg(feature = "xenbus")]
    pub(crate) fn go_on_from(&mut self, earlier: &mut Self) -> Result<(), Error> {
        let (mut done, mut bytes) = (0, [0; 256]);
        // What a daemon that lied has taken, nobody knows.
        while let Ok(count @ 1..) = earlier.ring.untaken(done, &mut bytes) {
            self.push(bytes.get(..count).unwrap_or_default())?;
            done += count;
        }
        (self.lost, self.after_text, self.stats) = (earlier.lost, earlier.after_text, earlier.stats);
        self.tell(0)?;
        self.announce()
    }

    /// A live migration takes along what the daemon wrote to the page.
    #[cfg(feature = "xenbus")]
    pub(crate) fn mark_written(&mut self) {
        // If the life is another one it is too late.
        let _ = self.check_life().and_then(|()| Ok(self.ring.mark_written()?));
    }

    /// After a resume in a new domain the page is another daemon's.
    fn check_life(&self) -> Result<(), Error> {
        if self.channel.is_current() { Ok(()) } else { Err(Error::Stale) }
    }

    fn push(&mut self, data: &[u8]) -> Result<usize, Error> {
        self.check_life()?;
        let count = self.ring.write(data)?;
        if let Some([.., last]) = data.get(..count) {
            self.after_text = *last != b'\n';
            self.unannounced = true;
            self.stats.written += count as u64;
        }
        Ok(count)
    }

    /// Writes what there is room for, and looks at the console. Returns what is left.
    fn push_some<'d>(&mut self, data: &'d [u8]) -> Result<&'d [u8], Error> {
        let count = self.push(data)?;
        self.announce()?;
        self.looked(0);
        Ok(data.get(count..).unwrap_or_default())
    }

    /// Tells the daemon that there is something to look at, if there is.
    pub(crate) fn announce(&mut self) -> Result<(), Error> {
        if core::mem::take(&mut self.unannounced) {
            self.channel.notify()?;
        }
        Ok(())
    }

    /// Ends the event under way, if there is one: every call that looks at the ring does so, before it may wait for the next.
    /// A daemon that broke the protocol is not listened to any more.
    pub(crate) fn looked(&mut self, read: usize) {
        if let Ok(progress) = self.ring.progressed() {
            self.unattended &= !progress;
            self.channel.done(Progress::of(progress || read > 0));
        }
    }

    /// A look at the console: tells of what was lost, and ends the event under way.
    fn serve(&mut self) -> Result<(), Error> {
        // No event of a stale one comes any more, so that a wait would be in vain.
        self.check_life()?;
        self.tell(0)?;
        self.announce()?;
        self.looked(0);
        Ok(())
    }

    /// Whether so many bytes of text fit, behind the mark that has to stand before them.
    pub(crate) fn has_room(&mut self, len: usize) -> Result<bool, Error> {
        self.check_life()?;
        let mark =
            if self.lost.lines > 0 { Mark::new(self.lost, self.after_text).as_bytes().len() } else { 0 };
        Ok(self.ring.writable()? >= mark + len)
    }

    /// Tells of what was lost, if anything was, when there is room for that and `more` bytes.
    fn tell(&mut self, more: usize) -> Result<(), Error> {
        if self.lost.lines > 0 && self.has_room(more)? {
            let mark = Mark::new(self.lost, self.after_text);
            self.lost = Lost::default();
            self.push(mark.as_bytes())?;
        }
        Ok(())
    }

    /// Writes text that [has room](Self::has_room), or gives it up. Returns whether all of it was written.
    pub(crate) fn put(&mut self, text: &[u8], room: bool) -> Result<bool, Error> {
        let mut rest = text;
        if room {
            self.tell(text.len())?;
            let count = self.push(text)?;
            // A daemon that takes room back lies. Its reader hears of that, too.
            rest = text.get(count..).unwrap_or_default();
        }
        self.lose(rest);
        Ok(rest.is_empty())
    }

    /// Gives text up.
    pub(crate) fn lose(&mut self, text: &[u8]) {
        self.stats.dropped += text.len() as u64;
        self.stats.dropped_lines += u64::from(self.lost.add(text));
    }
}

/// Waits.
impl<P: Platform + Wait> Console<'_, P> {
    pub(crate) fn deadline(&self, patience: Duration) -> Deadline {
        Deadline::new(self.events.platform().now().saturating_add(patience))
    }

    /// Looks until `look` finds what is waited for, once at least. Returns whether it did.
    fn wait_for(
        &mut self,
        deadline: &mut Deadline,
        look: &mut dyn FnMut(&mut Self) -> Result<bool, Error>,
    ) -> Result<bool, Error> {
        loop {
            let seen = self.events.seq();
            if look(self)? {
                return Ok(true);
            }
            let Some(until) = deadline.until(self.events.platform().now()) else { return Ok(false) };
            self.events.wait_since(seen, Some(until));
        }
    }

    /// Waits until so many bytes of text fit. The waits of one call have one deadline together.
    pub(crate) fn wait_room(&mut self, len: usize, deadline: &mut Deadline) -> Result<bool, Error> {
        if self.has_room(len)? {
            return Ok(true);
        }
        self.announce()?;
        self.looked(0);
        if self.unattended {
            return Ok(false);
        }
        let room = self.wait_for(deadline, &mut |console| {
            console.looked(0);
            console.has_room(len)
        })?;
        self.unattended = !room;
        Ok(room)
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
