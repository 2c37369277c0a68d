//! What can be chosen about a backend, and what it tells.

use xen_hypercall::DomId;
use xen_xenstore::mock::Toolstack;

use crate::abi::HashTypes;
use crate::{Mac, Multicast};

/// What kind of device it is, and what its backend can do. By default all that Linux' can.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// The domain that the backend is in.
    pub domain: DomId,
    /// Which toolstack makes the device, and so who owns the directories above it.
    pub toolstack: Toolstack,
    /// The device's address.
    pub mac: Mac,
    /// What the toolstack says the MTU is, if anything.
    pub mtu: Option<u32>,
    /// Frames of several slots (`feature-sg`).
    pub sg: bool,
    /// Large TCP packets in IPv4 (`feature-gso-tcpv4`).
    pub gso_v4: bool,
    /// Large TCP packets in IPv6 (`feature-gso-tcpv6`).
    pub gso_v6: bool,
    /// Blank checksums in IPv4 (not `feature-no-csum-offload`, which Linux does not say).
    pub csum_v4: bool,
    /// Blank checksums in IPv6 (`feature-ipv6-csum-offload`).
    pub csum_v6: bool,
    /// Copying to the guest (`feature-rx-copy`).
    pub rx_copy: bool,
    /// Two event channels for a queue (`feature-split-event-channels`).
    pub split: bool,
    /// What is done about multicast frames (`feature-multicast-control`, `feature-dynamic-multicast-control`).
    pub multicast: Multicast,
    /// A control ring (`feature-ctrl-ring`), and what it allows.
    pub control: Option<ControlLimits>,
    /// Room before frames for the guest (`feature-xdp-headroom`).
    pub headroom: bool,
    /// The most queues (`multi-queue-max-queues`); zero: it does not say.
    pub queues: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            domain: DomId(0),
            toolstack: Toolstack::Xl,
            mac: Mac([0x00, 0x16, 0x3e, 0x12, 0x34, 0x56]),
            mtu: None,
            sg: true,
            gso_v4: true,
            gso_v6: true,
            csum_v4: true,
            csum_v6: true,
            rx_copy: true,
            split: true,
            multicast: Multicast::Dynamic,
            control: Some(ControlLimits::default()),
            headroom: true,
            queues: 4,
        }
    }
}

/// What a control ring allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ControlLimits {
    /// What can be hashed.
    pub types: HashTypes,
    /// The longest key, in bytes.
    pub key: u32,
    /// The longest table from hashes to queues.
    pub mapping: u32,
    /// Pages that are kept mapped for each queue; Linux has none of that.
    pub pages: u32,
}

impl Default for ControlLimits {
    /// As Linux has them, and pages.
    fn default() -> Self {
        Self { types: HashTypes::from_bits_retain(15), key: 40, mapping: 128, pages: 512 }
    }
}

/// What is wrong with a response.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It names this request.
    Id(u16),
    /// This is its status: an error, or the length of what was received.
    Status(i16),
    /// The frame is at this place of the page. For frames received.
    Offset(u16),
    /// These are its flags. For frames received.
    Flags(u16),
    /// It does not come: the request stays unanswered.
    Missing,
    /// It comes twice, if there is another request whose answer it takes the place of.
    Twice,
    /// After it the ring's producer index is ahead by so much more.
    Index(u32),
}

/// What passed through a backend.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BackStats {
    /// Frames from the guest.
    pub from_guest: u64,
    /// Slots in which they were.
    pub slots_from_guest: u64,
    /// Of these frames, the ones with blank checksums.
    pub blank_from_guest: u64,
    /// Of these frames, the ones to be cut.
    pub gso_from_guest: u64,
    /// Frames to the guest.
    pub to_guest: u64,
    /// Slots in which they were.
    pub slots_to_guest: u64,
    /// Of these frames, the ones with blank checksums.
    pub blank_to_guest: u64,
    /// Of these frames, the ones to be cut.
    pub gso_to_guest: u64,
    /// Frames that the guest cannot take, in one piece or several.
    pub undeliverable: u64,
    /// Multicast frames that the guest does not want.
    pub filtered: u64,
    /// Events received from the guest.
    pub events: u64,
    /// Events sent to the guest.
    pub notifications: u64,
}
