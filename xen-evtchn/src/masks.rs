//! Delivery to a port's owner, and who keeps a port masked: its owner, an event that is not finished, or nobody owning it.

use core::sync::atomic::Ordering::{AcqRel, Relaxed, Release};
use core::time::Duration;

use xen_hypercall::{Platform, Wait, event};

use crate::record::{Record, nanoseconds};
use crate::settle::settle;
use crate::state::{self, FREE, LATE, MASKED, THROTTLED, TWICE, UNFINISHED};
use crate::{EventChannels, Port};

impl<P: Platform> EventChannels<P> {
    /// Takes reasons to mask a port away; with the last one it is unmasked.
    fn let_go(&self, port: Port, record: &Record, reasons: u64) {
        if record.let_go(reasons) & reasons != 0 {
            self.settle(port, record);
        }
    }

    /// Makes the port's mask what its record says.
    fn settle(&self, port: Port, record: &Record) {
        let mask = || self.abi().mask(self.shared(), port);
        settle(|| record.is_held(), mask, || self.unmask_now(port, record));
    }

    fn unmask_now(&self, port: Port, record: &Record) {
        let mut refire = || event::unmask(self.platform(), port.0).is_ok();
        if !self.abi().unmask(self.shared(), port, &mut refire)
            && self.abi().take_pending(self.shared(), port)
        {
            // Xen does not know the port any more. The event is here nevertheless, and its owner may wait for it.
            self.deliver(port, record);
        }
    }

    /// Masks or unmasks a port for its owner.
    pub(crate) fn set_masked(&self, port: Port, record: &Record, masked: bool) {
        if masked {
            record.hold(MASKED);
        } else {
            record.let_go(MASKED);
        }
        // In any case, so that unmasking also raises an event that other code made Xen forget.
        self.settle(port, record);
    }

    /// Lets events reach a port's new owner.
    pub(crate) fn open(&self, port: Port, record: &Record) {
        let missed = state::open(record.word());
        self.settle(port, record);
        if missed {
            self.deliver(port, record);
        }
    }

    fn deliver(&self, port: Port, record: &Record) {
        let word = state::deliver(record.word());
        if word & FREE != 0 {
            return self.stray(port);
        }
        if word & LATE != 0 {
            self.settle(port, record);
        }
        // Before the wakers: one that panics ends this.
        self.count_event();
        record.wake(word);
    }

    /// Gives an event that a pass took to the port's owner. `twice` is the first port of the pass's list.
    pub(crate) fn arrived(&self, port: Port, pass: u32, twice: &mut Port) {
        let Some(record) = self.records().get(port) else { return self.stray(port) };
        // With the FIFO ABI a port that is sent to at once gets into its queue again during the same pass. Only once: a
        // masked port does not, so a peer that sends without end cannot hold the pass.
        if record.came_in(pass) && record.hold(TWICE) & TWICE == 0 {
            record.next().store(twice.0, Relaxed);
            *twice = port;
            self.settle(port, record);
        }
        self.deliver(port, record);
    }

    /// Lets the ports of the list go. Events that came meanwhile make another upcall.
    pub(crate) fn finish_pass(&self, twice: Port) {
        let mut port = twice;
        while let Some(record) =
            Some(port).filter(|port| port.0 != 0).and_then(|port| self.records().get(port))
        {
            let next = Port(record.next().load(Relaxed));
            self.let_go(port, record, TWICE);
            port = next;
        }
    }

    /// An event for a port without owner: other code unmasked it. It must not come again.
    fn stray(&self, port: Port) {
        self.count_stray();
        self.abi().mask(self.shared(), port);
        // Somebody may have become its owner at this moment.
        if let Some(record) = self.records().get(port).filter(|record| !record.is_free()) {
            self.settle(port, record);
        }
    }

    /// Ends the ownership of a port, and closes the port. From the first step on nothing reaches the owner; the number
    /// may be somebody else's after the last but one.
    pub(crate) fn abandon(&self, port: Port, record: &Record, closes: bool) {
        let life = state::leave(record.word(), closes);
        self.settle(port, record);
        if record.forget() {
            self.throttled_now().fetch_sub(1, Release);
        }
        if closes {
            // Fails only for a port that is closed already, which is what is wanted.
            let _ = event::close(self.platform(), port.0);
        }
        state::vacate(record.word(), life);
    }

    /// Keeps an unfinished event's port masked for a while.
    pub(crate) fn throttle(&self, record: &Record, pause: Duration) {
        // Counted before, so that nobody who finds it throttled counts down below zero.
        self.throttled_now().fetch_add(1, AcqRel);
        if !record.throttle(pause) {
            self.throttled_now().fetch_sub(1, AcqRel);
        }
    }

    /// Ends the event under way, if there is one.
    pub(crate) fn finish(&self, port: Port, record: &Record) {
        let word = record.let_go(UNFINISHED | THROTTLED);
        if word & THROTTLED != 0 {
            self.throttled_now().fetch_sub(1, Release);
        }
        if word & UNFINISHED != 0 {
            self.settle(port, record);
        }
    }

    /// When the next channel that is throttled gets its events again, on the platform's clock; none if none is.
    ///
    /// A main loop that waits by other means than [`wait_since`](Self::wait_since) sleeps no longer than that, then calls
    /// [`unmask_due`](Self::unmask_due).
    pub fn next_unmask(&self) -> Option<Duration>
    where
        P: Wait,
    {
        self.look_at_throttled(false).1
    }

    /// Unmasks the throttled channels whose time has come; returns how many. [`wait_since`](Self::wait_since) does it, too.
    pub fn unmask_due(&self) -> usize
    where
        P: Wait,
    {
        self.look_at_throttled(true).0
    }

    /// Unmasks the throttled channels whose time has come, if it may. Returns how many, and when the next one is due.
    #[inline(never)]
    fn look_at_throttled(&self, unmask: bool) -> (usize, Option<Duration>)
    where
        P: Wait,
    {
        let (mut count, mut next) = (0, None);
        if self.throttled_now().load(Relaxed) == 0 || !self.is_current() {
            return (count, None);
        }
        let now = nanoseconds(self.platform().now());
        self.records().each(&mut |port, record| {
            let Some(due) = record.due(now) else { return };
            if !unmask || due > now {
                next = Some(next.map_or(due, |next: u64| next.min(due)));
            // Of several who look, and the owner, one ends it.
            } else if state::unthrottle(record.word()) {
                self.throttled_now().fetch_sub(1, Release);
                self.settle(port, record);
                count += 1;
            }
        });
        (count, next.map(Duration::from_nanos))
    }
}
