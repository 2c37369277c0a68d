//! The disk: what it is, and what it can be asked. Nothing here waits.

use core::fmt;

use xen_evtchn::{Channel, EventChannels};
use xen_gnttab::{GrantTable, GrantedPage};
use xen_hypercall::{DomId, PAGE_SIZE, Platform};

use crate::abi::*;
use crate::connect::{Config, Link};
use crate::error::Violation;
use crate::features::{Discard, Features};
use crate::ops::{Kind, Ops, Stage};
use crate::pool::{Chain, Pool};
use crate::shared::Shared;
use crate::waiters::Waiters;
use crate::{Error, Piece, Stats, Ticket};

/// A paravirtual disk.
///
/// Addresses and lengths count sectors of 512 bytes, whatever the disk's own sector size is; every access must be of
/// whole sectors of the disk.
pub struct BlkFront<'x, P: Platform> {
    /// None: the backend is gone.
    pub(crate) link: Option<Link<'x, P>>,
    pub(crate) events: &'x EventChannels<P>,
    pub(crate) grants: &'x GrantTable<P>,
    pub(crate) index: u32,
    pub(crate) ops: Ops<'x, P>,
    pub(crate) pool: Pool<'x, P>,
    pub(crate) features: Features,
    pub(crate) config: Config,
    pub(crate) state: State,
    pub(crate) stats: Stats,
    /// Writes may be lost that nobody was told of yet.
    pub(crate) lost: bool,
    /// Made when a task waits for the first time.
    pub(crate) waiters: Option<Waiters<'x, P>>,
    /// No task waits, and no queue was taken: when a result is taken nobody need know.
    pub(crate) alone: bool,
    /// How much was written beside what the counters say.
    pub(crate) base: u64,
    /// How many queues were taken so far.
    pub(crate) times: u64,
    /// What those who took queues have to know, once one was taken. Dropped last: then all of a queue's memory is gone.
    pub(crate) shared: Option<Shared<'x, P>>,
}

/// How a disk is.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// At work.
    Connected,
    /// The backend wants it to end: what is under way may still be answered, nothing new is accepted.
    Closing,
    /// The backend has closed, or is gone: nothing more is accepted until the disk is
    /// [reconnected](BlkFront::reconnect).
    Closed,
    /// The backend broke the protocol, and nothing it says is believed any more.
    Broken(Violation),
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected => f.write_str("connected"),
            Self::Closing => f.write_str("closing"),
            Self::Closed => f.write_str("closed"),
            Self::Broken(violation) => write!(f, "broken: {violation}"),
        }
    }
}

impl<'x, P: Platform> BlkFront<'x, P> {
    /// Asks for sectors. The backend sees the request with the next [`publish`](Self::publish).
    ///
    /// # Errors
    /// [`Error::Unaligned`], [`Error::OutOfRange`], [`Error::TooLong`]; [`Error::Busy`] until a result is taken;
    /// [`Error::Closed`] while the backend is not there, [`Error::Broken`] for good; [`Error::Grant`] when a page is
    /// needed and there is no memory.
    pub fn submit_read(&mut self, lba: u64, sectors: u64) -> Result<Ticket, Error> {
        let len = self.check(lba, sectors)?;
        let pages = self.pool.alloc(len)?;
        self.add(Kind::Read, lba, sectors, pages, false)
    }

    /// Writes sectors: `data` is copied now, the backend sees the request with the next [`publish`](Self::publish).
    ///
    /// # Errors
    /// As [`submit_read`](Self::submit_read), and [`Error::ReadOnly`].
    pub fn submit_write(&mut self, lba: u64, data: &[u8]) -> Result<Ticket, Error> {
        self.submit_data(Kind::Write, lba, data)
    }

    /// Writes sectors, at most 88, after all writes submitted before are done, and before any that is submitted later
    /// (`BLKIF_OP_WRITE_BARRIER`). An old way: where the backend has [none](Self::has_barrier), wait for the writes
    /// before, [flush](Self::submit_flush), write, and wait.
    ///
    /// # Errors
    /// As [`submit_write`](Self::submit_write), and [`Error::Unsupported`] when the backend has no barriers, or the disk
    /// several queues, between which there is no order.
    pub fn submit_barrier(&mut self, lba: u64, data: &[u8]) -> Result<Ticket, Error> {
        self.check_state()?;
        if !self.has_barrier() {
            return Err(Error::Unsupported);
        }
        if data.len() > MAX_SEGMENTS * PAGE_SIZE {
            return Err(Error::TooLong);
        }
        if self.is_lost() {
            return self.tell_loss(Kind::Barrier);
        }
        self.submit_data(Kind::Barrier, lba, data)
    }

    fn submit_data(&mut self, kind: Kind, lba: u64, data: &[u8]) -> Result<Ticket, Error> {
        self.check_state()?;
        if self.features.read_only {
            return Err(Error::ReadOnly);
        }
        if data.len() % SECTOR != 0 {
            return Err(Error::Unaligned);
        }
        let sectors = (data.len() / SECTOR) as u64;
        let len = self.check(lba, sectors)?;
        let pages = self.pool.alloc(len)?;
        if self.pool.write(pages, data).is_none() {
            self.pool.release(pages);
            return Err(Error::TooLong);
        }
        self.stats.bytes_copied += data.len() as u64;
        self.add(kind, lba, sectors, pages, false)
    }

    /// Reads sectors into the caller's own pages, without a copy. The pages are taken out of `pieces` once everything is
    /// right with all of them, and come back by [`take_pages`](Self::take_pages).
    ///
    /// The backend sees the request with the next [`publish`](Self::publish) at the latest: a [`poll`](Self::poll) that sends what
    /// waited for room may show it before.
    ///
    /// # Errors
    /// As [`submit_read`](Self::submit_read). [`Error::Untrusted`] when the toolstack says so of the backend;
    /// [`Error::ForeignPage`] for a page that is granted to somebody else, or not for writing, and for a place that is
    /// empty.
    pub fn submit_read_into(
        &mut self,
        lba: u64,
        pieces: &mut [Option<Piece<'x, P>>],
    ) -> Result<Ticket, Error> {
        self.submit_pieces(Kind::Read, lba, pieces)
    }

    /// Writes sectors from the caller's own pages, without a copy; as [`submit_read_into`](Self::submit_read_into).
    ///
    /// # Errors
    /// As [`submit_read_into`](Self::submit_read_into), and [`Error::ReadOnly`].
    pub fn submit_write_from(
        &mut self,
        lba: u64,
        pieces: &mut [Option<Piece<'x, P>>],
    ) -> Result<Ticket, Error> {
        if self.features.read_only {
            self.check_state()?;
            return Err(Error::ReadOnly);
        }
        self.submit_pieces(Kind::Write, lba, pieces)
    }

    fn submit_pieces(
        &mut self,
        kind: Kind,
        lba: u64,
        pieces: &mut [Option<Piece<'x, P>>],
    ) -> Result<Ticket, Error> {
        let [place] = pieces else { return self.submit_several(kind, lba, pieces) };
        let Some(piece) = place.as_ref().filter(|piece| self.lendable(&piece.page)) else {
            return self.submit_several(kind, lba, pieces);
        };
        let (sectors, segment) = (piece.sectors().into(), piece.segment());
        self.check_sectors(lba, sectors, sectors)?;
        self.start(kind, lba, sectors, segment, place).ok_or(Error::Busy)
    }

    /// The same with more pieces, or with none, or with one that cannot be lent.
    #[inline(never)]
    fn submit_several(
        &mut self,
        kind: Kind,
        lba: u64,
        pieces: &mut [Option<Piece<'x, P>>],
    ) -> Result<Ticket, Error> {
        self.check_state()?;
        if !self.features.trusted {
            return Err(Error::Untrusted);
        }
        let (mut sectors, mut grain) = (0, 0);
        for piece in pieces.iter() {
            let piece = piece.as_ref().filter(|piece| self.lendable(&piece.page));
            let each = u64::from(piece.ok_or(Error::ForeignPage)?.sectors());
            (sectors, grain) = (sectors + each, grain | each);
        }
        if sectors == 0 {
            return Err(Error::Unaligned);
        }
        self.check_sectors(lba, sectors, grain)?;
        if self.ops.free() == 0 {
            return Err(Error::Busy);
        }
        let pages = self.pool.lend(pieces)?;
        self.add(kind, lba, sectors, pages, true)
    }

    /// Whether a page of the caller's may be lent.
    #[inline]
    fn lendable(&self, page: &GrantedPage<'x, P>) -> bool {
        self.features.trusted && self.pool.accepts(page)
    }

    /// Whether some sectors can be moved, in parts of which `grain` has the bits of all lengths.
    #[inline]
    fn check_sectors(&self, lba: u64, sectors: u64, grain: u64) -> Result<(), Error> {
        self.check_state()?;
        self.features.check_grain(lba | grain)?;
        self.features.check_within(lba, sectors)
    }

    /// Asks that all writes answered so far survive a loss of power. When the backend offers no such thing the
    /// result is there at once; see [`can_flush`](Self::can_flush).
    ///
    /// # Errors
    /// As [`submit_read`](Self::submit_read). The operation's own result is [`Error::Lost`] once after a
    /// [`reconnect`](Self::reconnect) that may have lost writes: they went to a backend that did not flush them.
    pub fn submit_flush(&mut self) -> Result<Ticket, Error> {
        self.check_state()?;
        if self.is_lost() {
            return self.tell_loss(Kind::Flush);
        }
        if self.can_flush() {
            return self.add(Kind::Flush, self.written(), 0, Chain::EMPTY, false);
        }
        self.nothing(Kind::Flush, Ok(()))
    }

    /// Tells the disk that what is in these sectors is not needed any more: it may be anything afterwards. Only whole
    /// extents of the medium can be discarded ([`discard`](Self::discard)); the rest stays as it is.
    ///
    /// # Errors
    /// As [`submit_read`](Self::submit_read), and [`Error::ReadOnly`]; [`Error::Unsupported`] when the backend does not
    /// offer it.
    pub fn submit_discard(&mut self, lba: u64, sectors: u64) -> Result<Ticket, Error> {
        let discard = self.check_discard(lba, sectors)?;
        match discard.within(lba, sectors) {
            (_, 0) => self.nothing(Kind::Discard, Ok(())),
            (lba, sectors) => self.add(Kind::Discard, lba, sectors, Chain::EMPTY, false),
        }
    }

    /// Has every copy of these sectors erased (`BLKIF_DISCARD_SECURE`). They must be whole extents of the medium.
    ///
    /// # Errors
    /// As [`submit_discard`](Self::submit_discard); [`Error::Unaligned`] when a part could not be erased.
    pub fn submit_secure_discard(&mut self, lba: u64, sectors: u64) -> Result<Ticket, Error> {
        let discard = self.check_discard(lba, sectors)?;
        if !discard.secure {
            return Err(Error::Unsupported);
        }
        if discard.within(lba, sectors) != (lba, sectors) {
            return Err(Error::Unaligned);
        }
        self.add(Kind::SecureDiscard, lba, sectors, Chain::EMPTY, false)
    }

    fn check_discard(&self, lba: u64, sectors: u64) -> Result<Discard, Error> {
        self.check_state()?;
        if self.features.read_only {
            return Err(Error::ReadOnly);
        }
        self.features.check_range(lba, sectors)?;
        self.features.discard.ok_or(Error::Unsupported)
    }

    /// Shows the backend what was submitted, and sends it an event if it wants one. What the rings have no room for
    /// follows by itself with the next [`poll`](Self::poll).
    ///
    /// # Errors
    /// [`Error::Broken`]; [`Error::Event`] when Xen does not send the event.
    pub fn publish(&mut self) -> Result<(), Error> {
        self.check_broken()?;
        self.ops.publish();
        if !self.ops.is_empty() {
            self.fill();
        }
        self.show()
    }

    /// How the disk is, as far as was found out.
    pub fn state(&self) -> State {
        self.state
    }

    /// The size, in sectors of 512 bytes. May change while the disk is connected; see [`service`](Self::service).
    pub fn capacity(&self) -> u64 {
        self.features.sectors
    }

    /// The disk's own sectors, in bytes: a power of two from 512 to 4096. Every access is of whole ones.
    pub fn sector_size(&self) -> u32 {
        self.features.sector_size
    }

    /// What the medium writes at once, in bytes: a multiple of the sector size. Writing less costs it a read.
    pub fn physical_sector_size(&self) -> u32 {
        self.features.physical
    }

    /// The most that one operation can move, in sectors of 512 bytes: as much as there are pages.
    pub fn max_sectors(&self) -> u64 {
        (self.pool.len() * (PAGE_SIZE / SECTOR)) as u64
    }

    /// The most that one request of the ring moves, in sectors of 512 bytes. A longer operation is several of them.
    pub fn request_sectors(&self) -> u64 {
        (self.features.max_segments(&self.config) * PAGE_SIZE / SECTOR) as u64
    }

    /// How many operations can be submitted at this moment, if there are pages for them.
    pub fn free_requests(&self) -> usize {
        self.ops.free()
    }

    /// How many operations are under way, submitted and not done.
    pub fn pending(&self) -> usize {
        self.ops.pending()
    }

    /// Whether the disk cannot be written.
    pub fn is_read_only(&self) -> bool {
        self.features.read_only
    }

    /// Whether it is a CD-ROM drive.
    pub fn is_cdrom(&self) -> bool {
        self.features.info.contains(DiskInfo::CDROM)
    }

    /// Whether its medium can be changed.
    pub fn is_removable(&self) -> bool {
        self.features.info.contains(DiskInfo::REMOVABLE)
    }

    /// Whether a flush does anything. Where the backend has barriers and no flushes, an empty barrier is one.
    pub fn can_flush(&self) -> bool {
        self.features.can_flush()
    }

    /// Whether there are [barriers](Self::submit_barrier).
    pub fn has_barrier(&self) -> bool {
        self.features.barrier && self.link.as_ref().is_none_or(|link| link.connected <= 1)
    }

    /// What can be discarded, if anything.
    pub fn discard(&self) -> Option<Discard> {
        self.features.discard
    }

    /// Whether the backend says that it keeps the pages mapped, instead of mapping them for each request.
    pub fn is_persistent(&self) -> bool {
        self.features.persistent && self.config.persistent
    }

    /// Whether the toolstack trusts the backend (`trusted` in the device's own directory). With one that is not trusted
    /// no page is shared but the disk's own, which hold nothing but its data.
    pub fn is_trusted(&self) -> bool {
        self.features.trusted
    }

    /// What kind of disk it is.
    pub fn info(&self) -> DiskInfo {
        self.features.info
    }

    /// The device's number, as in `device/vbd/51712`.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The domain that the backend is in, to which pages that are [lent](Piece) to the disk must be granted.
    pub fn backend_id(&self) -> DomId {
        self.pool.backend()
    }

    /// How many rings there are, without those that were [taken](Self::take_queue); none while the backend is gone.
    pub fn queues(&self) -> usize {
        self.link.as_ref().map_or(0, |link| link.queues.len())
    }

    /// How many requests these rings hold together.
    pub fn ring_slots(&self) -> usize {
        self.link.iter().flat_map(|link| link.queues.iter()).map(|queue| queue.ring.slots() as usize).sum()
    }

    /// What passed so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// The event channels, one for each of these rings.
    pub fn channels(&self) -> impl Iterator<Item = &Channel<'x, P>> {
        self.link.iter().flat_map(|link| link.queues.iter()).map(|queue| &queue.channel)
    }

    /// The domain's grant table, and by it the platform.
    pub fn grants(&self) -> &'x GrantTable<P> {
        self.grants
    }

    #[inline]
    fn check(&self, lba: u64, sectors: u64) -> Result<usize, Error> {
        self.check_state()?;
        self.features.check_range(lba, sectors)?;
        if sectors > self.max_sectors() {
            return Err(Error::TooLong);
        }
        Ok(sectors as usize * SECTOR)
    }

    #[inline(never)]
    fn add(&mut self, kind: Kind, lba: u64, sectors: u64, pages: Chain, lent: bool) -> Result<Ticket, Error> {
        let Some((ticket, op)) = self.ops.begin(kind, lba, sectors, lent) else {
            self.pool.release(pages);
            return Err(Error::Busy);
        };
        op.pages = pages;
        self.stats.operations += 1;
        self.join(ticket.place());
        Ok(ticket)
    }

    /// Writes may be lost: an operation says so, and none after it.
    #[cold]
    fn tell_loss(&mut self, kind: Kind) -> Result<Ticket, Error> {
        let ticket = self.nothing(kind, Err(Error::Lost))?;
        self.set_lost(false);
        Ok(ticket)
    }

    /// Whether writes may be lost that nobody was told of yet.
    fn is_lost(&self) -> bool {
        self.shared.as_ref().map_or(self.lost, Shared::is_lost)
    }

    pub(crate) fn set_lost(&mut self, lost: bool) {
        match &self.shared {
            None => self.lost = lost,
            Some(shared) => shared.set_lost(lost),
        }
    }

    /// An operation that is done without the backend.
    fn nothing(&mut self, kind: Kind, result: Result<(), Error>) -> Result<Ticket, Error> {
        let (ticket, op) = self.ops.begin(kind, 0, 0, false).ok_or(Error::Busy)?;
        (op.stage, op.result) = (Stage::Done, result);
        self.stats.operations += 1;
        self.stats.errors += u64::from(result.is_err());
        Ok(ticket)
    }

    #[inline]
    pub(crate) fn check_state(&self) -> Result<(), Error> {
        if matches!(self.state, State::Connected) { Ok(()) } else { Err(self.ended()) }
    }

    #[inline]
    pub(crate) fn check_broken(&self) -> Result<(), Error> {
        if matches!(self.state, State::Broken(_)) { Err(self.ended()) } else { Ok(()) }
    }

    /// Tasks that wait see how the disk is now.
    #[inline(never)]
    pub(crate) fn change(&mut self, state: State) {
        if core::mem::replace(&mut self.state, state) != state {
            self.wake();
            if let Some(shared) = &self.shared {
                shared.announce(state);
            }
        }
    }

    /// A result was taken: wakes the tasks that wait for room, and tells the queues that were taken.
    #[inline]
    pub(crate) fn has_room(&self) {
        if !self.alone {
            self.tell_room();
        }
    }

    #[cold]
    fn tell_room(&self) {
        self.report();
        if let Some(waiters) = &self.waiters {
            waiters.wake_others();
        }
    }

    /// Wakes all tasks that wait.
    #[inline]
    pub(crate) fn wake(&self) {
        if let Some(waiters) = &self.waiters {
            waiters.wake();
        }
    }

    /// Why nothing more can be asked.
    #[cold]
    #[inline(never)]
    fn ended(&self) -> Error {
        match self.state {
            State::Broken(violation) => Error::Broken(violation),
            _ => Error::Closed,
        }
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn broke(&mut self, violation: Violation) -> Error {
        self.change(State::Broken(violation));
        Error::Broken(violation)
    }
}

impl<P: Platform> fmt::Debug for BlkFront<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlkFront")
            .field("index", &self.index)
            .field("features", &self.features)
            .field("state", &self.state)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}
