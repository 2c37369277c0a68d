//! The disk: requests out, responses in. Nothing here waits.

use core::fmt;
use core::task::{Context, Poll};

use xen_evtchn::{Channel, EventChannels};
use xen_gnttab::{GrantTable, GrantedPage};
use xen_hypercall::{Platform, Wait};
use xen_ring::Front;
use xen_xenstore::Xenstore;
use xen_xenstore::wire::Refusal;
use xen_xenstore::xenbus::{Connected, Frontend, XenbusState};

use crate::abi::*;
use crate::connect::Config;
use crate::error::Violation;
use crate::geometry::Geometry;
use crate::slots::Slots;
use crate::{Error, Ticket};

/// A paravirtual disk.
///
/// Addresses and lengths count sectors of 512 bytes, whatever the disk's own sector size is; every access must be of
/// whole sectors of the disk.
pub struct BlkFront<'x, P: Platform> {
    pub(crate) device: Frontend<Connected>,
    pub(crate) events: &'x EventChannels<P>,
    pub(crate) grants: &'x GrantTable<P>,
    pub(crate) channel: Channel<'x, P>,
    pub(crate) ring: Front<Blkif, GrantedPage<'x, P>>,
    pub(crate) slots: Slots<'x, P>,
    pub(crate) geometry: Geometry,
    pub(crate) config: Config,
    pub(crate) state: State,
    pub(crate) stats: Stats,
}

/// How a disk is.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// At work.
    Connected,
    /// The backend wants it to end: what is under way may still be answered, nothing new is accepted.
    Closing,
    /// The backend is gone: nothing will be answered any more.
    Gone,
    /// The backend broke the protocol, and nothing it says is believed any more.
    Broken(Violation),
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected => f.write_str("connected"),
            Self::Closing => f.write_str("closing"),
            Self::Gone => f.write_str("gone"),
            Self::Broken(violation) => write!(f, "broken: {violation}"),
        }
    }
}

/// What passed since the disk was connected.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Requests made.
    pub requests: u64,
    /// Requests answered.
    pub responses: u64,
    /// Of those, the ones that failed.
    pub errors: u64,
    /// Bytes read, as far as answered.
    pub bytes_read: u64,
    /// Bytes written, as far as answered.
    pub bytes_written: u64,
    /// Events sent.
    pub notifications: u64,
}

impl<'x, P: Platform> BlkFront<'x, P> {
    /// Asks for sectors. The backend sees the request with the next [`publish`](Self::publish).
    ///
    /// # Errors
    /// [`Error::Unaligned`], [`Error::OutOfRange`], [`Error::TooLong`]; [`Error::Busy`] until a result is taken;
    /// [`Error::Closing`] and [`Error::Broken`] for good.
    pub fn submit_read(&mut self, lba: u64, sectors: u64) -> Result<Ticket, Error> {
        let len = self.check(lba, sectors)?;
        let ticket = self.slots.begin(OP_READ, len)?;
        self.send(ticket, OP_READ, lba)
    }

    /// Writes sectors: `data` is copied now, the backend sees the request with the next [`publish`](Self::publish).
    ///
    /// # Errors
    /// As [`submit_read`](Self::submit_read), and [`Error::ReadOnly`].
    pub fn submit_write(&mut self, lba: u64, data: &[u8]) -> Result<Ticket, Error> {
        if self.geometry.read_only {
            return Err(Error::ReadOnly);
        }
        if data.len() % SECTOR != 0 {
            return Err(Error::Unaligned);
        }
        let len = self.check(lba, (data.len() / SECTOR) as u64)?;
        let ticket = self.slots.begin(OP_WRITE, len)?;
        // A request has room for as much as `check` lets through.
        if self.slots.fill(ticket, data).is_err() {
            self.cancel(ticket);
            return Err(Error::TooLong);
        }
        self.send(ticket, OP_WRITE, lba)
    }

    /// Asks that all writes answered so far survive a loss of power. When the backend offers no such thing the
    /// result is there at once; see [`can_flush`](Self::can_flush).
    ///
    /// # Errors
    /// As [`submit_read`](Self::submit_read).
    pub fn submit_flush(&mut self) -> Result<Ticket, Error> {
        self.check_state()?;
        let ticket = self.slots.begin(OP_FLUSH, 0)?;
        if self.geometry.can_flush {
            return self.send(ticket, OP_FLUSH, 0);
        }
        self.slots.settle(ticket, Ok(()));
        Ok(ticket)
    }

    /// Shows the backend what was submitted, and sends it an event if it wants one.
    ///
    /// # Errors
    /// [`Error::Broken`]; [`Error::Event`] when Xen does not send it.
    pub fn publish(&mut self) -> Result<(), Error> {
        self.check_broken()?;
        let notify = self.ring.publish().map_err(|error| self.broke(Violation::Ring(error)))?;
        if notify {
            self.channel.notify()?;
            self.stats.notifications += 1;
        }
        Ok(())
    }

    /// Takes the responses that are there; answers how many.
    ///
    /// # Errors
    /// [`Error::Broken`].
    pub fn poll(&mut self) -> Result<usize, Error> {
        self.check_broken()?;
        let mut count = 0;
        // Ends, since the ring has no more responses than there were requests.
        while let Some(response) = self.ring.pop().map_err(|error| self.broke(Violation::Ring(error)))? {
            let result = match response.status {
                RSP_OKAY => Ok(()),
                RSP_ERROR => Err(Error::Io),
                RSP_EOPNOTSUPP => Err(Error::Unsupported),
                status => Err(Error::Status(status)),
            };
            let answered = self.slots.answer(response, result).map_err(|violation| self.broke(violation))?;
            self.stats.responses += 1;
            let len = answered.len as u64;
            match (answered.operation, answered.result) {
                (OP_READ, Ok(())) => self.stats.bytes_read += len,
                (OP_WRITE, Ok(())) => self.stats.bytes_written += len,
                (_, Ok(())) => {}
                (OP_FLUSH, Err(Error::Unsupported)) => {
                    self.geometry.can_flush = false;
                    self.stats.errors += 1;
                }
                (_, Err(_)) => self.stats.errors += 1,
            }
            count += 1;
        }
        Ok(count)
    }

    /// The result of a request, once [`poll`](Self::poll) has taken its response: `None` before. What was read is
    /// copied to `out`, which has exactly its length; for other requests `out` may be empty.
    ///
    /// # Errors
    /// The inner result is the request's own. [`Error::BufferLength`] leaves the result to be taken again.
    pub fn take(&mut self, ticket: Ticket, out: &mut [u8]) -> Option<Result<(), Error>> {
        let result = self.slots.take(ticket, out);
        match (result, self.state) {
            (None, State::Broken(violation)) => Some(Err(Error::Broken(violation))),
            (None, State::Gone) => Some(Err(Error::Closing)),
            (result, _) => result,
        }
    }

    /// Gives up a request's result. The request itself goes on.
    pub fn forget(&mut self, ticket: Ticket) {
        self.slots.forget(ticket);
    }

    /// Asks for an event with the next response, and answers whether there is something to [`poll`](Self::poll)
    /// already, so that waiting would be wrong.
    pub fn arm(&mut self) -> bool {
        // A ring that breaks here says so again when it is polled.
        self.ring.arm().unwrap_or(true)
    }

    /// Ready when an event arrived from the backend; otherwise wakes the task then. Call [`arm`](Self::arm) before.
    pub fn poll_event(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.channel.poll_event(cx)
    }

    /// Looks whether the backend wants the disk to end. Call it now and then: nothing else does.
    ///
    /// # Errors
    /// When xenstore is of no use any more.
    pub fn service(&mut self, xs: &mut Xenstore<'x, P>) -> Result<State, Error>
    where
        P: Wait,
    {
        if !matches!(self.state, State::Connected | State::Closing) {
            return Ok(self.state);
        }
        let found = match self.device.is_closing(xs) {
            Ok(false) => return Ok(self.state),
            Ok(true) => self.device.backend_state(xs),
            Err(error) => Err(error),
        };
        self.state = match found {
            Ok(XenbusState::CLOSING) => State::Closing,
            Ok(_) => State::Gone,
            // The node is gone, and what is above it was never ours to read.
            Err(xen_xenstore::Error::Refused(_, Refusal::AccessDenied)) => State::Gone,
            Err(error) => return Err(error.into()),
        };
        Ok(self.state)
    }

    /// How the disk is, as far as was found out.
    pub fn state(&self) -> State {
        self.state
    }

    /// The size, in sectors of 512 bytes.
    pub fn capacity(&self) -> u64 {
        self.geometry.sectors
    }

    /// The disk's own sectors, in bytes: a power of two from 512 to 4096. Every access is of whole ones.
    pub fn sector_size(&self) -> u32 {
        self.geometry.sector_size
    }

    /// The most that one request can move, in sectors of 512 bytes.
    pub fn max_sectors(&self) -> u64 {
        (MAX_SEGMENTS * xen_hypercall::PAGE_SIZE / SECTOR) as u64
    }

    /// How many requests can be submitted at this moment.
    pub fn free_requests(&self) -> usize {
        self.slots.free().min(self.ring.free() as usize)
    }

    /// Whether the disk cannot be written.
    pub fn is_read_only(&self) -> bool {
        self.geometry.read_only
    }

    /// Whether a flush does anything.
    pub fn can_flush(&self) -> bool {
        self.geometry.can_flush
    }

    /// Whether the backend says that it keeps the pages mapped, instead of mapping them for each request.
    pub fn is_persistent(&self) -> bool {
        self.geometry.persistent
    }

    /// What kind of disk it is.
    pub fn info(&self) -> DiskInfo {
        self.geometry.info
    }

    /// The device's number, as in `device/vbd/51712`.
    pub fn index(&self) -> u32 {
        self.device.index()
    }

    /// What passed so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// The event channel.
    pub fn channel(&self) -> &Channel<'x, P> {
        &self.channel
    }

    /// The domain's grant table, and by it the platform.
    pub fn grants(&self) -> &'x GrantTable<P> {
        self.grants
    }

    fn check(&self, lba: u64, sectors: u64) -> Result<usize, Error> {
        self.check_state()?;
        self.geometry.check_range(lba, sectors)?;
        if sectors > self.max_sectors() {
            return Err(Error::TooLong);
        }
        Ok(sectors as usize * SECTOR)
    }

    fn send(&mut self, ticket: Ticket, operation: u8, sector: u64) -> Result<Ticket, Error> {
        let mut request = Request {
            operation,
            // Longer numbers than the protocol's exist; the backend knows the device by its ring.
            handle: self.device.index() as u16,
            id: ticket.id(),
            sector,
            ..Request::default()
        };
        for (index, place) in request.segment.iter_mut().enumerate() {
            let Some(segment) = self.slots.segment(ticket, index) else { break };
            *place = segment;
            request.segments += 1;
        }
        match self.ring.push(&request) {
            Ok(_) => {
                self.stats.requests += 1;
                Ok(ticket)
            }
            Err(xen_ring::RingError::Full) => {
                self.cancel(ticket);
                Err(Error::Busy)
            }
            Err(error) => {
                self.cancel(ticket);
                Err(self.broke(Violation::Ring(error)))
            }
        }
    }

    /// Takes back what was never sent.
    fn cancel(&mut self, ticket: Ticket) {
        self.slots.settle(ticket, Ok(()));
        self.slots.forget(ticket);
    }

    pub(crate) fn check_state(&self) -> Result<(), Error> {
        match self.state {
            State::Connected => Ok(()),
            State::Closing | State::Gone => Err(Error::Closing),
            State::Broken(violation) => Err(Error::Broken(violation)),
        }
    }

    fn check_broken(&self) -> Result<(), Error> {
        match self.state {
            State::Broken(violation) => Err(Error::Broken(violation)),
            _ => Ok(()),
        }
    }

    fn broke(&mut self, violation: Violation) -> Error {
        self.state = State::Broken(violation);
        Error::Broken(violation)
    }
}

impl<P: Platform> fmt::Debug for BlkFront<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlkFront")
            .field("device", &self.device)
            .field("geometry", &self.geometry)
            .field("state", &self.state)
            .field("ring", &self.ring)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}
