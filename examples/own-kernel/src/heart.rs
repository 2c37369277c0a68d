//! The driver: tells a monitor in another domain that the guest lives. Knows the platform traits and nothing else, so it
//! runs on the kernel and on the mock.
#![allow(unsafe_code, reason = "takes the page of the toolstack's")]

use core::fmt;
use core::time::Duration;

use xen_hypercall::{Errno, Gfn, Platform, SpecialPages, Wait, event};
use xen_ring::{Backing, Front, RingError};

use crate::{Beat, Heartbeat, LATEST, Reply, SOONEST, SharedPage};

/// How long a beat waits for its answer.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// Why a beat came to nothing.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// The kernel cannot reach the page.
    Unreachable(Gfn),
    /// The monitor did not answer within [`PATIENCE`]. A later beat may do better.
    Silent,
    /// Xen did not send the event. The next beat sends it.
    Event(Errno),
    /// The monitor wrote an index that cannot be. It is not listened to any more.
    Ring(RingError),
    /// It answered a beat that is not the next to be answered. It is not listened to any more.
    Id(u32),
    /// It wants the next beat after so many milliseconds, which is not what may be. It is not listened to any more.
    Interval(u32),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(gfn) => write!(f, "frame {:#x} cannot be reached", gfn.0),
            Self::Silent => f.write_str("the monitor does not answer"),
            Self::Event(errno) => write!(f, "Xen did not send the event: {errno}"),
            Self::Ring(error) => write!(f, "the monitor broke the protocol: {error}"),
            Self::Id(id) => write!(f, "the monitor broke the protocol: it answered {id} out of turn"),
            Self::Interval(ms) => write!(f, "the monitor broke the protocol: the next beat in {ms} ms"),
        }
    }
}

impl core::error::Error for Error {}

/// The guest's end, on a page that the monitor can write to.
#[derive(Debug)]
pub struct Heart<'k, K, M = SharedPage> {
    kernel: &'k K,
    ring: Front<Heartbeat, M>,
    port: u32,
    /// The last beat that was sent, and the last that was answered.
    sent: u32,
    answered: u32,
    /// The monitor asked for an event that it did not get yet.
    owed: bool,
    broken: Option<Error>,
}

impl<'k, K: Platform + SpecialPages + Wait> Heart<'k, K, SharedPage> {
    /// Begins, with a page and a port that the toolstack made for it.
    ///
    /// # Errors
    /// [`Error::Unreachable`].
    ///
    /// # Safety
    /// The toolstack put a page at this frame for the monitor, and nothing else in the kernel uses it.
    pub unsafe fn connect(kernel: &'k K, gfn: Gfn, port: u32) -> Result<Self, Error> {
        // SAFETY: the caller says what the frame is for.
        let page = unsafe { kernel.map_special(gfn, 1) }.ok_or(Error::Unreachable(gfn))?;
        // SAFETY: the page stays, and is nobody else's.
        let page = unsafe { SharedPage::new(page) };
        Self::new(kernel, page, port)
    }
}

impl<'k, K: Platform + Wait, M: Backing> Heart<'k, K, M> {
    /// Begins, with a page that the kernel granted to the monitor, and a port for it.
    ///
    /// # Errors
    /// [`Error::Ring`].
    pub fn new(kernel: &'k K, page: M, port: u32) -> Result<Self, Error> {
        let ring = Front::init(page).map_err(Error::Ring)?;
        Ok(Self { kernel, ring, port, sent: 0, answered: 0, owed: false, broken: None })
    }

    /// How many beats were answered, wrapping.
    pub fn answered(&self) -> u32 {
        self.answered
    }

    /// Says that the guest lives, and returns when to say it next.
    ///
    /// # Errors
    /// All but [`Error::Silent`] and [`Error::Event`] are for good.
    pub fn beat(&mut self) -> Result<Duration, Error> {
        if let Some(error) = self.broken {
            return Err(error);
        }
        let result = self.attempt();
        if let Err(error) = result {
            if !matches!(error, Error::Silent | Error::Event(_)) {
                self.broken = Some(error);
            }
        }
        result
    }

    fn attempt(&mut self) -> Result<Duration, Error> {
        let now = self.kernel.now();
        let beat = Beat { id: self.sent.wrapping_add(1), uptime: now.as_millis() as u32 };
        match self.ring.push(&beat) {
            Ok(_) => self.sent = beat.id,
            // As many beats as there is room for were not answered. There may be answers by now.
            Err(RingError::Full) => {}
            Err(error) => return Err(Error::Ring(error)),
        }
        self.owed |= self.ring.publish().map_err(Error::Ring)?;
        if self.owed {
            event::send(self.kernel, self.port).map_err(Error::Event)?;
            self.owed = false;
        }
        let deadline = now.saturating_add(PATIENCE);
        loop {
            if let Some(next) = self.answers()? {
                return Ok(next);
            }
            if self.kernel.now() >= deadline {
                return Err(Error::Silent);
            }
            // Whoever sleeps asks for an event first, and looks once more.
            if !self.ring.arm().map_err(Error::Ring)? {
                // The kernel dispatches no events: what is due is in the ring.
                self.kernel.wait(Some(deadline), &|| false);
            }
        }
    }

    /// Takes the answers that are there; that to the last beat says when the next is due. Ends, as there are no more
    /// answers than beats.
    fn answers(&mut self) -> Result<Option<Duration>, Error> {
        while let Some(Reply { id, next }) = self.ring.pop().map_err(Error::Ring)? {
            // A copy, taken once: what the monitor writes to the slot from now on changes nothing here.
            self.answered = self.answered.wrapping_add(1);
            if id != self.answered {
                return Err(Error::Id(id));
            }
            let interval = Duration::from_millis(next.into());
            if !(SOONEST..=LATEST).contains(&interval) {
                return Err(Error::Interval(next));
            }
            if id == self.sent {
                return Ok(Some(interval));
            }
            // The answer to a beat that was given up.
        }
        Ok(None)
    }
}
