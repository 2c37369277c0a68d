//! The kernel that the SDK sees: a domain of the mock whose time is the real one, and whose sleep lets the world act.
#![allow(unsafe_code, reason = "hands the platform's duties to the mock's domain, which keeps them")]

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use xen_hypercall::mock::MockDomain;
use xen_hypercall::{
    Domain, Gfn, Hypercall, HypercallNr, PAGE_SIZE, Page, PageMemory, SpecialPages, VcpuId, Wait,
};

pub(crate) use crate::console;
use crate::world::World;

/// The longest sleep: the mock's own timers are looked at so often.
const NAP: Duration = Duration::from_millis(100);

/// The token of the domain, which lives as long as the process.
pub(crate) type Owned = &'static Domain<&'static Kernel>;

pub(crate) struct Kernel {
    domain: MockDomain,
    world: RefCell<World>,
    started: Instant,
    hypercalls: Cell<u64>,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel").field("domain", &self.domain).finish_non_exhaustive()
    }
}

/// Memory in bytes: what is used of the domain's, and what is free, which for a process is not known.
pub(crate) struct Memory {
    pub(crate) used: usize,
    pub(crate) free: usize,
}

pub(crate) fn memory() -> Memory {
    PAGES.with(|pages| Memory { used: pages.get() * PAGE_SIZE, free: 0 })
}

thread_local! {
    static PAGES: Cell<usize> = const { Cell::new(0) };
}

impl Kernel {
    pub(crate) fn new(world: World) -> Self {
        let domain = world.guest();
        Self { domain, world: RefCell::new(world), started: Instant::now(), hypercalls: Cell::new(0) }
    }

    pub(crate) fn unix_time(&self) -> Duration {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
    }

    pub(crate) fn started(&self) -> Duration {
        Duration::ZERO
    }

    pub(crate) fn hypercalls(&self) -> u64 {
        self.hypercalls.get()
    }

    /// Shows what the guest has written to its console.
    pub(crate) fn show(&self) {
        self.world.borrow_mut().turn();
    }

    fn upcall_pending(&self) -> bool {
        let shared = self.domain.shared_info();
        let pending = shared
            .and_then(|shared| Some(shared.vcpu(VcpuId(0))?.upcall_pending.load(Ordering::Acquire) != 0));
        pending.unwrap_or(false)
    }
}

// SAFETY: the call is made as it is asked for, by the domain; counting it has no effect.
unsafe impl Hypercall for Kernel {
    unsafe fn hypercall(&self, nr: HypercallNr, args: [usize; 5]) -> isize {
        self.hypercalls.set(self.hypercalls.get() + 1);
        // SAFETY: the caller keeps the same promises to this call.
        unsafe { self.domain.hypercall(nr, args) }
    }
}

// SAFETY: all calls are handed to the domain, which keeps the promises.
unsafe impl PageMemory for Kernel {
    fn alloc_pages(&self, count: usize) -> Option<NonNull<Page>> {
        let pages = self.domain.alloc_pages(count);
        PAGES.set(self.domain.pages_in_use());
        pages
    }

    unsafe fn free_pages(&self, first: NonNull<Page>, count: usize) {
        // SAFETY: the caller keeps the same promises to this call.
        unsafe { self.domain.free_pages(first, count) };
        PAGES.set(self.domain.pages_in_use());
    }

    fn gfn(&self, page: NonNull<Page>) -> Gfn {
        self.domain.gfn(page)
    }
}

// SAFETY: all calls are handed to the domain, which keeps the promises.
unsafe impl SpecialPages for Kernel {
    unsafe fn map_special(&self, gfn: Gfn, count: usize) -> Option<NonNull<Page>> {
        // SAFETY: the caller keeps the same promises to this call.
        unsafe { self.domain.map_special(gfn, count) }
    }
}

impl Wait for Kernel {
    /// The mock's time, moved to where the real one is.
    fn now(&self) -> Duration {
        let xen = self.domain.xen();
        xen.advance(self.started.elapsed().saturating_sub(xen.now()));
        xen.now()
    }

    fn wait(&self, deadline: Option<Duration>, is_due: &dyn Fn() -> bool) {
        let mut world = self.world.borrow_mut();
        loop {
            let now = self.now();
            let moved = self.domain.xen().step() | world.turn();
            if is_due() || self.upcall_pending() || deadline.is_some_and(|at| at <= now) {
                return;
            }
            if !moved {
                let left = deadline.map_or(NAP, |at| at.saturating_sub(now));
                world.sleep(left.min(NAP));
            }
        }
    }
}
