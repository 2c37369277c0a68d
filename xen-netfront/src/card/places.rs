//! Where tasks that wait for a place leave their wakers.

use xen_evtchn::wake_all;

use crate::waiters::Waiters;

/// Each for what its tasks wait for, so that no task is woken for what is another's.
#[derive(Default)]
pub(crate) struct Places {
    /// Frames. A device at work has their wakers as well.
    pub(crate) receive: Waiters,
    /// Room for frames. A device at work has their wakers as well.
    pub(crate) transmit: Waiters,
    pub(crate) link: Waiters,
    pub(crate) followup: Waiters,
    /// What the one who controls the device has to do.
    pub(crate) control: Waiters,
}

impl Places {
    pub(crate) const fn new() -> Self {
        Self {
            receive: Waiters::new(),
            transmit: Waiters::new(),
            link: Waiters::new(),
            followup: Waiters::new(),
            control: Waiters::new(),
        }
    }

    /// All of them, also when a waker panics.
    pub(crate) fn wake_all(&mut self) {
        let Self { receive, transmit, link, followup, control } = self;
        wake_all([receive, transmit, link, followup, control].into_iter(), Waiters::wake_all);
    }
}
