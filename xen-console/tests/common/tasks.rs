//! An executor that polls woken tasks in any order, and drops any of them at any time.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};

use xen_hypercall::mock::Dice;

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

struct Task<'f> {
    name: usize,
    future: Pin<Box<dyn Future<Output = ()> + 'f>>,
    woken: Arc<Woken>,
}

pub struct Tasks<'f> {
    tasks: Vec<Task<'f>>,
    dice: Dice,
    next: usize,
}

impl<'f> Tasks<'f> {
    pub fn new(seed: u64) -> Self {
        Self { tasks: Vec::new(), dice: Dice::new(seed), next: 0 }
    }

    /// Adds a task, which is about to be polled. Returns its name.
    pub fn spawn(&mut self, future: impl Future<Output = ()> + 'f) -> usize {
        let (name, woken) = (self.next, Arc::new(Woken(AtomicBool::new(true))));
        self.tasks.push(Task { name, future: Box::pin(future), woken });
        self.next += 1;
        name
    }

    /// Polls one of those that are woken; false: none is.
    pub fn poll_one(&mut self) -> bool {
        let woken: Vec<_> = (0..self.tasks.len()).filter(|at| self.tasks[*at].woken.0.load(SeqCst)).collect();
        if woken.is_empty() {
            return false;
        }
        let at = woken[self.dice.below(woken.len() as u64) as usize];
        self.poll(at);
        true
    }

    /// Polls any of them, woken or not.
    pub fn poll_any(&mut self) {
        if !self.tasks.is_empty() {
            let at = self.dice.below(self.tasks.len() as u64) as usize;
            self.poll(at);
        }
    }

    fn poll(&mut self, at: usize) {
        let task = &mut self.tasks[at];
        task.woken.0.store(false, SeqCst);
        let waker = Waker::from(Arc::clone(&task.woken));
        if let Poll::Ready(()) = task.future.as_mut().poll(&mut Context::from_waker(&waker)) {
            self.tasks.swap_remove(at);
        }
    }

    /// Drops any of them.
    pub fn cancel_any(&mut self) {
        if !self.tasks.is_empty() {
            let at = self.dice.below(self.tasks.len() as u64) as usize;
            self.tasks.swap_remove(at);
        }
    }

    /// The names of those that are not at their end.
    pub fn names(&self) -> Vec<usize> {
        self.tasks.iter().map(|task| task.name).collect()
    }
}
