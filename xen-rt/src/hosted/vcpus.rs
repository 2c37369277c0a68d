//! The vCPUs of a process: each is a thread, and they wait for one another.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use mio::Waker;
use xen_hypercall::VcpuId;

std::thread_local! {
    static THIS: Cell<VcpuId> = const { Cell::new(VcpuId(0)) };
}

/// The vCPU that this thread is. Threads that are none are taken for the first.
pub(crate) fn this() -> VcpuId {
    THIS.get()
}

/// Makes this thread a vCPU.
#[cfg(feature = "smp")]
pub(super) fn become_vcpu(id: VcpuId) {
    THIS.set(id);
}

/// How a vCPU that waits hears of what another does. One of those that wait is at the world, and lets it act, or sleeps there;
/// the others sleep here.
pub(super) struct Others {
    several: AtomicBool,
    /// Counts what somebody may wait for.
    moves: Mutex<u64>,
    moved: Condvar,
    /// Somebody sleeps at the world.
    asleep: AtomicBool,
    waker: Arc<Waker>,
    /// The process ends.
    ending: AtomicBool,
}

impl Others {
    pub(super) fn new(waker: Arc<Waker>) -> Self {
        Self {
            several: AtomicBool::new(false),
            moves: Mutex::new(0),
            moved: Condvar::new(),
            asleep: AtomicBool::new(false),
            waker,
            ending: AtomicBool::new(false),
        }
    }

    /// Another vCPU is about to run.
    #[cfg(feature = "smp")]
    pub(super) fn join(&self) {
        self.several.store(true, Ordering::SeqCst);
    }

    pub(super) fn are_there(&self) -> bool {
        self.several.load(Ordering::SeqCst)
    }

    /// Wakes all that wait: something happened.
    pub(super) fn tell(&self) {
        if self.are_there() {
            *self.lock() += 1;
            self.moved.notify_all();
            if self.asleep.load(Ordering::SeqCst) {
                let _ = self.waker.wake();
            }
        }
    }

    /// The number of what happened last.
    pub(super) fn moves(&self) -> u64 {
        *self.lock()
    }

    /// Sleeps until something happens after that, or for a time.
    pub(super) fn wait(&self, since: u64, time: Option<Duration>) {
        let moves = self.lock();
        let same = |moves: &mut u64| *moves == since;
        match time {
            None => drop(self.moved.wait_while(moves, same)),
            Some(time) => drop(self.moved.wait_timeout_while(moves, time, same)),
        }
    }

    /// Sleeps at the world, by `sleep`, if nothing has happened after that.
    pub(super) fn sleep(&self, since: u64, sleep: impl FnOnce()) {
        self.asleep.store(true, Ordering::SeqCst);
        if !self.are_there() || self.moves() == since {
            sleep();
        }
        self.asleep.store(false, Ordering::SeqCst);
    }

    /// The process ends, and whoever is at the world leaves it to who does that.
    pub(super) fn end(&self) {
        self.ending.store(true, Ordering::SeqCst);
        self.tell();
    }

    pub(super) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        self.moves.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A vCPU's thread goes no further: another one ends the process.
pub(super) fn stop() -> ! {
    loop {
        thread::park();
    }
}
