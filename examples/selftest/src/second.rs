//! A second vCPU that counts until it is told to stop (x86-64).
#![allow(unsafe_code, reason = "starts a processor")]

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;

use check_report::{Report, ensure};
use xen_hypercall::abi::{VcpuHvmContext, VcpuHvmX8664};
use xen_hypercall::arch::x86_64::VendorCall;
use xen_hypercall::vcpu::RunState;
use xen_hypercall::{Errno, VcpuArea, VcpuId, vcpu};

use crate::checks::vcpus::until;
use crate::checks::{Domain, sleep};

/// Its number.
const ID: VcpuId = VcpuId(1);

static COUNT: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicBool = AtomicBool::new(false);

/// How far it has counted.
fn count() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

/// Tells it to go down by itself.
fn stop() {
    STOP.store(true, Ordering::Relaxed);
}

extern "C" fn program() -> ! {
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
fn context() -> VcpuHvmContext {
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
        rip: (program as extern "C" fn() -> !) as usize as u64,
        rflags: 2,
        cr0,
        cr3,
        cr4,
        efer: LME_LMA_NXE,
        ..VcpuHvmX8664::default()
    }
    .into()
}

/// The second vCPU's life.
pub(crate) fn run(domain: &Domain, report: &mut Report) {
    let xen = domain.kernel;
    report.check("vcpu/is-up", || {
        let (first, second) = (vcpu::is_up(xen, VcpuId(0))?, vcpu::is_up(xen, ID)?);
        ensure!(first && !second, "the first {first}, the second {second}");
        Ok(())
    });
    report.refused("vcpu/is-up-none", vcpu::is_up(xen, VcpuId(77)), Errno::ENOENT);
    report.refused("vcpu/up-without-state", vcpu::up(xen, ID), Errno::EINVAL);
    report.check("vcpu/register-info", || {
        let area = VcpuArea::register(domain.token, ID)?;
        let again = VcpuArea::register(domain.token, ID).map(drop);
        ensure!(again == Err(Errno::EINVAL), "a second time: {again:?}");
        // Xen marks everything as pending there, so that no event is lost.
        let pending = area.info().pending_sel.load(Ordering::Relaxed);
        ensure!(pending == u64::MAX, "pending {pending:#x}");
        Ok(())
    });
    // SAFETY: Xen refuses a mode that there is not.
    let bad = unsafe { vcpu::initialise(xen, ID, &VcpuHvmContext { mode: 9, ..Default::default() }) };
    report.refused("vcpu/initialise-bad-mode", bad, Errno::EINVAL);
    let context = context();
    // SAFETY: code, stack and page tables of this state are there, for the second vCPU alone.
    report.check("vcpu/initialise", || Ok(unsafe { vcpu::initialise(xen, ID, &context) }?));
    // SAFETY: as above.
    let again = unsafe { vcpu::initialise(xen, ID, &context) };
    report.refused("vcpu/initialise-again", again, Errno::EEXIST);
    report.check("vcpu/up", || {
        vcpu::up(xen, ID)?;
        until(xen, "a step of the second vCPU", || count() > 0)?;
        ensure!(vcpu::is_up(xen, ID)?, "it is not up");
        Ok(())
    });
    report.check("vcpu/down", || {
        vcpu::down(xen, ID)?;
        until(xen, "its end", || {
            vcpu::run_times(xen, ID).is_ok_and(|times| times.state == RunState::OFFLINE)
        })?;
        let before = count();
        sleep(xen, Duration::from_millis(20));
        ensure!(count() == before, "it runs still");
        Ok(())
    });
    report.check("vcpu/up-again", || {
        let before = count();
        vcpu::up(xen, ID)?;
        until(xen, "another step", || count() > before)
    });
    report.check("vcpu/down-by-itself", || {
        stop();
        until(xen, "its end", || vcpu::is_up(xen, ID) == Ok(false))
    });
    // It stays down, so that nothing comes of it.
    report.check("vcpu/send-nmi", || Ok(vcpu::send_nmi(xen, ID)?));
    report.refused("vcpu/send-nmi-none", vcpu::send_nmi(xen, VcpuId(77)), Errno::ENOENT);
}
