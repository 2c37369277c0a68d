//! Events on several vCPUs, with each ABI.
#![cfg(feature = "mock")]

use std::time::Duration;

use xen_evtchn::{Abi, Channel, Error, EventChannels, Status, Virq, mock};
use xen_hypercall::abi::shared_info;
use xen_hypercall::mock::{MockDomain, MockXen};
use xen_hypercall::sched::Resumed;
use xen_hypercall::{DomId, Errno, VcpuArea, VcpuId, event, vcpu};

const DOM0: DomId = DomId(0);
const GUEST: DomId = DomId(1);
/// The vCPUs in use: with places in `shared_info`, where the layout has them, and with places of their own.
const LOW: [u32; 4] = [0, 1, 2, 3];
const HIGH: [u32; 4] = [0, 31, 33, 511];

type Vcpus = [VcpuId; 4];

fn has_place(vcpu: VcpuId) -> bool {
    (vcpu.0 as usize) < shared_info::VCPUS
}

/// With each ABI, on vCPUs of either kind.
fn each(test: impl Fn(&MockXen, &EventChannels<MockDomain>, Vcpus)) {
    for abi in [Abi::TwoLevel, Abi::Fifo] {
        for vcpus in [LOW, HIGH] {
            let vcpus = vcpus.map(VcpuId);
            let xen = MockXen::new();
            mock::install(&xen);
            let domain = xen.domain(GUEST);
            domain.set_vcpus(vcpus[3].0 as usize + 1);
            let guest = EventChannels::with_abi(&domain.boot().unwrap(), abi).unwrap();
            for vcpu in &vcpus[1..] {
                guest.add_vcpu(*vcpu).unwrap();
                // Where a vCPU gets a place, everything is pending there: nothing is.
                assert_eq!(guest.dispatch(*vcpu), 0);
            }
            test(&xen, &guest, vcpus);
        }
    }
}

/// What each vCPU's dispatch answers, in turn.
fn dispatch_all(guest: &EventChannels<MockDomain>, vcpus: Vcpus) -> [usize; 4] {
    vcpus.map(|vcpu| guest.dispatch(vcpu))
}

fn refused(operation: &'static str, errno: Errno) -> Error {
    Error::Hypercall { operation, errno }
}

#[test]
fn an_ipi_reaches_its_vcpu_alone() {
    each(|_, guest, vcpus| {
        let before = vcpus.map(|vcpu| mock::interrupts(guest.platform(), vcpu));
        let ipis = vcpus.map(|vcpu| guest.bind_ipi(vcpu).unwrap());
        for (index, ipi) in ipis.iter().enumerate() {
            ipi.notify().unwrap();
            let mut expected = [0; 4];
            expected[index] = 1;
            assert_eq!(dispatch_all(guest, vcpus), expected);
            assert!(ipi.take());
        }
        let interrupts = vcpus.map(|vcpu| mock::interrupts(guest.platform(), vcpu));
        assert_eq!(interrupts, before.map(|count| count + 1));
        assert_eq!(ipis[2].status().unwrap(), Status::Ipi);
        assert_eq!(ipis[2].bind_vcpu(vcpus[1]).unwrap_err(), refused("EVTCHNOP_bind_vcpu", Errno::EINVAL));
        assert_eq!(guest.bind_ipi(VcpuId(1000)).unwrap_err(), refused("EVTCHNOP_bind_ipi", Errno::ENOENT));
    });
}

#[test]
fn each_vcpu_has_its_own_timer_and_global_interrupts_move() {
    each(|xen, guest, vcpus| {
        let timers = vcpus.map(|vcpu| guest.bind_virq(Virq::TIMER, vcpu).unwrap());
        for (index, after) in [(1, 1), (3, 3)] {
            let domain = guest.platform().on_vcpu(vcpus[index]);
            vcpu::set_singleshot_timer(&domain, vcpus[index], Duration::from_millis(after)).unwrap();
        }
        xen.advance(Duration::from_millis(2));
        assert_eq!(dispatch_all(guest, vcpus), [0, 1, 0, 0]);
        xen.advance(Duration::from_millis(2));
        assert_eq!(dispatch_all(guest, vcpus), [0, 0, 0, 1]);
        assert!(timers[1].take() && timers[3].take() && !timers[0].take());
        let fixed = refused("EVTCHNOP_bind_vcpu", Errno::EINVAL);
        assert_eq!(timers[1].bind_vcpu(VcpuId(0)).unwrap_err(), fixed);

        let global = refused("EVTCHNOP_bind_virq", Errno::EINVAL);
        assert_eq!(guest.bind_virq(Virq::ARGO, vcpus[1]).unwrap_err(), global);
        let argo = guest.bind_virq(Virq::ARGO, VcpuId(0)).unwrap();
        argo.bind_vcpu(vcpus[1]).unwrap();
        assert!(mock::raise_virq(guest.platform(), Virq::ARGO, VcpuId(0)));
        assert_eq!(dispatch_all(guest, vcpus), [0, 1, 0, 0]);
    });
}

#[test]
fn a_channel_moves_and_what_is_pending_is_found_where_it_was() {
    each(|_, guest, vcpus| {
        let channel = guest.alloc_unbound(DOM0).unwrap();
        channel.set_late_eoi(false);
        let domain = guest.platform();
        assert!(mock::inject(domain, channel.port()));
        channel.bind_vcpu(vcpus[3]).unwrap();
        assert_eq!(dispatch_all(guest, vcpus), [1, 0, 0, 0]);
        assert!(mock::inject(domain, channel.port()));
        assert_eq!(dispatch_all(guest, vcpus), [0, 0, 0, 1]);
        // Unmasking raises the event on the vCPU that the channel is bound to, whoever unmasks.
        channel.mask();
        assert!(mock::inject(domain, channel.port()));
        assert_eq!(dispatch_all(guest, vcpus), [0; 4]);
        channel.unmask();
        assert_eq!(dispatch_all(guest, vcpus), [0, 0, 0, 1]);
        let other = VcpuId(32);
        assert_eq!(channel.bind_vcpu(other).unwrap_err(), Error::VcpuNotAdded(other));
        // The next owner of the port starts on vCPU 0.
        drop(channel);
        let next = guest.alloc_unbound(DOM0).unwrap();
        assert!(mock::inject(domain, next.port()));
        assert_eq!(dispatch_all(guest, vcpus), [1, 0, 0, 0]);
    });
}

#[test]
fn vcpus_that_cannot_have_events() {
    each(|_, guest, vcpus| {
        for vcpu in [VcpuId(VcpuArea::VCPUS), VcpuId(u32::MAX)] {
            assert_eq!(guest.add_vcpu(vcpu).unwrap_err(), Error::VcpuOutOfRange(vcpu));
            assert_eq!(guest.dispatch(vcpu), 0);
        }
        // What is added a second time stays as it is: Xen has its queues, and its place is there.
        let ipis = [1, 2].map(|vcpu| guest.bind_ipi(vcpus[vcpu]).unwrap());
        ipis[0].notify().unwrap();
        assert_eq!((guest.add_vcpu(vcpus[1]), guest.add_vcpu(vcpus[2])), (Ok(()), Ok(())));
        ipis[1].notify().unwrap();
        dispatch_all(guest, vcpus);
        assert!(ipis.iter().all(Channel::take));
        // The domain has no such vCPU.
        let beyond = VcpuId(vcpus[3].0 + 1);
        let missing = match (has_place(beyond), guest.abi_in_use()) {
            _ if beyond.0 >= VcpuArea::VCPUS => Err(Error::VcpuOutOfRange(beyond)),
            (false, _) => Err(refused("VCPUOP_register_vcpu_info", Errno::ENOENT)),
            (true, Abi::Fifo) => Err(refused("EVTCHNOP_init_control", Errno::ENOENT)),
            (true, _) => Ok(()),
        };
        assert_eq!(guest.add_vcpu(beyond), missing);
    });
}

#[test]
fn what_is_bound_to_a_vcpu_that_was_not_added_is_refused_or_arrives() {
    for abi in [Abi::TwoLevel, Abi::Fifo] {
        let xen = MockXen::new();
        mock::install(&xen);
        let domain = xen.domain(GUEST);
        domain.set_vcpus(40);
        let guest = EventChannels::with_abi(&domain.boot().unwrap(), abi).unwrap();
        let channel = guest.alloc_unbound(DOM0).unwrap();
        let binds: [&dyn Fn(VcpuId) -> Option<Error>; 3] =
            [&|vcpu| guest.bind_ipi(vcpu).err(), &|vcpu| guest.bind_virq(Virq::TIMER, vcpu).err(), &|vcpu| {
                channel.bind_vcpu(vcpu).err()
            }];
        let needed = |vcpu| (abi == Abi::Fifo || !has_place(vcpu)).then_some(Error::VcpuNotAdded(vcpu));
        for bind in binds {
            // An event would be sent and never seen.
            assert_eq!(bind(VcpuId(35)), Some(Error::VcpuNotAdded(VcpuId(35))));
            assert_eq!(bind(VcpuId(1)), needed(VcpuId(1)));
        }
        assert_eq!(mock::open_ports(&domain), 1, "nothing stays open behind a refusal");
        for vcpu in [VcpuId(1), VcpuId(33)] {
            assert_eq!(guest.dispatch(vcpu), 0);
            guest.add_vcpu(vcpu).unwrap();
            let ipi = guest.bind_ipi(vcpu).unwrap();
            ipi.notify().unwrap();
            assert_eq!((guest.dispatch(VcpuId(0)), guest.dispatch(vcpu)), (0, 1));
            assert!(ipi.take());
        }
    }
}

#[test]
fn an_event_from_before_the_vcpu_had_a_place_is_not_lost() {
    let xen = MockXen::new();
    mock::install(&xen);
    let domain = xen.domain(GUEST);
    domain.set_vcpus(40);
    let guest = EventChannels::new(&domain.boot().unwrap()).unwrap();
    let late = VcpuId(39);
    let channel = guest.alloc_unbound(DOM0).unwrap();
    channel.set_late_eoi(false);
    // By hand, as another part of the kernel might.
    event::bind_vcpu(&domain, channel.port().0, late).unwrap();
    assert!(mock::inject(&domain, channel.port()));
    assert_eq!((guest.dispatch(VcpuId(0)), guest.dispatch(late)), (0, 0));
    guest.add_vcpu(late).unwrap();
    assert_eq!((guest.dispatch(VcpuId(0)), guest.dispatch(late)), (0, 1));
    assert!(channel.take());
}

#[test]
fn a_vcpu_moves_to_a_place_of_its_own_with_what_is_pending() {
    for abi in [Abi::TwoLevel, Abi::Fifo] {
        let xen = MockXen::new();
        mock::install(&xen);
        let domain = xen.domain(GUEST);
        let token = domain.boot().unwrap();
        let guest = EventChannels::with_abi(&token, abi).unwrap();
        let ipi = guest.bind_ipi(VcpuId(0)).unwrap();
        ipi.notify().unwrap();
        // vCPU 0 moves itself: from then on Xen does not look at shared_info.
        VcpuArea::register(&token, VcpuId(0)).unwrap();
        assert_eq!((guest.dispatch(VcpuId(0)), ipi.take()), (1, true));
        ipi.notify().unwrap();
        assert_eq!((guest.dispatch(VcpuId(0)), ipi.take()), (1, true));
        assert_eq!(VcpuArea::register(&token, VcpuId(0)).err(), Some(Errno::EINVAL));
        ipi.notify().unwrap();
        assert_eq!((guest.dispatch(VcpuId(0)), ipi.take()), (1, true));
    }
}

#[test]
fn a_place_outlives_the_event_channels_that_asked_for_it() {
    let xen = MockXen::new();
    mock::install(&xen);
    let domain = xen.domain(GUEST);
    domain.set_vcpus(40);
    let token = domain.boot().unwrap();
    for abi in [Abi::Fifo, Abi::TwoLevel, Abi::Fifo] {
        let guest = EventChannels::with_abi(&token, abi).unwrap();
        guest.add_vcpu(VcpuId(33)).unwrap();
        let ipi = guest.bind_ipi(VcpuId(33)).unwrap();
        ipi.notify().unwrap();
        assert_eq!(guest.dispatch(VcpuId(33)), 1);
        drop(ipi);
        guest.reset().unwrap();
    }
}

#[test]
fn places_are_there_again_after_a_resume_in_a_new_domain() {
    for abi in [Abi::TwoLevel, Abi::Fifo] {
        let xen = MockXen::new();
        mock::install(&xen);
        let domain = xen.domain(GUEST);
        domain.set_vcpus(40);
        let token = domain.boot().unwrap();
        let guest = EventChannels::with_abi(&token, abi).unwrap();
        let vcpus = [VcpuId(1), VcpuId(33), VcpuId(39)];
        vcpus.iter().for_each(|vcpu| guest.add_vcpu(*vcpu).unwrap());
        let ipis = vcpus.map(|vcpu| guest.bind_ipi(vcpu).unwrap());
        let memory = domain.pages_in_use();
        for _ in 0..2 {
            // SAFETY: one thread; no page of another domain is mapped.
            assert_eq!(unsafe { token.suspend() }, Ok(Resumed::InNewDomain));
            guest.resume().unwrap();
            for (ipi, vcpu) in ipis.iter().zip(vcpus) {
                ipi.rebind().unwrap();
                ipi.notify().unwrap();
                assert_eq!((guest.dispatch(VcpuId(0)), guest.dispatch(vcpu)), (0, 1));
                assert!(ipi.take());
            }
        }
        assert_eq!(domain.pages_in_use(), memory, "the same places");
    }
}

#[test]
fn a_wait_looks_at_the_events_of_its_own_vcpu() {
    let xen = MockXen::new();
    mock::install(&xen);
    let domain = xen.domain(GUEST);
    domain.set_vcpus(34);
    let this = VcpuId(33);
    // A kernel that runs on this vCPU.
    let guest = EventChannels::new(&domain.on_vcpu(this).boot().unwrap()).unwrap();
    guest.add_vcpu(this).unwrap();
    // Everything is pending there at first, whosever it is.
    assert_eq!(guest.dispatch(this), 0);
    let [first, ours] = [VcpuId(0), this].map(|vcpu| guest.bind_ipi(vcpu).unwrap());
    first.notify().unwrap();
    guest.wait_since(guest.seq(), Some(Duration::from_millis(1)));
    assert_eq!((xen.now(), first.take()), (Duration::from_millis(1), false));
    ours.notify().unwrap();
    guest.wait_since(guest.seq(), None);
    assert!(ours.take());
}
