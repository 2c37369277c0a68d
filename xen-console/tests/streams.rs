//! Both streams against random faults, with a model of what has to arrive; and lines out of any bytes.
#![cfg(feature = "mock")]

mod common;

use std::time::Duration;

use common::Machine;
use common::acts::{act, faults};
use proptest::prelude::*;
use xen_console::mock::Faults;
use xen_console::mock::model::Model;
use xen_console::{Line, LineReader};
use xen_hypercall::mock::{Chance, Dice};

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn what_arrives_is_what_was_sent_and_in_that_order(
        acts in prop::collection::vec(act(), 1..60),
        faults in faults(),
        seed in any::<u64>(),
    ) {
        let machine = Machine::new();
        let mut console = machine.console();
        machine.daemon.set_faults(Dice::new(seed), faults);
        let mut model = Model::new(&machine.guest, &machine.events, &machine.daemon);
        if faults.index_jump != Chance::NEVER {
            model.lies();
        }
        for act in &acts {
            model.act(&mut console, act);
        }
        // Once nothing goes wrong any more, everything arrives.
        machine.daemon.set_faults(Dice::new(0), Faults::new());
        model.settle(&mut console);
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
    use xen_console::LINE;
    use xen_console::log::LogLine;

    fn line(seconds: u64, text: std::fmt::Arguments<'_>) -> String {
        let time = Duration::from_secs(seconds) + Duration::from_micros(42);
        let record = Record::builder().level(Level::Warn).args(text).build();
        LogLine::new(time, &record).to_string()
    }

    #[test]
    fn a_record_is_a_line() {
        assert_eq!(line(3, format_args!("disk {}", 1)), "[    3.000042] WARN  disk 1");
        assert_eq!(line(u64::MAX, format_args!("")), "[18446744073709551615.000042] WARN  ");
    }

    #[test]
    fn a_record_cannot_forge_another_line() {
        let forged = line(3, format_args!("a\r\n[    4.000000] INFO  b\x1b[2J\x7f"));
        assert_eq!(forged, "[    3.000042] WARN  a  [    4.000000] INFO  b [2J ");
    }

    #[test]
    fn a_long_record_is_cut_between_characters() {
        // 21 bytes stand before the text.
        for (text, len) in [("x", LINE - 2), ("\u{e9}", LINE - 3), ("\u{20ac}", LINE - 4)] {
            let line = line(3, format_args!("{}", text.repeat(300)));
            assert_eq!(line.len(), len);
        }
    }

    #[test]
    fn the_longest_record_is_written_whole() {
        let machine = Machine::new();
        let mut console = machine.console();
        let line = line(3, format_args!("{}", "x".repeat(300)));
        assert_eq!(console.write_text(format_args!("{line}\n"), Duration::ZERO), Ok(true));
        machine.settle();
        assert_eq!(machine.daemon.output(), format!("{line}\r\n").into_bytes());
    }
}
