//! The grant table, by bare calls and in both versions.
#![allow(unsafe_code, reason = "changes the table behind the crate's back")]

use check_report::{Report, ensure};
use xen_gnttab::{Access, CopyDest, CopySource, Error, GrantTable, Version};
use xen_hypercall::grant;
use xen_hypercall::{DomId, Errno, Gfn};

use super::{ARM, Domain, Grants, loopback};

pub(super) fn run(domain: &Domain, own: DomId, report: &mut Report) {
    let xen = domain.kernel;
    report.check("grant/query-size", || {
        let size = grant::query_size(xen)?;
        ensure!(size.frames >= 1 && size.max_frames >= size.frames, "{size:?}");
        Ok(())
    });
    report.check("grant/get-version", || {
        let version = grant::get_version(xen)?;
        ensure!(version == 1, "a domain starts with version {version}");
        Ok(())
    });
    // SAFETY: there is no such version: nothing changes.
    report.refused("grant/set-version-3", unsafe { grant::set_version(xen, 3) }, Errno::EINVAL);
    if ARM {
        // SAFETY: Xen has version 1 alone for Arm: nothing changes.
        report.refused("grant/set-version-2", unsafe { grant::set_version(xen, 2) }, Errno::ENOSYS);
    }
    report.check("grant/setup-table", || {
        let mut frames = [Gfn(0)];
        Ok(grant::setup_table(xen, &mut frames)?)
    });
    // For PV guests alone; on Arm no table has any.
    let none = if ARM { Errno::EINVAL } else { Errno::ENOSYS };
    report.refused("grant/status-frames", grant::status_frames(xen, &mut [Gfn(0)]), none);
    for (name, version) in [("v1", Version::V1), ("v2", Version::V2), ("v1-again", Version::V1)] {
        let mut table = None;
        let started = GrantTable::with_version(domain.token, version);
        let start = alloc::format!("gnttab/start-{name}");
        if ARM && version == Version::V2 {
            report.fails_with(&start, started.map(drop), |error| *error == Error::Version(1));
            continue;
        }
        report.check(&start, || {
            let new: Grants = started?;
            ensure!(new.version() == version, "{:?} is in force", new.version());
            table = Some(new);
            Ok(())
        });
        let Some(table) = table else { continue };
        if name != "v1-again" {
            loopback::run(&table, own, name, report);
            swap(&table, own, name, report);
        }
        if name == "v1-again" {
            report.check("gnttab/v1-again-works", || {
                let mut page = table.share(own, Access::ReadOnly)?;
                page.write_bytes(0, b"after version 2")?;
                let mut copied = table.alloc_page()?;
                let mut batch = table.copies::<1>();
                batch.add(CopySource::grant(own, page.gref()), CopyDest::page(&mut copied), 15)?;
                batch.run()?;
                ensure!(
                    batch.failed().count() == 0 && copied.bytes().starts_with(b"after version 2"),
                    "no copy"
                );
                Ok(())
            });
        }
        loopback::grow(&table, name, report);
        report.check(&alloc::format!("gnttab/close-{name}"), || {
            let second = GrantTable::new(domain.token).map(drop);
            ensure!(second == Err(xen_gnttab::Error::Claimed), "a second table: {second:?}");
            Ok(table.close()?)
        });
    }
}

/// Two references change places: what one granted the other grants.
fn swap(table: &Grants, own: DomId, name: &str, report: &mut Report) {
    report.check(&alloc::format!("grant/swap-{name}"), || {
        let xen = *table.platform();
        let mut page = table.share(own, Access::ReadOnly)?;
        page.write_bytes(0, b"swapped")?;
        let other = table.reserve()?;
        let (first, second) = (page.gref(), other.gref());
        // SAFETY: both entries are ours and idle; they are exchanged back below, before the crate looks at them.
        unsafe { grant::swap(xen, first.0, second.0) }?;
        let mut copied = table.alloc_page()?;
        let mut batch = table.copies::<2>();
        batch.add(CopySource::grant(own, second), CopyDest::page(&mut copied), 7)?;
        batch.run()?;
        let worked = batch.failed().count() == 0 && copied.bytes().starts_with(b"swapped");
        // SAFETY: as above.
        unsafe { grant::swap(xen, first.0, second.0) }?;
        ensure!(worked, "the other reference does not lead to the page");
        ensure!(page.end().page().is_some(), "the page did not come back");
        // SAFETY: Xen refuses a reference that the table does not have.
        let beyond = unsafe { grant::swap(xen, 9, 1 << 30) };
        ensure!(beyond == Err(Errno::EINVAL), "beyond the table: {beyond:?}");
        Ok(())
    });
}
