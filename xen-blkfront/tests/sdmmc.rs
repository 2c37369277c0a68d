//! The disk under a file system's block interface.
#![cfg(all(feature = "mock", feature = "embedded-sdmmc-v0-10"))]

mod common;

use common::{Machine, pattern};
use embedded_sdmmc::{Block, BlockDevice, BlockIdx};
use proptest::prelude::*;
use xen_blkfront::Error;
use xen_blkfront::mock::{Fault, Options};
use xen_blkfront::sdmmc::SdmmcDisk;
use xen_xenstore::Xenstore;

fn blocks(bytes: &[u8]) -> Vec<Block> {
    bytes.chunks_exact(512).map(|chunk| Block { contents: chunk.try_into().unwrap() }).collect()
}

fn bytes(blocks: &[Block]) -> Vec<u8> {
    blocks.iter().flat_map(|block| block.contents).collect()
}

#[test]
fn blocks_one_after_the_other_are_one_request() {
    let machine = Machine::new();
    let back = machine.disk(Options::default());
    back.load(&pattern(2048 * 512, 5));
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let disk = SdmmcDisk::new(machine.connect(&mut xs).unwrap()).unwrap();
    assert_eq!(disk.num_blocks().unwrap().0, 2048);
    let mut block = [Block::new()];
    for at in 100..164 {
        disk.read(&mut block, BlockIdx(at)).unwrap();
        assert_eq!(bytes(&block), pattern(2048 * 512, 5)[at as usize * 512..][..512]);
    }
    assert_eq!(disk.with(|front| front.stats().requests), 1);
    let pages = machine.guest.pages_in_use();
    let front = disk.into_inner();
    assert_eq!(machine.guest.pages_in_use(), pages - 32);
    front.close(&mut xs, machine.soon()).unwrap();
}

#[test]
fn who_goes_on_finds_the_next_window_read() {
    let machine = Machine::new();
    let back = machine.disk(Options::default());
    back.load(&pattern(2048 * 512, 5));
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let disk = SdmmcDisk::new(machine.connect(&mut xs).unwrap()).unwrap();
    let mut block = [Block::new()];
    let mut read = |at: u32| {
        disk.read(&mut block, BlockIdx(at)).unwrap();
        bytes(&block)
    };
    // The second window follows the first, so the third is asked for, too.
    for (at, requests) in [(10, 1), (73, 1), (74, 3), (137, 3)] {
        assert!(read(at) == pattern(2048 * 512, 5)[at as usize * 512..][..512]);
        assert_eq!(disk.with(|front| front.stats().requests), requests, "{at}");
    }
    // It arrives while nobody waits for it. What is written meanwhile is not what was read ahead.
    machine.xen.run_until_idle(10);
    disk.write(&blocks(&pattern(512, 99)), BlockIdx(140)).unwrap();
    assert!(read(140) == pattern(512, 99));
    assert!(read(138) == pattern(2048 * 512, 5)[138 * 512..][..512]);
    // To the end of the disk, and not beyond it; once each, but for the window that was written to.
    for at in (138..2048).step_by(64) {
        assert!(at == 140 || read(at) == back.disk()[at as usize * 512..][..512]);
    }
    assert_eq!(
        disk.with(|front| (front.stats().errors, front.stats().bytes_read / 512)),
        (0, 2048 - 10 + 64)
    );
    assert_eq!(disk.into_inner().free_requests(), 8);
    assert_eq!(back.complaints(), [""; 0]);
}

#[test]
fn what_failed_is_not_remembered() {
    let machine = Machine::new();
    let back = machine.disk(Options { sector_size: 4096, ..Options::default() });
    back.load(&pattern(64 * 512, 5));
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let disk = SdmmcDisk::new(machine.connect(&mut xs).unwrap()).unwrap();
    let mut out = vec![Block::new(); 64];
    disk.read(&mut out, BlockIdx(0)).unwrap();
    // The rest of the sector is known, so the first request is the write.
    back.fault(Fault::Status(-1));
    assert_eq!(disk.write(&blocks(&[1; 512]), BlockIdx(3)), Err(Error::Io));
    // Now it is not, and the write is the second request.
    back.fault(Fault::Status(0));
    back.fault(Fault::Status(-1));
    assert_eq!(disk.write(&blocks(&[1; 512]), BlockIdx(3)), Err(Error::Io));
    disk.read(&mut out, BlockIdx(0)).unwrap();
    assert!(bytes(&out) == pattern(64 * 512, 5));
    assert_eq!(disk.read(&mut out, BlockIdx(2000)), Err(Error::OutOfRange));
    assert_eq!(disk.write(&out, BlockIdx(u32::MAX)), Err(Error::OutOfRange));
    disk.flush().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn blocks_are_like_memory(
        shift in 0..4_u32,
        steps in prop::collection::vec((any::<bool>(), 0..1024_usize, 1..150_usize, any::<u8>()), 1..40),
    ) {
        let machine = Machine::new();
        let back = machine.disk(Options { sectors: 1024, sector_size: 512 << shift, ..Options::default() });
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let disk = SdmmcDisk::new(machine.connect(&mut xs).unwrap()).unwrap();
        let mut model = vec![0; 1024 * 512];
        for (write, at, count, seed) in steps {
            let count = count.min(1024 - at);
            let range = at * 512..(at + count) * 512;
            if write {
                let data = pattern(count * 512, seed);
                disk.write(&blocks(&data), BlockIdx(at as u32)).unwrap();
                model[range].copy_from_slice(&data);
            } else {
                let mut out = vec![Block::new(); count];
                disk.read(&mut out, BlockIdx(at as u32)).unwrap();
                prop_assert!(bytes(&out) == model[range]);
            }
        }
        prop_assert!(back.disk() == model);
        prop_assert_eq!(back.complaints(), Vec::<String>::new());
    }
}
