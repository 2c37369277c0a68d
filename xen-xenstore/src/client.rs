//! The connection as a whole: how it is made, and made anew.

use core::fmt;
use core::time::Duration;

use bitflags::bitflags;
use xen_evtchn::{Channel, Deadline, EventChannels, Port, Progress};
use xen_hypercall::hvm::{HvmParam, get_param};
use xen_hypercall::{Gfn, Platform, SpecialPages, Wait};
use xen_ring::XenstoreLayout;

use crate::link::Link;
use crate::page::StorePage;
use crate::wire::Operation;
use crate::{Error, Until};

/// How long to wait for an answer, unless it is set otherwise.
const PATIENCE: Duration = Duration::from_secs(10);

/// The word `connection` of the page (`XENSTORE_CONNECTED`, `XENSTORE_RECONNECT`).
pub(crate) const CONNECTED: u32 = 0;
pub(crate) const RECONNECT: u32 = 1;

/// A connection to xenstore (`docs/misc/xenstore.txt` and `docs/misc/xenstore-ring.txt` of Xen, and `io/xs_wire.h`).
///
/// Calls wait for the daemon's answer, at most as long as [`set_patience`](Self::set_patience) says.
pub struct Xenstore<'x, P: Platform> {
    pub(crate) link: Link<'x, P>,
    patience: Duration,
    /// Which requests of the toolstack the guest has said that it obeys.
    pub(crate) obeys: Option<[bool; 3]>,
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
    /// forgets the watches that an earlier kernel of the same domain may have left. Waits ten seconds for a daemon that
    /// is not there yet.
    ///
    /// # Errors
    /// As [`new_until`](Self::new_until).
    pub fn new(events: &'x EventChannels<P>) -> Result<Self, Error>
    where
        P: SpecialPages,
    {
        let end = events.platform().now().saturating_add(PATIENCE);
        Self::new_until(events, end)
    }

    /// Like [`new`](Self::new), and waits until `deadline` for a daemon that is not there yet. A domain that Xen itself starts
    /// (dom0less) may run long before domain 0 has its daemon.
    ///
    /// # Errors
    /// [`Error::NoStore`] when the domain was given none; [`Error::NotReady`] when the daemon has not come by `deadline`, and
    /// a later call may succeed; otherwise what Xen or the daemon returns.
    pub fn new_until<'d>(events: &'x EventChannels<P>, deadline: impl Into<Until<'d>>) -> Result<Self, Error>
    where
        P: SpecialPages,
    {
        Self::connect(events, deadline.into().deadline())
    }

    fn connect(events: &'x EventChannels<P>, deadline: &mut Deadline) -> Result<Self, Error>
    where
        P: SpecialPages,
    {
        let (page, channel) = find(events, deadline)?;
        let mut store = Self { link: Link::new(events, page, channel)?, patience: PATIENCE, obeys: None };
        store.await_daemon(deadline)?;
        match store.ask(Operation::RESET_WATCHES, 0, &[b"\0"]) {
            // An old daemon does not know it, and one that is strict wants no argument.
            Ok(_) | Err(Error::Refused(..)) => Ok(store),
            Err(error) => Err(error),
        }
    }

    /// Goes on after the domain was resumed in a new one, with another page and port, and a daemon that knows nothing of
    /// the one before. The event channels have to be [set up again](EventChannels::resume) by then. All watches are set again, and
    /// fire as every new watch does; the requests that a [`ShutdownWatch`](crate::control::ShutdownWatch) obeys are announced. When nothing is to be done, nothing is.
    ///
    /// # Errors
    /// [`Error::NoStore`], and what Xen or the daemon returns; [`Error::NotReady`] when there is no daemon in time. There is
    /// no connection then until another try succeeds. After [`Error::TimedOut`], [`Error::Disconnected`] and [`Error::Broken`],
    /// which another try returns again, [`reconnect`](Self::reconnect) is the way on. [`Error::Refused`] when the daemon refuses some of the watches: these
    /// have ended ([`Error::Stale`]), the others are set, and the connection is there.
    pub fn resume(&mut self) -> Result<(), Error>
    where
        P: SpecialPages,
    {
        let mut deadline = self.deadline();
        if !self.link.channel.is_current() {
            // From here on the old connection is none, whatever happens.
            self.link.fail(Error::NotReady);
            let (page, channel) = find(self.link.events, &mut deadline)?;
            self.link.move_to(page, channel)?;
        } else if self.link.broken != Some(Error::NotReady) {
            return self.link.broken.map_or(Ok(()), Err);
        }
        self.await_daemon(&mut deadline)?;
        self.link.reset();
        match self.watch_again(true) {
            Ok(refused) => refused,
            Err(error) => {
                self.link.fail(error);
                Err(error)
            }
        }
    }

    /// Brings the connection to rest, for a domain that is about to be suspended: there is no half message in the ring, and
    /// no transaction of a question that was given up is open.
    ///
    /// # Errors
    /// [`Error::TimedOut`] when the daemon does not take what is sent. A connection that is broken already is at rest.
    pub fn quiesce(&mut self) -> Result<(), Error> {
        if self.link.broken.is_some() || self.poll().is_err() {
            return Ok(());
        }
        let mut deadline = self.deadline();
        self.link.give_up();
        self.tidy_up(Operation::TRANSACTION_END, &mut deadline)
    }

    /// The domain goes on where it was: an event may have been missed, by the daemon too.
    pub(crate) fn look_again(&mut self) {
        // Whatever is wrong with the connection the next call says.
        if self.poll().is_ok() {
            let _ = self.link.channel.notify();
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
        self.link.features()
    }

    /// Makes the connection anew, which is the way out of [`Error::Broken`] and [`Error::Disconnected`]. The daemon
    /// forgets everything about the old one; the watches are set again here, and fire as every new watch does.
    ///
    /// # Errors
    /// [`Error::Event`] after a resume in a new domain, where [`resume`](Self::resume) is the way on.
    /// [`Error::NoReconnect`] when the daemon does not offer it ([`ServerFeatures::RECONNECTION`]), after which
    /// nothing has changed; [`Error::ReconnectTimedOut`] when it does not do it. [`Error::Refused`] when it refuses some of
    /// the watches: these have ended ([`Error::Stale`]), the others are set, and the connection is there. After another error
    /// there is no connection until another try succeeds.
    pub fn reconnect(&mut self) -> Result<(), Error> {
        self.link.check_life()?;
        if !self.server_features()?.contains(ServerFeatures::RECONNECTION) {
            return Err(Error::NoReconnect);
        }
        // From here on the old connection is none, whatever happens.
        self.link.fail(Error::ReconnectTimedOut);
        self.link.ring.set_word(XenstoreLayout::CONNECTION, RECONNECT)?;
        self.link.channel.notify()?;
        let mut deadline = self.deadline();
        self.await_connection(&mut deadline, Error::ReconnectTimedOut)?;
        self.link.reset();
        self.link.stats.reconnects += 1;
        match self.watch_again(false) {
            Ok(refused) => refused,
            Err(error) => {
                // Whoever waits for a watch that is not set would wait for ever.
                self.link.fail(error);
                Err(error)
            }
        }
    }

    /// Waits for a daemon that is not there yet.
    fn await_daemon(&mut self, deadline: &mut Deadline) -> Result<(), Error> {
        // Xen sets the word before there is a daemon that offers anything. Until then the ring is about to be reset.
        if self.server_features()?.contains(ServerFeatures::RECONNECTION)
            || self.link.ring.word(XenstoreLayout::CONNECTION)? == RECONNECT
        {
            self.await_connection(deadline, Error::NotReady)?;
        }
        Ok(())
    }

    /// Waits until the daemon says that the connection is up, and joins the streams as they are then.
    fn await_connection(&mut self, deadline: &mut Deadline, late: Error) -> Result<(), Error> {
        loop {
            let seen = self.link.events.seq();
            if self.link.ring.word(XenstoreLayout::CONNECTION)? == CONNECTED {
                return Ok(self.link.ring.rejoin()?);
            }
            let until = deadline.until(self.now()).ok_or(late)?;
            self.link.channel.done(Progress::Spurious);
            self.link.events.wait_since(seen, Some(until));
        }
    }

    /// The time by the platform's clock, in which deadlines are given.
    pub fn now(&self) -> Duration {
        self.link.now()
    }

    /// When an answer to what is asked now is late.
    pub(crate) fn deadline(&self) -> Deadline {
        Deadline::new(self.now().saturating_add(self.patience))
    }

    /// What passed so far.
    pub fn stats(&self) -> Stats {
        self.link.stats
    }

    /// The event channel of the connection.
    pub fn channel(&self) -> &Channel<'x, P> {
        &self.link.channel
    }

    /// Takes in what arrived: never waits, and ends after as many bytes as the ring holds.
    ///
    /// # Errors
    /// [`Error::Broken`], or [`Error::Disconnected`], when the connection is of no use any more.
    pub fn poll(&mut self) -> Result<(), Error> {
        self.link.poll(&mut |_, _| ())
    }
}

/// The page and the port of the domain's xenstore.
fn find<'x, P: Platform + Wait + SpecialPages>(
    events: &'x EventChannels<P>,
    deadline: &mut Deadline,
) -> Result<(StorePage, Channel<'x, P>), Error> {
    let platform = events.platform();
    let port = get_param(platform, HvmParam::STORE_EVTCHN)?;
    let port = u32::try_from(port).ok().filter(|port| *port != 0).ok_or(Error::NoStore)?;
    let channel = events.adopt(Port(port))?;
    loop {
        let seen = events.seq();
        match get_param(platform, HvmParam::STORE_PFN)? {
            0 => return Err(Error::NoStore),
            // There will be a page.
            u64::MAX => {
                let until = deadline.until(platform.now()).ok_or(Error::NotReady)?;
                events.wait_since(seen, Some(until));
            }
            gfn => {
                let page = StorePage::map(platform, Gfn(gfn)).ok_or(Error::Unreachable(Gfn(gfn)))?;
                return Ok((page, channel));
            }
        }
    }
}

impl<P: Platform> fmt::Debug for Xenstore<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Xenstore")
            .field("link", &self.link)
            .field("stats", &self.link.stats)
            .finish_non_exhaustive()
    }
}
