//! Delivery to a port's owner, and who keeps a port masked: its owner, an event that is not finished, or nobody owning it.

use core::sync::atomic::Ordering::{AcqRel, Relaxed, Release};
use core::time::Duration;

use xen_hypercall::{Platform, Wait, event};

use crate::record::{FREE, MASKED, Record, TWICE, UNFINISHED};
use crate::settle::settle;
use crate::{EventChannels, Port};

impl<P: Platform> EventChannels<P> {
    /// Masks a port for these reasons.
    pub(crate) fn hold(&self, port: Port, record: &Record, reasons: u8) {
        record.hold(reasons);
        self.settle(port, record);
    }

    /// Takes reasons to mask a port away; with the last one it is unmasked.
    pub(crate) fn let_go(&self, port: Port, record: &Record, reasons: u8) {
        if record.let_go(reasons) & reasons != 0 {
            self.settle(port, record);
        }
    }

    /// Makes the port's mask what its record says.
    fn settle(&self, port: Port, record: &Record) {
        let mask = || self.abi().mask(self.shared(), port);
        settle(|| record.held() != 0, mask, || self.unmask_now(port, record));
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
            self.hold(port, record, MASKED);
        } else {
            record.let_go(MASKED);
            // In any case, so that unmasking also raises an event that other code made Xen forget.
            self.settle(port, record);
        }
    }

    fn deliver(&self, port: Port, record: &Record) {
        if record.is_late() {
            // Before the owner hears of it, who may be done with it at once.
            self.hold(port, record, UNFINISHED);
        }
        record.fire();
        self.count_event();
    }

    /// Gives an event that a pass took to the port's owner. `twice` is the first port of the pass's list.
    pub(crate) fn arrived(&self, port: Port, pass: u32, twice: &mut Port) {
        let Some(record) = self.records().get(port).filter(|record| !record.is_free()) else {
            return self.stray(port);
        };
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

    /// Makes a record without owner what the mask of its port says: masked.
    pub(crate) fn abandon(&self, port: Port, record: &Record) {
        self.hold(port, record, FREE);
        self.unthrottle(record);
        record.release();
    }

    /// Keeps an unfinished event's port masked for a while.
    pub(crate) fn throttle(&self, record: &Record, pause: Duration) {
        // Counted before, so that nobody who finds it throttled counts down below zero.
        self.throttled_now().fetch_add(1, AcqRel);
        if !record.throttle(pause) {
            self.throttled_now().fetch_sub(1, AcqRel);
        }
    }

    pub(crate) fn unthrottle(&self, record: &Record) {
        if record.unthrottle() {
            self.throttled_now().fetch_sub(1, Release);
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
        if self.throttled_now().load(Relaxed) == 0 || !self.is_current() {
            return None;
        }
        let now = self.platform().now();
        self.records().iter().filter_map(|(_, record)| record.due(now)).min()
    }

    /// Unmasks the throttled channels whose time has come; answers how many. [`wait_since`](Self::wait_since) does it, too.
    pub fn unmask_due(&self) -> usize
    where
        P: Wait,
    {
        if self.throttled_now().load(Relaxed) == 0 || !self.is_current() {
            return 0;
        }
        let now = self.platform().now();
        let due = |record: &Record| record.due(now).is_some_and(|due| due <= now);
        let mut count = 0;
        for (port, record) in self.records().iter().filter(|(_, record)| due(record)) {
            self.unthrottle(record);
            self.let_go(port, record, UNFINISHED);
            count += 1;
        }
        count
    }
}
