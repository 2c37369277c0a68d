//! Frames for the guest.

use std::format;
use std::string::ToString;
use std::vec::Vec;

use xen_gnttab::GrantRef;
use xen_gnttab::mock::map;
use xen_hypercall::PAGE_SIZE;
use zerocopy::transmute;

use super::{Backend, Fault, Frame};
use crate::abi::*;
use crate::packet::Packet;
use crate::{Checksum, Gso, GsoKind, Multicast};

impl Backend {
    /// Gives the guest what the switch has for it, as far as there is room. Whether there was anything.
    pub(super) fn deliver(&mut self) -> bool {
        if self.queues.is_empty() {
            return false;
        }
        if self.word.multicast == Multicast::Dynamic {
            self.filters = self.says("request-multicast-control");
        }
        while self.backlog.len() < 64 {
            let Some(frame) = self.switch.take(self.port) else { break };
            let to = frame.bytes.first_chunk::<6>().copied().unwrap_or_default();
            if self.filters && to[0] & 1 == 1 && to != [0xff; 6] && !self.wanted.contains(&to) {
                self.stats.filtered += 1;
                continue;
            }
            let before = self.backlog.len();
            self.prepare(frame);
            self.stats.undeliverable += u64::from(self.backlog.len() == before);
        }
        let mut progress = false;
        while let Some(frame) = self.backlog.front() {
            let (index, slots) = (self.choose(&frame.bytes), self.slots_of(frame));
            if !self.has_room(index, slots) {
                break;
            }
            progress = true;
            if let Some(frame) = self.backlog.pop_front() {
                self.give(index, &frame);
            }
        }
        progress
    }

    /// Does for a frame what the guest cannot, and queues what comes of it.
    fn prepare(&mut self, frame: Frame) {
        let takes = self.guest_takes;
        let cuts = match frame.gso {
            Some(Gso { kind: GsoKind::TcpV4, .. }) => !takes.gso_v4,
            Some(Gso { kind: GsoKind::TcpV6, .. }) => !takes.gso_v6,
            None => false,
        };
        let frames = if cuts { frame.cut() } else { Some([frame].into()) };
        for frame in frames.unwrap_or_default() {
            let v6 = Packet::parse(&frame.bytes).is_some_and(|packet| packet.v6);
            let takes_blank = if v6 { takes.csum_v6 } else { takes.csum_v4 };
            let fills = frame.checksum == Checksum::Blank && !takes_blank;
            let frame = if fills { frame.filled() } else { Some(frame) };
            // Without scatter-gather there is no slot for more than a page.
            let frame = frame.filter(|frame| takes.sg || self.headroom + frame.bytes.len() <= PAGE_SIZE);
            self.backlog
                .extend(frame.filter(|frame| !frame.bytes.is_empty() && frame.bytes.len() <= MAX_TX_SIZE));
        }
    }

    fn slots_of(&self, frame: &Frame) -> usize {
        let hash = usize::from(self.hash(&frame.bytes).is_some());
        let extras = hash + usize::from(frame.gso.is_some()) + usize::from(self.headroom > 0);
        frame.bytes.len().div_ceil(PAGE_SIZE - self.headroom) + extras
    }

    fn hash(&self, bytes: &[u8]) -> Option<(HashTypes, u32, usize)> {
        self.control.as_ref()?.hash(bytes, self.queues.len())
    }

    /// The queue for a frame: the same for all of a flow.
    fn choose(&self, bytes: &[u8]) -> usize {
        if let Some((_, _, queue)) = self.hash(bytes) {
            return queue;
        }
        let flow = Packet::parse(bytes).and_then(|packet| bytes.get(26..packet.transport + 4));
        let hash =
            flow.unwrap_or_default().iter().fold(0usize, |hash, byte| hash * 31 % 65521 + usize::from(*byte));
        hash % self.queues.len().max(1)
    }

    fn has_room(&mut self, index: usize, slots: usize) -> bool {
        self.look_for_room(index);
        self.queues.get(index).is_some_and(|queue| queue.dead || queue.room.len() >= slots)
    }

    /// Takes the guest's pages for receiving from the ring, and asks for an event with the next.
    pub(super) fn look_for_room(&mut self, index: usize) {
        let Some(queue) = self.queues.get_mut(index).filter(|queue| !queue.dead) else { return };
        loop {
            match queue.rx.pop() {
                Ok(Some(request)) => queue.room.push_back(request),
                Ok(None) if queue.rx.arm().unwrap_or(false) => {}
                Ok(None) => return,
                Err(error) => {
                    queue.dead = true;
                    return self.complain(error.to_string());
                }
            }
        }
    }

    fn give(&mut self, index: usize, frame: &Frame) {
        let (mut slots, mut extras) = (Vec::new(), Vec::new());
        let mut flags = match frame.checksum {
            Checksum::Blank => RxFlags::CSUM_BLANK | RxFlags::DATA_VALIDATED,
            Checksum::Validated => RxFlags::DATA_VALIDATED,
            Checksum::Complete => RxFlags::empty(),
        };
        let mut infos = Vec::new();
        if let Some(gso) = frame.gso {
            let kind = if gso.kind == GsoKind::TcpV4 { GSO_TYPE_TCPV4 } else { GSO_TYPE_TCPV6 };
            infos.push(ExtraInfo::gso(gso.size, kind));
        }
        if self.headroom > 0 {
            let [low, high] = (self.headroom as u16).to_le_bytes();
            infos.push(ExtraInfo { kind: EXTRA_TYPE_XDP, flags: 0, data: [low, high, 0, 0, 0, 0] });
        }
        if let Some((types, value, _)) = self.hash(&frame.bytes) {
            let [a, b, c, d] = value.to_le_bytes();
            let data = [types.bits().trailing_zeros() as u8, HASH_ALGORITHM_TOEPLITZ as u8, a, b, c, d];
            infos.push(ExtraInfo { kind: EXTRA_TYPE_HASH, flags: 0, data });
        }
        let count = infos.len();
        infos.iter_mut().take(count.saturating_sub(1)).for_each(|info| info.flags = EXTRA_FLAG_MORE);
        let (first, rest) = frame.bytes.split_at(frame.bytes.len().min(PAGE_SIZE - self.headroom));
        let each = PAGE_SIZE - self.headroom;
        let chunks = [first].into_iter().chain(rest.chunks(each));
        let count = 1 + rest.len().div_ceil(each);
        for (place, chunk) in chunks.enumerate() {
            let more = if place + 1 < count { RxFlags::MORE_DATA } else { RxFlags::empty() };
            let extra = if place == 0 && !infos.is_empty() { RxFlags::EXTRA_INFO } else { RxFlags::empty() };
            slots.push(self.fill(index, chunk, flags | more | extra));
            flags = RxFlags::empty();
            for info in infos.drain(..) {
                let lies = self.lied;
                let slot = self.spoil_extra(transmute!(info));
                let spoilt = self.lied != lies;
                if let Some(queue) = self.queues.get_mut(index) {
                    queue.rx_muddled |= spoilt;
                }
                extras.push(slots.len());
                slots.push(slot);
                self.queues.get_mut(index).and_then(|queue| queue.room.pop_front());
            }
        }
        self.stats.to_guest += 1;
        self.stats.slots_to_guest += slots.len() as u64;
        self.stats.blank_to_guest += u64::from(frame.checksum == Checksum::Blank);
        self.stats.gso_to_guest += u64::from(frame.gso.is_some());
        let whole = slots.len() == 1;
        for (place, response) in slots.into_iter().enumerate() {
            if !extras.contains(&place) {
                self.answer_rx(index, response, whole);
            } else if let Some(queue) = self.queues.get_mut(index) {
                queue.rx_answers.push((response, None));
            }
        }
    }

    /// Copies a part of a frame to the guest's next page. As Linux' backend does, it leaves room in each, and counts it.
    fn fill(&mut self, index: usize, chunk: &[u8], flags: RxFlags) -> RxResponse {
        let Some(request) = self.queues.get_mut(index).and_then(|queue| queue.room.pop_front()) else {
            return RxResponse::default();
        };
        let mut response = RxResponse {
            id: request.id,
            offset: 0,
            flags: flags.bits(),
            status: (self.headroom + chunk.len()) as i16,
        };
        let gref = GrantRef(request.gref);
        match map(&self.own, self.guest.id(), gref, true) {
            Ok(mut page) => {
                if let Err(error) = page.mem().write_bytes(self.headroom, chunk) {
                    self.complain(error.to_string());
                }
                if self.holds || self.roll(|faults| faults.keep_mapped) {
                    self.kept.push(page);
                }
            }
            Err(status) => {
                self.complain(format!("{gref}: {status:?}"));
                response.status = RSP_ERROR;
            }
        }
        response
    }

    fn answer_rx(&mut self, index: usize, mut response: RxResponse, whole: bool) {
        let fault = self.rx_fault();
        let id = whole.then_some(response.id);
        let muddles =
            matches!(fault, Some(Fault::Missing | Fault::Twice | Fault::Flags(_) | Fault::Index(_)));
        if let Some(queue) = self.queues.get_mut(index) {
            queue.rx_muddled |= muddles;
        }
        match fault {
            Some(Fault::Id(id)) => response.id = id,
            Some(Fault::Status(status)) => response.status = status,
            Some(Fault::Offset(offset)) => response.offset = offset,
            Some(Fault::Flags(flags)) => response.flags = flags,
            Some(Fault::Missing) => return,
            _ => {}
        }
        let Some(queue) = self.queues.get_mut(index) else { return };
        if fault == Some(Fault::Twice) {
            queue.rx_answers.push((response, None));
        }
        queue.rx_answers.push((response, id));
        if let Some(Fault::Index(more)) = fault {
            queue.rx_jump = Some(more);
        }
    }
}
