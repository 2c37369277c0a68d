//! A result that was told is final, whatever becomes of the backend; and none is told that is not so.
#![cfg(feature = "mock")]

mod common;

use std::collections::BTreeSet;

use common::{Machine, pattern, small};
use xen_blkfront::abi::{OP_BARRIER, OP_WRITE, RSP_EOPNOTSUPP, RSP_ERROR, Request};
use xen_blkfront::mock::{Fault, MockBlkback, Options};
use xen_blkfront::{BlkFront, Config, Error, Piece, State};
use xen_gnttab::Access;
use xen_hypercall::VcpuId;
use xen_hypercall::mock::{Dice, MockDomain};
use xen_xenstore::Xenstore;

fn grefs(requests: &[Request]) -> BTreeSet<u32> {
    let segments = requests.iter().flat_map(|request| &request.segment[..request.segments.into()]);
    segments.map(|segment| segment.gref).collect()
}

/// The backend's domain dies and comes back.
fn renew<'x>(
    machine: &'x Machine,
    back: &MockBlkback,
    xs: &mut Xenstore<'x, MockDomain>,
    disk: &mut BlkFront<'x, MockDomain>,
) {
    back.vanish();
    back.come_back();
    back.stall(false);
    machine.xen.run_until_idle(100);
    assert_eq!(disk.service(xs), Ok(State::Closed));
    disk.reconnect(xs, machine.soon()).unwrap();
    machine.xen.run_until_idle(100);
}

#[test]
fn a_write_that_timed_out_is_not_issued_to_another_backend() {
    let machine = Machine::new();
    let back = machine.disk(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    back.fault(Fault::Lost);
    assert_eq!(disk.write(0, &[1; 512]), Err(Error::TimedOut));
    assert_eq!(disk.write(0, &[2; 512]), Ok(()));
    renew(&machine, &back, &mut xs, &mut disk);
    let mut out = [0; 512];
    disk.read(0, &mut out).unwrap();
    assert_eq!((out[0], disk.stats().reissued, disk.pending(), disk.free_requests()), (2, 0, 0, 8));
}

#[test]
fn what_is_not_in_the_ring_when_its_time_is_up_never_gets_there() {
    let machine = Machine::new();
    let back = machine.disk(Options { sectors: 4096, indirect_segments: None, ..Options::default() });
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let config = Config { requests: 40, pages: 100, ..small() };
    let mut disk = machine.connect_with(&mut xs, config).unwrap();
    back.stall(true);
    // The ring is full of these.
    let reads: Vec<_> = (0..32).map(|i| disk.submit_read(i * 16, 1).unwrap()).collect();
    disk.publish().unwrap();
    assert_eq!(disk.write(2000, &[1; 512]), Err(Error::TimedOut));
    let read = disk.submit_read_into(
        3000,
        &mut [Some(Piece::whole(machine.grants.share(disk.backend_id(), Access::ReadWrite).unwrap()))],
    );
    assert_eq!(disk.wait(read.unwrap(), &mut []), Err(Error::TimedOut));
    back.stall(false);
    for read in reads {
        assert_eq!(disk.wait(read, &mut [0; 512]), Ok(()));
    }
    disk.read(0, &mut [0; 512]).unwrap();
    machine.xen.run_until_idle(100);
    assert!(back.served().iter().all(|request| request.sector < 2000));
    assert_eq!((disk.pending(), disk.free_requests()), (0, 40));
}

#[test]
fn what_is_taken_of_a_disk_that_closed_is_over() {
    let machine = Machine::new();
    let back = machine.disk(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    back.stall(true);
    let taken = disk.submit_write(0, &[1; 512]).unwrap();
    let kept = disk.submit_write(8, &[2; 512]).unwrap();
    let mut page = machine.grants.share(disk.backend_id(), Access::ReadWrite).unwrap();
    page.write_bytes(0, &[3; 512]).unwrap();
    let mut pieces = [Some(Piece::whole(page)), None];
    let lent = disk.submit_write_from(16, &mut pieces[..1]).unwrap();
    disk.publish().unwrap();
    back.vanish();
    machine.xen.run_until_idle(100);
    assert_eq!(disk.service(&mut xs), Ok(State::Closed));
    assert_eq!(disk.take(taken, &mut []), Some(Err(Error::Closed)));
    assert_eq!(disk.take(taken, &mut []), Some(Err(Error::StaleTicket)));
    assert_eq!(disk.take_pages(lent, &mut pieces), Some(Err(Error::BufferLength)));
    assert_eq!(disk.take_pages(lent, &mut pieces[..1]), Some(Err(Error::Closed)));
    assert!(pieces[0].is_some());
    back.come_back();
    back.stall(false);
    disk.reconnect(&mut xs, machine.soon()).unwrap();
    assert_eq!(disk.wait(kept, &mut []), Ok(()));
    machine.xen.run_until_idle(100);
    assert_eq!((back.disk()[0], back.disk()[8 * 512], back.disk()[16 * 512]), (0, 2, 0));
    assert_eq!((disk.stats().reissued, disk.pending(), disk.free_requests()), (1, 0, 8));
}

#[test]
fn an_answer_that_is_lost_holds_up_one_flush_and_no_other() {
    let machine = Machine::new();
    let back = machine.disk(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    back.fault(Fault::Lost);
    assert_eq!(disk.write(0, &[1; 512]), Err(Error::TimedOut));
    // That was told already.
    assert_eq!(disk.flush(), Ok(()));
    for forgotten in [false, true] {
        back.fault(Fault::Lost);
        let lost = disk.submit_write(0, &[1; 512]).unwrap();
        disk.publish().unwrap();
        if forgotten {
            disk.forget(lost);
        }
        assert_eq!(disk.flush(), Err(Error::TimedOut));
        disk.write(8, &[2; 512]).unwrap();
        assert_eq!((disk.flush(), disk.flush()), (Ok(()), Ok(())));
        let result = disk.take(lost, &mut []);
        assert_eq!(result, forgotten.then_some(Err(Error::StaleTicket)));
    }
}

#[test]
fn a_page_of_what_is_not_taken_is_not_used_with_another_backend() {
    let machine = Machine::new();
    let back = machine.disk(Options::default());
    back.load(&pattern(8 * 4096, 3));
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    back.hold(true);
    let mut pieces =
        [Some(Piece::whole(machine.grants.share(disk.backend_id(), Access::ReadWrite).unwrap()))];
    let read = disk.submit_read(0, 8).unwrap();
    let write = disk.submit_write(16, &pattern(4096, 4)).unwrap();
    let lent = disk.submit_read_into(32, &mut pieces).unwrap();
    disk.publish().unwrap();
    machine.xen.run_until_idle(100);
    machine.events.dispatch(VcpuId(0));
    assert_eq!(disk.poll(), Ok(3));
    let (old, before) = (grefs(&back.served()), back.served().len());
    renew(&machine, &back, &mut xs, &mut disk);
    let mut out = [0; 4096];
    assert_eq!(disk.take(read, &mut out), Some(Ok(())));
    assert!(out == pattern(8 * 4096, 3)[..4096]);
    assert_eq!(disk.take(write, &mut []), Some(Ok(())));
    assert_eq!(disk.take_pages(lent, &mut pieces), Some(Ok(())));
    let again = disk.submit_write_from(48, &mut pieces).unwrap();
    disk.wait(again, &mut []).unwrap();
    disk.write(200, &pattern(512 * 80, 9)).unwrap();
    let new = grefs(&back.served()[before..]);
    assert!(old.len() == 3 && new.is_disjoint(&old), "{old:?} {new:?}");
    assert!(back.disk()[48 * 512..][..4096] == pattern(8 * 4096, 3)[32 * 512..][..4096]);
    assert_eq!(back.complaints(), [""; 0]);
}

#[test]
fn what_is_tried_again_does_not_get_behind_a_barrier() {
    for published in [true, false] {
        let machine = Machine::new();
        let back = machine.disk(Options { barrier: true, ..Options::default() });
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let mut disk = machine.connect(&mut xs).unwrap();
        back.fault(Fault::Status(RSP_ERROR));
        let a = disk.submit_write(0, &[1; 512]).unwrap();
        let b = disk.submit_write(1, &[2; 512]).unwrap();
        if !published {
            disk.publish().unwrap();
        }
        let barrier = disk.submit_barrier(9, &[3; 512]).unwrap();
        if published {
            disk.publish().unwrap();
        }
        machine.xen.run_until_idle(100);
        disk.poll().unwrap();
        let results = [a, b, barrier].map(|ticket| disk.wait(ticket, &mut []));
        let order: Vec<_> = back.served().iter().map(|r| (r.operation, r.sector)).collect();
        if published {
            assert_eq!(results, [Err(Error::Io), Err(Error::Io), Ok(())]);
            assert_eq!(order, [(OP_BARRIER, 9)]);
        } else {
            // The barrier waited with the caller.
            assert_eq!(results, [Ok(()); 3]);
            assert_eq!(order.last(), Some(&(OP_BARRIER, 9)));
            assert_eq!(order.len(), 3);
        }
    }
}

#[test]
fn what_an_indirect_request_did_not_do_does_not_get_behind_a_barrier() {
    let machine = Machine::new();
    let back = machine.disk(Options { barrier: true, ..Options::default() });
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect_with(&mut xs, Config { segments: 40, ..small() }).unwrap();
    back.fault(Fault::Status(RSP_EOPNOTSUPP));
    let long = disk.submit_write(0, &pattern(20 * 4096, 1)).unwrap();
    let barrier = disk.submit_barrier(800, &[3; 512]).unwrap();
    disk.publish().unwrap();
    assert_eq!(disk.wait(barrier, &mut []), Ok(()));
    assert_eq!(disk.wait(long, &mut []), Err(Error::Unsupported));
    // Known from then on, and no matter.
    assert_eq!(disk.write(0, &pattern(20 * 4096, 1)), Ok(()));
    assert!(back.served().iter().skip(1).all(|request| request.operation == OP_WRITE));
}

#[test]
fn a_flush_never_says_that_writes_are_safe_that_a_crash_may_have_lost() {
    for seed in 0..12 {
        for under_way in [true, false] {
            let machine = Machine::new();
            let options = Options { volatile_cache: true, barrier: true, ..Options::default() };
            let back = machine.disk(options);
            let mut xs = Xenstore::new(&machine.events).unwrap();
            let mut disk = machine.connect(&mut xs).unwrap();
            disk.write(0, &[1; 4096]).unwrap();
            disk.flush().unwrap();
            disk.write(0, &[2; 4096]).unwrap();
            back.stall(true);
            let asked = under_way.then(|| {
                let asked = (disk.submit_flush().unwrap(), disk.submit_barrier(64, &[5; 512]).unwrap());
                disk.publish().unwrap();
                asked
            });
            back.vanish();
            back.power_loss(&Dice::new(seed));
            back.come_back();
            back.stall(false);
            disk.reconnect(&mut xs, machine.soon()).unwrap();
            match asked {
                Some((flush, barrier)) => {
                    assert_eq!(disk.wait(flush, &mut []), Err(Error::Lost));
                    assert_eq!(disk.wait(barrier, &mut []), Err(Error::Lost));
                    assert_eq!(back.disk()[64 * 512], 0, "a record of what may not be there");
                }
                // Told once, even if the first to be told does not listen.
                None if seed % 2 == 0 => {
                    let flush = disk.submit_flush().unwrap();
                    disk.forget(flush);
                    assert_eq!(disk.flush(), Err(Error::Lost));
                }
                None => {
                    let barrier = disk.submit_barrier(64, &[5; 512]).unwrap();
                    assert_eq!(disk.wait(barrier, &mut []), Err(Error::Lost));
                }
            }
            disk.write(0, &[3; 4096]).unwrap();
            assert_eq!(disk.flush(), Ok(()));
            back.power_loss(&Dice::new(seed));
            assert!(back.disk()[..4096] == [3; 4096]);
        }
    }
}

#[test]
fn a_flush_under_way_is_issued_again_with_all_the_writes_that_it_covers() {
    let machine = Machine::new();
    let back = machine.disk(Options { volatile_cache: true, ..Options::default() });
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    back.stall(true);
    let write = disk.submit_write(0, &[2; 4096]).unwrap();
    let flush = disk.submit_flush().unwrap();
    disk.publish().unwrap();
    renew(&machine, &back, &mut xs, &mut disk);
    assert_eq!((disk.wait(write, &mut []), disk.wait(flush, &mut [])), (Ok(()), Ok(())));
    assert_eq!(disk.stats().reissued, 2);
}

#[test]
fn a_write_that_was_forgotten_and_lost_is_told_by_the_next_flush() {
    let machine = Machine::new();
    let back = machine.disk(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    back.stall(true);
    let write = disk.submit_write(0, &[2; 4096]).unwrap();
    disk.publish().unwrap();
    disk.forget(write);
    renew(&machine, &back, &mut xs, &mut disk);
    assert_eq!((disk.flush(), disk.flush()), (Err(Error::Lost), Ok(())));
    assert_eq!((back.disk()[0], disk.stats().reissued), (0, 0));
}

#[test]
fn what_was_told_to_be_lost_and_was_not_can_be_lost_again() {
    let machine = Machine::new();
    let back = machine.disk(Options { volatile_cache: true, ..Options::default() });
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    disk.write(0, &[2; 4096]).unwrap();
    for _ in 0..3 {
        renew(&machine, &back, &mut xs, &mut disk);
        assert_eq!(disk.flush(), Err(Error::Lost));
    }
    // Now it is on the medium, if it still is anywhere.
    assert_eq!(disk.flush(), Ok(()));
    renew(&machine, &back, &mut xs, &mut disk);
    assert_eq!(disk.flush(), Ok(()));
}

#[test]
fn what_a_backend_does_not_flush_that_offered_it_is_told_to_be_lost_with_it() {
    let machine = Machine::new();
    let back = machine.disk(Options { volatile_cache: true, ..Options::default() });
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    disk.write(0, &[2; 4096]).unwrap();
    back.fault(Fault::Status(RSP_EOPNOTSUPP));
    assert_eq!((disk.flush(), disk.can_flush()), (Err(Error::Unsupported), false));
    renew(&machine, &back, &mut xs, &mut disk);
    assert_eq!(disk.flush(), Err(Error::Lost));
}
