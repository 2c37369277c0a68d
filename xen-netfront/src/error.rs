//! What can go wrong with a network device.

use core::fmt;

/// Why the device did not do what it was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The handshake by xenstore failed, or there is no such device.
    Store(xen_xenstore::Error),
    /// No page, or no reference, to share.
    Grant(xen_gnttab::Error),
    /// The event channel does not work.
    Event(xen_evtchn::Error),
    /// The backend cannot copy what it receives into our pages (`feature-rx-copy`).
    NoRxCopy,
    /// The toolstack gave the device no address that is one.
    NoMac,
    /// Every page for sending is with the backend; some come back.
    Full,
    /// A frame is empty, or longer than [`FRAME_MAX`](crate::FRAME_MAX), or than the caller's buffer.
    Length(usize),
    /// The backend is closing, or gone.
    Closed,
    /// The backend broke the protocol; the device is of no use any more.
    Broken(Violation),
}

/// How the backend broke the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Violation {
    /// An index of a ring is out of range.
    Ring(xen_ring::RingError),
    /// A response to a request that was not made, or was answered already.
    Id(u16),
    /// A frame that does not lie in its page: offset and length in bytes.
    Outside(u16, i16),
    /// Something that was not agreed on, by the flags of a response.
    Flags(u16),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(error) => error.fmt(f),
            Self::Grant(error) => error.fmt(f),
            Self::Event(error) => error.fmt(f),
            Self::NoRxCopy => f.write_str("the network backend cannot copy to the guest (feature-rx-copy)"),
            Self::NoMac => f.write_str("the network device has no hardware address in xenstore"),
            Self::Full => f.write_str("all pages for sending are in use"),
            Self::Length(len) => write!(f, "a frame of {len} bytes"),
            Self::Closed => f.write_str("the network backend is gone"),
            Self::Broken(violation) => write!(f, "the network backend broke the protocol: {violation}"),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring(error) => error.fmt(f),
            Self::Id(id) => write!(f, "a response to request {id}, which it does not have"),
            Self::Outside(offset, len) => write!(f, "a frame of {len} bytes at {offset} of a page"),
            Self::Flags(flags) => write!(f, "a response with flags {flags:#x}"),
        }
    }
}

impl core::error::Error for Error {}

impl From<xen_xenstore::Error> for Error {
    fn from(error: xen_xenstore::Error) -> Self {
        Self::Store(error)
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
