//! Both streams against random faults, with a model of what has to arrive; and lines out of any bytes.
#![cfg(feature = "mock")]

mod common;

use std::time::Duration;

use common::Machine;
use proptest::prelude::*;
use xen_console::mock::Faults;
use xen_console::{Error, Line, LineReader};
use xen_hypercall::mock::{Chance, Dice};

#[derive(Clone, Debug)]
enum Call {
    Write(usize),
    WriteAll(usize),
    Read(usize),
    Type(usize),
    Drain,
    WaitReadable,
    Emergency(usize),
    Stall(bool),
}

fn call() -> impl Strategy<Value = Call> {
    let len = || prop_oneof![3 => 0_usize..50, 1 => 0_usize..5000];
    prop_oneof![
        3 => len().prop_map(Call::Write),
        3 => len().prop_map(Call::WriteAll),
        4 => len().prop_map(Call::Read),
        3 => len().prop_map(Call::Type),
        1 => Just(Call::Drain),
        2 => Just(Call::WaitReadable),
        1 => (0_usize..3000).prop_map(Call::Emergency),
        2 => any::<bool>().prop_map(Call::Stall),
    ]
}

fn faults() -> impl Strategy<Value = Faults> {
    let chance = || prop_oneof![Just(Chance::NEVER), (1_u8..90).prop_map(Chance::percent)];
    let jump = prop_oneof![3 => Just(Chance::NEVER), 1 => (1_u8..10).prop_map(Chance::percent)];
    (chance(), chance(), chance(), chance(), jump).prop_map(|(stalls, read, write, event, jump)| {
        let mut faults = Faults::new();
        faults.stalls = stalls;
        faults.short_read = read;
        faults.short_write = write;
        faults.spurious_event = event;
        faults.index_jump = jump;
        faults
    })
}

/// Bytes that go on from those before.
struct Counter(u8);

impl Counter {
    fn next(&mut self, len: usize) -> Vec<u8> {
        (0..len)
            .map(|_| {
                self.0 = (self.0 + 1) % 251;
                self.0
            })
            .collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_arrives_is_what_was_sent_and_in_that_order(
        calls in prop::collection::vec(call(), 1..60),
        faults in faults(),
        seed in any::<u64>(),
    ) {
        let machine = Machine::new();
        let mut console = machine.console();
        machine.daemon.set_faults(Dice::new(seed), faults);
        let patience = Duration::from_millis(10);
        let (mut words, mut keys) = (Counter(0), Counter(100));
        let (mut written, mut typed, mut read) = (Vec::new(), Vec::new(), Vec::new());
        let (mut dropped, mut broken) = (0, None);
        for call in &calls {
            let start = machine.xen.now();
            let result = match call {
                Call::Write(len) => {
                    let data = words.next(*len);
                    console.write(&data).map(|count| written.extend_from_slice(&data[..count]))
                }
                Call::WriteAll(len) => {
                    let data = words.next(*len);
                    console.write_all(&data, patience).map(|count| {
                        written.extend_from_slice(&data[..count]);
                        dropped += len - count;
                    })
                }
                Call::Read(len) => {
                    let mut buf = vec![0; *len];
                    console.read(&mut buf).map(|count| read.extend_from_slice(&buf[..count]))
                }
                Call::Type(len) => {
                    let data = keys.next(*len);
                    machine.daemon.type_in(&data);
                    typed.extend_from_slice(&data);
                    Ok(())
                }
                Call::Drain => console.drain(patience).map(drop),
                Call::WaitReadable => console.wait_readable(start + patience).map(|readable| {
                    assert!(readable || machine.xen.now() == start + patience);
                }),
                Call::Emergency(len) => {
                    let data = words.next(*len);
                    let before = console.stats();
                    console.emergency(&data);
                    let after = console.stats();
                    written.extend_from_slice(&data[..(after.written - before.written) as usize]);
                    dropped += (after.dropped - before.dropped) as usize;
                    Ok(())
                }
                Call::Stall(stalled) => {
                    machine.daemon.stall(*stalled);
                    Ok(())
                }
            };
            prop_assert!(machine.xen.now() - start <= patience);
            match result {
                Ok(()) => {}
                Err(error @ Error::Broken(_)) => {
                    prop_assert!(faults.index_jump != Chance::NEVER);
                    // Once broken, always broken, and for the same reason.
                    prop_assert_eq!(broken.unwrap_or(error), error);
                    prop_assert_eq!(console.read(&mut [0; 1]), Err(error));
                    broken = Some(error);
                }
                Err(error) => prop_assert!(false, "{error}\n{}", machine.xen.trace_text()),
            }
            if faults.index_jump == Chance::NEVER {
                prop_assert!(written.starts_with(&machine.daemon.output()));
                prop_assert!(typed.starts_with(&read));
            }
        }
        let stats = console.stats();
        prop_assert_eq!(stats.read as usize, read.len());
        if broken.is_none() {
            prop_assert_eq!(stats.written as usize, written.len());
            prop_assert_eq!(stats.dropped as usize, dropped);
        }
        if faults.index_jump != Chance::NEVER {
            return Ok(());
        }
        // Once nothing goes wrong any more, everything arrives.
        machine.daemon.stall(false);
        machine.daemon.set_faults(Dice::new(0), Faults::new());
        prop_assert_eq!(console.drain(patience), Ok(true));
        prop_assert!(machine.daemon.output() == written);
        let mut buf = [0; 700];
        while console.wait_readable(machine.xen.now() + patience) == Ok(true) {
            let count = console.read(&mut buf).unwrap();
            read.extend_from_slice(&buf[..count]);
        }
        prop_assert!(read == typed);
    }

    #[test]
    fn lines_are_what_an_editor_makes_of_the_bytes(bytes in prop::collection::vec(
        prop_oneof![
            4 => b' '..=b'~',
            2 => prop::sample::select(&b"\r\n"[..]),
            1 => prop::sample::select(&b"\x08\x7f"[..]),
            1 => any::<u8>(),
        ],
        0..200,
    )) {
        let mut reader = LineReader::<10>::new();
        let (mut line, mut last) = (String::new(), 0);
        for byte in bytes {
            let got = reader.push(byte);
            match byte {
                b'\n' if last == b'\r' => prop_assert_eq!(got, Line::Nothing),
                b'\r' | b'\n' => {
                    prop_assert_eq!(got, Line::Complete(&line));
                    line.clear();
                }
                8 | 127 => {
                    let expected = if line.pop().is_some() { Line::Erased } else { Line::Nothing };
                    prop_assert_eq!(got, expected);
                }
                b' '..=b'~' if line.len() < 10 => {
                    prop_assert_eq!(got, Line::Added(byte));
                    line.push(char::from(byte));
                }
                _ => prop_assert_eq!(got, Line::Nothing),
            }
            last = byte;
        }
    }
}

#[test]
fn lines_of_the_usual_kinds() {
    let mut reader = LineReader::<8>::default();
    let mut lines = Vec::new();
    for byte in b"help\r\n\rstat\x7f\x08ats\nmuch too long\n" {
        if let Line::Complete(line) = reader.push(*byte) {
            lines.push(line.to_owned());
        }
    }
    assert_eq!(lines, ["help", "", "stats", "much too"]);
    let mut none = LineReader::<0>::new();
    assert_eq!(none.push(b'x'), Line::Nothing);
    assert_eq!(none.push(b'\n'), Line::Complete(""));
}

#[cfg(feature = "log")]
mod log_lines {
    use super::*;
    use log::{Level, Record};
    use xen_console::log::{LINE, LogLine};

    fn line(seconds: u64, text: std::fmt::Arguments<'_>) -> Vec<u8> {
        let time = Duration::from_secs(seconds) + Duration::from_micros(42);
        let record = Record::builder().level(Level::Warn).args(text).build();
        LogLine::new(time, &record).as_bytes().to_vec()
    }

    #[test]
    fn a_record_is_a_line() {
        assert_eq!(line(3, format_args!("disk {}", 1)), b"[    3.000042] WARN  disk 1\r\n");
        assert_eq!(line(u64::MAX, format_args!("")), b"[18446744073709551615.000042] WARN  \r\n");
    }

    #[test]
    fn a_record_cannot_forge_another_line() {
        let forged = line(3, format_args!("a\r\n[    4.000000] INFO  b\x1b[2J"));
        assert_eq!(forged, b"[    3.000042] WARN  a  [    4.000000] INFO  b [2J\r\n");
    }

    #[test]
    fn a_long_record_is_cut() {
        let long = "x".repeat(1000);
        let line = line(3, format_args!("{long}"));
        assert_eq!(line.len(), LINE);
        assert!(line.ends_with(b"xx\r\n"));
    }
}
