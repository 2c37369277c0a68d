//! Queues that are taken out of their device, and driven by other threads.
#![cfg(feature = "mock")]

mod common;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use common::{GUEST, HOST, Machine, frame, udp};
use xen_evtchn::EventChannels;
use xen_gnttab::GrantRef;
use xen_hypercall::mock::MockDomain;
use xen_hypercall::sched::Resumed;
use xen_hypercall::{DomId, VcpuId};
use xen_netfront::mock::{Fault, Options};
use xen_netfront::{Config, Error, NetFront, NetQueue, RxMeta, State, Stats};
use xen_xenstore::Xenstore;
use xen_xenstore::suspend::Device;

const CONFIG: fn() -> Config = || Config { tx_pages: 32, rx_pages: 32, ..Config::default() };
/// Frames that each thread sends.
const FRAMES: u32 = 400;

/// Four queues, and a backend that has as many.
fn connect<'x>(machine: &'x Machine, xs: &mut Xenstore<'x, MockDomain>) -> NetFront<'x, MockDomain, 4> {
    let front = machine.connect_with::<4>(xs, CONFIG()).unwrap();
    assert_eq!(front.queues(), 4);
    front
}

/// What a thread has a queue of, whoever it belongs to.
trait Queue {
    fn transmit(&mut self, frame: &[u8]) -> Result<(), Error>;
    fn receive_with(&mut self, buf: &mut [u8]) -> Result<Option<RxMeta>, Error>;
    fn publish(&mut self) -> Result<(), Error>;
    fn arm(&mut self) -> Result<bool, Error>;
    fn stats(&self) -> Stats;
}

macro_rules! queue {
    ($type:ty) => {
        impl Queue for $type {
            fn transmit(&mut self, frame: &[u8]) -> Result<(), Error> {
                <$type>::transmit(self, frame)
            }
            fn receive_with(&mut self, buf: &mut [u8]) -> Result<Option<RxMeta>, Error> {
                <$type>::receive_with(self, buf)
            }
            fn publish(&mut self) -> Result<(), Error> {
                <$type>::publish(self)
            }
            fn arm(&mut self) -> Result<bool, Error> {
                <$type>::arm(self)
            }
            fn stats(&self) -> Stats {
                <$type>::stats(self)
            }
        }
    };
}

queue!(NetQueue<'_, MockDomain>);
queue!(NetFront<'_, MockDomain, 4>);

/// A frame of a thread's, or the answer to it.
fn numbered(to_host: bool, thread: u8, sequence: u32) -> Vec<u8> {
    let mut frame = udp(false, to_host, &[&[thread][..], &sequence.to_le_bytes(), &[thread; 200]].concat());
    // Ports differ, so that the backend spreads what it sends.
    frame[35] = (sequence % 32) as u8;
    frame
}

/// Sends all of a thread's frames, and counts what arrives at its queue, until everybody has all answers.
fn drive(
    events: &EventChannels<MockDomain>,
    queue: &mut impl Queue,
    thread: u8,
    numbers: &[usize],
    arrived: &AtomicUsize,
    all: usize,
) {
    let (mut sent, mut buf, mut received) = (0, [0; 4096], 0u64);
    while sent < FRAMES || arrived.load(SeqCst) < all {
        events.dispatch(VcpuId(thread.into()));
        while sent < FRAMES && queue.transmit(&numbered(true, thread, sent)).is_ok() {
            sent += 1;
        }
        queue.publish().unwrap();
        while let Some(meta) = queue.receive_with(&mut buf).unwrap() {
            assert!(numbers.contains(&meta.queue), "thread {thread} got a frame of queue {}", meta.queue);
            let (whose, sequence) = (buf[42], u32::from_le_bytes(buf[43..47].try_into().unwrap()));
            assert_eq!(&buf[42..meta.len], &numbered(false, whose, sequence)[42..]);
            received += 1;
            arrived.fetch_add(1, SeqCst);
        }
        queue.publish().unwrap();
        if !queue.arm().unwrap() {
            std::thread::yield_now();
        }
    }
    assert_eq!((queue.stats().tx_frames, queue.stats().rx_frames), (FRAMES.into(), received));
    assert!(received > 0, "thread {thread} got nothing");
}

#[test]
fn queues_are_driven_by_as_many_threads() {
    let machine = Machine::new();
    machine.guest.set_vcpus(4);
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut front = connect(&machine, &mut xs);
    (1..4).for_each(|vcpu| machine.events.add_vcpu(VcpuId(vcpu)).unwrap());
    let queues = [1, 3].map(|index| {
        let queue = front.take_queue(index).unwrap();
        queue.channel().unwrap().bind_vcpu(VcpuId(index as u32)).unwrap();
        queue
    });
    assert_eq!(front.queues(), 2);
    let all = 3 * FRAMES as usize;
    let arrived = AtomicUsize::new(0);
    let (events, arrived) = (&machine.events, &arrived);
    let queues = std::thread::scope(|scope| {
        let others = queues.map(|mut queue| {
            scope.spawn(move || {
                let index = queue.index();
                drive(events, &mut queue, index as u8, &[index], arrived, all);
                queue
            })
        });
        let own = &mut front;
        let first = scope.spawn(move || drive(events, own, 0, &[0, 2], arrived, all));
        // Each flow of the guest's stays in order, and is answered.
        let (mut next, mut answers, mut answered) = ([0; 4], VecDeque::new(), 0);
        while arrived.load(SeqCst) < all {
            let dropped = machine.switch.dropped();
            if dropped > 0 || first.is_finished() || others.iter().any(|thread| thread.is_finished()) {
                // Nobody waits for what does not come.
                arrived.store(all, SeqCst);
                assert_eq!(dropped, 0, "an answer found no room");
                break;
            }
            machine.xen.step();
            while let Some(frame) = machine.switch.receive() {
                let thread = usize::from(frame.bytes[42]);
                let sequence = u32::from_le_bytes(frame.bytes[43..47].try_into().unwrap());
                assert_eq!(frame.bytes, numbered(true, thread as u8, sequence));
                next[thread] += 1;
                answers.push_back(numbered(false, thread as u8, sequence));
            }
            // A thread that does not run for a while has room for so many.
            while answered - arrived.load(SeqCst) < 16 {
                let Some(answer) = answers.pop_front() else { break };
                machine.switch.send(answer);
                answered += 1;
            }
        }
        first.join().unwrap();
        let queues = others.map(|thread| thread.join().unwrap());
        assert_eq!((next, answered), ([FRAMES, FRAMES, 0, FRAMES], all));
        queues
    });
    queues.into_iter().for_each(|queue| front.put_queue(queue));
    assert_eq!(
        (front.queues(), front.stats().tx_frames, front.stats().rx_frames),
        (4, all as u64, all as u64)
    );
    assert_eq!((back.complaints(), machine.switch.dropped()), (vec![], 0));
    front.close(&mut xs, machine.soon()).unwrap();
    assert_eq!(machine.grants.stats().in_use, 0);
}

#[test]
fn a_queue_is_taken_once_and_queue_zero_stays() {
    let machine = Machine::new();
    let _back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut front = connect(&machine, &mut xs);
    let memory = machine.guest.pages_in_use();
    for index in [0, 4, 31, 32, usize::MAX] {
        let error = Error::Queue(u32::try_from(index).unwrap_or(u32::MAX));
        assert_eq!(front.take_queue(index).unwrap_err(), error);
    }
    machine.guest.fail_allocs_after(Some(0));
    assert!(matches!(front.take_queue(1), Err(Error::Grant(xen_gnttab::Error::OutOfMemory))));
    machine.guest.fail_allocs_after(None);
    let mut queue = front.take_queue(1).unwrap();
    assert_eq!(front.take_queue(1).unwrap_err(), Error::Queue(1));
    assert_eq!((queue.index(), queue.state(), front.queues()), (1, State::Connected, 3));
    // The device's own frames, of whatever flow, go by the queues that it has.
    for sequence in 0..32 {
        let mut sent = numbered(true, 0, sequence);
        sent[34] = sequence as u8;
        front.transmit(&sent).unwrap();
    }
    queue.transmit(&numbered(true, 1, 0)).unwrap();
    front.publish().unwrap();
    machine.run();
    assert_eq!(std::iter::from_fn(|| machine.switch.receive()).count(), 32, "the other's is not shown yet");
    queue.publish().unwrap();
    machine.run();
    assert_eq!(machine.switch.receive().unwrap().bytes, numbered(true, 1, 0));
    // What is counted there comes back with it.
    assert_eq!((front.stats().tx_frames, queue.stats().tx_frames), (32, 1));
    front.put_queue(queue);
    assert_eq!((front.queues(), front.stats().tx_frames), (4, 33));
    drop(front.take_queue(1).unwrap());
    assert_eq!(front.take_queue(1).unwrap_err(), Error::Queue(1), "it is gone");
    front.close(&mut xs, machine.soon()).unwrap();
    assert!(machine.guest.pages_in_use() < memory);
    assert_eq!(machine.grants.stats().in_use, 0);
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[test]
fn a_queue_ends_with_its_device_and_its_task_is_woken() {
    for anew in [false, true] {
        let machine = Machine::new();
        let back = machine.vif(Options::default());
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let mut front = connect(&machine, &mut xs);
        let mut queues = [1, 2].map(|index| front.take_queue(index).unwrap());
        let woken: Arc<Woken> = Arc::default();
        let waker: Waker = woken.clone().into();
        machine.run();
        for queue in &mut queues {
            // Whatever events there were at the start.
            while queue.channel().unwrap().take() {}
            assert_eq!(queue.poll_receivable(&mut Context::from_waker(&waker)), Poll::Pending);
        }
        assert_eq!(woken.0.load(SeqCst), 0);
        if anew {
            back.close();
        } else {
            back.detach();
        }
        machine.run();
        assert_eq!(front.service(&mut xs), Ok(if anew { State::Closed } else { State::Closing }));
        assert_eq!(woken.0.load(SeqCst), 2);
        let [mut first, mut second] = queues;
        assert_eq!(first.state(), State::Closed);
        assert_eq!(first.transmit(&frame(HOST, GUEST, 60, 0)), Err(Error::Closed));
        assert_eq!(first.receive_with(&mut [0; 60]), Err(Error::Closed));
        assert_eq!((first.publish(), first.arm()), (Err(Error::Closed), Err(Error::Closed)));
        assert_eq!(first.poll_receivable(&mut Context::from_waker(Waker::noop())), Poll::Ready(()));
        if !anew {
            continue;
        }
        back.vanish();
        back.come_back();
        // One that is put back too late takes nothing of the new device's.
        front.put_queue(first);
        front.reconnect(&mut xs, machine.soon()).unwrap();
        assert_eq!(front.queues(), 4);
        assert_eq!(second.transmit(&frame(HOST, GUEST, 60, 0)), Err(Error::Closed));
        let mut anew = front.take_queue(2).unwrap();
        front.put_queue(second);
        assert_eq!(front.queues(), 3);
        anew.transmit(&frame(HOST, GUEST, 60, 0)).unwrap();
        anew.publish().unwrap();
        machine.run();
        assert!(machine.switch.receive().is_some());
        front.put_queue(anew);
        front.close(&mut xs, machine.soon()).unwrap();
        assert_eq!(machine.grants.stats().in_use, 0);
    }
}

#[test]
fn a_queue_outlives_a_device_that_is_dropped_and_is_told() {
    let machine = Machine::new();
    let _back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut front = connect(&machine, &mut xs);
    let mut queue = front.take_queue(3).unwrap();
    drop(front);
    assert_eq!((queue.state(), queue.publish()), (State::Closed, Err(Error::Closed)));
}

/// Something done with a queue.
type Drive = fn(&mut NetQueue<'_, MockDomain>) -> Result<(), Error>;

/// A device, and a queue of it that somebody drives between the domain's resume and the device's.
struct Between<'d, 'x> {
    front: &'d mut NetFront<'x, MockDomain, 4>,
    queue: &'d mut NetQueue<'x, MockDomain>,
    drive: Drive,
    driven: Option<(Result<(), Error>, State)>,
}

impl<'x> Device<'x, MockDomain> for Between<'_, 'x> {
    type Begun = <NetFront<'x, MockDomain, 4> as Device<'x, MockDomain>>::Begun;

    fn quiesce(&mut self, xs: &mut Xenstore<'x, MockDomain>) {
        self.front.quiesce(xs);
    }

    fn begin(&mut self, xs: &mut Xenstore<'x, MockDomain>, deadline: Duration) -> Self::Begun {
        self.driven = Some(((self.drive)(self.queue), self.queue.state()));
        self.front.begin(xs, deadline)
    }

    fn finish(&mut self, begun: Self::Begun, xs: &mut Xenstore<'x, MockDomain>, deadline: Duration) -> usize {
        self.front.finish(begun, xs, deadline)
    }

    fn go_on(&mut self) {
        self.front.go_on();
    }
}

#[test]
fn a_queue_of_the_life_before_is_closed_before_its_device_is_told() {
    const RSP_PROD: usize = 8;
    let drives: [Drive; 5] = [
        |queue| queue.receive_with(&mut [0; 2048]).map(drop),
        |queue| queue.can_transmit().map(drop),
        |queue| queue.transmit_all(),
        |queue| queue.publish(),
        |queue| queue.arm().map(drop),
    ];
    for drive in drives {
        let machine = Machine::new();
        let _back = machine.vif(Options::default());
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let mut front = connect(&machine, &mut xs);
        let mut queue = front.take_queue(1).unwrap();
        for sequence in 0..32 {
            queue.transmit(&numbered(true, 1, sequence)).unwrap();
            machine.switch.send(numbered(false, 1, sequence));
        }
        queue.publish().unwrap();
        machine.run();
        queue.can_transmit().unwrap();
        while queue.receive_with(&mut [0; 2048]).unwrap().is_some() {}
        assert!(queue.stats().rx_frames > 0, "what is to go back goes on first");
        // A live migration leaves behind what a backend writes to the guest's pages: the rings are as they were earlier.
        for node in ["tx-ring-ref", "rx-ring-ref"] {
            let path = format!("/local/domain/1/device/vif/0/queue-1/{node}");
            let gref = GrantRef(machine.store.read(&path).unwrap().parse().unwrap());
            let (back, guest) = (machine.xen.domain(DomId(0)), machine.guest.id());
            xen_gnttab::mock::copy_to(&back, guest, gref, RSP_PROD, &[0; 4]).unwrap();
        }
        let mut between = Between { front: &mut front, queue: &mut queue, drive, driven: None };
        assert_eq!(machine.suspend(&mut xs, &mut between), (Resumed::InNewDomain, 0));
        assert_eq!(between.driven, Some((Err(Error::Closed), State::Closed)));
        front.put_queue(queue);
        assert_eq!((front.queues(), front.state()), (4, State::Connected));
    }
}

#[test]
fn what_the_backend_breaks_at_a_queue_breaks_the_device_when_it_is_put_back() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut front = connect(&machine, &mut xs);
    let (mut queue, mut other) = (front.take_queue(1).unwrap(), front.take_queue(2).unwrap());
    queue.transmit(&numbered(true, 1, 0)).unwrap();
    back.fault_tx(Fault::Id(999));
    queue.publish().unwrap();
    machine.run();
    let violation = match queue.transmit_all() {
        Err(Error::Broken(violation)) => violation,
        other => panic!("{other:?}"),
    };
    assert_eq!(queue.state(), State::Broken(violation));
    assert_eq!((front.state(), other.state()), (State::Connected, State::Connected));
    front.put_queue(queue);
    assert_eq!((front.state(), other.state()), (State::Broken(violation), State::Closed));
    assert_eq!(front.transmit(&frame(HOST, GUEST, 60, 0)), Err(Error::Broken(violation)));
    front.put_queue(other);
    front.reconnect(&mut xs, machine.soon()).unwrap();
    assert_eq!((front.queues(), front.state()), (4, State::Connected));
}

/// Sends until something is wrong.
trait TransmitAll {
    fn transmit_all(&mut self) -> Result<(), Error>;
}

impl TransmitAll for NetQueue<'_, MockDomain> {
    fn transmit_all(&mut self) -> Result<(), Error> {
        for sequence in 0..64 {
            match self.transmit(&numbered(true, 1, sequence)) {
                Ok(()) | Err(Error::Full) => {}
                Err(error) => return Err(error),
            }
        }
        self.can_transmit().map(drop)
    }
}
