//! How a grant ends, and where page and reference stay while the peer does not let go.
//!
//! Which slots have something in quarantine is noted in a bit for each page of 512 slots, so that a sweep looks at those
//! pages only; see [`marks`].
#![allow(unsafe_code)]

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use xen_hypercall::{Page, Platform};

use crate::GrantTable;
use crate::abi::GrantRef;
use crate::granted::Ended;
use crate::marks::{self, Mark};
use crate::page::{ExposedPage, OwnedPage};
use crate::pages::{EndedPages, OwnedPages};
use crate::slot::Quarantined;

/// References that one bit stands for.
const PER_MARK: u32 = 512;
/// Bits in a word of them.
const BITS: u32 = u64::BITS;

/// What the table knows of its quarantine as a whole.
#[derive(Debug, Default)]
pub(crate) struct Quarantine {
    marks: [AtomicU64; 4],
    /// Where the next bounded sweep goes on.
    cursor: AtomicU32,
    /// References in quarantine.
    pub(crate) count: AtomicU32,
    /// References that ever went into it.
    pub(crate) entered: AtomicU64,
    /// References that ever left it.
    pub(crate) left: AtomicU64,
}

const _: () = assert!(4 * BITS * PER_MARK >= crate::frames::MAX_FRAMES * crate::entry::v1::PER_FRAME as u32);

impl Quarantine {
    /// The mark of a portion; none beyond the greatest table.
    fn mark(&self, portion: u32) -> Option<Portion<'_>> {
        Some(Portion { word: self.marks.get((portion / BITS) as usize)?, mask: 1 << (portion % BITS) })
    }

    /// Puts something into a slot, with its mark.
    fn put(&self, gref: GrantRef, put: impl FnOnce()) {
        if let Some(mark) = self.mark(gref.0 / PER_MARK) {
            marks::put(&mark, put);
        }
    }
}

/// The bit of one portion.
struct Portion<'a> {
    word: &'a AtomicU64,
    mask: u64,
}

impl Mark for Portion<'_> {
    fn set(&self) {
        self.word.fetch_or(self.mask, Ordering::AcqRel);
    }

    fn take(&self) -> bool {
        // A plain load first: most portions have no mark.
        self.word.load(Ordering::Relaxed) & self.mask != 0
            && self.word.fetch_and(!self.mask, Ordering::AcqRel) & self.mask != 0
    }
}

impl<P: Platform> GrantTable<P> {
    /// Looks through the quarantine: frees the pages that peers have let go of, and their references. Returns how many
    /// references that were.
    ///
    /// Xen tells nobody when a peer lets go. A driver that closed a device calls this some time later, to get the memory
    /// back. Costs nothing while the quarantine is empty, otherwise a look at each 512 references with one among them.
    ///
    /// Does nothing after a resume in a new domain until [`resume`](Self::resume), which does the same, has set the table up again.
    pub fn reclaim(&self) -> usize {
        if self.frames.is_current() { self.sweep_all() } else { 0 }
    }

    pub(crate) fn sweep_all(&self) -> usize {
        self.sweep(self.frames.refs().div_ceil(PER_MARK))
    }

    /// The same in small portions, for a timer or an idle loop: looks at 512 references at most, at the next ones that have
    /// something in quarantine each time.
    ///
    /// A reference that grants nothing is sought in the same way, so no allocation takes longer than that either.
    pub fn reclaim_some(&self) -> usize {
        if self.frames.is_current() { self.sweep(1) } else { 0 }
    }

    /// Looks at this many marked portions at most.
    fn sweep(&self, portions: u32) -> usize {
        let all = self.frames.refs().div_ceil(PER_MARK);
        let (mut done, mut reclaimed) = (0, 0);
        if all == 0 {
            return 0;
        }
        let start = self.quarantine.cursor.load(Ordering::Relaxed);
        for step in 0..all {
            if done == portions || self.quarantine.count.load(Ordering::Relaxed) == 0 {
                break;
            }
            let bit = start.wrapping_add(step) % all;
            let Some(mark) = self.quarantine.mark(bit) else { continue };
            if let Some(here) = marks::sweep(&mark, || self.sweep_portion(bit * PER_MARK)) {
                self.quarantine.cursor.store((bit + 1) % all, Ordering::Relaxed);
                reclaimed += here;
                done += 1;
            }
        }
        reclaimed
    }

    fn sweep_portion(&self, first: u32) -> usize {
        let mut reclaimed = 0;
        for gref in (first..first + PER_MARK).map(GrantRef) {
            // Beyond the table's end for the last portion of a small frame.
            let Some(slot) = self.frames.slot(gref) else { break };
            reclaimed += match slot.take_quarantined() {
                None => 0,
                Some(Quarantined::Run(next)) => self.reclaim_run(gref, next),
                Some(Quarantined::One(page)) => self.reclaim_one(gref, page),
            };
        }
        reclaimed
    }

    fn reclaim_one(&self, gref: GrantRef, page: Option<ExposedPage>) -> usize {
        if !self.frames.revoke(gref) {
            self.put_quarantined(gref, page);
            return 0;
        }
        if let Some(page) = page {
            // SAFETY: the page was granted by this reference, on this table's memory, and was in the slot until now. The
            // grant is gone and Xen says that nobody uses it.
            drop(unsafe { OwnedPage::from_exposed(self.platform(), page) });
        }
        self.leave(1);
        self.put_reference(gref);
        1
    }

    /// The rest of a run whose first reference was taken out of quarantine by the caller, with all that depends on it.
    fn reclaim_run(&self, head: GrantRef, next: GrantRef) -> usize {
        let mut count = 1;
        let mut free = self.frames.revoke(head);
        let (mut last, mut pages) = (next, None);
        // No more hops than there are references, whatever the links say.
        while count < self.frames.refs() {
            free &= self.frames.revoke(last);
            count += 1;
            let Some(slot) = self.frames.slot(last) else { return 0 };
            pages = slot.last();
            if pages.is_some() {
                break;
            }
            last = GrantRef(slot.link());
        }
        let (Some(slot), Some(pages)) = (self.frames.slot(head), pages) else { return 0 };
        if !free {
            self.quarantine.put(head, || slot.set_quarantined_run(next.0));
            return 0;
        }
        // SAFETY: `finish_run` left these pages, one allocation of as many pages as the run has references. No grant leads to
        // them any more, and Xen says that nobody uses them.
        drop(unsafe { OwnedPages::from_raw(self.platform(), pages, count as usize) });
        self.leave(count);
        self.put_references(head, last, count);
        count as usize
    }

    /// Ends the grant of `page` by `gref`.
    ///
    /// # Safety
    /// Both were one grant until now, on this table, and are the caller's, who has just found the table in its domain's life.
    pub(crate) unsafe fn finish(&self, gref: GrantRef, page: ExposedPage) -> Option<OwnedPage<'_, P>> {
        if self.frames.revoke_current(gref) {
            self.ended.fetch_add(1, Ordering::Relaxed);
            // SAFETY: the page comes from this table's memory, the caller gives it up, and no grant leads to it any more.
            Some(unsafe { OwnedPage::from_exposed(self.platform(), page) })
        } else {
            self.enter(1);
            self.put_quarantined(gref, Some(page));
            None
        }
    }

    /// As [`finish`](Self::finish), and the reference becomes free.
    ///
    /// # Safety
    /// As there.
    pub(crate) unsafe fn finish_and_free(&self, gref: GrantRef, page: ExposedPage) -> Ended<'_, P> {
        // SAFETY: the caller's promise.
        match unsafe { self.finish(gref, page) } {
            Some(page) => {
                self.put_reference(gref);
                Ended::Page(page)
            }
            None => Ended::Quarantined,
        }
    }

    /// Ends a grant that leads to no page of ours. False: the peer uses it, the reference is in quarantine.
    pub(crate) fn finish_without_page(&self, gref: GrantRef) -> bool {
        let free = self.frames.revoke(gref);
        if free {
            self.ended.fetch_add(1, Ordering::Relaxed);
            self.put_reference(gref);
        } else {
            self.enter(1);
            self.put_quarantined(gref, None);
        }
        free
    }

    /// Ends the grants of `count` pages in a row by as many references, linked from `head`.
    ///
    /// # Safety
    /// All of that was one `GrantedPages` of this table until now.
    pub(crate) unsafe fn finish_run(
        &self,
        head: GrantRef,
        first: NonNull<Page>,
        count: usize,
    ) -> EndedPages<'_, P> {
        let refs = count as u32;
        let (mut free, mut last) = (true, head);
        for gref in self.linked(head).take(count) {
            free &= self.frames.revoke(gref);
            last = gref;
        }
        if free {
            self.ended.fetch_add(count as u64, Ordering::Relaxed);
            self.put_references(head, last, refs);
            // SAFETY: one allocation of this table's memory, the caller gives it up, no grant leads to it any more.
            return EndedPages::Pages(unsafe { OwnedPages::from_raw(self.platform(), first, count) });
        }
        self.enter(refs);
        if head == last {
            // SAFETY: one page alone is as one of `GrantedPage`; the caller gives it up.
            self.put_quarantined(head, Some(unsafe { ExposedPage::from_raw(first) }));
        } else if let (Some(head_slot), Some(last_slot)) = (self.frames.slot(head), self.frames.slot(last)) {
            let next = head_slot.link();
            last_slot.set_last(first);
            self.quarantine.put(head, || head_slot.set_quarantined_run(next));
        }
        EndedPages::Quarantined
    }

    /// Leaves a reference that is in use, whose page is not known, to the quarantine.
    pub(crate) fn quarantine_unknown(&self, gref: GrantRef) {
        self.enter(1);
        self.put_quarantined(gref, None);
    }

    fn put_quarantined(&self, gref: GrantRef, page: Option<ExposedPage>) {
        // A reference is handed out only after its slot was published; without one keeping the page is right, too.
        if let Some(slot) = self.frames.slot(gref) {
            self.quarantine.put(gref, || slot.set_quarantined(page));
        }
    }

    fn enter(&self, count: u32) {
        self.quarantine.count.fetch_add(count, Ordering::Relaxed);
        self.quarantine.entered.fetch_add(count.into(), Ordering::Relaxed);
    }

    fn leave(&self, count: u32) {
        self.quarantine.count.fetch_sub(count, Ordering::Relaxed);
        self.quarantine.left.fetch_add(count.into(), Ordering::Relaxed);
    }
}
