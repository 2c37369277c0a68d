//! A guest that grants and ends in every way, and a peer that maps, copies, keeps and lets go at will.
//!
//! What the peer can reach is what the mock's Xen has noted, not what the entries say: it is the judge of whether a page
//! may come back. What a peer has mapped stays what it is, and every reference is counted once.

mod peer;

use std::collections::{BTreeMap, BTreeSet};

use xen_gnttab::{
    Access, Ended, EndedPages, Error, GrantRef, GrantTable, GrantedPage, GrantedPages, LentPage, Reference,
    Version, mock,
};
use xen_hypercall::mock::{Dice, MockDomain, MockXen};
use xen_hypercall::{DomId, PAGE_SIZE};

use crate::input::{Input, Number, Ops, chance, input};
use crate::machine::{BACK, GUEST, Xen, attempt};
use peer::Mapped;

const STRANGER: DomId = DomId(2);
/// Where a part of a page is granted, and how much of it; and where all that is looked at is.
const PART: (usize, usize) = (64, 256);
const GRANTS: usize = 24;

input! {
    /// What is tried.
    pub struct Plan {
        /// Whether the table is of version 2.
        version2: bool,
        seed: u32,
        /// How often each goes wrong, in the order of [`mock::Faults`].
        faults: [u8; 5],
        ops: Ops<Op>,
    }

    /// What happens next.
    pub enum Op {
        Share { writable: bool },
        /// Four pages, when so many allocations succeed.
        ShareMany { allocs: u8 },
        ShareRun { count: u8, writable: bool },
        Lend,
        Part { offset: u16, len: u16 },
        Reserve,
        GrantByReference,
        DropReference,
        End { grant: u8 },
        Drop { grant: u8 },
        TakeBack { grant: u8 },
        Reclaim { all: bool },
        /// The peer maps a page of a grant.
        Map { grant: u8, page: u8, writable: bool },
        /// Somebody maps any reference.
        MapAny { gref: Number, writable: bool, stranger: bool },
        /// The peer maps as a guest does.
        MapByHypercall { grant: u8, page: u8 },
        Write { mapping: u8, value: u8 },
        Unmap { mapping: u8 },
        Copy { grant: u8, write: bool, value: u8 },
        /// Copies anywhere, within and beyond the pages.
        CopyAny { gref: Number, from: u16, to: u16, len: u16 },
        LetGo,
    }
}

type Table = GrantTable<MockDomain>;

enum Held<'g> {
    Page(GrantedPage<'g, MockDomain>),
    Run(GrantedPages<'g, MockDomain>),
    Lent(LentPage<'g, MockDomain>),
    Part(GrantedPage<'g, MockDomain>),
}

impl Held<'_> {
    fn grefs(&self) -> Vec<GrantRef> {
        match self {
            Self::Page(page) | Self::Part(page) => vec![page.gref()],
            Self::Run(run) => run.grefs().collect(),
            Self::Lent(page) => vec![page.gref()],
        }
    }

    fn is_writable(&self) -> bool {
        match self {
            Self::Page(page) | Self::Part(page) => page.access() == Access::ReadWrite,
            // How a run was granted is noted with it.
            Self::Run(_) => true,
            Self::Lent(_) => false,
        }
    }
}

struct World<'g> {
    xen: MockXen,
    table: &'g Table,
    /// The peer's own table, by which it maps as a guest does.
    theirs: &'g Table,
    guest: MockDomain,
    peer: MockDomain,
    grants: Vec<(Held<'g>, bool)>,
    references: Vec<Reference<'g, MockDomain>>,
    mapped: Vec<Mapped<'g>>,
    quarantined: Vec<Vec<GrantRef>>,
    /// References in quarantine that the peer can use anew until the next sweep: an entry of version 1 cannot be changed
    /// while it is in use.
    open: BTreeSet<GrantRef>,
    /// What is in each page that is granted or in quarantine.
    contents: BTreeMap<GrantRef, u8>,
    next: u8,
}

impl<'g> World<'g> {
    fn uses(&self, gref: GrantRef) -> usize {
        mock::uses_of(&self.xen, GUEST, gref)
    }

    fn add(&mut self, mut held: Held<'g>, writable: bool) {
        self.next = self.next % 99 + 1;
        let content = [self.next; PART.1];
        match &mut held {
            Held::Page(page) | Held::Part(page) => {
                page.write_bytes(PART.0, &content).expect("within the page")
            }
            Held::Run(run) => {
                for index in 0..run.count() {
                    run.write_bytes(index * PAGE_SIZE + PART.0, &content).expect("within the pages");
                }
            }
            Held::Lent(page) => self.next = page.bytes()[PART.0],
        }
        let writable = writable && held.is_writable();
        for gref in held.grefs() {
            assert_eq!(self.uses(gref), 0, "a reference in use was handed out");
            assert_eq!(self.contents.insert(gref, self.next), None, "a reference was handed out twice");
        }
        assert!(self.references.iter().all(|reference| !held.grefs().contains(&reference.gref())));
        self.grants.push((held, writable));
    }

    /// A grant has ended: it came back or not.
    fn ended(&mut self, grefs: Vec<GrantRef>, used: bool, came_back: bool) {
        assert_eq!(came_back, !used, "{grefs:?}");
        if came_back {
            self.contents.retain(|gref, _| !grefs.contains(gref));
        } else {
            if self.table.version() == Version::V1 {
                let used: Vec<_> = grefs.iter().copied().filter(|gref| self.uses(*gref) > 0).collect();
                self.open.extend(used);
            }
            self.quarantined.push(grefs);
        }
    }

    fn take(&mut self, grant: u8) -> Option<(Held<'g>, bool, Vec<GrantRef>, bool)> {
        let index = usize::from(grant) % self.grants.len().max(1);
        if index >= self.grants.len() {
            return None;
        }
        let (held, writable) = self.grants.swap_remove(index);
        let grefs = held.grefs();
        let used = grefs.iter().any(|gref| self.uses(*gref) > 0);
        Some((held, writable, grefs, used))
    }

    /// A grant's page: its reference, and whether it may be mapped, and for writing.
    fn page(&self, grant: u8, page: u8) -> Option<(GrantRef, bool, bool)> {
        let (held, writable) = self.grants.get(usize::from(grant) % self.grants.len().max(1))?;
        let grefs = held.grefs();
        Some((grefs[usize::from(page) % grefs.len()], !matches!(held, Held::Part(_)), *writable))
    }

    fn grant(&mut self, op: &Op) {
        let access = |writable| if writable { Access::ReadWrite } else { Access::ReadOnly };
        match *op {
            Op::Share { writable } => {
                let mut page = self.table.share(BACK, access(writable)).expect("references enough");
                let mut zero = [1; PAGE_SIZE];
                page.read_bytes(0, &mut zero).expect("a page");
                assert_eq!(zero, [0; PAGE_SIZE]);
                self.add(Held::Page(page), writable);
            }
            Op::ShareMany { allocs } => {
                let allocs = usize::from(allocs % 6);
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
            Op::ShareRun { count, writable } => {
                let count = 1 + usize::from(count % 4);
                let run = self.table.share_pages(count, BACK, access(writable)).expect("references enough");
                assert_eq!((run.count(), run.grefs().count()), (count, count));
                self.add(Held::Run(run), writable);
            }
            Op::Lend => {
                let mut page = self.table.alloc_page().expect("memory enough");
                page.bytes_mut()[PART.0..][..PART.1].fill(100);
                let lent =
                    self.table.lend(page, BACK).unwrap_or_else(|rejected| panic!("{}", rejected.error));
                self.add(Held::Lent(lent), false);
            }
            Op::Part { offset, len } => {
                let page = self.table.alloc_page().expect("memory enough");
                let whole = offset % 2 == 0;
                let (offset, len) = if whole { PART } else { (offset.into(), len.into()) };
                match self.table.grant_part(page, BACK, Access::ReadWrite, offset, len) {
                    Ok(page) if whole => self.add(Held::Part(page), true),
                    Ok(page) => {
                        assert!(offset + len <= PAGE_SIZE && len > 0);
                        assert!(matches!(page.end(), Ended::Page(_)));
                    }
                    Err(rejected) if self.table.version() == Version::V1 => {
                        assert_eq!(rejected.error, Error::NeedsVersion2);
                    }
                    Err(_) => assert!(!whole && (offset + len > PAGE_SIZE || len == 0)),
                }
            }
            Op::GrantByReference => {
                let Some(reference) = self.references.pop() else { return };
                let page = self.table.alloc_page().expect("memory enough");
                match reference.grant(page, BACK, Access::ReadWrite) {
                    Ok(page) => self.add(Held::Page(page), true),
                    Err(_) => panic!("a page of this table, and a reference of it"),
                }
            }
            _ => {}
        }
    }

    fn step(&mut self, op: &Op) {
        match *op {
            Op::Share { .. }
            | Op::ShareMany { .. }
            | Op::ShareRun { .. }
            | Op::Lend
            | Op::Part { .. }
            | Op::GrantByReference => {
                if self.grants.len() < GRANTS {
                    self.grant(op);
                }
            }
            Op::Reserve => {
                if self.references.len() < 4 {
                    let reference = self.table.reserve().expect("references enough");
                    assert!(!self.contents.contains_key(&reference.gref()), "somebody has it");
                    self.references.push(reference);
                }
            }
            Op::DropReference => drop(self.references.pop()),
            Op::End { grant } => {
                let Some((held, _, grefs, used)) = self.take(grant) else { return };
                let content = self.contents[&grefs[0]];
                let came_back = match held {
                    Held::Page(page) | Held::Part(page) => match page.end() {
                        Ended::Page(page) => page.bytes()[PART.0] == content,
                        Ended::Quarantined => false,
                    },
                    Held::Lent(page) => page.end().page().is_some(),
                    Held::Run(run) => match run.end() {
                        EndedPages::Pages(pages) => pages.count() == grefs.len(),
                        EndedPages::Quarantined => false,
                    },
                };
                self.ended(grefs, used, came_back);
            }
            Op::Drop { grant } => {
                let Some((held, _, grefs, used)) = self.take(grant) else { return };
                drop(held);
                self.ended(grefs, used, !used);
            }
            Op::TakeBack { grant } => {
                let Some((held, writable, grefs, used)) = self.take(grant) else { return };
                let taken = match held {
                    Held::Page(page) | Held::Part(page) => page.take_back(),
                    Held::Lent(page) => page.take_back(),
                    run @ Held::Run(_) => {
                        self.grants.push((run, writable));
                        return;
                    }
                };
                let gref = grefs[0];
                self.ended(grefs, used, taken.is_some());
                if let Some((_, reference)) = taken {
                    assert_eq!(reference.gref(), gref);
                    self.references.push(reference);
                }
            }
            Op::Reclaim { all } => {
                let all_of_them = std::mem::take(&mut self.quarantined);
                let (kept, free): (Vec<_>, Vec<_>) =
                    all_of_them.into_iter().partition(|grefs| grefs.iter().any(|gref| self.uses(*gref) > 0));
                self.quarantined = kept;
                let reclaimed = if all { self.table.reclaim() } else { self.table.reclaim_some() };
                assert_eq!(reclaimed, free.iter().map(Vec::len).sum::<usize>());
                let open = std::mem::take(&mut self.open);
                self.open = open.into_iter().filter(|gref| self.uses(*gref) > 0).collect();
                self.contents.retain(|gref, _| !free.iter().any(|grefs| grefs.contains(gref)));
            }
            Op::LetGo => drop(mock::release_kept(&self.xen)),
            _ => self.peer(op),
        }
    }

    fn check(&mut self) {
        let stats = self.table.stats();
        let granted: usize = self.grants.iter().map(|(held, _)| held.grefs().len()).sum();
        let quarantined: usize = self.quarantined.iter().map(Vec::len).sum();
        assert_eq!(stats.in_use as usize, granted + self.references.len());
        assert_eq!(stats.quarantined as usize, quarantined);
        assert_eq!(stats.free + stats.in_use + stats.quarantined, stats.refs);
        assert_eq!(self.contents.len(), granted + quarantined);
        // No page that somebody can reach was freed or reused: its content would be another.
        for mapped in &mut self.mapped {
            let content = self.contents[&mapped.gref];
            assert_eq!(mapped.bytes(), [content; PART.1], "{:?} was freed or reused", mapped.gref);
        }
    }
}

/// Tries an input.
pub fn run(data: &[u8]) {
    attempt(data, |plan: &Plan| attempt_plan(plan));
}

fn attempt_plan(plan: &Plan) {
    let xen = Xen::new();
    let (guest, peer) = (xen.domain(GUEST), xen.domain(BACK));
    xen.domain(STRANGER);
    let version = if plan.version2 { Version::V2 } else { Version::V1 };
    let table = GrantTable::with_version(&guest.boot().expect("a token"), version).expect("a fresh guest");
    let theirs = GrantTable::new(&peer.boot().expect("a token")).expect("a fresh domain");
    let (before, room) = (guest.pages_in_use(), peer.room_in_use());
    let mut faults = mock::Faults::new();
    [faults.again, faults.copy, faults.map, faults.unmap, faults.keep] = plan.faults.map(chance);
    mock::set_faults(&xen, Dice::new(plan.seed.into()), faults);
    let mut world = World {
        xen: MockXen::clone(&xen),
        table: &table,
        theirs: &theirs,
        guest: guest.clone(),
        peer: peer.clone(),
        grants: Vec::new(),
        references: Vec::new(),
        mapped: Vec::new(),
        quarantined: Vec::new(),
        open: BTreeSet::new(),
        contents: BTreeMap::new(),
        next: 1,
    };
    for op in &plan.ops.0 {
        xen.trace(|| format!("-- {op:?}"));
        world.step(op);
        world.check();
    }
    // The peer lets go of everything but what it was not allowed to unmap.
    mock::set_faults(&xen, Dice::new(0), mock::Faults::new());
    world.mapped.clear();
    mock::release_kept(&xen);
    let lost = theirs.stats().lost_room as usize;
    assert_eq!((mock::mapped_by(&xen, BACK), mock::mappings_of(&xen, GUEST)), (lost, lost));
    assert_eq!(peer.room_in_use(), room + lost);
    drop(world);
    table.reclaim();
    let stats = table.stats();
    assert_eq!((stats.in_use, stats.free + stats.quarantined), (0, stats.refs));
    assert_eq!(guest.pages_in_use(), before + stats.quarantined as usize);
    assert!(if lost == 0 { stats.quarantined == 0 } else { stats.quarantined > 0 });
}

/// Inputs to begin with.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let ops = || {
        vec![
            Op::Share { writable: true },
            Op::ShareRun { count: 2, writable: false },
            Op::Lend,
            Op::Part { offset: 0, len: 0 },
            Op::Part { offset: 4095, len: 2 },
            Op::ShareMany { allocs: 5 },
            Op::Map { grant: 0, page: 0, writable: true },
            Op::Write { mapping: 0, value: 9 },
            Op::MapByHypercall { grant: 0, page: 0 },
            Op::Copy { grant: 0, write: false, value: 3 },
            Op::Copy { grant: 0, write: true, value: 3 },
            Op::CopyAny { gref: Number::Up { by: 8 }, from: 4000, to: 0, len: 97 },
            Op::End { grant: 0 },
            Op::Reserve,
            Op::GrantByReference,
            Op::TakeBack { grant: 1 },
            Op::MapAny { gref: Number::Up { by: 9 }, writable: false, stranger: true },
            Op::Unmap { mapping: 0 },
            Op::Reclaim { all: false },
            Op::Unmap { mapping: 0 },
            Op::Reclaim { all: true },
            Op::Drop { grant: 0 },
            Op::DropReference,
            Op::LetGo,
        ]
    };
    let plan = |version2, often| {
        Plan { version2, seed: 1, faults: [often; 5], ops: Ops([ops(), ops()].concat()) }.bytes()
    };
    vec![
        ("version-1", plan(false, 0)),
        ("version-2", plan(true, 0)),
        ("faults", plan(true, 150)),
        ("faults-1", plan(false, 150)),
    ]
}
