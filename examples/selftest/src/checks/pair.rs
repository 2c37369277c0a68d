//! Event channels and grants with a second domain of this kind. The front grants and allocates, as frontends do; the
//! back binds, maps and copies; then they change places.
//!
//! They agree by xenstore: the front's `data/offer`, which the back may read, has a port and references. From then on they
//! go step by step, each writing its step to a page that they share and sending an event.

use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};

use check_report::{Failure, Report, ensure};
use xen_evtchn::{Channel, Port, Progress, Status};
use xen_gnttab::{Access, Ended, EndedPages, Error, GrantRef, GrantTable, Version};
use xen_hypercall::{DomId, PAGE_SIZE};
use xen_ring::Backing;
use xen_rt::Kernel;
use xen_xenstore::Xenstore;

use super::loopback::{GrantCopyError, copy_from, copy_to, refused};
use super::{Domain, Events, Grants, PATIENCE, TURN, wait_for};

/// Rounds of events to and fro.
const ROUNDS: u32 = 100;
const BOUND: u32 = 1;
const HELD: u32 = 2;
const ENDED: u32 = 3;
const LET_GO: u32 = 4;
const RECLAIMED: u32 = 5;
const FIRST_ROUND: u32 = 10;
const OFFERED_BACK: u32 = FIRST_ROUND + ROUNDS + 1;
const USED_BACK: u32 = OFFERED_BACK + 1;
const OVER: u32 = OFFERED_BACK + 2;

/// What the front offers, as numbers in its node.
#[derive(Debug)]
struct Offer {
    port: Port,
    ring: [GrantRef; 2],
    lent: GrantRef,
    held: GrantRef,
    /// Zero without version 2.
    part: GrantRef,
}

impl Offer {
    fn parse(text: &str) -> Option<Self> {
        let numbers: Vec<u32> = text.split(' ').map(str::parse).collect::<Result<_, _>>().ok()?;
        let [port, first, second, lent, held, part] = numbers[..] else { return None };
        let ring = [GrantRef(first), GrantRef(second)];
        Some(Self {
            port: Port(port),
            ring,
            lent: GrantRef(lent),
            held: GrantRef(held),
            part: GrantRef(part),
        })
    }
}

struct Side<'a> {
    events: &'static Events,
    grants: &'a Grants,
    store: Xenstore<'static, &'static Kernel>,
    own: DomId,
    peer: DomId,
}

/// One end of the line, with the memory of the steps.
struct Line<'a, M> {
    events: &'static Events,
    channel: Channel<'static, &'static Kernel>,
    memory: M,
    /// Where our step is; the other's is in the other one of the first two words.
    word: usize,
    _grants: &'a Grants,
}

impl<M: Backing> Line<'_, M> {
    /// Comes to a step, and waits for the other one to come there.
    fn meet(&mut self, step: u32) -> Result<(), Failure> {
        self.memory.mem().write_bytes(self.word * 4, &step.to_le_bytes())?;
        fence(Ordering::SeqCst);
        self.channel.notify()?;
        let Self { events, channel, memory, word, .. } = self;
        let what = alloc::format!("the peer's step {step}");
        wait_for(events, None, &what, || {
            channel.take();
            let mut other = [0; 4];
            memory.mem().read_bytes((1 - *word) * 4, &mut other)?;
            if u32::from_le_bytes(other) >= step {
                return Ok(Some(()));
            }
            channel.done(Progress::Work);
            Ok(None)
        })
    }
}

pub(super) fn run(
    domain: &Domain,
    role: &str,
    version: Version,
    events: &'static Events,
    report: &mut Report,
) {
    let (mut table, mut store, mut numbers) = (None, None, None);
    report.check("pair/start", || {
        table = Some(GrantTable::with_version(domain.token, version)?);
        let mut xs = Xenstore::new(events)?;
        let own = DomId(xs.read_parsed("domid")?);
        let deadline = xs.now() + PATIENCE;
        let peer = xs.wait_for::<u16>("data/peer", deadline, |_| true)?;
        numbers = Some((own, DomId(peer.ok_or(Failure("nobody wrote data/peer".into()))?)));
        store = Some(xs);
        Ok(())
    });
    let (Some(grants), Some(store), Some((own, peer))) = (&table, store, numbers) else { return };
    let mut side = Side { events, grants, store, own, peer };
    // What fails on the way is a failure of the whole.
    let result = match role {
        "front" => front(&mut side, report),
        "back" => back(&mut side, report),
        _ => Err(Failure("there is front and back".into())),
    };
    report.check(&alloc::format!("pair/{role}"), || result);
}

fn front(side: &mut Side<'_>, report: &mut Report) -> Result<(), Failure> {
    let (grants, peer) = (side.grants, side.peer);
    let ring = grants.share_pages(2, peer, Access::ReadWrite)?;
    let mut lent = grants.share(peer, Access::ReadOnly)?;
    lent.write_bytes(8, b"the lent")?;
    let held = grants.share(peer, Access::ReadWrite)?;
    let mut part = None;
    if grants.version() == Version::V2 {
        let mut page = grants.alloc_page()?;
        page.bytes_mut()[256..264].copy_from_slice(b"the part");
        part = Some(grants.grant_part(page, peer, Access::ReadOnly, 256, 8).map_err(Error::from)?);
    }
    let channel = side.events.alloc_unbound(peer)?;
    let grefs: Vec<u32> = ring.grefs().map(|gref| gref.0).collect();
    let part_gref = part.as_ref().map_or(0, |page| page.gref().0);
    let offer = alloc::format!(
        "{} {} {} {} {} {part_gref}",
        channel.port().0,
        grefs[0],
        grefs[1],
        lent.gref().0,
        held.gref().0
    );
    let own = side.own.0;
    side.store.transaction(|transaction| {
        transaction.write("data/offer", offer.as_bytes())?;
        transaction.set_permissions("data/offer", &alloc::format!("n{own}\0r{}", peer.0))
    })?;
    let mut line = Line { events: side.events, channel, memory: ring, word: 0, _grants: grants };
    report.check("pair/bound", || {
        line.meet(BOUND)?;
        let status = line.channel.status()?;
        ensure!(matches!(status, Status::Interdomain { remote, .. } if remote == peer), "{status:?}");
        Ok(())
    });
    report.check("pair/ring-in-use", || {
        ensure!(line.memory.in_use() == 2, "{} of 2 pages", line.memory.in_use());
        Ok(())
    });
    line.meet(HELD)?;
    report.check("pair/quarantine", || {
        ensure!(held.in_use() && held.peer() == peer, "the peer does not use the page");
        ensure!(matches!(held.end(), Ended::Quarantined), "a page in use came back");
        ensure!(grants.reclaim() == 0, "reclaimed while the peer has it");
        Ok(())
    });
    line.meet(ENDED)?;
    line.meet(LET_GO)?;
    report.check("pair/reclaim", || {
        ensure!(grants.reclaim() == 1 && grants.stats().quarantined == 0, "{:?}", grants.stats());
        Ok(())
    });
    line.meet(RECLAIMED)?;
    rounds(&mut line, report);
    line.meet(OFFERED_BACK)?;
    let mut words = [0; 8];
    line.memory.mem().read_bytes(PAGE_SIZE, &mut words)?;
    let word =
        |at: usize| GrantRef(u32::from_le_bytes([words[at], words[at + 1], words[at + 2], words[at + 3]]));
    let (theirs, passed) = (word(0), word(4));
    report.check("pair/the-other-way", || {
        let mut mapped = grants.map::<1>(peer, &[theirs])?;
        mapped.mem().write_bytes(0, b"by front")?;
        mapped.unmap()?;
        ensure!(&copy_from(grants, peer, theirs, 8)? == b"by back.", "another text");
        Ok(())
    });
    if passed.0 != 0 {
        report.check("pair/transitive", || {
            ensure!(&copy_from(grants, peer, passed, 8)? == b"the lent", "another text");
            Ok(())
        });
    }
    line.meet(USED_BACK)?;
    line.meet(OVER)?;
    report.check("pair/peer-closes", || {
        // Xen tells nobody of it.
        wait_for(line.events, Some(TURN), "the peer's end", || {
            let gone = line.channel.status()? == (Status::Unbound { remote: peer });
            Ok((gone && line.memory.in_use() == 0).then_some(()))
        })?;
        ensure!(matches!(line.memory.end(), EndedPages::Pages(_)), "the pages did not come back");
        Ok(())
    });
    Ok(())
}

/// Events to and fro.
fn rounds<M: Backing>(line: &mut Line<'_, M>, report: &mut Report) {
    report.check("pair/ping-pong", || {
        for round in 0..ROUNDS {
            line.meet(FIRST_ROUND + round)?;
        }
        let stats = line.channel.stats();
        ensure!(stats.events > 0 && stats.notifications >= ROUNDS.into(), "{stats:?}");
        Ok(())
    });
}

fn back(side: &mut Side<'_>, report: &mut Report) -> Result<(), Failure> {
    let (grants, peer) = (side.grants, side.peer);
    let offer = wait_for_offer(side)?;
    let channel = side.events.bind_interdomain(peer, offer.port)?;
    report.check("pair/status", || {
        let status = channel.status()?;
        ensure!(status == (Status::Interdomain { remote: peer, port: offer.port }), "{status:?}");
        Ok(())
    });
    report.check("pair/bind-once", || {
        let again = side.events.bind_interdomain(peer, offer.port).map(drop);
        ensure!(again.is_err(), "bound a second time");
        Ok(())
    });
    let ring = grants.map::<2>(peer, &offer.ring)?;
    let mut line = Line { events: side.events, channel, memory: ring, word: 1, _grants: grants };
    report.check("pair/bound", || line.meet(BOUND));
    lent(grants, peer, &offer, report);
    let held = grants.map::<1>(peer, &[offer.held])?;
    line.meet(HELD)?;
    line.meet(ENDED)?;
    held.unmap()?;
    line.meet(LET_GO)?;
    line.meet(RECLAIMED)?;
    report.fails_with("pair/map-after-the-end", grants.map::<1>(peer, &[offer.held]).map(drop), refused);
    let copied = copy_from(grants, peer, offer.held, 0);
    report.fails_with("pair/copy-after-the-end", copied, GrantCopyError::is_refused);
    rounds(&mut line, report);
    let mut page = grants.share(peer, Access::ReadWrite)?;
    page.write_bytes(8, b"by back.")?;
    let mut passed = None;
    if grants.version() == Version::V2 {
        passed = Some(grants.grant_transitive(peer, Access::ReadOnly, peer, offer.lent)?);
    }
    line.memory.mem().write_bytes(PAGE_SIZE, &page.gref().0.to_le_bytes())?;
    let passed_gref = passed.as_ref().map_or(0, |passed| passed.gref().0);
    line.memory.mem().write_bytes(PAGE_SIZE + 4, &passed_gref.to_le_bytes())?;
    line.meet(OFFERED_BACK)?;
    line.meet(USED_BACK)?;
    report.check("pair/the-other-way", || {
        let mut text = [0; 8];
        page.read_bytes(0, &mut text)?;
        ensure!(&text == b"by front", "{text:?}");
        ensure!(page.end().page().is_some(), "the page did not come back");
        Ok(())
    });
    line.meet(OVER)?;
    report.check("pair/unmap", || {
        line.memory.unmap()?;
        ensure!(grants.stats().lost_room == 0, "{:?}", grants.stats());
        Ok(())
    });
    Ok(())
}

/// Reading what the peer lends, and not writing to it.
fn lent(grants: &Grants, peer: DomId, offer: &Offer, report: &mut Report) {
    report.check("pair/copy", || {
        ensure!(&copy_from(grants, peer, offer.lent, 8)? == b"the lent", "another text");
        Ok(())
    });
    report.check("pair/map-for-reading", || {
        let (mut mapped, mut text) = (grants.map_for_reading::<1>(peer, &[offer.lent])?, [0; 8]);
        mapped.read_bytes(8, &mut text)?;
        ensure!(&text == b"the lent", "{text:?}");
        Ok(mapped.unmap()?)
    });
    report.fails_with("pair/map-lent-for-writing", grants.map::<1>(peer, &[offer.lent]).map(drop), refused);
    let written = copy_to(grants, peer, offer.lent, 0, b"not this");
    report.fails_with("pair/copy-to-lent", written, GrantCopyError::is_refused);
    let half = grants.map_for_reading::<2>(peer, &[offer.lent, GrantRef(1 << 30)]).map(drop);
    report.fails_with("pair/map-all-or-none", half, refused);
    let nothing = grants.map::<1>(peer, &[GrantRef(400)]).map(drop);
    report.fails_with("pair/map-what-is-not-granted", nothing, refused);
    if offer.part.0 != 0 {
        report.check("pair/part", || {
            ensure!(&copy_from(grants, peer, offer.part, 256)? == b"the part", "another text");
            Ok(())
        });
        let beyond = copy_from(grants, peer, offer.part, 257);
        report.fails_with("pair/part-beyond", beyond, GrantCopyError::is_refused);
        let mapped = grants.map_for_reading::<1>(peer, &[offer.part]).map(drop);
        report.fails_with("pair/part-cannot-be-mapped", mapped, refused);
    }
}

/// Reads the front's node, which is not there or not to be read at first.
fn wait_for_offer(side: &mut Side<'_>) -> Result<Offer, Failure> {
    let path = alloc::format!("/local/domain/{}/data/offer", side.peer.0);
    let text = wait_for(side.events, Some(TURN), "the front's offer", || {
        Ok(side.store.read_str(&path).map(String::from).ok())
    })?;
    Offer::parse(&text).ok_or(Failure(alloc::format!("the offer is {text:?}")))
}
