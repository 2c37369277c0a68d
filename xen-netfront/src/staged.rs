//! Frames that are put together from what a stack sends piece by piece.

use xen_hypercall::{PAGE_SIZE, Platform};

use crate::front::each;
use crate::queue::Queue;
use crate::tx::{Plan, TxQueue, broken};
use crate::{Error, NetFront, Stats, TxMeta};

impl<P: Platform, const QUEUES: usize> NetFront<'_, P, QUEUES> {
    /// Whether there are so many pages, and slots for them beside those for frames that were staged before.
    pub(crate) fn has_room_beside(&mut self, staged: usize, wanted: usize) -> bool {
        let Self { queues, stats, .. } = self;
        let room = each(queues).try_fold(true, |all, queue| {
            let pages = queue.tx.available(staged + wanted, stats)?;
            Ok(all && pages >= wanted && queue.tx.ring.free() as usize >= staged + wanted)
        });
        self.check().and_then(|()| self.settle(room)).unwrap_or(false)
    }

    /// Copies a part of a frame to pages of the queue of its flow, until [`send_staged`](Self::send_staged). `frame` is
    /// 1 or more, and less than [`FRAMES`](crate::pool::FRAMES); others may be sent meanwhile.
    pub(crate) fn stage(&mut self, frame: usize, head: &[u8], at: usize, bytes: &[u8]) -> Result<(), Error> {
        self.check()?;
        let needed = (at + bytes.len()).div_ceil(PAGE_SIZE) + 1;
        let staged = self.on_queue(head, |queue, stats| {
            queue.tx.on_frame(frame, |tx| {
                if tx.available(needed, stats)? < needed {
                    return Err(Error::Full);
                }
                tx.stage(at, bytes, stats)
            })
        });
        self.settle(staged)
    }

    /// Sends the frame whose parts were [staged](Self::stage), with these headers.
    pub(crate) fn send_staged(
        &mut self,
        frame: usize,
        head: &[u8],
        len: usize,
        meta: TxMeta,
    ) -> Result<(), Error> {
        self.check()?;
        let plan = Plan::new(self.config.send, head, len, meta, |_, _| None)?;
        let sent = self.on_queue(head, |queue, stats| {
            queue.tx.on_frame(frame, |tx| {
                tx.stage(0, head, stats)?;
                tx.send_staged(len, &plan, stats)
            })?;
            // The backend can be at work on it while the next one is put together.
            queue.publish_transmit(stats)
        });
        self.settle(sent)
    }

    /// Shows the backend what was sent by the queue that this frame belongs to.
    #[cfg(feature = "smoltcp-v0-14-segmentation")]
    pub(crate) fn show_sent(&mut self, head: &[u8]) -> Result<(), Error> {
        let shown = self.on_queue(head, |queue, stats| queue.publish_transmit(stats));
        self.settle(shown)
    }
}

impl<P: Platform> Queue<'_, P> {
    /// Shows the backend what was queued to be sent, and notifies it if it sleeps.
    fn publish_transmit(&mut self, stats: &mut Stats) -> Result<(), Error> {
        if self.tx.ring.publish().map_err(broken)? {
            stats.notifications += 1;
            self.channel.notify()?;
        }
        Ok(())
    }
}

impl<P: Platform> TxQueue<'_, P> {
    /// Does something with one of the frames that are put together, which is the first otherwise.
    fn on_frame<R>(&mut self, frame: usize, f: impl FnOnce(&mut Self) -> R) -> R {
        self.pool.choose(frame);
        let result = f(self);
        self.pool.choose(0);
        result
    }
}
