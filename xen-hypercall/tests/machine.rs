//! The mock machine itself: hypercalls made to fail, and the trace that a failing test prints.

use std::panic::{AssertUnwindSafe, catch_unwind};

use xen_hypercall::mock::{Chance, Dice, HypercallFaults, MockXen, TraceOnPanic};
use xen_hypercall::{DomId, Errno, HypercallNr, sched, version};

#[test]
fn faults_come_as_often_as_asked_and_the_same_in_every_run() {
    let run = |seed| {
        let xen = MockXen::new();
        let guest = xen.domain(DomId(1));
        let faults = HypercallFaults::new()
            .fail(HypercallNr::XEN_VERSION, Chance::percent(30), Errno::EAGAIN)
            .fail(HypercallNr::XEN_VERSION, Chance::percent(10), Errno::ENOMEM);
        xen.set_faults(Dice::new(seed), faults);
        (0..1000).map(|_| version::version(&guest)).collect::<Vec<_>>()
    };
    let first = run(5);
    let count = |errno| first.iter().filter(|result| **result == Err(errno)).count();
    assert!((250..350).contains(&count(Errno::EAGAIN)) && (40..100).contains(&count(Errno::ENOMEM)));
    assert!(first.contains(&Ok((4, 17))));
    assert!(first == run(5) && first != run(6));
}

#[test]
fn a_fault_of_one_command_leaves_the_others() {
    let xen = MockXen::new();
    let guest = xen.domain(DomId(1));
    let faults = HypercallFaults::new().fail_command(HypercallNr::SCHED_OP, 2, Chance::ALWAYS, Errno::EBUSY);
    xen.set_faults(Dice::new(0), faults);
    assert_eq!(sched::shutdown(&guest, sched::ShutdownReason::CRASH), Err(Errno::EBUSY));
    assert_eq!(guest.shutdown_reason(), None, "a call that fails does nothing");
    assert_eq!(sched::yield_now(&guest), Ok(()));
    assert!(xen.trace_text().contains("d1 SCHED_OP(2, ..) is made to fail: EBUSY"), "{}", xen.trace_text());
    xen.set_faults(Dice::new(0), HypercallFaults::new());
    assert_eq!(sched::shutdown(&guest, sched::ShutdownReason::CRASH), Ok(()));
}

/// Run by the test below in a process of its own, to see what it prints.
#[test]
fn child_that_fails() {
    if std::env::var_os("FAIL_WITH_TRACE").is_none() {
        return;
    }
    let xen = MockXen::new();
    let _trace = TraceOnPanic::new(&xen);
    version::version(&xen.domain(DomId(7))).unwrap();
    panic!("on purpose");
}

#[test]
fn the_trace_is_printed_by_a_failing_test_alone() {
    let run = |fail: bool| {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "child_that_fails", "--nocapture"]);
        if fail {
            child.env("FAIL_WITH_TRACE", "1");
        }
        let output = child.output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let (passed, text) = run(true);
    assert!(!passed && text.contains("d7 XEN_VERSION(0, ..) = 262161"), "{text}");
    let (passed, text) = run(false);
    assert!(passed && !text.contains("XEN_VERSION"), "{text}");
}

#[test]
fn a_panic_in_an_actor_leaves_the_machine_of_use() {
    let xen = MockXen::new();
    xen.add_actor("clumsy", |_| panic!("on purpose"));
    assert!(catch_unwind(AssertUnwindSafe(|| xen.step())).is_err());
    assert_eq!(version::version(&xen.domain(DomId(1))), Ok((4, 17)));
    assert!(!xen.step(), "the actor is gone");
}
