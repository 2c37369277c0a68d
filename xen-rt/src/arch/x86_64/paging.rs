//! The tables that the processor uses: they seal the image, and show what is not memory of the domain.

use core::sync::atomic::{Ordering, compiler_fence};

use x86_64::PhysAddr;
use x86_64::registers::control::{Cr3, Cr3Flags};
use x86_64::structures::paging::PhysFrame;
use xen_hypercall::PAGE_SIZE;

use super::tables::{DATA, Image, Tables};
use crate::crash;
use crate::lock::Lock;
use crate::machine::{alloc_pages, keep_pages};
use crate::memory_map::{BootInfo, Range};

unsafe extern "C" {
    static text_start: u8;
    static text_end: u8;
    static rodata_end: u8;
    static image_end: u8;
    static fault_guard: u8;
    static stack_guard: u8;
}

/// By the link script.
fn image() -> Image {
    let at = |symbol: *const u8| symbol.expose_provenance() as u64;
    Image {
        text: at(&raw const text_start),
        constants: at(&raw const text_end),
        data: at(&raw const rodata_end),
        guards: [at(&raw const fault_guard), at(&raw const stack_guard)],
        end: at(&raw const image_end),
    }
}

/// Where the image is: no memory of it may be given to the heap.
pub(super) fn taken() -> Range {
    let Image { text, end, .. } = image();
    Range { start: text, end }
}

const PAGE: u64 = PAGE_SIZE as u64;
/// Memory is below this.
const END: u64 = 1 << 46;

/// A stack of `count` pages for another vCPU; returns its upper end.
#[cfg(feature = "smp")]
pub(super) fn stack(count: usize) -> u64 {
    crate::machine::stack(count, |at, memory| {
        let pages = (0..count as u64 * PAGE).step_by(PAGE_SIZE);
        let mapped = TABLES.with(|tables| {
            let tables = tables.as_mut()?;
            pages.into_iter().all(|page| tables.map_page(at + page, memory + page, DATA)).then_some(())
        });
        mapped.flatten().is_some()
    })
}

fn is_guard(image: &Image, at: u64) -> bool {
    #[cfg(feature = "smp")]
    if crate::machine::STACKS.contains(&at) {
        return true;
    }
    image.guards.contains(&(at & !(PAGE - 1)))
}

/// Says whether an address is in a part of the image that faults on purpose.
pub(super) fn describe(at: u64) -> &'static str {
    let image = image();
    match at {
        0..PAGE => ", in page zero",
        at if is_guard(&image, at) => ", in the guard page under the stack",
        at if (image.text..image.constants).contains(&at) => ", in the text, which is read-only",
        at if (image.constants..image.data).contains(&at) => ", in the constants, which are read-only",
        _ => "",
    }
}

static TABLES: Lock<Option<Tables>> = Lock::new(None);

/// What the tables of the boot code map, to itself.
pub(crate) fn reach() -> Range {
    Range { start: 0, end: 4 << 30 }
}

/// Replaces the tables of the boot code. From here on a wild write or jump faults.
pub(crate) fn seal(info: &BootInfo) {
    let mut tables = Tables::new(keep_pages(1), || alloc_pages(1));
    if !tables.seal(&image(), info.usable()) {
        crash(format_args!("out of memory"));
    }
    let root = PhysFrame::containing_address(PhysAddr::new_truncate(tables.root()));
    // SAFETY: the new tables map the code that runs, its stack and data, and all memory of the heap where they were.
    unsafe { Cr3::write(root, Cr3Flags::empty()) };
    TABLES.with(|space| *space = Some(tables));
}

/// Makes a frame accessible that is not RAM of ours, readable and writable. False: it is in use as RAM already.
///
/// # Safety
/// As for `SpecialPages::map_special`.
pub(crate) unsafe fn map_special(frame: u64) -> bool {
    let Some(at) = frame.checked_mul(PAGE).filter(|at| (PAGE..END).contains(at)) else {
        return false;
    };
    // What was there before can only have been the same.
    let mapped = TABLES.with(|tables| tables.as_mut().is_some_and(|tables| tables.map_page(at, at, DATA)));
    // The processor looks at the entry when the page is accessed, of which the compiler does not know.
    compiler_fence(Ordering::SeqCst);
    mapped == Some(true)
}
