//! The state of every domain's ports, and what Xen does with them.

use core::sync::atomic::Ordering::SeqCst;
use std::collections::{BTreeMap, BTreeSet};
use std::format;
use std::vec::Vec;

use xen_hypercall::abi::EvtchnStatus;
use xen_hypercall::mock::MockDomain;
use xen_hypercall::{DomId, Errno, SharedInfo, VcpuId};

use crate::{Port, Virq};

/// Xen allocates its own records 64 ports at a time. A port in such a group is valid, if closed, and one beyond is not.
const BUCKET: u32 = 64;

#[derive(Default)]
pub(super) struct Machine {
    domains: BTreeMap<DomId, Ports>,
}

#[derive(Default)]
struct Ports {
    open: BTreeMap<u32, Bound>,
    /// Events from before the domain mapped its `shared_info`, which in Xen exists from the start.
    early: BTreeSet<u32>,
    /// The first port that is not valid yet.
    valid: u32,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Bound {
    Unbound { remote: DomId },
    Interdomain { remote: DomId, port: u32 },
    Virq { virq: Virq, vcpu: VcpuId },
    Ipi { vcpu: VcpuId },
}

impl Ports {
    fn valid(&self) -> u32 {
        self.valid.max(BUCKET)
    }

    fn is_valid(&self, port: u32) -> bool {
        port < self.valid()
    }

    /// The lowest free port; 0 is Xen's.
    fn allocate(&mut self, bound: Bound) -> Result<u32, Errno> {
        let port = (1..Port::LIMIT).find(|port| !self.open.contains_key(port)).ok_or(Errno::ENOSPC)?;
        self.open.insert(port, bound);
        self.valid = self.valid().max((port / BUCKET + 1) * BUCKET);
        Ok(port)
    }
}

impl Machine {
    fn ports(&mut self, domain: DomId) -> &mut Ports {
        self.domains.entry(domain).or_default()
    }

    pub(super) fn open_ports(&mut self, domain: DomId) -> usize {
        self.ports(domain).open.len()
    }

    pub(super) fn alloc_unbound(&mut self, caller: DomId, owner: DomId, remote: DomId) -> Result<u32, Errno> {
        let remote = if remote == DomId::SELF { caller } else { remote };
        self.ports(owner).allocate(Bound::Unbound { remote })
    }

    pub(super) fn bind_interdomain(
        &mut self,
        caller: &MockDomain,
        remote: DomId,
        port: u32,
    ) -> Result<u32, Errno> {
        let me = caller.id();
        if !caller.xen().has_domain(remote) {
            return Err(Errno::ESRCH);
        }
        // Xen takes the local port first: without one the answer is ENOSPC whatever the remote port is.
        let local = self.ports(me).allocate(Bound::Interdomain { remote, port })?;
        match self.ports(remote).open.get_mut(&port) {
            Some(bound) if *bound == (Bound::Unbound { remote: me }) => {
                *bound = Bound::Interdomain { remote: me, port: local };
            }
            _ => {
                self.ports(me).open.remove(&local);
                return Err(Errno::EINVAL);
            }
        }
        // The remote end may have sent while nobody was bound.
        self.set_pending(caller, local);
        Ok(local)
    }

    pub(super) fn bind_virq(&mut self, me: DomId, virq: Virq, vcpu: VcpuId) -> Result<u32, Errno> {
        if virq.0 >= Virq::COUNT || (is_global(virq) && vcpu != VcpuId(0)) {
            return Err(Errno::EINVAL);
        }
        only_vcpu_0(vcpu)?;
        let bound = Bound::Virq { virq, vcpu };
        let ports = self.ports(me);
        if ports.open.values().any(|other| *other == bound) {
            return Err(Errno::EEXIST);
        }
        ports.allocate(bound)
    }

    pub(super) fn bind_ipi(&mut self, me: DomId, vcpu: VcpuId) -> Result<u32, Errno> {
        only_vcpu_0(vcpu)?;
        self.ports(me).allocate(Bound::Ipi { vcpu })
    }

    pub(super) fn bind_vcpu(&mut self, me: DomId, port: u32, vcpu: VcpuId) -> Result<(), Errno> {
        only_vcpu_0(vcpu)?;
        match self.ports(me).open.get(&port) {
            None | Some(Bound::Ipi { .. }) => Err(Errno::EINVAL),
            Some(Bound::Virq { virq, .. }) if !is_global(*virq) => Err(Errno::EINVAL),
            Some(_) => Ok(()),
        }
    }

    pub(super) fn close(&mut self, caller: &MockDomain, port: u32) -> Result<(), Errno> {
        let me = caller.id();
        let ports = self.ports(me);
        let bound = ports.open.remove(&port).ok_or(Errno::EINVAL)?;
        ports.early.remove(&port);
        if let Bound::Interdomain { remote, port } = bound
            && let Some(other) = self.ports(remote).open.get_mut(&port)
        {
            *other = Bound::Unbound { remote: me };
        }
        // The next owner of the number does not inherit an event. The mask is the guest's and stays.
        if let Some(bits) = Bits::of(caller, port) {
            bits.clear_pending();
        }
        Ok(())
    }

    pub(super) fn reset(&mut self, domain: &MockDomain) {
        let open: Vec<u32> = self.ports(domain.id()).open.keys().copied().collect();
        for port in open {
            // A port that was open a moment ago can be closed.
            let _ = self.close(domain, port);
        }
    }

    pub(super) fn send(&mut self, caller: &MockDomain, port: u32) -> Result<(), Errno> {
        match self.ports(caller.id()).open.get(&port).copied() {
            Some(Bound::Interdomain { remote, port }) => self.set_pending(&caller.xen().domain(remote), port),
            Some(Bound::Ipi { .. }) => self.set_pending(caller, port),
            Some(Bound::Unbound { .. }) => {}
            Some(Bound::Virq { .. }) | None => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    pub(super) fn status(&mut self, owner: DomId, op: EvtchnStatus) -> Result<EvtchnStatus, Errno> {
        let ports = self.ports(owner);
        if !ports.is_valid(op.port) {
            return Err(Errno::EINVAL);
        }
        Ok(match ports.open.get(&op.port) {
            None => op,
            Some(Bound::Unbound { remote }) => EvtchnStatus { status: 1, remote_dom: remote.0, ..op },
            Some(Bound::Interdomain { remote, port }) => {
                EvtchnStatus { status: 2, remote_dom: remote.0, remote_port: *port, ..op }
            }
            Some(Bound::Virq { virq, vcpu }) => {
                EvtchnStatus { status: 4, vcpu: vcpu.0, remote_dom: virq.0 as u16, ..op }
            }
            Some(Bound::Ipi { vcpu }) => EvtchnStatus { status: 5, vcpu: vcpu.0, ..op },
        })
    }

    /// Only a mask bit that Xen itself clears makes it look for an event: one that the guest cleared before counts as a
    /// port that was never masked.
    pub(super) fn unmask(&mut self, caller: &MockDomain, port: u32) -> Result<(), Errno> {
        if !self.ports(caller.id()).is_valid(port) {
            return Err(Errno::EINVAL);
        }
        if let Some(bits) = Bits::of(caller, port)
            && bits.clear_mask()
            && bits.is_pending()
        {
            bits.upcall();
        }
        Ok(())
    }

    pub(super) fn raise_virq(&mut self, domain: &MockDomain, virq: Virq, vcpu: VcpuId) -> bool {
        let ports = self.ports(domain.id());
        let found =
            ports.open.iter().find(|(_, bound)| **bound == Bound::Virq { virq, vcpu }).map(|(port, _)| *port);
        found.map(|port| self.set_pending(domain, port)).is_some()
    }

    pub(super) fn inject(&mut self, domain: &MockDomain, port: Port) -> bool {
        let open = self.ports(domain.id()).open.contains_key(&port.0);
        if open {
            self.set_pending(domain, port.0);
        }
        open
    }

    fn set_pending(&mut self, domain: &MockDomain, port: u32) {
        domain.xen().trace(|| format!("{} gets an event on port {port}", domain.id()));
        match Bits::of(domain, port) {
            Some(bits) => bits.set_pending(),
            None => {
                self.ports(domain.id()).early.insert(port);
            }
        }
    }

    /// Sets in the shared page what came before the domain had it.
    pub(super) fn deliver_early(&mut self, domain: &MockDomain) {
        if domain.shared_info().is_none() {
            return;
        }
        for port in core::mem::take(&mut self.ports(domain.id()).early) {
            self.set_pending(domain, port);
        }
    }
}

/// One port's bits, and those of vCPU 0, in the page that the domain reads.
struct Bits {
    shared: SharedInfo,
    port: u32,
}

impl Bits {
    fn of(domain: &MockDomain, port: u32) -> Option<Self> {
        Some(Self { shared: domain.shared_info()?, port })
    }

    fn word(&self) -> usize {
        self.port as usize / 64
    }

    fn bit(&self) -> u64 {
        1 << (self.port % 64)
    }

    fn is_pending(&self) -> bool {
        self.shared.evtchn_pending(self.word()).is_some_and(|word| word.load(SeqCst) & self.bit() != 0)
    }

    fn clear_pending(&self) {
        if let Some(word) = self.shared.evtchn_pending(self.word()) {
            word.fetch_and(!self.bit(), SeqCst);
        }
    }

    /// Whether the bit was set.
    fn clear_mask(&self) -> bool {
        let word = self.shared.evtchn_mask(self.word());
        word.is_some_and(|word| word.fetch_and(!self.bit(), SeqCst) & self.bit() != 0)
    }

    fn set_pending(&self) {
        let (Some(pending), Some(mask)) =
            (self.shared.evtchn_pending(self.word()), self.shared.evtchn_mask(self.word()))
        else {
            return;
        };
        let was = pending.fetch_or(self.bit(), SeqCst) & self.bit();
        if was == 0 && mask.load(SeqCst) & self.bit() == 0 {
            self.upcall();
        }
    }

    fn upcall(&self) {
        let Some(vcpu) = self.shared.vcpu(VcpuId(0)) else { return };
        let word = 1 << self.word();
        if vcpu.pending_sel.fetch_or(word, SeqCst) & word == 0 {
            vcpu.upcall_pending.store(1, SeqCst);
        }
    }
}

/// The mock's domains have one vCPU.
fn only_vcpu_0(vcpu: VcpuId) -> Result<(), Errno> {
    if vcpu == VcpuId(0) { Ok(()) } else { Err(Errno::ENOENT) }
}

fn is_global(virq: Virq) -> bool {
    !matches!(virq, Virq::TIMER | Virq::DEBUG | Virq::XENOPROF | Virq::XENPMU)
}
