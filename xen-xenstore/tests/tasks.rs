//! Tasks that wait for watches: none is forgotten, and none keeps the others busy or what is theirs from them.
#![cfg(feature = "mock")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};

use common::{ID, Machine, data};
use xen_hypercall::mock::MockDomain;
use xen_xenstore::Xenstore;

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[test]
fn a_task_is_woken() {
    let machine = Machine::new();
    let mut xs = machine.client();
    let watch = xs.watch("data/a").unwrap();
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut cx = Context::from_waker(&waker);
    machine.settle();
    assert_eq!(xs.poll_fired(&watch, &mut cx), Poll::Ready(Ok(())));
    assert_eq!(xs.poll_fired(&watch, &mut cx), Poll::Pending);
    machine.events.dispatch(xen_hypercall::VcpuId(0));
    let before = woken.0.load(SeqCst);
    machine.store.write(&data("a"), "1");
    machine.settle();
    machine.events.dispatch(xen_hypercall::VcpuId(0));
    assert!(woken.0.load(SeqCst) > before);
    assert_eq!(xs.poll_fired(&watch, &mut cx), Poll::Ready(Ok(())));
    // Another call that takes the event in passing wakes the task as well.
    assert_eq!(xs.poll_fired(&watch, &mut cx), Poll::Pending);
    let before = woken.0.load(SeqCst);
    machine.store.write(&data("a"), "1");
    xs.read("name").unwrap();
    machine.settle();
    xs.read("name").unwrap();
    assert!(woken.0.load(SeqCst) > before);
    assert_eq!(xs.poll_fired(&watch, &mut cx), Poll::Ready(Ok(())));
}

#[test]
fn of_tasks_that_wait_any_may_go_away() {
    // Which of the three waits on; the others have left their wakers, and never look again.
    for kept in 0..3 {
        let machine = Machine::new();
        let mut xs = machine.client();
        let watches = ["data/a", "data/b", "data/c"].map(|path| xs.watch(path).unwrap());
        machine.settle();
        let tasks: [Arc<Woken>; 3] = Default::default();
        let wakers = [0, 1, 2].map(|task: usize| Waker::from(Arc::clone(&tasks[task])));
        for (watch, waker) in watches.iter().zip(&wakers) {
            while xs.poll_fired(watch, &mut Context::from_waker(waker)).is_ready() {}
        }
        // As an executor does: a task that was woken looks again, unless it is gone.
        let mut woken = tasks[kept].0.load(SeqCst) > 0;
        if woken {
            let before = tasks[kept].0.load(SeqCst);
            let polled = xs.poll_fired(&watches[kept], &mut Context::from_waker(&wakers[kept]));
            assert!(polled.is_pending());
            woken = tasks[kept].0.load(SeqCst) > before;
        }
        let before = tasks[kept].0.load(SeqCst);
        machine.store.write(&data(["a", "b", "c"][kept]), "1");
        machine.settle();
        machine.events.dispatch(xen_hypercall::VcpuId(0));
        assert!(woken || tasks[kept].0.load(SeqCst) > before, "{kept}");
        let polled = xs.poll_fired(&watches[kept], &mut Context::from_waker(&wakers[kept]));
        assert_eq!(polled, Poll::Ready(Ok(())), "{kept}");
    }
}

#[test]
fn tasks_that_wait_do_not_keep_each_other_busy() {
    let machine = Machine::new();
    let mut xs = machine.client();
    let watches = ["data/a", "data/b", "data/c", "data/d"].map(|path| xs.watch(path).unwrap());
    machine.settle();
    let tasks: [Arc<Woken>; 4] = Default::default();
    let poll = |xs: &mut Xenstore<'_, MockDomain>, task: usize| {
        let waker = Waker::from(Arc::clone(&tasks[task]));
        xs.poll_fired(&watches[task], &mut Context::from_waker(&waker))
    };
    for task in 0..4 {
        while poll(&mut xs, task).is_ready() {}
    }
    let mut seen = [0; 4];
    // Whoever was woken looks, as an executor does. Returns how often, and who had an event.
    let mut run = |xs: &mut Xenstore<'_, MockDomain>| {
        let (mut polls, mut ready) = (0, Vec::new());
        while polls < 100 {
            let woken = |task: usize| tasks[task].0.load(SeqCst);
            let Some(task) = (0..4).find(|task| woken(*task) > seen[*task]) else { break };
            (seen[task], polls) = (woken(task), polls + 1);
            while poll(xs, task).is_ready() {
                ready.push(task);
            }
        }
        (polls, ready)
    };
    run(&mut xs);
    assert_eq!(run(&mut xs), (0, vec![]), "nothing happens");
    for (task, name) in ["a", "b", "c", "d"].into_iter().enumerate() {
        machine.store.write(&data(name), "1");
        machine.settle();
        machine.events.dispatch(xen_hypercall::VcpuId(0));
        let (polls, ready) = run(&mut xs);
        assert_eq!(ready, [task]);
        assert!(polls <= 2 * 4, "{polls} polls for one event");
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
    let machine = Machine::new();
    let mut xs = machine.client();
    let watches = ["data/a", "data/b", "data/c"].map(|path| xs.watch(path).unwrap());
    machine.settle();
    let tasks: [Arc<Woken>; 2] = Default::default();
    let [a, c] = [0, 1].map(|task: usize| Waker::from(Arc::clone(&tasks[task])));
    let panics = Waker::from(Arc::new(Panics));
    for (watch, waker) in watches.iter().zip([&a, &panics, &c]) {
        while xs.poll_fired(watch, &mut Context::from_waker(waker)).is_ready() {}
    }
    let before: Vec<_> = tasks.iter().map(|task| task.0.load(SeqCst)).collect();
    machine.store.give_up(ID, 1);
    let broken = std::panic::AssertUnwindSafe(|| xs.poll());
    assert!(std::panic::catch_unwind(broken).is_err());
    assert!(tasks.iter().zip(before).all(|(task, before)| task.0.load(SeqCst) > before));
}

#[test]
fn whoever_takes_an_event_wakes_the_task_of_its_watch() {
    let machine = Machine::new();
    let mut xs = machine.client();
    let watches = ["data/a", "data/b", "data/c"].map(|path| xs.watch(path).unwrap());
    machine.settle();
    let tasks: [Arc<Woken>; 3] = Default::default();
    for (watch, task) in watches.iter().zip(&tasks) {
        while xs.fired(watch).unwrap() {}
        let waker = Waker::from(Arc::clone(task));
        assert!(xs.poll_fired(watch, &mut Context::from_waker(&waker)).is_pending());
    }
    // Others may have been woken in vain before.
    let before: Vec<_> = tasks.iter().map(|task| task.0.load(SeqCst)).collect();
    machine.store.write(&data("a"), "1");
    machine.settle();
    // The tasks of the others are gone; one who asks something takes the event.
    xs.read("name").unwrap();
    let woken: Vec<_> = tasks.iter().map(|task| task.0.load(SeqCst)).collect();
    assert!(woken[0] > before[0], "{before:?} {woken:?}");
    // A connection that breaks concerns all.
    for (watch, task) in watches.iter().zip(&tasks) {
        while xs.fired(watch).unwrap() {}
        let waker = Waker::from(Arc::clone(task));
        assert!(xs.poll_fired(watch, &mut Context::from_waker(&waker)).is_pending());
    }
    let before: Vec<_> = tasks.iter().map(|task| task.0.load(SeqCst)).collect();
    machine.store.give_up(ID, 1);
    assert!(xs.poll().is_err());
    assert!(tasks.iter().zip(before).all(|(task, before)| task.0.load(SeqCst) > before));
}
