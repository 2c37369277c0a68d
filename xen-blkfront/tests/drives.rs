//! Which disk is the first, and disks that are odd but right.
#![cfg(feature = "mock")]

mod common;

use common::{Machine, pattern};
use xen_blkfront::mock::{MockBlkback, Options};
use xen_blkfront::{BlkFront, Config, Error, Piece, State};
use xen_gnttab::Access;
use xen_hypercall::DomId;
use xen_hypercall::mock::MockDomain;
use xen_xenstore::Xenstore;

#[test]
fn a_drive_for_cds_is_not_the_first_disk() {
    let machine = Machine::new();
    let mut xs = Xenstore::new(&machine.events).unwrap();
    assert_eq!(BlkFront::first_index(&mut xs), Ok(None));
    assert_eq!(BlkFront::first_cdrom(&mut xs), Ok(None));
    let cdrom = Options { cdrom: true, sectors: 0, ..Options::default() };
    for index in [51728, 768] {
        MockBlkback::new(&machine.store, &machine.guest, index, cdrom);
    }
    assert_eq!(BlkFront::first_index(&mut xs), Ok(None));
    let none = BlkFront::connect_first(&mut xs, &machine.events, &machine.grants, machine.soon());
    assert_eq!(none.err(), Some(Error::NoDevice));
    let disk = MockBlkback::new(&machine.store, &machine.guest, 51760, Options::default());
    MockBlkback::new(&machine.store, &machine.guest, 51776, Options::default());
    assert_eq!(BlkFront::first_index(&mut xs), Ok(Some(51760)));
    assert_eq!(BlkFront::first_cdrom(&mut xs), Ok(Some(768)));
    let mut first =
        BlkFront::connect_first(&mut xs, &machine.events, &machine.grants, machine.soon()).unwrap();
    first.write(0, &[5; 512]).unwrap();
    assert_eq!(disk.disk()[0], 5);
    // A toolstack that does not say what it is.
    machine.store.remove("/local/domain/1/device/vbd/51760/device-type");
    assert_eq!(BlkFront::first_index(&mut xs), Ok(Some(51760)));
}

#[test]
fn a_drive_without_a_medium_is_there_and_empty() {
    let machine = Machine::new();
    let options = Options { cdrom: true, removable: true, read_only: true, sectors: 0, ..Options::default() };
    let back = machine.disk(options);
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut drive = machine.connect(&mut xs).unwrap();
    assert_eq!((drive.capacity(), drive.is_cdrom(), drive.state()), (0, true, State::Connected));
    assert_eq!(drive.read(0, &mut [0; 512]), Err(Error::OutOfRange));
    assert_eq!(drive.submit_read(0, 1), Err(Error::OutOfRange));
    assert_eq!(drive.flush(), Ok(()));
    back.resize(64);
    back.load(&pattern(512, 3));
    machine.xen.run_until_idle(100);
    assert_eq!(drive.service(&mut xs), Ok(State::Connected));
    let mut out = [0; 512];
    drive.read(0, &mut out).unwrap();
    assert!(out[..] == pattern(512, 3) && drive.capacity() == 64);
    // Taken out again.
    back.resize(0);
    machine.xen.run_until_idle(100);
    assert_eq!(drive.service(&mut xs), Ok(State::Connected));
    assert_eq!(drive.read(0, &mut out), Err(Error::OutOfRange));
    assert_eq!(back.complaints(), [""; 0]);
}

#[test]
fn a_part_of_a_sector_at_the_end_is_left_out() {
    let machine = Machine::new();
    let back = machine.disk(Options { sector_size: 4096, sectors: 83, ..Options::default() });
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    assert_eq!(disk.capacity(), 80);
    disk.write(72, &[7; 4096]).unwrap();
    assert_eq!(disk.write(80, &[7; 4096]), Err(Error::OutOfRange));
    back.resize(95);
    machine.xen.run_until_idle(100);
    assert_eq!(disk.service(&mut xs), Ok(State::Connected));
    assert_eq!(disk.capacity(), 88);
    assert_eq!(back.complaints(), [""; 0]);
}

#[test]
fn a_disk_is_served_by_any_domain() {
    let machine = Machine::new();
    let back = machine.disk(Options { domain: DomId(5), ..Options::everything() });
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let config = Config { queues: 2, ring_pages: 2, ..Config::default() };
    let mut disk = machine.connect_with(&mut xs, config).unwrap();
    assert_eq!((disk.backend_id(), disk.queues()), (DomId(5), 2));
    disk.write(3, &pattern(60 * 512, 1)).unwrap();
    disk.flush().unwrap();
    assert!(back.disk()[3 * 512..][..60 * 512] == pattern(60 * 512, 1));
    let page = |to| [Some(Piece::whole(machine.grants.share(DomId(to), Access::ReadWrite).unwrap()))];
    assert_eq!(disk.submit_read_into(0, &mut page(0)), Err(Error::ForeignPage));
    let ticket = disk.submit_read_into(0, &mut page(5)).unwrap();
    assert_eq!(disk.wait(ticket, &mut []), Ok(()));
    // Moved to another backend, in the same domain.
    back.vanish();
    back.come_back();
    disk.reconnect(&mut xs, machine.soon()).unwrap();
    disk.write(3, &[9; 512]).unwrap();
    assert_eq!(back.disk()[3 * 512], 9);
    disk.close(&mut xs, machine.soon()).unwrap();
    machine.grants.reclaim();
    assert_eq!((machine.grants.stats().in_use, machine.grants.stats().quarantined), (0, 0));
    assert_eq!(back.complaints(), [""; 0]);
}

#[test]
fn disks_that_are_begun_together_connect_together() {
    let machine = Machine::new();
    let backs = [0, 1, 2]
        .map(|i| MockBlkback::new(&machine.store, &machine.guest, 51712 + 16 * i, Options::default()));
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let begun = [0, 1, 2].map(|i| {
        BlkFront::<MockDomain>::begin(
            &mut xs,
            &machine.events,
            &machine.grants,
            51712 + 16 * i,
            machine.soon(),
            Config::default(),
        )
        .unwrap()
    });
    // All have what they need.
    machine.xen.run_until_idle(1000);
    assert!(backs.iter().all(MockBlkback::is_connected));
    for (begun, back) in begun.into_iter().zip(&backs) {
        let mut disk = begun.finish(&mut xs, machine.soon()).unwrap();
        disk.write(0, &[1; 512]).unwrap();
        assert_eq!(back.disk()[0], 1);
        disk.close(&mut xs, machine.soon()).unwrap();
    }
    assert_eq!((machine.grants.stats().in_use, machine.grants.stats().quarantined), (0, 0));
}

#[test]
fn a_disk_that_is_begun_and_not_wanted_is_given_up() {
    let machine = Machine::new();
    let back = machine.disk(Options::default());
    // It never says that it has connected.
    back.lie("state", Some("2"));
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let (events, grants, soon) = (&machine.events, &machine.grants, machine.soon());
    let begun = BlkFront::begin(&mut xs, events, grants, common::VBD, soon, Config::default()).unwrap();
    machine.xen.run_until_idle(100);
    assert!(back.is_connected());
    assert!(begun.finish(&mut xs, machine.xen.now()).is_err());
    assert_eq!(machine.store.read("/local/domain/1/device/vbd/51712/state").as_deref(), Some("6"));
    machine.xen.run_until_idle(100);
    assert!(!back.is_connected());
    machine.grants.reclaim();
    assert_eq!((machine.grants.stats().in_use, machine.grants.stats().quarantined), (0, 0));
}

#[test]
fn many_disks_share_a_connection() {
    let machine = Machine::new();
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let numbers = || (0..40).map(|i| 51712 + 16 * i);
    let backs: Vec<_> = numbers()
        .map(|index| MockBlkback::new(&machine.store, &machine.guest, index, Options::default()))
        .collect();
    let mut disks: Vec<_> = numbers()
        .map(|index| {
            let (events, grants, soon) = (&machine.events, &machine.grants, machine.soon());
            let disk = BlkFront::connect_with(&mut xs, events, grants, index, soon, common::small());
            disk.unwrap_or_else(|error| panic!("disk {index}: {error}"))
        })
        .collect();
    for (number, (disk, back)) in disks.iter_mut().zip(&backs).enumerate() {
        disk.write(0, &[number as u8; 512]).unwrap();
        assert_eq!((back.disk()[0], disk.service(&mut xs)), (number as u8, Ok(State::Connected)));
    }
    // Each hears of its own backend.
    backs[17].detach();
    machine.xen.run_until_idle(1000);
    for (number, disk) in disks.iter_mut().enumerate() {
        let expected = if number == 17 { State::Closing } else { State::Connected };
        assert_eq!(disk.service(&mut xs), Ok(expected), "{number}");
    }
    for disk in disks {
        disk.close(&mut xs, machine.soon()).unwrap();
    }
    machine.grants.reclaim();
    assert_eq!((machine.store.watches(DomId(1)), machine.grants.stats().in_use), (0, 0));
}
