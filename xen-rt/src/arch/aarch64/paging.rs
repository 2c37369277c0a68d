//! The page tables that seal the image. Page zero and the page under the stack are not there at all.

use core::arch::asm;
use core::ptr::NonNull;

use super::MACHINE;
use super::tables::{Image, Tables};
use crate::lock::Lock;
use crate::machine::keep_pages;
use crate::memory_map::{BootInfo, Range};

const PAGE: u64 = 4096;

unsafe extern "C" {
    static text_start: u8;
    static text_end: u8;
    static rodata_end: u8;
    static image_end: u8;
    static stack_guard: u8;
}

static TABLES: Lock<Option<Tables>> = Lock::new(None);

fn address(symbol: *const u8) -> u64 {
    symbol.expose_provenance() as u64
}

/// Where the image is: no memory of it may be given to the heap.
pub(super) fn image() -> Range {
    Range { start: address(&raw const text_start), end: address(&raw const image_end) }
}

fn parts() -> Image {
    let Range { start, end } = image();
    Image {
        start,
        text_end: address(&raw const text_end),
        constants_end: address(&raw const rodata_end),
        guard: address(&raw const stack_guard),
        end,
    }
}

/// Says whether an address is in a part of the image that faults on purpose.
pub(super) fn describe(at: u64) -> &'static str {
    let Image { start, text_end: text, constants_end, guard, .. } = parts();
    match at {
        0..PAGE => ", in page zero",
        at if is_guard(guard, at) => ", in the guard page under the stack",
        at if (start..text).contains(&at) => ", in the text, which is read-only",
        at if (text..constants_end).contains(&at) => ", in the constants, which are read-only",
        _ => "",
    }
}

/// Where other vCPUs have their stacks nothing faults but the pages under them.
fn is_guard(guard: u64, at: u64) -> bool {
    #[cfg(feature = "smp")]
    if crate::machine::STACKS.contains(&at) {
        return true;
    }
    (guard..guard + PAGE).contains(&at)
}

/// A stack of `count` pages for another vCPU; returns its upper end.
#[cfg(feature = "smp")]
pub(super) fn stack(count: usize) -> u64 {
    crate::machine::stack(count, |at, memory| {
        let part = Range { start: at, end: at + count as u64 * PAGE };
        TABLES.with(|tables| tables.as_mut().is_some_and(|tables| tables.map_data(part, memory)))
            == Some(true)
    })
}

/// What the tables of the boot code map for sure, to itself: the gigabyte in which the image ends.
pub(crate) fn reach() -> Range {
    const GIGABYTE: u64 = 1 << 30;
    let start = image().end & !(GIGABYTE - 1);
    Range { start, end: start + GIGABYTE }
}

/// Replaces the tables of the boot code. From here on a wild write or jump faults.
pub(crate) fn seal(info: &BootInfo) {
    let devices = MACHINE.get().map(|machine| machine.controller.registers());
    let tables = Tables::new(&parts(), info.usable(), devices.as_ref().map_or(&[], |ranges| ranges), || {
        keep_pages(1).cast()
    });
    let tables = tables.unwrap_or_else(|error| crate::crash(format_args!("no page tables: {error}")));
    TABLES.with(|place| {
        let tables = place.insert(tables);
        // SAFETY: they map the code that runs, its stack and data, and all memory of the heap where they were. They stay in
        // their place for ever.
        unsafe { tables.activate() };
    });
    // SAFETY: nothing is used that only the boot code's tables had. From here on nothing that may be written can be executed
    // (WXN), which is so of all that is mapped now.
    unsafe {
        asm!(
            "mrs {0}, sctlr_el1", "orr {0}, {0}, #(1 << 19)", "msr sctlr_el1, {0}", "isb",
            "tlbi vmalle1", "dsb nsh", "isb", out(reg) _, options(nostack),
        );
    }
}

/// Makes a frame accessible that is not RAM of ours, readable and writable. False: it is in use as RAM already.
///
/// # Safety
/// As for `PageMemory::map_special`; one caller at a time.
pub(crate) unsafe fn map_special(frame: u64) -> bool {
    let Some(at) = frame.checked_mul(PAGE).filter(|at| *at != 0) else { return false };
    let mapped = TABLES.with(|tables| tables.as_mut().is_some_and(|tables| tables.map_special(at)));
    mapped.unwrap_or(false)
}

/// A pointer to device registers, which the tables map.
pub(super) fn registers<T>(range: Range) -> NonNull<T> {
    let at = core::ptr::with_exposed_provenance_mut(range.start as usize);
    NonNull::new(at).unwrap_or_else(|| crate::crash(format_args!("device registers at address zero")))
}
