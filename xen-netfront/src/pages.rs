//! Frames in pages of the caller's own, which are not copied.

use xen_gnttab::{Access, GrantedPage};
use xen_hypercall::{PAGE_SIZE, Platform};

use crate::abi::{MAX_TX_SIZE, NR_SLOTS_MIN};
use crate::packet::ETHERNET;
use crate::rx::Sink;
use crate::tx::{Plan, Slot, TxQueue};
use crate::{Error, Features, NetFront, RxMeta, Stats, TxMeta};

/// A part of a frame: some bytes of a page that is granted to the backend.
#[non_exhaustive]
#[derive(Debug)]
pub struct FramePage<'x, P: Platform> {
    /// The page. What [`transmit_pages`](NetFront::transmit_pages) exchanges it for may be granted for reading alone.
    pub page: GrantedPage<'x, P>,
    /// Where in the page the part begins.
    pub offset: usize,
    /// Its length in bytes.
    pub len: usize,
}

impl<'x, P: Platform> FramePage<'x, P> {
    /// `len` bytes of a page, from `offset` on.
    pub const fn new(page: GrantedPage<'x, P>, offset: usize, len: usize) -> Self {
        Self { page, offset, len }
    }
}

/// As much of a frame as its headers take, if they are to be looked at.
const HEAD: usize = 256;

impl<'x, P: Platform, const QUEUES: usize> NetFront<'x, P, QUEUES> {
    /// Queues a frame without copying it. Each page is exchanged for one that is free to be filled with the next
    /// frame: the device has as many as before, and so has the caller. All headers are in the first page.
    ///
    /// For a backend that is not [trusted](Self::is_trusted) the frame is copied instead, and the pages stay.
    ///
    /// # Errors
    /// As [`transmit_with`](Self::transmit_with), and [`Error::Page`]; the pages are the same then.
    /// [`Error::NotOffered`] also for a blank checksum that would have to be made here.
    pub fn transmit_pages(&mut self, frame: &mut [FramePage<'x, P>], meta: TxMeta) -> Result<(), Error> {
        self.check()?;
        // Most frames are in one page, and then little is to be asked; whatever is not so goes the long way.
        if let [part] = &mut *frame {
            let fits = (ETHERNET..=PAGE_SIZE).contains(&part.len) && part.offset <= PAGE_SIZE - part.len;
            let plain = meta.is_plain() && self.trusted && (QUEUES == 1 || self.queues() == 1);
            if fits && plain && part.page.is_granted_to(self.backend) {
                let (offset, len) = (part.offset, part.len);
                let queue = self.queues.first_mut().and_then(Option::as_deref_mut).ok_or(Error::Closed)?;
                let sent = queue.tx.send_one(offset, len, &mut self.stats, |page| {
                    core::mem::swap(page, &mut part.page);
                    Ok(())
                });
                return self.settle(sent);
            }
        }
        self.transmit_parts(frame, meta)
    }

    /// [`transmit_pages`](Self::transmit_pages), the long way.
    #[inline(never)]
    fn transmit_parts(&mut self, frame: &mut [FramePage<'x, P>], meta: TxMeta) -> Result<(), Error> {
        let features = self.config.send;
        let most = if features.contains(Features::SCATTER_GATHER) { NR_SLOTS_MIN } else { 1 };
        let backend = self.backend().ok_or(Error::Closed)?;
        let mut len = 0;
        let mut sound = true;
        for part in frame.iter().take(NR_SLOTS_MIN) {
            // An empty slot, or one that crosses its page, is what backends end a device for.
            sound &= (1..=PAGE_SIZE).contains(&part.len) && part.offset <= PAGE_SIZE - part.len;
            sound &= part.page.is_granted_to(backend);
            len += part.len.min(PAGE_SIZE);
        }
        if !(ETHERNET..=MAX_TX_SIZE).contains(&len) || frame.len() > most {
            return Err(Error::Length(frame.iter().fold(0, |len, part| len.saturating_add(part.len))));
        }
        if !sound {
            return Err(Error::Page);
        }
        if meta.is_plain() && (QUEUES == 1 || self.queues() == 1) {
            return self.hand_over(frame, &[], len, &Plan::default());
        }
        let (first, mut head) = (frame.first_mut().ok_or(Error::Length(0))?, [0; HEAD]);
        let known = first.len.min(HEAD);
        let head = head.get_mut(..known).ok_or(Error::Headers)?;
        first.page.read_bytes(first.offset, head).map_err(|_| Error::Page)?;
        let plan = Plan::new(features, head, len, meta, |_, _| None)?;
        self.hand_over(frame, head, len, &plan)
    }

    /// Queues a frame of which all is right, on the queue of its flow, which the head tells if there are several.
    fn hand_over(
        &mut self,
        frame: &mut [FramePage<'x, P>],
        head: &[u8],
        len: usize,
        plan: &Plan,
    ) -> Result<(), Error> {
        let trusted = self.trusted;
        let sent = self.on_queue(head, |queue, stats| {
            let needed = frame.len() + plan.slots();
            if queue.tx.available(needed, stats)? < needed {
                return Err(Error::Full);
            }
            if !trusted {
                stage(&mut queue.tx, frame, stats)?;
                return queue.tx.send_staged(len, plan, stats);
            }
            let slots = frame.iter_mut().map(|part| Slot {
                offset: part.offset,
                len: part.len,
                page: Some(&mut part.page),
            });
            queue.tx.send(len, plan, slots, stats)
        });
        self.settle(sent)
    }

    /// Takes the next frame without copying it: its pages are exchanged for those in `spare`, of which the first
    /// [`RxMeta::slots`] hold the frame afterwards. A frame of more slots than there are spare pages is dropped and
    /// counted. What is in the pages can be read for as long as one likes, but a backend that keeps them mapped can
    /// change it meanwhile.
    ///
    /// # Errors
    /// As [`receive`](Self::receive), and [`Error::Page`] when there is a frame and a spare page is not granted to the
    /// backend for writing: then the frame stays where it is.
    #[inline]
    pub fn receive_pages(&mut self, spare: &mut [FramePage<'x, P>]) -> Result<Option<RxMeta>, Error> {
        if self.has_frames()? { self.exchange_pages(spare) } else { Ok(None) }
    }

    #[inline(never)]
    fn exchange_pages(&mut self, spare: &mut [FramePage<'x, P>]) -> Result<Option<RxMeta>, Error> {
        let right = |part: &FramePage<'x, P>| {
            part.page.is_granted_to(self.backend) && part.page.access() == Access::ReadWrite
        };
        // One is what most frames need.
        let all = if let [part] = &*spare { right(part) } else { spare.iter().all(right) };
        if !all {
            return Err(Error::Page);
        }
        self.receive_to(Exchange(spare))
    }
}

/// Copies a frame out of the caller's pages.
#[inline(never)]
fn stage<P: Platform>(
    tx: &mut TxQueue<'_, P>,
    frame: &mut [FramePage<'_, P>],
    stats: &mut Stats,
) -> Result<(), Error> {
    let mut at = 0;
    for part in frame {
        let mut chunk = [0; HEAD];
        for start in (0..part.len).step_by(HEAD) {
            let now = chunk.get_mut(..HEAD.min(part.len - start)).ok_or(Error::Page)?;
            part.page.read_bytes(part.offset + start, now).map_err(|_| Error::Page)?;
            tx.stage(at, now, stats)?;
            at += now.len();
        }
    }
    Ok(())
}

struct Exchange<'s, 'x, P: Platform>(&'s mut [FramePage<'x, P>]);

impl<'x, P: Platform> Sink<'x, P> for Exchange<'_, 'x, P> {
    #[inline]
    fn lend(&mut self) -> impl Sink<'x, P> {
        Exchange(self.0)
    }

    #[inline]
    fn take(&mut self, part: usize, page: &mut GrantedPage<'x, P>, offset: usize, len: usize) -> bool {
        let Some(spare) = self.0.get_mut(part) else { return false };
        core::mem::swap(&mut spare.page, page);
        (spare.offset, spare.len) = (offset, len);
        true
    }
}
