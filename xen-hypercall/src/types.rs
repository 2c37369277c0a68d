//! The words that every Xen interface shares.

use core::fmt;

/// Bytes in a page. Xen's interfaces share memory in 4 KiB pages on every architecture.
pub const PAGE_SIZE: usize = 4096;

/// The type of a page's memory, used behind `NonNull` only: what lies in a page may be shared with another
/// domain, and then no reference to it can exist.
#[repr(C, align(4096))]
pub struct Page([u8; PAGE_SIZE]);

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Page")
    }
}

/// A domain's number (`domid_t` of `xen.h`). Numbers from 0x7FF0 up have special meanings.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct DomId(pub u16);

impl DomId {
    /// The first number that is no ordinary domain.
    pub const FIRST_RESERVED: Self = Self(0x7FF0);
    /// The calling domain itself (`DOMID_SELF`).
    pub const SELF: Self = Self(0x7FF0);
    /// Memory-mapped I/O pages, in calls that name an owner of memory (`DOMID_IO`).
    pub const IO: Self = Self(0x7FF1);
    /// Pages of Xen itself (`DOMID_XEN`).
    pub const XEN: Self = Self(0x7FF2);
    /// The owner of shared copy-on-write pages (`DOMID_COW`).
    pub const COW: Self = Self(0x7FF3);
    /// No domain (`DOMID_INVALID`).
    pub const INVALID: Self = Self(0x7FF4);
    /// Any domain, or one that Xen chooses (`DOMID_ANY`). Since Xen 4.22.
    pub const ANY: Self = Self(0x7FF5);
    /// The idle domain (`DOMID_IDLE`).
    pub const IDLE: Self = Self(0x7FFF);
}

impl fmt::Display for DomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::SELF => f.write_str("DOMID_SELF"),
            Self(id) => write!(f, "d{id}"),
        }
    }
}

/// The number of a page frame as the calling guest counts them (`xen_pfn_t` of a guest whose memory Xen
/// translates, which HVM and PVH guests are). The address in bytes is the number times [`PAGE_SIZE`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct Gfn(pub u64);

impl fmt::Display for Gfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gfn {:#x}", self.0)
    }
}

/// The number of one of a domain's virtual processors; the first is 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct VcpuId(pub u32);

/// The number of a hypercall (`__HYPERVISOR_*` of `xen.h`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct HypercallNr(pub usize);

macro_rules! numbers {
    ($($(#[$doc:meta])* $name:ident = $nr:literal;)*) => {
        impl HypercallNr {
            $($(#[$doc])* pub const $name: Self = Self($nr);)*

            /// Xen's name for the call, without its prefix.
            pub const fn name(self) -> &'static str {
                match self.0 {
                    $($nr => stringify!($name),)*
                    _ => "unknown",
                }
            }
        }
    };
}

numbers! {
    /// Memory layout, [`memory`](crate::memory).
    MEMORY_OP = 12;
    /// Several calls in one, [`multicall`](crate::multicall).
    MULTICALL = 13;
    /// One timer for the calling vCPU, [`vcpu::set_timer`](crate::vcpu::set_timer).
    SET_TIMER_OP = 15;
    /// What Xen this is, [`version`](crate::version).
    XEN_VERSION = 17;
    /// Xen's own console, [`console_io`](crate::console_io).
    CONSOLE_IO = 18;
    /// Grant tables, [`grant`](crate::grant).
    GRANT_TABLE_OP = 20;
    /// Optional behaviours, [`assist`](crate::assist).
    VM_ASSIST = 21;
    /// Virtual processors, [`vcpu`](crate::vcpu).
    VCPU_OP = 24;
    /// Scheduling, [`sched`](crate::sched).
    SCHED_OP = 29;
    /// Event channels, [`event`](crate::event).
    EVENT_CHANNEL_OP = 32;
    /// Interrupts of devices, [`physdev`](crate::physdev).
    PHYSDEV_OP = 33;
    /// What only HVM and PVH guests have, [`hvm`](crate::hvm).
    HVM_OP = 34;
}

impl fmt::Debug for HypercallNr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.name(), self.0)
    }
}
