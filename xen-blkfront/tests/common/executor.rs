//! A small executor that polls what was woken, in an order that a seed decides.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

use xen_hypercall::mock::Dice;

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

struct Task<'t> {
    name: &'static str,
    woken: Arc<Flag>,
    future: Pin<Box<dyn Future<Output = ()> + 't>>,
}

/// Tasks that are not done.
pub struct Executor<'t> {
    tasks: Vec<Task<'t>>,
    dice: Dice,
    /// How often a task was polled.
    pub polls: usize,
}

impl<'t> Executor<'t> {
    pub fn new(seed: u64) -> Self {
        Self { tasks: Vec::new(), dice: Dice::new(seed), polls: 0 }
    }

    pub fn spawn(&mut self, name: &'static str, future: impl Future<Output = ()> + 't) {
        let woken = Arc::new(Flag(AtomicBool::new(true)));
        self.tasks.push(Task { name, woken, future: Box::pin(future) });
    }

    /// Polls a task that was woken. False: there is none.
    pub fn step(&mut self) -> bool {
        let runnable = |task: &Task<'_>| task.woken.0.load(Ordering::SeqCst);
        let woken: Vec<usize> = (0..self.tasks.len()).filter(|at| runnable(&self.tasks[*at])).collect();
        if woken.is_empty() {
            return false;
        }
        let at = woken[self.dice.below(woken.len() as u64) as usize];
        let task = &mut self.tasks[at];
        task.woken.0.store(false, Ordering::SeqCst);
        let waker = Waker::from(task.woken.clone());
        self.polls += 1;
        if task.future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            drop(self.tasks.swap_remove(at));
        }
        true
    }

    /// Polls until no task is runnable.
    ///
    /// # Panics
    /// When that does not come.
    pub fn run(&mut self) {
        let mut polls = 0;
        while self.step() {
            polls += 1;
            assert!(polls < 10_000, "tasks keep each other busy");
        }
    }

    /// Drops any task of this name.
    pub fn cancel(&mut self, name: &str) {
        let found: Vec<usize> = (0..self.tasks.len()).filter(|at| self.tasks[*at].name == name).collect();
        if !found.is_empty() {
            let at = found[self.dice.below(found.len() as u64) as usize];
            drop(self.tasks.swap_remove(at));
        }
    }

    /// How many tasks of this name are not done.
    pub fn count(&self, name: &str) -> usize {
        self.tasks.iter().filter(|task| task.name == name).count()
    }
}
