//! The parts that make the platform of the kernel on Xen. They are built with the tests, and run in the kernel alone.
#![allow(unsafe_code, reason = "reads the counter; calls Xen; sleeps with interrupts on")]

use core::arch::x86_64::_rdtsc;
use core::sync::atomic::Ordering;
use core::time::Duration;

use xen_hypercall::arch::x86_64::{VendorCall, idle};
use xen_hypercall::hvm::{self, HvmParam, Vector};
use xen_hypercall::{Clock, Errno, SharedInfo, VcpuId, Wait, event};

use crate::{Frames, Kernel};

/// The kernel on Xen.
pub type OnXen = Kernel<VendorCall, Frames, Sleep>;

const VCPU: VcpuId = VcpuId(0);
/// `VIRQ_TIMER`.
const TIMER: u32 = 0;

/// Xen's time, and sleep until an event or Xen's timer.
#[derive(Debug)]
pub struct Sleep {
    call: VendorCall,
    clock: Clock,
}

impl OnXen {
    /// Puts the platform together, with a clock that stands still and waits that return at once. None: not on a processor that
    /// Xen runs on.
    ///
    /// # Safety
    /// This is vCPU 0 of an HVM or PVH domain of Xen, in ring 0.
    pub unsafe fn new(memory: Frames) -> Option<Self> {
        // SAFETY: the caller says where this runs.
        let call = unsafe { VendorCall::detect() }?;
        Some(Kernel { call, memory, time: Sleep { call, clock: Clock::new() } })
    }

    /// Lets the clock run and the waits sleep, once the kernel has the token of its domain. Events interrupt at `vector`.
    ///
    /// # Errors
    /// Xen's, when it refuses the vector or the timer.
    ///
    /// # Safety
    /// The vector leads to [`idle::upcall_entry`] in the interrupt table, and interrupts are off.
    pub unsafe fn start(&self, shared: SharedInfo<'static>, vector: Vector) -> Result<(), Errno> {
        hvm::set_param(self, HvmParam::CALLBACK_IRQ, hvm::callback_vector(vector))?;
        event::bind_virq(self, TIMER, VCPU)?;
        clear_events(&shared);
        self.time.clock.start(shared);
        Ok(())
    }
}

/// Takes all events, and lets all ports have new ones. Which they were does not matter: a driver that waits looks at its
/// ring after each sleep.
fn clear_events(shared: &SharedInfo<'_>) {
    let Some(info) = shared.vcpu(VCPU) else { return };
    // In the opposite order of Xen's, so that an event that comes meanwhile is told of again.
    info.upcall_pending.store(0, Ordering::SeqCst);
    info.pending_sel.store(0, Ordering::SeqCst);
    for word in 0..64 {
        if let (Some(pending), Some(mask)) = (shared.evtchn_pending(word), shared.evtchn_mask(word)) {
            pending.store(0, Ordering::SeqCst);
            mask.store(0, Ordering::SeqCst);
        }
    }
}

impl Wait for Sleep {
    fn now(&self) -> Duration {
        // SAFETY: every processor of 64 bits has the instruction.
        self.clock.now(VCPU, || unsafe { _rdtsc() })
    }

    fn wait(&self, deadline: Option<Duration>, is_due: &dyn Fn() -> bool) {
        let Some(shared) = self.clock.shared_info() else { return };
        let Some(info) = shared.vcpu(VCPU) else { return };
        // SAFETY: this is vCPU 0 in ring 0, and `start` promises that the upcall's handler is the one for this.
        unsafe { idle::wait(&self.call, VCPU, info.upcall_pending, deadline, is_due) };
        clear_events(&shared);
    }
}
