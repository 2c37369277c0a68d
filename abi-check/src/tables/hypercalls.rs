//! xen-hypercall: the calls, their commands and structures.

use xen_hypercall::abi::*;
use xen_hypercall::hvm::HvmParam;
use xen_hypercall::sched::ShutdownReason;
use xen_hypercall::version::Features;
use xen_hypercall::{DomId, Errno, Gfn, HypercallNr, abi};

use crate::{List, consts, numbers, scalars, types};

pub(super) fn add(list: &mut List) {
    shared(list);
    calls(list);
    errors(list);
    parameters(list);
    structures(list);
}

fn shared(list: &mut List) {
    scalars!(list, { DomId = domid_t, Gfn = xen_pfn_t });
    consts!(list, DomId "DOMID_" [.0] { FIRST_RESERVED, SELF, IO, XEN, COW, INVALID, IDLE });
    consts!(list, HypercallNr "__HYPERVISOR_" [.0] {
        MEMORY_OP, MULTICALL, SET_TIMER_OP, XEN_VERSION, CONSOLE_IO, GRANT_TABLE_OP, VM_ASSIST, VCPU_OP, SCHED_OP,
        EVENT_CHANNEL_OP, PHYSDEV_OP, HVM_OP,
    });
}

fn calls(list: &mut List) {
    consts!(
        list,
        abi {
            // sched.h
            SCHEDOP_YIELD,
            SCHEDOP_BLOCK,
            SCHEDOP_SHUTDOWN,
            SCHEDOP_POLL,
            // version.h
            XENVER_VERSION,
            XENVER_EXTRAVERSION,
            XENVER_CAPABILITIES,
            XENVER_GET_FEATURES,
            XENVER_GUEST_HANDLE,
            // xen.h
            CONSOLEIO_WRITE,
            CONSOLEIO_READ,
            // vcpu.h
            VCPUOP_IS_UP,
            VCPUOP_SET_SINGLESHOT_TIMER,
            VCPUOP_STOP_SINGLESHOT_TIMER,
            VCPU_SSHOTTMR_FUTURE,
            VCPUOP_SET_PERIODIC_TIMER,
            VCPUOP_STOP_PERIODIC_TIMER,
            // memory.h
            XENMEM_ADD_TO_PHYSMAP,
            XENMEM_MEMORY_MAP,
            XENMAPSPACE_SHARED_INFO,
            XENMAPSPACE_GRANT_TABLE,
            // hvm/hvm_op.h
            HVMOP_SET_PARAM,
            HVMOP_GET_PARAM,
            HVMOP_SET_EVTCHN_UPCALL_VECTOR,
            // event_channel.h
            EVTCHNOP_BIND_INTERDOMAIN,
            EVTCHNOP_BIND_VIRQ,
            EVTCHNOP_CLOSE,
            EVTCHNOP_SEND,
            EVTCHNOP_STATUS,
            EVTCHNOP_ALLOC_UNBOUND,
            EVTCHNOP_BIND_IPI,
            EVTCHNOP_BIND_VCPU,
            EVTCHNOP_UNMASK,
            EVTCHNOP_RESET,
            EVTCHNOP_INIT_CONTROL,
            EVTCHNOP_EXPAND_ARRAY,
            EVTCHNOP_SET_PRIORITY,
            // grant_table.h
            GNTTABOP_MAP_GRANT_REF,
            GNTTABOP_UNMAP_GRANT_REF,
            GNTTABOP_COPY,
            GNTTABOP_QUERY_SIZE,
            GNTTABOP_SET_VERSION,
            GNTTABOP_GET_VERSION,
            GNTMAP_HOST_MAP,
            GNTMAP_READONLY,
            GNTCOPY_SOURCE_GREF,
            GNTCOPY_DEST_GREF,
        }
    );
    consts!(list, ShutdownReason "SHUTDOWN_" [.0] { POWEROFF, REBOOT, SUSPEND, CRASH, WATCHDOG, SOFT_RESET });
}

// EINTR and ERESTART are Xen's own, and in the headers for Xen alone.
fn errors(list: &mut List) {
    consts!(list, Errno "XEN_" [.0] {
        EPERM, ENOENT, ESRCH, EIO, ENXIO, E2BIG, ENOEXEC, EBADF, ECHILD, EAGAIN, ENOMEM, EACCES, EFAULT, EBUSY,
        EEXIST, EXDEV, ENODEV, ENOTDIR, EISDIR, EINVAL, ENFILE, EMFILE, ENOSPC, EROFS, EMLINK, EDOM, ERANGE, EDEADLK,
        ENAMETOOLONG, ENOLCK, ENOSYS, ENOTEMPTY, ENODATA, ETIME, EBADMSG, EOVERFLOW, EILSEQ, ENOTSOCK,
        EMSGSIZE, EOPNOTSUPP, EADDRINUSE, EADDRNOTAVAIL, ENOBUFS, EISCONN, ENOTCONN, ETIMEDOUT, ECONNREFUSED,
    });
}

fn parameters(list: &mut List) {
    consts!(list, HvmParam "HVM_PARAM_" [.0] {
        CALLBACK_IRQ, STORE_PFN, STORE_EVTCHN, CONSOLE_PFN, CONSOLE_EVTCHN,
    });
    numbers!(list, { "HVM_PARAM_CALLBACK_TYPE_VECTOR" = xen_hypercall::hvm::callback_vector(0) >> 56 });
    // The headers number the bits.
    consts!(list, Features "XENFEAT_" [.bits().trailing_zeros()] {
        WRITABLE_PAGE_TABLES, WRITABLE_DESCRIPTOR_TABLES, AUTO_TRANSLATED_PHYSMAP, SUPERVISOR_MODE_KERNEL,
        HVM_CALLBACK_VECTOR, HVM_SAFE_PVCLOCK, HVM_PIRQS, DOM0,
    });
}

fn structures(list: &mut List) {
    types!(list, {
        SchedShutdown = sched_shutdown { reason }
        SchedPoll = sched_poll { ports, nr_ports, pad0: _, timeout }
        XenFeatureInfo = xen_feature_info { submap_idx, submap }
        VcpuSetPeriodicTimer = vcpu_set_periodic_timer { period_ns }
        VcpuSetSingleshotTimer = vcpu_set_singleshot_timer { timeout_abs_ns, flags, pad0: _ }
        XenAddToPhysmap = xen_add_to_physmap { domid, size, space, idx, gpfn }
        XenMemoryMap = xen_memory_map { nr_entries, pad0: _, buffer }
        XenHvmParam = xen_hvm_param { domid, pad0: _, index, value }
        XenHvmEvtchnUpcallVector = xen_hvm_evtchn_upcall_vector { vcpu, vector, pad0: _ }
        EvtchnAllocUnbound = evtchn_alloc_unbound { dom, remote_dom, port }
        EvtchnBindInterdomain = evtchn_bind_interdomain { remote_dom, pad0: _, remote_port, local_port }
        EvtchnBindVirq = evtchn_bind_virq { virq, vcpu, port }
        EvtchnBindIpi = evtchn_bind_ipi { vcpu, port }
        EvtchnClose = evtchn_close { port }
        EvtchnSend = evtchn_send { port }
        EvtchnStatus = evtchn_status {
            dom, pad0: _, port, status, vcpu,
            remote_dom: ["u.interdomain.dom", "u.unbound.dom"], pad1: _, remote_port: "u.interdomain.port",
        }
        EvtchnBindVcpu = evtchn_bind_vcpu { port, vcpu }
        EvtchnUnmask = evtchn_unmask { port }
        EvtchnReset = evtchn_reset { dom }
        EvtchnInitControl = evtchn_init_control { control_gfn, offset, vcpu, link_bits, pad0: _ }
        EvtchnExpandArray = evtchn_expand_array { array_gfn }
        EvtchnSetPriority = evtchn_set_priority { port, priority }
        GnttabQuerySize = gnttab_query_size { dom, pad0: _, nr_frames, max_nr_frames, status, pad1: _ }
        GnttabMapGrantRef = gnttab_map_grant_ref {
            host_addr, flags, reference: "ref", dom, status, handle, dev_bus_addr,
        }
        GnttabUnmapGrantRef = gnttab_unmap_grant_ref { host_addr, dev_bus_addr, handle, status, pad0: _ }
        GnttabSetVersion = gnttab_set_version { version }
        GnttabGetVersion = gnttab_get_version { dom, pad0: _, version }
        GnttabCopyPtr = gnttab_copy_gnttab_copy_ptr {
            reference_or_gmfn: "u", domid, offset, pad0: _,
        }
        GnttabCopy = gnttab_copy { source, dest, len, flags, status, pad0: _ }
    });
}
