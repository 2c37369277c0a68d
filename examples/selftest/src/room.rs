//! Room for pages of other domains: frames far above any memory of this domain.
#![allow(unsafe_code, reason = "promises what this kernel keeps")]

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use xen_hypercall::{Gfn, GrantRoom, PAGE_SIZE, Page};

use crate::arch;
use crate::platform::Kernel;

/// 64 GiB: no machine that this kernel is made for has memory or devices there.
pub(crate) const FIRST: u64 = (64 << 30) / PAGE_SIZE as u64;

/// A bit for each frame that is taken.
static TAKEN: AtomicU64 = AtomicU64::new(0);

fn bits(first: Gfn, count: usize) -> Option<u64> {
    let at = first.0.checked_sub(FIRST).filter(|at| *at < 64 && *at as usize + count <= 64)?;
    (1..=63).contains(&count).then(|| ((1 << count) - 1) << at)
}

// SAFETY: nothing of the domain is at these frames, the bits see to it that each is given out once, and `map_special`
// makes the page tables lead there.
unsafe impl GrantRoom for Kernel {
    fn reserve_room(&self, count: usize) -> Option<Gfn> {
        let taken = TAKEN.load(Ordering::Relaxed);
        let first = (FIRST..FIRST + 64)
            .map(Gfn)
            .find(|first| bits(*first, count).is_some_and(|bits| taken & bits == 0))?;
        TAKEN.fetch_or(bits(first, count)?, Ordering::Relaxed);
        Some(first)
    }

    unsafe fn release_room(&self, first: Gfn, count: usize) {
        TAKEN.fetch_and(!bits(first, count).unwrap_or(0), Ordering::Relaxed);
    }

    unsafe fn room_address(&self, first: Gfn, count: usize) -> Option<NonNull<Page>> {
        for frame in first.0..first.0 + count as u64 {
            // SAFETY: a frame of the room is not memory of ours; there is one thread.
            if !unsafe { arch::map_special(frame) } {
                return None;
            }
        }
        NonNull::new(core::ptr::with_exposed_provenance_mut(first.0 as usize * PAGE_SIZE))
    }
}
