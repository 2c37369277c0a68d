//! Disks: `xvda`, which is written, grows, loses its backend and is unplugged; `xvdb`, which is read-only; `xvdc`, whose
//! sectors are large, and whose backend is not trusted; `xvdd`, some of whose sectors are bad.

mod bad;
mod data;
mod life;
pub(crate) mod lives;
mod model;
#[cfg(target_arch = "x86_64")]
mod vcpus;

use alloc::format;
use alloc::string::String;

use check_report::{Failure, Report, ensure};
use xen_blkfront::{BlkFront, Config, Error};

use crate::place::{PATIENCE, Place, Xen};
use model::Model;

pub(crate) type Disk = BlkFront<'static, Xen>;

pub(crate) const XVDA: u32 = 51712;
const XVDB: u32 = XVDA + 16;
const XVDC: u32 = XVDA + 32;
const XVDD: u32 = XVDA + 48;

/// As much as there may be of everything.
const EVERYTHING: Config = Config {
    requests: 256,
    pages: 1024,
    segments: 256,
    ring_pages: 16,
    queues: 4,
    persistent: true,
    timeout: PATIENCE,
};
/// What the first backends could do.
const LITTLE: Config = Config {
    requests: 32,
    pages: 64,
    segments: 11,
    ring_pages: 1,
    queues: 1,
    persistent: false,
    timeout: PATIENCE,
};

/// Runs all checks.
pub(crate) fn run(place: &mut Place, report: &mut Report) {
    let mut model = Model::new();
    let Some(mut disk) = connect(place, report, "block/connect", EVERYTHING) else { return };
    negotiated(place, &disk, report);
    data::run(place, &mut disk, &mut model, report);
    #[cfg(target_arch = "x86_64")]
    vcpus::run(place, &mut disk, report);
    life::close(place, disk, report, "block/close");
    let Some(mut disk) = connect(place, report, "block/open-again", LITTLE) else { return };
    report.check("block/one-ring-of-one-page", || {
        ensure!(disk.queues() == 1 && disk.ring_slots() == 32, "{} slots", disk.ring_slots());
        ensure!(!disk.is_persistent() && disk.request_sectors() == 88, "{} sectors", disk.request_sectors());
        Ok(())
    });
    report.check("block/what-was-written-is-there", || model.check_all(&mut disk));
    data::small(place, &mut disk, &mut model, report);
    life::close(place, disk, report, "block/close-again");
    life::read_only(place, report);
    life::large_and_untrusted(place, report);
    bad::run(place, report);
    let Some(mut disk) = connect(place, report, "block/open-once-more", EVERYTHING) else { return };
    life::run(place, &mut disk, &mut model, report);
    report.check("block/last-words", || {
        disk.write(0, &model.next(0, LAST))?;
        Ok(disk.flush()?)
    });
    report.note(format_args!("written: {LAST} sectors, round {}", model.round(0)));
    life::close(place, disk, report, "block/close-at-last");
}

/// Sectors that dom0 compares at the end; all have seen the same number of rounds then.
const LAST: u64 = 4096;

fn connect(place: &mut Place, report: &mut Report, name: &str, config: Config) -> Option<Disk> {
    let mut disk = None;
    report.check(name, || {
        disk = Some(open(place, XVDA, config)?);
        Ok(())
    });
    disk
}

fn open(place: &mut Place, index: u32, config: Config) -> Result<Disk, Error> {
    let deadline = place.soon();
    BlkFront::connect_with(&mut place.xs, place.events, place.grants, index, deadline, config)
}

/// What the backend says of `xvda`.
fn offers(place: &mut Place, node: &str) -> u64 {
    let number = |place: &mut Place| -> Result<u64, Failure> {
        let backend = String::from(place.xs.read_str(&format!("device/vbd/{XVDA}/backend"))?);
        Ok(place.xs.read_str(&format!("{backend}/{node}"))?.parse()?)
    };
    number(place).unwrap_or(0)
}

/// Whether each thing that the backend offers is made use of.
fn negotiated(place: &mut Place, disk: &Disk, report: &mut Report) {
    let (queues, slots) = (disk.queues() as u64, disk.ring_slots() as u64);
    report.note(format_args!(
        "xvda: {queues} queues, {slots} slots, {} sectors a request, {} sectors of {} bytes ({} physical)",
        disk.request_sectors(),
        disk.capacity(),
        disk.sector_size(),
        disk.physical_sector_size()
    ));
    let order = offers(place, "max-ring-page-order");
    let most = offers(place, "multi-queue-max-queues");
    let segments = offers(place, "feature-max-indirect-segments");
    let granularity = offers(place, "discard-granularity");
    let discard = disk.discard();
    for (name, node, used) in [
        ("queues", "multi-queue-max-queues", most > 1 && queues == most.min(4)),
        ("ring-pages", "max-ring-page-order", slots == queues * (32 << order.min(4))),
        (
            "indirect-requests",
            "feature-max-indirect-segments",
            disk.request_sectors() == segments.min(256) * 8,
        ),
        ("persistent-grants", "feature-persistent", disk.is_persistent()),
        ("flush", "feature-flush-cache", disk.can_flush()),
        (
            "discard",
            "feature-discard",
            discard.is_some_and(|discard| discard.granularity * 512 == granularity),
        ),
        ("secure-discard", "discard-secure", discard.is_some_and(|discard| discard.secure)),
    ] {
        let name = format!("block/{name}");
        match offers(place, node) {
            0 => report.lacking(&name, &format!("the backend offers no {node}")),
            offered => report.check(&name, || {
                ensure!(used, "the backend offers {node} = {offered}, and it is not in use");
                Ok(())
            }),
        }
    }
}
