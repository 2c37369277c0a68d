//! The disk as blocks for `block-device-driver`, asynchronously.

use core::cell::RefCell;
use core::fmt;
use core::future::poll_fn;
use core::ops::Range;
use core::task::{Context, Poll};

use aligned::{A1, Aligned};
use block_device_driver::{BlockDevice, blocks_to_slice, blocks_to_slice_mut};
use xen_hypercall::{PAGE_SIZE, Platform};

use crate::abi::{MAX_SEGMENTS, SECTOR};
use crate::{BlkFront, Error, Ticket};

/// Operations of one transfer that are under way at once, at most.
const WINDOW: usize = 8;
/// Bytes of an operation for which there are pages at all times, unless other operations have them.
const LITTLE: usize = MAX_SEGMENTS * PAGE_SIZE;

/// A [`BlkFront`] as a [`BlockDevice`] with blocks of any size that is whole sectors of the disk. Addresses count blocks, in
/// 32 bits, so that of a very large disk only the beginning can be reached; nothing is ever cut off an address.
///
/// The disk is shared: clones are the same disk, for one task each, and [`BlkFront::service`] is called by whoever watches
/// xenstore. When that finds the backend gone all transfers under way return [`Error::Closed`]. A transfer is several
/// operations at once, and waits for room when others have it all.
///
/// No deadline is set: a task that wants one drops the future. What was submitted by then goes on without it.
pub struct BlkDevice<'d, 'x, P: Platform> {
    front: &'d RefCell<BlkFront<'x, P>>,
}

impl<P: Platform> Clone for BlkDevice<'_, '_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: Platform> Copy for BlkDevice<'_, '_, P> {}

/// The caller's buffer.
enum Buffer<'b> {
    Read(&'b mut [u8]),
    Write(&'b [u8]),
}

impl Buffer<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Read(out) => out.len(),
            Self::Write(data) => data.len(),
        }
    }
}

/// A transfer: the next byte that is not submitted, and the operations under way. These are forgotten when nobody waits
/// for them any more.
struct Transfer<'d, 'x, 'b, P: Platform> {
    front: &'d RefCell<BlkFront<'x, P>>,
    lba: u64,
    buffer: Buffer<'b>,
    next: usize,
    /// Bytes of one operation.
    part: usize,
    window: [Option<(Ticket, Range<usize>)>; WINDOW],
    /// After an error nothing more is submitted.
    result: Result<(), Error>,
}

impl<P: Platform> Transfer<'_, '_, '_, P> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        // Each turn submits something, or is the last.
        loop {
            self.take(cx);
            let before = self.next;
            let full = self.submit();
            if self.next > before {
                if let Err(error) = self.front.borrow_mut().publish() {
                    self.result = Err(error);
                }
                continue;
            }
            if self.window.iter().any(Option::is_some) {
                // What there is no room for follows when one of these is done.
                return Poll::Pending;
            }
            if !full {
                return Poll::Ready(self.result);
            }
            if self.front.borrow_mut().poll_room(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// Takes what is done.
    fn take(&mut self, cx: &mut Context<'_>) {
        let mut front = self.front.borrow_mut();
        for place in &mut self.window {
            let Some((ticket, range)) = place else { continue };
            let out = match &mut self.buffer {
                Buffer::Read(out) => out.get_mut(range.clone()).unwrap_or_default(),
                Buffer::Write(_) => &mut [],
            };
            if let Poll::Ready(result) = front.poll_take(*ticket, out, cx) {
                self.result = self.result.and(result);
                *place = None;
            }
        }
    }

    /// Submits as much as there is room for. Returns true when the disk has none.
    fn submit(&mut self) -> bool {
        let mut front = self.front.borrow_mut();
        while self.next < self.buffer.len() && self.result.is_ok() {
            let Some(place) = self.window.iter_mut().find(|place| place.is_none()) else { break };
            let range = self.next..(self.next + self.part).min(self.buffer.len());
            let lba = self.lba + (range.start / SECTOR) as u64;
            let submitted = match &self.buffer {
                Buffer::Read(_) => front.submit_read(lba, (range.len() / SECTOR) as u64),
                Buffer::Write(data) => front.submit_write(lba, data.get(range.clone()).unwrap_or_default()),
            };
            match submitted {
                Ok(ticket) => {
                    self.next = range.end;
                    *place = Some((ticket, range));
                }
                Err(Error::Busy) if self.window.iter().any(Option::is_some) => return true,
                // Little is enough: some pages are there in any case.
                Err(Error::Busy | Error::Grant(_)) if self.part > LITTLE => self.part = LITTLE,
                Err(Error::Busy) => return true,
                Err(error) => self.result = Err(error),
            }
        }
        false
    }
}

impl<P: Platform> Drop for Transfer<'_, '_, '_, P> {
    fn drop(&mut self) {
        let mut front = self.front.borrow_mut();
        for (ticket, _) in self.window.iter_mut().filter_map(Option::take) {
            front.forget(ticket);
        }
    }
}

impl<'d, 'x, P: Platform> BlkDevice<'d, 'x, P> {
    /// A disk that tasks share.
    pub fn new(front: &'d RefCell<BlkFront<'x, P>>) -> Self {
        Self { front }
    }

    /// Makes what was written before durable ([`BlkFront::submit_flush`]).
    ///
    /// # Errors
    /// As [`BlkFront::submit_flush`], and the operation's own.
    pub async fn flush(&mut self) -> Result<(), Error> {
        let mut transfer = self.transfer(0, Buffer::Write(&[]));
        poll_fn(|cx| {
            let mut front = transfer.front.borrow_mut();
            while transfer.window[0].is_none() {
                match front.submit_flush() {
                    Ok(ticket) => transfer.window[0] = Some((ticket, 0..0)),
                    Err(Error::Busy) if front.poll_room(cx).is_pending() => return Poll::Pending,
                    Err(Error::Busy) => continue,
                    Err(error) => return Poll::Ready(Err(error)),
                }
                front.publish()?;
            }
            drop(front);
            transfer.take(cx);
            if transfer.window[0].is_none() { Poll::Ready(transfer.result) } else { Poll::Pending }
        })
        .await
    }

    fn transfer<'b>(&self, lba: u64, buffer: Buffer<'b>) -> Transfer<'d, 'x, 'b, P> {
        let window = [const { None }; WINDOW];
        let front = self.front.borrow();
        let part = front.request_sectors().min(front.max_sectors()) as usize * SECTOR;
        Transfer { front: self.front, lba, buffer, next: 0, part, window, result: Ok(()) }
    }

    /// The first sector of some blocks, if all of them are on the disk.
    fn place(&self, address: u32, size: usize, count: usize) -> Result<u64, Error> {
        let front = self.front.borrow();
        if size == 0 || size % front.sector_size() as usize != 0 {
            return Err(Error::Unaligned);
        }
        let each = (size / SECTOR) as u64;
        let start = u64::from(address).checked_mul(each);
        let len = (count as u64).checked_mul(each);
        let end = start.zip(len).and_then(|(start, len)| start.checked_add(len));
        if end.is_none_or(|end| end > front.capacity()) {
            return Err(Error::OutOfRange);
        }
        start.ok_or(Error::OutOfRange)
    }
}

impl<P: Platform, const SIZE: usize> BlockDevice<SIZE> for BlkDevice<'_, '_, P> {
    type Error = Error;
    type Align = A1;

    async fn read(&mut self, address: u32, data: &mut [Aligned<A1, [u8; SIZE]>]) -> Result<(), Error> {
        let lba = self.place(address, SIZE, data.len())?;
        let mut transfer = self.transfer(lba, Buffer::Read(blocks_to_slice_mut(data)));
        poll_fn(|cx| transfer.poll(cx)).await
    }

    async fn write(&mut self, address: u32, data: &[Aligned<A1, [u8; SIZE]>]) -> Result<(), Error> {
        let lba = self.place(address, SIZE, data.len())?;
        let mut transfer = self.transfer(lba, Buffer::Write(blocks_to_slice(data)));
        poll_fn(|cx| transfer.poll(cx)).await
    }

    async fn size(&mut self) -> Result<u64, Error> {
        Ok(self.front.borrow().capacity() * SECTOR as u64)
    }
}

impl<P: Platform> fmt::Debug for BlkDevice<'_, '_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlkDevice").field("front", self.front).finish()
    }
}
