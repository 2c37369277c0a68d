//! A disk some of whose sectors are bad: what fails fails by itself.

use alloc::vec;
use alloc::vec::Vec;

use check_report::{Failure, Report, ensure};
use xen_blkfront::{Error, Piece, State};
use xen_gnttab::Access;
use xen_hypercall::Wait;

use super::{EVERYTHING, XVDD, life, open};
use crate::pattern::{BAD, SECTOR, fill};
use crate::place::Place;

/// Sectors of one operation.
const EACH: u64 = 8;
/// What is written and read at once, with the bad sectors among them.
const AREA: u64 = 2048;

pub(super) fn run(place: &mut Place, report: &mut Report) {
    let mut disk = None;
    report.check("block/connect-with-bad-sectors", || {
        disk = Some(open(place, XVDD, EVERYTHING)?);
        Ok(())
    });
    let Some(mut disk) = disk else { return };
    report.check("block/bad-sectors", || {
        let (mut out, data) = (vec![0; AREA as usize * SECTOR], vec![1; EACH as usize * SECTOR]);
        let errors = disk.stats().errors;
        let read = disk.read(BAD.start, out.get_mut(..SECTOR).unwrap_or_default());
        ensure!(read == Err(Error::Io), "reading one: {read:?}");
        let written = disk.write(BAD.start, &data);
        ensure!(written == Err(Error::Io), "writing them: {written:?}");
        let read = disk.read(0, &mut out);
        ensure!(read == Err(Error::Io), "reading all: {read:?}");
        ensure!(disk.stats().errors >= errors + 3, "{} errors", disk.stats().errors - errors);
        // Right before and right after.
        for lba in [BAD.start - EACH, BAD.end] {
            disk.write(lba, &data)?;
            let out = out.get_mut(..data.len()).unwrap_or_default();
            disk.read(lba, out)?;
            ensure!(out == data, "another content at {lba}");
        }
        ensure!(disk.state() == State::Connected, "it is {}", disk.state());
        Ok(disk.flush()?)
    });
    report.check("block/bad-sectors-among-others", || among_others(place, &mut disk));
    report.check("block/bad-sectors-and-own-pages", || {
        let page = place.grants.share(disk.backend_id(), Access::ReadWrite)?;
        let mut pieces = [Some(Piece::whole(page))];
        let ticket = disk.submit_read_into(BAD.start, &mut pieces)?;
        disk.publish()?;
        let mut result = None;
        while result.is_none() {
            result = disk.take_pages(ticket, &mut pieces);
            if result.is_none() {
                place.response(&mut disk, 0)?;
            }
        }
        ensure!(result == Some(Err(Error::Io)), "{result:?}");
        ensure!(pieces[0].is_some(), "the page did not come back");
        Ok(())
    });
    report.note(format_args!("please heal xvdd"));
    report.check("block/bad-sectors-healed", || {
        let deadline = place.soon();
        let mut data = vec![0; (BAD.end - BAD.start) as usize * SECTOR];
        fill(BAD.start, 3, &mut data);
        while let Err(error) = disk.write(BAD.start, &data) {
            ensure!(error == Error::Io && place.kernel.now() < deadline, "{error}");
            place.events.wait_since(place.events.seq(), Some(place.kernel.now() + life::TURN));
        }
        let mut out = vec![0; data.len()];
        disk.read(BAD.start, &mut out)?;
        ensure!(out == data, "another content came back");
        Ok(())
    });
    life::close(place, disk, report, "block/close-with-bad-sectors");
}

/// Neighbours, which go in a few requests: only who asked for a bad sector is told so.
fn among_others(place: &Place, disk: &mut super::Disk) -> Result<(), Failure> {
    let before = disk.stats();
    let mut data = vec![0; EACH as usize * SECTOR];
    for round in [1, 2] {
        let mut tickets = Vec::new();
        for lba in (0..AREA).step_by(EACH as usize) {
            fill(lba, round, &mut data);
            tickets.push((lba, disk.submit_write(lba, &data)?));
        }
        disk.publish()?;
        for (lba, ticket) in tickets.drain(..) {
            expect(lba, disk.wait(ticket, &mut []))?;
        }
        for lba in (0..AREA).step_by(EACH as usize) {
            tickets.push((lba, disk.submit_read(lba, EACH)?));
        }
        disk.publish()?;
        let mut out = vec![0; data.len()];
        for (lba, ticket) in tickets {
            let read = disk.wait(ticket, &mut out);
            fill(lba, round, &mut data);
            ensure!(read.is_err() || out == data, "another content at {lba}");
            expect(lba, read)?;
        }
    }
    let after = disk.stats();
    ensure!(after.merged > before.merged, "each went by itself");
    ensure!(after.errors - before.errors == 4, "{} errors", after.errors - before.errors);
    ensure!(disk.pending() == 0 && place.grants.stats().quarantined == 0, "something is left");
    Ok(())
}

fn expect(lba: u64, result: Result<(), Error>) -> Result<(), Failure> {
    let right = if BAD.contains(&lba) { Err(Error::Io) } else { Ok(()) };
    ensure!(result == right, "{result:?} at {lba}");
    Ok(())
}
