//! From operations to requests and back: none sent before its time, none done before all of it is, and no page lost.
#![cfg(feature = "mock")]

mod common;

use std::task::{Context, Waker};

use common::{Machine, pattern, small};
use xen_blkfront::mock::{Fault, Options};
use xen_blkfront::{Config, Error};
use xen_hypercall::VcpuId;
use xen_xenstore::Xenstore;

/// Requests that a ring of one page holds.
const SLOTS: usize = 32;
/// Bytes in a request without indirect segments.
const REQUEST: usize = 11 * 4096;

#[test]
fn what_is_not_published_does_not_go_with_what_is() {
    let machine = Machine::new();
    let back = machine.disk(Options { sectors: 2000, ..Options::default() });
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect_with(&mut xs, Config { requests: SLOTS + 2, ..small() }).unwrap();
    // One more than the ring holds, and none that follows another on the disk.
    let mut tickets: Vec<_> =
        (0..=SLOTS as u64).map(|i| disk.submit_write(i * 4, &pattern(512, i as u8)).unwrap()).collect();
    disk.publish().unwrap();
    assert_eq!(disk.stats().requests, SLOTS as u64);
    // It would fit behind the one that waits for room.
    tickets.push(disk.submit_write(SLOTS as u64 * 4 + 1, &pattern(512, 99)).unwrap());
    machine.xen.run_until_idle(10);
    assert_eq!(disk.poll(), Ok(SLOTS));
    machine.xen.run_until_idle(10);
    assert_eq!(disk.poll(), Ok(1));
    let served = back.served();
    assert_eq!((served.len(), served[SLOTS].segments, disk.stats().merged), (SLOTS + 1, 1, 0));
    assert!(back.disk()[(SLOTS * 4 + 1) * 512..][..512].iter().all(|&byte| byte == 0));
    assert_eq!(disk.take(tickets[SLOTS + 1], &mut []), None);
    disk.publish().unwrap();
    for ticket in tickets {
        disk.wait(ticket, &mut []).unwrap();
    }
    assert!(back.disk()[(SLOTS * 4 + 1) * 512..][..512] == pattern(512, 99));
    assert_eq!(back.complaints(), [""; 0]);
}

#[test]
fn pages_of_segments_come_back_with_the_answer_and_with_a_new_backend() {
    let machine = Machine::new();
    let options = Options { sectors: 10000, indirect_segments: Some(64), ..Options::default() };
    let back = machine.disk(options);
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let config = Config { segments: 64, pages: 40, ..small() };
    let mut disk = machine.connect_with(&mut xs, config).unwrap();
    let all = disk.max_sectors();
    let mut whole = vec![0; all as usize * 512];
    let data = pattern(20 * 4096, 5);
    for round in 1..=3 {
        disk.write(0, &data).unwrap();
        assert_eq!(disk.stats().indirect, 3 * round - 2, "the page of segments is what this is about");
        let ticket = disk.submit_write(1000, &data).unwrap();
        back.stall(true);
        disk.publish().unwrap();
        back.vanish();
        back.come_back();
        back.stall(false);
        disk.service(&mut xs).unwrap();
        disk.reconnect(&mut xs, machine.soon()).unwrap();
        disk.wait(ticket, &mut []).unwrap();
        // Needs every page there is, and goes without a page for segments then.
        let before = disk.stats().indirect;
        disk.read(0, &mut whole).unwrap_or_else(|error| panic!("round {round}: a page is missing: {error}"));
        assert_eq!(disk.stats().indirect, before);
        assert!(whole[..data.len()] == data);
        // The lost request was one, its repetition another.
        assert_eq!(disk.stats().indirect, 3 * round);
    }
    disk.close(&mut xs, machine.soon()).unwrap();
    assert_eq!(machine.grants.stats().in_use, 0);
}

#[test]
fn an_operation_of_several_requests_is_done_with_the_last_answer() {
    let machine = Machine::new();
    let back = machine.disk(Options { sectors: 2000, ..Options::default() });
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    let data = pattern(3 * REQUEST, 3);
    // Of three requests the first is never answered.
    back.fault(Fault::Lost);
    let ticket = disk.submit_write(0, &data).unwrap();
    disk.publish().unwrap();
    machine.xen.run_until_idle(10);
    assert_eq!((disk.stats().requests, disk.poll()), (3, Ok(2)));
    assert_eq!((disk.take(ticket, &mut []), disk.pending()), (None, 1));
    // Its pages are the backend's still: nobody gets them.
    assert_eq!(disk.submit_write(1000, &vec![0; 6 * REQUEST]), Err(Error::Busy));
    back.vanish();
    back.come_back();
    disk.service(&mut xs).unwrap();
    disk.reconnect(&mut xs, machine.soon()).unwrap();
    disk.wait(ticket, &mut []).unwrap();
    assert!(back.disk()[..data.len()] == data);
}

#[test]
fn an_operation_of_which_a_part_was_not_sent_is_not_done_when_the_rest_is_answered() {
    let machine = Machine::new();
    let sectors = 40 * REQUEST as u64 / 512;
    let back = machine.disk(Options { sectors, indirect_segments: None, ..Options::default() });
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let config = Config { pages: 34 * 11, ..small() };
    let mut disk = machine.connect_with(&mut xs, config).unwrap();
    for forgotten in [false, true] {
        // One request more than the ring holds.
        let data = pattern((SLOTS + 1) * REQUEST, 7 + u8::from(forgotten));
        let (before, already) = (disk.stats().bytes_written, back.served().len());
        let ticket = disk.submit_write(0, &data).unwrap();
        disk.publish().unwrap();
        if forgotten {
            disk.forget(ticket);
        }
        machine.xen.run_until_idle(10);
        assert_eq!(disk.poll(), Ok(SLOTS));
        assert_eq!((disk.pending(), disk.stats().bytes_written), (1, before));
        if !forgotten {
            assert_eq!(disk.take(ticket, &mut []), None);
        }
        // Nobody else gets its pages, of which there are not many more.
        assert_eq!(disk.submit_write(0, &data[..2 * REQUEST]), Err(Error::Busy));
        machine.xen.run_until_idle(10);
        assert_eq!(disk.poll(), Ok(1));
        assert_eq!(
            disk.take(ticket, &mut []),
            Some(if forgotten { Err(Error::StaleTicket) } else { Ok(()) })
        );
        assert!(back.disk()[..data.len()] == data);
        assert_eq!(disk.stats().bytes_written - before, data.len() as u64);
        assert_eq!((back.served().len() - already, disk.pending(), disk.free_requests()), (SLOTS + 1, 0, 8));
    }
    assert_eq!(back.complaints(), [""; 0]);
}

#[test]
fn no_more_answers_are_slept_through_than_there_will_be() {
    let machine = Machine::new();
    let _back = machine.disk(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    let mut cx = Context::from_waker(Waker::noop());
    for skip in [0, 1, 2, 1000, u32::MAX] {
        let tickets = [0, 4].map(|lba| disk.submit_read(lba, 1).unwrap());
        disk.publish().unwrap();
        machine.events.dispatch(VcpuId(0));
        let _ = disk.poll_event(&mut cx);
        assert!(!disk.arm_after(skip), "nothing is answered yet");
        machine.xen.run_until_idle(10);
        machine.events.dispatch(VcpuId(0));
        assert!(disk.poll_event(&mut cx).is_ready(), "two answers, and no event with {skip} to be skipped");
        assert_eq!(disk.poll(), Ok(2));
        for ticket in tickets {
            assert_eq!(disk.take(ticket, &mut [0; 512]), Some(Ok(())));
        }
    }
}
