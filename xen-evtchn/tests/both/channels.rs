// Included with `ABI` and `LIMIT` defined.

use core::task::{Context, Poll};
use std::sync::{Arc, Mutex};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};
use std::time::Duration;

use xen_evtchn::{Abi, Channel, Error, EventChannels, Port, Priority, Progress, Status, Virq, mock};
use xen_hypercall::mock::{MockDomain, MockXen};
use xen_hypercall::sched::Resumed;
use xen_hypercall::{DomId, Errno, VcpuId, event, vcpu};

const VCPU0: VcpuId = VcpuId(0);
const DOM0: DomId = DomId(0);
const GUEST: DomId = DomId(1);

fn machine() -> MockXen {
    let xen = MockXen::new();
    mock::install(&xen);
    xen
}

fn channels(xen: &MockXen, id: DomId) -> EventChannels<MockDomain> {
    let domain = xen.domain(id);
    EventChannels::with_abi(&domain.boot().unwrap(), ABI).unwrap()
}

/// A channel whose events nobody ends.
fn unbound(events: &EventChannels<MockDomain>) -> Channel<'_, MockDomain> {
    let channel = events.alloc_unbound(DOM0).unwrap();
    channel.set_late_eoi(false);
    channel
}

fn refused(operation: &'static str, errno: Errno) -> Error {
    Error::Hypercall { operation, errno }
}

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn events_reach_the_other_end_and_no_other_port() {
    let xen = machine();
    let (guest, dom0) = (channels(&xen, GUEST), channels(&xen, DOM0));
    let (front, other) = (unbound(&guest), unbound(&guest));
    let back = dom0.bind_interdomain(GUEST, front.port()).unwrap();
    assert_eq!(front.status().unwrap(), Status::Interdomain { remote: DOM0, port: back.port() });
    assert_eq!(other.status().unwrap(), Status::Unbound { remote: DOM0 });

    for _ in 0..3 {
        back.notify().unwrap();
    }
    assert_eq!(guest.dispatch(VCPU0), 1, "three events before the receiver looks are one");
    assert!(front.take());
    assert!(!front.take(), "taken once");
    assert!(!other.take());
    assert_eq!((front.stats().events, back.stats().notifications), (1, 3));
    assert_eq!((guest.stats().events, guest.stats().upcalls, dom0.stats().notifications), (1, 1, 3));
    assert_eq!(guest.dispatch(VCPU0), 0, "nothing is left");
    assert_eq!(guest.stats().upcalls, 1);
}

#[test]
fn binding_makes_an_event_for_what_was_sent_before() {
    let xen = machine();
    let (guest, dom0) = (channels(&xen, GUEST), channels(&xen, DOM0));
    let front = guest.alloc_unbound(DOM0).unwrap();
    front.notify().unwrap();
    let back = dom0.bind_interdomain(GUEST, front.port()).unwrap();
    dom0.dispatch(VCPU0);
    assert!(back.take());
}

#[test]
fn a_masked_channel_keeps_its_event_until_it_is_unmasked() {
    let xen = machine();
    let (guest, dom0) = (channels(&xen, GUEST), channels(&xen, DOM0));
    let front = unbound(&guest);
    let back = dom0.bind_interdomain(GUEST, front.port()).unwrap();
    front.mask();
    assert!(front.is_masked());
    back.notify().unwrap();
    assert_eq!(guest.dispatch(VCPU0), 0);
    assert!(!front.take());
    front.unmask();
    assert!(!front.is_masked());
    assert_eq!(guest.dispatch(VCPU0), 1, "unmasking raised the event again");
    assert!(front.take());

    // Sent while unmasked, masked before anybody looked: the selector is taken in vain.
    back.notify().unwrap();
    front.mask();
    assert_eq!(guest.dispatch(VCPU0), 0);
    front.unmask();
    assert_eq!(guest.dispatch(VCPU0), 1);
}

#[test]
fn a_task_is_woken_once_per_event_and_not_for_an_event_that_is_there() {
    let xen = machine();
    let (guest, dom0) = (channels(&xen, GUEST), channels(&xen, DOM0));
    let front = unbound(&guest);
    let back = dom0.bind_interdomain(GUEST, front.port()).unwrap();
    let woken = Arc::new(Count::default());
    let waker = Waker::from(woken.clone());
    let mut cx = Context::from_waker(&waker);

    assert_eq!(front.poll_event(&mut cx), Poll::Pending);
    back.notify().unwrap();
    assert_eq!(woken.0.load(Ordering::Relaxed), 0, "not before the interrupt");
    guest.dispatch(VCPU0);
    assert_eq!(woken.0.load(Ordering::Relaxed), 1);
    assert_eq!(front.poll_event(&mut cx), Poll::Ready(()));
    assert_eq!(front.poll_event(&mut cx), Poll::Pending);
}

#[test]
fn dropping_closes_and_the_next_owner_of_the_port_starts_afresh() {
    let xen = machine();
    let (guest, dom0) = (channels(&xen, GUEST), channels(&xen, DOM0));
    let front = unbound(&guest);
    let back = dom0.bind_interdomain(GUEST, front.port()).unwrap();
    let woken = Arc::new(Count::default());
    let waker = Waker::from(woken.clone());
    let mut cx = Context::from_waker(&waker);
    assert!(front.poll_event(&mut cx).is_pending());
    back.notify().unwrap();
    guest.dispatch(VCPU0);
    back.notify().unwrap();
    let port = front.port();
    drop(front);
    assert_eq!(Arc::strong_count(&woken), 2, "the record gave the waker back");
    assert_eq!(back.status().unwrap(), Status::Unbound { remote: GUEST });
    back.notify().unwrap();

    let next = unbound(&guest);
    if ABI == Abi::Fifo {
        assert_ne!(next.port(), port, "Xen does not give a port that is in a queue yet");
    } else {
        assert_eq!(next.port(), port, "Xen gives the lowest free port");
    }
    assert_eq!(guest.dispatch(VCPU0), 0);
    assert!(!next.take());
    assert_eq!(next.stats(), Default::default());
    assert_eq!(woken.0.load(Ordering::Relaxed), 1);
    drop((next, back));
    assert_eq!((mock::open_ports(&xen.domain(GUEST)), mock::open_ports(&xen.domain(DOM0))), (0, 0));
}

#[test]
fn an_adopted_port_outlives_its_channel_and_early_events_are_delivered() {
    let xen = machine();
    let domain = xen.domain(GUEST);
    let port = mock::alloc_for(&domain, DOM0).unwrap();
    let dom0 = channels(&xen, DOM0);
    let back = dom0.bind_interdomain(GUEST, port).unwrap();
    // The guest has no shared_info yet.
    back.notify().unwrap();

    let guest = channels(&xen, GUEST);
    let store = guest.adopt(port).unwrap();
    assert_eq!(guest.dispatch(VCPU0), 1);
    assert!(store.take());
    assert_eq!(guest.adopt(port).unwrap_err(), Error::PortInUse(port));
    drop(store);
    assert_eq!(mock::open_ports(&domain), 1, "not closed");
    back.notify().unwrap();
    assert_eq!(guest.dispatch(VCPU0), 0, "masked");
    let store = guest.adopt(port).unwrap();
    assert_eq!(guest.dispatch(VCPU0), 1);
    assert!(store.take(), "what came meanwhile is not lost");
}

#[test]
fn ports_that_cannot_be_adopted() {
    let xen = machine();
    let guest = channels(&xen, GUEST);
    for port in [Port(0), Port(LIMIT), Port(u32::MAX)] {
        assert_eq!(guest.adopt(port).unwrap_err(), Error::PortOutOfRange(port));
    }
    assert_eq!(guest.adopt(Port(5)).unwrap_err(), Error::PortClosed(Port(5)));
    // Xen knows ports up to the next multiple of 64.
    assert_eq!(guest.adopt(Port(64)).unwrap_err(), refused("EVTCHNOP_status", Errno::EINVAL));
}

#[test]
fn refusals_are_xens() {
    let xen = machine();
    let (guest, dom0) = (channels(&xen, GUEST), channels(&xen, DOM0));
    let interdomain = |errno| refused("EVTCHNOP_bind_interdomain", errno);
    assert_eq!(guest.bind_interdomain(DomId(9), Port(1)).unwrap_err(), interdomain(Errno::ESRCH));
    assert_eq!(guest.bind_interdomain(DOM0, Port(1)).unwrap_err(), interdomain(Errno::EINVAL));
    let for_others = dom0.alloc_unbound(DomId(2)).unwrap();
    assert_eq!(guest.bind_interdomain(DOM0, for_others.port()).unwrap_err(), interdomain(Errno::EINVAL));
    let ours = dom0.alloc_unbound(GUEST).unwrap();
    let bound = guest.bind_interdomain(DOM0, ours.port()).unwrap();
    assert_eq!(guest.bind_interdomain(DOM0, ours.port()).unwrap_err(), interdomain(Errno::EINVAL), "taken");

    let virq = |errno| refused("EVTCHNOP_bind_virq", errno);
    let timer = guest.bind_virq(Virq::TIMER, VCPU0).unwrap();
    assert_eq!(timer.status().unwrap(), Status::Virq(Virq::TIMER));
    assert_eq!(guest.bind_virq(Virq::TIMER, VCPU0).unwrap_err(), virq(Errno::EEXIST));
    assert_eq!(guest.bind_virq(Virq(24), VCPU0).unwrap_err(), virq(Errno::EINVAL));
    assert_eq!(guest.bind_virq(Virq::CONSOLE, VcpuId(1)).unwrap_err(), virq(Errno::EINVAL), "global");
    assert_eq!(guest.bind_virq(Virq::DEBUG, VcpuId(1)).unwrap_err(), virq(Errno::ENOENT));
    assert_eq!(timer.notify().unwrap_err(), refused("EVTCHNOP_send", Errno::EINVAL));
    assert_eq!(timer.bind_vcpu(VCPU0).unwrap_err(), refused("EVTCHNOP_bind_vcpu", Errno::EINVAL));
    bound.bind_vcpu(VCPU0).unwrap();

    // Nothing stays open behind a refusal.
    assert_eq!(mock::open_ports(&xen.domain(GUEST)), 2);
    assert_eq!(event::close(&xen.domain(GUEST), 63), Err(Errno::EINVAL));
    assert_eq!(event::send(&xen.domain(GUEST), 63), Err(Errno::EINVAL));
    assert_eq!(event::unmask(&xen.domain(GUEST), 64), Err(Errno::EINVAL));
}

#[test]
fn every_port_can_be_bound_and_the_next_is_refused() {
    let xen = machine();
    let guest = channels(&xen, GUEST);
    let all: Vec<_> = (1..LIMIT).map(|_| guest.alloc_unbound(DOM0).unwrap()).collect();
    assert_eq!(all.last().unwrap().port(), Port(LIMIT - 1));
    assert_eq!(guest.alloc_unbound(DOM0).unwrap_err(), refused("EVTCHNOP_alloc_unbound", Errno::ENOSPC));
    for channel in &all {
        assert!(mock::inject(guest.platform(), channel.port()));
    }
    assert_eq!(guest.dispatch(VCPU0), LIMIT as usize - 1);
    assert!(all.iter().all(|channel| channel.take()));
}

#[test]
fn without_memory_for_records_nothing_is_left_behind() {
    let xen = machine();
    let guest = channels(&xen, GUEST);
    let domain = guest.platform();
    let before = domain.pages_in_use();
    domain.fail_allocs_after(Some(0));
    assert_eq!(guest.alloc_unbound(DOM0).unwrap_err(), Error::OutOfMemory);
    assert_eq!(mock::open_ports(domain), 0);
    domain.fail_allocs_after(None);
    let channels: Vec<_> = (0..64).map(|_| guest.alloc_unbound(DOM0).unwrap()).collect();
    assert_eq!(
        domain.pages_in_use() - before,
        4,
        "pages for 25 ports each, and one that lists them"
    );
    drop(channels);
    let domain = domain.clone();
    drop(guest);
    assert_eq!(domain.pages_in_use(), before - 1, "the page of the token is back, too");
}

#[test]
fn an_ipi_interrupts_the_domain_itself() {
    let xen = machine();
    let guest = channels(&xen, GUEST);
    let ipi = guest.bind_ipi(VCPU0).unwrap();
    assert_eq!(ipi.status().unwrap(), Status::Ipi);
    assert_eq!(guest.bind_ipi(VcpuId(1)).unwrap_err(), refused("EVTCHNOP_bind_ipi", Errno::ENOENT));
    let seen = guest.seq();
    ipi.notify().unwrap();
    guest.wait_since(seen, None);
    assert!(ipi.take());
}

#[test]
fn the_timer_fires_in_virtual_time() {
    let xen = machine();
    let guest = channels(&xen, GUEST);
    let timer = guest.bind_virq(Virq::TIMER, VCPU0).unwrap();
    vcpu::set_singleshot_timer(guest.platform(), VCPU0, Duration::from_millis(5)).unwrap();
    guest.wait_since(guest.seq(), Some(Duration::from_millis(2)));
    assert!(!timer.take());
    assert_eq!(xen.now(), Duration::from_millis(2));
    guest.wait_since(guest.seq(), None);
    assert!(timer.take());
    assert_eq!(xen.now(), Duration::from_millis(5));
}

#[test]
fn wait_does_not_sleep_over_what_an_interrupt_handler_dispatched() {
    let xen = machine();
    let (guest, dom0) = (channels(&xen, GUEST), channels(&xen, DOM0));
    let front = guest.alloc_unbound(DOM0).unwrap();
    let back = dom0.bind_interdomain(GUEST, front.port()).unwrap();
    let seen = guest.seq();
    back.notify().unwrap();
    guest.dispatch(VCPU0);
    // There is nothing to wait for any more: the mock would panic.
    guest.wait_since(seen, None);
    assert!(front.take());
}

/// A loop looks at two devices; what the look at the second waits for takes the first one's event.
#[test]
fn a_wait_between_look_and_sleep_takes_nobodys_event() {
    let xen = machine();
    let (guest, dom0) = (channels(&xen, GUEST), channels(&xen, DOM0));
    let [card, store] = [(); 2].map(|()| guest.alloc_unbound(DOM0).unwrap());
    let [card_back, store_back] = [&card, &store].map(|end| dom0.bind_interdomain(GUEST, end.port()).unwrap());
    guest.wait_since(guest.seq(), Some(xen.now()));
    let seen = guest.seq();
    assert!(!card.take(), "the look at the card");
    // A question to the store: both answer while it is waited for.
    card_back.notify().unwrap();
    store_back.notify().unwrap();
    let asked = guest.seq();
    while !store.take() {
        guest.wait_since(asked, None);
    }
    // Two waiters may sleep with what they saw: neither takes the other's reason to wake.
    guest.wait_since(seen, None);
    guest.wait_since(seen, None);
    assert!(card.take());
    assert_eq!(xen.now(), core::time::Duration::ZERO, "nobody slept");
}

#[test]
fn a_domain_has_one_set_of_channels() {
    let xen = machine();
    let token = xen.domain(GUEST).boot().unwrap();
    let guest = EventChannels::with_abi(&token, ABI).unwrap();
    assert_eq!(EventChannels::with_abi(&token, ABI).unwrap_err(), Error::Claimed);
    let channel = guest.alloc_unbound(DOM0).unwrap();
    drop(channel);
    guest.reset().unwrap();
    let again = EventChannels::with_abi(&token, ABI).unwrap();
    drop(again);
    // Xen may use what a set that was dropped has told it.
    assert_eq!(EventChannels::with_abi(&token, ABI).unwrap_err(), Error::Claimed);
}

#[test]
fn what_was_made_before_a_resume_is_stale_and_touches_nothing() {
    let xen = machine();
    let domain = xen.domain(GUEST);
    let token = domain.boot().unwrap();
    let guest = EventChannels::with_abi(&token, ABI).unwrap();
    let (channel, timer) = (guest.alloc_unbound(DOM0).unwrap(), guest.bind_virq(Virq::TIMER, VCPU0).unwrap());
    let before = token.incarnation();
    // SAFETY: one vCPU, one thread, no mapping of another domain's page.
    assert_eq!(unsafe { token.suspend() }, Ok(Resumed::InNewDomain));
    assert_ne!(token.incarnation(), before);
    assert!(!channel.is_current());
    let calls = xen.trace_text();
    assert_eq!(channel.notify(), Err(Error::Stale));
    assert_eq!(channel.bind_vcpu(VCPU0), Err(Error::Stale));
    assert_eq!(channel.status().unwrap_err(), Error::Stale);
    assert_eq!(channel.set_priority(Priority::HIGHEST), Err(Error::Stale));
    channel.mask();
    channel.unmask();
    channel.set_late_eoi(true);
    channel.done(Progress::Spurious);
    assert!(channel.is_masked() && !channel.take());
    // Whoever waits for it is told, by the next operation's error.
    assert!(channel.poll_event(&mut Context::from_waker(Waker::noop())).is_ready());
    assert_eq!(guest.alloc_unbound(DOM0).unwrap_err(), Error::Stale);
    assert_eq!(guest.bind_virq(Virq::DEBUG, VCPU0).unwrap_err(), Error::Stale);
    assert_eq!(guest.adopt(channel.port()).unwrap_err(), Error::Stale);
    assert_eq!((guest.dispatch(VCPU0), guest.unmask_due(), guest.next_unmask()), (0, 0, None));
    drop((channel, timer));
    assert_eq!(xen.trace_text(), calls, "nothing was asked of Xen");
    assert_eq!(mock::open_ports(&domain), 0, "a new domain has none");
    assert_eq!(guest.reset(), Err(Error::Stale));
}

/// A peer that sends an event as soon as its last one is delivered, and a task that waits for the next at once.
struct Resend {
    channel: Channel<'static, MockDomain>,
    peer: MockDomain,
    port: Port,
    sent: AtomicUsize,
}

impl Wake for Resend {
    fn wake(self: Arc<Self>) {
        assert!(self.sent.fetch_add(1, Ordering::Relaxed) < 100, "dispatch does not end");
        event::send(&self.peer, self.port.0).unwrap();
        let waker = Waker::from(self.clone());
        while self.channel.poll_event(&mut Context::from_waker(&waker)).is_ready() {}
    }
}

/// For wakers, which own nothing that may end. A leak checker finds them here.
fn for_good(events: EventChannels<MockDomain>) -> &'static EventChannels<MockDomain> {
    static KEPT: Mutex<Vec<&'static EventChannels<MockDomain>>> = Mutex::new(Vec::new());
    let events: &'static _ = Box::leak(Box::new(events));
    KEPT.lock().unwrap().push(events);
    events
}

#[test]
fn a_sender_without_end_does_not_hold_dispatch() {
    let xen = machine();
    let guest = for_good(channels(&xen, GUEST));
    let dom0 = channels(&xen, DOM0);
    let front = unbound(guest);
    let back = dom0.bind_interdomain(GUEST, front.port()).unwrap();
    let resend =
        Arc::new(Resend { channel: front, peer: xen.domain(DOM0), port: back.port(), sent: AtomicUsize::new(0) });
    resend.clone().wake();
    for round in 1..10 {
        let upcalls = guest.stats().upcalls;
        let events = guest.dispatch(VCPU0);
        assert!((1..=2).contains(&events), "{events} events of one port in one pass");
        assert_eq!(guest.stats().upcalls, upcalls + 1, "what came meanwhile makes another upcall");
        let delivered = resend.channel.stats().events;
        assert!((round..=2 * round).contains(&delivered));
        assert_eq!(resend.sent.load(Ordering::Relaxed) as u64, delivered + 1, "none was lost");
        assert!(!resend.channel.is_masked());
    }
}

#[test]
fn an_event_nobody_owns_is_counted_and_dropped() {
    let xen = machine();
    let guest = channels(&xen, GUEST);
    let port = mock::alloc_for(guest.platform(), DOM0).unwrap();
    assert!(mock::inject(guest.platform(), port));
    assert_eq!((guest.dispatch(VCPU0), guest.stats().stray), (0, 0), "masked as long as nobody owns it");
    // Other code in the guest unmasks it.
    event::unmask(guest.platform(), port.0).unwrap();
    assert_eq!((guest.dispatch(VCPU0), guest.stats().stray, guest.stats().events), (1, 1, 0));
}

#[test]
fn an_event_on_a_port_that_xen_closed_is_not_lost() {
    let xen = machine();
    let (guest, dom0) = (channels(&xen, GUEST), channels(&xen, DOM0));
    let keep: Vec<_> = (0..64).map(|_| unbound(&guest)).collect();
    let front = keep.last().unwrap();
    assert_eq!(front.port(), Port(64));
    let back = dom0.bind_interdomain(GUEST, front.port()).unwrap();
    front.mask();
    back.notify().unwrap();
    // A handler that refuses stands for a Xen that does not know the port.
    xen.register(xen_hypercall::HypercallNr::EVENT_CHANNEL_OP, |_, _| Errno::EINVAL.as_return());
    front.unmask();
    assert!(front.take());
    assert!(!front.is_masked());
    mock::install(&xen);
}

#[test]
fn vcpus_without_a_place_in_the_page_have_no_events() {
    let xen = machine();
    let guest = channels(&xen, GUEST);
    assert_eq!(guest.dispatch(VcpuId(31)), 0);
    assert_eq!(guest.dispatch(VcpuId(32)), 0);
    assert_eq!(guest.dispatch(VcpuId(u32::MAX)), 0);
}

#[test]
fn a_domain_learns_its_own_number_and_keeps_no_port() {
    let xen = machine();
    for id in [1, 2] {
        let domain = xen.domain(DomId(id));
        let before = mock::open_ports(&domain);
        assert_eq!(xen_hypercall::event::own_domain(&domain), Ok(DomId(id)));
        assert_eq!(mock::open_ports(&domain), before);
    }
}

/// Does something when it is woken.
struct Act<F>(F);

impl<F: Fn() + Send + Sync + 'static> Wake for Act<F> {
    fn wake(self: Arc<Self>) {
        (self.0)();
    }
}

#[test]
fn a_port_that_is_closed_and_bound_anew_while_its_event_is_delivered_starts_afresh() {
    let xen = machine();
    let guest = for_good(channels(&xen, GUEST));
    let dom0 = channels(&xen, DOM0);
    let (first, second) = (guest.alloc_unbound(DOM0).unwrap(), guest.alloc_unbound(DOM0).unwrap());
    let port = second.port();
    let backs = [&first, &second].map(|front| dom0.bind_interdomain(GUEST, front.port()).unwrap());
    // The first channel's task closes the second, whose event this pass has taken already, and opens another.
    let place = Arc::new(Mutex::new(Some(second)));
    let theirs = place.clone();
    let waker = Waker::from(Arc::new(Act(move || {
        let mut place = theirs.lock().unwrap();
        drop(place.take());
        *place = Some(unbound(guest));
    })));
    assert!(first.poll_event(&mut Context::from_waker(&waker)).is_pending());
    for back in &backs {
        back.notify().unwrap();
    }
    guest.dispatch(VCPU0);
    let new = place.lock().unwrap().take().unwrap();
    if ABI == Abi::TwoLevel {
        assert_eq!(new.port(), port, "Xen gives the lowest free port");
    }
    // It may have been told once to look. It hears of everything.
    new.take();
    let back = dom0.bind_interdomain(GUEST, new.port()).unwrap();
    for _ in 0..3 {
        back.notify().unwrap();
        assert_eq!(guest.dispatch(VCPU0), 1);
        assert!(new.take() && !new.is_masked());
    }
}

#[test]
fn of_two_tasks_that_wait_one_may_go_away() {
    let xen = machine();
    let guest = channels(&xen, GUEST);
    let channel = guest.alloc_unbound(DOM0).unwrap();
    channel.set_late_eoi(false);
    let counts: [Arc<Count>; 2] = Default::default();
    // The other waits for something else by then, and never looks here again.
    for kept in [0, 1] {
        let wakers = [0, 1].map(|task| Waker::from(counts[task].clone()));
        for waker in &wakers {
            assert!(channel.poll_event(&mut Context::from_waker(waker)).is_pending());
            assert!(channel.poll_event(&mut Context::from_waker(waker)).is_pending());
        }
        let before = counts[kept].0.load(Ordering::Relaxed);
        assert!(mock::inject(guest.platform(), channel.port()));
        guest.dispatch(VCPU0);
        assert_eq!(counts[kept].0.load(Ordering::Relaxed), before + 1);
        assert!(channel.poll_event(&mut Context::from_waker(&wakers[kept])).is_ready());
    }
}

/// Tasks that are polled when they were woken, as an executor does. Returns how often, until nobody is woken any more or it
/// has been a thousand times.
fn polls(channel: &Channel<'_, MockDomain>, tasks: &[Arc<Count>]) -> usize {
    let mut polls = 0;
    while polls < 1000 {
        let woken = tasks.iter().filter(|task| task.0.swap(0, Ordering::Relaxed) > 0);
        let before = polls;
        for task in woken {
            polls += 1;
            let _ = channel.poll_event(&mut Context::from_waker(&Waker::from(task.clone())));
        }
        if polls == before {
            break;
        }
    }
    polls
}

#[test]
fn four_tasks_that_wait_do_not_keep_each_other_busy() {
    let xen = machine();
    let guest = channels(&xen, GUEST);
    let channel = unbound(&guest);
    for count in 1..=4 {
        let tasks: Vec<Arc<Count>> = (0..count).map(|_| Arc::default()).collect();
        // Each looks for the first time.
        tasks.iter().for_each(Wake::wake_by_ref);
        assert_eq!(polls(&channel, &tasks), count, "while nothing happens");
        for _ in 0..3 {
            assert!(mock::inject(guest.platform(), channel.port()));
            guest.dispatch(VCPU0);
            assert!(tasks.iter().all(|task| task.0.load(Ordering::Relaxed) == 1));
            // The first takes the event, and waits for the next one.
            let taken = polls(&channel, &tasks);
            assert!(taken <= count, "{taken} polls of {count} tasks for one event");
            Wake::wake_by_ref(&tasks[0]);
            assert_eq!(polls(&channel, &tasks), 1);
        }
        // They go away, and others come.
        guest.dispatch(VCPU0);
        assert!(mock::inject(guest.platform(), channel.port()));
        guest.dispatch(VCPU0);
        assert!(channel.take());
    }
}

#[test]
fn of_many_tasks_that_wait_none_is_forgotten() {
    let xen = machine();
    let guest = channels(&xen, GUEST);
    let channel = guest.alloc_unbound(DOM0).unwrap();
    channel.set_late_eoi(false);
    let counts: Vec<Arc<Count>> = (0..7).map(|_| Arc::default()).collect();
    let woken = |task: usize| counts[task].0.swap(0, Ordering::Relaxed) > 0;
    for count in &counts {
        let waker = Waker::from(count.clone());
        assert!(channel.poll_event(&mut Context::from_waker(&waker)).is_pending());
    }
    // Whoever is woken looks again, as executors do; others sleep. After an event each has been woken since it slept.
    let mut asleep = [true; 7];
    (0..7).filter(|task| woken(*task)).for_each(|task| asleep[task] = false);
    assert!(mock::inject(guest.platform(), channel.port()));
    guest.dispatch(VCPU0);
    (0..7).filter(|task| woken(*task)).for_each(|task| asleep[task] = false);
    assert_eq!(asleep, [false; 7]);
}

#[test]
fn a_waker_that_panics_takes_nothing_from_the_other_channels() {
    let xen = machine();
    let guest = channels(&xen, GUEST);
    let ports: Vec<_> = (0..100).map(|_| unbound(&guest)).collect();
    let woken = Arc::new(Count::default());
    let panics = Waker::from(Arc::new(Act(|| panic!("a waker"))));
    let counts = Waker::from(woken.clone());
    for round in 0..3 {
        // One that panics, beside one on the same channel that does not, amid others in more than one word.
        for waker in [&panics, &counts] {
            assert!(ports[50].poll_event(&mut Context::from_waker(waker)).is_pending());
        }
        for channel in &ports {
            assert!(mock::inject(guest.platform(), channel.port()));
        }
        let pass = std::panic::AssertUnwindSafe(|| guest.dispatch(VCPU0));
        assert!(std::panic::catch_unwind(pass).is_err());
        assert!(ports.iter().all(|channel| channel.take() && !channel.is_masked()));
        assert_eq!(woken.0.load(Ordering::Relaxed), round + 1, "the other task of the same channel");
        // The next events are delivered as ever.
        for channel in &ports {
            assert!(mock::inject(guest.platform(), channel.port()));
        }
        assert_eq!(guest.dispatch(VCPU0), 100);
        assert!(ports.iter().all(Channel::take));
    }
}
