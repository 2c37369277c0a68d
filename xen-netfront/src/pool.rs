//! The pages for sending: each either here or with the backend.

use xen_gnttab::{Access, GrantRef, GrantTable, GrantedPage};
use xen_hypercall::{DomId, Platform};

use crate::Error;
use crate::abi::NR_SLOTS_MIN;

/// Pages at most, as many as a ring of one page has slots.
pub(crate) const PAGES: usize = 256;

/// Frames at most that are put together at once: one that is sent as soon as it is whole, and those that wait for more.
pub(crate) const FRAMES: usize =
    if cfg!(any(feature = "embassy-net-driver-v0-2", feature = "smoltcp-v0-13", feature = "smoltcp-v0-14")) {
        5
    } else {
        1
    };

/// The ids of a frame's pages, in order. They stay the same while others come back.
#[derive(Clone, Copy)]
struct Frame {
    ids: [u16; NR_SLOTS_MIN],
    count: usize,
}

/// An id is a page's place; the backend's word for one is looked up, never used as it is.
pub(crate) struct Pool<'g, P: Platform> {
    pages: [Option<GrantedPage<'g, P>>; PAGES],
    away: [bool; PAGES],
    /// The ids that are here, a stack.
    here: [u16; PAGES],
    count: usize,
    frames: [Frame; FRAMES],
    /// Which of them is meant by all that follows.
    frame: usize,
}

impl<'g, P: Platform> Pool<'g, P> {
    /// Without a page so far.
    #[inline(always)]
    pub(crate) fn new() -> Self {
        Self {
            pages: [const { None }; PAGES],
            away: [false; PAGES],
            here: [0; PAGES],
            count: 0,
            frames: [Frame { ids: [0; NR_SLOTS_MIN], count: 0 }; FRAMES],
            frame: 0,
        }
    }

    /// Gives it so many pages.
    pub(crate) fn fill(
        &mut self,
        grants: &'g GrantTable<P>,
        backend: DomId,
        pages: usize,
    ) -> Result<(), Error> {
        for (page, place) in self.pages.iter_mut().zip(&mut self.here).take(pages.max(1)) {
            *page = Some(grants.share(backend, Access::ReadOnly)?);
            *place = self.count as u16;
            self.count += 1;
        }
        Ok(())
    }

    /// Grants all pages again, to a backend that has none of them yet: all are here. Frames that are being put together stay.
    pub(crate) fn regrant(&mut self, backend: DomId) -> Result<(), Error> {
        for page in self.pages.iter_mut().flatten() {
            page.regrant(backend)?;
        }
        for id in 0..PAGES as u16 {
            self.put_back(id);
        }
        Ok(())
    }

    /// How many pages there are, here and with the backend.
    pub(crate) fn pages(&self) -> usize {
        self.pages.iter().flatten().count()
    }

    /// The references of all pages.
    pub(crate) fn grefs(&self) -> impl Iterator<Item = GrantRef> {
        self.pages.iter().flatten().map(GrantedPage::gref)
    }

    /// Which of the frames that are put together is meant from now on.
    #[cfg(any(feature = "embassy-net-driver-v0-2", feature = "smoltcp-v0-13", feature = "smoltcp-v0-14"))]
    pub(crate) fn choose(&mut self, frame: usize) {
        self.frame = frame.min(FRAMES - 1);
    }

    /// The one that is meant.
    #[inline]
    fn frame(&self) -> usize {
        if FRAMES == 1 { 0 } else { self.frame }
    }

    /// How many pages there are for the frame.
    #[inline]
    pub(crate) fn available(&self) -> usize {
        self.count + self.frames.get(self.frame()).map_or(0, |frame| frame.count)
    }

    /// The page for part `nth` of the frame.
    #[inline]
    pub(crate) fn nth(&mut self, nth: usize) -> Option<(u16, &mut GrantedPage<'g, P>)> {
        let frame = self.frame();
        let frame = self.frames.get_mut(frame)?;
        while frame.count <= nth {
            let last = self.count.checked_sub(1)?;
            *frame.ids.get_mut(frame.count)? = *self.here.get(last)?;
            self.count = last;
            frame.count += 1;
        }
        let id = *frame.ids.get(nth)?;
        Some((id, self.pages.get_mut(usize::from(id))?.as_mut()?))
    }

    /// The first page of the frame, which stays here until [`sent_first`](Self::sent_first).
    #[inline(always)]
    pub(crate) fn first(&mut self) -> Option<(u16, &mut GrantedPage<'g, P>)> {
        let frame = self.frames.get(self.frame())?;
        let id = if frame.count == 0 { *self.here.get(self.count.checked_sub(1)?)? } else { frame.ids[0] };
        Some((id, self.pages.get_mut(usize::from(id))?.as_mut()?))
    }

    /// Notes that the backend has the [first page](Self::first) of the frame, the only one.
    #[inline(always)]
    pub(crate) fn sent_first(&mut self, id: u16) {
        let frame = self.frame();
        if self.frames.get(frame).is_some_and(|frame| frame.count > 0) {
            return self.sent(1);
        }
        self.count = self.count.saturating_sub(1);
        if let Some(away) = self.away.get_mut(usize::from(id)) {
            *away = true;
        }
    }

    /// Notes that the backend has the pages of the frame, so many; what follows is for another.
    #[inline]
    pub(crate) fn sent(&mut self, count: usize) {
        let frame = self.frame();
        let Some(frame) = self.frames.get_mut(frame) else { return };
        for id in frame.ids.iter().take(count) {
            if let Some(away) = self.away.get_mut(usize::from(*id)) {
                *away = true;
            }
        }
        if count < frame.count {
            frame.ids.copy_within(count..frame.count, 0);
        }
        frame.count = frame.count.saturating_sub(count);
    }

    /// Takes a page back that the backend says it is done with; false when it did not have it.
    #[inline]
    pub(crate) fn put_back(&mut self, id: u16) -> bool {
        let Some(away) = self.away.get_mut(usize::from(id)).filter(|away| **away) else { return false };
        let Some(place) = self.here.get_mut(self.count) else { return false };
        *away = false;
        *place = id;
        self.count += 1;
        true
    }
}
