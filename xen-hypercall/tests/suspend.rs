//! A domain that is suspended: what it finds in a new domain, what stays when that is cancelled, and its clock.
#![allow(unsafe_code, reason = "suspends a domain")]

use core::time::Duration;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use xen_hypercall::assist::{self, Assist};
use xen_hypercall::hvm::{self, HvmParam};
use xen_hypercall::mock::{Chance, Dice, HypercallFaults, MockDomain, MockXen};
use xen_hypercall::sched::{self, Resumed, ShutdownReason};
use xen_hypercall::{
    Clock, DomId, Domain, Errno, Gfn, HypercallNr, PageMemory, Part, SuspendError, VcpuArea, VcpuId, Wait,
    vcpu,
};

const GUEST: DomId = DomId(3);
const VCPU0: VcpuId = VcpuId(0);
const SECOND: Duration = Duration::from_secs(1);

fn machine() -> (MockXen, MockDomain, Domain<MockDomain>) {
    let xen = MockXen::new();
    let _dom0 = xen.domain(DomId(0));
    let guest = xen.domain(GUEST);
    let token = guest.boot().unwrap();
    (xen, guest, token)
}

fn suspend(token: &Domain<MockDomain>) -> Result<Resumed, SuspendError> {
    // SAFETY: one vCPU, one thread, no page of another domain is mapped.
    unsafe { token.suspend() }
}

#[test]
fn a_new_domain_has_the_memory_and_nothing_else() {
    let (xen, guest, token) = machine();
    guest.set_vcpus(2);
    let page = guest.alloc_pages(1).unwrap();
    // SAFETY: a fresh page.
    unsafe { page.as_ptr().cast::<u8>().write(77) };
    let area = VcpuArea::register(&token, VcpuId(1)).unwrap();
    area.info().pending_sel.store(5, Relaxed);
    hvm::set_evtchn_upcall_vector(&guest, VCPU0, hvm::Vector::new(0x40).unwrap()).unwrap();
    guest.set_hvm_param(HvmParam::STORE_PFN, 7);
    guest.set_hvm_param(HvmParam::STORE_EVTCHN, 8);
    hvm::set_param(&guest, HvmParam::CALLBACK_IRQ, 9).unwrap();
    assist::enable(&guest, Assist::RUNSTATE_UPDATE_FLAG).unwrap();
    sched::start_watchdog(&guest, SECOND).unwrap();
    vcpu::set_singleshot_timer(&guest, VCPU0, SECOND).unwrap();
    let (other, life) = (guest.inside(), token.incarnation());
    token.shared_info().evtchn_mask(3).unwrap().store(6, Relaxed);

    assert_eq!(suspend(&token), Ok(Resumed::InNewDomain));
    assert_ne!(token.incarnation(), life);
    assert_eq!((guest.id(), other.id(), token.platform().id()), (DomId(4), DomId(4), DomId(4)));
    assert!(!xen.has_domain(GUEST) && xen.has_domain(DomId(4)));
    assert_eq!(xen.domain(DomId(4)).gfn(page), guest.gfn(page), "the same memory");
    // SAFETY: as above.
    assert_eq!(unsafe { page.as_ptr().cast::<u8>().read() }, 77);
    assert_eq!(token.shared_info().evtchn_mask(3).unwrap().load(Relaxed), 0, "a fresh page of Xen's");
    // The vCPU's area is registered anew at its place, and Xen marks all there as pending.
    assert_eq!(area.info().pending_sel.load(Relaxed), u64::MAX);
    guest.vcpu_area(VcpuId(1)).unwrap().info().pending_sel.store(6, Relaxed);
    assert_eq!(area.info().pending_sel.load(Relaxed), 6);
    assert_eq!(VcpuArea::register(&token, VcpuId(1)).err(), Some(Errno::EINVAL));
    assert_eq!((guest.upcall_vector(VCPU0), guest.shutdown_reason()), (None, None));
    assert_eq!((guest.hvm_param(HvmParam::STORE_PFN), guest.hvm_param(HvmParam::STORE_EVTCHN)), (7, 0));
    assert_eq!(guest.hvm_param(HvmParam::CALLBACK_IRQ), 0);
    assert!(!guest.assists(Assist::RUNSTATE_UPDATE_FLAG));
    xen.advance(2 * SECOND);
    assert_eq!(guest.shutdown_reason(), None, "the watchdog is gone");
    // And once more.
    assert_eq!(suspend(&token), Ok(Resumed::InNewDomain));
    assert_eq!(guest.id(), DomId(5));
}

#[test]
fn a_suspend_that_is_cancelled_changes_nothing() {
    let (xen, guest, token) = machine();
    xen.set_toolstack(|_| Resumed::InPlace);
    hvm::set_evtchn_upcall_vector(&guest, VCPU0, hvm::Vector::new(0x40).unwrap()).unwrap();
    token.shared_info().evtchn_mask(3).unwrap().store(6, Relaxed);
    let life = token.incarnation();
    assert_eq!(suspend(&token), Ok(Resumed::InPlace));
    assert_eq!((token.incarnation(), guest.id(), guest.shutdown_reason()), (life, GUEST, None));
    assert_eq!(token.shared_info().evtchn_mask(3).unwrap().load(Relaxed), 6);
    assert_eq!(guest.upcall_vector(VCPU0), Some(0x40));
    sched::shutdown(&guest, ShutdownReason::POWEROFF).unwrap();
    assert!(guest.shutdown_reason().unwrap() == ShutdownReason::POWEROFF);
}

#[test]
fn what_is_held_forbids_a_suspend() {
    let (xen, _, token) = machine();
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    xen.set_toolstack(move |_| {
        counter.fetch_add(1, Relaxed);
        Resumed::InPlace
    });
    let claim = token.claim(Part::GrantTable).unwrap();
    claim.hold();
    claim.hold();
    assert_eq!(suspend(&token), Err(SuspendError::Refused(Errno::EBUSY)));
    // SAFETY: taken above, for nothing.
    unsafe { claim.let_go() };
    assert_eq!(suspend(&token), Err(SuspendError::Refused(Errno::EBUSY)));
    // SAFETY: taken above, for nothing.
    unsafe { claim.let_go() };
    assert_eq!(asked.load(Relaxed), 0, "Xen was not asked");
    assert_eq!(suspend(&token), Ok(Resumed::InPlace));
}

#[test]
fn a_domain_learns_that_it_was_not_suspended_or_is_lost() {
    let (xen, guest, token) = machine();
    let faults = |nr| HypercallFaults::new().fail(nr, Chance::ALWAYS, Errno::EPERM);
    xen.set_faults(Dice::new(0), faults(HypercallNr::SCHED_OP));
    let life = token.incarnation();
    let refused = suspend(&token).unwrap_err();
    assert_eq!(refused, SuspendError::Refused(Errno::EPERM));
    assert!(refused.to_string().contains("goes on as it was"));
    assert_eq!((token.incarnation(), guest.id()), (life, GUEST));
    xen.set_faults(Dice::new(0), faults(HypercallNr::MEMORY_OP));
    let lost = suspend(&token).unwrap_err();
    assert_eq!(lost, SuspendError::Lost(Errno::EPERM));
    assert!(lost.to_string().contains("must end"));
    assert_ne!(token.incarnation(), life);
}

#[test]
fn the_other_mocks_hear_of_a_migration_once_each() {
    let (xen, guest, token) = machine();
    let heard = Arc::new(Mutex::new(Vec::new()));
    for number in 0..2 {
        let heard = Arc::clone(&heard);
        xen.on_migration(move |domain, old| heard.lock().unwrap().push((number, domain.id(), old)));
    }
    suspend(&token).unwrap();
    assert_eq!(*heard.lock().unwrap(), [(0, DomId(4), GUEST), (1, DomId(4), GUEST)]);
    heard.lock().unwrap().clear();
    xen.migrate(&guest);
    assert_eq!(heard.lock().unwrap().len(), 2);
    // A machine with hooks ends all the same.
    let weak = xen.downgrade();
    drop((xen, guest, token));
    assert!(!weak.is_alive());
}

/// A clock as a kernel has it, by a counter that goes on over a migration.
fn look(clock: &Clock, xen: &MockXen) -> Duration {
    clock.now(VCPU0, || xen.now().as_nanos() as u64)
}

#[test]
fn a_clock_goes_on_where_it_was_and_knows_the_time_of_day() {
    let (xen, guest, token) = machine();
    let token: &'static Domain<MockDomain> = Box::leak(Box::new(token));
    let clock = Clock::new();
    clock.go_on(VCPU0, || 0);
    xen.advance(100 * SECOND);
    clock.start(token.shared_info());
    assert_eq!(look(&clock, &xen), 100 * SECOND);
    let start = clock.unix_time(look(&clock, &xen));
    xen.set_toolstack(|domain| {
        // An hour in a file.
        domain.xen().advance(3600 * SECOND);
        domain.xen().migrate(domain);
        Resumed::InNewDomain
    });
    assert_eq!(suspend(token), Ok(Resumed::InNewDomain));
    assert_eq!(guest.system_time(), Duration::ZERO, "another machine");
    clock.go_on(VCPU0, || xen.now().as_nanos() as u64);
    assert_eq!(look(&clock, &xen), 100 * SECOND, "the hour does not count");
    assert_eq!(clock.unix_time(look(&clock, &xen)), start + 3600 * SECOND, "but for the time of day");
    xen.advance(5 * SECOND);
    assert_eq!(look(&clock, &xen), 105 * SECOND);
    // Xen's own time is for Xen's timers.
    assert_eq!(clock.system_time(110 * SECOND), 10 * SECOND);
    vcpu::set_singleshot_timer(&guest, VCPU0, clock.system_time(110 * SECOND)).unwrap();
    assert_eq!(hvm::time(&guest), Ok(5 * SECOND));
    // To a machine that has been up for longer, as to one that was not.
    xen.set_toolstack(|domain| {
        domain.xen().migrate(domain);
        domain.xen().advance(9000 * SECOND);
        Resumed::InNewDomain
    });
    assert_eq!(suspend(token), Ok(Resumed::InNewDomain));
    clock.go_on(VCPU0, || xen.now().as_nanos() as u64);
    assert_eq!(look(&clock, &xen), 105 * SECOND);
    assert_eq!(clock.system_time(106 * SECOND), 9001 * SECOND);
    assert_eq!(clock.unix_time(look(&clock, &xen)), start + 3600 * SECOND + 9005 * SECOND);
}

#[test]
fn a_platforms_clock_on_the_mock_goes_on_too() {
    let (xen, guest, token) = machine();
    xen.advance(SECOND);
    suspend(&token).unwrap();
    assert_eq!((guest.now(), guest.system_time()), (SECOND, Duration::ZERO));
    assert!(guest.page_at(Gfn(1 << 40)).is_none());
}
