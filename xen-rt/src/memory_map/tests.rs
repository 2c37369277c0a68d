//! What is given out, of what there is and what is taken.

use std::vec::Vec;

use super::*;

fn range(start: u64, end: u64) -> Range {
    Range { start, end }
}

fn usable(ram: &[(u64, u64)], taken: &[(u64, u64)]) -> Vec<Range> {
    let mut info = BootInfo::new();
    ram.iter().for_each(|(start, end)| info.add_ram(*start, end - start));
    taken.iter().for_each(|(start, end)| info.take(range(*start, *end)));
    let mut usable: Vec<_> = info.usable().collect();
    usable.sort_by_key(|range| range.start);
    usable
}

#[test]
fn what_is_taken_is_left_out_wherever_it_is() {
    let ram = [(0x1_0000, 0x10_0000)];
    assert_eq!(usable(&ram, &[]), [range(0x1_0000, 0x10_0000)]);
    assert_eq!(usable(&ram, &[(0, 0x2_0000)]), [range(0x2_0000, 0x10_0000)]);
    assert_eq!(usable(&ram, &[(0xF_0000, 0x20_0000)]), [range(0x1_0000, 0xF_0000)]);
    let middle = [range(0x1_0000, 0x4_0000), range(0x5_0000, 0x10_0000)];
    assert_eq!(usable(&ram, &[(0x4_0000, 0x5_0000)]), middle);
    assert_eq!(usable(&ram, &[(0, 0x20_0000)]), []);
    // Next to each other, one within another, out of order, without any room, elsewhere.
    let taken = [
        (0x4_8000, 0x5_0000),
        (0x4_0000, 0x4_8000),
        (0x4_1000, 0x4_2000),
        (0x6_0000, 0x6_0000),
        (0x30_0000, 0x31_0000),
    ];
    assert_eq!(usable(&ram, &taken), middle);
}

#[test]
fn only_whole_pages_are_given_out() {
    assert_eq!(usable(&[(0x1001, 0x4FFF)], &[]), [range(0x2000, 0x4000)]);
    assert_eq!(
        usable(&[(0x1000, 0x9000)], &[(0x3001, 0x3002)]),
        [range(0x1000, 0x3000), range(0x4000, 0x9000)]
    );
    assert_eq!(usable(&[(0x1001, 0x1FFF)], &[]), []);
    assert_eq!(usable(&[(u64::MAX - 100, u64::MAX)], &[]), []);
}

/// Every page that is free is given out once, and no other, whatever overlaps.
#[test]
fn pages_are_given_out_as_counting_them_says() {
    let mut seed = 1_u64;
    let mut number = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % below
    };
    for _ in 0..500 {
        let ram =
            [(0x1000 * number(8), 0x1000 * (8 + number(8))), (0x1_8000, 0x1_8000 + 0x1000 * number(16))];
        let taken: Vec<_> = (0..number(6))
            .map(|_| {
                let start = 0x400 * number(160);
                (start, start + 0x400 * number(40))
            })
            .collect();
        let free = |page: u64| {
            ram.iter().any(|(start, end)| (*start..*end).contains(&page))
                && !taken.iter().any(|(start, end)| *start < page + 0x1000 && *end > page && start < end)
        };
        let wanted: Vec<u64> = (0..0x4_0000).step_by(0x1000).filter(|page| free(*page)).collect();
        let given: Vec<u64> =
            usable(&ram, &taken).iter().flat_map(|range| (range.start..range.end).step_by(0x1000)).collect();
        assert_eq!(given, wanted, "of {ram:x?} without {taken:x?}");
    }
}

#[test]
fn the_command_line_is_cut_and_cleaned() {
    let mut info = BootInfo::new();
    info.set_cmdline(b"a=1 b=2");
    assert_eq!(info.cmdline(), "a=1 b=2");
    info.set_cmdline(b"a=1 \xFF b=2");
    assert_eq!(info.cmdline(), "a=1 ");
    info.set_cmdline(&[b'x'; 3000]);
    assert_eq!(info.cmdline().len(), MOST_TEXT);
}

#[test]
fn memory_for_which_there_is_no_place_is_not_used() {
    let mut info = BootInfo::new();
    (0..100).for_each(|index| info.add_ram(index << 20, 0x1000));
    assert_eq!(info.usable().count(), MOST_RAM);
    assert_eq!((info.ram(), info.end()), (100 * 0x1000, (99 << 20) + 0x1000));
    // Nor is what a part that is taken cuts off, when there is no place for both halves; what is taken is taken still.
    let mut info = BootInfo::new();
    (0..32).for_each(|index| info.add_ram(index << 20, 0x10_0000));
    info.take(range(0x4000, 0x8000));
    assert!(info.usable().all(|range| range.end <= 0x4000 || range.start >= 0x8000));
}

#[test]
fn memory_is_cut_where_the_first_tables_end() {
    let mut info = BootInfo::new();
    info.add_ram(0x10_0000, 0x3FF0_0000);
    info.add_ram(0xF000_0000, 0x2000_0000);
    info.add_ram(0x2_0000_0000, 0x1000_0000);
    info.take(range(0x20_0000, 0x30_0000));
    for border in [0, 0x28_0000, 0x1000_0000, 0x1_0000_0000, 0x2_0800_0000, 1 << 40] {
        let (below, above) = (range(0, border), range(border, u64::MAX));
        assert!(info.usable_in(below).all(|range| range.end <= border), "{border:#x}");
        assert!(info.usable_in(above).all(|range| range.start >= border), "{border:#x}");
        let parts = info.usable_in(below).chain(info.usable_in(above));
        let size = |ranges: &mut dyn Iterator<Item = Range>| -> u64 {
            ranges.map(|range| range.end - range.start).sum()
        };
        assert_eq!(size(&mut { parts }), size(&mut info.usable()), "{border:#x}");
    }
}
