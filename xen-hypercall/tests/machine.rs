//! The mock machine itself: hypercalls made to fail, and the trace that a failing test prints.

use std::panic::{AssertUnwindSafe, catch_unwind};

use xen_hypercall::mock::{Chance, Dice, HypercallFaults, MockXen, TraceOnPanic};
use xen_hypercall::{DomId, Errno, Gfn, GrantRoom, HypercallNr, PageMemory, sched, version};

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

#[test]
fn a_room_holds_other_domains_pages() {
    let xen = MockXen::new();
    let (guest, other) = (xen.domain(DomId(1)), xen.domain(DomId(2)));
    let pages = other.alloc_pages(3).unwrap();
    // SAFETY: within the three pages.
    let page = |index: usize| unsafe { pages.add(index) };
    assert_eq!(guest.reserve_room(0), None);
    let room = guest.reserve_room(2).unwrap();
    let frame = |index: u64| Gfn(room.0 + index);
    assert_eq!((guest.page_at(room), guest.room_in_use()), (None, 2));
    // SAFETY: pages of a domain stay.
    let map = |gfn, page| unsafe { guest.map_foreign(gfn, page) };
    // SAFETY: only asked for, not accessed.
    let address = |first, count| unsafe { guest.room_address(first, count) };
    assert!(!map(frame(2), page(0)), "no room of ours");
    assert!(map(frame(0), page(1)) && !map(frame(0), page(2)), "one page at a time");
    assert_eq!((address(room, 1), address(room, 2)), (Some(page(1)), None));
    assert!(map(frame(1), page(2)));
    assert_eq!(address(room, 2), Some(page(1)), "in a row as they are there");
    assert!(guest.unmap_foreign(frame(1)) && !guest.unmap_foreign(frame(1)));
    assert!(map(frame(1), page(0)));
    assert_eq!((address(room, 2), address(frame(1), 1)), (None, Some(page(0))));

    guest.limit_room(Some(3));
    assert_eq!(guest.reserve_room(2), None);
    let second = guest.reserve_room(1).unwrap();
    assert!(guest.unmap_foreign(frame(0)) && guest.unmap_foreign(frame(1)));
    // SAFETY: nothing is mapped in either.
    unsafe {
        guest.release_room(second, 1);
        guest.release_room(room, 2);
    }
    assert_eq!(guest.room_in_use(), 0);
}

#[test]
#[should_panic(expected = "come back")]
fn a_room_with_something_in_it_does_not_go() {
    let xen = MockXen::new();
    let guest = xen.domain(DomId(1));
    let page = guest.alloc_pages(1).unwrap();
    let room = guest.reserve_room(1).unwrap();
    // SAFETY: pages of a domain stay.
    assert!(unsafe { guest.map_foreign(room, page) });
    // SAFETY: it is refused, which is what this test is about.
    unsafe { guest.release_room(room, 1) };
}

#[test]
fn a_machine_goes_with_the_last_handle_from_outside() {
    let (xen, other) = (MockXen::new(), MockXen::new());
    let (gone, others) = (xen.downgrade(), other.downgrade());
    let guest = xen.domain(DomId(1));
    let page = guest.alloc_pages(1).unwrap();
    // Far sides that keep handles, as those of devices do.
    let (inside, far) = (xen.inside(), guest.inside());
    xen.add_actor("a device", move |xen| inside.now() > xen.now() && far.pages_in_use() == 0);
    let far = xen.inside().domain(DomId(0));
    xen.register(HypercallNr(50), move |caller, _| (caller.id() == far.id()) as isize);
    assert!(!xen.step());
    drop(xen);
    // Still there, with its actor, as long as the guest is.
    assert!(gone.is_alive() && !guest.xen().step());
    assert_eq!(guest.gfn(page), Gfn(0x1000));
    let late = guest.inside();
    drop(guest);
    // A handle that does not count may see the end: there is memory, but nobody acts any more.
    assert!(gone.is_alive() && late.pages_in_use() == 1 && !late.xen().step());
    drop(late);
    assert!(!gone.is_alive() && others.is_alive());
}
