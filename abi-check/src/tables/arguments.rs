//! xen-hypercall: the structures that the calls take.

use xen_hypercall::abi::*;

use crate::{List, types};

pub(super) fn add(list: &mut List) {
    machine(list);
    vcpus(list);
    memory(list);
    events(list);
    grants(list);
}

fn machine(list: &mut List) {
    types!(list, {
        MulticallEntry = multicall_entry { op, result, args }
        SchedShutdown = sched_shutdown { reason }
        SchedPoll = sched_poll { ports, nr_ports, pad0: _, timeout }
        SchedRemoteShutdown = sched_remote_shutdown { domain_id, pad0: _, reason }
        SchedWatchdog = sched_watchdog { id, timeout }
        SchedPinOverride = sched_pin_override { pcpu }
        XenPlatformParameters = xen_platform_parameters { virt_start }
        XenFeatureInfo = xen_feature_info { submap_idx, submap }
        XenCompileInfo = xen_compile_info { compiler, compile_by, compile_domain, compile_date }
        XenHvmParam = xen_hvm_param { domid, pad0: _, index, value }
        XenHvmGetTime = xen_hvm_get_time { now }
        XenHvmGetMemType = xen_hvm_get_mem_type { domid, mem_type, pad, pfn }
        XenHvmEvtchnUpcallVector = xen_hvm_evtchn_upcall_vector { vcpu, vector, pad0: _ }
        PhysdevEoi = physdev_eoi { irq }
        PhysdevPirqEoiGmfn = physdev_pirq_eoi_gmfn { gmfn }
        PhysdevIrqStatusQuery = physdev_irq_status_query { irq, flags }
        PhysdevMapPirq = physdev_map_pirq {
            domid, pad0: _, r#type: "type", index, pirq, bus, devfn, entry_nr, pad1: _, table_base,
        }
        PhysdevUnmapPirq = physdev_unmap_pirq { domid, pad0: _, pirq }
        PhysdevGetFreePirq = physdev_get_free_pirq { r#type: "type", pirq }
    });
}

fn vcpus(list: &mut List) {
    types!(list, {
        VcpuRunstateInfo = vcpu_runstate_info { state, pad0: _, state_entry_time, time }
        VcpuRegisterRunstateMemoryArea = vcpu_register_runstate_memory_area { addr: "addr" }
        VcpuSetPeriodicTimer = vcpu_set_periodic_timer { period_ns }
        VcpuSetSingleshotTimer = vcpu_set_singleshot_timer { timeout_abs_ns, flags, pad0: _ }
        VcpuRegisterVcpuInfo = vcpu_register_vcpu_info { mfn, offset, rsvd }
        VcpuGetPhysid = vcpu_get_physid { phys_id }
        VcpuRegisterTimeMemoryArea = vcpu_register_time_memory_area { addr: "addr" }
        VcpuHvmX8632 = vcpu_hvm_x86_32 {
            eax, ecx, edx, ebx, esp, ebp, esi, edi, eip, eflags, cr0, cr3, cr4, pad1, efer,
            cs_base, ds_base, ss_base, es_base, tr_base, cs_limit, ds_limit, ss_limit, es_limit, tr_limit,
            cs_ar, ds_ar, ss_ar, es_ar, tr_ar, pad2,
        }
        VcpuHvmX8664 = vcpu_hvm_x86_64 { rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, rip, rflags, cr0, cr3, cr4, efer }
        VcpuHvmContext = vcpu_hvm_context { mode, pad, cpu_regs }
    });
}

fn memory(list: &mut List) {
    types!(list, {
        XenMemoryReservation = xen_memory_reservation {
            extent_start, nr_extents, extent_order, mem_flags, domid, pad0: _,
        }
        XenMemoryDomain = xen_memory_domain { domid }
        XenAddToPhysmap = xen_add_to_physmap { domid, size, space, idx, gpfn }
        XenAddToPhysmapBatch = xen_add_to_physmap_batch {
            domid, space, size, foreign_domid: "u.foreign_domid", idxs, gpfns, errs,
        }
        XenRemoveFromPhysmap = xen_remove_from_physmap { domid, pad0: _, gpfn }
        XenMemoryMap = xen_memory_map { nr_entries, pad0: _, buffer }
    });
}

fn events(list: &mut List) {
    types!(list, {
        EvtchnAllocUnbound = evtchn_alloc_unbound { dom, remote_dom, port }
        EvtchnBindInterdomain = evtchn_bind_interdomain { remote_dom, pad0: _, remote_port, local_port }
        EvtchnBindVirq = evtchn_bind_virq { virq, vcpu, port }
        EvtchnBindPirq = evtchn_bind_pirq { pirq, flags, port }
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
    });
}

fn grants(list: &mut List) {
    types!(list, {
        GnttabMapGrantRef = gnttab_map_grant_ref {
            host_addr, flags, reference: "ref", dom, status, handle, dev_bus_addr,
        }
        GnttabUnmapGrantRef = gnttab_unmap_grant_ref { host_addr, dev_bus_addr, handle, status, pad0: _ }
        GnttabSetupTable = gnttab_setup_table { dom, pad0: _, nr_frames, status, pad1: _, frame_list }
        GnttabCopyPtr = gnttab_copy_gnttab_copy_ptr { reference_or_gmfn: "u", domid, offset, pad0: _ }
        GnttabCopy = gnttab_copy { source, dest, len, flags, status, pad0: _ }
        GnttabQuerySize = gnttab_query_size { dom, pad0: _, nr_frames, max_nr_frames, status, pad1: _ }
        GnttabSetVersion = gnttab_set_version { version }
        GnttabGetStatusFrames = gnttab_get_status_frames { nr_frames, dom, status, frame_list }
        GnttabGetVersion = gnttab_get_version { dom, pad0: _, version }
        GnttabSwapGrantRef = gnttab_swap_grant_ref { ref_a, ref_b, status, pad0: _ }
        GnttabCacheFlush = gnttab_cache_flush { address_or_reference: "a", offset, length, op }
    });
}
