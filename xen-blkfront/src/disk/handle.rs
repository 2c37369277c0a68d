//! What a task uses a disk by.

use core::fmt;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;

use xen_hypercall::Platform;

use super::Disk;
use super::jobs::{Buffer, Lent, PARTS, Single, Transfer, perform};
use super::seats::{Line, Seat};
use crate::{BlkFront, Error, Piece, State};

/// What tasks use a [`Disk`] by: each has a copy, and any number of calls may be under way.
///
/// Calls that are under way at the same time are done in any order. Who wants one waits for an answer before he asks for the next.
/// When there is no room a call waits its turn: those who wait are served one after the other, and none is passed over. A call keeps its
/// room until it has its result or is dropped.
///
/// A call may be dropped at any time. What was submitted by then goes on without it: a write may happen or not, as one that fails
/// in the middle. Its pages and its place come back when it is answered. No call has a time limit; who wants one drops it.
///
/// A call fails with [`Error::Closed`] or [`Error::Broken`] when the disk ends or has ended, whoever ends it; no call waits for
/// a disk that is not there.
pub struct DiskHandle<'d, 'x, P: Platform> {
    disk: &'d Disk<'x, P>,
}

impl<P: Platform> Clone for DiskHandle<'_, '_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: Platform> Copy for DiskHandle<'_, '_, P> {}

impl<'d, 'x, P: Platform> DiskHandle<'d, 'x, P> {
    pub(super) fn new(disk: &'d Disk<'x, P>) -> Self {
        Self { disk }
    }

    /// The place that it is of.
    pub fn disk(&self) -> &'d Disk<'x, P> {
        self.disk
    }

    /// Reads sectors, as many as `out` has room for.
    ///
    /// # Errors
    /// [`Error::Unaligned`], [`Error::OutOfRange`]; what the backend says; [`Error::Closed`], [`Error::Broken`]; [`Error::Grant`]
    /// without memory. What is in `out` is undetermined then, and when the call is dropped.
    pub async fn read(self, lba: u64, out: &mut [u8]) -> Result<(), Error> {
        perform::<_, PARTS>(self.disk, Transfer::new(lba, Buffer::Read(out))).await
    }

    /// Writes sectors. The data is copied when there is room for it.
    ///
    /// # Errors
    /// As [`read`](Self::read), and [`Error::ReadOnly`]. Any of the sectors may have been written then.
    pub async fn write(self, lba: u64, data: &[u8]) -> Result<(), Error> {
        perform::<_, PARTS>(self.disk, Transfer::new(lba, Buffer::Write(data))).await
    }

    /// Reads sectors into the caller's own pages, without a copy, in one operation; as [`BlkFront::submit_read_into`]. The pages are in
    /// their places again when the call returns, whatever the backend has answered. With a call that is dropped they are dropped, and with
    /// a disk that ends.
    ///
    /// # Errors
    /// As [`BlkFront::submit_read_into`], but for [`Error::Busy`]; what the backend says.
    pub async fn read_into(self, lba: u64, pieces: &mut [Option<Piece<'x, P>>]) -> Result<(), Error> {
        perform::<_, 1>(self.disk, Lent { lba, pieces, write: false }).await
    }

    /// Writes sectors from the caller's own pages; as [`read_into`](Self::read_into).
    ///
    /// # Errors
    /// As [`read_into`](Self::read_into), and [`Error::ReadOnly`].
    pub async fn write_from(self, lba: u64, pieces: &mut [Option<Piece<'x, P>>]) -> Result<(), Error> {
        perform::<_, 1>(self.disk, Lent { lba, pieces, write: true }).await
    }

    /// Has the writes that were answered before survive a loss of power, if the backend can; see [`BlkFront::can_flush`]. Those that
    /// are under way it does not wait for.
    ///
    /// # Errors
    /// As [`BlkFront::submit_flush`], but for [`Error::Busy`]; what the backend says.
    pub async fn flush(self) -> Result<(), Error> {
        perform::<_, 1>(self.disk, Single(BlkFront::submit_flush)).await
    }

    /// Discards sectors, as far as whole extents of the medium are among them.
    ///
    /// # Errors
    /// As [`BlkFront::submit_discard`], but for [`Error::Busy`]; what the backend says.
    pub async fn discard(self, lba: u64, sectors: u64) -> Result<(), Error> {
        perform::<_, 1>(self.disk, Single(|front: &mut BlkFront<'x, P>| front.submit_discard(lba, sectors)))
            .await
    }

    /// Has every copy of some sectors erased.
    ///
    /// # Errors
    /// As [`BlkFront::submit_secure_discard`], but for [`Error::Busy`]; what the backend says.
    pub async fn erase(self, lba: u64, sectors: u64) -> Result<(), Error> {
        let submit = |front: &mut BlkFront<'x, P>| front.submit_secure_discard(lba, sectors);
        perform::<_, 1>(self.disk, Single(submit)).await
    }

    /// Writes sectors, at most 88, after all that was submitted before, and before all that is submitted later; as
    /// [`BlkFront::submit_barrier`].
    ///
    /// # Errors
    /// As [`BlkFront::submit_barrier`], but for [`Error::Busy`]; what the backend says.
    pub async fn barrier(self, lba: u64, data: &[u8]) -> Result<(), Error> {
        perform::<_, 1>(self.disk, Single(|front: &mut BlkFront<'x, P>| front.submit_barrier(lba, data)))
            .await
    }

    /// How the disk is. None: there is none.
    pub fn state(&self) -> Option<State> {
        self.disk.look(BlkFront::state)
    }

    /// The size, in sectors of 512 bytes; of a disk that has closed the last one. Without a disk it is zero.
    pub fn capacity(&self) -> u64 {
        self.disk.look(BlkFront::capacity).unwrap_or(0)
    }

    /// The disk's own sectors, in bytes; see [`BlkFront::sector_size`]. Without a disk it is 512.
    pub fn sector_size(&self) -> u32 {
        self.disk.look(BlkFront::sector_size).unwrap_or(crate::abi::SECTOR as u32)
    }

    /// Whether the disk cannot be written, or is not there.
    pub fn is_read_only(&self) -> bool {
        self.disk.look(BlkFront::is_read_only).unwrap_or(true)
    }

    /// Waits until a disk is connected.
    pub async fn connected(self) {
        self.until(|disk| disk.look(BlkFront::state) == Some(State::Connected)).await;
    }

    /// Waits until the disk is otherwise than at this moment: connected, closing, closed, replaced, or of another size.
    pub fn changed(self) -> impl Future<Output = ()> {
        let known = self.disk.changes.get();
        self.until(move |disk| disk.changes.get() != known)
    }

    pub(super) async fn until(self, is_so: impl Fn(&Disk<'x, P>) -> bool) {
        let seat = pin!(Seat::new(&self.disk.seats));
        let seat = seat.as_ref();
        poll_fn(|cx| {
            if is_so(self.disk) {
                return Poll::Ready(());
            }
            seat.sit(Line::Change);
            seat.leave(cx.waker());
            Poll::Pending
        })
        .await;
    }
}

impl<P: Platform> fmt::Debug for DiskHandle<'_, '_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DiskHandle").field(self.disk).finish()
    }
}
