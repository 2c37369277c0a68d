//! A guest that grants and ends in every way, a peer that maps, copies, keeps and lets go at will, against a plain model.
//!
//! What the peer can reach is what the mock's Xen has noted, not what the entries say: it is the judge of whether a page
//! may come back.
#![cfg(feature = "mock")]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use xen_gnttab::{
    Access, CopyDest, CopySource, Ended, EndedPages, Error, GrantRef, GrantStatus, GrantTable, GrantedPage,
    GrantedPages, LentPage, MappedGrants, Reference, Version, mock,
};
use xen_hypercall::mock::{Chance, Dice, MockDomain, MockXen};
use xen_hypercall::{DomId, Gfn, PAGE_SIZE};

const BACK: DomId = DomId(0);
const FRONT: DomId = DomId(1);
const STRANGER: DomId = DomId(2);
/// Where a part of a page is granted, and how much of it.
const PART: (usize, usize) = (64, 256);

#[derive(Clone, Copy, Debug)]
enum Op {
    Share { writable: bool },
    ShareMany { allocs: usize },
    ShareRun { count: usize, writable: bool },
    Lend,
    Part,
    Reserve,
    GrantByReference,
    DropReference,
    End { grant: usize },
    Drop { grant: usize },
    TakeBack { grant: usize },
    Reclaim { all: bool },
    Map { grant: usize, page: usize, writable: bool },
    MapAny { gref: u32, writable: bool, stranger: bool },
    MapByHypercall { grant: usize, page: usize },
    Write { mapping: usize, value: u8 },
    Unmap { mapping: usize },
    Copy { grant: usize, write: bool, value: u8 },
    LetGo,
}

fn op() -> impl Strategy<Value = Op> {
    let index = 0..64usize;
    let writable = any::<bool>();
    prop_oneof![
        4 => writable.prop_map(|writable| Op::Share { writable }),
        1 => (0..6usize).prop_map(|allocs| Op::ShareMany { allocs }),
        3 => (1..5usize, writable).prop_map(|(count, writable)| Op::ShareRun { count, writable }),
        1 => Just(Op::Lend),
        2 => Just(Op::Part),
        1 => Just(Op::Reserve),
        2 => Just(Op::GrantByReference),
        1 => Just(Op::DropReference),
        3 => index.clone().prop_map(|grant| Op::End { grant }),
        2 => index.clone().prop_map(|grant| Op::Drop { grant }),
        2 => index.clone().prop_map(|grant| Op::TakeBack { grant }),
        2 => writable.prop_map(|all| Op::Reclaim { all }),
        6 => (index.clone(), 0..4usize, writable)
            .prop_map(|(grant, page, writable)| Op::Map { grant, page, writable }),
        2 => (0..60u32, writable, writable)
            .prop_map(|(gref, writable, stranger)| Op::MapAny { gref, writable, stranger }),
        2 => (index.clone(), 0..4usize).prop_map(|(grant, page)| Op::MapByHypercall { grant, page }),
        3 => (index.clone(), 1..100u8).prop_map(|(mapping, value)| Op::Write { mapping, value }),
        5 => index.clone().prop_map(|mapping| Op::Unmap { mapping }),
        3 => (index, writable, 1..100u8)
            .prop_map(|(grant, write, value)| Op::Copy { grant, write, value }),
        1 => Just(Op::LetGo),
    ]
}

/// Percent of uses that go wrong.
fn faults() -> impl Strategy<Value = [u8; 5]> {
    prop_oneof![1 => Just([0; 5]), 2 => prop::array::uniform5(prop_oneof![Just(0u8), 5..40u8])]
}

type Table = GrantTable<MockDomain>;

enum Held<'g> {
    Page(GrantedPage<'g, MockDomain>),
    Run(GrantedPages<'g, MockDomain>),
    Lent(LentPage<'g, MockDomain>),
    Part(GrantedPage<'g, MockDomain>),
}

/// A grant, or several that end together, as the model knows it.
#[derive(Clone, Debug, PartialEq)]
struct Known {
    pages: Vec<(GrantRef, Gfn)>,
    writable: bool,
    /// Cannot be mapped.
    part: bool,
}

enum Mapping<'g> {
    Backend(mock::MockMapping),
    Guest(MappedGrants<'g, MockDomain, 1>),
}

impl Mapping<'_> {
    fn write(&mut self, value: u8) {
        let mem = match self {
            Self::Backend(mapping) => mapping.mem(),
            Self::Guest(mapping) => mapping.mem(),
        };
        mem.write_bytes(PART.0, &[value; PART.1]).unwrap();
    }
}

struct World<'g> {
    xen: MockXen,
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
    next: u8,
}

impl<'g> World<'g> {
    fn uses(&self, gref: GrantRef) -> usize {
        mock::uses_of(&self.xen, FRONT, gref)
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
                page.write_bytes(PART.0, &content).unwrap();
                (vec![(page.gref(), page.gfn())], false)
            }
            Held::Run(run) => {
                let grefs: Vec<GrantRef> = run.grefs().collect();
                assert_eq!(grefs.len(), run.count());
                for index in 0..run.count() {
                    run.write_bytes(index * PAGE_SIZE + PART.0, &content).unwrap();
                }
                let gfns = (0..run.count()).map(|index| run.gfn(index).unwrap());
                (grefs.into_iter().zip(gfns).collect(), false)
            }
            Held::Lent(page) => {
                let known = page.bytes()[PART.0];
                let gfn = Gfn(u64::from_le_bytes(page.bytes()[..8].try_into().unwrap()));
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
                self.open.extend(grefs.filter(|gref| mock::uses_of(&self.xen, FRONT, *gref) > 0));
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
        let room = self.grants.len() < 24;
        let access = |writable| if writable { Access::ReadWrite } else { Access::ReadOnly };
        match op {
            Op::Share { writable } if room => {
                let mut page = self.table.share(BACK, access(writable)).unwrap();
                let mut zero = [1; PAGE_SIZE];
                page.read_bytes(0, &mut zero).unwrap();
                assert_eq!(zero, [0; PAGE_SIZE]);
                self.add(Held::Page(page), writable);
            }
            Op::ShareMany { allocs } if room => {
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
            Op::ShareRun { count, writable } if room => {
                let run = self.table.share_pages(count, BACK, access(writable)).unwrap();
                self.add(Held::Run(run), writable);
            }
            Op::Lend if room => {
                let mut page = self.table.alloc_page().unwrap();
                let gfn = page.gfn().0.to_le_bytes();
                page.bytes_mut()[..8].copy_from_slice(&gfn);
                page.bytes_mut()[PART.0..][..PART.1].fill(100);
                let lent = self.table.lend(page, BACK).unwrap();
                self.add(Held::Lent(lent), false);
            }
            Op::Part if room => {
                let page = self.table.alloc_page().unwrap();
                match self.table.grant_part(page, BACK, Access::ReadWrite, PART.0, PART.1) {
                    Ok(page) => self.add(Held::Part(page), true),
                    Err(rejected) => assert_eq!(rejected.error, Error::NeedsVersion2),
                }
            }
            Op::Reserve if self.references.len() < 4 => {
                let reference = self.table.reserve().unwrap();
                assert!(!self.taken().contains(&reference.gref()));
                self.references.push(reference);
            }
            Op::GrantByReference if room => {
                let Some(reference) = self.references.pop() else { return };
                let page = self.table.alloc_page().unwrap();
                let page = reference.grant(page, BACK, Access::ReadWrite).unwrap();
                self.add(Held::Page(page), true);
            }
            Op::DropReference => drop(self.references.pop()),
            Op::End { grant } => {
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
            Op::Drop { grant } => {
                let Some((held, known, used)) = self.take(grant) else { return };
                drop(held);
                self.ended(known, used, !used);
            }
            Op::TakeBack { grant } => {
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
            Op::Reclaim { all } => {
                let (kept, free): (Vec<_>, Vec<_>) =
                    self.quarantined.drain(..).collect::<Vec<_>>().into_iter().partition(|known| {
                        known.pages.iter().any(|(gref, _)| mock::uses_of(&self.xen, FRONT, *gref) > 0)
                    });
                self.quarantined = kept;
                let pages: Vec<_> = free.iter().flat_map(|known| &known.pages).collect();
                let reclaimed = if all { self.table.reclaim() } else { self.table.reclaim_some() };
                assert_eq!(reclaimed, pages.len());
                self.open.retain(|gref| mock::uses_of(&self.xen, FRONT, *gref) > 0);
                self.contents.retain(|gfn, _| pages.iter().all(|(_, other)| other != gfn));
            }
            Op::Map { grant, page, writable } => {
                let Some((_, known)) = self.grants.get(grant % self.grants.len().max(1)) else { return };
                let known = known.clone();
                let (gref, gfn) = known.pages[page % known.pages.len()];
                match mock::map(&self.peer, FRONT, gref, writable) {
                    Ok(mapping) => {
                        assert!(!known.part && (known.writable || !writable));
                        self.mappings.push((Mapping::Backend(mapping), gref, gfn, writable));
                    }
                    Err(GrantStatus::EAGAIN | GrantStatus::NO_SPACE) => {}
                    Err(status) => {
                        assert!(known.part || (writable && !known.writable));
                        assert_eq!(status, GrantStatus::GENERAL_ERROR);
                    }
                }
            }
            // Anybody tries any reference: the peer may get what is granted to it, or what it still uses.
            Op::MapAny { gref, writable, stranger } => {
                let gref = GrantRef(gref);
                let known = self.grants.iter().map(|(_, known)| known).chain(&self.quarantined);
                let pages = known.flat_map(|known| known.pages.iter().map(|page| (*page, known.writable)));
                let found = pages.clone().find(|((other, _), _)| *other == gref);
                let domain = if stranger { self.xen.domain(STRANGER) } else { self.peer.clone() };
                let used = self.uses(gref);
                if let Ok(mapping) = mock::map(&domain, FRONT, gref, writable) {
                    let ((_, gfn), may_write) = found.expect("mapped what nobody grants");
                    let granted = self.grants.iter().any(|(_, known)| known.pages.contains(&(gref, gfn)));
                    assert!(!stranger && (may_write || !writable));
                    assert!(granted || used > 0 || self.open.contains(&gref), "granted no more");
                    self.mappings.push((Mapping::Backend(mapping), gref, gfn, writable));
                }
            }
            Op::MapByHypercall { grant, page } => {
                let Some((_, known)) = self.grants.get(grant % self.grants.len().max(1)) else { return };
                let (gref, gfn) = known.pages[page % known.pages.len()];
                let allowed = known.writable && !known.part;
                match self.theirs.map::<1>(FRONT, &[gref]) {
                    Ok(mapping) => {
                        assert!(allowed);
                        self.mappings.push((Mapping::Guest(mapping), gref, gfn, true));
                    }
                    Err(Error::Refused { status: GrantStatus::EAGAIN | GrantStatus::NO_SPACE, .. }) => {}
                    Err(error) => {
                        assert!(!allowed);
                        assert_eq!(error, Error::Refused { gref, status: GrantStatus::GENERAL_ERROR });
                    }
                }
            }
            Op::Write { mapping, value } => {
                let index = mapping % self.mappings.len().max(1);
                let Some((mapping, _, gfn, true)) = self.mappings.get_mut(index) else { return };
                mapping.write(value);
                *self.contents.get_mut(gfn).expect("a page that is mapped is known") = value;
            }
            Op::Unmap { mapping } => {
                let index = mapping % self.mappings.len().max(1);
                if index < self.mappings.len() {
                    self.mappings.swap_remove(index);
                }
            }
            Op::Copy { grant, write, value } => {
                let Some((_, known)) = self.grants.get(grant % self.grants.len().max(1)) else { return };
                let (gref, gfn) = known.pages[0];
                let mut local = self.theirs.alloc_page().unwrap();
                local.bytes_mut().fill(value);
                let mut batch = self.theirs.copies::<1>();
                let at = PART.0;
                if write {
                    let to = CopyDest::grant(FRONT, gref).at(at);
                    batch.add(CopySource::page(&local).at(at), to, PART.1).unwrap();
                } else {
                    let from = CopySource::grant(FRONT, gref).at(at);
                    batch.add(from, CopyDest::page(&mut local).at(at), PART.1).unwrap();
                }
                batch.run().unwrap();
                let done = batch.status(0).unwrap() == GrantStatus::OKAY;
                assert!(!done || !write || known.writable);
                if done && write {
                    self.contents.insert(gfn, value);
                } else if done {
                    assert_eq!(local.bytes()[at..][..PART.1], [self.contents[&gfn]; PART.1]);
                }
            }
            Op::LetGo => drop(mock::release_kept(&self.xen)),
            _ => {}
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

fn run(version: Version, seed: u64, percent: [u8; 5], ops: &[Op]) {
    let xen = MockXen::new();
    mock::install(&xen);
    let (guest, peer) = (xen.domain(FRONT), xen.domain(BACK));
    xen.domain(STRANGER);
    let table = GrantTable::with_version(&guest.boot().unwrap(), version).unwrap();
    let theirs = GrantTable::new(&peer.boot().unwrap()).unwrap();
    let (before, room) = (guest.pages_in_use(), peer.room_in_use());
    let [again, copy, map, unmap, keep] = percent.map(Chance::percent);
    let mut faults = mock::Faults::new();
    (faults.again, faults.copy, faults.map, faults.unmap, faults.keep) = (again, copy, map, unmap, keep);
    mock::set_faults(&xen, Dice::new(seed), faults);
    let mut world = World {
        xen: xen.clone(),
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
        next: 1,
    };
    for op in ops {
        world.step(*op);
        world.check();
    }
    // The peer lets go of everything but what it was not allowed to unmap.
    mock::set_faults(&xen, Dice::new(seed), mock::Faults::new());
    world.mappings.clear();
    mock::release_kept(&xen);
    let lost = theirs.stats().lost_room as usize;
    assert_eq!((mock::mapped_by(&xen, BACK), mock::mappings_of(&xen, FRONT)), (lost, lost));
    assert_eq!(peer.room_in_use(), room + lost);
    drop(world);
    table.reclaim();
    let stats = table.stats();
    assert_eq!((stats.in_use, stats.free + stats.quarantined), (0, stats.refs));
    assert_eq!(guest.pages_in_use(), before + stats.quarantined as usize);
    assert!(if lost == 0 { stats.quarantined == 0 } else { stats.quarantined > 0 });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pages_of_version_1_stay_as_long_as_anybody_can_reach_them(
        seed in any::<u64>(), percent in faults(), ops in prop::collection::vec(op(), 1..150)
    ) {
        run(Version::V1, seed, percent, &ops);
    }

    #[test]
    fn pages_of_version_2_stay_as_long_as_anybody_can_reach_them(
        seed in any::<u64>(), percent in faults(), ops in prop::collection::vec(op(), 1..150)
    ) {
        run(Version::V2, seed, percent, &ops);
    }
}
