//! The page that Xen shares with every guest: pending events, and the time (`shared_info` of `xen.h`).
#![allow(unsafe_code, reason = "reads a page that Xen writes")]

use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};
use core::time::Duration;

use crate::abi::shared_info as at;
use crate::{Domain, Errno, Page, Platform, VcpuId, VcpuTime};

/// The `shared_info` page, borrowed from the [`Domain`] that has it mapped. All access is by atomics, so it may be copied
/// and shared freely. A kernel whose token is `'static` has it without an end.
#[derive(Clone, Copy, Debug)]
pub struct SharedInfo<'d> {
    page: NonNull<Page>,
    owner: PhantomData<&'d Page>,
}

// SAFETY: the page lives as long as the borrow and is accessed only by atomics.
unsafe impl Send for SharedInfo<'_> {}
// SAFETY: as above; no method needs exclusive access.
unsafe impl Sync for SharedInfo<'_> {}

/// The event fields of one vCPU (`vcpu_info`).
#[non_exhaustive]
#[derive(Clone, Copy, Debug)]
pub struct VcpuInfo<'a> {
    /// Not zero while Xen wants the vCPU to look at its events.
    pub upcall_pending: &'a AtomicU8,
    /// Not zero: do not interrupt (PV guests only).
    pub upcall_mask: &'a AtomicU8,
    /// Which words of pending events to look at, a bit each.
    pub pending_sel: &'a AtomicU64,
}

/// How often to read again what Xen writes at the moment, before taking it as it is. Xen's updates take well
/// under a microsecond; a page that never settles must not hang the guest.
const PATIENCE: usize = 1000;

impl<'d> SharedInfo<'d> {
    /// Takes a page that holds `shared_info` already.
    ///
    /// # Safety
    /// The page is `shared_info` and stays so for the whole of `'d`, and nobody in this domain accesses it other than by
    /// atomics.
    pub const unsafe fn from_page(page: NonNull<Page>) -> Self {
        Self { page, owner: PhantomData }
    }

    pub(crate) const fn page(&self) -> NonNull<Page> {
        self.page
    }

    pub(crate) fn u8_at(&self, offset: usize) -> &'d AtomicU8 {
        debug_assert!(offset < crate::PAGE_SIZE);
        // SAFETY: `offset` comes from the layout constants and lies in the page, which is valid and accessed only
        // by atomics; a byte needs no alignment.
        unsafe { AtomicU8::from_ptr(self.page.as_ptr().cast::<u8>().add(offset)) }
    }

    pub(crate) fn u32_at(&self, offset: usize) -> &'d AtomicU32 {
        debug_assert!(offset % 4 == 0 && offset < crate::PAGE_SIZE);
        // SAFETY: `offset` comes from the layout constants: in the page, and a multiple of 4 of an aligned page.
        unsafe { AtomicU32::from_ptr(self.page.as_ptr().cast::<u8>().add(offset).cast()) }
    }

    pub(crate) fn u64_at(&self, offset: usize) -> &'d AtomicU64 {
        debug_assert!(offset % 8 == 0 && offset < crate::PAGE_SIZE);
        // SAFETY: `offset` comes from the layout constants: in the page, and a multiple of 8 of an aligned page.
        unsafe { AtomicU64::from_ptr(self.page.as_ptr().cast::<u8>().add(offset).cast()) }
    }

    /// Word `word` (0 to 63) of the pending events, 64 ports each; words beyond are none.
    pub fn evtchn_pending(&self, word: usize) -> Option<&'d AtomicU64> {
        (word < 64).then(|| self.u64_at(at::EVTCHN_PENDING + word * 8))
    }

    /// Word `word` (0 to 63) of the masked events, 64 ports each; words beyond are none.
    pub fn evtchn_mask(&self, word: usize) -> Option<&'d AtomicU64> {
        (word < 64).then(|| self.u64_at(at::EVTCHN_MASK + word * 8))
    }

    /// The event fields of a vCPU in this page; none for a vCPU that has no place here (32 and up on x86). Xen does not use those
    /// of a vCPU whose area was [registered](VcpuArea::register) elsewhere; [`Domain::area`] knows.
    pub fn vcpu(&self, vcpu: VcpuId) -> Option<VcpuInfo<'d>> {
        vcpu_base(vcpu).map(|base| self.info_at(base))
    }

    /// A vCPU's place in this page; none for a vCPU that has none (32 and up on x86).
    pub fn area(&self, vcpu: VcpuId) -> Option<VcpuArea<'d>> {
        vcpu_base(vcpu).map(|offset| VcpuArea { page: *self, offset })
    }

    fn info_at(&self, base: usize) -> VcpuInfo<'d> {
        VcpuInfo {
            upcall_pending: self.u8_at(base + at::EVTCHN_UPCALL_PENDING),
            upcall_mask: self.u8_at(base + at::EVTCHN_UPCALL_MASK),
            pending_sel: self.u64_at(base + at::EVTCHN_PENDING_SEL),
        }
    }

    /// How to tell the time on a vCPU; none for a vCPU that has no place in this page. [`now`](Self::now) tells the time.
    pub fn time(&self, vcpu: VcpuId) -> Option<VcpuTime> {
        vcpu_base(vcpu).map(|base| self.time_at(base + at::VCPU_TIME))
    }

    fn time_at(&self, base: usize) -> VcpuTime {
        settled(self.u32_at(base + at::TIME_VERSION), || self.read_time(base))
    }

    fn read_time(&self, base: usize) -> VcpuTime {
        VcpuTime {
            tsc_timestamp: self.u64_at(base + at::TIME_TSC_TIMESTAMP).load(Ordering::Relaxed),
            system_time: self.u64_at(base + at::TIME_SYSTEM_TIME).load(Ordering::Relaxed),
            tsc_to_system_mul: self.u32_at(base + at::TIME_TSC_TO_SYSTEM_MUL).load(Ordering::Relaxed),
            tsc_shift: self.u8_at(base + at::TIME_SHIFT_AND_FLAGS).load(Ordering::Relaxed) as i8,
            flags: self.u8_at(base + at::TIME_SHIFT_AND_FLAGS + 1).load(Ordering::Relaxed),
        }
    }

    /// Xen's system time, for the vCPU that makes the call. `counter` reads its time stamp counter, between the two looks at
    /// the version by which Xen tells of a change, and again if there was one: a vCPU that moves to another processor in
    /// between never combines one processor's counter with the other's time. None for a vCPU that has no place in this
    /// page.
    ///
    /// Times of different processors differ by a little, so a clock that must not go back goes through a
    /// [`Monotonic`](crate::Monotonic).
    #[inline]
    pub fn now(&self, vcpu: VcpuId, counter: impl Fn() -> u64) -> Option<Duration> {
        vcpu_base(vcpu).map(|base| self.now_at(base + at::VCPU_TIME, counter))
    }

    fn now_at(&self, base: usize, counter: impl Fn() -> u64) -> Duration {
        let (time, count) =
            settled(self.u32_at(base + at::TIME_VERSION), || (self.read_time(base), counter()));
        time.system_time(count)
    }

    /// Time since 1970-01-01 00:00 UTC at the moment when Xen's system time was zero.
    pub fn wall_clock(&self) -> Duration {
        let (low, high, nanoseconds) = settled(self.u32_at(at::WC_VERSION), || {
            let word = |offset| self.u32_at(offset).load(Ordering::Relaxed);
            (word(at::WC_SEC), word(at::WC_SEC_HI), word(at::WC_NSEC))
        });
        Duration::from_secs(u64::from(high) << 32 | u64::from(low))
            .saturating_add(Duration::from_nanos(nanoseconds.into()))
    }
}

/// Where one vCPU's `vcpu_info` is: in `shared_info`, or in a page where the guest registered it. All access is by
/// atomics, so copies may be shared freely.
#[derive(Clone, Copy, Debug)]
pub struct VcpuArea<'d> {
    /// Not the page of that name when the area is elsewhere; it lends its atomics.
    page: SharedInfo<'d>,
    offset: usize,
}

impl<'d> VcpuArea<'d> {
    /// Takes the `vcpu_info` at byte `offset` of a page.
    ///
    /// # Panics
    /// When the offset is not a multiple of 8, or the structure does not end within the page.
    ///
    /// # Safety
    /// The page is one that Xen writes a `vcpu_info` to at this offset, and stays so for the whole of `'d`. Nobody in this
    /// domain accesses those bytes other than by atomics.
    pub const unsafe fn from_page(page: NonNull<Page>, offset: usize) -> Self {
        assert!(
            offset % 8 == 0 && offset <= crate::PAGE_SIZE - at::VCPU_INFO_SIZE,
            "a vcpu_info does not fit there"
        );
        Self { page: SharedInfo { page, owner: PhantomData }, offset }
    }

    /// vCPUs below this can have an area.
    pub const VCPUS: u32 = crate::areas::VCPUS as u32;

    /// Moves a vCPU's `vcpu_info` to a place of its own, in a page that is taken from the platform for 64 of them and never
    /// given back: the only way for vCPUs that have no place in `shared_info` (32 and up on x86, 1 and up on Arm). Once for
    /// each vCPU, by itself or while it is down. [`Domain::area`] tells of it from then on, and after a resume in a new domain
    /// it is there again. On some versions of Xen a vCPU without any place cannot be started.
    ///
    /// Xen marks everything as pending there, so that no event is lost.
    ///
    /// # Errors
    /// `ENOMEM` when the platform has no page; `ENOENT` for a vCPU that does not exist, or is not below [`VCPUS`](Self::VCPUS);
    /// `EINVAL` for one that was moved already; `EBUSY` while another vCPU moves it; otherwise those of
    /// [`register_vcpu_info`](crate::vcpu::register_vcpu_info).
    pub fn register<P: Platform>(domain: &'d Domain<P>, vcpu: VcpuId) -> Result<Self, Errno> {
        domain.register_area(vcpu)
    }

    /// Takes over what is at another place, as Xen does when a vCPU moves. From nowhere: nothing, with the vCPU's events masked.
    #[cfg(feature = "mock")]
    pub(crate) fn copy_from(&self, old: Option<VcpuArea<'_>>) {
        for offset in (0..at::VCPU_INFO_SIZE).step_by(8) {
            let word = |area: &VcpuArea<'_>| area.page.u64_at(area.offset + offset).load(Ordering::Relaxed);
            self.page.u64_at(self.offset + offset).store(old.as_ref().map_or(0, word), Ordering::Relaxed);
        }
        if old.is_none() {
            self.info().upcall_mask.store(1, Ordering::Relaxed);
        }
    }

    /// The event fields.
    pub fn info(&self) -> VcpuInfo<'d> {
        self.page.info_at(self.offset)
    }

    /// How to tell the time on this vCPU.
    pub fn time(&self) -> VcpuTime {
        self.page.time_at(self.offset + at::VCPU_TIME)
    }

    /// Xen's system time on this vCPU, as [`SharedInfo::now`].
    pub fn now(&self, counter: impl Fn() -> u64) -> Duration {
        self.page.now_at(self.offset + at::VCPU_TIME, counter)
    }

    /// Writes the time as Xen does.
    #[cfg(feature = "mock")]
    pub(crate) fn set_time(&self, time: VcpuTime) {
        let base = self.offset + at::VCPU_TIME;
        let version = self.page.u32_at(base + at::TIME_VERSION);
        version.fetch_add(1, Ordering::AcqRel);
        self.page.u64_at(base + at::TIME_TSC_TIMESTAMP).store(time.tsc_timestamp, Ordering::Relaxed);
        self.page.u64_at(base + at::TIME_SYSTEM_TIME).store(time.system_time, Ordering::Relaxed);
        self.page.u32_at(base + at::TIME_TSC_TO_SYSTEM_MUL).store(time.tsc_to_system_mul, Ordering::Relaxed);
        self.page.u8_at(base + at::TIME_SHIFT_AND_FLAGS).store(time.tsc_shift as u8, Ordering::Relaxed);
        self.page.u8_at(base + at::TIME_SHIFT_AND_FLAGS + 1).store(time.flags, Ordering::Relaxed);
        version.fetch_add(1, Ordering::Release);
    }
}

/// Reads what Xen guards by a version that is odd while it writes and changes each time.
fn settled<T>(version: &AtomicU32, read: impl Fn() -> T) -> T {
    for _ in 0..PATIENCE {
        let before = version.load(Ordering::Acquire);
        let value = read();
        fence(Ordering::Acquire);
        if before % 2 == 0 && version.load(Ordering::Relaxed) == before {
            return value;
        }
        core::hint::spin_loop();
    }
    read()
}

fn vcpu_base(vcpu: VcpuId) -> Option<usize> {
    let index = vcpu.0 as usize;
    (index < at::VCPUS).then_some(index * at::VCPU_INFO_SIZE)
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;
    use core::sync::atomic::Ordering::Relaxed;

    use super::*;

    /// Writes two words under a version as Xen does, one store at each step.
    #[derive(Default)]
    struct Writer {
        version: AtomicU32,
        words: [Cell<u32>; 2],
        steps: Cell<u32>,
    }

    impl Writer {
        fn step(&self) {
            let step = self.steps.replace(self.steps.get() + 1);
            match step % 4 {
                0 | 3 => self.version.store(self.version.load(Relaxed).wrapping_add(1), Relaxed),
                word => self.words[word as usize - 1].set(step / 4 + 1),
            }
        }

        /// The two words, with the writer `gaps` steps further before, between and after them.
        fn read(&self, gaps: [u32; 3]) -> (u32, u32) {
            let go = |steps| (0..steps).for_each(|_| self.step());
            go(gaps[0]);
            let first = self.words[0].get();
            go(gaps[1]);
            let second = self.words[1].get();
            go(gaps[2]);
            (first, second)
        }
    }

    #[test]
    fn a_reading_is_never_mixed_wherever_xen_writes_meanwhile() {
        let gaps = || 0..=8u32;
        for (start, first, between, after) in gaps()
            .flat_map(|a| gaps().flat_map(move |b| gaps().map(move |c| (a, b, c))))
            .flat_map(|(a, b, c)| gaps().map(move |start| (start, a, b, c)))
        {
            // Just below its end, so that the version wraps around too.
            let writer = Writer { version: AtomicU32::new(u32::MAX - 1), ..Writer::default() };
            (0..start).for_each(|_| writer.step());
            let tries = Cell::new(0);
            let value = settled(&writer.version, || {
                let disturbed = tries.replace(tries.get() + 1) < 3;
                // Undisturbed readings come once the writer has ended what it was about.
                let end = (4 - writer.steps.get() % 4) % 4;
                writer.read(if disturbed { [first, between, after] } else { [end, 0, 0] })
            });
            assert_eq!(value.0, value.1, "start {start}, gaps {first} {between} {after}");
            assert!(tries.get() < 6, "start {start}: {} readings", tries.get());
        }
    }
}
