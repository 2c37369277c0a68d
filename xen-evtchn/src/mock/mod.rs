//! The hypervisor's side of event channels, on the host.
//!
//! [`install`] makes a [`MockXen`] answer `EVENT_CHANNEL_OP` as Xen 4.17 does: the same state per port, the same error for
//! each mistake, and the real bits in each domain's `shared_info` page. A backend in a test is a domain like any other
//! and uses [`EventChannels`](crate::EventChannels) on its own [`MockDomain`]:
//!
//! ```
//! use xen_evtchn::{EventChannels, mock};
//! use xen_hypercall::{DomId, SharedInfo, mock::MockXen};
//!
//! let xen = MockXen::new();
//! mock::install(&xen);
//! let (guest, dom0) = (xen.domain(DomId(1)), xen.domain(DomId(0)));
//! let guest = EventChannels::new(guest.clone(), SharedInfo::map(&guest).unwrap()).unwrap();
//! let dom0 = EventChannels::new(dom0.clone(), SharedInfo::map(&dom0).unwrap()).unwrap();
//!
//! let front = guest.alloc_unbound(DomId(0)).unwrap();
//! let back = dom0.bind_interdomain(DomId(1), front.port()).unwrap();
//! back.notify().unwrap();
//! guest.wait(None);
//! assert!(front.take());
//! ```
//!
//! Not there: the FIFO ABI and physical interrupts (`ENOSYS`, `EINVAL`), and vCPUs other than 0 (`ENOENT`).

mod call;
mod ports;

use std::sync::PoisonError;

use xen_hypercall::mock::{MockDomain, MockXen};
use xen_hypercall::{DomId, HypercallNr, VcpuId};

use crate::{Port, Virq};
use ports::Machine;

/// Answers the event channel calls of every domain of `xen`, and raises [`Virq::TIMER`] when a domain's timer is due.
pub fn install(xen: &MockXen) {
    xen.register(HypercallNr::EVENT_CHANNEL_OP, call::event_channel_op);
    xen.set_timer_hook(|domain, vcpu| {
        raise_virq(domain, Virq::TIMER, vcpu);
    });
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
    with(domain.xen(), |machine| machine.alloc_unbound(domain.id(), domain.id(), remote).ok()).map(Port)
}

fn with<R>(xen: &MockXen, f: impl FnOnce(&mut Machine) -> R) -> R {
    let machine = xen.extension::<Machine>();
    // A test that panicked while it held the lock has failed already; let the others say what they see.
    f(&mut machine.lock().unwrap_or_else(PoisonError::into_inner))
}
