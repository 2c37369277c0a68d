//! What goes to the disk and comes back.

use alloc::vec;
use alloc::vec::Vec;

use check_report::{Failure, Report, ensure};
use xen_blkfront::{Piece, Ticket};
use xen_gnttab::Access;
use xen_hypercall::PAGE_SIZE;

use super::model::{Model, SECTORS};
use super::{Disk, EVERYTHING};
use crate::pattern::SECTOR;
use crate::place::{Place, Xen};

/// Where transfers begin, and how many sectors they have: up to 4 MiB, on pages and beside them.
const TRANSFERS: [(u64, u64); 10] = [
    (0, 1),
    (1, 1),
    (7, 3),
    (8, 8),
    (13, 77),
    (100, 89),
    (300, 2048),
    (2351, 2049),
    (4401, 4095),
    (6000, 8192),
];

pub(super) fn run(place: &Place, disk: &mut Disk, model: &mut Model, report: &mut Report) {
    report.check("block/lengths-and-places", || {
        let before = disk.stats();
        for (lba, sectors) in TRANSFERS {
            disk.write(lba, &model.next(lba, sectors))?;
            model.check(disk, lba, sectors)?;
        }
        for (lba, sectors) in TRANSFERS {
            model.check(disk, lba, sectors)?;
        }
        ensure!(disk.stats().indirect > before.indirect, "no request was indirect");
        model.check_all(disk)
    });
    report.check("block/many-at-once", || many(disk, model));
    report.check("block/neighbours-are-merged", || merged(disk, model));
    report.check("block/own-pages", || own_pages(place, disk, model));
    small(place, disk, model, report);
    discard(disk, model, report);
    report.check("block/all-of-it", || model.check_all(disk));
}

/// What the smallest of backends does, too.
pub(super) fn small(place: &Place, disk: &mut Disk, model: &mut Model, report: &mut Report) {
    report.check("block/write-and-flush", || {
        let flushes = disk.stats().flushes;
        disk.write(20, &model.next(20, 5))?;
        disk.flush()?;
        ensure!(disk.stats().flushes > flushes, "the flush was none");
        model.check(disk, 16, 16)
    });
    report.check("block/own-pages-in-parts", || parts(place, disk, model));
    if !disk.has_barrier() {
        let why = if disk.queues() > 1 {
            "there is no order between queues"
        } else {
            "the backend offers no feature-barrier"
        };
        return report.lacking("block/barrier", why);
    }
    report.check("block/barrier", || {
        let mut tickets: Vec<Ticket> = Vec::new();
        for _ in 0..4 {
            tickets.push(disk.submit_write(64, &model.next(64, 8))?);
            tickets.push(disk.submit_barrier(64, &model.next(64, 8))?);
        }
        for ticket in tickets {
            disk.wait(ticket, &mut [])?;
        }
        model.check(disk, 64, 8)
    });
}

/// All places, far from each other, so that nothing is merged.
fn many(disk: &mut Disk, model: &mut Model) -> Result<(), Failure> {
    let count = EVERYTHING.requests as u64;
    let at = |index: u64| index * 37 % count * 32 + 3;
    for _ in 0..3 {
        let mut tickets = Vec::new();
        for index in 0..count {
            tickets.push(disk.submit_write(at(index), &model.next(at(index), 8))?);
        }
        disk.publish()?;
        for ticket in tickets.drain(..) {
            disk.wait(ticket, &mut [])?;
        }
        for index in 0..count {
            tickets.push(disk.submit_read(at(index), 8)?);
        }
        disk.publish()?;
        let mut out = [0; 8 * SECTOR];
        for (index, ticket) in (0..).zip(tickets) {
            disk.wait(ticket, &mut out)?;
            model.expect(at(index), &out)?;
        }
    }
    Ok(())
}

fn merged(disk: &mut Disk, model: &mut Model) -> Result<(), Failure> {
    let before = disk.stats();
    let mut tickets = Vec::new();
    for index in 0..16 {
        tickets.push(disk.submit_write(1000 + index * 8, &model.next(1000 + index * 8, 8))?);
    }
    for ticket in tickets {
        disk.wait(ticket, &mut [])?;
    }
    ensure!(disk.stats().merged > before.merged, "each went by itself");
    model.check(disk, 1000, 128)
}

type Pieces = Vec<Option<Piece<'static, Xen>>>;

/// Waits until an operation's pages are back.
fn back(place: &Place, disk: &mut Disk, ticket: Ticket, pieces: &mut Pieces) -> Result<(), Failure> {
    disk.publish()?;
    loop {
        if let Some(result) = disk.take_pages(ticket, pieces) {
            return Ok(result?);
        }
        place.response(disk, 0)?;
    }
}

fn page(place: &Place, disk: &Disk) -> Result<xen_gnttab::GrantedPage<'static, Xen>, Failure> {
    Ok(place.grants.share(disk.backend_id(), Access::ReadWrite)?)
}

/// A mebibyte out of whole pages, and back into the same.
fn own_pages(place: &Place, disk: &mut Disk, model: &mut Model) -> Result<(), Failure> {
    const COUNT: usize = 256;
    let lba = 14000;
    let data = model.next(lba, (COUNT * 8) as u64);
    let mut pieces: Pieces = Vec::new();
    for bytes in data.chunks(PAGE_SIZE) {
        let mut page = page(place, disk)?;
        page.write_bytes(0, bytes)?;
        pieces.push(Some(Piece::whole(page)));
    }
    let before = disk.stats();
    let ticket = disk.submit_write_from(lba, &mut pieces)?;
    back(place, disk, ticket, &mut pieces)?;
    let there = pieces.iter().flatten().count();
    ensure!(there == COUNT, "{there} pages came back");
    for piece in pieces.iter_mut().flatten() {
        piece.page_mut().write_bytes(0, &[0xee; PAGE_SIZE])?;
    }
    let ticket = disk.submit_read_into(lba, &mut pieces)?;
    back(place, disk, ticket, &mut pieces)?;
    let after = disk.stats();
    ensure!(after.bytes_copied == before.bytes_copied, "bytes were copied");
    ensure!(after.requests - before.requests == 2, "{} requests", after.requests - before.requests);
    let mut out = [0; PAGE_SIZE];
    for (index, piece) in pieces.iter_mut().flatten().enumerate() {
        piece.page_mut().read_bytes(0, &mut out)?;
        model.expect(lba + index as u64 * 8, &out)?;
    }
    Ok(())
}

/// Parts of pages, of which the rest stays as it is.
fn parts(place: &Place, disk: &mut Disk, model: &mut Model) -> Result<(), Failure> {
    let lba = 16200;
    disk.write(lba, &model.next(lba, 10))?;
    let mut pieces: Pieces = Vec::new();
    for (offset, len) in [(512, 3072), (0, 512), (3584, 512), (1024, 1024)] {
        let mut page = page(place, disk)?;
        page.write_bytes(0, &[0x77; PAGE_SIZE])?;
        pieces.push(Some(Piece::part(page, offset, len).map_err(|(error, _)| error)?));
    }
    let ticket = disk.submit_read_into(lba, &mut pieces)?;
    let mut at = lba;
    back(place, disk, ticket, &mut pieces)?;
    for piece in pieces.iter_mut().flatten() {
        let (offset, len) = (piece.offset(), piece.len());
        let mut bytes = vec![0; PAGE_SIZE];
        piece.page_mut().read_bytes(0, &mut bytes)?;
        model.expect(at, bytes.get(offset..offset + len).unwrap_or_default())?;
        bytes.drain(offset..offset + len);
        ensure!(bytes.iter().all(|byte| *byte == 0x77), "bytes beside the part were written");
        at += (len / SECTOR) as u64;
    }
    Ok(())
}

fn discard(disk: &mut Disk, model: &mut Model, report: &mut Report) {
    let Some(extents) = disk.discard() else { return };
    let lba = SECTORS / 2;
    let (start, sectors) = (lba + extents.granularity, extents.granularity * 16);
    report.check("block/discard-and-read", || {
        disk.write(lba, &model.next(lba, extents.granularity * 32))?;
        disk.discard_sectors(start, sectors)?;
        ensure!(disk.stats().bytes_discarded == sectors * 512, "{} bytes", disk.stats().bytes_discarded);
        // The protocol promises nothing; a hole in a file reads as zeroes.
        model.discarded(start, sectors);
        model.check(disk, lba, extents.granularity * 32)
    });
    if extents.secure {
        report.check("block/erase", || {
            disk.erase(start, sectors)?;
            model.discarded(start, sectors);
            model.check(disk, lba, extents.granularity * 32)
        });
    }
}
