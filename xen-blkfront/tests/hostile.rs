//! What a disk does with a backend that lies, hangs, closes or dies.
#![cfg(feature = "mock")]

mod common;

use std::time::Duration;

use common::{Machine, pattern};
use xen_blkfront::abi::{OP_READ, OP_WRITE};
use xen_blkfront::mock::{Fault, Faults, MockBlkback, Options};
use xen_blkfront::{BlkFront, Config, Error, Piece, State, Violation};
use xen_gnttab::Access;
use xen_hypercall::DomId;
use xen_hypercall::mock::{Chance, Dice, MockDomain};
use xen_xenstore::Xenstore;

const SECOND: Duration = Duration::from_secs(1);

/// Connects to a backend that keeps pages, runs `f`, and drops the disk: whatever the backend holds is in quarantine
/// and comes back only when it lets go.
fn with_disk(f: impl FnOnce(&Machine, &MockBlkback, &mut BlkFront<'_, MockDomain>)) {
    let machine = Machine::new();
    let back = machine.disk(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    f(&machine, &back, &mut disk);
    back.hold(true);
    let mapped = xen_gnttab::mock::mappings_of(&machine.xen, machine.guest.id());
    let _ = disk.close(&mut xs, machine.soon());
    assert_eq!(machine.grants.stats().quarantined as usize, mapped);
    back.hold(false);
    back.stall(false);
    machine.xen.run_until_idle(10);
    assert_eq!(machine.grants.reclaim(), mapped);
    assert_eq!(machine.grants.stats().in_use, 0);
}

/// The disk is broken, and stays so whatever is tried.
fn assert_broken(disk: &mut BlkFront<'_, MockDomain>, violation: Violation) {
    let broken = Error::Broken(violation);
    assert_eq!(disk.state(), State::Broken(violation));
    assert_eq!(disk.read(0, &mut [0; 512]), Err(broken));
    assert_eq!(disk.write(0, &[0; 512]), Err(broken));
    assert_eq!(disk.flush(), Err(broken));
    assert_eq!(disk.submit_read(0, 1), Err(broken));
    assert_eq!(disk.submit_flush(), Err(broken));
    assert_eq!(disk.poll(), Err(broken));
    assert_eq!(disk.publish(), Err(broken));
}

#[test]
fn an_answer_to_nothing_breaks_the_disk() {
    // The first request is the first operation, in the last of 8 places: not one in that place before or later, nor in another.
    let first = 1 << 16 | 7;
    let others = [first - 1, first + 1, first + (1 << 16), first + (1 << 48), first + (1 << 63)];
    // Nor one that is several operations, or a part of one: those have the last 512 places.
    let several = [1 << 16 | 0xfdff, 1 << 16 | 0xfe1e, 1 << 16 | 0xfffe, 1 << 16 | 0xffff];
    for id in [u64::MAX, 0, 7, 1 << 16].into_iter().chain(others).chain(several) {
        with_disk(|_, back, disk| {
            back.fault(Fault::Id(id));
            let violation = Violation::Id(id);
            assert_eq!(disk.read(0, &mut [0; 512]), Err(Error::Broken(violation)));
            assert_broken(disk, violation);
        });
    }
}

#[test]
fn an_answer_to_what_was_not_shown_yet_breaks_the_disk() {
    with_disk(|machine, back, disk| {
        let grants = disk.grants();
        let lend = || Some(Piece::whole(grants.share(DomId(0), Access::ReadWrite).unwrap()));
        let first = disk.submit_read_into(0, &mut [lend()]).unwrap();
        disk.publish().unwrap();
        // It is in the ring, where the backend can read it, and guess its number.
        let mut pieces = [lend()];
        let second = disk.submit_read_into(16, &mut pieces).unwrap();
        let id = 2 << 16 | 6;
        back.fault(Fault::Id(id));
        machine.xen.run_until_idle(10);
        let violation = Violation::Id(id);
        assert_eq!(disk.poll(), Err(Error::Broken(violation)));
        for ticket in [first, second] {
            assert_eq!(disk.take_pages(ticket, &mut pieces), Some(Err(Error::Broken(violation))));
        }
        assert_broken(disk, violation);
    });
}

#[test]
fn a_page_that_was_lent_comes_back_from_a_request_that_fails() {
    with_disk(|machine, back, disk| {
        let grants = disk.grants();
        let page = grants.share(DomId(0), Access::ReadWrite).unwrap();
        let mut pieces = [Some(Piece::whole(page))];
        for (status, error) in [(-1, Error::Io), (-2, Error::Unsupported), (9, Error::Status(9))] {
            back.fault(Fault::Status(status));
            let ticket = disk.submit_read_into(0, &mut pieces).unwrap();
            assert!(pieces[0].is_none());
            assert_eq!(disk.take_pages(ticket, &mut pieces), None);
            disk.publish().unwrap();
            machine.xen.run_until_idle(10);
            assert_eq!(disk.poll(), Ok(1));
            assert_eq!(disk.take_pages(ticket, &mut []), Some(Err(Error::BufferLength)));
            assert_eq!(disk.take_pages(ticket, &mut pieces), Some(Err(error)));
            assert!(pieces[0].is_some());
            assert_eq!(disk.take_pages(ticket, &mut pieces), Some(Err(Error::StaleTicket)));
        }
        // One that nobody wants is freed, whether its request fails or not.
        for fault in [None, Some(Fault::Status(-1))] {
            let page = grants.share(DomId(0), Access::ReadWrite).unwrap();
            let ticket = disk.submit_write_from(0, &mut [Some(Piece::whole(page))]).unwrap();
            disk.publish().unwrap();
            disk.forget(ticket);
            fault.into_iter().for_each(|fault| back.fault(fault));
            machine.xen.run_until_idle(10);
            assert_eq!((disk.poll(), disk.free_requests()), (Ok(1), 8));
        }
        assert_eq!(disk.stats().errors, 4);
    });
}

#[test]
fn an_answer_that_comes_twice_breaks_the_disk() {
    with_disk(|_, back, disk| {
        back.fault(Fault::Twice);
        let answer = disk.write(0, &pattern(512 * 200, 0));
        let Err(Error::Broken(Violation::Id(id))) = answer else { panic!("{answer:?}") };
        assert_broken(disk, Violation::Id(id));
    });
}

#[test]
fn an_answer_to_another_operation_breaks_the_disk() {
    with_disk(|_, back, disk| {
        back.fault(Fault::Operation(OP_READ));
        let violation = Violation::Operation { asked: OP_WRITE, answered: OP_READ };
        assert_eq!(disk.write(0, &[1; 512]), Err(Error::Broken(violation)));
        assert_broken(disk, violation);
    });
}

#[test]
fn an_index_that_jumps_breaks_the_disk() {
    for more in [1, 32, 1 << 31, u32::MAX] {
        with_disk(|_, back, disk| {
            back.fault(Fault::Index(more));
            let answer = disk.read(0, &mut [0; 512]);
            // An index that goes back to what it was is no more than an answer that does not come.
            if more == u32::MAX {
                return assert_eq!(answer, Err(Error::TimedOut));
            }
            let Err(Error::Broken(violation @ Violation::Ring(_))) = answer else { panic!("{answer:?}") };
            assert_broken(disk, violation);
        });
    }
}

#[test]
fn a_request_that_fails_is_an_error_and_no_more() {
    with_disk(|_, back, disk| {
        for (status, error) in [
            (-1, Error::Io),
            (-2, Error::Unsupported),
            (1, Error::Status(1)),
            (i16::MIN, Error::Status(i16::MIN)),
        ] {
            back.fault(Fault::Status(status));
            assert_eq!(disk.read(0, &mut [0; 512 * 300]), Err(error));
            back.fault(Fault::Status(status));
            assert_eq!(disk.write(0, &[0; 512 * 300]), Err(error));
            assert_eq!(disk.state(), State::Connected);
            disk.read(0, &mut [0; 512 * 300]).unwrap();
        }
        assert_eq!((disk.stats().errors, disk.free_requests()), (8, 8));
    });
}

#[test]
fn a_backend_that_hangs_does_not_hang_the_guest() {
    with_disk(|_, back, disk| {
        back.stall(true);
        assert_eq!(disk.read(0, &mut [0; 512 * 500]), Err(Error::TimedOut));
        // The requests that it has are its own until it answers, and their places are taken.
        assert_eq!(disk.free_requests(), 2);
        assert_eq!(disk.flush(), Err(Error::TimedOut));
        assert_eq!(disk.free_requests(), 1);
        back.stall(false);
        disk.read(0, &mut [0; 512]).unwrap();
        assert_eq!(disk.free_requests(), 8);
    });
}

#[test]
fn a_backend_that_never_answers_takes_every_place_and_then_time() {
    with_disk(|_, back, disk| {
        back.stall(true);
        assert_eq!(disk.read(0, &mut [0; 512 * 800]), Err(Error::TimedOut));
        assert_eq!(disk.free_requests(), 0);
        assert_eq!(disk.write(0, &[0; 512]), Err(Error::TimedOut));
        assert_eq!(disk.submit_read(0, 1), Err(Error::Busy));
    });
}

#[test]
fn a_backend_that_wants_to_end_is_noticed_and_let_go() {
    let machine = Machine::new();
    let back = machine.disk(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    disk.write(0, &[7; 512]).unwrap();
    assert_eq!(disk.service(&mut xs), Ok(State::Connected));
    let ticket = disk.submit_write(1, &[8; 512]).unwrap();
    back.detach();
    machine.xen.run_until_idle(10);
    assert_eq!(disk.service(&mut xs), Ok(State::Closing));
    assert_eq!(disk.write(0, &[9; 512]), Err(Error::Closed));
    disk.forget(ticket);
    // What was submitted before is still done.
    disk.close(&mut xs, machine.soon()).unwrap();
    assert_eq!((back.disk()[0], back.disk()[512]), (7, 8));
    assert_eq!(machine.grants.stats().quarantined, 0);
}

#[test]
fn a_backend_that_dies_fails_what_it_had() {
    let machine = Machine::new();
    let back = machine.disk(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    let ticket = disk.submit_read(0, 1).unwrap();
    disk.publish().unwrap();
    back.vanish();
    machine.xen.run_until_idle(10);
    assert_eq!(disk.service(&mut xs), Ok(State::Closed));
    assert_eq!(disk.take(ticket, &mut [0; 512]), Some(Err(Error::Closed)));
    assert_eq!(disk.read(0, &mut [0; 512]), Err(Error::Closed));
    assert_eq!(disk.flush(), Err(Error::Closed));
    let _ = disk.close(&mut xs, machine.soon());
    assert_eq!((machine.grants.stats().in_use, machine.grants.stats().quarantined), (0, 0));
}

#[test]
fn sizes_that_make_no_sense_are_refused() {
    for (node, value) in [
        ("sectors", None),
        ("sectors", Some("many")),
        ("sectors", Some("")),
        ("sectors", Some(&*"1".repeat(3000))),
        ("sectors", Some("-1")),
        ("sectors", Some("18446744073709551615")),
        ("sectors", Some("99999999999999999999999")),
        ("sector-size", Some("0")),
        ("sector-size", Some("513")),
        ("sector-size", Some("256")),
        ("sector-size", Some("8192")),
        ("sector-size", Some("4294967296")),
    ] {
        let machine = Machine::new();
        let back = machine.disk(Options::default());
        back.lie(node, value);
        let mut xs = Xenstore::new(&machine.events).unwrap();
        assert_eq!(machine.connect(&mut xs).err(), Some(Error::BadNode(node)), "{value:?}");
        let grants = machine.grants.stats();
        assert_eq!((grants.in_use, grants.quarantined), (0, 0));
        // A backend that comes to its senses is believed.
        let sense = match node {
            "sectors" => "2048",
            _ => "512",
        };
        back.lie(node, Some(sense));
        machine.connect(&mut xs).unwrap();
    }
}

#[test]
fn nonsense_in_a_node_that_need_not_be_there_is_as_if_it_were_not() {
    for (node, value) in [
        ("feature-barrier", "\u{fffd}"),
        ("feature-discard", "0x1"),
        ("feature-max-indirect-segments", "-1"),
        ("feature-persistent", "18446744073709551616"),
        ("discard-granularity", "-4096"),
        ("physical-sector-size", "4k"),
        ("multi-queue-max-queues", "many"),
        ("max-ring-page-order", ""),
        ("info", "x"),
        ("mode", ""),
        ("feature-flush-cache", "yes"),
    ] {
        let machine = Machine::new();
        let back = machine.disk(Options { max_queues: Some(1), ..Options::everything() });
        back.lie(node, Some(value));
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let mut disk = machine.connect(&mut xs).unwrap_or_else(|error| panic!("{node}: {error}"));
        disk.write(8, &pattern(20 * 4096, 1)).unwrap();
        disk.flush().unwrap();
        assert!(back.disk()[8 * 512..][..20 * 4096] == pattern(20 * 4096, 1), "{node}");
        assert_eq!(disk.has_barrier(), node != "feature-barrier");
        assert_eq!(disk.discard().is_some(), !node.contains("discard"), "{node}");
        assert_eq!((disk.is_read_only(), disk.queues()), (false, 1));
    }
}

#[test]
fn a_backend_that_does_not_come_up_costs_nothing() {
    let machine = Machine::new();
    let back = machine.disk(Options::default());
    back.lie("state", Some("2"));
    let mut xs = Xenstore::new(&machine.events).unwrap();
    for _ in 0..40 {
        // More often than there are places for watches.
        assert!(matches!(machine.connect(&mut xs).err(), Some(Error::Xenstore(_))));
        assert_eq!(machine.grants.stats().in_use, 0);
    }
}

#[test]
fn memory_that_runs_out_is_an_error() {
    // The pool, 11 pages, the operations, the ring, its record, and the event channel's.
    for left in 0..16 {
        let machine = Machine::new();
        let _back = machine.disk(Options::default());
        let mut xs = Xenstore::new(&machine.events).unwrap();
        machine.guest.fail_allocs_after(Some(left));
        let error = machine.connect(&mut xs).err();
        assert!(matches!(error, Some(Error::Grant(_) | Error::Event(_))), "{left}: {error:?}");
        assert_eq!(machine.grants.stats().in_use, 0);
        machine.guest.fail_allocs_after(None);
        machine.connect(&mut xs).unwrap();
    }
}

#[test]
fn with_no_memory_left_a_disk_goes_on_with_the_pages_it_has() {
    let machine = Machine::new();
    let back = machine.disk(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect_with(&mut xs, Config { timeout: SECOND, ..Config::default() }).unwrap();
    machine.guest.fail_allocs_after(Some(0));
    let data = pattern(512 * 1000, 1);
    disk.write(0, &data).unwrap();
    let mut out = vec![0; data.len()];
    disk.read(0, &mut out).unwrap();
    assert!(out == data && back.disk()[..data.len()] == data);
    assert!(matches!(disk.submit_read(0, 100), Err(Error::Grant(_))));
    let ticket = disk.submit_read(0, 80).unwrap();
    assert_eq!(disk.submit_read(0, 80), Err(Error::Busy));
    disk.forget(ticket);
}

#[test]
fn a_storm_of_events_without_answers_is_not_listened_to() {
    let machine = Machine::new();
    let back = machine.disk(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    let mut faults = Faults::default();
    faults.spurious_event = Chance::ALWAYS;
    back.set_faults(Dice::new(1), faults);
    let end = machine.xen.now() + Duration::from_secs(10);
    let mut wakes = 0;
    while machine.xen.now() < end {
        let seen = machine.events.seq();
        assert_eq!(disk.poll(), Ok(0));
        machine.events.wait_since(seen, Some(end));
        wakes += 1;
    }
    let stats = disk.channels().next().unwrap().stats();
    assert!(wakes < 60 && stats.throttled > 5 && back.faults_hit() > 20, "{wakes} {stats:?}");
    // What is answered is still found, and at once.
    let before = machine.xen.now();
    disk.read(0, &mut [0; 512 * 200]).unwrap();
    assert!(machine.xen.now() - before <= SECOND);
}
