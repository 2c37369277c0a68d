//! A domain of the mock machine that is paused while the others go on.
#![cfg(feature = "mock")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use xen_hypercall::mock::{MockDomain, MockXen};
use xen_hypercall::{DomId, Wait, sched, vcpu};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// A machine with a far side that does something each minute, and how often it did.
fn machine() -> (MockXen, MockDomain, Arc<AtomicU32>) {
    let xen = MockXen::new();
    let guest = xen.domain(DomId(1));
    let done = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&done);
    xen.add_actor("far side", move |xen| {
        let due = xen.now().as_secs() / 60 > count.load(Relaxed).into();
        count.fetch_add(due.into(), Relaxed);
        due
    });
    (xen, guest, done)
}

#[test]
fn a_paused_domain_sees_one_long_gap_and_the_far_sides_none() {
    let (xen, guest, done) = machine();
    guest.pause_for(HOUR);
    assert!(guest.is_paused() && !xen.domain(DomId(2)).is_paused());
    guest.wait(Some(SECOND), &|| false);
    assert!(guest.now() >= HOUR && guest.now() < HOUR + SECOND, "{:?}", guest.now());
    assert!(!guest.is_paused());
    assert!((59..=60).contains(&done.load(Relaxed)), "{}", done.load(Relaxed));
    // Another domain sleeps as ever while this one is paused.
    guest.pause();
    let before = xen.now();
    xen.domain(DomId(2)).wait(Some(before + SECOND), &|| false);
    assert_eq!((xen.now(), guest.is_paused()), (before + SECOND, true));
}

#[test]
fn a_domain_that_sleeps_is_paused_and_goes_on_as_a_far_side_says() {
    let (xen, guest, _) = machine();
    let paused = guest.inside();
    xen.add_actor("toolstack", move |xen| {
        match xen.now().as_secs() {
            2 if !paused.is_paused() => paused.pause(),
            700.. if paused.is_paused() => paused.unpause(),
            _ => return false,
        }
        true
    });
    let mut longest = Duration::ZERO;
    while guest.now() < HOUR / 4 {
        let before = guest.now();
        guest.wait(Some(before + SECOND / 2), &|| false);
        longest = longest.max(guest.now() - before);
    }
    assert!(longest > 690 * SECOND && longest < 710 * SECOND, "{longest:?}");
}

#[test]
fn the_hypercalls_that_sleep_return_after_the_pause() {
    let (_, guest, _) = machine();
    guest.pause_for(HOUR);
    sched::poll(&guest, &[], Some(SECOND)).unwrap();
    assert!(guest.now() >= HOUR);
}

#[test]
fn a_timer_that_fires_meanwhile_has_fired() {
    let (xen, guest, _) = machine();
    let fired = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&fired);
    xen.set_timer_hook(move |_, _| {
        count.fetch_add(1, Relaxed);
    });
    vcpu::set_timer(&guest, Some(60 * SECOND)).unwrap();
    guest.pause_for(HOUR);
    guest.wait(None, &|| fired.load(Relaxed) > 0);
    assert_eq!(fired.load(Relaxed), 1);
}

#[test]
fn a_pause_that_nobody_ends_is_told() {
    let (xen, guest, _) = machine();
    guest.pause();
    let ended = catch_unwind(AssertUnwindSafe(|| guest.wait(Some(SECOND), &|| false)));
    let text = ended.unwrap_err().downcast::<String>().unwrap();
    assert!(text.starts_with("d1 is paused, and nobody lets it go on"), "{text}");
    assert!(xen.trace_text().contains("d1 is paused"));
}
