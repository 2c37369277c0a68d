//! A second vCPU that counts until it is told to stop (x86-64).
#![allow(unsafe_code, reason = "starts a processor")]

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use xen_hypercall::abi::{VcpuHvmContext, VcpuHvmX8664};
use xen_hypercall::arch::x86_64::VendorCall;
use xen_hypercall::{VcpuId, vcpu};

/// Its number.
pub(crate) const ID: VcpuId = VcpuId(1);

static COUNT: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicBool = AtomicBool::new(false);

/// How far it has counted.
pub(crate) fn count() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

/// Tells it to go down by itself.
pub(crate) fn stop() {
    STOP.store(true, Ordering::Relaxed);
}

extern "C" fn run() -> ! {
    while !STOP.load(Ordering::Relaxed) {
        COUNT.fetch_add(1, Ordering::Relaxed);
        core::hint::spin_loop();
    }
    // SAFETY: the image is entered as a PVH guest alone, and runs in ring 0.
    if let Some(call) = unsafe { VendorCall::detect() } {
        let _ = vcpu::down(&call, ID);
    }
    loop {
        core::hint::spin_loop();
    }
}

/// The state that it starts in: the first one's page tables, a stack of its own, interrupts off. It touches the two
/// words above and nothing else of the kernel's.
pub(crate) fn context() -> VcpuHvmContext {
    let (cr0, cr3, cr4): (u64, u64, u64);
    // SAFETY: reading these registers in ring 0 has no effect.
    unsafe {
        asm!("mov {}, cr0", "mov {}, cr3", "mov {}, cr4", out(reg) cr0, out(reg) cr3, out(reg) cr4,
            options(nomem, nostack, preserves_flags));
    }
    const LME_LMA_NXE: u64 = 1 << 8 | 1 << 10 | 1 << 11;
    let stack = alloc::vec![0_u64; 2048].leak().as_mut_ptr_range().end.expose_provenance() as u64;
    VcpuHvmX8664 {
        // As after a call: 8 below a multiple of 16.
        rsp: (stack & !15) - 8,
        rip: (run as extern "C" fn() -> !) as usize as u64,
        rflags: 2,
        cr0,
        cr3,
        cr4,
        efer: LME_LMA_NXE,
        ..VcpuHvmX8664::default()
    }
    .into()
}
