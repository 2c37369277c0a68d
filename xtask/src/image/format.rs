//! What Xen loads: for x86-64 an ELF file with a PVH entry, for arm64 the bare bytes of an Image.

use anyhow::{Context, Result, bail, ensure};
use object::Endianness;
use object::elf::{EM_AARCH64, EM_X86_64, FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, NoteIterator, ProgramHeader, SectionHeader};

use crate::platform::Arch;

/// Where an Image has its magic number, and which.
const MAGIC_AT: usize = 0x38;
const MAGIC: &[u8; 4] = b"ARM\x64";
/// The note that names the entry of a PVH guest (`XEN_ELFNOTE_PHYS32_ENTRY`).
const ENTRY_NOTE: (&[u8], u32) = (b"Xen", 18);
/// More than any image; a file that needs more has its segments strewn about.
const LARGEST: u64 = 256 << 20;

/// Turns what a linker made into what Xen loads, and says for which architecture that is. What Xen can load stays as it is.
pub fn loadable(file: Vec<u8>) -> Result<(Arch, Vec<u8>)> {
    if is_image(&file) {
        return Ok((Arch::Arm64, file));
    }
    let Ok(header) = FileHeader64::<Endianness>::parse(file.as_slice()) else {
        bail!("it is neither an ELF file of 64 bits nor an arm64 Image");
    };
    match header.e_machine(header.endian()?) {
        EM_X86_64 => {
            ensure!(
                has_entry_note(&file)?,
                "it is an ELF file without a PVH entry (a note of the name Xen, type 18): no kernel for Xen"
            );
            Ok((Arch::X86_64, file))
        }
        EM_AARCH64 => {
            let image = flattened(&file)?;
            ensure!(
                is_image(&image),
                "it is an ELF file for arm64 that does not begin with an Image's header"
            );
            Ok((Arch::Arm64, image))
        }
        other => bail!("it is an ELF file for another machine ({other:?})"),
    }
}

fn is_image(file: &[u8]) -> bool {
    file.get(MAGIC_AT..).is_some_and(|rest| rest.starts_with(MAGIC))
}

/// Whether a kernel says where it is entered, in a segment of notes or, as Xen's own loader looks next, in a section.
fn has_entry_note(file: &[u8]) -> Result<bool> {
    let header = FileHeader64::<Endianness>::parse(file)?;
    let endian = header.endian()?;
    for segment in header.program_headers(endian, file)? {
        if is_entry_there(segment.notes(endian, file)?, endian)? {
            return Ok(true);
        }
    }
    for section in header.sections(endian, file)?.iter() {
        if is_entry_there(section.notes(endian, file)?, endian)? {
            return Ok(true);
        }
    }
    Ok(false)
}

type Notes<'a> = NoteIterator<'a, FileHeader64<Endianness>>;

fn is_entry_there(notes: Option<Notes<'_>>, endian: Endianness) -> Result<bool> {
    let Some(mut notes) = notes else { return Ok(false) };
    while let Some(note) = notes.next()? {
        if (note.name(), note.n_type(endian).0) == ENTRY_NOTE {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The segments of an ELF file as they lie in memory, from the first one's physical address on.
fn flattened(file: &[u8]) -> Result<Vec<u8>> {
    let header = FileHeader64::<Endianness>::parse(file)?;
    let endian = header.endian()?;
    let mut segments = Vec::new();
    for segment in header.program_headers(endian, file)? {
        if segment.p_type(endian) == PT_LOAD && segment.p_filesz(endian) > 0 {
            let bytes = segment.data(endian, file).ok().context("a segment is not within the file")?;
            segments.push((segment.p_paddr(endian), bytes));
        }
    }
    let start = segments.iter().map(|(at, _)| *at).min().context("it has nothing to load")?;
    let mut image = Vec::new();
    for (at, bytes) in segments {
        let end = (at - start).saturating_add(bytes.len() as u64);
        ensure!(end <= LARGEST, "a segment at {at:#x} is too far from the first one at {start:#x}");
        let (at, end) = (usize::try_from(at - start)?, usize::try_from(end)?);
        image.resize(image.len().max(end), 0);
        image[at..end].copy_from_slice(bytes);
    }
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file: its segments by address, kind and content.
    fn elf(machine: u16, segments: &[(u64, u32, &[u8])]) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0".to_vec();
        file.extend(machine.to_le_bytes());
        file.resize(0x20, 0);
        file.extend(0x40_u64.to_le_bytes());
        file.resize(0x34, 0);
        let count = u16::try_from(segments.len()).unwrap();
        for half in [0x40_u16, 0x38, count, 0x40, 0, 0] {
            file.extend(half.to_le_bytes());
        }
        let mut content = 0x40 + 0x38 * segments.len() as u64;
        for (at, kind, bytes) in segments {
            let size = bytes.len() as u64;
            file.extend(kind.to_le_bytes());
            file.extend(4_u32.to_le_bytes());
            for word in [content, *at + 0x1_0000, *at, size, size, 4] {
                file.extend(word.to_le_bytes());
            }
            content += size;
        }
        segments.iter().for_each(|(_, _, bytes)| file.extend(*bytes));
        file
    }

    const NOTE: u32 = 4;
    const X86: u16 = 62;
    const ARM: u16 = 183;

    #[test]
    fn a_pvh_kernel_stays_as_it_is() {
        let entry = b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0\0\0\x10\0";
        let file = elf(X86, &[(0x10_0000, PT_LOAD.0, b"text"), (0, NOTE, entry)]);
        assert_eq!(loadable(file.clone()).unwrap(), (Arch::X86_64, file));
    }

    #[test]
    fn a_program_of_this_machine_is_no_kernel() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        assert!(loadable(own).unwrap_err().to_string().contains("no kernel for Xen"));
        assert!(loadable(b"#!/bin/sh".to_vec()).unwrap_err().to_string().contains("neither"));
        let other = elf(243, &[(0, PT_LOAD.0, b"text")]);
        assert!(loadable(other).unwrap_err().to_string().contains("another machine"));
    }

    #[test]
    fn segments_for_arm64_become_an_image() {
        let mut head = vec![0; 64];
        head[MAGIC_AT..MAGIC_AT + 4].copy_from_slice(MAGIC);
        // Out of order, with a hole, and with what is not loaded.
        let file = elf(
            ARM,
            &[(0x4008_0050, PT_LOAD.0, b"data"), (0, NOTE, b"note"), (0x4008_0000, PT_LOAD.0, &head)],
        );
        let (arch, image) = loadable(file).unwrap();
        assert_eq!(arch, Arch::Arm64);
        assert_eq!(image.len(), 0x54);
        assert_eq!((&image[..64], &image[64..0x50], &image[0x50..]), (&head[..], &[0; 16][..], &b"data"[..]));
        // And that is what Xen loads.
        assert_eq!(loadable(image.clone()).unwrap(), (Arch::Arm64, image));
    }

    #[test]
    fn what_cannot_be_flattened_is_refused() {
        let refused = |segments: &[_]| loadable(elf(ARM, segments)).unwrap_err().to_string();
        assert!(refused(&[(0, PT_LOAD.0, b"text")]).contains("Image's header"));
        assert!(refused(&[]).contains("nothing to load"));
        assert!(refused(&[(0, PT_LOAD.0, b"a"), (1 << 40, PT_LOAD.0, b"b")]).contains("too far"));
        let mut cut = elf(ARM, &[(0, PT_LOAD.0, b"text")]);
        cut.pop();
        assert!(loadable(cut).is_err());
    }
}
