//! Queues that other tasks and vCPUs drive, apart from the device that they are of.

use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll};

use atomic_waker::AtomicWaker;
use xen_evtchn::{Channel, wake_all};
use xen_hypercall::{PageArc, Platform};

use crate::multicast::Multicast;
use crate::waiters::Waiters;
use crate::{Error, Followup, FramePage, NetFront, RxMeta, State, Stats, TxMeta};

/// Queues that can be taken: those of the first numbers.
const PLACES: usize = 32;

/// What a device and the queues that were taken from it share.
struct Common {
    /// The device is not at work any more.
    ended: AtomicBool,
    /// Frames may come with a hash.
    hashes: AtomicBool,
    /// Of the task at each queue.
    wakers: [AtomicWaker; PLACES],
}

/// The device's end of it. Dropped, it tells the queues that there is no device any more.
pub(crate) struct Lender<'x, P: Platform>(PageArc<'x, P, Common>);

impl<P: Platform> Lender<'_, P> {
    pub(crate) fn expect_hashes(&self) {
        self.0.hashes.store(true, Ordering::Release);
    }
}

impl<P: Platform> Drop for Lender<'_, P> {
    fn drop(&mut self) {
        // A task that leaves its waker looks afterwards: it is woken, or sees this.
        self.0.ended.store(true, Ordering::SeqCst);
        wake_all(self.0.wakers.iter(), AtomicWaker::wake);
    }
}

/// A queue of a network device, for another task or vCPU than that which has the device: [`NetFront::take_queue`]. It sends and
/// receives by itself, with the terms of the device.
///
/// When the device ends, or begins anew, or the domain is resumed in a new one, all calls return [`Error::Closed`], and a task that
/// [waits](Self::poll_receivable) is woken. The owner may [put it back](NetFront::put_queue) then, or drop it: its pages go as
/// soon as the backend has let go of them. A device that begins anew has all of its queues anew.
///
/// Its event channel is bound to vCPU 0, as all are at first. Another vCPU binds it to itself
/// ([`Channel::bind_vcpu`]), so that it is this one which is interrupted.
///
/// Dropping it while the device is at work leaves the backend with a queue that nobody serves: what it sends there is lost.
pub struct NetQueue<'x, P: Platform> {
    /// A device of this one queue. It has no tie to the backend, so it is driven and nothing else.
    half: NetFront<'x, P, 1>,
    index: usize,
    common: PageArc<'x, P, Common>,
}

impl<'x, P: Platform, const QUEUES: usize> NetFront<'x, P, QUEUES> {
    /// Takes a queue out of the device, for another task or vCPU. Queue 0 stays: what is not about frames goes by it. Frames
    /// that are sent by the device go by the queues that it still has. Which frames arrive at which queue is the backend's to
    /// choose ([`control`](Self::control)), so a queue that was taken is to be served.
    ///
    /// # Errors
    /// [`Error::Queue`] for queue 0, one that there is not, one that was taken, and one above 31. [`Error::Grant`]: no memory for
    /// what the device and its queues share, a page. [`Error::Closed`], [`Error::Broken`].
    pub fn take_queue(&mut self, index: usize) -> Result<NetQueue<'x, P>, Error> {
        self.check()?;
        let none = Error::Queue(u32::try_from(index).unwrap_or(u32::MAX));
        if !(1..PLACES).contains(&index) || self.queues.get(index).is_none_or(Option::is_none) {
            return Err(none);
        }
        let common = match &self.lent {
            Some(lender) => lender.0.clone(),
            None => {
                let common = Common {
                    ended: AtomicBool::new(false),
                    hashes: AtomicBool::new(self.hashes),
                    wakers: [const { AtomicWaker::new() }; PLACES],
                };
                let common = PageArc::new(self.grants.platform(), common);
                let common = common.ok_or(xen_gnttab::Error::OutOfMemory)?;
                self.lent.insert(Lender(common)).0.clone()
            }
        };
        let queue = self.queues.get_mut(index).and_then(Option::take);
        let half = NetFront {
            index: self.index,
            tie: None,
            grants: self.grants,
            events: self.events,
            queues: [queue],
            control: None,
            multicast: Multicast::Unfiltered,
            groups: None,
            followup: Followup::empty(),
            turn: 0,
            config: self.config,
            wanted: self.wanted,
            trusted: self.trusted,
            headroom: self.headroom,
            link_up: true,
            waiters: Waiters::default(),
            told_up: true,
            mac: self.mac,
            mtu: self.mtu,
            state: State::Connected,
            stats: Stats::default(),
            connected: 1,
            hashes: self.hashes,
            backend: self.backend,
            lent: None,
        };
        Ok(NetQueue { half, index, common })
    }

    /// Puts a queue back that was taken, and adds what passed through it to the device's counters. A queue of this device as it
    /// was before it began anew, or of another one, is dropped. With one at which the backend broke the protocol the device is
    /// [broken](State::Broken), too.
    pub fn put_queue(&mut self, queue: NetQueue<'x, P>) {
        let NetQueue { mut half, index, common } = queue;
        self.stats.add(half.stats);
        let ours = self.lent.as_ref().is_some_and(|lender| lender.0.is_same(&common));
        let (Some(place), true) = (self.queues.get_mut(index).filter(|place| place.is_none()), ours) else {
            return;
        };
        *place = half.queues.first_mut().and_then(Option::take);
        if let State::Broken(_) = half.state {
            self.state = half.state;
            self.tell();
        }
    }
}

impl<'x, P: Platform> NetQueue<'x, P> {
    /// What is driven, after a look at what became of the device.
    #[inline]
    fn half(&mut self) -> &mut NetFront<'x, P, 1> {
        // After a resume in a new domain the rings are nobody's, whether the device has been told yet or not.
        let over = || self.common.ended.load(Ordering::SeqCst) || self.half.is_of_another_life();
        if self.half.state == State::Connected && over() {
            self.half.state = State::Closed;
        }
        self.half.hashes |= self.common.hashes.load(Ordering::Acquire);
        &mut self.half
    }

    /// Its number in the device.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Whether it is at work: [`State::Connected`] as long as the device is, and [`State::Broken`] if the backend broke the
    /// protocol here.
    pub fn state(&mut self) -> State {
        self.half().state()
    }

    /// What passed since it was taken.
    pub fn stats(&self) -> Stats {
        self.half.stats()
    }

    /// The event channel, or that of what it sends when there are two.
    pub fn channel(&self) -> Option<&Channel<'x, P>> {
        self.half.channel(0)
    }

    /// The event channel for what it receives, which may be the same.
    pub fn receive_channel(&self) -> Option<&Channel<'x, P>> {
        self.half.receive_channel(0)
    }

    /// As [`NetFront::can_transmit`].
    ///
    /// # Errors
    /// As there.
    pub fn can_transmit(&mut self) -> Result<usize, Error> {
        self.half().can_transmit()
    }

    /// As [`NetFront::transmit`].
    ///
    /// # Errors
    /// As there.
    pub fn transmit(&mut self, frame: &[u8]) -> Result<(), Error> {
        self.half().transmit(frame)
    }

    /// As [`NetFront::transmit_with`].
    ///
    /// # Errors
    /// As there.
    pub fn transmit_with(&mut self, parts: &[&[u8]], meta: TxMeta) -> Result<(), Error> {
        self.half().transmit_with(parts, meta)
    }

    /// As [`NetFront::transmit_pages`].
    ///
    /// # Errors
    /// As there.
    pub fn transmit_pages(&mut self, frame: &mut [FramePage<'x, P>], meta: TxMeta) -> Result<(), Error> {
        self.half().transmit_pages(frame, meta)
    }

    /// As [`NetFront::receive`].
    ///
    /// # Errors
    /// As there.
    pub fn receive(&mut self, buf: &mut [u8]) -> Result<Option<usize>, Error> {
        self.half().receive(buf)
    }

    /// As [`NetFront::receive_with`].
    ///
    /// # Errors
    /// As there.
    pub fn receive_with(&mut self, buf: &mut [u8]) -> Result<Option<RxMeta>, Error> {
        let queue = self.index;
        Ok(self.half().receive_with(buf)?.map(|meta| RxMeta { queue, ..meta }))
    }

    /// As [`NetFront::receive_pages`].
    ///
    /// # Errors
    /// As there.
    pub fn receive_pages(&mut self, spare: &mut [FramePage<'x, P>]) -> Result<Option<RxMeta>, Error> {
        let queue = self.index;
        Ok(self.half().receive_pages(spare)?.map(|meta| RxMeta { queue, ..meta }))
    }

    /// As [`NetFront::publish`].
    ///
    /// # Errors
    /// As there.
    pub fn publish(&mut self) -> Result<(), Error> {
        self.half().publish()
    }

    /// As [`NetFront::arm`].
    ///
    /// # Errors
    /// As there.
    pub fn arm(&mut self) -> Result<bool, Error> {
        self.half().arm()
    }

    /// As [`NetFront::poll_receivable`]. One task may wait.
    pub fn poll_receivable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(place) = self.common.wakers.get(self.index) {
            place.register(cx.waker());
        }
        self.half().poll_receivable(cx)
    }
}

impl<P: Platform> fmt::Debug for NetQueue<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetQueue")
            .field("index", &self.index)
            .field("stats", &self.half.stats)
            .finish_non_exhaustive()
    }
}
