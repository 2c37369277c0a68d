//! The half of a queue that receives.

use xen_gnttab::{Access, GrantRef, GrantTable, GrantedPage};
use xen_hypercall::{DomId, PAGE_SIZE, Platform};
use xen_ring::Front;
use zerocopy::transmute;

use crate::abi::{EXTRA_FLAG_MORE, EXTRA_TYPE_XDP, ExtraInfo, Rx, RxFlags, RxRequest, RxResponse};
use crate::error::Violation;
use crate::pool::PAGES;
use crate::tx::broken;
use crate::{Checksum, Error, Features, Gso, Hash, RxMeta, Stats};

/// A ring and the pages that frames arrive in.
///
/// A response is in the slot of its request, always (`io/netif.h`): extra information has no id. So the page of a
/// response is known without asking the backend, whose id only has to be the same.
pub(crate) struct RxQueue<'x, P: Platform> {
    pub(crate) ring: Front<Rx, GrantedPage<'x, P>>,
    pages: [Option<GrantedPage<'x, P>>; PAGES],
    /// How many pages there are, a power of two, less one.
    mask: u8,
    /// The response that was next when the last event ended.
    looked: u32,
}

/// What may come with a frame beside what [`Features`] say.
#[derive(Clone, Copy)]
pub(crate) struct Also {
    pub(crate) hashes: bool,
    pub(crate) headroom: bool,
}

/// A page with a part of a frame, as a sink gets it: the page, which may be exchanged for another, the part's
/// offset and length, and how many parts came before. It returns whether it took the part.
pub(crate) trait Sink<'x, P: Platform> {
    fn take(&mut self, part: usize, page: &mut GrantedPage<'x, P>, offset: usize, len: usize) -> bool;

    /// The same for a while. What is lent so, and not by reference, can stay in registers.
    fn lend(&mut self) -> impl Sink<'x, P>;
}

impl<'x, P: Platform> RxQueue<'x, P> {
    /// Without a page so far.
    #[inline(always)]
    pub(crate) fn new(ring: Front<Rx, GrantedPage<'x, P>>) -> Self {
        Self { ring, pages: [const { None }; PAGES], mask: 0, looked: 0 }
    }

    /// Gives it so many pages, or as many as a power of two allows.
    pub(crate) fn fill(
        &mut self,
        grants: &'x GrantTable<P>,
        backend: DomId,
        pages: usize,
    ) -> Result<(), Error> {
        let count = 1 << pages.clamp(1, PAGES).ilog2();
        // 255 at most.
        self.mask = (count - 1) as u8;
        for page in self.pages.iter_mut().take(count) {
            *page = Some(grants.share(backend, Access::ReadWrite)?);
        }
        Ok(())
    }

    /// An empty ring, and no page with the backend, which is another. Frames that were not received are lost.
    pub(crate) fn restart(&mut self, backend: DomId) -> Result<(), Error> {
        self.ring.backing().regrant(backend)?;
        self.ring.restart().map_err(broken)?;
        self.looked = 0;
        for page in self.pages.iter_mut().flatten() {
            page.regrant(backend)?;
        }
        Ok(())
    }

    /// The references of all pages.
    pub(crate) fn grefs(&self) -> impl Iterator<Item = GrantRef> {
        self.pages.iter().flatten().map(GrantedPage::gref)
    }

    /// Gives the backend every page that it does not have.
    #[inline]
    pub(crate) fn refill(&mut self) -> Result<(), Error> {
        let there = self.ring.request_index().wrapping_sub(self.ring.response_index());
        for _ in there..u32::from(self.mask) + 1 {
            let id = self.id(self.ring.request_index());
            let Some(page) = self.pages.get(usize::from(id)).and_then(Option::as_ref) else { return Ok(()) };
            self.ring.push(&RxRequest { id: id.into(), pad: 0, gref: page.gref().0 }).map_err(broken)?;
        }
        Ok(())
    }

    /// Whether there is something to receive.
    #[inline]
    pub(crate) fn has_frames(&mut self) -> Result<bool, Error> {
        self.ring.has_responses().map_err(broken)
    }

    /// Takes the first slot of what is to be received.
    #[inline]
    pub(crate) fn first(&mut self) -> Result<Option<RxResponse>, Error> {
        self.ring.pop().map_err(broken)
    }

    /// Whether something arrived since the last time that this was asked.
    pub(crate) fn worked(&mut self) -> bool {
        let before = core::mem::replace(&mut self.looked, self.ring.response_index());
        before != self.looked
    }

    /// The id of the request with this index, which is the place of its page.
    #[inline]
    fn id(&self, index: u32) -> u8 {
        index as u8 & self.mask
    }

    /// The short way for what most frames are: right, in one slot, and with nothing to be decided. Returns its length and
    /// what is known of its checksum. None: it is not one of these, and nothing was done.
    #[inline]
    pub(crate) fn receive_single(
        &mut self,
        first: RxResponse,
        sink: &mut impl Sink<'x, P>,
        stats: &mut Stats,
    ) -> Option<(usize, Checksum)> {
        let id = self.id(self.ring.response_index().wrapping_sub(1));
        // A length below zero is a large number here, and not within a page.
        let (offset, len) = (usize::from(first.offset), usize::from(first.status as u16));
        let plain = first.flags & !RxFlags::DATA_VALIDATED.bits() == 0;
        if !plain || first.id != id.into() || len == 0 || offset + len > PAGE_SIZE {
            return None;
        }
        if !sink.take(0, self.pages.get_mut(usize::from(id))?.as_mut()?, offset, len) {
            return None;
        }
        stats.rx_frames += 1;
        stats.rx_bytes += len as u64;
        stats.rx_slots += 1;
        Some((len, if first.flags == 0 { Checksum::Complete } else { Checksum::Validated }))
    }

    /// Takes the next frame that is whole, beginning with this slot, and tells what it is by `meta`, where nothing is said but
    /// the queue; false when there is none. Frames that are not, or that the sink does not take, are counted and dropped. Ends,
    /// since there are no more responses than requests, and no request is made before.
    #[inline(never)]
    pub(crate) fn receive(
        &mut self,
        mut first: RxResponse,
        features: Features,
        also: Also,
        mut sink: impl Sink<'x, P>,
        meta: &mut RxMeta,
        stats: &mut Stats,
    ) -> Result<bool, Error> {
        loop {
            if self.frame(first, features, also, &mut sink, meta)? {
                stats.rx_frames += 1;
                stats.rx_bytes += meta.len as u64;
                stats.rx_slots += meta.slots as u64;
                stats.rx_gso += u64::from(meta.gso.is_some());
                return Ok(true);
            }
            stats.rx_dropped += 1;
            *meta = RxMeta { queue: meta.queue, ..RxMeta::default() };
            let Some(next) = self.first()? else { return Ok(false) };
            first = next;
        }
    }

    /// Takes the rest of a frame, all of whose slots must be there. False: it is dropped.
    #[inline]
    fn frame(
        &mut self,
        first: RxResponse,
        features: Features,
        also: Also,
        sink: &mut impl Sink<'x, P>,
        meta: &mut RxMeta,
    ) -> Result<bool, Error> {
        let flags = RxFlags::from_bits_retain(first.flags);
        if flags.contains(RxFlags::CSUM_BLANK) {
            meta.checksum = Checksum::Blank;
        } else if flags.contains(RxFlags::DATA_VALIDATED) {
            meta.checksum = Checksum::Validated;
        }
        // A checksum that is blank without our leave cannot be told from a wrong one by those who do not look at this.
        let mut sound = meta.checksum != Checksum::Blank
            || features.intersects(Features::CHECKSUM_V4 | Features::CHECKSUM_V6);
        let (mut slot, mut index) = (first, self.ring.response_index().wrapping_sub(1));
        let mut extras = flags.contains(RxFlags::EXTRA_INFO);
        let mut room = 0;
        loop {
            let id = self.id(index);
            if slot.id != id.into() {
                return Err(Error::Broken(Violation::Id(slot.id)));
            }
            while extras {
                let info: ExtraInfo = transmute!(self.next()?);
                extras = info.flags & EXTRA_FLAG_MORE != 0;
                let gso =
                    info.as_gso().and_then(Gso::from_abi).filter(|gso| features.contains(gso.feature()));
                match (gso, Hash::from_abi(info).filter(|_| also.hashes)) {
                    (Some(_), _) => meta.gso = gso,
                    (None, hash @ Some(_)) => meta.hash = hash,
                    (None, None) if info.kind == EXTRA_TYPE_XDP && also.headroom => {
                        let [low, high, ..] = info.data;
                        room = u16::from_le_bytes([low, high]).into();
                    }
                    // Not agreed on, or of a kind that we do not know.
                    (None, None) => return Err(Error::Broken(Violation::Extra(info.kind))),
                }
            }
            match usize::try_from(slot.status) {
                Ok(0) | Err(_) => sound = false,
                Ok(len) if usize::from(slot.offset) + len > PAGE_SIZE => {
                    return Err(Error::Broken(Violation::Outside(slot.offset, slot.status)));
                }
                // Linux' backend leaves the room in each slot, and counts it as a part of what is there.
                Ok(len) if slot.offset == 0 && room >= len => sound = false,
                Ok(len) => {
                    let (offset, len) =
                        if slot.offset == 0 { (room, len - room) } else { (slot.offset.into(), len) };
                    let page = self.pages.get_mut(usize::from(id)).and_then(Option::as_mut);
                    sound = sound && page.is_some_and(|page| sink.take(meta.slots, page, offset, len));
                    meta.len += len;
                }
            }
            meta.slots += 1;
            if !RxFlags::from_bits_retain(slot.flags).contains(RxFlags::MORE_DATA) {
                return Ok(sound);
            }
            if !features.contains(Features::SCATTER_GATHER) {
                return Err(Error::Broken(Violation::Flags(slot.flags)));
            }
            index = self.ring.response_index();
            slot = self.next()?;
        }
    }

    fn next(&mut self) -> Result<RxResponse, Error> {
        self.ring.pop().map_err(broken)?.ok_or(Error::Broken(Violation::Unfinished))
    }
}
