//! The page tables that seal the image: text may be executed and not written, constants neither, everything else
//! may be written and never executed. Page zero and the page under the stack are not there at all.

use core::arch::asm;
use core::sync::atomic::{AtomicPtr, Ordering};

use crate::machine::keep_pages;
use crate::memory_map::{BootInfo, Range};

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

const PAGE: u64 = 4096;
const LARGE_PAGE: u64 = 2 << 20;

unsafe extern "C" {
    static text_start: u8;
    static text_end: u8;
    static rodata_end: u8;
    static image_end: u8;
    static stack_guard: u8;
}

fn address(symbol: *const u8) -> u64 {
    symbol.expose_provenance() as u64
}

/// Where the image is: no memory of it may be given to the heap.
pub(super) fn image() -> Range {
    Range { start: address(&raw const text_start), end: address(&raw const image_end) }
}

/// Says whether an address is in a part of the image that faults on purpose.
pub(super) fn describe(at: u64) -> &'static str {
    let guard = address(&raw const stack_guard);
    let text = address(&raw const text_start)..address(&raw const text_end);
    let constants = address(&raw const text_end)..address(&raw const rodata_end);
    match at {
        0..PAGE => ", in page zero",
        at if (guard..guard + PAGE).contains(&at) => ", in the guard page under the stack",
        at if text.contains(&at) => ", in the text, which is read-only",
        at if constants.contains(&at) => ", in the constants, which are read-only",
        _ => "",
    }
}

#[repr(C, align(4096))]
struct Table([u64; 512]);

static ROOT: AtomicPtr<Table> = AtomicPtr::new(core::ptr::null_mut());

fn new_table() -> *mut Table {
    keep_pages(1).cast().as_ptr()
}

/// The entry for `at` in tables of `level` (1: pages of 4 KiB, 2: of 2 MiB), making the tables on the way.
///
/// # Safety
/// `root` is the root of tables that this module made; memory is mapped to itself; nobody else changes them.
unsafe fn entry(root: *mut Table, at: u64, level: u32) -> *mut u64 {
    let mut table = root;
    for depth in (level + 1..=4).rev() {
        // SAFETY: `table` is one of ours, whole and writable; the index is below 512.
        unsafe {
            let slot = &raw mut (*table).0[(at >> (12 + 9 * (depth - 1))) as usize & 511];
            if *slot & PRESENT == 0 {
                *slot = (new_table().expose_provenance() as u64) | PRESENT | WRITABLE;
            }
            table = core::ptr::with_exposed_provenance_mut((*slot & ADDRESS) as usize);
        }
    }
    // SAFETY: as above.
    unsafe { &raw mut (*table).0[(at >> (12 + 9 * (level - 1))) as usize & 511] }
}

/// Replaces the tables of the boot code. From here on a wild write or jump faults.
pub(crate) fn seal(info: &BootInfo) {
    let root = new_table();
    let map = |range: Range, rights: u64| {
        let mut at = range.start.next_multiple_of(PAGE);
        while at + PAGE <= range.end {
            let large = at.is_multiple_of(LARGE_PAGE) && at + LARGE_PAGE <= range.end;
            let (level, flags, size) = if large { (2, LARGE, LARGE_PAGE) } else { (1, 0, PAGE) };
            // SAFETY: the tables are being made, here only, and the boot code's tables map memory to itself.
            unsafe { *entry(root, at, level) = at | flags | rights | PRESENT };
            at += size;
        }
    };
    let image = image();
    let (text, constants) = (address(&raw const text_end), address(&raw const rodata_end));
    let guard = address(&raw const stack_guard);
    map(Range { start: image.start, end: text }, 0);
    map(Range { start: text, end: constants }, NO_EXECUTE);
    map(Range { start: constants, end: guard }, WRITABLE | NO_EXECUTE);
    map(Range { start: guard + PAGE, end: image.end }, WRITABLE | NO_EXECUTE);
    for range in info.usable() {
        map(range, WRITABLE | NO_EXECUTE);
    }
    // SAFETY: the new tables map the code that runs, its stack and data, and all memory of the heap where they were.
    unsafe { asm!("mov cr3, {}", in(reg) root, options(nostack, preserves_flags)) };
    ROOT.store(root, Ordering::Relaxed);
}

/// Makes a frame accessible that is not RAM of ours, readable and writable. False: it is in use as RAM already.
///
/// # Safety
/// As for `SpecialPages::map_special`; one caller at a time.
pub(crate) unsafe fn map_special(frame: u64) -> bool {
    let root = ROOT.load(Ordering::Relaxed);
    let at = frame * PAGE;
    if root.is_null() || at == 0 || at > ADDRESS {
        return false;
    }
    // SAFETY: `root` is ours; a large page there would be RAM, which the caller excludes, and is looked for first.
    unsafe {
        let large = *entry(root, at, 2);
        if large & LARGE != 0 {
            return false;
        }
        *entry(root, at, 1) = at | PRESENT | WRITABLE | NO_EXECUTE;
        asm!("invlpg [{}]", in(reg) at, options(nostack, preserves_flags));
    }
    true
}
