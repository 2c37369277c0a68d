//! The protocol: the guest says that it lives, the monitor says when it wants to hear it next.

use core::time::Duration;

use xen_ring::Protocol;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The guest lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Beat {
    /// Counted through from 1, wrapping.
    pub id: u32,
    /// For how long, in milliseconds, wrapping.
    pub uptime: u32,
}

/// The monitor heard it. Beats are answered in their order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Reply {
    /// The beat's.
    pub id: u32,
    /// When the next is due, in milliseconds from now: from [`SOONEST`] to [`LATEST`].
    pub next: u32,
}

/// The least time between two beats that a monitor may want.
pub const SOONEST: Duration = Duration::from_millis(10);
/// The most.
pub const LATEST: Duration = Duration::from_secs(60);

/// The ring of beats.
#[derive(Debug)]
pub struct Heartbeat;

impl Protocol for Heartbeat {
    type Request = Beat;
    type Response = Reply;
}
