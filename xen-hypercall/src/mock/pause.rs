//! A domain that is paused while the others go on, and a machine that stands still.

use core::time::Duration;
use std::format;

use super::{ActorId, MockDomain, MockXen};

/// How far time goes on between two looks at the far sides: at first, and at most once none of them does anything.
const STEPS: [Duration; 2] = [Duration::from_millis(10), Duration::from_secs(1)];
/// A pause that nobody ends by then, of all that have an end, is a mistake of the test.
const FORGOTTEN: Duration = Duration::from_secs(24 * 3600);

/// What a slow far side takes for a move, and what goes by in a step of the machine meanwhile.
const MOVE: Duration = Duration::from_millis(1200);
const LOOK: Duration = Duration::from_millis(15);
/// How long the machine stands still.
const STANDSTILL: Duration = Duration::from_secs(20 * 60);

impl MockXen {
    /// A far side that takes 1.2 s for each move; `stall` is to let it stand still, or move. In the step of number `standstill` from
    /// now on the machine stands still as a whole, with all its far sides, for 20 minutes. So a guest that counts time in which
    /// nothing ran gives up on a far side that moved as soon as it could.
    pub fn slow_down(&self, standstill: u32, stall: impl Fn(bool) + Send + 'static) -> ActorId {
        stall(true);
        let (mut step, mut due) = (0, self.now() + MOVE);
        self.add_actor("slow", move |xen| {
            step += 1;
            if step == standstill {
                xen.advance(STANDSTILL);
                due += STANDSTILL;
            }
            let moves = xen.now() >= due;
            stall(!moves);
            if moves {
                due = xen.now() + MOVE;
            }
            xen.advance(LOOK);
            true
        })
    }
}

impl MockDomain {
    /// Pauses the domain until [`unpause`](Self::unpause): time goes on and the far sides act, while its kernel does not run.
    ///
    /// The kernel stops where it sleeps: in [`Wait::wait`](crate::Wait::wait) and in the hypercalls that block. The call
    /// returns after the pause, so the kernel sees one long gap. Events, and timers that fire, stay pending. For a machine that
    /// stands still as a whole, backends too, there is [`MockXen::advance`](super::MockXen::advance).
    pub fn pause(&self) {
        self.set_paused(Some(Duration::MAX));
    }

    /// [Pauses](Self::pause) the domain for so long from now on.
    pub fn pause_for(&self, time: Duration) {
        let until = self.xen().now().saturating_add(time);
        self.set_paused(Some(until));
    }

    /// Lets the domain go on.
    pub fn unpause(&self) {
        self.set_paused(None);
    }

    /// Whether the domain is paused.
    pub fn is_paused(&self) -> bool {
        let now = self.xen().now();
        self.state().paused.is_some_and(|until| now < until)
    }

    fn set_paused(&self, until: Option<Duration>) {
        self.xen().trace(|| match until {
            Some(Duration::MAX) => format!("{} is paused", self.id()),
            Some(until) => format!("{} is paused until {:.6}", self.id(), until.as_secs_f64()),
            None => format!("{} goes on", self.id()),
        });
        self.state().paused = until;
    }

    /// Lets the others go on for as long as this domain is paused.
    ///
    /// # Panics
    /// When nobody ends the pause, with the trace.
    pub(super) fn sit_out(&self) {
        let (began, [first, most]) = (self.xen().now(), STEPS);
        let mut step = first;
        while self.is_paused() {
            step = if self.xen().step() { first } else { most.min(step * 2) };
            let now = self.xen().now();
            // Read again: a far side may have ended or lengthened the pause.
            let Some(until) = self.state().paused else { break };
            assert!(
                until < Duration::MAX || now - began < FORGOTTEN,
                "{} is paused, and nobody lets it go on\n{}",
                self.id(),
                self.xen().trace_text()
            );
            self.xen().advance(step.min(until.saturating_sub(now)));
        }
    }
}
