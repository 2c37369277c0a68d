//! What can be done with a device, and where.

use std::string::String;
use std::vec::Vec;

use xen_evtchn::EventChannels;
use xen_gnttab::GrantTable;
use xen_hypercall::Domain;
use xen_hypercall::mock::{MockDomain, MockXen};
use xen_xenstore::mock::MockXenstored;

#[cfg(doc)]
use crate::NetFront;
use crate::mock::{Fault, MockNetback, MockSwitch};

/// A guest with a network device.
#[derive(Clone, Copy)]
pub struct Place<'m> {
    /// The machine.
    pub xen: &'m MockXen,
    /// The guest.
    pub guest: &'m MockDomain,
    /// Its xenstore daemon.
    pub store: &'m MockXenstored,
    /// What its device is at.
    pub switch: &'m MockSwitch,
    /// The device's backend.
    pub back: &'m MockNetback,
    /// The guest's token.
    pub token: &'m Domain<MockDomain>,
    /// The guest's event channels.
    pub events: &'m EventChannels<MockDomain>,
    /// The guest's grant table.
    pub grants: &'m GrantTable<MockDomain>,
}

impl core::fmt::Debug for Place<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Place")
    }
}

/// What happens next.
#[derive(Clone, PartialEq, Debug)]
pub enum Op {
    /// The guest sends a frame with so much payload: to be cut into segments of so much, or not at all.
    Transmit {
        /// In IPv6.
        v6: bool,
        /// Bytes.
        len: usize,
        /// Bytes of each segment.
        cut: Option<u16>,
    },
    /// It sends one from pages of its own.
    TransmitPages {
        /// Bytes of payload, 9000 at most.
        len: usize,
    },
    /// It sends bytes that are no frame, with any claim about them.
    TransmitAnything {
        /// The bytes.
        bytes: Vec<u8>,
        /// Whether the checksum is blank.
        blank: bool,
        /// Bytes of each segment.
        cut: Option<u16>,
    },
    /// The host sends some.
    Host {
        /// In IPv6.
        v6: bool,
        /// Bytes of payload.
        len: usize,
        /// Bytes of each segment.
        cut: Option<u16>,
        /// How many.
        times: usize,
    },
    /// The guest receives so many, as far as there are.
    Receive {
        /// How many.
        times: usize,
    },
    /// It receives one into a buffer of so many bytes.
    ReceiveShort {
        /// Bytes.
        room: usize,
    },
    /// It receives one into pages of its own.
    ReceivePages,
    /// [`NetFront::publish`].
    Publish,
    /// [`NetFront::arm`].
    Arm,
    /// The far sides act.
    Run,
    /// [`NetFront::service`].
    Service,
    /// [`NetFront::reconnect`].
    Reconnect,
    /// The guest wants a multicast address, or no more.
    Multicast {
        /// Its last byte.
        number: u8,
        /// Whether it is wanted.
        wanted: bool,
    },
    /// [`MockNetback::stall`].
    Stall(bool),
    /// [`MockNetback::hold`].
    Hold(bool),
    /// [`MockNetback::detach`].
    Detach,
    /// [`MockNetback::close`].
    Close,
    /// [`MockNetback::vanish`].
    Vanish,
    /// [`MockNetback::come_back`].
    ComeBack,
    /// [`MockNetback::restart`].
    Restart,
    /// The guest is suspended, and goes on in a new domain or where it was.
    Suspend {
        /// In a new domain.
        migrate: bool,
    },
    /// [`MockNetback::force_detach`].
    ForceDetach,
    /// The next response to a frame that was sent, or with one received, is wrong.
    Spoil {
        /// To one that was sent.
        tx: bool,
        /// How.
        fault: Fault,
    },
    /// A node of the backend says something else: at once, or when it is written next.
    Say {
        /// Which, of [`NODES`].
        node: usize,
        /// What; none: it is not there.
        value: Option<String>,
        /// When it is written next.
        next: bool,
    },
    /// The toolstack changes a node in the guest's directory.
    SayFront {
        /// Which, of [`FRONT_NODES`].
        node: usize,
        /// What; none: it is not there.
        value: Option<String>,
    },
    /// The backend writes into a ring.
    Poke {
        /// That of frames to send.
        tx: bool,
        /// Of which queue.
        queue: usize,
        /// Where, in bytes.
        offset: usize,
        /// What.
        bytes: [u8; 4],
    },
}

/// Nodes of the backend that it may say anything in.
pub const NODES: [&str; 11] = [
    "state",
    "feature-rx-copy",
    "feature-sg",
    "feature-gso-tcpv4",
    "feature-no-csum-offload",
    "feature-ctrl-ring",
    "multi-queue-max-queues",
    "mac",
    "mtu",
    "feature-multicast-control",
    "carrier",
];

/// Nodes in the guest's directory that the toolstack may change.
pub const FRONT_NODES: [&str; 6] = ["backend", "backend-id", "state", "mac", "mtu", "trusted"];
