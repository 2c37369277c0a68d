//! How long to wait for a peer, in time that the guest has lived through.

use core::time::Duration;

/// The longest sleep between two looks at the clock. A guest that is paused is found out by a sleep that was longer.
const SLICE: Duration = Duration::from_secs(1);
/// What a busy machine may add to a sleep without the guest having been paused.
const SLACK: Duration = Duration::from_secs(1);

/// The end of a wait for a peer. Time in which the guest did not run does not count: a guest that was paused, saved or
/// migrated for an hour gives the peer what was left when it stopped.
///
/// Every loop that waits asks [`until`](Self::until) once in each round, after it has looked for what it waits for. So
/// the wait ends, whatever the peer does meanwhile, and the peer gets one look at least.
///
/// ```
/// use std::time::Duration;
/// use xen_evtchn::Deadline;
///
/// let second = Duration::from_secs(1);
/// let mut deadline = Deadline::new(5 * second);
/// assert_eq!(deadline.until(4 * second), Some(5 * second));
/// // A pause of an hour between the two looks: the second that was left is left still.
/// assert_eq!(deadline.until(3605 * second), Some(3606 * second));
/// assert_eq!(deadline.until(3606 * second), None);
/// ```
#[derive(Clone, Debug)]
pub struct Deadline {
    at: Duration,
    /// When the last look was, and when the sleep after it was to end.
    asked: Option<(Duration, Duration)>,
}

impl Deadline {
    /// A wait that ends when the platform's clock shows `at`.
    pub const fn new(at: Duration) -> Self {
        Self { at, asked: None }
    }

    /// Returns until when to sleep before the next look: the end, or earlier. `None` when the time is up.
    pub fn until(&mut self, now: Duration) -> Option<Duration> {
        // Nobody knows when in a sleep that was too long the guest stopped, so none of it counts.
        if let Some((looked, _)) = self.asked.filter(|(_, asked)| now.saturating_sub(*asked) > SLACK) {
            self.at = self.at.saturating_add(now.saturating_sub(looked));
        }
        let until = now.saturating_add(SLICE).min(self.at);
        self.asked = Some((now, until));
        (now < self.at).then_some(until)
    }

    /// The end as it is now, on the platform's clock.
    pub const fn at(&self) -> Duration {
        self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_that_the_guest_did_not_live_through_is_given_back() {
        let ms = Duration::from_millis;
        let mut deadline = Deadline::new(ms(10_000));
        assert_eq!(deadline.until(ms(0)), Some(ms(1000)));
        assert_eq!(deadline.until(ms(1000)), Some(ms(2000)));
        // A busy machine: counted.
        assert_eq!(deadline.until(ms(3000)), Some(ms(4000)));
        assert_eq!(deadline.at(), ms(10_000));
        // Paused for twenty minutes.
        assert_eq!(deadline.until(ms(1_204_000)), Some(ms(1_205_000)));
        assert_eq!(deadline.at(), ms(1_211_000));
        let mut now = ms(1_204_000);
        while let Some(until) = deadline.until(now) {
            assert!(until > now);
            now = until;
        }
        assert_eq!(now, ms(1_211_000));
    }

    #[test]
    fn a_peer_that_keeps_the_waiter_busy_does_not_lengthen_the_wait() {
        let mut deadline = Deadline::new(Duration::from_secs(5));
        let mut now = Duration::ZERO;
        while deadline.until(now).is_some() {
            now += Duration::from_millis(7);
        }
        assert!(now < Duration::from_millis(5007));
    }

    #[test]
    fn a_wait_without_end_has_none() {
        assert!(Deadline::new(Duration::MAX).until(Duration::from_secs(1 << 40)).is_some());
    }
}
