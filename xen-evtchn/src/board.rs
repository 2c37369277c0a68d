//! The bits in the real shared page, as [`Board`] wants them.

use core::sync::atomic::Ordering::SeqCst;

use xen_hypercall::{SharedInfo, VcpuId};

use crate::two_level::Board;

/// What one vCPU sees of the shared page. A vCPU without a place in it has no upcall byte and no selector; the bits of
/// the ports are the whole domain's.
pub(crate) struct VcpuBoard<'a> {
    pub(crate) shared: &'a SharedInfo,
    pub(crate) vcpu: VcpuId,
}

impl Board for VcpuBoard<'_> {
    fn take_upcall(&self) -> bool {
        self.shared.vcpu(self.vcpu).is_some_and(|vcpu| vcpu.upcall_pending.swap(0, SeqCst) != 0)
    }

    fn take_selector(&self) -> u64 {
        self.shared.vcpu(self.vcpu).map_or(0, |vcpu| vcpu.pending_sel.swap(0, SeqCst))
    }

    fn pending(&self, word: usize) -> u64 {
        self.shared.evtchn_pending(word).map_or(0, |bits| bits.load(SeqCst))
    }

    fn mask(&self, word: usize) -> u64 {
        self.shared.evtchn_mask(word).map_or(0, |bits| bits.load(SeqCst))
    }

    fn clear_pending(&self, word: usize, bits: u64) -> u64 {
        self.shared.evtchn_pending(word).map_or(0, |word| word.fetch_and(!bits, SeqCst))
    }

    fn set_mask(&self, word: usize, bits: u64) {
        if let Some(word) = self.shared.evtchn_mask(word) {
            word.fetch_or(bits, SeqCst);
        }
    }

    fn clear_mask(&self, word: usize, bits: u64) {
        if let Some(word) = self.shared.evtchn_mask(word) {
            word.fetch_and(!bits, SeqCst);
        }
    }
}
