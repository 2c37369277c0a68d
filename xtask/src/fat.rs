//! FAT disks for the guest: one file system, no partition table.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use fatfs::{FatType, FormatVolumeOptions, FsOptions};
use indicatif::ProgressBar;

const MIB: u64 = 1 << 20;

/// Makes a disk image of `mib` MiB (at least 16) with these files; folders on their paths are made.
pub fn image(path: &Path, mib: u64, files: &[(&str, &[u8])]) -> Result<()> {
    let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
    write(path, mib * MIB, &files, &ProgressBar::hidden())
}

/// Makes a disk image large enough for everything in `files`, with as much room again.
pub fn sized(path: &Path, files: &BTreeMap<String, Vec<u8>>, bar: &ProgressBar) -> Result<()> {
    // Each file wastes up to a cluster.
    let bytes: u64 = files.values().map(|bytes| bytes.len() as u64 + 16 * 1024).sum();
    write(path, (bytes * 2).next_multiple_of(MIB).max(32 * MIB), files, bar)
}

/// When a file in the topmost folder was written last: year, month, day, hour, minute, second.
pub(crate) fn modified(path: &Path, name: &str) -> Result<[u16; 6]> {
    // Of a copy: the disk is in use.
    let disk = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let system = fatfs::FileSystem::new(std::io::Cursor::new(disk), FsOptions::new())?;
    for entry in system.root_dir().iter() {
        let entry = entry?;
        if entry.file_name() == name {
            let fatfs::DateTime { date, time } = entry.modified();
            return Ok([date.year, date.month, date.day, time.hour, time.min, time.sec]);
        }
    }
    bail!("no {name} on {}", path.display())
}

fn write(path: &Path, size: u64, files: &BTreeMap<String, Vec<u8>>, bar: &ProgressBar) -> Result<()> {
    // A half-written disk must not be taken for a whole one.
    let partial = path.with_extension("partial");
    let made = fill(&partial, size, files, bar);
    made.with_context(|| format!("cannot make the disk {}", path.display()))?;
    fs::rename(&partial, path).with_context(|| format!("cannot create {}", path.display()))
}

fn fill(path: &Path, size: u64, files: &BTreeMap<String, Vec<u8>>, bar: &ProgressBar) -> Result<()> {
    let disk = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
    disk.set_len(size)?;
    let kind = if size > 1024 * MIB { FatType::Fat32 } else { FatType::Fat16 };
    let mut options = FormatVolumeOptions::new().fat_type(kind).volume_label(*b"UNIKERNEL  ");
    if kind == FatType::Fat16 {
        // Large ones, of which a file has fewer; but so many that the disk is not taken for one of FAT12.
        options = options.bytes_per_cluster((1 << (size / 8192).ilog2()).clamp(2048, 32768));
    }
    let mut cached = fscommon::BufStream::new(disk);
    fatfs::format_volume(&mut cached, options)?;
    let system = fatfs::FileSystem::new(cached, FsOptions::new())?;
    bar.set_length(files.len() as u64);
    for (name, bytes) in files {
        let mut dir = system.root_dir();
        let mut parts: Vec<&str> = name.split('/').filter(|part| !part.is_empty()).collect();
        let last = parts.pop().context("a file without a name")?;
        for part in parts {
            dir = dir.create_dir(part)?;
        }
        let mut file = dir.create_file(last)?;
        file.truncate()?;
        file.write_all(bytes)?;
        bar.inc(1);
    }
    system.unmount()?;
    let file = File::open(path)?;
    file.sync_all()?;
    Ok(())
}
