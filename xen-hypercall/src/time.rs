//! Time as Xen tells it: a reading of the vCPU's time stamp counter and how to go on from it (`vcpu_time_info`).

use core::time::Duration;

/// A consistent copy of a `vcpu_time_info` (`xen.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct VcpuTime {
    /// The counter when `system_time` was taken. It wraps around: a guest's counter may begin at zero after Xen read it.
    pub tsc_timestamp: u64,
    /// Nanoseconds since Xen started, at that moment.
    pub system_time: u64,
    /// Nanoseconds per count, as a fraction of 2^32, after the shift.
    pub tsc_to_system_mul: u32,
    /// The count is first shifted left by this, or right if it is negative.
    pub tsc_shift: i8,
    /// `XEN_PVCLOCK_*`: bit 0 ([`TSC_STABLE`](Self::TSC_STABLE)) says that the counters of all vCPUs agree.
    pub flags: u8,
}

impl VcpuTime {
    /// The bit of [`flags`](Self::flags) by which Xen says that no vCPU's counter is behind another's
    /// (`XEN_PVCLOCK_TSC_STABLE_BIT`).
    pub const TSC_STABLE: u8 = 1 << 0;

    /// A reading made elsewhere, such as in a kernel's own copy of the page.
    pub const fn new(tsc_timestamp: u64, system_time: u64, tsc_to_system_mul: u32, tsc_shift: i8) -> Self {
        Self { tsc_timestamp, system_time, tsc_to_system_mul, tsc_shift, flags: 0 }
    }

    /// Xen's system time when the counter is `tsc`. A counter behind the timestamp gives the timestamp's time;
    /// what does not fit in 64 bits of nanoseconds is cut to the largest.
    pub fn system_time(&self, tsc: u64) -> Duration {
        // Both wrap around; what is more than half of the way ahead is behind.
        let delta = (tsc.wrapping_sub(self.tsc_timestamp) as i64).max(0) as u64;
        let by = u32::from(self.tsc_shift.unsigned_abs());
        let scale = |count: u64| u128::from(count) * u128::from(self.tsc_to_system_mul);
        let nanoseconds = match by {
            // Bits shifted out here are lost before the multiplication, as in Xen's own arithmetic.
            _ if self.tsc_shift < 0 => scale(delta.checked_shr(by).unwrap_or(0)) >> 32,
            ..=32 => scale(delta) >> (32 - by),
            // At most 96 bits are in use, so this many zeros in front let the shift pass.
            _ if scale(delta).leading_zeros() >= by - 32 => scale(delta) << (by - 32),
            _ => u128::MAX,
        };
        let elapsed = u64::try_from(nanoseconds).unwrap_or(u64::MAX);
        Duration::from_nanos(self.system_time.saturating_add(elapsed))
    }
}
