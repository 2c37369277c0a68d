//! Event channels after a resume in a new domain, with either ABI.
#![cfg(feature = "mock")]
#![allow(unsafe_code, reason = "suspends a domain")]

use core::task::Context;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};
use std::time::Duration;

use xen_evtchn::{Abi, Channel, Error, EventChannels, Port, Progress, Virq, mock};
use xen_hypercall::mock::{Chance, Dice, HypercallFaults, MockDomain, MockXen};
use xen_hypercall::sched::Resumed;
use xen_hypercall::{DomId, Domain, Errno, HypercallNr, Restore, VcpuId, vcpu};

const DOM0: DomId = DomId(0);
const GUEST: DomId = DomId(1);
const ABIS: [Abi; 2] = [Abi::TwoLevel, Abi::Fifo];
const SECOND: Duration = Duration::from_secs(1);

struct World {
    xen: MockXen,
    domain: MockDomain,
    token: Domain<MockDomain>,
    dom0: EventChannels<MockDomain>,
    guest: EventChannels<MockDomain>,
}

impl World {
    fn new(abi: Abi) -> Self {
        let xen = MockXen::new();
        mock::install(&xen);
        let domain = xen.domain(GUEST);
        let token = domain.boot().unwrap();
        let dom0 = EventChannels::new(&xen.domain(DOM0).boot().unwrap()).unwrap();
        let guest = EventChannels::with_abi(&token, abi).unwrap();
        Self { xen, domain, token, dom0, guest }
    }

    fn suspend(&self) {
        // SAFETY: one thread, which is between two calls, and no page of another domain is mapped.
        assert_eq!(unsafe { self.token.suspend() }, Ok(Resumed::InNewDomain));
    }
}

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A pair of channels, and whether an event gets through in both directions.
fn talk(world: &World) {
    let front = world.guest.alloc_unbound(DOM0).unwrap();
    front.set_late_eoi(false);
    let back = world.dom0.bind_interdomain(world.domain.id(), front.port()).unwrap();
    back.take();
    for channel in [&front, &back] {
        channel.notify().unwrap();
        world.guest.dispatch(VcpuId(0));
        world.dom0.dispatch(VcpuId(0));
    }
    assert!(front.take() && back.take());
}

#[test]
fn events_come_again_and_the_numbers_of_before_are_free() {
    for abi in ABIS {
        let world = World::new(abi);
        let World { domain, guest, dom0, .. } = &world;
        // Many, so that the FIFO ABI has several pages of words.
        let before: Vec<_> = (0..2000).map(|_| guest.alloc_unbound(DOM0).unwrap()).collect();
        let back = dom0.bind_interdomain(GUEST, before[7].port()).unwrap();
        back.notify().unwrap();
        before[3].notify().unwrap();
        before[2].mask();
        world.suspend();
        assert_eq!(guest.alloc_unbound(DOM0).unwrap_err(), Error::Stale);
        guest.resume().unwrap();
        guest.resume().unwrap();
        assert_eq!(guest.dispatch(VcpuId(0)), 0, "what was pending is gone");
        // Xen gives the numbers out again, while stale channels have them.
        let after: Vec<_> = (0..2000).map(|_| guest.alloc_unbound(DOM0).unwrap()).collect();
        assert!(before.iter().zip(&after).all(|(before, after)| before.port() == after.port()));
        assert!(before.iter().all(|channel| !channel.is_current()) && !after[2].is_masked());
        drop(before);
        assert_eq!(mock::open_ports(domain), 2000, "a stale channel closes nobody's port");
        talk(&world);
        drop(after);
        assert_eq!(mock::open_ports(domain), 0);
        assert_eq!((guest.stats().notifications, guest.stats().stray), (2, 0), "counted over all lives");
    }
}

#[test]
fn all_that_wait_are_woken_and_what_is_throttled_is_not_so_any_more() {
    for abi in ABIS {
        let world = World::new(abi);
        let World { guest, dom0, domain, .. } = &world;
        let channel = guest.alloc_unbound(DOM0).unwrap();
        let back = dom0.bind_interdomain(GUEST, channel.port()).unwrap();
        for _ in 0..3 {
            back.notify().unwrap();
            guest.dispatch(VcpuId(0));
            channel.take();
            channel.done(Progress::Spurious);
        }
        assert_eq!(guest.stats().throttled_now, 1);
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        assert!(channel.poll_event(&mut Context::from_waker(&waker)).is_pending());
        world.suspend();
        let seen = guest.seq();
        guest.resume().unwrap();
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert_ne!(guest.seq(), seen, "a loop looks at its devices again");
        assert_eq!((guest.stats().throttled_now, guest.next_unmask()), (0, None));
        assert_eq!(guest.unmask_due(), 0);
        drop(channel);
        assert_eq!((guest.stats().throttled_now, mock::open_ports(domain)), (0, 0));
    }
}

#[test]
fn virtual_interrupts_and_ipis_bind_themselves_again_on_each_vcpu() {
    for abi in ABIS {
        let world = World::new(abi);
        let World { xen, domain, guest, .. } = &world;
        domain.set_vcpus(3);
        (1..3).for_each(|vcpu| guest.add_vcpu(VcpuId(vcpu)).unwrap());
        // So that the numbers are others afterwards.
        let first = guest.alloc_unbound(DOM0).unwrap();
        let timers: Vec<_> = (0..3).map(|vcpu| guest.bind_virq(Virq::TIMER, VcpuId(vcpu)).unwrap()).collect();
        let ipis: Vec<_> = (0..3).map(|vcpu| guest.bind_ipi(VcpuId(vcpu)).unwrap()).collect();
        let all: Vec<&Channel<'_, MockDomain>> = timers.iter().chain(&ipis).collect();
        world.suspend();
        assert!(all.iter().all(|channel| channel.rebind() == Err(Error::Stale)), "the events come first");
        (&mut &*guest).restore().unwrap();
        assert_eq!(first.rebind(), Err(Error::Stale), "the other domain has to know the port");
        for channel in &all {
            let mut part: &Channel<'_, MockDomain> = channel;
            part.restore().unwrap();
            channel.rebind().unwrap();
            assert!(channel.is_current());
        }
        assert_ne!(first.port(), timers[1].port());
        assert_eq!(timers[0].port(), Port(1));
        assert_eq!(mock::open_ports(domain), 6, "each once");
        for number in 0..3_u32 {
            let (index, vcpu) = (number as usize, VcpuId(number));
            vcpu::set_singleshot_timer(&domain.on_vcpu(vcpu), vcpu, domain.system_time() + SECOND).unwrap();
            xen.advance(2 * SECOND);
            ipis[index].notify().unwrap();
            assert_eq!(guest.dispatch(vcpu), 2, "{abi:?} on {vcpu:?}");
            assert!(timers[index].take() && ipis[index].take());
            assert_eq!(ipis[index].stats().events, 1);
        }
        drop((timers, ipis));
        assert_eq!(mock::open_ports(domain), 0);
    }
}

#[test]
fn xenstores_port_is_adopted_again_with_what_came_meanwhile() {
    for abi in ABIS {
        let world = World::new(abi);
        let World { xen, domain, guest, .. } = &world;
        let port = mock::alloc_for(domain, DOM0).unwrap();
        let channel = guest.adopt(port).unwrap();
        xen.set_toolstack(|domain| {
            domain.xen().migrate(domain);
            mock::alloc_for(domain, DOM0).unwrap();
            let port = mock::alloc_for(domain, DOM0).unwrap();
            // Before the domain runs.
            mock::inject(domain, port);
            Resumed::InNewDomain
        });
        world.suspend();
        assert_eq!(guest.adopt(Port(2)).unwrap_err(), Error::Stale);
        guest.resume().unwrap();
        assert_eq!(guest.dispatch(VcpuId(0)), 0, "nobody has it yet");
        let again = guest.adopt(Port(2)).unwrap();
        assert_eq!(guest.dispatch(VcpuId(0)), 1, "{abi:?}");
        assert!(again.take() && !channel.take());
        assert_eq!(guest.stats().stray, 0);
    }
}

#[test]
fn a_xen_that_refuses_leaves_everything_stale() {
    let world = World::new(Abi::Fifo);
    mock::set_fifo(&world.xen, false);
    world.suspend();
    let refused = Error::Hypercall { operation: "EVTCHNOP_init_control", errno: Errno::ENOSYS };
    assert_eq!(world.guest.resume(), Err(refused));
    assert_eq!((&mut &world.guest).restore().unwrap_err().errno, Errno::ENOSYS);
    assert_eq!(world.guest.alloc_unbound(DOM0).unwrap_err(), Error::Stale);

    let world = World::new(Abi::TwoLevel);
    world.suspend();
    let timer = {
        let faults =
            HypercallFaults::new().fail(HypercallNr::EVENT_CHANNEL_OP, Chance::ALWAYS, Errno::ENOSPC);
        world.guest.resume().unwrap();
        let timer = world.guest.bind_virq(Virq::TIMER, VcpuId(0)).unwrap();
        world.suspend();
        world.guest.resume().unwrap();
        world.xen.set_faults(Dice::new(0), faults);
        timer
    };
    let refused = Error::Hypercall { operation: "EVTCHNOP_bind_virq", errno: Errno::ENOSPC };
    assert_eq!(timer.rebind(), Err(refused));
    assert!(!timer.is_current());
    world.xen.set_faults(Dice::new(0), HypercallFaults::new());
    timer.rebind().unwrap();
}
