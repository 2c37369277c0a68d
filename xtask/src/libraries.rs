//! The shared libraries that a program of the packages loads, as the program says: nothing is run, so it may be a program for
//! another machine.

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;

use anyhow::{Context, Result};
use object::elf::{DT_NEEDED, FileHeader64};
use object::read::elf::FileHeader;

/// All libraries that a program below `root` needs, and those that they need, by their paths below `root`. `folder` is the one
/// of the architecture's libraries, below `lib` and `usr/lib`.
pub(crate) fn of(root: &Path, folder: &str, program: &str) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let mut open = VecDeque::from([program.to_owned()]);
    while let Some(path) = open.pop_front() {
        let file = root.join(&path);
        let bytes = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let names = needed(&bytes).with_context(|| format!("cannot read {} as a program", file.display()))?;
        for name in names {
            let place = ["lib", "usr/lib"].map(|dir| format!("{dir}/{folder}/{name}"));
            let place = place.into_iter().find(|place| root.join(place).is_file());
            let place =
                place.with_context(|| format!("{path} needs {name}, which is in none of the packages"))?;
            if found.insert(place.clone()) {
                open.push_back(place);
            }
        }
    }
    Ok(found)
}

/// The names of the libraries that an ELF file asks for. One that is linked statically asks for none.
fn needed(file: &[u8]) -> Result<Vec<String>> {
    let header = FileHeader64::<object::Endianness>::parse(file)?;
    let endian = header.endian()?;
    let table = header.sections(endian, file)?.dynamic_table(endian, file)?;
    let names = table.iter().filter(|entry| entry.tag == DT_NEEDED);
    names.map(|entry| Ok(String::from_utf8_lossy(table.string(entry)?).into_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_needs_the_c_library() {
        let own = std::fs::read("/proc/self/exe").expect("this program");
        let names = needed(&own).expect("a program");
        assert!(names.iter().any(|name| name.starts_with("libc.so.")), "{names:?}");
        assert!(needed(b"#!/bin/sh").is_err());
    }

    #[test]
    fn a_library_that_is_nowhere_is_named() {
        let root = std::env::current_exe().expect("this program");
        let root = root.parent().expect("a folder");
        let name = std::env::current_exe().expect("this program");
        let name = name.file_name().expect("a name").to_string_lossy().into_owned();
        let error = of(root, "nowhere", &name).expect_err("no libraries there");
        assert!(error.to_string().contains(&format!("{name} needs lib")), "{error}");
    }
}
