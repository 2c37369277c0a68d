//! The parts that make the platform of the kernel on Xen. They are built with the tests, and run in the kernel alone.
#![allow(unsafe_code, reason = "reads the counter; calls Xen; sleeps with interrupts on")]

use core::arch::x86_64::_rdtsc;
use core::sync::atomic::Ordering;
use core::time::Duration;

use xen_hypercall::arch::x86_64::{VendorCall, idle};
use xen_hypercall::hvm::{self, HvmParam};
use xen_hypercall::{Errno, SharedInfo, VcpuId, Wait, event};

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
    shared: SharedInfo,
}

impl OnXen {
    /// Puts the platform together, with events that interrupt at `vector` of the interrupt table. None: not on a processor
    /// that Xen runs on.
    ///
    /// # Errors
    /// Xen's, when it refuses its page, the vector or the timer.
    ///
    /// # Safety
    /// This is vCPU 0 of an HVM or PVH domain of Xen, in ring 0, with interrupts off. The vector leads to
    /// [`idle::upcall_entry`].
    pub unsafe fn start(memory: Frames, vector: u8) -> Result<Option<Self>, Errno> {
        // SAFETY: the caller says where this runs.
        let Some(call) = (unsafe { VendorCall::detect() }) else { return Ok(None) };
        let early = Kernel { call, memory, time: () };
        let shared = SharedInfo::map(&early)?;
        hvm::set_param(&early, HvmParam::CALLBACK_IRQ, hvm::callback_vector(vector))?;
        event::bind_virq(&early, TIMER, VCPU)?;
        let time = Sleep { call, shared };
        time.clear_events();
        Ok(Some(Kernel { call, memory: early.memory, time }))
    }
}

impl Sleep {
    /// Takes all events, and lets all ports have new ones. Which they were does not matter: a driver that waits looks at
    /// its ring after each sleep.
    fn clear_events(&self) {
        let Some(info) = self.shared.vcpu(VCPU) else { return };
        // In the opposite order of Xen's, so that an event that comes meanwhile is told of again.
        info.upcall_pending.store(0, Ordering::SeqCst);
        info.pending_sel.store(0, Ordering::SeqCst);
        for word in 0..64 {
            if let (Some(pending), Some(mask)) =
                (self.shared.evtchn_pending(word), self.shared.evtchn_mask(word))
            {
                pending.store(0, Ordering::SeqCst);
                mask.store(0, Ordering::SeqCst);
            }
        }
    }
}

impl Wait for Sleep {
    fn now(&self) -> Duration {
        // SAFETY: every processor of 64 bits has the instruction.
        let counter = unsafe { _rdtsc() };
        self.shared.time(VCPU).unwrap_or_default().system_time(counter)
    }

    fn wait(&self, deadline: Option<Duration>, is_due: &dyn Fn() -> bool) {
        let Some(info) = self.shared.vcpu(VCPU) else { return };
        // SAFETY: this is vCPU 0 in ring 0, and `start` promises that the upcall's handler is the one for this.
        unsafe { idle::wait(&self.call, VCPU, info.upcall_pending, deadline, is_due) };
        self.clear_events();
    }
}
