//! What Xen and the guest share of event channels apart from `shared_info`, under the names of Xen's `event_channel.h`.

/// Highest priority: taken before all others.
pub const EVTCHN_FIFO_PRIORITY_MAX: u32 = 0;
/// Priority of a port that was not given another.
pub const EVTCHN_FIFO_PRIORITY_DEFAULT: u32 = 7;
/// Lowest priority.
pub const EVTCHN_FIFO_PRIORITY_MIN: u32 = 15;
/// Queues of each vCPU, one for each priority.
pub const EVTCHN_FIFO_MAX_QUEUES: usize = 16;

/// `event_word_t`, bit number: an event came. Set by Xen, cleared by the guest before it handles the event.
pub const EVTCHN_FIFO_PENDING: u32 = 31;
/// Bit number: Xen does not put the port in a queue. The guest's; Xen clears it in `EVTCHNOP_unmask`.
pub const EVTCHN_FIFO_MASKED: u32 = 30;
/// Bit number: the port is in a queue. Set by Xen, cleared by the guest as it takes the port out.
pub const EVTCHN_FIFO_LINKED: u32 = 29;
/// Bit number: Xen is changing the link; the guest does not clear MASKED meanwhile.
pub const EVTCHN_FIFO_BUSY: u32 = 28;
/// How many of the lowest bits name the next port in the queue; 0 there ends it.
pub const EVTCHN_FIFO_LINK_BITS: u32 = 17;
/// Those bits.
pub const EVTCHN_FIFO_LINK_MASK: u32 = (1 << EVTCHN_FIFO_LINK_BITS) - 1;
/// How many ports there can be, port 0 included, which is never used.
pub const EVTCHN_FIFO_NR_CHANNELS: u32 = 1 << EVTCHN_FIFO_LINK_BITS;
/// How many ports the two-level ABI has on a 64-bit guest, port 0 included.
pub const EVTCHN_2L_NR_CHANNELS: u32 = 4096;

/// A vCPU's queues (`struct evtchn_fifo_control_block`), 72 bytes. Shared with Xen, so only reached by atomics.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvtchnFifoControlBlock {
    /// A bit for each queue that Xen put a first port into. Set by Xen, cleared by the guest.
    pub ready: u32,
    /// Not used.
    pub rsvd: u32,
    /// The first port of each queue, where its ready bit is set. Written by Xen.
    pub head: [u32; EVTCHN_FIFO_MAX_QUEUES],
}
