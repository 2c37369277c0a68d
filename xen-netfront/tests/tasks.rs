//! Tasks that wait for a card: none is forgotten, and none keeps the others busy or what is theirs from them.
#![cfg(feature = "mock")]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};

use common::{GUEST, HOST, Machine, frame};
use xen_hypercall::VcpuId;
use xen_hypercall::mock::MockDomain;
use xen_netfront::mock::Options;
use xen_netfront::{Config, NetFront, State};
use xen_xenstore::Xenstore;

/// Counts how often a task was woken.
#[derive(Default)]
struct Task(AtomicUsize);

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Task {
    fn was_woken(&self) -> bool {
        self.0.swap(0, Ordering::SeqCst) > 0
    }
}

fn tasks(count: usize) -> Vec<Arc<Task>> {
    (0..count).map(|_| Arc::default()).collect()
}

fn poll<const N: usize>(front: &mut NetFront<'_, MockDomain, N>, task: &Arc<Task>) -> bool {
    front.poll_receivable(&mut Context::from_waker(&Waker::from(task.clone()))).is_ready()
}

#[test]
fn of_several_tasks_each_is_woken_even_if_others_were_dropped_without_a_word() {
    for (split_channels, closes) in [(false, false), (true, false), (false, true)] {
        // The others have left their wakers, and never look again.
        for kept in 0..4 {
            let machine = Machine::new();
            let back = machine.vif(Options::default());
            let mut xs = Xenstore::new(&machine.events).unwrap();
            let config = Config { split_channels, ..Config::default() };
            let mut front = machine.connect_with::<1>(&mut xs, config).unwrap();
            machine.run();
            let tasks = tasks(4);
            tasks.iter().for_each(|task| assert!(!poll(&mut front, task)));
            assert!(tasks.iter().all(|task| !task.was_woken()), "nothing has happened");
            if closes {
                back.detach();
                machine.run();
                assert_ne!(front.service(&mut xs), Ok(State::Connected));
            } else {
                machine.switch.send(frame(GUEST, HOST, 60, 1));
                machine.run();
            }
            assert!(tasks[kept].was_woken(), "split {split_channels}, closes {closes}, task {kept}");
            assert!(poll(&mut front, &tasks[kept]));
        }
    }
}

/// A waker that panics.
struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("a waker");
    }
}

#[test]
fn a_waker_that_panics_takes_nothing_from_the_other_tasks() {
    for closes in [false, true] {
        let machine = Machine::new();
        let back = machine.vif(Options::default());
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let mut front = machine.connect(&mut xs).unwrap();
        machine.run();
        let tasks = tasks(3);
        for (number, task) in tasks.iter().enumerate() {
            if number == 1 {
                let waker = Waker::from(Arc::new(Panics));
                assert!(front.poll_receivable(&mut Context::from_waker(&waker)).is_pending());
            }
            assert!(!poll(&mut front, task));
        }
        if closes {
            back.detach();
        } else {
            machine.switch.send(frame(GUEST, HOST, 60, 1));
        }
        assert!(machine.xen.run_until_idle(1000) < 1000);
        let mut tell = || match closes {
            true => drop(front.service(&mut xs)),
            false => drop(machine.events.dispatch(VcpuId(0))),
        };
        assert!(catch_unwind(AssertUnwindSafe(&mut tell)).is_err());
        tell();
        assert!(tasks.iter().all(|task| task.was_woken()), "closes {closes}");
    }
}

#[test]
fn tasks_that_wait_do_not_keep_each_other_busy() {
    for split_channels in [false, true] {
        let machine = Machine::new();
        let _back = machine.vif(Options::default());
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let config = Config { split_channels, tx_pages: 20, rx_pages: 32, ..Config::default() };
        let mut front = machine.connect_with::<2>(&mut xs, config).unwrap();
        machine.run();
        let tasks = tasks(4);
        for task in &tasks {
            poll(&mut front, task);
        }
        // Whoever is woken looks, as an executor does.
        let mut polls = 0;
        while polls < 100 {
            let woken: Vec<_> = tasks.iter().filter(|task| task.was_woken()).collect();
            if woken.is_empty() {
                break;
            }
            polls += woken.len();
            for task in woken {
                poll(&mut front, task);
            }
        }
        assert!(polls <= 4, "{polls} polls while nothing happens");
    }
}
