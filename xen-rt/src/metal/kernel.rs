//! The platform: memory mapped to itself, a clock, sleep until an interrupt.
#![allow(unsafe_code, reason = "promises the SDK what this kernel keeps")]

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use xen_hypercall::{
    Gfn, GrantRoom, Hypercall, HypercallNr, PAGE_SIZE, Page, PageMemory, SharedInfo, SpecialPages, VcpuId,
    Wait,
};

use super::vcpu::this;
use super::{memory, room};
use crate::arch;
use crate::memory_map::BootInfo;

/// The kernel as the SDK's crates see it: their `Platform` and their `Wait`. [`Guest::kernel`](crate::Guest::kernel) gives it.
#[derive(Debug)]
pub struct Kernel {
    call: arch::Call,
    info: &'static BootInfo,
    clock: arch::Clock,
    hypercalls: AtomicU64,
    /// In nanoseconds.
    started: AtomicU64,
}

impl Kernel {
    pub(super) fn new(call: arch::Call, info: &'static BootInfo) -> Self {
        Self {
            call,
            info,
            clock: arch::Clock::new(),
            hypercalls: AtomicU64::new(0),
            started: AtomicU64::new(0),
        }
    }

    /// Makes the clock run.
    pub(super) fn start_clock(&self, shared: SharedInfo<'static>) {
        self.clock.start(shared);
        self.started.store(self.now().as_nanos() as u64, Ordering::Relaxed);
    }

    /// Sets up in a new domain, on the first vCPU, what the kernel had set up in the old one by itself.
    #[cfg(feature = "suspend")]
    pub(crate) fn renew(
        &self,
        domain: &xen_hypercall::Domain<&'static Self>,
    ) -> Result<(), xen_hypercall::RestoreError> {
        self.clock.go_on();
        arch::enable_upcall_again(domain).map_err(|errno| xen_hypercall::RestoreError {
            operation: "HVMOP_set_param of CALLBACK_IRQ",
            errno,
        })
    }

    /// What the toolstack wants the kernel to know.
    pub(crate) fn command_line(&self) -> &'static str {
        self.info.cmdline()
    }

    /// The domain's memory in bytes.
    pub(crate) fn ram(&self) -> u64 {
        self.info.ram()
    }

    /// Time since 1970-01-01 00:00 UTC.
    pub fn unix_time(&self) -> Duration {
        self.clock.unix_time(self.now())
    }

    /// What Xen's system time is when [`now`](Wait::now) is `at`: for deadlines that Xen keeps, such as that of
    /// [`sched::poll`](xen_hypercall::sched::poll). The two are the same until the domain is resumed in a new one. On arm64, where
    /// Xen does not tell a guest its time, `at`.
    pub fn system_time(&self, at: Duration) -> Duration {
        self.clock.system_time(at)
    }

    /// What its clock showed when it started.
    pub fn started(&self) -> Duration {
        Duration::from_nanos(self.started.load(Ordering::Relaxed))
    }

    /// How many hypercalls it has made so far. A sleep counts as one.
    pub fn hypercalls(&self) -> u64 {
        self.hypercalls.load(Ordering::Relaxed)
    }
}

// SAFETY: the call is made as it is asked for; counting it has no effect.
unsafe impl Hypercall for Kernel {
    // Next to what Xen does, a call of a function costs nothing, and each copy of it is as large as many a caller.
    #[inline(never)]
    unsafe fn hypercall(&self, nr: HypercallNr, args: [usize; 5]) -> isize {
        self.hypercalls.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the same promises to this call.
        unsafe { self.call.hypercall(nr, args) }
    }
}

// SAFETY: pages are of the heap, which gives memory out once until it comes back; it is mapped to itself, so a frame
// number is the address without its low bits.
unsafe impl PageMemory for Kernel {
    fn alloc_pages(&self, count: usize) -> Option<NonNull<Page>> {
        memory::alloc_pages(count)
    }

    unsafe fn free_pages(&self, first: NonNull<Page>, count: usize) {
        // SAFETY: the caller keeps the same promises to this call.
        unsafe { memory::free_pages(first, count) };
    }

    fn gfn(&self, page: NonNull<Page>) -> Gfn {
        Gfn((page.as_ptr().expose_provenance() / PAGE_SIZE) as u64)
    }
}

// SAFETY: memory is mapped to itself, and `map_special` of the architecture makes the page tables lead to a frame that is
// not memory of ours, for good.
unsafe impl SpecialPages for Kernel {
    unsafe fn map_special(&self, gfn: Gfn, count: usize) -> Option<NonNull<Page>> {
        for frame in gfn.0..gfn.0.checked_add(count as u64)? {
            // SAFETY: the caller promises that this frame is not memory of ours.
            if !unsafe { arch::map_special(frame) } {
                return None;
            }
        }
        NonNull::new(core::ptr::with_exposed_provenance_mut(usize::try_from(gfn.0).ok()? * PAGE_SIZE))
    }
}

// SAFETY: the architecture says where nothing of the domain is, the room gives each frame out once, and `map_special` makes
// the page tables lead there.
unsafe impl GrantRoom for Kernel {
    fn reserve_room(&self, count: usize) -> Option<Gfn> {
        room::reserve(count, || arch::room(&self, self.info))
    }

    unsafe fn release_room(&self, first: Gfn, count: usize) {
        room::release(first, count);
    }

    unsafe fn room_address(&self, first: Gfn, count: usize) -> Option<NonNull<Page>> {
        // SAFETY: frames of the room are not memory of the domain.
        unsafe { self.map_special(first, count) }
    }
}

impl Wait for Kernel {
    fn now(&self) -> Duration {
        self.clock.now(this().id)
    }

    /// The upcall's handler dispatches nothing, so an event that is due has its upcall pending.
    fn wait(&self, deadline: Option<Duration>, is_due: &dyn Fn() -> bool) {
        if let Some(at) = deadline {
            let vcpu = this();
            let (wanted, set) = (at.as_nanos() as u64, vcpu.timer.load(Ordering::Relaxed));
            // A timer that fires before it need costs one round of the main loop; a new one, a hypercall.
            let now = self.now().as_nanos() as u64;
            if !(now..=wanted).contains(&set) || wanted - set > (wanted - now) / 2 {
                vcpu.timer.store(wanted, Ordering::Relaxed);
                if arch::set_timer(self, &self.clock, vcpu.id, at).is_err() {
                    return;
                }
            }
        }
        // A halt enters Xen as a call does, and counts as one.
        self.hypercalls.fetch_add(1, Ordering::Relaxed);
        arch::idle(is_due);
    }

    fn vcpu(&self) -> VcpuId {
        this().id
    }
}
