//! A disk that is looked after: it comes and goes under tasks that use it.
#![cfg(feature = "mock")]

mod common;

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::{Poll, Waker};

use common::executor::Executor;
use common::{Machine, VBD, pattern, small};
use xen_blkfront::mock::{Fault, MockBlkback, Options};
use xen_blkfront::{Disk, Error, State};
use xen_hypercall::VcpuId;
use xen_hypercall::mock::MockDomain;
use xen_xenstore::Xenstore;
use xen_xenstore::shared::SharedStore;

/// A timer that the test lets run off.
#[derive(Clone, Default)]
struct Timer(Rc<RefCell<(bool, Vec<Waker>)>>);

impl Timer {
    fn wait(&self) -> impl Future<Output = ()> + use<> {
        let this = self.0.clone();
        poll_fn(move |cx| {
            let mut inner = this.borrow_mut();
            if inner.0 {
                return Poll::Ready(());
            }
            inner.1.push(cx.waker().clone());
            Poll::Pending
        })
    }

    fn run_off(&self) {
        self.0.borrow_mut().0 = true;
        let wakers = std::mem::take(&mut self.0.borrow_mut().1);
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// Everything that the tasks use.
struct Kernel<'m> {
    machine: &'m Machine,
    store: SharedStore<'m, MockDomain>,
    disk: Disk<'m, MockDomain>,
    timer: Timer,
}

impl<'m> Kernel<'m> {
    fn new(machine: &'m Machine) -> Self {
        let store = SharedStore::new(Xenstore::new(&machine.events).unwrap());
        Self { machine, store, disk: Disk::new(), timer: Timer::default() }
    }

    /// The tasks of a kernel: one for xenstore, and one for the disk.
    fn start<'k>(&'k self, executor: &mut Executor<'k>) {
        executor.spawn("xenstore", async {
            let error = self.store.runner().run().await;
            panic!("{error}");
        });
        self.look_after(executor);
    }

    fn look_after<'k>(&'k self, executor: &mut Executor<'k>) {
        let (events, grants) = (&self.machine.events, &self.machine.grants);
        let mut control = self.disk.control(events, grants, VBD, small()).unwrap();
        executor.spawn("control", async move {
            let error = control.run_with(self.store.client(), || self.timer.wait()).await;
            panic!("{error}");
        });
    }

    /// Lets everybody act until nobody has anything to do.
    fn settle(&self, executor: &mut Executor<'_>) {
        for _ in 0..50 {
            executor.run();
            let steps = self.machine.xen.run_until_idle(100);
            let events = self.machine.events.dispatch(VcpuId(0));
            executor.run();
            if steps <= 1 && events == 0 {
                return;
            }
        }
        panic!("they do not come to rest");
    }

    fn state(&self) -> Option<State> {
        self.disk.handle().state()
    }
}

type Results = Rc<RefCell<Vec<Result<(), Error>>>>;

fn start_reads<'k>(executor: &mut Executor<'k>, kernel: &'k Kernel<'_>, count: usize) -> Results {
    let results = Results::default();
    for index in 0..count {
        let results = results.clone();
        executor.spawn("read", async move {
            let mut out = [0; 4096];
            let result = kernel.disk.handle().read(index as u64 * 16, &mut out).await;
            if result.is_ok() {
                assert!(out[..] == pattern(1 << 20, 3)[index * 8192..][..4096]);
            }
            results.borrow_mut().push(result);
        });
    }
    results
}

fn disk(machine: &Machine) -> MockBlkback {
    let back = machine.disk(Options::default());
    back.load(&pattern(1 << 20, 3));
    back
}

#[test]
fn a_disk_is_connected_when_it_comes() {
    for seed in 0..4 {
        let machine = Machine::new();
        let kernel = Kernel::new(&machine);
        let mut executor = Executor::new(seed);
        kernel.start(&mut executor);
        executor.spawn("wait", async { kernel.disk.handle().connected().await });
        kernel.settle(&mut executor);
        assert_eq!((kernel.state(), executor.count("wait")), (None, 1));
        let back = disk(&machine);
        kernel.settle(&mut executor);
        assert_eq!((kernel.state(), executor.count("wait")), (Some(State::Connected), 0));
        let results = start_reads(&mut executor, &kernel, 20);
        kernel.settle(&mut executor);
        assert_eq!(*results.borrow(), vec![Ok(()); 20]);
        back.resize(4096);
        kernel.settle(&mut executor);
        assert_eq!(kernel.disk.handle().capacity(), 4096);
        assert!(kernel.disk.control(&machine.events, &machine.grants, VBD, small()).is_none());
        assert_eq!(back.complaints(), [""; 0]);
    }
}

#[test]
fn a_backend_that_closes_is_answered_and_another_one_is_followed() {
    for seed in 0..4 {
        let machine = Machine::new();
        let back = disk(&machine);
        let kernel = Kernel::new(&machine);
        let mut executor = Executor::new(seed);
        kernel.start(&mut executor);
        kernel.settle(&mut executor);
        assert_eq!(kernel.state(), Some(State::Connected));
        let results = start_reads(&mut executor, &kernel, 4);
        executor.run();
        back.detach();
        kernel.settle(&mut executor);
        assert!(!back.is_connected());
        assert_eq!((results.borrow().len(), executor.count("read")), (4, 0));
        assert_eq!(kernel.state(), Some(State::Closed));
        // Nobody has to wait for one that is not there.
        kernel.timer.run_off();
        kernel.settle(&mut executor);
        let results = start_reads(&mut executor, &kernel, 4);
        kernel.settle(&mut executor);
        assert_eq!(*results.borrow(), vec![Err(Error::Closed); 4]);
        back.come_back();
        kernel.settle(&mut executor);
        assert_eq!(kernel.state(), Some(State::Connected));
        let results = start_reads(&mut executor, &kernel, 4);
        kernel.settle(&mut executor);
        assert_eq!(*results.borrow(), vec![Ok(()); 4]);
    }
}

#[test]
fn calls_wait_for_a_backend_that_comes_back_in_time_and_no_longer() {
    for (seed, in_time) in [(1, true), (2, false), (3, true), (4, false)] {
        let machine = Machine::new();
        let back = disk(&machine);
        let kernel = Kernel::new(&machine);
        let mut executor = Executor::new(seed);
        kernel.start(&mut executor);
        kernel.settle(&mut executor);
        back.stall(true);
        let results = start_reads(&mut executor, &kernel, 20);
        kernel.settle(&mut executor);
        back.vanish();
        kernel.settle(&mut executor);
        assert_eq!((kernel.state(), executor.count("read")), (Some(State::Closed), 20));
        let late = start_reads(&mut executor, &kernel, 4);
        kernel.settle(&mut executor);
        if !in_time {
            kernel.timer.run_off();
            kernel.settle(&mut executor);
            assert_eq!(*results.borrow(), vec![Err(Error::Closed); 20]);
            assert_eq!(*late.borrow(), vec![Err(Error::Closed); 4]);
        }
        back.stall(false);
        back.come_back();
        kernel.settle(&mut executor);
        assert_eq!(kernel.state(), Some(State::Connected));
        if in_time {
            assert_eq!(*results.borrow(), vec![Ok(()); 20]);
            assert_eq!(*late.borrow(), vec![Ok(()); 4]);
        }
        assert_eq!(executor.count("read"), 0);
    }
}

#[test]
fn a_backend_that_hangs_while_it_closes_holds_nobody_up() {
    let machine = Machine::new();
    let back = disk(&machine);
    let kernel = Kernel::new(&machine);
    let mut executor = Executor::new(3);
    kernel.start(&mut executor);
    kernel.settle(&mut executor);
    back.stall(true);
    let results = start_reads(&mut executor, &kernel, 20);
    kernel.settle(&mut executor);
    back.detach();
    kernel.settle(&mut executor);
    kernel.timer.run_off();
    kernel.settle(&mut executor);
    assert_eq!(*results.borrow(), vec![Err(Error::Closed); 20]);
}

#[test]
fn a_backend_that_is_not_believed_is_tried_again_when_it_is_another() {
    let machine = Machine::new();
    let back = disk(&machine);
    let kernel = Kernel::new(&machine);
    let mut executor = Executor::new(3);
    kernel.start(&mut executor);
    kernel.settle(&mut executor);
    back.fault(Fault::Id(77));
    let results = start_reads(&mut executor, &kernel, 4);
    kernel.settle(&mut executor);
    assert!(results.borrow().iter().all(|result| matches!(result, Err(Error::Broken(_)))));
    assert_eq!(results.borrow().len(), 4);
    assert!(matches!(kernel.state(), Some(State::Broken(_))));
    assert!(!back.is_connected());
    let path = format!("/local/domain/1/device/vbd/{VBD}/backend");
    let backend = machine.store.read(&path).unwrap();
    machine.store.write(&path, &backend);
    back.come_back();
    kernel.settle(&mut executor);
    assert_eq!(kernel.state(), Some(State::Connected));
    let results = start_reads(&mut executor, &kernel, 4);
    kernel.settle(&mut executor);
    assert_eq!(*results.borrow(), vec![Ok(()); 4]);
}

#[test]
fn who_looks_after_a_disk_may_be_dropped_and_begun_anew() {
    let machine = Machine::new();
    let kernel = Kernel::new(&machine);
    let mut executor = Executor::new(3);
    kernel.start(&mut executor);
    let back = disk(&machine);
    let mut polls = 1;
    // In each step of the handshake.
    while kernel.state().is_none() {
        executor.cancel("control");
        kernel.settle(&mut executor);
        kernel.look_after(&mut executor);
        for _ in 0..polls {
            executor.step();
            machine.xen.step();
            machine.events.dispatch(VcpuId(0));
        }
        polls += 2;
        assert!(polls < 200);
    }
    kernel.settle(&mut executor);
    for _ in 0..20 {
        executor.cancel("control");
        let results = start_reads(&mut executor, &kernel, 4);
        kernel.settle(&mut executor);
        assert!(results.borrow().is_empty(), "nobody drives it");
        kernel.look_after(&mut executor);
        kernel.settle(&mut executor);
        assert_eq!(*results.borrow(), vec![Ok(()); 4]);
    }
    executor.cancel("control");
    back.vanish();
    back.come_back();
    let results = start_reads(&mut executor, &kernel, 4);
    kernel.look_after(&mut executor);
    kernel.settle(&mut executor);
    assert_eq!(*results.borrow(), vec![Ok(()); 4]);
    // One that waits for a backend takes the hope along.
    back.vanish();
    let results = start_reads(&mut executor, &kernel, 4);
    kernel.settle(&mut executor);
    assert!(results.borrow().is_empty());
    executor.cancel("control");
    kernel.settle(&mut executor);
    assert_eq!(*results.borrow(), vec![Err(Error::Closed); 4]);
}

#[test]
fn a_domain_is_resumed_under_who_looks_after_its_disk() {
    for steps in (0..60).step_by(4) {
        let machine = Machine::new();
        let back = disk(&machine);
        let kernel = Kernel::new(&machine);
        let mut executor = Executor::new(steps);
        kernel.start(&mut executor);
        for _ in 0..steps {
            executor.step();
            machine.xen.step();
            machine.events.dispatch(VcpuId(0));
        }
        let connected = kernel.state() == Some(State::Connected);
        let results = start_reads(&mut executor, &kernel, if connected { 12 } else { 0 });
        executor.step();
        kernel.store.block(|xs| assert_eq!(machine.suspend(xs, &mut &kernel.disk).1, 0));
        kernel.settle(&mut executor);
        assert_eq!(kernel.state(), Some(State::Connected), "after {steps} steps");
        assert_eq!((results.borrow().len(), executor.count("read")), (if connected { 12 } else { 0 }, 0));
        assert!(results.borrow().iter().all(Result::is_ok));
        back.detach();
        kernel.settle(&mut executor);
        assert!(!back.is_connected());
    }
}
