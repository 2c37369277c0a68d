//! Frames from the guest: slots are taken, judged, copied and answered.

use core::sync::atomic::Ordering::{Acquire, Release};
use std::collections::BTreeSet;
use std::format;
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

use xen_gnttab::GrantRef;
use xen_gnttab::mock::map;
use xen_hypercall::PAGE_SIZE;
use xen_ring::{Back, Backing, Protocol};
use zerocopy::transmute;

use super::{Backend, Fault, Frame, Queue};
use crate::abi::*;
use crate::packet::{self, ETHERNET, Packet};
use crate::{Checksum, Gso, GsoKind, Multicast};

/// Where the producer index of the responses is in a ring's page (`io/ring.h`).
pub(super) const RSP_PROD: usize = 8;
/// Slots that Linux takes for an attack (`fatal_skb_slots`).
const FATAL_SLOTS: usize = 20;

/// Why a frame does not pass.
enum Refusal {
    /// It is dropped.
    Drop(String),
    /// The device is ended.
    Fatal(String),
}

impl From<&str> for Refusal {
    fn from(text: &str) -> Self {
        Self::Drop(text.into())
    }
}

/// The slots of a frame.
struct Slots {
    requests: Vec<TxRequest>,
    extras: Vec<ExtraInfo>,
}

impl Backend {
    /// Takes what was sent, if an event said so, and what there is for the guest. Whether there was anything.
    pub(super) fn serve(&mut self) -> bool {
        let mut progress = self.serve_control();
        let ports: BTreeSet<u32> = self.queues.iter().flat_map(|q| [q.tx_port, q.rx_port]).collect();
        let came: BTreeSet<u32> = ports.into_iter().filter(|port| self.notified(*port)).collect();
        for index in 0..self.queues.len() {
            if self.queues.get(index).is_some_and(|queue| came.contains(&queue.tx_port)) {
                progress = true;
                self.take_frames(index);
            }
        }
        progress |= self.deliver();
        for index in 0..self.queues.len() {
            self.show(index);
        }
        progress
    }

    fn queue(&mut self, index: usize) -> Option<&mut Queue> {
        self.queues.get_mut(index).filter(|queue| !queue.dead)
    }

    /// Writes the responses of a queue, and shows them to the guest.
    fn show(&mut self, index: usize) {
        let now = self.put_off(index);
        let Some(queue) = self.queue(index) else { return };
        // What is there twice takes another's place, so some may not fit.
        let _ = queue.tx_answers.drain(..now).try_for_each(|answer| queue.tx.push(&answer));
        let _ = queue.rx_answers.drain(..).try_for_each(|answer| queue.rx.push(&answer));
        let (mut tx, mut rx) = (queue.tx.publish().unwrap_or(false), queue.rx.publish().unwrap_or(false));
        if let Some(more) = queue.tx_jump.take() {
            jump(&mut queue.tx, more);
            tx = true;
        }
        if let Some(more) = queue.rx_jump.take() {
            jump(&mut queue.rx, more);
            rx = true;
        }
        let (tx_port, rx_port) = (queue.tx_port, queue.rx_port);
        if tx {
            self.notify(tx_port);
        }
        if rx && (!tx || tx_port != rx_port) {
            self.notify(rx_port);
        }
    }

    fn take_frames(&mut self, index: usize) {
        while let Some(queue) = self.queue(index) {
            let first = match queue.tx.pop() {
                Ok(Some(first)) => first,
                Ok(None) if queue.tx.arm().unwrap_or(false) => continue,
                Ok(None) => return,
                Err(error) => {
                    queue.dead = true;
                    return self.complain(error.to_string());
                }
            };
            if self.disabled {
                continue;
            }
            let (slots, whole) = self.take_slots(index, first);
            if let (Ok(()), Some(status)) = (&whole, self.take_multicast(&slots)) {
                self.answer_all(index, &slots, status);
                continue;
            }
            let status = match whole.and_then(|()| self.judge(&slots)) {
                Ok(_) if self.roll(|faults| faults.fail) => RSP_ERROR,
                Ok(frame) => {
                    self.count(&slots, &frame);
                    self.switch.forward(self.port, frame);
                    RSP_OKAY
                }
                Err(Refusal::Drop(complaint)) => {
                    self.complain(complaint);
                    RSP_ERROR
                }
                Err(Refusal::Fatal(complaint)) => {
                    self.complain(format!("fatal: {complaint}"));
                    self.disabled = true;
                    return;
                }
            };
            self.answer_all(index, &slots, status);
        }
    }

    /// A request about multicast frames: no frame, whatever the rest says.
    fn take_multicast(&mut self, slots: &Slots) -> Option<i16> {
        let asks = [EXTRA_TYPE_MCAST_ADD, EXTRA_TYPE_MCAST_DEL];
        let extra = slots.extras.iter().find(|extra| asks.contains(&extra.kind))?;
        if self.options.multicast == Multicast::Unfiltered || extra.data[0] & 1 == 0 {
            self.complain("a multicast address that nobody asked for");
            return Some(RSP_ERROR);
        }
        if extra.kind == EXTRA_TYPE_MCAST_DEL {
            return Some(if self.wanted.remove(&extra.data) { RSP_OKAY } else { RSP_ERROR });
        }
        // As many as Linux takes (`XEN_NETBK_MCAST_MAX`).
        let fits = self.wanted.len() < 64;
        Some(if fits && self.wanted.insert(extra.data) { RSP_OKAY } else { RSP_ERROR })
    }

    fn count(&mut self, slots: &Slots, frame: &Frame) {
        self.stats.from_guest += 1;
        self.stats.slots_from_guest += (slots.requests.len() + slots.extras.len()) as u64;
        self.stats.blank_from_guest += u64::from(frame.checksum == Checksum::Blank);
        self.stats.gso_from_guest += u64::from(frame.gso.is_some());
    }

    /// Takes the other slots of a frame, all of which must be there already.
    fn take_slots(&mut self, index: usize, first: TxRequest) -> (Slots, Result<(), Refusal>) {
        let mut slots = Slots { requests: vec![first], extras: Vec::new() };
        let flags = TxFlags::from_bits_retain(first.flags);
        let missing = || Refusal::Fatal("the slots of a frame are not all there".into());
        let mut next = || self.queues.get_mut(index)?.tx.pop().ok()?;
        let mut more = flags.contains(TxFlags::EXTRA_INFO);
        while more {
            let Some(slot) = next() else { return (slots, Err(missing())) };
            let TxExtra { info, .. } = transmute!(slot);
            if info.kind == 0 || info.kind >= EXTRA_TYPE_MAX {
                return (slots, Err(Refusal::Fatal(format!("extra information of kind {}", info.kind))));
            }
            slots.extras.push(info);
            more = info.flags & EXTRA_FLAG_MORE != 0;
        }
        more = flags.contains(TxFlags::MORE_DATA);
        while more {
            let Some(slot) = next() else { return (slots, Err(missing())) };
            slots.requests.push(slot);
            more = TxFlags::from_bits_retain(slot.flags).contains(TxFlags::MORE_DATA);
            if slots.requests.len() >= FATAL_SLOTS {
                return (slots, Err(Refusal::Fatal("a frame of 20 slots".into())));
            }
        }
        (slots, Ok(()))
    }

    /// Whether Linux' netback would take the frame, and the frame.
    fn judge(&mut self, slots: &Slots) -> Result<Frame, Refusal> {
        let Some((first, rest)) = slots.requests.split_first() else { return Err("no slots".into()) };
        if !rest.is_empty() && !self.options.sg {
            return Err("a frame of several slots".into());
        }
        if slots.requests.len() > NR_SLOTS_MIN {
            return Err(Refusal::Drop(format!("a frame of {} slots", slots.requests.len())));
        }
        if usize::from(first.size) < ETHERNET {
            return Err(Refusal::Drop(format!("a frame of {} bytes", first.size)));
        }
        let mut left = first.size;
        for request in rest {
            if request.size == 0 {
                return Err("a slot without a byte".into());
            }
            left = left.checked_sub(request.size).ok_or("slots that are larger than the frame")?;
        }
        if left == 0 {
            return Err("a slot without a byte".into());
        }
        let mut bytes = Vec::with_capacity(first.size.into());
        for (request, size) in
            slots.requests.iter().zip([left].into_iter().chain(rest.iter().map(|r| r.size)))
        {
            let (offset, size) = (usize::from(request.offset), usize::from(size));
            if offset + size > PAGE_SIZE {
                return Err(Refusal::Fatal(format!("{size} bytes at {offset} cross a page")));
            }
            let gref = GrantRef(request.gref);
            let page = map(&self.dom0, self.guest.id(), gref, false);
            let mut page = page.map_err(|status| Refusal::Drop(format!("{gref}: {status:?}")))?;
            let at = bytes.len();
            bytes.resize(at + size, 0);
            if let Some(to) = bytes.get_mut(at..) {
                page.mem().read_bytes(offset, to).map_err(|error| Refusal::Drop(error.to_string()))?;
            }
            if self.holds || self.roll(|faults| faults.keep_mapped) {
                self.kept.push(page);
            }
        }
        let flags = TxFlags::from_bits_retain(first.flags);
        let checksum = if flags.contains(TxFlags::CSUM_BLANK) {
            Checksum::Blank
        } else if flags.contains(TxFlags::DATA_VALIDATED) {
            Checksum::Validated
        } else {
            Checksum::Complete
        };
        let gso =
            slots.extras.iter().find_map(ExtraInfo::as_gso).map(|gso| self.judge_gso(gso)).transpose()?;
        let frame = Frame { bytes, checksum, gso };
        self.judge_headers(&frame, left.into())?;
        Ok(frame)
    }

    fn judge_gso(&self, (size, kind): (u16, u8)) -> Result<Gso, Refusal> {
        let (kind, offered) = match kind {
            GSO_TYPE_TCPV4 => (GsoKind::TcpV4, self.options.gso_v4),
            GSO_TYPE_TCPV6 => (GsoKind::TcpV6, self.options.gso_v6),
            kind => return Err(Refusal::Fatal(format!("GSO of kind {kind}"))),
        };
        if size == 0 {
            return Err(Refusal::Fatal("GSO with segments of no size".into()));
        }
        if !offered {
            return Err("GSO that was not offered".into());
        }
        Ok(Gso { kind, size })
    }

    /// Linux looks at headers only when there is work left: cutting, or a checksum.
    fn judge_headers(&self, frame: &Frame, in_first: usize) -> Result<(), Refusal> {
        if frame.gso.is_none() && frame.checksum != Checksum::Blank {
            return Ok(());
        }
        if frame.gso.is_some() && frame.checksum != Checksum::Blank {
            return Err("GSO without a blank checksum".into());
        }
        let packet = Packet::parse(&frame.bytes).ok_or("a blank checksum in what is neither TCP nor UDP")?;
        if packet.payload > in_first {
            return Err("headers in more than the first slot".into());
        }
        if !(if packet.v6 { self.options.csum_v6 } else { self.options.csum_v4 }) {
            return Err("a blank checksum, which was not offered".into());
        }
        if !packet::has_partial(&frame.bytes, &packet) {
            return Err("a blank checksum that is not the pseudo header's sum".into());
        }
        if frame.to_wire().is_none() {
            return Err("GSO that is not of its kind".into());
        }
        Ok(())
    }

    /// A response for every slot: the extras' mean nothing but that the slot is free.
    fn answer_all(&mut self, index: usize, slots: &Slots, status: i16) {
        for (place, request) in slots.requests.iter().enumerate() {
            self.answer(index, TxResponse { id: request.id, status });
            if place == 0 {
                for extra in &slots.extras {
                    // Linux leaves what was there.
                    let id = u16::from_le_bytes([extra.kind, extra.flags]);
                    self.push_tx(index, TxResponse { id, status: RSP_NULL });
                }
            }
        }
    }

    fn answer(&mut self, index: usize, mut response: TxResponse) {
        let fault = self.tx_fault();
        match fault {
            Some(Fault::Id(id)) => response.id = id,
            Some(Fault::Status(status)) => response.status = status,
            Some(Fault::Missing) => return,
            Some(Fault::Twice) => self.push_tx(index, response),
            Some(Fault::Index(more)) => self.queues.iter_mut().for_each(|queue| queue.tx_jump = Some(more)),
            _ => {}
        }
        self.push_tx(index, response);
    }

    fn push_tx(&mut self, index: usize, response: TxResponse) {
        if let Some(queue) = self.queue(index) {
            queue.tx_answers.push(response);
        }
    }
}

/// Moves the producer index of a ring's responses ahead.
fn jump<P: Protocol, M: Backing>(ring: &mut Back<P, M>, more: u32) {
    let mem = ring.backing().mem();
    let index = mem.load_u32(RSP_PROD, Acquire).unwrap_or(0);
    let poked = mem.store_u32(RSP_PROD, index.wrapping_add(more), Release);
    poked.expect("the ring's page");
}
