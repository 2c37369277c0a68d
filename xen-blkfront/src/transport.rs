//! How many rings there are, how large, and how the backend is told (`io/blkif.h`, "Request Transport Parameters").

use xen_evtchn::EventChannels;
use xen_gnttab::{Access, GrantTable, GrantedPages};
use xen_hypercall::{DomId, Platform};
use xen_xenstore::{Changes, Path, names, parse};

use crate::abi::{ABI, MAX_RING_ORDER};
use crate::queue::Queue;
use crate::table::Table;
use crate::{Config, Error};

/// The memory of a ring: pages in a row.
pub(crate) type RingMemory<'x, P> = GrantedPages<'x, P>;
/// All rings of a disk.
pub(crate) type Queues<'x, P> = Table<'x, P, Queue<'x, P>>;

/// Most rings that are made, whatever is offered.
pub(crate) const MAX_QUEUES: usize = 16;
/// What a frontend writes only if it uses it, so that an earlier one's must go.
const OPTIONAL: [&str; 3] = ["ring-page-order", "num-ring-pages", "multi-queue-num-queues"];

pub(crate) fn share_ring<'x, P: Platform>(
    grants: &'x GrantTable<P>,
    backend: DomId,
    pages: usize,
) -> Result<RingMemory<'x, P>, Error> {
    Ok(grants.share_pages(pages, backend, Access::ReadWrite)?)
}

/// What is used of what the backend offers.
#[derive(Clone, Copy)]
pub(crate) struct Transport {
    /// Of each ring, a power of two.
    pub(crate) order: u32,
    pub(crate) queues: usize,
    /// An earlier frontend left a choice of its own.
    leftovers: bool,
    /// The toolstack trusts the backend.
    pub(crate) trusted: bool,
}

/// What a backend offers, and an earlier frontend has left.
pub(crate) struct Offers {
    numbers: [Option<u32>; Offers::NODES.len()],
    leftovers: bool,
    /// Whether the nodes could be read.
    read: Result<(), Error>,
}

impl Default for Offers {
    fn default() -> Self {
        Self { numbers: [None; Self::NODES.len()], leftovers: false, read: Ok(()) }
    }
}

impl Offers {
    /// Nodes of the backend's directory, but for the last one, which is in our own. What is asked after them is what that has.
    pub(crate) const NODES: [&'static str; 4] =
        ["max-ring-page-order", "max-ring-pages", "multi-queue-max-queues", "trusted"];

    /// Takes the answer that has a place.
    pub(crate) fn take(&mut self, place: usize, answer: Result<&[u8], xen_xenstore::Error>) {
        let answer = match self.numbers.get_mut(place) {
            // What makes no sense is no offer; a backend of which nobody knows is not trusted.
            Some(number) => answer.map(|value| *number = Some(parse(value).unwrap_or(0))),
            None => answer.map(|list| self.leftovers = names(list).any(|name| OPTIONAL.contains(&name))),
        };
        match answer {
            Err(error) if !error.is_not_found() => self.read = Err(error.into()),
            _ => {}
        }
    }

    /// What is used of that.
    pub(crate) fn choose(&self, config: &Config) -> Result<Transport, Error> {
        self.read?;
        let [order, pages, queues, trusted] = self.numbers;
        // Two ways to say the same; a backend that knows one of them is content with it.
        let offered = order.unwrap_or(0).max(pages.and_then(u32::checked_ilog2).unwrap_or(0));
        let wanted = config.ring_pages.max(1).ilog2();
        let queues = (queues.unwrap_or(1) as usize).clamp(1, MAX_QUEUES);
        Ok(Transport {
            order: offered.min(wanted).min(MAX_RING_ORDER),
            queues: config.queues.clamp(1, queues),
            leftovers: self.leftovers,
            trusted: trusted != Some(0),
        })
    }
}

impl Transport {
    /// Makes the rings and their event channels: fewer where memory, grant references or ports do not suffice for all.
    pub(crate) fn make<'x, P: Platform>(
        self,
        events: &'x EventChannels<P>,
        grants: &'x GrantTable<P>,
        backend: DomId,
    ) -> Result<Queues<'x, P>, Error> {
        let mut queues = Table::new(grants.platform(), self.queues)?;
        for number in 0..self.queues {
            match Queue::new(events, grants, backend, 1 << self.order, number) {
                Ok(queue) => drop(queues.push(queue)),
                Err(_) if !queues.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(queues)
    }

    /// Tells the backend. Rings of one page, and a single one, are told as they were before there were others.
    pub(crate) fn tell<P: Platform>(
        self,
        changes: &mut Changes<'_>,
        path: &Path,
        queues: &Queues<'_, P>,
        persistent: bool,
    ) -> Result<(), xen_xenstore::Error> {
        if self.leftovers {
            for node in OPTIONAL {
                changes.remove(&path.join(node)?)?;
            }
        }
        if self.order > 0 {
            // Each way to say it is known to some backends.
            changes.write_display(&path.join("ring-page-order")?, self.order)?;
            changes.write_display(&path.join("num-ring-pages")?, 1_u32 << self.order)?;
        }
        if queues.len() > 1 {
            changes.write_display(&path.join("multi-queue-num-queues")?, queues.len())?;
            for (index, queue) in queues.iter().enumerate() {
                let path = Path::format(format_args!("{}/queue-{index}", &**path))?;
                self.tell_queue(changes, &path, queue)?;
            }
        } else if let Some(queue) = queues.first() {
            self.tell_queue(changes, path, queue)?;
        }
        changes.write_display(&path.join("protocol")?, ABI)?;
        // A backend may tell only later whether it keeps pages mapped, when it is too late for us to tell, so this
        // does not depend on it. The protocol allows that: we use the same pages again and again either way.
        changes.write_display(&path.join("feature-persistent")?, u32::from(persistent))
    }

    fn tell_queue<P: Platform>(
        self,
        changes: &mut Changes<'_>,
        path: &Path,
        queue: &Queue<'_, P>,
    ) -> Result<(), xen_xenstore::Error> {
        for (index, gref) in queue.grefs().enumerate() {
            if self.order == 0 {
                changes.write_display(&path.join("ring-ref")?, gref.0)?;
            } else {
                let path = Path::format(format_args!("{}/ring-ref{index}", &**path))?;
                changes.write_display(&path, gref.0)?;
            }
        }
        changes.write_display(&path.join("event-channel")?, queue.channel.port().0)
    }
}
