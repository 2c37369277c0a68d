//! A daemon that hangs, is slow, or does not keep to the protocol.
#![cfg(feature = "mock")]

mod common;

use std::time::Duration;

use common::{ID, Machine, data, refused, timed_out};
use xen_hypercall::VcpuId;
use xen_hypercall::mock::{Chance, Dice};
use xen_ring::XenstoreLayout;
use xen_xenstore::mock::Faults;
use xen_xenstore::wire::{Header, Operation, PAYLOAD_MAX, Refusal};
use xen_xenstore::{Error, ServerFeatures, Violation, Xenstore};

const REQUEST_CONSUMER: usize = 2048;
const REQUEST_PRODUCER: usize = 2052;
const RESPONSE_CONSUMER: usize = 2056;
const RESPONSE_PRODUCER: usize = 2060;

#[test]
fn a_daemon_that_hangs_costs_so_much_time_and_no_more() {
    let machine = Machine::new();
    let mut xs = machine.client();
    let watch = xs.watch("data/a").unwrap();
    xs.set_patience(Duration::from_secs(3));
    machine.store.stall(true);
    for (number, operation) in (1..).zip([Operation::READ, Operation::WRITE, Operation::WATCH]) {
        let result = match operation {
            Operation::READ => xs.read("name").map(drop),
            Operation::WRITE => xs.write("data/a", b"1"),
            _ => xs.watch("data/b").map(drop),
        };
        assert_eq!(result, Err(timed_out(operation)));
        assert_eq!(xs.now(), Duration::from_secs(3 * number));
    }
    // It answers after all. Nobody takes those answers for his own.
    machine.store.stall(false);
    assert_eq!(xs.read_str("domid"), Ok("1"));
    assert_eq!(xs.read_str("data/a"), Ok("1"));
    machine.settle();
    assert_eq!(xs.fired(&watch), Ok(true));
    // Three answers, the first event of the watch that was given up, and the answer to its end.
    assert_eq!((xs.stats().stray, machine.store.watches(ID)), (5, 1));
}

#[test]
fn a_message_cut_off_by_a_hang_goes_on_afterwards() {
    for size in [100, 990, 1000, 1010, 1500, 4000] {
        let machine = Machine::new();
        let mut xs = machine.client();
        let mut limits = xen_xenstore::mock::Limits::default();
        limits.node_size = 5000;
        machine.store.set_limits(limits);
        xs.set_patience(Duration::from_secs(1));
        machine.store.stall(true);
        // The ring fills; what does not fit is kept, and nothing else is sent before it.
        let mut given_up = 0;
        for _ in 0..30 {
            assert_eq!(xs.write("data/a", &vec![b'a'; size]), Err(timed_out(Operation::WRITE)));
            given_up += 1;
        }
        machine.store.stall(false);
        xs.write("data/b", b"1").unwrap();
        assert_eq!(machine.store.read_bytes(&data("a")), Some(vec![b'a'; size]), "{size}");
        assert_eq!(machine.store.read(&data("b")).as_deref(), Some("1"));
        assert!(xs.stats().stray <= given_up);
    }
}

#[test]
fn a_slow_daemon_is_waited_for() {
    for pace in [1, 7, 16, 1000] {
        let machine = Machine::new();
        let mut xs = machine.client();
        machine.store.set_pace(Some(pace));
        let value: Vec<u8> = (0..1900).map(|number| number as u8).collect();
        xs.write("data/a", &value).unwrap();
        assert_eq!(xs.read("data/a"), Ok(&*value));
        let watch = xs.watch("data/a").unwrap();
        xs.write("data/a", b"x").unwrap();
        assert_eq!(xs.wait_fired(&watch, machine.after(5)), Ok(true));
        assert_eq!(xs.read("data/a"), Ok(&b"x"[..]));
    }
}

#[test]
fn late_and_doubled_answers_are_nobodys() {
    for seed in 0..10 {
        let machine = Machine::new();
        let mut xs = machine.client();
        xs.set_patience(Duration::from_millis(10));
        for number in 0..20 {
            machine.store.write(&data(&number.to_string()), &number.to_string());
        }
        machine.store.set_faults(Dice::new(seed), {
            let mut faults = Faults::new();
            faults.late = Chance::percent(30);
            faults.doubled = Chance::percent(30);
            faults
        });
        let mut late = 0;
        for number in (0..20).cycle().take(100) {
            match xs.read_parsed::<u32>(&format!("data/{number}")) {
                Ok(value) => assert_eq!(value, number),
                Err(error) => {
                    assert_eq!(error, timed_out(Operation::READ));
                    late += 1;
                }
            }
        }
        assert!((5..95).contains(&late), "{late}");
    }
}

/// What a message of the daemon is made into, and what the guest says to it.
fn tampered(tamper: fn(&mut Header, &mut Vec<u8>), expected: Error) {
    let machine = Machine::new();
    let mut xs = machine.client();
    xs.set_patience(Duration::from_secs(1));
    machine.store.tamper(Some(tamper));
    let mut is_broken = false;
    match xs.read("name") {
        Ok(value) => panic!("{expected}: {:?}", value.escape_ascii().to_string()),
        Err(error) => {
            assert_eq!(error, expected);
            is_broken |= matches!(error, Error::Broken(_));
        }
    }
    machine.store.tamper(None::<fn(&mut Header, &mut Vec<u8>)>);
    if is_broken {
        assert_dead(&mut xs, expected);
        // A new connection is sound again.
        xs.reconnect().unwrap();
    }
    assert_eq!(xs.read_str("name"), Ok("d1"));
}

fn assert_dead(xs: &mut Xenstore<'_, xen_hypercall::mock::MockDomain>, error: Error) {
    let now = xs.now();
    assert_eq!(xs.poll(), Err(error));
    assert_eq!(xs.read("name").map(drop), Err(error));
    assert_eq!(xs.write("data/a", b""), Err(error));
    assert_eq!(xs.watch("data/a").err(), Some(error));
    assert_eq!(xs.transaction(|_| Ok(())), Err(error));
    assert_eq!(xs.directory("data", |_| ()), Err(error));
    // All of it at once.
    assert_eq!(xs.now(), now);
}

#[test]
fn a_message_longer_than_any_breaks_the_connection() {
    tampered(|h, _| h.len = PAYLOAD_MAX as u32 + 1, Error::Broken(Violation::Length(4097)));
    tampered(|h, _| h.len = u32::MAX, Error::Broken(Violation::Length(u32::MAX)));
    tampered(|h, _| h.len = 1 << 31, Error::Broken(Violation::Length(1 << 31)));
}

#[test]
fn an_answer_of_another_kind_breaks_the_connection() {
    for kind in [Operation::WRITE, Operation::DIRECTORY, Operation(20), Operation(99), Operation(u32::MAX)] {
        let machine = Machine::new();
        let mut xs = machine.client();
        machine.store.tamper(Some(move |header: &mut Header, _: &mut Vec<u8>| header.kind = kind.0));
        let broken = Error::Broken(Violation::Kind(kind));
        assert_eq!(xs.read("name").map(drop), Err(broken));
        assert_dead(&mut xs, broken);
    }
}

#[test]
fn an_answer_to_nothing_is_dropped() {
    tampered(|h, _| h.request_id ^= 1, timed_out(Operation::READ));
    tampered(|h, _| h.request_id = h.request_id.wrapping_sub(1), timed_out(Operation::READ));
    tampered(
        |h, _| {
            h.request_id = u32::MAX;
            h.kind = 77;
        },
        timed_out(Operation::READ),
    );
    // A transaction that nobody began is ended, whatever its number is.
    tampered(
        |h, body| {
            (h.request_id, h.kind) = (0, Operation::TRANSACTION_START.0);
            h.len = 3;
            *body = b"99\0".to_vec();
        },
        timed_out(Operation::READ),
    );
}

#[test]
fn a_header_that_promises_more_than_comes_ends_in_time() {
    tampered_stream(|h, _| h.len += 10);
    tampered_stream(|h, _| h.len = 4096);
    // Less than comes: the rest is taken for the next header.
    tampered_stream(|h, _| h.len -= 1);
    tampered_stream(|h, _| h.len = 0);
}

/// The stream is out of step: anything may be made of it, but in bounded time, and a new connection is sound.
fn tampered_stream(tamper: fn(&mut Header, &mut Vec<u8>)) {
    let machine = Machine::new();
    let mut xs = machine.client();
    xs.set_patience(Duration::from_secs(1));
    machine.store.write("/local/domain/1/name", &"n".repeat(200));
    machine.store.tamper(Some(tamper));
    for _ in 0..50 {
        let _ = xs.read("name");
    }
    assert!(xs.now() <= Duration::from_secs(50));
    machine.store.tamper(None::<fn(&mut Header, &mut Vec<u8>)>);
    xs.reconnect().unwrap();
    assert_eq!(xs.read("name"), Ok(&[b'n'; 200][..]));
}

#[test]
fn answers_without_sense_are_errors() {
    type Ask = fn(&mut Xenstore<'_, xen_hypercall::mock::MockDomain>) -> Result<(), Error>;
    let malformed = Error::Broken(Violation::Malformed);
    let cases: [(Ask, &[u8], Error); 14] = [
        (|xs| xs.transaction(|_| Ok(())), b"", malformed),
        (|xs| xs.transaction(|_| Ok(())), b"0\0", malformed),
        (|xs| xs.transaction(|_| Ok(())), b"-1\0", malformed),
        (|xs| xs.transaction(|_| Ok(())), b"4294967296\0", malformed),
        (|xs| xs.transaction(|_| Ok(())), b"\xff\0", malformed),
        (|xs| xs.is_introduced(ID).map(drop), b"X\0", malformed),
        (|xs| xs.is_introduced(ID).map(drop), b"", malformed),
        (|xs| xs.domain_path(ID).map(drop), b"", Error::BadPath),
        (|xs| xs.domain_path(ID).map(drop), b"/local//1\0", Error::BadPath),
        (|xs| xs.domain_path(ID).map(drop), b"\xff\0", Error::NotText),
        (|xs| xs.permissions("name", |_, _| ()), b"\0", Error::BadValue),
        (|xs| xs.permissions("name", |_, _| ()), b"n1\0r\0", Error::BadValue),
        (|xs| xs.permissions("name", |_, _| ()), b"\xffn1\0", Error::NotText),
        (|xs| xs.directory("data", |_| ()), b"a\0\xff\0", Error::NotText),
    ];
    for (ask, answer, expected) in cases {
        let machine = Machine::new();
        let mut xs = machine.client();
        let answer = answer.to_vec();
        machine.store.tamper(Some(move |header: &mut Header, body: &mut Vec<u8>| {
            body.clone_from(&answer);
            header.len = answer.len() as u32;
        }));
        assert_eq!(ask(&mut xs), Err(expected));
        machine.store.tamper(None::<fn(&mut Header, &mut Vec<u8>)>);
        match expected {
            Error::Broken(_) => assert_dead(&mut xs, expected),
            _ => assert_eq!(xs.read_str("name"), Ok("d1")),
        }
    }
}

#[test]
fn a_directory_without_an_end_has_one() {
    for (parts, expected) in [
        (&b"1\0a\0b\0"[..], Error::Broken(Violation::Malformed)),
        (b"no zero byte", Error::Broken(Violation::Malformed)),
        (b"\xff\0a\0\0", Error::NotText),
    ] {
        let machine = Machine::new();
        let mut xs = machine.client();
        machine.store.tamper(Some(move |header: &mut Header, body: &mut Vec<u8>| {
            match Operation(header.kind) {
                Operation::DIRECTORY => (header.kind, *body) = (Operation::ERROR.0, b"E2BIG\0".to_vec()),
                Operation::DIRECTORY_PART => *body = parts.to_vec(),
                _ => {}
            }
            header.len = body.len() as u32;
        }));
        let mut names = 0;
        assert_eq!(xs.directory("data", |_| names += 1), Err(expected));
        assert!(names <= 2048);
    }
    // A daemon whose transactions see what others do.
    let machine = Machine::new();
    let mut xs = machine.client();
    let mut tag = 0;
    machine.store.tamper(Some(move |header: &mut Header, body: &mut Vec<u8>| {
        match Operation(header.kind) {
            Operation::DIRECTORY => (header.kind, *body) = (Operation::ERROR.0, b"E2BIG\0".to_vec()),
            Operation::DIRECTORY_PART => {
                tag += 1;
                *body = format!("{tag}\0name\0").into_bytes();
            }
            _ => {}
        }
        header.len = body.len() as u32;
    }));
    assert_eq!(xs.directory("data", |_| ()), Err(Error::Contended));
    assert_eq!(xs.read_str("name"), Ok("d1"));
    assert_eq!(machine.store.transactions(ID), 0);
}

#[test]
fn an_error_of_any_name_is_a_refusal() {
    for (name, refusal) in [
        (&b"ENOENT\0"[..], Refusal::NotFound),
        (b"ENOENT", Refusal::NotFound),
        (b"EQUOTA\0", Refusal::Quota),
        (b"EWHATEVER\0", Refusal::Other),
        (b"", Refusal::Other),
        (b"\xff\xff", Refusal::Other),
    ] {
        let machine = Machine::new();
        let mut xs = machine.client();
        machine.store.tamper(Some(move |header: &mut Header, body: &mut Vec<u8>| {
            *body = name.to_vec();
            (header.kind, header.len) = (Operation::ERROR.0, body.len() as u32);
        }));
        assert_eq!(refused(xs.read("name").map(drop)), refusal);
    }
}

#[test]
fn an_index_that_jumps_breaks_the_connection() {
    for offset in [RESPONSE_PRODUCER, REQUEST_CONSUMER] {
        for by in [5000, 1 << 31, u32::MAX - 1024] {
            let machine = Machine::new();
            let mut xs = machine.client();
            xs.read("name").unwrap();
            machine.store.poke(ID, offset, by);
            let error = xs.write("data/a", b"x").unwrap_err();
            assert!(matches!(error, Error::Broken(Violation::Ring(_))), "{error}");
            assert_dead(&mut xs, error);
        }
    }
}

#[test]
fn our_own_indices_are_not_read_back() {
    let machine = Machine::new();
    let mut xs = machine.client();
    let value = vec![7; 1500];
    for offset in [REQUEST_PRODUCER, RESPONSE_CONSUMER] {
        machine.store.poke(ID, offset, 0x1234_5678);
        // The daemon may fall over it. The guest goes on from what it knows, so the next write puts it right.
        xs.set_patience(Duration::from_secs(1));
        let first = xs.write("data/a", &value);
        assert!(matches!(first, Ok(()) | Err(Error::Disconnected(2) | Error::TimedOut(_))), "{first:?}");
        if first.is_err() {
            xs.reconnect().unwrap();
        }
        xs.write("data/a", &value).unwrap();
        assert_eq!(xs.read("data/a"), Ok(&*value));
    }
}

#[test]
fn garbage_in_the_ring_is_bounded() {
    // Everything that there is, all at once: whatever the bytes are, polling ends.
    let machine = Machine::new();
    let mut xs = machine.client();
    for seed in 0..200_u64 {
        let dice = Dice::new(seed);
        machine.store.tamper(Some(move |header: &mut Header, body: &mut Vec<u8>| {
            header.kind = dice.below(30) as u32;
            header.request_id = header.request_id.wrapping_add(dice.below(2) as u32);
            header.len = dice.below(200) as u32;
            *body = (0..dice.below(300)).map(|_| dice.next_u64() as u8).collect();
        }));
        xs.set_patience(Duration::from_millis(1));
        let start = xs.now();
        for _ in 0..5 {
            let _ = xs.read("name");
            let _ = xs.directory("data", |_| ());
            let _ = xs.transaction(|transaction| transaction.write("data/a", b""));
        }
        assert!(xs.now() - start <= Duration::from_secs(1), "{seed}");
        machine.store.tamper(None::<fn(&mut Header, &mut Vec<u8>)>);
        xs.set_patience(Duration::from_secs(1));
        xs.reconnect().unwrap();
        assert_eq!(xs.read_str("name"), Ok("d1"));
    }
}

#[test]
fn a_connection_that_is_given_up_is_made_anew() {
    let machine = Machine::new();
    let mut xs = machine.client();
    let watch = xs.watch("data/a").unwrap();
    let other = xs.watch("data/b").unwrap();
    let gone = xs.watch("data/c").unwrap();
    xs.unwatch(gone).unwrap();
    machine.settle();
    assert_eq!((xs.fired(&watch), xs.fired(&other)), (Ok(true), Ok(true)));
    machine.store.give_up(ID, 3);
    assert_dead(&mut xs, Error::Disconnected(3));
    assert_eq!(machine.store.watches(ID), 0);
    xs.reconnect().unwrap();
    assert_eq!(xs.stats().reconnects, 1);
    assert_eq!(xs.read_str("name"), Ok("d1"));
    // The watches are there again, and fire, because something may have happened meanwhile.
    assert_eq!(machine.store.watches(ID), 2);
    machine.settle();
    assert_eq!((xs.fired(&watch), xs.fired(&other)), (Ok(true), Ok(true)));
    machine.store.write(&data("a"), "1");
    machine.settle();
    assert_eq!((xs.fired(&watch), xs.fired(&other)), (Ok(true), Ok(false)));
}

#[test]
fn a_sound_connection_can_be_made_anew_too() {
    let machine = Machine::new();
    let mut xs = machine.client();
    machine.store.stall(true);
    xs.set_patience(Duration::from_secs(1));
    // Half a message is in the ring.
    assert_eq!(xs.write("data/a", &[1; 1500]), Err(timed_out(Operation::WRITE)));
    assert_eq!(xs.reconnect(), Err(Error::ReconnectTimedOut));
    assert_dead(&mut xs, Error::ReconnectTimedOut);
    machine.store.stall(false);
    xs.reconnect().unwrap();
    assert_eq!(machine.store.read(&data("a")), None);
    xs.write("data/a", b"1").unwrap();
    assert_eq!(xs.read("data/a"), Ok(&b"1"[..]));
}

#[test]
fn a_daemon_that_does_not_offer_it_is_not_asked() {
    let machine = Machine::new();
    machine.store.offer(ID, ServerFeatures::empty());
    let mut xs = machine.client();
    assert_eq!(xs.server_features(), Ok(ServerFeatures::empty()));
    assert_eq!(xs.reconnect(), Err(Error::NoReconnect));
    assert_eq!(xs.read_str("name"), Ok("d1"));
    // Unknown features are kept, and may come at any time.
    let features = ServerFeatures::RECONNECTION | ServerFeatures::from_bits_retain(1 << 9);
    machine.store.offer(ID, features);
    assert_eq!(xs.server_features(), Ok(features));
    xs.reconnect().unwrap();
}

#[test]
fn a_daemon_that_is_not_there_yet_is_waited_for() {
    let machine = Machine::new();
    // Whoever made the domain asked for the connection; nobody has answered yet.
    machine.store.poke(ID, XenstoreLayout::CONNECTION, 1);
    machine.store.stall(true);
    assert_eq!(Xenstore::new(&machine.events).err(), Some(Error::NotReady));
    assert_eq!(machine.xen.now(), Duration::from_secs(10));
    machine.store.stall(false);
    let mut xs = Xenstore::new(&machine.events).unwrap();
    assert_eq!(xs.read_str("name"), Ok("d1"));
}

#[test]
fn values_that_make_no_sense_are_errors() {
    type Set = fn(&mut Faults);
    let cases: [(Set, Error); 6] = [
        (|f| f.missing = Chance::ALWAYS, Error::Refused(Operation::READ, Refusal::NotFound)),
        (|f| f.empty = Chance::ALWAYS, Error::BadValue),
        (|f| f.not_number = Chance::ALWAYS, Error::BadValue),
        (|f| f.not_text = Chance::ALWAYS, Error::NotText),
        (|f| f.too_long = Chance::ALWAYS, Error::BadValue),
        (|f| f.refused = Chance::ALWAYS, Error::Refused(Operation::READ, Refusal::Busy)),
    ];
    for (set, expected) in cases {
        let machine = Machine::new();
        let mut xs = machine.client();
        let mut faults = Faults::new();
        set(&mut faults);
        machine.store.set_faults(Dice::new(3), faults);
        assert_eq!(xs.read_parsed::<u32>("domid"), Err(expected));
        machine.store.set_faults(Dice::new(3), Faults::new());
        assert_eq!(xs.read_parsed::<u32>("domid"), Ok(1));
    }
}

#[test]
fn a_daemon_that_sends_events_without_reason_is_throttled_and_one_that_works_is_not() {
    let machine = Machine::new();
    let mut xs = machine.client();
    for value in 0..300u32 {
        xs.write(&data("n"), value.to_string().as_bytes()).unwrap();
    }
    let stats = xs.channel().stats();
    assert!(stats.events > 300);
    assert_eq!(stats.throttled, 0, "{stats:?}");

    for _ in 0..10_000 {
        machine.xen.advance(Duration::from_millis(1));
        assert!(xen_evtchn::mock::inject(&machine.guest, xs.channel().port()));
        machine.events.unmask_due();
        machine.events.dispatch(VcpuId(0));
        xs.poll().unwrap();
    }
    let events = xs.channel().stats().events - stats.events;
    assert!((10..25).contains(&events), "{events} of 10,000");
    // Questions are answered all the same, after a second at most, and then it is as before.
    let before = machine.xen.now();
    xs.write(&data("n"), b"1").unwrap();
    assert!(machine.xen.now() - before <= Duration::from_secs(1));
    let before = machine.xen.now();
    xs.write(&data("n"), b"2").unwrap();
    assert_eq!(machine.xen.now(), before);
}
