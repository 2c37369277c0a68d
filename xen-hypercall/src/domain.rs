//! What a domain has once, and who owns it.
#![allow(unsafe_code, reason = "counts who uses a page, and maps shared_info")]

use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

use crate::areas::Areas;
use crate::memory::{PhysmapSpace, add_to_physmap};
use crate::sched::{self, Resumed};
use crate::{DomId, Errno, GrantRoom, PAGE_SIZE, Page, Platform, SharedInfo, VcpuArea, VcpuId};

/// The right to what a domain has once: its `shared_info` page, its event channels and its grant table.
///
/// A kernel makes one, at its start, and from it the owners of these three: [`shared_info`](Self::shared_info) is mapped by
/// [`new`](Self::new), and each [`Part`] can be [claimed](Self::claim) once (`EventChannels::new` of `xen-evtchn` and
/// `GrantTable::new` of `xen-gnttab` do so). There is no safe way to a second owner of any of them.
///
/// The platform is cloned into each owner, so it should be a reference or another cheap handle. The memory of the token
/// itself is a page of the platform's, given back when the token and all claims are gone. The page of `shared_info` stays
/// with Xen.
pub struct Domain<P: Platform>(Handle<P>);

/// A part of the domain with one owner.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Part {
    /// The ports, and the fields of `shared_info` for them.
    EventChannels,
    /// The entries of the grant table.
    GrantTable,
}

impl Part {
    const fn bit(self) -> u32 {
        match self {
            Self::EventChannels => 1,
            Self::GrantTable => 2,
        }
    }
}

/// One life of a domain, from its start or a resume to the next resume in a new domain. What names something of Xen's, such
/// as a port or a grant reference, is of one incarnation, and means nothing in another.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Incarnation(u16);

impl Incarnation {
    /// Counts the lives of the domain: 0 is that in which the token was made.
    #[inline]
    pub const fn number(self) -> u16 {
        self.0
    }
}

/// The life that something is of which is made again in another.
#[derive(Debug)]
pub struct AtomicIncarnation(AtomicU16);

impl AtomicIncarnation {
    /// Of this life at first.
    pub const fn new(life: Incarnation) -> Self {
        Self(AtomicU16::new(life.0))
    }

    /// The life that it is of. What was made again for this life is visible afterwards.
    #[inline]
    pub fn get(&self) -> Incarnation {
        Incarnation(self.0.load(Ordering::Acquire))
    }

    /// Makes it one of this life, when all is made again.
    pub fn set(&self, life: Incarnation) {
        self.0.store(life.0, Ordering::Release);
    }
}

/// Why [`Domain::suspend`] did not do it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SuspendError {
    /// The domain was not suspended, and all is as before. `EBUSY` without a call while something is
    /// [held](Claim::hold), as a page of another domain that is mapped; `EOVERFLOW` without a call after 65,535 resumes in
    /// new domains; otherwise Xen's.
    Refused(Errno),
    /// The domain goes on as a new one, and Xen did not map `shared_info`, or did not take the area that a vCPU was
    /// [registered](VcpuArea::register) with. It cannot be told of any event, nor of the time.
    Lost(Errno),
}

impl fmt::Display for SuspendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(errno) => write!(f, "the domain was not suspended: {errno}; it goes on as it was"),
            Self::Lost(errno) => write!(f, "a resumed domain has no shared_info: {errno}; it must end"),
        }
    }
}

impl core::error::Error for SuspendError {}

/// The ownership of a [`Part`]. Dropped, it leaves the part without an owner for good, for Xen may use its memory still;
/// [`release`](Self::release) lets another one be made.
pub struct Claim<P: Platform> {
    handle: Handle<P>,
    part: Part,
}

/// What all handles of a domain share, at the start of a page.
struct State {
    handles: AtomicUsize,
    /// Ends at its last number, for one that came again would make what is stale seem to be of the present life.
    incarnation: AtomicU16,
    /// The parts that have owners.
    claimed: AtomicU32,
    /// The domain's number, below the incarnation in which it has it. [`UNASKED`] at first.
    number: AtomicU32,
    /// What forbids a suspend.
    holds: AtomicU64,
    /// Where vCPUs are told of events that are not told in `shared_info`.
    areas: Areas,
}

const _: () = assert!(size_of::<State>() <= PAGE_SIZE && align_of::<State>() <= PAGE_SIZE);

/// The last incarnation, with a number that is no domain's.
const UNASKED: u32 = u32::MAX;

struct Handle<P: Platform> {
    platform: P,
    /// At the start of a page of the platform's, which is freed with the last handle.
    state: NonNull<State>,
    shared: NonNull<Page>,
}

// SAFETY: the state is atomics, freed by the last handle alone; the other page is accessed by atomics through `SharedInfo`.
// The platform goes where the handle goes.
unsafe impl<P: Platform + Send> Send for Handle<P> {}
// SAFETY: as above; by a shared reference no more than the platform's is reached.
unsafe impl<P: Platform + Sync> Sync for Handle<P> {}

impl<P: Platform> Handle<P> {
    fn state(&self) -> &State {
        // SAFETY: `Domain::new` made the state, and it is there as long as any handle is.
        unsafe { self.state.as_ref() }
    }

    fn shared_info(&self) -> SharedInfo<'_> {
        // SAFETY: `Domain::new` mapped shared_info there, where it stays: nobody else maps it, and a resume maps it there again
        // before anybody may access it. The page stays as long as the platform, which this handle has.
        unsafe { SharedInfo::from_page(self.shared) }
    }

    #[inline]
    fn area(&self, vcpu: VcpuId) -> Option<VcpuArea<'_>> {
        let Some((page, offset)) = self.state().areas.get(vcpu) else {
            return self.shared_info().area(vcpu);
        };
        // SAFETY: the page is one of the areas', which Xen writes there and which are accessed by atomics alone. It is never
        // freed, and the platform is there as long as this handle.
        Some(unsafe { VcpuArea::from_page(page, offset) })
    }

    fn register_area(&self, vcpu: VcpuId) -> Result<VcpuArea<'_>, Errno> {
        let (page, offset) = self.state().areas.register(&self.platform, vcpu)?;
        // SAFETY: as in `area`.
        Ok(unsafe { VcpuArea::from_page(page, offset) })
    }

    fn incarnation(&self) -> Incarnation {
        Incarnation(self.state().incarnation.load(Ordering::Relaxed))
    }

    fn number(&self) -> Result<DomId, Errno>
    where
        P: GrantRoom,
    {
        let life = u32::from(self.incarnation().0) << 16;
        // Both are one word, and who finds it unasked finds the same number, so that any order will do.
        let known = self.state().number.load(Ordering::Relaxed);
        if known & 0xffff_0000 == life && known != UNASKED {
            return Ok(DomId(known as u16));
        }
        let number = self.platform.own_domain()?;
        self.state().number.store(life | u32::from(number.0), Ordering::Relaxed);
        Ok(number)
    }
}

impl<P: Platform + Clone> Clone for Handle<P> {
    fn clone(&self) -> Self {
        let platform = self.platform.clone();
        // Relaxed, as of any reference count: there is a handle already.
        self.state().handles.fetch_add(1, Ordering::Relaxed);
        Self { platform, state: self.state, shared: self.shared }
    }
}

impl<P: Platform> Drop for Handle<P> {
    fn drop(&mut self) {
        if self.state().handles.fetch_sub(1, Ordering::Release) == 1 {
            // What the other handles did comes before the page is somebody else's.
            fence(Ordering::Acquire);
            // SAFETY: the page is one that `Domain::new` allocated, this was the last handle, and atomics need no drop.
            unsafe { self.platform.free_pages(self.state.cast(), 1) };
        }
    }
}

impl<P: Platform> Domain<P> {
    /// Takes possession of the domain, and maps its `shared_info` (`XENMEM_add_to_physmap`) on a page of the platform's.
    ///
    /// # Errors
    /// `ENOMEM` when the platform has no two pages, otherwise Xen's answer to the mapping. The page for it is lost then,
    /// for Xen may have taken its memory away before it refused.
    ///
    /// # Safety
    /// The caller promises that nobody else in this domain holds or makes another token, and that nobody uses the domain's
    /// `shared_info`, event channels or grant table other than through what is made from this one, as long as it or
    /// anything made from it exists. A boot loader or an earlier kernel that used them is gone. In return nothing that
    /// is made from the token by safe code breaks memory safety.
    pub unsafe fn new(platform: P) -> Result<Self, Errno> {
        let state = platform.alloc_pages(1).ok_or(Errno::ENOMEM)?;
        let Some(shared) = platform.alloc_pages(1) else {
            // SAFETY: allocated above, and nobody has seen it.
            unsafe { platform.free_pages(state, 1) };
            return Err(Errno::ENOMEM);
        };
        // SAFETY: the page was just allocated for this, nothing else uses it, and it is never freed from here on.
        let mapped = unsafe { map_shared_info(&platform, shared) };
        if let Err(error) = mapped {
            // SAFETY: allocated above, and nobody has seen it.
            unsafe { platform.free_pages(state, 1) };
            return Err(error);
        }
        let state = state.cast::<State>();
        let first = State {
            handles: AtomicUsize::new(1),
            incarnation: AtomicU16::new(0),
            claimed: AtomicU32::new(0),
            number: AtomicU32::new(UNASKED),
            holds: AtomicU64::new(0),
            areas: Areas::new(),
        };
        // SAFETY: the page is exclusively ours, aligned as a page is, and larger than the state.
        unsafe { state.write(first) };
        Ok(Self(Handle { platform, state, shared }))
    }

    /// The platform that everything runs on.
    pub fn platform(&self) -> &P {
        &self.0.platform
    }

    /// The page that Xen shares with the domain.
    pub fn shared_info(&self) -> SharedInfo<'_> {
        self.0.shared_info()
    }

    /// Where Xen tells a vCPU of its events, and on x86 of the time: where it was [registered](VcpuArea::register), or else in
    /// `shared_info`. `None` for a vCPU that has neither.
    pub fn area(&self, vcpu: VcpuId) -> Option<VcpuArea<'_>> {
        self.0.area(vcpu)
    }

    pub(crate) fn register_area(&self, vcpu: VcpuId) -> Result<VcpuArea<'_>, Errno> {
        self.0.register_area(vcpu)
    }

    /// The domain's present life.
    pub fn incarnation(&self) -> Incarnation {
        self.0.incarnation()
    }

    /// Makes the caller the owner of a part. `None`: it has an owner, or had one that did not release it.
    pub fn claim(&self, part: Part) -> Option<Claim<P>>
    where
        P: Clone,
    {
        let before = self.0.state().claimed.fetch_or(part.bit(), Ordering::Acquire);
        (before & part.bit() == 0).then(|| Claim { handle: self.0.clone(), part })
    }

    /// Whether something [forbids](Claim::hold) to suspend the domain.
    pub fn is_held(&self) -> bool {
        self.0.state().holds.load(Ordering::Acquire) != 0
    }

    /// Lets the toolstack save the domain (`SHUTDOWN_suspend`), and returns when it goes on. In a new domain a new
    /// [`Incarnation`] begins: `shared_info` is mapped again at the same address, each [area](VcpuArea::register) is registered
    /// again at its place, and whatever names something of the old
    /// domain's is stale: its methods return errors, and dropping it asks nothing of Xen.
    ///
    /// The coordinator in `xen-xenstore` calls it in the right place among all that a suspend takes.
    ///
    /// # Errors
    /// [`SuspendError::Refused`]: nothing has happened. [`SuspendError::Lost`]: the domain is a new one, without a
    /// `shared_info`, and must end at once, see below.
    ///
    /// # Safety
    /// The caller runs on vCPU 0, with all other vCPUs down and interrupts off, and nobody else runs any code of this domain
    /// meanwhile. No call of anything made from the token is under way elsewhere: whatever was stopped was stopped between
    /// two calls, and not within one. No page of another domain is mapped but by [held](Claim::hold) means, and no device
    /// writes to the domain's memory. After [`SuspendError::Lost`] the caller touches nothing that was made from the token,
    /// and ends the domain. In return, memory that safe code reaches through the token stays valid.
    pub unsafe fn suspend(&self) -> Result<Resumed, SuspendError> {
        // SAFETY: the caller keeps the same promises to these calls.
        unsafe { self.suspend_by(|platform| sched::suspend(platform)) }
    }

    /// The same, with another way to ask for it than `SCHEDOP_shutdown`, such as PSCI's `SYSTEM_SUSPEND` on arm64. `ask` suspends the
    /// domain, and returns when it goes on, with where.
    ///
    /// # Errors
    /// As [`suspend`](Self::suspend); an error of `ask` is [`SuspendError::Refused`].
    ///
    /// # Safety
    /// As [`suspend`](Self::suspend). `ask` returns [`Resumed::InNewDomain`] if that is so, and an error only if the domain was not
    /// suspended.
    pub unsafe fn suspend_by(
        &self,
        ask: impl FnOnce(&P) -> Result<Resumed, Errno>,
    ) -> Result<Resumed, SuspendError> {
        if self.incarnation().0 == u16::MAX {
            return Err(SuspendError::Refused(Errno::EOVERFLOW));
        }
        if self.is_held() {
            return Err(SuspendError::Refused(Errno::EBUSY));
        }
        // By the caller's promises, and below all that was mapped of Xen's is mapped again or stale.
        let resumed = ask(self.platform()).map_err(SuspendError::Refused)?;
        if resumed == Resumed::InNewDomain {
            self.0.state().incarnation.fetch_add(1, Ordering::Relaxed);
            // SAFETY: the page is the one that was shared_info before, and is accessed as that alone. Nobody does so now.
            unsafe { map_shared_info(self.platform(), self.0.shared) }.map_err(SuspendError::Lost)?;
            self.0.state().areas.restore(self.platform()).map_err(SuspendError::Lost)?;
        }
        Ok(resumed)
    }
}

impl<P: Platform> Claim<P> {
    /// The platform that everything runs on.
    pub fn platform(&self) -> &P {
        &self.handle.platform
    }

    /// The page that Xen shares with the domain.
    pub fn shared_info(&self) -> SharedInfo<'_> {
        self.handle.shared_info()
    }

    /// As [`Domain::area`].
    #[inline]
    pub fn area(&self, vcpu: VcpuId) -> Option<VcpuArea<'_>> {
        self.handle.area(vcpu)
    }

    /// As [`VcpuArea::register`].
    ///
    /// # Errors
    /// As there.
    pub fn register_area(&self, vcpu: VcpuId) -> Result<VcpuArea<'_>, Errno> {
        self.handle.register_area(vcpu)
    }

    /// The domain's present life.
    #[inline]
    pub fn incarnation(&self) -> Incarnation {
        self.handle.incarnation()
    }

    /// The number by which Xen knows this domain. Asks [`GrantRoom::own_domain`] once in each life of the domain.
    ///
    /// # Errors
    /// As there.
    pub fn own_domain(&self) -> Result<DomId, Errno>
    where
        P: GrantRoom,
    {
        self.handle.number()
    }

    /// Forbids to suspend the domain until [`let_go`](Self::let_go) was called as often: while something is in its memory
    /// that neither comes along nor can be made anew, such as a page of another domain.
    pub fn hold(&self) {
        // Nobody lives to count 64 bits to their end.
        self.handle.state().holds.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes one [`hold`](Self::hold) back.
    ///
    /// # Safety
    /// The caller took it, takes it back once, and what it was taken for is gone.
    pub unsafe fn let_go(&self) {
        self.handle.state().holds.fetch_sub(1, Ordering::Release);
    }

    /// Lets the part have another owner: Xen uses nothing of this one's any more.
    pub fn release(self) {
        self.handle.state().claimed.fetch_and(!self.part.bit(), Ordering::Release);
    }
}

/// Makes a page `shared_info`.
///
/// # Safety
/// The page is the caller's, used as `shared_info` alone and never given back.
unsafe fn map_shared_info(platform: &impl Platform, page: NonNull<Page>) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    unsafe { add_to_physmap(platform, PhysmapSpace::SHARED_INFO, 0, platform.gfn(page)) }
}

impl<P: Platform> fmt::Debug for Domain<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Domain").field("incarnation", &self.incarnation().0).finish_non_exhaustive()
    }
}

impl<P: Platform> fmt::Debug for Claim<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim").field("part", &self.part).finish_non_exhaustive()
    }
}
