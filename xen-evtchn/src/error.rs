//! What can go wrong.

use core::fmt;

use xen_hypercall::Errno;

use crate::Port;

/// Why an event channel operation failed.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// Xen refused an operation.
    Hypercall {
        /// The operation under Xen's name, such as `"EVTCHNOP_send"`.
        operation: &'static str,
        /// Xen's reason.
        errno: Errno,
    },
    /// The number is no port of the two-level ABI (`1..4096`).
    PortOutOfRange(Port),
    /// The port has an owner already: a [`Channel`](crate::Channel) for it exists.
    PortInUse(Port),
    /// Nobody has bound this port, so there is nothing to adopt.
    PortClosed(Port),
    /// The platform had no page for the records of another 64 ports.
    OutOfMemory,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hypercall { operation, errno } => write!(f, "{operation} failed: {errno}"),
            Self::PortOutOfRange(port) => {
                write!(f, "{port} is not in the range of the two-level ABI (1 to 4095)")
            }
            Self::PortInUse(port) => write!(f, "{port} has an owner already"),
            Self::PortClosed(port) => write!(f, "{port} is closed"),
            Self::OutOfMemory => f.write_str("no memory for event channel records"),
        }
    }
}

impl core::error::Error for Error {}
