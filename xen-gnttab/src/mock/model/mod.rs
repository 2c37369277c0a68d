//! What a grant table has to do for a guest that grants and ends in every way, whatever its peer maps, copies, keeps and lets
//! go of: for property tests and fuzzers.
//!
//! What the peer can reach is what the mock's Xen has noted, not what the entries say: that is the judge of whether a page
//! may come back. A page that somebody can reach stays what it is, and every reference is counted once. The model panics, as
//! tests do, when the table does another thing.
#![allow(unsafe_code)]

mod peer;
mod restless;

use std::collections::{BTreeMap, BTreeSet};
use std::format;
use std::vec;
use std::vec::Vec;

use xen_hypercall::mock::{Dice, MockDomain, MockXen};
use xen_hypercall::sched::Resumed;
use xen_hypercall::{DomId, Domain, Gfn, PAGE_SIZE};

use crate::mock::{self, Faults};
use crate::{
    Access, Ended, EndedPages, Error, GrantRef, GrantTable, GrantedPage, GrantedPages, LentPage, Reference,
    Version,
};
use peer::Mapping;

const BACK: DomId = DomId(0);
const FRONT: DomId = DomId(1);
const STRANGER: DomId = DomId(2);
/// Where a part of a page is granted, and how much of it; and where all that is looked at is.
const PART: (usize, usize) = (64, 256);
/// Grants at the same time.
const GRANTS: usize = 24;

/// What happens next. Grants and mappings are named by number; one beyond those there are counts from the first again.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// [`GrantTable::share`], for writing or not.
    Share(bool),
    /// [`GrantTable::share_many`] of four pages, when so many allocations succeed.
    ShareMany(usize),
    /// [`GrantTable::share_pages`]: so many, for writing or not.
    ShareRun(usize, bool),
    /// [`GrantTable::lend`].
    Lend,
    /// [`GrantTable::grant_part`]: from this byte so many, to be ended at once; or one that stays.
    Part(Option<(usize, usize)>),
    /// [`GrantTable::reserve`].
    Reserve,
    /// [`Reference::grant`].
    GrantByReference,
    /// A reference is given back.
    DropReference,
    /// A grant is ended.
    End(usize),
    /// A grant is dropped.
    Drop(usize),
    /// A grant is taken back, and its reference kept.
    TakeBack(usize),
    /// [`GrantTable::reclaim`], or [`reclaim_some`](GrantTable::reclaim_some).
    Reclaim(bool),
    /// The peer maps a page of a grant, for writing or not.
    Map(usize, usize, bool),
    /// Somebody maps any reference, for writing or not: the peer, or a stranger.
    MapAny(GrantRef, bool, bool),
    /// The peer maps a page of a grant as a guest does.
    MapByHypercall(usize, usize),
    /// The peer writes to what it has mapped.
    Write(usize, u8),
    /// The peer unmaps a page.
    Unmap(usize),
    /// The peer copies from a grant, or to it.
    Copy(usize, bool, u8),
    /// The peer copies by any reference from a byte to a byte of its own so many, within and beyond the pages.
    CopyAny(GrantRef, usize, usize, usize),
    /// The peer lets go of what it kept in use by [`Faults::keep`].
    LetGo,
    /// The guest is suspended and goes on as a new domain, where its peer has let go of everything. The grants whose bit is set,
    /// of as many as there are bits, are granted again; the others stay stale.
    Migrate(u32),
    /// A grant of version 1 is taken away while its flags change: the first are set at the beginning, and each other is
    /// changed before the next exchange.
    Restless([u8; 7]),
}

/// A guest with a table of this version and its peer, two domains of a machine without any, do all this. Uses go wrong by chance.
/// At the end all is let go of. The machine has grant tables [installed](mock::install).
///
/// # Panics
/// If the table does what it should not.
pub fn run(xen: &MockXen, version: Version, dice: Dice, faults: Faults, ops: impl IntoIterator<Item = Op>) {
    let (guest, peer) = (xen.domain(FRONT), xen.domain(BACK));
    xen.domain(STRANGER);
    let token = guest.boot().expect("a token");
    let table = GrantTable::with_version(&token, version).expect("a fresh guest");
    let theirs = GrantTable::new(&peer.boot().expect("a token")).expect("a fresh domain");
    let (before, room) = (guest.pages_in_use(), peer.room_in_use());
    mock::set_faults(xen, dice, faults);
    let mut world = World {
        xen: xen.clone(),
        token: &token,
        table: &table,
        theirs: &theirs,
        guest: guest.clone(),
        peer: peer.clone(),
        grants: Vec::new(),
        references: Vec::new(),
        mappings: Vec::new(),
        quarantined: Vec::new(),
        open: BTreeSet::new(),
        contents: BTreeMap::new(),
        lost: 0,
        next: 1,
    };
    for op in ops {
        xen.trace(|| format!("-- {op:?}"));
        world.step(op);
        world.check();
    }
    // The peer lets go of everything but what it was not allowed to unmap.
    mock::set_faults(xen, Dice::new(0), Faults::new());
    world.mappings.clear();
    mock::release_kept(xen);
    let lost = theirs.stats().lost_room as usize;
    // Of the guest as it is now.
    let of_this = lost - world.lost;
    assert_eq!((mock::mapped_by(xen, BACK), mock::mappings_of(xen, guest.id())), (lost, of_this));
    assert_eq!(peer.room_in_use(), room + lost);
    drop(world);
    table.reclaim();
    let stats = table.stats();
    assert_eq!((stats.in_use, stats.free + stats.quarantined), (0, stats.refs));
    assert_eq!(guest.pages_in_use(), before + stats.quarantined as usize);
    assert!(if of_this == 0 { stats.quarantined == 0 } else { stats.quarantined > 0 });
}

type Table = GrantTable<MockDomain>;

enum Held<'g> {
    Page(GrantedPage<'g, MockDomain>),
    Run(GrantedPages<'g, MockDomain>),
    Lent(LentPage<'g, MockDomain>),
    Part(GrantedPage<'g, MockDomain>),
}

impl Held<'_> {
    fn is_current(&self) -> bool {
        match self {
            Self::Page(page) | Self::Part(page) => page.is_current(),
            Self::Run(run) => run.is_current(),
            Self::Lent(page) => page.is_current(),
        }
    }

    fn regrant(&mut self) {
        let granted = match self {
            Self::Page(page) | Self::Part(page) => page.regrant(BACK),
            Self::Run(run) => run.regrant(BACK),
            Self::Lent(page) => page.regrant(BACK),
        };
        granted.expect("as the model says");
    }
}

/// A grant, or several that end together, as the model knows it.
#[derive(Clone, Debug, PartialEq)]
struct Known {
    pages: Vec<(GrantRef, Gfn)>,
    writable: bool,
    /// Cannot be mapped.
    part: bool,
}

struct World<'g> {
    xen: MockXen,
    token: &'g Domain<MockDomain>,
    table: &'g Table,
    /// The peer's own table, by which it maps as a guest does.
    theirs: &'g Table,
    guest: MockDomain,
    peer: MockDomain,
    grants: Vec<(Held<'g>, Known)>,
    references: Vec<Reference<'g, MockDomain>>,
    mappings: Vec<(Mapping<'g>, GrantRef, Gfn, bool)>,
    quarantined: Vec<Known>,
    /// References in quarantine by which the peer can use the page anew after it has let go, until the next sweep: an entry of
    /// version 1 cannot be changed while it is in use.
    open: BTreeSet<GrantRef>,
    /// What is in each page that is granted or in quarantine.
    contents: BTreeMap<Gfn, u8>,
    /// What the peer could not unmap in earlier lives.
    lost: usize,
    next: u8,
}

impl<'g> World<'g> {
    fn uses(&self, gref: GrantRef) -> usize {
        mock::uses_of(&self.xen, self.guest.id(), gref)
    }

    fn used(&self, known: &Known) -> bool {
        known.pages.iter().any(|(gref, _)| self.uses(*gref) > 0)
    }

    /// Notes a new grant, after checking that nobody has a hand on what it consists of.
    fn add(&mut self, mut held: Held<'g>, writable: bool) {
        self.next = self.next % 99 + 1;
        let content = [self.next; PART.1];
        let (pages, part) = match &mut held {
            Held::Page(page) | Held::Part(page) => {
                page.write_bytes(PART.0, &content).expect("as the model says");
                (vec![(page.gref(), page.gfn())], false)
            }
            Held::Run(run) => {
                let grefs: Vec<GrantRef> = run.grefs().collect();
                assert_eq!(grefs.len(), run.count());
                for index in 0..run.count() {
                    run.write_bytes(index * PAGE_SIZE + PART.0, &content).expect("as the model says");
                }
                let gfns = (0..run.count()).map(|index| run.gfn(index).expect("as the model says"));
                (grefs.into_iter().zip(gfns).collect(), false)
            }
            Held::Lent(page) => {
                let known = page.bytes()[PART.0];
                let gfn = Gfn(u64::from_le_bytes(page.bytes()[..8].try_into().expect("as the model says")));
                self.next = known;
                (vec![(page.gref(), gfn)], false)
            }
        };
        let part = part || matches!(held, Held::Part(_));
        for (gref, gfn) in &pages {
            assert_eq!(self.uses(*gref), 0, "a reference in use was handed out");
            assert!(!self.contents.contains_key(gfn), "a page that a peer may reach was handed out");
            self.contents.insert(*gfn, self.next);
        }
        let mut grefs = self.taken();
        assert!(pages.iter().all(|(gref, _)| grefs.insert(*gref)), "a reference was handed out twice");
        self.grants.push((held, Known { pages, writable, part }));
    }

    /// References that are somebody's.
    fn taken(&self) -> BTreeSet<GrantRef> {
        let known = self.grants.iter().map(|(_, known)| known).chain(&self.quarantined);
        let granted = known.flat_map(|known| known.pages.iter().map(|(gref, _)| *gref));
        granted.chain(self.references.iter().map(Reference::gref)).collect()
    }

    /// The grant of `known` has ended: `came_back` or not.
    fn ended(&mut self, known: Known, used: bool, came_back: bool) {
        assert_eq!(came_back, !used, "{known:?}");
        if came_back {
            self.contents.retain(|gfn, _| known.pages.iter().all(|(_, other)| other != gfn));
        } else {
            if self.table.version() == Version::V1 {
                let grefs = known.pages.iter().map(|(gref, _)| *gref);
                self.open.extend(grefs.filter(|gref| mock::uses_of(&self.xen, self.guest.id(), *gref) > 0));
            }
            self.quarantined.push(known);
        }
    }

    fn take(&mut self, grant: usize) -> Option<(Held<'g>, Known, bool)> {
        let index = grant % self.grants.len().max(1);
        if index >= self.grants.len() {
            return None;
        }
        let (held, known) = self.grants.swap_remove(index);
        let used = self.used(&known);
        Some((held, known, used))
    }

    fn step(&mut self, op: Op) {
        let room = self.grants.len() < GRANTS;
        let access = |writable| if writable { Access::ReadWrite } else { Access::ReadOnly };
        match op {
            Op::Share(writable) if room => {
                let mut page = self.table.share(BACK, access(writable)).expect("as the model says");
                let mut zero = [1; PAGE_SIZE];
                page.read_bytes(0, &mut zero).expect("as the model says");
                assert_eq!(zero, [0; PAGE_SIZE]);
                self.add(Held::Page(page), writable);
            }
            Op::ShareMany(allocs) if room => {
                self.guest.fail_allocs_after(Some(allocs));
                let pages = self.table.share_many::<4>(BACK, Access::ReadWrite);
                self.guest.fail_allocs_after(None);
                match pages {
                    Ok(pages) => {
                        assert!(allocs >= 4);
                        pages.into_iter().for_each(|page| self.add(Held::Page(page), true));
                    }
                    Err(error) => assert!(error == Error::OutOfMemory && allocs < 4),
                }
            }
            Op::ShareRun(count, writable) if room => {
                let run = self.table.share_pages(count, BACK, access(writable)).expect("as the model says");
                self.add(Held::Run(run), writable);
            }
            Op::Lend if room => {
                let mut page = self.table.alloc_page().expect("as the model says");
                let gfn = page.gfn().0.to_le_bytes();
                page.bytes_mut()[..8].copy_from_slice(&gfn);
                page.bytes_mut()[PART.0..][..PART.1].fill(100);
                let lent = self.table.lend(page, BACK).expect("as the model says");
                self.add(Held::Lent(lent), false);
            }
            Op::Part(part) if room => {
                let page = self.table.alloc_page().expect("memory enough");
                let (offset, len) = part.unwrap_or(PART);
                let legal = len > 0 && offset.checked_add(len).is_some_and(|end| end <= PAGE_SIZE);
                match self.table.grant_part(page, BACK, Access::ReadWrite, offset, len) {
                    Ok(page) if part.is_none() => self.add(Held::Part(page), true),
                    Ok(page) => assert!(legal && matches!(page.end(), Ended::Page(_))),
                    Err(rejected) if self.table.version() == Version::V1 => {
                        assert_eq!(rejected.error, Error::NeedsVersion2);
                    }
                    Err(rejected) => assert!(!legal && rejected.error == Error::BadRange),
                }
            }
            Op::Reserve if self.references.len() < 4 => {
                let reference = self.table.reserve().expect("as the model says");
                assert!(!self.taken().contains(&reference.gref()));
                self.references.push(reference);
            }
            Op::GrantByReference if room => {
                let Some(reference) = self.references.pop() else { return };
                let page = self.table.alloc_page().expect("as the model says");
                let page = reference.grant(page, BACK, Access::ReadWrite).expect("as the model says");
                self.add(Held::Page(page), true);
            }
            Op::DropReference => drop(self.references.pop()),
            Op::End(grant) => {
                let Some((held, known, used)) = self.take(grant) else { return };
                let came_back = match held {
                    Held::Page(page) | Held::Part(page) => match page.end() {
                        Ended::Page(page) => page.bytes()[PART.0] == self.contents[&page.gfn()],
                        Ended::Quarantined => false,
                    },
                    Held::Lent(page) => page.end().page().is_some(),
                    Held::Run(run) => match run.end() {
                        EndedPages::Pages(pages) => pages.count() == known.pages.len(),
                        EndedPages::Quarantined => false,
                    },
                };
                self.ended(known, used, came_back);
            }
            Op::Drop(grant) => {
                let Some((held, known, used)) = self.take(grant) else { return };
                drop(held);
                self.ended(known, used, !used);
            }
            Op::TakeBack(grant) => {
                let Some((held, known, used)) = self.take(grant) else { return };
                let taken = match held {
                    Held::Page(page) | Held::Part(page) => page.take_back(),
                    Held::Lent(page) => page.take_back(),
                    run @ Held::Run(_) => {
                        self.grants.push((run, known));
                        return;
                    }
                };
                let gref = known.pages[0].0;
                self.ended(known, used, taken.is_some());
                if let Some((_, reference)) = taken {
                    assert_eq!(reference.gref(), gref);
                    self.references.push(reference);
                }
            }
            Op::Reclaim(all) => {
                let (kept, free): (Vec<_>, Vec<_>) =
                    self.quarantined.drain(..).collect::<Vec<_>>().into_iter().partition(|known| {
                        known
                            .pages
                            .iter()
                            .any(|(gref, _)| mock::uses_of(&self.xen, self.guest.id(), *gref) > 0)
                    });
                self.quarantined = kept;
                let pages: Vec<_> = free.iter().flat_map(|known| &known.pages).collect();
                let reclaimed = if all { self.table.reclaim() } else { self.table.reclaim_some() };
                assert_eq!(reclaimed, pages.len());
                self.open.retain(|gref| mock::uses_of(&self.xen, self.guest.id(), *gref) > 0);
                self.contents.retain(|gfn, _| pages.iter().all(|(_, other)| other != gfn));
            }
            Op::LetGo => drop(mock::release_kept(&self.xen)),
            Op::Migrate(again) => self.migrate(again),
            Op::Restless(changes) => restless::revoke(&changes),
            _ => self.peer(op),
        }
    }

    fn migrate(&mut self, again: u32) {
        self.mappings.clear();
        self.lost = self.theirs.stats().lost_room as usize;
        // SAFETY: one thread, which is between two calls, and the guest has nothing mapped.
        let resumed = unsafe { self.token.suspend() };
        assert_eq!(resumed, Ok(Resumed::InNewDomain));
        assert!(self.grants.iter().all(|(held, _)| !held.is_current()));
        self.table.resume().expect("a Xen like the one before");
        assert_eq!(self.table.stats().free, self.table.stats().refs);
        (self.quarantined, self.open, self.contents) = (Vec::new(), BTreeSet::new(), BTreeMap::new());
        self.references.clear();
        for (index, (mut held, known)) in core::mem::take(&mut self.grants).into_iter().enumerate() {
            let wanted = again & 1 << (index % 32) != 0;
            if !wanted {
                // Something of the new life that has a number of the old one's.
                let reference = self.table.reserve().expect("as the model says");
                drop(held);
                drop(reference);
            } else if let Held::Part(page) = held {
                let mut page = page;
                assert_eq!(page.regrant(BACK), Err(Error::BadRange));
                assert!(matches!(page.end(), Ended::Page(_)));
            } else {
                held.regrant();
                self.add(held, known.writable);
            }
        }
    }

    fn check(&mut self) {
        let stats = self.table.stats();
        let count = |known: &Known| known.pages.len();
        let granted: usize = self.grants.iter().map(|(_, known)| count(known)).sum();
        let quarantined: usize = self.quarantined.iter().map(count).sum();
        assert_eq!(stats.in_use as usize, granted + self.references.len());
        assert_eq!(stats.quarantined as usize, quarantined);
        assert_eq!(stats.free + stats.in_use + stats.quarantined, stats.refs);
        assert_eq!(stats.granted, stats.ended + stats.quarantines + granted as u64);
        assert_eq!(stats.quarantines, stats.reclaimed + quarantined as u64);
        assert_eq!(self.taken().len(), granted + quarantined + self.references.len(), "each reference once");
        for (mapping, gref, gfn, _) in &mut self.mappings {
            assert_eq!(
                mapping.bytes(),
                [self.contents[gfn]; PART.1],
                "what a peer has mapped by {gref} is another page"
            );
        }
        // No page that somebody may reach was freed, reused or lost.
        for (gfn, content) in &self.contents {
            let page = self.guest.page_at(*gfn).expect("a page of the guest");
            // SAFETY: a page of the guest, which nobody writes to at this moment.
            let bytes = unsafe { page.cast::<[u8; PAGE_SIZE]>().as_ref() };
            assert_eq!(bytes[PART.0..][..PART.1], [*content; PART.1], "{gfn} was freed or reused");
            assert_ne!(bytes[PAGE_SIZE - 1], 0xDB, "{gfn} was freed");
        }
    }
}
