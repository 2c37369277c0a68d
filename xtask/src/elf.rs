//! The table of a program's sections, which nobody needs who loads it.

use anyhow::{Context, Result, ensure};

/// Where things are in a file's header (64 bits, little endian), and in that of a segment.
const SEGMENTS: usize = 0x20;
const SECTIONS: usize = 0x28;
const SEGMENT_SIZE: usize = 0x36;
const SEGMENT_COUNT: usize = 0x38;
const SECTION_SIZE: usize = 0x3A;
const HEADER_SIZE: usize = 0x40;
const SEGMENT_OFFSET: usize = 0x08;
const SEGMENT_BYTES: usize = 0x20;

/// Cuts off what is behind the last segment: the names and the table of the sections.
pub(crate) fn cut_sections(mut file: Vec<u8>) -> Result<Vec<u8>> {
    ensure!(file.starts_with(b"\x7fELF\x02\x01"), "this is no ELF file of 64 bits, little endian");
    let (table, size) = (word(&file, SEGMENTS)?, half(&file, SEGMENT_SIZE)?);
    let mut end = HEADER_SIZE.max(table);
    for index in 0..half(&file, SEGMENT_COUNT)? {
        let at = table + index * size;
        end = end.max(at + size);
        let bytes = word(&file, at + SEGMENT_BYTES)?;
        // One without bytes may say that it is anywhere.
        if bytes > 0 {
            end = end.max(word(&file, at + SEGMENT_OFFSET)? + bytes);
        }
    }
    ensure!(end <= file.len(), "the segments end behind the file's end");
    file.truncate(end);
    // The table's place, and its entries' size, number and which one has the names.
    file[SECTIONS..SECTIONS + 8].fill(0);
    file[SECTION_SIZE..HEADER_SIZE].fill(0);
    Ok(file)
}

fn word(file: &[u8], at: usize) -> Result<usize> {
    let bytes = file.get(at..at + 8).context("the file ends within a header")?;
    Ok(usize::try_from(u64::from_le_bytes(bytes.try_into()?))?)
}

fn half(file: &[u8], at: usize) -> Result<usize> {
    let bytes = file.get(at..at + 2).context("the file ends within a header")?;
    Ok(u16::from_le_bytes(bytes.try_into()?).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The program that this test is, which has both.
    fn own() -> Vec<u8> {
        std::fs::read("/proc/self/exe").unwrap()
    }

    #[test]
    fn segments_stay_and_sections_go() {
        let before = own();
        let after = cut_sections(before.clone()).unwrap();
        assert!(after.len() < before.len());
        assert_eq!(after[HEADER_SIZE..], before[HEADER_SIZE..after.len()]);
        assert_eq!((word(&after, SECTIONS).unwrap(), half(&after, 0x3C).unwrap()), (0, 0));
        // There is nothing more to cut.
        assert_eq!(cut_sections(after.clone()).unwrap(), after);
    }

    #[test]
    fn a_file_that_ends_early_is_refused() {
        let file = own();
        assert!(cut_sections(file[..0x30].to_vec()).is_err());
        assert!(cut_sections(file[..0x1000].to_vec()).is_err());
        assert!(cut_sections(b"#!/bin/sh".to_vec()).is_err());
    }
}
