//! A caller's page as a part of a request.

use core::fmt;

use xen_gnttab::GrantedPage;
use xen_hypercall::{PAGE_SIZE, Platform};

use crate::Error;
use crate::abi::{SECTOR, Segment};

/// A granted page of the caller's, with the bytes of it that a request reads into or writes from: they travel without
/// being copied. The page is lent to the disk with the request, and comes back with its result.
///
/// The backend can reach all of the page, not only these bytes, and for as long as it is granted. It must be granted to
/// the disk's backend ([`BlkFront::backend_id`](crate::BlkFront::backend_id)) for reading and writing, because a
/// backend that keeps pages mapped maps them so.
pub struct Piece<'x, P: Platform> {
    pub(crate) page: GrantedPage<'x, P>,
    /// Sectors of the page, both inclusive.
    pub(crate) first: u8,
    pub(crate) last: u8,
}

impl<'x, P: Platform> Piece<'x, P> {
    /// All of a page.
    pub fn whole(page: GrantedPage<'x, P>) -> Self {
        Self { page, first: 0, last: (PAGE_SIZE / SECTOR) as u8 - 1 }
    }

    /// `len` bytes of a page, from byte `offset`: both multiples of 512 (and `len` of the disk's sectors).
    ///
    /// # Errors
    /// The page comes back with [`Error::Unaligned`] or [`Error::OutOfRange`].
    pub fn part(
        page: GrantedPage<'x, P>,
        offset: usize,
        len: usize,
    ) -> Result<Self, (Error, GrantedPage<'x, P>)> {
        if offset % SECTOR != 0 || len % SECTOR != 0 || len == 0 {
            return Err((Error::Unaligned, page));
        }
        if offset >= PAGE_SIZE || len > PAGE_SIZE - offset {
            return Err((Error::OutOfRange, page));
        }
        let first = (offset / SECTOR) as u8;
        Ok(Self { page, first, last: first + (len / SECTOR) as u8 - 1 })
    }

    /// Where in the page the bytes begin.
    pub fn offset(&self) -> usize {
        usize::from(self.first) * SECTOR
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        usize::from(self.sectors()) * SECTOR
    }

    /// Never: there is a sector at least.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The page, to read and write it.
    pub fn page_mut(&mut self) -> &mut GrantedPage<'x, P> {
        &mut self.page
    }

    /// The page again.
    pub fn into_page(self) -> GrantedPage<'x, P> {
        self.page
    }

    /// What the backend is told about it.
    #[inline]
    pub(crate) fn segment(&self) -> Segment {
        Segment { gref: self.page.gref().0, first: self.first, last: self.last, pad: 0 }
    }

    #[inline]
    pub(crate) fn sectors(&self) -> u8 {
        self.last - self.first + 1
    }
}

impl<P: Platform> fmt::Debug for Piece<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Piece")
            .field("page", &self.page)
            .field("offset", &self.offset())
            .field("len", &self.len())
            .finish()
    }
}
