//! Time as Xen tells it: a reading of the vCPU's time stamp counter and how to go on from it (`vcpu_time_info`).

use core::time::Duration;

/// A consistent copy of a `vcpu_time_info` (`xen.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VcpuTime {
    /// The counter when `system_time` was taken.
    pub tsc_timestamp: u64,
    /// Nanoseconds since Xen started, at that moment.
    pub system_time: u64,
    /// Nanoseconds per count, as a fraction of 2^32, after the shift.
    pub tsc_to_system_mul: u32,
    /// The count is first shifted left by this, or right if it is negative.
    pub tsc_shift: i8,
}

impl VcpuTime {
    /// Xen's system time when the counter is `tsc`. A counter behind the timestamp gives the timestamp's time;
    /// what does not fit in 64 bits of nanoseconds is cut to the largest.
    pub fn system_time(&self, tsc: u64) -> Duration {
        let delta = u128::from(tsc.saturating_sub(self.tsc_timestamp));
        // 64 bits shifted by up to 127, then multiplied by 32: only a shift beyond 31 could overflow, and saturates.
        let shifted = match u32::from(self.tsc_shift.unsigned_abs()) {
            shift if self.tsc_shift < 0 => delta.checked_shr(shift).unwrap_or(0),
            shift if shift <= 31 => delta << shift,
            _ if delta == 0 => 0,
            _ => u128::from(u64::MAX) << 31,
        };
        let nanoseconds = shifted.saturating_mul(u128::from(self.tsc_to_system_mul)) >> 32;
        let elapsed = u64::try_from(nanoseconds).unwrap_or(u64::MAX);
        Duration::from_nanos(self.system_time.saturating_add(elapsed))
    }
}
