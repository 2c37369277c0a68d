//! The SDK's platform traits on this kernel: one vCPU, memory mapped to itself, sleep by hypercall.
#![allow(unsafe_code, reason = "promises the SDK what this kernel keeps")]

use alloc::alloc::{GlobalAlloc, Layout, alloc_zeroed, dealloc};
use core::cell::RefCell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use talc::DefaultBinning;
use talc::cell::TalcCell;
use talc::source::Manual;
use xen_hypercall::{
    Clock, Domain, Gfn, Hypercall, HypercallNr, PAGE_SIZE, Page, PageMemory, SharedInfo, SpecialPages,
    VcpuId, Wait, vcpu,
};

use crate::arch;

/// The heap.
struct Heap(TalcCell<Manual, DefaultBinning>);

// SAFETY: there is one vCPU, and interrupts run no Rust code: no two threads ever use the heap.
unsafe impl Sync for Heap {}

// SAFETY: the inner allocator keeps the promises; all calls are handed to it.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the same promises to this call.
        unsafe { self.0.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the same promises to this call.
        unsafe { self.0.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller keeps the same promises to this call.
        unsafe { self.0.realloc(at, layout, size) }
    }
}

#[global_allocator]
static HEAP: Heap = Heap(TalcCell::new(Manual));

/// Gives all usable memory to the heap.
pub(crate) fn init_heap(info: &arch::BootInfo) {
    for range in arch::usable(info) {
        let base = core::ptr::with_exposed_provenance_mut(range.start as usize);
        // SAFETY: this is RAM by Xen's own word, mapped, outside of the image, and given to nobody else.
        unsafe { HEAP.0.claim(base, (range.end - range.start) as usize) };
    }
}

/// Memory in bytes: used, and free.
pub(crate) fn memory() -> (usize, usize) {
    let counters = HEAP.0.counters();
    (counters.allocated_bytes, counters.available_bytes)
}

/// State of the one vCPU, such as the console. Whoever finds it in use (a panic while it was) goes without.
pub(crate) struct Local<T>(RefCell<T>);

// SAFETY: there is one vCPU, and interrupts run no Rust code: only one thread exists. `RefCell` sees to the rest.
unsafe impl<T> Sync for Local<T> {}

impl<T> Local<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(RefCell::new(value))
    }

    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> Option<R> {
        self.0.try_borrow_mut().ok().map(|mut value| f(&mut value))
    }
}

/// The token of the domain, which lives as long as the domain.
pub(crate) type Owned = &'static Domain<&'static Kernel>;

/// This kernel as the SDK sees it.
#[derive(Debug)]
pub(crate) struct Kernel {
    call: arch::Call,
    clock: Clock,
    hypercalls: AtomicU64,
    /// When the timer fires, in nanoseconds; zero: it is not set.
    timer: AtomicU64,
    /// In nanoseconds.
    started: AtomicU64,
}

impl Kernel {
    pub(crate) fn new(call: arch::Call) -> Self {
        Self {
            call,
            clock: Clock::new(),
            hypercalls: AtomicU64::new(0),
            timer: AtomicU64::new(0),
            started: AtomicU64::new(0),
        }
    }

    /// Makes the clock run.
    pub(crate) fn start_clock(&self, shared: SharedInfo<'static>) {
        self.clock.start(shared);
        self.started.store(self.now().as_nanos() as u64, Ordering::Relaxed);
    }

    pub(crate) fn unix_time(&self) -> Duration {
        self.clock.unix_time(self.now())
    }

    pub(crate) fn started(&self) -> Duration {
        Duration::from_nanos(self.started.load(Ordering::Relaxed))
    }

    pub(crate) fn hypercalls(&self) -> u64 {
        self.hypercalls.load(Ordering::Relaxed)
    }
}

// SAFETY: the call is made as it is asked for; counting it has no effect.
unsafe impl Hypercall for Kernel {
    unsafe fn hypercall(&self, nr: HypercallNr, args: [usize; 5]) -> isize {
        self.hypercalls.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the same promises to this call.
        unsafe { self.call.hypercall(nr, args) }
    }
}

fn pages(count: usize) -> Option<Layout> {
    Layout::from_size_align(count.checked_mul(PAGE_SIZE)?, PAGE_SIZE).ok().filter(|layout| layout.size() > 0)
}

// SAFETY: pages are of the heap, which gives memory out once until it comes back; it is mapped to itself, so a frame
// number is the address without its low bits.
unsafe impl PageMemory for Kernel {
    fn alloc_pages(&self, count: usize) -> Option<NonNull<Page>> {
        // SAFETY: the layout is not empty.
        NonNull::new(unsafe { alloc_zeroed(pages(count)?) }.cast())
    }

    unsafe fn free_pages(&self, first: NonNull<Page>, count: usize) {
        if let Some(layout) = pages(count) {
            // SAFETY: the caller gives back what `alloc_pages` gave out for the same count.
            unsafe { dealloc(first.as_ptr().cast(), layout) };
        }
    }

    fn gfn(&self, page: NonNull<Page>) -> Gfn {
        Gfn((page.as_ptr().expose_provenance() / PAGE_SIZE) as u64)
    }
}

// SAFETY: `arch::map_special` maps each frame to itself, for good.
unsafe impl SpecialPages for Kernel {
    unsafe fn map_special(&self, gfn: Gfn, count: usize) -> Option<NonNull<Page>> {
        for frame in gfn.0..gfn.0.checked_add(count as u64)? {
            // SAFETY: the caller promises that this frame is not memory of ours; there is one thread.
            if !unsafe { arch::map_special(frame) } {
                return None;
            }
        }
        NonNull::new(core::ptr::with_exposed_provenance_mut(usize::try_from(gfn.0).ok()? * PAGE_SIZE))
    }
}

impl Wait for Kernel {
    fn now(&self) -> Duration {
        self.clock.now(VcpuId(0), arch::counter)
    }

    /// The upcall's handler dispatches nothing, so an event that is due has its upcall pending.
    fn wait(&self, deadline: Option<Duration>, _is_due: &dyn Fn() -> bool) {
        if let Some(at) = deadline {
            let (wanted, set) = (at.as_nanos() as u64, self.timer.load(Ordering::Relaxed));
            // A timer that fires before it need costs one round of the main loop; a new one, a hypercall.
            let now = self.now().as_nanos() as u64;
            if !(now..=wanted).contains(&set) || wanted - set > (wanted - now) / 2 {
                self.timer.store(wanted, Ordering::Relaxed);
                if vcpu::set_singleshot_timer(self, VcpuId(0), at).is_err() {
                    return;
                }
            }
        }
        // A halt enters Xen as a call does, and counts as one.
        self.hypercalls.fetch_add(1, Ordering::Relaxed);
        arch::idle();
    }
}
