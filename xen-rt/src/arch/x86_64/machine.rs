//! The way into Xen, the clock, sleep, and last words.

use core::arch::asm;
use core::time::Duration;

#[cfg(feature = "rand_core")]
use x86_64::instructions::random::RdRand;
use xen_evtchn::{EventChannels, Virq};
use xen_hypercall::arch::x86_64::cpuid;
use xen_hypercall::hvm::{HvmParam, Vector, callback_vector, set_param};
use xen_hypercall::version::{self, Features};
use xen_hypercall::{Domain, Errno, Hypercall, PAGE_SIZE, SharedInfo, VcpuId, vcpu};

use super::traps;
#[cfg(feature = "smp")]
use super::vcpus;
use crate::channels;
use crate::machine::{Kernel, keep};
use crate::memory_map::BootInfo;

pub(crate) use xen_hypercall::arch::x86_64::VendorCall as Call;

/// A domain of Xen at ring 0, where we are, has one way into Xen.
pub(crate) fn call() -> Option<Call> {
    // SAFETY: the PVH entry is the only one of this image, so this is ring 0 of a PVH domain.
    unsafe { Call::detect() }
}

/// The first steps of the first vCPU, before any other.
pub(crate) fn enter() {
    #[cfg(feature = "smp")]
    vcpus::enter();
}

/// Gives faults and the upcall their handlers, on the first vCPU.
pub(crate) fn install() {
    unsafe extern "C" {
        static fault_stack_top: u8;
    }
    traps::install((&raw const fault_stack_top).expose_provenance() as u64);
}

/// Xen's system time, read by the processor's time stamp counter.
#[derive(Debug)]
pub(crate) struct Clock(xen_hypercall::Clock);

impl Clock {
    pub(crate) const fn new() -> Self {
        Self(xen_hypercall::Clock::new())
    }

    /// Makes it run.
    pub(crate) fn start(&self, shared: SharedInfo<'static>) {
        self.0.start(shared);
    }

    /// Time since Xen started, or what goes on from it in a new domain; zero before the start.
    pub(crate) fn now(&self, vcpu: VcpuId) -> Duration {
        self.0.now(vcpu, counter)
    }

    /// Time since 1970-01-01 00:00 UTC, by a reading of this clock.
    pub(crate) fn unix_time(&self, now: Duration) -> Duration {
        self.0.unix_time(now)
    }

    /// What Xen's system time is when this clock shows `at`.
    pub(crate) fn system_time(&self, at: Duration) -> Duration {
        self.0.system_time(at)
    }

    /// Goes on in a new domain, on the first vCPU.
    #[cfg(feature = "suspend")]
    pub(crate) fn go_on(&self) {
        self.0.go_on(VcpuId(0), counter);
    }
}

/// The processor's time stamp counter, not read ahead of what comes before.
fn counter() -> u64 {
    // SAFETY: both instructions are there on every x86-64 processor and touch no memory.
    unsafe {
        core::arch::x86_64::_mm_lfence();
        core::arch::x86_64::_rdtsc()
    }
}

/// Lets a sleep end at `at` of the clock.
pub(crate) fn set_timer(
    xen: &impl Hypercall,
    clock: &Clock,
    vcpu: VcpuId,
    at: Duration,
) -> Result<(), Errno> {
    vcpu::set_singleshot_timer(&xen, vcpu, clock.system_time(at))
}

/// The timer's event has nothing to tell but that it is time to look around, so its channel is kept and never looked at.
pub(crate) fn bind_timer(
    events: &'static EventChannels<&'static Kernel>,
    vcpu: VcpuId,
) -> Result<(), xen_evtchn::Error> {
    channels::keep(events.bind_virq(Virq::TIMER, vcpu)?);
    Ok(())
}

/// Where pages of other domains can be mapped: right above all memory, for whoever saves the domain looks at every frame up to the
/// highest that ever had a page. The first domain has the machine's devices there, and is never saved: in the middle of what the
/// processor can address, or above all memory if that reaches so far.
pub(crate) fn room(xen: &impl Hypercall, info: &BootInfo) -> u64 {
    const WIDTHS: u32 = 0x8000_0008;
    let mut first = info.end().next_multiple_of(1 << 30);
    if version::features(&xen).is_ok_and(|features| features.contains(Features::DOM0)) {
        let [widths, ..] = cpuid(WIDTHS, 0);
        // Addresses of memory are those that the kernel uses, of which stacks have those above 46 bits.
        let bits = (widths & 0xFF).clamp(36, 46);
        first = first.max(1 << (bits - 1));
    }
    first / PAGE_SIZE as u64
}

/// Tells Xen by which interrupt to tell of events.
pub(crate) fn enable_upcall(domain: &Domain<&'static Kernel>) -> Result<(), Errno> {
    const VECTOR: Vector = Vector::new(traps::UPCALL_VECTOR).expect("an exception's vector");
    set_param(domain.platform(), HvmParam::CALLBACK_IRQ, callback_vector(VECTOR))
}

/// The same again, in a new domain.
#[cfg(feature = "suspend")]
pub(crate) fn enable_upcall_again(domain: &Domain<&'static Kernel>) -> Result<(), Errno> {
    enable_upcall(domain)
}

/// There is no other way than Xen's own call.
///
/// # Safety
/// As of [`Domain::suspend`].
#[cfg(feature = "suspend")]
pub(crate) unsafe fn suspend_by_firmware() -> Option<Result<xen_hypercall::sched::Resumed, Errno>> {
    None
}

/// Words to Xen's log: by the port that Xen watches in every HVM and PVH domain. Works before anything else does.
pub(crate) fn early(bytes: &[u8]) {
    for byte in bytes {
        // SAFETY: a write to this port has no effect but the one on Xen's log.
        unsafe { asm!("out 0xE9, al", in("al") *byte, options(nomem, nostack, preserves_flags)) }
    }
}

/// Sleeps until an interrupt. This is the only place where interrupts are on, see `traps`: an event that is pending already
/// ends the sleep as it begins.
pub(crate) fn idle(_is_due: &dyn Fn() -> bool) {
    // SAFETY: this is ring 0, and the handler of the only interrupt is the one for this.
    unsafe { xen_hypercall::arch::x86_64::idle::sleep_unless(|| false) }
}

/// Whether the processor has random numbers.
#[cfg(feature = "rand_core")]
pub(crate) fn has_random() -> bool {
    RdRand::new().is_some()
}

/// A random number, if there is one now.
#[cfg(feature = "rand_core")]
pub(crate) fn random() -> Option<u64> {
    RdRand::new()?.get_u64()
}

/// Nothing more can be done, and Xen was told so.
pub(crate) fn halt() -> ! {
    loop {
        // SAFETY: interrupts are off, so the processor stops here for good.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
    }
}

/// Breaks what page tables and traps guard, to show what becomes of it.
pub(crate) fn selftest(name: &str) {
    unsafe extern "C" {
        static text_start: u8;
        static text_end: u8;
    }
    fn overflow(depth: u64) -> u64 {
        let room = core::hint::black_box([depth; 64]);
        if depth == u64::MAX { 0 } else { overflow(depth + 1) + room[(depth % 64) as usize] }
    }
    // SAFETY: none of these is sound, and that is the point: each must end in the trap that it is named for. The
    // addresses are not referred to by any Rust object but the code and constants, which stay as they are.
    unsafe {
        match name {
            "panic" => panic!("asked for by the command line"),
            "null" => drop(core::ptr::without_provenance::<u8>(8).read_volatile()),
            "stack" => drop(core::hint::black_box(overflow(0))),
            "text" => (&raw const text_start).cast_mut().write_volatile(0),
            "rodata" => (&raw const text_end).cast_mut().write_volatile(0),
            "exec" => {
                let code = keep([0xC3_u8]);
                core::mem::transmute::<*const u8, extern "C" fn()>(code.as_ptr())();
            }
            _ => {}
        }
    }
}
