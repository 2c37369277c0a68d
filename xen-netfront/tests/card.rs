//! The place of a device: tasks use it while the device comes and goes.
#![cfg(feature = "mock")]

mod common;

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};

use common::{GUEST, HOST, Machine, frame};
use xen_hypercall::mock::MockDomain;
use xen_netfront::mock::{Fault, Options};
use xen_netfront::{Card, Config, Error, FRAME_MAX, Followup, Mac, NetFront, State, TxMeta};
use xen_xenstore::Xenstore;

#[derive(Default)]
struct Task(AtomicUsize);

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

impl Task {
    fn was_woken(&self) -> bool {
        self.0.swap(0, SeqCst) > 0
    }

    /// Polls a future as this task.
    fn poll<F: Future>(self: &Arc<Self>, future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(&Waker::from(self.clone())))
    }
}

fn tasks<const N: usize>() -> [Arc<Task>; N] {
    std::array::from_fn(|_| Arc::default())
}

fn set_up<'x>(
    machine: &'x Machine,
    xs: &mut Xenstore<'x, MockDomain>,
    config: Config,
) -> Card<'x, MockDomain> {
    Card::from(machine.connect_with::<1>(xs, config).unwrap())
}

#[test]
fn who_receives_waits_for_a_device_and_for_a_frame_by_whatever_device_is_there() {
    for split_channels in [false, true] {
        let machine = Machine::new();
        let back = machine.vif(Options::default());
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let config = Config { split_channels, ..Config::default() };
        let card = Card::<MockDomain>::new();
        assert!(!card.is_present() && !card.is_link_up() && card.mac().is_none() && card.mtu().is_none());
        assert_eq!((card.state(), card.publish()), (State::Closed, Err(Error::Closed)));
        let [task] = tasks();
        let mut buf = [0; FRAME_MAX];
        let mut receiving = Box::pin(card.receive(&mut buf));
        assert!(task.poll(receiving.as_mut()).is_pending());
        for round in 0..3 {
            let front: NetFront<'_, _> = machine.connect_with(&mut xs, config).unwrap();
            assert!(card.put(front).is_none());
            assert!(task.was_woken(), "a device has come");
            assert_eq!(card.mac(), Some(Mac(GUEST)));
            assert!(task.poll(receiving.as_mut()).is_pending());
            machine.run();
            while task.was_woken() {
                assert!(task.poll(receiving.as_mut()).is_pending());
            }
            if round < 2 {
                let front = card.take().unwrap();
                assert!(task.was_woken());
                assert!(task.poll(receiving.as_mut()).is_pending(), "another one may come");
                front.close(&mut xs, machine.soon()).unwrap();
            }
        }
        machine.switch.send(frame(GUEST, HOST, 80, 1));
        machine.run();
        assert!(task.was_woken());
        assert_eq!(task.poll(receiving.as_mut()), Poll::Ready(Ok(80)));
        drop(receiving);
        assert_eq!(buf[..80], frame(GUEST, HOST, 80, 1));

        // A place that is closed is not waited for.
        let mut buf = [0; 60];
        let mut receiving = pin!(card.receive(&mut buf));
        assert!(task.poll(receiving.as_mut()).is_pending());
        let front = card.close().unwrap();
        assert!(task.was_woken() && card.is_closed());
        assert_eq!(task.poll(receiving), Poll::Ready(Err(Error::Closed)));
        front.close(&mut xs, machine.soon()).unwrap();
        assert_eq!((machine.grants.stats().in_use, back.complaints()), (0, vec![]));
    }
}

#[test]
fn who_sends_waits_for_room_and_no_frame_is_lost_or_sent_twice() {
    for split_channels in [false, true] {
        let machine = Machine::new();
        let back = machine.vif(Options::default());
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let card = set_up(&machine, &mut xs, Config { split_channels, tx_pages: 20, ..Config::default() });
        machine.run();
        let [receiver, sender] = tasks();
        let mut buf = [0; 60];
        let mut receiving = pin!(card.receive(&mut buf));
        assert!(receiver.poll(receiving.as_mut()).is_pending());
        back.stall(true);
        let sent: Vec<_> = (0..60).map(|number| frame(HOST, GUEST, 70, number)).collect();
        let all = async {
            for frame in &sent {
                card.transmit(frame).await.unwrap();
            }
            card.publish().unwrap();
        };
        let mut all = pin!(all);
        assert!(sender.poll(all.as_mut()).is_pending());
        assert_eq!(card.stats().tx_frames, 20);
        machine.run();
        assert!(sender.poll(all.as_mut()).is_pending());
        sender.was_woken();
        back.stall(false);
        let mut arrived = Vec::new();
        for _ in 0..20 {
            machine.run();
            arrived.extend(std::iter::from_fn(|| machine.switch.receive()).map(|frame| frame.bytes));
            if sender.was_woken() && sender.poll(all.as_mut()).is_ready() {
                break;
            }
        }
        machine.run();
        arrived.extend(std::iter::from_fn(|| machine.switch.receive()).map(|frame| frame.bytes));
        assert_eq!(arrived, sent);
        // Who waits for frames is not kept busy by those that are sent, if it has a channel of its own.
        assert!(!(split_channels && receiver.was_woken()));
        machine.switch.send(frame(GUEST, HOST, 60, 9));
        machine.run();
        assert!(receiver.was_woken());
        assert_eq!(receiver.poll(receiving), Poll::Ready(Ok(60)));
        assert_eq!(back.complaints(), [""; 0]);
    }
}

#[test]
fn several_tasks_on_each_side_are_all_served() {
    for split_channels in [false, true] {
        let machine = Machine::new();
        let back = machine.vif(Options::default());
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let card = set_up(&machine, &mut xs, Config { split_channels, tx_pages: 20, ..Config::default() });
        machine.run();
        let receivers: [Arc<Task>; 2] = tasks();
        let mut bufs = [[0; 60]; 2];
        let [first, second] = &mut bufs;
        let mut receiving = [Box::pin(card.receive(first)), Box::pin(card.receive(second))];
        for (task, future) in receivers.iter().zip(&mut receiving) {
            assert!(task.poll(future.as_mut()).is_pending());
        }
        back.stall(true);
        while card.with(|front| front.transmit(&frame(HOST, GUEST, 60, 0))).unwrap().is_ok() {}
        let senders: [Arc<Task>; 2] = tasks();
        let frames = [frame(HOST, GUEST, 60, 1), frame(HOST, GUEST, 60, 2)];
        let mut sending = frames.each_ref().map(|frame| Box::pin(card.transmit(frame)));
        for (task, future) in senders.iter().zip(&mut sending) {
            assert!(task.poll(future.as_mut()).is_pending());
        }
        back.stall(false);
        machine.switch.send(frame(GUEST, HOST, 60, 3));
        machine.switch.send(frame(GUEST, HOST, 60, 4));
        machine.run();
        // One of each side never looks again.
        for kept in [1, 0] {
            let (task, future) = (&receivers[kept], &mut receiving[kept]);
            assert!(task.was_woken());
            assert_eq!(task.poll(future.as_mut()), Poll::Ready(Ok(60)));
            let (task, future) = (&senders[kept], &mut sending[kept]);
            assert!(task.was_woken());
            assert_eq!(task.poll(future.as_mut()), Poll::Ready(Ok(())));
        }
    }
}

#[test]
fn room_is_waited_for_whatever_a_frame_needs() {
    // Cut here, for the backend does not: more pages than any frame has that is not cut.
    let machine = Machine::new();
    let options = Options { gso_v4: false, ..Options::default() };
    let back = machine.vif(options);
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let card = set_up(&machine, &mut xs, Config { tx_pages: 48, ..Config::default() });
    machine.run();
    back.stall(true);
    for _ in 0..24 {
        card.with(|front| front.transmit(&frame(HOST, GUEST, 60, 0))).unwrap().unwrap();
    }
    let [task, other] = tasks();
    let large = common::tcp(false, true, 1, &common::bytes(58_000));
    let meta = TxMeta::new(
        xen_netfront::Checksum::Blank,
        Some(xen_netfront::Gso::new(xen_netfront::GsoKind::TcpV4, 1448)),
    );
    let parts = [&large[..]];
    let mut sending = pin!(card.transmit_with(&parts, meta));
    assert!(task.poll(sending.as_mut()).is_pending());
    let mut room = pin!(card.room(1000));
    assert!(other.poll(room.as_mut()).is_pending());
    back.stall(false);
    let mut sent = false;
    for _ in 0..20 {
        machine.run();
        if !sent && task.was_woken() && task.poll(sending.as_mut()).is_ready() {
            sent = true;
            card.publish().unwrap();
        }
        if other.was_woken() && other.poll(room.as_mut()) == Poll::Ready(Ok(48)) {
            assert!(sent);
            return assert_eq!(back.complaints(), [""; 0]);
        }
    }
    panic!("a task waits for ever");
}

#[test]
fn errors_of_a_frame_are_told_and_those_of_a_device_are_waited_out() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let card = set_up(&machine, &mut xs, Config::default());
    machine.run();
    let [task, link] = tasks();
    assert_eq!(task.poll(pin!(card.transmit(&[0; 13]))), Poll::Ready(Err(Error::Length(13))));
    let mut watching = pin!(card.link(true));
    assert!(link.poll(watching.as_mut()).is_pending());
    let mut buf = [0; 60];
    let mut receiving = pin!(card.receive(&mut buf));
    assert!(task.poll(receiving.as_mut()).is_pending());
    back.fault_rx(Fault::Id(7));
    machine.switch.send(frame(GUEST, HOST, 60, 1));
    machine.run();
    assert!(task.was_woken());
    assert!(task.poll(receiving.as_mut()).is_pending(), "another device may come");
    assert!(matches!(card.state(), State::Broken(_)));
    assert!(link.was_woken());
    assert_eq!(link.poll(watching), Poll::Ready(false));
    let mut followup = pin!(card.followup());
    assert!(link.poll(followup.as_mut()).is_pending());
    let mut watching = pin!(card.link(false));
    assert!(link.poll(watching.as_mut()).is_pending());
    card.with(|front| front.reconnect(&mut xs, machine.soon())).unwrap().unwrap();
    assert!(task.was_woken() && link.was_woken());
    assert_eq!(link.poll(watching), Poll::Ready(true));
    assert_eq!(link.poll(followup), Poll::Ready(Followup::ANNOUNCE));
    assert!(task.poll(receiving.as_mut()).is_pending());
    machine.switch.send(frame(GUEST, HOST, 60, 1));
    machine.run();
    assert!(task.was_woken());
    assert_eq!(task.poll(receiving), Poll::Ready(Ok(60)));
    assert!(matches!(
        task.poll(pin!(card.want_multicast(Mac([1, 0, 0x5e, 0, 0, 7]), true))),
        Poll::Ready(Ok(()))
    ));
    machine.run();
    assert_eq!(back.wanted(), [[1, 0, 0x5e, 0, 0, 7]]);
}

#[test]
fn within_a_call_with_the_device_all_others_are_refused_or_put_off() {
    let machine = Machine::new();
    let _back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let card = set_up(&machine, &mut xs, Config::default());
    let [task] = tasks();
    let inside = card.with(|_| {
        assert!(card.with(|_| ()).is_none() && card.take().is_none() && !card.is_present());
        assert!(task.poll(pin!(card.receive(&mut [0; 60]))).is_pending());
        assert!(task.was_woken());
    });
    assert!(inside.is_some() && card.is_present());
}
