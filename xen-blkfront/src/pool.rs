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
use crate::ops::{Needs, Op};
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
    /// A page, and the sectors of it that are meant.
    piece: Option<Piece<'x, P>>,
    /// The next page of the same request, or of the same list of free places.
    next: u16,
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
            let _ = pool.entries.push(Entry { piece: None, next, lent: false });
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
    #[inline]
    pub(crate) fn accepts(&self, page: &GrantedPage<'x, P>) -> bool {
        page.is_granted_to(self.backend) && page.access() == Access::ReadWrite
    }

    #[inline]
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
                Ok(place) => self.put_first(&mut chain, place, sectors as u8 - 1),
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
        entry.piece = Some(Piece::whole(page));
        self.empty = entry.next;
        self.free -= 1;
        Ok(index)
    }

    fn put_first(&mut self, chain: &mut Chain, index: u16, last: u8) {
        let Some(entry) = self.entry(index) else { return };
        entry.next = chain.first;
        if let Some(piece) = &mut entry.piece {
            (piece.first, piece.last) = (0, last);
        }
        *chain = Chain { first: index, count: chain.count + 1 };
    }

    /// Takes the caller's pages; `pieces` are looked at from the last to the first, and all there.
    #[inline]
    pub(crate) fn lend(&mut self, pieces: &mut [Option<Piece<'x, P>>]) -> Result<Chain, Error> {
        if pieces.len() > self.free {
            return Err(if pieces.len() > self.len() { Error::TooLong } else { Error::Busy });
        }
        self.free -= pieces.len();
        let mut chain = Chain { first: NONE, count: pieces.len() as u16 };
        for piece in pieces.iter_mut().rev() {
            if self.empty == NONE {
                self.make_room();
            }
            let index = self.empty;
            let Some(entry) = self.entries.get_mut(usize::from(index)) else { break };
            self.empty = core::mem::replace(&mut entry.next, chain.first);
            chain.first = index;
            entry.lent = true;
            let before = core::mem::replace(&mut entry.piece, piece.take());
            debug_assert!(before.is_none(), "the place is an empty one");
            // Nothing, which the compiler does not know, and would look for something to drop.
            core::mem::forget(before);
        }
        Ok(chain)
    }

    /// Gives up a page that is not in use, so that its place is free for one of the caller's.
    #[cold]
    #[inline(never)]
    fn make_room(&mut self) {
        let index = self.ready;
        if let Some(entry) = self.entries.get_mut(usize::from(index)) {
            entry.piece = None;
            self.ready = core::mem::replace(&mut entry.next, self.empty);
            self.empty = index;
        }
    }

    /// Gives pages back. The caller's are dropped.
    #[inline(never)]
    pub(crate) fn release(&mut self, chain: Chain) {
        self.release_to(chain, drop);
    }

    /// Gives pages back, and the caller's to `each`, in order.
    #[inline]
    pub(crate) fn release_to(&mut self, chain: Chain, mut each: impl FnMut(Piece<'x, P>)) {
        let mut index = chain.first;
        for _ in 0..chain.count {
            let Some(entry) = self.entries.get_mut(usize::from(index)) else { return };
            let next = entry.next;
            self.free += 1;
            if entry.lent {
                entry.lent = false;
                entry.next = core::mem::replace(&mut self.empty, index);
                if let Some(piece) = entry.piece.take() {
                    each(piece);
                }
            } else {
                let list = if entry.piece.is_some() { &mut self.ready } else { &mut self.empty };
                entry.next = core::mem::replace(list, index);
            }
            index = next;
        }
    }

    /// What the backend is told about a page, and the next one's place.
    #[inline]
    pub(crate) fn segment(&self, index: u16) -> Option<(Segment, u16)> {
        let entry = self.entries.get(usize::from(index))?;
        Some((entry.piece.as_ref()?.segment(), entry.next))
    }

    /// The bytes of a page.
    pub(crate) fn mem(&mut self, index: u16) -> Option<SharedMem<'_>> {
        Some(self.entry(index)?.piece.as_mut()?.page.mem())
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

    /// A migration takes along what the backend has written to a request's pages.
    pub(crate) fn mark_written(&mut self, chain: Chain) {
        let mut index = chain.first;
        for _ in 0..chain.count {
            let Some(entry) = self.entry(index) else { return };
            if let Some(piece) = &mut entry.piece {
                piece.page.mark_written();
            }
            index = entry.next;
        }
    }

    /// All pages again, in place, granted to a backend that has none of them yet: after a resume in a new domain. The
    /// operations are all that have pages.
    pub(crate) fn regrant<'o>(
        &mut self,
        backend: DomId,
        ops: impl Iterator<Item = &'o mut Op<'x, P>>,
    ) -> Result<(), Error>
    where
        'x: 'o,
        P: 'o,
    {
        self.backend = backend;
        let own = self.entries.iter_mut().filter_map(|entry| entry.piece.as_mut());
        for piece in own.chain(ops.filter_map(|op| op.piece.as_mut())) {
            piece.page.regrant(backend)?;
        }
        Ok(())
    }

    /// Other pages in place of all, granted to another backend: the one before may still have these, so they are not
    /// used again. The operations are all that have pages. May be called again after an error.
    pub(crate) fn renew<'o>(
        &mut self,
        backend: DomId,
        ops: impl Iterator<Item = &'o mut Op<'x, P>>,
    ) -> Result<(), Error>
    where
        'x: 'o,
        P: 'o,
    {
        self.backend = backend;
        // Those not in use are made anew when they are needed.
        while let Some(entry) = self.entries.get_mut(usize::from(self.ready)) {
            let after = core::mem::replace(&mut entry.next, self.empty);
            entry.piece = None;
            self.empty = core::mem::replace(&mut self.ready, after);
        }
        for op in ops {
            let needs = op.needs();
            renew(self.grants, backend, &mut op.piece, needs)?;
            let mut index = op.pages.first;
            for _ in 0..op.pages.count {
                let Some(entry) = self.entries.get_mut(usize::from(index)) else { break };
                renew(self.grants, backend, &mut entry.piece, needs)?;
                index = entry.next;
            }
        }
        Ok(())
    }
}

/// Another page in place of one, or none, as is needed.
fn renew<'x, P: Platform>(
    grants: &'x GrantTable<P>,
    backend: DomId,
    place: &mut Option<Piece<'x, P>>,
    needs: Needs,
) -> Result<(), Error> {
    if needs == Needs::Nothing {
        *place = None;
    }
    let Some(piece) = place else { return Ok(()) };
    let mut fresh = grants.alloc_page()?;
    if needs == Needs::Content {
        piece.page.read_bytes(0, fresh.bytes_mut()).map_err(|_| Error::BufferLength)?;
    } else {
        fresh.bytes_mut().fill(0);
    }
    let granted = grants.grant(fresh, backend, Access::ReadWrite);
    // Drops the old one: it goes back if the backend has let go, otherwise to the quarantine.
    piece.page = granted.map_err(|rejected| rejected.error)?;
    Ok(())
}
