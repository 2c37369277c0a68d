//! What the peer does with what it was granted, and with what it was not.

use xen_gnttab::{CopyDest, CopySource, Error, GrantRef, GrantStatus, MappedGrants, mock};
use xen_hypercall::PAGE_SIZE;
use xen_hypercall::mock::MockDomain;

use super::{Op, PART, STRANGER, World};
use crate::machine::GUEST;

pub(super) enum Mapping<'g> {
    Backend(mock::MockMapping),
    Guest(MappedGrants<'g, MockDomain, 1>),
}

/// What a peer has mapped, and what it must hold.
pub(super) struct Mapped<'g> {
    pub(super) mapping: Mapping<'g>,
    pub(super) gref: GrantRef,
    pub(super) writable: bool,
}

impl Mapped<'_> {
    pub(super) fn bytes(&mut self) -> [u8; PART.1] {
        let mut bytes = [0; PART.1];
        match &mut self.mapping {
            Mapping::Backend(mapping) => mapping.mem().read_bytes(PART.0, &mut bytes),
            Mapping::Guest(mapping) => mapping.mem().read_bytes(PART.0, &mut bytes),
        }
        .expect("within the page");
        bytes
    }

    pub(super) fn write(&mut self, value: u8) {
        match &mut self.mapping {
            Mapping::Backend(mapping) => mapping.mem().write_bytes(PART.0, &[value; PART.1]),
            Mapping::Guest(mapping) => mapping.mem().write_bytes(PART.0, &[value; PART.1]),
        }
        .expect("within the page");
    }
}

impl World<'_> {
    /// What the peer does.
    pub(super) fn peer(&mut self, op: &Op) {
        match *op {
            Op::Map { grant, page, writable } => {
                let Some((gref, maps, may_write)) = self.page(grant, page) else { return };
                let allowed = maps && (may_write || !writable);
                match mock::map(&self.peer, GUEST, gref, writable) {
                    Ok(mapping) => {
                        assert!(allowed);
                        self.mapped.push(Mapped { mapping: Mapping::Backend(mapping), gref, writable });
                    }
                    Err(GrantStatus::EAGAIN | GrantStatus::NO_SPACE) => {}
                    Err(status) => assert!(!allowed, "{status:?}"),
                }
            }
            Op::MapAny { ref gref, writable, stranger } => {
                let gref = GrantRef(gref.get());
                let domain = if stranger { self.xen.domain(STRANGER) } else { self.peer.clone() };
                let used = self.uses(gref);
                if let Ok(mapping) = mock::map(&domain, GUEST, gref, writable) {
                    assert!(!stranger && self.contents.contains_key(&gref), "mapped what nobody grants");
                    let granted = self.grants.iter().any(|(held, _)| held.grefs().contains(&gref));
                    assert!(granted || used > 0 || self.open.contains(&gref), "granted no more");
                    self.mapped.push(Mapped { mapping: Mapping::Backend(mapping), gref, writable });
                }
            }
            Op::MapByHypercall { grant, page } => {
                let Some((gref, maps, may_write)) = self.page(grant, page) else { return };
                match self.theirs.map::<1>(GUEST, &[gref]) {
                    Ok(mapping) => {
                        assert!(maps && may_write);
                        self.mapped.push(Mapped { mapping: Mapping::Guest(mapping), gref, writable: true });
                    }
                    Err(Error::Refused { status: GrantStatus::EAGAIN | GrantStatus::NO_SPACE, .. }) => {}
                    Err(error) => assert!(!maps || !may_write, "{error}"),
                }
            }
            Op::Write { mapping, value } => {
                let index = usize::from(mapping) % self.mapped.len().max(1);
                let Some(mapped) = self.mapped.get_mut(index).filter(|mapped| mapped.writable) else {
                    return;
                };
                mapped.write(value);
                self.contents.insert(mapped.gref, value);
            }
            Op::Unmap { mapping } => {
                let index = usize::from(mapping) % self.mapped.len().max(1);
                if index < self.mapped.len() {
                    self.mapped.swap_remove(index);
                }
            }
            Op::Copy { grant, write, value } => {
                let Some((gref, _, may_write)) = self.page(grant, 0) else { return };
                let mut local = self.theirs.alloc_page().expect("memory enough");
                local.bytes_mut().fill(value);
                let mut batch = self.theirs.copies::<1>();
                let at = PART.0;
                let added = if write {
                    batch.add(CopySource::page(&local).at(at), CopyDest::grant(GUEST, gref).at(at), PART.1)
                } else {
                    batch.add(
                        CopySource::grant(GUEST, gref).at(at),
                        CopyDest::page(&mut local).at(at),
                        PART.1,
                    )
                };
                added.expect("within the pages");
                batch.run().expect("a hypercall that is there");
                let done = batch.status(0) == Some(GrantStatus::OKAY);
                assert!(!done || !write || may_write);
                if done && write {
                    self.contents.insert(gref, value);
                } else if done {
                    assert_eq!(local.bytes()[at..][..PART.1], [self.contents[&gref]; PART.1]);
                }
            }
            Op::CopyAny { ref gref, from, to, len } => {
                let mut local = self.theirs.alloc_page().expect("memory enough");
                let mut batch = self.theirs.copies::<1>();
                let source = CopySource::grant(GUEST, GrantRef(gref.get())).at(from.into());
                let (to, len) = (usize::from(to), usize::from(len));
                match batch.add(source, CopyDest::page(&mut local).at(to), len) {
                    Ok(_) => {
                        assert!(to + len <= PAGE_SIZE && usize::from(from) + len <= PAGE_SIZE);
                        batch.run().expect("a hypercall that is there");
                    }
                    Err(_) => {
                        assert!(to + len > PAGE_SIZE || usize::from(from) + len > PAGE_SIZE || len == 0)
                    }
                }
            }
            _ => {}
        }
    }
}
