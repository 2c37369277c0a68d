//! What each sector of a disk may hold when any number of operations is under way, and what a disk owes its caller: the
//! model that this crate's property tests and its fuzz target have in common.

use std::collections::{BTreeMap, BTreeSet};
use std::vec;
use std::vec::Vec;

use core::fmt;
use core::time::Duration;

use xen_hypercall::{Platform, Wait};
use xen_xenstore::Xenstore;
use zerocopy::IntoBytes;

use super::MockBlkback;
use crate::abi::{OP_BARRIER, OP_FLUSH};
use crate::{BlkFront, Error, State};

/// Sectors of the disk.
pub const SECTORS: u64 = 256;
/// What a discarded sector holds, by the mock.
const DISCARDED: u32 = u32::MAX;
/// What a sector holds that was discarded securely, by the mock: zeros.
const ERASED: u32 = u32::MAX - 1;

/// Sectors that tell which write they are of, and where they belong.
pub fn encode(at: u64, count: u64, tag: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(count as usize * 512);
    for at in at..at + count {
        let sector = [(tag ^ place(at)).to_le(); 512 / size_of::<u32>()];
        bytes.extend_from_slice(sector.as_bytes());
    }
    bytes
}

/// No zero, and far from any tag: zeros are nobody's write.
fn place(at: u64) -> u32 {
    (at as u32 + 1).wrapping_mul(0x9E37_79B1)
}

/// The write that a sector is of; none: of no single one.
pub fn decode(at: u64, bytes: &[u8]) -> Option<u32> {
    let (word, rest) = bytes.split_first_chunk::<4>()?;
    if bytes.iter().all(|byte| *byte == 0xDC) {
        return Some(DISCARDED);
    }
    if bytes.iter().all(|byte| *byte == 0) {
        return Some(ERASED);
    }
    let before = bytes.get(..rest.len())?;
    (rest == before).then(|| u32::from_le_bytes(*word) ^ place(at))
}

/// Some tags, each once: a bit for each of the lowest, and for what a discard leaves. There are many sets, and almost always no
/// other tags, so that a set needs no memory of its own.
#[derive(Clone, Default)]
struct Tags {
    bits: u128,
    /// The others, in order.
    more: Vec<u32>,
}

impl Tags {
    /// How many of the bits are tags'.
    const LOW: u32 = 126;

    /// What a discard leaves, and its bit.
    const LEFT: [(u32, u32); 2] = [(ERASED, Self::LOW), (DISCARDED, Self::LOW + 1)];

    fn of(tag: u32) -> Self {
        let mut tags = Self::default();
        tags.insert(tag);
        tags
    }

    fn bit(tag: u32) -> Option<u128> {
        let left = Self::LEFT.into_iter().find(|(left, _)| *left == tag);
        let bit = left.map_or(tag, |(_, bit)| bit);
        (left.is_some() || tag < Self::LOW).then(|| 1 << bit)
    }

    fn iter(&self) -> impl Iterator<Item = u32> {
        let bits = (0..128).filter(|bit| self.bits & 1 << bit != 0);
        let tag = |bit| Self::LEFT.into_iter().find(|(_, left)| *left == bit).map_or(bit, |(left, _)| left);
        bits.map(tag).chain(self.more.iter().copied())
    }

    fn contains(&self, tag: u32) -> bool {
        match Self::bit(tag) {
            Some(bit) => self.bits & bit != 0,
            None => self.more.binary_search(&tag).is_ok(),
        }
    }

    fn insert(&mut self, tag: u32) {
        match Self::bit(tag) {
            Some(bit) => self.bits |= bit,
            None => {
                if let Err(at) = self.more.binary_search(&tag) {
                    self.more.insert(at, tag);
                }
            }
        }
    }

    fn add(&mut self, other: &Self) {
        self.bits |= other.bits;
        other.more.iter().for_each(|tag| self.insert(*tag));
    }

    fn clear(&mut self) {
        (self.bits, self.more) = (0, Vec::new());
    }

    /// Only those of later operations stay, and what a discard leaves.
    fn forget_until(&mut self, id: u32) {
        let tags = (1_u128 << Self::LOW) - 1;
        let later = tags.checked_shl(id.saturating_add(1)).unwrap_or(0);
        self.bits &= later & tags | !tags;
        self.more.retain(|tag| *tag > id);
    }
}

impl fmt::Debug for Tags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// Tags that each sector may hold.
#[derive(Debug)]
pub struct Model {
    /// By the operations that are done, and those under way.
    now: Vec<Tags>,
    /// By writes of which nobody knows when they happen, if at all.
    loose: Vec<Tags>,
    /// At the last flush, and by what was written since.
    durable: Vec<Tags>,
    since: Vec<Tags>,
    /// What a loss of power may have left, as long as nobody was told of it.
    untold: Vec<Tags>,
    flying: BTreeMap<usize, Flying>,
    next: u32,
    /// Flushes whose results are not known.
    open: BTreeSet<u32>,
    /// The last flush to begin of those that say that what they cover is durable.
    flushed: u32,
    /// For each loss of power: how many flushes the backend had served before.
    crashes: Vec<usize>,
}

#[derive(Debug)]
struct Flying {
    at: usize,
    /// None: a read.
    tag: Option<u32>,
    /// A read's sectors: what they may hold. A write's: what is written there meanwhile.
    others: Vec<Tags>,
    /// The power failed meanwhile, perhaps after it was done.
    crashed: bool,
    /// It tells of what was lost, as a flush does.
    barrier: bool,
}

/// A flush under way.
#[derive(Debug)]
pub struct Flush {
    durable: Vec<Tags>,
    /// Its number: what is written later has a higher tag.
    id: u32,
    /// Losses of power before it.
    crashes: usize,
    /// Flushes that the backend had served before it.
    served: usize,
}

impl Default for Model {
    fn default() -> Self {
        Self::new()
    }
}

impl Model {
    /// Of a disk that was [encoded](encode) with tag 0.
    pub fn new() -> Self {
        let zero = vec![Tags::of(0); SECTORS as usize];
        let none = vec![Tags::default(); SECTORS as usize];
        Self {
            now: zero.clone(),
            loose: none.clone(),
            durable: zero,
            since: none.clone(),
            untold: none,
            flying: BTreeMap::new(),
            next: 1,
            open: BTreeSet::new(),
            flushed: 0,
            crashes: Vec::new(),
        }
    }

    fn id(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    fn may(&self, sector: usize) -> Tags {
        let mut may = self.now[sector].clone();
        may.add(&self.loose[sector]);
        may.add(&self.untold[sector]);
        may
    }

    /// Begins a read. Returns its number.
    pub fn read(&mut self, at: u64, count: u64) -> usize {
        let id = self.id() as usize;
        let (at, end) = (at as usize, (at + count) as usize);
        let others = (at..end).map(|at| self.may(at)).collect();
        self.flying.insert(id, Flying { at, tag: None, others, crashed: false, barrier: false });
        id
    }

    /// Begins a write. Returns its number, and the tag that it writes.
    pub fn write(&mut self, at: u64, count: u64) -> (usize, u32) {
        let tag = self.id();
        let (at, end) = (at as usize, (at + count) as usize);
        let mut others = vec![Tags::default(); count as usize];
        for flying in self.flying.values_mut() {
            for sector in at.max(flying.at)..end.min(flying.at + flying.others.len()) {
                flying.others[sector - flying.at].insert(tag);
                if let Some(tag) = flying.tag {
                    others[sector - at].insert(tag);
                }
            }
        }
        for sector in at..end {
            self.now[sector].insert(tag);
            self.since[sector].insert(tag);
        }
        self.flying
            .insert(tag as usize, Flying { at, tag: Some(tag), others, crashed: false, barrier: false });
        (tag as usize, tag)
    }

    /// Begins a barrier. Returns as [`write`](Self::write).
    pub fn barrier(&mut self, at: u64, count: u64) -> (usize, u32) {
        let (id, tag) = self.write(at, count);
        if let Some(flying) = self.flying.get_mut(&id) {
            flying.barrier = true;
        }
        (id, tag)
    }

    /// An operation was not submitted after all.
    pub fn cancel(&mut self, id: usize) {
        self.end(id, Err(Error::Io));
    }

    /// An operation has this result.
    pub fn end(&mut self, id: usize, result: Result<(), Error>) {
        if result == Err(Error::Lost) {
            self.told();
        }
        let Some(Flying { at, tag: Some(tag), others, crashed, .. }) = self.flying.remove(&id) else {
            return;
        };
        for (sector, others) in (at..).zip(others) {
            match result {
                Ok(()) if crashed => {}
                Ok(()) => {
                    self.now[sector] = others;
                    self.now[sector].insert(tag);
                    self.untold[sector].clear();
                }
                // Done in part, or not at all; what is over is over.
                Err(Error::Io | Error::Unsupported | Error::Status(_) | Error::Lost) => {}
                Err(_) => self.loose[sector].insert(tag),
            }
        }
    }

    /// Sectors are discarded, now or later, if at all.
    pub fn discard(&mut self, at: u64, count: u64, secure: bool) {
        let left = if secure { ERASED } else { DISCARDED };
        for sector in at as usize..(at + count) as usize {
            self.loose[sector].insert(left);
            for flying in self.flying.values_mut() {
                if let Some(others) = sector.checked_sub(flying.at).and_then(|at| flying.others.get_mut(at)) {
                    others.insert(left);
                }
            }
        }
    }

    /// Begins a flush, of what is answered by now. Nothing of it was sent yet.
    pub fn flush(&mut self, back: &MockBlkback) -> Flush {
        let id = self.id();
        self.open.insert(id);
        Flush { id, durable: self.now.clone(), crashes: self.crashes.len(), served: flushes_served(back) }
    }

    /// A flush says that everything answered before is durable, or that some may be lost. `nothing`: its success says
    /// nothing, for the backend does not flush.
    pub fn flushed(&mut self, flush: Flush, result: Result<(), Error>, nothing: bool) {
        self.open.remove(&flush.id);
        match result {
            Ok(()) if !nothing => {
                if self.tells(&flush) {
                    self.untold.iter_mut().for_each(Tags::clear);
                }
                // Results are taken in any order: one that began later covers all that this one does, and more.
                if flush.id < self.flushed {
                    return;
                }
                self.flushed = flush.id;
                for (sector, durable) in flush.durable.into_iter().enumerate() {
                    self.durable[sector] = durable;
                    self.since[sector].forget_until(flush.id);
                }
                for flying in self.flying.values() {
                    for sector in flying.at..flying.at + flying.others.len() {
                        if let Some(tag) = flying.tag {
                            self.since[sector].insert(tag);
                        }
                    }
                }
            }
            Err(Error::Lost) => self.told(),
            Ok(()) | Err(_) => {}
        }
    }

    /// Whether a flush that succeeds says that nothing was lost.
    ///
    /// Not of a loss of power before which the backend may have answered it, and not when one that began earlier may have
    /// said so, and its result is not taken yet: one of all says so.
    fn tells(&self, flush: &Flush) -> bool {
        let mut since = self.crashes.iter().skip(flush.crashes);
        let mut barriers = self.flying.iter().filter(|(_, flying)| flying.barrier);
        since.all(|served| *served == flush.served)
            && self.open.range(..flush.id).next().is_none()
            && !barriers.any(|(id, _)| *id < flush.id as usize)
    }

    /// The caller knows that what was not flushed may be lost.
    fn told(&mut self) {
        for (now, untold) in self.now.iter_mut().zip(&mut self.untold) {
            now.add(untold);
            untold.clear();
        }
    }

    /// The backend's machine lost power.
    pub fn power_lost(&mut self, back: &MockBlkback) {
        self.crashes.push(flushes_served(back));
        self.flying.values_mut().for_each(|flying| flying.crashed = true);
        for sector in 0..self.now.len() {
            let mut left = self.durable[sector].clone();
            left.add(&self.since[sector]);
            self.untold[sector].add(&left);
            for flying in self.flying.values_mut().filter(|flying| flying.tag.is_none()) {
                if let Some(others) = sector.checked_sub(flying.at).and_then(|at| flying.others.get_mut(at)) {
                    others.add(&left);
                }
            }
        }
    }

    /// Holds what a read returns against what it may.
    ///
    /// # Panics
    /// When a read holds what it cannot.
    pub fn check_read(&self, id: usize, bytes: &[u8]) {
        let flying = &self.flying[&id];
        assert_eq!(bytes.len(), flying.others.len() * 512);
        for (at, (bytes, may)) in (flying.at..).zip(bytes.chunks(512).zip(&flying.others)) {
            let tag = decode(at as u64, bytes);
            assert!(tag.is_some_and(|tag| may.contains(tag)), "sector {at} reads {tag:?}, not {may:?}");
        }
    }

    /// Looks at a sector when nothing is under way.
    ///
    /// # Panics
    /// When it holds what it cannot.
    pub fn check_sector(&self, at: usize, tag: Option<u32>) {
        let may = self.may(at);
        assert!(tag.is_some_and(|tag| may.contains(tag)), "sector {at} holds {tag:?}, not {may:?}");
    }
}

/// How many flushes a backend has served: a barrier is one, too.
fn flushes_served(back: &MockBlkback) -> usize {
    back.state().served.iter().filter(|request| matches!(request.operation, OP_FLUSH | OP_BARRIER)).count()
}

/// What a run knows of its backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Conduct {
    /// It may have lied.
    pub lied: bool,
    /// It had bad luck, so that an answer may be late or missing.
    pub unlucky: bool,
}

/// Whether a disk may return an error, by the state that it is in and what its backend did.
pub fn is_fair<P: Platform>(disk: &BlkFront<'_, P>, error: Error, conduct: Conduct) -> bool {
    let Conduct { lied, unlucky } = conduct;
    match error {
        Error::Broken(violation) => disk.state() == State::Broken(violation),
        Error::Closed => {
            matches!(disk.state(), State::Closing | State::Closed) || disk.stats().reconnects > 0
        }
        Error::Lost => disk.stats().reconnects > 0,
        Error::Io | Error::Unsupported | Error::Busy | Error::TooLong | Error::Xenstore(_) => true,
        Error::Status(_) => lied,
        Error::TimedOut => lied || unlucky,
        Error::ReadOnly => disk.is_read_only() || lied,
        Error::OutOfRange | Error::Unaligned | Error::BadNode(_) => lied,
        _ => false,
    }
}

/// Polls a disk. It takes what is there, or it breaks; and a response that cannot be believed breaks it.
///
/// # Panics
/// When it believes one, or finds more than there can be.
pub fn poll<P: Platform>(disk: &mut BlkFront<'_, P>, back: &MockBlkback, meddled: bool) {
    match disk.poll() {
        Ok(count) => {
            assert!(count <= disk.ring_slots());
            let believed = back.incredible().filter(|_| !meddled).unwrap_or(0);
            assert_eq!(believed, 0, "believed what no backend may say");
        }
        Err(error) => assert!(matches!(error, Error::Broken(_) | Error::Event(_)), "{error}"),
    }
}

/// Asks everything of a disk whose backend broke the protocol.
///
/// # Panics
/// When anything but that error is the answer.
pub fn check_broken<'x, P: Platform + Wait>(disk: &mut BlkFront<'x, P>, xs: &mut Xenstore<'x, P>) {
    let State::Broken(violation) = disk.state() else { return };
    let broken = Error::Broken(violation);
    let (pending, requests, free) = (disk.pending(), disk.stats().requests, disk.free_requests());
    assert_eq!(disk.read(0, &mut [0; 512]), Err(broken));
    assert_eq!(disk.write(0, &[0; 512]), Err(broken));
    assert_eq!(disk.flush(), Err(broken));
    assert_eq!(disk.discard_sectors(0, 8), Err(broken));
    assert_eq!(disk.erase(0, 8), Err(broken));
    assert_eq!(disk.submit_read(0, 1), Err(broken));
    assert_eq!(disk.submit_write(0, &[0; 512]), Err(broken));
    assert_eq!(disk.submit_barrier(0, &[0; 512]), Err(broken));
    assert_eq!(disk.submit_read_into(0, &mut []), Err(broken));
    assert_eq!(disk.submit_write_from(0, &mut [None]), Err(broken));
    assert_eq!(disk.submit_flush(), Err(broken));
    assert_eq!(disk.submit_discard(0, 8), Err(broken));
    assert_eq!(disk.submit_secure_discard(0, 8), Err(broken));
    assert_eq!(disk.publish(), Err(broken));
    assert_eq!(disk.poll(), Err(broken));
    assert_eq!(disk.service(xs), Ok(State::Broken(violation)));
    assert_eq!(disk.reconnect(xs, Duration::ZERO), Err(broken));
    assert_eq!(disk.state(), State::Broken(violation));
    // And nothing of that reached the backend, or took a place.
    assert_eq!((disk.pending(), disk.stats().requests, disk.free_requests()), (pending, requests, free));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_a_set_whatever_place_each_has() {
        let all = [0, 1, 7, 125, 126, 127, 128, 300, ERASED, DISCARDED];
        for until in [0, 6, 7, 124, 125, 126, 127, 200, 300, 900] {
            let (mut tags, mut other) = (Tags::default(), Tags::of(1));
            all.iter().rev().chain(&all).for_each(|tag| tags.insert(*tag));
            other.add(&tags);
            let set = |tags: &Tags| tags.iter().collect::<BTreeSet<_>>();
            assert_eq!((set(&other), tags.iter().count()), (all.into(), all.len()));
            tags.forget_until(until);
            assert_eq!(set(&tags), all.into_iter().filter(|tag| *tag > until).collect());
            assert!(all.iter().all(|tag| tags.contains(*tag) == (*tag > until)));
        }
    }
}
