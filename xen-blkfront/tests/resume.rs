//! A disk whose domain is suspended and goes on in a new one.
#![cfg(feature = "mock")]

mod common;

use common::{Machine, pattern, small};
use xen_blkfront::abi::{OP_BARRIER, OP_FLUSH, OP_READ, OP_WRITE};
use xen_blkfront::mock::{Options, Order};
use xen_blkfront::{BlkFront, Config, Error, Piece, State};
use xen_gnttab::Access;
use xen_hypercall::DomId;
use xen_hypercall::sched::Resumed;
use xen_xenstore::Xenstore;

#[test]
fn what_was_under_way_is_issued_again_in_order_and_what_was_answered_is_not() {
    let machine = Machine::new();
    let back = machine.disk(Options { volatile_cache: true, ..Options::default() });
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    disk.write(100, &pattern(512, 1)).unwrap();
    let (pages, watches) = (machine.guest.pages_in_use(), machine.store.watches(machine.guest.id()));
    for life in 1..4_u64 {
        let seed = life as u8 * 10;
        // This one is answered, and its result is not taken.
        let answered = disk.submit_write(50, &pattern(512, seed + 9)).unwrap();
        disk.publish().unwrap();
        machine.xen.run_until_idle(100);
        back.stall(true);
        let first = disk.submit_write(0, &pattern(4096, seed + 2)).unwrap();
        let second = disk.submit_write(4, &pattern(4096, seed + 3)).unwrap();
        let read = disk.submit_read(100, 1).unwrap();
        let forgotten = disk.submit_read(200, 1).unwrap();
        // Nobody knows that it is not done.
        let left = disk.submit_write(400, &pattern(512, seed + 5)).unwrap();
        let flush = disk.submit_flush().unwrap();
        disk.publish().unwrap();
        disk.forget(forgotten);
        disk.forget(left);
        let late = disk.submit_write(300, &pattern(512, seed + 4)).unwrap();
        let before = back.served().len();
        machine.xen.set_toolstack(move |domain| {
            domain.xen().migrate(domain);
            Resumed::InNewDomain
        });
        back.set_next(Options { volatile_cache: true, domain: DomId(life as u16 % 2), ..Options::default() });
        assert_eq!(machine.suspend(&mut xs, &mut disk), (Resumed::InNewDomain, 0));
        assert_eq!(disk.state(), State::Connected);
        for ticket in [answered, first, second, flush, late] {
            assert_eq!(disk.wait(ticket, &mut []), Ok(()));
        }
        let mut out = [0; 512];
        disk.wait(read, &mut out).unwrap();
        assert_eq!(out[..], pattern(512, 1));
        let served = back.served();
        let told: Vec<_> =
            served[before..].iter().map(|request| (request.operation, request.sector)).collect();
        let expected =
            [(OP_WRITE, 0), (OP_WRITE, 4), (OP_READ, 100), (OP_WRITE, 400), (OP_FLUSH, 0), (OP_WRITE, 300)];
        assert_eq!(told, expected);
        let content = back.disk();
        assert_eq!(content[..2048], pattern(4096, seed + 2)[..2048]);
        assert_eq!(content[2048..6144], pattern(4096, seed + 3));
        assert_eq!(content[400 * 512..401 * 512], pattern(512, seed + 5));
        assert_eq!(content[50 * 512..51 * 512], pattern(512, seed + 9));
        assert_eq!((disk.stats().reconnects, disk.stats().reissued), (life, 6 * life));
        assert_eq!((disk.free_requests(), disk.pending()), (8, 0));
        assert_eq!(disk.backend_id(), DomId(life as u16 % 2));
        assert_eq!(machine.guest.pages_in_use(), pages, "nothing was copied or lost");
        assert_eq!(machine.store.watches(machine.guest.id()), watches);
        assert_eq!(back.complaints(), [""; 0]);
    }
    assert_eq!(disk.flush(), Ok(()), "no write was lost");
    disk.close(&mut xs, machine.soon()).unwrap();
    assert_eq!(machine.grants.stats().in_use, 0);
}

#[test]
fn all_that_a_disk_can_do_goes_on() {
    let machine = Machine::new();
    let back = machine.disk(Options { order: Order::Shuffled(3), ..Options::everything() });
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let config = Config { queues: 3, ring_pages: 4, ..Config::default() };
    let mut disk = machine.connect_with(&mut xs, config).unwrap();
    assert_eq!(disk.queues(), 3);
    let data = pattern(200 * 1024, 5);
    let page = machine.grants.share(DomId(0), Access::ReadWrite).unwrap();
    let mut lent = [Some(Piece::whole(page))];
    back.stall(true);
    let write = disk.submit_write(0, &data).unwrap();
    let into = disk.submit_read_into(1000, &mut lent).unwrap();
    disk.publish().unwrap();
    back.stall(false);
    machine.suspend(&mut xs, &mut disk);
    disk.wait(write, &mut []).unwrap();
    assert_eq!(back.disk()[..data.len()], data);
    let mut places = [None];
    while disk.pending() > 0 {
        machine.xen.run_until_idle(100);
        disk.poll().unwrap();
    }
    assert_eq!(disk.take_pages(into, &mut places), Some(Ok(())));
    assert!(places[0].as_mut().unwrap().page_mut().is_current(), "granted again with the others");
    // One that was the caller's when the domain was suspended is refused until it is granted again.
    machine.suspend(&mut xs, &mut disk);
    assert_eq!(disk.submit_read_into(0, &mut places), Err(Error::ForeignPage));
    places[0].as_mut().unwrap().page_mut().regrant(disk.backend_id()).unwrap();
    assert!(disk.submit_read_into(0, &mut places).is_ok());
    // A backend with one ring of one page, without indirect segments, and with another size.
    back.set_next(Options { domain: DomId(9), sectors: 4096, ..Options::default() });
    let long = disk.submit_write(100, &data).unwrap();
    disk.publish().unwrap();
    machine.suspend(&mut xs, &mut disk);
    assert_eq!((disk.queues(), disk.capacity(), disk.backend_id()), (1, 4096, DomId(9)));
    disk.wait(long, &mut []).unwrap();
    assert_eq!(back.disk()[51200..][..data.len()], data);
    assert_eq!(back.complaints(), [""; 0]);
}

#[test]
fn what_does_not_fit_the_new_disk_fails_by_itself_and_barriers_keep_their_meaning() {
    let machine = Machine::new();
    let options = Options { barrier: true, ..Options::default() };
    let back = machine.disk(options);
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    let end = disk.capacity();
    back.stall(true);
    let before = disk.submit_write(0, &pattern(512, 1)).unwrap();
    let barrier = disk.submit_barrier(1, &pattern(512, 2)).unwrap();
    let after = disk.submit_write(2, &pattern(512, 3)).unwrap();
    let beyond = disk.submit_write(end - 1, &pattern(512, 4)).unwrap();
    disk.publish().unwrap();
    back.set_next(Options { sectors: end - 1, ..options });
    machine.suspend(&mut xs, &mut disk);
    for ticket in [before, barrier, after] {
        assert_eq!(disk.wait(ticket, &mut []), Ok(()));
    }
    assert_eq!(disk.wait(beyond, &mut []), Err(Error::OutOfRange));
    let told: Vec<_> = back.served().iter().map(|request| (request.operation, request.sector)).collect();
    assert_eq!(told, [(OP_WRITE, 0), (OP_BARRIER, 1), (OP_WRITE, 2)]);
    // Without barriers there is none; the writes go on.
    back.stall(true);
    let write = disk.submit_write(0, &pattern(512, 5)).unwrap();
    let barrier = disk.submit_barrier(1, &pattern(512, 6)).unwrap();
    disk.publish().unwrap();
    back.set_next(Options { read_only: false, sectors: end, ..Options::default() });
    machine.suspend(&mut xs, &mut disk);
    assert_eq!((disk.wait(write, &mut []), disk.wait(barrier, &mut [])), (Ok(()), Err(Error::Unsupported)));
    back.set_next(Options { read_only: true, ..Options::default() });
    back.stall(true);
    let write = disk.submit_write(0, &pattern(512, 7)).unwrap();
    let read = disk.submit_read(0, 1).unwrap();
    disk.publish().unwrap();
    machine.suspend(&mut xs, &mut disk);
    let mut out = [0; 512];
    assert_eq!((disk.wait(write, &mut []), disk.wait(read, &mut out)), (Err(Error::ReadOnly), Ok(())));
    assert_eq!(out[..], pattern(512, 5));
    assert_eq!(back.complaints(), [""; 0]);
}

#[test]
fn disks_that_were_not_at_work_do_not_stop_the_others() {
    let machine = Machine::new();
    let back = machine.disk(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    // The backend does not come: the data waits, and is written in the end.
    back.stall(true);
    let ticket = disk.submit_write(7, &pattern(512, 1)).unwrap();
    disk.publish().unwrap();
    assert_eq!(machine.suspend(&mut xs, &mut disk), (Resumed::InNewDomain, 1));
    assert_eq!((disk.state(), disk.submit_read(0, 1)), (State::Closed, Err(Error::Closed)));
    assert_eq!(machine.suspend(&mut xs, &mut disk), (Resumed::InNewDomain, 0), "it was not at work");
    back.stall(false);
    assert_eq!(machine.suspend(&mut xs, &mut disk), (Resumed::InNewDomain, 0));
    disk.wait(ticket, &mut []).unwrap();
    assert_eq!(back.disk()[7 * 512..8 * 512], pattern(512, 1));
    // By hand.
    back.stall(true);
    let ticket = disk.submit_write(8, &pattern(512, 2)).unwrap();
    disk.publish().unwrap();
    assert_eq!(machine.suspend(&mut xs, &mut disk).1, 1);
    back.stall(false);
    disk.reconnect(&mut xs, machine.soon()).unwrap();
    disk.wait(ticket, &mut []).unwrap();
    assert_eq!(back.disk()[8 * 512..9 * 512], pattern(512, 2));
    // Half connected: the other half comes to nothing, in time, and leaves the new device alone.
    disk.close(&mut xs, machine.soon()).unwrap();
    let begun =
        BlkFront::begin(&mut xs, &machine.events, &machine.grants, common::VBD, machine.soon(), small());
    let begun = begun.unwrap();
    assert_eq!(machine.suspend(&mut xs, &mut ()), (Resumed::InNewDomain, 0));
    assert!(begun.finish(&mut xs, machine.soon()).is_err());
    machine.xen.run_until_idle(100);
    let mut disk = machine.connect(&mut xs).unwrap();
    let mut out = [0; 512];
    disk.read(8, &mut out).unwrap();
    assert_eq!(out[..], pattern(512, 2));
    // A backend that lies is not believed again.
    back.fault(xen_blkfront::mock::Fault::Id(99));
    assert!(disk.read(0, &mut out).is_err());
    assert!(matches!(disk.state(), State::Broken(_)));
    assert_eq!(machine.suspend(&mut xs, &mut disk), (Resumed::InNewDomain, 0));
    assert!(matches!(disk.state(), State::Broken(_)));
}

#[test]
fn a_checkpoint_leaves_the_disk_as_it_is() {
    let machine = Machine::new();
    let back = machine.disk(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    machine.xen.set_toolstack(|_| Resumed::InPlace);
    let write = disk.submit_write(0, &pattern(512, 1)).unwrap();
    disk.publish().unwrap();
    assert_eq!(machine.suspend(&mut xs, &mut disk), (Resumed::InPlace, 0));
    disk.wait(write, &mut []).unwrap();
    assert_eq!((back.served().len(), disk.stats().reconnects), (1, 0));
    assert_eq!(back.disk()[..512], pattern(512, 1));
}
