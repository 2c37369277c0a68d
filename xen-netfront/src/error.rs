//! What can go wrong with a network device.

use core::fmt;

use crate::Features;

/// Why the device did not do what it was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The handshake by xenstore failed, or there is no such device.
    Xenstore(xen_xenstore::Error),
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
    /// A frame of so many bytes is shorter than an Ethernet header, or longer than the backend takes: a page, or
    /// [`FRAME_MAX`](crate::FRAME_MAX) with [`Features::SCATTER_GATHER`].
    Length(usize),
    /// A frame whose checksum is to be made, or which is to be cut, has headers that do not allow that.
    Headers,
    /// The backend does not take this.
    NotOffered(Features),
    /// A page of a frame is granted to another domain than the backend, or not as it must be.
    Page,
    /// The backend has no list of multicast addresses, or cannot change what it does about them while connected.
    NoMulticast,
    /// More multicast addresses than [`GROUPS`](crate::GROUPS).
    TooManyGroups,
    /// There is no such queue.
    Queue(u32),
    /// The backend did not answer a question of the control ring in time.
    TimedOut,
    /// The backend refused a question of this kind (`XEN_NETIF_CTRL_TYPE_*`) with this status
    /// (`XEN_NETIF_CTRL_STATUS_*`).
    Refused(u16, u32),
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
    /// A frame of several slots, which was not agreed on, by the flags of a response.
    Flags(u16),
    /// Extra information of this kind (`XEN_NETIF_EXTRA_TYPE_*`), which was not agreed on or makes no sense.
    Extra(u8),
    /// More responses that mean nothing (`NETIF_RSP_NULL`) than there were slots for them.
    Null,
    /// A frame whose slots are not all there.
    Unfinished,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Xenstore(error) => error.fmt(f),
            Self::Grant(error) => error.fmt(f),
            Self::Event(error) => error.fmt(f),
            Self::NoRxCopy => f.write_str("the network backend cannot copy to the guest (feature-rx-copy)"),
            Self::NoMac => f.write_str("the network device has no hardware address in xenstore"),
            Self::Full => f.write_str("all pages for sending are in use"),
            Self::Length(len) => write!(f, "a frame of {len} bytes"),
            Self::Headers => {
                f.write_str("a frame that is neither TCP nor UDP, or not of the kind it is said to be")
            }
            Self::NotOffered(features) => write!(f, "the network backend does not take {features:?}"),
            Self::Page => f.write_str("a page of a frame is not granted to the network backend"),
            Self::NoMulticast => f.write_str("the network backend does not filter multicast frames"),
            Self::TooManyGroups => write!(f, "more than {} multicast addresses", crate::GROUPS),
            Self::Queue(queue) => write!(f, "there is no queue {queue}"),
            Self::TimedOut => f.write_str("the network backend did not answer in time"),
            Self::Refused(kind, status) => {
                write!(f, "the network backend refused control request {kind} with status {status}")
            }
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
            Self::Extra(kind) => write!(f, "extra information of kind {kind}"),
            Self::Null => f.write_str("a response to nothing"),
            Self::Unfinished => f.write_str("a frame without its end"),
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
