//! What can go wrong.

use core::fmt;

use xen_hypercall::{Errno, VcpuId};

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
    /// The number is no port of the ABI in use: 1 to 4095, or 1 to 131,071 with FIFO.
    PortOutOfRange(Port),
    /// The domain's event channels have an owner already, or had one that did not [reset](crate::EventChannels::reset) them.
    Claimed,
    /// The domain has been resumed in a new domain since this channel, or this set of channels, was made. Its port is gone,
    /// and the number may be another's now: make a new one.
    Stale,
    /// The port has an owner already: a [`Channel`](crate::Channel) for it exists.
    PortInUse(Port),
    /// Nobody has bound this port, so there is nothing to adopt.
    PortClosed(Port),
    /// There can be no such vCPU: it is not below [`VcpuArea::VCPUS`](xen_hypercall::VcpuArea::VCPUS).
    VcpuOutOfRange(VcpuId),
    /// The vCPU was not [added](crate::EventChannels::add_vcpu), so Xen could not tell it of its events: with the FIFO ABI any
    /// but vCPU 0, with the two-level ABI one that has no place in `shared_info` (32 and up on x86, 1 and up on Arm).
    VcpuNotAdded(VcpuId),
    /// The platform had no page for the records of more ports, or for Xen's words for them.
    OutOfMemory,
    /// Another vCPU, or what this code interrupted, is adding a page of event words and does not come to an end.
    Busy,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hypercall { operation, errno } => write!(f, "{operation} failed: {errno}"),
            Self::PortOutOfRange(port) => {
                write!(f, "{port} is out of range")
            }
            Self::Claimed => f.write_str("the domain's event channels have an owner already"),
            Self::Stale => f.write_str("the event channel is of a life before the domain's last resume"),
            Self::PortInUse(port) => write!(f, "{port} has an owner already"),
            Self::PortClosed(port) => write!(f, "{port} is closed"),
            Self::VcpuOutOfRange(vcpu) => write!(f, "vCPU {} is more than there can be", vcpu.0),
            Self::VcpuNotAdded(vcpu) => {
                write!(f, "vCPU {} cannot be told of events: call add_vcpu before", vcpu.0)
            }
            Self::Busy => f.write_str("event words are being added and do not get finished"),
            Self::OutOfMemory => f.write_str("no memory for event channels"),
        }
    }
}

impl core::error::Error for Error {}
