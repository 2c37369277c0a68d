//! Copies a file through a paravirtual disk, on the host: the guest, its backend and Xen between them are mocks, the file that
//! is written is the disk.
//!
//! `cargo run -p xen-blkfront --example copy SRC DST`; without names it copies eight mebibytes of its own.

use std::error::Error;
use std::fs::File;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use xen_blkfront::mock::{MockBlkback, Options};
use xen_blkfront::{BlkFront, Config, Stats, Ticket};
use xen_evtchn::EventChannels;
use xen_gnttab::GrantTable;
use xen_hypercall::DomId;
use xen_hypercall::mock::{MockDomain, MockXen};
use xen_xenstore::Xenstore;
use xen_xenstore::mock::MockXenstored;

const SECTOR: usize = 512;
/// Operations under way at once.
const DEPTH: usize = 4;

type Guest<'x> = BlkFront<'x, MockDomain>;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let done = match args.as_slice() {
        [from, to] if from != to => copy(Path::new(from), Path::new(to)),
        [] => {
            println!("usage: copy SRC DST; without, this copies a file of its own");
            of_its_own()
        }
        _ => {
            eprintln!("usage: copy SRC DST, two different files");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("copy: {error}");
            ExitCode::FAILURE
        }
    }
}

fn of_its_own() -> Result<(), Box<dyn Error>> {
    let place = std::env::temp_dir().join(format!("xen-blkfront-copy-{}", std::process::id()));
    std::fs::create_dir(&place)?;
    let (from, to) = (place.join("from"), place.join("to"));
    let bytes: Vec<u8> = (0..8 << 20).map(|i: u32| (i.wrapping_mul(0x9E37_79B1) >> 24) as u8).collect();
    let done = std::fs::write(&from, bytes).map_err(Into::into).and_then(|()| copy(&from, &to));
    std::fs::remove_dir_all(&place)?;
    done
}

fn copy(from: &Path, to: &Path) -> Result<(), Box<dyn Error>> {
    let data = std::fs::read(from).map_err(|error| format!("{}: {error}", from.display()))?;
    let file = File::options().read(true).write(true).create(true).truncate(true).open(to);
    let file = file.map_err(|error| format!("{}: {error}", to.display()))?;
    if data.is_empty() {
        println!("nothing to copy");
        return Ok(());
    }
    // A disk has whole sectors; what the last one has too much is cut off at the end.
    file.set_len(data.len().next_multiple_of(SECTOR) as u64)?;
    let started = Instant::now();
    let stats = through_a_disk(&data, file.try_clone()?)?;
    let taken = started.elapsed();
    file.set_len(data.len() as u64)?;
    if std::fs::read(to)? != data {
        return Err("the copy differs from the file".into());
    }
    let mib = data.len() as f64 / f64::from(1 << 20);
    println!(
        "{} bytes written, read back and equal ({:.1} MiB/s)",
        data.len(),
        2.0 * mib / taken.as_secs_f64()
    );
    for (what, count) in [
        ("operations", stats.operations),
        ("requests", stats.requests),
        ("of those indirect", stats.indirect),
        ("segments", stats.segments),
        ("merged", stats.merged),
        ("notifications", stats.notifications),
        ("bytes copied", stats.bytes_copied),
        ("errors", stats.errors),
    ] {
        println!("{count:>12} {what}");
    }
    Ok(())
}

/// A guest with a disk in `file`: writes the data, flushes, reads all of it again and compares.
fn through_a_disk(data: &[u8], file: File) -> Result<Stats, Box<dyn Error>> {
    let xen = MockXen::new();
    xen_evtchn::mock::install(&xen);
    xen_gnttab::mock::install(&xen);
    let store = MockXenstored::new(&xen);
    let guest = xen.domain(DomId(1));
    store.connect(&guest);
    let backend = MockBlkback::with_file(&store, &guest, 51712, Options::everything(), file)?;

    let token = guest.boot()?;
    let events = EventChannels::new(&token)?;
    let grants = GrantTable::new(&token)?;
    let mut xs = Xenstore::new(&events)?;
    let deadline = xs.now() + core::time::Duration::from_secs(5);
    // Pages for as many operations as are under way, and for their segments.
    let config = Config { pages: DEPTH * 257, ..Config::default() };
    let mut disk = BlkFront::connect_with(&mut xs, &events, &grants, 51712, deadline, config)?;

    let size = disk.request_sectors() as usize * SECTOR;
    let mut sectors = data.to_vec();
    sectors.resize(data.len().next_multiple_of(SECTOR), 0);
    let mut queue: std::collections::VecDeque<(Ticket, usize, usize)> = Default::default();
    for (index, part) in sectors.chunks(size).enumerate() {
        if queue.len() == DEPTH {
            finish(&mut disk, queue.pop_front(), &mut [])?;
        }
        queue.push_back((disk.submit_write((index * size / SECTOR) as u64, part)?, 0, 0));
        disk.publish()?;
    }
    while !queue.is_empty() {
        finish(&mut disk, queue.pop_front(), &mut [])?;
    }
    disk.flush()?;

    let mut read = vec![0; sectors.len()];
    for (index, part) in sectors.chunks(size).enumerate() {
        if queue.len() == DEPTH {
            finish(&mut disk, queue.pop_front(), &mut read)?;
        }
        let (at, len) = (index * size, part.len());
        queue.push_back((disk.submit_read((at / SECTOR) as u64, (len / SECTOR) as u64)?, at, len));
        disk.publish()?;
    }
    while !queue.is_empty() {
        finish(&mut disk, queue.pop_front(), &mut read)?;
    }
    let stats = disk.stats();
    disk.close(&mut xs, deadline)?;
    if read != sectors {
        return Err("what was read is not what was written".into());
    }
    match backend.complaints().first() {
        Some(complaint) => Err(format!("the backend complains: {complaint}").into()),
        None => Ok(stats),
    }
}

/// Waits for one operation; what it read goes to its place.
fn finish(
    disk: &mut Guest<'_>,
    operation: Option<(Ticket, usize, usize)>,
    read: &mut [u8],
) -> Result<(), Box<dyn Error>> {
    let Some((ticket, at, len)) = operation else { return Ok(()) };
    Ok(disk.wait(ticket, read.get_mut(at..at + len).unwrap_or_default())?)
}
