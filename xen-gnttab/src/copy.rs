//! Copies that Xen does, between pages that others granted and pages of our own.
#![allow(unsafe_code)]

use core::fmt;
use core::marker::PhantomData;

use xen_hypercall::abi::{GNTCOPY_DEST_GREF, GNTCOPY_SOURCE_GREF, GnttabCopy, GnttabCopyPtr};
use xen_hypercall::{DomId, Gfn, PAGE_SIZE, Platform, grant};

use crate::page::OwnedPage;
use crate::{Error, GrantRef, GrantStatus, GrantTable, GrantedPage};

/// Where a copy's bytes come from: a page that another domain granted, or one of ours, which stays borrowed for as long as
/// the batch may read it.
pub struct CopySource<'b, P: Platform>(Side<'b, P>);

/// Where a copy's bytes go: a page that another domain granted for writing, or one of ours, which stays borrowed for as long
/// as the batch may write to it. Several copies can go to one page.
pub struct CopyDest<'b, P: Platform>(Side<'b, P>);

struct Side<'b, P: Platform> {
    page: Which<'b, P>,
    offset: usize,
}

enum Which<'b, P: Platform> {
    Grant(DomId, GrantRef),
    /// A frame of this platform.
    Own(Gfn, &'b P),
}

impl<P: Platform> Clone for Side<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: Platform> Copy for Side<'_, P> {}

impl<P: Platform> Clone for Which<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: Platform> Copy for Which<'_, P> {}

impl<'b, P: Platform> Side<'b, P> {
    fn new(page: Which<'b, P>) -> Self {
        Self { page, offset: 0 }
    }

    fn pointer(&self) -> GnttabCopyPtr {
        let (domid, reference_or_gmfn) = match self.page {
            Which::Grant(domain, gref) => (domain.0, gref.0.into()),
            Which::Own(frame, _) => (DomId::SELF.0, frame.0),
        };
        // The caller checked that the offset is within a page.
        GnttabCopyPtr { reference_or_gmfn, domid, offset: self.offset as u16, ..Default::default() }
    }

    fn flag(&self, flag: u16) -> u16 {
        if matches!(self.page, Which::Grant(..)) { flag } else { 0 }
    }
}

impl<P: Platform> fmt::Debug for Side<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.page {
            Which::Grant(domain, gref) => write!(f, "{domain} {gref} at {}", self.offset),
            Which::Own(frame, _) => write!(f, "{frame:?} at {}", self.offset),
        }
    }
}

macro_rules! sides {
    ($name:ident) => {
        impl<'b, P: Platform> $name<'b, P> {
            /// A page that `owner` granted to this domain.
            pub fn grant(owner: DomId, gref: GrantRef) -> Self {
                Self(Side::new(Which::Grant(owner, gref)))
            }

            /// The same page from byte `offset` on.
            #[must_use]
            pub fn at(self, offset: usize) -> Self {
                Self(Side { offset, ..self.0 })
            }
        }

        impl<P: Platform> Clone for $name<'_, P> {
            fn clone(&self) -> Self {
                *self
            }
        }

        impl<P: Platform> Copy for $name<'_, P> {}

        impl<P: Platform> fmt::Debug for $name<'_, P> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_tuple(stringify!($name)).field(&self.0).finish()
            }
        }
    };
}

sides!(CopySource);
sides!(CopyDest);

impl<'b, P: Platform> CopySource<'b, P> {
    /// A page of ours.
    pub fn page(page: &'b OwnedPage<'_, P>) -> Self {
        Self(Side::new(Which::Own(page.gfn(), page.platform())))
    }

    /// A page of ours that is granted.
    pub fn granted(page: &'b GrantedPage<'_, P>) -> Self {
        Self(Side::new(Which::Own(page.gfn(), page.platform())))
    }
}

impl<'b, P: Platform> CopyDest<'b, P> {
    /// A page of ours.
    pub fn page(page: &'b mut OwnedPage<'_, P>) -> Self {
        Self(Side::new(Which::Own(page.gfn(), page.platform())))
    }

    /// A page of ours that is granted.
    pub fn granted(page: &'b mut GrantedPage<'_, P>) -> Self {
        Self(Side::new(Which::Own(page.gfn(), page.platform())))
    }
}

/// Not done, yet. No status of Xen's.
const PENDING: i16 = i16::MAX;

/// Up to `N` copies that Xen does in one hypercall, each within a page at both ends, in their order.
///
/// Made by [`GrantTable::copies`].
pub struct CopyBatch<'g, 'b, P: Platform, const N: usize> {
    table: &'g GrantTable<P>,
    copies: [GnttabCopy; N],
    count: usize,
    _borrowed: PhantomData<&'b [u8]>,
}

impl<P: Platform> GrantTable<P> {
    /// An empty batch of copies.
    ///
    /// ```
    /// # use xen_gnttab::{Access, CopyDest, CopySource, GrantTable, mock};
    /// # use xen_hypercall::{DomId, mock::MockXen};
    /// # let xen = MockXen::new();
    /// # mock::install(&xen);
    /// # let theirs = GrantTable::new(&xen.domain(DomId(1)).boot().unwrap())?;
    /// # let table = GrantTable::new(&xen.domain(DomId(0)).boot().unwrap())?;
    /// # let mut granted = theirs.share(DomId(0), Access::ReadOnly)?;
    /// # granted.write_bytes(0, b"a packet")?;
    /// # let gref = granted.gref();
    /// let mut page = table.alloc_page()?;
    /// let mut batch = table.copies::<16>();
    /// let to = CopyDest::page(&mut page);
    /// let first = batch.add(CopySource::grant(DomId(1), gref), to, 1)?;
    /// let second = batch.add(CopySource::grant(DomId(1), gref).at(2), to.at(1), 6)?;
    /// batch.run()?;
    /// assert_eq!(batch.failed().count(), 0);
    /// assert_eq!(&page.bytes()[..7], b"apacket");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn copies<'b, const N: usize>(&self) -> CopyBatch<'_, 'b, P, N> {
        CopyBatch { table: self, copies: [GnttabCopy::default(); N], count: 0, _borrowed: PhantomData }
    }
}

impl<'b, P: Platform, const N: usize> CopyBatch<'_, 'b, P, N> {
    /// Adds a copy of `len` bytes; returns its number in the batch. Nothing happens before [`run`](Self::run).
    ///
    /// # Errors
    /// [`Error::BadCount`] when the batch is full, [`Error::BadRange`] when the bytes are none or not within a page,
    /// [`Error::ForeignPage`].
    pub fn add(&mut self, from: CopySource<'b, P>, to: CopyDest<'b, P>, len: usize) -> Result<usize, Error> {
        let ours = self.table.platform();
        for side in [&from.0, &to.0] {
            if len == 0 || side.offset >= PAGE_SIZE || len > PAGE_SIZE - side.offset {
                return Err(Error::BadRange);
            }
            if matches!(side.page, Which::Own(_, platform) if !core::ptr::eq(platform, ours)) {
                return Err(Error::ForeignPage);
            }
        }
        let place = self.copies.get_mut(self.count).ok_or(Error::BadCount)?;
        *place = GnttabCopy {
            source: from.0.pointer(),
            dest: to.0.pointer(),
            len: len as u16,
            flags: from.0.flag(GNTCOPY_SOURCE_GREF) | to.0.flag(GNTCOPY_DEST_GREF),
            status: PENDING,
            ..Default::default()
        };
        self.count += 1;
        Ok(self.count - 1)
    }

    /// Has Xen do the copies that are not done: all of them the first time, then those that Xen asked to try again.
    ///
    /// Returns how many of these it asked to try again, because a page is not in memory at the moment. To call this until that
    /// is none may take long; there should be a pause between, and an end.
    ///
    /// # Errors
    /// The hypercall's own. How each copy went is in [`status`](Self::status).
    pub fn run(&mut self) -> Result<usize, Error> {
        let open = |copy: &GnttabCopy| copy.status == PENDING || copy.status == GrantStatus::EAGAIN.0;
        let mut rest = self.copies.get_mut(..self.count).unwrap_or_default();
        while !rest.is_empty() {
            let skip = rest.iter().position(open).unwrap_or(rest.len());
            let (_, from) = rest.split_at_mut(skip);
            let length = from.iter().position(|copy| !open(copy)).unwrap_or(from.len());
            let (now, later) = from.split_at_mut(length);
            if !now.is_empty() {
                now.iter_mut().for_each(|copy| copy.status = PENDING);
                // SAFETY: our own frames are pages that are borrowed for as long as the batch can be run: exclusively
                // those that are written to, and none is of another platform.
                unsafe { grant::copy(self.table.platform(), now) }
                    .map_err(|errno| Error::Hypercall { operation: "GNTTABOP_copy", errno })?;
            }
            rest = later;
        }
        Ok(self.copies.iter().take(self.count).filter(|copy| open(copy)).count())
    }

    /// How many copies there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How a copy went; `None` if it was not run, or does not exist.
    pub fn status(&self, index: usize) -> Option<GrantStatus> {
        let copy = self.copies.get(index).filter(|_| index < self.count)?;
        (copy.status != PENDING).then_some(GrantStatus(copy.status))
    }

    /// The copies that failed, and why; without those that were not run.
    pub fn failed(&self) -> impl Iterator<Item = (usize, GrantStatus)> + '_ {
        (0..self.count)
            .filter_map(|index| Some((index, self.status(index)?)))
            .filter(|(_, status)| *status != GrantStatus::OKAY)
    }
}

impl<P: Platform, const N: usize> fmt::Debug for CopyBatch<'_, '_, P, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CopyBatch")
            .field("count", &self.count)
            .field("failed", &self.failed().count())
            .finish_non_exhaustive()
    }
}
