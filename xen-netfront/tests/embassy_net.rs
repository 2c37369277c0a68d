//! embassy-net itself: two stacks talk by two cards, one of which comes and goes, or begins anew, under them.
#![cfg(all(feature = "mock", feature = "embassy-net-driver-v0-2"))]

mod common;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use common::{Machine, bytes};
use embassy_net::tcp::TcpSocket;
use embassy_net::udp::{PacketMetadata, UdpSocket};
use embassy_net::{
    ConfigV4, IpAddress, IpEndpoint, Ipv4Address, Ipv4Cidr, Stack, StackResources, StaticConfigV4,
};
use embassy_time::{Duration as Span, Timer};
use xen_hypercall::mock::MockDomain;
use xen_netfront::adapters::embassy::EmbassyDriver;
use xen_netfront::mock::{MockNetback, Options};
use xen_netfront::{Card, Config, Mac, NetFront};
use xen_xenstore::Xenstore;

/// The time of the machine of this thread, and who is to be woken when.
struct Clock;

thread_local! {
    static NOW: Cell<u64> = const { Cell::new(0) };
    static ALARMS: RefCell<Vec<(u64, Waker)>> = const { RefCell::new(Vec::new()) };
}

impl embassy_time_driver::Driver for Clock {
    fn now(&self) -> u64 {
        NOW.get()
    }

    fn schedule_wake(&self, at: u64, waker: &Waker) {
        ALARMS.with_borrow_mut(|alarms| match alarms.iter_mut().find(|(_, known)| known.will_wake(waker)) {
            Some((due, _)) => *due = at.min(*due),
            None => alarms.push((at, waker.clone())),
        });
    }
}

embassy_time_driver::time_driver_impl!(static CLOCK: Clock = Clock);

fn ticks(time: Duration) -> u64 {
    (time.as_nanos() * u128::from(embassy_time_driver::TICK_HZ) / 1_000_000_000) as u64
}

#[derive(Default)]
struct Task(AtomicBool);

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

/// Polls tasks that were woken, until the first is done. When none is woken the far sides act, and then time passes.
fn run(machine: &Machine, tasks: &mut [Pin<&mut dyn Future<Output = ()>>]) {
    let wakers: Vec<Arc<Task>> = tasks.iter().map(|_| Arc::new(Task(AtomicBool::new(true)))).collect();
    for _ in 0..200_000 {
        NOW.set(ticks(machine.xen.now()));
        let mut any = false;
        for (index, (task, waker)) in tasks.iter_mut().zip(&wakers).enumerate() {
            if !waker.0.swap(false, SeqCst) {
                continue;
            }
            any = true;
            let done = task.as_mut().poll(&mut Context::from_waker(&Waker::from(waker.clone())));
            if done.is_ready() && index == 0 {
                return;
            }
        }
        machine.run();
        if any || wakers.iter().any(|waker| waker.0.load(SeqCst)) {
            continue;
        }
        let next = ALARMS.with_borrow(|alarms| alarms.iter().map(|(at, _)| *at).min());
        let next = next.expect("a task waits for ever");
        if next > NOW.get() {
            let left = u128::from(next - NOW.get()) * 1_000_000_000;
            let wait = left.div_ceil(u128::from(embassy_time_driver::TICK_HZ));
            machine.xen.advance(Duration::from_nanos(wait as u64));
            NOW.set(ticks(machine.xen.now()));
        }
        let due = ALARMS.with_borrow_mut(|alarms| {
            let now = NOW.get();
            let (due, rest) = alarms.drain(..).partition(|(at, _)| *at <= now);
            *alarms = rest;
            due
        });
        let due: Vec<(u64, Waker)> = due;
        due.into_iter().for_each(|(_, waker)| waker.wake());
    }
    panic!("the tasks are busy for ever");
}

const MACS: [[u8; 6]; 2] = [[0x00, 0x16, 0x3e, 0, 0, 1], [0x00, 0x16, 0x3e, 0, 0, 2]];

fn address(index: usize) -> Ipv4Address {
    Ipv4Address::new(10, 0, 0, index as u8 + 1)
}

/// Two cards of a guest on a switch.
fn vifs(machine: &Machine) -> [MockNetback; 2] {
    [0, 1].map(|index| {
        let options = Options { mac: Mac(MACS[index as usize]), ..Options::default() };
        MockNetback::new(&machine.switch, &machine.store, &machine.guest, index, options)
    })
}

fn connect<'x>(
    machine: &'x Machine,
    xs: &mut Xenstore<'x, MockDomain>,
    index: u32,
) -> NetFront<'x, MockDomain> {
    let config = Config { rx_pages: 64, tx_pages: 64, ..Config::default() };
    NetFront::connect_with(xs, &machine.events, &machine.grants, index, machine.soon(), config).unwrap()
}

fn config(index: usize) -> embassy_net::Config {
    let config = StaticConfigV4 {
        address: Ipv4Cidr::new(address(index), 24),
        gateway: None,
        dns_servers: Default::default(),
    };
    let mut all = embassy_net::Config::default();
    all.ipv4 = ConfigV4::Static(config);
    all
}

/// Does `work` with a stack on each card, while `other` is another task.
fn with_stacks<'x>(
    machine: &'x Machine,
    cards: &[Card<'x, MockDomain>; 2],
    work: impl AsyncFn(Stack<'_>, Stack<'_>),
    other: impl Future<Output = ()>,
) {
    let mut resources: [StackResources<4>; 2] = [const { StackResources::new() }; 2];
    let [first, second] = &mut resources;
    let driver = |index: usize| EmbassyDriver::new(&cards[index], vec![0; 1514], vec![0; 1514]);
    let (first, mut first_runner) = embassy_net::new(driver(0), config(0), first, 1);
    let (second, mut second_runner) = embassy_net::new(driver(1), config(1), second, 2);
    let run_first = pin!(async { first_runner.run().await });
    let run_second = pin!(async { second_runner.run().await });
    let work = pin!(work(first, second));
    let other = pin!(other);
    run(machine, &mut [work, run_first, run_second, other]);
}

#[test]
fn two_stacks_exchange_tcp_and_udp_while_a_card_is_detached_and_attached_again() {
    let machine = Machine::new();
    let backs = vifs(&machine);
    let mut xs = Xenstore::new(&machine.events).unwrap();
    // The first stack begins without a card.
    let cards = [Card::new(), Card::from(connect(&machine, &mut xs, 1))];
    let data = bytes(400_000);
    let (attached, progress) = (Cell::new(0), Cell::new(0));
    let work = async |first: Stack<'_>, second: Stack<'_>| {
        assert!(!first.is_link_up());
        first.wait_link_up().await;
        second.wait_link_up().await;
        let (mut rx, mut tx) = ([[0; 8000]; 2], [[0; 8000]; 2]);
        let ([rx_0, rx_1], [tx_0, tx_1]) = (&mut rx, &mut tx);
        let mut client = TcpSocket::new(first, rx_0, tx_0);
        let mut server = TcpSocket::new(second, rx_1, tx_1);
        let there = IpEndpoint::new(IpAddress::Ipv4(address(1)), 80);
        let send = async {
            client.connect(there).await.unwrap();
            let mut rest = &data[..];
            while !rest.is_empty() {
                let count = client.write(&rest[..rest.len().min(2000)]).await.unwrap();
                rest = &rest[count..];
                // So that it takes a while.
                Timer::after(Span::from_millis(1)).await;
            }
            client.flush().await.unwrap();
            client.close();
        };
        let receive = async {
            server.accept(80).await.unwrap();
            let mut received = Vec::new();
            let mut buf = [0; 4000];
            loop {
                match server.read(&mut buf).await.unwrap() {
                    0 => break,
                    count => received.extend_from_slice(&buf[..count]),
                }
                progress.set(received.len());
            }
            server.close();
            received
        };
        let ((), received) = both(send, receive).await;
        assert_eq!(received, data);
        udp(first, second).await;
        assert!(attached.get() >= 4);
    };
    let control = async {
        Timer::after(Span::from_millis(50)).await;
        for round in 0.. {
            assert!(cards[0].put(connect(&machine, &mut xs, 0)).is_none());
            attached.set(attached.get() + 1);
            // Under traffic, as often as there is some.
            let until = progress.get() + data.len() / 8;
            while progress.get() < until {
                Timer::after(Span::from_millis(1)).await;
            }
            match round % 2 {
                0 => {
                    backs[0].detach();
                    Timer::after(Span::from_millis(5)).await;
                    let front = cards[0].take().unwrap();
                    let _ = front.close(&mut xs, machine.soon());
                    Timer::after(Span::from_millis(20)).await;
                    backs[0].come_back();
                }
                _ => {
                    // It begins anew without being missed.
                    let again = cards[0].with(|front| front.reconnect(&mut xs, machine.soon()));
                    again.unwrap().unwrap();
                    attached.set(attached.get() + 1);
                    Timer::after(Span::from_millis(20)).await;
                    cards[0].take().unwrap().close(&mut xs, machine.soon()).unwrap();
                }
            }
        }
    };
    with_stacks(&machine, &cards, work, control);
    assert!(backs.iter().all(|back| back.complaints().is_empty()));
}

/// Datagrams each way, each of which is answered.
async fn udp(first: Stack<'_>, second: Stack<'_>) {
    let mut meta = [[PacketMetadata::EMPTY; 16]; 4];
    let mut buffers = [[0; 4000]; 4];
    let ([m0, m1, m2, m3], [b0, b1, b2, b3]) = (&mut meta, &mut buffers);
    let mut client = UdpSocket::new(first, m0, b0, m1, b1);
    let mut server = UdpSocket::new(second, m2, b2, m3, b3);
    client.bind(1000).unwrap();
    server.bind(53).unwrap();
    let there = IpEndpoint::new(IpAddress::Ipv4(address(1)), 53);
    let serve = async {
        let mut buf = [0; 500];
        for _ in 0..20 {
            let (count, from) = server.recv_from(&mut buf).await.unwrap();
            server.send_to(&buf[..count], from.endpoint).await.unwrap();
        }
    };
    let ask = async {
        let mut buf = [0; 500];
        for number in 0..20_u8 {
            let question = [number; 300];
            client.send_to(&question[..300 - usize::from(number)], there).await.unwrap();
            let (count, _) = client.recv_from(&mut buf).await.unwrap();
            assert_eq!(buf[..count], question[..300 - usize::from(number)]);
        }
    };
    both(serve, ask).await;
}

/// Waits for two futures at once.
async fn both<A: Future, B: Future>(first: A, second: B) -> (A::Output, B::Output) {
    let (mut first, mut second) = (pin!(first), pin!(second));
    let (mut a, mut b) = (None, None);
    std::future::poll_fn(|cx| {
        if a.is_none() {
            a = ready(first.as_mut().poll(cx));
        }
        if b.is_none() {
            b = ready(second.as_mut().poll(cx));
        }
        if a.is_some() && b.is_some() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    (a.unwrap(), b.unwrap())
}

fn ready<T>(poll: Poll<T>) -> Option<T> {
    if let Poll::Ready(value) = poll { Some(value) } else { None }
}

#[test]
fn what_a_stack_sends_in_a_turn_goes_out_with_one_event() {
    let machine = Machine::new();
    let _backs = vifs(&machine);
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let cards = [0, 1].map(|index| Card::from(connect(&machine, &mut xs, index)));
    let work = async |first: Stack<'_>, second: Stack<'_>| {
        first.wait_link_up().await;
        second.wait_link_up().await;
        // They know each other's addresses afterwards.
        udp(first, second).await;
        let mut meta = [[PacketMetadata::EMPTY; 64]; 4];
        let mut buffers = [[0; 4000]; 4];
        let ([m0, m1, m2, m3], [b0, b1, b2, b3]) = (&mut meta, &mut buffers);
        let mut client = UdpSocket::new(first, m0, b0, m1, b1);
        let mut server = UdpSocket::new(second, m2, b2, m3, b3);
        client.bind(1000).unwrap();
        server.bind(53).unwrap();
        let there = IpEndpoint::new(IpAddress::Ipv4(address(1)), 53);
        let before = cards[0].stats();
        for number in 0..40 {
            // There is room for all, so that the stack is not polled meanwhile.
            client.send_to(&[number; 50], there).await.unwrap();
        }
        let mut buf = [0; 50];
        for number in 0..40 {
            assert_eq!(server.recv_from(&mut buf).await.unwrap().0, 50);
            assert_eq!(buf, [number; 50]);
        }
        let after = cards[0].stats();
        assert_eq!(after.tx_frames - before.tx_frames, 40);
        assert_eq!(after.notifications - before.notifications, 1, "one event for all");
    };
    with_stacks(&machine, &cards, work, std::future::pending());
}

#[test]
fn segments_of_a_stream_go_out_as_large_packets() {
    let machine = Machine::new();
    let backs = vifs(&machine);
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let cards = [0, 1].map(|index| Card::from(connect(&machine, &mut xs, index)));
    let data = bytes(200_000);
    let work = async |first: Stack<'_>, second: Stack<'_>| {
        first.wait_link_up().await;
        second.wait_link_up().await;
        let (mut rx, mut tx) = ([[0; 32_000]; 2], [[0; 32_000]; 2]);
        let ([rx_0, rx_1], [tx_0, tx_1]) = (&mut rx, &mut tx);
        let mut client = TcpSocket::new(first, rx_0, tx_0);
        let mut server = TcpSocket::new(second, rx_1, tx_1);
        let there = IpEndpoint::new(IpAddress::Ipv4(address(1)), 80);
        let send = async {
            client.connect(there).await.unwrap();
            let mut rest = &data[..];
            while !rest.is_empty() {
                let count = client.write(rest).await.unwrap();
                rest = &rest[count..];
            }
            client.flush().await.unwrap();
        };
        let receive = async {
            server.accept(80).await.unwrap();
            let (mut received, mut buf) = (Vec::new(), [0; 4000]);
            while received.len() < data.len() {
                let count = server.read(&mut buf).await.unwrap();
                received.extend_from_slice(&buf[..count]);
            }
            received
        };
        let ((), received) = both(send, receive).await;
        assert_eq!(received, data);
    };
    with_stacks(&machine, &cards, work, std::future::pending());
    // A segment is of 1460 bytes at most.
    let frames = cards[0].stats().tx_frames;
    assert!(frames < 200_000 / 1460 / 2, "{frames} frames");
    assert!(backs[0].stats().gso_from_guest > 0);
}
