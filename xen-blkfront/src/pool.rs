//! The pages that data travels in, granted to the backend.
//!
//! A page is granted once and stays so as long as the disk is connected, so that a backend may keep it mapped. Pages
//! are made when they are needed for the first time, up to a limit, and used last in, first out, so that few are in use
//! while there is little to do (`io/blkif.h` recommends it to persistent grants). A page is used again only after
//! every request with it was answered: before that it is the backend's.

use xen_gnttab::{Access, GrantTable, GrantedPage};
use xen_hypercall::{DomId, PAGE_SIZE, Platform};
use xen_ring::SharedMem;

use crate::abi::{SECTOR, Segment};
use crate::table::Table;
use crate::{Error, Piece};

/// No page.
pub(crate) const NONE: u16 = u16::MAX;
/// Sectors in a page.
const SECTORS: usize = PAGE_SIZE / SECTOR;
/// Pages that are made at once, so that requests go on when there is no memory left.
const RESERVE: usize = 11;

pub(crate) struct Pool<'x, P: Platform> {
    grants: &'x GrantTable<P>,
    backend: DomId,
    entries: Table<'x, P, Entry<'x, P>>,
    /// Places with a page that is not in use.
    ready: u16,
    /// Places without a page.
    empty: u16,
    free: usize,
}

struct Entry<'x, P: Platform> {
    page: Option<GrantedPage<'x, P>>,
    /// The next page of the same request, or of the same list of free places.
    next: u16,
    /// The sectors of the page that are meant, both inclusive.
    first: u8,
    last: u8,
    /// The page is the caller's.
    lent: bool,
}

/// Pages of one request, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Chain {
    pub(crate) first: u16,
    pub(crate) count: u16,
}

impl Chain {
    pub(crate) const EMPTY: Self = Self { first: NONE, count: 0 };
}

impl<'x, P: Platform> Pool<'x, P> {
    /// At most `count` pages.
    pub(crate) fn new(grants: &'x GrantTable<P>, backend: DomId, count: usize) -> Result<Self, Error> {
        let count = count.clamp(RESERVE, usize::from(NONE) - 1);
        let entries = Table::new(grants.platform(), count)?;
        let mut pool = Self { grants, backend, entries, ready: NONE, empty: NONE, free: 0 };
        for _ in 0..count {
            let next = core::mem::replace(&mut pool.empty, pool.entries.len() as u16);
            let entry = Entry { page: None, next, first: 0, last: 0, lent: false };
            let _ = pool.entries.push(entry);
        }
        pool.free = count;
        let reserve = pool.alloc(RESERVE * PAGE_SIZE)?;
        pool.release(reserve);
        Ok(pool)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The domain that the pages are granted to.
    pub(crate) fn backend(&self) -> DomId {
        self.backend
    }

    /// Whether the backend can use a page of the caller's as it may want to.
    pub(crate) fn accepts(&self, page: &GrantedPage<'x, P>) -> bool {
        page.peer() == self.backend && page.access() == Access::ReadWrite
    }

    fn entry(&mut self, index: u16) -> Option<&mut Entry<'x, P>> {
        self.entries.get_mut(usize::from(index))
    }

    /// Pages for this many bytes.
    pub(crate) fn alloc(&mut self, bytes: usize) -> Result<Chain, Error> {
        let count = bytes.div_ceil(PAGE_SIZE);
        if count > self.free {
            return Err(Error::Busy);
        }
        let mut chain = Chain::EMPTY;
        // From the end, as each is put in front of the others.
        for index in (0..count).rev() {
            let sectors = ((bytes - index * PAGE_SIZE) / SECTOR).clamp(1, SECTORS);
            match self.take() {
                Ok(place) => self.put_first(&mut chain, place, 0, sectors as u8 - 1),
                Err(error) => {
                    self.release(chain);
                    // Pages come back with the results that were not taken yet.
                    return Err(if self.free < self.len() { Error::Busy } else { error });
                }
            }
        }
        Ok(chain)
    }

    /// Takes a free place that has a page.
    fn take(&mut self) -> Result<u16, Error> {
        if self.ready != NONE {
            let index = self.ready;
            self.ready = self.entry(index).map_or(NONE, |entry| entry.next);
            self.free -= 1;
            return Ok(index);
        }
        let index = self.empty;
        let page = self.grants.share(self.backend, Access::ReadWrite)?;
        let entry = self.entry(index).ok_or(Error::Busy)?;
        entry.page = Some(page);
        self.empty = entry.next;
        self.free -= 1;
        Ok(index)
    }

    fn put_first(&mut self, chain: &mut Chain, index: u16, first: u8, last: u8) {
        let next = chain.first;
        if let Some(entry) = self.entry(index) {
            (entry.next, entry.first, entry.last) = (next, first, last);
            *chain = Chain { first: index, count: chain.count + 1 };
        }
    }

    /// Takes the caller's pages; `pieces` are looked at from the last to the first, and all there.
    pub(crate) fn lend(&mut self, pieces: &mut [Option<Piece<'x, P>>]) -> Result<Chain, Error> {
        if pieces.len() > self.free {
            return Err(Error::Busy);
        }
        let mut chain = Chain::EMPTY;
        for piece in pieces.iter_mut().rev() {
            let from = if self.empty != NONE { &mut self.empty } else { &mut self.ready };
            let index = *from;
            let (Some(entry), Some(Piece { page, first, last })) =
                (self.entries.get_mut(usize::from(index)), piece.take())
            else {
                continue;
            };
            *from = entry.next;
            // A page of our own that was here makes room.
            (entry.page, entry.lent) = (Some(page), true);
            self.free -= 1;
            self.put_first(&mut chain, index, first, last);
        }
        Ok(chain)
    }

    /// Gives pages back. The caller's are dropped; see [`take_lent`](Self::take_lent).
    pub(crate) fn release(&mut self, chain: Chain) {
        // From the first to the last, and then the first must be on top: so the chain is put there as it is.
        let mut index = chain.first;
        for _ in 0..chain.count {
            let Some(entry) = self.entries.get_mut(usize::from(index)) else { return };
            let next = entry.next;
            if core::mem::take(&mut entry.lent) {
                entry.page = None;
            }
            let list = if entry.page.is_some() { &mut self.ready } else { &mut self.empty };
            entry.next = core::mem::replace(list, index);
            self.free += 1;
            index = next;
        }
    }

    /// The caller's pages of a request, in order, before it is released.
    pub(crate) fn take_lent(&mut self, chain: Chain, mut each: impl FnMut(Piece<'x, P>)) {
        let mut index = chain.first;
        while let Some(entry) = self.entry(index) {
            if entry.lent {
                let (first, last) = (entry.first, entry.last);
                if let Some(page) = entry.page.take() {
                    each(Piece { page, first, last });
                }
            }
            index = entry.next;
        }
    }

    /// What the backend is told about a page, and the next one's place.
    pub(crate) fn segment(&self, index: u16) -> Option<(Segment, u16)> {
        let entry = self.entries.get(usize::from(index))?;
        let gref = entry.page.as_ref()?.gref().0;
        Some((Segment { gref, first: entry.first, last: entry.last, pad: 0 }, entry.next))
    }

    /// The bytes of a page.
    pub(crate) fn mem(&mut self, index: u16) -> Option<SharedMem<'_>> {
        Some(self.entry(index)?.page.as_mut()?.mem())
    }

    /// The page after another.
    pub(crate) fn next(&self, index: u16) -> u16 {
        self.entries.get(usize::from(index)).map_or(NONE, |entry| entry.next)
    }

    /// Copies into the pages of a request that were made for so many bytes.
    pub(crate) fn write(&mut self, chain: Chain, data: &[u8]) -> Option<()> {
        let mut index = chain.first;
        for part in data.chunks(PAGE_SIZE) {
            self.mem(index)?.write_bytes(0, part).ok()?;
            index = self.next(index);
        }
        Some(())
    }

    /// Copies out of them.
    pub(crate) fn read(&mut self, chain: Chain, out: &mut [u8]) -> Option<()> {
        let mut index = chain.first;
        for part in out.chunks_mut(PAGE_SIZE) {
            self.mem(index)?.read_bytes(0, part).ok()?;
            index = self.next(index);
        }
        Some(())
    }

    /// Other pages in place of all, granted to another backend: the one before may still have these, so they are not
    /// used again. `keep` tells of each request under way whether its pages' content is needed.
    pub(crate) fn renew(
        &mut self,
        backend: DomId,
        under_way: impl Iterator<Item = (Chain, bool)>,
    ) -> Result<(), Error> {
        self.backend = backend;
        // Those not in use are made anew when they are needed.
        while let Some(entry) = self.entries.get_mut(usize::from(self.ready)) {
            let after = core::mem::replace(&mut entry.next, self.empty);
            entry.page = None;
            self.empty = core::mem::replace(&mut self.ready, after);
        }
        for (chain, keep) in under_way {
            let mut index = chain.first;
            while let Some(entry) = self.entries.get_mut(usize::from(index)) {
                let mut fresh = self.grants.alloc_page()?;
                match &mut entry.page {
                    Some(old) if keep => {
                        let copied = old.read_bytes(0, fresh.bytes_mut());
                        copied.map_err(|_| Error::BufferLength)?;
                    }
                    _ => fresh.bytes_mut().fill(0),
                }
                // Drops the old one: it goes back if the backend has let go, otherwise to the quarantine.
                let granted = self.grants.grant(fresh, backend, Access::ReadWrite);
                entry.page = Some(granted.map_err(|rejected| rejected.error)?);
                index = entry.next;
            }
        }
        Ok(())
    }
}
