//! Several vCPUs use the table at once, with a peer that maps whatever it can.
#![cfg(feature = "mock")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use xen_gnttab::{Access, Ended, EndedPages, Error, GrantRef, GrantTable, Version, mock};
use xen_hypercall::DomId;
use xen_hypercall::mock::MockXen;

const DOM0: DomId = DomId(0);
const GUEST: DomId = DomId(1);
const VCPUS: usize = 4;
/// Each vCPU holds up to so many grants: together more than one frame has, so that the table grows meanwhile.
const HELD: usize = 200;
const ROUNDS: usize = 20_000;

/// A small generator, so that every thread does something else and each run the same.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

#[test]
fn references_are_unique_and_all_come_back() {
    run(Version::V1, 512);
}

#[test]
fn references_of_version_2_are_unique_and_all_come_back() {
    run(Version::V2, 256);
}

fn run(version: Version, per_frame: u32) {
    let xen = MockXen::new();
    mock::install(&xen);
    let guest = xen.domain(GUEST);
    let table = GrantTable::with_version(&guest.boot().unwrap(), version).unwrap();
    let taken: Vec<AtomicBool> = (0..4096).map(|_| AtomicBool::new(false)).collect();
    let done = AtomicBool::new(false);
    let quarantines = thread::scope(|scope| {
        let vcpus: Vec<_> = (0..VCPUS)
            .map(|seed| {
                let (table, taken) = (&table, &taken);
                scope.spawn(move || vcpu(table, taken, seed))
            })
            .collect();
        let peer = scope.spawn(|| peer(&xen, &done));
        let quarantines: usize = vcpus.into_iter().map(|vcpu| vcpu.join().unwrap()).sum();
        done.store(true, Ordering::Relaxed);
        peer.join().unwrap();
        quarantines
    });
    table.reclaim();
    let stats = table.stats();
    assert_eq!(
        (stats.free, stats.in_use, stats.quarantined),
        (stats.refs, 0, 0),
        "{quarantines} quarantines"
    );
    assert!(stats.frames >= 2, "the table grew");
    let slots = (stats.frames * per_frame).div_ceil(512);
    let status = if version == Version::V2 { stats.frames.div_ceil(8) } else { 0 };
    assert_eq!(guest.pages_in_use(), (2 + 1 + stats.frames + slots + status) as usize);
    // The list has every reference once: take them all.
    let all: Vec<_> = (0..stats.refs).map(|_| table.share(DOM0, Access::ReadOnly).unwrap()).collect();
    assert_eq!(table.stats().frames, stats.frames);
    let mut grefs: Vec<u32> = all.iter().map(|page| page.gref().0).collect();
    grefs.sort_unstable();
    assert_eq!(grefs, (GrantRef::RESERVED..stats.frames * per_frame).collect::<Vec<_>>());
}

fn vcpu(table: &GrantTable<xen_hypercall::mock::MockDomain>, taken: &[AtomicBool], seed: usize) -> usize {
    let mut random = Random(0x9E37_79B9_7F4A_7C15 ^ seed as u64);
    let (mut held, mut spare, mut quarantines) = (Vec::new(), Vec::new(), 0);
    for _ in 0..ROUNDS {
        if held.len() < HELD && random.below(100) < 55 {
            let page = match spare.pop() {
                Some(page) => page,
                None => table.alloc_page().unwrap(),
            };
            match table.grant(page, DOM0, Access::ReadWrite) {
                Ok(granted) => {
                    let was = taken[granted.gref().0 as usize].swap(true, Ordering::Relaxed);
                    assert!(!was, "{} was handed out twice", granted.gref());
                    held.push(granted);
                }
                Err(rejected) => {
                    assert_eq!(rejected.error, Error::Growing);
                    spare.push(rejected.page);
                }
            }
        } else if !held.is_empty() {
            let granted = held.swap_remove(random.below(held.len()));
            taken[granted.gref().0 as usize].store(false, Ordering::Relaxed);
            match granted.end() {
                Ended::Page(page) => spare.push(page),
                Ended::Quarantined => quarantines += 1,
            }
        }
        // Several at once, out of the same list.
        if random.below(20) == 0 {
            match table.share_pages(1 + random.below(5), DOM0, Access::ReadWrite) {
                Ok(run) => {
                    let grefs: Vec<usize> = run.grefs().map(|gref| gref.0 as usize).collect();
                    assert!(grefs.iter().all(|gref| !taken[*gref].swap(true, Ordering::Relaxed)));
                    grefs.iter().for_each(|gref| taken[*gref].store(false, Ordering::Relaxed));
                    if let EndedPages::Quarantined = run.end() {
                        quarantines += 1;
                    }
                }
                Err(error) => assert_eq!(error, Error::Growing),
            }
        }
        match random.below(50) {
            0 => drop(table.reclaim()),
            1 => drop(table.reclaim_some()),
            _ => {}
        }
    }
    for granted in held {
        taken[granted.gref().0 as usize].store(false, Ordering::Relaxed);
        drop(granted);
    }
    quarantines
}

/// Maps references at random, holds some of them for a while, and looks for pages freed under its hands.
fn peer(xen: &MockXen, done: &AtomicBool) {
    let dom0 = xen.domain(DOM0);
    let mut random = Random(0xDEAD_BEEF);
    let mut held = Vec::new();
    while !done.load(Ordering::Relaxed) {
        if held.len() > 20 {
            held.swap_remove(random.below(20));
        }
        if let Ok(mut mapping) = mock::map(&dom0, GUEST, GrantRef(8 + random.below(1000) as u32), true) {
            mapping.mem().write_bytes(64, &[0x55; 64]).unwrap();
            held.push(mapping);
        }
        for mapping in &mut held {
            let mut seen = [0; 64];
            mapping.mem().read_bytes(64, &mut seen).unwrap();
            assert_eq!(seen, [0x55; 64], "freed or zeroed while mapped");
        }
    }
}
