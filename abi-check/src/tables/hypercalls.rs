//! xen-hypercall: the calls and their commands. Their structures are in `arguments`.

use xen_hypercall::hvm::{self, HvmParam, MemType};
use xen_hypercall::memory::{MemFlags, PhysmapSpace};
use xen_hypercall::sched::{ShutdownCode, ShutdownReason};
use xen_hypercall::version::Features;
use xen_hypercall::{DomId, Errno, Gfn, HypercallNr, VcpuId, abi};

use crate::{List, consts, numbers, scalars};

pub(super) fn add(list: &mut List) {
    shared(list);
    commands(list);
    arguments(list);
    errors(list);
    wrapped(list);
    list.newer(newer);
}

fn shared(list: &mut List) {
    scalars!(list, { DomId = domid_t, Gfn = xen_pfn_t });
    consts!(list, DomId "DOMID_" [.0] { FIRST_RESERVED, SELF, IO, XEN, COW, INVALID, IDLE });
    consts!(list, HypercallNr "__HYPERVISOR_" [.0] {
        MEMORY_OP, MULTICALL, SET_TIMER_OP, XEN_VERSION, CONSOLE_IO, GRANT_TABLE_OP, VM_ASSIST, VCPU_OP, SCHED_OP,
        EVENT_CHANNEL_OP, PHYSDEV_OP, HVM_OP,
    });
    // A vCPU's number has no type of its own in the headers.
    const _: () = assert!(size_of::<VcpuId>() == size_of::<u32>());
}

fn commands(list: &mut List) {
    consts!(
        list,
        abi {
            // sched.h
            SCHEDOP_YIELD,
            SCHEDOP_BLOCK,
            SCHEDOP_SHUTDOWN,
            SCHEDOP_POLL,
            SCHEDOP_REMOTE_SHUTDOWN,
            SCHEDOP_SHUTDOWN_CODE,
            SCHEDOP_WATCHDOG,
            SCHEDOP_PIN_OVERRIDE,
            // version.h
            XENVER_VERSION,
            XENVER_EXTRAVERSION,
            XENVER_COMPILE_INFO,
            XENVER_CAPABILITIES,
            XENVER_CHANGESET,
            XENVER_PLATFORM_PARAMETERS,
            XENVER_GET_FEATURES,
            XENVER_PAGESIZE,
            XENVER_GUEST_HANDLE,
            XENVER_COMMANDLINE,
            XENVER_BUILD_ID,
            // xen.h
            CONSOLEIO_WRITE,
            CONSOLEIO_READ,
            VMASST_CMD_ENABLE,
            VMASST_CMD_DISABLE,
            // vcpu.h
            VCPUOP_INITIALISE,
            VCPUOP_UP,
            VCPUOP_DOWN,
            VCPUOP_IS_UP,
            VCPUOP_GET_RUNSTATE_INFO,
            VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA,
            VCPUOP_SET_PERIODIC_TIMER,
            VCPUOP_STOP_PERIODIC_TIMER,
            VCPUOP_SET_SINGLESHOT_TIMER,
            VCPUOP_STOP_SINGLESHOT_TIMER,
            VCPUOP_REGISTER_VCPU_INFO,
            VCPUOP_SEND_NMI,
            VCPUOP_GET_PHYSID,
            VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA,
            // memory.h
            XENMEM_DECREASE_RESERVATION,
            XENMEM_MAXIMUM_RAM_PAGE,
            XENMEM_CURRENT_RESERVATION,
            XENMEM_MAXIMUM_RESERVATION,
            XENMEM_POPULATE_PHYSMAP,
            XENMEM_ADD_TO_PHYSMAP,
            XENMEM_MEMORY_MAP,
            XENMEM_MAXIMUM_GPFN,
            XENMEM_REMOVE_FROM_PHYSMAP,
            XENMEM_ADD_TO_PHYSMAP_BATCH,
            // hvm/hvm_op.h
            HVMOP_SET_PARAM,
            HVMOP_GET_PARAM,
            HVMOP_FLUSH_TLBS,
            HVMOP_GET_TIME,
            HVMOP_GET_MEM_TYPE,
            HVMOP_SET_EVTCHN_UPCALL_VECTOR,
            HVMOP_GUEST_REQUEST_VM_EVENT,
            // event_channel.h
            EVTCHNOP_BIND_INTERDOMAIN,
            EVTCHNOP_BIND_VIRQ,
            EVTCHNOP_BIND_PIRQ,
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
            GNTTABOP_SETUP_TABLE,
            GNTTABOP_COPY,
            GNTTABOP_QUERY_SIZE,
            GNTTABOP_SET_VERSION,
            GNTTABOP_GET_STATUS_FRAMES,
            GNTTABOP_GET_VERSION,
            GNTTABOP_SWAP_GRANT_REF,
            GNTTABOP_CACHE_FLUSH,
            // physdev.h
            PHYSDEVOP_IRQ_STATUS_QUERY,
            PHYSDEVOP_EOI,
            PHYSDEVOP_MAP_PIRQ,
            PHYSDEVOP_UNMAP_PIRQ,
            PHYSDEVOP_GET_FREE_PIRQ,
            PHYSDEVOP_PIRQ_EOI_GMFN_V2,
        }
    );
}

/// Since Xen 4.18 or later.
fn newer(list: &mut List) {
    consts!(list, DomId "DOMID_" [.0] { ANY });
    consts!(
        list,
        abi {
            // version.h
            XENVER_EXTRAVERSION2,
            XENVER_CAPABILITIES2,
            XENVER_CHANGESET2,
            XENVER_COMMANDLINE2,
            // features.h
            XENFEAT_RUNSTATE_PHYS_AREA,
            XENFEAT_VCPU_TIME_PHYS_AREA,
            XENFEAT_DM_MSIX_ALL_WRITES,
            // vcpu.h
            VCPUOP_REGISTER_RUNSTATE_PHYS_AREA,
            VCPUOP_REGISTER_VCPU_TIME_PHYS_AREA,
        }
    );
    consts!(list, Features "XENFEAT_" [.bits().trailing_zeros()] {
        RUNSTATE_PHYS_AREA, VCPU_TIME_PHYS_AREA, DM_MSIX_ALL_WRITES,
    });
}

/// What stands in the arguments' fields.
fn arguments(list: &mut List) {
    consts!(list, abi {
        // sched.h
        SHUTDOWN_POWEROFF, SHUTDOWN_REBOOT, SHUTDOWN_SUSPEND, SHUTDOWN_CRASH, SHUTDOWN_WATCHDOG, SHUTDOWN_SOFT_RESET,
        // features.h
        XENFEAT_WRITABLE_PAGE_TABLES, XENFEAT_WRITABLE_DESCRIPTOR_TABLES, XENFEAT_AUTO_TRANSLATED_PHYSMAP,
        XENFEAT_SUPERVISOR_MODE_KERNEL, XENFEAT_PAE_PGDIR_ABOVE_4GB, XENFEAT_MMU_PT_UPDATE_PRESERVE_AD,
        XENFEAT_HIGHMEM_ASSIST, XENFEAT_GNTTAB_MAP_AVAIL_BITS, XENFEAT_HVM_CALLBACK_VECTOR, XENFEAT_HVM_SAFE_PVCLOCK,
        XENFEAT_HVM_PIRQS, XENFEAT_DOM0, XENFEAT_MEMORY_OP_VNODE_SUPPORTED, XENFEAT_ARM_SMCCC_SUPPORTED,
        XENFEAT_LINUX_RSDP_UNRESTRICTED, XENFEAT_NOT_DIRECT_MAPPED, XENFEAT_DIRECT_MAPPED,
        // xen.h
        VMASST_TYPE_4GB_SEGMENTS, VMASST_TYPE_4GB_SEGMENTS_NOTIFY, VMASST_TYPE_WRITABLE_PAGETABLES,
        VMASST_TYPE_PAE_EXTENDED_CR3, VMASST_TYPE_ARCHITECTURAL_IOPL, VMASST_TYPE_RUNSTATE_UPDATE_FLAG,
        VMASST_TYPE_M2P_STRICT,
        // vcpu.h and hvm/hvm_vcpu.h
        VCPU_SSHOTTMR_FUTURE, RUNSTATE_RUNNING, RUNSTATE_RUNNABLE, RUNSTATE_BLOCKED, RUNSTATE_OFFLINE,
        XEN_RUNSTATE_UPDATE, VCPU_HVM_MODE_32B, VCPU_HVM_MODE_64B,
        // memory.h
        XENMAPSPACE_SHARED_INFO, XENMAPSPACE_GRANT_TABLE, XENMAPSPACE_GMFN, XENMAPSPACE_GMFN_RANGE,
        XENMAPSPACE_GMFN_FOREIGN, XENMAPSPACE_DEV_MMIO, XENMAPIDX_GRANT_TABLE_STATUS, XENMEMF_POPULATE_ON_DEMAND,
        XENMEMF_EXACT_NODE_REQUEST, XENMEMF_VNODE,
        // hvm/hvm_op.h and hvm/params.h
        HVMMEM_RAM_RW, HVMMEM_RAM_RO, HVMMEM_MMIO_DM, HVMMEM_IOREQ_SERVER, HVM_PARAM_CALLBACK_IRQ,
        HVM_PARAM_STORE_PFN, HVM_PARAM_STORE_EVTCHN, HVM_PARAM_VM86_TSS, HVM_PARAM_CONSOLE_PFN,
        HVM_PARAM_CONSOLE_EVTCHN, HVM_PARAM_ACPI_IOPORTS_LOCATION, HVM_PARAM_VM_GENERATION_ID_ADDR, HVM_PARAM_ALTP2M,
        HVM_PARAM_X87_FIP_WIDTH, HVM_PARAM_VM86_TSS_SIZED, HVM_PARAM_CALLBACK_TYPE_GSI,
        HVM_PARAM_CALLBACK_TYPE_PCI_INTX, HVM_PARAM_CALLBACK_TYPE_VECTOR, HVM_PARAM_CALLBACK_TYPE_PPI,
        // event_channel.h
        BIND_PIRQ_WILL_SHARE = "BIND_PIRQ__WILL_SHARE", EVTCHNSTAT_CLOSED, EVTCHNSTAT_UNBOUND, EVTCHNSTAT_INTERDOMAIN,
        EVTCHNSTAT_PIRQ, EVTCHNSTAT_VIRQ, EVTCHNSTAT_IPI,
        // grant_table.h
        GNTMAP_HOST_MAP, GNTMAP_READONLY, GNTCOPY_SOURCE_GREF, GNTCOPY_DEST_GREF, GNTTAB_CACHE_CLEAN,
        GNTTAB_CACHE_INVAL, GNTTAB_CACHE_SOURCE_GREF,
        // physdev.h
        XENIRQSTAT_NEEDS_EOI, XENIRQSTAT_SHARED, MAP_PIRQ_TYPE_MSI, MAP_PIRQ_TYPE_GSI, MAP_PIRQ_TYPE_MSI_SEG,
        MAP_PIRQ_TYPE_MULTI_MSI,
    });
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

/// The same numbers in the types of the modules that make the calls.
fn wrapped(list: &mut List) {
    consts!(list, ShutdownCode "SHUTDOWN_" [.0] { POWEROFF, REBOOT, SUSPEND, CRASH, WATCHDOG, SOFT_RESET });
    consts!(list, ShutdownReason "SHUTDOWN_" [.code().0] { POWEROFF, REBOOT, CRASH, WATCHDOG });
    consts!(list, PhysmapSpace "XENMAPSPACE_" [.0] { SHARED_INFO, GRANT_TABLE, GMFN = "XENMAPSPACE_gmfn", GMFN_FOREIGN = "XENMAPSPACE_gmfn_foreign" });
    consts!(list, MemFlags "XENMEMF_" [.bits()] {
        POPULATE_ON_DEMAND = "XENMEMF_populate_on_demand", EXACT_NODE = "XENMEMF_exact_node_request",
        VNODE = "XENMEMF_vnode",
    });
    consts!(list, HvmParam "HVM_PARAM_" [.0] {
        CALLBACK_IRQ, STORE_PFN, STORE_EVTCHN, CONSOLE_PFN, CONSOLE_EVTCHN,
        VM86_TSS, VM86_TSS_SIZED, ACPI_IOPORTS_LOCATION, VM_GENERATION_ID_ADDR, ALTP2M, X87_FIP_WIDTH,
    });
    consts!(list, MemType "HVMMEM_" [.0] {
        RAM = "HVMMEM_ram_rw", READ_ONLY = "HVMMEM_ram_ro", MMIO = "HVMMEM_mmio_dm",
        IOREQ_SERVER = "HVMMEM_ioreq_server",
    });
    numbers!(list, { "HVM_PARAM_CALLBACK_TYPE_VECTOR" = hvm::callback_vector(hvm::Vector::FIRST) >> 56 });
    // The headers number the bits.
    consts!(list, Features "XENFEAT_" [.bits().trailing_zeros()] {
        WRITABLE_PAGE_TABLES, WRITABLE_DESCRIPTOR_TABLES, AUTO_TRANSLATED_PHYSMAP, SUPERVISOR_MODE_KERNEL,
        HVM_CALLBACK_VECTOR, HVM_SAFE_PVCLOCK, HVM_PIRQS, DOM0, PAE_PGDIR_ABOVE_4GB, MMU_PT_UPDATE_PRESERVE_AD, HIGHMEM_ASSIST,
        GNTTAB_MAP_AVAIL_BITS, NOT_DIRECT_MAPPED, DIRECT_MAPPED, MEMORY_OP_VNODE = "XENFEAT_memory_op_vnode_supported",
        ARM_SMCCC = "XENFEAT_ARM_SMCCC_supported", LINUX_RSDP_UNRESTRICTED,
    });
}
