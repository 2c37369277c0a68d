//! The rings' work: requests are taken, done and answered.

use core::sync::atomic::Ordering::{Acquire, Release};
use std::format;
use std::string::ToString;
use std::vec::Vec;

use xen_hypercall::mock::Chance;

use super::backend::Backend;
use super::{Fault, Faults, Order};
use crate::abi::*;

/// Where the indices are in the ring's page (`io/ring.h`).
const REQ_PROD: usize = 0;
const RSP_PROD: usize = 8;
type Pick = fn(&Faults) -> Chance;

/// How many requests are remembered at most.
const SERVED: usize = 1 << 16;

impl Backend {
    /// Takes what was sent, where an event said so, and answers some of it. Whether there was anything.
    pub(super) fn serve(&mut self) -> bool {
        let queues = self.link.as_ref().map_or(0, |link| link.queues.len());
        let mut progress = false;
        for queue in 0..queues {
            progress |= self.serve_queue(queue);
        }
        progress
    }

    fn queue(&mut self, index: usize) -> Option<&mut super::link::Queue> {
        self.link.as_mut()?.queues.get_mut(index)
    }

    fn serve_queue(&mut self, index: usize) -> bool {
        let spurious = self.hit(false, |faults| faults.spurious_event);
        let dom0 = self.dom0.clone();
        let Some(queue) = self.queue(index) else { return false };
        if spurious || core::mem::take(&mut queue.late_event) {
            queue.notify(&dom0);
        }
        let taken = queue.notified(&dom0) && self.take_requests(index);
        let overdue = self.queue(index).map(|queue| core::mem::take(&mut queue.late)).unwrap_or_default();
        let now = self.choose(index, overdue.is_empty());
        if now.is_empty() && overdue.is_empty() {
            // An event alone is no move: while the guest does not listen, time goes on.
            return taken;
        }
        for request in now {
            // A request is late once, so that the work ends; a barrier never, for others wait for it.
            if request.operation != OP_BARRIER && self.hit(false, |faults| faults.late) {
                if let Some(queue) = self.queue(index) {
                    queue.late.push(request);
                }
            } else {
                self.answer(index, request);
            }
        }
        for request in overdue {
            self.answer(index, request);
        }
        self.notify(index);
        true
    }

    fn take_requests(&mut self, index: usize) -> bool {
        let Some(queue) = self.queue(index) else { return false };
        loop {
            match queue.ring.pop() {
                Ok(Some(request)) => queue.requests.push(request),
                Ok(None) if queue.ring.arm().unwrap_or(false) => {}
                Ok(None) => return true,
                Err(error) => {
                    self.complaints.push(error.to_string());
                    return true;
                }
            }
        }
    }

    /// The requests to be served now, in order. One after a barrier waits for it, a barrier for those before it, also for
    /// late ones, unless `none_late`.
    fn choose(&mut self, index: usize, none_late: bool) -> Vec<Request> {
        let (dice, order) = (self.dice.clone(), self.options.order);
        let Some(queue) = self.queue(index) else { return Vec::new() };
        let barrier = queue.requests.iter().position(|request| request.operation == OP_BARRIER);
        // With nothing before it the barrier is by itself.
        let end = barrier.map_or(queue.requests.len(), |at| at.max(usize::from(none_late)));
        let mut now: Vec<Request> = queue.requests.drain(..end).collect();
        match order {
            Order::Sent => {}
            Order::Reversed => now.reverse(),
            Order::Shuffled(_) if !now.is_empty() => {
                for index in (1..now.len()).rev() {
                    now.swap(index, dice.below(index as u64 + 1) as usize);
                }
                let later = now.split_off(1 + dice.below(now.len() as u64) as usize);
                queue.requests.splice(..0, later);
            }
            Order::Shuffled(_) => {}
        }
        now
    }

    /// The next response's fault: one that was asked for, or one by chance.
    fn draw(&mut self, request: &Request) -> Option<Fault> {
        if let Some(fault) = self.faults.pop_front() {
            return Some(fault);
        }
        let id = request.id ^ (1 << self.random(64));
        let operation = self.random(256) as u8;
        let status = self.random(0x1_0000) as u16 as i16;
        let jump = match self.random(3) {
            0 => 1 + self.random(64) as u32,
            1 => 0_u32.wrapping_sub(1 + self.random(64) as u32),
            _ => self.random(1 << 32) as u32,
        };
        let candidates: [(bool, Pick, Fault); 9] = [
            (false, |faults| faults.fail, Fault::Status(RSP_ERROR)),
            (false, |faults| faults.unsupported, Fault::Status(RSP_EOPNOTSUPP)),
            (true, |faults| faults.odd_status, Fault::Status(status)),
            (false, |faults| faults.lost, Fault::Lost),
            (true, |faults| faults.wrong_id, Fault::Id(id)),
            (true, |faults| faults.wrong_operation, Fault::Operation(operation)),
            (true, |faults| faults.twice, Fault::Twice),
            (true, |faults| faults.unwritten, Fault::Unwritten),
            (true, |faults| faults.index_jump, Fault::Index(jump)),
        ];
        candidates.into_iter().find(|(lie, chance, _)| self.hit(*lie, chance)).map(|(.., fault)| fault)
    }

    /// Does a request and writes its response, or an earlier one again that is to be there twice.
    fn answer(&mut self, index: usize, request: Request) {
        let fault = self.draw(&request);
        let mut response = Response { id: request.id, operation: request.operation, ..Response::default() };
        if request.operation == OP_INDIRECT {
            // As Linux answers.
            response.operation = request.as_kind::<RequestIndirect>().map_or(0, |it| it.indirect_op);
        }
        match fault {
            // A request that is said to be done was done, so that an odd status is the only lie.
            Some(Fault::Status(status)) if status != RSP_OKAY => response.status = status,
            Some(Fault::Lost) => {}
            _ => {
                if self.served.len() == SERVED {
                    self.served.drain(..SERVED / 2);
                }
                self.served.push(request);
                response.status = self.perform(&request).unwrap_or_else(|complaint| {
                    self.complaints.push(complaint);
                    RSP_ERROR
                });
            }
        }
        self.trace(|| {
            let Request { operation, sector, segments, id, .. } = request;
            let Response { status, .. } = response;
            let fault = fault.map_or("no fault".to_string(), |fault| format!("{fault:?}"));
            format!("queue {index}: request {id:#x}, operation {operation}, sector {sector}, {segments} segments: status {status}, {fault}")
        });
        if fault == Some(Fault::Lost) {
            return;
        }
        let before = self.queue(index).and_then(|queue| queue.twice.take());
        match (fault, before) {
            (Some(Fault::Id(id)), _) => response.id = id,
            (Some(Fault::Bit(bit)), _) => response.id ^= 1_u64.rotate_left(bit.into()),
            (Some(Fault::Operation(operation)), _) => response.operation = operation,
            (_, Some(before)) => response = before,
            _ => {}
        }
        let credible = match fault {
            Some(Fault::Index(_) | Fault::Unwritten) => None,
            _ => self.is_credible(index, &request, &response, before),
        };
        if let Some(link) = &mut self.link {
            link.incredible =
                link.incredible.zip(credible).map(|(count, credible)| count + u64::from(!credible));
        }
        let dom0 = self.dom0.clone();
        let Some(queue) = self.queue(index) else { return };
        if fault == Some(Fault::Twice) {
            queue.twice = Some(response);
        }
        let pushed = match fault {
            Some(Fault::Unwritten) => {
                // What is in the slot takes part as if it were the response.
                let slot = queue.ring.slots();
                let at = queue.ring.response_index();
                let mem = queue.ring.backing().mem();
                let old = mem.read(xen_ring::HEADER_SIZE + (at & (slot - 1)) as usize * size_of::<Request>());
                queue.ring.push(&old.unwrap_or_default())
            }
            _ => queue.ring.push(&response),
        };
        if let Some(Fault::Index(more)) = fault {
            let _ = queue.ring.publish();
            let mem = queue.ring.backing().mem();
            let at = mem.load_u32(RSP_PROD, Acquire).unwrap_or(0);
            let poked = mem.store_u32(RSP_PROD, at.wrapping_add(more), Release);
            poked.expect("the ring's page");
            queue.notify(&dom0);
        }
        if let Err(error) = pushed {
            self.complaints.push(error.to_string());
        }
    }

    /// Whether a guest that looks may take this for the response to a request.
    fn is_credible(
        &mut self,
        index: usize,
        request: &Request,
        response: &Response,
        before: Option<Response>,
    ) -> Option<bool> {
        if before.is_some_and(|before| before.id == response.id) {
            return Some(false);
        }
        let queue = self.queue(index)?;
        let mut open = queue.requests.iter().chain(&queue.late);
        if response.id != request.id {
            return Some(open.any(|open| open.id == response.id));
        }
        let meant = match request.as_kind::<RequestIndirect>() {
            Some(indirect) if request.operation == OP_INDIRECT => [OP_INDIRECT, indirect.indirect_op],
            _ => [request.operation; 2],
        };
        Some(meant.contains(&response.operation))
    }

    fn notify(&mut self, index: usize) {
        let (lost, late) =
            (self.hit(false, |faults| faults.lost_event), self.hit(false, |faults| faults.late_event));
        let scribble = self.hit(true, |faults| faults.scribble);
        let dom0 = self.dom0.clone();
        let Some(queue) = self.queue(index) else { return };
        match queue.ring.publish() {
            Ok(true) if lost => {}
            Ok(true) if late => queue.late_event = true,
            Ok(true) => queue.notify(&dom0),
            Ok(false) => {}
            Err(error) => self.complaints.push(error.to_string()),
        }
        if scribble {
            self.scribble(index);
        }
    }

    /// Changes what the guest has no reason to read any more.
    fn scribble(&mut self, index: usize) {
        let seed = self.random(u64::MAX);
        if let Some(link) = &mut self.link {
            link.incredible = None;
        }
        let Some(queue) = self.queue(index) else { return };
        let (slots, unread) = (queue.ring.slots(), queue.ring.response_index().wrapping_sub(1));
        let mem = queue.ring.backing().mem();
        for (offset, value) in
            [(REQ_PROD, seed as u32), (4, (seed >> 32) as u32), (12, seed.rotate_left(9) as u32)]
        {
            let _ = mem.store_u32(offset, value, Release);
        }
        // The newest response may not have been read; the slots after it are free or requests that were copied.
        for slot in 1..slots / 2 {
            let at = (unread.wrapping_add(slot) & (slots - 1)) as usize * size_of::<Request>();
            let _ = mem.fill(xen_ring::HEADER_SIZE + at, size_of::<Request>(), seed.rotate_left(slot) as u8);
        }
    }
}
