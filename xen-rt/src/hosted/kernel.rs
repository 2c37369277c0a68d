//! The platform: a domain of the mock whose time is the real one, and whose sleep lets the world around it act.
#![allow(unsafe_code, reason = "hands the platform's duties to the mock's domain, which keeps them")]

use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::{Instant, SystemTime};

use xen_hypercall::mock::MockDomain;
use xen_hypercall::sched::ShutdownCode;
use xen_hypercall::{
    DomId, Errno, Gfn, GrantRoom, Hypercall, HypercallNr, PAGE_SIZE, Page, PageMemory, SpecialPages, VcpuId,
    Wait,
};

use super::vcpus::{self, Others};
use super::world::World;

/// The kernel's side of what the crates ask for.
pub struct Kernel {
    domain: MockDomain,
    world: Mutex<World>,
    others: Others,
    began: Instant,
    hypercalls: AtomicU64,
    /// In bytes.
    memory: u64,
    command_line: &'static str,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel").field("domain", &self.domain).finish_non_exhaustive()
    }
}

impl Kernel {
    /// `memory` in bytes.
    pub(super) fn new(world: World, memory: u64, command_line: &'static str) -> Self {
        let (domain, began, others) = (world.guest(), Instant::now(), Others::new(world.waker()));
        let (world, hypercalls) = (Mutex::new(world), AtomicU64::new(0));
        Self { domain, world, others, began, hypercalls, memory, command_line }
    }

    /// The mock's domain needs nothing.
    #[cfg(feature = "suspend")]
    pub(crate) fn renew(
        &self,
        _: &xen_hypercall::Domain<&'static Self>,
    ) -> Result<(), xen_hypercall::RestoreError> {
        Ok(())
    }

    /// What the toolstack wants the kernel to know.
    pub(crate) fn command_line(&self) -> &'static str {
        self.command_line
    }

    /// The domain's memory in bytes.
    pub(crate) fn ram(&self) -> u64 {
        self.memory
    }

    /// The same in pages, for what gives them out.
    fn all_pages(&self) -> usize {
        usize::try_from(self.memory).unwrap_or(usize::MAX) / PAGE_SIZE
    }

    /// Time since 1970-01-01 00:00 UTC.
    pub fn unix_time(&self) -> Duration {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
    }

    /// What the mock's system time is when [`now`](Wait::now) is `at`: the same.
    pub fn system_time(&self, at: Duration) -> Duration {
        at
    }

    /// When this kernel started, on its clock.
    pub fn started(&self) -> Duration {
        Duration::ZERO
    }

    /// How many hypercalls were made.
    pub fn hypercalls(&self) -> u64 {
        self.hypercalls.load(Ordering::Relaxed)
    }

    /// Pages of the domain: in use, and free.
    pub(super) fn pages(&self) -> (usize, usize) {
        let used = self.domain.pages_in_use();
        (used, self.all_pages().saturating_sub(used))
    }

    /// The world, unless it is acting at this moment.
    pub(super) fn world(&self) -> Option<MutexGuard<'_, World>> {
        match self.world.try_lock() {
            Ok(world) => Some(world),
            // A panic in it was told of, and what it did not do is done next.
            Err(TryLockError::Poisoned(world)) => Some(world.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn is_down(&self) -> bool {
        self.domain.shutdown_reason().is_some_and(|reason| reason != ShutdownCode::SUSPEND)
    }

    /// How its vCPUs hear of one another.
    pub(super) fn others(&self) -> &Others {
        &self.others
    }

    fn upcall_pending(&self) -> bool {
        let area = self.domain.vcpu_area(vcpus::this());
        area.is_some_and(|area| area.info().upcall_pending.load(Ordering::Acquire) != 0)
    }
}

// SAFETY: the call is made as it is asked for, by the domain; counting it has no effect, and the world touches no memory of
// the domain's but as another domain does.
unsafe impl Hypercall for Kernel {
    unsafe fn hypercall(&self, nr: HypercallNr, args: [usize; 5]) -> isize {
        self.hypercalls.fetch_add(1, Ordering::Relaxed);
        let result = match vcpus::this() {
            // SAFETY: the caller keeps the same promises to this call.
            VcpuId(0) => unsafe { self.domain.hypercall(nr, args) },
            // SAFETY: as above.
            vcpu => unsafe { self.domain.on_vcpu(vcpu).hypercall(nr, args) },
        };
        // It may be what another vCPU waits for.
        self.others.tell();
        // Who yields to others lets them act; and a domain that has shut down does not go on.
        if nr == HypercallNr::SCHED_OP {
            self.now();
            match self.world() {
                Some(mut world) => drop(world.turn()),
                // Who is at the world has been told, and ends the process.
                None if self.others.are_there() && self.is_down() => vcpus::stop(),
                None => {}
            }
        }
        result
    }
}

// SAFETY: all calls are handed to the domain, which keeps the promises.
unsafe impl PageMemory for Kernel {
    fn alloc_pages(&self, count: usize) -> Option<NonNull<Page>> {
        let (_, free) = self.pages();
        if count <= free { self.domain.alloc_pages(count) } else { None }
    }

    unsafe fn free_pages(&self, first: NonNull<Page>, count: usize) {
        // SAFETY: the caller keeps the same promises to this call.
        unsafe { self.domain.free_pages(first, count) };
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

// SAFETY: all calls are handed to the domain, which keeps the promises.
unsafe impl GrantRoom for Kernel {
    fn reserve_room(&self, count: usize) -> Option<Gfn> {
        self.domain.reserve_room(count)
    }

    unsafe fn release_room(&self, first: Gfn, count: usize) {
        // SAFETY: the caller keeps the same promises to this call.
        unsafe { self.domain.release_room(first, count) };
    }

    unsafe fn room_address(&self, first: Gfn, count: usize) -> Option<NonNull<Page>> {
        // SAFETY: the caller keeps the same promises to this call.
        unsafe { self.domain.room_address(first, count) }
    }

    fn own_domain(&self) -> Result<DomId, Errno> {
        self.domain.own_domain()
    }
}

impl Wait for Kernel {
    /// The mock's time, moved to where the real one is.
    fn now(&self) -> Duration {
        let xen = self.domain.xen();
        xen.advance(self.began.elapsed().saturating_sub(xen.now()));
        xen.now()
    }

    fn wait(&self, deadline: Option<Duration>, is_due: &dyn Fn() -> bool) {
        let is_over =
            |now: Duration| is_due() || self.upcall_pending() || deadline.is_some_and(|at| at <= now);
        loop {
            let since = self.others.moves();
            match self.world() {
                Some(world) => {
                    self.wait_at(world, deadline, &is_over);
                    // Another of those that wait takes the place.
                    return self.others.tell();
                }
                None if !self.others.are_there() => return,
                None => {
                    let now = self.now();
                    if is_over(now) {
                        return;
                    }
                    self.others.wait(since, deadline.map(|at| at.saturating_sub(now)));
                }
            }
        }
    }

    fn vcpu(&self) -> VcpuId {
        vcpus::this()
    }
}

impl Kernel {
    /// Lets the world act, and sleeps when it has nothing to do, until a wait is over.
    fn wait_at(
        &self,
        mut world: MutexGuard<'_, World>,
        deadline: Option<Duration>,
        is_over: &dyn Fn(Duration) -> bool,
    ) {
        loop {
            let (since, now) = (self.others.moves(), self.now());
            let moved = world.turn();
            if moved {
                self.others.tell();
            }
            if is_over(now) {
                return;
            }
            if self.others.is_ending() {
                drop(world);
                vcpus::stop();
            }
            if !moved {
                let next = deadline.into_iter().chain(self.domain.xen().next_timer()).min();
                let time = next.map(|at| at.saturating_sub(now));
                self.others.sleep(since, || world.sleep(time));
            }
        }
    }
}
