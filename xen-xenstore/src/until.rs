//! When a wait ends.

use core::time::Duration;

use xen_evtchn::Deadline;

/// When a wait ends: at a time of the platform's clock, or with a [`Deadline`] that several waits share.
///
/// Time in which the guest was paused does not count against whoever is waited for. A time of the clock begins each wait anew;
/// a shared deadline keeps what an earlier wait found out about pauses.
#[derive(Debug)]
pub struct Until<'d>(Kept<'d>);

#[derive(Debug)]
enum Kept<'d> {
    Own(Deadline),
    Shared(&'d mut Deadline),
}

impl From<Duration> for Until<'_> {
    fn from(at: Duration) -> Self {
        Self(Kept::Own(Deadline::new(at)))
    }
}

impl<'d> From<&'d mut Deadline> for Until<'d> {
    fn from(deadline: &'d mut Deadline) -> Self {
        Self(Kept::Shared(deadline))
    }
}

impl Until<'_> {
    /// The deadline itself.
    pub fn deadline(&mut self) -> &mut Deadline {
        match &mut self.0 {
            Kept::Own(deadline) => deadline,
            Kept::Shared(deadline) => deadline,
        }
    }
}

/// What is known about the pauses of the guest: the questions find out, and other waits count on it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pauses {
    /// How long the guest was paused, as far as questions found out.
    total: Duration,
    /// The deadline of the last wait, and the total that it knows of.
    known: (Duration, Duration),
}

impl Pauses {
    /// A question's deadline was `before` when it began to sleep, and has become later by a pause.
    pub(crate) fn note(&mut self, before: Duration, deadline: &Deadline) {
        self.total += deadline.at().saturating_sub(before);
    }

    /// Goes on with a wait. What the waiter did since the deadline was asked last, such as asking questions, may have taken
    /// longer than any sleep, and is no pause but for what is known of pauses.
    pub(crate) fn resume(&mut self, deadline: &mut Deadline) {
        let (at, known) = self.known;
        let missed = if at == deadline.at() { self.total.saturating_sub(known) } else { Duration::ZERO };
        *deadline = Deadline::new(deadline.at().saturating_add(missed));
        self.keep(deadline);
    }

    /// Remembers a deadline that knows of everything.
    pub(crate) fn keep(&mut self, deadline: &Deadline) {
        self.known = (deadline.at(), self.total);
    }
}
