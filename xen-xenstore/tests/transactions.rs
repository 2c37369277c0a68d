//! Transactions, and those that clash.
#![cfg(feature = "mock")]

mod common;

use common::{ID, Machine, data, refused};
use xen_hypercall::mock::{Chance, Dice};
use xen_xenstore::Error;
use xen_xenstore::mock::Faults;
use xen_xenstore::wire::{Operation, Refusal};

#[test]
fn all_or_nothing() {
    let machine = Machine::new();
    let mut xs = machine.client();
    let store = machine.store.clone();
    let answer = xs.transaction(|transaction| {
        transaction.write("data/a", b"1")?;
        transaction.write_display("data/b/c", 2)?;
        transaction.mkdir("data/d")?;
        assert_eq!(transaction.read_str("data/a"), Ok("1"));
        assert_eq!(transaction.read_parsed("data/b/c"), Ok(2));
        assert_eq!(transaction.read_optional::<u32>("data/none"), Ok(None));
        // Nobody else sees anything yet.
        assert_eq!(store.list(&data("")[..data("").len() - 1]), [""; 0]);
        Ok("done")
    });
    assert_eq!(answer, Ok("done"));
    assert_eq!(machine.store.list("/local/domain/1/data"), ["a", "b", "d"]);
    assert_eq!(machine.store.permissions(&data("b/c")).as_deref(), Some("n1\0"));
    let failed: Result<(), Error> = xs.transaction(|transaction| {
        transaction.remove("data/a")?;
        transaction.write("data/b/c", b"3")?;
        transaction.set_permissions("data/d", "b1")?;
        Err(Error::BadValue)
    });
    assert_eq!(failed, Err(Error::BadValue));
    assert_eq!(machine.store.read(&data("a")).as_deref(), Some("1"));
    assert_eq!(machine.store.read(&data("b/c")).as_deref(), Some("2"));
    assert_eq!(machine.store.permissions(&data("d")).as_deref(), Some("n1\0"));
    xs.transaction(|transaction| transaction.remove("data/b")).unwrap();
    assert_eq!(machine.store.list("/local/domain/1/data"), ["a", "d"]);
    assert_eq!(machine.store.transactions(ID), 0);
}

#[test]
fn a_clash_runs_it_again_on_what_is_there_then() {
    let machine = Machine::new();
    let mut xs = machine.client();
    machine.store.write(&data("counter"), "10");
    let store = machine.store.clone();
    let mut runs = 0;
    xs.transaction(|transaction| {
        runs += 1;
        let number: u32 = transaction.read_parsed("data/counter")?;
        if runs < 4 {
            // Somebody else counts, too.
            store.write(&data("counter"), &(number + 1).to_string());
        }
        transaction.write_display("data/counter", number + 100)
    })
    .unwrap();
    assert_eq!(runs, 4);
    assert_eq!(machine.store.read(&data("counter")).as_deref(), Some("113"));
}

#[test]
fn what_clashes_and_what_does_not() {
    type Step =
        fn(&mut xen_xenstore::Transaction<'_, '_, xen_hypercall::mock::MockDomain>) -> Result<(), Error>;
    type Other = fn(&xen_xenstore::mock::MockXenstored);
    let read: Step = |t| t.read("data/a").map(drop);
    let write: Step = |t| t.write("data/a", b"x");
    let list: Step = |t| t.directory("data", |_| ());
    let make: Step = |t| t.write("data/new", b"x");
    let absent: Step = |t| t.read_optional::<u32>("data/other").map(drop);
    let set: Other = |s| s.write(&data("a"), "y");
    let add: Other = |s| s.write(&data("other"), "1");
    let gone: Other = |s| s.remove(&data("a"));
    let allow: Other = |s| s.set_permissions(&data("a"), "b1");
    let elsewhere: Other = |s| s.write("/elsewhere", "y");
    for (what, step, other, clashes) in [
        ("read, written", read, set, true),
        ("read, removed", read, gone, true),
        ("read, permitted", read, allow, true),
        ("read, sibling made", read, add, false),
        ("read, elsewhere", read, elsewhere, false),
        ("written, written", write, set, true),
        ("written, removed", write, gone, true),
        ("written, sibling made", write, add, false),
        ("listed, made", list, add, true),
        ("listed, removed", list, gone, true),
        ("listed, child written", list, set, false),
        ("made, sibling made", make, add, true),
        ("made, sibling written", make, set, false),
        ("absent, made", absent, add, true),
        ("absent, sibling written", absent, set, false),
    ] {
        let machine = Machine::new();
        let mut xs = machine.client();
        xs.write("data/a", b"x").unwrap();
        let mut runs = 0;
        xs.transaction(|transaction| {
            runs += 1;
            // The other's change is there when the first run ends.
            match step(transaction) {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
            if runs == 1 {
                other(&machine.store);
            }
            Ok(())
        })
        .unwrap();
        assert_eq!(runs, if clashes { 2 } else { 1 }, "{what}");
    }
}

#[test]
fn clashes_without_end_are_an_error() {
    let machine = Machine::new();
    let mut xs = machine.client();
    machine.store.clash(usize::MAX);
    let mut runs = 0;
    let result = xs.transaction(|transaction| {
        runs += 1;
        transaction.write("data/a", b"1")
    });
    assert_eq!((result, runs), (Err(Error::Contended), 64));
    assert_eq!(machine.store.read(&data("a")), None);
    machine.store.clash(63);
    xs.transaction(|transaction| transaction.write("data/a", b"1")).unwrap();
    assert_eq!(machine.store.transactions(ID), 0);
}

#[test]
fn a_clash_by_chance_loses_nothing() {
    for seed in 0..20 {
        let machine = Machine::new();
        let mut xs = machine.client();
        machine.store.set_faults(Dice::new(seed), {
            let mut faults = Faults::new();
            faults.again = Chance::percent(60);
            faults
        });
        for number in 1..=10_u32 {
            xs.transaction(|transaction| {
                let count: u32 = transaction.read_optional("data/n")?.unwrap_or(0);
                transaction.write_display("data/n", count + 1)
            })
            .unwrap();
            assert_eq!(machine.store.read(&data("n")), Some(number.to_string()));
        }
    }
}

#[test]
fn a_transaction_that_began_too_late_is_ended() {
    let machine = Machine::new();
    let mut xs = machine.client();
    // More often than a guest may have transactions.
    for _ in 0..30 {
        machine.store.stall(true);
        assert_eq!(xs.transaction(|_| Ok(())), Err(Error::TimedOut(Operation::TRANSACTION_START)));
        machine.store.stall(false);
        machine.settle();
    }
    xs.transaction(|transaction| transaction.write("data/a", b"1")).unwrap();
    machine.settle();
    assert_eq!(machine.store.transactions(ID), 0);
    assert_eq!(machine.store.read(&data("a")).as_deref(), Some("1"));
}

#[test]
fn a_daemon_has_only_so_many() {
    let machine = Machine::new();
    let mut xs = machine.client();
    let mut limits = xen_xenstore::mock::Limits::default();
    limits.transactions = 0;
    machine.store.set_limits(limits);
    assert_eq!(refused(xs.transaction(|_| Ok(()))), Refusal::NoSpace);
}
