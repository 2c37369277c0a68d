//! Random calls of a guest and of others, against random faults, with a model of the tree beside it.
#![cfg(feature = "mock")]
#![allow(unsafe_code, reason = "suspends a domain")]

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::{Machine, names};
use proptest::prelude::*;
use xen_hypercall::mock::{Chance, Dice, MockDomain};
use xen_hypercall::sched::Resumed;
use xen_xenstore::mock::{Faults, Limits};
use xen_xenstore::wire::{Header, Operation, Refusal};
use xen_xenstore::{Error, Transaction, Xenstore};

const PLACES: [&str; 7] = ["a", "a/b", "a/b/c", "a/d", "ab", "e", "e/b"];

/// The guest's own directory, by paths below it.
type Model = BTreeMap<String, Vec<u8>>;

#[derive(Clone, Debug)]
enum Change {
    Write(&'static str, Vec<u8>),
    Make(&'static str),
    Remove(&'static str),
}

#[derive(Clone, Debug)]
enum Call {
    Change(Change),
    Read(&'static str),
    ReadAll(Vec<&'static str>),
    List(&'static str),
    /// Changes in a transaction, whether it succeeds, and what domain 0 does to another one meanwhile.
    Transaction(Vec<Change>, bool, Option<Change>),
    Others(Change),
    Reconnect,
    /// The guest goes on as a new domain, after it was brought to rest or not.
    Migrate(bool),
}

fn change() -> impl Strategy<Value = Change> {
    let place = || prop::sample::select(&PLACES[..]);
    let value = prop_oneof![
        5 => prop::collection::vec(any::<u8>(), 0..20),
        1 => prop::collection::vec(any::<u8>(), 900..1900),
    ];
    prop_oneof![
        3 => (place(), value).prop_map(|(place, value)| Change::Write(place, value)),
        1 => place().prop_map(Change::Make),
        1 => place().prop_map(Change::Remove),
    ]
}

fn call() -> impl Strategy<Value = Call> {
    let place = || prop::sample::select(&PLACES[..]);
    prop_oneof![
        4 => change().prop_map(Call::Change),
        4 => place().prop_map(Call::Read),
        2 => prop::collection::vec(place(), 0..60).prop_map(Call::ReadAll),
        2 => place().prop_map(Call::List),
        3 => (prop::collection::vec(change(), 0..5), any::<bool>(), prop::option::of(change()))
            .prop_map(|(changes, commits, others)| Call::Transaction(changes, commits, others)),
        2 => change().prop_map(Call::Others),
        1 => Just(Call::Reconnect),
        1 => any::<bool>().prop_map(Call::Migrate),
    ]
}

fn chance() -> impl Strategy<Value = Chance> {
    prop_oneof![3 => Just(Chance::NEVER), 1 => (1_u8..30).prop_map(Chance::percent)]
}

fn faults() -> impl Strategy<Value = Faults> {
    prop::collection::vec(chance(), 13).prop_map(|chances| {
        let mut faults = Faults::new();
        faults.again = chances[0];
        faults.refused = chances[1];
        faults.missing = chances[2];
        faults.empty = chances[3];
        faults.not_number = chances[4];
        faults.not_text = chances[5];
        faults.too_long = chances[6];
        faults.late = chances[7];
        faults.doubled = chances[8];
        faults.doubled_event = chances[9];
        faults.spurious_event = chances[10];
        faults.unknown_event = chances[11];
        faults.gives_up = chances[12];
        faults
    })
}

fn apply(model: &mut Model, change: &Change) {
    let mut make = |place: &str| {
        for (at, _) in place.match_indices('/').chain([(place.len(), "")]) {
            model.entry(place[..at].to_owned()).or_default();
        }
    };
    match change {
        Change::Write(place, value) => {
            make(place);
            model.insert((*place).to_owned(), value.clone());
        }
        Change::Make(place) => make(place),
        Change::Remove(place) => {
            let below = format!("{place}/");
            model.retain(|path, _| path != place && !path.starts_with(&below));
        }
    }
}

/// Whether the daemon has a reason to refuse it.
fn is_in_vain(model: &Model, change: &Change) -> bool {
    match change {
        Change::Remove(place) => place.rsplit_once('/').is_some_and(|(above, _)| !model.contains_key(above)),
        _ => false,
    }
}

fn path(place: &str) -> String {
    format!("data/{place}")
}

fn do_it(xs: &mut Xenstore<'_, MockDomain>, change: &Change) -> Result<(), Error> {
    match change {
        Change::Write(place, value) => xs.write(&path(place), value),
        Change::Make(place) => xs.mkdir(&path(place)),
        Change::Remove(place) => xs.remove(&path(place)),
    }
}

fn do_it_in(transaction: &mut Transaction<'_, '_, MockDomain>, change: &Change) -> Result<(), Error> {
    match change {
        Change::Write(place, value) => transaction.write(&path(place), value),
        Change::Make(place) => transaction.mkdir(&path(place)),
        Change::Remove(place) => transaction.remove(&path(place)),
    }
}

/// Where the guest's own directory is.
fn below(machine: &Machine) -> String {
    format!("/local/domain/{}/data/", machine.guest.id().0)
}

/// As domain 0, which the faults do not touch.
fn others_do(machine: &Machine, change: &Change) {
    let below = below(machine);
    match change {
        Change::Write(place, value) => machine.store.write_bytes(&format!("{below}{place}"), value),
        Change::Make(place) => {
            let path = format!("{below}{place}");
            let value = machine.store.read_bytes(&path).unwrap_or_default();
            machine.store.write_bytes(&path, &value);
        }
        Change::Remove(place) => machine.store.remove(&format!("{below}{place}")),
    }
}

/// The guest goes on as a new domain, whose connection is not made yet.
fn migrate(machine: &Machine, xs: &mut Xenstore<'_, MockDomain>, quiesce: bool) {
    if quiesce {
        // A daemon that hangs is left as it is.
        let _ = xs.quiesce();
    }
    // SAFETY: one thread, which is between two calls, and no page of another domain is mapped.
    assert_eq!(unsafe { machine.token.suspend() }, Ok(Resumed::InNewDomain));
    machine.events.resume().expect("a Xen like the one before");
}

/// What the daemon has.
fn actual(machine: &Machine) -> Model {
    let below = below(machine);
    let paths = machine.store.paths();
    let found = paths.iter().filter_map(|path| Some((path.strip_prefix(&below)?, path)));
    found.map(|(place, path)| (place.to_owned(), machine.store.read_bytes(path).unwrap())).collect()
}

/// An error that the faults explain and that leaves open what happened.
fn is_uncertain(error: Error) -> bool {
    matches!(error, Error::TimedOut(_) | Error::Disconnected(_))
}

struct Run<'m> {
    machine: &'m Machine,
    model: Model,
    faults: Faults,
}

impl Run<'_> {
    /// What was given up may still be on its way. Once the daemon has answered anything after it, it is not.
    fn let_pass(&self, xs: &mut Xenstore<'_, MockDomain>) {
        let answered =
            (0..200).any(|_| !matches!(xs.is_introduced(self.machine.guest.id()), Err(Error::TimedOut(_))));
        assert!(answered, "no answer in 200 tries\n{}", self.machine.xen.trace_text());
    }

    /// After a call that may have changed the model to one of `possible`: it did, to one of them alone.
    fn settle_on(&mut self, possible: &[Model], what: &str) {
        let actual = actual(self.machine);
        assert!(possible.contains(&actual), "{what}: {actual:?}\n{}", self.machine.xen.trace_text());
        self.model = actual;
    }

    fn check_read(&self, model: &Model, place: &str, read: Result<&[u8], Error>) {
        let (expected, faults) = (model.get(place), &self.faults);
        match read {
            Ok(value) => {
                let spoilt = value.is_empty() && faults.empty != Chance::NEVER
                    || value == b"twelve" && faults.not_number != Chance::NEVER
                    || value == [0xff, 0xfe, 0x80] && faults.not_text != Chance::NEVER
                    || value.len() == 4096 && faults.too_long != Chance::NEVER;
                assert!(spoilt || expected.is_some_and(|expected| expected == value), "{place}");
            }
            Err(Error::Refused(_, Refusal::NotFound)) => {
                assert!(expected.is_none() || faults.missing != Chance::NEVER);
            }
            Err(Error::Refused(_, Refusal::Busy)) => assert_ne!(faults.refused, Chance::NEVER),
            Err(error) => assert!(is_uncertain(error), "{error}"),
        }
    }

    fn call(&mut self, xs: &mut Xenstore<'_, MockDomain>, call: &Call) {
        let before = self.model.clone();
        match call {
            Call::Change(change) => {
                let mut after = before.clone();
                apply(&mut after, change);
                let result = do_it(xs, change);
                match result {
                    Ok(()) => self.settle_on(&[after], "done"),
                    Err(Error::Refused(_, Refusal::Busy)) => self.settle_on(&[before], "refused"),
                    Err(Error::Refused(_, Refusal::NotFound)) => {
                        assert!(is_in_vain(&before, change));
                        self.settle_on(&[before], "not there");
                    }
                    Err(error) if is_uncertain(error) => {
                        self.let_pass(xs);
                        self.settle_on(&[before, after], "uncertain");
                    }
                    Err(error) => panic!("{change:?}: {error}"),
                }
            }
            Call::Read(place) => {
                self.check_read(&before, place, xs.read(&path(place)));
                self.settle_on(&[before], "read");
            }
            Call::ReadAll(places) => {
                let mut seen = vec![false; places.len()];
                let result = xs.read_each("data", places, |index, value| {
                    assert!(!std::mem::replace(&mut seen[index], true), "{index} twice");
                    self.check_read(&before, places[index], value);
                });
                match result {
                    Ok(()) => assert!(seen.into_iter().all(|seen| seen)),
                    Err(error) => assert!(is_uncertain(error), "{error}"),
                }
                self.settle_on(&[before], "read");
            }
            Call::List(place) => {
                let below = format!("{place}/");
                let expected: Vec<String> = before
                    .keys()
                    .filter_map(|path| path.strip_prefix(&below))
                    .filter(|name| !name.contains('/'))
                    .map(str::to_owned)
                    .collect();
                match names(xs, &path(place)) {
                    Ok(names) => assert_eq!(names, expected),
                    Err(Error::Refused(_, Refusal::NotFound)) => assert!(!before.contains_key(*place)),
                    Err(Error::Refused(_, Refusal::Busy)) => assert_ne!(self.faults.refused, Chance::NEVER),
                    Err(error) => assert!(is_uncertain(error), "{error}"),
                }
                self.settle_on(&[before], "list");
            }
            Call::Transaction(changes, commits, others) => {
                let mut others = others.as_ref();
                let mut base = before.clone();
                if let Some(change) = others {
                    apply(&mut base, change);
                }
                let machine = self.machine;
                let mut runs = 0;
                let result = xs.transaction(|transaction| {
                    runs += 1;
                    for change in changes {
                        do_it_in(transaction, change)?;
                    }
                    if let Some(change) = others.take() {
                        others_do(machine, change);
                    }
                    if *commits { Ok(()) } else { Err(Error::BadValue) }
                });
                assert!(runs <= 64);
                // Whether the others came to act depends on how far the first run got.
                let bases = if others.is_some() { vec![before.clone()] } else { vec![base, before.clone()] };
                let all = |base: &Model| {
                    let mut after = base.clone();
                    changes.iter().for_each(|change| apply(&mut after, change));
                    after
                };
                // Changes that do not touch what the others changed come out the same in either order.
                let mut committed: Vec<Model> = bases.iter().map(all).collect();
                if let Call::Transaction(_, _, Some(change)) = call {
                    let mut both = all(&before);
                    apply(&mut both, change);
                    committed.push(both);
                }
                let possible = match result {
                    Ok(()) => committed,
                    Err(error) if is_uncertain(error) => {
                        self.let_pass(xs);
                        [committed, bases].concat()
                    }
                    Err(error) => {
                        assert!(
                            matches!(
                                error,
                                Error::BadValue
                                    | Error::Contended
                                    | Error::Refused(_, Refusal::Busy | Refusal::NotFound)
                            ),
                            "{error}"
                        );
                        bases
                    }
                };
                self.settle_on(&possible, "transaction");
            }
            Call::Others(change) => {
                others_do(self.machine, change);
                apply(&mut self.model, change);
            }
            Call::Reconnect => self.reconnect(xs),
            Call::Migrate(quiesce) => {
                migrate(self.machine, xs, *quiesce);
                match xs.resume() {
                    Ok(()) | Err(Error::Refused(_, Refusal::Busy)) => {}
                    Err(error) => {
                        assert!(is_uncertain(error), "{error}");
                        assert_eq!(xs.resume(), Err(error), "no connection");
                        self.reconnect(xs);
                    }
                }
                self.settle_on(&[Model::new()], "a new domain");
            }
        }
    }

    fn reconnect(&mut self, xs: &mut Xenstore<'_, MockDomain>) {
        // Setting the watch again may meet a fault as well.
        for _ in 0..200 {
            match xs.reconnect() {
                Ok(()) => return,
                Err(Error::Refused(_, Refusal::Busy)) => {}
                Err(error) => assert!(is_uncertain(error), "{error}"),
            }
        }
        panic!("no connection in 200 tries\n{}", self.machine.xen.trace_text());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn the_tree_is_what_the_calls_say(
        calls in prop::collection::vec(call(), 1..40),
        faults in faults(),
        seed in any::<u64>(),
        pace in prop_oneof![3 => Just(None), 1 => (1_usize..500).prop_map(Some)],
    ) {
        let machine = Machine::new();
        let mut limits = Limits::default();
        limits.node_size = 5000;
        machine.store.set_limits(limits);
        let mut xs = machine.client();
        let mut watch = xs.watch("data").unwrap();
        machine.settle();
        prop_assert_eq!(xs.fired(&watch), Ok(true));
        xs.set_patience(Duration::from_millis(10));
        machine.store.set_pace(pace);
        machine.store.set_faults(Dice::new(seed), faults);
        let mut run = Run { machine: &machine, model: Model::new(), faults };
        for call in &calls {
            let before = (run.model.clone(), xs.now());
            run.call(&mut xs, call);
            // Each message may take its time once, and a transaction that clashes has many.
            prop_assert!(xs.now() - before.1 <= Duration::from_secs(5), "{call:?} took {:?}", xs.now() - before.1);
            let fired = loop {
                machine.settle();
                match xs.fired(&watch) {
                    Ok(false) if machine.xen.step() => {}
                    other => break other,
                }
            };
            match fired {
                Ok(fired) => prop_assert!(fired || before.0 == run.model, "{call:?}\n{}", machine.xen.trace_text()),
                Err(Error::Disconnected(1)) => {
                    prop_assert!(faults.gives_up != Chance::NEVER);
                    prop_assert_eq!(xs.read("data/a").map(drop), Err(Error::Disconnected(1)));
                    run.reconnect(&mut xs);
                }
                // A new connection was refused it.
                Err(Error::Stale) => {
                    let set = (0..200).find_map(|_| match xs.watch("data") {
                        Err(Error::Disconnected(_)) => {
                            run.reconnect(&mut xs);
                            None
                        }
                        set => set.ok(),
                    });
                    watch = set.expect("a watch");
                }
                Err(error) => prop_assert!(matches!(error, Error::Refused(..)), "{error}"),
            }
        }
        // Once nothing goes wrong any more, nothing is wrong.
        machine.store.set_faults(Dice::new(0), Faults::new());
        run.reconnect(&mut xs);
        if xs.fired(&watch) == Err(Error::Stale) {
            xs.watch("data").unwrap();
        }
        for (place, value) in &run.model {
            prop_assert_eq!(xs.read(&path(place)), Ok(&**value));
        }
        prop_assert_eq!(machine.store.transactions(machine.guest.id()), 0);
        prop_assert_eq!(machine.store.watches(machine.guest.id()), 1);
    }

    #[test]
    fn a_daemon_that_writes_anything_at_all_is_survived(
        calls in prop::collection::vec(call(), 1..20),
        seed in any::<u64>(),
        liar in (0_u8..40).prop_map(Chance::percent),
        poker in (0_u8..20).prop_map(Chance::percent),
        pace in prop_oneof![3 => Just(None), 1 => (1_usize..500).prop_map(Some)],
    ) {
        let machine = Machine::new();
        let mut xs = machine.client();
        let watch = xs.watch("data").unwrap();
        xs.set_patience(Duration::from_millis(10));
        machine.store.set_pace(pace);
        let dice = Dice::new(seed);
        let lies = dice.clone();
        machine.store.tamper(Some(move |header: &mut Header, body: &mut Vec<u8>| {
            if !lies.hit(liar) {
                return;
            }
            let number = lies.next_u64() as u32;
            match lies.below(9) {
                0 => header.kind = number,
                1 => header.kind = number % 45,
                2 => header.request_id = header.request_id.wrapping_add(number % 5).wrapping_sub(2),
                3 => header.len = number,
                4 => header.len = number % 5000,
                5 => body.truncate(lies.below(1 + body.len() as u64) as usize),
                6 => body.extend_from_slice(&[lies.next_u64() as u8; 300]),
                7 => {
                    body.truncate(lies.below(1 + body.len() as u64) as usize);
                    header.len = body.len() as u32;
                }
                _ => {
                    for byte in body.iter_mut() {
                        *byte ^= (lies.next_u64() & lies.next_u64()) as u8;
                    }
                }
            }
        }));
        for call in &calls {
            if dice.hit(poker) {
                let offset = 2048 + 4 * dice.below(7) as usize;
                let value = if dice.below(2) == 0 { dice.next_u64() } else { dice.below(4096) } as u32;
                // It goes on offering what is needed at the end.
                machine.store.poke(machine.guest.id(), offset, if offset == 2064 { value | 1 } else { value });
            }
            if dice.hit(poker) {
                machine.store.stall(true);
            }
            let start = xs.now();
            let broken = xs.poll().err();
            let result = match call {
                Call::Change(change) => do_it(&mut xs, change),
                Call::Read(place) => xs.read(&path(place)).map(drop),
                Call::ReadAll(places) => xs.read_each("data", places, |_, _| ()),
                Call::List(place) => names(&mut xs, &path(place)).map(drop),
                Call::Transaction(changes, ..) => xs.transaction(|transaction| {
                    changes.iter().try_for_each(|change| do_it_in(transaction, change))
                }),
                Call::Others(change) => {
                    others_do(&machine, change);
                    xs.wait_fired(&watch, start + Duration::from_millis(10)).map(drop)
                }
                Call::Reconnect => xs.permissions("data", |_, _| ()),
                Call::Migrate(quiesce) => {
                    migrate(&machine, &mut xs, *quiesce);
                    let resumed = xs.resume();
                    prop_assert!(xs.now() - start <= Duration::from_secs(60));
                    // What it is broken by then is what the next call says.
                    prop_assert!(resumed.is_err() || xs.poll().is_ok() || liar != Chance::NEVER);
                    machine.store.stall(false);
                    continue;
                }
            };
            // What is broken stays so, and says the same every time.
            if let Some(error) = broken {
                prop_assert_eq!(result, Err(error));
                prop_assert_eq!(xs.now(), start);
            }
            prop_assert!(xs.now() - start <= Duration::from_secs(60));
            machine.store.stall(false);
        }
        machine.store.tamper(None::<fn(&mut Header, &mut Vec<u8>)>);
        xs.set_patience(Duration::from_secs(1));
        xs.reconnect().unwrap();
        for (place, value) in actual(&machine) {
            prop_assert_eq!(xs.read(&path(&place)), Ok(&*value));
        }
        prop_assert_eq!(xs.read(&format!("{}none", below(&machine))).err(), Some(Error::Refused(Operation::READ, Refusal::NotFound)));
    }
}
