//! The state of every domain's ports, and what Xen does with them.

use std::collections::{BTreeMap, BTreeSet};
use std::format;
use std::vec::Vec;

use xen_hypercall::abi::EvtchnStatus;
use xen_hypercall::mock::MockDomain;
use xen_hypercall::{DomId, Errno, Gfn, PAGE_SIZE, VcpuId};

use super::faults::{Fate, Trouble};
use super::fifo::Fifo;
use super::signal::{Bits, Interrupts};
use crate::abi::{EVTCHN_FIFO_PRIORITY_DEFAULT, EVTCHN_FIFO_PRIORITY_MIN, EvtchnFifoControlBlock};
use crate::{Port, Virq};

/// Xen allocates its own records 64 ports at a time. A port in such a group is valid, if closed, and one beyond is not.
const BUCKET: u32 = 64;

#[derive(Default)]
pub(super) struct Machine {
    domains: BTreeMap<DomId, Ports>,
    pub(super) trouble: Trouble,
    /// This Xen does not have the FIFO ABI.
    pub(super) two_level_only: bool,
}

#[derive(Default)]
struct Ports {
    open: BTreeMap<u32, Open>,
    /// Events from before the domain mapped its `shared_info`, which in Xen exists from the start.
    early: BTreeSet<u32>,
    /// The first port that is not valid yet.
    valid: u32,
    /// No port below this is free.
    full_below: u32,
    /// The toolstack's limit: the highest port there may be.
    max_port: Option<u32>,
    fifo: Option<Fifo>,
    interrupts: Interrupts,
}

struct Open {
    bound: Bound,
    /// Who is told of its events.
    vcpu: VcpuId,
    priority: u32,
    /// With the FIFO ABI: an event came while the port had no word.
    pending: bool,
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

    fn limit(&self) -> u32 {
        let abi = if self.fifo.is_some() { Port::FIFO_LIMIT } else { Port::LIMIT };
        self.max_port.map_or(abi, |max| abi.min(max.saturating_add(1)))
    }

    /// The lowest free port; 0 is Xen's.
    fn allocate(&mut self, domain: &MockDomain, bound: Bound, vcpu: VcpuId) -> Result<u32, Errno> {
        let busy = |port: &u32| self.fifo.as_ref().is_some_and(|fifo| fifo.is_busy(domain, *port));
        let mut free = (self.full_below.max(1)..self.limit()).filter(|port| !self.open.contains_key(port));
        let lowest = free.clone().next();
        let port = free.find(|port| !busy(port)).ok_or(Errno::ENOSPC)?;
        self.full_below = if lowest == Some(port) { port + 1 } else { lowest.unwrap_or(0) };
        self.open.insert(port, Open { bound, vcpu, priority: EVTCHN_FIFO_PRIORITY_DEFAULT, pending: false });
        self.valid = self.valid().max((port / BUCKET + 1) * BUCKET);
        Ok(port)
    }

    fn remove(&mut self, port: u32) -> Option<Open> {
        let open = self.open.remove(&port)?;
        self.full_below = self.full_below.min(port);
        self.early.remove(&port);
        Some(open)
    }

    fn bound(&self, port: u32) -> Option<Bound> {
        self.open.get(&port).map(|open| open.bound)
    }

    /// The queue of a port: of a free one, what it would get at first.
    fn queue(&self, port: u32) -> (VcpuId, u32) {
        self.open
            .get(&port)
            .map_or((VcpuId(0), EVTCHN_FIFO_PRIORITY_DEFAULT), |open| (open.vcpu, open.priority))
    }

    fn set_pending(&mut self, domain: &MockDomain, port: u32) {
        let queue = self.queue(port);
        if let Some(fifo) = &mut self.fifo {
            if fifo.has_word(port) {
                fifo.set_pending(domain, port, queue, &mut self.interrupts);
            } else if let Some(open) = self.open.get_mut(&port) {
                open.pending = true;
            }
        } else if let Some(bits) = Bits::of(domain, port) {
            bits.set_pending(domain, queue.0, &mut self.interrupts);
        } else {
            self.early.insert(port);
        }
    }

    /// The next owner of the number does not inherit an event. The mask is the guest's and stays.
    fn clear_pending(&mut self, domain: &MockDomain, port: u32) {
        match &self.fifo {
            Some(fifo) => fifo.clear_pending(domain, port),
            None => {
                if let Some(bits) = Bits::of(domain, port) {
                    bits.clear_pending();
                }
            }
        }
    }
}

impl Machine {
    fn ports(&mut self, domain: DomId) -> &mut Ports {
        self.domains.entry(domain).or_default()
    }

    pub(super) fn set_max_port(&mut self, domain: DomId, max: u32) {
        self.ports(domain).max_port = Some(max);
    }

    pub(super) fn interrupts(&mut self, domain: DomId, vcpu: VcpuId) -> u64 {
        self.ports(domain).interrupts.of(vcpu)
    }

    pub(super) fn open_ports(&mut self, domain: DomId) -> usize {
        self.ports(domain).open.len()
    }

    pub(super) fn alloc_unbound(&mut self, owner: &MockDomain, remote: DomId) -> Result<u32, Errno> {
        self.ports(owner.id()).allocate(owner, Bound::Unbound { remote }, VcpuId(0))
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
        let local = self.ports(me).allocate(caller, Bound::Interdomain { remote, port }, VcpuId(0))?;
        match self.ports(remote).open.get_mut(&port) {
            Some(open) if open.bound == (Bound::Unbound { remote: me }) => {
                open.bound = Bound::Interdomain { remote: me, port: local };
            }
            _ => {
                self.ports(me).remove(local);
                return Err(Errno::EINVAL);
            }
        }
        // The remote end may have sent while nobody was bound.
        self.set_pending(caller, local);
        Ok(local)
    }

    pub(super) fn bind_virq(&mut self, caller: &MockDomain, virq: Virq, vcpu: VcpuId) -> Result<u32, Errno> {
        if virq.0 >= Virq::COUNT || (is_global(virq) && vcpu != VcpuId(0)) {
            return Err(Errno::EINVAL);
        }
        exists(caller, vcpu)?;
        let bound = Bound::Virq { virq, vcpu };
        let ports = self.ports(caller.id());
        if ports.open.values().any(|other| other.bound == bound) {
            return Err(Errno::EEXIST);
        }
        ports.allocate(caller, bound, vcpu)
    }

    pub(super) fn bind_ipi(&mut self, caller: &MockDomain, vcpu: VcpuId) -> Result<u32, Errno> {
        exists(caller, vcpu)?;
        self.ports(caller.id()).allocate(caller, Bound::Ipi { vcpu }, vcpu)
    }

    pub(super) fn bind_vcpu(&mut self, caller: &MockDomain, port: u32, vcpu: VcpuId) -> Result<(), Errno> {
        exists(caller, vcpu)?;
        let open = self.ports(caller.id()).open.get_mut(&port).ok_or(Errno::EINVAL)?;
        match open.bound {
            Bound::Ipi { .. } => return Err(Errno::EINVAL),
            Bound::Virq { virq, .. } if !is_global(virq) => return Err(Errno::EINVAL),
            _ => open.vcpu = vcpu,
        }
        Ok(())
    }

    pub(super) fn close(&mut self, caller: &MockDomain, port: u32) -> Result<(), Errno> {
        let me = caller.id();
        let ports = self.ports(me);
        let open = ports.remove(port).ok_or(Errno::EINVAL)?;
        ports.clear_pending(caller, port);
        self.trouble.forget(me, port);
        if let Bound::Interdomain { remote, port } = open.bound {
            if let Some(other) = self.ports(remote).open.get_mut(&port) {
                other.bound = Bound::Unbound { remote: me };
            }
        }
        Ok(())
    }

    pub(super) fn reset(&mut self, domain: &MockDomain) {
        let open: Vec<u32> = self.ports(domain.id()).open.keys().copied().collect();
        for port in open {
            // A port that was open a moment ago can be closed.
            let _ = self.close(domain, port);
        }
        self.ports(domain.id()).fifo = None;
    }

    /// The domain is gone, with all its ports; another has its limit.
    pub(super) fn migrated(&mut self, new: DomId, old: DomId) {
        self.trouble.forget_all(old);
        let Some(gone) = self.domains.remove(&old) else { return };
        for open in gone.open.into_values() {
            if let Bound::Interdomain { remote, port } = open.bound {
                if let Some(other) = self.ports(remote).open.get_mut(&port) {
                    other.bound = Bound::Unbound { remote: old };
                }
            }
        }
        self.ports(new).max_port = gone.max_port;
    }

    pub(super) fn init_control(
        &mut self,
        domain: &MockDomain,
        gfn: Gfn,
        offset: u32,
        vcpu: VcpuId,
    ) -> Result<(), Errno> {
        exists(domain, vcpu)?;
        if offset as usize > PAGE_SIZE - size_of::<EvtchnFifoControlBlock>() || offset % 8 != 0 {
            return Err(Errno::EINVAL);
        }
        let ports = self.ports(domain.id());
        if let Some(fifo) = &mut ports.fifo {
            return fifo.add_control(domain, gfn, offset, vcpu);
        }
        let mut fifo = Fifo::default();
        fifo.add_control(domain, gfn, offset, vcpu)?;
        ports.fifo = Some(fifo);
        // Events that are pending already wait for their words.
        for (port, open) in &mut ports.open {
            open.pending = Bits::of(domain, *port).is_some_and(|bits| bits.is_pending());
            open.priority = EVTCHN_FIFO_PRIORITY_DEFAULT;
        }
        domain.xen().trace(|| format!("{} has the FIFO ABI", domain.id()));
        Ok(())
    }

    pub(super) fn expand_array(&mut self, domain: &MockDomain, gfn: Gfn) -> Result<(), Errno> {
        let ports = self.ports(domain.id());
        let new = ports.fifo.as_mut().ok_or(Errno::EOPNOTSUPP)?.add_page(domain, gfn)?;
        let waiting: Vec<u32> = ports
            .open
            .range_mut(new)
            .filter_map(|(port, open)| core::mem::take(&mut open.pending).then_some(*port))
            .collect();
        for port in waiting {
            ports.set_pending(domain, port);
        }
        Ok(())
    }

    pub(super) fn set_priority(
        &mut self,
        domain: &MockDomain,
        port: u32,
        priority: u32,
    ) -> Result<(), Errno> {
        let ports = self.ports(domain.id());
        if !ports.is_valid(port) {
            return Err(Errno::EINVAL);
        }
        if ports.fifo.is_none() {
            return Err(Errno::ENOSYS);
        }
        if priority > EVTCHN_FIFO_PRIORITY_MIN {
            return Err(Errno::EINVAL);
        }
        if let Some(open) = ports.open.get_mut(&port) {
            open.priority = priority;
        }
        Ok(())
    }

    pub(super) fn send(&mut self, caller: &MockDomain, port: u32) -> Result<(), Errno> {
        match self.ports(caller.id()).bound(port) {
            Some(Bound::Interdomain { remote, port }) => self.arrive(&caller.xen().domain(remote), port),
            Some(Bound::Ipi { .. }) => self.arrive(caller, port),
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
        let Some(open) = ports.open.get(&op.port) else { return Ok(op) };
        let op = EvtchnStatus { vcpu: open.vcpu.0, ..op };
        Ok(match open.bound {
            Bound::Unbound { remote } => EvtchnStatus { status: 1, remote_dom: remote.0, ..op },
            Bound::Interdomain { remote, port } => {
                EvtchnStatus { status: 2, remote_dom: remote.0, remote_port: port, ..op }
            }
            Bound::Virq { virq, .. } => EvtchnStatus { status: 4, remote_dom: virq.0 as u16, ..op },
            Bound::Ipi { .. } => EvtchnStatus { status: 5, ..op },
        })
    }

    pub(super) fn unmask(&mut self, caller: &MockDomain, port: u32) -> Result<(), Errno> {
        let ports = self.ports(caller.id());
        if !ports.is_valid(port) {
            return Err(Errno::EINVAL);
        }
        let queue = ports.queue(port);
        if let Some(fifo) = &mut ports.fifo {
            fifo.unmask(caller, port, queue, &mut ports.interrupts);
        } else if let Some(bits) = Bits::of(caller, port) {
            bits.unmask(caller, queue.0, &mut ports.interrupts);
        }
        Ok(())
    }

    pub(super) fn raise_virq(&mut self, domain: &MockDomain, virq: Virq, vcpu: VcpuId) -> bool {
        let ports = self.ports(domain.id());
        let found = ports
            .open
            .iter()
            .find(|(_, open)| open.bound == Bound::Virq { virq, vcpu })
            .map(|(port, _)| *port);
        found.map(|port| self.arrive(domain, port)).is_some()
    }

    pub(super) fn inject(&mut self, domain: &MockDomain, port: Port) -> bool {
        let open = self.ports(domain.id()).open.contains_key(&port.0);
        if open {
            self.set_pending(domain, port.0);
        }
        open
    }

    /// An event is on its way to a port, where things may go wrong.
    fn arrive(&mut self, domain: &MockDomain, port: u32) {
        let id = domain.id();
        let open = self.domains.get(&id).into_iter().flat_map(|ports| ports.open.keys().copied());
        let others = open.filter(|other| *other != port);
        let (fate, spurious) = self.trouble.befall(domain.xen(), id, port, others);
        if let Fate::Arrives = fate {
            self.set_pending(domain, port);
        }
        if let Some(other) = spurious {
            self.set_pending(domain, other);
        }
    }

    fn set_pending(&mut self, domain: &MockDomain, port: u32) {
        domain.xen().trace(|| format!("{} gets an event on port {port}", domain.id()));
        self.ports(domain.id()).set_pending(domain, port);
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

/// Whether the domain has the vCPU.
fn exists(domain: &MockDomain, vcpu: VcpuId) -> Result<(), Errno> {
    if (vcpu.0 as usize) < domain.vcpus() { Ok(()) } else { Err(Errno::ENOENT) }
}

fn is_global(virq: Virq) -> bool {
    !matches!(virq, Virq::TIMER | Virq::DEBUG | Virq::XENOPROF | Virq::XENPMU)
}
