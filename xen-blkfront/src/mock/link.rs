//! What the backend has while it is connected: rings, event channels, and the guest's pages.

use core::sync::atomic::Ordering::SeqCst;
use std::collections::BTreeMap;
use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

use xen_gnttab::GrantRef;
use xen_gnttab::mock::{MockMapping, MockMappings, map, map_row};
use xen_hypercall::mock::MockDomain;
use xen_hypercall::{DomId, event};
use xen_ring::{Back, RSP_PROD};

use super::backend::Backend;
use crate::abi::{ABI, Blkif, Request, Response};

pub(super) struct Link {
    pub(super) queues: Vec<Queue>,
    /// Whether both sides said that pages may stay mapped.
    pub(super) persistent: bool,
    /// Responses that no guest may believe; none when nobody knows which of them it sees.
    pub(super) incredible: Option<u64>,
}

pub(super) struct Queue {
    pub(super) ring: Back<Blkif, MockMappings>,
    port: u32,
    /// Taken and not served yet.
    pub(super) requests: Vec<Request>,
    /// Those that are put off, to be served in the next step.
    pub(super) late: Vec<Request>,
    /// An event that is sent in the next step.
    pub(super) late_event: bool,
    /// A response that takes the place of the next one.
    pub(super) twice: Option<Response>,
}

/// The guest's pages that are mapped between requests.
#[derive(Default)]
pub(super) struct Mapped {
    pub(super) pages: BTreeMap<GrantRef, (MockMapping, u64)>,
    /// Mapped by fault.
    pub(super) kept: Vec<MockMapping>,
    pub(super) holds: bool,
    uses: u64,
}

impl Mapped {
    /// A page that is mapped or is mapped now.
    pub(super) fn take(
        &mut self,
        dom0: &MockDomain,
        guest: DomId,
        gref: GrantRef,
        writable: bool,
    ) -> Result<MockMapping, String> {
        match self.pages.remove(&gref) {
            Some((page, _)) if page.is_writable() || !writable => Ok(page),
            _ => map(dom0, guest, gref, writable).map_err(|status| format!("{gref}: {status:?}")),
        }
    }

    /// Keeps a page mapped; the one that was not used for longest goes when there are more than `limit`.
    pub(super) fn keep(&mut self, page: MockMapping, limit: usize) {
        self.uses += 1;
        self.pages.insert(page.gref(), (page, self.uses));
        while self.pages.len() > limit.max(1) {
            let oldest = self.pages.iter().min_by_key(|(_, (_, used))| *used).map(|(gref, _)| *gref);
            oldest.map(|gref| self.pages.remove(&gref));
        }
    }
}

impl Link {
    pub(super) fn connect(backend: &Backend) -> Result<Self, String> {
        let protocol: Option<String> = backend.front("protocol");
        // A guest that says nothing means its own, and guests of this mock are like ourselves.
        if protocol.as_deref().is_some_and(|protocol| protocol != ABI) {
            return Err(format!("protocol {protocol:?}"));
        }
        let queues: u32 = backend.front("multi-queue-num-queues").unwrap_or(1);
        if !(1..=backend.word.max_queues.unwrap_or(1).max(1)).contains(&queues) {
            return Err(format!("{queues} queues"));
        }
        let pages = ring_pages(backend)?;
        let queues = (0..queues).map(|index| {
            let at = if queues == 1 { String::new() } else { format!("queue-{index}/") };
            Queue::connect(backend, &at, pages)
        });
        let persistent = backend.word.persistent && backend.front("feature-persistent") == Some(1_u32);
        Ok(Self { queues: queues.collect::<Result<_, _>>()?, persistent, incredible: Some(0) })
    }

    pub(super) fn disconnect(self, dom0: &MockDomain, mapped: &mut Mapped) {
        for queue in self.queues {
            // The guest may have closed its end; ours is there in any case.
            let _ = event::close(dom0, queue.port);
            if mapped.holds {
                mapped.kept.extend(queue.ring.into_inner().into_pages());
            }
        }
        // Of a guest that connects anew they are not the pages any more.
        let pages = core::mem::take(&mut mapped.pages);
        if mapped.holds {
            mapped.kept.extend(pages.into_values().map(|(page, _)| page));
        }
    }
}

/// How many pages each ring has.
fn ring_pages(backend: &Backend) -> Result<u32, String> {
    let options = &backend.word;
    let order: Option<u32> =
        backend.front("ring-page-order").filter(|_| options.max_ring_page_order.is_some());
    let pages: Option<u32> = backend.front("num-ring-pages").filter(|_| options.max_ring_pages.is_some());
    let by_order = order.map(|order| 1_u32.checked_shl(order).unwrap_or(0));
    if by_order.is_some() && pages.is_some() && by_order != pages {
        return Err(format!("ring-page-order {order:?} and num-ring-pages {pages:?}"));
    }
    let most = options
        .max_ring_page_order
        .map_or(1, |order| 1_u32.checked_shl(order).unwrap_or(u32::MAX))
        .max(options.max_ring_pages.unwrap_or(1));
    let pages = by_order.or(pages).unwrap_or(1);
    if !pages.is_power_of_two() || pages > most {
        return Err(format!("rings of {pages} pages"));
    }
    Ok(pages)
}

impl Queue {
    fn connect(backend: &Backend, at: &str, pages: u32) -> Result<Self, String> {
        let port: u32 = backend.front(&format!("{at}event-channel")).ok_or("no event-channel")?;
        let named = |name: String| {
            let gref: Option<u32> = backend.front(&format!("{at}{name}"));
            gref.map(GrantRef).ok_or_else(|| format!("no {at}{name}"))
        };
        let grefs = match pages {
            1 => named("ring-ref".to_string()).map(|gref| [gref].to_vec()),
            pages => (0..pages).map(|index| named(format!("ring-ref{index}"))).collect(),
        }?;
        let guest = backend.guest.id();
        let mut page =
            map_row(&backend.dom0, guest, &grefs, true).map_err(|status| format!("ring: {status:?}"))?;
        // Where a backend before this one has left it; a new ring begins at zero.
        let answered = page.mem().load_u32(RSP_PROD, SeqCst).map_err(|error| error.to_string())?;
        let ring = Back::attach_at(page, answered).map_err(|error| error.to_string())?;
        let port = event::bind_interdomain(&backend.dom0, guest, port).map_err(|errno| errno.to_string())?;
        Ok(Self { ring, port, requests: Vec::new(), late: Vec::new(), late_event: false, twice: None })
    }

    /// Whether an event came since the last look.
    pub(super) fn notified(&self, dom0: &MockDomain) -> bool {
        let Some(shared) = dom0.shared_info() else { return false };
        let bit = 1 << (self.port % 64);
        let word = shared.evtchn_pending(self.port as usize / 64);
        word.is_some_and(|word| word.fetch_and(!bit, SeqCst) & bit != 0)
    }

    /// Sends an event. Fails when the guest has closed its end, who then does not care.
    pub(super) fn notify(&self, dom0: &MockDomain) {
        let _ = event::send(dom0, self.port);
    }
}
