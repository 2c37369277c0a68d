//! Every seed, and everything that was found before, on stable Rust.
//!
//! The seeds in `corpus` are written by these tests: `UPDATE_SEEDS=1 cargo test` after a change of the inputs.

use std::fs;
use std::path::{Path, PathBuf};

use xen_fuzz::{TARGETS, Target};

fn dir(kind: &str, target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(kind).join(target.name)
}

/// What is in a directory, by name.
fn files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut files: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files
}

#[test]
fn the_corpus_is_what_the_targets_begin_with() {
    let update = std::env::var_os("UPDATE_SEEDS").is_some();
    for target in TARGETS {
        let dir = dir("corpus", target);
        if update {
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir_all(&dir).expect("a directory for seeds");
        }
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty());
        for (name, bytes) in &seeds {
            let path = dir.join(name);
            if update {
                fs::write(&path, bytes).expect("a seed written");
            }
            let is = fs::read(&path).unwrap_or_default();
            assert!(is == *bytes, "{} is another: run UPDATE_SEEDS=1 cargo test", path.display());
        }
        assert_eq!(files(&dir).len(), seeds.len(), "{}: seeds of none", dir.display());
    }
}

#[test]
fn seeds_do_what_they_say() {
    for target in TARGETS {
        for (name, bytes) in (target.seeds)() {
            println!("{}: {name}", target.name);
            (target.run)(&bytes);
        }
    }
}

#[test]
fn what_was_found_does_not_come_back() {
    for target in TARGETS {
        for path in files(&dir("regressions", target)) {
            println!("{}", path.display());
            (target.run)(&fs::read(&path).expect("a readable file"));
        }
    }
}

/// Seeds with some bytes changed, the same every time: a fuzzer's first minute, for those who have none.
#[test]
fn bytes_changed_at_random_are_no_more_than_other_inputs() {
    for target in TARGETS {
        let dice = xen_hypercall::mock::Dice::new(1);
        for (name, bytes) in (target.seeds)() {
            for round in 0..20 {
                let mut bytes = bytes.clone();
                for _ in 0..1 + dice.below(8) {
                    let at = dice.below(bytes.len() as u64) as usize;
                    bytes[at] = dice.next_u64() as u8;
                }
                println!("{}: {name}, {round}", target.name);
                (target.run)(&bytes);
            }
        }
    }
}
