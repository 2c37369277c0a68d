//! What is left to be done after a device began anew.

use xen_hypercall::Platform;

use crate::NetFront;

bitflags::bitflags! {
    /// What the owner of a device is to do after its backend began anew, since the device cannot:
    /// [`NetFront::take_followup`].
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Followup: u8 {
        /// The network may look for the guest where it was before. The stack announces itself, by a gratuitous ARP and an
        /// unsolicited neighbour advertisement.
        const ANNOUNCE = 1 << 0;
        /// What was set by the [control ring](NetFront::control) is gone: hashing, and the pages that the backend kept mapped.
        const CONTROL = 1 << 1;
        /// Not all of the multicast addresses could be [asked for](NetFront::want_multicast) again.
        const MULTICAST = 1 << 2;
    }
}

impl<P: Platform, const QUEUES: usize> NetFront<'_, P, QUEUES> {
    /// Returns what is to be done since the last call. To be asked after [`service`](Self::service) and
    /// [`reconnect`](Self::reconnect).
    pub fn take_followup(&mut self) -> Followup {
        core::mem::take(&mut self.followup)
    }
}
