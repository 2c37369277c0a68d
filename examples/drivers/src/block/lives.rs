//! A disk at work while its domain is saved, restored and migrated. Before each the kernel has operations under way, reads that
//! are answered and not taken, and pages that it has back with what was read, and did not look at; afterwards it looks at all
//! of that, and dom0 at the disk.

use alloc::vec;
use alloc::vec::Vec;

use check_report::{Failure, Report, ensure};
use xen_blkfront::{Config, Piece, State, Ticket};
use xen_gnttab::Access;
use xen_hypercall::sched::Resumed;

use super::model::{Model, SECTORS};
use super::{Disk, EVERYTHING, connect, life, negotiated};
use crate::pattern::SECTOR;
use crate::place::{Place, Xen};

/// What dom0 writes when it has looked at the disk: the number of the suspend.
const COMPARED: &str = "data/compared";

/// Sectors of a page, and of most operations.
const EACH: u64 = 8;
/// Small writes are at the beginning, large ones behind them, and then there is what is only read.
const LARGE: u64 = SECTORS / 4;
const READ: u64 = SECTORS / 2;
/// Operations of one round: small writes, reads into the disk's pages, and into such of the kernel's.
const WRITES: u64 = 24;
const READS: u64 = 128;
const LENT: u64 = 64;
/// Sectors of a large write.
const MEBI: u64 = 1024;

type Page = Piece<'static, Xen>;

/// Runs it through the suspends that `plan` names.
pub(crate) fn run(place: &mut Place, plan: &str, report: &mut Report) {
    let mut model = Model::new();
    let config = Config { pages: 2600, ..EVERYTHING };
    let Some(mut disk) = connect(place, report, "block/connect", config) else { return };
    negotiated(place, &disk, report);
    report.check("block/known-content", || {
        let all: Vec<u64> = (0..SECTORS).step_by(MEBI as usize).collect();
        let written = all.into_iter().map(|lba| disk.submit_write(lba, &model.next(lba, MEBI)));
        for ticket in written.collect::<Result<Vec<_>, _>>()? {
            disk.wait(ticket, &mut [])?;
        }
        model.check_all(&mut disk)
    });
    let mut work = Work::default();
    for (number, how) in (1..).zip(plan.split(',')) {
        report.note(format_args!("please {how} {number}"));
        report.check("block/at-work", || work.until_asked(place, &mut disk, &mut model));
        suspended(place, &mut disk, &mut model, &mut work, how, report);
        report.check("block/all-of-it", || model.check_all(&mut disk));
        report.check("block/flush", || Ok(disk.flush()?));
        report.note(format_args!("please compare {number}: {SECTORS} sectors, sum {:016x}", model.sum()));
        report.note(format_args!("compare {number}, as above"));
        report.check("block/dom0-has-compared", || {
            let deadline = place.soon();
            let compared = place.xs.wait_for::<u32>(COMPARED, deadline, |compared| *compared == number)?;
            ensure!(compared == Some(number), "it has compared {compared:?}");
            Ok(())
        });
    }
    drop(work);
    life::close(place, disk, report, "block/close");
}

/// One suspend, and what was under way.
fn suspended(
    place: &mut Place,
    disk: &mut Disk,
    model: &mut Model,
    work: &mut Work,
    how: &str,
    report: &mut Report,
) {
    let before = (disk.queues(), disk.ring_slots(), disk.request_sectors(), disk.is_persistent());
    let stats = disk.stats();
    let mut resumed = None;
    report.check("block/suspended", || {
        work.begin(place, disk, model)?;
        let pending = disk.pending();
        let outcome = place.suspend(disk)?;
        ensure!(outcome.absent == 0, "the disk is not there: {}", disk.state());
        resumed = Some(outcome.resumed);
        ensure!(pending > 0, "nothing was under way");
        Ok(())
    });
    let Some(resumed) = resumed else { return };
    let again = disk.stats().reissued - stats.reissued;
    let (kept, back) = (work.kept.len(), work.back.len());
    report.note(format_args!(
        "{how}: {again} operations issued again, {kept} answered and not taken, {back} pages not looked at"
    ));
    report.check("block/as-asked-for", || {
        let in_place = resumed == Resumed::InPlace;
        ensure!(in_place == (how == "checkpoint"), "{resumed:?} after a {how}");
        ensure!(in_place == (again == 0), "{again} operations were issued again after a {how}");
        ensure!(disk.state() == State::Connected, "it is {}", disk.state());
        let after = (disk.queues(), disk.ring_slots(), disk.request_sectors(), disk.is_persistent());
        ensure!(after == before, "{before:?}, and then {after:?}");
        Ok(())
    });
    report.check("block/pages-from-before", || work.look_at_pages(model));
    report.check("block/answers-from-before", || work.take_kept(disk, model));
    report.check("block/under-way-before", || work.end(place, disk, model));
}

/// What is under way, or was not looked at yet.
#[derive(Default)]
struct Work {
    /// Reads that were answered.
    kept: Vec<(Ticket, u64)>,
    /// Pages that came back.
    back: Vec<(Page, u64)>,
    /// Pages to be lent.
    idle: Vec<Page>,
    /// Other reads and writes, and a flush, which has no place.
    open: Vec<(Ticket, Option<u64>)>,
    /// Reads into pages of the kernel's.
    lent: Vec<(Ticket, u64)>,
    round: u64,
}

impl Work {
    /// Works in rounds, after each of which something is kept, until the domain is to be suspended.
    fn until_asked(&mut self, place: &mut Place, disk: &mut Disk, model: &mut Model) -> Result<(), Failure> {
        let deadline = place.later();
        loop {
            self.look_at_pages(model)?;
            self.take_kept(disk, model)?;
            self.read(place, disk, READS, LENT)?;
            // They stay when they are answered.
            self.kept = self.open.drain(..).filter_map(|(ticket, lba)| Some((ticket, lba?))).collect();
            self.write(disk, model)?;
            disk.publish()?;
            while disk.pending() > 0 {
                place.response(disk, 0)?;
            }
            self.end(place, disk, model)?;
            if place.is_asked()? {
                return Ok(());
            }
            ensure!(place.now() < deadline, "nobody asks for a suspend");
        }
    }

    /// What is under way when the domain is suspended: more than the backend does until then, and some that it was not shown.
    fn begin(&mut self, place: &Place, disk: &mut Disk, model: &mut Model) -> Result<(), Failure> {
        for lba in (LARGE..READ).step_by(MEBI as usize) {
            self.open.push((disk.submit_write(lba, &model.next(lba, MEBI))?, None));
        }
        self.read(place, disk, READS / 4, LENT / 4)?;
        self.open.push((disk.submit_flush()?, None));
        disk.publish()?;
        self.write(disk, model)?;
        self.open.push((disk.submit_flush()?, None));
        Ok(())
    }

    /// Another place with each round, so that no page holds what it held before.
    fn next(&mut self) -> u64 {
        const PLACES: u64 = (SECTORS - READ) / EACH;
        self.round += 1;
        READ + self.round * 5 % PLACES * EACH
    }

    fn read(&mut self, place: &Place, disk: &mut Disk, reads: u64, lent: u64) -> Result<(), Failure> {
        for _ in 0..reads {
            let lba = self.next();
            self.open.push((disk.submit_read(lba, EACH)?, Some(lba)));
        }
        for _ in 0..lent {
            let (lba, backend) = (self.next(), disk.backend_id());
            let mut piece = match self.idle.pop() {
                Some(piece) => piece,
                None => Piece::whole(place.grants.share(backend, Access::ReadWrite)?),
            };
            // Of those that were not lent nobody else knows.
            piece.page_mut().regrant(backend)?;
            self.lent.push((disk.submit_read_into(lba, &mut [Some(piece)])?, lba));
        }
        Ok(())
    }

    fn write(&mut self, disk: &mut Disk, model: &mut Model) -> Result<(), Failure> {
        for index in 0..WRITES {
            let lba = (self.round + index * 2) * EACH % LARGE;
            self.open.push((disk.submit_write(lba, &model.next(lba, EACH))?, None));
        }
        Ok(())
    }

    /// Waits for what is under way. What was read into pages of the kernel's is not looked at.
    fn end(&mut self, place: &Place, disk: &mut Disk, model: &Model) -> Result<(), Failure> {
        let mut out = vec![0; EACH as usize * SECTOR];
        for (ticket, lba) in self.open.drain(..) {
            disk.wait(ticket, if lba.is_some() { &mut out } else { &mut [] })?;
            if let Some(lba) = lba {
                model.expect(lba, &out)?;
            }
        }
        for (ticket, lba) in self.lent.drain(..) {
            let mut pieces = [None];
            loop {
                match disk.take_pages(ticket, &mut pieces) {
                    Some(result) => break result?,
                    None => place.response(disk, 0)?,
                }
            }
            let [piece] = pieces;
            self.back.push((piece.ok_or("the page did not come back")?, lba));
        }
        Ok(())
    }

    fn take_kept(&mut self, disk: &mut Disk, model: &Model) -> Result<(), Failure> {
        let mut out = vec![0; EACH as usize * SECTOR];
        let (count, mut stale, mut why) = (self.kept.len(), 0, None);
        for (ticket, lba) in self.kept.drain(..) {
            let result = disk.take(ticket, &mut out).ok_or("what was answered is not")?;
            result?;
            if let Err(Failure(error)) = model.expect(lba, &out) {
                (stale, why) = (stale + 1, Some(error));
            }
        }
        ensure!(stale == 0, "{stale} of {count} reads returned something else: {}", why.unwrap_or_default());
        Ok(())
    }

    fn look_at_pages(&mut self, model: &Model) -> Result<(), Failure> {
        let mut out = vec![0; EACH as usize * SECTOR];
        let (count, mut stale, mut why) = (self.back.len(), 0, None);
        for (mut piece, lba) in self.back.drain(..) {
            piece.page_mut().read_bytes(0, &mut out)?;
            self.idle.push(piece);
            if let Err(Failure(error)) = model.expect(lba, &out) {
                (stale, why) = (stale + 1, Some(error));
            }
        }
        ensure!(stale == 0, "{stale} of {count} pages hold something else: {}", why.unwrap_or_default());
        Ok(())
    }
}
