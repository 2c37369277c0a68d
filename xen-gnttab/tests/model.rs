//! A guest that shares and ends, a peer that maps and lets go, both at will, against a plain model.
#![cfg(feature = "mock")]

use std::collections::BTreeSet;

use proptest::prelude::*;
use xen_gnttab::{Access, Ended, GrantRef, GrantStatus, GrantTable, GrantedPage, mock};
use xen_hypercall::mock::{MockDomain, MockXen};
use xen_hypercall::{DomId, Gfn};

const DOM0: DomId = DomId(0);
const GUEST: DomId = DomId(1);

#[derive(Clone, Copy, Debug)]
enum Op {
    Share { writable: bool },
    End { grant: usize },
    Drop { grant: usize },
    Reclaim,
    Map { grant: usize, writable: bool },
    MapStale { gref: u32, writable: bool },
    Write { mapping: usize, value: u8 },
    Unmap { mapping: usize },
    Copy { grant: usize },
}

fn op() -> impl Strategy<Value = Op> {
    let (index, writable) = (0..64usize, any::<bool>());
    prop_oneof![
        5 => writable.prop_map(|writable| Op::Share { writable }),
        2 => index.clone().prop_map(|grant| Op::End { grant }),
        2 => index.clone().prop_map(|grant| Op::Drop { grant }),
        1 => Just(Op::Reclaim),
        5 => (index.clone(), writable).prop_map(|(grant, writable)| Op::Map { grant, writable }),
        2 => (0..40u32, writable).prop_map(|(gref, writable)| Op::MapStale { gref, writable }),
        2 => (index.clone(), any::<u8>()).prop_map(|(mapping, value)| Op::Write { mapping, value }),
        4 => index.clone().prop_map(|mapping| Op::Unmap { mapping }),
        1 => index.prop_map(|grant| Op::Copy { grant }),
    ]
}

/// What the page of a grant must hold, as long as anybody can see it.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Known {
    gref: GrantRef,
    gfn: Gfn,
    writable: bool,
    content: u8,
}

struct World<'g> {
    table: &'g GrantTable<MockDomain>,
    peer: MockDomain,
    grants: Vec<(GrantedPage<'g, MockDomain>, Known)>,
    mappings: Vec<(mock::MockMapping, Known)>,
    /// Ended while they were mapped.
    quarantined: Vec<Known>,
    next_content: u8,
}

impl World<'_> {
    fn mapped(&self, gref: GrantRef) -> usize {
        self.mappings.iter().filter(|(mapping, _)| mapping.gref() == gref).count()
    }

    fn step(&mut self, op: Op) {
        let grants = self.grants.len().max(1);
        let mappings = self.mappings.len().max(1);
        match op {
            Op::Share { writable } if self.grants.len() < 24 => {
                let access = if writable { Access::ReadWrite } else { Access::ReadOnly };
                let mut page = self.table.share(DOM0, access).unwrap();
                let fresh =
                    Known { gref: page.gref(), gfn: page.gfn(), writable, content: self.next_content };
                self.next_content = self.next_content.wrapping_add(1) % 100;
                let mut zero = [1; 16];
                page.read_bytes(0, &mut zero).unwrap();
                assert_eq!(zero, [0; 16]);
                page.write_bytes(0, &[fresh.content; 4096]).unwrap();
                for known in self.visible() {
                    assert_ne!(known.gref, fresh.gref, "a reference in use was handed out");
                    assert_ne!(known.gfn, fresh.gfn, "a page in use was handed out");
                }
                self.grants.push((page, fresh));
            }
            Op::Share { .. } => {}
            Op::End { grant } | Op::Drop { grant } => {
                let index = grant % grants;
                if index >= self.grants.len() {
                    return;
                }
                let (mut page, known) = self.grants.swap_remove(index);
                let used = self.mapped(known.gref) > 0;
                assert_eq!(page.in_use(), used);
                let mut content = [0; 4096];
                page.read_bytes(0, &mut content).unwrap();
                assert_eq!(content, [known.content; 4096]);
                if matches!(op, Op::Drop { .. }) {
                    drop(page);
                } else {
                    match page.end() {
                        Ended::Page(page) => {
                            assert!(!used, "came back while the peer has it");
                            assert_eq!(page.bytes(), &[known.content; 4096]);
                        }
                        Ended::Quarantined => assert!(used),
                    }
                }
                if used {
                    self.quarantined.push(known);
                }
            }
            Op::Reclaim => {
                let free: Vec<Known> =
                    self.quarantined.iter().filter(|known| self.mapped(known.gref) == 0).copied().collect();
                assert_eq!(self.table.reclaim(), free.len());
                self.quarantined.retain(|known| !free.contains(known));
            }
            Op::Map { grant, writable } => {
                let Some((_, known)) = self.grants.get(grant % grants) else { return };
                let known = *known;
                match mock::map(&self.peer, GUEST, known.gref, writable) {
                    Ok(mapping) => {
                        assert!(known.writable || !writable);
                        self.mappings.push((mapping, known));
                    }
                    Err(status) => {
                        assert!(writable && !known.writable);
                        assert_eq!(status, GrantStatus::GENERAL_ERROR);
                    }
                }
            }
            // The peer tries any reference: it may get what is granted, or what it has mapped still.
            Op::MapStale { gref, writable } => {
                let known = self.visible().find(|known| known.gref == GrantRef(gref));
                if let Ok(mapping) = mock::map(&self.peer, GUEST, GrantRef(gref), writable) {
                    let known = known.expect("mapped what is not granted");
                    assert!(known.writable || !writable);
                    self.mappings.push((mapping, known));
                }
            }
            Op::Write { mapping, value } => {
                let Some((mapping, known)) = self.mappings.get_mut(mapping % mappings) else { return };
                if !mapping.is_writable() {
                    return;
                }
                let (gref, value) = (known.gref, value % 100);
                mapping.mem().write_bytes(0, &[value; 4096]).unwrap();
                let all = self
                    .grants
                    .iter_mut()
                    .map(|(_, known)| known)
                    .chain(self.mappings.iter_mut().map(|(_, known)| known))
                    .chain(self.quarantined.iter_mut());
                all.filter(|known| known.gref == gref).for_each(|known| known.content = value);
            }
            Op::Unmap { mapping } => {
                if !self.mappings.is_empty() {
                    self.mappings.swap_remove(mapping % mappings);
                }
            }
            Op::Copy { grant } => {
                let Some((_, known)) = self.grants.get(grant % grants) else { return };
                let mut out = [0; 32];
                mock::copy_from(&self.peer, GUEST, known.gref, 4064, &mut out).unwrap();
                assert_eq!(out, [known.content; 32]);
            }
        }
    }

    /// Everything that the guest or the peer still has a hand on.
    fn visible(&self) -> impl Iterator<Item = Known> + '_ {
        let grants = self.grants.iter().map(|(_, known)| *known);
        let mappings = self.mappings.iter().map(|(_, known)| *known);
        grants.chain(mappings).chain(self.quarantined.iter().copied())
    }

    fn check(&mut self) {
        let stats = self.table.stats();
        assert_eq!(stats.in_use as usize, self.grants.len());
        assert_eq!(stats.quarantined as usize, self.quarantined.len());
        assert_eq!(stats.free + stats.in_use + stats.quarantined, stats.refs);
        let live: BTreeSet<GrantRef> = self.grants.iter().map(|(page, _)| page.gref()).collect();
        assert_eq!(live.len(), self.grants.len(), "references are unique");
        for (mapping, known) in &mut self.mappings {
            let mut seen = [0; 4096];
            mapping.mem().read_bytes(0, &mut seen).unwrap();
            assert_eq!(seen, [known.content; 4096], "the page was freed or reused under the peer's hands");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pages_stay_as_long_as_anybody_can_reach_them(ops in prop::collection::vec(op(), 1..120)) {
        let xen = MockXen::new();
        mock::install(&xen);
        let guest = xen.domain(GUEST);
        let table = GrantTable::new(guest.clone()).unwrap();
        let before = guest.pages_in_use();
        let mut world = World {
            table: &table,
            peer: xen.domain(DOM0),
            grants: Vec::new(),
            mappings: Vec::new(),
            quarantined: Vec::new(),
            next_content: 1,
        };
        for op in &ops {
            world.step(*op);
            world.check();
        }
        let quarantined = world.quarantined.len();
        world.mappings.clear();
        assert_eq!(table.reclaim(), quarantined);
        drop(world);
        assert_eq!(table.stats().free, table.stats().refs);
        assert_eq!(mock::mappings_of(&xen, GUEST), 0);
        assert_eq!(guest.pages_in_use(), before);
    }
}
