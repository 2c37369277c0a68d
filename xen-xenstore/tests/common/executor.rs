//! A small executor of a seed: it polls tasks in any order, and drops them at any await.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Context, Wake, Waker};

use xen_hypercall::VcpuId;
use xen_hypercall::mock::Dice;

use super::Machine;

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

struct Task<'f> {
    future: Option<Pin<Box<dyn Future<Output = ()> + 'f>>>,
    woken: Arc<Woken>,
    /// It may be dropped before it is ready.
    may_go: bool,
}

pub struct Executor<'m, 'f> {
    machine: &'m Machine,
    dice: Dice,
    tasks: Vec<Task<'f>>,
    /// In how many of a thousand turns a task is dropped.
    pub cancel: u64,
    pub polls: usize,
}

impl<'m, 'f> Executor<'m, 'f> {
    pub fn new(machine: &'m Machine, seed: u64) -> Self {
        Self { machine, dice: Dice::new(seed), tasks: Vec::new(), cancel: 0, polls: 0 }
    }

    /// A task that runs to its end. Returns its number.
    pub fn spawn(&mut self, future: impl Future<Output = ()> + 'f) -> usize {
        self.add(future, false)
    }

    /// A task that may be dropped.
    pub fn spawn_mortal(&mut self, future: impl Future<Output = ()> + 'f) -> usize {
        self.add(future, true)
    }

    fn add(&mut self, future: impl Future<Output = ()> + 'f, may_go: bool) -> usize {
        let woken = Arc::new(Woken(AtomicBool::new(true)));
        self.tasks.push(Task { future: Some(Box::pin(future)), woken, may_go });
        self.tasks.len() - 1
    }

    pub fn drop_task(&mut self, task: usize) {
        self.tasks[task].future = None;
    }

    pub fn is_done(&self, task: usize) -> bool {
        self.tasks[task].future.is_none()
    }

    fn poll(&mut self, index: usize) {
        let task = &mut self.tasks[index];
        task.woken.0.store(false, SeqCst);
        let waker = Waker::from(Arc::clone(&task.woken));
        let Some(future) = task.future.as_mut() else { return };
        self.polls += 1;
        assert!(self.polls < 2_000_000, "tasks keep each other busy");
        if future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            self.tasks[index].future = None;
        }
    }

    /// Polls a task whether it was woken or not.
    pub fn poke(&mut self, task: usize) {
        self.poll(task);
    }

    /// One turn of any kind. Returns false when nobody has anything to do.
    pub fn turn(&mut self) -> bool {
        let woken: Vec<usize> = (0..self.tasks.len())
            .filter(|index| self.tasks[*index].future.is_some() && self.tasks[*index].woken.0.load(SeqCst))
            .collect();
        if self.cancel > 0 && self.dice.below(1000) < self.cancel {
            let index = self.dice.below(self.tasks.len() as u64) as usize;
            if self.tasks[index].may_go {
                self.tasks[index].future = None;
                return true;
            }
        }
        match self.dice.below(4) {
            0 => {
                self.machine.xen.step();
                self.machine.events.dispatch(VcpuId(0));
                return true;
            }
            // A look in vain now and then.
            1 if self.dice.below(8) == 0 => {
                let index = self.dice.below(self.tasks.len() as u64) as usize;
                self.poll(index);
                return true;
            }
            _ if !woken.is_empty() => {
                self.poll(woken[self.dice.below(woken.len() as u64) as usize]);
                return true;
            }
            _ => {}
        }
        let acted = self.machine.xen.step();
        let events = self.machine.events.dispatch(VcpuId(0)) > 0;
        if acted || events || !woken.is_empty() {
            return true;
        }
        // A port that is masked for a while.
        if let Some(due) = self.machine.events.next_unmask() {
            self.machine.xen.advance(due.saturating_sub(self.machine.xen.now()));
            self.machine.events.unmask_due();
            return true;
        }
        false
    }

    /// Runs until nobody has anything to do.
    pub fn run(&mut self) {
        while self.turn() {}
    }

    /// Runs until a task is done.
    ///
    /// # Panics
    /// When nobody has anything to do, and it is not.
    pub fn run_until(&mut self, task: usize) {
        while !self.is_done(task) {
            assert!(self.turn(), "a wake-up is lost: task {task} waits, and nobody has anything to do");
        }
    }

    /// Which tasks are not done.
    pub fn waiting(&self) -> Vec<usize> {
        (0..self.tasks.len()).filter(|task| !self.is_done(*task)).collect()
    }
}
