//! Event channels, as bare calls (`event_channel.h`). The crate `xen-evtchn` makes owning handles of them.
//!
//! Unless a function says otherwise, all guests have these calls: PV, HVM and PVH on x86, and those on Arm, in every Xen
//! since 4.0 (on Arm 4.3).
#![allow(unsafe_code, reason = "names the structure of each command")]

use crate::abi::*;
use crate::call::{Command, run};
use crate::{DomId, Errno, Gfn, Hypercall, HypercallNr, VcpuId};

macro_rules! commands {
    ($($name:ident = $cmd:ident;)*) => {$(
        // SAFETY: the command reads and fills this structure of `event_channel.h`, and changes which domain and
        // vCPU is told of what; it gives no memory away.
        unsafe impl Command for $name {
            const NR: HypercallNr = HypercallNr::EVENT_CHANNEL_OP;
            const CMD: usize = $cmd;
        }
    )*};
}

commands! {
    EvtchnAllocUnbound = EVTCHNOP_ALLOC_UNBOUND;
    EvtchnBindInterdomain = EVTCHNOP_BIND_INTERDOMAIN;
    EvtchnBindVirq = EVTCHNOP_BIND_VIRQ;
    EvtchnBindPirq = EVTCHNOP_BIND_PIRQ;
    EvtchnBindIpi = EVTCHNOP_BIND_IPI;
    EvtchnClose = EVTCHNOP_CLOSE;
    EvtchnSend = EVTCHNOP_SEND;
    EvtchnStatus = EVTCHNOP_STATUS;
    EvtchnBindVcpu = EVTCHNOP_BIND_VCPU;
    EvtchnUnmask = EVTCHNOP_UNMASK;
    EvtchnReset = EVTCHNOP_RESET;
    EvtchnSetPriority = EVTCHNOP_SET_PRIORITY;
}

/// A new port that `remote` may bind to.
///
/// # Errors
/// `ENOSPC` when all ports are taken, `ESRCH` for a domain that does not exist.
pub fn alloc_unbound(xen: &(impl Hypercall + ?Sized), remote: DomId) -> Result<u32, Errno> {
    let mut op = EvtchnAllocUnbound { dom: DomId::SELF.0, remote_dom: remote.0, port: 0 };
    run(xen, &mut op)?;
    Ok(op.port)
}

/// A new port, bound to a port that `remote` allocated for this domain.
///
/// # Errors
/// `EINVAL` when the remote port is not allocated for this domain, `ESRCH` for a domain that does not exist, `ENOSPC`.
pub fn bind_interdomain(
    xen: &(impl Hypercall + ?Sized),
    remote: DomId,
    remote_port: u32,
) -> Result<u32, Errno> {
    let mut op = EvtchnBindInterdomain { remote_dom: remote.0, pad0: 0, remote_port, local_port: 0 };
    run(xen, &mut op)?;
    Ok(op.local_port)
}

/// A new port for a virtual interrupt of a vCPU.
///
/// # Errors
/// `EEXIST` when it is bound already, `EINVAL`, `ENOENT` for a vCPU that does not exist, `ENOSPC`.
pub fn bind_virq(xen: &(impl Hypercall + ?Sized), virq: u32, vcpu: VcpuId) -> Result<u32, Errno> {
    let mut op = EvtchnBindVirq { virq, vcpu: vcpu.0, port: 0 };
    run(xen, &mut op)?;
    Ok(op.port)
}

/// A new port by which this domain tells its own vCPU something.
///
/// # Errors
/// `ENOENT` for a vCPU that does not exist, `ENOSPC`.
pub fn bind_ipi(xen: &(impl Hypercall + ?Sized), vcpu: VcpuId) -> Result<u32, Errno> {
    let mut op = EvtchnBindIpi { vcpu: vcpu.0, port: 0 };
    run(xen, &mut op)?;
    Ok(op.port)
}

/// A new port for an interrupt of a device, see [`physdev`](crate::physdev). `shared`: the line is shared with other
/// domains.
///
/// # Errors
/// `EINVAL` for a pirq out of range, `EEXIST` when it is bound already, `EPERM` for one that is not this domain's,
/// `ENOSPC`.
pub fn bind_pirq(xen: &(impl Hypercall + ?Sized), pirq: u32, shared: bool) -> Result<u32, Errno> {
    let flags = if shared { BIND_PIRQ_WILL_SHARE } else { 0 };
    let mut op = EvtchnBindPirq { pirq, flags, port: 0 };
    run(xen, &mut op)?;
    Ok(op.port)
}

/// Gives a port up; the other end, if there is one, becomes unbound.
///
/// # Errors
/// `EINVAL` for a port that is not open.
pub fn close(xen: &(impl Hypercall + ?Sized), port: u32) -> Result<(), Errno> {
    run(xen, &mut EvtchnClose { port }).map(drop)
}

/// Sends an event to the other end.
///
/// # Errors
/// `EINVAL` for a port of a kind that cannot send.
pub fn send(xen: &(impl Hypercall + ?Sized), port: u32) -> Result<(), Errno> {
    run(xen, &mut EvtchnSend { port }).map(drop)
}

/// What a port is bound to (`EVTCHNSTAT_*` in the field `status`).
///
/// # Errors
/// `EINVAL` for a port out of range.
pub fn status(xen: &(impl Hypercall + ?Sized), port: u32) -> Result<EvtchnStatus, Errno> {
    let mut op = EvtchnStatus { dom: DomId::SELF.0, port, ..Default::default() };
    run(xen, &mut op)?;
    Ok(op)
}

/// The number by which Xen and other domains know the calling domain.
///
/// Xen has no call for it. The number is in the status of an unbound port that the domain allocates for itself; this function
/// allocates one, reads the status, and closes the port. A restored or migrated domain has another number.
///
/// # Errors
/// As [`alloc_unbound`]; `EBADMSG` when the status is not that of such a port.
pub fn own_domain(xen: &(impl Hypercall + ?Sized)) -> Result<DomId, Errno> {
    let port = alloc_unbound(xen, DomId::SELF)?;
    let said = status(xen, port);
    close(xen, port)?;
    let EvtchnStatus { status, remote_dom, .. } = said?;
    let told = status == EVTCHNSTAT_UNBOUND && remote_dom < DomId::FIRST_RESERVED.0;
    told.then_some(DomId(remote_dom)).ok_or(Errno::EBADMSG)
}

/// Makes a port's events come to another vCPU.
///
/// # Errors
/// `EINVAL` for a port of a kind that cannot move, `ENOENT` for a vCPU that does not exist.
pub fn bind_vcpu(xen: &(impl Hypercall + ?Sized), port: u32, vcpu: VcpuId) -> Result<(), Errno> {
    run(xen, &mut EvtchnBindVcpu { port, vcpu: vcpu.0 }).map(drop)
}

/// Unmasks a port and, if its event is pending, delivers it.
///
/// # Errors
/// `EINVAL` for a port out of range.
pub fn unmask(xen: &(impl Hypercall + ?Sized), port: u32) -> Result<(), Errno> {
    run(xen, &mut EvtchnUnmask { port }).map(drop)
}

/// How often [`reset`] closes what was opened behind its back.
const RESETS: usize = 16;

/// Closes every port of this domain, and goes back to the two-level ABI. When it has
/// succeeded, pages given by [`init_control`] and [`expand_array`] are the guest's alone again; after an error they may still
/// be Xen's.
///
/// Xen closes port after port. It returns `EAGAIN` when another vCPU opened one of the ports passed meanwhile; this function then
/// makes the call again, 16 times at most.
///
/// # Errors
/// `EBUSY` while another vCPU of the domain is in this call: it is done when that one returns. `EAGAIN` when other vCPUs open
/// ports faster than Xen closes them: they must stop.
pub fn reset(xen: &(impl Hypercall + ?Sized)) -> Result<(), Errno> {
    let mut outcome = Err(Errno::EAGAIN);
    for _ in 0..RESETS {
        outcome = run(xen, &mut EvtchnReset { dom: DomId::SELF.0 }).map(drop);
        if outcome != Err(Errno::EAGAIN) {
            break;
        }
    }
    outcome
}

/// Gives Xen the control block of a vCPU, at `offset` in page `gfn`: the ready bits and the queue heads of the FIFO ABI.
/// The first call switches the domain to that ABI, without event words yet; ports that are open stay open, and events
/// that are pending are raised again once their words exist. Returns the number of bits in a link (17).
///
/// # Errors
/// `ENOENT` for a vCPU that does not exist, `EINVAL` for an offset that is no multiple of 8 or too near the end of the
/// page, for a page that is not the guest's, and for a vCPU that has one already; `ENOSYS` from a Xen before 4.4.
///
/// # Safety
/// Xen writes to the block until [`reset`], or the end of the domain. Nothing else may use those bytes meanwhile but
/// by atomics, as `struct evtchn_fifo_control_block`.
pub unsafe fn init_control(
    xen: &(impl Hypercall + ?Sized),
    gfn: Gfn,
    offset: u32,
    vcpu: VcpuId,
) -> Result<u8, Errno> {
    let mut op = EvtchnInitControl { control_gfn: gfn.0, offset, vcpu: vcpu.0, link_bits: 0, pad0: [0; 7] };
    let pointer = (&raw mut op).expose_provenance();
    // SAFETY: the call reads and fills this structure; the caller vouches for the page that it names.
    Errno::check(unsafe {
        xen.hypercall(HypercallNr::EVENT_CHANNEL_OP, [EVTCHNOP_INIT_CONTROL, pointer, 0, 0, 0])
    })?;
    Ok(op.link_bits)
}

/// Gives Xen the next page of event words of the FIFO ABI: 1024 ports more. Only its masked bits may be set.
///
/// # Errors
/// `EINVAL` for a page that is not the guest's, `ENOSPC` after 128 pages, `EOPNOTSUPP` before [`init_control`].
///
/// # Safety
/// Xen writes to the page until [`reset`], or the end of the domain. Nothing else may use it meanwhile but by atomics,
/// as `event_word_t`.
pub unsafe fn expand_array(xen: &(impl Hypercall + ?Sized), gfn: Gfn) -> Result<(), Errno> {
    let argument = EvtchnExpandArray { array_gfn: gfn.0 };
    let pointer = (&raw const argument).expose_provenance();
    // SAFETY: the call reads this structure; the caller vouches for the page that it names.
    Errno::check(unsafe {
        xen.hypercall(HypercallNr::EVENT_CHANNEL_OP, [EVTCHNOP_EXPAND_ARRAY, pointer, 0, 0, 0])
    })
    .map(drop)
}

/// Chooses the queue of a port's later events, 0 (first) to 15 (last); new ports have 7. Since Xen 4.4.
///
/// # Errors
/// `EINVAL` for a port or priority out of range, `ENOSYS` under the two-level ABI.
pub fn set_priority(xen: &(impl Hypercall + ?Sized), port: u32, priority: u32) -> Result<(), Errno> {
    run(xen, &mut EvtchnSetPriority { port, priority }).map(drop)
}
