//! What the compiler checks of the types here: where their fields are, as Xen's headers have them, and what may cross threads.
//!
//! `abi-check` compares the same with the headers themselves; these checks run in every build.
#![allow(dead_code, reason = "structures declared for their layout alone")]

use core::mem::{align_of, offset_of};

use static_assertions::{assert_impl_all, assert_obj_safe, const_assert_eq};

use crate::abi::*;
use crate::memory::MemoryRange;
use crate::{DomId, Errno, Gfn, HypercallNr, PAGE_SIZE, Page, SharedInfo, VcpuArea, VcpuId, VcpuTime};

/// A type's size, and where each field is, in bytes.
macro_rules! layout {
    ($($type:path = $size:literal { $($field:ident at $offset:literal),* $(,)? })*) => {$(
        const_assert_eq!(size_of::<$type>(), $size);
        $(const_assert_eq!(offset_of!($type, $field), $offset);)*
    )*};
}

layout! {
    EvtchnAllocUnbound = 8 { dom at 0, remote_dom at 2, port at 4 }
    EvtchnBindInterdomain = 12 { remote_dom at 0, remote_port at 4, local_port at 8 }
    EvtchnBindVirq = 12 { virq at 0, vcpu at 4, port at 8 }
    EvtchnBindPirq = 12 { pirq at 0, flags at 4, port at 8 }
    EvtchnBindIpi = 8 { vcpu at 0, port at 4 }
    EvtchnStatus = 24 { dom at 0, port at 4, status at 8, vcpu at 12, remote_dom at 16, remote_port at 20 }
    EvtchnBindVcpu = 8 { port at 0, vcpu at 4 }
    EvtchnInitControl = 24 { control_gfn at 0, offset at 8, vcpu at 12, link_bits at 16 }
    EvtchnSetPriority = 8 { port at 0, priority at 4 }
    GnttabQuerySize = 16 { dom at 0, nr_frames at 4, max_nr_frames at 8, status at 12 }
    GnttabMapGrantRef = 32 { host_addr at 0, flags at 8, reference at 12, dom at 16, status at 18, handle at 20, dev_bus_addr at 24 }
    GnttabUnmapGrantRef = 24 { host_addr at 0, dev_bus_addr at 8, handle at 16, status at 20 }
    GnttabGetVersion = 8 { dom at 0, version at 4 }
    GnttabCopyPtr = 16 { reference_or_gmfn at 0, domid at 8, offset at 10 }
    GnttabCopy = 40 { source at 0, dest at 16, len at 32, flags at 34, status at 36 }
    GnttabSetupTable = 24 { dom at 0, nr_frames at 4, status at 8, frame_list at 16 }
    GnttabGetStatusFrames = 16 { nr_frames at 0, dom at 4, status at 6, frame_list at 8 }
    GnttabSwapGrantRef = 12 { ref_a at 0, ref_b at 4, status at 8 }
    GnttabCacheFlush = 16 { address_or_reference at 0, offset at 8, length at 10, op at 12 }
    XenHvmParam = 16 { domid at 0, index at 4, value at 8 }
    XenHvmGetMemType = 16 { domid at 0, mem_type at 2, pfn at 8 }
    XenHvmEvtchnUpcallVector = 8 { vcpu at 0, vector at 4 }
    XenMemoryReservation = 32 { extent_start at 0, nr_extents at 8, extent_order at 16, mem_flags at 20, domid at 24 }
    XenAddToPhysmap = 24 { domid at 0, size at 2, space at 4, idx at 8, gpfn at 16 }
    XenAddToPhysmapBatch = 32 { domid at 0, space at 2, size at 4, foreign_domid at 6, idxs at 8, gpfns at 16, errs at 24 }
    XenRemoveFromPhysmap = 16 { domid at 0, gpfn at 8 }
    XenMemoryMap = 16 { nr_entries at 0, buffer at 8 }
    PhysdevIrqStatusQuery = 8 { irq at 0, flags at 4 }
    PhysdevMapPirq = 40 { domid at 0, r#type at 4, index at 8, pirq at 12, bus at 16, devfn at 20, entry_nr at 24, table_base at 32 }
    PhysdevUnmapPirq = 8 { domid at 0, pirq at 4 }
    PhysdevGetFreePirq = 8 { r#type at 0, pirq at 4 }
    SchedPoll = 24 { ports at 0, nr_ports at 8, timeout at 16 }
    SchedRemoteShutdown = 8 { domain_id at 0, reason at 4 }
    SchedWatchdog = 8 { id at 0, timeout at 4 }
    VcpuRunstateInfo = 48 { state at 0, state_entry_time at 8, time at 16 }
    VcpuSetSingleshotTimer = 16 { timeout_abs_ns at 0, flags at 8 }
    VcpuRegisterVcpuInfo = 16 { mfn at 0, offset at 8 }
    VcpuHvmX8632 = 120 { eax at 0, ecx at 4, edx at 8, ebx at 12, esp at 16, ebp at 20, esi at 24, edi at 28, eip at 32, eflags at 36, cr0 at 40, cr3 at 44, cr4 at 48, efer at 56, cs_base at 64, ds_base at 68, ss_base at 72, es_base at 76, tr_base at 80, cs_limit at 84, ds_limit at 88, ss_limit at 92, es_limit at 96, tr_limit at 100, cs_ar at 104, ds_ar at 106, ss_ar at 108, es_ar at 110, tr_ar at 112 }
    VcpuHvmX8664 = 112 { rax at 0, rcx at 8, rdx at 16, rbx at 24, rsp at 32, rbp at 40, rsi at 48, rdi at 56, rip at 64, rflags at 72, cr0 at 80, cr3 at 88, cr4 at 96, efer at 104 }
    VcpuHvmContext = 128 { mode at 0, cpu_regs at 8 }
    XenFeatureInfo = 8 { submap_idx at 0, submap at 4 }
    MulticallEntry = 64 { op at 0, result at 8, args at 16 }
    XenCompileInfo = 144 { compiler at 0, compile_by at 64, compile_domain at 80, compile_date at 112 }
    MemoryRange = 20 { start at 0, size at 8, kind at 16 }
}

/// `shared_info` as the headers declare it, of which the crate knows the places alone: [`shared_info`].
macro_rules! shared {
    ($arch:ident, $arch_words:literal) => {
        mod $arch {
            use core::mem::offset_of;
            use static_assertions::const_assert_eq;

            use crate::PAGE_SIZE;
            use crate::abi::shared_info::{self as at, $arch as there};

            #[repr(C)]
            struct TimeInfo {
                version: u32,
                pad0: u32,
                tsc_timestamp: u64,
                system_time: u64,
                tsc_to_system_mul: u32,
                tsc_shift: i8,
                flags: u8,
                pad1: [u8; 2],
            }

            #[repr(C)]
            struct VcpuInfo {
                evtchn_upcall_pending: u8,
                evtchn_upcall_mask: u8,
                evtchn_pending_sel: u64,
                arch: [u64; $arch_words],
                time: TimeInfo,
            }

            #[repr(C)]
            struct SharedInfo {
                vcpu_info: [VcpuInfo; there::VCPUS],
                evtchn_pending: [u64; 64],
                evtchn_mask: [u64; 64],
                wc_version: u32,
                wc_sec: u32,
                wc_nsec: u32,
                wc_sec_hi: u32,
            }

            const_assert_eq!(offset_of!(TimeInfo, version), at::TIME_VERSION);
            const_assert_eq!(offset_of!(TimeInfo, tsc_timestamp), at::TIME_TSC_TIMESTAMP);
            const_assert_eq!(offset_of!(TimeInfo, system_time), at::TIME_SYSTEM_TIME);
            const_assert_eq!(offset_of!(TimeInfo, tsc_to_system_mul), at::TIME_TSC_TO_SYSTEM_MUL);
            const_assert_eq!(offset_of!(TimeInfo, tsc_shift), at::TIME_SHIFT_AND_FLAGS);
            const_assert_eq!(size_of::<VcpuInfo>(), there::VCPU_INFO_SIZE);
            const_assert_eq!(offset_of!(VcpuInfo, evtchn_upcall_pending), at::EVTCHN_UPCALL_PENDING);
            const_assert_eq!(offset_of!(VcpuInfo, evtchn_upcall_mask), at::EVTCHN_UPCALL_MASK);
            const_assert_eq!(offset_of!(VcpuInfo, evtchn_pending_sel), at::EVTCHN_PENDING_SEL);
            const_assert_eq!(offset_of!(VcpuInfo, time), there::VCPU_TIME);
            const_assert_eq!(offset_of!(SharedInfo, evtchn_pending), there::EVTCHN_PENDING);
            const_assert_eq!(offset_of!(SharedInfo, evtchn_mask), there::EVTCHN_MASK);
            const_assert_eq!(offset_of!(SharedInfo, wc_version), there::WC_VERSION);
            const_assert_eq!(offset_of!(SharedInfo, wc_sec), there::WC_SEC);
            const_assert_eq!(offset_of!(SharedInfo, wc_nsec), there::WC_NSEC);
            const_assert_eq!(offset_of!(SharedInfo, wc_sec_hi), there::WC_SEC_HI);
            static_assertions::const_assert!(size_of::<SharedInfo>() <= PAGE_SIZE);
        }
    };
}

shared!(x86_64, 2);
shared!(aarch64, 0);

const_assert_eq!(size_of::<Page>(), PAGE_SIZE);
const_assert_eq!(align_of::<Page>(), PAGE_SIZE);

// Handles and plain values go anywhere.
assert_impl_all!(SharedInfo<'static>: Send, Sync, Copy);
assert_impl_all!(VcpuArea<'static>: Send, Sync, Copy);
assert_impl_all!(VcpuTime: Send, Sync, Copy);
assert_impl_all!(DomId: Send, Sync, Copy);
assert_impl_all!(Gfn: Send, Sync, Copy);
assert_impl_all!(VcpuId: Send, Sync, Copy);
assert_impl_all!(HypercallNr: Send, Sync, Copy);
assert_impl_all!(Errno: Send, Sync, Copy, core::error::Error);
assert_obj_safe!(crate::Hypercall, crate::PageMemory, crate::GrantRoom, crate::Wait);
#[cfg(feature = "mock")]
assert_impl_all!(crate::mock::MockDomain: Send, Sync, Clone, crate::GrantRoom, crate::Wait);
