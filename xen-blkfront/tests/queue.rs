//! From operations to requests and back: none sent before its time, none done before all of it is, and no page lost.
#![cfg(feature = "mock")]

mod common;

use std::collections::BTreeSet;
use std::task::{Context, Waker};

use common::{Machine, pattern, small};
use xen_blkfront::abi::{OP_BARRIER, OP_READ, OP_WRITE};
use xen_blkfront::mock::{Fault, Options};
use xen_blkfront::{Config, Error, Piece};
use xen_evtchn::Port;
use xen_gnttab::Access;
use xen_hypercall::{DomId, VcpuId};
use xen_xenstore::Xenstore;

const FRONT: &str = "/local/domain/1/device/vbd/51712";
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
fn pages_that_are_lent_go_at_once_but_where_they_can_be_one_request() {
    let machine = Machine::new();
    let back = machine.disk(Options { sectors: 2000, ..Options::default() });
    back.load(&pattern(2000 * 512, 3));
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    let lend = || [Some(Piece::whole(machine.grants.share(DomId(0), Access::ReadWrite).unwrap()))];
    let mut pages = [(); 6].map(|()| lend());
    // The second follows the first, the fourth the third, but is a write, and the last two follow that.
    let writes = [false, false, false, true, true, true];
    let tickets: Vec<_> = [0, 8, 800, 808, 816, 824]
        .into_iter()
        .zip(writes)
        .zip(&mut pages)
        .map(|((lba, write), page)| {
            if write { disk.submit_write_from(lba, page) } else { disk.submit_read_into(lba, page) }.unwrap()
        })
        .collect();
    machine.xen.run_until_idle(10);
    assert_eq!((disk.poll(), back.served().len()), (Ok(0), 0), "nothing was published");
    disk.publish().unwrap();
    machine.xen.run_until_idle(10);
    assert_eq!(disk.poll(), Ok(3));
    let asked: Vec<_> = back.served().iter().map(|request| (request.operation, request.segments)).collect();
    assert_eq!(asked, [(OP_READ, 2), (OP_READ, 1), (OP_WRITE, 3)]);
    let stats = disk.stats();
    assert_eq!((stats.requests, stats.segments, stats.merged), (3, 6, 3));
    for (ticket, page) in tickets.into_iter().zip(&mut pages) {
        assert_eq!(disk.take_pages(ticket, page), Some(Ok(())));
    }
    for (page, lba) in pages[..3].iter_mut().flatten().flatten().zip([0, 8, 800]) {
        let mut bytes = [0; 4096];
        page.page_mut().read_bytes(0, &mut bytes).unwrap();
        assert!(bytes == pattern(2000 * 512, 3)[lba * 512..][..4096]);
    }
    assert_eq!(back.complaints(), [""; 0]);
}

#[test]
fn what_is_asked_for_again_takes_along_what_is_in_the_ring_and_nothing_else() {
    let machine = Machine::new();
    let back = machine.disk(Options { sectors: 2000, barrier: true, ..Options::default() });
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    let flush = disk.submit_flush().unwrap();
    disk.publish().unwrap();
    // One page that is in the ring already, and a write that waits.
    let mut pages = [Some(Piece::whole(machine.grants.share(DomId(0), Access::ReadWrite).unwrap()))];
    let read = disk.submit_read_into(0, &mut pages).unwrap();
    let write = disk.submit_write(800, &[7; 512]).unwrap();
    back.fault(Fault::Status(-2));
    machine.xen.run_until_idle(10);
    assert_eq!(disk.poll(), Ok(1));
    machine.xen.run_until_idle(10);
    assert_eq!(disk.poll(), Ok(2));
    let asked: Vec<_> = back.served().iter().map(|request| request.operation).collect();
    assert_eq!(asked, [OP_READ, OP_BARRIER], "the flush was refused");
    assert_eq!(disk.take(flush, &mut []), Some(Ok(())));
    assert_eq!(disk.take_pages(read, &mut pages), Some(Ok(())));
    assert_eq!(disk.take(write, &mut []), None);
    assert_eq!(disk.wait(write, &mut []), Ok(()));
    assert_eq!(back.complaints(), [""; 0]);
}

#[test]
fn a_ring_that_is_full_of_lent_pages_takes_the_rest_later() {
    let machine = Machine::new();
    let back = machine.disk(Options { sectors: 2000, ..Options::default() });
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect_with(&mut xs, Config { requests: 2 * SLOTS, ..small() }).unwrap();
    for _ in 0..2 {
        let mut tickets: Vec<_> = (0..2 * SLOTS)
            .map(|i| {
                let mut page = machine.grants.share(DomId(0), Access::ReadWrite).unwrap();
                page.write_bytes(0, &pattern(4096, i as u8)).unwrap();
                disk.submit_write_from(i as u64 * 16, &mut [Some(Piece::whole(page))]).unwrap()
            })
            .collect();
        disk.publish().unwrap();
        while let Some(&ticket) = tickets.last() {
            machine.xen.run_until_idle(10);
            disk.poll().unwrap();
            let mut pieces = [None];
            if let Some(result) = disk.take_pages(ticket, &mut pieces) {
                assert_eq!((result, pieces[0].is_some()), (Ok(()), true));
                tickets.pop();
            }
        }
        assert!((0..2 * SLOTS).all(|i| back.disk()[i * 16 * 512..][..4096] == pattern(4096, i as u8)));
    }
    assert_eq!((disk.stats().requests, disk.stats().merged), (4 * SLOTS as u64, 0));
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

#[test]
fn there_are_fewer_queues_where_resources_do_not_suffice_for_all() {
    let connect = |machine: &Machine, before: &dyn Fn(&Machine)| {
        let back = machine.disk(Options { max_queues: Some(4), ..Options::default() });
        let mut xs = Xenstore::new(&machine.events).unwrap();
        before(machine);
        let mut disk = machine.connect_with(&mut xs, Config { queues: 4, ..small() })?;
        machine.guest.fail_allocs_after(None);
        let queues = disk.queues();
        let says = machine.store.read(&format!("{FRONT}/multi-queue-num-queues"));
        assert_eq!(says.map_or(1, |count| count.parse().unwrap()), queues);
        for lba in 0..16 {
            disk.write(lba, &[lba as u8; 512]).unwrap();
            assert_eq!(back.disk()[lba as usize * 512], lba as u8);
        }
        disk.close(&mut xs, machine.soon()).unwrap();
        machine.grants.reclaim();
        assert_eq!((machine.grants.stats().in_use, back.complaints()), (0, vec![]));
        Ok::<_, Error>(queues)
    };
    // Memory.
    let mut seen = BTreeSet::new();
    for pages in 0..40 {
        let machine = Machine::new();
        match connect(&machine, &|machine| machine.guest.fail_allocs_after(Some(pages))) {
            Ok(queues) => drop(seen.insert(queues)),
            Err(error) => {
                machine.guest.fail_allocs_after(None);
                assert!(
                    seen.is_empty() && matches!(error, Error::Grant(_) | Error::Event(_)),
                    "{pages}: {error:?}"
                );
            }
        }
    }
    assert_eq!(seen, BTreeSet::from([1, 2, 3, 4]));
    // Ports.
    for ports in 1..4 {
        let machine = Machine::new();
        let limit = |machine: &Machine| {
            let last = xen_evtchn::mock::alloc_for(&machine.guest, DomId(0)).unwrap();
            xen_evtchn::mock::set_max_port(&machine.guest, Port(last.0 + ports));
        };
        assert_eq!(connect(&machine, &limit), Ok(ports as usize));
    }
    // Grant references: a frame of the table has 504 for us, of which others have all but those for a request and four rings.
    let machine = Machine::new();
    xen_gnttab::mock::set_max_frames(&machine.xen, DomId(1), 1);
    let others: Vec<_> = (0..504 - 11 - 4).map(|_| machine.grants.reserve().unwrap()).collect();
    let back = machine.disk(Options { max_queues: Some(8), ..Options::default() });
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let disk = machine.connect_with(&mut xs, Config { queues: 8, ..small() }).unwrap();
    assert_eq!(disk.queues(), 4);
    drop(others);
    disk.close(&mut xs, machine.soon()).unwrap();
    assert_eq!(back.complaints(), [""; 0]);
}
