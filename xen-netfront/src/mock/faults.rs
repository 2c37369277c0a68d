//! What a backend does wrong, by chance.

use core::sync::atomic::Ordering::Release;

use xen_hypercall::mock::{Chance, Dice};

use super::{Backend, Fault};
use crate::abi::{RSP_ERROR, RxResponse};

/// How often a backend does what wrong, each by itself. None of it by default.
///
/// The first ones happen to honest backends, too: frames are lost, but the device goes on. The others are lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Faults {
    /// A frame from the guest is not sent, and has an error.
    pub fail: Chance,
    /// A frame for the guest arrives as an error.
    pub rx_error: Chance,
    /// Responses to frames from the guest come in the next step only, in another order; looked at in each step.
    pub late: Chance,
    /// A response to a frame from the guest does not come at all.
    pub lost: Chance,
    /// An event is not sent.
    pub lost_event: Chance,
    /// An event is sent in the next step.
    pub late_event: Chance,
    /// An event is sent without reason; looked at in each step.
    pub spurious_event: Chance,
    /// A page stays mapped after its use, until [`hold`](super::MockNetback::hold) is called with `false`.
    pub keep_mapped: Chance,
    /// The backend begins to close; in each step while it is connected.
    pub close: Chance,
    /// The backend is closed all at once, without closing before; in each step while it is connected.
    pub drop_out: Chance,
    /// The backend's domain dies, with its nodes; in each step while it is connected.
    pub die: Chance,
    /// A backend whose domain died is there again; in each step.
    pub come_back: Chance,
    /// What the backend may write to and is not its own changes: the guest's event field, and the rest of the
    /// rings' heads; in each step.
    pub scribble: Chance,
    /// A lie: a response names a request that was never sent, or another one.
    pub wrong_id: Chance,
    /// A lie: a response is there twice.
    pub twice: Chance,
    /// A lie: a response to the guest's page is left out, so that those behind it are in the wrong slots, or a
    /// frame has no end.
    pub rx_missing: Chance,
    /// A lie: a frame is said to be where its page is not, or to be of another length.
    pub rx_outside: Chance,
    /// A lie: a response has any flags.
    pub rx_flags: Chance,
    /// A lie: a slot of extra information holds anything.
    pub rx_extra: Chance,
    /// A lie: a ring's producer index jumps: forward, backward, or beyond the ring.
    pub index_jump: Chance,
}

impl Backend {
    /// Whether something happens now, which is counted.
    pub(super) fn roll(&mut self, which: impl Fn(&Faults) -> Chance) -> bool {
        let hit = self.chances.as_ref().is_some_and(|(dice, faults)| dice.hit(which(faults)));
        self.hits += u64::from(hit);
        hit
    }

    fn lie(&mut self, which: impl Fn(&Faults) -> Chance) -> bool {
        let hit = self.roll(which);
        self.lied += u64::from(hit);
        hit
    }

    pub(super) fn below(&self, n: u64) -> u64 {
        self.chances.as_ref().map_or(0, |(dice, _)| dice.below(n))
    }

    /// The fault of a response to a frame from the guest: one that was ordered, or one by chance.
    pub(super) fn tx_fault(&mut self) -> Option<Fault> {
        if let Some(fault) = self.tx_faults.pop_front() {
            return Some(fault);
        }
        if self.roll(|faults| faults.lost) {
            Some(Fault::Missing)
        } else if self.lie(|faults| faults.wrong_id) {
            Some(Fault::Id(self.any_id()))
        } else if self.lie(|faults| faults.twice) {
            Some(Fault::Twice)
        } else if self.lie(|faults| faults.index_jump) {
            Some(Fault::Index(self.any_jump()))
        } else {
            None
        }
    }

    /// The same for a frame for the guest.
    pub(super) fn rx_fault(&mut self) -> Option<Fault> {
        if let Some(fault) = self.rx_faults.pop_front() {
            return Some(fault);
        }
        if self.roll(|faults| faults.rx_error) {
            Some(Fault::Status(if self.below(2) == 0 { 0 } else { RSP_ERROR }))
        } else if self.lie(|faults| faults.rx_missing) {
            Some(Fault::Missing)
        } else if self.lie(|faults| faults.wrong_id) {
            Some(Fault::Id(self.any_id()))
        } else if self.lie(|faults| faults.twice) {
            Some(Fault::Twice)
        } else if self.lie(|faults| faults.rx_outside) {
            let any = self.below(1 << 16) as u16;
            Some(if self.below(2) == 0 { Fault::Offset(any) } else { Fault::Status(any as i16) })
        } else if self.lie(|faults| faults.rx_flags) {
            Some(Fault::Flags(self.below(1 << 6) as u16))
        } else if self.lie(|faults| faults.index_jump) {
            Some(Fault::Index(self.any_jump()))
        } else {
            None
        }
    }

    /// Extra information, or something else in its place.
    pub(super) fn spoil_extra(&mut self, slot: RxResponse) -> RxResponse {
        if !self.lie(|faults| faults.rx_extra) {
            return slot;
        }
        let mut bytes: [u8; 8] = zerocopy::transmute!(slot);
        let at = self.below(8) as usize;
        bytes[at] = self.below(256) as u8;
        zerocopy::transmute!(bytes)
    }

    fn any_id(&self) -> u16 {
        if self.below(2) == 0 { self.below(256) as u16 } else { self.below(1 << 16) as u16 }
    }

    fn any_jump(&self) -> u32 {
        match self.below(4) {
            0 => 1 + self.below(16) as u32,
            1 => (1 + self.below(16) as u32).wrapping_neg(),
            2 => 256,
            _ => self.below(1 << 32) as u32,
        }
    }

    /// Puts some responses to frames from the guest off, in another order.
    pub(super) fn put_off(&mut self, index: usize) -> usize {
        let Some(count) =
            self.queues.get(index).map(|queue| queue.tx_answers.len()).filter(|count| *count > 0)
        else {
            return 0;
        };
        // What was put off once comes.
        let overdue = self.queues.get_mut(index).is_some_and(|queue| core::mem::take(&mut queue.put_off));
        if overdue || !self.roll(|faults| faults.late) {
            return count;
        }
        if let Some(queue) = self.queues.get_mut(index) {
            queue.put_off = true;
        }
        for last in (1..count).rev() {
            let other = self.below(last as u64 + 1) as usize;
            if let Some(queue) = self.queues.get_mut(index) {
                queue.tx_answers.swap(last, other);
            }
        }
        self.below(count as u64) as usize
    }

    /// What may happen at any time. Whether the backend is still there.
    pub(super) fn happen(&mut self) -> bool {
        if self.gone {
            if self.roll(|faults| faults.come_back) {
                self.come_back();
            }
            return false;
        }
        for port in core::mem::take(&mut self.late_events) {
            self.send_event(port);
        }
        if self.queues.is_empty() {
            return true;
        }
        if self.roll(|faults| faults.spurious_event) {
            let ports: std::vec::Vec<u32> = self.queues.iter().flat_map(|q| [q.tx_port, q.rx_port]).collect();
            let any = self.below(ports.len() as u64) as usize;
            ports.get(any).copied().into_iter().for_each(|port| self.send_event(port));
        }
        if self.roll(|faults| faults.scribble) {
            self.scribble();
        }
        if self.roll(|faults| faults.close) {
            self.switch(xen_xenstore::xenbus::XenbusState::CLOSING);
        } else if self.roll(|faults| faults.drop_out) {
            self.drop_out();
        } else if self.roll(|faults| faults.die) {
            self.vanish();
        }
        !self.gone
    }

    fn scribble(&mut self) {
        let Some((dice, _)) = self.chances.clone() else { return };
        for queue in &mut self.queues {
            scribble(&mut queue.tx, &dice);
            scribble(&mut queue.rx, &dice);
        }
    }
}

fn scribble<P: xen_ring::Protocol, M: xen_ring::Backing>(ring: &mut xen_ring::Back<P, M>, dice: &Dice) {
    let mem = ring.backing().mem();
    // `rsp_event`, and what is behind the indices up to the slots (`io/ring.h`).
    let words = [12].into_iter().chain((16..64).step_by(4));
    for at in words {
        let _ = mem.store_u32(at, dice.next_u64() as u32, Release);
    }
}
