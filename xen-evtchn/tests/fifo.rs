//! What only the FIFO ABI has: order, priorities, pages that grow, and the choice of it.
#![cfg(feature = "mock")]

use core::sync::atomic::{AtomicU32, Ordering};
use core::task::Context;
use std::sync::{Arc, Mutex};
use std::task::{Wake, Waker};

use xen_evtchn::{Abi, Channel, Error, EventChannels, Port, Priority, mock};
use xen_hypercall::mock::{Chance, Dice, HypercallFaults, MockDomain, MockXen};
use xen_hypercall::{DomId, Errno, Gfn, HypercallNr, PageMemory, VcpuId, event};

const VCPU0: VcpuId = VcpuId(0);
const DOM0: DomId = DomId(0);
const GUEST: DomId = DomId(1);

fn machine() -> MockXen {
    let xen = MockXen::new();
    mock::install(&xen);
    xen
}

fn start(xen: &MockXen, id: DomId, abi: Abi) -> Result<EventChannels<MockDomain>, Error> {
    EventChannels::with_abi(&xen.domain(id).boot().unwrap(), abi)
}

fn refused(operation: &'static str, errno: Errno) -> Error {
    Error::Hypercall { operation, errno }
}

/// Writes down in which order channels were woken.
struct Note(u32, Arc<Mutex<Vec<u32>>>);

impl Wake for Note {
    fn wake(self: Arc<Self>) {
        self.1.lock().unwrap().push(self.0);
    }
}

type Order = Arc<Mutex<Vec<u32>>>;

/// A channel whose events nobody ends.
fn unbound(events: &EventChannels<MockDomain>) -> Channel<'_, MockDomain> {
    let channel = events.alloc_unbound(DOM0).unwrap();
    channel.set_late_eoi(false);
    channel
}

/// The wakers of tasks that wait for these channels.
fn tasks(channels: &[Channel<'_, MockDomain>], order: &Order) -> Vec<Waker> {
    let note = |channel: &Channel<'_, MockDomain>| Note(channel.port().0, order.clone());
    channels.iter().map(|channel| Waker::from(Arc::new(note(channel)))).collect()
}

fn listen(channels: &[Channel<'_, MockDomain>], tasks: &[Waker]) {
    for (channel, waker) in channels.iter().zip(tasks) {
        while channel.poll_event(&mut Context::from_waker(waker)).is_ready() {}
    }
}

#[test]
fn everything_may_be_shared_between_vcpus() {
    fn shared<T: Send + Sync>() {}
    shared::<EventChannels<MockDomain>>();
    shared::<Channel<'_, MockDomain>>();
}

#[test]
fn events_come_in_the_order_in_which_they_were_sent_and_urgent_ones_first() {
    let xen = machine();
    let guest = start(&xen, GUEST, Abi::Fifo).unwrap();
    let order = Order::default();
    let channels: Vec<_> = (0..6).map(|_| unbound(&guest)).collect();
    let tasks = tasks(&channels, &order);
    let send = |ports: &[u32]| {
        listen(&channels, &tasks);
        for port in ports {
            assert!(mock::inject(guest.platform(), Port(*port)));
        }
        assert_eq!(guest.dispatch(VCPU0), ports.len());
        core::mem::take(&mut *order.lock().unwrap())
    };
    assert_eq!(send(&[5, 2, 6, 1]), [5, 2, 6, 1]);

    channels[0].set_priority(Priority::HIGHEST).unwrap();
    channels[4].set_priority(Priority::LOWEST).unwrap();
    assert_eq!(send(&[5, 2, 6, 1]), [1, 2, 6, 5]);
    assert_eq!(
        channels[1].set_priority(Priority(16)).unwrap_err(),
        refused("EVTCHNOP_set_priority", Errno::EINVAL)
    );
    assert_eq!(send(&[6, 5, 4, 3, 2, 1]), [1, 6, 4, 3, 2, 5]);

    // An event that is waiting already keeps its place; the next one has the new one.
    assert!(mock::inject(guest.platform(), Port(3)));
    channels[2].set_priority(Priority::HIGHEST).unwrap();
    listen(&channels, &tasks);
    for port in [2, 5] {
        assert!(mock::inject(guest.platform(), Port(port)));
    }
    assert_eq!(guest.dispatch(VCPU0), 3);
    assert_eq!(core::mem::take(&mut *order.lock().unwrap()), [3, 2, 5]);
    assert_eq!(send(&[2, 1, 3]), [1, 3, 2]);
}

#[test]
fn an_urgent_event_that_comes_during_a_pass_overtakes() {
    struct Interject(MockDomain, Port, Order);
    impl Wake for Interject {
        fn wake(self: Arc<Self>) {
            self.2.lock().unwrap().push(1);
            assert!(mock::inject(&self.0, self.1));
        }
    }
    let xen = machine();
    let guest = start(&xen, GUEST, Abi::Fifo).unwrap();
    let channels: Vec<_> = (0..3).map(|_| unbound(&guest)).collect();
    channels[2].set_priority(Priority::HIGHEST).unwrap();
    let order = Order::default();
    listen(&channels[1..], &tasks(&channels[1..], &order));
    let waker = Waker::from(Arc::new(Interject(guest.platform().clone(), channels[2].port(), order.clone())));
    assert!(channels[0].poll_event(&mut Context::from_waker(&waker)).is_pending());
    for port in [1, 2] {
        assert!(mock::inject(guest.platform(), Port(port)));
    }
    assert_eq!(guest.dispatch(VCPU0), 3);
    assert_eq!(*order.lock().unwrap(), [1, 3, 2]);
}

#[test]
fn the_best_abi_is_fifo_where_there_is_one() {
    let xen = machine();
    assert_eq!(start(&xen, GUEST, Abi::Best).unwrap().abi_in_use(), Abi::Fifo);

    let old = machine();
    mock::set_fifo(&old, false);
    let guest = start(&old, GUEST, Abi::Best).unwrap();
    assert_eq!(guest.abi_in_use(), Abi::TwoLevel);
    let channel = guest.alloc_unbound(DOM0).unwrap();
    assert!(mock::inject(guest.platform(), channel.port()));
    assert_eq!(guest.dispatch(VCPU0), 1);
    assert_eq!(
        channel.set_priority(Priority::HIGHEST).unwrap_err(),
        refused("EVTCHNOP_set_priority", Errno::ENOSYS)
    );
    let pages = xen.domain(DOM0).pages_in_use();
    assert_eq!(start(&old, DOM0, Abi::Fifo).unwrap_err(), refused("EVTCHNOP_init_control", Errno::ENOSYS));
    assert_eq!(old.domain(DOM0).pages_in_use(), pages + 1, "nothing is left but shared_info");
}

#[test]
fn the_choice_cannot_be_changed_before_a_reset() {
    let xen = machine();
    let domain = xen.domain(GUEST);
    let token = domain.boot().unwrap();
    let guest = EventChannels::with_abi(&token, Abi::Fifo).unwrap();
    let store = mock::alloc_for(&domain, DOM0).unwrap();
    let _ = guest.adopt(store).unwrap();
    for abi in [Abi::Fifo, Abi::Best] {
        assert_eq!(EventChannels::with_abi(&token, abi).unwrap_err(), Error::Claimed);
    }
    // Three pages, and the records of the port that was adopted.
    assert_eq!(domain.pages_in_use(), 2 + 3 + 2);
    guest.reset().unwrap();
    assert_eq!((domain.pages_in_use(), mock::open_ports(&domain)), (2, 0));

    let guest = EventChannels::with_abi(&token, Abi::TwoLevel).unwrap();
    let channel = guest.alloc_unbound(DOM0).unwrap();
    assert!(mock::inject(&domain, channel.port()));
    assert_eq!(guest.dispatch(VCPU0), 1);
    drop(channel);
    guest.reset().unwrap();
    assert_eq!(EventChannels::with_abi(&token, Abi::Fifo).unwrap().abi_in_use(), Abi::Fifo);
}

#[test]
fn a_start_that_fails_leaves_nothing_with_xen() {
    for allowed in 0..3 {
        let xen = machine();
        let domain = xen.domain(GUEST);
        let token = domain.boot().unwrap();
        let pages = domain.pages_in_use();
        domain.fail_allocs_after(Some(allowed));
        assert_eq!(EventChannels::with_abi(&token, Abi::Best).unwrap_err(), Error::OutOfMemory);
        assert_eq!(domain.pages_in_use(), pages);
        domain.fail_allocs_after(None);
        assert!(EventChannels::with_abi(&token, Abi::Fifo).is_ok(), "Xen was not told yet");
    }
}

#[test]
fn events_from_before_the_choice_are_kept() {
    let xen = machine();
    let domain = xen.domain(GUEST);
    let ports: Vec<_> = (0..1100).map(|_| mock::alloc_for(&domain, DOM0).unwrap()).collect();
    let (first, last) = (ports[0], ports[1099]);
    domain.ensure_shared_info();
    for port in [first, last] {
        assert!(mock::inject(&domain, port));
    }
    let guest = start(&xen, GUEST, Abi::Fifo).unwrap();
    let first = guest.adopt(first).unwrap();
    assert_eq!(guest.dispatch(VCPU0), 1);
    assert!(first.take());
    // This one's word is in a page that is only now given to Xen.
    let last = guest.adopt(last).unwrap();
    assert_eq!(guest.dispatch(VCPU0), 1);
    assert!(last.take());
}

#[test]
fn pages_are_added_as_ports_need_them_and_a_failure_closes_the_port() {
    let xen = machine();
    let guest = start(&xen, GUEST, Abi::Fifo).unwrap();
    let domain = guest.platform();
    let mut channels: Vec<_> = (1..1024).map(|_| guest.alloc_unbound(DOM0).unwrap()).collect();
    // Of port 1024 the record is there, with those of the 24 before it; the words cannot be had.
    domain.fail_allocs_after(Some(0));
    assert_eq!(guest.alloc_unbound(DOM0).unwrap_err(), Error::OutOfMemory);
    domain.fail_allocs_after(None);
    let no =
        HypercallFaults::new().fail_command(HypercallNr::EVENT_CHANNEL_OP, 12, Chance::ALWAYS, Errno::ENOMEM);
    xen.set_faults(Dice::new(1), no);
    let before = domain.pages_in_use();
    let refusal = refused("EVTCHNOP_expand_array", Errno::ENOMEM);
    for _ in 0..2 {
        assert_eq!(guest.alloc_unbound(DOM0).unwrap_err(), refusal);
        // The page of words is kept for the next try.
        assert_eq!((domain.pages_in_use(), mock::open_ports(domain)), (before + 1, 1023));
    }
    xen.set_faults(Dice::new(1), HypercallFaults::new());
    channels.push(guest.alloc_unbound(DOM0).unwrap());
    assert_eq!(domain.pages_in_use(), before + 1);
    // The next one needs a page for its record.
    channels.push(guest.alloc_unbound(DOM0).unwrap());
    assert_eq!(domain.pages_in_use(), before + 2);
    let last = channels.last().unwrap();
    assert_eq!(last.port(), Port(1025));
    assert!(mock::inject(domain, last.port()));
    assert_eq!(guest.dispatch(VCPU0), 1);
    assert!(last.take());
}

#[test]
fn ports_end_where_the_toolstack_says() {
    let xen = machine();
    let guest = start(&xen, GUEST, Abi::Fifo).unwrap();
    mock::set_max_port(guest.platform(), Port(10));
    let all: Vec<_> = (1..=10).map(|_| guest.alloc_unbound(DOM0).unwrap()).collect();
    assert_eq!(guest.alloc_unbound(DOM0).unwrap_err(), refused("EVTCHNOP_alloc_unbound", Errno::ENOSPC));
    drop(all);
}

/// The words that the guest shares with Xen, overwritten by whatever can.
#[test]
fn heads_and_links_that_lead_nowhere_end_the_pass() {
    let xen = machine();
    let domain = xen.domain(GUEST);
    let guest = start(&xen, GUEST, Abi::Fifo).unwrap();
    let channel = unbound(&guest);
    // The three pages of the start come after shared_info.
    let shared = domain.gfn(shared_page(&domain));
    let word = |page: u64, index: usize| {
        let page = domain.page_at(Gfn(shared.0 + page)).unwrap();
        // SAFETY: within the page, aligned, and only reached by atomics.
        unsafe { AtomicU32::from_ptr(page.as_ptr().cast::<u32>().add(index)) }
    };
    let (ready, head, port) = (word(2, 0), word(2, 2 + 7), word(3, 1));
    for bad in [0, 1, 2, 1024, 5000, 131_071, 131_072, u32::MAX] {
        head.store(bad, Ordering::SeqCst);
        ready.store(u32::MAX, Ordering::SeqCst);
        assert_eq!(guest.dispatch(VCPU0), 0, "{bad:#x}");
    }
    // A queue that is a ring: each step takes a link away.
    const LINKED: u32 = 1 << 29;
    port.store(LINKED | 1 << 31 | 1, Ordering::SeqCst);
    head.store(1, Ordering::SeqCst);
    ready.store(1 << 7, Ordering::SeqCst);
    assert_eq!(guest.dispatch(VCPU0), 1);
    assert!(channel.take());
    assert_eq!((port.load(Ordering::SeqCst), ready.load(Ordering::SeqCst)), (0, 0));
    // Busy for ever: it is left to Xen to unmask.
    channel.mask();
    port.fetch_or(1 << 28, Ordering::SeqCst);
    channel.unmask();
    assert!(!channel.is_masked());
}

fn shared_page(domain: &MockDomain) -> core::ptr::NonNull<xen_hypercall::Page> {
    // shared_info is the second page that the domain allocated, after that of its token.
    (0x1001..0x2000).find_map(|gfn| domain.page_at(Gfn(gfn))).unwrap()
}

/// For wakers, which own nothing that may end. A leak checker finds them here.
fn for_good(events: EventChannels<MockDomain>) -> &'static EventChannels<MockDomain> {
    static KEPT: Mutex<Vec<&'static EventChannels<MockDomain>>> = Mutex::new(Vec::new());
    let events: &'static _ = Box::leak(Box::new(events));
    KEPT.lock().unwrap().push(events);
    events
}

#[test]
fn a_nested_dispatch_leaves_the_queue_to_the_one_at_work() {
    struct Nested(&'static EventChannels<MockDomain>, Mutex<Vec<usize>>);
    impl Wake for Nested {
        fn wake(self: Arc<Self>) {
            assert!(mock::inject(self.0.platform(), Port(2)));
            let nested = self.0.dispatch(VCPU0);
            self.1.lock().unwrap().push(nested);
        }
    }
    let xen = machine();
    let guest = for_good(start(&xen, GUEST, Abi::Fifo).unwrap());
    let (first, second) = (guest.alloc_unbound(DOM0).unwrap(), guest.alloc_unbound(DOM0).unwrap());
    let nested = Arc::new(Nested(guest, Mutex::default()));
    let waker = Waker::from(nested.clone());
    assert!(first.poll_event(&mut Context::from_waker(&waker)).is_pending());
    assert!(mock::inject(guest.platform(), first.port()));
    assert_eq!(guest.dispatch(VCPU0), 2);
    assert_eq!(*nested.1.lock().unwrap(), [0]);
    assert!(first.take() && second.take());
}

#[test]
fn bare_calls_are_refused_as_xen_refuses_them() {
    let xen = machine();
    let domain = xen.domain(GUEST);
    domain.ensure_shared_info();
    let page = domain.alloc_pages(1).unwrap();
    let gfn = domain.gfn(page);
    // SAFETY: the pages are given for this, and the test reads none of them.
    unsafe {
        assert_eq!(event::expand_array(&domain, gfn), Err(Errno::EOPNOTSUPP));
        assert_eq!(event::init_control(&domain, gfn, 0, VcpuId(1)), Err(Errno::ENOENT));
        assert_eq!(event::init_control(&domain, gfn, 4, VCPU0), Err(Errno::EINVAL));
        assert_eq!(event::init_control(&domain, gfn, 4096 - 64, VCPU0), Err(Errno::EINVAL));
        assert_eq!(event::init_control(&domain, Gfn(1), 0, VCPU0), Err(Errno::EINVAL));
        assert_eq!(event::init_control(&domain, gfn, 0, VCPU0), Ok(17));
        assert_eq!(event::init_control(&domain, gfn, 0, VCPU0), Err(Errno::EINVAL));
        assert_eq!(event::expand_array(&domain, Gfn(1)), Err(Errno::EINVAL));
        for _ in 0..128 {
            let page = domain.alloc_pages(1).unwrap();
            assert_eq!(event::expand_array(&domain, domain.gfn(page)), Ok(()));
        }
        assert_eq!(event::expand_array(&domain, gfn), Err(Errno::ENOSPC));
    }
    assert_eq!(event::set_priority(&domain, 64, 7), Err(Errno::EINVAL));
}
