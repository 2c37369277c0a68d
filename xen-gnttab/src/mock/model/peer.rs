//! What the peer does with what it was granted, and with what it was not.

use xen_hypercall::PAGE_SIZE;
use xen_hypercall::mock::MockDomain;

use super::{Op, PART, STRANGER, World};
use crate::{CopyDest, CopySource, Error, GrantStatus, MappedGrants, mock};

/// What the peer has mapped.
pub(super) enum Mapping<'g> {
    Backend(mock::MockMapping),
    Guest(MappedGrants<'g, MockDomain, 1>),
}

impl Mapping<'_> {
    fn write(&mut self, value: u8) {
        let mem = match self {
            Self::Backend(mapping) => mapping.mem(),
            Self::Guest(mapping) => mapping.mem(),
        };
        mem.write_bytes(PART.0, &[value; PART.1]).expect("within the page");
    }

    /// What it must hold.
    pub(super) fn bytes(&mut self) -> [u8; PART.1] {
        let mut bytes = [0; PART.1];
        let mem = match self {
            Self::Backend(mapping) => mapping.mem(),
            Self::Guest(mapping) => mapping.mem(),
        };
        mem.read_bytes(PART.0, &mut bytes).expect("within the page");
        bytes
    }
}

impl World<'_> {
    /// What the peer does.
    pub(super) fn peer(&mut self, op: Op) {
        match op {
            Op::Map(grant, page, writable) => {
                let Some((_, known)) = self.grants.get(grant % self.grants.len().max(1)) else { return };
                let known = known.clone();
                let (gref, gfn) = known.pages[page % known.pages.len()];
                match mock::map(&self.peer, self.guest.id(), gref, writable) {
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
            // The peer may get what is granted to it, or what it still uses.
            Op::MapAny(gref, writable, stranger) => {
                let known = self.grants.iter().map(|(_, known)| known).chain(&self.quarantined);
                let pages = known.flat_map(|known| known.pages.iter().map(|page| (*page, known.writable)));
                let found = pages.clone().find(|((other, _), _)| *other == gref);
                let domain = if stranger { self.xen.domain(STRANGER) } else { self.peer.clone() };
                let used = self.uses(gref);
                if let Ok(mapping) = mock::map(&domain, self.guest.id(), gref, writable) {
                    let ((_, gfn), may_write) = found.expect("mapped what nobody grants");
                    let granted = self.grants.iter().any(|(_, known)| known.pages.contains(&(gref, gfn)));
                    assert!(!stranger && (may_write || !writable));
                    assert!(granted || used > 0 || self.open.contains(&gref), "granted no more");
                    self.mappings.push((Mapping::Backend(mapping), gref, gfn, writable));
                }
            }
            Op::MapByHypercall(grant, page) => {
                let Some((_, known)) = self.grants.get(grant % self.grants.len().max(1)) else { return };
                let (gref, gfn) = known.pages[page % known.pages.len()];
                let allowed = known.writable && !known.part;
                match self.theirs.map::<1>(self.guest.id(), &[gref]) {
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
            Op::Write(mapping, value) => {
                let index = mapping % self.mappings.len().max(1);
                let Some((mapping, _, gfn, true)) = self.mappings.get_mut(index) else { return };
                mapping.write(value);
                *self.contents.get_mut(gfn).expect("a page that is mapped is known") = value;
            }
            Op::Unmap(mapping) => {
                let index = mapping % self.mappings.len().max(1);
                if index < self.mappings.len() {
                    self.mappings.swap_remove(index);
                }
            }
            Op::Copy(grant, write, value) => {
                let Some((_, known)) = self.grants.get(grant % self.grants.len().max(1)) else { return };
                let (gref, gfn) = known.pages[0];
                let mut local = self.theirs.alloc_page().expect("as the model says");
                local.bytes_mut().fill(value);
                let mut batch = self.theirs.copies::<1>();
                let at = PART.0;
                if write {
                    let to = CopyDest::grant(self.guest.id(), gref).at(at);
                    batch.add(CopySource::page(&local).at(at), to, PART.1).expect("as the model says");
                } else {
                    let from = CopySource::grant(self.guest.id(), gref).at(at);
                    batch.add(from, CopyDest::page(&mut local).at(at), PART.1).expect("as the model says");
                }
                batch.run().expect("as the model says");
                let done = batch.status(0).expect("as the model says") == GrantStatus::OKAY;
                assert!(!done || !write || known.writable);
                if done && write {
                    self.contents.insert(gfn, value);
                } else if done {
                    assert_eq!(local.bytes()[at..][..PART.1], [self.contents[&gfn]; PART.1]);
                }
            }
            Op::CopyAny(gref, from, to, len) => {
                let mut local = self.theirs.alloc_page().expect("memory enough");
                let mut batch = self.theirs.copies::<1>();
                let within = |at: usize| at.checked_add(len).is_some_and(|end| end <= PAGE_SIZE);
                let legal = len > 0 && within(from) && within(to);
                let added = batch.add(
                    CopySource::grant(self.guest.id(), gref).at(from),
                    CopyDest::page(&mut local).at(to),
                    len,
                );
                assert_eq!(added.is_ok(), legal);
                if legal {
                    batch.run().expect("a hypercall that is there");
                }
            }
            // Without room for another grant.
            _ => {}
        }
    }
}
