//! A connection that tasks share.
#![cfg(feature = "mock")]

mod common;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use common::device::LINUX;
use common::executor::Executor;
use common::{ID, Machine, data};
use xen_hypercall::mock::MockDomain;
use xen_hypercall::sched::Resumed;
use xen_xenstore::control::Request;
use xen_xenstore::shared::{Client, QUESTIONS, SharedStore};
use xen_xenstore::way::tasks::{Ask, frontend};
use xen_xenstore::wire::Refusal;
use xen_xenstore::xenbus::XenbusState;
use xen_xenstore::{Error, Question};

type Shared<'x> = SharedStore<'x, MockDomain>;

fn shared(machine: &Machine) -> Shared<'_> {
    SharedStore::new(machine.client())
}

/// Runs one task beside the runner, to its end.
fn run<'s, T: 's>(
    machine: &'s Machine,
    store: &'s Shared<'_>,
    seed: u64,
    task: impl Future<Output = T> + 's,
) -> T {
    let result = Rc::new(RefCell::new(None));
    let mut executor = Executor::new(machine, seed);
    executor.spawn(async {
        assert!(matches!(store.runner().run().await, Error::Broken(_) | Error::Disconnected(_)))
    });
    let place = Rc::clone(&result);
    let task = executor.spawn(async move { *place.borrow_mut() = Some(task.await) });
    executor.run_until(task);
    drop(executor);
    Rc::into_inner(result).unwrap().into_inner().unwrap()
}

/// Nothing is left of any task.
fn assert_tidy(machine: &Machine, store: &Shared<'_>) {
    let mut executor = Executor::new(machine, 0);
    executor.spawn(async {
        let _ = store.runner().run().await;
    });
    executor.run();
    assert_eq!(store.places_taken(), (0, 0));
    assert_eq!(machine.store.watches(ID), 0);
    assert_eq!(machine.store.transactions(ID), 0);
    // All places for watches are free.
    run(machine, store, 1, async {
        let mut watches = Vec::new();
        for _ in 0..128 {
            watches.push(store.client().watch("data/w").await.unwrap());
        }
        assert_eq!(store.client().watch("data/w").await.err(), Some(Error::TooManyWatches));
    });
}

#[test]
fn tasks_read_and_write() {
    let machine = Machine::new();
    let store = shared(&machine);
    let long = "z".repeat(3000);
    machine.store.write("/local/domain/1/data/long", "");
    machine.store.set_permissions("/local/domain/1/data/long", "n1");
    machine.store.set_limits({
        let mut limits = xen_xenstore::mock::Limits::default();
        limits.node_size = 5000;
        limits
    });
    run(&machine, &store, 7, async {
        let client = store.client();
        client.write("data/a", b"12").await.unwrap();
        assert_eq!(client.read_parsed::<u32>("data/a").await, Ok(12));
        assert_eq!(client.read_optional::<u32>("data/none").await, Ok(None));
        let mut buf = [0; 4];
        assert_eq!(client.read_str("data/a", &mut buf).await, Ok("12"));
        client.write("data/long", long.as_bytes()).await.unwrap();
        let value = client.read("data/long", |value| Ok(value.to_vec())).await.unwrap();
        assert_eq!(value, long.as_bytes());
        assert_eq!(client.read_str("data/long", &mut buf).await, Err(Error::TooLong));
        client.mkdir("data/dir").await.unwrap();
        client.write_display("data/dir/b", 5).await.unwrap();
        let mut names = Vec::new();
        client.directory("data", |name| names.push(name.to_owned())).await.unwrap();
        assert_eq!(names, ["a", "dir", "long"]);
        client.remove("data/dir").await.unwrap();
        assert_eq!(client.read_parsed::<u32>("data//b").await, Err(Error::BadPath));
        client.set_permissions("data/a", "n1\0r0").await.unwrap();
        let mut list = Vec::new();
        client.permissions("data/a", |domain, letter| list.push((domain.0, letter))).await.unwrap();
        assert_eq!(list, [(1, 'n'), (0, 'r')]);
        assert_eq!(&*client.domain_path(ID).await.unwrap(), "/local/domain/1");
    });
    assert_eq!(machine.store.read(&data("long")), Some(long));
    assert_tidy(&machine, &store);
}

#[test]
fn a_directory_of_any_length_is_told() {
    let machine = Machine::new();
    let store = shared(&machine);
    for number in 0..700 {
        machine.store.write(&data(&format!("entry-{number}")), "");
    }
    let mut names = run(&machine, &store, 3, async {
        let mut names = Vec::new();
        store.client().directory("data", |name| names.push(name.to_owned())).await.unwrap();
        names
    });
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 700);
    assert_tidy(&machine, &store);
}

#[test]
fn many_questions_are_asked_at_once() {
    let machine = Machine::new();
    let store = shared(&machine);
    let names: Vec<String> = (0..50).map(|number| format!("n{number}")).collect();
    for (number, name) in names.iter().enumerate() {
        machine.store.write(&data(name), &number.to_string());
    }
    for seed in 0..20 {
        let mut executor = Executor::new(&machine, seed);
        executor.spawn(async {
            let _ = store.runner().run().await;
        });
        let (done, names, store) = (Rc::new(Cell::new(0)), &names, &store);
        for _ in 0..4 {
            let done = Rc::clone(&done);
            executor.spawn(async move {
                let mut seen = vec![None; names.len()];
                let mut asked = store.client().conversation();
                let questions = names.iter().map(|name| Question::read("data", name));
                let each = |place: usize, value: Result<&[u8], Error>| {
                    let value: usize = xen_xenstore::parse(value.unwrap()).unwrap();
                    assert_eq!(seen[place].replace(value), None, "answered twice");
                };
                asked.together(questions, each).await.unwrap();
                assert!(seen.iter().enumerate().all(|(place, value)| *value == Some(place)));
                done.set(done.get() + 1);
            });
        }
        executor.run();
        assert_eq!(done.get(), 4);
    }
    assert_tidy(&machine, &store);
}

#[test]
fn a_daemon_that_hangs_holds_up_nobody_else() {
    let machine = Machine::new();
    let store = shared(&machine);
    let mut executor = Executor::new(&machine, 5);
    executor.spawn(async {
        let _ = store.runner().run().await;
    });
    executor.run();
    machine.store.stall(true);
    let asks: Vec<usize> = (0..40)
        .map(|_| executor.spawn(async { store.client().write("data/a", b"1").await.unwrap() }))
        .collect();
    let other = executor.spawn(async {});
    executor.run();
    assert!(executor.is_done(other));
    assert!(asks.iter().all(|task| !executor.is_done(*task)));
    assert_eq!(machine.xen.now(), std::time::Duration::ZERO, "nobody has waited");
    // Half of them have had enough.
    for task in &asks[..20] {
        executor.drop_task(*task);
    }
    machine.store.stall(false);
    executor.run();
    assert!(asks.iter().all(|task| executor.is_done(*task)));
    drop(executor);
    assert_tidy(&machine, &store);
}

#[test]
fn tasks_that_nobody_polls_hold_up_nobody_with_short_answers() {
    let machine = Machine::new();
    let store = shared(&machine);
    machine.store.write(&data("a"), "1");
    let mut executor = Executor::new(&machine, 5);
    executor.spawn(async {
        let _ = store.runner().run().await;
    });
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let mut idle: Vec<_> =
        (0..QUESTIONS - 1).map(|_| Box::pin(store.client().read_parsed::<u32>("data/a"))).collect();
    for future in &mut idle {
        assert!(future.as_mut().poll(&mut cx).is_pending());
    }
    let task = executor.spawn(async {
        for _ in 0..100 {
            assert_eq!(store.client().read_parsed::<u32>("data/a").await, Ok(1));
        }
    });
    executor.run_until(task);
    for future in &mut idle {
        assert_eq!(future.as_mut().poll(&mut cx), std::task::Poll::Ready(Ok(1)));
    }
    drop((idle, executor));
    assert_tidy(&machine, &store);
}

#[test]
fn transactions_happen_once() {
    for seed in 0..30 {
        let machine = Machine::new();
        let store = shared(&machine);
        let mut executor = Executor::new(&machine, seed);
        executor.spawn(async {
            let _ = store.runner().run().await;
        });
        for _ in 0..12 {
            executor.spawn(async {
                let counted = store.client().transaction(async |transaction| {
                    let count: u32 = transaction.read_optional("data/n").await?.unwrap_or(0);
                    transaction.write_display("data/n", count + 1).await
                });
                counted.await.unwrap();
            });
        }
        executor.run();
        assert_eq!(executor.waiting(), [0]);
        assert_eq!(machine.store.read(&data("n")).as_deref(), Some("12"));
        drop(executor);
        assert_tidy(&machine, &store);
    }
}

#[test]
fn a_refused_change_makes_a_transaction_fail() {
    let machine = Machine::new();
    let store = shared(&machine);
    run(&machine, &store, 9, async {
        let refused = store.client().transaction(async |transaction| {
            transaction.write("data/a", b"1").await?;
            transaction.write("/local/domain/0/x", b"1").await?;
            transaction.write("data/b", b"1").await
        });
        assert!(matches!(refused.await, Err(Error::Refused(_, Refusal::AccessDenied))));
    });
    assert_eq!(machine.store.read(&data("a")), None);
    assert_tidy(&machine, &store);
}

#[test]
fn several_tasks_watch_the_same_node() {
    for seed in 0..30 {
        let machine = Machine::new();
        let store = shared(&machine);
        let mut executor = Executor::new(&machine, seed);
        executor.spawn(async {
            let _ = store.runner().run().await;
        });
        for task in 0..5_u32 {
            let client: Client<'_, '_, MockDomain> = store.client();
            executor.spawn(async move {
                let mut watch = client.watch("data/n").await.unwrap();
                for wanted in 0..20_u32 {
                    while client.read_optional("data/n").await.unwrap().unwrap_or(0) < wanted {
                        watch.changed().await.unwrap();
                    }
                }
                client.write_display(&format!("data/done-{task}"), 1).await.unwrap();
            });
        }
        for number in 0..20 {
            for _ in 0..seed * 3 {
                executor.turn();
            }
            machine.store.write(&data("n"), &number.to_string());
        }
        executor.run();
        assert_eq!(executor.waiting(), [0], "seed {seed}");
        drop(executor);
        assert_tidy(&machine, &store);
    }
}

#[test]
fn a_connection_that_is_given_up_is_made_anew() {
    for seed in 0..30 {
        let machine = Machine::new();
        let store = shared(&machine);
        let mut executor = Executor::new(&machine, seed);
        executor.spawn(async {
            let _ = store.runner().run().await;
        });
        let lost = Rc::new(Cell::new(0));
        for _ in 0..6 {
            let (client, lost) = (store.client(), Rc::clone(&lost));
            executor.spawn(async move {
                for _ in 0..10 {
                    match client.write("data/a", b"1").await {
                        Ok(()) => {}
                        Err(Error::Disconnected(_)) => lost.set(lost.get() + 1),
                        Err(error) => panic!("{error}"),
                    }
                    let counted = client.transaction(async |transaction| {
                        let count: u32 = transaction.read_optional("data/n").await?.unwrap_or(0);
                        transaction.write_display("data/n", count + 1).await
                    });
                    assert!(matches!(counted.await, Ok(()) | Err(Error::Disconnected(_))));
                }
            });
        }
        let client = store.client();
        let watcher = executor.spawn(async move {
            let mut watch = client.watch("data/end").await.unwrap();
            while client.read_optional::<u32>("data/end").await != Ok(Some(1)) {
                match watch.changed().await {
                    Ok(()) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
        for _ in 0..200 {
            executor.turn();
        }
        for round in 0..4 {
            for _ in 0..50 + seed * 7 {
                executor.turn();
            }
            if round % 2 == 0 { machine.store.give_up(ID, 1) } else { machine.store.restart() }
        }
        machine.store.write(&data("end"), "1");
        executor.run_until(watcher);
        executor.run();
        assert_eq!(executor.waiting(), [0], "seed {seed}");
        assert!(store.stats().reconnects > 0);
        drop(executor);
        assert_tidy(&machine, &store);
    }
}

#[test]
fn a_daemon_that_offers_no_other_connection_ends_all() {
    let machine = Machine::new();
    let store = shared(&machine);
    machine.store.offer(ID, xen_xenstore::ServerFeatures::ERROR);
    let mut executor = Executor::new(&machine, 2);
    let runner = executor.spawn(async { assert_eq!(store.runner().run().await, Error::Disconnected(1)) });
    let client = store.client();
    let watcher = executor.spawn(async move {
        let Ok(mut watch) = client.watch("data/a").await else { return };
        while watch.changed().await.is_ok() {}
    });
    executor.run();
    machine.store.give_up(ID, 1);
    executor.run();
    assert!(executor.is_done(runner) && executor.is_done(watcher));
    let late = executor
        .spawn(async move { assert_eq!(client.write("data/a", b"").await, Err(Error::Disconnected(1))) });
    executor.run_until(late);
}

#[test]
fn a_task_takes_a_device_through_its_handshake() {
    for seed in 0..30 {
        let machine = Machine::new();
        machine.device();
        machine.backend(LINUX);
        let store = shared(&machine);
        run(&machine, &store, seed, handshake(&store));
        assert_tidy(&machine, &store);
    }
}

async fn handshake(store: &Shared<'_>) {
    let mut ask = store.client().conversation();
    let device = frontend::open(&mut ask, "test", 0).await.unwrap();
    let device = frontend::wait_for_backend(device, &mut ask).await.unwrap();
    let device = frontend::publish(device, &mut ask, XenbusState::INITIALISED, |changes, path| {
        // More than there are places for questions.
        for number in 0..40 {
            changes.write_display(&path.join(format_args!("ring-ref{number}"))?, number)?;
        }
        Ok(())
    });
    let device = device.await.unwrap();
    let device = frontend::wait_connected(device, &mut ask).await.unwrap();
    assert_eq!(frontend::switch(&device, &mut ask, XenbusState::CONNECTED).await, Ok(true));
    assert!(!frontend::change(&device, &mut ask).await.unwrap().is_over());
    ask.keep_watches();
    frontend::close(device, &mut ask).await.unwrap();
}

#[test]
fn a_handshake_that_is_given_up_anywhere_leaves_nothing_behind() {
    for polls in 0..120 {
        let machine = Machine::new();
        machine.device();
        machine.backend(LINUX);
        let store = shared(&machine);
        let mut executor = Executor::new(&machine, polls);
        executor.spawn(async {
            let _ = store.runner().run().await;
        });
        let task = executor.spawn(handshake(&store));
        for _ in 0..polls {
            executor.turn();
        }
        executor.drop_task(task);
        executor.run();
        assert_eq!(store.places_taken(), (0, 0), "{polls}");
        assert_eq!((machine.store.watches(ID), machine.store.transactions(ID)), (0, 0), "{polls}");
        // Another one begins again, wherever it was.
        let again = executor.spawn(handshake(&store));
        executor.run_until(again);
        drop(executor);
        assert_tidy(&machine, &store);
    }
}

#[test]
fn who_blocks_has_the_connection_for_a_while() {
    for seed in 0..20 {
        let machine = Machine::new();
        let store = shared(&machine);
        let mut executor = Executor::new(&machine, seed);
        executor.spawn(async {
            let _ = store.runner().run().await;
        });
        for _ in 0..8 {
            let client = store.client();
            executor.spawn(async move {
                for _ in 0..10 {
                    client.write("data/a", b"1").await.unwrap();
                    let counted = client.transaction(async |transaction| {
                        let count: u32 = transaction.read_optional("data/n").await?.unwrap_or(0);
                        transaction.write_display("data/n", count + 1).await
                    });
                    counted.await.unwrap();
                }
            });
        }
        for _ in 0..10 {
            for _ in 0..20 + seed {
                executor.turn();
            }
            store.block(|xs| {
                xs.write("data/b", b"2").unwrap();
                let watch = xs.watch("data/b").unwrap();
                xs.unwatch(watch).unwrap();
            });
        }
        executor.run();
        assert_eq!(executor.waiting(), [0]);
        assert_eq!(machine.store.read(&data("n")).as_deref(), Some("80"));
        drop(executor);
        assert_tidy(&machine, &store);
    }
}

#[test]
fn tasks_go_on_in_a_new_domain() {
    for seed in 0..20 {
        let machine = Machine::new();
        let store = shared(&machine);
        let mut executor = Executor::new(&machine, seed);
        executor.spawn(async {
            let _ = store.runner().run().await;
        });
        for _ in 0..4 {
            let client = store.client();
            executor.spawn(async move {
                let mut watch = client.watch("data/end").await.unwrap();
                for _ in 0..10 {
                    let counted = client.transaction(async |transaction| {
                        let count: u32 = transaction.read_optional("data/n").await?.unwrap_or(0);
                        transaction.write_display("data/n", count + 1).await
                    });
                    counted.await.unwrap();
                }
                while client.read_optional::<u32>("data/end").await != Ok(Some(1)) {
                    watch.changed().await.unwrap();
                }
            });
        }
        let mut id = ID;
        for _ in 0..3 {
            for _ in 0..30 + seed * 3 {
                executor.turn();
            }
            store.block(|xs| {
                xs.quiesce().unwrap();
                // SAFETY: one thread, which is between two calls, and no page of another domain is mapped.
                assert_eq!(unsafe { machine.token.suspend() }, Ok(Resumed::InNewDomain));
                machine.events.resume().unwrap();
                id = machine.guest.id();
                xs.resume().unwrap();
            });
        }
        machine.store.write(&format!("/local/domain/{}/data/end", id.0), "1");
        executor.run();
        assert_eq!(executor.waiting(), [0], "seed {seed}");
        drop(executor);
        assert_eq!(store.places_taken(), (0, 0));
        assert_eq!(machine.store.transactions(id), 0);
    }
}

#[test]
fn a_task_is_told_what_the_toolstack_asks() {
    let machine = Machine::new();
    let store = shared(&machine);
    let node = "/local/domain/1/control/shutdown";
    run(&machine, &store, 4, async {
        let mut requests = store.client().shutdown_requests(&[Request::PowerOff]).await.unwrap();
        assert_eq!(machine.store.read("/local/domain/1/control/feature-poweroff").as_deref(), Some("1"));
        assert_eq!(machine.store.read("/local/domain/1/control/feature-suspend").as_deref(), Some("0"));
        machine.store.write(node, "poweroff");
        assert_eq!(requests.next().await, Ok(Request::PowerOff));
        assert_eq!(requests.accept(Request::Reboot).await, Ok(false));
        assert_eq!(requests.next().await, Ok(Request::PowerOff));
        assert_eq!(requests.accept(Request::PowerOff).await, Ok(true));
        machine.store.write(node, "nonsense");
        store.client().write("data/a", b"1").await.unwrap();
        machine.store.write(node, "reboot");
        assert_eq!(requests.next().await, Ok(Request::Reboot));
    });
    assert_eq!(machine.store.read(node).as_deref(), Some("reboot"));
    assert_tidy(&machine, &store);
}

#[test]
fn a_backend_that_was_started_again_has_time_to_notice() {
    for with_timer in [false, true] {
        let machine = Machine::new();
        machine.device();
        // An earlier kernel has left the device connected, and the backend waits whatever the guest does.
        machine.store.write("/local/domain/1/device/test/0/state", "4");
        machine.back(2);
        let store = shared(&machine);
        let mut executor = Executor::new(&machine, 3);
        let sleepers: Rc<RefCell<Vec<Waker>>> = Rc::default();
        let (wakers, xen) = (Rc::clone(&sleepers), machine.xen.clone());
        let runner = store.runner();
        executor.spawn(async move {
            let sleep = |at| {
                let (wakers, xen) = (Rc::clone(&wakers), xen.clone());
                poll_fn(move |cx| {
                    if xen.now() >= at {
                        return Poll::Ready(());
                    }
                    wakers.borrow_mut().push(cx.waker().clone());
                    Poll::Pending
                })
            };
            if with_timer {
                runner.run_with(sleep).await
            } else {
                runner.run().await
            };
        });
        let task = executor.spawn(async {
            let mut ask = store.client().conversation();
            let device = frontend::open(&mut ask, "test", 0).await.unwrap();
            frontend::abandon(device, &mut ask).await.unwrap();
        });
        executor.run();
        if with_timer {
            assert!(!executor.is_done(task));
            assert_eq!(machine.front(), "6");
            machine.xen.advance(Duration::from_secs(2));
            sleepers.take().into_iter().for_each(Waker::wake);
        }
        executor.run_until(task);
        drop(executor);
        assert_tidy(&machine, &store);
    }
}

#[test]
fn all_transactions_that_were_given_up_are_ended() {
    let machine = Machine::new();
    let mut xs = machine.client();
    xs.set_patience(Duration::from_secs(1));
    machine.store.stall(true);
    for _ in 0..3 {
        assert!(matches!(xs.transaction(|_| Ok(())), Err(Error::TimedOut(_))));
    }
    machine.store.stall(false);
    machine.settle();
    xs.write("data/a", b"1").unwrap();
    machine.settle();
    xs.write("data/a", b"2").unwrap();
    assert_eq!(machine.store.transactions(ID), 0);
}
