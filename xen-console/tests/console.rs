//! The console as a guest uses it.
#![cfg(feature = "mock")]

mod common;

use core::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use common::{Machine, pattern};
use xen_console::{Console, Error, XenConsole};
use xen_hypercall::hvm::HvmParam;
use xen_hypercall::mock::MockXen;
use xen_hypercall::{DomId, Gfn, VcpuId};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn what_is_written_arrives_and_what_is_typed_is_read() {
    let machine = Machine::new();
    let mut console = machine.console();
    assert_eq!(console.write(b"hello"), Ok(5));
    machine.settle();
    assert_eq!(machine.daemon.output(), b"hello");
    machine.daemon.type_in(b"world");
    machine.settle();
    let mut buf = [0; 3];
    assert_eq!((console.readable(), console.read(&mut buf), &buf), (Ok(5), Ok(3), b"wor"));
    assert_eq!((console.read(&mut buf), &buf[..2]), (Ok(2), &b"ld"[..]));
    assert_eq!(console.read(&mut buf), Ok(0));
    assert_eq!(console.read(&mut []), Ok(0));
    assert_eq!(console.write(b""), Ok(0));
    let stats = console.stats();
    assert_eq!((stats.written, stats.read, stats.dropped), (5, 5, 0));
}

#[test]
fn a_full_console_takes_no_more_at_once() {
    let machine = Machine::new();
    let mut console = machine.console();
    machine.daemon.stall(true);
    assert_eq!(console.writable(), Ok(2048));
    assert_eq!(console.write(&pattern(3000)), Ok(2048));
    assert_eq!((console.write(b"more"), console.writable()), (Ok(0), Ok(0)));
    machine.daemon.stall(false);
    machine.settle();
    assert_eq!(machine.daemon.output(), pattern(2048));
    assert_eq!(console.write(b"more"), Ok(4));
    // The other way a ring holds 1024.
    machine.daemon.type_in(&pattern(2000));
    machine.settle();
    assert_eq!((console.readable(), machine.daemon.untyped()), (Ok(1024), 976));
    let mut buf = [0; 2000];
    assert_eq!(console.read(&mut buf), Ok(1024));
    machine.settle();
    assert_eq!(console.read(&mut buf[1024..]), Ok(976));
    assert!(buf[..] == pattern(2000));
}

#[test]
fn write_all_waits_for_room() {
    let machine = Machine::new();
    let mut console = machine.console();
    let long = pattern(100_000);
    assert_eq!(console.write_all(&long, SECOND), Ok(100_000));
    assert_eq!(console.drain(SECOND), Ok(true));
    assert!(machine.daemon.output() == long);
    assert_eq!(machine.xen.now(), Duration::ZERO);
}

#[test]
fn a_daemon_that_hangs_costs_so_much_time_and_no_more() {
    let machine = Machine::new();
    let mut console = machine.console();
    machine.daemon.stall(true);
    assert_eq!(console.write_all(&pattern(5000), SECOND), Ok(2048));
    assert_eq!(machine.xen.now(), SECOND);
    // The rest is the caller's still.
    assert_eq!(console.stats().dropped, 0);
    assert_eq!(console.write_all(b"x", Duration::ZERO), Ok(0));
    assert_eq!(console.drain(SECOND), Ok(false));
    assert_eq!(console.drain(Duration::ZERO), Ok(false));
    assert_eq!(console.wait_readable(3 * SECOND), Ok(false));
    assert_eq!(console.wait_writable(4 * SECOND), Ok(false));
    assert_eq!(machine.xen.now(), 4 * SECOND);
    // A last word does not wait for it either: it asks a number of times.
    console.emergency(b"last words");
    assert_eq!((console.stats().dropped, console.stats().dropped_lines), (10, 1));
    assert_eq!(machine.xen.now(), 4 * SECOND);
    machine.daemon.stall(false);
    assert_eq!(console.drain(SECOND), Ok(true));
    assert_eq!(machine.daemon.output(), [&pattern(2048)[..], b"\r\n[1 line lost, 10 bytes]\r\n"].concat());
}

#[test]
fn a_daemon_that_is_not_there_yet_is_waited_for_by_who_may() {
    let machine = Machine::new();
    let mut console = machine.console();
    assert!(console.is_connected());
    machine.daemon.say_connected(false);
    assert!(!console.is_connected());
    assert_eq!(console.wait_connected(SECOND), Ok(false));
    assert_eq!(machine.xen.now(), SECOND);
    // It comes while the guest sleeps, and says so by an event: the sleep ends with that, and not with its deadline.
    let (daemon, mut steps) = (machine.daemon.clone(), 0);
    machine.xen.add_actor("a daemon that comes", move |_| {
        steps += 1;
        if steps == 3 {
            daemon.say_connected(true);
        }
        steps <= 3
    });
    assert_eq!(console.wait_connected(9 * SECOND), Ok(true));
    assert_eq!(machine.xen.now(), SECOND);
    // Only one byte is the flag, and only one of its values means that nobody is there.
    machine.daemon.poke(3088, 0x1234_5601);
    assert!(!console.is_connected());
    for other in [0x0101_0100, 2, 0xff] {
        machine.daemon.poke(3088, other);
        assert!(console.is_connected());
    }
}

#[test]
fn a_guest_that_was_paused_gives_the_daemon_the_time_that_was_left() {
    let machine = Machine::new();
    let mut console = machine.console();
    machine.daemon.stall(true);
    // Guest and daemon are paused for twenty minutes; then the daemon goes on.
    let (daemon, pause, mut steps) = (machine.daemon.clone(), Duration::from_secs(1200), 0);
    machine.xen.add_actor("a pause", move |xen| {
        steps += 1;
        match steps {
            1 => xen.advance(pause),
            5 => daemon.stall(false),
            _ => {}
        }
        steps > 1 && steps <= 5
    });
    assert_eq!(console.write_all(&pattern(5000), 2 * SECOND), Ok(5000));
    assert!(machine.xen.now() >= pause);
}

#[test]
fn last_words_get_out_without_events() {
    let machine = Machine::new();
    let mut console = machine.console();
    let long = pattern(10_000);
    console.emergency(&long);
    assert!(machine.daemon.output() == long);
    assert_eq!(console.stats().dropped, 0);
    assert_eq!(machine.xen.now(), Duration::ZERO);
}

#[test]
fn text_gets_the_line_ends_of_a_terminal() {
    let machine = Machine::new();
    let mut console = machine.console();
    write!(console, "one\ntwo {}\n\nthree", 2).unwrap();
    machine.settle();
    assert_eq!(machine.daemon.take_output(), b"one\r\ntwo 2\r\n\r\nthree");
    assert_eq!(machine.daemon.take_output(), b"");
}

#[test]
fn a_kernel_started_after_another_goes_on_where_it_was() {
    let machine = Machine::new();
    let mut first = machine.console();
    first.write_all(&pattern(3000), SECOND).unwrap();
    machine.daemon.type_in(b"abc");
    machine.settle();
    first.read(&mut [0; 1]).unwrap();
    drop(first);
    let mut second = machine.console();
    second.write_all(b"second", SECOND).unwrap();
    assert_eq!(second.drain(SECOND), Ok(true));
    assert_eq!(machine.daemon.output(), [&pattern(3000)[..], b"second"].concat());
    let mut buf = [0; 8];
    assert_eq!((second.read(&mut buf), &buf[..2]), (Ok(2), &b"bc"[..]));
}

#[test]
fn indices_wrap_around() {
    for start in [u32::MAX, u32::MAX - 1000, 1 << 31, 12345] {
        let machine = Machine::new();
        // Daemon and guest both join where the indices are.
        for offset in [3072, 3076, 3080, 3084] {
            machine.daemon.poke(offset, start);
        }
        let mut console = machine.console();
        // The mock's own place is behind now, as with a daemon that was started before: reading is what it cannot do.
        assert_eq!(console.writable(), Ok(2048));
        assert_eq!(console.write(&pattern(2048)), Ok(2048));
        assert_eq!(console.writable(), Ok(0));
        machine.daemon.poke(3080, start.wrapping_add(2048));
        assert_eq!(console.write(&pattern(100)), Ok(100));
        machine.daemon.poke(3076, start.wrapping_add(1024));
        assert_eq!(console.readable(), Ok(1024));
        assert_eq!(console.read(&mut [0; 1000]), Ok(1000));
        assert_eq!(console.readable(), Ok(24));
    }
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[test]
fn a_task_is_woken_when_something_is_typed() {
    let machine = Machine::new();
    let mut console = machine.console();
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut cx = Context::from_waker(&waker);
    assert_eq!(console.poll_readable(&mut cx), Poll::Pending);
    machine.daemon.type_in(b"x");
    machine.settle();
    machine.events.dispatch(VcpuId(0));
    assert_eq!(woken.0.load(SeqCst), 1);
    assert_eq!(console.poll_readable(&mut cx), Poll::Ready(Ok(())));
    // As long as there is something.
    assert_eq!(console.poll_readable(&mut cx), Poll::Ready(Ok(())));
    console.read(&mut [0; 8]).unwrap();
    assert_eq!(console.poll_readable(&mut cx), Poll::Pending);
    // An event for nothing wakes it, and it waits on.
    xen_evtchn::mock::inject(&machine.guest, console.channel().port());
    machine.events.dispatch(VcpuId(0));
    assert_eq!(woken.0.load(SeqCst), 2);
    assert_eq!(console.poll_readable(&mut cx), Poll::Pending);
    assert_eq!(console.wait_readable(SECOND), Ok(false));
    machine.daemon.type_in(b"y");
    assert_eq!(console.wait_readable(2 * SECOND), Ok(true));
}

#[test]
fn a_machine_without_a_console_says_so() {
    let xen = MockXen::new();
    xen_evtchn::mock::install(&xen);
    let (guest, events) = xen_console::mock::guest(&xen, DomId(1));
    assert_eq!(Console::new(&events).err(), Some(Error::NoConsole));
    guest.set_hvm_param(HvmParam::CONSOLE_EVTCHN, 1);
    assert_eq!(Console::new(&events).err(), Some(Error::NoConsole));
    guest.set_hvm_param(HvmParam::CONSOLE_PFN, 0x77);
    assert_eq!(Console::new(&events).err(), Some(Error::Unreachable(Gfn(0x77))));
    guest.set_hvm_param(HvmParam::CONSOLE_EVTCHN, u64::from(u32::MAX) + 2);
    assert_eq!(Console::new(&events).err(), Some(Error::NoConsole));
    assert_eq!(Error::NoConsole.to_string(), "this domain has no console");
    // Xen's own is there all the same.
    writeln!(XenConsole(&guest), "to Xen: {}", 7).unwrap();
    assert_eq!(guest.console_output(), b"to Xen: 7\n");
}

#[test]
fn only_one_console_at_a_time() {
    let machine = Machine::new();
    let _console = machine.console();
    assert!(matches!(Console::new(&machine.events).err(), Some(Error::Event(_))));
}

#[test]
fn a_machine_with_a_console_goes_when_the_test_lets_go_of_it() {
    let machine = Machine::new();
    let gone = machine.xen.downgrade();
    machine.console().write(b"hello").unwrap();
    machine.settle();
    // What is kept of it is what the daemon has seen.
    let Machine { xen, guest, daemon, events } = machine;
    drop((xen, guest, events));
    assert!(gone.is_alive());
    assert_eq!(daemon.output(), b"hello");
    drop(daemon);
    assert!(!gone.is_alive());
}
