//! What is held across a suspend.

use alloc::vec::Vec;

use check_report::{Failure, Report, ensure};
use xen_evtchn::{Channel, Error, Status, Virq};
use xen_gnttab::{Access, GrantedPage, GrantedPages, LentPage, Reference};
use xen_hypercall::{DomId, Restore, VcpuId, event};
use xen_rt::Kernel;

use super::Place;
use crate::checks::events::pair;
use crate::checks::loopback::copy_from;
use crate::checks::{Events, Grants, smp};

type Own = Channel<'static, &'static Kernel>;
type Page = GrantedPage<'static, &'static Kernel>;

const TEXT: &[u8; 8] = b"kept as ";

pub(super) struct Held {
    events: &'static Events,
    grants: &'static Grants,
    own: DomId,
    /// Both ends of a channel, one with an event that nobody has taken.
    ends: (Own, Own),
    /// One that is given up without a look.
    dropped: Own,
    /// Bound again with the domain's parts.
    part: Own,
    /// Bound again by hand.
    later: Own,
    virq: Own,
    page: Page,
    lent: LentPage<'static, &'static Kernel>,
    run: GrantedPages<'static, &'static Kernel>,
    /// One that is not granted again.
    ended: Page,
    reference: Reference<'static, &'static Kernel>,
}

impl Held {
    pub(super) fn new(place: &Place) -> Result<Self, Failure> {
        let (events, grants, own) = (place.guest.events(), place.grants, place.own()?);
        let ends = pair(events)?;
        ends.0.notify()?;
        // On the last vCPU, whose area is another one in another life.
        let last = place.vcpus.last().map_or(VcpuId(0), |vcpu| vcpu.id());
        let mut page = grants.share(own, Access::ReadWrite)?;
        page.write_bytes(0, TEXT)?;
        let mut lent = grants.alloc_page()?;
        lent.bytes_mut()[..8].copy_from_slice(TEXT);
        let mut run = grants.share_pages(3, own, Access::ReadOnly)?;
        run.write_bytes(2 * xen_hypercall::PAGE_SIZE, TEXT)?;
        Ok(Self {
            events,
            grants,
            own,
            ends,
            dropped: events.alloc_unbound(DomId::SELF)?,
            part: events.bind_ipi(last)?,
            later: events.bind_ipi(VcpuId(0))?,
            virq: events.bind_virq(Virq::DEBUG, VcpuId(0))?,
            page,
            lent: grants.lend(lent, own)?,
            run,
            ended: grants.share(own, Access::ReadWrite)?,
            reference: grants.reserve()?,
        })
    }

    /// Does something to what of it is set up again with the domain.
    pub(super) fn with_parts<R>(&self, then: impl FnOnce(&mut [&mut dyn Restore]) -> R) -> R {
        let (mut grants, mut part, mut virq) = (self.grants, &self.part, &self.virq);
        then(&mut [&mut grants, &mut part, &mut virq])
    }

    /// In the same domain.
    pub(super) fn are_as_before(self, place: &Place, report: &mut Report) {
        let Self { grants, own, ends, dropped, part, later, virq, page, lent, run, ended, reference, .. } =
            self;
        report.check("resume/channels-as-before", || {
            let all = [&ends.0, &ends.1, &dropped, &part, &later, &virq];
            ensure!(all.iter().all(|channel| channel.is_current()), "one is stale");
            self.events.dispatch(VcpuId(0));
            ensure!(ends.1.take(), "the event of before is lost");
            part.rebind()?;
            comes(place, &part)?;
            comes(place, &later)?;
            ends.1.notify()?;
            self.events.dispatch(VcpuId(0));
            ensure!(ends.0.take(), "no event to the other end");
            Ok(())
        });
        report.check("resume/grants-as-before", || {
            ensure!(place.own()? == own, "it is another domain");
            for gref in [page.gref(), lent.gref()].into_iter().chain(run.grefs().nth(2)) {
                ensure!(&copy_from(grants, own, gref, 0)? == TEXT, "another text");
            }
            ensure!(ended.end().page().is_some(), "the page did not come back");
            let granted = reference.grant(grants.alloc_page()?, own, Access::ReadOnly);
            ensure!(granted.is_ok_and(|page| page.end().page().is_some()), "the reference is of no use");
            Ok(())
        });
    }

    /// In another domain.
    pub(super) fn are_stale(self, place: &Place, report: &mut Report) {
        let Self { events, grants, own, ends, dropped, part, later, virq, page, lent, run, ended, reference } =
            self;
        let kernel = place.domain.kernel;
        report.check("resume/channels-are-stale", || {
            let calls = kernel.hypercalls();
            ensure!(!(ends.0.is_current() || ends.1.is_current() || dropped.is_current()), "one is not");
            let end = &ends.1;
            let asked = [end.notify(), end.bind_vcpu(VcpuId(0)), end.rebind(), end.status().map(drop)];
            ensure!(asked.iter().all(|result| *result == Err(Error::Stale)), "{asked:?}");
            ensure!(later.notify() == Err(Error::Stale), "an IPI that was not bound again");
            end.unmask();
            end.mask();
            ensure!(!end.take(), "an event of the life before");
            drop(dropped);
            let asked = kernel.hypercalls() - calls;
            ensure!(asked == 0, "{asked} hypercalls");
            Ok(())
        });
        report.check("resume/channels-bound-again", || {
            ensure!(part.is_current() && virq.is_current(), "one is stale");
            ensure!(part.status()? == Status::Ipi, "{:?}", part.status());
            ensure!(virq.status()? == Status::Virq(Virq::DEBUG), "{:?}", virq.status());
            comes(place, &part)?;
            later.rebind()?;
            comes(place, &later)
        });
        report.check("resume/ports-come-back", || {
            let ports = [ends.0.port(), ends.1.port()];
            let states = || ports.map(|port| event::status(kernel, port.0).map_or(0, |status| status.status));
            let mut fresh = Vec::new();
            while states().contains(&0) {
                ensure!(fresh.len() < 1000, "ports {ports:?} are not given out again");
                fresh.push(events.bind_ipi(VcpuId(0))?);
            }
            let before = states();
            drop(ends);
            ensure!(states() == before, "a stale channel has closed another: {before:?}, {:?}", states());
            fresh.iter().try_for_each(|channel| comes(place, channel))?;
            comes(place, &part)
        });
        report.check("resume/grants-are-stale", || {
            ensure!(!(page.is_current() || lent.is_current() || run.is_current()), "one is not");
            let calls = kernel.hypercalls();
            ensure!(ended.end().page().is_some(), "the page did not come back");
            let granted = reference.grant(grants.alloc_page()?, own, Access::ReadOnly);
            let refused = granted.map(drop).map_err(xen_gnttab::Error::from);
            ensure!(refused == Err(xen_gnttab::Error::Stale), "{refused:?}");
            let stats = grants.stats();
            ensure!(stats.quarantined == 0 && stats.in_use == 0, "{stats:?}");
            let asked = kernel.hypercalls() - calls;
            ensure!(asked == 0, "{asked} hypercalls");
            Ok(())
        });
        report.check("resume/granted-again-in-place", || {
            let (own, mut page, mut lent, mut run) = (place.own()?, page, lent, run);
            page.regrant(own)?;
            lent.regrant(own)?;
            run.regrant(own)?;
            for gref in [page.gref(), lent.gref()].into_iter().chain(run.grefs().nth(2)) {
                ensure!(&copy_from(grants, own, gref, 0)? == TEXT, "another text");
            }
            ensure!(page.end().page().is_some() && lent.end().page().is_some(), "a page did not come back");
            Ok(())
        });
    }
}

/// Sends an event, and waits for it on whatever vCPU it is for.
fn comes(place: &Place, channel: &Own) -> Result<(), Failure> {
    channel.take();
    channel.notify()?;
    smp::until(place.guest, "an event", || {
        place.guest.events().dispatch(VcpuId(0));
        channel.take()
    })
}
