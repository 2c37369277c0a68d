//! Ending events late, and throttling a peer whose events bring nothing, with each ABI.
#![cfg(feature = "mock")]

use std::time::Duration;

use xen_evtchn::{Abi, Channel, EventChannels, Progress, Virq, mock};
use xen_hypercall::mock::{MockDomain, MockXen};
use xen_hypercall::{DomId, VcpuId, Wait};

const VCPU0: VcpuId = VcpuId(0);
const DOM0: DomId = DomId(0);
const GUEST: DomId = DomId(1);

/// A guest whose channel ends events late, as a new one does, and the peer at the other end.
struct Machine<'e> {
    xen: MockXen,
    guest: &'e EventChannels<MockDomain>,
    front: Channel<'e, MockDomain>,
    back: Channel<'e, MockDomain>,
}

fn each_abi(test: impl Fn(Machine<'_>)) {
    for abi in [Abi::TwoLevel, Abi::Fifo] {
        let xen = MockXen::new();
        mock::install(&xen);
        let [guest, dom0] = [GUEST, DOM0].map(|id| {
            let domain = xen.domain(id);
            EventChannels::with_abi(&domain.boot().unwrap(), abi).unwrap()
        });
        let front = guest.alloc_unbound(DOM0).unwrap();
        let back = dom0.bind_interdomain(GUEST, front.port()).unwrap();
        test(Machine { xen, guest: &guest, front, back });
        assert_eq!(guest.stats().throttled_now, 0, "a closed channel is not throttled");
    }
}

/// An event, and its end.
fn event(machine: &Machine<'_>, progress: Progress) {
    machine.back.notify().unwrap();
    assert_eq!(machine.guest.dispatch(VCPU0), 1);
    assert!(machine.front.take());
    machine.front.done(progress);
}

fn milliseconds(time: Option<Duration>) -> Option<u128> {
    time.map(|time| time.as_millis())
}

#[test]
fn until_the_receiver_is_done_nothing_more_is_delivered_and_nothing_is_lost() {
    each_abi(|machine| {
        let Machine { guest, front, back, .. } = &machine;
        back.notify().unwrap();
        assert_eq!(guest.dispatch(VCPU0), 1);
        assert!(front.take() && front.is_masked());
        let interrupts = mock::interrupts(guest.platform(), VCPU0);
        for _ in 0..100 {
            back.notify().unwrap();
            assert_eq!(guest.dispatch(VCPU0), 0);
        }
        assert_eq!(mock::interrupts(guest.platform(), VCPU0), interrupts, "the guest is left in peace");
        front.done(Progress::Work);
        assert!(!front.is_masked());
        assert_eq!(guest.dispatch(VCPU0), 1, "what came meanwhile");
        front.done(Progress::Work);
        assert_eq!(guest.dispatch(VCPU0), 0);
        assert_eq!((front.stats().events, front.stats().spurious, front.stats().throttled), (2, 0, 0));
    });
}

#[test]
fn a_peer_that_sends_without_reason_is_throttled() {
    each_abi(|machine| {
        let Machine { xen, guest, front, back } = &machine;
        let start = xen.now();
        // 10,000 events in ten seconds, and a driver that looks each time it is told to.
        for _ in 0..10_000 {
            xen.advance(Duration::from_millis(1));
            back.notify().unwrap();
            guest.unmask_due();
            guest.dispatch(VCPU0);
            if front.take() {
                front.done(Progress::Spurious);
            }
        }
        assert_eq!((xen.now() - start).as_secs(), 10);
        let stats = front.stats();
        // One is forgiven, then 1, 2, 4 .. 512 ms of silence, then one a second.
        assert!((15..=22).contains(&stats.events), "{stats:?}");
        assert_eq!((stats.spurious, stats.throttled), (stats.events, stats.events - 1));
        assert!(mock::interrupts(guest.platform(), VCPU0) <= stats.events + 2);
        assert_eq!(guest.stats().throttled_now, 1);
    });
}

#[test]
fn the_wait_grows_to_a_second_and_ends_with_work() {
    each_abi(|machine| {
        let Machine { xen, guest, front, .. } = &machine;
        event(&machine, Progress::Spurious);
        assert_eq!(guest.next_unmask(), None, "the first is forgiven");
        assert!(!front.is_masked());
        for expected in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 1000] {
            event(&machine, Progress::Spurious);
            assert!(front.is_masked());
            let wait = guest.next_unmask().map(|until| until - xen.now());
            assert_eq!(milliseconds(wait), Some(expected));
            // Telling it twice changes nothing.
            front.done(Progress::Spurious);
            assert_eq!(guest.next_unmask().map(|until| until - xen.now()), wait);
            xen.advance(Duration::from_millis(expected as u64 - 1));
            assert_eq!(guest.unmask_due(), 0);
            xen.advance(Duration::from_millis(1));
            assert_eq!(guest.unmask_due(), 1);
            assert!(!front.is_masked());
        }
        event(&machine, Progress::Work);
        event(&machine, Progress::Spurious);
        assert!(!front.is_masked(), "forgiven again");
    });
}

#[test]
fn work_that_polling_finds_ends_the_wait_at_once() {
    each_abi(|machine| {
        let Machine { guest, front, back, .. } = &machine;
        event(&machine, Progress::Spurious);
        event(&machine, Progress::Spurious);
        assert_eq!(guest.stats().throttled_now, 1);
        back.notify().unwrap();
        front.done(Progress::Work);
        assert_eq!((guest.stats().throttled_now, guest.next_unmask()), (0, None));
        assert_eq!(guest.dispatch(VCPU0), 1, "what came while it was throttled");
    });
}

#[test]
fn polling_without_an_event_is_not_held_against_the_peer() {
    each_abi(|machine| {
        let Machine { front, .. } = &machine;
        for _ in 0..100 {
            front.done(Progress::Spurious);
        }
        assert!(!front.is_masked());
        assert_eq!(front.stats().spurious, 0);
        // Work that was found before its event came: the event brings nothing, and is forgiven.
        for _ in 0..10 {
            front.done(Progress::Work);
            event(&machine, Progress::Spurious);
            assert!(!front.is_masked());
        }
    });
}

#[test]
fn waiting_ends_when_a_throttled_channel_is_due_and_delivers_what_came() {
    each_abi(|machine| {
        let Machine { xen, guest, front, back } = &machine;
        for _ in 0..4 {
            event(&machine, Progress::Spurious);
            while guest.stats().throttled_now > 0 {
                guest.wait_since(guest.seq(), Some(xen.now() + Duration::from_secs(2)));
            }
        }
        event(&machine, Progress::Spurious);
        let before = xen.now();
        back.notify().unwrap();
        let deadline = before + Duration::from_secs(60);
        while !front.take() {
            assert!(xen.now() < deadline, "the event did not come");
            guest.wait_since(guest.seq(), Some(deadline));
        }
        assert_eq!(milliseconds(Some(xen.now() - before)), Some(8), "the event that came meanwhile");
        front.done(Progress::Work);
        // Not throttled any more: a wait goes on to its own deadline.
        guest.wait_since(guest.seq(), Some(deadline));
        assert_eq!(guest.platform().now(), deadline);
    });
}

#[test]
fn a_throttled_channel_that_is_closed_leaves_nothing_to_the_next() {
    each_abi(|machine| {
        event(&machine, Progress::Spurious);
        event(&machine, Progress::Spurious);
        let Machine { guest, front, back, .. } = machine;
        assert_eq!(guest.stats().throttled_now, 1);
        drop((front, back));
        assert_eq!((guest.stats().throttled_now, guest.next_unmask()), (0, None));
        for _ in 0..2 {
            let next = guest.alloc_unbound(DOM0).unwrap();
            assert!(!next.is_masked());
            assert!(mock::inject(guest.platform(), next.port()));
            assert_eq!(guest.dispatch(VCPU0), 1);
            assert!(next.is_masked());
            next.done(Progress::Spurious);
            assert!(!next.is_masked(), "forgiven: it is the first of this channel");
        }
    });
}

#[test]
fn the_owners_mask_and_the_event_under_way_are_apart() {
    each_abi(|machine| {
        let Machine { guest, front, back, .. } = &machine;
        back.notify().unwrap();
        assert_eq!(guest.dispatch(VCPU0), 1);
        front.mask();
        front.done(Progress::Work);
        assert!(front.is_masked(), "the owner said so");
        front.unmask();
        assert!(!front.is_masked());
        back.notify().unwrap();
        assert_eq!(guest.dispatch(VCPU0), 1);
        front.mask();
        front.unmask();
        assert!(front.is_masked(), "the event is not finished");
        front.set_late_eoi(false);
        assert!(!front.is_masked(), "switching off ends it");
        back.notify().unwrap();
        assert_eq!(guest.dispatch(VCPU0), 1);
        assert!(!front.is_masked());
    });
}

#[test]
fn what_another_domain_sends_is_ended_late_and_what_xen_or_the_guest_sends_is_not() {
    each_abi(|machine| {
        let Machine { guest, front, back, .. } = &machine;
        let ipi = guest.bind_ipi(VCPU0).unwrap();
        let timer = guest.bind_virq(Virq::TIMER, VCPU0).unwrap();
        let store = mock::alloc_for(guest.platform(), DOM0).unwrap();
        let store = guest.adopt(store).unwrap();
        for channel in [&ipi, &timer, &store] {
            for _ in 0..3 {
                assert!(mock::inject(guest.platform(), channel.port()));
                assert_eq!(guest.dispatch(VCPU0), 1);
                assert!(!channel.is_masked());
            }
        }
        for _ in 0..3 {
            back.notify().unwrap();
            guest.dispatch(VCPU0);
        }
        assert!(front.is_masked());
        assert_eq!(front.stats().events, 1, "nobody has ended the first");
        // The end that bound, likewise.
        let dom0 = back.event_channels();
        for _ in 0..3 {
            front.notify().unwrap();
            dom0.dispatch(VCPU0);
        }
        assert!(back.is_masked());
        assert_eq!(back.stats().events, 1);
    });
}

#[test]
fn without_late_end_nothing_is_masked_and_nothing_held_against_the_peer() {
    each_abi(|machine| {
        let Machine { guest, front, back, .. } = &machine;
        front.set_late_eoi(false);
        for _ in 0..3 {
            back.notify().unwrap();
            assert_eq!(guest.dispatch(VCPU0), 1);
            assert!(!front.is_masked());
            front.done(Progress::Spurious);
        }
        assert_eq!(front.stats().spurious, 0, "there is no event under way to be ended");
    });
}
