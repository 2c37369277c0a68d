//! The device as embassy's stack sees it.
#![cfg(all(feature = "mock", feature = "embassy-net-driver-v0-2"))]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};

use common::{GUEST, HOST, Machine, bytes, frame, tcp};
use embassy_net_driver::{Checksum, Driver, HardwareAddress, LinkState, RxToken, TxToken};
use xen_hypercall::mock::MockDomain;
use xen_netfront::adapters::embassy::EmbassyDriver;
use xen_netfront::mock::{Fault, Frame, Options};
use xen_netfront::{Card, Config, Error, FRAME_MAX, Features, State};
use xen_xenstore::Xenstore;

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

type Embassy<'c, 'x> = EmbassyDriver<'c, 'x, MockDomain, Vec<u8>>;

fn receive(driver: &mut Embassy<'_, '_>, cx: &mut Context<'_>) -> Option<Vec<u8>> {
    Some(driver.receive(cx)?.0.consume(|frame| frame.to_vec()))
}

#[test]
fn a_task_is_woken_by_frames_and_by_room() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let config = Config { tx_pages: 20, ..Config::default() };
    let card = Card::from(machine.connect_with::<1>(&mut xs, config).unwrap());
    let mut driver = EmbassyDriver::new(&card, vec![0; 1514], vec![0; 1514]);
    assert!(driver.hardware_address() == HardwareAddress::Ethernet(GUEST));
    assert_eq!(driver.capabilities().max_transmission_unit, 1514);
    assert!(matches!(driver.capabilities().checksum.tcp, Checksum::None));
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    let mut cx = Context::from_waker(&waker);
    machine.run();
    assert!(driver.link_state(&mut cx) == LinkState::Up);
    for round in 0..300 {
        // As an executor does: a task that was woken is polled again.
        let before = loop {
            let before = woken.0.load(SeqCst);
            while receive(&mut driver, &mut cx).is_some() {}
            if woken.0.load(SeqCst) == before {
                break before;
            }
        };
        machine.switch.send(frame(GUEST, HOST, 80, round as u8));
        machine.run();
        assert!(woken.0.load(SeqCst) > before, "{round}");
        assert_eq!(receive(&mut driver, &mut cx), Some(frame(GUEST, HOST, 80, round as u8)));
        let sent = frame(HOST, GUEST, 90, round as u8);
        driver.transmit(&mut cx).unwrap().consume(90, |room| room.copy_from_slice(&sent));
        // The end of the stack's turn.
        assert!(driver.link_state(&mut cx) == LinkState::Up);
        machine.run();
        assert_eq!(machine.switch.receive().unwrap().bytes, sent);
    }

    // All pages under way: the task is woken when some come back.
    back.stall(true);
    let mut count = 0;
    while let Some(token) = driver.transmit(&mut cx) {
        token.consume(60, |room| room.copy_from_slice(&frame(HOST, GUEST, 60, 0)));
        count += 1;
    }
    // Less than three pages may not do for a segment that others can be put to.
    assert_eq!(count, 18);
    assert!(driver.transmit(&mut cx).is_none());
    let before = woken.0.load(SeqCst);
    machine.switch.send(frame(GUEST, HOST, 60, 0));
    back.stall(false);
    machine.run();
    assert!(woken.0.load(SeqCst) > before);
    assert!(driver.transmit(&mut cx).is_some());
    assert_eq!(receive(&mut driver, &mut cx), Some(frame(GUEST, HOST, 60, 0)));

    back.set_back("carrier", "0");
    machine.run();
    service(&card, &mut xs).unwrap();
    assert!(driver.link_state(&mut cx) == LinkState::Down);
    back.close();
    machine.run();
    service(&card, &mut xs).unwrap();
    assert!(driver.transmit(&mut cx).is_none() && driver.receive(&mut cx).is_none());
    card.take().unwrap().close(&mut xs, machine.soon()).unwrap();
    assert_eq!(back.complaints(), [""; 0]);
}

#[test]
fn checksums_are_made_by_the_backend_and_verified_here() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let config = Config { receive: Features::all(), ..Config::default() };
    let card = Card::from(machine.connect_with::<1>(&mut xs, config).unwrap());
    let mut driver = EmbassyDriver::new(&card, vec![0; FRAME_MAX], vec![0; 1514]);
    let mut cx = Context::from_waker(Waker::noop());
    let good = tcp(false, true, 1, &bytes(999));
    let mut blank = good.clone();
    blank[50..52].fill(0);
    driver.transmit(&mut cx).unwrap().consume(blank.len(), |room| room.copy_from_slice(&blank));
    assert!(driver.link_state(&mut cx) == LinkState::Up);
    machine.run();
    assert_eq!(machine.switch.receive().unwrap().to_wire().unwrap(), [good]);
    assert_eq!(back.stats().blank_from_guest, 1);

    let good = tcp(false, false, 1, &bytes(999));
    let mut wrong = Frame::new(good.clone());
    wrong.bytes[100] ^= 1;
    machine.switch.send(wrong);
    machine.switch.send(good.clone());
    machine.run();
    assert_eq!(receive(&mut driver, &mut cx), Some(good));
    assert_eq!((receive(&mut driver, &mut cx), driver.wrong_checksums()), (None, 1));
    assert_eq!(back.complaints(), [""; 0]);
}

fn service<'x>(card: &Card<'x, MockDomain>, xs: &mut Xenstore<'x, MockDomain>) -> Result<State, Error> {
    card.with(|front| front.service(xs)).unwrap()
}

/// What a stack does when its task is polled; whether it says that the link is up.
fn turn(driver: &mut Embassy<'_, '_>, cx: &mut Context<'_>) -> bool {
    while receive(driver, cx).is_some() {}
    let _ = driver.transmit(cx).is_some();
    driver.link_state(cx) == LinkState::Up
}

#[test]
fn a_stack_is_woken_when_the_link_changes_and_its_card_is_controlled_beside_it() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let card = Card::from(machine.connect(&mut xs).unwrap());
    let mut driver = EmbassyDriver::new(&card, vec![0; 1514], vec![0; 1514]);
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    let mut cx = Context::from_waker(&waker);
    machine.run();
    let expect = |driver: &mut Embassy<'_, '_>, up: bool, change: &mut dyn FnMut()| {
        let mut cx = Context::from_waker(&waker);
        let before = loop {
            let before = woken.0.load(SeqCst);
            assert_eq!(turn(driver, &mut cx), up);
            if woken.0.load(SeqCst) == before {
                break before;
            }
        };
        change();
        assert!(woken.0.load(SeqCst) > before, "nobody told the stack");
        assert_eq!(driver.link_state(&mut cx) == LinkState::Up, !up);
    };
    for _ in 0..3 {
        for carrier in ["0", "1"] {
            expect(&mut driver, carrier == "0", &mut || {
                back.set_back("carrier", carrier);
                machine.run();
                service(&card, &mut xs).unwrap();
            });
        }
        expect(&mut driver, true, &mut || {
            back.vanish();
            machine.run();
            assert_eq!(service(&card, &mut xs), Ok(State::Closed));
        });
        expect(&mut driver, false, &mut || {
            back.come_back();
            card.with(|front| front.reconnect(&mut xs, machine.soon())).unwrap().unwrap();
        });
    }
    // A card that begins anew without having been down has other event channels, so the stack looks again.
    while turn(&mut driver, &mut cx) && woken.0.swap(0, SeqCst) > 0 {}
    card.with(|front| front.reconnect(&mut xs, machine.soon())).unwrap().unwrap();
    assert!(woken.0.load(SeqCst) > 0);
    while turn(&mut driver, &mut cx) && woken.0.swap(0, SeqCst) > 0 {}
    machine.switch.send(frame(GUEST, HOST, 80, 1));
    machine.run();
    assert!(woken.0.load(SeqCst) > 0);
    assert_eq!(receive(&mut driver, &mut cx), Some(frame(GUEST, HOST, 80, 1)));
    // A backend that breaks the protocol takes the link along.
    expect(&mut driver, true, &mut || {
        back.fault_rx(Fault::Id(7));
        machine.switch.send(frame(GUEST, HOST, 80, 1));
        machine.run();
        assert!(card.with(|front| front.receive(&mut [0; 100])).unwrap().is_err());
    });
    // Whoever has the card keeps the stack waiting, and no longer.
    let before = woken.0.load(SeqCst);
    card.with(|_| assert!(driver.transmit(&mut cx).is_none() && driver.receive(&mut cx).is_none()));
    assert!(woken.0.load(SeqCst) > before);
}

#[test]
fn a_task_that_waits_for_frames_is_woken_when_the_card_is_closed() {
    let machine = Machine::new();
    let back = machine.vif(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut front = machine.connect(&mut xs).unwrap();
    machine.run();
    let tasks: [Arc<Woken>; 3] = std::array::from_fn(|_| Arc::default());
    for task in &tasks {
        let waker = Waker::from(task.clone());
        let mut cx = Context::from_waker(&waker);
        while front.poll_receivable(&mut cx) == Poll::Ready(()) {
            while front.receive(&mut [0; 100]).unwrap().is_some() {}
        }
    }
    let before = tasks.each_ref().map(|task| task.0.load(SeqCst));
    back.close();
    machine.run();
    assert_eq!(front.service(&mut xs), Ok(State::Closed));
    for (task, before) in tasks.iter().zip(before) {
        assert!(task.0.load(SeqCst) > before);
    }
}
