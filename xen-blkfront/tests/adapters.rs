//! The disk under other crates' traits.
#![cfg(all(
    feature = "mock",
    feature = "embedded-io-v0-7",
    feature = "embedded-storage-v0-3",
    feature = "embedded-io-async-v0-7",
    feature = "embedded-storage-async-v0-4",
    feature = "block-device-driver-v0-2"
))]

mod common;

use core::future::Future;
use core::pin::pin;
use core::task::{Context, Poll, Waker};

use aligned::{A1, Aligned};
use block_device_driver::BlockDevice;
use common::{Machine, pattern};
use embedded_io::{ErrorKind, Read, Seek, SeekFrom, Write};
use embedded_storage::{ReadStorage, Storage};
use proptest::prelude::*;
use xen_blkfront::blocks::BlkDevice;
use xen_blkfront::cursor::Cursor;
use xen_blkfront::mock::{Fault, Options};
use xen_blkfront::shared_cursor::SharedCursor;
use xen_blkfront::shared_storage::SharedStorage;
use xen_blkfront::storage::BlkStorage;
use xen_blkfront::{Disk, Error};
use xen_hypercall::mock::MockDomain;
use xen_xenstore::Xenstore;

/// Runs a future and what drives its disk, on a machine whose time passes only while they wait.
fn run<F: Future>(machine: &Machine, disk: &Disk<'_, MockDomain>, future: F) -> F::Output {
    let (mut drive, mut future) = (pin!(disk.drive()), pin!(future));
    let end = machine.soon();
    loop {
        let seen = machine.events.seq();
        // What it does for the other is to be seen by that.
        assert!(drive.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return output;
        }
        assert!(drive.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert!(machine.xen.now() < end, "waits for ever\n{}", machine.xen.trace_text());
        machine.events.wait_since(seen, Some(end));
    }
}

#[test]
fn a_cursor_ends_where_the_disk_ends() {
    let machine = Machine::new();
    let back = machine.disk(Options { sectors: 8, ..Options::default() });
    back.load(&pattern(4096, 1));
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut cursor = Cursor::new(machine.connect(&mut xs).unwrap()).unwrap();
    assert_eq!(cursor.seek(SeekFrom::End(-700)), Ok(3396));
    let mut out = [0; 1000];
    assert_eq!(cursor.read(&mut out), Ok(700));
    assert_eq!(out[..700], pattern(4096, 1)[3396..]);
    assert_eq!(
        (cursor.read(&mut out), cursor.write(&[1]), cursor.write(&[])),
        (Ok(0), Err(Error::OutOfRange), Ok(0))
    );
    assert_eq!(cursor.seek(SeekFrom::Current(-4)), Ok(4092));
    assert_eq!(cursor.write(&[9; 5]), Ok(4));
    assert_eq!(cursor.seek(SeekFrom::Start(u64::MAX)), Ok(u64::MAX));
    assert_eq!((cursor.read(&mut out), cursor.seek(SeekFrom::Current(1))), (Ok(0), Err(Error::OutOfRange)));
    assert_eq!(cursor.seek(SeekFrom::End(i64::MIN)), Err(Error::OutOfRange));
    cursor.flush().unwrap();
    assert_eq!(back.disk()[4088..], [pattern(4096, 1)[4088..4092].to_vec(), vec![9; 4]].concat());
    for (error, kind) in [
        (Error::ReadOnly, ErrorKind::PermissionDenied),
        (Error::OutOfRange, ErrorKind::InvalidInput),
        (Error::TimedOut, ErrorKind::TimedOut),
        (Error::Io, ErrorKind::Other),
    ] {
        assert_eq!(embedded_io::Error::kind(&error), kind);
    }
}

#[test]
fn a_cursor_of_a_disk_that_is_shared_ends_where_the_disk_ends() {
    use embedded_io_async::{Read, Seek, Write};
    let machine = Machine::new();
    let back = machine.disk(Options { sectors: 8, ..Options::default() });
    back.load(&pattern(4096, 1));
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let disk = Disk::of(machine.connect(&mut xs).unwrap());
    let mut cursor = SharedCursor::new(disk.handle()).unwrap();
    run(&machine, &disk, async {
        let cursor = &mut cursor;
        assert_eq!(Seek::seek(cursor, SeekFrom::End(-700)).await, Ok(3396));
        let mut out = [0; 1000];
        assert_eq!(Read::read(cursor, &mut out).await, Ok(700));
        assert_eq!(out[..700], pattern(4096, 1)[3396..]);
        assert_eq!(Read::read(cursor, &mut out).await, Ok(0));
        assert_eq!(Write::write(cursor, &[1]).await, Err(Error::OutOfRange));
        assert_eq!(Write::write(cursor, &[]).await, Ok(0));
        assert_eq!(Seek::seek(cursor, SeekFrom::Current(-4)).await, Ok(4092));
        assert_eq!(Write::write(cursor, &[9; 5]).await, Ok(4));
        assert_eq!(Seek::seek(cursor, SeekFrom::Start(u64::MAX)).await, Ok(u64::MAX));
        assert_eq!(Read::read(cursor, &mut out).await, Ok(0));
        assert_eq!(Seek::seek(cursor, SeekFrom::Current(1)).await, Err(Error::OutOfRange));
        assert_eq!(Write::flush(cursor).await, Ok(()));
    });
    assert_eq!(back.disk()[4088..], [pattern(4096, 1)[4088..4092].to_vec(), vec![9; 4]].concat());
    drop(disk.take());
    assert_eq!(SharedCursor::new(disk.handle()).map(drop), Err(Error::Closed));
    assert_eq!(run(&machine, &disk, Read::read(&mut cursor, &mut [0])), Err(Error::Closed));
}

#[test]
fn what_failed_is_not_remembered_by_a_cursor() {
    let machine = Machine::new();
    let back = machine.disk(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut cursor = Cursor::new(machine.connect(&mut xs).unwrap()).unwrap();
    // Reads the sector, then fails to write it.
    back.fault(Fault::Status(0));
    back.fault(Fault::Status(-1));
    assert_eq!(cursor.write(&[1]), Err(Error::Io));
    let mut out = [7; 4];
    cursor.read_exact(&mut out).unwrap();
    assert_eq!(out, [0; 4]);
    let requests = cursor.get_ref().stats().requests;
    // The sector is held.
    cursor.read_exact(&mut out).unwrap();
    assert_eq!(cursor.get_ref().stats().requests, requests);
    cursor.get_mut().write(0, &[5; 512]).unwrap();
    cursor.read_exact(&mut out).unwrap();
    assert_eq!(out, [5; 4]);
    cursor.into_inner().close(&mut xs, machine.soon()).unwrap();
}

#[test]
fn addresses_are_not_cut_off() {
    let machine = Machine::new();
    // Far more than 32 bits of bytes or blocks, of which the mock has none: nothing may be asked of it.
    let back = machine.disk(Options::default());
    back.lie("sectors", Some("17592186044416"));
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut storage = BlkStorage::new(machine.connect(&mut xs).unwrap()).unwrap();
    assert_eq!(storage.capacity(), 1 << 32);
    assert_eq!(storage.read(u32::MAX, &mut [0; 2]), Err(Error::OutOfRange));
    assert_eq!(storage.write(u32::MAX - 510, &[0; 512]), Err(Error::OutOfRange));
    storage.write(0, &[1; 3]).unwrap();
    let disk = Disk::of(storage.into_inner());
    let mut device = BlkDevice::new(disk.handle());
    let size = run(&machine, &disk, BlockDevice::<512>::size(&mut device));
    assert_eq!(size, Ok(17592186044416 * 512));
    // Beyond what the mock has, and not at the place that the low bits of the address name.
    let block = [Aligned::<A1, _>([3; 65536])];
    assert_eq!(run(&machine, &disk, device.write(u32::MAX, &block)), Err(Error::Io));
    assert_eq!(run(&machine, &disk, device.write(1 << 25, &block)), Err(Error::Io));
    assert_eq!(back.disk()[..5], [1, 1, 1, 0, 0]);
    assert_eq!(back.complaints(), [""; 0]);
}

#[test]
fn blocks_are_whole_sectors_and_on_the_disk() {
    let machine = Machine::new();
    let back = machine.disk(Options { sector_size: 2048, ..Options::default() });
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let disk = Disk::of(machine.connect(&mut xs).unwrap());
    let mut device = BlkDevice::new(disk.handle());
    let small = [Aligned::<A1, _>([0; 512])];
    assert_eq!(run(&machine, &disk, device.write(0, &small)), Err(Error::Unaligned));
    let blocks = [Aligned::<A1, _>([6; 4096]); 40];
    assert_eq!(run(&machine, &disk, device.write(217, &blocks)), Err(Error::OutOfRange));
    run(&machine, &disk, device.write(216, &blocks)).unwrap();
    assert!(back.disk()[216 * 4096..] == [6; 40 * 4096]);
    let mut read = [Aligned::<A1, _>([0; 4096]); 40];
    run(&machine, &disk, device.read(216, &mut read)).unwrap();
    assert!(read.iter().all(|block| **block == [6; 4096]));
    // Given up: what it waited for goes on, and gives its place back.
    back.stall(true);
    {
        let mut read = pin!(device.read(0, &mut read));
        assert!(read.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    assert_eq!(disk.with(|front| (front.free_requests(), front.pending())), Some((4, 4)));
    disk.with(|front| front.publish()).unwrap().unwrap();
    back.stall(false);
    machine.xen.run_until_idle(10);
    disk.with(|front| front.poll()).unwrap().unwrap();
    assert_eq!(disk.with(|front| front.free_requests()), Some(8));
    let empty: &mut [Aligned<A1, [u8; 2048]>] = &mut [];
    assert_eq!(run(&machine, &disk, device.read(0, empty)), Ok(()));
    drop(disk.take());
    assert_eq!(run(&machine, &disk, device.read(0, empty)), Err(Error::Closed));
    assert_eq!(run(&machine, &disk, BlockDevice::<512>::size(&mut device)), Err(Error::Closed));
    assert_eq!(back.complaints(), [""; 0]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn bytes_are_like_memory(
        shift in 0..4_u32,
        steps in prop::collection::vec((any::<bool>(), 0..65536_u32, 0..9000_usize, any::<u8>()), 1..40),
    ) {
        let machine = Machine::new();
        let back = machine.disk(Options { sectors: 128, sector_size: 512 << shift, ..Options::default() });
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let mut storage = BlkStorage::new(machine.connect(&mut xs).unwrap()).unwrap();
        let mut model = vec![0; 65536];
        for (write, at, len, seed) in steps {
            let range = at as usize..at as usize + len;
            let expected = if range.end > 65536 { Err(Error::OutOfRange) } else { Ok(()) };
            if write {
                prop_assert_eq!(storage.write(at, &pattern(len, seed)), expected);
                if expected.is_ok() {
                    model[range].copy_from_slice(&pattern(len, seed));
                }
            } else {
                let mut out = vec![0; len];
                prop_assert_eq!(storage.read(at, &mut out), expected);
                prop_assert!(expected.is_err() || out == model[range]);
            }
        }
        prop_assert!(back.disk() == model);
        // The same by another way.
        let mut cursor = Cursor::new(storage.into_inner()).unwrap();
        let mut all = vec![0; 65536];
        cursor.read_exact(&mut all).unwrap();
        prop_assert!(all == model);
        prop_assert_eq!(back.complaints(), Vec::<String>::new());
    }

    #[test]
    fn bytes_of_a_disk_that_is_shared_are_like_memory(
        shift in 0..4_u32,
        steps in prop::collection::vec((any::<bool>(), 0..65536_u32, 0..9000_usize, any::<u8>()), 1..40),
    ) {
        let machine = Machine::new();
        let back = machine.disk(Options { sectors: 128, sector_size: 512 << shift, ..Options::default() });
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let disk = Disk::of(machine.connect(&mut xs).unwrap());
        let mut storage = SharedStorage::new(disk.handle()).unwrap();
        prop_assert_eq!(embedded_storage_async::ReadStorage::capacity(&storage), 65536);
        let mut model = vec![0; 65536];
        for (write, at, len, seed) in steps {
            use embedded_storage_async::{ReadStorage, Storage};
            let range = at as usize..at as usize + len;
            let expected = if range.end > 65536 { Err(Error::OutOfRange) } else { Ok(()) };
            if write {
                let data = pattern(len, seed);
                prop_assert_eq!(run(&machine, &disk, Storage::write(&mut storage, at, &data)), expected);
                if expected.is_ok() {
                    model[range].copy_from_slice(&data);
                }
            } else {
                let mut out = vec![0; len];
                prop_assert_eq!(run(&machine, &disk, ReadStorage::read(&mut storage, at, &mut out)), expected);
                prop_assert!(expected.is_err() || out == model[range]);
            }
        }
        prop_assert!(back.disk() == model);
        let mut cursor = SharedCursor::new(disk.handle()).unwrap();
        let mut all = vec![0; 65536];
        prop_assert_eq!(run(&machine, &disk, embedded_io_async::Read::read_exact(&mut cursor, &mut all)), Ok(()));
        prop_assert!(all == model);
        prop_assert_eq!(back.complaints(), Vec::<String>::new());
    }
}
