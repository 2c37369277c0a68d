//! Time from `shared_info`: the arithmetic against wide integers, and readings while Xen writes.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use core::time::Duration;

use proptest::prelude::*;
use xen_hypercall::abi::shared_info as at;
use xen_hypercall::mock::{MockDomain, MockXen};
use xen_hypercall::{Clock, DomId, Domain, SharedInfo, VcpuId, VcpuTime};

/// The definition with as many bits as it takes: 64 * 127 fit no integer, so zeros are counted instead.
fn reference(time: VcpuTime, tsc: u64) -> u64 {
    let ahead = tsc.wrapping_sub(time.tsc_timestamp);
    let delta = if ahead < 1 << 63 { u128::from(ahead) } else { 0 };
    let mul = u128::from(time.tsc_to_system_mul);
    let shift = i32::from(time.tsc_shift);
    let elapsed = if shift < 0 {
        (delta / 2u128.checked_pow(shift.unsigned_abs()).unwrap_or(u128::MAX)) * mul / (1 << 32)
    } else {
        let mut value = delta * mul;
        let mut exponent = shift - 32;
        while exponent > 0 && value != 0 && value <= u128::from(u64::MAX) {
            value *= 2;
            exponent -= 1;
        }
        if exponent < 0 { value >> -exponent } else { value }
    };
    u64::try_from(elapsed + u128::from(time.system_time)).unwrap_or(u64::MAX)
}

fn edgy() -> impl Strategy<Value = u64> {
    prop_oneof![any::<u64>(), 0..4u64, (u64::MAX - 3)..=u64::MAX, (0..64u32).prop_map(|bit| 1 << bit)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    #[test]
    fn system_time_is_what_the_header_defines(
        tsc_timestamp in edgy(),
        system_time in edgy(),
        tsc_to_system_mul in prop_oneof![any::<u32>(), Just(0), Just(1), Just(u32::MAX), Just(1 << 31)],
        tsc_shift: i8,
        tsc in edgy(),
    ) {
        let time = VcpuTime::new(tsc_timestamp, system_time, tsc_to_system_mul, tsc_shift);
        prop_assert_eq!(time.system_time(tsc), Duration::from_nanos(reference(time, tsc)));
    }

    #[test]
    fn time_goes_on_with_the_counter(start: u32, counts in prop::collection::vec(any::<u32>(), 1..20)) {
        // 2.5 GHz: 0.4 ns a count.
        let time = VcpuTime::new(start.into(), 1000, 0xCCCC_CCCD, -1);
        let mut tsc = u64::from(start);
        let mut last = time.system_time(tsc);
        prop_assert_eq!(last, Duration::from_nanos(1000));
        for count in counts {
            tsc += u64::from(count);
            let now = time.system_time(tsc);
            let passed = (now - last).as_nanos();
            // An odd count loses half of itself until the next one.
            prop_assert!(passed.abs_diff(u128::from(count) * 2 / 5) <= 2, "{} counts are {} ns", count, passed);
            last = now;
        }
    }
}

#[test]
fn a_counter_that_began_after_the_timestamp_runs() {
    // As Xen tells the first domain, whose counter begins at zero while it is made.
    let time = VcpuTime::new(228_485_199_u64.wrapping_neg(), 1_952_289_566, 3_308_751_035, -1);
    assert_eq!(time.system_time(383_315_870), Duration::from_nanos(2_187_948_801));
    assert_eq!(time.system_time(228_485_200_u64.wrapping_neg()), Duration::from_nanos(1_952_289_566));
}

#[test]
fn a_counter_behind_the_timestamp_tells_the_timestamps_time() {
    let time = VcpuTime::new(1000, 77, u32::MAX, 127);
    for tsc in [0, 999, 1000] {
        assert_eq!(time.system_time(tsc), Duration::from_nanos(77));
    }
    assert_eq!(time.system_time(1001), Duration::from_nanos(u64::MAX), "cut to the largest");
}

struct Shared {
    domain: MockDomain,
    token: Domain<MockDomain>,
}

impl Shared {
    fn new() -> Self {
        let domain = MockXen::new().domain(DomId(1));
        let token = domain.boot().unwrap();
        Self { domain, token }
    }

    fn guest(&self) -> SharedInfo<'_> {
        self.token.shared_info()
    }

    /// The words of the page, as Xen reaches them.
    fn page(&self) -> *mut u8 {
        // The atomics of vCPU 0 are at its start.
        let shared = self.domain.shared_info().unwrap();
        shared.vcpu(VcpuId(0)).unwrap().upcall_pending.as_ptr()
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: the offset lies in the page, which lives as long as the domain and is reached by atomics alone.
        unsafe { AtomicU32::from_ptr(self.page().byte_add(offset).cast()) }
    }

    fn long(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(self.page().byte_add(offset).cast()) }
    }
}

#[test]
fn time_is_read_from_each_vcpus_place() {
    let shared = Shared::new();
    // On Arm only vCPU 0 has a place.
    let arm = cfg!(any(target_arch = "aarch64", xen_layout = "aarch64"));
    let (places, none): (&[u32], u32) = if arm { (&[0], 1) } else { (&[0, 1, 31], 32) };
    for &vcpu in places {
        let base = vcpu as usize * at::VCPU_INFO_SIZE + at::VCPU_TIME;
        shared.word(base + at::TIME_VERSION).store(2, Relaxed);
        shared.long(base + at::TIME_TSC_TIMESTAMP).store(10 + u64::from(vcpu), Relaxed);
        shared.long(base + at::TIME_SYSTEM_TIME).store(20, Relaxed);
        shared.word(base + at::TIME_TSC_TO_SYSTEM_MUL).store(30, Relaxed);
        // The shift is a byte, and the flags are the next.
        shared.word(base + at::TIME_SHIFT_AND_FLAGS).store(0x0000_01FE, Relaxed);
        let mut expected = VcpuTime::new(10 + u64::from(vcpu), 20, 30, -2);
        expected.flags = VcpuTime::TSC_STABLE;
        assert_eq!(shared.guest().time(VcpuId(vcpu)), Some(expected));
        assert_eq!(shared.guest().area(VcpuId(vcpu)).unwrap().time(), expected);
    }
    for vcpu in [none, 33, u32::MAX] {
        assert!(shared.guest().time(VcpuId(vcpu)).is_none() && shared.guest().vcpu(VcpuId(vcpu)).is_none());
        assert!(shared.guest().area(VcpuId(vcpu)).is_none());
    }
}

#[test]
fn a_version_that_never_settles_does_not_hang_the_guest() {
    let shared = Shared::new();
    shared.word(at::VCPU_TIME + at::TIME_VERSION).store(7, Relaxed);
    shared.long(at::VCPU_TIME + at::TIME_SYSTEM_TIME).store(99, Relaxed);
    assert_eq!(shared.guest().time(VcpuId(0)).unwrap().system_time, 99);
    shared.word(at::WC_VERSION).store(u32::MAX, Relaxed);
    shared.word(at::WC_SEC).store(5, Relaxed);
    assert_eq!(shared.guest().wall_clock(), Duration::from_secs(5));
}

#[test]
fn the_wall_clock_takes_all_its_64_bits() {
    let shared = Shared::new();
    for (low, high, nanoseconds) in [(1, 0, 2), (u32::MAX, 1, 999_999_999), (u32::MAX, u32::MAX, u32::MAX)] {
        shared.word(at::WC_SEC).store(low, Relaxed);
        shared.word(at::WC_SEC_HI).store(high, Relaxed);
        shared.word(at::WC_NSEC).store(nanoseconds, Relaxed);
        let seconds = Duration::from_secs(u64::from(high) << 32 | u64::from(low));
        let expected = seconds.saturating_add(Duration::from_nanos(nanoseconds.into()));
        assert_eq!(shared.guest().wall_clock(), expected);
    }
}

#[test]
fn shared_info_is_not_there_when_xen_refuses_it() {
    use xen_hypercall::mock::{Chance, Dice, HypercallFaults};
    use xen_hypercall::{Errno, HypercallNr};
    let xen = MockXen::new();
    let domain = xen.domain(DomId(1));
    let faults = HypercallFaults::new().fail(HypercallNr::MEMORY_OP, Chance::ALWAYS, Errno::EPERM);
    xen.set_faults(Dice::new(0), faults);
    assert!(matches!(domain.boot(), Err(Errno::EPERM)));
    assert_eq!(domain.pages_in_use(), 1, "Xen may have taken the page's memory before it refused");
    xen.set_faults(Dice::new(0), HypercallFaults::new());
    for allowed in 0..2 {
        domain.fail_allocs_after(Some(allowed));
        assert!(matches!(domain.boot(), Err(Errno::ENOMEM)));
        assert_eq!(domain.pages_in_use(), 1);
    }
    domain.fail_allocs_after(None);
    let token = domain.boot().unwrap();
    assert_eq!(domain.pages_in_use(), 3);
    drop(token);
    assert_eq!(domain.pages_in_use(), 2, "shared_info stays");
}

#[test]
fn the_counter_is_read_again_when_xen_changes_the_time_meanwhile() {
    let shared = Shared::new();
    let [version, tsc, system] =
        [at::TIME_VERSION, at::TIME_TSC_TIMESTAMP, at::TIME_SYSTEM_TIME].map(|at| at::VCPU_TIME + at);
    shared.word(at::VCPU_TIME + at::TIME_TSC_TO_SYSTEM_MUL).store(1 << 31, Relaxed);
    shared.word(at::VCPU_TIME + at::TIME_SHIFT_AND_FLAGS).store(1, Relaxed);
    shared.long(tsc).store(1_000_000, Relaxed);
    shared.long(system).store(5000, Relaxed);
    // Between the two readings the vCPU moves to a processor whose counter is far behind.
    let moved = core::cell::Cell::new(false);
    let now = shared.guest().now(VcpuId(0), || {
        if moved.replace(true) {
            return 1700;
        }
        shared.word(version).fetch_add(2, Relaxed);
        shared.long(tsc).store(1600, Relaxed);
        shared.long(system).store(6000, Relaxed);
        2_000_000
    });
    assert_eq!(now, Some(Duration::from_nanos(6100)), "one processor's time and the same one's counter");
}

#[test]
fn a_kernels_clock_starts_late_and_never_goes_back() {
    let shared: &'static Shared = Box::leak(Box::new(Shared::new()));
    let clock = Clock::new();
    assert_eq!(
        (clock.now(VcpuId(0), || 77), clock.unix_time(Duration::ZERO)),
        (Duration::ZERO, Duration::ZERO)
    );
    shared.long(at::VCPU_TIME + at::TIME_SYSTEM_TIME).store(900, Relaxed);
    shared.word(at::WC_SEC).store(5, Relaxed);
    clock.start(shared.guest());
    assert_eq!(clock.now(VcpuId(0), || 0), Duration::from_nanos(900));
    // Another vCPU's time is a little behind.
    shared.long(at::VCPU_INFO_SIZE + at::VCPU_TIME + at::TIME_SYSTEM_TIME).store(850, Relaxed);
    assert_eq!(clock.now(VcpuId(1), || 0), Duration::from_nanos(900));
    assert_eq!(clock.unix_time(Duration::from_secs(1)), Duration::from_secs(6));
}

#[test]
fn a_clock_that_xen_sets_back_stands_still_until_it_is_there_again() {
    let shared: &'static Shared = Box::leak(Box::new(Shared::new()));
    let set = |nanoseconds| {
        let time = VcpuTime::new(0, nanoseconds, 1 << 31, 1);
        assert!(shared.domain.set_time(VcpuId(0), time));
        assert_eq!(shared.guest().time(VcpuId(0)), Some(time));
    };
    set(5_000);
    let clock = Clock::new();
    clock.start(shared.guest());
    assert_eq!(clock.now(VcpuId(0), || 100), Duration::from_nanos(5_100));
    // The guest goes on where Xen was started later.
    set(40);
    assert_eq!(shared.guest().now(VcpuId(0), || 100), Some(Duration::from_nanos(140)));
    assert_eq!(clock.now(VcpuId(0), || 100), Duration::from_nanos(5_100));
    assert_eq!(clock.now(VcpuId(0), || 5_000), Duration::from_nanos(5_100));
    assert_eq!(clock.now(VcpuId(0), || 5_061), Duration::from_nanos(5_101));
    // A vCPU that has no place for it.
    assert!(!shared.domain.set_time(VcpuId(32), VcpuTime::new(0, 1, 0, 0)));
}
