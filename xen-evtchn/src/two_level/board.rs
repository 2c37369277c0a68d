//! The bits in the real shared page, and what the crate does with them.

use core::sync::atomic::Ordering::{Relaxed, SeqCst};

use xen_hypercall::{Platform, SharedInfo, VcpuId, VcpuInfo, event};

use super::{Board, scan, unmask};
use crate::delivery::{Abi, Delivery, Dispatched, Shared, Vcpu};
use crate::fifo::Pages;
use crate::{Error, Port};

/// What one vCPU sees. The bits of the ports are the whole domain's.
struct VcpuBoard<'a> {
    shared: SharedInfo<'a>,
    /// The vCPU's upcall byte and selector, for who takes events.
    info: Option<VcpuInfo<'a>>,
}

impl Board for VcpuBoard<'_> {
    fn take_upcall(&self) -> bool {
        self.info.is_some_and(|vcpu| vcpu.upcall_pending.swap(0, SeqCst) != 0)
    }

    fn take_selector(&self) -> u64 {
        self.info.map_or(0, |vcpu| vcpu.pending_sel.swap(0, SeqCst))
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

/// The two-level ABI, as the crate uses either.
#[derive(Debug)]
pub(crate) struct TwoLevelAbi;

impl TwoLevelAbi {
    /// The bits of the ports, which are the same from every vCPU.
    fn board(shared: Shared<'_>) -> VcpuBoard<'_> {
        VcpuBoard { shared: shared.info, info: None }
    }

    pub(crate) fn mask_all(shared: Shared<'_>) {
        for word in 0..64 {
            Self::board(shared).set_mask(word, !0);
        }
    }
}

/// The word that holds a port's bits, and the bit. Words from 64 on do not exist.
fn place(port: Port) -> (usize, u64) {
    ((port.0 / 64) as usize, 1 << (port.0 % 64))
}

impl Delivery for TwoLevelAbi {
    fn abi(&self) -> Abi {
        Abi::TwoLevel
    }

    fn limit(&self) -> u32 {
        Port::LIMIT
    }

    fn dispatch(&self, shared: Shared<'_>, vcpu: Vcpu<'_>, fire: &mut dyn FnMut(u32)) -> Option<Dispatched> {
        let info = vcpu.info;
        if info.upcall_pending.load(Relaxed) == 0 && info.pending_sel.load(Relaxed) == 0 {
            return None;
        }
        let scan = scan(&VcpuBoard { shared: shared.info, info: Some(info) }, fire);
        Some(Dispatched { scan, more: false })
    }

    fn is_masked(&self, shared: Shared<'_>, port: Port) -> bool {
        let (word, bit) = place(port);
        Self::board(shared).mask(word) & bit != 0
    }

    fn mask(&self, shared: Shared<'_>, port: Port) {
        let (word, bit) = place(port);
        Self::board(shared).set_mask(word, bit);
    }

    fn unmask(&self, shared: Shared<'_>, port: Port, refire: &mut dyn FnMut() -> bool) -> bool {
        let (word, bit) = place(port);
        unmask(&Self::board(shared), word, bit, refire)
    }

    fn take_pending(&self, shared: Shared<'_>, port: Port) -> bool {
        let (word, bit) = place(port);
        Self::board(shared).clear_pending(word, bit) & bit != 0
    }

    fn ensure(&self, _: Shared<'_>, _: &dyn Platform, _: Port) -> Result<(), Error> {
        Ok(())
    }

    fn add_vcpu(&self, _: Shared<'_>, _: &dyn Platform, _: VcpuId) -> Result<(), Error> {
        Ok(())
    }

    fn has_vcpu(&self, _: Shared<'_>, _: VcpuId) -> Result<(), Error> {
        Ok(())
    }

    fn resume(&self, shared: Shared<'_>, _: &dyn Platform) -> Result<(), Error> {
        Self::mask_all(shared);
        Ok(())
    }

    fn reset(&self, _: Option<Pages>, platform: &dyn Platform) -> Result<(), Error> {
        event::reset(&platform).map_err(|errno| Error::Hypercall { operation: "EVTCHNOP_reset", errno })
    }
}
