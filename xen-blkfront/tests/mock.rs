//! What the mock's disk itself promises: files, caches that lose what was not flushed, pages kept mapped.
#![cfg(feature = "mock")]

mod common;

use std::io::{Read, Seek, SeekFrom, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

use common::{Machine, VBD, pattern, small};
use proptest::prelude::*;
use xen_blkfront::abi::{OP_BARRIER, OP_FLUSH, OP_WRITE};
use xen_blkfront::mock::model::Model;
use xen_blkfront::mock::{Faults, MockBlkback, Options, Order};
use xen_blkfront::{Config, Error, State};
use xen_hypercall::mock::{Chance, Dice};
use xen_xenstore::Xenstore;

#[test]
fn a_disk_may_be_a_file() {
    let machine = Machine::new();
    let path = std::env::temp_dir().join(format!("xen-blkfront-{}-{VBD}", std::process::id()));
    let mut options = std::fs::File::options();
    let mut file = options.read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    // Not whole sectors: the rest does not belong to the disk.
    file.write_all(&pattern(512 * 20 + 100, 3)).unwrap();
    let mut other = file.try_clone().unwrap();
    let back = MockBlkback::with_file(&machine.store, &machine.guest, VBD, Options::default(), file).unwrap();
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    assert_eq!(disk.capacity(), 20);
    let mut out = vec![0; 512 * 20];
    disk.read(0, &mut out).unwrap();
    assert!(out == pattern(512 * 20, 3));
    disk.write(18, &[9; 1024]).unwrap();
    disk.flush().unwrap();
    assert_eq!(disk.read(19, &mut [0; 1024]), Err(Error::OutOfRange));
    let mut all = Vec::new();
    other.seek(SeekFrom::Start(0)).unwrap();
    other.read_to_end(&mut all).unwrap();
    assert_eq!((&all[512 * 18..512 * 20], all.len()), ([9; 1024].as_slice(), 512 * 20 + 100));
    assert!(back.disk()[..512 * 18] == pattern(512 * 20, 3)[..512 * 18]);
}

#[test]
fn a_loss_of_power_loses_what_was_not_flushed_and_nothing_else() {
    let (mut lost, mut kept) = (0, 0);
    for seed in 0..8 {
        let machine = Machine::new();
        let back = machine.disk(Options { volatile_cache: true, ..Options::default() });
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let mut disk = machine.connect(&mut xs).unwrap();
        for value in [1, 2] {
            disk.write(0, &[value; 512 * 64]).unwrap();
            disk.flush().unwrap();
        }
        assert_eq!(back.power_loss(&Dice::new(seed)), 0);
        assert!(back.disk()[..512 * 64] == [2; 512 * 64]);
        // Both of these may survive, whole or in part, and the first instead of the second.
        disk.write(0, &[3; 512 * 32]).unwrap();
        disk.write(0, &[4; 512 * 32]).unwrap();
        let mut out = vec![0; 512 * 64];
        disk.read(0, &mut out).unwrap();
        assert!(out[..512 * 32] == [4; 512 * 32] && out[512 * 32..] == [2; 512 * 32]);
        lost += back.power_loss(&Dice::new(seed));
        for (at, sector) in back.disk()[..512 * 64].chunks(512).enumerate() {
            assert!(sector == [sector[0]; 512], "a sector is written whole or not at all");
            assert!(sector[0] == 2 || at < 32 && [3, 4].contains(&sector[0]), "{at}: {}", sector[0]);
            kept += usize::from(sector[0] > 2);
        }
    }
    assert!(lost > 0 && kept > 0);
}

#[test]
fn a_backend_keeps_no_more_pages_mapped_than_it_may() {
    let machine = Machine::new();
    let back = machine.disk(Options { persistent_limit: 5, ..Options::default() });
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    disk.write(0, &pattern(512 * 800, 0)).unwrap();
    // And the ring.
    assert_eq!(xen_gnttab::mock::mappings_of(&machine.xen, machine.guest.id()), 5 + 1);
    assert!(back.disk()[..512 * 800] == pattern(512 * 800, 0));
}

#[test]
fn the_same_seed_is_the_same_run() {
    let run = |seed| {
        let machine = Machine::new();
        let back = machine.disk(Options { order: Order::Shuffled(seed), ..Options::default() });
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let mut disk = machine.connect(&mut xs).unwrap();
        back.set_faults(Dice::new(seed), Faults::all(Chance::permille(20)));
        for at in 0..50 {
            let _ = disk.write(at, &[at as u8; 512 * 20]);
        }
        (machine.xen.trace_text(), back.disk(), disk.state())
    };
    for seed in 0..4 {
        assert!(run(seed) == run(seed));
    }
    assert!(run(1) != run(2));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// The disk is still like memory when the backend has bad days, as long as it does not lie.
    #[test]
    fn an_honest_backends_failures_are_no_more_than_errors(seed: u64, permille in 0..200_u16) {
        let machine = Machine::new();
        let back = machine.disk(Options::default());
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let mut disk = machine.connect(&mut xs).unwrap();
        back.set_faults(Dice::new(seed), Faults::honest(Chance::permille(permille)));
        for at in 0..40_u64 {
            let data = pattern(512 * 30, at as u8);
            let Ok(()) = disk.write(at * 30, &data) else { continue };
            prop_assert!(back.disk()[at as usize * 512 * 30..][..data.len()] == data);
            let mut out = vec![0; data.len()];
            if disk.read(at * 30, &mut out).is_ok() {
                prop_assert!(out == data);
            }
        }
        prop_assert_eq!(disk.state(), State::Connected);
        prop_assert!(permille < 50 || back.faults_hit() > 0);
        prop_assert_eq!((back.lies_hit(), back.complaints()), (0, Vec::<String>::new()));
    }
}

#[test]
fn what_is_always_late_is_served_all_the_same_and_a_barrier_keeps_its_place() {
    let machine = Machine::new();
    let back = machine.disk(Options::everything());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    let mut faults = Faults::default();
    faults.late = Chance::ALWAYS;
    back.set_faults(Dice::new(1), faults);
    let tickets = [
        disk.submit_write(0, &[1; 512]).unwrap(),
        disk.submit_barrier(0, &[2; 512]).unwrap(),
        disk.submit_write(0, &[3; 512]).unwrap(),
    ];
    disk.publish().unwrap();
    let before = machine.xen.now();
    assert!(machine.xen.run_until_idle(50) < 50);
    assert_eq!((disk.poll(), machine.xen.now()), (Ok(3), before));
    for ticket in tickets {
        assert_eq!(disk.take(ticket, &mut []), Some(Ok(())));
    }
    let operations: Vec<u8> = back.served().iter().map(|request| request.operation).collect();
    assert_eq!(operations, [OP_WRITE, OP_BARRIER, OP_WRITE]);
    let mut read = [0; 512];
    disk.read(0, &mut read).unwrap();
    assert_eq!((read, back.faults_hit()), ([3; 512], 3));
}

#[test]
fn a_machine_with_a_device_goes_when_the_test_lets_go_of_it() {
    let machine = Machine::new();
    let gone = machine.xen.downgrade();
    {
        let _back = machine.disk(Options::default());
        let mut xs = Xenstore::new(&machine.events).unwrap();
        drop(machine.connect(&mut xs).unwrap());
        assert_eq!(machine.connect(&mut xs).map(drop), Ok(()));
    }
    assert!(gone.is_alive());
    drop(machine);
    assert!(!gone.is_alive());
}

/// Whether the first sector may hold what a write left, by the model.
fn holds(model: &Model, tag: u32) -> bool {
    catch_unwind(AssertUnwindSafe(|| model.check_sector(0, Some(tag)))).is_ok()
}

#[test]
fn the_model_takes_a_flush_for_word_of_a_crash_only_if_it_cannot_have_been_served_before() {
    for served in [false, true] {
        let machine = Machine::new();
        let back = machine.disk(Options { volatile_cache: true, ..Options::default() });
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let mut disk = machine.connect(&mut xs).unwrap();
        let mut model = Model::new();
        let flush = model.flush(&back);
        if served {
            disk.flush().unwrap();
        }
        let (id, tag) = model.write(0, 1);
        model.end(id, Ok(()));
        model.power_lost(&back);
        model.flushed(flush, Ok(()), false);
        // The write may be lost, as nobody said that it is not.
        let check = |model: &Model, tag| {
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| model.check_sector(0, Some(tag))))
                .is_ok()
        };
        assert!(check(&model, tag));
        assert_eq!(check(&model, 0), served);
        // A flush that begins after it does say so.
        let flush = model.flush(&back);
        model.flushed(flush, Ok(()), false);
        assert!(holds(&model, tag) && !holds(&model, 0));
    }
}

#[test]
fn what_the_model_calls_durable_stays_so_when_an_earlier_flush_is_taken_later() {
    let machine = Machine::new();
    let back = machine.disk(Options { volatile_cache: true, ..Options::default() });
    let mut model = Model::new();
    let early = model.flush(&back);
    let (id, first) = model.write(0, 1);
    model.end(id, Ok(()));
    let late = model.flush(&back);
    model.flushed(late, Ok(()), false);
    model.flushed(early, Ok(()), false);
    let (id, second) = model.write(0, 1);
    model.end(id, Ok(()));
    model.power_lost(&back);
    assert!([first, second].into_iter().all(|tag| holds(&model, tag)));
    assert!(!holds(&model, 0), "what was there before a durable write");
}

#[test]
fn the_model_waits_for_the_earlier_of_two_flushes_to_tell_of_a_crash() {
    for barrier in [false, true] {
        let machine = Machine::new();
        let back = machine.disk(Options { volatile_cache: true, ..Options::default() });
        let mut model = Model::new();
        let (id, _) = model.write(0, 1);
        model.end(id, Ok(()));
        model.power_lost(&back);
        let (earlier, write) =
            if barrier { (None, model.barrier(1, 1).0) } else { (Some(model.flush(&back)), 0) };
        let later = model.flush(&back);
        model.flushed(later, Ok(()), false);
        assert!(holds(&model, 0), "the earlier one may say so yet");
        match earlier {
            Some(earlier) => model.flushed(earlier, Err(Error::Lost), false),
            None => model.end(write, Err(Error::Lost)),
        }
        assert!(holds(&model, 0), "it does");
        // Once nobody is left who could say so, nothing was lost.
        let (id, tag) = model.write(0, 1);
        model.end(id, Ok(()));
        model.power_lost(&back);
        let last = model.flush(&back);
        model.flushed(last, Ok(()), false);
        assert!(holds(&model, tag) && !holds(&model, 0));
    }
}

#[test]
fn a_backend_keeps_to_what_it_told() {
    // More than it was made with.
    let machine = Machine::new();
    let back = machine.disk(Options::plain());
    for (node, value) in [
        ("feature-flush-cache", "1"),
        ("feature-discard", "1"),
        ("discard-granularity", "4096"),
        ("discard-secure", "1"),
        ("max-ring-page-order", "2"),
        ("multi-queue-max-queues", "2"),
        ("feature-max-indirect-segments", "64"),
        ("sectors", "9000"),
    ] {
        back.lie(node, Some(value));
    }
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let config = Config { segments: 64, pages: 200, ring_pages: 4, queues: 2, ..small() };
    let mut disk = machine.connect_with(&mut xs, config).unwrap();
    assert_eq!((disk.queues(), disk.capacity(), disk.request_sectors()), (2, 9000, 64 * 8));
    disk.write(8, &pattern(64 * 4096, 3)).unwrap();
    disk.flush().unwrap();
    let discard = disk.submit_secure_discard(8, 8).unwrap();
    disk.wait(discard, &mut []).unwrap();
    assert!(back.disk()[8 * 512..][..4096] == [0; 4096]);
    assert!(back.served().iter().any(|request| request.operation == OP_FLUSH));
    // Bytes that it does not have it cannot serve.
    assert_eq!(disk.read(8000, &mut [0; 512]), Err(Error::Io));
    assert_eq!(back.complaints(), [""; 0]);

    // Less, from its next beginning on: who goes on with the rest gets nothing, or is complained of.
    let machine = Machine::new();
    let back = machine.disk(Options::everything());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect_with(&mut xs, Config { segments: 64, pages: 200, ..small() }).unwrap();
    for node in ["feature-flush-cache", "feature-barrier", "feature-max-indirect-segments"] {
        back.lie(node, Some("0"));
    }
    back.restart();
    machine.xen.run_until_idle(100);
    assert_eq!(disk.flush(), Err(Error::Unsupported));
    assert_eq!(disk.write(8, &pattern(20 * 4096, 3)), Err(Error::Io));
    assert_eq!(back.complaints(), ["20 indirect segments"]);
}
