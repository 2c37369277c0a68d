//! The disk that the unikernel serves where the user has none: this workspace's own documentation.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::image::{self, workspace};
use crate::{check, fat};

/// A disk with this workspace's README and documentation, made anew only when they changed.
pub(super) fn disk() -> Result<PathBuf> {
    let mut cargo = image::cargo();
    let target = image::out_dir()?.join("doc");
    cargo.args(["doc", "--no-deps", "--all-features", "--package", "webserver"]);
    for library in check::LIBRARIES {
        cargo.args(["--package", library]);
    }
    cargo.arg("--target-dir").arg(&target);
    if !cargo.status().context("cannot start cargo")?.success() {
        bail!("the documentation does not build; cargo says why above");
    }
    let mut files = BTreeMap::new();
    collect(&target.join("doc"), "doc", &mut files)?;
    let readme = fs::read(workspace().join("README.md")).context("cannot read README.md")?;
    files.insert("README.md".to_owned(), readme);
    files.insert("index.html".to_owned(), front_page(&files).into_bytes());
    let disk = image::out_dir()?.join("disk.img");
    let key = fingerprint(&files);
    let key_file = disk.with_extension("key");
    if disk.is_file() && fs::read_to_string(&key_file).is_ok_and(|old| old == key) {
        return Ok(disk);
    }
    let bar = ProgressBar::new(files.len() as u64).with_message("making the disk");
    if let Ok(style) = ProgressStyle::with_template("{msg} {bar:40} {pos}/{len} files") {
        bar.set_style(style);
    }
    fat::sized(&disk, &files, &bar)?;
    bar.finish_and_clear();
    fs::write(&key_file, key)?;
    Ok(disk)
}

/// All files below a folder, by their path.
fn collect(dir: &Path, name: &str, files: &mut BTreeMap<String, Vec<u8>>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        let path = format!("{name}/{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), &path, files)?;
        } else if !entry.file_name().to_string_lossy().starts_with('.') {
            files.insert(path, fs::read(entry.path())?);
        }
    }
    Ok(())
}

fn front_page(files: &BTreeMap<String, Vec<u8>>) -> String {
    let crates = files.keys().filter_map(|path| path.strip_prefix("doc/")?.strip_suffix("/index.html"));
    let crates = crates.filter(|name| !name.contains('/') && *name != "src");
    let list: String =
        crates.map(|name| format!("<li><a href=\"/doc/{name}/index.html\">{name}</a>\n")).collect();
    format!(
        "<!DOCTYPE html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>A unikernel on Xen</title><style>body{{font:18px/1.6 system-ui,sans-serif;max-width:42rem;\
         margin:3rem auto;padding:0 1rem;color:#1b1f24}}a{{color:#0b57d0}}</style>\n\
         <h1>It works</h1><p>This page comes from a unikernel in Rust that runs straight on Xen: its own TCP, its own file \
         system, no operating system below.</p>\n<p><a href=\"/-/status\">How it does</a> &middot; \
         <a href=\"/README.md\">README</a></p>\n<h2>The crates it is made of</h2><ul>\n{list}</ul></html>\n"
    )
}

fn fingerprint(files: &BTreeMap<String, Vec<u8>>) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    files.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}
