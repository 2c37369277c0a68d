//! What becomes of disks: closed, read-only, grown, without a backend for a while, unplugged.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use check_report::{Failure, Report, ensure};
use xen_blkfront::{BlkQueue, Error, Piece, State, Ticket};
use xen_gnttab::Access;
use xen_hypercall::Wait;

use super::model::Model;
use super::{Disk, EVERYTHING, XVDB, XVDC, open};
use crate::pattern::{SECTOR, fill};
use crate::place::{Place, Xen};

/// What dom0 writes when a backend was started again.
const RESTARTED: &str = "data/restarted";
/// How long nothing need happen before the disk is looked at again.
pub(super) const TURN: Duration = Duration::from_millis(20);

pub(super) fn close(place: &mut Place, disk: Disk, report: &mut Report, name: &str) {
    report.check(name, || {
        let deadline = place.soon();
        disk.close(&mut place.xs, deadline)?;
        place.grants.reclaim();
        let stats = place.grants.stats();
        ensure!(stats.quarantined == 0, "{} pages are in use still", stats.quarantined);
        Ok(())
    });
}

/// What dom0 wrote there can be read, and not written.
pub(super) fn read_only(place: &mut Place, report: &mut Report) {
    report.check("block/read-only", || {
        let mut disk = open(place, XVDB, EVERYTHING)?;
        ensure!(disk.is_read_only(), "it can be written");
        ensure!(disk.write(0, &[1; SECTOR]) == Err(Error::ReadOnly), "it was written");
        let (mut out, mut right) = (vec![0; 64 * SECTOR], vec![0; 64 * SECTOR]);
        disk.read(0, &mut out)?;
        fill(0, 1, &mut right);
        ensure!(out == right, "it holds something else");
        let deadline = place.soon();
        Ok(disk.close(&mut place.xs, deadline)?)
    });
}

pub(super) fn large_and_untrusted(place: &mut Place, report: &mut Report) {
    report.note(format_args!("please distrust xvdc"));
    report.check("block/sectors-of-4096-untrusted", || {
        let (node, deadline) = (format!("device/vbd/{XVDC}/trusted"), place.soon());
        loop {
            let seen = place.events.seq();
            if place.xs.read(&node) == Ok(b"0") {
                break;
            }
            ensure!(place.kernel.now() < deadline, "it stays trusted");
            place.events.wait_since(seen, Some(place.kernel.now() + TURN));
        }
        let mut disk = open(place, XVDC, EVERYTHING)?;
        ensure!(disk.sector_size() == 4096, "{} bytes", disk.sector_size());
        ensure!(disk.write(1, &[1; 4096]) == Err(Error::Unaligned), "half a sector was written");
        let page = place.grants.share(disk.backend_id(), Access::ReadWrite)?;
        let lent = disk.submit_read_into(0, &mut [Some(Piece::whole(page))]);
        ensure!(!disk.is_trusted() && lent == Err(Error::Untrusted), "{lent:?}");
        let (mut out, mut data) = (vec![0; 300 * 4096], vec![0; 300 * 4096]);
        fill(0, 1, &mut data);
        disk.write(16, &data)?;
        disk.read(16, &mut out)?;
        ensure!(out == data, "another content came back");
        let deadline = place.soon();
        Ok(disk.close(&mut place.xs, deadline)?)
    });
}

pub(super) fn run(place: &mut Place, disk: &mut Disk, model: &mut Model, report: &mut Report) {
    report.note(format_args!("please grow xvda"));
    report.check("block/grow", || grow(place, disk));
    report.note(format_args!("please restart the backend of xvda"));
    report.check("block/backend-restarted", || interrupted(place, disk, model, true));
    report.note(format_args!("please unplug xvda"));
    report.check("block/unplugged-and-plugged-in", || interrupted(place, disk, model, false));
    report.note(format_args!("xvda: {} operations were asked for again", disk.stats().reissued));
}

/// Linux' backend looks at the size of its disk when a request comes.
fn grow(place: &mut Place, disk: &mut Disk) -> Result<(), Failure> {
    let (before, deadline) = (disk.capacity(), place.soon());
    let beyond = vec![5; 8 * SECTOR];
    ensure!(disk.write(before, &beyond) == Err(Error::OutOfRange), "there is something behind the end");
    while disk.capacity() == before {
        let seen = place.events.seq();
        disk.read(0, &mut [0; SECTOR])?;
        disk.service(&mut place.xs)?;
        ensure!(place.kernel.now() < deadline, "it stays as it is");
        place.events.wait_since(seen, Some(place.kernel.now() + TURN));
    }
    ensure!(disk.capacity() > before, "it shrank");
    let last = disk.capacity() - 8;
    disk.write(last, &beyond)?;
    let mut out = vec![0; 8 * SECTOR];
    disk.read(last, &mut out)?;
    ensure!(out == beyond, "another content came back");
    Ok(())
}

/// An operation under way: where, and whether it is a read.
type Open = (Ticket, u64, bool);

/// Works until the backend goes, waits until there is one again, and looks whether anything was lost.
///
/// Linux' backend that was only started again may also take up the rings where they are; then dom0 says when it is over (`told`).
/// When it goes for certain a queue is away meanwhile, if there are several.
fn interrupted(place: &mut Place, disk: &mut Disk, model: &mut Model, told: bool) -> Result<(), Failure> {
    const DEPTH: usize = 24;
    const PLACES: u64 = 512;
    let reconnects = disk.stats().reconnects;
    let mut open: Vec<Open> = Vec::new();
    let deadline = place.soon();
    let mut count = 0;
    let mut away = if told || disk.queues() == 1 { None } else { Some(Away::new(disk.take_queue(1)?)) };
    while disk.service(&mut place.xs)? == State::Connected && !(told && place.xs.read(RESTARTED).is_ok()) {
        ensure!(place.kernel.now() < deadline, "the backend stays");
        let seen = place.events.seq();
        while open.len() < DEPTH {
            let lba = count % PLACES * 16;
            // What is read was written long before.
            let read = (count + PLACES / 2) % PLACES * 16 + 8;
            let ticket = disk.submit_write(lba, &model.next(lba, 8))?;
            open.push((ticket, lba, false));
            open.push((disk.submit_read(read, 8)?, read, true));
            count += 1;
        }
        disk.publish()?;
        disk.poll()?;
        take(disk, model, &mut open)?;
        if let Some(away) = &mut away {
            away.turn()?;
        }
        if open.len() >= DEPTH && !disk.arm()? {
            place.events.wait_since(seen, Some(place.kernel.now() + TURN));
        }
    }
    if let Some(away) = away {
        away.put_back(place, disk)?;
    }
    let deadline = place.soon();
    while disk.state() != State::Connected {
        let again = disk.reconnect(&mut place.xs, deadline);
        ensure!(again.is_ok() || place.kernel.now() < deadline, "{again:?}");
    }
    if disk.stats().reconnects > reconnects {
        ensure!(disk.stats().reissued > 0, "nothing was under way when the backend went");
    }
    let mut out = [0; 8 * SECTOR];
    for (ticket, lba, read) in open {
        let done = disk.wait(ticket, if read { &mut out } else { &mut [] });
        ensure!(done.is_ok(), "{done:?} at {lba}: {}, {} under way", disk.state(), disk.pending());
        if read {
            model.expect(lba, &out)?;
        }
    }
    model.check_all(disk)?;
    // What was answered and not flushed may be gone with the earlier backend, as far as the driver knows. It says so once.
    match disk.flush() {
        Err(Error::Lost) if disk.stats().reconnects > reconnects => Ok(disk.flush()?),
        flushed => Ok(flushed?),
    }
}

/// A queue that is read from by itself.
struct Away {
    queue: BlkQueue<'static, Xen>,
    open: Option<Ticket>,
    answered: u32,
}

impl Away {
    fn new(queue: BlkQueue<'static, Xen>) -> Self {
        Self { queue, open: None, answered: 0 }
    }

    /// A read after the other, as far as the backend answers.
    fn turn(&mut self) -> Result<(), Failure> {
        self.queue.poll()?;
        if let Some(ticket) = self.open {
            match self.queue.take(ticket, &mut [0; 8 * SECTOR]) {
                None => return Ok(()),
                Some(result) => result?,
            }
            self.answered += 1;
        }
        self.open = Some(self.queue.submit_read(0, 8)?);
        Ok(self.queue.publish()?)
    }

    /// The disk is not connected anew without it, and it takes nothing any more.
    fn put_back(self, place: &mut Place, disk: &mut Disk) -> Result<(), Failure> {
        let Self { mut queue, answered, .. } = self;
        ensure!(answered > 0, "nothing was read by the queue");
        let read = queue.submit_read(0, 8);
        ensure!(read == Err(Error::Closed), "the queue goes on: {read:?}");
        let deadline = place.soon();
        let again = disk.reconnect(&mut place.xs, deadline);
        ensure!(again == Err(Error::QueuesTaken), "without the queue: {again:?}");
        while let Err(rejected) = disk.put_queue(queue) {
            ensure!(place.kernel.now() < deadline, "the queue is not put back: {rejected}");
            let seen = place.events.seq();
            queue = rejected.queue;
            disk.service(&mut place.xs)?;
            place.events.wait_since(seen, Some(place.kernel.now() + TURN));
        }
        Ok(())
    }
}

/// Takes what is done.
fn take(disk: &mut Disk, model: &Model, open: &mut Vec<Open>) -> Result<(), Failure> {
    let mut out = [0; 8 * SECTOR];
    let mut index = 0;
    while let Some((ticket, lba, read)) = open.get(index).copied() {
        match disk.take(ticket, if read { &mut out } else { &mut [] }) {
            Some(Ok(())) => {
                let _ = open.swap_remove(index);
                if read {
                    model.expect(lba, &out)?;
                }
            }
            None => index += 1,
            Some(Err(error)) => return Err(error.into()),
        }
    }
    Ok(())
}
