//! Several vCPUs in one domain of the mock: calls made by each, timers of their own, a place for their events.

use core::time::Duration;
use std::sync::{Arc, Mutex};

use xen_hypercall::mock::MockXen;
use xen_hypercall::{DomId, Errno, Hypercall, HypercallNr, VcpuId, Wait, vcpu};

const MS: Duration = Duration::from_millis(1);

#[test]
fn a_handler_learns_which_vcpu_called() {
    let xen = MockXen::new();
    let domain = xen.domain(DomId(3));
    domain.set_vcpus(4);
    xen.register(HypercallNr::SCHED_OP, |caller, _| caller.vcpu().0 as isize);
    for id in 0..4 {
        let on = domain.on_vcpu(VcpuId(id));
        assert_eq!((on.vcpu(), on.id()), (VcpuId(id), DomId(3)));
        // SAFETY: the handler above looks at no argument.
        assert_eq!(unsafe { on.hypercall(HypercallNr::SCHED_OP, [0; 5]) }, id as isize);
    }
    assert!(xen.trace_text().contains("d3v2 SCHED_OP"), "{}", xen.trace_text());
}

#[test]
#[should_panic(expected = "2 vCPUs")]
fn there_are_no_more_vcpus_than_the_toolstack_gave() {
    let domain = MockXen::new().domain(DomId(1));
    domain.set_vcpus(2);
    domain.on_vcpu(VcpuId(2));
}

#[test]
fn each_vcpu_has_its_timers_and_they_fire_in_order() {
    let xen = MockXen::new();
    let domain = xen.domain(DomId(1));
    domain.set_vcpus(3);
    let fired = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&fired);
    xen.set_timer_hook(move |domain, vcpu| log.lock().unwrap().push((domain.xen().now(), vcpu.0)));

    let [v0, v1, v2] = [0, 1, 2].map(|id| domain.on_vcpu(VcpuId(id)));
    vcpu::set_singleshot_timer(&v1, VcpuId(1), 5 * MS).unwrap();
    vcpu::set_singleshot_timer(&v0, VcpuId(0), 7 * MS).unwrap();
    vcpu::set_singleshot_timer(&v2, VcpuId(2), 6 * MS).unwrap();
    // A vCPU sets and stops no timer but its own.
    assert_eq!(vcpu::set_singleshot_timer(&v0, VcpuId(1), MS), Err(Errno::EINVAL));
    assert_eq!(vcpu::stop_singleshot_timer(&v0, VcpuId(1)), Err(Errno::EINVAL));
    assert_eq!(vcpu::set_singleshot_timer(&v0, VcpuId(3), MS), Err(Errno::ENOENT));
    vcpu::stop_singleshot_timer(&v2, VcpuId(2)).unwrap();

    // Waiting on one vCPU lets time go on to the timer of another.
    v2.wait(None, &|| false);
    assert_eq!(xen.now(), 5 * MS);
    xen.advance(10 * MS);
    assert_eq!(*fired.lock().unwrap(), [(5 * MS, 1), (7 * MS, 0)]);

    // A time that has passed fires at once, as Xen 4.17 does it.
    vcpu::set_singleshot_timer(&v1, VcpuId(1), MS).unwrap();
    assert_eq!(fired.lock().unwrap().last(), Some(&(15 * MS, 1)));
}

// On Arm the second has none.
#[cfg(not(xen_layout = "aarch64"))]
#[test]
fn each_vcpu_has_its_place_in_shared_info_and_its_vector() {
    let domain = MockXen::new().domain(DomId(1));
    domain.set_vcpus(2);
    assert!(domain.vcpu_area(VcpuId(1)).is_none());
    let token = domain.boot().unwrap();
    let shared = token.shared_info();
    let area = domain.vcpu_area(VcpuId(1)).unwrap();
    area.info().upcall_pending.store(1, core::sync::atomic::Ordering::Relaxed);
    assert_eq!(shared.vcpu(VcpuId(1)).unwrap().upcall_pending.load(core::sync::atomic::Ordering::Relaxed), 1);
    assert_eq!(shared.vcpu(VcpuId(0)).unwrap().upcall_pending.load(core::sync::atomic::Ordering::Relaxed), 0);
    // Only the vCPU that has something pending returns from waiting at once.
    domain.on_vcpu(VcpuId(1)).wait(None, &|| false);
    domain.wait(Some(MS), &|| false);
    assert_eq!(domain.xen().now(), MS);

    use xen_hypercall::hvm;
    let vector = hvm::Vector::new(0x31).unwrap();
    hvm::set_evtchn_upcall_vector(&domain, VcpuId(1), vector).unwrap();
    assert_eq!((domain.upcall_vector(VcpuId(0)), domain.upcall_vector(VcpuId(1))), (None, Some(0x31)));
    assert_eq!(hvm::set_evtchn_upcall_vector(&domain, VcpuId(2), vector), Err(Errno::ENOENT));
}
