//! Whose turn it is: Xen and the far sides act for one thread at a time.

use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::{self, ThreadId};

/// A lock that its owner may take again: a handler makes hypercalls, and what waits lets far sides act.
#[derive(Default)]
pub(super) struct Turn {
    /// Who has it, and how often.
    owner: Mutex<Option<(ThreadId, usize)>>,
    over: Condvar,
}

/// As long as it exists, no other thread's turn comes.
pub(super) struct Taken<'t>(&'t Turn);

impl Turn {
    pub(super) fn take(&self) -> Taken<'_> {
        let me = thread::current().id();
        let mut owner = self.owner.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match &mut *owner {
                None => *owner = Some((me, 1)),
                Some((id, depth)) if *id == me => *depth += 1,
                Some(_) => {
                    owner = self.over.wait(owner).unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
            }
            return Taken(self);
        }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut owner = self.0.owner.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *owner {
            Some((_, depth)) if *depth > 1 => *depth -= 1,
            _ => {
                *owner = None;
                self.0.over.notify_one();
            }
        }
    }
}
