//! What a disk and the queues that were taken from it know of each other.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use core::task::Waker;

use atomic_waker::AtomicWaker;
use xen_hypercall::{PageArc, PageBox, Platform};

use crate::connect::Link;
use crate::lent::{BlkQueue, Rejected};
use crate::ops::Ops;
use crate::pool::Pool;
use crate::table::{NO_MEMORY, Table};
use crate::transport::MAX_QUEUES;
use crate::{BlkFront, Error, State, Stats};

/// How a disk is, as those with a queue of it are told.
const CONNECTED: u8 = 0;
const CLOSING: u8 = 1;
const CLOSED: u8 = 2;

/// What a disk and the queues that were taken from it share.
struct Common {
    state: AtomicU8,
    /// The disk's size, in sectors of 512 bytes.
    sectors: AtomicU64,
    /// Writes may be lost that nobody was told of yet.
    lost: AtomicBool,
    /// A queue was dropped with writes under way.
    left: AtomicBool,
    /// How much was written by each queue, as far as answered; first by the disk itself. Never less than before.
    written: [AtomicU64; MAX_QUEUES],
    /// How much of the sum is known to survive a crash of the backend's machine.
    durable: AtomicU64,
    /// Queues that were taken, and are there still.
    taken: AtomicUsize,
    /// Counts how often the domain went on where it was after it had been suspended.
    pauses: AtomicU32,
    /// Of the tasks at each queue.
    wakers: [AtomicWaker; MAX_QUEUES],
}

/// The end of it that a disk has, or a queue.
pub(crate) struct Shared<'x, P: Platform> {
    common: PageArc<'x, P, Common>,
    /// The queue's number; zero is the disk.
    place: usize,
    /// Of a queue: the last of the pauses that it has seen.
    pauses: u32,
}

impl<P: Platform> Shared<'_, P> {
    fn is_disk(&self) -> bool {
        self.place == 0
    }

    /// How much was written by all together, where `own` is what was written here.
    ///
    /// None of the parts ever becomes less. So whoever finds the same sum later knows that nothing was written in between, whatever
    /// the others did while this one was made.
    pub(crate) fn total(&self, own: u64) -> u64 {
        let each = self.common.written.iter().enumerate();
        let each = each.map(|(place, part)| match place == self.place {
            true => own,
            false => part.load(Ordering::Acquire),
        });
        each.fold(0, u64::wrapping_add)
    }

    /// Whether writes may be lost.
    pub(crate) fn is_lost(&self) -> bool {
        self.common.lost.load(Ordering::Acquire)
    }

    /// Somebody was told of the loss, or was to be told and went away.
    pub(crate) fn set_lost(&self, lost: bool) {
        self.common.lost.store(lost, Ordering::Release);
    }

    fn report(&self, own: u64, durable: u64) {
        if let Some(part) = self.common.written.get(self.place) {
            part.store(own, Ordering::Release);
        }
        self.common.durable.fetch_max(durable, Ordering::AcqRel);
    }

    /// Tells the queues how the disk is.
    pub(crate) fn announce(&self, state: State) {
        if self.is_disk() {
            let state = match state {
                State::Connected => CONNECTED,
                State::Closing => CLOSING,
                State::Closed | State::Broken(_) => CLOSED,
            };
            // A task that leaves its waker looks afterwards: it is woken, or sees this.
            self.common.state.store(state, Ordering::SeqCst);
            self.wake();
        }
    }

    /// Tells the queues how large the disk is.
    pub(crate) fn announce_size(&self, sectors: u64) {
        self.common.sectors.store(sectors, Ordering::Release);
    }

    /// Has the queues look after events that may have been missed.
    pub(crate) fn announce_pause(&self) {
        self.common.pauses.fetch_add(1, Ordering::SeqCst);
        self.wake();
    }

    fn wake(&self) {
        xen_evtchn::wake_all(self.common.wakers.iter(), AtomicWaker::wake);
    }

    /// Leaves the waker of a queue's tasks, for what becomes of the disk. The disk's own are told by the disk.
    pub(crate) fn leave(&self, waker: &Waker) {
        if let Some(place) = self.common.wakers.get(self.place).filter(|_| !self.is_disk()) {
            place.register(waker);
        }
    }

    /// Nobody is at a queue any more. `open` says that writes are under way there, of which nobody knows whether they happen.
    pub(crate) fn leave_for_good(&self, open: bool) {
        if open {
            self.common.left.store(true, Ordering::Release);
        }
        // It points to what the tasks there share, which goes with the last that does.
        if let Some(place) = self.common.wakers.get(self.place) {
            drop(place.take());
        }
    }
}

impl<P: Platform> Drop for Shared<'_, P> {
    fn drop(&mut self) {
        if self.is_disk() {
            self.announce(State::Closed);
        } else {
            self.common.taken.fetch_sub(1, Ordering::Release);
        }
    }
}

impl<'x, P: Platform> BlkFront<'x, P> {
    /// Takes a queue out of the disk, for another task or vCPU. Queue 0 stays. What the disk is asked goes by the queues that it still
    /// has. The queue gets places for [`Config::requests`](crate::Config::requests) operations and up to
    /// [`Config::pages`](crate::Config::pages) pages of its own.
    ///
    /// # Errors
    /// [`Error::Queue`] for queue 0, one that there is not, and one that was taken. [`Error::Busy`] while there are requests of the
    /// disk's own in it: [`poll`](Self::poll) until they are answered. [`Error::Grant`] without memory. [`Error::Closed`],
    /// [`Error::Broken`].
    pub fn take_queue(&mut self, index: usize) -> Result<BlkQueue<'x, P>, Error> {
        self.check_state()?;
        self.poll()?;
        let link = self.link.as_ref().ok_or(Error::Closed)?;
        let place = link.queues.iter().position(|queue| queue.number == index && index > 0);
        let place = place.ok_or(Error::Queue(u32::try_from(index).unwrap_or(u32::MAX)))?;
        if link.queues.get(place).is_some_and(|queue| !queue.is_empty()) {
            return Err(Error::Busy);
        }
        let platform = self.grants.platform();
        let half = Self {
            link: Some(Link { device: None, queues: Table::new(platform, 1)?, connected: link.connected }),
            events: self.events,
            grants: self.grants,
            index: self.index,
            ops: Ops::new(platform, self.config.requests)?,
            pool: Pool::new(self.grants, self.backend_id(), self.config.pages)?,
            features: self.features,
            config: self.config,
            state: State::Connected,
            stats: Stats::default(),
            lost: false,
            waiters: None,
            alone: true,
            base: 0,
            times: 0,
            shared: None,
        };
        let mut half = PageBox::new(platform, || half).ok_or(NO_MEMORY)?;
        let shared = match &self.shared {
            Some(shared) => shared,
            None => {
                let common = Common {
                    state: AtomicU8::new(CONNECTED),
                    sectors: AtomicU64::new(self.features.sectors),
                    lost: AtomicBool::new(self.lost),
                    left: AtomicBool::new(false),
                    written: [const { AtomicU64::new(0) }; MAX_QUEUES],
                    durable: AtomicU64::new(0),
                    taken: AtomicUsize::new(0),
                    pauses: AtomicU32::new(0),
                    wakers: [const { AtomicWaker::new() }; MAX_QUEUES],
                };
                let common = PageArc::new(platform, common).ok_or(NO_MEMORY)?;
                (self.lost, self.alone) = (false, false);
                self.shared.insert(Shared { common, place: 0, pauses: 0 })
            }
        };
        // No ticket of the one is one of the other, nor of one that was taken before.
        self.times += 1;
        half.ops.begin_at(self.times);
        let common = &shared.common;
        half.base = common.written.get(index).map_or(0, |part| part.load(Ordering::Acquire));
        common.taken.fetch_add(1, Ordering::Relaxed);
        let pauses = common.pauses.load(Ordering::SeqCst);
        half.shared = Some(Shared { common: common.clone(), place: index, pauses });
        self.report();
        if let (Some(from), Some(to)) = (&mut self.link, &mut half.link) {
            let queue = from.queues.swap_remove(place);
            let _ = queue.and_then(|queue| to.queues.push(queue));
        }
        Ok(BlkQueue { half, index })
    }

    /// Puts a queue back that was taken, and adds what passed through it to the disk's counters. Results that were not taken
    /// from it are given up. With one at which the backend broke the protocol the disk is [broken](State::Broken), too.
    ///
    /// A queue whose disk has closed, or is broken, is put back whatever is under way, and so is one of a disk that is not there
    /// any more.
    ///
    /// # Errors
    /// See [`Rejected`]. The queue is at work as before.
    pub fn put_queue(&mut self, mut queue: BlkQueue<'x, P>) -> Result<(), Rejected<'x, P>> {
        queue.drive(|half| half.poll().is_ok());
        let half = &mut *queue.half;
        let same = |(ours, theirs): (&Shared<'x, P>, &Shared<'x, P>)| ours.common.is_same(&theirs.common);
        if !self.shared.as_ref().zip(half.shared.as_ref()).is_some_and(same) {
            let error = Error::Queue(u32::try_from(queue.index).unwrap_or(u32::MAX));
            return match half.state {
                State::Connected | State::Closing => Err(Rejected { error, queue }),
                // Whatever it was of, that is over.
                _ => Ok(()),
            };
        }
        if let State::Broken(violation) = half.state {
            self.broke(violation);
        }
        let ring = half.link.as_ref().and_then(|link| link.queues.first());
        let idle = half.pending() == 0 && ring.is_some_and(|ring| ring.is_empty());
        let at_work = matches!(self.state, State::Connected | State::Closing);
        if at_work && !idle {
            return Err(Rejected { error: Error::Busy, queue });
        }
        self.base = self.base.wrapping_sub(half.stats.written());
        self.stats.add(half.stats);
        if let (true, Some(from), Some(to)) = (at_work, &mut half.link, &mut self.link) {
            let queue = from.queues.swap_remove(0);
            let _ = queue.and_then(|queue| to.queues.push(queue));
        }
        Ok(())
    }

    /// Whether queues were taken that are neither back nor gone.
    pub(crate) fn has_taken(&self) -> bool {
        self.shared.as_ref().is_some_and(|shared| shared.common.taken.load(Ordering::Acquire) > 0)
    }

    /// All queues are back, or gone: what they shared is the disk's own again.
    pub(crate) fn gather(&mut self) {
        let Some(shared) = &self.shared else { return };
        let total = self.written();
        let common = &shared.common;
        self.ops.survived(common.durable.load(Ordering::Acquire));
        self.lost |= common.lost.load(Ordering::Acquire) | common.left.load(Ordering::Acquire);
        self.base = total.wrapping_sub(self.stats.written());
        (self.shared, self.alone) = (None, self.waiters.is_none());
    }

    /// How much was written at this queue, as far as answered.
    fn own_written(&self) -> u64 {
        self.base.wrapping_add(self.stats.written())
    }

    /// How much was written to the disk, as far as answered: so it is known whether that is more than at another time.
    pub(crate) fn written(&self) -> u64 {
        let own = self.own_written();
        self.shared.as_ref().map_or(own, |shared| shared.total(own))
    }

    /// Tells the disk's other queues how much was written here.
    pub(crate) fn report(&self) {
        if let Some(shared) = &self.shared {
            shared.report(self.own_written(), self.ops.durable());
        }
    }

    /// Looks what became of the disk, if this is a queue that was taken from it.
    #[inline(never)]
    pub(crate) fn look(&mut self) {
        let Some(shared) = self.shared.as_mut().filter(|shared| !shared.is_disk()) else { return };
        self.features.sectors = shared.common.sectors.load(Ordering::Acquire);
        let state = match shared.common.state.load(Ordering::SeqCst) {
            CONNECTED => State::Connected,
            CLOSING => State::Closing,
            _ => State::Closed,
        };
        let pauses = shared.common.pauses.load(Ordering::SeqCst);
        let paused = core::mem::replace(&mut shared.pauses, pauses) != pauses;
        if self.link.as_ref().is_some_and(Link::is_stale) {
            self.end_with_the_life();
        }
        if matches!(self.state, State::Connected | State::Closing) {
            self.change(state);
        }
        if paused {
            self.look_after_events();
        }
    }

    /// The domain was resumed in a new one. If it was migrated live, what the backend wrote in its last moments before was left
    /// behind: answers in the ring, and what it read into pages that it kept mapped.
    #[cold]
    #[inline(never)]
    fn end_with_the_life(&mut self) {
        self.link = None;
        if self.features.persistent {
            self.ops.answered_reads().for_each(|op| op.result = Err(Error::Closed));
        }
        self.change(State::Closed);
    }

    /// Events may have been missed on both sides. Whatever is wrong the next call says.
    pub(crate) fn look_after_events(&self) {
        for channel in self.channels() {
            let _ = channel.notify();
        }
        self.wake();
    }
}
