//! Text for people: whole lines, and a mark for each that was lost.
#![cfg(feature = "mock")]

mod common;

use core::fmt::Write;
use std::task::{Context, Waker};
use std::time::Duration;

use common::Machine;
use proptest::prelude::*;
use xen_console::{Console, Error, LINE};
use xen_hypercall::mock::MockDomain;

const SECOND: Duration = Duration::from_secs(1);

impl Machine {
    /// What the guest wrote since this was asked last, once the daemon has taken all of it.
    fn text(&self) -> String {
        self.settle();
        String::from_utf8(self.daemon.take_output()).unwrap()
    }

    /// A daemon that hangs, in front of a console in which so many bytes are free.
    fn full_but(&self, console: &mut Console<'_, MockDomain>, free: usize) {
        self.daemon.stall(true);
        let fill = console.writable().unwrap() - free;
        let line = [vec![b'x'; fill - 1], vec![b'\n']].concat();
        assert_eq!(console.write(&line), Ok(fill));
    }

    /// The daemon goes on, and takes all that is there; what the console was filled with is cut off.
    fn resume(&self) -> String {
        self.daemon.stall(false);
        self.text().trim_start_matches('x').strip_prefix('\n').expect("a filled console").to_owned()
    }
}

fn notifications(console: &Console<'_, MockDomain>) -> u64 {
    console.channel().stats().notifications
}

#[test]
fn one_line_is_one_notification() {
    let machine = Machine::new();
    let mut console = machine.console();
    writeln!(console, "vif {} of {}: mac {:02x}:{:02x}, mtu {}", 0, 3, 0x16, 0x3e, 1500).unwrap();
    assert_eq!(notifications(&console), 1);
    console.write_text(format_args!("{} and {}\nand another\n", 1, 2), SECOND).unwrap();
    assert_eq!(notifications(&console), 2);
    console.write_str("").unwrap();
    console.write_str("one more\n").unwrap();
    assert_eq!(notifications(&console), 3);
    assert_eq!(machine.text(), "vif 0 of 3: mac 16:3e, mtu 1500\r\n1 and 2\r\nand another\r\none more\r\n");
}

#[test]
fn a_full_console_loses_whole_lines_and_tells_how_many() {
    let machine = Machine::new();
    let mut console = machine.console();
    machine.full_but(&mut console, 48);
    for i in 0..6 {
        writeln!(console, "line number {i} with some text").unwrap();
    }
    // One line of 30 bytes had room.
    let stats = console.stats();
    assert_eq!((stats.dropped_lines, stats.dropped), (5, 5 * 30));
    assert_eq!(machine.resume(), "line number 0 with some text\r\n");
    // The next text comes behind the mark.
    writeln!(console, "and on").unwrap();
    assert_eq!(machine.text(), "[5 lines lost, 150 bytes]\r\nand on\r\n");
    writeln!(console, "as before").unwrap();
    assert_eq!(machine.text(), "as before\r\n");
}

#[test]
fn what_was_lost_is_told_by_the_next_look_whatever_that_is() {
    type Look = fn(&mut Console<'_, MockDomain>);
    let looks: [Look; 6] = [
        |console| assert_eq!(console.read(&mut [0; 4]), Ok(0)),
        |console| assert_eq!(console.write(b""), Ok(0)),
        |console| assert_eq!(console.drain(Duration::ZERO), Ok(false)),
        |console| assert_eq!(console.wait_readable(Duration::ZERO), Ok(false)),
        |console| assert!(console.poll_readable(&mut Context::from_waker(Waker::noop())).is_pending()),
        |console| console.emergency(b""),
    ];
    for look in looks {
        let machine = Machine::new();
        let mut console = machine.console();
        machine.full_but(&mut console, 2);
        writeln!(console, "gone").unwrap();
        assert_eq!(machine.resume(), "");
        look(&mut console);
        assert_eq!(machine.text(), "[1 line lost, 6 bytes]\r\n");
    }
}

#[test]
fn a_mark_begins_its_own_line() {
    let machine = Machine::new();
    let mut console = machine.console();
    write!(console, "> ").unwrap();
    assert_eq!(machine.text(), "> ");
    machine.daemon.stall(true);
    assert_eq!(console.write(&[b'x'; 2048]), Ok(2048));
    writeln!(console, "an answer").unwrap();
    machine.daemon.stall(false);
    machine.text();
    write!(console, "> ").unwrap();
    assert_eq!(machine.text(), "\r\n[1 line lost, 11 bytes]\r\n> ");
}

#[test]
fn parts_of_one_line_are_one_line_lost() {
    let machine = Machine::new();
    let mut console = machine.console();
    machine.full_but(&mut console, 1);
    for part in ["a line ", "in three ", "parts\n", "another\n", "> "] {
        console.write_str(part).unwrap();
    }
    assert_eq!(console.stats().dropped_lines, 3);
    assert_eq!(machine.resume(), "");
    assert_eq!(console.drain(SECOND), Ok(true));
    assert_eq!(machine.text(), "[3 lines lost, 34 bytes]\r\n");
}

#[test]
fn a_long_line_goes_in_pieces_and_ends_where_one_is_lost() {
    let machine = Machine::new();
    let mut console = machine.console();
    let long = "y".repeat(3 * LINE);
    writeln!(console, "{long}").unwrap();
    assert_eq!(machine.text(), format!("{long}\r\n"));
    machine.full_but(&mut console, LINE + 10);
    assert_eq!(console.write_text(format_args!("{long}\nshort\n"), Duration::ZERO), Ok(false));
    // The first piece has room, and the short line behind it has none before a mark.
    let written = machine.resume();
    assert_eq!(written, "y".repeat(LINE - 1));
    assert_eq!(console.drain(SECOND), Ok(true));
    let lost = 2 * LINE + 1 + 2 + 7;
    assert_eq!(machine.text(), format!("\r\n[2 lines lost, {lost} bytes]\r\n"));
}

#[test]
fn a_line_of_the_greatest_length_is_whole() {
    for (len, whole) in [(LINE - 2, true), (LINE - 1, false)] {
        let machine = Machine::new();
        let mut console = machine.console();
        machine.full_but(&mut console, LINE - 1);
        writeln!(console, "{}", "y".repeat(len)).unwrap();
        assert_eq!(machine.resume().is_empty(), whole);
    }
}

#[test]
fn text_waits_for_room() {
    let machine = Machine::new();
    let mut console = machine.console();
    let lines: String = (0..1000).map(|n| format!("line {n}\n")).collect();
    assert_eq!(console.write_text(format_args!("{lines}"), SECOND), Ok(true));
    let long = "z".repeat(5000);
    assert_eq!(console.write_text(format_args!("{long}"), SECOND), Ok(true));
    assert_eq!(console.drain(SECOND), Ok(true));
    assert_eq!(machine.text(), lines.replace('\n', "\r\n") + &long);
    assert_eq!((console.stats().dropped, machine.xen.now()), (0, Duration::ZERO));
}

#[test]
fn a_console_that_nobody_reads_holds_a_guest_up_once() {
    let machine = Machine::new();
    let mut console = machine.console();
    machine.daemon.stall_reader(true);
    let line = "n".repeat(98);
    for _ in 0..20 {
        assert_eq!(console.write_text(format_args!("{line}\n"), SECOND), Ok(true));
    }
    for _ in 0..50 {
        assert_eq!(console.write_text(format_args!("{line}\n"), SECOND), Ok(false));
    }
    assert_eq!(machine.xen.now(), SECOND);
    // What is typed comes in all the same, and is no sign of a reader.
    machine.daemon.type_in(b"hello?");
    assert_eq!(console.wait_readable(2 * SECOND), Ok(true));
    assert_eq!(console.read(&mut [0; 10]), Ok(6));
    machine.settle();
    // Somebody reads again, and hangs again: that is waited for once more.
    machine.daemon.stall_reader(false);
    machine.settle();
    machine.daemon.stall_reader(true);
    for _ in 0..50 {
        console.write_text(format_args!("{line}\n"), SECOND).unwrap();
    }
    assert_eq!(machine.xen.now(), 2 * SECOND);
}

#[test]
fn bytes_have_no_marks_among_them() {
    let machine = Machine::new();
    let mut console = machine.console();
    machine.full_but(&mut console, 4);
    writeln!(console, "gone").unwrap();
    machine.daemon.stall(false);
    let bytes = [b'b'; 6000];
    assert_eq!(console.write_all(&bytes, SECOND), Ok(6000));
    assert_eq!(console.drain(SECOND), Ok(true));
    let text = machine.text();
    assert!(text.contains(&"b".repeat(6000)));
    assert!(text.ends_with("\r\n[1 line lost, 6 bytes]\r\n"), "{}", text.escape_debug());
}

#[test]
fn last_words_that_find_no_room_are_told_of_as_well() {
    let machine = Machine::new();
    let mut console = machine.console();
    machine.full_but(&mut console, 5);
    console.emergency(b"last\r\nwords\r\n");
    assert_eq!(console.stats().dropped, 8);
    assert_eq!(machine.resume(), "last\r");
    console.emergency(b"more\r\n");
    assert_eq!(machine.text(), "\r\n[2 lines lost, 8 bytes]\r\nmore\r\n");
}

#[test]
fn a_broken_console_writes_nothing_and_says_so() {
    let machine = Machine::new();
    let mut console = machine.console();
    machine.daemon.poke(3080, 1);
    assert!(writeln!(console, "x").is_err());
    assert!(matches!(console.write_text(format_args!("x\n"), SECOND), Err(Error::Broken(_))));
    assert!(matches!(console.write_text(format_args!(""), SECOND), Err(Error::Broken(_))));
    assert_eq!(notifications(&console), 0);
}

/// One line that was written: which, and how long.
fn lines(text: &str) -> impl Iterator<Item = Result<(usize, usize), u64>> + '_ {
    text.split_terminator("\r\n").filter(|line| !line.is_empty()).map(|line| {
        if let Some(mark) = line.strip_prefix('[') {
            return Err(mark.split(' ').next().unwrap().parse().unwrap());
        }
        let (number, rest) = line.split_once(':').unwrap_or_else(|| panic!("a line in pieces: {line:?}"));
        Ok((number.parse().unwrap_or_else(|_| panic!("a line in pieces: {line:?}")), rest.len()))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn every_line_is_there_or_counted_at_its_place(
        acts in prop::collection::vec((0_usize..240, any::<bool>(), 0..20_u8), 1..120),
    ) {
        let machine = Machine::new();
        let mut console = machine.console();
        let mut lengths = Vec::new();
        for (len, waits, daemon) in acts {
            match daemon {
                0..4 => machine.daemon.stall_reader(daemon < 2),
                4..8 => drop(machine.xen.step()),
                8 => drop(console.read(&mut [0; 8])),
                _ => {}
            }
            let text = format!("{}:{}", lengths.len(), "t".repeat(len));
            let patience = if waits { Duration::from_millis(5) } else { Duration::ZERO };
            let before = (notifications(&console), console.stats());
            if daemon % 2 == 0 {
                writeln!(console, "{text}").unwrap();
            } else {
                let written = console.write_text(format_args!("{text}\n"), patience).unwrap();
                prop_assert_eq!(written, console.stats().dropped_lines == before.1.dropped_lines);
            }
            prop_assert!(notifications(&console) <= before.0 + 2);
            lengths.push(len);
        }
        machine.daemon.stall_reader(false);
        prop_assert_eq!(console.drain(SECOND), Ok(true));
        let (text, mut next) = (machine.text(), 0);
        for line in lines(&text) {
            match line {
                Ok((number, len)) => {
                    prop_assert_eq!((number, len), (next, lengths[next]));
                    next += 1;
                }
                Err(lost) => next += lost as usize,
            }
        }
        prop_assert_eq!(next, lengths.len());
    }
}
