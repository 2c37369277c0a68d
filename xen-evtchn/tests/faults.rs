//! Each fault of the mock, alone.
#![cfg(feature = "mock")]

use xen_evtchn::{EventChannels, Progress, Virq, mock};
use xen_hypercall::mock::{Chance, Dice, MockDomain, MockXen};
use xen_hypercall::{DomId, VcpuId};

const VCPU0: VcpuId = VcpuId(0);
const DOM0: DomId = DomId(0);
const GUEST: DomId = DomId(1);

fn machine(faults: impl FnOnce(&mut mock::Faults)) -> (MockXen, [EventChannels<MockDomain>; 2]) {
    let xen = MockXen::new();
    mock::install(&xen);
    let sides = [GUEST, DOM0].map(|id| {
        let domain = xen.domain(id);
        EventChannels::new(&domain.boot().unwrap()).unwrap()
    });
    let mut set = mock::Faults::new();
    faults(&mut set);
    mock::set_faults(&xen, Dice::new(3), set);
    (xen, sides)
}

#[test]
fn lost_events_do_not_arrive_and_the_trace_says_so() {
    let (xen, [guest, dom0]) = machine(|faults| faults.lost = Chance::percent(50));
    let front = guest.alloc_unbound(DOM0).unwrap();
    front.set_late_eoi(false);
    let back = dom0.bind_interdomain(GUEST, front.port()).unwrap();
    let arrived: usize = (0..1000)
        .map(|_| {
            back.notify().unwrap();
            guest.dispatch(VCPU0)
        })
        .sum();
    assert!((400..600).contains(&arrived), "{arrived} of 1000");
    assert_eq!(xen.run_until_idle(10), 0);
    assert!(xen.trace_text().contains("d1: the event of port 1 is lost"));

    mock::set_faults(&xen, Dice::new(3), mock::Faults::new());
    back.notify().unwrap();
    assert_eq!(guest.dispatch(VCPU0), 1);
}

#[test]
fn late_events_arrive_while_the_machine_goes_on() {
    let (xen, [guest, dom0]) = machine(|faults| faults.late = Chance::ALWAYS);
    let front = guest.alloc_unbound(DOM0).unwrap();
    front.set_late_eoi(false);
    let back = dom0.bind_interdomain(GUEST, front.port()).unwrap();
    for _ in 0..100 {
        back.notify().unwrap();
        assert_eq!(guest.dispatch(VCPU0), 0);
        // A guest that waits lets it arrive, though there is nothing else to wait for.
        while !front.take() {
            guest.wait_since(guest.seq(), None);
        }
        assert_eq!(xen.run_until_idle(10), 0);
    }
    // Nobody gets the event of a port that was closed.
    back.notify().unwrap();
    drop(front);
    let next = guest.alloc_unbound(DOM0).unwrap();
    xen.run_until_idle(10);
    assert_eq!(guest.dispatch(VCPU0), 0);
    assert!(!next.take());
}

#[test]
fn doubled_events_come_twice() {
    let (xen, [guest, _dom0]) = machine(|faults| faults.doubled = Chance::ALWAYS);
    let ipi = guest.bind_ipi(VCPU0).unwrap();
    ipi.notify().unwrap();
    assert_eq!(guest.dispatch(VCPU0), 1);
    assert!(xen.run_until_idle(10) > 0);
    assert_eq!(guest.dispatch(VCPU0), 1);
    assert_eq!(ipi.stats().events, 2);
}

#[test]
fn spurious_events_are_another_ports() {
    let (_xen, [guest, _dom0]) = machine(|faults| faults.spurious = Chance::ALWAYS);
    let timer = guest.bind_virq(Virq::TIMER, VCPU0).unwrap();
    let other = guest.alloc_unbound(DOM0).unwrap();
    assert!(mock::raise_virq(guest.platform(), Virq::TIMER, VCPU0));
    assert_eq!(guest.dispatch(VCPU0), 2);
    assert!(timer.take() && other.take());
}

#[test]
fn only_one_domain_is_troubled() {
    let (_xen, [guest, dom0]) = machine(|faults| {
        faults.lost = Chance::ALWAYS;
        faults.only = Some(GUEST);
    });
    let front = guest.alloc_unbound(DOM0).unwrap();
    front.set_late_eoi(false);
    let back = dom0.bind_interdomain(GUEST, front.port()).unwrap();
    dom0.dispatch(VCPU0);
    assert!(back.take());
    back.done(Progress::Spurious);
    back.notify().unwrap();
    front.notify().unwrap();
    assert_eq!((guest.dispatch(VCPU0), dom0.dispatch(VCPU0)), (0, 1));
}
