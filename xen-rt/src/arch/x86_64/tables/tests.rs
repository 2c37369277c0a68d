//! The tables are made in memory of this process, and walked as the processor walks them.

use std::alloc::{Layout, alloc_zeroed};
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

const IMAGE: Image = Image {
    text: 0x10_0000,
    constants: 0x14_3000,
    data: 0x18_9000,
    guards: [0x18_B000, 0x19_0000],
    end: 0x21_1000,
};

/// Tables in the memory of this process, which are never freed.
fn page() -> Option<NonNull<Page>> {
    // SAFETY: a page has a size.
    NonNull::new(unsafe { alloc_zeroed(Layout::new::<Page>()) }.cast())
}

fn tables() -> Tables {
    Tables::new(page().expect("memory"), page)
}

/// What the processor finds at an address: where it leads, and with which rights, of which each table takes some away.
fn walk(tables: &Tables, at: u64) -> Option<(u64, Rights)> {
    let mut table = tables.root();
    let (mut write, mut no_execute) = (true, false);
    for depth in (1..=4).rev() {
        let index = (at >> (12 + 9 * (depth - 1))) & 511;
        // SAFETY: a table is a page of 512 entries, at the address that leads there.
        let entry = unsafe {
            core::ptr::with_exposed_provenance::<u64>((table + index * 8) as usize).read_volatile()
        };
        let rights = Rights::from_bits_retain(entry);
        if !rights.contains(Rights::PRESENT) {
            return None;
        }
        write &= rights.contains(Rights::WRITABLE);
        no_execute |= rights.contains(Rights::NO_EXECUTE);
        let large = depth == 2 && rights.contains(Rights::HUGE_PAGE);
        if depth == 1 || large {
            let size = if large { LARGE_PAGE } else { PAGE };
            let mut found = Rights::PRESENT;
            found.set(Rights::WRITABLE, write);
            found.set(Rights::NO_EXECUTE, no_execute);
            return Some(((entry & ADDRESS & !(size - 1)) + at % size, found));
        }
        table = entry & ADDRESS;
    }
    None
}

/// What is meant to be there.
fn meant(image: &Image, memory: &[Range], at: u64) -> Option<(u64, Rights)> {
    let guard = image.guards.iter().any(|guard| (*guard..guard + PAGE).contains(&at));
    let rights = match at {
        _ if guard => return None,
        at if (image.text..image.constants).contains(&at) => TEXT,
        at if (image.constants..image.data).contains(&at) => CONSTANTS,
        at if (image.data..image.end).contains(&at) => DATA,
        at if memory.iter().any(|range| (range.start..range.end).contains(&at)) => DATA,
        _ => return None,
    };
    Some((at, rights))
}

fn compare(image: &Image, memory: &[Range], at: &[u64]) {
    let mut tables = tables();
    assert!(tables.seal(image, memory.iter().copied()));
    for at in at {
        assert_eq!(walk(&tables, *at), meant(image, memory, *at), "at {at:#x}");
    }
}

/// Around each border, and in the middle of everything.
fn places(image: &Image, memory: &[Range]) -> Vec<u64> {
    let Image { text, constants, data, guards: [first, second], end } = *image;
    let image = [0, text, constants, data, first, first + PAGE, second, second + PAGE, end];
    let borders = memory.iter().flat_map(|range| [range.start, range.end, (range.start + range.end) / 2]);
    borders.chain(image).flat_map(|at| [at.saturating_sub(1), at, at + 1, at + PAGE]).collect()
}

#[test]
fn each_part_has_its_rights_and_no_more() {
    let memory =
        [Range { start: 0x21_1000, end: 0x4000_0000 }, Range { start: 4 << 30, end: (4 << 30) + 0x5000 }];
    compare(&IMAGE, &memory, &places(&IMAGE, &memory));
    // Nothing may be both written and executed, wherever it is.
    let mut tables = tables();
    assert!(tables.seal(&IMAGE, memory.into_iter()));
    for at in (0..0x80_0000).step_by(PAGE_SIZE) {
        if let Some((_, rights)) = walk(&tables, at) {
            assert!(!rights.contains(Rights::WRITABLE) || rights.contains(Rights::NO_EXECUTE), "{at:#x}");
        }
    }
}

#[test]
fn a_frame_beside_memory_can_be_mapped_and_one_of_a_large_page_cannot() {
    let memory = [Range { start: 0x40_0000, end: 0x80_0000 }];
    let mut tables = tables();
    assert!(tables.seal(&IMAGE, memory.into_iter()));
    assert!(tables.map_page(0x4000_0000, 0x4000_0000, DATA));
    assert_eq!(walk(&tables, 0x4000_0123), Some((0x4000_0123, DATA)));
    assert!(tables.map_page(0x7000_0000_0000, 0x40_0000, DATA), "by another address");
    assert_eq!(walk(&tables, 0x7000_0000_0008), Some((0x40_0008, DATA)));
    assert!(!tables.map_page(0x40_0000, 0x40_0000, DATA), "part of a large page");
}

#[test]
fn without_memory_for_tables_it_is_said_so() {
    let mut tables = Tables::new(page().expect("memory"), || None);
    assert!(!tables.seal(&IMAGE, core::iter::empty()));
    assert!(!tables.map_page(PAGE, PAGE, DATA));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_the_memory_it_leads_where_it_is_meant_to(
        sizes in prop::collection::vec((1_u64..700, 1_u64..2000), 1..5),
        offsets in prop::collection::vec(0_u64..0x4000_0000, 200),
    ) {
        let mut at = IMAGE.end;
        let memory: Vec<Range> = sizes
            .iter()
            .map(|(gap, pages)| {
                let start = at + gap * PAGE;
                at = start + pages * PAGE;
                Range { start, end: at }
            })
            .collect();
        let mut all = places(&IMAGE, &memory);
        all.extend(offsets.iter().map(|offset| offset % (at + (1 << 21))));
        compare(&IMAGE, &memory, &all);
    }
}
