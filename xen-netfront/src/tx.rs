//! The half of a queue that sends.

use xen_gnttab::GrantedPage;
use xen_hypercall::{DomId, PAGE_SIZE, Platform};
use xen_ring::{Front, RingError};
use zerocopy::transmute;

use crate::abi::{ExtraInfo, MAX_TX_SIZE, NR_SLOTS_MIN, RSP_NULL, Tx, TxExtra, TxFlags, TxRequest};
use crate::error::Violation;
use crate::packet::{self, Packet, TCP};
use crate::pool::Pool;
use crate::{Checksum, Error, Features, GsoKind, Stats, TxMeta};

/// A ring and the pages whose frames are sent by it.
pub(crate) struct TxQueue<'x, P: Platform> {
    pub(crate) ring: Front<Tx, GrantedPage<'x, P>>,
    pub(crate) pool: Pool<'x, P>,
    /// Slots with the backend that are no requests: as many responses may mean nothing.
    nulls: u32,
    /// Something came back since the last event ended.
    pub(crate) worked: bool,
}

/// What a frame needs beside its bytes.
#[derive(Default)]
pub(crate) struct Plan {
    flags: TxFlags,
    extra: Option<ExtraInfo>,
    /// What to put in the checksum's place, and where that is.
    checksum: Option<(usize, u16)>,
}

/// Where a slot's bytes are: in the next page, or in one that it is exchanged for.
pub(crate) struct Slot<'s, 'x, P: Platform> {
    pub(crate) offset: usize,
    pub(crate) len: usize,
    pub(crate) page: Option<&'s mut GrantedPage<'x, P>>,
}

impl Plan {
    /// Decides what to do for a frame of `len` bytes that begins with `head`, all its headers at least. `sum` is
    /// asked for the sum over its bytes from an offset to another, and returns none if it cannot tell.
    #[inline]
    pub(crate) fn new(
        features: Features,
        head: &[u8],
        len: usize,
        meta: TxMeta,
        sum: impl FnOnce(usize, usize) -> Option<u16>,
    ) -> Result<Self, Error> {
        if meta.is_plain() { Ok(Self::default()) } else { Self::offload(features, head, len, meta, sum) }
    }

    fn offload(
        features: Features,
        head: &[u8],
        len: usize,
        meta: TxMeta,
        sum: impl FnOnce(usize, usize) -> Option<u16>,
    ) -> Result<Self, Error> {
        let flags = match meta.checksum {
            Checksum::Validated if meta.gso.is_none() => TxFlags::DATA_VALIDATED,
            _ => TxFlags::CSUM_BLANK | TxFlags::DATA_VALIDATED,
        };
        if !flags.contains(TxFlags::CSUM_BLANK) {
            return Ok(Self { flags, ..Self::default() });
        }
        // A backend looks for the headers in the first slot.
        let packet = Packet::parse_head(head, len).filter(|packet| packet.payload <= PAGE_SIZE);
        let packet = packet.ok_or(Error::Headers)?;
        let mut plan = Self { flags, ..Self::default() };
        if let Some(gso) = meta.gso {
            if packet.protocol != TCP || packet.v6 != (gso.kind == GsoKind::TcpV6) || gso.size == 0 {
                return Err(Error::Headers);
            }
            if !features.contains(gso.feature()) {
                return Err(Error::NotOffered(gso.feature()));
            }
            // What is one segment already needs no cutting.
            if packet.end - packet.payload > usize::from(gso.size) {
                plan.flags |= TxFlags::EXTRA_INFO;
                plan.extra = Some(gso.to_abi());
            }
        }
        let needed = if packet.v6 { Features::CHECKSUM_V6 } else { Features::CHECKSUM_V4 };
        let (at, pseudo) = (packet.checksum_at(), packet.pseudo_sum(head));
        if features.contains(needed) {
            plan.checksum = Some((at, pseudo));
            return Ok(plan);
        }
        // What is in the checksum's place is summed up with the rest, so it must be taken out again.
        let stale = head.get(at..at + 2).map_or(0, packet::sum);
        let rest = sum(packet.transport, packet.end).ok_or(Error::NotOffered(needed))?;
        let sum = packet::add(packet::add(rest, !stale, false), pseudo, false);
        Ok(Self { flags: TxFlags::empty(), extra: None, checksum: Some((at, packet.checksum_of(sum))) })
    }

    /// For no frame, but a request to the backend.
    pub(crate) fn of_extra(info: ExtraInfo) -> Self {
        Self { flags: TxFlags::EXTRA_INFO, extra: Some(info), checksum: None }
    }

    pub(crate) fn slots(&self) -> usize {
        usize::from(self.extra.is_some())
    }

    /// Whether there is nothing to be done for the frame.
    pub(crate) fn is_plain(&self) -> bool {
        self.flags.is_empty() && self.extra.is_none() && self.checksum.is_none()
    }
}

impl<'x, P: Platform> TxQueue<'x, P> {
    #[inline(always)]
    pub(crate) fn new(ring: Front<Tx, GrantedPage<'x, P>>) -> Self {
        Self { ring, pool: Pool::new(), nulls: 0, worked: false }
    }

    /// An empty ring and all pages, for another backend. Frames that were under way are lost.
    pub(crate) fn restart(&mut self, backend: DomId) -> Result<(), Error> {
        self.ring.backing().regrant(backend)?;
        self.ring.restart().map_err(broken)?;
        (self.nulls, self.worked) = (0, false);
        self.pool.regrant(backend)
    }

    /// Pages that can be filled at this moment; looks what came back when there are fewer than `wanted`.
    #[inline]
    pub(crate) fn available(&mut self, wanted: usize, stats: &mut Stats) -> Result<usize, Error> {
        let available = self.pool.available().min(self.ring.free() as usize);
        if available >= wanted {
            return Ok(available);
        }
        self.reap(stats)?;
        Ok(self.pool.available().min(self.ring.free() as usize))
    }

    /// Takes the pages back that the backend has sent.
    #[inline(never)]
    pub(crate) fn reap(&mut self, stats: &mut Stats) -> Result<(), Error> {
        for response in self.ring.responses().map_err(broken)? {
            self.worked = true;
            if response.status == RSP_NULL {
                self.nulls = self.nulls.checked_sub(1).ok_or(Error::Broken(Violation::Null))?;
                continue;
            }
            if !self.pool.put_back(response.id) {
                return Err(Error::Broken(Violation::Id(response.id)));
            }
            stats.tx_errors += u64::from(response.status < 0);
        }
        Ok(())
    }

    /// How many slots a frame of `len` bytes from the start of a page takes, if it can be sent at all.
    pub(crate) fn slots_for(features: Features, len: usize) -> Result<usize, Error> {
        let most = if features.contains(Features::SCATTER_GATHER) { MAX_TX_SIZE } else { PAGE_SIZE };
        if len < packet::ETHERNET || len > most {
            Err(Error::Length(len))
        } else {
            Ok(len.div_ceil(PAGE_SIZE))
        }
    }

    /// Copies bytes to a place of the frame that [`send`](Self::send) sends next.
    pub(crate) fn stage(&mut self, at: usize, mut bytes: &[u8], stats: &mut Stats) -> Result<(), Error> {
        stats.copied_bytes += bytes.len() as u64;
        let mut at = at;
        while !bytes.is_empty() {
            let offset = at % PAGE_SIZE;
            let (now, rest) = bytes.split_at(bytes.len().min(PAGE_SIZE - offset));
            let (_, page) = self.pool.nth(at / PAGE_SIZE).ok_or(Error::Full)?;
            page.write_bytes(offset, now).map_err(|_| Error::Length(now.len()))?;
            (at, bytes) = (at + now.len(), rest);
        }
        Ok(())
    }

    /// Queues the frame that was [staged](Self::stage): `len` bytes.
    pub(crate) fn send_staged(&mut self, len: usize, plan: &Plan, stats: &mut Stats) -> Result<(), Error> {
        if len <= PAGE_SIZE && plan.is_plain() {
            return self.send_one(0, len, stats, |_| Ok(()));
        }
        let slots = (0..len.div_ceil(PAGE_SIZE)).map(|index| Slot {
            offset: 0,
            len: (len - index * PAGE_SIZE).min(PAGE_SIZE),
            page: None,
        });
        self.send(len, plan, slots, stats)
    }

    /// Queues a frame that is in one page, of which there is nothing to be said. `fill` is given that page, to put the frame
    /// there. With an error nothing was queued. Each of its two users has a copy of it, as it is all that they do.
    #[inline(always)]
    pub(crate) fn send_one(
        &mut self,
        offset: usize,
        len: usize,
        stats: &mut Stats,
        fill: impl FnOnce(&mut GrantedPage<'x, P>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if self.pool.available() == 0 || self.ring.free() == 0 {
            self.reap(stats)?;
            if self.ring.free() == 0 {
                return Err(Error::Full);
            }
        }
        let (id, page) = self.pool.first().ok_or(Error::Full)?;
        fill(page)?;
        let (gref, offset, size) = (page.gref().0, offset as u16, len as u16);
        self.ring.push(&TxRequest { gref, offset, flags: 0, id, size }).map_err(broken)?;
        self.pool.sent_first(id);
        stats.tx_frames += 1;
        stats.tx_bytes += len as u64;
        stats.tx_slots += 1;
        Ok(())
    }

    /// Copies such a frame of so many bytes, and queues it.
    #[inline]
    pub(crate) fn copy_one(&mut self, frame: &[u8], stats: &mut Stats) -> Result<(), Error> {
        self.send_one(0, frame.len(), stats, |page| {
            page.write_bytes(0, frame).map_err(|_| Error::Length(frame.len()))
        })?;
        stats.copied_bytes += frame.len() as u64;
        Ok(())
    }

    /// Queues a frame that is in the next pages, as `slots` say. All pages and slots must be there.
    pub(crate) fn send<'s>(
        &mut self,
        len: usize,
        plan: &Plan,
        slots: impl ExactSizeIterator<Item = Slot<'s, 'x, P>>,
        stats: &mut Stats,
    ) -> Result<(), Error>
    where
        'x: 's,
        P: 's,
    {
        let count = slots.len();
        let needed = count + plan.slots();
        if count > NR_SLOTS_MIN || self.pool.available() < count || (self.ring.free() as usize) < needed {
            return Err(Error::Full);
        }
        for (index, slot) in slots.enumerate() {
            let (id, page) = self.pool.nth(index).ok_or(Error::Full)?;
            if let Some(own) = slot.page {
                core::mem::swap(page, own);
            }
            if let Some((at, value)) = plan.checksum.filter(|_| index == 0) {
                page.write_bytes(slot.offset + at, &value.to_be_bytes()).map_err(|_| Error::Headers)?;
            }
            let more = if index + 1 < count { TxFlags::MORE_DATA } else { TxFlags::empty() };
            // The first slot's size is the whole frame's.
            let (size, flags) = if index == 0 { (len, plan.flags | more) } else { (slot.len, more) };
            let (offset, flags, size) = (slot.offset as u16, flags.bits(), size as u16);
            self.ring.push(&TxRequest { gref: page.gref().0, offset, flags, id, size }).map_err(broken)?;
            if let Some(info) = plan.extra.filter(|_| index == 0) {
                self.push_extra(info)?;
            }
        }
        self.pool.sent(count);
        if len == 0 {
            return Ok(());
        }
        stats.tx_frames += 1;
        stats.tx_bytes += len as u64;
        stats.tx_slots += needed as u64;
        stats.tx_gso += plan.slots() as u64;
        Ok(())
    }

    fn push_extra(&mut self, info: ExtraInfo) -> Result<(), Error> {
        self.ring.push(&transmute!(TxExtra { info, pad: [0; 4] })).map_err(broken)?;
        self.nulls += 1;
        Ok(())
    }
}

/// What a ring says, as an error of the device.
#[cold]
pub(crate) fn broken(error: RingError) -> Error {
    match error {
        RingError::Full => Error::Full,
        error => Error::Broken(Violation::Ring(error)),
    }
}
