//! Names of event channels and of what they can be bound to.

use core::fmt;

use crate::abi::{
    EVTCHN_2L_NR_CHANNELS, EVTCHN_FIFO_NR_CHANNELS, EVTCHN_FIFO_PRIORITY_DEFAULT, EVTCHN_FIFO_PRIORITY_MAX,
    EVTCHN_FIFO_PRIORITY_MIN,
};

/// A guest's end of an event channel: an index that Xen hands out, private to the domain.
///
/// Ports run from 1 to 4095 with the two-level ABI and to 131,071 with the FIFO ABI, less where the toolstack set a limit
/// (`event_channels` in xl.cfg, 1023 if nothing is said). Xen keeps port 0 for itself, so 0 never names a channel
/// (`evtchn_port_t` in Xen's `event_channel.h`).
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Port(pub u32);

impl Port {
    /// How many ports the two-level ABI knows on a 64-bit guest (`EVTCHN_2L_NR_CHANNELS`).
    pub const LIMIT: u32 = EVTCHN_2L_NR_CHANNELS;
    /// How many ports the FIFO ABI knows (`EVTCHN_FIFO_NR_CHANNELS`).
    pub const FIFO_LIMIT: u32 = EVTCHN_FIFO_NR_CHANNELS;
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "port {}", self.0)
    }
}

/// How urgent a port's events are: those of a lower number are taken first. The FIFO ABI alone has priorities.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Priority(pub u8);

impl Priority {
    /// Taken before all others (`EVTCHN_FIFO_PRIORITY_MAX`).
    pub const HIGHEST: Self = Self(EVTCHN_FIFO_PRIORITY_MAX as u8);
    /// What a port has at first (`EVTCHN_FIFO_PRIORITY_DEFAULT`).
    pub const DEFAULT: Self = Self(EVTCHN_FIFO_PRIORITY_DEFAULT as u8);
    /// Taken after all others (`EVTCHN_FIFO_PRIORITY_MIN`).
    pub const LOWEST: Self = Self(EVTCHN_FIFO_PRIORITY_MIN as u8);
}

impl Default for Priority {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// A virtual interrupt that Xen itself raises (`VIRQ_*` in Xen's `xen.h`).
///
/// Per-vCPU ones can be bound once on each vCPU; global ones once per domain, on vCPU 0. Those marked "dom0" can be
/// bound by any domain but are delivered to the privileged one alone.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Virq(pub u32);

impl Virq {
    /// Per vCPU: the timer set with `VCPUOP_set_singleshot_timer` or `set_timer_op` expired.
    pub const TIMER: Self = Self(0);
    /// Per vCPU: the administrator asks the guest to print debugging information (`xl debug-keys q`).
    pub const DEBUG: Self = Self(1);
    /// Global, dom0: input on the emergency console.
    pub const CONSOLE: Self = Self(2);
    /// Global, dom0: a domain died, crashed or was paused.
    pub const DOM_EXC: Self = Self(3);
    /// Global, dom0: the trace buffer has records.
    pub const TBUF: Self = Self(4);
    /// Global, dom0: a domain was paused for its debugger.
    pub const DEBUGGER: Self = Self(6);
    /// Per vCPU: the profiler has a sample.
    pub const XENOPROF: Self = Self(7);
    /// Global, dom0: output in Xen's console ring.
    pub const CON_RING: Self = Self(8);
    /// Global, dom0: a physical CPU went on or off line.
    pub const PCPU_STATE: Self = Self(9);
    /// Global, dom0: a memory event occurred.
    pub const MEM_EVENT: Self = Self(10);
    /// Global: an Argo message arrived for this domain.
    pub const ARGO: Self = Self(11);
    /// Global, dom0: Xen's heap is nearly empty.
    pub const ENOMEM: Self = Self(12);
    /// Per vCPU: a performance counter interrupt.
    pub const XENPMU: Self = Self(13);
    /// How many numbers Xen knows, the architecture's own (16 to 23) included (`NR_VIRQS`).
    pub const COUNT: u32 = 24;
}
