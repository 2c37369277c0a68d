//! One virtual processor: whether it runs, and its timers.

use core::time::Duration;

use crate::Gfn;
use crate::abi::VcpuHvmContext;
use crate::vcpu::RunState;

#[derive(Default)]
pub(super) struct Vcpu {
    /// It has a state to run from.
    pub(super) initialised: bool,
    /// That state, if the guest said it.
    pub(super) context: Option<VcpuHvmContext>,
    pub(super) up: bool,
    /// Since when it is up or down, and how long it was in each [`RunState`] before.
    pub(super) since: Duration,
    pub(super) spent: [Duration; 4],
    /// Where its events interrupt it, if it asked for a vector of its own.
    pub(super) upcall_vector: Option<u8>,
    /// How often it was interrupted by an NMI.
    pub(super) nmis: usize,
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
        Self { initialised: true, up: true, ..Self::default() }
    }

    pub(super) fn set_up(&mut self, up: bool, now: Duration) {
        if self.up != up {
            let was = if self.up { RunState::RUNNING } else { RunState::OFFLINE };
            self.spent[was.0 as usize] += now.saturating_sub(self.since);
            self.since = now;
            self.up = up;
        }
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
