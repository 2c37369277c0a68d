//! Backends that go away and come back, with what was under way.
#![cfg(feature = "mock")]

mod common;

use std::collections::BTreeSet;

use common::{Machine, pattern, small};
use xen_blkfront::abi::{OP_FLUSH, OP_READ, OP_WRITE, Request};
use xen_blkfront::mock::{MockBlkback, Options};
use xen_blkfront::{Config, Error, Piece, State};
use xen_gnttab::Access;
use xen_hypercall::mock::Dice;
use xen_xenstore::Xenstore;

fn grefs(requests: &[Request]) -> BTreeSet<u32> {
    let segments = requests.iter().flat_map(|request| &request.segment[..request.segments.into()]);
    segments.map(|segment| segment.gref).collect()
}

#[test]
fn what_was_under_way_is_asked_for_again_in_order() {
    let ways: [fn(&MockBlkback); 4] = [
        |back| {
            back.vanish();
            back.come_back();
        },
        MockBlkback::drop_out,
        |back| back.detach(),
        // It takes up the rings of before, and has to let go of them.
        MockBlkback::restart,
    ];
    for (way, go) in ways.into_iter().enumerate() {
        let machine = Machine::new();
        let back = machine.disk(Options::default());
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let mut disk = machine.connect(&mut xs).unwrap();
        disk.write(100, &pattern(512, 1)).unwrap();
        disk.flush().unwrap();
        // The old backend keeps what it has mapped: none of that may be used again.
        back.hold(true);
        let first = disk.submit_write(0, &pattern(4096, 2)).unwrap();
        let second = disk.submit_write(4, &pattern(4096, 3)).unwrap();
        let read = disk.submit_read(100, 1).unwrap();
        let unwanted = disk.submit_read(200, 1).unwrap();
        let flush = disk.submit_flush().unwrap();
        back.stall(true);
        disk.publish().unwrap();
        disk.forget(unwanted);
        let late = disk.submit_write(300, &pattern(512, 4)).unwrap();
        let before = back.served().len();
        go(&back);
        machine.xen.run_until_idle(10_000);
        back.stall(false);
        assert_eq!(disk.service(&mut xs), Ok(if way == 2 { State::Closing } else { State::Closed }), "{way}");
        assert_eq!(disk.submit_read(0, 1), Err(Error::Closed));
        let old = grefs(&back.served());
        disk.reconnect(&mut xs, machine.soon()).unwrap();
        assert_eq!(disk.state(), State::Connected);
        for ticket in [first, second, flush, late] {
            disk.wait(ticket, &mut []).unwrap();
        }
        let mut out = [0; 512];
        disk.wait(read, &mut out).unwrap();
        assert_eq!(out[..], pattern(512, 1));
        // A backend that closes, or takes up the old rings, may do what it has before it lets go, and then once more.
        let served = back.served();
        let served = &served[if way >= 2 { served.len() - 5 } else { before }..];
        let told: Vec<_> = served.iter().map(|request| (request.operation, request.sector)).collect();
        assert_eq!(
            told,
            [(OP_WRITE, 0), (OP_WRITE, 4), (OP_READ, 100), (OP_FLUSH, 0), (OP_WRITE, 300)],
            "{way}"
        );
        assert!(
            back.disk()[..2048] == pattern(4096, 2)[..2048] && back.disk()[2048..6144] == pattern(4096, 3)
        );
        assert!(grefs(served).is_disjoint(&old));
        assert!(machine.grants.stats().quarantined > 0);
        assert_eq!((disk.stats().reconnects, disk.stats().reissued), (1, 5));
        assert_eq!((disk.free_requests(), disk.pending()), (8, 0));
        back.hold(false);
        machine.grants.reclaim();
        assert_eq!(machine.grants.stats().quarantined, 0);
        disk.close(&mut xs, machine.soon()).unwrap();
        assert_eq!(machine.grants.stats().in_use, 0);
        assert_eq!(back.complaints(), [""; 0]);
    }
}

#[test]
fn a_backend_that_takes_up_the_rings_where_they_are_goes_unnoticed() {
    let machine = Machine::new();
    let back = machine.disk(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    back.stall(true);
    let write = disk.submit_write(3, &pattern(1024, 9)).unwrap();
    disk.publish().unwrap();
    back.restart();
    back.stall(false);
    machine.xen.run_until_idle(5);
    assert_eq!(disk.service(&mut xs), Ok(State::Connected));
    // Events that were lost with the earlier backend are made up for by the next request.
    let read = disk.submit_read(3, 2).unwrap();
    let mut out = [0; 1024];
    disk.wait(read, &mut out).unwrap();
    assert_eq!(disk.wait(write, &mut []), Ok(()));
    assert!(out[..] == pattern(1024, 9) && disk.stats().reconnects == 0);
    assert_eq!(back.complaints(), [""; 0]);
}

#[test]
fn a_backend_that_does_not_come_back_is_tried_again() {
    let machine = Machine::new();
    let back = machine.disk(Options::everything());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect_with(&mut xs, Config { queues: 3, ring_pages: 4, ..small() }).unwrap();
    back.stall(true);
    let ticket = disk.submit_write(0, &[7; 512]).unwrap();
    disk.publish().unwrap();
    back.vanish();
    // More often than there are places for watches.
    for _ in 0..40 {
        assert!(matches!(disk.reconnect(&mut xs, machine.soon()), Err(Error::Xenstore(_))));
        assert_eq!((disk.state(), disk.queues()), (State::Closed, 0));
    }
    // The data waits in the pages that there are.
    let grants = machine.grants.stats();
    back.come_back();
    back.stall(false);
    disk.reconnect(&mut xs, machine.soon()).unwrap();
    disk.wait(ticket, &mut []).unwrap();
    assert_eq!((back.disk()[0], disk.queues(), disk.ring_slots()), (7, 3, 3 * 128));
    assert!(grants.in_use < machine.grants.stats().in_use);
}

#[test]
fn what_does_not_fit_the_disk_any_more_fails_by_itself() {
    let machine = Machine::new();
    let back = machine.disk(Options::everything());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    back.stall(true);
    let inside = disk.submit_write(0, &[1; 512]).unwrap();
    let beyond = disk.submit_write(2000, &[1; 512]).unwrap();
    let discard = disk.submit_discard(0, 16).unwrap();
    let erase = disk.submit_secure_discard(64, 16).unwrap();
    let barrier = disk.submit_barrier(16, &[2; 512]).unwrap();
    disk.publish().unwrap();
    back.vanish();
    back.resize(1000);
    for node in ["feature-discard", "feature-barrier"] {
        back.lie(node, Some("0"));
    }
    back.come_back();
    back.stall(false);
    disk.reconnect(&mut xs, machine.soon()).unwrap();
    assert_eq!(disk.wait(inside, &mut []), Ok(()));
    assert_eq!(disk.wait(beyond, &mut []), Err(Error::OutOfRange));
    for ticket in [discard, erase, barrier] {
        assert_eq!(disk.wait(ticket, &mut []), Err(Error::Unsupported));
    }
    assert_eq!((disk.capacity(), disk.free_requests()), (1000, 8));
    // And nothing is written to a disk that cannot be written any more.
    back.stall(true);
    let write = disk.submit_write(1, &[1; 512]).unwrap();
    disk.publish().unwrap();
    back.drop_out();
    back.lie("mode", Some("r"));
    back.stall(false);
    disk.reconnect(&mut xs, machine.soon()).unwrap();
    assert_eq!(disk.wait(write, &mut []), Err(Error::ReadOnly));
}

#[test]
fn pages_that_were_lent_come_back_with_what_is_in_them() {
    let machine = Machine::new();
    let back = machine.disk(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    let mut page = machine.grants.share(disk.backend_id(), Access::ReadWrite).unwrap();
    page.write_bytes(512, &pattern(512, 5)).unwrap();
    back.stall(true);
    let mut pieces = [Some(Piece::part(page, 512, 512).unwrap_or_else(|_| unreachable!()))];
    let ticket = disk.submit_write_from(9, &mut pieces).unwrap();
    disk.publish().unwrap();
    back.drop_out();
    back.stall(false);
    disk.reconnect(&mut xs, machine.soon()).unwrap();
    disk.publish().unwrap();
    machine.xen.run_until_idle(20);
    disk.poll().unwrap();
    let mut got = [0; 512];
    assert_eq!(disk.take_pages(ticket, &mut pieces), Some(Ok(())));
    let [Some(piece)] = &mut pieces else { panic!("no page") };
    assert_eq!((piece.offset(), piece.len()), (512, 512));
    piece.page_mut().read_bytes(512, &mut got).unwrap();
    assert!(got[..] == pattern(512, 5) && back.disk()[9 * 512..10 * 512] == pattern(512, 5));
}

#[test]
fn a_crash_of_the_backends_machine_loses_only_what_was_not_flushed() {
    for seed in 0..6 {
        let machine = Machine::new();
        let back = machine.disk(Options { volatile_cache: true, ..Options::default() });
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let mut disk = machine.connect(&mut xs).unwrap();
        disk.write(0, &[1; 4096]).unwrap();
        disk.flush().unwrap();
        disk.write(0, &[2; 4096]).unwrap();
        back.stall(true);
        let ticket = disk.submit_write(8, &[3; 4096]).unwrap();
        disk.publish().unwrap();
        back.vanish();
        back.power_loss(&Dice::new(seed));
        back.come_back();
        back.stall(false);
        disk.reconnect(&mut xs, machine.soon()).unwrap();
        disk.wait(ticket, &mut []).unwrap();
        let mut out = [0; 8192];
        disk.read(0, &mut out).unwrap();
        assert!(out[..4096].iter().all(|byte| [1, 2].contains(byte)) && out[4096..] == [3; 4096]);
    }
}

#[test]
fn a_flush_tells_of_a_crash_only_if_its_answer_came_later() {
    // How far the flush is when the power fails: in the queue, sent, served, and answered with the answer taken.
    for progress in 0..4 {
        let machine = Machine::new();
        let back = machine.disk(Options { volatile_cache: true, ..Options::default() });
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let mut disk = machine.connect(&mut xs).unwrap();
        disk.write(0, &[1; 4096]).unwrap();
        let flush = if progress < 2 {
            disk.write(0, &[2; 4096]).unwrap();
            back.stall(true);
            let flush = disk.submit_flush().unwrap();
            if progress == 1 {
                disk.publish().unwrap();
                machine.xen.run_until_idle(50);
            }
            flush
        } else {
            let flush = disk.submit_flush().unwrap();
            disk.publish().unwrap();
            machine.xen.run_until_idle(50);
            if progress == 3 {
                disk.poll().unwrap();
                disk.write(0, &[2; 4096]).unwrap();
            }
            flush
        };
        back.vanish();
        let lost = back.power_loss(&Dice::new(5));
        assert_eq!(lost > 0, progress != 2, "{progress}");
        back.come_back();
        back.stall(false);
        disk.reconnect(&mut xs, machine.soon()).unwrap();
        let told = disk.wait(flush, &mut []);
        if progress == 3 {
            // What it was asked for is durable, and the write after it is not its matter: the next one tells of that.
            assert_eq!(told, Ok(()));
            assert_eq!(disk.flush(), Err(Error::Lost));
        } else {
            // The disk knows of no answer, so it cannot know that nothing is lost.
            assert_eq!(told, Err(Error::Lost), "{progress}");
        }
        assert_eq!(disk.flush(), Ok(()), "{progress}");
        let mut out = [0; 4096];
        disk.read(0, &mut out).unwrap();
        let may: &[u8] = if progress < 2 { &[0, 1, 2] } else { &[1, 2] };
        assert!(out.chunks(512).all(|sector| may.iter().any(|byte| sector == [*byte; 512])), "{progress}");
        assert_eq!(back.complaints(), [""; 0]);
    }
}
