//! The wait of a kernel without interrupts.

use core::sync::atomic::Ordering::Relaxed;
use core::time::Duration;

use xen_hypercall::mock::{MockXen, TraceOnPanic};
use xen_hypercall::{DomId, Wait, sched};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn it_ends_at_its_deadline_and_for_events_of_its_ports() {
    let xen = MockXen::new();
    let _trace = TraceOnPanic::new(&xen);
    let guest = xen.domain(DomId(1));
    let token = guest.boot().unwrap();
    let shared = token.shared_info();
    sched::wait_on(&guest, &[3], Some(SECOND), &|| false);
    assert_eq!(guest.now(), SECOND);
    // Pending before the sleep begins, and nobody was interrupted.
    shared.evtchn_pending(0).unwrap().store(1 << 3, Relaxed);
    sched::wait_on(&guest, &[70, 3], None, &|| false);
    assert_eq!(guest.now(), SECOND);
    sched::wait_on(&guest, &[70], Some(2 * SECOND), &|| false);
    assert_eq!(guest.now(), 2 * SECOND, "an event of another port");
}

#[test]
fn work_that_is_due_and_ports_that_are_wrong_are_no_sleep() {
    let xen = MockXen::new();
    let _trace = TraceOnPanic::new(&xen);
    let guest = xen.domain(DomId(1));
    sched::wait_on(&guest, &[], None, &|| true);
    sched::wait_on(&guest, &[1; 129], None, &|| false);
    assert_eq!(guest.now(), Duration::ZERO);
}
