//! The parts that make the platform of the kernel on Xen. They are built with the tests, and run in the kernel alone.
#![allow(unsafe_code, reason = "reads the counter; calls Xen")]

use core::arch::x86_64::_rdtsc;
use core::time::Duration;

use xen_hypercall::arch::x86_64::VendorCall;
use xen_hypercall::{Clock, SharedInfo, VcpuId, Wait, sched, vcpu};

use crate::{Frames, Kernel};

/// The kernel on Xen.
pub type OnXen = Kernel<VendorCall, Frames, Sleep>;

/// Xen's time, and sleep by Xen's timer.
#[derive(Debug)]
pub struct Sleep {
    call: VendorCall,
    clock: Clock,
}

impl OnXen {
    /// Puts the platform together, with a clock that stands still. None: not on a processor that Xen runs on.
    ///
    /// # Safety
    /// This is vCPU 0 of an HVM or PVH domain of Xen, in ring 0.
    pub unsafe fn new(memory: Frames) -> Option<Self> {
        // SAFETY: the caller says where this runs.
        let call = unsafe { VendorCall::detect() }?;
        Some(Kernel { call, memory, time: Sleep { call, clock: Clock::new() } })
    }

    /// Lets the clock run, once the kernel has the token of its domain.
    pub fn start_clock(&self, shared: SharedInfo<'static>) {
        self.time.clock.start(shared);
    }
}

impl Wait for Sleep {
    fn now(&self) -> Duration {
        // SAFETY: every processor of 64 bits has the instruction.
        self.clock.now(VcpuId(0), || unsafe { _rdtsc() })
    }

    /// With interrupts off: Xen's `block` ends at once if an event is pending by then.
    fn wait(&self, deadline: Option<Duration>, _is_due: &dyn Fn() -> bool) {
        if let Some(at) = deadline {
            // If Xen refuses the timer, an event ends the sleep, or the caller looks again at once.
            if vcpu::set_singleshot_timer(&self.call, VcpuId(0), at).is_err() {
                return;
            }
        }
        let _ = sched::block(&self.call);
    }
}
