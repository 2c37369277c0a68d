//! xen-hypercall: the page that Xen shares, and what CPUID tells.

use xen_hypercall::abi::shared_info::{self as shared, aarch64, x86_64};
#[cfg(target_arch = "x86_64")]
use xen_hypercall::arch::x86_64::{HvmFeatures, TscFlags, TscMode};

#[cfg(target_arch = "x86_64")]
use crate::consts;
use crate::{Is, List, numbers, offsets};

pub(super) fn add(list: &mut List) {
    list.only("x86_64", |list| {
        numbers!(list, { "XEN_LEGACY_MAX_VCPUS" = x86_64::VCPUS });
        offsets!(list, shared_info in x86_64 {
            EVTCHN_PENDING = "evtchn_pending", EVTCHN_MASK = "evtchn_mask", WC_VERSION = "wc_version",
            WC_SEC = "wc_sec", WC_NSEC = "wc_nsec", WC_SEC_HI = "wc_sec_hi",
        });
        offsets!(list, vcpu_info in x86_64 { VCPU_TIME = "time" });
        offsets!(list, vcpu_info in shared { EVTCHN_UPCALL_MASK = "evtchn_upcall_mask" });
        info_size(list, x86_64::VCPU_INFO_SIZE);
    });
    list.only("aarch64", |list| {
        numbers!(list, { "XEN_LEGACY_MAX_VCPUS" = aarch64::VCPUS });
        offsets!(list, shared_info in aarch64 {
            EVTCHN_PENDING = "evtchn_pending", EVTCHN_MASK = "evtchn_mask", WC_VERSION = "wc_version",
            WC_SEC = "wc_sec", WC_NSEC = "wc_nsec", WC_SEC_HI = "wc_sec_hi",
        });
        offsets!(list, vcpu_info in aarch64 { VCPU_TIME = "time" });
        info_size(list, aarch64::VCPU_INFO_SIZE);
    });
    offsets!(list, vcpu_info in shared {
        EVTCHN_UPCALL_PENDING = "evtchn_upcall_pending", EVTCHN_PENDING_SEL = "evtchn_pending_sel",
    });
    offsets!(list, vcpu_time_info in shared {
        TIME_VERSION = "version", TIME_TSC_TIMESTAMP = "tsc_timestamp", TIME_SYSTEM_TIME = "system_time",
        TIME_TSC_TO_SYSTEM_MUL = "tsc_to_system_mul", TIME_SHIFT_AND_FLAGS = "tsc_shift",
    });
    #[cfg(target_arch = "x86_64")]
    consts!(list, HvmFeatures "XEN_HVM_CPUID_" [.bits()] {
        APIC_ACCESS_VIRT, X2APIC_VIRT, IOMMU_MAPPINGS, VCPU_ID_PRESENT, DOMID_PRESENT, EXT_DEST_ID, UPCALL_VECTOR,
    });
    // The numbers are older than their names, which Xen 4.18 brought.
    #[cfg(target_arch = "x86_64")]
    list.newer(|list| {
        consts!(list, TscFlags "XEN_CPUID_" [.bits()] {
            EMULATED = "XEN_CPUID_TSC_EMULATED", HOST_RELIABLE = "XEN_CPUID_HOST_TSC_RELIABLE",
            RDTSCP = "XEN_CPUID_RDTSCP_INSTR_AVAIL",
        });
        consts!(list, TscMode "XEN_CPUID_TSC_MODE_" [.0] { DEFAULT, ALWAYS_EMULATE, NEVER_EMULATE, PVRDTSCP });
    });
}

fn info_size(list: &mut List, size: usize) {
    list.push("VCPU_INFO_SIZE", "vcpu_info", Is::Type { size, align: align_of::<u64>() });
}
