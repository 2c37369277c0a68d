//! The tables walked as the processor walks them, page by page.

use std::alloc::{Layout, alloc_zeroed};
use std::collections::BTreeMap;
use std::vec::Vec;

use super::*;

const BASE: u64 = 0x4000_0000;
const IMAGE: Image = Image {
    start: BASE,
    text_end: BASE + 0x5000,
    constants_end: BASE + 0x7000,
    guard: BASE + 0x8000,
    end: BASE + 0x9_0000,
};

fn new_table() -> NonNull<PageTable<El1Attributes>> {
    let layout = Layout::from_size_align(4096, 4096).expect("a page");
    // SAFETY: the layout is not empty; a table of zeros is one without entries.
    NonNull::new(unsafe { alloc_zeroed(layout) }.cast()).expect("memory")
}

fn range(start: u64, size: u64) -> Range {
    Range { start, end: start + size }
}

fn tables(memory: &[Range], devices: &[Range]) -> Tables {
    Tables::new(&IMAGE, memory.iter().copied(), devices, new_table).expect("tables")
}

/// How memory may be used: what the bits of an entry mean to a kernel, not how they are called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Rights {
    write: bool,
    execute: bool,
    device: bool,
}

const TEXT: Rights = Rights { write: false, execute: true, device: false };
const CONSTANTS: Rights = Rights { write: false, execute: false, device: false };
const DATA: Rights = Rights { write: true, execute: false, device: false };
const DEVICE: Rights = Rights { write: true, execute: false, device: true };

/// Every page that is there, by its address, mapped to itself.
fn walk(tables: &Tables) -> BTreeMap<u64, Rights> {
    let pages = walk_anywhere(tables).into_iter();
    pages
        .inspect(|(at, (to, _))| assert_eq!(at, to, "mapped to itself"))
        .map(|(at, (_, rights))| (at, rights))
        .collect()
}

/// Every page that is there, by its address: where it leads, and its rights, from the descriptors' bits (Arm's manual, D8.3).
fn walk_anywhere(tables: &Tables) -> BTreeMap<u64, (u64, Rights)> {
    let mut pages = BTreeMap::new();
    // SAFETY: the root and all that it leads to are tables that `new_table` made.
    unsafe { walk_level(tables.0.root_address().0, 0, 0, &mut pages) };
    pages
}

unsafe fn walk_level(table: usize, level: u32, base: u64, pages: &mut BTreeMap<u64, (u64, Rights)>) {
    let size = 4096_u64 << (9 * (3 - level));
    let entries = core::ptr::with_exposed_provenance::<u64>(table);
    for index in 0..512 {
        // SAFETY: a table has so many entries.
        let entry = unsafe { entries.add(index).read() };
        let (at, to) = (base + index as u64 * size, entry & 0x0000_FFFF_FFFF_F000);
        match entry & 3 {
            0 | 2 => {}
            3 if level < 3 => {
                assert_eq!(entry & 0xF800_0000_0000_0000, 0, "a table takes no rights away");
                // SAFETY: the entry leads to a table of the next level.
                unsafe { walk_level(to as usize, level + 1, at, pages) };
            }
            1 if level == 0 || level == 3 => panic!("no block can be in a table of level {level}"),
            _ => {
                assert_ne!(entry & 1 << 10, 0, "accessed, so that no exception tells of the first access");
                assert_eq!(entry & 1 << 6, 0, "not for programs");
                assert_ne!(entry & 1 << 54, 0, "never executed by programs");
                let device = entry >> 2 & 7 == 0;
                assert_eq!(entry >> 8 & 3 == 3, !device, "memory is shared with all processors");
                let (write, execute) = (entry & 1 << 7 == 0, entry & 1 << 53 == 0);
                for page in (0..size).step_by(4096) {
                    pages.insert(at + page, (to + page, Rights { write, execute, device }));
                }
            }
        }
    }
}

#[test]
fn each_part_has_the_rights_that_it_needs_and_no_others() {
    let memory = [range(IMAGE.end, 0x200_0000 - 0x9_0000), range(0x2_0000_0000, 0x40_1000)];
    let devices = [range(0x300_1000, 0x1_0000), range(0x302_0000, 0x2_0000)];
    let pages = walk(&tables(&memory, &devices));
    let mut wanted = BTreeMap::new();
    let mut all = |start: u64, end: u64, rights| {
        (start..end).step_by(4096).for_each(|page| assert_eq!(wanted.insert(page, rights), None));
    };
    all(IMAGE.start, IMAGE.text_end, TEXT);
    all(IMAGE.text_end, IMAGE.constants_end, CONSTANTS);
    all(IMAGE.constants_end, IMAGE.guard, DATA);
    all(IMAGE.guard + 4096, IMAGE.end, DATA);
    memory.iter().for_each(|range| all(range.start, range.end, DATA));
    devices.iter().for_each(|range| all(range.start, range.end, DEVICE));
    assert!(pages == wanted, "{} pages in place of {}", pages.len(), wanted.len());
    assert!(!pages.contains_key(&0) && !pages.contains_key(&IMAGE.guard));
    assert!(pages.values().all(|rights| !(rights.write && rights.execute)));
}

#[test]
fn a_special_page_is_mapped_where_nothing_is_and_once_more_where_one_is() {
    let mut tables = tables(&[range(IMAGE.end, 0x10_0000)], &[range(0x300_1000, 0x1000)]);
    let before = walk(&tables).len();
    for page in [0x3900_0000, 0x3900_1000, 0x3900_0000, (1 << 48) - 4096] {
        assert!(tables.map_special(page), "{page:#x}");
        assert_eq!(walk(&tables).get(&page), Some(&DATA));
    }
    assert_eq!(walk(&tables).len(), before + 3);
    // A page of the heap, of the text, of a device; beyond what the tables reach.
    for page in [IMAGE.end + 4096, IMAGE.start, 0x300_1000, 1 << 48, !4095] {
        assert!(!tables.map_special(page), "{page:#x}");
    }
    assert_eq!(walk(&tables).len(), before + 3);
}

#[test]
fn a_special_page_is_mapped_while_the_tables_are_in_use() {
    let mut tables = tables(&[range(0x4020_0000, 0x20_0000)], &[]);
    tables.0.mark_active();
    assert!(tables.map_special(0x3900_0000));
    assert!(!tables.map_special(0x4020_0000));
    assert_eq!(walk(&tables).get(&0x4020_0000), Some(&DATA));
    tables.0.mark_inactive();
}

#[test]
fn a_stack_is_elsewhere_with_a_page_that_is_not_there_under_it() {
    const STACK: u64 = 0x7000_0000_1000;
    let mut tables = tables(&[range(IMAGE.end, 0x10_0000)], &[]);
    tables.0.mark_active();
    let before = walk(&tables);
    let memory = IMAGE.end + 0x3000;
    assert!(tables.map_data(range(STACK, 0x4000), memory));
    let mut pages = walk_anywhere(&tables);
    for page in (0..0x4000).step_by(4096) {
        assert_eq!(pages.remove(&(STACK + page)), Some((memory + page, DATA)));
    }
    assert!(pages.into_iter().eq(before.into_iter().map(|(at, rights)| (at, (at, rights)))));
    tables.0.mark_inactive();
}

#[test]
fn large_memory_takes_few_tables() {
    static COUNT: core::sync::atomic::AtomicUsize = core::sync::atomic::AtomicUsize::new(0);
    fn counted() -> NonNull<PageTable<El1Attributes>> {
        COUNT.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
        new_table()
    }
    let memory = [Range { start: IMAGE.end, end: BASE + (3 << 30) }];
    let tables = Tables::new(&IMAGE, memory.into_iter(), &[], counted).expect("tables");
    let count = COUNT.load(core::sync::atomic::Ordering::Relaxed);
    assert!(count <= 4, "{count} tables");
    let pages: Vec<_> = walk(&tables).into_keys().collect();
    assert_eq!(pages.len() as u64, (3 << 30 >> 12) - 1);
}
