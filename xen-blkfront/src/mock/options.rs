//! What kind of disk the mock is.

use xen_hypercall::DomId;
use xen_xenstore::mock::Toolstack;

use crate::abi::SECTOR;

/// What kind of disk it is, and what its backend offers. The default is a small disk whose backend offers what Linux's
/// offers for most disks, with one queue and a ring of one page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// The domain that serves the disk.
    pub domain: DomId,
    /// Which toolstack makes the disk, and so who owns the directories above it.
    pub toolstack: Toolstack,
    /// Size, in units of 512 bytes.
    pub sectors: u64,
    /// The disk's own sectors, in bytes; requests for parts of one fail.
    pub sector_size: u32,
    /// What the medium writes at once, in bytes; none: not told.
    pub physical_sector_size: Option<u32>,
    /// Whether writes fail, and whether the disk says so.
    pub read_only: bool,
    /// Whether it says that it is a CD-ROM drive.
    pub cdrom: bool,
    /// Whether it says that its medium can be changed.
    pub removable: bool,
    /// Whether it offers flushes.
    pub flush: bool,
    /// Whether it offers barriers.
    pub barrier: bool,
    /// Whether it offers discards, and which.
    pub discard: Option<Discard>,
    /// Whether it keeps pages mapped for a guest that says the same, and says so.
    pub persistent: bool,
    /// How many pages it keeps mapped at most; the one not used for longest goes.
    pub persistent_limit: usize,
    /// Most segments of an indirect request; none: it does not know them.
    pub indirect_segments: Option<u16>,
    /// `max-ring-page-order`: the newer of the two ways to offer rings of several pages; none: not offered so.
    pub max_ring_page_order: Option<u32>,
    /// `max-ring-pages`: the older way.
    pub max_ring_pages: Option<u32>,
    /// Most queues; none: not told, so one.
    pub max_queues: Option<u32>,
    /// Whether writes stay in a cache that a loss of power empties, until a flush; see
    /// [`power_loss`](super::MockBlkback::power_loss).
    pub volatile_cache: bool,
    /// In which order requests are served and answered.
    pub order: Order,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            domain: DomId(0),
            toolstack: Toolstack::Xl,
            sectors: 2048,
            sector_size: SECTOR as u32,
            physical_sector_size: None,
            read_only: false,
            cdrom: false,
            removable: false,
            flush: true,
            barrier: false,
            discard: None,
            persistent: true,
            persistent_limit: 1056,
            indirect_segments: Some(256),
            max_ring_page_order: None,
            max_ring_pages: None,
            max_queues: None,
            volatile_cache: false,
            order: Order::Sent,
        }
    }
}

impl Options {
    /// A backend that offers nothing that it need not.
    pub fn plain() -> Self {
        Self { flush: false, persistent: false, indirect_segments: None, ..Self::default() }
    }

    /// A backend that offers everything.
    pub fn everything() -> Self {
        Self {
            physical_sector_size: Some(4096),
            barrier: true,
            discard: Some(Discard::default()),
            max_ring_page_order: Some(4),
            max_ring_pages: Some(16),
            max_queues: Some(4),
            volatile_cache: true,
            ..Self::default()
        }
    }
}

/// Which discards a disk offers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Discard {
    /// The size of what can be discarded at once, in bytes; none: not told, so a sector.
    pub granularity: Option<u32>,
    /// Where the first such extent begins, in bytes; none: not told, so at the disk's beginning.
    pub alignment: Option<u32>,
    /// Whether it can make sure that nothing is left.
    pub secure: bool,
}

impl Default for Discard {
    fn default() -> Self {
        Self { granularity: Some(4096), alignment: Some(0), secure: true }
    }
}

/// In which order requests are served and answered. A barrier's place is kept in each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// As they were sent.
    Sent,
    /// The last first.
    Reversed,
    /// Any, some of them later than others; the same every time for the same number.
    Shuffled(u64),
}
