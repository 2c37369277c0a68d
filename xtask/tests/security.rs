//! The tests that docs/security.md names are there.

use std::fs;
use std::path::{Path, PathBuf};

/// The `file::name` pairs in backquotes.
fn named(text: &str) -> Vec<(&str, &str)> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter_map(|word| word.split_once(".rs::")).collect()
}

/// All files of Rust below a folder.
fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a folder of the workspace") {
        let path = entry.expect("an entry").path();
        if path.is_dir() && !path.ends_with("target") {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_test_that_the_security_document_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace");
    let text = fs::read_to_string(root.join("docs/security.md")).expect("docs/security.md");
    let mut files = Vec::new();
    for crate_name in fs::read_dir(root).expect("the workspace").flatten() {
        if crate_name.file_name().to_string_lossy().starts_with("xen-") {
            sources(&crate_name.path(), &mut files);
        }
    }
    let named = named(&text);
    assert!(named.len() > 30, "only {} tests are named", named.len());
    for (file, test) in named {
        let ending = format!("{file}.rs");
        let is_there = files
            .iter()
            .filter(|path| path.ends_with(&ending))
            .any(|path| fs::read_to_string(path).is_ok_and(|source| source.contains(&format!("fn {test}("))));
        assert!(is_there, "docs/security.md names {file}.rs::{test}, which is not there");
    }
}

#[test]
fn pairs_are_found_in_backquotes() {
    assert_eq!(named("see `a/b.rs::c`, `x`, and `d.rs::e`"), [("a/b", "c"), ("d", "e")]);
}
