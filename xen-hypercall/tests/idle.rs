//! The sleep of `arch::x86_64::idle` is executed with an event at every one of its instructions.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod processor;

use std::cell::Cell;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::time::Duration;

use processor::{Handler, Outcome, Processor};
use xen_hypercall::arch::x86_64::idle;
use xen_hypercall::{Errno, Hypercall, HypercallNr, VcpuId};

/// One sleep of a main loop that looks at `upcall_pending` last.
fn sleep(processor: Processor) -> Outcome {
    // SAFETY: what is privileged is emulated, and the handlers are as the function asks.
    processor.run(|| unsafe { idle::sleep_unless(processor::is_due) })
}

/// How many instructions after `sti` hold interrupts back: none, as the manuals say, and one too long.
const SHADOWS: [u32; 3] = [0, 1, 2];

/// Sleeps with an event before each instruction of the sleep, one after the other.
fn sleeps(handler: Handler, interrupts: bool, shadow: u32) -> impl Iterator<Item = Outcome> {
    let machine = move |event| Processor { handler, interrupts, shadow, event };
    let length = sleep(machine(None)).steps;
    assert!((10..1000).contains(&length), "{length} instructions");
    (0..length).map(move |step| sleep(machine(Some(step))))
}

#[test]
fn an_event_at_any_instruction_ends_the_sleep() {
    for (handler, interrupts) in [(Handler::Entry, false), (Handler::Own, false), (Handler::Own, true)] {
        for shadow in SHADOWS {
            let (mut moved, mut slept) = (0, 0);
            for outcome in sleeps(handler, interrupts, shadow) {
                let place = format!("{handler:?}, interrupts {interrupts}, shadow {shadow}: {outcome:?}");
                assert!(!outcome.lost, "slept on an event: {place}");
                assert_eq!(outcome.interrupts, interrupts, "not as before: {place}");
                assert!(outcome.delivered <= 1, "{place}");
                moved += u32::from(outcome.moved);
                slept += u32::from(outcome.slept);
            }
            // The places between `sti` and `hlt`, and those behind.
            assert!(moved >= 1 && slept >= 1, "{handler:?}: moved {moved}, slept {slept}");
        }
    }
}

#[test]
fn a_handler_that_returns_to_where_it_came_from_loses_the_event() {
    for shadow in SHADOWS {
        let lost = sleeps(Handler::Forgetful, false, shadow).filter(|outcome| outcome.lost).count();
        assert!(lost > 0, "the processor of these tests shows no lost event");
    }
}

#[test]
fn without_an_event_it_sleeps_until_one_comes() {
    for handler in [Handler::Entry, Handler::Own] {
        let outcome = sleep(Processor { handler, interrupts: false, shadow: 1, event: None });
        assert!(outcome.slept && !outcome.lost && outcome.delivered == 1 && !outcome.moved, "{outcome:?}");
    }
}

#[test]
fn work_that_is_due_is_not_slept_over() {
    let asked = Cell::new(0);
    let machine = Processor { handler: Handler::Own, interrupts: true, shadow: 1, event: None };
    let outcome = machine.run(|| {
        let is_due = || {
            asked.set(asked.get() + 1);
            assert!(!processor::interrupts(), "interrupts are on");
            true
        };
        // SAFETY: as in `sleep`.
        unsafe { idle::sleep_unless(is_due) };
    });
    assert!(!outcome.slept && outcome.interrupts && asked.get() == 1, "{outcome:?}");
}

#[test]
fn only_return_addresses_of_the_sleep_are_moved() {
    let entry = idle::upcall_entry() as u64;
    for rip in [0, u64::MAX, entry, sleep as *const () as u64] {
        assert_eq!(idle::resume_at(rip), rip);
    }
    // The routine is in front of the handler: sti, then two nops and hlt, which are the range, then cli.
    let moved: Vec<u64> = (entry - 16..entry).filter(|rip| idle::resume_at(*rip) != *rip).collect();
    let end = idle::resume_at(moved[0]);
    assert_eq!(moved, [end - 3, end - 2, end - 1]);
    // SAFETY: the addresses are of code, which is readable.
    let code: [u8; 5] = unsafe { std::ptr::with_exposed_provenance::<[u8; 5]>(end as usize - 4).read() };
    assert_eq!(code, [0xFB, 0x90, 0x90, 0xF4, 0xFA]);
}

/// The names of the routine's symbols carry the version that is incompatible with others.
#[test]
fn symbols_are_named_for_this_version() {
    assert!(env!("CARGO_PKG_VERSION").starts_with("0.1."), "rename xen_hypercall_0_1_* in idle.rs");
}

/// Xen's answer to the timer.
struct Timer(Errno, Cell<u32>);

// SAFETY: no hypercall is made.
unsafe impl Hypercall for Timer {
    unsafe fn hypercall(&self, nr: HypercallNr, _: [usize; 5]) -> isize {
        assert_eq!(nr, HypercallNr::VCPU_OP);
        self.1.set(self.1.get() + 1);
        self.0.as_return()
    }
}

#[test]
fn a_timer_that_xen_refuses_ends_the_wait_at_once() {
    let timer = Timer(Errno::ETIME, Cell::new(0));
    let (pending, second) = (AtomicU8::new(0), Some(Duration::from_secs(1)));
    let machine = Processor { handler: Handler::Own, interrupts: true, shadow: 1, event: None };
    // SAFETY: as in `sleep`.
    let outcome = machine.run(|| unsafe { idle::wait(&timer, VcpuId(0), &pending, second, &|| false) });
    assert!(!outcome.slept && outcome.interrupts && timer.1.get() == 1, "{outcome:?}");
}

#[test]
fn a_wait_looks_at_the_upcall_and_at_what_the_caller_asks() {
    let timer = Timer(Errno::ETIME, Cell::new(0));
    for (pending, due) in [(1, false), (0, true), (0, false)] {
        let upcall = AtomicU8::new(pending);
        let machine = Processor { handler: Handler::Entry, interrupts: false, shadow: 1, event: None };
        // SAFETY: as in `sleep`.
        let outcome = machine.run(|| unsafe { idle::wait(&timer, VcpuId(0), &upcall, None, &|| due) });
        assert_eq!(outcome.slept, pending == 0 && !due, "{outcome:?}");
        assert_eq!((upcall.load(SeqCst), timer.1.get()), (pending, 0));
    }
}
