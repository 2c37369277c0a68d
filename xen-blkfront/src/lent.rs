//! A queue that another task or vCPU drives, apart from the disk that it is of.

use core::fmt;
use core::task::{Context, Poll};

use xen_evtchn::Channel;
use xen_hypercall::{DomId, PageBox, Platform, Wait};

use crate::{BlkFront, Discard, Error, Piece, State, Stats, Ticket};

/// A queue of a disk, for another task or vCPU than that which has the disk: [`BlkFront::take_queue`]. It is driven as the disk is,
/// with operations, tickets and pages of its own.
///
/// A [flush](Self::submit_flush) covers what was answered before it was submitted, at whichever queue of the disk: the protocol's
/// flush is the disk's, not the queue's. What is under way at another queue it does not cover, and there is no other order
/// between queues: who wants one waits for an answer before he, or somebody else, asks for the next. Therefore there are no barriers.
/// [`Error::Lost`] is told by one flush of the disk, at whichever queue.
///
/// When the disk closes, nothing more is accepted here ([`Error::Closed`]). When it has closed, or is broken, that is also the result
/// of all that is not answered; it is final, and nothing of it is issued again. After a resume in a new domain it is the result of
/// reads that were answered and not taken, too, if the backend kept pages mapped. Tasks that wait are woken; a vCPU that sleeps
/// is to be woken by its kernel, or finds out when its time is up. The queue is to be [put back](BlkFront::put_queue) then, or
/// dropped, so that the disk can be connected anew.
///
/// Its event channel is bound to vCPU 0, as all are at first. Another vCPU binds it to itself ([`Channel::bind_vcpu`]), so that
/// it is this one which is interrupted, and whose sleep ends.
///
/// Dropping it while the disk is at work leaves the backend with a queue that nobody serves. Of writes that are under way
/// then nobody knows whether they happen, and one flush after the next [`reconnect`](BlkFront::reconnect) tells of a loss.
pub struct BlkQueue<'x, P: Platform> {
    /// A disk of this one queue. It has no [`Frontend`](xen_xenstore::xenbus::Frontend), so it is driven and nothing else.
    pub(crate) half: PageBox<'x, P, BlkFront<'x, P>>,
    pub(crate) index: usize,
}

/// A queue that was not put back, and why.
#[non_exhaustive]
pub struct Rejected<'x, P: Platform> {
    /// [`Error::Busy`]: something is under way. [`Error::Queue`]: it is another disk's, which is at work.
    pub error: Error,
    /// The queue, as it was.
    pub queue: BlkQueue<'x, P>,
}

impl<'x, P: Platform> BlkQueue<'x, P> {
    /// What is driven, after a look at what became of the disk.
    #[inline]
    fn half(&mut self) -> &mut BlkFront<'x, P> {
        self.half.look();
        &mut self.half
    }

    /// The same for what may take responses, of which the other queues are told.
    pub(crate) fn drive<R>(&mut self, f: impl FnOnce(&mut BlkFront<'x, P>) -> R) -> R {
        let result = f(self.half());
        self.half.report();
        result
    }

    /// Its number in the disk.
    pub fn index(&self) -> usize {
        self.index
    }

    /// How the disk is, and whether the backend broke the protocol at this queue: at another one that shows here as
    /// [`State::Closed`], once that queue was put back.
    pub fn state(&mut self) -> State {
        self.half().state()
    }

    /// What passed since it was taken.
    pub fn stats(&self) -> Stats {
        self.half.stats()
    }

    /// Its event channel.
    pub fn channel(&self) -> Option<&Channel<'x, P>> {
        self.half.channels().next()
    }

    /// As [`BlkFront::capacity`].
    pub fn capacity(&mut self) -> u64 {
        self.half().capacity()
    }

    /// As [`BlkFront::sector_size`].
    pub fn sector_size(&self) -> u32 {
        self.half.sector_size()
    }

    /// As [`BlkFront::max_sectors`].
    pub fn max_sectors(&self) -> u64 {
        self.half.max_sectors()
    }

    /// As [`BlkFront::request_sectors`].
    pub fn request_sectors(&self) -> u64 {
        self.half.request_sectors()
    }

    /// As [`BlkFront::free_requests`].
    pub fn free_requests(&self) -> usize {
        self.half.free_requests()
    }

    /// As [`BlkFront::pending`], for what was submitted here.
    pub fn pending(&self) -> usize {
        self.half.pending()
    }

    /// As [`BlkFront::is_read_only`].
    pub fn is_read_only(&self) -> bool {
        self.half.is_read_only()
    }

    /// As [`BlkFront::can_flush`].
    pub fn can_flush(&self) -> bool {
        self.half.can_flush()
    }

    /// As [`BlkFront::discard`].
    pub fn discard(&self) -> Option<Discard> {
        self.half.discard()
    }

    /// As [`BlkFront::is_trusted`].
    pub fn is_trusted(&self) -> bool {
        self.half.is_trusted()
    }

    /// As [`BlkFront::backend_id`].
    pub fn backend_id(&self) -> DomId {
        self.half.backend_id()
    }

    /// As [`BlkFront::submit_read`].
    ///
    /// # Errors
    /// As there.
    pub fn submit_read(&mut self, lba: u64, sectors: u64) -> Result<Ticket, Error> {
        self.half().submit_read(lba, sectors)
    }

    /// As [`BlkFront::submit_write`].
    ///
    /// # Errors
    /// As there.
    pub fn submit_write(&mut self, lba: u64, data: &[u8]) -> Result<Ticket, Error> {
        self.half().submit_write(lba, data)
    }

    /// As [`BlkFront::submit_read_into`].
    ///
    /// # Errors
    /// As there.
    pub fn submit_read_into(
        &mut self,
        lba: u64,
        pieces: &mut [Option<Piece<'x, P>>],
    ) -> Result<Ticket, Error> {
        self.half().submit_read_into(lba, pieces)
    }

    /// As [`BlkFront::submit_write_from`].
    ///
    /// # Errors
    /// As there.
    pub fn submit_write_from(
        &mut self,
        lba: u64,
        pieces: &mut [Option<Piece<'x, P>>],
    ) -> Result<Ticket, Error> {
        self.half().submit_write_from(lba, pieces)
    }

    /// As [`BlkFront::submit_flush`]: for all that was answered so far, at whichever queue of the disk.
    ///
    /// # Errors
    /// As there.
    pub fn submit_flush(&mut self) -> Result<Ticket, Error> {
        self.half().submit_flush()
    }

    /// As [`BlkFront::submit_discard`].
    ///
    /// # Errors
    /// As there.
    pub fn submit_discard(&mut self, lba: u64, sectors: u64) -> Result<Ticket, Error> {
        self.half().submit_discard(lba, sectors)
    }

    /// As [`BlkFront::submit_secure_discard`].
    ///
    /// # Errors
    /// As there.
    pub fn submit_secure_discard(&mut self, lba: u64, sectors: u64) -> Result<Ticket, Error> {
        self.half().submit_secure_discard(lba, sectors)
    }

    /// As [`BlkFront::publish`].
    ///
    /// # Errors
    /// As there.
    pub fn publish(&mut self) -> Result<(), Error> {
        self.half().publish()
    }

    /// As [`BlkFront::poll`].
    ///
    /// # Errors
    /// As there.
    pub fn poll(&mut self) -> Result<usize, Error> {
        self.drive(BlkFront::poll)
    }

    /// As [`BlkFront::take`].
    ///
    /// # Errors
    /// As there.
    pub fn take(&mut self, ticket: Ticket, out: &mut [u8]) -> Option<Result<(), Error>> {
        self.half().take(ticket, out)
    }

    /// As [`BlkFront::take_pages`].
    ///
    /// # Errors
    /// As there.
    pub fn take_pages(
        &mut self,
        ticket: Ticket,
        places: &mut [Option<Piece<'x, P>>],
    ) -> Option<Result<(), Error>> {
        self.half().take_pages(ticket, places)
    }

    /// As [`BlkFront::forget`].
    pub fn forget(&mut self, ticket: Ticket) {
        self.half().forget(ticket);
    }

    /// As [`BlkFront::arm`].
    ///
    /// # Errors
    /// As there.
    pub fn arm(&mut self) -> Result<bool, Error> {
        self.half().arm()
    }

    /// As [`BlkFront::arm_after`].
    pub fn arm_after(&mut self, skip: u32) -> bool {
        self.half().arm_after(skip)
    }

    /// As [`BlkFront::poll_take`].
    pub fn poll_take(
        &mut self,
        ticket: Ticket,
        out: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Error>> {
        self.drive(|half| half.poll_take(ticket, out, cx))
    }

    /// As [`BlkFront::poll_event`].
    pub fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.half().poll_event(cx)
    }

    /// As [`BlkFront::poll_room`].
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.drive(|half| half.poll_room(cx))
    }
}

impl<P: Platform + Wait> BlkQueue<'_, P> {
    /// As [`BlkFront::read`]. The vCPU that calls is the one that the [channel](Self::channel) is bound to.
    ///
    /// # Errors
    /// As there.
    pub fn read(&mut self, lba: u64, out: &mut [u8]) -> Result<(), Error> {
        self.drive(|half| half.read(lba, out))
    }

    /// As [`BlkFront::write`], of the same vCPU as [`read`](Self::read).
    ///
    /// # Errors
    /// As there.
    pub fn write(&mut self, lba: u64, data: &[u8]) -> Result<(), Error> {
        self.drive(|half| half.write(lba, data))
    }

    /// As [`BlkFront::flush`]: waits for the writes that are under way here, and for those alone.
    ///
    /// # Errors
    /// As there.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.drive(BlkFront::flush)
    }

    /// As [`BlkFront::discard_sectors`].
    ///
    /// # Errors
    /// As there.
    pub fn discard_sectors(&mut self, lba: u64, sectors: u64) -> Result<(), Error> {
        self.drive(|half| half.discard_sectors(lba, sectors))
    }

    /// As [`BlkFront::erase`].
    ///
    /// # Errors
    /// As there.
    pub fn erase(&mut self, lba: u64, sectors: u64) -> Result<(), Error> {
        self.drive(|half| half.erase(lba, sectors))
    }

    /// As [`BlkFront::wait`], of the same vCPU as [`read`](Self::read).
    ///
    /// # Errors
    /// As there.
    pub fn wait(&mut self, ticket: Ticket, out: &mut [u8]) -> Result<(), Error> {
        self.drive(|half| half.wait(ticket, out))
    }
}

impl<P: Platform> Drop for BlkQueue<'_, P> {
    fn drop(&mut self) {
        self.half.report();
        if let Some(shared) = &self.half.shared {
            shared.leave_for_good(self.half.ops.are_open());
        }
    }
}

impl<P: Platform> fmt::Debug for BlkQueue<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlkQueue")
            .field("index", &self.index)
            .field("stats", &self.half.stats)
            .finish_non_exhaustive()
    }
}

impl<P: Platform> fmt::Debug for Rejected<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rejected").field("error", &self.error).field("queue", &self.queue).finish()
    }
}

impl<P: Platform> fmt::Display for Rejected<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<P: Platform> core::error::Error for Rejected<'_, P> {}

impl<P: Platform> From<Rejected<'_, P>> for Error {
    fn from(rejected: Rejected<'_, P>) -> Self {
        rejected.error
    }
}
