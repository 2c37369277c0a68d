//! A daemon that does not keep to the protocol.
#![cfg(feature = "mock")]

mod common;

use core::fmt::Write;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use common::{Machine, pattern};
use xen_console::{Console, Error};
use xen_hypercall::VcpuId;
use xen_hypercall::mock::MockDomain;

const IN_CONSUMER: usize = 3072;
const IN_PRODUCER: usize = 3076;
const OUT_CONSUMER: usize = 3080;
const OUT_PRODUCER: usize = 3084;

/// It says so, whatever is asked of that stream, at once and every time.
fn assert_broken(console: &mut Console<'_, MockDomain>) {
    for _ in 0..2 {
        assert!(matches!(console.write(b"x"), Err(Error::Broken(_))));
        assert!(matches!(console.read(&mut [0; 8]), Err(Error::Broken(_))));
        assert!(matches!(console.write_all(b"x", Duration::MAX), Err(Error::Broken(_))));
        assert!(matches!(console.drain(Duration::MAX), Err(Error::Broken(_))));
        assert!(matches!(console.wait_readable(Duration::MAX), Err(Error::Broken(_))));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(matches!(console.poll_readable(&mut cx), Poll::Ready(Err(Error::Broken(_)))));
        assert!(console.write_str("x").is_err());
        console.emergency(b"x");
    }
}

#[test]
fn an_index_that_jumps_breaks_the_console_and_nothing_else() {
    for (offset, limit) in [(IN_PRODUCER, 1024), (OUT_CONSUMER, 2048)] {
        for by in [limit + 1, 1 << 31, u32::MAX - 4096] {
            let machine = Machine::new();
            let mut console = machine.console();
            let by = if offset == IN_PRODUCER { by } else { by.wrapping_neg() };
            machine.daemon.poke(offset, by);
            let error = if offset == IN_PRODUCER { console.readable() } else { console.writable() };
            let Err(Error::Broken(violation)) = error else { panic!("{offset} {by:#x}: {error:?}") };
            assert!(Error::Broken(violation).to_string().contains("broken"), "{violation}");
            machine.daemon.poke(offset, 0);
            assert_broken(&mut console);
            assert_eq!(machine.xen.now(), Duration::ZERO);
        }
    }
}

#[test]
fn an_index_that_goes_back_within_the_ring_is_stale_bytes_and_no_more() {
    let machine = Machine::new();
    let mut console = machine.console();
    // All that there may be is there: what it says is the daemon's own affair.
    machine.daemon.poke(IN_PRODUCER, 1024);
    assert_eq!(console.read(&mut [0; 4096]), Ok(1024));
    assert_eq!(console.read(&mut [0; 4096]), Ok(0));
    machine.daemon.poke(IN_PRODUCER, 1023);
    assert!(matches!(console.readable(), Err(Error::Broken(_))));
}

#[test]
fn our_own_indices_are_not_read_back() {
    for value in [0, 7, 1 << 31, u32::MAX] {
        let machine = Machine::new();
        let mut console = machine.console();
        console.write_all(&pattern(5000), Duration::ZERO).unwrap();
        machine.settle();
        machine.daemon.poke(OUT_PRODUCER, value);
        machine.daemon.poke(IN_CONSUMER, value);
        let before = console.writable();
        assert_eq!(console.write(b"x"), Ok(1));
        assert_eq!(console.writable(), before.map(|before| before - 1));
        assert_eq!(console.readable(), Ok(0));
    }
}

#[test]
fn what_the_daemon_says_of_itself_changes_nothing_but_the_answer() {
    let machine = Machine::new();
    let mut console = machine.console();
    // A daemon that says that it is not there and is.
    machine.daemon.say_connected(false);
    assert_eq!(console.write_all(b"x", Duration::from_secs(1)), Ok(1));
    machine.settle();
    assert_eq!(machine.daemon.output(), b"x");
    // One that says any number: it is not the one that means that it is away.
    machine.daemon.poke(3088, u32::MAX);
    assert!(console.is_connected());
    machine.daemon.poke(3088, 0xffff_ff01);
    assert!(!console.is_connected());
}

#[test]
fn a_daemon_that_sends_events_without_reason_is_throttled() {
    let machine = Machine::new();
    let mut console = machine.console();
    for _ in 0..10_000 {
        machine.xen.advance(Duration::from_millis(1));
        assert!(xen_evtchn::mock::inject(&machine.guest, console.channel().port()));
        machine.events.unmask_due();
        machine.events.dispatch(VcpuId(0));
        assert_eq!(console.read(&mut [0; 8]), Ok(0));
    }
    let events = console.channel().stats().events;
    assert!((10..25).contains(&events), "{events} of 10,000");
    // What is typed is found all the same, a second later at most.
    let before = machine.xen.now();
    machine.daemon.type_in(b"x");
    assert_eq!(console.wait_readable(before + Duration::from_secs(5)), Ok(true));
    assert!(machine.xen.now() - before <= Duration::from_secs(1));
    assert_eq!(console.read(&mut [0; 8]), Ok(1));
    assert!(!console.channel().is_masked());
}

#[test]
fn a_daemon_that_does_its_work_is_not_throttled() {
    let machine = Machine::new();
    let mut console = machine.console();
    let deadline = machine.xen.now() + Duration::from_secs(60);
    for round in 0..500 {
        // More than the ring holds, now and then something typed, and a reader that is not always there.
        assert_eq!(console.write_all(&[b'a'; 3000], Duration::from_secs(1)), Ok(3000));
        if round % 3 == 0 {
            machine.daemon.type_in(b"command");
        }
        let seen = machine.events.seq();
        machine.events.wait_since(seen, Some(deadline));
        if round % 5 == 0 {
            console.read(&mut [0; 4]).unwrap();
        }
    }
    let stats = console.channel().stats();
    assert!(stats.events > 500);
    assert_eq!(stats.throttled, 0, "{stats:?}");
}
