//! The free references: a lock-free stack linked through the slots.

use core::sync::atomic::{AtomicU64, Ordering};

use xen_hypercall::Platform;

use crate::abi::GrantRef;
use crate::frames::Frames;

/// Low half: the first free reference, or 0, which is reserved and so never free. High half: a tag that changes with
/// every operation, so that a head that was taken, used and put back between another caller's load and exchange is not
/// mistaken for the one that was loaded (its link may be another by then).
#[derive(Debug)]
pub(crate) struct FreeList {
    head: AtomicU64,
}

impl FreeList {
    pub(crate) const fn new() -> Self {
        Self { head: AtomicU64::new(0) }
    }

    /// Puts a reference into the list. The caller owns it and from then on does not.
    pub(crate) fn push<P: Platform>(&self, frames: &Frames<P>, gref: GrantRef) {
        let Some(slot) = frames.slot(gref) else { return };
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            slot.set_free(head as u32);
            // Release: the link, and all that the last owner did with the entry, before the reference is seen here.
            match self.head.compare_exchange_weak(
                head,
                next_head(head, gref.0),
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Takes a reference; it is the caller's alone.
    pub(crate) fn pop<P: Platform>(&self, frames: &Frames<P>) -> Option<GrantRef> {
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            let gref = GrantRef(head as u32);
            if gref.0 == 0 {
                return None;
            }
            // If another caller has taken it meanwhile this reads something else than a link. The tag has changed then, and
            // the exchange fails.
            let slot = frames.slot(gref)?;
            let next = slot.next_free();
            match self.head.compare_exchange_weak(
                head,
                next_head(head, next),
                Ordering::Acquire,
                Ordering::Acquire,
            ) {
                Ok(_) => {
                    slot.set_owned();
                    return Some(gref);
                }
                Err(now) => head = now,
            }
        }
    }
}

fn next_head(old: u64, first: u32) -> u64 {
    let tag = (old >> 32) as u32;
    u64::from(tag.wrapping_add(1)) << 32 | u64::from(first)
}
