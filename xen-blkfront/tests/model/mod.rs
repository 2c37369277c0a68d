//! What each sector of a disk may hold, when any number of operations is under way.

#![allow(unreachable_pub, reason = "a module of a test")]

use std::collections::{BTreeMap, BTreeSet};

use xen_blkfront::Error;

pub const SECTORS: u64 = 256;
/// What a discarded sector holds, by the mock.
const DISCARDED: u32 = u32::MAX;

/// Sectors that tell which write they are of, and where they belong.
pub fn encode(at: u64, count: u64, tag: u32) -> Vec<u8> {
    (at..at + count).map(|at| (tag ^ place(at)).to_le_bytes().repeat(128)).collect::<Vec<_>>().concat()
}

fn place(at: u64) -> u32 {
    (at as u32).wrapping_mul(0x9E37_79B1)
}

/// The write that a sector is of; none: of no single one.
pub fn decode(at: u64, bytes: &[u8]) -> Option<u32> {
    if bytes.iter().all(|byte| *byte == 0xDC) {
        return Some(DISCARDED);
    }
    let word = <[u8; 4]>::try_from(&bytes[..4]).unwrap();
    (bytes[4..] == bytes[..bytes.len() - 4]).then(|| u32::from_le_bytes(word) ^ place(at))
}

type Tags = BTreeSet<u32>;

/// Tags that each sector may hold.
pub struct Model {
    /// By the operations that are done, and those under way.
    now: Vec<Tags>,
    /// By writes of which nobody knows when they happen, if at all.
    loose: Vec<Tags>,
    /// At the last flush, and by what was written since.
    durable: Vec<Tags>,
    since: Vec<Tags>,
    flying: BTreeMap<usize, Flying>,
    next: u32,
}

struct Flying {
    at: usize,
    /// None: a read.
    tag: Option<u32>,
    /// A read's sectors: what they may hold. A write's: what is written there meanwhile.
    others: Vec<Tags>,
    /// The power failed meanwhile, perhaps after it was done.
    crashed: bool,
}

impl Model {
    pub fn new() -> Self {
        let zero = vec![Tags::from([0]); SECTORS as usize];
        let none = vec![Tags::new(); SECTORS as usize];
        let (durable, since, loose) = (zero.clone(), none.clone(), none);
        Self { now: zero, loose, durable, since, flying: BTreeMap::new(), next: 1 }
    }

    fn id(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    pub fn read(&mut self, at: u64, count: u64) -> usize {
        let id = self.id() as usize;
        let (at, end) = (at as usize, (at + count) as usize);
        let others = (at..end).map(|at| &self.now[at] | &self.loose[at]).collect();
        self.flying.insert(id, Flying { at, tag: None, others, crashed: false });
        id
    }

    pub fn write(&mut self, at: u64, count: u64) -> (usize, u32) {
        let tag = self.id();
        let (at, end) = (at as usize, (at + count) as usize);
        let mut others = vec![Tags::new(); count as usize];
        for flying in self.flying.values_mut() {
            for sector in at.max(flying.at)..end.min(flying.at + flying.others.len()) {
                flying.others[sector - flying.at].insert(tag);
                others[sector - at].extend(flying.tag);
            }
        }
        for sector in at..end {
            self.now[sector].insert(tag);
            self.since[sector].insert(tag);
        }
        self.flying.insert(tag as usize, Flying { at, tag: Some(tag), others, crashed: false });
        (tag as usize, tag)
    }

    /// Was not submitted after all.
    pub fn cancel(&mut self, id: usize) {
        self.end(id, Err(Error::Io));
    }

    pub fn end(&mut self, id: usize, result: Result<(), Error>) {
        let Some(Flying { at, tag: Some(tag), others, crashed }) = self.flying.remove(&id) else { return };
        for (sector, others) in (at..).zip(others) {
            match result {
                Ok(()) if crashed => {}
                Ok(()) => self.now[sector] = &others | &Tags::from([tag]),
                // Done in part, or not at all; what is over is over.
                Err(Error::Io | Error::Unsupported | Error::Status(_)) => {}
                Err(_) => drop(self.loose[sector].insert(tag)),
            }
        }
    }

    pub fn discard(&mut self, at: u64, count: u64) {
        for sector in at as usize..(at + count) as usize {
            self.loose[sector].insert(DISCARDED);
            for flying in self.flying.values_mut() {
                if let Some(others) = sector.checked_sub(flying.at).and_then(|at| flying.others.get_mut(at)) {
                    others.insert(DISCARDED);
                }
            }
        }
    }

    /// Everything that was done before is on the medium.
    pub fn flushed(&mut self) {
        self.durable.clone_from(&self.now);
        self.since.iter_mut().for_each(Tags::clear);
        for flying in self.flying.values() {
            for sector in flying.at..flying.at + flying.others.len() {
                self.since[sector].extend(flying.tag);
            }
        }
    }

    pub fn power_lost(&mut self) {
        self.flying.values_mut().for_each(|flying| flying.crashed = true);
        for sector in 0..self.now.len() {
            self.now[sector] = &self.durable[sector] | &self.since[sector];
            for flying in self.flying.values_mut().filter(|flying| flying.tag.is_none()) {
                if let Some(others) = sector.checked_sub(flying.at).and_then(|at| flying.others.get_mut(at)) {
                    others.extend(&self.now[sector]);
                }
            }
        }
    }

    pub fn check_read(&self, id: usize, bytes: &[u8]) {
        let flying = &self.flying[&id];
        assert_eq!(bytes.len(), flying.others.len() * 512);
        for (at, (bytes, may)) in (flying.at..).zip(bytes.chunks(512).zip(&flying.others)) {
            let tag = decode(at as u64, bytes);
            assert!(tag.is_some_and(|tag| may.contains(&tag)), "sector {at} reads {tag:?}, not {may:?}");
        }
    }

    pub fn check_sector(&self, at: usize, tag: Option<u32>) {
        let may = &self.now[at] | &self.loose[at];
        assert!(tag.is_some_and(|tag| may.contains(&tag)), "sector {at} holds {tag:?}, not {may:?}");
    }
}
