//! What can be agreed on, and what of it a guest wants.

bitflags::bitflags! {
    /// Parts of the protocol that each side can do without (`io/netif.h`).
    ///
    /// The two directions are agreed on apart: what the backend takes, and what the guest takes.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Features: u16 {
        /// Frames of several slots, and so of more than a page (`feature-sg`).
        const SCATTER_GATHER = 1 << 0;
        /// Blank checksums of TCP and UDP in IPv4 (not `feature-no-csum-offload`).
        const CHECKSUM_V4 = 1 << 1;
        /// Blank checksums of TCP and UDP in IPv6 (`feature-ipv6-csum-offload`).
        const CHECKSUM_V6 = 1 << 2;
        /// Large TCP packets in IPv4, to be cut later (`feature-gso-tcpv4`). Needs `SCATTER_GATHER` and `CHECKSUM_V4`.
        const GSO_V4 = 1 << 3;
        /// Large TCP packets in IPv6, to be cut later (`feature-gso-tcpv6`). Needs `SCATTER_GATHER` and `CHECKSUM_V6`.
        const GSO_V6 = 1 << 4;
    }
}

impl Features {
    /// Without those that need others which are not there.
    pub(crate) fn consistent(mut self) -> Self {
        for (gso, checksum) in [(Self::GSO_V4, Self::CHECKSUM_V4), (Self::GSO_V6, Self::CHECKSUM_V6)] {
            if !self.contains(checksum | Self::SCATTER_GATHER) {
                self.remove(gso);
            }
        }
        self
    }
}

/// The nodes of [`Features`], and whether they say that it is there or that it is not.
pub(crate) const NODES: [(&str, Features, bool); 5] = [
    ("feature-sg", Features::SCATTER_GATHER, true),
    ("feature-no-csum-offload", Features::CHECKSUM_V4, false),
    ("feature-ipv6-csum-offload", Features::CHECKSUM_V6, true),
    ("feature-gso-tcpv4", Features::GSO_V4, true),
    ("feature-gso-tcpv6", Features::GSO_V6, true),
];

/// What can be chosen about a network device. Made from the default, `Config { queues: 2, ..Config::default() }`: a minor
/// version may add fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// What is used towards the backend, as far as it takes it. All by default.
    pub send: Features,
    /// What the backend may use towards us. None by default: then every frame that arrives has its checksum, and
    /// is not longer than the MTU allows. With `SCATTER_GATHER` a frame may have up to
    /// [`FRAME_MAX`](crate::FRAME_MAX) bytes.
    pub receive: Features,
    /// Pages for sending, for each queue: 1 to 256, and at least 17 to send frames of several slots.
    pub tx_pages: usize,
    /// Pages for receiving, for each queue: a power of two from 1 to 256, otherwise the next below; at least 32 for
    /// frames of several slots.
    pub rx_pages: usize,
    /// How many queues are wanted: at most as many as the type has room for, and the backend takes
    /// (`multi-queue-max-queues`); fewer when memory, grant references or event channels do not suffice.
    pub queues: usize,
    /// Whether the backend is to drop multicast frames but those that
    /// [`want_multicast`](crate::NetFront::want_multicast) names, if it can (`request-multicast-control`).
    pub multicast_filter: bool,
    /// Whether to have a control ring, if the backend has one (`feature-ctrl-ring`).
    pub control_ring: bool,
    /// Bytes that are to be free before each frame that arrives, if the backend can (`xdp-headroom`): for
    /// [`receive_pages`](crate::NetFront::receive_pages), to put something before it. At most 2048.
    /// Linux' backend leaves it in every slot of a frame, but does not count it when it looks for free pages: do not let it
    /// send large frames then, or have many pages for receiving.
    pub headroom: u16,
    /// Whether to wait for a device that is not there, or whose nodes the toolstack is still writing. Those that the domain
    /// was made with are there from the beginning; one that is not is an error at once then
    /// ([`is_not_found`](xen_xenstore::Error::is_not_found)).
    pub await_device: bool,
    /// Whether to follow what the backend and the toolstack say of the link
    /// ([`is_link_up`](crate::NetFront::is_link_up)), which takes two watches and two trips to xenstore. A link that is not
    /// followed counts as up.
    pub follow_link: bool,
    /// Whether to use an event channel for each direction (`feature-split-event-channels`), so that two tasks may
    /// wait, each for its own.
    pub split_channels: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            send: Features::all(),
            receive: Features::empty(),
            tx_pages: 256,
            rx_pages: 256,
            queues: usize::MAX,
            multicast_filter: false,
            control_ring: false,
            headroom: 0,
            await_device: true,
            follow_link: true,
            split_channels: false,
        }
    }
}
