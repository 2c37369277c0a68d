//! How Xen sets an event pending with the two-level ABI, and the upcall that both ABIs end in.

use core::sync::atomic::Ordering::SeqCst;
use std::collections::BTreeMap;

use xen_hypercall::mock::MockDomain;
use xen_hypercall::{SharedInfo, VcpuId};

/// How often each vCPU was interrupted.
#[derive(Default)]
pub(super) struct Interrupts(BTreeMap<VcpuId, u64>);

impl Interrupts {
    pub(super) fn of(&self, vcpu: VcpuId) -> u64 {
        self.0.get(&vcpu).copied().unwrap_or(0)
    }

    /// Sets a vCPU's upcall byte; it is interrupted if the byte was clear.
    pub(super) fn upcall(&mut self, domain: &MockDomain, vcpu: VcpuId) {
        let Some(area) = domain.vcpu_area(vcpu) else { return };
        if area.info().upcall_pending.swap(1, SeqCst) == 0 {
            *self.0.entry(vcpu).or_default() += 1;
        }
    }
}

/// One port's bits in the page that the domain reads.
pub(super) struct Bits<'d> {
    shared: SharedInfo<'d>,
    port: u32,
}

impl<'d> Bits<'d> {
    /// None: the domain has not mapped the page yet.
    pub(super) fn of(domain: &'d MockDomain, port: u32) -> Option<Self> {
        Some(Self { shared: domain.shared_info()?, port })
    }

    fn word(&self) -> usize {
        self.port as usize / 64
    }

    fn bit(&self) -> u64 {
        1 << (self.port % 64)
    }

    pub(super) fn is_pending(&self) -> bool {
        self.shared.evtchn_pending(self.word()).is_some_and(|word| word.load(SeqCst) & self.bit() != 0)
    }

    pub(super) fn clear_pending(&self) {
        if let Some(word) = self.shared.evtchn_pending(self.word()) {
            word.fetch_and(!self.bit(), SeqCst);
        }
    }

    /// Only a mask bit that Xen itself clears makes it look for an event: one that the guest cleared before counts as a
    /// port that was never masked.
    pub(super) fn unmask(&self, domain: &MockDomain, vcpu: VcpuId, interrupts: &mut Interrupts) {
        let Some(mask) = self.shared.evtchn_mask(self.word()) else { return };
        if mask.fetch_and(!self.bit(), SeqCst) & self.bit() != 0 && self.is_pending() {
            self.select(domain, vcpu, interrupts);
        }
    }

    pub(super) fn set_pending(&self, domain: &MockDomain, vcpu: VcpuId, interrupts: &mut Interrupts) {
        let (Some(pending), Some(mask)) =
            (self.shared.evtchn_pending(self.word()), self.shared.evtchn_mask(self.word()))
        else {
            return;
        };
        let was = pending.fetch_or(self.bit(), SeqCst) & self.bit();
        if was == 0 && mask.load(SeqCst) & self.bit() == 0 {
            self.select(domain, vcpu, interrupts);
        }
    }

    fn select(&self, domain: &MockDomain, vcpu: VcpuId, interrupts: &mut Interrupts) {
        let Some(area) = domain.vcpu_area(vcpu) else { return };
        let word = 1 << self.word();
        if area.info().pending_sel.fetch_or(word, SeqCst) & word == 0 {
            interrupts.upcall(domain, vcpu);
        }
    }
}
