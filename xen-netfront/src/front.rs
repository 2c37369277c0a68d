//! A connected network device.

use core::fmt;

use xen_evtchn::{Channel, EventChannels};
use xen_gnttab::{GrantTable, GrantedPage};
use xen_hypercall::{DomId, PAGE_SIZE, PageBox, Platform};

use crate::abi::RxResponse;
use crate::control::Control;
use crate::error::Violation;
use crate::lent::Lender;
use crate::link::Tie;
use crate::multicast::{Groups, Multicast};
use crate::packet::{self, Packet};
use crate::queue::Queue;
use crate::rx::{Also, Sink};
use crate::segment::Segments;
use crate::tx::{Plan, TxQueue};
use crate::waiters::Waiters;
use crate::{Checksum, Config, Error, Features, Followup, Gso, Mac, RxMeta, Stats, TxMeta};

/// How the device is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum State {
    /// At work.
    Connected,
    /// The backend wants the device to end, and was told that it has ended here. It may still have the pages: the state is
    /// [`Closed`](Self::Closed) when it has let go.
    Closing,
    /// The backend has ended the device, is gone, or was started again and waits for a new beginning.
    /// [`NetFront::reconnect`] begins anew.
    Closed,
    /// The backend broke the protocol.
    Broken(Violation),
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected => f.write_str("connected"),
            Self::Closing => f.write_str("about to be closed by the backend"),
            Self::Closed => f.write_str("closed by the backend"),
            Self::Broken(violation) => write!(f, "broken: {violation}"),
        }
    }
}

/// Pages and slots for the largest frame, with its extra information.
pub(crate) const LARGE: usize = 17;

/// The queues that there are, the first of so many places.
pub(crate) type Queues<'x, P, const QUEUES: usize> = [Option<PageBox<'x, P, Queue<'x, P>>>; QUEUES];

/// A network device from the guest's side: frames out, frames in.
///
/// All pages are shared once, when the device is connected, and hold nothing but frames; a frame is copied in or out
/// once, or not at all with pages of the caller's own. Nothing is allocated afterwards, and nothing blocks.
///
/// It is ended by [`close`](NetFront::close). Dropping it ends the grants as well, but the backend is not told, and xenstore
/// goes on to watch for it.
pub struct NetFront<'x, P: Platform, const QUEUES: usize = 1> {
    pub(crate) index: u32,
    /// None: it was ended, or another follows the backend.
    pub(crate) tie: Option<Tie>,
    pub(crate) grants: &'x GrantTable<P>,
    pub(crate) events: &'x EventChannels<P>,
    pub(crate) queues: Queues<'x, P, QUEUES>,
    pub(crate) control: Option<Control<'x, P>>,
    pub(crate) multicast: Multicast,
    pub(crate) groups: Option<PageBox<'x, P, Groups>>,
    pub(crate) followup: Followup,
    /// The queue that is looked at first when frames are received.
    pub(crate) turn: usize,
    /// With what was agreed on.
    pub(crate) config: Config,
    /// What the caller would have sent.
    pub(crate) wanted: Features,
    pub(crate) trusted: bool,
    /// Agreed room before frames that arrive, in bytes.
    pub(crate) headroom: u16,
    /// Whether the link is up, as far as is known.
    pub(crate) link_up: bool,
    /// Tasks that want to know when the device, or its link, is another than when they looked.
    pub(crate) waiters: Waiters,
    /// Whether the link was up when they were woken last.
    pub(crate) told_up: bool,
    pub(crate) mac: Mac,
    pub(crate) mtu: u32,
    pub(crate) state: State,
    pub(crate) stats: Stats,
    /// Queues that the backend has, those that were taken included.
    pub(crate) connected: usize,
    /// Frames may come with a hash.
    pub(crate) hashes: bool,
    /// The backend's domain, or [`DomId::INVALID`], to which no page is granted: compared with each page, so not looked for in the handshake's state.
    pub(crate) backend: DomId,
    /// What those who took queues have to know.
    pub(crate) lent: Option<Lender<'x, P>>,
}

impl<'x, P: Platform, const QUEUES: usize> NetFront<'x, P, QUEUES> {
    /// Its hardware address.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// The most bytes that a frame carries after its 14 bytes of header, in both directions, unless it is to be cut. A backend
    /// without scatter-gather takes a page at most: another one after a [`reconnect`](Self::reconnect) may have another MTU.
    pub fn mtu(&self) -> u32 {
        self.mtu
    }

    /// How the device is.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether the link is up, as far as [`service`](Self::service) has found out.
    pub fn is_link_up(&self) -> bool {
        self.state == State::Connected && self.link_up
    }

    /// What passed so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// What the backend takes of what [`Config::send`] asks for.
    pub fn features(&self) -> Features {
        self.config.send
    }

    /// What the backend was told that it may do.
    pub fn accepted(&self) -> Features {
        self.config.receive
    }

    /// Whether the toolstack says that the backend is trusted (`trusted`). One that is not never gets pages of the
    /// caller's own.
    pub fn is_trusted(&self) -> bool {
        self.trusted
    }

    /// The domain that the backend is in; none when the device was ended.
    pub fn backend(&self) -> Option<DomId> {
        (self.backend != DomId::INVALID).then_some(self.backend)
    }

    /// How many queues there are, without those that were [taken](Self::take_queue).
    pub fn queues(&self) -> usize {
        self.queues.iter().flatten().count()
    }

    /// The event channel of a queue, or that of what it sends when there are two.
    pub fn channel(&self, queue: usize) -> Option<&Channel<'x, P>> {
        Some(&self.queues.get(queue)?.as_ref()?.channel)
    }

    /// The event channel of a queue for what it receives, which may be the same.
    pub fn receive_channel(&self, queue: usize) -> Option<&Channel<'x, P>> {
        Some(self.queues.get(queue)?.as_ref()?.receive_channel())
    }

    /// How many pages can be filled with frames at this moment: for each frame one, or one for each 4096 bytes. With
    /// several queues, the one that has fewest decides.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Broken`].
    pub fn can_transmit(&mut self) -> Result<usize, Error> {
        self.can_transmit_each(1)
    }

    /// The same, but looks for pages that came back as soon as there are fewer than `wanted`.
    pub(crate) fn can_transmit_each(&mut self, wanted: usize) -> Result<usize, Error> {
        self.check()?;
        let Self { queues, stats, .. } = self;
        let least = each(queues)
            .try_fold(usize::MAX, |least, queue| Ok(least.min(queue.tx.available(wanted, stats)?)));
        self.settle(least)
    }

    /// The pages for sending of the queue that has fewest.
    pub(crate) fn tx_pages(&mut self) -> usize {
        each(&mut self.queues).map(|queue| queue.tx.pool.pages()).min().unwrap_or(0)
    }

    /// Copies a frame into shared pages and queues it; [`publish`](Self::publish) tells the backend.
    ///
    /// # Errors
    /// [`Error::Full`]; [`Error::Length`]; [`Error::Closed`], [`Error::Broken`].
    pub fn transmit(&mut self, frame: &[u8]) -> Result<(), Error> {
        if (packet::ETHERNET..=PAGE_SIZE).contains(&frame.len()) {
            self.check()?;
            let sent = self.on_queue(frame, |queue, stats| queue.tx.copy_one(frame, stats));
            return self.settle(sent);
        }
        self.transmit_with(&[frame], TxMeta::default())
    }

    /// [`transmit`](Self::transmit) for a frame that is in several parts, with what is to be said of it. When there is
    /// something, all headers are in the first part.
    ///
    /// # Errors
    /// As [`transmit`](Self::transmit), and [`Error::Headers`]; [`Error::NotOffered`] for a frame in parts that the
    /// backend does not cut. One in a single part is cut here then, and needs pages for all segments: one that would need more
    /// than there are is too long ([`Error::Length`]). With an error nothing was queued.
    pub fn transmit_with(&mut self, parts: &[&[u8]], meta: TxMeta) -> Result<(), Error> {
        self.check()?;
        let features = self.config.send;
        let len = parts.iter().map(|part| part.len()).sum();
        let head = parts.first().copied().unwrap_or_default();
        match (meta.gso, parts) {
            (Some(gso), [frame]) if !features.contains(gso.feature()) => {
                return self.transmit_cut(frame, gso);
            }
            _ => {}
        }
        let slots = self.slots_for(len)?;
        let plan = Plan::new(features, head, len, meta, |from, to| Some(sum_parts(parts, from, to)))?;
        let sent = self.on_queue(head, |queue, stats| {
            if queue.tx.available(slots + plan.slots(), stats)? < slots + plan.slots() {
                return Err(Error::Full);
            }
            let mut at = 0;
            for part in parts {
                queue.tx.stage(at, part, stats)?;
                at += part.len();
            }
            queue.tx.send_staged(len, &plan, stats)
        });
        self.settle(sent)
    }

    /// Cuts a frame here: all of it is queued, or nothing.
    fn transmit_cut(&mut self, frame: &[u8], gso: Gso) -> Result<(), Error> {
        let segments = Segments::new(frame, gso).ok_or(Error::Headers)?;
        let (longest, last) = segments.lengths();
        let (each, rest) = (self.slots_for(longest)?, self.slots_for(last)?);
        let needed = (segments.total() - 1) * each + rest;
        let room = self.on_queue(frame, |queue, stats| {
            // With all pages here it would not fit either.
            let most = queue.tx.pool.pages().min(queue.tx.ring.slots() as usize);
            if needed > most { Err(Error::Length(frame.len())) } else { queue.tx.available(needed, stats) }
        });
        if self.settle(room)? < needed {
            return Err(Error::Full);
        }
        let meta = TxMeta { checksum: Checksum::Blank, gso: None };
        for segment in segments {
            let payload = frame.get(segment.payload.clone()).unwrap_or_default();
            self.transmit_with(&[segment.headers(), payload], meta)?;
        }
        Ok(())
    }

    fn slots_for(&self, len: usize) -> Result<usize, Error> {
        TxQueue::<P>::slots_for(self.config.send, len)
    }

    /// Runs `f` on the queue that a frame belongs to: all frames of a flow to the same, so that they stay in order.
    #[inline]
    pub(crate) fn on_queue<R>(
        &mut self,
        head: &[u8],
        f: impl FnOnce(&mut Queue<'x, P>, &mut Stats) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let count = if QUEUES == 1 { 1 } else { self.queues() };
        let number = if count > 1 { flow(head) as usize % count } else { 0 };
        let queue = match QUEUES {
            1 => self.queues.first_mut().and_then(Option::as_deref_mut),
            _ => each(&mut self.queues).nth(number),
        };
        f(queue.ok_or(Error::Closed)?, &mut self.stats)
    }

    /// Copies the next frame that arrived to the start of `buf`, and returns its length; none when there is none.
    /// A buffer of [`FRAME_MAX`](crate::FRAME_MAX) bytes holds every frame, one of a page every frame unless
    /// [`Config::receive`] allows large ones; one that does not fit is dropped and counted. Checksums that are
    /// blank are made, but for those of frames that are to be cut.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Broken`].
    pub fn receive(&mut self, buf: &mut [u8]) -> Result<Option<usize>, Error> {
        let Some(meta) = self.receive_with(buf)? else { return Ok(None) };
        if meta.checksum == Checksum::Blank && meta.gso.is_none() {
            let frame = buf.get_mut(..meta.len).unwrap_or_default();
            if let Some(packet) = Packet::parse(frame) {
                packet::complete(frame, &packet);
            }
        }
        Ok(Some(meta.len))
    }

    /// [`receive`](Self::receive), with what the backend says of the frame, and nothing done to it.
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    pub fn receive_with(&mut self, buf: &mut [u8]) -> Result<Option<RxMeta>, Error> {
        if !self.has_frames()? {
            return Ok(None);
        }
        let received = self.receive_to(Copy { buf, len: 0 })?;
        self.stats.copied_bytes += received.map_or(0, |meta| meta.len as u64);
        Ok(received)
    }

    /// Whether any queue has something to receive: asked first, for the answer is often no.
    #[inline]
    pub(crate) fn has_frames(&mut self) -> Result<bool, Error> {
        self.check()?;
        let any = each(&mut self.queues).try_fold(false, |any, queue| Ok(any || queue.rx.has_frames()?));
        self.settle(any)
    }

    /// The queue that is looked at next.
    #[inline]
    fn next_queue(&mut self) -> usize {
        if QUEUES == 1 {
            return 0;
        }
        let number = self.turn;
        self.turn = (number + 1) % QUEUES.max(1);
        number
    }

    #[inline]
    pub(crate) fn receive_to(&mut self, mut sink: impl Sink<'x, P>) -> Result<Option<RxMeta>, Error> {
        for _ in 0..QUEUES {
            let number = self.next_queue();
            let Some(queue) = self.queues.get_mut(number).and_then(Option::as_deref_mut) else { continue };
            let first = match queue.rx.first() {
                Ok(Some(first)) => first,
                Ok(None) => continue,
                Err(error) => return Err(self.failed(error)),
            };
            if let Some((len, checksum)) = queue.rx.receive_single(first, &mut sink, &mut self.stats) {
                return Ok(Some(RxMeta { len, checksum, slots: 1, queue: number, ..RxMeta::default() }));
            }
            if let Some(meta) = self.receive_parts(number, first, sink.lend())? {
                return Ok(Some(meta));
            }
        }
        Ok(None)
    }

    /// The long way, for all that [`RxQueue::receive_single`] does not take. None: what came is no frame.
    #[cold]
    #[inline(never)]
    fn receive_parts(
        &mut self,
        number: usize,
        first: RxResponse,
        sink: impl Sink<'x, P>,
    ) -> Result<Option<RxMeta>, Error> {
        let Some(queue) = self.queues.get_mut(number).and_then(Option::as_deref_mut) else { return Ok(None) };
        let features = self.config.receive;
        let also = Also { hashes: self.hashes, headroom: self.headroom > 0 };
        let mut meta = RxMeta { queue: number, ..RxMeta::default() };
        let received = queue.rx.receive(first, features, also, sink, &mut meta, &mut self.stats);
        Ok(self.settle(received)?.then_some(meta))
    }

    /// Shows the backend what was queued in both directions, gives it every page to receive into, and notifies it once for each queue that it sleeps on.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Broken`], [`Error::Event`].
    pub fn publish(&mut self) -> Result<(), Error> {
        self.check_and_tell()?;
        let Self { queues, stats, .. } = self;
        let published = each(queues).try_for_each(|queue| queue.publish(stats));
        self.settle(published)
    }

    #[inline]
    pub(crate) fn check(&self) -> Result<(), Error> {
        if matches!(self.state, State::Connected) { Ok(()) } else { Err(self.ended()) }
    }

    /// [`check`](Self::check), where tasks that wait hear of a device that broke since.
    #[inline]
    pub(crate) fn check_and_tell(&mut self) -> Result<(), Error> {
        if matches!(self.state, State::Connected) { Ok(()) } else { Err(self.told_end()) }
    }

    #[cold]
    #[inline(never)]
    fn told_end(&mut self) -> Error {
        self.tell();
        self.ended()
    }

    /// Why the device is not at work.
    #[cold]
    fn ended(&self) -> Error {
        match self.state {
            State::Broken(violation) => Error::Broken(violation),
            State::Closing | State::Closed | State::Connected => Error::Closed,
        }
    }

    /// Notes what a queue says of the backend.
    #[inline]
    pub(crate) fn settle<T>(&mut self, result: Result<T, Error>) -> Result<T, Error> {
        result.map_err(|error| self.failed(error))
    }

    #[cold]
    fn failed(&mut self, error: Error) -> Error {
        if let Error::Broken(violation) = error {
            self.state = State::Broken(violation);
        }
        error
    }

    /// Whether the domain was resumed in a new one, and the queues are not made anew yet.
    #[inline]
    pub(crate) fn is_of_another_life(&self) -> bool {
        self.channel(0).is_some_and(|channel| !channel.is_current())
    }
}

/// The queues that there are.
#[inline]
pub(crate) fn each<'q, 'x, P: Platform>(
    queues: &'q mut [Option<PageBox<'x, P, Queue<'x, P>>>],
) -> impl Iterator<Item = &'q mut Queue<'x, P>> {
    queues.iter_mut().filter_map(Option::as_deref_mut)
}

/// Copies parts of a frame one after the other.
struct Copy<'b> {
    buf: &'b mut [u8],
    len: usize,
}

impl<'x, P: Platform> Sink<'x, P> for Copy<'_> {
    #[inline]
    fn lend(&mut self) -> impl Sink<'x, P> {
        Copy { buf: self.buf, len: 0 }
    }

    #[inline]
    fn take(&mut self, part: usize, page: &mut GrantedPage<'x, P>, offset: usize, len: usize) -> bool {
        let start = if part == 0 { 0 } else { self.len };
        self.len = start + len.min(PAGE_SIZE);
        self.buf.get_mut(start..self.len).is_some_and(|to| page.read_bytes(offset, to).is_ok())
    }
}

/// The sum over the bytes `from..to` of what the parts are together.
fn sum_parts(parts: &[&[u8]], from: usize, to: usize) -> u16 {
    let (mut sum, mut start) = (0, 0);
    for part in parts {
        let (first, last) = (from.max(start), to.min(start + part.len()));
        if let Some(bytes) =
            first.checked_sub(start).and_then(|skip| part.get(skip..last.checked_sub(start)?))
        {
            sum = packet::add(sum, packet::sum(bytes), (first - from) % 2 == 1);
        }
        start += part.len();
    }
    sum
}

/// A number that is the same for all frames of a flow (FNV-1a over addresses and ports).
fn flow(head: &[u8]) -> u32 {
    let range = match Packet::parse_head(head, usize::MAX) {
        Some(packet) => packet.transport + 4 - if packet.v6 { 36 } else { 12 }..packet.transport + 4,
        None => 0..12,
    };
    let bytes = head.get(range).unwrap_or_default();
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

impl<P: Platform, const QUEUES: usize> fmt::Debug for NetFront<'_, P, QUEUES> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetFront")
            .field("mac", &self.mac)
            .field("state", &self.state)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}
