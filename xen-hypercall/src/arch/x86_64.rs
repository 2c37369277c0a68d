//! Hypercalls on x86-64 (`arch-x86/xen-x86_64.h` and the guest guide's page on the hypercall ABI).
//!
//! The number goes in `rax`, arguments in `rdi`, `rsi`, `rdx`, `r10` and `r8`; the result comes in `rax`, and the
//! argument registers may come back changed (a debug build of Xen does so on purpose).
#![allow(unsafe_code, reason = "traps to Xen")]

use core::arch::{asm, x86_64::__cpuid_count};

use crate::{Hypercall, HypercallNr};

// Its assembly is for ELF objects, which kernels are; the crate itself also builds for other hosts.
#[cfg(not(any(windows, target_vendor = "apple")))]
pub mod idle;

/// Which instruction enters the hypervisor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Instruction {
    /// Intel's.
    Vmcall,
    /// AMD's and Hygon's.
    Vmmcall,
}

/// Calls Xen by the processor's own instruction, for HVM and PVH guests.
///
/// This is what Xen recommends since a page of code shared by all was found to weaken a kernel's protection
/// against speculation (XSA-466).
#[derive(Clone, Copy, Debug)]
pub struct VendorCall(Instruction);

impl VendorCall {
    /// Chooses the instruction by the processor's vendor. None: the vendor is not one that Xen runs on.
    ///
    /// # Safety
    /// This code runs in ring 0 of an HVM or PVH domain of Xen.
    pub unsafe fn detect() -> Option<Self> {
        // SAFETY: the caller vouches for where this runs, and the processor for what it is.
        unsafe { Self::of_vendor(vendor(cpuid)) }
    }

    /// The instruction of a vendor's processors, by the name that [`vendor`] reads; for kernels that know it already.
    /// None: the vendor is not one that Xen runs on.
    ///
    /// # Safety
    /// This code runs in ring 0 of an HVM or PVH domain of Xen, on a processor of this vendor.
    pub const unsafe fn of_vendor(vendor: [u8; 12]) -> Option<Self> {
        match &vendor {
            b"GenuineIntel" | b"CentaurHauls" | b"  Shanghai  " => Some(Self(Instruction::Vmcall)),
            b"AuthenticAMD" | b"HygonGenuine" => Some(Self(Instruction::Vmmcall)),
            _ => None,
        }
    }

    /// The name of the instruction.
    pub const fn name(&self) -> &'static str {
        match self.0 {
            Instruction::Vmcall => "vmcall",
            Instruction::Vmmcall => "vmmcall",
        }
    }
}

/// Enters the hypervisor with the registers that its ABI wants.
macro_rules! enter {
    ($instruction:literal, $nr:expr, $args:expr $(, $extra:tt)*) => {{
        let [a, b, c, d, e] = $args;
        let result: isize;
        asm!(
            $instruction,
            $($extra)*
            inlateout("rax") $nr.0 => result,
            inlateout("rdi") a => _,
            inlateout("rsi") b => _,
            inlateout("rdx") c => _,
            inlateout("r10") d => _,
            inlateout("r8") e => _,
        );
        result
    }};
}

// SAFETY: number and arguments go where Xen's ABI wants them, and every argument register is declared as changed.
unsafe impl Hypercall for VendorCall {
    #[inline]
    unsafe fn hypercall(&self, nr: HypercallNr, args: [usize; 5]) -> isize {
        // SAFETY: `detect` promises that this is a domain of Xen; the caller vouches for the call itself.
        unsafe {
            match self.0 {
                Instruction::Vmcall => enter!("vmcall", nr, args),
                Instruction::Vmmcall => enter!("vmmcall", nr, args),
            }
        }
    }
}

/// Bytes of code for each hypercall in a hypercall page.
const ENTRY_SIZE: usize = 32;

/// Calls Xen through a page of code that Xen wrote, the older way.
#[derive(Clone, Copy, Debug)]
pub struct HypercallPage(*const u8);

// SAFETY: the page is only executed; nothing is written.
unsafe impl Send for HypercallPage {}
// SAFETY: as above.
unsafe impl Sync for HypercallPage {}

impl HypercallPage {
    /// Uses a page in which Xen has put its code: by [`msr`](Self::msr) (HVM, PVH), or by the ELF note (PV).
    ///
    /// # Safety
    /// `page` is such a page, mapped executable for as long as this is used; entry `n` is at byte `32 * n`.
    pub const unsafe fn new(page: *const u8) -> Self {
        Self(page)
    }

    /// The model-specific register to which a guest writes the page's physical address, so that Xen fills it.
    /// None: not on Xen.
    pub fn msr() -> Option<u32> {
        let base = cpuid_base(cpuid)?;
        Some(cpuid(base + 2, 0)[1])
    }
}

// SAFETY: as for `VendorCall`; a `call` keeps to the same registers, and the stack it uses is below a frame that
// the compiler keeps free (the asm is not marked `nostack`).
unsafe impl Hypercall for HypercallPage {
    #[inline]
    unsafe fn hypercall(&self, nr: HypercallNr, args: [usize; 5]) -> isize {
        let entry = self.0.wrapping_add(nr.0.wrapping_mul(ENTRY_SIZE));
        let [a, b, c, d, e] = args;
        let result: isize;
        // SAFETY: `new` promises code of Xen's at `entry`; the caller vouches for the call itself.
        unsafe {
            asm!(
                "call rax",
                inlateout("rax") entry => result,
                inlateout("rdi") a => _,
                inlateout("rsi") b => _,
                inlateout("rdx") c => _,
                inlateout("r10") d => _,
                inlateout("r8") e => _,
                // Xen's code puts the number into eax itself; these it may use on the way.
                lateout("rcx") _,
                lateout("r9") _,
                lateout("r11") _,
            );
        }
        result
    }
}

/// `eax`, `ebx`, `ecx`, `edx` of a CPUID leaf.
pub type Leaf = [u32; 4];

/// Asks the processor.
pub fn cpuid(leaf: u32, subleaf: u32) -> Leaf {
    // SAFETY: every processor of 64 bits has the instruction.
    #[allow(unused_unsafe, reason = "the function is safe in newer versions of Rust")]
    let answer = unsafe { __cpuid_count(leaf, subleaf) };
    [answer.eax, answer.ebx, answer.ecx, answer.edx]
}

/// The processor's vendor, twelve characters.
pub fn vendor(cpuid: impl Fn(u32, u32) -> Leaf) -> [u8; 12] {
    let [_, b, c, d] = cpuid(0, 0);
    text([b, d, c])
}

/// The first of Xen's CPUID leaves (`arch-x86/cpuid.h`): 0x4000_0000, or up to 0xFF00 beyond when another
/// hypervisor's interface comes first. None: not on Xen.
pub fn cpuid_base(cpuid: impl Fn(u32, u32) -> Leaf) -> Option<u32> {
    (0x4000_0000..0x4001_0000).step_by(0x100).find(|base| {
        let [max, b, c, d] = cpuid(*base, 0);
        text([b, c, d]) == *b"XenVMMXenVMM" && max >= base + 2
    })
}

/// Xen's version by CPUID: major and minor. It works before any hypercall does. None: not on Xen.
pub fn cpuid_version(cpuid: impl Fn(u32, u32) -> Leaf) -> Option<(u16, u16)> {
    let base = cpuid_base(&cpuid)?;
    let [version, ..] = cpuid(base + 1, 0);
    Some(((version >> 16) as u16, version as u16))
}

bitflags::bitflags! {
    /// What Xen tells an HVM or PVH guest by CPUID (leaf 4, `XEN_HVM_CPUID_*`). Unknown bits are kept.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct HvmFeatures: u32 {
        /// Accesses to the local APIC's registers are virtualised.
        const APIC_ACCESS_VIRT = 1 << 0;
        /// So are those of the x2APIC.
        const X2APIC_VIRT = 1 << 1;
        /// Frames mapped from other domains are in the IOMMU too.
        const IOMMU_MAPPINGS = 1 << 2;
        /// The vCPU's number is in `ebx`.
        const VCPU_ID_PRESENT = 1 << 3;
        /// The domain's number is in `ecx`.
        const DOMID_PRESENT = 1 << 4;
        /// Interrupts of the I/O APIC and messages reach local APICs above 255, up to 32767.
        const EXT_DEST_ID = 1 << 5;
        /// A vCPU's own vector for events ([`set_evtchn_upcall_vector`](crate::hvm::set_evtchn_upcall_vector)) works together
        /// with interrupts of devices as events.
        const UPCALL_VECTOR = 1 << 6;
        const _ = !0;
    }
}

/// What leaf 4 tells: features, this vCPU's number and this domain's number as far as they are told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct HvmLeaf {
    /// What Xen offers.
    pub features: HvmFeatures,
    /// The number of the vCPU that asked.
    pub vcpu: Option<crate::VcpuId>,
    /// The number of this domain.
    pub domain: Option<crate::DomId>,
}

/// Reads leaf 4. None: not on Xen, or a Xen without this leaf.
pub fn hvm_leaf(cpuid: impl Fn(u32, u32) -> Leaf) -> Option<HvmLeaf> {
    let base = cpuid_base(&cpuid)?;
    let [max, ..] = cpuid(base, 0);
    if max < base + 4 {
        return None;
    }
    let [features, vcpu, domain, _] = cpuid(base + 4, 0);
    let features = HvmFeatures::from_bits_retain(features);
    Some(HvmLeaf {
        features,
        vcpu: features.contains(HvmFeatures::VCPU_ID_PRESENT).then_some(crate::VcpuId(vcpu)),
        domain: features.contains(HvmFeatures::DOMID_PRESENT).then_some(crate::DomId(domain as u16)),
    })
}

bitflags::bitflags! {
    /// What Xen tells of the time stamp counter by CPUID (leaf 3). Unknown bits are kept.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct TscFlags: u32 {
        /// Each reading traps to Xen (`XEN_CPUID_TSC_EMULATED`).
        const EMULATED = 1 << 0;
        /// The machine's counters run alike on all processors and never stop (`XEN_CPUID_HOST_TSC_RELIABLE`).
        const HOST_RELIABLE = 1 << 1;
        /// The processor has `rdtscp` (`XEN_CPUID_RDTSCP_INSTR_AVAIL`).
        const RDTSCP = 1 << 2;
        const _ = !0;
    }
}

/// How the toolstack wants the time stamp counter (`XEN_CPUID_TSC_MODE_*`). Unknown numbers are kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(transparent)]
pub struct TscMode(pub u32);

impl TscMode {
    /// The machine's as long as that is right, emulated otherwise.
    pub const DEFAULT: Self = Self(0);
    /// Emulated always.
    pub const ALWAYS_EMULATE: Self = Self(1);
    /// The machine's always, even after a migration to one whose counter runs at another rate.
    pub const NEVER_EMULATE: Self = Self(2);
    /// The machine's, with the incarnation in `TSC_AUX`. Newer versions of Xen do not have it.
    pub const PVRDTSCP: Self = Self(3);
}

/// What leaf 3 tells of the time stamp counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct TscLeaf {
    /// How it behaves.
    pub flags: TscFlags,
    /// What the toolstack wants.
    pub mode: TscMode,
    /// Counts in a millisecond, as the guest sees them.
    pub guest_khz: u32,
    /// How often the domain was restored or migrated.
    pub incarnation: u32,
    /// Counts of the machine's counter in a millisecond.
    pub host_khz: u32,
}

/// Reads leaf 3. None: not on Xen, or a Xen without this leaf.
pub fn tsc_leaf(cpuid: impl Fn(u32, u32) -> Leaf) -> Option<TscLeaf> {
    let base = cpuid_base(&cpuid)?;
    let [max, ..] = cpuid(base, 0);
    if max < base + 3 {
        return None;
    }
    let [flags, mode, guest_khz, incarnation] = cpuid(base + 3, 0);
    let [host_khz, ..] = cpuid(base + 3, 2);
    let flags = TscFlags::from_bits_retain(flags);
    Some(TscLeaf { flags, mode: TscMode(mode), guest_khz, incarnation, host_khz })
}

fn text(registers: [u32; 3]) -> [u8; 12] {
    let mut out = [0; 12];
    for (to, register) in out.chunks_exact_mut(4).zip(registers) {
        to.copy_from_slice(&register.to_le_bytes());
    }
    out
}
