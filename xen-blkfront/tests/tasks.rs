//! Tasks that wait for a disk: none is forgotten, none waits for a backend that has gone, and all go on together.
#![cfg(feature = "mock")]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use common::{Machine, pattern};
use xen_blkfront::mock::{Fault, Options};
use xen_blkfront::{Error, State, Ticket};
use xen_hypercall::VcpuId;
use xen_xenstore::Xenstore;

/// Counts how often a task was woken.
#[derive(Default)]
struct Task(AtomicU32);

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Task {
    fn woken(&self) -> bool {
        self.0.swap(0, Ordering::SeqCst) > 0
    }
}

fn tasks<const N: usize>() -> [(Arc<Task>, Waker); N] {
    [(); N].map(|()| {
        let task = Arc::new(Task::default());
        (task.clone(), Waker::from(task))
    })
}

/// The far sides act, and events are delivered.
fn turn(machine: &Machine) {
    machine.xen.run_until_idle(100);
    machine.events.dispatch(VcpuId(0));
}

#[test]
fn of_several_tasks_each_is_woken_even_if_others_were_dropped_without_a_word() {
    let machine = Machine::new();
    let back = machine.disk(Options::default());
    back.load(&pattern(64 * 512, 1));
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    for dropped in 0..6 {
        let tickets: Vec<Ticket> = (0..6).map(|i| disk.submit_read(i * 8, 1).unwrap()).collect();
        disk.publish().unwrap();
        let tasks = tasks::<6>();
        let mut out = [0; 512];
        for (ticket, (_, waker)) in tickets.iter().zip(&tasks) {
            assert!(disk.poll_take(*ticket, &mut out, &mut Context::from_waker(waker)).is_pending());
        }
        assert!(tasks.iter().all(|(task, _)| !task.woken()), "nothing has happened");
        turn(&machine);
        // That one does nothing any more, though nobody said so.
        for (i, (task, waker)) in tasks.iter().enumerate().filter(|(i, _)| *i != dropped) {
            assert!(task.woken(), "task {i} without task {dropped}");
            let taken = disk.poll_take(tickets[i], &mut out, &mut Context::from_waker(waker));
            assert_eq!(taken, Poll::Ready(Ok(())));
            assert!(out[..] == pattern(64 * 512, 1)[i * 4096..][..512]);
        }
        disk.forget(tickets[dropped]);
    }
    assert_eq!((disk.pending(), disk.free_requests()), (0, 8));
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
    let machine = Machine::new();
    let back = machine.disk(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let before = machine.guest.pages_in_use();
    for closes in [false, true] {
        let mut disk = machine.connect(&mut xs).unwrap();
        let panics = Waker::from(Arc::new(Panics));
        let tasks = tasks::<3>();
        back.stall(true);
        let tickets: Vec<Ticket> = (0..4).map(|i| disk.submit_read(i * 8, 1).unwrap()).collect();
        disk.publish().unwrap();
        for (ticket, waker) in tickets.iter().zip([&tasks[0].1, &panics, &tasks[1].1, &tasks[2].1]) {
            assert!(disk.poll_take(*ticket, &mut [0; 512], &mut Context::from_waker(waker)).is_pending());
        }
        back.stall(false);
        if closes {
            back.drop_out();
        }
        machine.xen.run_until_idle(100);
        let mut tell = || match closes {
            true => drop(disk.service(&mut xs)),
            false => drop(machine.events.dispatch(VcpuId(0))),
        };
        assert!(catch_unwind(AssertUnwindSafe(&mut tell)).is_err());
        assert!(tasks.iter().all(|(task, _)| task.woken()), "closes {closes}");
        let _ = disk.close(&mut xs, machine.soon());
        back.come_back();
    }
    machine.grants.reclaim();
    assert!(machine.guest.pages_in_use() <= before + 1, "a record's page at most: wakers keep none");
}

#[test]
fn tasks_that_wait_for_any_event_are_all_woken_however_many() {
    let machine = Machine::new();
    let _back = machine.disk(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    let tasks = tasks::<7>();
    while disk.poll_event(&mut Context::from_waker(Waker::noop())).is_ready() {}
    for (_, waker) in &tasks {
        assert!(disk.poll_event(&mut Context::from_waker(waker)).is_pending());
    }
    // The first have lost their places, and were told so.
    let early = tasks.iter().filter(|(task, _)| task.woken()).count();
    let ticket = disk.submit_read(0, 1).unwrap();
    disk.publish().unwrap();
    assert_eq!(disk.arm(), Ok(false));
    turn(&machine);
    let late = tasks.iter().filter(|(task, _)| task.woken()).count();
    assert_eq!(early + late, 7);
    disk.poll().unwrap();
    disk.forget(ticket);
}

#[test]
fn a_backend_that_goes_is_not_waited_for() {
    for way in 0..3 {
        let machine = Machine::new();
        let back = machine.disk(Options::default());
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let mut disk = machine.connect(&mut xs).unwrap();
        back.stall(true);
        let tickets = [0, 8].map(|lba| disk.submit_read(lba, 1).unwrap());
        disk.publish().unwrap();
        let tasks = tasks::<3>();
        let poll = |disk: &mut xen_blkfront::BlkFront<'_, _>| -> [Poll<Result<(), Error>>; 2] {
            [0, 1].map(|i| disk.poll_take(tickets[i], &mut [0; 512], &mut Context::from_waker(&tasks[i].1)))
        };
        assert_eq!(poll(&mut disk), [Poll::Pending; 2]);
        assert!(disk.poll_room(&mut Context::from_waker(&tasks[2].1)).is_pending());
        back.stall(false);
        match way {
            0 => back.vanish(),
            1 => back.drop_out(),
            _ => back.fault(Fault::Id(77)),
        }
        turn(&machine);
        let error = if way < 2 {
            assert_eq!(disk.service(&mut xs), Ok(State::Closed));
            assert_eq!(disk.arm(), Err(Error::Closed));
            Error::Closed
        } else {
            disk.poll().unwrap_err()
        };
        assert!(tasks.iter().all(|(task, _)| task.woken()), "{way}");
        assert_eq!(poll(&mut disk), [Poll::Ready(Err(error)); 2]);
        assert!(disk.poll_room(&mut Context::from_waker(&tasks[2].1)).is_ready());
    }
}

#[test]
fn a_task_goes_on_with_another_backend() {
    let machine = Machine::new();
    let back = machine.disk(Options::default());
    back.load(&pattern(512, 4));
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    back.stall(true);
    let ticket = disk.submit_read(0, 1).unwrap();
    disk.publish().unwrap();
    let [(task, waker)] = tasks();
    let (mut out, mut cx) = ([0; 512], Context::from_waker(&waker));
    assert!(disk.poll_take(ticket, &mut out, &mut cx).is_pending());
    back.vanish();
    back.come_back();
    back.stall(false);
    // Before the task has run.
    disk.reconnect(&mut xs, machine.soon()).unwrap();
    assert!(task.woken());
    let mut polls = 0;
    while disk.poll_take(ticket, &mut out, &mut cx).is_pending() {
        turn(&machine);
        assert!(task.woken() && polls < 3);
        polls += 1;
    }
    assert!(out[..] == pattern(512, 4));
}

#[test]
fn a_waker_may_outlive_its_disk() {
    let machine = Machine::new();
    let _back = machine.disk(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    let [(task, waker)] = tasks();
    assert!(disk.poll_event(&mut Context::from_waker(&waker)).is_pending());
    drop(disk);
    turn(&machine);
    drop(waker);
    assert_eq!(Arc::strong_count(&task), 1, "the disk keeps no waker");
}
