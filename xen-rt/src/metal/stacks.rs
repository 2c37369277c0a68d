//! The stacks of other vCPUs than the first: each above a page that is not there, at addresses that no memory has.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use xen_hypercall::PAGE_SIZE;

use super::keep_pages;
use crate::entry::crash;

const PAGE: u64 = PAGE_SIZE as u64;

/// Where they are.
pub(crate) const STACKS: Range<u64> = 0x7000_0000_0000..0x7FFF_0000_0000;

static NEXT: AtomicU64 = AtomicU64::new(STACKS.start);

/// A stack of `count` pages; returns its upper end. `map` makes the pages from the first address on lead to the memory at the
/// second, and says whether they do.
pub(crate) fn stack(count: usize, map: impl FnOnce(u64, u64) -> bool) -> u64 {
    let (memory, size) = (keep_pages(count).as_ptr().expose_provenance() as u64, count as u64 * PAGE);
    // What would be the first page stays away.
    let start = NEXT.fetch_add(size + PAGE, Ordering::Relaxed) + PAGE;
    if !map(start, memory) {
        crash(format_args!("out of memory"));
    }
    start + size
}
