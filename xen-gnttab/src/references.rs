//! References that grant nothing: how they are taken and given back, and how one is waited for.

use core::fmt;
use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicU32, Ordering};
use core::task::{Context, Poll};

use atomic_waker::AtomicWaker;
use xen_hypercall::{DomId, Incarnation, Platform};

use crate::abi::{Access, GrantRef};
use crate::free_list::{self, Links};
use crate::granted::GrantedPage;
use crate::growth::{self, Grows};
use crate::page::OwnedPage;
use crate::{Error, GrantTable, Rejected, xen};

/// A reference that is taken and grants nothing, yet.
///
/// A driver that grants pages all the time holds some: to grant by one is a few stores, no allocation, and cannot fail for
/// want of references. Dropping it gives it back to the table.
pub struct Reference<'g, P: Platform> {
    table: &'g GrantTable<P>,
    gref: GrantRef,
    life: Incarnation,
}

impl<'g, P: Platform> Reference<'g, P> {
    pub(crate) fn new(table: &'g GrantTable<P>, gref: GrantRef, life: Incarnation) -> Self {
        Self { table, gref, life }
    }

    fn current(&self) -> Result<(), Error> {
        if self.table.incarnation() == self.life { Ok(()) } else { Err(Error::Stale) }
    }

    /// Its number, which will be that of the grant.
    pub fn gref(&self) -> GrantRef {
        self.gref
    }

    /// Grants a page by it. [`GrantedPage::take_back`] brings both back.
    ///
    /// # Errors
    /// The page comes back, with [`Error::ForeignPage`], [`Error::FrameTooHigh`] or [`Error::Stale`]; the reference is given to the table.
    pub fn grant(
        self,
        page: OwnedPage<'g, P>,
        to: DomId,
        access: Access,
    ) -> Result<GrantedPage<'g, P>, Rejected<'g, P>> {
        if let Err(error) = self.current().and_then(|()| self.table.check_page(&page)) {
            return Err(Rejected { error, page });
        }
        let table = self.table;
        Ok(table.grant_checked(page, self.into_gref(), to, access))
    }

    pub(crate) fn into_gref(self) -> GrantRef {
        ManuallyDrop::new(self).gref
    }
}

impl<P: Platform> fmt::Debug for Reference<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reference").field(&self.gref).finish()
    }
}

impl<P: Platform> Drop for Reference<'_, P> {
    fn drop(&mut self) {
        if self.current().is_ok() {
            self.table.put_reference(self.gref);
        }
    }
}

/// The places of those who wait for a free reference.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    wakers: [AtomicWaker; Waiters::PLACES],
    /// A bit for each place that is taken.
    taken: AtomicU32,
}

impl Waiters {
    pub(crate) const PLACES: usize = 4;

    /// Wakes all of them, even if one's waker panics.
    pub(crate) fn wake(&self) {
        struct Rest<'a>(core::slice::Iter<'a, AtomicWaker>);
        impl Drop for Rest<'_> {
            fn drop(&mut self) {
                self.0.by_ref().for_each(AtomicWaker::wake);
            }
        }
        let mut rest = Rest(self.wakers.iter());
        for waker in rest.0.by_ref() {
            waker.wake();
        }
    }
}

/// A place in the table's waiting room, for one task.
///
/// The table has four; see [`GrantTable::waiter`].
#[derive(Debug)]
pub struct Waiter<'g, P: Platform> {
    table: &'g GrantTable<P>,
    place: usize,
}

impl<'g, P: Platform> Waiter<'g, P> {
    /// Takes a reference, or has the task woken when one is given back.
    ///
    /// Xen tells nobody when a peer lets go of what is in quarantine. Where that may be all there is to wait for, something
    /// must call [`GrantTable::reclaim_some`] at times; that wakes the task.
    ///
    /// # Errors
    /// Xen's refusal to let the table grow. To have no memory for that, or the table's greatest size, is reason to wait.
    pub fn poll_reference(&mut self, cx: &mut Context<'_>) -> Poll<Result<Reference<'g, P>, Error>> {
        loop {
            match self.table.reserve() {
                Ok(reference) => return Poll::Ready(Ok(reference)),
                Err(Error::NoFreeReference | Error::OutOfMemory | Error::Growing) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
            if let Some(waker) = self.table.waiters.wakers.get(self.place) {
                waker.register(cx.waker());
            }
            // The waker stands before the note in the list's head, so whoever gives a reference back finds both.
            if free_list::wait(self.table) {
                return Poll::Pending;
            }
        }
    }

    /// Waits for a reference.
    ///
    /// # Errors
    /// As [`poll_reference`](Self::poll_reference).
    pub async fn reference(&mut self) -> Result<Reference<'g, P>, Error> {
        core::future::poll_fn(|cx| self.poll_reference(cx)).await
    }
}

impl<P: Platform> Drop for Waiter<'_, P> {
    fn drop(&mut self) {
        if let Some(waker) = self.table.waiters.wakers.get(self.place) {
            drop(waker.take());
        }
        self.table.waiters.taken.fetch_and(!(1 << self.place), Ordering::Release);
    }
}

impl<P: Platform> GrantTable<P> {
    /// Takes a reference that grants nothing, yet.
    ///
    /// # Errors
    /// [`Error::NoFreeReference`], [`Error::OutOfMemory`] when the table cannot grow, [`Error::Growing`], or Xen's refusal to
    /// let the table grow.
    pub fn reserve(&self) -> Result<Reference<'_, P>, Error> {
        Ok(Reference::new(self, self.take_reference()?, self.incarnation()))
    }

    /// A place to wait for a free reference; `None` while all four are taken.
    pub fn waiter(&self) -> Option<Waiter<'_, P>> {
        let all = (1 << Waiters::PLACES) - 1;
        let mut taken = self.waiters.taken.load(Ordering::Relaxed);
        loop {
            let place = (!taken & all).trailing_zeros() as usize;
            if place >= Waiters::PLACES {
                return None;
            }
            let exchanged = self.waiters.taken.compare_exchange_weak(
                taken,
                taken | 1 << place,
                Ordering::Acquire,
                Ordering::Relaxed,
            );
            match exchanged {
                Ok(_) => return Some(Waiter { table: self, place }),
                Err(now) => taken = now,
            }
        }
    }

    pub(crate) fn take_reference(&self) -> Result<GrantRef, Error> {
        self.take_references(1)
    }

    /// Takes so many references at once, at least one, all or none. They are linked from the one that is returned.
    pub(crate) fn take_references(&self, count: u32) -> Result<GrantRef, Error> {
        self.current()?;
        // The table would grow to its limit for nothing.
        if count > (self.max_frames * self.frames.per_frame()).saturating_sub(GrantRef::RESERVED) {
            return Err(Error::NoFreeReference);
        }
        loop {
            let first = match count {
                1 => free_list::pop(self),
                _ => free_list::pop_chain(self, count),
            };
            if let Some(first) = first.map(GrantRef) {
                self.free_count.fetch_sub(count, Ordering::Relaxed);
                for (index, gref) in self.linked(first).take(count as usize).enumerate() {
                    if let Some(slot) = self.frames.slot(gref) {
                        slot.set_owned(if index + 1 == count as usize { 0 } else { slot.link() });
                    }
                }
                return Ok(first);
            }
            // Every turn makes references free; it ends when there are none to be made.
            if self.reclaim_some() == 0 {
                self.grow()?;
            }
        }
    }

    pub(crate) fn put_reference(&self, gref: GrantRef) {
        self.put_references(gref, gref, 1);
    }

    /// Gives back `count` references that are linked from `first` to `last`.
    pub(crate) fn put_references(&self, first: GrantRef, last: GrantRef, count: u32) {
        self.free_count.fetch_add(count, Ordering::Relaxed);
        if free_list::push_chain(self, first.0, last.0) {
            self.waiters.wake();
        }
    }

    /// A reference and those that are linked to it.
    pub(crate) fn linked(&self, first: GrantRef) -> impl Iterator<Item = GrantRef> + '_ {
        core::iter::successors(Some(first), |gref| {
            let next = self.frames.slot(*gref)?.link();
            (next != 0).then_some(GrantRef(next))
        })
    }

    /// Adds a frame. One caller at a time; see [`growth::grow`].
    pub(crate) fn grow(&self) -> Result<(), Error> {
        growth::grow(self).unwrap_or(Err(Error::Growing))
    }
}

impl<P: Platform> Grows for GrantTable<P> {
    type Error = Error;

    fn begin(&self) -> bool {
        self.growing.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    fn end(&self) {
        self.growing.store(false, Ordering::Release);
    }

    fn count(&self) -> u32 {
        self.frames.refs()
    }

    fn fill(&self, first: u32) -> Result<u32, Error> {
        if first / self.frames.per_frame() >= self.max_frames {
            return Err(Error::NoFreeReference);
        }
        // Another table may have changed it, and what we wrote then would grant who knows what.
        let (now, ours) = (xen::version(self.platform())?, if self.frames.is_version_2() { 2 } else { 1 });
        if now != ours {
            return Err(Error::Version(now));
        }
        self.frames.add(first).map(|()| self.frames.per_frame())
    }

    fn publish(&self, count: u32) {
        self.frames.publish(count);
    }

    fn hand_out(&self, first: u32, count: u32) {
        // Linked from last to first, so that they are taken in order; then given out in one step.
        let (mut head, mut last, mut free) = (0, 0, 0);
        for gref in (first..first + count).rev().map(GrantRef) {
            if gref.0 < GrantRef::RESERVED {
                continue;
            }
            // A boot loader may have left a grant behind. Its page is unknown, and not ours to free.
            if self.frames.revoke(gref) {
                self.set_next(gref.0, head);
                (head, free) = (gref.0, free + 1);
                if last == 0 {
                    last = gref.0;
                }
            } else {
                self.quarantine_unknown(gref);
            }
        }
        if free > 0 {
            self.put_references(GrantRef(head), GrantRef(last), free);
        }
    }
}

impl<P: Platform> Links for GrantTable<P> {
    fn head(&self) -> u64 {
        self.free_head.load(Ordering::Acquire)
    }

    fn exchange_head(&self, old: u64, new: u64) -> Result<(), u64> {
        self.free_head.compare_exchange_weak(old, new, Ordering::AcqRel, Ordering::Acquire).map(drop)
    }

    fn next(&self, reference: u32) -> Option<u32> {
        Some(self.frames.slot(GrantRef(reference))?.link())
    }

    fn set_next(&self, reference: u32, next: u32) {
        if let Some(slot) = self.frames.slot(GrantRef(reference)) {
            slot.set_free(next);
        }
    }
}
