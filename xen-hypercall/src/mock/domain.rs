//! One domain: its pages, parameters and timer; the platform of a driver under test.
#![allow(unsafe_code, reason = "hands out real memory")]

use core::ptr::NonNull;
use core::sync::atomic::AtomicU16;
use core::sync::atomic::Ordering::{Acquire, Relaxed};
use core::time::Duration;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

use super::MockXen;
use super::room::Room;
use super::vcpu::Vcpu;
use crate::abi::VcpuHvmContext;
use crate::hvm::HvmParam;
use crate::sched::ShutdownCode;
use crate::{
    DomId, Domain, Errno, Gfn, Hypercall, HypercallNr, PAGE_SIZE, Page, PageMemory, SharedInfo, SpecialPages,
    VcpuArea, VcpuId, VcpuTime, Wait,
};

/// What freed pages are filled with: they are not used again within a machine's life, so that whoever still reads
/// or writes one shows.
pub(super) const POISON: u8 = 0xDB;
/// The first frame that `alloc_pages` gives out.
const FIRST_GFN: u64 = 0x1000;

/// A domain of a [`MockXen`], as one of its vCPUs sees it. Clones are handles to the same domain.
///
/// A domain has one vCPU, number 0, until [`set_vcpus`](Self::set_vcpus) gives it more; what is done through
/// [`on_vcpu`](Self::on_vcpu) is done by that vCPU.
#[derive(Clone)]
pub struct MockDomain {
    xen: MockXen,
    /// Shared with all other handles: a domain that is migrated has another.
    id: Arc<AtomicU16>,
    vcpu: VcpuId,
    state: Arc<Mutex<DomainState>>,
}

impl std::fmt::Debug for MockDomain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MockDomain").field("id", &self.id()).field("vcpu", &self.vcpu).finish_non_exhaustive()
    }
}

pub(super) struct DomainState {
    pages: BTreeMap<Gfn, Block>,
    by_address: BTreeMap<usize, Gfn>,
    allocated: u64,
    in_use: usize,
    allocs_left: Option<usize>,
    pub(super) params: BTreeMap<u32, u64>,
    pub(super) shared_info: Option<Gfn>,
    /// When Xen's system time was zero on the machine that the domain runs on.
    pub(super) epoch: Duration,
    /// Where the token of the domain's owner is, or was.
    owner: Option<Gfn>,
    pub(super) shutdown: Option<ShutdownCode>,
    /// What the domain's end is to be called.
    pub(super) shutdown_code: Option<ShutdownCode>,
    pub(super) watchdogs: [Option<Duration>; 2],
    pub(super) assists: u64,
    pub(super) layout: super::memory::Layout,
    console: Vec<u8>,
    pub(super) vcpus: Vec<Vcpu>,
    pub(super) room: Room,
    /// Until when the domain is paused.
    pub(super) paused: Option<Duration>,
}

impl Default for DomainState {
    fn default() -> Self {
        Self {
            pages: BTreeMap::new(),
            by_address: BTreeMap::new(),
            allocated: 0,
            in_use: 0,
            allocs_left: None,
            params: BTreeMap::new(),
            shared_info: None,
            epoch: Duration::ZERO,
            owner: None,
            shutdown: None,
            shutdown_code: None,
            watchdogs: [None; 2],
            assists: 0,
            layout: super::memory::Layout::default(),
            console: Vec::new(),
            vcpus: std::vec![Vcpu::first()],
            room: Room::default(),
            paused: None,
        }
    }
}

#[derive(Clone, Copy)]
struct Block {
    first: NonNull<Page>,
    pages: usize,
    state: Use,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Use {
    Allocated,
    Special,
    Freed,
}

// SAFETY: the pointers are to memory that this state, or that of another domain of the machine, allocates and frees.
unsafe impl Send for DomainState {}

impl Drop for DomainState {
    fn drop(&mut self) {
        for block in self.pages.values() {
            // SAFETY: allocated by `DomainState::map` with this layout; nothing outlives the machine's last handle,
            // which every user of a page holds through its domain.
            unsafe { dealloc(block.first.as_ptr().cast(), layout(block.pages)) };
        }
    }
}

fn layout(pages: usize) -> Layout {
    match Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE) {
        Ok(layout) => layout,
        Err(error) => panic!("{pages} pages: {error}"),
    }
}

impl DomainState {
    pub(super) fn map(&mut self, gfn: Gfn, pages: usize, state: Use) -> Option<NonNull<Page>> {
        // SAFETY: the layout is not empty: callers ask for at least one page.
        let first = NonNull::new(unsafe { alloc_zeroed(layout(pages)) }.cast::<Page>())?;
        self.pages.insert(gfn, Block { first, pages, state });
        self.by_address.insert(first.as_ptr() as usize, gfn);
        Some(first)
    }

    /// Pages that were ever given out, those given back to the allocator or to Xen too.
    pub(super) fn page_count(&self) -> usize {
        self.pages.values().map(|block| block.pages).sum()
    }

    pub(super) fn highest(&self) -> Option<Gfn> {
        let (start, block) = self.pages.iter().next_back()?;
        (start.0..start.0 + block.pages as u64).rev().map(Gfn).find(|gfn| !self.layout.holes.contains(gfn))
    }

    pub(super) fn find(&self, gfn: Gfn) -> Option<NonNull<Page>> {
        if self.layout.holes.contains(&gfn) {
            return None;
        }
        let (start, block) = self.pages.range(..=gfn).next_back()?;
        let index = usize::try_from(gfn.0 - start.0).ok().filter(|index| *index < block.pages)?;
        // SAFETY: `index` is within the block's pages.
        Some(unsafe { block.first.add(index) })
    }
}

/// What all handles of a domain share.
pub(super) type Shared = (Arc<AtomicU16>, Arc<Mutex<DomainState>>);

/// What happens at a time.
#[derive(Clone, Copy)]
pub(super) enum Due {
    Timer(VcpuId),
    Watchdog(usize),
}

impl MockDomain {
    pub(super) fn new(xen: MockXen, (id, state): Shared) -> Self {
        Self { xen, id, vcpu: VcpuId(0), state }
    }

    pub(super) fn set_id(&self, id: DomId) {
        self.id.store(id.0, Relaxed);
    }

    pub(super) fn state(&self) -> MutexGuard<'_, DomainState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its number, which is another one after it was [migrated](MockXen::migrate).
    pub fn id(&self) -> DomId {
        DomId(self.id.load(Relaxed))
    }

    /// The same domain by a handle for what is a part of the machine; see [`MockXen::inside`].
    #[must_use]
    pub fn inside(&self) -> Self {
        Self { xen: self.xen.inside(), ..self.clone() }
    }

    /// The vCPU that this handle acts as.
    pub fn vcpu(&self) -> VcpuId {
        self.vcpu
    }

    /// The same domain as another of its vCPUs: hypercalls through the handle are made by that vCPU.
    ///
    /// # Panics
    /// When the domain has no such vCPU.
    pub fn on_vcpu(&self, vcpu: VcpuId) -> Self {
        let count = self.vcpus();
        assert!((vcpu.0 as usize) < count, "{} has {count} vCPUs and no {vcpu:?}", self.id());
        Self { vcpu, ..self.clone() }
    }

    /// How many vCPUs the domain has.
    pub fn vcpus(&self) -> usize {
        self.state().vcpus.len()
    }

    /// Gives the domain `count` vCPUs, as the toolstack does before it starts. Those above 0 are down until the
    /// guest brings them up; those there already stay as they are.
    ///
    /// # Panics
    /// When `count` is less than what the domain has: vCPUs do not go away.
    pub fn set_vcpus(&self, count: usize) {
        let mut state = self.state();
        let has = state.vcpus.len();
        assert!(count >= has, "{} has {has} vCPUs already", self.id());
        state.vcpus.resize_with(count, Vcpu::default);
    }

    /// The vector of its own that a vCPU asked to be interrupted at, if it did.
    pub fn upcall_vector(&self, vcpu: VcpuId) -> Option<u8> {
        self.with_vcpu(vcpu, |state| state.upcall_vector)?
    }

    /// Where a vCPU's event fields and time are: where the guest registered them, or else in its `shared_info`.
    /// None: the guest has neither yet.
    pub fn vcpu_area(&self, vcpu: VcpuId) -> Option<VcpuArea<'_>> {
        let registered = self.state().vcpus.get(vcpu.0 as usize)?.area;
        match registered {
            Some((gfn, offset)) => {
                let page = self.page_at(gfn)?;
                // SAFETY: the domain registered this place, which lies in a page of its memory and was checked then;
                // its memory lives as long as its handles, and both sides access it by atomics.
                Some(unsafe { VcpuArea::from_page(page, offset) })
            }
            None => self.shared_info()?.area(vcpu),
        }
    }

    /// Writes the time of a vCPU to where it reads it, as Xen does: any time, also one before the last. Besides this, it is written
    /// when `shared_info` is mapped: the machine's [virtual time](MockXen::now), by a counter of nanoseconds. Returns whether
    /// there is such a place.
    pub fn set_time(&self, vcpu: VcpuId, time: VcpuTime) -> bool {
        self.vcpu_area(vcpu).map(|area| area.set_time(time)).is_some()
    }

    /// The machine it is on.
    pub fn xen(&self) -> &MockXen {
        &self.xen
    }

    /// Any page of the domain, by its frame.
    pub fn page_at(&self, gfn: Gfn) -> Option<NonNull<Page>> {
        self.state().find(gfn)
    }

    /// `count` pages in a row, by the frame of the first, if they are of one allocation and so in a row for the host, too.
    pub fn pages_at(&self, gfn: Gfn, count: usize) -> Option<NonNull<Page>> {
        let state = self.state();
        let (start, block) = state.pages.range(..=gfn).next_back()?;
        let end = usize::try_from(gfn.0 - start.0).ok()?.checked_add(count)?;
        let first = state.find(gfn)?;
        (end <= block.pages).then_some(first)
    }

    /// Puts a zeroed page at a frame of the toolstack's choice, as it does for the console and xenstore.
    ///
    /// # Panics
    /// When a page is there already, or the host is out of memory.
    pub fn special_page(&self, gfn: Gfn) -> NonNull<Page> {
        let mut state = self.state();
        assert!(state.find(gfn).is_none(), "{}: a page is at {gfn} already", self.id());
        state.map(gfn, 1, Use::Special).expect("out of memory")
    }

    /// Sets an HVM parameter from outside, as the toolstack does.
    pub fn set_hvm_param(&self, param: HvmParam, value: u64) {
        self.state().params.insert(param.0, value);
    }

    /// An HVM parameter; zero when it was never set.
    pub fn hvm_param(&self, param: HvmParam) -> u64 {
        self.state().params.get(&param.0).copied().unwrap_or(0)
    }

    /// The domain's `shared_info`, once it has asked for it.
    pub fn shared_info(&self) -> Option<SharedInfo<'_>> {
        let state = self.state();
        let page = state.find(state.shared_info?)?;
        drop(state);
        // SAFETY: the domain made this page its shared_info; its memory lives as long as its handles, and both sides access it
        // by atomics.
        Some(unsafe { SharedInfo::from_page(page) })
    }

    /// Takes possession of the domain, as its kernel does at its start.
    ///
    /// # Errors
    /// As [`Domain::new`].
    ///
    /// # Panics
    /// When the domain has an owner: a token, or something made from it, is still there.
    pub fn boot(&self) -> Result<Domain<Self>, Errno> {
        let owner = self.state().owner;
        let owned = owner.is_some_and(|gfn| {
            self.state().pages.get(&gfn).is_some_and(|block| block.state == Use::Allocated)
        });
        assert!(!owned, "{} has an owner already", self.id());
        // The token's own page is the first that it allocates.
        let first = Gfn(FIRST_GFN + self.state().allocated);
        // SAFETY: an earlier owner has given the page of its token back, which the last of its handles does.
        let token = unsafe { Domain::new(self.clone()) }?;
        self.state().owner = Some(first);
        Ok(token)
    }

    /// Gives the domain a `shared_info` page unless it has one, for a far side in a domain without a kernel.
    ///
    /// # Panics
    /// When there is no memory.
    pub fn ensure_shared_info(&self) {
        if self.state().shared_info.is_none() {
            let mut state = self.state();
            let gfn = Gfn(FIRST_GFN + state.allocated);
            state.allocated += 1;
            state.map(gfn, 1, Use::Special).expect("out of memory");
            state.shared_info = Some(gfn);
        }
    }

    /// How many pages are allocated and not freed.
    pub fn pages_in_use(&self) -> usize {
        self.state().in_use
    }

    /// Lets `n` more allocations succeed and all later ones fail; none: all succeed again.
    pub fn fail_allocs_after(&self, n: Option<usize>) {
        self.state().allocs_left = n;
    }

    /// How the domain ended, if it did.
    pub fn shutdown_reason(&self) -> Option<ShutdownCode> {
        self.state().shutdown
    }

    pub(super) fn set_shutdown(&self, reason: ShutdownCode) {
        let mut state = self.state();
        // Who says it first is right.
        let reason = *state.shutdown_code.get_or_insert(reason);
        state.shutdown.get_or_insert(reason);
    }

    /// Whether the domain switched a behaviour on.
    pub fn assists(&self, assist: crate::assist::Assist) -> bool {
        assist.0 < 64 && self.state().assists & 1 << assist.0 != 0
    }

    /// In which state a vCPU is to start, if the guest said so.
    pub fn vcpu_context(&self, vcpu: VcpuId) -> Option<VcpuHvmContext> {
        self.with_vcpu(vcpu, |state| state.context)?
    }

    /// How often a vCPU was interrupted by an NMI.
    pub fn nmis(&self, vcpu: VcpuId) -> usize {
        self.with_vcpu(vcpu, |state| state.nmis).unwrap_or(0)
    }

    pub(super) fn another_is_up(&self, vcpu: VcpuId) -> bool {
        self.state().vcpus.iter().zip(0..).any(|(state, id)| id != vcpu.0 && state.up)
    }

    /// What the domain wrote to Xen's console.
    pub fn console_output(&self) -> Vec<u8> {
        self.state().console.clone()
    }

    pub(super) fn add_console_output(&self, text: &[u8]) {
        self.state().console.extend_from_slice(text);
    }

    /// What a vCPU's state says, or becomes. None: no such vCPU.
    pub(super) fn with_vcpu<R>(&self, vcpu: VcpuId, f: impl FnOnce(&mut Vcpu) -> R) -> Option<R> {
        self.state().vcpus.get_mut(vcpu.0 as usize).map(f)
    }

    /// What is due first in this domain, and when.
    pub(super) fn next_due(&self) -> Option<(Duration, Due)> {
        let state = self.state();
        let timers = state.vcpus.iter().zip(0..);
        let timers = timers.filter_map(|(vcpu, id)| Some((vcpu.next_timer()?, Due::Timer(VcpuId(id)))));
        let watchdogs = state.watchdogs.iter().enumerate();
        let watchdogs = watchdogs.filter_map(|(index, at)| Some(((*at)?, Due::Watchdog(index))));
        timers.chain(watchdogs).min_by_key(|(at, _)| *at)
    }

    /// A watchdog's time has come.
    pub(super) fn bite(&self, watchdog: usize) {
        self.state().watchdogs[watchdog] = None;
        self.xen.trace(|| std::format!("{} is shut down by its watchdog {}", self.id(), watchdog + 1));
        self.set_shutdown(ShutdownCode::WATCHDOG);
    }

    pub(super) fn upcall_pending(&self) -> bool {
        self.vcpu_area(self.vcpu).is_some_and(|area| area.info().upcall_pending.load(Acquire) != 0)
    }
}

// SAFETY: the machine's handlers do what Xen does, in this domain.
unsafe impl Hypercall for MockDomain {
    unsafe fn hypercall(&self, nr: HypercallNr, args: [usize; 5]) -> isize {
        self.xen.call(self, nr, args)
    }
}

// SAFETY: pages are memory of their own, stay until the machine is gone, and are given out once.
unsafe impl PageMemory for MockDomain {
    fn alloc_pages(&self, count: usize) -> Option<NonNull<Page>> {
        if count == 0 {
            return None;
        }
        let mut state = self.state();
        if let Some(left) = &mut state.allocs_left {
            *left = left.checked_sub(1)?;
        }
        let gfn = Gfn(FIRST_GFN + state.allocated);
        state.allocated += count as u64;
        state.in_use += count;
        state.map(gfn, count, Use::Allocated)
    }

    unsafe fn free_pages(&self, first: NonNull<Page>, count: usize) {
        let mut state = self.state();
        let gfn = state.by_address.get(&(first.as_ptr() as usize)).copied();
        let block = gfn.and_then(|gfn| state.pages.get_mut(&gfn));
        match block {
            Some(block) if block.state == Use::Allocated && block.pages == count => {
                block.state = Use::Freed;
                state.in_use -= count;
                // SAFETY: the whole block is valid memory, and the caller promises that nobody uses it any more.
                unsafe { first.as_ptr().cast::<u8>().write_bytes(POISON, count * PAGE_SIZE) };
            }
            _ => {
                drop(state);
                panic!(
                    "{}: free of {count} pages that are not allocated\n{}",
                    self.id(),
                    self.xen.trace_text()
                );
            }
        }
    }

    fn gfn(&self, page: NonNull<Page>) -> Gfn {
        let address = page.as_ptr() as usize;
        let state = self.state();
        let found = state.by_address.range(..=address).next_back().and_then(|(start, gfn)| {
            let index = (address - start) / PAGE_SIZE;
            let block = state.pages.get(gfn)?;
            (index < block.pages).then_some(Gfn(gfn.0 + index as u64))
        });
        found.unwrap_or_else(|| panic!("{}: {address:#x} is not memory of this domain", self.id()))
    }
}

// SAFETY: the page is memory of its own, and stays until the machine is gone.
unsafe impl SpecialPages for MockDomain {
    unsafe fn map_special(&self, gfn: Gfn, count: usize) -> Option<NonNull<Page>> {
        if count == 1 { self.page_at(gfn) } else { None }
    }
}

impl Wait for MockDomain {
    fn now(&self) -> Duration {
        self.xen.now()
    }

    fn vcpu(&self) -> VcpuId {
        self.vcpu
    }

    /// Lets the far sides act; when none has anything to do, time goes on to the next timer or the deadline. Returns after the
    /// pause of a domain that [is paused](Self::pause).
    ///
    /// # Panics
    /// When there is nothing left to wait for, with the trace.
    fn wait(&self, deadline: Option<Duration>, is_due: &dyn Fn() -> bool) {
        self.sit_out();
        if is_due() || self.upcall_pending() {
            return;
        }
        let acted = self.xen.step();
        self.sit_out();
        if acted || self.upcall_pending() {
            return;
        }
        let timer = self.xen.next_timer();
        match timer.into_iter().chain(deadline).min() {
            Some(at) => self.xen.advance(at.saturating_sub(self.xen.now())),
            None => panic!("{} waits for ever: no event, no timer\n{}", self.id(), self.xen.trace_text()),
        }
    }
}
