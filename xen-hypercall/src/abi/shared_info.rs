//! Where things stand in the `shared_info` page and its parts (`xen.h`, `arch-x86/xen.h`, `arch-arm.h`), in bytes.
//!
//! Both architectures' layouts are here whatever the target is, so that each can be compared with Xen's headers.

macro_rules! layout {
    ($arch:ident, $name:literal: $vcpus:literal vCPUs of $size:literal bytes, time at $time:literal) => {
        #[doc = concat!("The layout that guests on ", $name, " see.")]
        pub mod $arch {
            /// How many vCPUs have their `vcpu_info` in this page (`XEN_LEGACY_MAX_VCPUS`).
            pub const VCPUS: usize = $vcpus;
            /// Size of a `vcpu_info`.
            pub const VCPU_INFO_SIZE: usize = $size;
            /// `vcpu_info.time`
            pub const VCPU_TIME: usize = $time;
            pub const EVTCHN_PENDING: usize = VCPUS * VCPU_INFO_SIZE;
            pub const EVTCHN_MASK: usize = EVTCHN_PENDING + 512;
            pub const WC_VERSION: usize = EVTCHN_MASK + 512;
            pub const WC_SEC: usize = WC_VERSION + 4;
            pub const WC_NSEC: usize = WC_VERSION + 8;
            pub const WC_SEC_HI: usize = WC_VERSION + 12;
        }
    };
}

layout!(x86_64, "x86-64": 32 vCPUs of 64 bytes, time at 32);
layout!(aarch64, "arm64": 1 vCPUs of 48 bytes, time at 16);

// The tests run on the host with arm64's layout too, where only vCPU 0 has a place: `--cfg xen_layout="aarch64"`.
#[cfg(any(target_arch = "aarch64", xen_layout = "aarch64"))]
pub use aarch64::*;
#[cfg(not(any(target_arch = "aarch64", xen_layout = "aarch64")))]
pub use x86_64::*;

pub const EVTCHN_UPCALL_PENDING: usize = 0;
/// PV guests on x86 alone have it; elsewhere a byte of padding.
pub const EVTCHN_UPCALL_MASK: usize = 1;
pub const EVTCHN_PENDING_SEL: usize = 8;

/// `vcpu_time_info`
pub const TIME_VERSION: usize = 0;
pub const TIME_TSC_TIMESTAMP: usize = 8;
pub const TIME_SYSTEM_TIME: usize = 16;
pub const TIME_TSC_TO_SYSTEM_MUL: usize = 24;
/// `tsc_shift` and `flags` are bytes of the word here.
pub const TIME_SHIFT_AND_FLAGS: usize = 28;
