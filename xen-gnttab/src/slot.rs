//! What the guest itself knows of a reference, where Xen and peers cannot see it.
#![allow(unsafe_code)]

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, Ordering};

use xen_hypercall::Page;

use crate::abi::GrantRef;
use crate::page::ExposedPage;

/// A reference's state. One word, so that every change of hands is one atomic access: the low bits are the kind, the rest
/// is another reference or the address of a page, which has twelve zeroes there.
#[repr(transparent)]
#[derive(Debug)]
pub(crate) struct Slot(AtomicPtr<Page>);

const KIND: usize = 0b111;
const LINK_SHIFT: u32 = 12;
/// Somebody's; the link is the next of the references that somebody holds together, or 0.
const OWNED: usize = 1;
/// In the free list; the link is the next one there, or 0.
const FREE: usize = 2;
/// In quarantine with its page, or without one.
const QUARANTINED: usize = 3;
/// The first of several in quarantine together; the link is the next of them, which is [`OWNED`] unless it is the last.
const QUARANTINED_RUN: usize = 4;
/// The last of several in quarantine together, with the first of their pages.
const LAST: usize = 5;

/// What was in quarantine.
pub(crate) enum Quarantined {
    /// One reference with its page, or without any that is known.
    One(Option<ExposedPage>),
    /// The first of several; this one is next.
    Run(GrantRef),
}

fn link(reference: u32, kind: usize) -> *mut Page {
    ptr::without_provenance_mut((reference as usize) << LINK_SHIFT | kind)
}

impl Slot {
    pub(crate) const fn owned() -> Self {
        Self(AtomicPtr::new(ptr::without_provenance_mut(OWNED)))
    }

    /// Whoever moves the reference just now, or a grant, has it. `next` is what it holds besides, or 0.
    pub(crate) fn set_owned(&self, next: u32) {
        self.0.store(link(next, OWNED), Ordering::Relaxed);
    }

    pub(crate) fn set_free(&self, next: u32) {
        self.0.store(link(next, FREE), Ordering::Relaxed);
    }

    /// The reference that this one is linked to; meaningless if it is not in the list that the caller means.
    pub(crate) fn link(&self) -> u32 {
        (self.0.load(Ordering::Relaxed).addr() >> LINK_SHIFT) as u32
    }

    /// Leaves the page, if it is known, to the slot.
    pub(crate) fn set_quarantined(&self, page: Option<ExposedPage>) {
        let page = page.map_or(ptr::null_mut(), |page| page.into_raw().as_ptr());
        // Release: what the last owner did with the page comes before what the sweeper does.
        self.0.store(page.map_addr(|address| address | QUARANTINED), Ordering::Release);
    }

    /// Makes this the last of several in quarantine, and leaves their pages to it. Seen when the first one is.
    pub(crate) fn set_last(&self, first_page: NonNull<Page>) {
        self.0.store(first_page.as_ptr().map_addr(|address| address | LAST), Ordering::Relaxed);
    }

    /// Makes this the first of several in quarantine, all the others being what they are to be.
    pub(crate) fn set_quarantined_run(&self, next: u32) {
        self.0.store(link(next, QUARANTINED_RUN), Ordering::Release);
    }

    /// Takes a quarantined reference, and its page, out of the slot; of several sweepers one succeeds.
    pub(crate) fn take_quarantined(&self) -> Option<Quarantined> {
        let word = self.0.load(Ordering::Relaxed);
        let kind = word.addr() & KIND;
        let next = match kind {
            QUARANTINED => 0,
            QUARANTINED_RUN => (word.addr() >> LINK_SHIFT) as u32,
            _ => return None,
        };
        self.0.compare_exchange(word, link(next, OWNED), Ordering::AcqRel, Ordering::Relaxed).ok()?;
        if kind == QUARANTINED_RUN {
            return Some(Quarantined::Run(GrantRef(next)));
        }
        let page = NonNull::new(word.map_addr(|address| address & !KIND));
        // SAFETY: only `set_quarantined` makes such a word, of a page from `into_raw`, and the exchange took it out, once.
        Some(Quarantined::One(page.map(|page| unsafe { ExposedPage::from_raw(page) })))
    }

    /// The pages that [`set_last`](Self::set_last) left, if this is a last one. The caller took the first one out.
    pub(crate) fn last(&self) -> Option<NonNull<Page>> {
        let word = self.0.load(Ordering::Relaxed);
        if word.addr() & KIND != LAST {
            return None;
        }
        NonNull::new(word.map_addr(|address| address & !KIND))
    }
}
