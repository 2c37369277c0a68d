//! The words in the real pages, and what the crate does with them.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};

use xen_hypercall::{Platform, VcpuId, VcpuInfo};

use super::{Board, Gate, MASKED, PENDING, Pages, dispatch, unmask};
use crate::delivery::{Abi, Delivery, Dispatched, Shared, Vcpu};
use crate::{Error, Port};

/// What one vCPU sees.
struct VcpuBoard<'a> {
    /// The vCPU's upcall byte, for who takes events.
    info: Option<VcpuInfo<'a>>,
    pages: &'a Pages,
    vcpu: VcpuId,
}

impl Board for VcpuBoard<'_> {
    fn take_upcall(&self) -> bool {
        self.info.is_some_and(|vcpu| vcpu.upcall_pending.swap(0, SeqCst) != 0)
    }

    fn take_ready(&self) -> u32 {
        // A plain load first: this is asked again after each event.
        let ready = self.pages.ready(self.vcpu).filter(|ready| ready.load(Relaxed) != 0);
        ready.map_or(0, |ready| ready.swap(0, SeqCst))
    }

    fn head(&self, queue: usize) -> u32 {
        self.pages.head(self.vcpu, queue).map_or(0, |head| head.load(Acquire))
    }

    fn word(&self, port: u32) -> Option<u32> {
        Some(self.pages.word(port)?.load(Acquire))
    }

    fn replace(&self, port: u32, old: u32, new: u32) -> Result<(), u32> {
        let word = self.pages.word(port).ok_or(0u32)?;
        word.compare_exchange(old, new, SeqCst, Acquire).map(drop)
    }

    fn set(&self, port: u32, bits: u32) -> u32 {
        self.pages.word(port).map_or(0, |word| word.fetch_or(bits, SeqCst))
    }

    fn clear(&self, port: u32, bits: u32) -> u32 {
        self.pages.word(port).map_or(0, |word| word.fetch_and(!bits, SeqCst))
    }

    fn gate(&self, from: Gate, to: Gate) -> bool {
        let gate = self.pages.gate(self.vcpu);
        gate.is_some_and(|gate| gate.compare_exchange(from as u8, to as u8, AcqRel, Acquire).is_ok())
    }
}

/// The FIFO ABI, as the crate uses either.
#[derive(Debug)]
pub(crate) struct FifoAbi;

impl FifoAbi {
    /// Runs `f` on the words, as any vCPU sees them.
    fn on<R>(shared: Shared<'_>, f: impl FnOnce(&VcpuBoard<'_>) -> R) -> Option<R> {
        let pages = shared.fifo?;
        Some(f(&VcpuBoard { info: None, pages, vcpu: VcpuId(0) }))
    }
}

impl Delivery for FifoAbi {
    fn abi(&self) -> Abi {
        Abi::Fifo
    }

    fn limit(&self) -> u32 {
        Port::FIFO_LIMIT
    }

    fn dispatch(&self, shared: Shared<'_>, vcpu: Vcpu<'_>, fire: &mut dyn FnMut(u32)) -> Option<Dispatched> {
        let pages = shared.fifo?;
        let Vcpu { id: vcpu, info } = vcpu;
        if info.upcall_pending.load(Relaxed) == 0 && pages.ready(vcpu)?.load(Relaxed) == 0 {
            return None;
        }
        Some(dispatch(&VcpuBoard { info: Some(info), pages, vcpu }, fire))
    }

    fn is_masked(&self, shared: Shared<'_>, port: Port) -> bool {
        Self::on(shared, |board| board.word(port.0)).flatten().is_none_or(|word| word & MASKED != 0)
    }

    fn mask(&self, shared: Shared<'_>, port: Port) {
        Self::on(shared, |board| board.set(port.0, MASKED));
    }

    fn unmask(&self, shared: Shared<'_>, port: Port, refire: &mut dyn FnMut() -> bool) -> bool {
        Self::on(shared, |board| unmask(board, port.0, refire)).unwrap_or(true)
    }

    fn take_pending(&self, shared: Shared<'_>, port: Port) -> bool {
        Self::on(shared, |board| board.clear(port.0, PENDING) & PENDING != 0).unwrap_or(false)
    }

    fn ensure(&self, shared: Shared<'_>, platform: &dyn Platform, port: Port) -> Result<(), Error> {
        shared.fifo.map_or(Ok(()), |pages| pages.ensure(platform, port.0))
    }

    fn add_vcpu(&self, shared: Shared<'_>, platform: &dyn Platform, vcpu: VcpuId) -> Result<(), Error> {
        shared.fifo.map_or(Ok(()), |pages| pages.add_vcpu(platform, vcpu))
    }

    fn has_vcpu(&self, shared: Shared<'_>, vcpu: VcpuId) -> Result<(), Error> {
        shared.fifo.map_or(Ok(()), |pages| pages.has_vcpu(vcpu))
    }

    fn resume(&self, shared: Shared<'_>, platform: &dyn Platform) -> Result<(), Error> {
        shared.fifo.map_or(Ok(()), |pages| pages.resume(platform))
    }

    fn reset(&self, pages: Option<Pages>, platform: &dyn Platform) -> Result<(), Error> {
        pages.map_or(Ok(()), |pages| pages.reset(platform))
    }
}
