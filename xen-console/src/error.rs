//! What can go wrong with a console.

use core::fmt;

use xen_hypercall::{Errno, Gfn};

/// Why a console did not do what it was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The toolstack gave this domain no console: a domain without one, or the first domain.
    NoConsole,
    /// The platform cannot reach the console's page.
    Unreachable(Gfn),
    /// Xen refused.
    Hypercall(Errno),
    /// The event channel does not work.
    Event(xen_evtchn::Error),
    /// The console daemon, or the backend, broke the protocol; the console is of no use any more.
    Broken(Violation),
    /// The backend has ended the console, or is gone.
    #[cfg(feature = "xenbus")]
    Closed,
    /// The console's page could not be shared.
    #[cfg(feature = "xenbus")]
    Grant(xen_gnttab::Error),
    /// The handshake with the console's backend failed, or xenstore did.
    #[cfg(feature = "xenbus")]
    Xenstore(xen_xenstore::Error),
}

/// How the console daemon, or the backend, broke the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Violation {
    /// An index of the ring is out of range.
    Ring(xen_ring::RingError),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring(error) => error.fmt(f),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoConsole => f.write_str("this domain has no console"),
            Self::Unreachable(gfn) => write!(f, "the console's page at {gfn} cannot be mapped"),
            Self::Hypercall(errno) => write!(f, "console: {errno}"),
            Self::Event(error) => write!(f, "console: {error}"),
            Self::Broken(violation) => write!(f, "console: {violation}"),
            #[cfg(feature = "xenbus")]
            Self::Closed => f.write_str("the console's backend has ended it, or is gone"),
            #[cfg(feature = "xenbus")]
            Self::Grant(error) => write!(f, "console: {error}"),
            #[cfg(feature = "xenbus")]
            Self::Xenstore(error) => write!(f, "console: {error}"),
        }
    }
}

impl core::error::Error for Error {}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Self::Hypercall(errno)
    }
}

impl From<xen_evtchn::Error> for Error {
    fn from(error: xen_evtchn::Error) -> Self {
        Self::Event(error)
    }
}

impl From<xen_ring::RingError> for Error {
    fn from(error: xen_ring::RingError) -> Self {
        Self::Broken(Violation::Ring(error))
    }
}

#[cfg(feature = "xenbus")]
impl From<xen_gnttab::Error> for Error {
    fn from(error: xen_gnttab::Error) -> Self {
        Self::Grant(error)
    }
}

#[cfg(feature = "xenbus")]
impl From<xen_xenstore::Error> for Error {
    fn from(error: xen_xenstore::Error) -> Self {
        Self::Xenstore(error)
    }
}
