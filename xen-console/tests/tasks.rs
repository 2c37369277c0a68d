//! A console that tasks share, polled in any order and dropped at any time.
#![cfg(feature = "mock")]

mod common;

use std::cell::{Cell, RefCell};
use std::time::Duration;

use common::acts::faults;
use common::tasks::Tasks;
use common::{Machine, pattern};
use proptest::prelude::*;
use xen_console::mock::Faults;
use xen_console::{Error, LINE, SharedConsole};
use xen_hypercall::mock::{Chance, Dice};

/// Longer than any port is throttled.
const LONG: Duration = Duration::from_secs(2);

/// Polls what is woken, and lets the daemon act, until neither has anything to do. No time is needed for that but that of a throttled
/// port.
fn settle(machine: &Machine, tasks: &mut Tasks<'_>) {
    let end = machine.xen.now() + LONG;
    while machine.xen.now() < end {
        let seen = machine.events.seq();
        while tasks.poll_one() {}
        machine.events.wait_since(seen, Some(end));
    }
}

#[test]
fn a_reader_and_a_writer_wait_for_themselves() {
    let machine = Machine::new();
    let console = SharedConsole::new(machine.console());
    let (read, wrote) = (Cell::new(0), Cell::new(false));
    let (data, mut buf) = (pattern(5000), [0; 64]);
    let mut tasks = Tasks::new(1);
    let reader = tasks.spawn(async {
        while read.get() < 100 {
            read.set(read.get() + console.read(&mut buf).await.unwrap());
        }
    });
    let writer = tasks.spawn(async {
        console.write_all(&data).await.unwrap();
        console.flush().await.unwrap();
        wrote.set(true);
    });
    // Nobody reads what the guest writes, and the other task goes on.
    machine.daemon.stall_reader(true);
    settle(&machine, &mut tasks);
    assert_eq!(tasks.names(), [reader, writer]);
    assert_eq!(console.with(|console| console.writable()), Ok(0));
    machine.daemon.type_in(&pattern(100));
    settle(&machine, &mut tasks);
    assert_eq!((read.get(), wrote.get()), (100, false));
    assert_eq!(tasks.names(), [writer]);
    machine.daemon.stall_reader(false);
    settle(&machine, &mut tasks);
    assert!(wrote.get() && machine.daemon.output() == data);
    drop(tasks);
    let console = console.into_inner();
    assert_eq!((console.stats().written, console.stats().read), (5000, 100));
}

#[test]
fn text_waits_for_the_room_of_its_lines() {
    let machine = Machine::new();
    let console = SharedConsole::new(machine.console());
    let text = "a line\n".repeat(1000) + &"é".repeat(LINE) + "\nand no end";
    let mut tasks = Tasks::new(1);
    tasks.spawn(async { console.write_text(&text).await.unwrap() });
    machine.daemon.stall_reader(true);
    settle(&machine, &mut tasks);
    assert!(!tasks.names().is_empty());
    machine.daemon.stall_reader(false);
    settle(&machine, &mut tasks);
    assert!(tasks.names().is_empty());
    assert_eq!(String::from_utf8(machine.daemon.output()).unwrap(), text.replace('\n', "\r\n"));
    assert_eq!(console.with(|console| console.stats().dropped_lines), 0);
}

#[cfg(feature = "embedded-io-async-v0-7")]
#[test]
fn a_task_reads_and_another_writes_by_the_traits() {
    use embedded_io_async::{Error as _, ErrorKind, Read, Write};

    let machine = Machine::new();
    let console = SharedConsole::new(machine.console());
    let (data, wanted, mut buf) = (pattern(10_000), pattern(3000), [0; 3000]);
    let mut tasks = Tasks::new(1);
    tasks.spawn(async {
        let mut input = &console;
        input.read_exact(&mut buf).await.unwrap();
        assert!(buf[..] == wanted);
        assert_eq!(Read::read(&mut input, &mut []).await, Ok(0));
    });
    tasks.spawn(async {
        let mut output = &console;
        Write::write_all(&mut output, &data).await.unwrap();
        Write::flush(&mut output).await.unwrap();
        assert_eq!(Write::write(&mut output, &[]).await, Ok(0));
    });
    machine.daemon.type_in(&wanted);
    settle(&machine, &mut tasks);
    assert!(tasks.names().is_empty() && machine.daemon.output() == data);
    assert_eq!(Error::Stale.kind(), ErrorKind::Other);
}

#[test]
fn nothing_waits_for_a_console_that_is_broken_or_stale() {
    let machine = Machine::new();
    let console = SharedConsole::new(machine.console());
    let errors = RefCell::new(Vec::new());
    let (mut buf, data) = ([0; 8], pattern(5000));
    let mut tasks = Tasks::new(1);
    tasks.spawn(async {
        let read = console.read(&mut buf).await;
        errors.borrow_mut().push(read.map(drop));
    });
    tasks.spawn(async {
        let wrote = console.write_all(&data).await;
        errors.borrow_mut().push(wrote);
    });
    tasks.spawn(async {
        let wrote = console.write_text(&"x\n".repeat(3000)).await;
        errors.borrow_mut().push(wrote);
    });
    tasks.spawn(async {
        let flushed = console.flush().await;
        errors.borrow_mut().push(flushed);
    });
    machine.daemon.stall_reader(true);
    settle(&machine, &mut tasks);
    assert_eq!(tasks.names().len(), 4);
    machine.daemon.poke(3076, 5000);
    xen_evtchn::mock::inject(&machine.guest, console.with(|console| console.channel().port()));
    settle(&machine, &mut tasks);
    assert!(tasks.names().is_empty());
    assert!(errors.borrow().iter().all(|error| matches!(error, Err(Error::Broken(_)))), "{errors:?}");
}

#[test]
fn what_is_dropped_has_done_nothing() {
    let machine = Machine::new();
    let console = SharedConsole::new(machine.console());
    let fill = vec![b'x'; 2048];
    machine.daemon.stall_reader(true);
    let mut buf = [0; 8];
    let mut tasks = Tasks::new(1);
    tasks.spawn(async { console.write_all(&fill).await.unwrap() });
    settle(&machine, &mut tasks);
    tasks.spawn(async { _ = console.read(&mut buf).await });
    tasks.spawn(async { _ = console.write(b"never").await });
    tasks.spawn(async { _ = console.write_text("never\n").await });
    settle(&machine, &mut tasks);
    assert_eq!(tasks.names().len(), 3);
    drop(tasks);
    machine.daemon.stall_reader(false);
    machine.daemon.type_in(b"12345678");
    machine.settle();
    assert_eq!(console.with(|console| console.readable()), Ok(8));
    assert!(machine.daemon.output() == fill);
}

/// What happens around the tasks.
#[derive(Clone, Debug)]
enum Act {
    Poll,
    PollAny,
    Cancel,
    Read(usize),
    Line(usize),
    Flush,
    Type(usize),
    Step,
    Dispatch,
    Pass(u64),
    Stall(bool),
    StallReader(bool),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => Just(Act::Poll),
        1 => Just(Act::PollAny),
        1 => Just(Act::Cancel),
        2 => (1_usize..200).prop_map(Act::Read),
        3 => (0_usize..LINE - 20).prop_map(Act::Line),
        1 => Just(Act::Flush),
        3 => (1_usize..400).prop_map(Act::Type),
        4 => Just(Act::Step),
        4 => Just(Act::Dispatch),
        1 => (0_u64..100).prop_map(Act::Pass),
        1 => any::<bool>().prop_map(Act::Stall),
        1 => any::<bool>().prop_map(Act::StallReader),
    ]
}

proptest! {
    #[test]
    fn no_wake_up_is_lost_and_no_line_torn(
        acts in prop::collection::vec(act(), 0..200),
        mut faults in faults(),
        seed in any::<u64>(),
    ) {
        // A daemon that lies ends the console, which other tests look at.
        faults.index_jump = Chance::NEVER;
        let machine = Machine::new();
        let console = SharedConsole::new(machine.console());
        machine.daemon.set_faults(Dice::new(seed), faults);
        let (read, console) = (&RefCell::new(Vec::new()), &console);
        let mut tasks = Tasks::new(seed);
        let (mut typed, mut lines, mut readers) = (0, 0, Vec::new());
        for act in acts {
            // More than four wait, too, but keep each other busy with that.
            if matches!(act, Act::Read(_) | Act::Line(_) | Act::Flush) && tasks.names().len() == 4 {
                tasks.cancel_any();
            }
            match act {
                Act::Poll => _ = tasks.poll_one(),
                Act::PollAny => tasks.poll_any(),
                Act::Cancel => tasks.cancel_any(),
                Act::Read(len) => readers.push(tasks.spawn(async move {
                    let mut buf = vec![0; len];
                    loop {
                        let count = console.read(&mut buf).await.unwrap();
                        assert!(count > 0);
                        read.borrow_mut().extend_from_slice(&buf[..count]);
                    }
                })),
                Act::Line(len) => {
                    let text = format!("[{lines} {}]\n", "x".repeat(len));
                    lines += 1;
                    tasks.spawn(async move { console.write_text(&text).await.unwrap() });
                }
                Act::Flush => _ = tasks.spawn(async move { console.flush().await.unwrap() }),
                Act::Type(len) => {
                    let bytes: Vec<_> = (typed..typed + len).map(|at| (at % 251) as u8).collect();
                    typed += len;
                    machine.daemon.type_in(&bytes);
                }
                Act::Step => _ = machine.xen.step(),
                Act::Dispatch => machine.events.wait_since(machine.events.seq(), Some(machine.xen.now())),
                Act::Pass(millis) => machine.xen.advance(Duration::from_millis(millis)),
                Act::Stall(stalled) => machine.daemon.stall(stalled),
                Act::StallReader(stalled) => machine.daemon.stall_reader(stalled),
            }
        }
        // Once the daemon does its work, everybody comes to an end, but readers.
        machine.daemon.stall(false);
        machine.daemon.stall_reader(false);
        machine.daemon.set_faults(Dice::new(seed), Faults::new());
        settle(&machine, &mut tasks);
        let left = tasks.names();
        prop_assert!(left.iter().all(|name| readers.contains(name)), "{left:?} wait, of which only {readers:?} may");
        let read = read.borrow();
        prop_assert!(read.iter().enumerate().all(|(at, byte)| *byte == (at % 251) as u8), "in order, each once");
        if !left.is_empty() {
            prop_assert_eq!(read.len(), typed, "a reader is there");
        }
        let output = String::from_utf8(machine.daemon.output()).unwrap();
        prop_assert_eq!(console.with(|console| console.stats().dropped), 0);
        for line in output.split_terminator("\r\n") {
            prop_assert!(line.starts_with('[') && line.find(']') == Some(line.len() - 1), "{line:?} is torn");
        }
    }
}
