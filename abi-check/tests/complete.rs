//! Every type and constant of the SDK's `abi` modules, and of what wraps them, is in a table: what is not is not checked.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Where the SDK says what the headers say; folders with all that is in them.
const SOURCES: &[&str] = &[
    "xen-hypercall/src/abi",
    "xen-hypercall/src/errno.rs",
    "xen-hypercall/src/hvm.rs",
    "xen-hypercall/src/memory.rs",
    "xen-hypercall/src/sched.rs",
    "xen-hypercall/src/types.rs",
    "xen-hypercall/src/version.rs",
    "xen-evtchn/src/abi.rs",
    "xen-evtchn/src/port.rs",
    "xen-gnttab/src/abi.rs",
    "xen-gnttab/src/status.rs",
    "xen-ring/src/header.rs",
    "xen-ring/src/stream.rs",
    "xen-xenstore/src/wire.rs",
    "xen-xenstore/src/xenbus/state.rs",
    "xen-netfront/src/abi.rs",
    "xen-blkfront/src/abi.rs",
];

/// What the headers do not define, and what it is instead.
const NOT_OF_THE_HEADERS: &[(&str, &str)] = &[
    ("ABI", "one of the two that are checked, for this architecture"),
    ("BuildId", "bytes that Xen filled in"),
    ("ByteRing", "one end of a page with two streams"),
    ("CompileInfo", "four texts in one"),
    ("Ctrl", "names the records of a ring"),
    ("EINTR", "Xen's own, never told to a guest: the headers have it for Xen alone"),
    ("ERESTART", "Xen's own, as EINTR"),
    ("EXTRA_TYPE_XDP", "in Linux's copy of the header alone"),
    ("IN_USE", "two flags in one"),
    ("MAX", "as many as fit what Xen fills in"),
    ("MAX_RING_ORDER", "what Linux's backend takes"),
    ("MemoryRange", "an entry of the BIOS's memory map; the headers name that as its definition"),
    ("NONE", "no flag at all"),
    ("PAGE_SIZE", "Xen's unit on every architecture; the headers say so in prose"),
    ("Page", "a page's memory"),
    ("RING_SLOTS", "follows from the request's size"),
    ("Reversed", "a page from the other side"),
    ("Rx", "names the records of a ring"),
    ("SECTOR", "the headers say it in prose"),
    ("SEGMENTS_PER_PAGE", "follows from the segment's size"),
    ("Text", "characters that Xen filled in"),
    ("Tx", "names the records of a ring"),
    ("TxExtra", "an ExtraInfo in a longer slot"),
    ("WatchdogId", "a number that Xen chose"),
    ("Uuid", "16 bytes"),
];

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a member of the workspace")
}

fn files(path: &Path) -> Vec<PathBuf> {
    if !path.is_dir() {
        return vec![path.to_owned()];
    }
    let entries = fs::read_dir(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    entries.flat_map(|entry| files(&entry.expect("a readable folder").path())).collect()
}

fn text(path: &Path) -> String {
    let read = |file: PathBuf| {
        fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
    };
    files(path).into_iter().map(read).collect()
}

/// The word at the beginning.
fn word(text: &str) -> &str {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default()
}

/// What a line defines: a public constant or structure, a flag, or an entry of a macro's list of numbers.
fn defined(line: &str) -> Option<&str> {
    let line = line.trim_start();
    if let Some(rest) = line.strip_prefix("pub const ") {
        return Some(word(rest)).filter(|name| !matches!(*name, "" | "_" | "fn" | "unsafe"));
    }
    if let Some(rest) = line.strip_prefix("const ") {
        // A flag has no type of its own; what has one is private.
        let name = word(rest);
        return rest[name.len()..].starts_with(" = ").then_some(name).filter(|name| *name != "_");
    }
    if let Some(rest) = line.strip_prefix("pub struct ") {
        return Some(word(rest)).filter(|name| !name.is_empty());
    }
    let name = word(line);
    let value = line.get(name.len()..)?.strip_prefix(" = ")?.trim_start_matches('-');
    let is_entry =
        name.starts_with(|c: char| c.is_ascii_uppercase()) && value.starts_with(|c: char| c.is_ascii_digit());
    is_entry.then_some(name)
}

fn words(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect()
}

/// The names of `source` that are neither in the tables nor excepted.
fn forgotten<'a>(source: &'a str, tables: &str) -> Vec<&'a str> {
    let tables = words(tables);
    let excepted = |name: &str| NOT_OF_THE_HEADERS.iter().any(|(known, _)| *known == name);
    // Tests at a file's end define no interface.
    let source = source.split("#[cfg(test)]").next().unwrap_or_default();
    source.lines().filter_map(defined).filter(|name| !tables.contains(name) && !excepted(name)).collect()
}

#[test]
fn every_type_and_constant_is_in_a_table() {
    let tables = text(&workspace().join("abi-check/src/tables"));
    let mut all = Vec::new();
    for source in SOURCES {
        for file in files(&workspace().join(source)) {
            let source = text(&file);
            assert!(
                source.lines().any(|line| defined(line).is_some() || line.contains("mod ")),
                "nothing in {file:?}"
            );
            all.extend(
                forgotten(&source, &tables).into_iter().map(|name| format!("{}: {name}", file.display())),
            );
        }
    }
    assert!(all.is_empty(), "not in a table of abi-check:\n{}", all.join("\n"));
}

#[test]
fn a_forgotten_one_is_found() {
    let source = "pub const KNOWN: u32 = 1;\n    NEW_NUMBER = 7;\npub struct NewType {\n  const NEW_FLAG = 1 << 3;\n const _ = !0;\n\
                  wire! {\n    NewWire = 8 { a: u64, }\n}\npub const fn f() {}\n";
    assert_eq!(
        forgotten(source, "consts!(list, abi { KNOWN })"),
        ["NEW_NUMBER", "NewType", "NEW_FLAG", "NewWire"]
    );
}
