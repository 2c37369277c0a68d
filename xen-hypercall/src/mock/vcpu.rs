//! One virtual processor: whether it runs, and its timers.

use core::time::Duration;

use crate::Gfn;

#[derive(Default)]
pub(super) struct Vcpu {
    pub(super) up: bool,
    /// Where its events interrupt it, if it asked for a vector of its own.
    pub(super) upcall_vector: Option<u8>,
    /// When the one-shot timer is due.
    pub(super) singleshot: Option<Duration>,
    /// The periodic timer: when it is due next, and how often.
    pub(super) periodic: Option<(Duration, Duration)>,
    /// Where its `vcpu_info` is, when the guest chose a place: frame and offset in bytes.
    pub(super) area: Option<(Gfn, usize)>,
}

impl Vcpu {
    /// The one that a domain starts on.
    pub(super) fn first() -> Self {
        Self { up: true, ..Self::default() }
    }

    pub(super) fn next_timer(&self) -> Option<Duration> {
        self.singleshot.into_iter().chain(self.periodic.map(|(next, _)| next)).min()
    }

    /// Takes note that the timer due at `at` has fired.
    pub(super) fn fire(&mut self, at: Duration) {
        if self.singleshot == Some(at) {
            self.singleshot = None;
        } else if let Some((next, period)) = &mut self.periodic {
            *next = at.saturating_add(*period);
        }
    }
}
