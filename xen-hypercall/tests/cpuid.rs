//! Xen's CPUID leaves and the processor's vendor, read from processors made up for the purpose.
#![cfg(target_arch = "x86_64")]

use std::cell::RefCell;

use xen_hypercall::arch::x86_64::{
    HvmFeatures, Leaf, TscFlags, TscMode, VendorCall, cpuid_base, cpuid_version, hvm_leaf, tsc_leaf, vendor,
};
use xen_hypercall::{DomId, VcpuId};

/// Twelve characters in the order that a hypervisor's leaf has them: `ebx`, `ecx`, `edx`.
fn signature(max: u32, text: &[u8; 12]) -> Leaf {
    let word = |at: usize| u32::from_le_bytes(text[at..at + 4].try_into().unwrap());
    [max, word(0), word(4), word(8)]
}

/// A processor on Xen, whose leaves begin at `base` and end at `base + leaves`.
fn xen_at(base: u32, leaves: u32, features: u32) -> impl Fn(u32, u32) -> Leaf {
    move |leaf, subleaf| match (leaf.wrapping_sub(base), subleaf) {
        (0, 0) => signature(base + leaves, b"XenVMMXenVMM"),
        (1, 0) => [4 << 16 | 17, 0, 0, 0],
        (3, 0) if leaves >= 3 => [0b110, 2, 2_400_000, 5],
        (3, 2) if leaves >= 3 => [2_500_000, 0, 0, 0],
        (4, 0) if leaves >= 4 => [features, 3, 0x1_0007, 0],
        _ if leaf == 0x4000_0000 => signature(0x4000_0006, b"Microsoft Hv"),
        // What a leaf that does not exist answers is up to the processor.
        _ => [0xFFFF_FFFF; 4],
    }
}

#[test]
fn xens_leaves_are_found_also_behind_another_interface() {
    for base in [0x4000_0000, 0x4000_0100, 0x4000_0A00, 0x4000_FF00] {
        let cpuid = xen_at(base, 5, 0);
        assert_eq!(cpuid_base(&cpuid), Some(base));
        assert_eq!(cpuid_version(&cpuid), Some((4, 17)));
    }
}

#[test]
fn the_search_ends_where_the_interface_says() {
    let asked = RefCell::new(Vec::new());
    let found = cpuid_base(|leaf, subleaf| {
        asked.borrow_mut().push(leaf);
        xen_at(0x4001_0000, 5, 0)(leaf, subleaf)
    });
    assert_eq!(found, None);
    let asked = asked.into_inner();
    assert_eq!((asked.len(), asked[0], asked[255]), (256, 0x4000_0000, 0x4000_FF00));
}

#[test]
fn no_xen_no_leaves() {
    let others: [&[u8; 12]; 3] = [b"KVMKVMKVM\0\0\0", b"VMwareVMware", b"XenVMMXenVMN"];
    for text in others {
        let cpuid = |leaf, _| if leaf == 0x4000_0000 { signature(0x4000_0010, text) } else { [0; 4] };
        assert_eq!((cpuid_base(cpuid), cpuid_version(cpuid), hvm_leaf(cpuid)), (None, None, None));
    }
    // Too few leaves to be of use.
    assert_eq!(cpuid_base(xen_at(0x4000_0000, 1, 0)), None);
    assert_eq!(cpuid_base(xen_at(0x4000_0000, 2, 0)), Some(0x4000_0000));
}

#[test]
fn leaf_4_tells_what_its_flags_say_it_tells() {
    let read = |features| hvm_leaf(xen_at(0x4000_0100, 4, features));
    let all = |features| read(features).map(|leaf| (leaf.features, leaf.vcpu, leaf.domain));
    let leaf = |features, vcpu, domain| Some((HvmFeatures::from_bits_retain(features), vcpu, domain));
    assert_eq!(all(0), leaf(0, None, None));
    assert_eq!(all(1 << 3), leaf(1 << 3, Some(VcpuId(3)), None));
    assert_eq!(all(1 << 4), leaf(1 << 4, None, Some(DomId(7))), "the low half of ecx");
    let every = !0;
    assert_eq!(all(every), leaf(every, Some(VcpuId(3)), Some(DomId(7))), "unknown flags are kept");
    assert!(read(every).unwrap().features.contains(HvmFeatures::IOMMU_MAPPINGS));
    assert_eq!(read(0x60).unwrap().features, HvmFeatures::EXT_DEST_ID | HvmFeatures::UPCALL_VECTOR);
    assert_eq!(hvm_leaf(xen_at(0x4000_0000, 3, !0)), None, "a Xen without leaf 4");
}

#[test]
fn leaf_3_tells_of_the_counter() {
    let leaf = tsc_leaf(xen_at(0x4000_0100, 3, 0)).unwrap();
    assert_eq!(leaf.flags, TscFlags::HOST_RELIABLE | TscFlags::RDTSCP);
    assert_eq!((leaf.mode, leaf.incarnation), (TscMode::NEVER_EMULATE, 5));
    assert_eq!((leaf.guest_khz, leaf.host_khz), (2_400_000, 2_500_000));
    assert_eq!(tsc_leaf(xen_at(0x4000_0100, 2, 0)), None, "the toolstack can cut the leaves to two");
}

#[test]
fn the_vendor_chooses_the_instruction() {
    let name = |text: &[u8; 12]| {
        // The processor's own leaf 0 has the words in another order.
        let [max, b, c, d] = signature(0xD, text);
        let found = vendor(|leaf, subleaf| if (leaf, subleaf) == (0, 0) { [max, b, d, c] } else { [0; 4] });
        assert_eq!(found, *text);
        // SAFETY: only its name is asked for.
        unsafe { VendorCall::of_vendor(found) }.map(|call| call.name())
    };
    assert_eq!(name(b"GenuineIntel"), Some("vmcall"));
    assert_eq!(name(b"CentaurHauls"), Some("vmcall"));
    assert_eq!(name(b"  Shanghai  "), Some("vmcall"));
    assert_eq!(name(b"AuthenticAMD"), Some("vmmcall"));
    assert_eq!(name(b"HygonGenuine"), Some("vmmcall"));
    assert_eq!(name(b"GenuineTMx86"), None);
    assert_eq!(name(b"\0\0\0\0\0\0\0\0\0\0\0\0"), None);
}
