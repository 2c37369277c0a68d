//! What goes over the ring at once, and how often the daemon is woken for it.
#![cfg(feature = "mock")]

mod common;

use std::time::Duration;

use common::{ID, Machine, data, refused, timed_out};
use xen_hypercall::mock::{Chance, Dice};
use xen_xenstore::mock::{Faults, Limits};
use xen_xenstore::wire::{Header, Operation, Refusal};
use xen_xenstore::{Error, Violation, names};

const NUMBERS: [&str; 12] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11"];

/// A machine with nodes `data/0` to `data/99`, whose values are their names.
fn machine() -> Machine {
    let machine = Machine::new();
    (0..100).for_each(|number| machine.store.write(&data(&number.to_string()), &number.to_string()));
    machine
}

fn tell_truth(machine: &Machine) {
    machine.store.tamper(None::<fn(&mut Header, &mut Vec<u8>)>);
}

#[test]
fn the_daemon_is_woken_once_for_a_question() {
    let machine = Machine::new();
    let mut xs = machine.client();
    xs.write("data/a", b"1").unwrap();
    let before = xs.channel().stats().notifications;
    for _ in 0..10 {
        xs.write("data/a", b"value").unwrap();
        xs.read("data/a").unwrap();
    }
    assert_eq!(xs.channel().stats().notifications - before, 20);
}

#[test]
fn a_daemon_that_waits_for_room_is_told_of_it() {
    let machine = Machine::new();
    let mut xs = machine.client();
    let mut limits = Limits::default();
    limits.node_size = 5000;
    machine.store.set_limits(limits);
    for size in [1000, 1007, 1008, 1009, 2000, 4096] {
        let value: Vec<u8> = (0..size).map(|number| number as u8).collect();
        machine.store.write_bytes("/local/domain/1/data/a", &value);
        assert_eq!(xs.read("data/a"), Ok(&*value), "{size}");
    }
    assert_eq!(machine.xen.now().as_nanos(), 0);
}

#[test]
fn several_nodes_are_read_in_one_go() {
    let machine = machine();
    machine.store.write_bytes(&data("binary"), b"\xff");
    machine.store.write(&data("word"), "twelve");
    machine.store.write("/local/domain/0/secret", "1");
    machine.store.set_permissions("/local/domain/0/secret", "n0");
    let mut xs = machine.client();
    let (before, requests) = (xs.channel().stats().notifications, xs.stats().requests);
    let names = ["7", "none", "binary", "word", "a//b", "/7", "", "42"];
    let values = xs.read_all::<u32, 8>("data", names).unwrap();
    let missing = Err(Error::Refused(Operation::READ, Refusal::NotFound));
    let bad = Err(Error::BadPath);
    assert_eq!(values, [Ok(7), missing, Err(Error::NotText), Err(Error::BadValue), bad, bad, bad, Ok(42)]);
    assert_eq!(xs.channel().stats().notifications - before, 1);
    assert_eq!(xs.stats().requests - requests, 5);
    // Paths of their own; below the root; none at all.
    let values = xs.read_all::<String, 3>("", ["name", "/local/domain/1/domid", "/local/domain/0/secret"]);
    let denied = Err(Error::Refused(Operation::READ, Refusal::AccessDenied));
    assert_eq!(values.unwrap(), [Ok("d1".into()), Ok("1".into()), denied]);
    assert_eq!(xs.read_all("/", ["local/domain/1/name"]), Ok([Ok("d1".to_owned())]));
    for directory in ["/local/", "a//b", "data/"] {
        assert_eq!(xs.read_all::<u32, 1>(directory, ["a"]), Ok([bad]));
    }
    assert_eq!(xs.read_all::<u32, 0>("data", []), Ok([]));
    assert_eq!(xs.read_str("name"), Ok("d1"));
}

#[test]
fn more_than_fits_the_ring_or_waits_at_once() {
    for pace in [None, Some(1), Some(40), Some(1000)] {
        let machine = machine();
        let mut xs = machine.client();
        let long = "n".repeat(100);
        for number in 0..70 {
            machine.store.write(&data(&format!("{long}{number}")), &format!("{number}{long}"));
        }
        machine.store.set_pace(pace);
        let names: Vec<String> = (0..70).map(|number| format!("{long}{number}")).collect();
        let names: Vec<&str> = names.iter().map(|name| &**name).collect();
        let mut seen = [0; 70];
        xs.read_each("data", &names, |index, value| {
            assert_eq!(value, Ok(format!("{index}{long}").as_bytes()));
            seen[index] += 1;
        })
        .unwrap();
        assert_eq!(seen, [1; 70]);
        assert_eq!(xs.stats().stray, 0);
    }
}

#[test]
fn answers_in_any_order_find_their_questions() {
    let machine = machine();
    let mut xs = machine.client();
    // The last is told of first, as its own.
    machine.store.tamper(Some(|header: &mut Header, body: &mut Vec<u8>| {
        let number: u32 = std::str::from_utf8(body).unwrap().parse().unwrap();
        let other = NUMBERS.len() as u32 - 1 - number;
        header.request_id = header.request_id - number + other;
        *body = other.to_string().into_bytes();
        header.len = body.len() as u32;
    }));
    let mut order = Vec::new();
    xs.read_each("data", &NUMBERS, |index, value| {
        assert_eq!(value, Ok(NUMBERS[index].as_bytes()));
        order.push(index);
    })
    .unwrap();
    assert_eq!(order, (0..NUMBERS.len()).rev().collect::<Vec<_>>());
    tell_truth(&machine);
    assert_eq!(xs.stats().stray, 0);
}

#[test]
fn doubled_late_and_refused_answers_among_many() {
    for seed in 0..20 {
        let machine = machine();
        let mut xs = machine.client();
        xs.set_patience(Duration::from_millis(10));
        let mut faults = Faults::new();
        faults.doubled = Chance::percent(30);
        faults.late = Chance::percent(if seed % 2 == 0 { 0 } else { 5 });
        faults.refused = Chance::percent(10);
        faults.spurious_event = Chance::percent(10);
        machine.store.set_faults(Dice::new(seed), faults);
        let mut complete = 0;
        for _ in 0..20 {
            let values = match xs.read_all::<usize, 12>("data", NUMBERS) {
                Ok(values) => values,
                Err(error) => {
                    assert_eq!((error, seed % 2), (timed_out(Operation::READ), 1));
                    continue;
                }
            };
            complete += 1;
            for (number, value) in values.into_iter().enumerate() {
                assert!(value == Ok(number) || refused(value) == Refusal::Busy, "{number}: {value:?}");
            }
        }
        assert!(complete > 0 && xs.stats().stray > 0);
    }
}

#[test]
fn an_answer_that_never_comes_ends_in_time_and_costs_the_next_question_nothing() {
    let machine = machine();
    let mut xs = machine.client();
    xs.set_patience(Duration::from_secs(3));
    let mut answers = 0;
    machine.store.tamper(Some(move |header: &mut Header, _: &mut Vec<u8>| {
        answers += 1;
        if answers == 3 {
            header.request_id ^= 1 << 20;
        }
    }));
    let mut seen = 0;
    let result = xs.read_each("data", &NUMBERS, |index, value| {
        assert_eq!(value, Ok(NUMBERS[index].as_bytes()));
        seen += 1;
    });
    assert_eq!((result, seen), (Err(timed_out(Operation::READ)), 11));
    assert_eq!((xs.now(), xs.stats().stray), (Duration::from_secs(3), 1));
    tell_truth(&machine);
    assert_eq!(xs.read_all::<usize, 2>("data", ["5", "6"]), Ok([Ok(5), Ok(6)]));
    assert_eq!((xs.now(), xs.stats().stray), (Duration::from_secs(3), 1));
}

#[test]
fn patience_that_runs_out_in_the_middle_of_a_question() {
    for length in [1, 30, 60, 100, 200] {
        let machine = machine();
        let mut xs = machine.client();
        xs.set_patience(Duration::from_secs(1));
        let long = "n".repeat(length);
        machine.store.stall(true);
        // The first ring full of questions goes out, and the last of it in part.
        let names = [&*long; 100];
        assert_eq!(
            xs.read_each("data", &names, |_, value| panic!("{value:?}")),
            Err(timed_out(Operation::READ))
        );
        assert_eq!(xs.now(), Duration::from_secs(1));
        assert_eq!(xs.write("data/a", b"1"), Err(timed_out(Operation::WRITE)));
        machine.store.stall(false);
        let before = xs.now();
        assert_eq!(xs.read_all::<usize, 3>("data", ["1", "2", "3"]), Ok([Ok(1), Ok(2), Ok(3)]));
        assert_eq!(xs.now(), before);
        let stray = xs.stats().stray;
        assert!((4..=33).contains(&stray), "{length}: {stray}");
    }
}

#[test]
fn an_answer_of_another_kind_among_many_breaks_the_connection() {
    let machine = machine();
    let mut xs = machine.client();
    let mut answers = 0;
    machine.store.tamper(Some(move |header: &mut Header, _: &mut Vec<u8>| {
        answers += 1;
        if answers == 5 {
            header.kind = Operation::DIRECTORY.0;
        }
    }));
    let mut seen = 0;
    let broken = Error::Broken(Violation::Kind(Operation::DIRECTORY));
    assert_eq!(xs.read_each("data", &NUMBERS, |_, _| seen += 1), Err(broken));
    assert_eq!(seen, 4);
    assert_eq!(xs.read_all::<u32, 1>("data", ["1"]), Err(broken));
    assert_eq!(xs.watch_all(["data/a"]), Err(broken));
    tell_truth(&machine);
    xs.reconnect().unwrap();
    assert_eq!(xs.read_all::<u32, 1>("data", ["1"]), Ok([Ok(1)]));
}

#[test]
fn values_and_names_of_any_places_are_asked_for_in_one_go() {
    let machine = machine();
    let mut xs = machine.client();
    let (before, requests) = (xs.channel().stats().notifications, xs.stats().requests);
    let (mut values, mut listed, mut errors) = (Vec::new(), Vec::new(), Vec::new());
    xs.together(
        |ask| {
            ask.read(0, "data", "7")?;
            ask.directory(10, "/local/domain/1/data")?;
            ask.read(1, "", "name")?;
            ask.directory(11, "nowhere")?;
            ask.directory(12, "a//b")?;
            ask.read(2, "nowhere", "9")
        },
        |tag, answer| match answer {
            Ok(list) if tag >= 10 => listed = names(list).map(str::to_owned).collect(),
            Ok(value) => values.push((tag, value.to_vec())),
            Err(error) => errors.push((tag, error)),
        },
    )
    .unwrap();
    assert_eq!(values, [(0, b"7".to_vec()), (1, b"d1".to_vec())]);
    listed.sort_by_key(|name| name.parse().unwrap_or(0));
    assert_eq!(listed, (0..100).map(|number: u32| number.to_string()).collect::<Vec<_>>());
    // What cannot be asked for is told at once.
    let missing = |operation| Error::Refused(operation, Refusal::NotFound);
    assert_eq!(
        errors,
        [(12, Error::BadPath), (11, missing(Operation::DIRECTORY)), (2, missing(Operation::READ))]
    );
    assert_eq!(xs.channel().stats().notifications - before, 1);
    assert_eq!(xs.stats().requests - requests, 5);
    // What the closure answers ends it, and the next question is not disturbed by what was asked before.
    assert_eq!(
        xs.together(|ask| ask.read(0, "data", "7").and(Err(Error::BadValue)), |_, _| ()),
        Err(Error::BadValue)
    );
    assert_eq!(xs.read_str("data/8"), Ok("8"));
}

#[test]
fn several_watches_are_set_in_one_go() {
    let machine = machine();
    let mut xs = machine.client();
    let before = xs.channel().stats().notifications;
    let [first, none, second] = xs.watch_all(["data/a", "data//b", "data/b"]).unwrap();
    assert_eq!(none, Err(Error::BadPath));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!((xs.channel().stats().notifications - before, machine.store.watches(ID)), (1, 2));
    machine.settle();
    assert_eq!((xs.fired(&first), xs.fired(&second)), (Ok(true), Ok(true)));
    machine.store.write(&data("b"), "1");
    machine.settle();
    assert_eq!((xs.fired(&first), xs.fired(&second)), (Ok(false), Ok(true)));
    // One that the daemon refuses does not take a place.
    let mut limits = Limits::default();
    limits.watches = 3;
    machine.store.set_limits(limits);
    for _ in 0..40 {
        let [third, fourth] = xs.watch_all(["data/c", "data/d"]).unwrap();
        assert_eq!(refused(fourth), Refusal::TooBig);
        xs.unwatch(third.unwrap()).unwrap();
    }
    // More than there are places.
    machine.store.set_limits(Limits::default());
    let many = xs.watch_all(["data/e"; 8]).unwrap();
    let more = xs.watch_all(["data/f"; 126]).unwrap();
    assert!(many.iter().all(Result::is_ok));
    assert_eq!(more.iter().filter(|watch| **watch == Err(Error::TooManyWatches)).count(), 8);
    assert_eq!(machine.store.watches(ID), 128);
}

#[test]
fn watches_that_were_not_answered_in_time_are_ended() {
    let machine = machine();
    let mut xs = machine.client();
    xs.set_patience(Duration::from_secs(1));
    for _ in 0..20 {
        machine.store.stall(true);
        assert_eq!(xs.watch_all(["data/a", "data/b"]), Err(timed_out(Operation::WATCH)));
        machine.store.stall(false);
        xs.read("name").unwrap();
        machine.settle();
        assert_eq!(machine.store.watches(ID), 0);
    }
}

#[test]
fn a_transaction_takes_three_trips() {
    let machine = machine();
    let mut xs = machine.client();
    let before = xs.channel().stats().notifications;
    xs.transaction(|transaction| {
        for name in NUMBERS {
            transaction.write(&format!("data/{name}"), b"x")?;
        }
        transaction.remove("data/20")?;
        transaction.mkdir("data/new")?;
        transaction.set_permissions("data/new", "n1\0r0")
    })
    .unwrap();
    assert_eq!(xs.channel().stats().notifications - before, 3);
    assert_eq!(machine.store.read(&data("7")).as_deref(), Some("x"));
    assert_eq!(machine.store.read(&data("20")), None);
    assert_eq!(machine.store.permissions(&data("new")).as_deref(), Some("n1\0r0\0"));
}

#[test]
fn a_transaction_of_more_changes_than_wait_at_once() {
    let machine = machine();
    let mut xs = machine.client();
    xs.transaction(|transaction| {
        for number in 0..100 {
            transaction.write(&format!("data/{number}"), &[b'y'; 300])?;
        }
        assert_eq!(transaction.read("data/99"), Ok(&[b'y'; 300][..]));
        Ok(())
    })
    .unwrap();
    assert!((0..100).all(|number| machine.store.read(&data(&number.to_string())).unwrap().len() == 300));
    assert_eq!((xs.stats().stray, xs.now()), (0, Duration::ZERO));
}

#[test]
fn a_refused_change_brings_the_transaction_to_nothing() {
    let machine = machine();
    let mut xs = machine.client();
    let denied = Error::Refused(Operation::WRITE, Refusal::AccessDenied);
    // Whatever the closure makes of it, and whenever the answer comes.
    for looks in [false, true] {
        for size in [1, 900] {
            let result = xs.transaction(|transaction| {
                let _ = transaction.write("data/1", b"x");
                assert_eq!(transaction.write("device", &vec![b'x'; size]), Ok(()));
                let _ = transaction.remove("none/none");
                let _ = transaction.write("data/2", &[b'x'; 900]);
                if looks {
                    assert_eq!(transaction.read("data/1"), Err(denied));
                    assert_eq!(transaction.write("data/3", b"x"), Err(denied));
                    assert_eq!(transaction.directory("data", |_| ()), Err(denied));
                }
                Ok(())
            });
            assert_eq!(result, Err(denied));
            assert_eq!(machine.store.transactions(ID), 0);
        }
    }
    for number in 1..4 {
        assert_eq!(machine.store.read(&data(&number.to_string())), Some(number.to_string()));
    }
    // The closure's own error comes first; what cannot be sent is told at once, and is no refusal.
    let own = xs.transaction(|transaction| {
        transaction.write("device", b"x")?;
        Err::<(), _>(Error::BadValue)
    });
    assert_eq!(own, Err(Error::BadValue));
    xs.transaction(|transaction| {
        assert_eq!(transaction.write("a//b", b""), Err(Error::BadPath));
        assert_eq!(transaction.write("data/a", &[0; 5000]), Err(Error::TooLong));
        transaction.write("data/1", b"y")
    })
    .unwrap();
    assert_eq!(machine.store.read(&data("1")).as_deref(), Some("y"));
    let gone = xs.transaction(|transaction| transaction.remove("data/none/none"));
    assert_eq!(gone, Err(Error::Refused(Operation::RM, Refusal::NotFound)));
    assert_eq!((xs.stats().stray, machine.store.transactions(ID)), (0, 0));
}

#[test]
fn a_change_that_clashes_runs_the_transaction_again() {
    let machine = machine();
    let mut xs = machine.client();
    let mut writes = 0;
    machine.store.tamper(Some(move |header: &mut Header, body: &mut Vec<u8>| {
        writes += u32::from(header.kind == Operation::WRITE.0);
        if header.kind == Operation::WRITE.0 && writes == 2 {
            (header.kind, header.len, *body) = (Operation::ERROR.0, 7, b"EAGAIN\0".to_vec());
        }
    }));
    let mut runs = 0;
    xs.transaction(|transaction| {
        runs += 1;
        NUMBERS.iter().try_for_each(|name| transaction.write(&format!("data/{name}"), b"x"))
    })
    .unwrap();
    assert_eq!((runs, machine.store.read(&data("11")).as_deref()), (2, Some("x")));
}

#[test]
fn a_hang_in_the_middle_of_a_transaction() {
    for size in [1, 200, 2000] {
        let machine = machine();
        let mut xs = machine.client();
        xs.set_patience(Duration::from_secs(1));
        let store = machine.store.clone();
        let result = xs.transaction(|transaction| {
            store.stall(true);
            NUMBERS.iter().try_for_each(|name| transaction.write(&format!("data/{name}"), &vec![b'x'; size]))
        });
        assert_eq!(result, Err(timed_out(Operation::WRITE)));
        assert_eq!(xs.now(), Duration::from_secs(2));
        machine.store.stall(false);
        // The end is there before the next question, so nothing has changed and nothing is left.
        assert_eq!(xs.read_str("data/0"), Ok("0"), "{size}");
        machine.settle();
        assert_eq!(machine.store.transactions(ID), 0, "{size}");
    }
}
