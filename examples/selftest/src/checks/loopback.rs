//! Grants of the domain to itself: what Xen copies by them, and what it refuses.

use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll, Waker};

use check_report::{Failure, Report, ensure};
use xen_gnttab::{Access, CopyDest, CopySource, Error, GrantRef, GrantStatus, Version};
use xen_hypercall::DomId;

use super::{Grants, own};

/// Whether Xen did not let us use a grant.
pub(super) fn refused(error: &Error) -> bool {
    matches!(error, Error::Refused { status, .. } if *status != GrantStatus::EAGAIN)
}

/// How one copy of 8 bytes from a grant ends.
pub(super) fn copy_from(
    table: &Grants,
    owner: DomId,
    gref: GrantRef,
    offset: usize,
) -> Result<[u8; 8], GrantCopyError> {
    let mut page = table.alloc_page()?;
    let mut batch = table.copies::<1>();
    batch.add(CopySource::grant(owner, gref).at(offset), CopyDest::page(&mut page), 8)?;
    batch.run()?;
    match batch.status(0) {
        Some(GrantStatus::OKAY) => Ok(core::array::from_fn(|index| page.bytes()[index])),
        status => Err(GrantCopyError::Status(status)),
    }
}

/// How one copy of 8 bytes into a grant ends.
pub(super) fn copy_to(
    table: &Grants,
    owner: DomId,
    gref: GrantRef,
    offset: usize,
    bytes: &[u8; 8],
) -> Result<(), GrantCopyError> {
    let mut page = table.alloc_page()?;
    page.bytes_mut()[..8].copy_from_slice(bytes);
    let mut batch = table.copies::<1>();
    batch.add(CopySource::page(&page), CopyDest::grant(owner, gref).at(offset), 8)?;
    batch.run()?;
    match batch.status(0) {
        Some(GrantStatus::OKAY) => Ok(()),
        status => Err(GrantCopyError::Status(status)),
    }
}

/// Why a copy was not made.
#[derive(Debug, PartialEq)]
pub(super) enum GrantCopyError {
    Before(Error),
    Status(Option<GrantStatus>),
}

impl From<Error> for GrantCopyError {
    fn from(error: Error) -> Self {
        Self::Before(error)
    }
}

impl core::fmt::Display for GrantCopyError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Before(error) => error.fmt(f),
            Self::Status(Some(status)) => write!(f, "copy: {status}"),
            Self::Status(None) => f.write_str("the copy was not run"),
        }
    }
}

impl GrantCopyError {
    pub(super) fn is_refused(&self) -> bool {
        matches!(self, Self::Status(Some(status)) if status.0 < 0 && *status != GrantStatus::EAGAIN)
    }
}

pub(super) fn run(table: &Grants, own: DomId, version: &str, report: &mut Report) {
    let name = |what: &str| alloc::format!("gnttab-{version}/{what}");
    own::run(table, own, &name, report);
    copies(table, own, &name, report);
    report.check(&name("batches"), || {
        let before = table.stats().in_use;
        let pages = table.share_many::<40>(own, Access::ReadWrite)?;
        ensure!(table.stats().in_use == before + 40, "{:?}", table.stats());
        let reference = table.reserve()?;
        let again = reference.gref();
        let page = reference.grant(table.alloc_page()?, own, Access::ReadWrite).map_err(Error::from)?;
        ensure!(page.gref() == again && page.peer() == own, "another reference");
        drop((pages, page));
        ensure!(table.stats().in_use == before && table.stats().quarantined == 0, "{:?}", table.stats());
        Ok(())
    });
    version_2(table, own, &name, report);
}

fn copies(table: &Grants, own: DomId, name: &impl Fn(&str) -> alloc::string::String, report: &mut Report) {
    report.check(&name("copy"), || {
        let mut page = table.share(own, Access::ReadWrite)?;
        page.write_bytes(100, b"8 bytes!")?;
        ensure!(&copy_from(table, own, page.gref(), 100)? == b"8 bytes!", "another text");
        copy_to(table, own, page.gref(), 4088, b"returned")?;
        let mut there = [0; 8];
        page.read_bytes(4088, &mut there)?;
        ensure!(&there == b"returned" && !page.in_use(), "{there:?}");
        Ok(())
    });
    report.check(&name("copy-batch"), || {
        let (mut one, mut two) = (table.share(own, Access::ReadOnly)?, table.share(own, Access::ReadOnly)?);
        one.write_bytes(0, b"ab")?;
        two.write_bytes(0, b"cd")?;
        let mut page = table.alloc_page()?;
        let mut batch = table.copies::<4>();
        let to = CopyDest::page(&mut page);
        batch.add(CopySource::grant(own, one.gref()), to, 2)?;
        let bad = batch.add(CopySource::grant(own, GrantRef(1 << 30)), to.at(2), 2)?;
        batch.add(CopySource::grant(own, two.gref()), to.at(4), 2)?;
        batch.run()?;
        let failed: Vec<_> = batch.failed().collect();
        ensure!(failed == [(bad, GrantStatus::BAD_GNTREF)], "{failed:?}");
        ensure!(page.bytes().starts_with(b"ab\0\0cd"), "another text");
        Ok(())
    });
    let to_lent = table.share(own, Access::ReadOnly).map_err(GrantCopyError::from);
    let to_lent = to_lent.and_then(|page| copy_to(table, own, page.gref(), 0, b"not this"));
    report.fails_with(&name("copy-to-read-only"), to_lent, GrantCopyError::is_refused);
    let ended = table.share(own, Access::ReadOnly).map(|page| page.gref()).map_err(GrantCopyError::from);
    let ended = ended.and_then(|gref| copy_from(table, own, gref, 0));
    report.fails_with(&name("copy-after-the-end"), ended, GrantCopyError::is_refused);
}

/// What only version 2 has.
fn version_2(table: &Grants, own: DomId, name: &impl Fn(&str) -> alloc::string::String, report: &mut Report) {
    let part = |offset, len| {
        let page = table.alloc_page()?;
        table.grant_part(page, own, Access::ReadWrite, offset, len).map_err(Error::from)
    };
    if table.version() != Version::V2 {
        report.fails_with(&name("part"), part(64, 64).map(drop), |error| *error == Error::NeedsVersion2);
        let transitive = table.grant_transitive(own, Access::ReadOnly, own, GrantRef(8)).map(drop);
        report.fails_with(&name("transitive"), transitive, |error| *error == Error::NeedsVersion2);
        return;
    }
    report.check(&name("part"), || {
        let mut page = part(64, 64)?;
        page.write_bytes(120, b"the last")?;
        ensure!(&copy_from(table, own, page.gref(), 120)? == b"the last", "another text");
        copy_to(table, own, page.gref(), 64, b"first 8b")?;
        for offset in [0, 57, 121, 128, 4000] {
            let beyond = copy_from(table, own, page.gref(), offset);
            ensure!(
                beyond.as_ref().is_err_and(GrantCopyError::is_refused),
                "8 bytes at {offset}: {beyond:?}"
            );
        }
        Ok(())
    });
    // A grant that is passed on leads to a third domain.
    let itself = table.share(own, Access::ReadOnly).map_err(GrantCopyError::from).and_then(|page| {
        let passed = table.grant_transitive(own, Access::ReadOnly, own, page.gref())?;
        copy_from(table, own, passed.gref(), 0)
    });
    report.fails_with(&name("transitive-to-itself"), itself, GrantCopyError::is_refused);
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Woken {
    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The table grows to its greatest size, and then refuses.
pub(super) fn grow(table: &Grants, version: &str, report: &mut Report) {
    report.check(&alloc::format!("gnttab-{version}/grows"), || {
        let mut references = Vec::new();
        let end = loop {
            match table.reserve() {
                Ok(reference) => references.push(reference),
                Err(error) => break error,
            }
        };
        let stats = table.stats();
        ensure!(end == Error::NoFreeReference && stats.frames == stats.max_frames, "{end:?} at {stats:?}");
        // Who waits is woken by the first that comes back, and not before.
        let woken = Arc::new(Woken::default());
        let (waker, mut waiter) =
            (Waker::from(woken.clone()), table.waiter().ok_or(Failure("no place to wait".into()))?);
        let mut cx = Context::from_waker(&waker);
        ensure!(waiter.poll_reference(&mut cx).is_pending() && !woken.is_set(), "nothing to wait for");
        drop(references.pop());
        ensure!(woken.is_set(), "nobody was woken");
        match waiter.poll_reference(&mut cx) {
            Poll::Ready(reference) => references.push(reference?),
            Poll::Pending => return Err(Failure("woken for nothing".into())),
        }
        drop(waiter);
        // The last one works.
        let last = references.pop().ok_or(Error::NoFreeReference)?;
        let page = last.grant(table.alloc_page()?, DomId(0), Access::ReadOnly).map_err(Error::from)?;
        drop(page);
        drop(references);
        let free = table.stats().free;
        ensure!(free == stats.refs, "{free} free of {}", stats.refs);
        Ok(())
    });
}
