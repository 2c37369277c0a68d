//! The connection as a whole: how it is made, and made anew.

use core::fmt;
use core::time::Duration;

use bitflags::bitflags;
use xen_evtchn::{Channel, EventChannels, Port, Progress};
use xen_hypercall::hvm::{HvmParam, get_param};
use xen_hypercall::{Gfn, Platform, Wait};
use xen_ring::XenstoreLayout;

use crate::Error;
use crate::link::Link;
use crate::wire::Operation;

/// How long to wait for an answer, unless it is set otherwise.
const PATIENCE: Duration = Duration::from_secs(10);

/// The word `connection` of the page (`XENSTORE_CONNECTED`, `XENSTORE_RECONNECT`).
const CONNECTED: u32 = 0;
const RECONNECT: u32 = 1;

/// A connection to xenstore (`docs/misc/xenstore.txt` and `docs/misc/xenstore-ring.txt` of Xen, and `io/xs_wire.h`).
///
/// Calls wait for the daemon's answer, at most as long as [`set_patience`](Self::set_patience) says.
pub struct Xenstore<'x, P: Platform> {
    pub(crate) link: Link<'x, P>,
    patience: Duration,
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
        let mut store = Self { link: Link::new(events, gfn, Port(port))?, patience: PATIENCE };
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
        Ok(ServerFeatures::from_bits_retain(self.link.ring.word(XenstoreLayout::SERVER_FEATURES)?))
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
        self.link.broken = Some(Error::ReconnectTimedOut);
        self.link.ring.set_word(XenstoreLayout::CONNECTION, RECONNECT)?;
        self.link.channel.notify()?;
        self.await_connection()?;
        self.link.reset();
        self.link.stats.reconnects += 1;
        let watched = self.watch_again();
        if let Err(error) = watched {
            // Whoever waits for a watch that is not set would wait for ever.
            self.link.broken = Some(error);
        }
        watched
    }

    /// Waits until the daemon says that the connection is up, and joins the streams as they are then.
    fn await_connection(&mut self) -> Result<(), Error> {
        let deadline = self.deadline();
        while self.link.ring.word(XenstoreLayout::CONNECTION)? != CONNECTED {
            if self.now() >= deadline {
                return Err(Error::ReconnectTimedOut);
            }
            self.link.channel.done(Progress::Spurious);
            self.link.events.wait(Some(deadline));
        }
        Ok(self.link.ring.rejoin()?)
    }

    /// The time by the platform's clock, in which deadlines are given.
    pub fn now(&self) -> Duration {
        self.link.now()
    }

    /// When an answer to what is asked now is late.
    pub(crate) fn deadline(&self) -> Duration {
        self.now().saturating_add(self.patience)
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

impl<P: Platform> fmt::Debug for Xenstore<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Xenstore")
            .field("link", &self.link)
            .field("stats", &self.link.stats)
            .finish_non_exhaustive()
    }
}
