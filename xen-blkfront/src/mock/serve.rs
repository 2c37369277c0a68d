//! The ring's work: requests are taken, done and answered.

use core::sync::atomic::Ordering::{Acquire, Release};
use std::format;
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

use xen_gnttab::GrantRef;
use xen_gnttab::mock::map;
use xen_hypercall::event;

use super::{Backend, Fault, Order};
use crate::abi::*;

/// Where the producer index of the responses is in the ring's page (`io/ring.h`).
const RSP_PROD: usize = 8;

impl Backend {
    /// Takes what was sent, if an event said so, and answers some of it. Whether there was anything.
    pub(super) fn serve(&mut self) -> bool {
        let Some(port) = self.link.as_ref().map(|link| link.port) else { return false };
        let taken = self.notified(port) && self.take_requests();
        let count = match self.options.order {
            _ if self.requests.is_empty() => return taken,
            Order::Sent => self.requests.len(),
            Order::Reversed => {
                self.requests.reverse();
                self.requests.len()
            }
            Order::Shuffled(_) => {
                for index in (1..self.requests.len()).rev() {
                    let other = self.below(index + 1);
                    self.requests.swap(index, other);
                }
                1 + self.below(self.requests.len())
            }
        };
        let now: Vec<Request> = self.requests.drain(..count).collect();
        let mut last = None;
        for request in now {
            last = Some(self.answer(request, last));
        }
        self.notify();
        true
    }

    fn take_requests(&mut self) -> bool {
        let Some(link) = &mut self.link else { return false };
        loop {
            match link.ring.pop() {
                Ok(Some(request)) => self.requests.push(request),
                Ok(None) if link.ring.arm().unwrap_or(false) => {}
                Ok(None) => return true,
                Err(error) => {
                    self.complaints.push(error.to_string());
                    return true;
                }
            }
        }
    }

    /// Does a request and writes its response, or `last` again when that one was to be there twice.
    fn answer(&mut self, request: Request, last: Option<(Response, bool)>) -> (Response, bool) {
        let fault = self.faults.pop_front();
        let mut response = Response { id: request.id, operation: request.operation, ..Response::default() };
        match fault {
            Some(Fault::Status(status)) => response.status = status,
            _ => {
                self.served.push(request);
                response.status = self.perform(&request).unwrap_or_else(|complaint| {
                    self.complaints.push(complaint);
                    RSP_ERROR
                });
            }
        }
        match (fault, last) {
            (Some(Fault::Id(id)), _) => response.id = id,
            (Some(Fault::Operation(operation)), _) => response.operation = operation,
            (_, Some((before, true))) => response = before,
            _ => {}
        }
        let Some(link) = &mut self.link else { return (response, false) };
        if let Err(error) = link.ring.push(&response) {
            self.complaints.push(error.to_string());
        }
        if let Some(Fault::Index(more)) = fault {
            let _ = link.ring.publish();
            let mem = link.ring.backing().mem();
            let index = mem.load_u32(RSP_PROD, Acquire).unwrap_or(0);
            let poked = mem.store_u32(RSP_PROD, index.wrapping_add(more), Release);
            poked.expect("the ring's page");
            let _ = event::send(&self.dom0, link.port);
        }
        (response, fault == Some(Fault::Twice))
    }

    fn notify(&mut self) {
        let Some(link) = &mut self.link else { return };
        match link.ring.publish() {
            // Fails when the guest has closed its end, who then does not care.
            Ok(true) => drop(event::send(&self.dom0, link.port)),
            Ok(false) => {}
            Err(error) => self.complaints.push(error.to_string()),
        }
    }

    /// The request's status; an error for what no guest may ask.
    fn perform(&mut self, request: &Request) -> Result<i16, String> {
        let segments = request.segment.get(..request.segments.into()).ok_or("more than 11 segments")?;
        match request.operation {
            OP_READ | OP_WRITE => {}
            OP_FLUSH if !self.options.flush => return Ok(RSP_EOPNOTSUPP),
            OP_FLUSH if segments.is_empty() => return Ok(RSP_OKAY),
            OP_FLUSH => return Err("a flush with segments".into()),
            other => return Err(format!("operation {other}")),
        }
        if segments.is_empty() {
            return Err("a transfer of nothing".into());
        }
        if request.operation == OP_WRITE && self.options.read_only {
            return Err("a write to a disk that cannot be written".into());
        }
        let each = u64::from(self.options.sector_size) / SECTOR as u64;
        if request.sector % each != 0 {
            return Err(format!("sector {} is not aligned", request.sector));
        }
        let mut at = usize::try_from(request.sector).map_err(|_| "a sector beyond all memory")? * SECTOR;
        for segment in segments {
            let (first, last) = (usize::from(segment.first), usize::from(segment.last));
            if first > last || last >= 4096 / SECTOR {
                return Err(format!("segment {segment:?}"));
            }
            let len = (last - first + 1) * SECTOR;
            if len as u64 % (each * SECTOR as u64) != 0 {
                return Err(format!("segment {segment:?} is not of whole sectors"));
            }
            let room = self.disk.get_mut(at..at + len).ok_or("beyond the end of the disk")?;
            let gref = GrantRef(segment.gref);
            let mut page = match self.mapped.remove(&gref) {
                Some(page) => page,
                None => {
                    let writable = self.options.persistent || self.holds || request.operation == OP_READ;
                    let page = map(&self.dom0, self.guest.id(), gref, writable);
                    page.map_err(|status| format!("{gref}: {status:?}"))?
                }
            };
            if request.operation == OP_READ {
                page.mem().write_bytes(first * SECTOR, room).map_err(|error| error.to_string())?;
            } else {
                let mut data = vec![0; len];
                page.mem().read_bytes(first * SECTOR, &mut data).map_err(|error| error.to_string())?;
                room.copy_from_slice(&data);
            }
            if self.options.persistent || self.holds {
                self.mapped.insert(gref, page);
            }
            at += len;
        }
        Ok(RSP_OKAY)
    }

    fn below(&mut self, limit: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % limit as u64) as usize
    }
}
