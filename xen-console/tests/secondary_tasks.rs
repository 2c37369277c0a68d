//! Further consoles, connected by tasks.
#![cfg(all(feature = "mock", feature = "xenbus"))]

mod common;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::time::Duration;

use common::devices::Machine;
use common::tasks::Tasks;
use xen_console::mock::MockConsoled;
use xen_console::{Error, SecondaryConsole, State};
use xen_hypercall::DomId;
use xen_hypercall::mock::{Chance, Dice};
use xen_xenstore::Xenstore;
use xen_xenstore::shared::SharedStore;

/// Polls what is woken, and lets the far sides act, for some time.
fn settle(machine: &Machine, tasks: &mut Tasks<'_>) {
    let end = machine.xen.now() + Duration::from_secs(3);
    while machine.xen.now() < end {
        let seen = machine.events.seq();
        while tasks.poll_one() {}
        machine.events.wait_since(seen, Some(end));
    }
}

#[test]
fn a_task_connects_follows_and_connects_again() {
    let machine = Machine::new();
    let daemon = MockConsoled::attach(&machine.store, &machine.guest, 1);
    let store = SharedStore::new(Xenstore::new(&machine.events).unwrap());
    let (client, states) = (store.client(), RefCell::new(Vec::new()));
    let mut tasks = Tasks::new(1);
    tasks.spawn(async { panic!("{}", store.runner().run().await) });
    tasks.spawn(async {
        assert!(matches!(
            SecondaryConsole::connect_by(client, &machine.events, &machine.grants, 0).await,
            Err(Error::NoConsole)
        ));
        let connected = SecondaryConsole::connect_by(client, &machine.events, &machine.grants, 1).await;
        let mut console = connected.unwrap();
        let mut data = &b"one"[..];
        poll_fn(|cx| console.console().unwrap().poll_write_all(cx, &mut data)).await.unwrap();
        // Nobody reads this one in time.
        daemon.stall_reader(true);
        console.console().unwrap().write(b"two").unwrap();
        assert_eq!(console.service_by(client).await, Ok(State::Connected));
        daemon.restart();
        let mut watch = client.watch("device/console/1/state").await.unwrap();
        while console.service_by(client).await.unwrap() == State::Connected {
            watch.changed().await.unwrap();
        }
        states.borrow_mut().push(console.state());
        console.reconnect_by(client).await.unwrap();
        daemon.stall_reader(false);
        states.borrow_mut().push(console.state());
        poll_fn(|cx| console.console().unwrap().poll_drained(cx)).await.unwrap();
        console.close_by(client).await.unwrap();
    });
    settle(&machine, &mut tasks);
    assert_eq!(*states.borrow(), [State::Closed, State::Connected]);
    assert_eq!(tasks.names(), [0], "the runner alone goes on");
    drop(tasks);
    assert_eq!(daemon.output(), b"onetwo");
    assert_eq!(machine.store.watches(DomId(1)), 0);
}

#[test]
fn a_handshake_that_is_dropped_leaves_nothing_behind() {
    for steps in 0..40 {
        let machine = Machine::new();
        let daemon = MockConsoled::attach(&machine.store, &machine.guest, 1);
        let mut faults = xen_console::mock::Faults::new();
        faults.stalls = Chance::percent(20);
        daemon.set_faults(Dice::new(steps), faults);
        let store = SharedStore::new(Xenstore::new(&machine.events).unwrap());
        let (client, connected) = (store.client(), Cell::new(false));
        {
            let mut tasks = Tasks::new(steps);
            tasks.spawn(async { panic!("{}", store.runner().run().await) });
            tasks.spawn(async {
                let console = SecondaryConsole::connect_by(client, &machine.events, &machine.grants, 1).await;
                console.unwrap().close_by(client).await.unwrap();
                connected.set(true);
            });
            for _ in 0..steps {
                let seen = machine.events.seq();
                tasks.poll_one();
                machine.events.wait_since(seen, Some(machine.xen.now()));
            }
        }
        // Whatever it was doing, another one is connected afterwards.
        let mut tasks = Tasks::new(steps);
        tasks.spawn(async { panic!("{}", store.runner().run().await) });
        if !connected.get() {
            tasks.spawn(async {
                let console = SecondaryConsole::connect_by(client, &machine.events, &machine.grants, 1).await;
                if let Ok(console) = console {
                    console.close_by(client).await.unwrap();
                }
            });
        }
        settle(&machine, &mut tasks);
        assert_eq!(tasks.names(), [0], "after {steps} steps");
        assert_eq!(machine.store.watches(DomId(1)), 0, "after {steps} steps");
    }
}

#[test]
fn a_daemon_that_hangs_holds_up_nobody_else() {
    let machine = Machine::new();
    let _daemon = MockConsoled::attach(&machine.store, &machine.guest, 1);
    let store = SharedStore::new(Xenstore::new(&machine.events).unwrap());
    let (client, turns) = (store.client(), Cell::new(0));
    machine.store.stall(true);
    let mut tasks = Tasks::new(1);
    tasks.spawn(async { panic!("{}", store.runner().run().await) });
    let waits = tasks.spawn(async {
        let console = SecondaryConsole::connect_by(client, &machine.events, &machine.grants, 1).await;
        console.unwrap().close_by(client).await.unwrap();
    });
    tasks.spawn(async { turns.set(turns.get() + 1) });
    let before = machine.xen.now();
    while tasks.poll_one() {}
    assert_eq!((turns.get(), machine.xen.now()), (1, before));
    assert!(tasks.names().contains(&waits));
    machine.store.stall(false);
    settle(&machine, &mut tasks);
    assert_eq!(tasks.names(), [0]);
}
