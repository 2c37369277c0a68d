//! Watches: when they fire, and when not.
#![cfg(feature = "mock")]

mod common;

use std::task::{Context, Poll, Waker};

use common::{HOME, ID, Machine, data, refused};
use xen_hypercall::DomId;
use xen_hypercall::mock::{Chance, Dice};
use xen_xenstore::Error;
use xen_xenstore::mock::{Faults, Limits};
use xen_xenstore::wire::{Header, Operation, Refusal};

#[test]
fn a_watch_fires_once_at_first_and_then_when_something_changes() {
    let machine = Machine::new();
    let mut xs = machine.client();
    let watch = xs.watch("data/a").unwrap();
    machine.settle();
    assert_eq!(xs.fired(&watch), Ok(true));
    assert_eq!(xs.fired(&watch), Ok(false));
    let store = &machine.store;
    type Change<'c> = (&'c str, &'c dyn Fn());
    let changes: [Change<'_>; 6] = [
        ("made", &|| store.write(&data("a"), "1")),
        ("written", &|| store.write(&data("a"), "1")),
        ("made below", &|| store.write(&data("a/b/c"), "1")),
        ("permitted", &|| store.set_permissions(&data("a"), "b1")),
        ("removed below", &|| store.remove(&data("a/b"))),
        ("removed above", &|| store.remove(&data("a"))),
    ];
    for (what, change) in changes {
        change();
        machine.settle();
        assert_eq!(xs.fired(&watch), Ok(true), "{what}");
        assert_eq!(xs.fired(&watch), Ok(false), "{what}");
    }
    for other in ["b", "ab", "b/a"] {
        machine.store.write(&data(other), "1");
    }
    machine.settle();
    assert_eq!(xs.fired(&watch), Ok(false));
    // What the guest does itself counts as well, when the transaction ends.
    xs.transaction(|transaction| transaction.write("data/a", b"2")).unwrap();
    machine.settle();
    assert_eq!(xs.fired(&watch), Ok(true));
}

#[test]
fn many_events_are_one_mark() {
    let machine = Machine::new();
    let mut xs = machine.client();
    let (watch, other) = (xs.watch("data/a").unwrap(), xs.watch("data/b").unwrap());
    machine.settle();
    assert_eq!((xs.fired(&watch), xs.fired(&other)), (Ok(true), Ok(true)));
    let before = xs.stats().watch_events;
    for number in 0..100 {
        machine.store.write(&data("a"), &number.to_string());
        machine.settle();
        // The ring does not hold them all, so they are taken in now and then.
        xs.poll().unwrap();
    }
    assert_eq!((xs.fired(&watch), xs.fired(&other)), (Ok(true), Ok(false)));
    assert_eq!(xs.fired(&watch), Ok(false));
    assert_eq!(xs.stats().watch_events - before, 100);
}

#[test]
fn a_watch_that_is_gone_does_not_fire_the_one_in_its_place() {
    let machine = Machine::new();
    let mut xs = machine.client();
    let old = xs.watch("data/a").unwrap();
    machine.store.write(&data("a"), "1");
    xs.unwatch(old).unwrap();
    let stray = xs.stats().stray;
    let new = xs.watch("data/b").unwrap();
    machine.settle();
    assert_eq!(xs.fired(&new), Ok(true));
    // The event of the old one may still be on its way.
    let generation = old;
    machine.store.write(&data("a"), "2");
    machine.settle();
    assert_eq!(xs.fired(&new), Ok(false));
    assert_eq!(xs.fired(&generation), Err(Error::Stale), "whoever waits for it must not wait for ever");
    assert_eq!(xs.stats().stray, stray);
    xs.unwatch(old).unwrap();
    assert_eq!(machine.store.watches(ID), 1);
}

#[test]
fn events_of_tokens_that_are_none_are_counted_and_dropped() {
    let machine = Machine::new();
    let mut xs = machine.client();
    let watch = xs.watch("data/a").unwrap();
    machine.settle();
    assert_eq!(xs.fired(&watch), Ok(true));
    machine.store.set_faults(Dice::new(1), {
        let mut faults = Faults::new();
        faults.unknown_event = Chance::ALWAYS;
        faults
    });
    let mut answers = 0;
    while answers < 50 {
        xs.mkdir("data/x").unwrap();
        answers += 1;
    }
    machine.settle();
    assert_eq!(xs.fired(&watch), Ok(false));
    assert_eq!(xs.stats().stray, 50);
    for token in [
        &b"data/a\0"[..],
        b"",
        b"a\0b",
        b"a\x000-0\0",
        b"a\0-\0",
        b"a\0 0-1\0",
        b"a\x000-99999999999999999999\0",
        b"\xff\0\xff\0",
    ] {
        let payload = token.to_vec();
        machine.store.tamper(Some(move |header: &mut Header, body: &mut Vec<u8>| {
            if body.starts_with(b"nobody\0") {
                body.clone_from(&payload);
                header.len = body.len() as u32;
            }
        }));
        xs.mkdir("data/x").unwrap();
        machine.settle();
        assert_eq!(xs.fired(&watch), Ok(false), "{token:?}");
    }
    assert_eq!(xs.stats().stray, 58);
}

#[test]
fn only_so_many() {
    let machine = Machine::new();
    let mut xs = machine.client();
    let all: Vec<_> = (0..128).map(|number| xs.watch(&format!("data/{number}")).unwrap()).collect();
    assert_eq!(xs.watch("data/more").err(), Some(Error::TooManyWatches));
    assert_eq!(machine.store.watches(ID), 128);
    for watch in all {
        xs.unwatch(watch).unwrap();
    }
    assert_eq!(machine.store.watches(ID), 0);
    let mut limits = Limits::default();
    limits.watches = 1;
    machine.store.set_limits(limits);
    // What the daemon refuses takes no place.
    let _first = xs.watch("data/a").unwrap();
    for _ in 0..100 {
        assert_eq!(refused(xs.watch("data/b")), Refusal::TooBig);
    }
}

#[test]
fn many_devices_share_a_connection() {
    let machine = Machine::new();
    let mut xs = machine.client();
    // 16 cards with three watches each, and 64 disks, by paths as long as they come.
    let names = (0..48).map(|n| format!("/local/domain/65535/backend/vif/65535/{}/state-{}", n / 3, n % 3));
    let names =
        names.chain((0..64).map(|n| format!("/local/domain/65535/backend/vbd/65535/{}/state", 51712 + n)));
    let all: Vec<_> =
        names.map(|name| xs.watch(&name).unwrap_or_else(|error| panic!("{name}: {error}"))).collect();
    machine.settle();
    assert!(all.iter().all(|watch| xs.fired(watch) == Ok(true)));
    // Any of them may go, and the others are who they were.
    for watch in all.iter().step_by(3) {
        xs.unwatch(*watch).unwrap();
    }
    let new: Vec<_> = (0..37).map(|n| xs.watch(&format!("data/{n}")).unwrap()).collect();
    machine.settle();
    for (place, watch) in all.iter().enumerate() {
        let expected = if place % 3 == 0 { Err(Error::Stale) } else { Ok(false) };
        assert_eq!(xs.fired(watch), expected);
    }
    assert!(new.iter().all(|watch| xs.fired(watch) == Ok(true)));
    machine.store.give_up(ID, 1);
    assert!(xs.poll().is_err());
    xs.reconnect().unwrap();
    machine.settle();
    let kept = all.iter().enumerate().filter(|(place, _)| place % 3 > 0).map(|(_, watch)| watch);
    assert!(kept.chain(&new).all(|watch| xs.fired(watch) == Ok(true)));
    assert_eq!(machine.store.watches(ID), 111);
}

#[test]
fn paths_have_so_much_room_and_the_error_says_so() {
    let machine = Machine::new();
    let mut xs = machine.client();
    let long = "data/".to_owned() + &"a".repeat(251);
    for _ in 0..32 {
        xs.watch(&long).unwrap();
    }
    let error = xs.watch("data/a").unwrap_err();
    assert_eq!(error, Error::TooManyWatches);
    let text = error.to_string();
    assert!(text.contains("128") && text.contains("8192"), "{text}");
    assert_eq!(machine.store.watches(ID), 32);
}

#[test]
fn a_watch_that_has_ended_is_an_error_and_no_busy_loop() {
    let machine = Machine::new();
    let mut xs = machine.client();
    let watch = xs.watch("data/a").unwrap();
    xs.unwatch(watch).unwrap();
    assert_eq!(xs.fired(&watch), Err(Error::Stale));
    assert_eq!(xs.wait_fired(&watch, machine.after(5)), Err(Error::Stale));
    let mut cx = Context::from_waker(Waker::noop());
    assert_eq!(xs.poll_fired(&watch, &mut cx), Poll::Ready(Err(Error::Stale)));
    assert_eq!(xs.unwatch(watch), Ok(()));
}

#[test]
fn a_watch_that_a_new_connection_refuses_has_ended_and_the_others_have_not() {
    let machine = Machine::new();
    let mut xs = machine.client();
    let [first, second] = ["data/a", "data/b"].map(|path| xs.watch(path).unwrap());
    let mut limits = Limits::default();
    limits.watches = 1;
    machine.store.set_limits(limits);
    machine.store.give_up(ID, 1);
    assert!(xs.poll().is_err());
    assert_eq!(xs.reconnect(), Err(Error::Refused(Operation::WATCH, Refusal::TooBig)));
    machine.settle();
    assert_eq!((xs.fired(&first), xs.fired(&second)), (Ok(true), Err(Error::Stale)));
    assert_eq!(xs.read_str("name"), Ok("d1"));
}

#[test]
fn what_may_not_be_read_is_not_told() {
    let machine = Machine::new();
    machine.store.connect(&machine.xen.domain(DomId(2)));
    let mut xs = machine.client();
    let node = "/local/domain/2/data/a";
    let watch = xs.watch(node).unwrap();
    machine.settle();
    assert_eq!(xs.fired(&watch), Ok(true));
    machine.store.write(node, "1");
    machine.settle();
    assert_eq!(xs.fired(&watch), Ok(false));
    machine.store.set_permissions(node, "n2\0r1");
    machine.settle();
    assert_eq!(xs.fired(&watch), Ok(true));
    // Its end is told to whoever could read it, though nobody may read what is left.
    machine.store.remove(node);
    machine.settle();
    assert_eq!(xs.fired(&watch), Ok(true));
}

#[test]
fn domains_that_come_and_go() {
    let machine = Machine::new();
    let mut xs = machine.client();
    let (came, went) = (xs.watch("@introduceDomain").unwrap(), xs.watch("@releaseDomain").unwrap());
    machine.settle();
    assert_eq!((xs.fired(&came), xs.fired(&went)), (Ok(true), Ok(true)));
    machine.store.connect(&machine.xen.domain(DomId(2)));
    machine.settle();
    assert_eq!(xs.fired(&came), Ok(false), "not permitted");
    for name in ["@introduceDomain", "@releaseDomain"] {
        machine.store.set_permissions(name, "n0\0r1");
    }
    machine.settle();
    assert_eq!((xs.fired(&came), xs.fired(&went)), (Ok(true), Ok(true)));
    machine.store.connect(&machine.xen.domain(DomId(3)));
    machine.settle();
    assert_eq!((xs.fired(&came), xs.fired(&went)), (Ok(true), Ok(false)));
    machine.store.disconnect(DomId(3));
    machine.settle();
    assert_eq!((xs.fired(&came), xs.fired(&went)), (Ok(false), Ok(true)));
}

#[test]
fn waiting_ends_with_the_event_or_the_deadline() {
    let machine = Machine::new();
    let mut xs = machine.client();
    let watch = xs.watch(&format!("{HOME}/data/a")).unwrap();
    assert_eq!(xs.wait_fired(&watch, machine.after(5)), Ok(true));
    let deadline = machine.after(5);
    assert_eq!(xs.wait_fired(&watch, deadline), Ok(false));
    assert_eq!(xs.now(), deadline);
    machine.store.write(&data("a"), "1");
    assert_eq!(xs.wait_fired(&watch, machine.after(5)), Ok(true));
    assert_eq!(xs.now(), deadline);
    // When the time is up it is up, and nothing is lost by that.
    machine.store.write(&data("a"), "1");
    machine.settle();
    assert_eq!(xs.wait_fired(&watch, std::time::Duration::ZERO), Ok(false));
    assert_eq!(xs.fired(&watch), Ok(true));
}

#[test]
fn a_watch_that_was_set_too_late_is_ended() {
    let machine = Machine::new();
    let mut xs = machine.client();
    // More often than there are places.
    for round in 0..140 {
        machine.store.stall(true);
        assert_eq!(xs.watch("data/late"), Err(Error::TimedOut(Operation::WATCH)), "{round}");
        machine.store.stall(false);
        machine.settle();
        // The daemon has set it meanwhile, and its events are nobody's; the question before this one was ended.
        assert_eq!(machine.store.watches(ID), 1, "{round}");
    }
    let stray = xs.stats().stray;
    assert_eq!(xs.is_introduced(ID), Ok(true));
    machine.settle();
    assert_eq!(machine.store.watches(ID), 0);
    // Of the last one an answer, an event, and the answer to its end; and that to the end of the one before.
    machine.store.write(&data("late"), "1");
    machine.settle();
    xs.poll().unwrap();
    assert_eq!(xs.stats().stray, stray + 4);
    let watch = xs.watch("data/late").unwrap();
    machine.settle();
    assert_eq!((xs.fired(&watch), machine.store.watches(ID)), (Ok(true), 1));
}

#[test]
fn watches_that_time_out_at_a_daemon_that_hangs_leave_nothing() {
    let machine = Machine::new();
    let mut xs = machine.client();
    let kept = xs.watch("data/kept").unwrap();
    let other = xs.watch("data/other").unwrap();
    machine.store.stall(true);
    // Until long after the ring is full, and all places are taken.
    for round in 0..280 {
        assert_eq!(
            xs.watch("data/a-name-to-fill-the-ring"),
            Err(Error::TimedOut(Operation::WATCH)),
            "{round}"
        );
    }
    assert_eq!(xs.unwatch(other), Err(Error::TimedOut(Operation::UNWATCH)));
    // It is gone for its owner, at once.
    assert_eq!((xs.unwatch(other), machine.store.watches(ID)), (Ok(()), 2));
    machine.store.stall(false);
    machine.settle();
    assert_eq!(xs.is_introduced(ID), Ok(true));
    machine.settle();
    assert_eq!(machine.store.watches(ID), 1);
    assert_eq!(xs.fired(&kept), Ok(true));
    machine.store.write(&data("kept"), "1");
    machine.settle();
    assert_eq!(xs.fired(&kept), Ok(true));
    for _ in 0..127 {
        xs.watch("data").unwrap();
    }
    assert_eq!((xs.watch("data"), machine.store.watches(ID)), (Err(Error::TooManyWatches), 128));
}

#[test]
fn a_new_connection_has_nothing_of_the_watches_that_timed_out() {
    let machine = Machine::new();
    let mut xs = machine.client();
    xs.watch("data/kept").unwrap();
    machine.store.stall(true);
    assert_eq!(xs.watch("data/late"), Err(Error::TimedOut(Operation::WATCH)));
    machine.store.stall(false);
    machine.settle();
    machine.store.give_up(ID, 1);
    machine.settle();
    assert!(xs.poll().is_err());
    xs.reconnect().unwrap();
    machine.settle();
    assert_eq!(machine.store.watches(ID), 1);
    let requests = xs.stats().requests;
    xs.is_introduced(ID).unwrap();
    assert_eq!((xs.stats().requests, machine.store.watches(ID)), (requests + 1, 1));
}
