//! Tasks of any kind, polled in any order and dropped anywhere, with a daemon that hangs, is slow, clashes, and gives up.
#![cfg(feature = "mock")]

mod common;

use std::cell::Cell;
use std::rc::Rc;

use common::device::LINUX;
use common::executor::Executor;
use common::{ID, Machine, data};
use proptest::prelude::*;
use xen_hypercall::mock::MockDomain;
use xen_xenstore::shared::{Client, SharedStore};
use xen_xenstore::way::tasks::{Ask, frontend};
use xen_xenstore::xenbus::XenbusState;
use xen_xenstore::{Error, Question};

/// What a task does.
#[derive(Clone, Copy, Debug)]
enum Does {
    Writes,
    Reads,
    ReadsLong,
    ReadsMany,
    Counts,
    /// In a transaction whose closure waits for something else meanwhile.
    CountsSlowly,
    Lists,
    Watches,
    Connects,
}

/// What happens to the daemon, and how many turns later.
#[derive(Clone, Copy, Debug)]
enum Happens {
    Nothing,
    Stall(bool),
    Pace(Option<usize>),
    Clash(usize),
    GiveUp,
    Restart,
    /// Who blocks has the connection.
    Block,
}

fn tasks() -> impl Strategy<Value = Vec<(Does, bool)>> {
    let does = prop_oneof![
        Just(Does::Writes),
        Just(Does::Reads),
        Just(Does::ReadsLong),
        Just(Does::ReadsMany),
        Just(Does::Counts),
        Just(Does::CountsSlowly),
        Just(Does::Lists),
        Just(Does::Watches),
        Just(Does::Connects),
    ];
    prop::collection::vec((does, any::<bool>()), 1..14)
}

fn happenings() -> impl Strategy<Value = Vec<(Happens, u16)>> {
    let happens = prop_oneof![
        3 => Just(Happens::Nothing),
        2 => any::<bool>().prop_map(Happens::Stall),
        2 => prop_oneof![Just(None), (1..60_usize).prop_map(Some)].prop_map(Happens::Pace),
        1 => (1..4_usize).prop_map(Happens::Clash),
        1 => Just(Happens::GiveUp),
        1 => Just(Happens::Restart),
        1 => Just(Happens::Block),
    ];
    prop::collection::vec((happens, 0..150_u16), 0..12)
}

/// An error that what happened explains.
fn explained(error: Error) -> bool {
    matches!(error, Error::Disconnected(_) | Error::TimedOut(_) | Error::BackendGone(_) | Error::Contended)
}

async fn work(
    client: Client<'_, '_, MockDomain>,
    does: Does,
    counted: Rc<Cell<[u32; 2]>>,
) -> Result<(), Error> {
    match does {
        Does::Writes => {
            for number in 0..10 {
                client.write_display("data/a", number).await?;
            }
        }
        Does::Reads => {
            for _ in 0..10 {
                client.read_optional::<u32>("data/a").await?;
            }
        }
        Does::ReadsLong => {
            for _ in 0..5 {
                let value = client.read("data/long", |value| Ok(value.to_vec())).await?;
                assert_eq!(value, [b'z'; 1500]);
            }
        }
        Does::ReadsMany => {
            let names: Vec<String> = (0..30).map(|number| format!("n{number}")).collect();
            let mut seen = vec![0; names.len()];
            let mut ask = client.conversation();
            let questions = names.iter().map(|name| Question::read("data", name));
            let asked = ask.together(questions, |place, _| seen[place] += 1).await;
            assert!(seen.iter().all(|times| *times <= 1), "answered twice");
            asked?;
            assert!(seen.iter().all(|times| *times == 1), "not answered");
        }
        Does::Counts | Does::CountsSlowly => {
            for _ in 0..4 {
                let [tried, done] = counted.get();
                counted.set([tried + 1, done]);
                let once = client.transaction(async |transaction| {
                    let count: u32 = transaction.read_optional("data/count").await?.unwrap_or(0);
                    if matches!(does, Does::CountsSlowly) {
                        client.read_optional::<u32>("data/a").await?;
                    }
                    transaction.write_display("data/count", count + 1).await
                });
                match once.await {
                    Ok(()) => {
                        let [tried, done] = counted.get();
                        counted.set([tried, done + 1]);
                    }
                    Err(Error::Contended) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Does::Lists => {
            let mut count = 0;
            client.directory("data/dir", |_| count += 1).await?;
            assert_eq!(count, 400);
        }
        Does::Watches => {
            let mut watch = client.watch("data/end").await?;
            while client.read_optional::<u32>("data/end").await? != Some(1) {
                watch.changed().await?;
            }
        }
        Does::Connects => {
            let mut ask = client.conversation();
            let device = frontend::open(&mut ask, "test", 0).await?;
            let device = frontend::wait_for_backend(device, &mut ask).await?;
            let device = frontend::publish(device, &mut ask, XenbusState::INITIALISED, |changes, path| {
                for number in 0..20 {
                    changes.write_display(&path.join(format_args!("ring-ref{number}"))?, number)?;
                }
                Ok(())
            });
            let device = frontend::wait_connected(device.await?, &mut ask).await?;
            frontend::switch(&device, &mut ask, XenbusState::CONNECTED).await?;
            frontend::change(&device, &mut ask).await?;
            frontend::close(device, &mut ask).await?;
        }
    }
    Ok(())
}

fn run(tasks: &[(Does, bool)], happenings: &[(Happens, u16)], seed: u64, cancel: u64) {
    let machine = Machine::new();
    machine.device();
    machine.backend(LINUX);
    machine.store.write(&data("long"), &"z".repeat(1500));
    for number in 0..400 {
        machine.store.write(&data(&format!("dir/a-long-name-{number}")), "");
    }
    machine.store.set_permissions(&data("dir"), "n1");
    let store = SharedStore::new(machine.client());
    let counted = Rc::new(Cell::new([0; 2]));
    let mut executor = Executor::new(&machine, seed);
    executor.cancel = cancel;
    // A runner that is dropped is followed by another.
    executor.spawn(async { panic!("{}", store.runner().run().await) });
    let mut connects = false;
    for (does, may_go) in tasks {
        if matches!(does, Does::Connects) && core::mem::replace(&mut connects, true) {
            // There is one device.
            continue;
        }
        let (client, does, counted, may_go) = (store.client(), *does, Rc::clone(&counted), *may_go);
        let task = async move {
            // Once more after an error that is explained.
            for _ in 0..50 {
                match work(client, does, Rc::clone(&counted)).await {
                    Ok(()) => return,
                    Err(error) => assert!(explained(error), "{does:?}: {error}"),
                }
            }
        };
        if may_go {
            executor.spawn_mortal(task)
        } else {
            executor.spawn(task)
        };
    }
    for (happens, turns) in happenings {
        match happens {
            Happens::Nothing => {}
            Happens::Stall(stalled) => machine.store.stall(*stalled),
            Happens::Pace(pace) => machine.store.set_pace(*pace),
            Happens::Clash(times) => machine.store.clash(*times),
            Happens::GiveUp => machine.store.give_up(ID, 1),
            Happens::Restart => machine.store.restart(),
            Happens::Block => store.block(|xs| {
                let _ = xs.write("data/blocked", b"1");
            }),
        }
        for _ in 0..*turns {
            executor.turn();
        }
    }
    executor.cancel = 0;
    machine.store.stall(false);
    machine.store.set_pace(None);
    machine.store.write(&data("end"), "1");
    executor.run();
    // Only the runner waits: no wake-up is lost.
    assert_eq!(executor.waiting(), [0]);
    drop(executor);
    let mut executor = Executor::new(&machine, seed);
    executor.spawn(async { panic!("{}", store.runner().run().await) });
    executor.run();
    assert_eq!(store.places_taken(), (0, 0));
    assert_eq!((machine.store.watches(ID), machine.store.transactions(ID)), (0, 0));
    let count = machine.store.read(&data("count")).map_or(0, |count| count.parse().unwrap());
    let [tried, done] = counted.get();
    assert!((done..=tried).contains(&count), "{count} of {done} to {tried}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_wake_up_is_lost_and_nothing_is_left(
        tasks in tasks(),
        happenings in happenings(),
        seed in any::<u64>(),
        cancel in prop_oneof![Just(0_u64), 1..60_u64],
    ) {
        run(&tasks, &happenings, seed, cancel);
    }
}
