//! Figures of a disk, from and to pages of the caller's own. A line for each, to be read by a program:
//! `block rand-read-4k depth=32 ops=4000 bytes=16384000 us=123456 requests=4000 notifications=200 hypercalls=700`.
//!
//! `bench=KIND` on the command line measures only those whose name contains it, `ops=PERCENT` makes more or fewer
//! operations than usual.

use alloc::vec::Vec;

use check_report::Words;
use check_report::{Failure, Report, ensure};
use load::{CHANCE, JOBS, Job, next_place};
use xen_blkfront::{BlkFront, Config, Piece, Ticket};
use xen_gnttab::Access;
use xen_hypercall::{PAGE_SIZE, Wait};

use crate::block::{Disk, XVDA};
use crate::pattern::SECTOR;
use crate::place::{Place, Xen};

/// Pages of one operation.
type Buffer = Vec<Option<Piece<'static, Xen>>>;

/// Pages that are lent in turns. A backend keeps about a thousand mapped, and no more are used, so that it need not change
/// them.
const PAGES: usize = 1024;

/// Measures, and closes the disk.
pub(crate) fn run(place: &mut Place, words: &Words, report: &Report) -> Result<(), Failure> {
    let percent: u32 = words.get("ops").map_or(Ok(100), str::parse)?;
    let config = Config { requests: 64, pages: PAGES + 16, ..Config::default() };
    let deadline = place.soon();
    let mut disk = BlkFront::connect_with(&mut place.xs, place.events, place.grants, XVDA, deadline, config)?;
    let mut pages: Buffer = Vec::new();
    for _ in 0..PAGES {
        pages.push(Some(Piece::whole(place.grants.share(disk.backend_id(), Access::ReadWrite)?)));
    }
    let chosen = words.get("bench").unwrap_or_default();
    for job in JOBS.iter().filter(|job| job.name.contains(chosen)) {
        let ops = (u64::from(job.ops) * u64::from(percent) / 100).max(1);
        measure(place, &mut disk, job, ops, &mut pages, report)?;
    }
    let deadline = place.soon();
    Ok(disk.close(&mut place.xs, deadline)?)
}

/// Runs a job, and prints what it took. The pages are the same afterwards.
fn measure(
    place: &Place,
    disk: &mut Disk,
    job: &Job,
    ops: u64,
    pages: &mut Buffer,
    report: &Report,
) -> Result<(), Failure> {
    let sectors = (job.size / SECTOR) as u64;
    let places = disk.capacity() / sectors;
    ensure!(places > 0, "{}: the disk is too small", job.name);
    let count = job.size / PAGE_SIZE;
    let mut idle: Vec<Buffer> =
        (0..job.depth).map(|_| pages.split_off(pages.len().saturating_sub(count))).collect();
    let mut busy: Vec<(Ticket, Buffer)> = Vec::new();
    let mut chance = CHANCE;
    let (mut asked, mut done) = (0, 0);
    let (before, calls, start) = (disk.stats(), place.kernel.hypercalls(), place.kernel.now());
    while done < ops {
        while asked < ops {
            let Some(mut buffer) = idle.pop() else { break };
            let at = if job.random { next_place(&mut chance) } else { asked } % places * sectors;
            let ticket = if job.writes {
                disk.submit_write_from(at, &mut buffer)?
            } else {
                disk.submit_read_into(at, &mut buffer)?
            };
            busy.push((ticket, buffer));
            asked += 1;
        }
        disk.publish()?;
        place.response(disk, busy.len() as u32 / 2)?;
        let mut index = 0;
        while let Some((ticket, buffer)) = busy.get_mut(index) {
            match disk.take_pages(*ticket, buffer) {
                None => index += 1,
                Some(result) => {
                    idle.push(busy.swap_remove(index).1);
                    result?;
                    done += 1;
                }
            }
        }
    }
    let (took, after) = (place.kernel.now() - start, disk.stats());
    report.note(format_args!(
        "block {} depth={} ops={ops} bytes={} us={} requests={} notifications={} hypercalls={}",
        job.name,
        job.depth,
        ops * job.size as u64,
        took.as_micros(),
        after.requests - before.requests,
        after.notifications - before.notifications,
        place.kernel.hypercalls() - calls
    ));
    pages.extend(idle.into_iter().flatten());
    Ok(())
}
