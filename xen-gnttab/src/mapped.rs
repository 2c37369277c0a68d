//! Pages of other domains in this domain's memory.
#![allow(unsafe_code)]

use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use xen_hypercall::abi::{GNTMAP_HOST_MAP, GNTMAP_READONLY, GnttabMapGrantRef, GnttabUnmapGrantRef};
use xen_hypercall::{DomId, Gfn, GrantRoom, Incarnation, PAGE_SIZE, Page, Platform, grant};
use xen_ring::{Backing, OutOfRange, SharedMem};

use crate::{Access, Error, GrantRef, GrantStatus, GrantTable};

/// Pages that another domain granted, mapped for reading and writing, up to `N` of them in a row: what a backend has of a
/// frontend's ring.
///
/// Dropping it unmaps. Should Xen refuse that, the room in which the pages are is never used again; see
/// [`Stats::lost_room`](crate::Stats::lost_room).
#[must_use = "dropping it unmaps the pages"]
pub struct MappedGrants<'g, P: Platform + GrantRoom, const N: usize>(Mapping<'g, P, N>);

/// Pages that another domain granted, mapped for reading only. Otherwise as [`MappedGrants`].
#[must_use = "dropping it unmaps the pages"]
pub struct MappedForReading<'g, P: Platform + GrantRoom, const N: usize>(Mapping<'g, P, N>);

impl<P: Platform> GrantTable<P>
where
    P: GrantRoom,
{
    /// Maps pages that `owner` granted for reading and writing, in the order of the references; all of them or none. At
    /// most `N`, which should be small: the call has its arguments on the stack.
    ///
    /// ```
    /// # use xen_gnttab::{Access, GrantTable, mock};
    /// # use xen_hypercall::{DomId, mock::MockXen};
    /// # let xen = MockXen::new();
    /// # mock::install(&xen);
    /// # let theirs = GrantTable::new(&xen.domain(DomId(1)).boot().unwrap())?;
    /// # let table = GrantTable::new(&xen.domain(DomId(0)).boot().unwrap())?;
    /// # let ring = theirs.share_pages(2, DomId(0), Access::ReadWrite)?;
    /// # let grefs: Vec<_> = ring.grefs().collect();
    /// let mut ring = table.map::<16>(DomId(1), &grefs)?;
    /// ring.mem().write_bytes(4090, b"over the page's end")?;
    /// ring.unmap()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// What this domain granted itself cannot be mapped: Xen has a page of a domain at one place only and would take it from
    /// where it is, under the hands of its owner. A [`CopyBatch`](crate::CopyBatch) can copy it.
    ///
    /// # Errors
    /// [`Error::BadCount`], [`Error::OwnGrant`], [`Error::NoRoom`], [`Error::Refused`] by Xen, or the hypercall's own, one of
    /// those among them by which the domain learns its own number, once in each of its lives.
    pub fn map<const N: usize>(
        &self,
        owner: DomId,
        grefs: &[GrantRef],
    ) -> Result<MappedGrants<'_, P, N>, Error> {
        Mapping::new(self, owner, grefs, Access::ReadWrite).map(MappedGrants)
    }

    /// As [`map`](Self::map), for reading only.
    ///
    /// # Errors
    /// As there.
    pub fn map_for_reading<const N: usize>(
        &self,
        owner: DomId,
        grefs: &[GrantRef],
    ) -> Result<MappedForReading<'_, P, N>, Error> {
        Mapping::new(self, owner, grefs, Access::ReadOnly).map(MappedForReading)
    }

    fn own_domain(&self) -> Result<DomId, Error> {
        let operation = "EVTCHNOP_alloc_unbound, to learn this domain's number,";
        self.frames.own_domain().map_err(|errno| Error::Hypercall { operation, errno })
    }
}

impl<P: Platform + GrantRoom, const N: usize> MappedGrants<'_, P, N> {
    /// How many pages there are.
    pub fn count(&self) -> usize {
        self.0.count
    }

    /// The bytes of all pages, in a row, which their owner may change at any time.
    pub fn mem(&mut self) -> SharedMem<'_> {
        self.0.mem()
    }

    /// Unmaps the pages.
    ///
    /// # Errors
    /// [`Error::Refused`] with the first of them that Xen refused to unmap: it stays mapped, its room is lost.
    pub fn unmap(self) -> Result<(), Error> {
        self.0.unmap()
    }
}

impl<P: Platform + GrantRoom, const N: usize> Backing for MappedGrants<'_, P, N> {
    fn mem(&mut self) -> SharedMem<'_> {
        MappedGrants::mem(self)
    }
}

impl<P: Platform + GrantRoom, const N: usize> MappedForReading<'_, P, N> {
    /// How many pages there are.
    pub fn count(&self) -> usize {
        self.0.count
    }

    /// Copies bytes out of the pages.
    ///
    /// # Errors
    /// If `offset` and the length reach beyond the last page.
    pub fn read_bytes(&mut self, offset: usize, out: &mut [u8]) -> Result<(), OutOfRange> {
        self.0.mem().read_bytes(offset, out)
    }

    /// As [`MappedGrants::unmap`].
    ///
    /// # Errors
    /// As there.
    pub fn unmap(self) -> Result<(), Error> {
        self.0.unmap()
    }
}

impl<P: Platform + GrantRoom, const N: usize> fmt::Debug for MappedGrants<'_, P, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MappedGrants").field("count", &self.0.count).finish_non_exhaustive()
    }
}

impl<P: Platform + GrantRoom, const N: usize> fmt::Debug for MappedForReading<'_, P, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MappedForReading").field("count", &self.0.count).finish_non_exhaustive()
    }
}

/// Room, and what is mapped in it.
struct Mapping<'g, P: Platform + GrantRoom, const N: usize> {
    table: &'g GrantTable<P>,
    room: Gfn,
    count: usize,
    /// What is mapped at each frame of the room; no handle: nothing.
    mapped: [(GrantRef, Option<u32>); N],
    /// Dangling until everything is mapped.
    address: NonNull<Page>,
    life: Incarnation,
}

// SAFETY: the room is exclusively this value's, and mapped pages are not tied to a thread; `&GrantTable` goes to another
// thread if `P: Sync`.
unsafe impl<P: Platform + GrantRoom + Sync, const N: usize> Send for Mapping<'_, P, N> {}
// SAFETY: nothing of the pages can be reached through a shared reference.
unsafe impl<P: Platform + GrantRoom + Sync, const N: usize> Sync for Mapping<'_, P, N> {}

impl<'g, P: Platform + GrantRoom, const N: usize> Mapping<'g, P, N> {
    fn new(
        table: &'g GrantTable<P>,
        owner: DomId,
        grefs: &[GrantRef],
        access: Access,
    ) -> Result<Self, Error> {
        if grefs.is_empty() || grefs.len() > N {
            return Err(Error::BadCount);
        }
        table.current()?;
        if owner == DomId::SELF || owner == table.own_domain()? {
            return Err(Error::OwnGrant);
        }
        let count = grefs.len();
        let room = table.platform().reserve_room(count).ok_or(Error::NoRoom)?;
        // What is mapped does not come along when the domain is saved.
        table.frames.claim().hold();
        // From here on dropping it gives the room back, and lets go.
        let mapped = core::array::from_fn(|index| (grefs.get(index).copied().unwrap_or(GrantRef(0)), None));
        let mut this =
            Self { table, room, count, mapped, address: NonNull::dangling(), life: table.incarnation() };
        let readonly = if access == Access::ReadOnly { GNTMAP_READONLY } else { 0 };
        let mut maps: [GnttabMapGrantRef; N] = core::array::from_fn(|index| GnttabMapGrantRef {
            host_addr: address_of(room, index),
            flags: GNTMAP_HOST_MAP | readonly,
            reference: this.mapped.get(index).map_or(0, |(gref, _)| gref.0),
            dom: owner.0,
            // What Xen does not get to is not done.
            status: GrantStatus::GENERAL_ERROR.0,
            ..Default::default()
        });
        let Some(maps) = maps.get_mut(..count) else { return Err(Error::BadCount) };
        // SAFETY: the room was reserved just now and nothing is mapped there; the granter is not this domain. Pages of this
        // domain that others have mapped are not theirs to grant.
        let called = unsafe { grant::map(table.platform(), maps) };
        let mut refused = None;
        for (place, map) in this.mapped.iter_mut().zip(maps) {
            match GrantStatus(map.status) {
                GrantStatus::OKAY => place.1 = Some(map.handle),
                status => {
                    refused.get_or_insert(Error::Refused { gref: place.0, status });
                }
            }
        }
        called.map_err(|errno| Error::Hypercall { operation: "GNTTABOP_map_grant_ref", errno })?;
        match refused {
            Some(error) => Err(error),
            None => {
                // SAFETY: frames of the room, all of which have something mapped.
                let address = unsafe { table.platform().room_address(room, count) };
                this.address = address.ok_or(Error::NoRoom)?;
                Ok(this)
            }
        }
    }

    fn mem(&mut self) -> SharedMem<'_> {
        // SAFETY: `count` pages are mapped at the address (a `Mapping` that `new` returned has all of them) until this value
        // is dropped; borrowed exclusively for the result's lifetime. If they are mapped for reading, `MappedForReading` only
        // reads. What their owner does to them is what `SharedMem` is made for.
        unsafe { SharedMem::new(self.address.cast(), self.count * PAGE_SIZE) }
    }

    fn unmap(mut self) -> Result<(), Error> {
        let result = self.unmap_all();
        // Done: there is nothing left for `drop`.
        core::mem::forget(self);
        result
    }

    /// Unmaps what is mapped, and gives the room back or loses it. While Xen keeps it mapped the domain cannot be suspended.
    fn unmap_all(&mut self) -> Result<(), Error> {
        if self.table.incarnation() != self.life {
            // A mapping does not outlive the domain, and the handle may be another's now.
            // SAFETY: reserved by `new`; nothing is mapped there any more.
            unsafe { self.release() };
            return Ok(());
        }
        let mut unmaps = [GnttabUnmapGrantRef::default(); N];
        let mut grefs = [GrantRef(0); N];
        let mut used = 0;
        for (index, (gref, handle)) in self.mapped.iter().enumerate() {
            let (Some(handle), Some(unmap), Some(place)) =
                (*handle, unmaps.get_mut(used), grefs.get_mut(used))
            else {
                continue;
            };
            let status = GrantStatus::GENERAL_ERROR.0;
            *unmap =
                GnttabUnmapGrantRef { host_addr: address_of(self.room, index), handle, status, ..*unmap };
            *place = *gref;
            used += 1;
        }
        let Some(unmaps) = unmaps.get_mut(..used).filter(|unmaps| !unmaps.is_empty()) else {
            // SAFETY: reserved by `new`; nothing is mapped there.
            unsafe { self.release() };
            return Ok(());
        };
        // SAFETY: `&mut self` proves that nobody uses the memory, and it is not used after this.
        let called = unsafe { grant::unmap(self.table.platform(), unmaps) };
        let done = |unmap: &GnttabUnmapGrantRef| GrantStatus(unmap.status) == GrantStatus::OKAY;
        if unmaps.iter().all(done) {
            // SAFETY: reserved by `new`; nothing is mapped there any more.
            unsafe { self.release() };
            return Ok(());
        }
        self.table.lost_room.fetch_add(self.count as u64, Ordering::Relaxed);
        called.map_err(|errno| Error::Hypercall { operation: "GNTTABOP_unmap_grant_ref", errno })?;
        let refused = unmaps.iter().zip(grefs).find(|(unmap, _)| !done(unmap));
        refused
            .map_or(Ok(()), |(unmap, gref)| Err(Error::Refused { gref, status: GrantStatus(unmap.status) }))
    }
}

impl<P: Platform + GrantRoom, const N: usize> Mapping<'_, P, N> {
    /// # Safety
    /// Nothing is mapped in the room, and this is its last use.
    unsafe fn release(&self) {
        // SAFETY: reserved by `new`; the rest is the caller's promise.
        unsafe { self.table.platform().release_room(self.room, self.count) };
        // SAFETY: taken by `new`, for what is not mapped any more; this is called once.
        unsafe { self.table.frames.claim().let_go() };
    }
}

impl<P: Platform + GrantRoom, const N: usize> Drop for Mapping<'_, P, N> {
    fn drop(&mut self) {
        // What was lost is counted.
        let _ = self.unmap_all();
    }
}

fn address_of(room: Gfn, index: usize) -> u64 {
    (room.0 + index as u64) * PAGE_SIZE as u64
}
