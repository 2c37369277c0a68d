//! Events on several vCPUs, with each ABI.
#![cfg(feature = "mock")]

use std::time::Duration;

use xen_evtchn::{Abi, Error, EventChannels, Status, Virq, mock};
use xen_hypercall::mock::{MockDomain, MockXen};
use xen_hypercall::{DomId, Errno, VcpuId, vcpu};

const DOM0: DomId = DomId(0);
const GUEST: DomId = DomId(1);
const VCPUS: u32 = 4;

fn each_abi(test: impl Fn(&MockXen, &EventChannels<MockDomain>)) {
    for abi in [Abi::TwoLevel, Abi::Fifo] {
        let xen = MockXen::new();
        mock::install(&xen);
        let domain = xen.domain(GUEST);
        domain.set_vcpus(VCPUS as usize);
        let guest = EventChannels::with_abi(&domain.boot().unwrap(), abi).unwrap();
        for vcpu in 1..VCPUS {
            guest.add_vcpu(VcpuId(vcpu)).unwrap();
        }
        test(&xen, &guest);
    }
}

/// What each vCPU's dispatch answers, in turn.
fn dispatch_all(guest: &EventChannels<MockDomain>) -> Vec<usize> {
    (0..VCPUS).map(|vcpu| guest.dispatch(VcpuId(vcpu))).collect()
}

fn refused(operation: &'static str, errno: Errno) -> Error {
    Error::Hypercall { operation, errno }
}

#[test]
fn an_ipi_reaches_its_vcpu_alone() {
    each_abi(|_, guest| {
        let ipis: Vec<_> = (0..VCPUS).map(|vcpu| guest.bind_ipi(VcpuId(vcpu)).unwrap()).collect();
        ipis[2].notify().unwrap();
        let interrupts: Vec<_> =
            (0..VCPUS).map(|vcpu| mock::interrupts(guest.platform(), VcpuId(vcpu))).collect();
        assert_eq!(interrupts, [0, 0, 1, 0]);
        assert_eq!(dispatch_all(guest), [0, 0, 1, 0]);
        assert!(ipis[2].take());
        assert_eq!(ipis[2].status().unwrap(), Status::Ipi);
        assert_eq!(ipis[2].bind_vcpu(VcpuId(1)).unwrap_err(), refused("EVTCHNOP_bind_vcpu", Errno::EINVAL));
        assert_eq!(guest.bind_ipi(VcpuId(VCPUS)).unwrap_err(), refused("EVTCHNOP_bind_ipi", Errno::ENOENT));
    });
}

#[test]
fn each_vcpu_has_its_own_timer_and_global_interrupts_move() {
    each_abi(|xen, guest| {
        let timers: Vec<_> =
            (0..VCPUS).map(|vcpu| guest.bind_virq(Virq::TIMER, VcpuId(vcpu)).unwrap()).collect();
        for id in [1, 3] {
            let domain = guest.platform().on_vcpu(VcpuId(id));
            vcpu::set_singleshot_timer(&domain, VcpuId(id), Duration::from_millis(id.into())).unwrap();
        }
        xen.advance(Duration::from_millis(2));
        assert_eq!(dispatch_all(guest), [0, 1, 0, 0]);
        xen.advance(Duration::from_millis(2));
        assert_eq!(dispatch_all(guest), [0, 0, 0, 1]);
        assert!(timers[1].take() && timers[3].take() && !timers[0].take());
        let fixed = refused("EVTCHNOP_bind_vcpu", Errno::EINVAL);
        assert_eq!(timers[1].bind_vcpu(VcpuId(0)).unwrap_err(), fixed);

        let global = refused("EVTCHNOP_bind_virq", Errno::EINVAL);
        assert_eq!(guest.bind_virq(Virq::ARGO, VcpuId(1)).unwrap_err(), global);
        let argo = guest.bind_virq(Virq::ARGO, VcpuId(0)).unwrap();
        argo.bind_vcpu(VcpuId(1)).unwrap();
        assert!(mock::raise_virq(guest.platform(), Virq::ARGO, VcpuId(0)));
        assert_eq!(dispatch_all(guest), [0, 1, 0, 0]);
    });
}

#[test]
fn a_channel_moves_and_what_is_pending_is_found_where_it_was() {
    each_abi(|_, guest| {
        let channel = guest.alloc_unbound(DOM0).unwrap();
        channel.set_late_eoi(false);
        let domain = guest.platform();
        assert!(mock::inject(domain, channel.port()));
        channel.bind_vcpu(VcpuId(3)).unwrap();
        assert_eq!(dispatch_all(guest), [1, 0, 0, 0]);
        assert!(mock::inject(domain, channel.port()));
        assert_eq!(dispatch_all(guest), [0, 0, 0, 1]);
        // Unmasking raises the event on the vCPU that the channel is bound to, whoever unmasks.
        channel.mask();
        assert!(mock::inject(domain, channel.port()));
        assert_eq!(dispatch_all(guest), [0; 4]);
        channel.unmask();
        assert_eq!(dispatch_all(guest), [0, 0, 0, 1]);
        let missing = match guest.abi_in_use() {
            Abi::Fifo => Error::VcpuNotAdded(VcpuId(4)),
            _ => refused("EVTCHNOP_bind_vcpu", Errno::ENOENT),
        };
        assert_eq!(channel.bind_vcpu(VcpuId(4)).unwrap_err(), missing);
        // The next owner of the port starts on vCPU 0.
        drop(channel);
        let next = guest.alloc_unbound(DOM0).unwrap();
        assert!(mock::inject(domain, next.port()));
        assert_eq!(dispatch_all(guest), [1, 0, 0, 0]);
    });
}

#[test]
fn vcpus_that_cannot_have_events() {
    each_abi(|_, guest| {
        for vcpu in [VcpuId(32), VcpuId(u32::MAX)] {
            assert_eq!(guest.add_vcpu(vcpu).unwrap_err(), Error::VcpuOutOfRange(vcpu));
        }
        if guest.abi_in_use() == Abi::Fifo {
            let init = |errno| refused("EVTCHNOP_init_control", errno);
            assert_eq!(guest.add_vcpu(VcpuId(1)).unwrap_err(), init(Errno::EINVAL));
            assert_eq!(guest.add_vcpu(VcpuId(VCPUS)).unwrap_err(), init(Errno::ENOENT));
        }
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
        for bind in binds {
            // No bits in shared_info: an event would be sent and never seen.
            assert_eq!(bind(VcpuId(35)), Some(Error::VcpuOutOfRange(VcpuId(35))));
            let not_added = (abi == Abi::Fifo).then_some(Error::VcpuNotAdded(VcpuId(1)));
            assert_eq!(bind(VcpuId(1)), not_added);
        }
        assert_eq!(mock::open_ports(&domain), 1, "nothing stays open behind a refusal");
        guest.add_vcpu(VcpuId(1)).unwrap();
        let ipi = guest.bind_ipi(VcpuId(1)).unwrap();
        ipi.notify().unwrap();
        assert_eq!(guest.dispatch(VcpuId(1)), 1);
        assert!(ipi.take());
    }
}
