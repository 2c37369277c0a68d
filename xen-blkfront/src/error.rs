//! What can go wrong with a disk.

use core::fmt;

use xen_ring::RingError;

/// Why a disk did not do what it was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The domain has no disk.
    NoDevice,
    /// There is no queue of this number to be taken, or to be put back here.
    Queue(u32),
    /// Queues of the disk were taken, and neither put back nor dropped.
    QueuesTaken,
    /// Xenstore, or the handshake by it.
    Xenstore(xen_xenstore::Error),
    /// No page, or no grant for it.
    Grant(xen_gnttab::Error),
    /// The event channel does not work.
    Event(xen_evtchn::Error),
    /// The backend's value of this node makes no sense.
    BadNode(&'static str),
    /// The backend broke the protocol; the disk is of no use any more.
    Broken(Violation),
    /// The toolstack or the backend ends the disk, or has ended it; see [`BlkFront::state`](crate::BlkFront::state).
    Closed,
    /// Writes that were answered before the disk was [reconnected](crate::BlkFront::reconnect) were not flushed, and may
    /// be gone with the earlier backend. One flush or barrier returns it; the next covers what was written since.
    Lost,
    /// The disk cannot be written.
    ReadOnly,
    /// Beyond the end of the disk.
    OutOfRange,
    /// Nothing at all, or not whole sectors of the disk ([`sector_size`](crate::BlkFront::sector_size)), or of what can be
    /// erased at once.
    Unaligned,
    /// Too much for one operation; see [`max_sectors`](crate::BlkFront::max_sectors).
    TooLong,
    /// The buffer does not have the length of what was read.
    BufferLength,
    /// As many operations are under way as there can be, or their pages are all that there are.
    Busy,
    /// A page that was to be lent to the disk is not there, or not granted to its backend for reading and writing.
    ForeignPage,
    /// The toolstack says that the backend is not to be trusted with pages other than the disk's own (`trusted`).
    Untrusted,
    /// The ticket's result was taken already, or it is another disk's.
    StaleTicket,
    /// The backend did not answer in time. What it was asked may still happen.
    TimedOut,
    /// The backend could not do it (`BLKIF_RSP_ERROR`).
    Io,
    /// The backend does not do that (`BLKIF_RSP_EOPNOTSUPP`).
    Unsupported,
    /// The backend answered with a status that the protocol does not know.
    Status(i16),
}

/// How the backend broke the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Violation {
    /// An index of the ring is out of range.
    Ring(RingError),
    /// A response to no request that is under way: an invented number, or a second response.
    Id(u64),
    /// A response that names another operation than its request.
    Operation {
        /// The request's.
        asked: u8,
        /// The response's.
        answered: u8,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDevice => f.write_str("this domain has no disk"),
            Self::Queue(queue) => write!(f, "the disk has no queue {queue} to be taken or put back"),
            Self::QueuesTaken => f.write_str("queues of the disk were taken and are not back"),
            Self::Xenstore(error) => write!(f, "disk: {error}"),
            Self::Grant(error) => write!(f, "disk: {error}"),
            Self::Event(error) => write!(f, "disk: {error}"),
            Self::BadNode(node) => write!(f, "the disk's backend has a bad value in {node}"),
            Self::Broken(violation) => write!(f, "the disk's backend broke the protocol: {violation}"),
            Self::Closed => f.write_str("the disk's backend is closing or gone"),
            Self::Lost => {
                f.write_str("writes that were not flushed may be gone with the disk's earlier backend")
            }
            Self::ReadOnly => f.write_str("the disk is read-only"),
            Self::OutOfRange => f.write_str("beyond the end of the disk"),
            Self::Unaligned => f.write_str("not whole sectors of the disk"),
            Self::TooLong => f.write_str("too long for one operation"),
            Self::BufferLength => f.write_str("the buffer has another length than the request"),
            Self::Busy => f.write_str("as many requests are under way as there can be"),
            Self::ForeignPage => f.write_str("a page that is not granted to the disk's backend"),
            Self::Untrusted => {
                f.write_str("the disk's backend is not trusted with other pages than the disk's own")
            }
            Self::StaleTicket => f.write_str("no request of this ticket"),
            Self::TimedOut => f.write_str("the disk's backend did not answer in time"),
            Self::Io => f.write_str("the disk failed"),
            Self::Unsupported => f.write_str("the disk's backend does not do that"),
            Self::Status(status) => write!(f, "the disk's backend answered with status {status}"),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring(error) => error.fmt(f),
            Self::Id(id) => write!(f, "response to no request ({id:#x})"),
            Self::Operation { asked, answered } => write!(f, "response to operation {answered}, not {asked}"),
        }
    }
}

impl core::error::Error for Error {}

impl From<xen_xenstore::Error> for Error {
    fn from(error: xen_xenstore::Error) -> Self {
        Self::Xenstore(error)
    }
}

impl From<xen_gnttab::Error> for Error {
    fn from(error: xen_gnttab::Error) -> Self {
        Self::Grant(error)
    }
}

impl From<xen_evtchn::Error> for Error {
    fn from(error: xen_evtchn::Error) -> Self {
        Self::Event(error)
    }
}
