//! The tests, and the files of tests, that the documents name are there.

use std::fs;
use std::path::{Path, PathBuf};

/// The `file::name` pairs in backquotes.
fn named(text: &str) -> Vec<(&str, &str)> {
    quoted(text).filter_map(|word| word.split_once(".rs::")).collect()
}

/// The files of Rust in backquotes.
fn files(text: &str) -> Vec<&str> {
    quoted(text).filter(|word| word.ends_with(".rs") && !word.contains(char::is_whitespace)).collect()
}

fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// All files of Rust below a folder.
fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a folder of the workspace") {
        let path = entry.expect("an entry").path();
        if path.is_dir() && !path.ends_with("target") && !path.ends_with(".git") {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

/// A document below `docs`, and the workspace's files of Rust.
fn document(name: &str) -> (String, Vec<PathBuf>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace");
    let text = fs::read_to_string(root.join("docs").join(name)).expect("a document");
    let mut found = Vec::new();
    sources(root, &mut found);
    (text, found)
}

fn assert_tests_exist(name: &str, least: usize) {
    let (text, files) = document(name);
    let named = named(&text);
    assert!(named.len() >= least, "docs/{name} names {} tests only", named.len());
    for (file, test) in named {
        let ending = format!("{file}.rs");
        let (function, attribute) = (format!("fn {test}("), "#[test]");
        let is_there = files.iter().filter(|path| path.ends_with(&ending)).any(|path| {
            fs::read_to_string(path)
                .is_ok_and(|source| source.contains(&function) && source.contains(attribute))
        });
        assert!(is_there, "docs/{name} names {file}.rs::{test}, which is not there");
    }
}

#[test]
fn every_test_that_the_security_document_names_exists() {
    assert_tests_exist("security.md", 150);
}

#[test]
fn every_test_and_file_that_the_testing_document_names_exists() {
    assert_tests_exist("testing.md", 0);
    let (text, found) = document("testing.md");
    let named = files(&text);
    assert!(!named.is_empty(), "docs/testing.md names no files");
    for file in named {
        // Some are named as a crate has them, some from the top.
        assert!(
            found.iter().any(|path| path.ends_with(file)),
            "docs/testing.md names {file}, which is not there"
        );
    }
}

#[test]
fn pairs_and_files_are_found_in_backquotes() {
    assert_eq!(named("see `a/b.rs::c`, `x`, and `d.rs::e`"), [("a/b", "c"), ("d", "e")]);
    assert_eq!(files("see `a/b.rs::c`, `a/b.rs`, c.rs and `x`"), ["a/b.rs"]);
}
