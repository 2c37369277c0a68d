//! The hypervisor's side of event channels, on the host.
//!
//! [`install`] makes a [`MockXen`] answer `EVENT_CHANNEL_OP` as Xen 4.17 does: the same state per port, the same error for
//! each mistake, and the real bits in each domain's `shared_info` page. A backend in a test is a domain like any other
//! and uses [`EventChannels`](crate::EventChannels) on its own [`MockDomain`]:
//!
//! ```
//! use xen_evtchn::{EventChannels, mock};
//! use xen_hypercall::{DomId, mock::MockXen};
//!
//! let xen = MockXen::new();
//! mock::install(&xen);
//! let (guest, dom0) = (xen.domain(DomId(1)).boot().unwrap(), xen.domain(DomId(0)).boot().unwrap());
//! let (guest, dom0) = (EventChannels::new(&guest).unwrap(), EventChannels::new(&dom0).unwrap());
//!
//! let front = guest.alloc_unbound(DomId(0)).unwrap();
//! let back = dom0.bind_interdomain(DomId(1), front.port()).unwrap();
//! back.notify().unwrap();
//! guest.wait_since(guest.seq(), None);
//! assert!(front.take());
//! ```
//!
//! A domain may use either ABI, and has as many vCPUs as [`MockDomain::set_vcpus`] gave it; what is done on a vCPU goes by
//! [`MockDomain::on_vcpu`], which for events makes no difference. Not there: physical interrupts (`EINVAL`).

mod call;
mod faults;
mod fifo;
pub mod model;
mod ports;
mod signal;

use std::sync::PoisonError;

use xen_hypercall::mock::{MockDomain, MockXen};
use xen_hypercall::{DomId, HypercallNr, VcpuId};

use crate::{Port, Virq};
pub use faults::{Faults, set_faults};
use ports::Machine;

/// Answers the event channel calls of every domain of `xen`, and raises [`Virq::TIMER`] when a domain's timer is due.
pub fn install(xen: &MockXen) {
    xen.register(HypercallNr::EVENT_CHANNEL_OP, call::event_channel_op);
    xen.set_timer_hook(|domain, vcpu| {
        raise_virq(domain, Virq::TIMER, vcpu);
    });
    xen.on_migration(|domain, old| with(domain.xen(), |machine| machine.migrated(domain.id(), old)));
}

/// Raises a virtual interrupt, as Xen does. False if the domain has not bound it.
pub fn raise_virq(domain: &MockDomain, virq: Virq, vcpu: VcpuId) -> bool {
    with(domain.xen(), |machine| machine.raise_virq(domain, virq, vcpu))
}

/// Sets a port's event pending without a sender: a spurious event. False if the port is closed.
pub fn inject(domain: &MockDomain, port: Port) -> bool {
    with(domain.xen(), |machine| machine.inject(domain, port))
}

/// How many ports of a domain are not free: what a test compares to find a channel that was never closed.
pub fn open_ports(domain: &MockDomain) -> usize {
    with(domain.xen(), |machine| machine.open_ports(domain.id()))
}

/// Allocates a port in `domain` for `remote` to bind to, as the toolstack does for xenstore and the console before the
/// domain starts. `None`: no port left.
pub fn alloc_for(domain: &MockDomain, remote: DomId) -> Option<Port> {
    with(domain.xen(), |machine| machine.alloc_unbound(domain, remote).ok()).map(Port)
}

/// Limits a domain's ports to `max` and below, as the toolstack does (`event_channels` in xl.cfg, 1023 if nothing is
/// said). At first there is no limit but the ABI's.
pub fn set_max_port(domain: &MockDomain, max: Port) {
    with(domain.xen(), |machine| machine.set_max_port(domain.id(), max.0));
}

/// Makes this a Xen with or without the FIFO ABI; at first it has it. Domains that use it already go on.
pub fn set_fifo(xen: &MockXen, available: bool) {
    with(xen, |machine| machine.two_level_only = !available);
}

/// How often Xen interrupted a vCPU: how often its upcall byte went from clear to set.
pub fn interrupts(domain: &MockDomain, vcpu: VcpuId) -> u64 {
    with(domain.xen(), |machine| machine.interrupts(domain.id(), vcpu))
}

fn with<R>(xen: &MockXen, f: impl FnOnce(&mut Machine) -> R) -> R {
    let machine = xen.extension::<Machine>();
    // A test that panicked while it held the lock has failed already; let the others say what they see.
    f(&mut machine.lock().unwrap_or_else(PoisonError::into_inner))
}
