//! What can go wrong with xenstore.

use core::fmt;

use xen_hypercall::{Errno, Gfn};

use crate::watches::{PATHS, WATCHES};
use crate::wire::{Operation, Refusal};
use crate::xenbus::XenbusState;

/// Why xenstore, or a handshake by it, did not do what it was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Error {
    /// This domain has no xenstore.
    NoStore,
    /// The domain will have a xenstore, and the daemon is not there yet.
    NotReady,
    /// The platform cannot reach xenstore's page.
    Unreachable(Gfn),
    /// The daemon refused an operation.
    Refused(Operation, Refusal),
    /// The daemon did not answer in time. Whether it did what was asked is not known. The connection goes on; a late
    /// answer is recognised and dropped.
    TimedOut(Operation),
    /// A path is empty, too long, or has bytes that no path has.
    BadPath,
    /// A request is longer than the protocol allows.
    TooLong,
    /// A value is not text in UTF-8.
    NotText,
    /// A value is text, but not of the kind that it should be, such as a number.
    BadValue,
    /// A transaction clashed with other changes again and again, or a very large directory changed while it was
    /// listed.
    Contended,
    /// A connection has 128 watches, whose paths have 8192 bytes together. These are taken.
    TooManyWatches,
    /// A watch that has ended: its owner did so, or the daemon refused to set it again.
    Stale,
    /// The daemon broke the protocol; the connection is of no use any more.
    Broken(Violation),
    /// The daemon says that it gave the connection up, with this reason (`XENSTORE_ERROR_*`).
    Disconnected(u32),
    /// The daemon does not offer to make the connection anew.
    NoReconnect,
    /// The connection was to be made, or made anew, and the daemon did not do it in time.
    ReconnectTimedOut,
    /// A device's backend did not come to the state that was waited for; this is the one it was in.
    BackendTimedOut(XenbusState),
    /// A device's backend is closing, closed, or gone.
    BackendGone(XenbusState),
    /// Xen refused.
    Hypercall(Errno),
    /// The event channel does not work.
    Event(xen_evtchn::Error),
}

/// How the daemon broke the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Violation {
    /// An index of the ring is out of range.
    Ring(xen_ring::RingError),
    /// A message longer than any may be, in bytes.
    Length(u32),
    /// An answer of another kind than the question.
    Kind(Operation),
    /// An answer that ends too early or has no meaning.
    Malformed,
}

impl Error {
    /// Whether the node does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused(_, Refusal::NotFound))
    }

    /// Whether the node does not exist or may not be read. While a device is being made, both mean: not yet.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Refused(_, Refusal::NotFound | Refusal::AccessDenied))
    }

    /// Whether a transaction clashed with another change and is to be run again.
    pub fn is_again(&self) -> bool {
        matches!(self, Self::Refused(_, Refusal::Again))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoStore => f.write_str("this domain has no xenstore"),
            Self::NotReady => f.write_str("this domain's xenstore is not there yet; try again"),
            Self::Unreachable(gfn) => write!(f, "xenstore's page at {gfn} cannot be mapped"),
            Self::Refused(operation, refusal) => {
                write!(f, "xenstore refused {}: {refusal}", operation.name())
            }
            Self::TimedOut(operation) => write!(f, "xenstore did not answer {} in time", operation.name()),
            Self::BadPath => f.write_str("not a path of xenstore"),
            Self::TooLong => f.write_str("too long for xenstore"),
            Self::NotText => f.write_str("a value in xenstore is not text"),
            Self::BadValue => f.write_str("a value in xenstore is not what it should be"),
            Self::Contended => f.write_str("a transaction clashed with other changes again and again"),
            Self::TooManyWatches => {
                write!(f, "too many watches (a connection has {WATCHES}, with {PATHS} bytes of paths)")
            }
            Self::Stale => f.write_str("a watch of xenstore that has ended"),
            Self::Broken(violation) => write!(f, "xenstore broke its protocol: {violation}"),
            Self::Disconnected(reason) => write!(f, "xenstore gave the connection up (error {reason})"),
            Self::NoReconnect => f.write_str("xenstore does not offer to make the connection anew"),
            Self::ReconnectTimedOut => f.write_str("xenstore did not make the connection anew in time"),
            Self::BackendTimedOut(state) => write!(f, "the backend stayed {state}"),
            Self::BackendGone(state) => write!(f, "the backend went away ({state})"),
            Self::Hypercall(errno) => write!(f, "xenstore: {errno}"),
            Self::Event(error) => write!(f, "xenstore: {error}"),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring(error) => error.fmt(f),
            Self::Length(len) => write!(f, "a message of {len} bytes"),
            Self::Kind(operation) => write!(f, "an unexpected {}", operation.name()),
            Self::Malformed => f.write_str("a malformed message"),
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
