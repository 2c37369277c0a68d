//! What a disk makes of what its backend offers.
#![cfg(feature = "mock")]

mod common;

use common::{Machine, VBD, pattern, small};
use xen_blkfront::abi::{
    OP_BARRIER, OP_DISCARD, OP_FLUSH, OP_INDIRECT, OP_READ, OP_WRITE, RSP_EOPNOTSUPP, RequestDiscard,
    RequestIndirect,
};
use xen_blkfront::mock::{Discard, Fault, Options, Order};
use xen_blkfront::{Config, Error, Piece, State};
use xen_gnttab::{Access, Ended};
use xen_hypercall::DomId;
use xen_xenstore::Xenstore;

fn large() -> Config {
    Config { pages: 1200, segments: 4096, ..small() }
}

fn operations(back: &xen_blkfront::mock::MockBlkback) -> Vec<u8> {
    back.served().iter().map(|request| request.operation).collect()
}

#[test]
fn a_long_operation_is_as_few_requests_as_the_backend_takes() {
    for (offer, requests, kind) in [
        (None, 24, OP_WRITE),
        (Some(11), 24, OP_WRITE),
        (Some(100), 3, OP_INDIRECT),
        (Some(1000), 1, OP_INDIRECT),
    ] {
        let machine = Machine::new();
        let back = machine.disk(Options { sectors: 4096, indirect_segments: offer, ..Options::default() });
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let mut disk = machine.connect_with(&mut xs, large()).unwrap();
        let data = pattern(256 * 4096 - 512, 7);
        let ticket = disk.submit_write(5, &data).unwrap();
        disk.wait(ticket, &mut []).unwrap();
        assert!(back.disk()[5 * 512..][..data.len()] == data);
        assert_eq!(operations(&back), vec![kind; requests]);
        let ticket = disk.submit_read(5, (data.len() / 512) as u64).unwrap();
        let mut out = vec![0; data.len()];
        disk.wait(ticket, &mut out).unwrap();
        assert!(out == data);
        let stats = disk.stats();
        assert_eq!((stats.operations, stats.requests), (2, 2 * requests as u64));
        assert_eq!((stats.segments, stats.bytes_copied), (512, 2 * data.len() as u64));
        assert_eq!(stats.indirect, if kind == OP_INDIRECT { stats.requests } else { 0 });
        // One for each batch, whatever it is made of.
        assert_eq!(stats.notifications, 2);
        assert_eq!(back.complaints(), [""; 0]);
    }
}

#[test]
fn more_segments_than_a_page_holds_are_in_several() {
    let machine = Machine::new();
    let back =
        machine.disk(Options { sectors: 10000, indirect_segments: Some(u16::MAX), ..Options::default() });
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect_with(&mut xs, large()).unwrap();
    let data = pattern(1150 * 4096, 1);
    let ticket = disk.submit_write(0, &data).unwrap();
    disk.wait(ticket, &mut []).unwrap();
    assert!(back.disk()[..data.len()] == data);
    let request: RequestIndirect = back.served()[0].as_kind().unwrap();
    assert_eq!((back.served().len(), request.segments, request.grefs[3]), (1, 1150, 0));
}

#[test]
fn operations_that_follow_each_other_are_one_request() {
    let machine = Machine::new();
    let back = machine.disk(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    let tickets: Vec<_> = (0..4).map(|i| disk.submit_write(i, &pattern(512, i as u8)).unwrap()).collect();
    // Not the same kind, and not the next sector.
    let read = disk.submit_read(4, 1).unwrap();
    let far = disk.submit_read(6, 1).unwrap();
    disk.publish().unwrap();
    machine.xen.run_until_idle(10);
    assert_eq!(disk.poll(), Ok(3));
    for (i, ticket) in tickets.into_iter().enumerate() {
        assert_eq!(disk.take(ticket, &mut []), Some(Ok(())));
        assert!(back.disk()[i * 512..][..512] == pattern(512, i as u8));
    }
    for ticket in [read, far] {
        assert_eq!(disk.take(ticket, &mut [0; 512]), Some(Ok(())));
    }
    assert_eq!((disk.stats().requests, disk.stats().merged, disk.stats().operations), (3, 3, 6));
    assert_eq!(back.served()[0].segments, 4);
}

#[test]
fn of_several_operations_in_a_request_that_fails_only_the_culprit_fails() {
    let machine = Machine::new();
    let back = machine.disk(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    let tickets: Vec<_> = (0..3).map(|i| disk.submit_write(i, &[i as u8 + 1; 512]).unwrap()).collect();
    // All of them together, then the first again (they are taken up last to first), which fails for good.
    back.fault(Fault::Status(-1));
    back.fault(Fault::Status(-1));
    let results: Vec<_> = tickets.into_iter().map(|ticket| disk.wait(ticket, &mut [])).collect();
    assert_eq!(results.iter().filter(|result| **result == Err(Error::Io)).count(), 1);
    assert_eq!((disk.stats().retries, disk.stats().errors, disk.stats().requests), (3, 1, 4));
    for (i, result) in results.iter().enumerate() {
        assert_eq!(back.disk()[i * 512], if result.is_ok() { i as u8 + 1 } else { 0 });
    }
}

#[test]
fn rings_of_several_pages_are_told_in_both_ways() {
    for (order, pages, wanted, slots) in [
        (Some(2), Some(4), 4, 128),
        (Some(4), None, 16, 512),
        (None, Some(8), 4, 128),
        (Some(1), Some(2), 16, 64),
        (None, None, 16, 32),
        (Some(31), Some(u32::MAX), 1 << 20, 512),
    ] {
        let machine = Machine::new();
        let options = Options { max_ring_page_order: order, max_ring_pages: pages, ..Options::default() };
        let back = machine.disk(options);
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let config = Config { requests: 600, pages: 600, ring_pages: wanted, ..small() };
        let mut disk = machine.connect_with(&mut xs, config).unwrap();
        assert_eq!(disk.ring_slots(), slots, "{order:?} {pages:?}");
        // More at once than the ring holds, none next to another.
        let tickets: Vec<_> =
            (0..600).map(|i| disk.submit_write(i * 2, &pattern(512, i as u8)).unwrap()).collect();
        disk.publish().unwrap();
        for (i, ticket) in tickets.into_iter().enumerate() {
            disk.wait(ticket, &mut []).unwrap();
            assert!(back.disk()[i * 1024..][..512] == pattern(512, i as u8));
        }
        let node = |name: &str| machine.store.read(&format!("/local/domain/1/device/vbd/{VBD}/{name}"));
        let ring_pages = slots as u32 / 32;
        if ring_pages == 1 {
            assert!(node("ring-ref").is_some() && node("ring-page-order").is_none());
            assert!(node("num-ring-pages").is_none());
        } else {
            assert_eq!(node("ring-page-order").unwrap(), ring_pages.ilog2().to_string());
            assert_eq!(node("num-ring-pages").unwrap(), ring_pages.to_string());
            assert!(node("ring-ref").is_none() && node(&format!("ring-ref{}", ring_pages - 1)).is_some());
        }
        disk.close(&mut xs, machine.soon()).unwrap();
        assert_eq!(machine.grants.stats().in_use, 0);
        // The next one of one page, which leaves nothing of this choice.
        let mut disk = machine.connect(&mut xs).unwrap();
        assert_eq!(disk.ring_slots(), 32);
        disk.read(0, &mut [0; 512]).unwrap();
        assert_eq!(back.complaints(), [""; 0]);
    }
}

#[test]
fn several_queues_share_the_work() {
    let machine = Machine::new();
    let options = Options {
        max_queues: Some(3),
        max_ring_page_order: Some(1),
        order: Order::Shuffled(4),
        ..Options::default()
    };
    let back = machine.disk(options);
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let config = Config { requests: 64, pages: 300, queues: 8, ring_pages: 2, ..small() };
    let mut disk = machine.connect_with(&mut xs, config).unwrap();
    assert_eq!((disk.queues(), disk.ring_slots(), disk.channels().count()), (3, 192, 3));
    let node = |name: &str| machine.store.read(&format!("/local/domain/1/device/vbd/{VBD}/{name}"));
    assert_eq!(node("multi-queue-num-queues").as_deref(), Some("3"));
    assert!(node("event-channel").is_none() && node("queue-2/event-channel").is_some());
    assert!(node("queue-1/ring-ref0").is_some() && node("queue-1/ring-ref1").is_some());
    let data = pattern(2000 * 512, 3);
    disk.write(0, &data).unwrap();
    let mut out = vec![0; data.len()];
    disk.read(0, &mut out).unwrap();
    assert!(out == data && back.disk()[..data.len()] == data);
    disk.flush().unwrap();
    let notified: Vec<u64> = disk.channels().map(|channel| channel.stats().notifications).collect();
    assert!(notified.iter().all(|count| *count > 0), "{notified:?}");
    disk.close(&mut xs, machine.soon()).unwrap();
    let disk = machine.connect(&mut xs).unwrap();
    assert_eq!(disk.queues(), 1);
    assert_eq!(back.complaints(), [""; 0]);
}

#[test]
fn a_flush_is_what_the_backend_has_for_it() {
    for (flush, barrier, operation) in
        [(true, true, Some(OP_FLUSH)), (false, true, Some(OP_BARRIER)), (false, false, None)]
    {
        let machine = Machine::new();
        let back = machine.disk(Options { flush, barrier, volatile_cache: true, ..Options::default() });
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let mut disk = machine.connect(&mut xs).unwrap();
        assert_eq!((disk.can_flush(), disk.has_barrier()), (operation.is_some(), barrier));
        disk.write(0, &[1; 512]).unwrap();
        disk.flush().unwrap();
        assert_eq!(operations(&back).get(1).copied(), operation);
        if operation.is_some() {
            assert_eq!(back.power_loss(&xen_hypercall::mock::Dice::new(1)), 0);
            assert_eq!(back.disk()[0], 1);
        }
    }
}

#[test]
fn a_feature_that_is_not_there_after_all_is_withdrawn_and_another_tried() {
    let machine = Machine::new();
    let back = machine.disk(Options::everything());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect_with(&mut xs, large()).unwrap();
    // Not flushes, so barriers.
    back.fault(Fault::Status(RSP_EOPNOTSUPP));
    assert_eq!(disk.flush(), Ok(()));
    assert_eq!(operations(&back), [OP_BARRIER]);
    assert!(disk.can_flush());
    // Not those either.
    back.fault(Fault::Status(RSP_EOPNOTSUPP));
    assert_eq!(disk.flush(), Err(Error::Unsupported));
    assert!(!disk.can_flush() && !disk.has_barrier());
    assert_eq!(disk.flush(), Ok(()));
    assert_eq!(disk.submit_barrier(0, &[0; 512]), Err(Error::Unsupported));
    // Not secure discards, so those that are not.
    back.fault(Fault::Status(RSP_EOPNOTSUPP));
    assert_eq!(disk.erase(0, 8), Err(Error::Unsupported));
    assert!(disk.discard().is_some_and(|discard| !discard.secure));
    assert_eq!(disk.erase(0, 8), Err(Error::Unsupported));
    back.fault(Fault::Status(RSP_EOPNOTSUPP));
    assert_eq!(disk.discard_sectors(0, 8), Err(Error::Unsupported));
    assert_eq!((disk.discard(), disk.discard_sectors(0, 8)), (None, Err(Error::Unsupported)));
    // Not indirect requests: what was in one goes in others.
    back.fault(Fault::Status(RSP_EOPNOTSUPP));
    let data = pattern(100 * 512, 1);
    disk.write(0, &data).unwrap();
    assert!(back.disk()[..data.len()] == data);
    assert_eq!(operations(&back)[1..], [OP_WRITE; 2]);
    assert_eq!(disk.request_sectors(), 88);
    // Reads and writes have nothing else to be tried.
    back.fault(Fault::Status(RSP_EOPNOTSUPP));
    assert_eq!(disk.read(0, &mut [0; 512]), Err(Error::Unsupported));
    disk.read(0, &mut [0; 512]).unwrap();
    assert_eq!((disk.state(), disk.stats().retries), (State::Connected, 2));
    assert_eq!(back.complaints(), [""; 0]);
}

#[test]
fn a_barrier_keeps_its_place() {
    let machine = Machine::new();
    let back = machine.disk(Options { order: Order::Reversed, ..Options::everything() });
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    let tickets = [
        disk.submit_write(0, &[1; 512]).unwrap(),
        disk.submit_write(0, &[1; 512]).unwrap(),
        disk.submit_barrier(0, &[2; 512]).unwrap(),
        disk.submit_write(0, &[3; 512]).unwrap(),
    ];
    for ticket in tickets {
        disk.wait(ticket, &mut []).unwrap();
    }
    assert_eq!(operations(&back), [OP_WRITE, OP_WRITE, OP_BARRIER, OP_WRITE]);
    assert_eq!(back.disk()[0], 3);
    assert_eq!(disk.submit_barrier(0, &[0; 12 * 4096]), Err(Error::TooLong));
    disk.close(&mut xs, machine.soon()).unwrap();
    // Between queues there is no order.
    let mut disk = machine.connect_with(&mut xs, Config { queues: 2, ..small() }).unwrap();
    assert_eq!((disk.has_barrier(), disk.submit_barrier(0, &[0; 512])), (false, Err(Error::Unsupported)));
}

#[test]
fn whole_extents_are_discarded() {
    let machine = Machine::new();
    let discard = Discard { granularity: Some(4096), alignment: Some(1024), secure: true };
    let back = machine.disk(Options { discard: Some(discard), ..Options::default() });
    back.load(&[7; 100 * 512]);
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    let found = disk.discard().unwrap();
    assert_eq!((found.granularity, found.alignment, found.secure), (8, 2, true));
    disk.discard_sectors(3, 20).unwrap();
    let request: RequestDiscard = back.served()[0].as_kind().unwrap();
    assert_eq!((request.operation, request.sector, request.sectors, request.flag), (OP_DISCARD, 10, 8, 0));
    assert!(back.disk()[..10 * 512] == [7; 10 * 512] && back.disk()[18 * 512..100 * 512] == [7; 82 * 512]);
    assert!(back.disk()[10 * 512] != 7);
    // Nothing whole: nothing to do.
    disk.discard_sectors(3, 14).unwrap();
    assert_eq!(back.served().len(), 1);
    // What must be gone must be whole.
    assert_eq!(disk.erase(3, 20), Err(Error::Unaligned));
    disk.erase(26, 16).unwrap();
    assert!(back.disk()[26 * 512..42 * 512] == [0; 16 * 512]);
    assert_eq!(disk.discard_sectors(2040, 9), Err(Error::OutOfRange));
    assert_eq!(disk.discard_sectors(0, 0), Err(Error::Unaligned));
    assert_eq!(disk.stats().bytes_discarded, 24 * 512);
    disk.close(&mut xs, machine.soon()).unwrap();
    // Extents that make no sense are none.
    for (node, value) in
        [("discard-granularity", "100"), ("discard-granularity", "0"), ("discard-alignment", "9")]
    {
        back.lie(node, Some(value));
        let mut disk = machine.connect(&mut xs).unwrap();
        assert_eq!((disk.discard(), disk.discard_sectors(0, 8)), (None, Err(Error::Unsupported)));
        disk.close(&mut xs, machine.soon()).unwrap();
        back.lie(node, Some("4096"));
    }
    assert_eq!(back.complaints(), [""; 0]);
}

#[test]
fn another_size_is_noticed() {
    let machine = Machine::new();
    let back = machine.disk(Options { sector_size: 4096, ..Options::default() });
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    assert_eq!((disk.capacity(), disk.read(2048, &mut [0; 4096])), (2048, Err(Error::OutOfRange)));
    // What the handshake has seen is not looked at again.
    let requests = xs.stats().requests;
    assert_eq!((disk.service(&mut xs), xs.stats().requests - requests), (Ok(State::Connected), 0));
    back.resize(4096);
    machine.xen.run_until_idle(10);
    assert_eq!((disk.service(&mut xs), disk.capacity()), (Ok(State::Connected), 4096));
    disk.write(4088, &pattern(4096, 1)).unwrap();
    back.resize(8);
    machine.xen.run_until_idle(10);
    assert_eq!((disk.service(&mut xs), disk.capacity()), (Ok(State::Connected), 8));
    assert_eq!(disk.read(8, &mut [0; 4096]), Err(Error::OutOfRange));
    // One that makes no sense is none.
    back.lie("sectors", Some("many"));
    back.resize(16);
    machine.xen.run_until_idle(10);
    assert_eq!((disk.service(&mut xs), disk.capacity()), (Err(Error::BadNode("sectors")), 8));
    disk.read(0, &mut [0; 4096]).unwrap();
}

#[test]
fn a_disk_says_what_it_is() {
    let machine = Machine::new();
    let back = machine.disk(Options {
        cdrom: true,
        removable: true,
        physical_sector_size: Some(4096),
        ..Options::default()
    });
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let disk = machine.connect(&mut xs).unwrap();
    assert_eq!((disk.is_cdrom(), disk.is_removable(), disk.is_read_only()), (true, true, false));
    assert_eq!((disk.sector_size(), disk.physical_sector_size()), (512, 4096));
    disk.close(&mut xs, machine.soon()).unwrap();
    for (value, believed) in [(None, 512), (Some("0"), 512), (Some("1000"), 512), (Some("8192"), 8192)] {
        back.lie("physical-sector-size", value);
        let disk = machine.connect(&mut xs).unwrap();
        assert_eq!(disk.physical_sector_size(), believed);
        disk.close(&mut xs, machine.soon()).unwrap();
    }
}

#[test]
fn what_is_in_the_callers_pages_travels_without_a_copy() {
    let machine = Machine::new();
    let back = machine.disk(Options { persistent: false, ..Options::default() });
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk =
        machine.connect_with(&mut xs, Config { segments: 256, persistent: false, ..small() }).unwrap();
    let share = || machine.grants.share(disk.backend_id(), Access::ReadWrite).unwrap();
    let mut pages: Vec<_> = (0..20).map(|_| share()).collect();
    for (i, page) in pages.iter_mut().enumerate() {
        page.write_bytes(0, &pattern(4096, i as u8)).unwrap();
    }
    // The middle of the first page, all of the others.
    let mut pages = pages.into_iter();
    let first = Piece::part(pages.next().unwrap(), 1024, 512).unwrap();
    let mut pieces: Vec<_> = [first].into_iter().chain(pages.map(Piece::whole)).map(Some).collect();
    let ticket = disk.submit_write_from(3, &mut pieces).unwrap();
    assert!(pieces.iter().all(Option::is_none));
    disk.publish().unwrap();
    machine.xen.run_until_idle(10);
    assert_eq!(disk.poll(), Ok(1));
    // Not with places for less.
    assert_eq!(disk.take_pages(ticket, &mut pieces[1..]), Some(Err(Error::BufferLength)));
    assert_eq!(disk.take_pages(ticket, &mut pieces), Some(Ok(())));
    assert!(pieces.iter().all(Option::is_some));
    assert!(back.disk()[3 * 512..4 * 512] == pattern(4096, 0)[1024..1536]);
    assert!(back.disk()[4 * 512..][..4096] == pattern(4096, 1));
    assert!(back.disk()[(4 + 18 * 8) * 512..][..4096] == pattern(4096, 19));
    // And back, into the pages in another order.
    pieces.reverse();
    let ticket = disk.submit_read_into(3, &mut pieces).unwrap();
    disk.publish().unwrap();
    machine.xen.run_until_idle(10);
    disk.poll().unwrap();
    assert_eq!(disk.take_pages(ticket, &mut pieces), Some(Ok(())));
    let mut got = Vec::new();
    for mut piece in pieces.into_iter().flatten() {
        let mut bytes = vec![0; piece.len()];
        let offset = piece.offset();
        piece.page_mut().read_bytes(offset, &mut bytes).unwrap();
        got.extend(bytes);
        // The backend has let go, and so it is ours again.
        assert!(matches!(piece.into_page().end(), Ended::Page(_)));
    }
    assert!(got == back.disk()[3 * 512..][..got.len()] && got.len() == 19 * 4096 + 512);
    assert_eq!((disk.stats().bytes_copied, disk.stats().requests), (0, 2));
    assert_eq!((disk.stats().bytes_read, disk.stats().bytes_written), (got.len() as u64, got.len() as u64));
    disk.close(&mut xs, machine.soon()).unwrap();
    assert_eq!(machine.grants.stats().in_use, 0);
    assert_eq!(back.complaints(), [""; 0]);
}

#[test]
fn pages_that_cannot_be_lent_stay_with_the_caller() {
    let machine = Machine::new();
    let back = machine.disk(Options { sector_size: 4096, ..Options::default() });
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    let share = |to, access| machine.grants.share(DomId(to), access).unwrap();
    let fine = || Some(Piece::whole(share(0, Access::ReadWrite)));
    let mut foreign = [fine(), Some(Piece::whole(share(3, Access::ReadWrite)))];
    let mut guarded = [Some(Piece::whole(share(0, Access::ReadOnly)))];
    let mut part = [Some(Piece::part(share(0, Access::ReadWrite), 0, 512).unwrap())];
    let mut hole = [fine(), None];
    for (pieces, error) in [
        (foreign.as_mut_slice(), Error::ForeignPage),
        (guarded.as_mut_slice(), Error::ForeignPage),
        (part.as_mut_slice(), Error::Unaligned),
        (hole.as_mut_slice(), Error::ForeignPage),
        ([].as_mut_slice(), Error::Unaligned),
    ] {
        let there = pieces.iter().flatten().count();
        assert_eq!(disk.submit_write_from(0, pieces), Err(error));
        assert_eq!(pieces.iter().flatten().count(), there);
    }
    assert_eq!(disk.submit_read_into(2048, &mut [fine()]), Err(Error::OutOfRange));
    for (offset, len, error) in [
        (0, 0, Error::Unaligned),
        (1, 512, Error::Unaligned),
        (0, 4608, Error::OutOfRange),
        (4096, 512, Error::OutOfRange),
        (512, usize::MAX - 511, Error::OutOfRange),
    ] {
        let (found, page) = Piece::part(share(0, Access::ReadWrite), offset, len).unwrap_err();
        assert_eq!(found, error, "{offset} {len}");
        drop(page);
    }
    assert!(back.served().is_empty());
}

#[test]
fn a_backend_that_is_not_trusted_gets_no_page_but_the_disks_own() {
    let machine = Machine::new();
    let back = machine.disk(Options::default());
    machine.store.write(&format!("/local/domain/1/device/vbd/{VBD}/trusted"), "0");
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    assert!(!disk.is_trusted());
    let page = machine.grants.share(DomId(0), Access::ReadWrite).unwrap();
    let mut pieces = [Some(Piece::whole(page))];
    assert_eq!(disk.submit_write_from(0, &mut pieces), Err(Error::Untrusted));
    assert!(pieces[0].is_some());
    disk.write(0, &[1; 512]).unwrap();
    assert_eq!(operations(&back), [OP_WRITE]);
}

#[test]
fn a_backend_may_keep_pages_mapped_only_if_told_so() {
    let machine = Machine::new();
    let back = machine.disk(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mapped = || xen_gnttab::mock::mappings_of(&machine.xen, machine.guest.id());
    for persistent in [false, true] {
        let mut disk = machine.connect_with(&mut xs, Config { persistent, ..small() }).unwrap();
        assert_eq!(disk.is_persistent(), persistent);
        disk.write(0, &[1; 4096 * 3]).unwrap();
        // The ring, and the pages.
        assert_eq!(mapped(), if persistent { 4 } else { 1 });
        // The same pages again.
        disk.read(0, &mut [1; 4096 * 3]).unwrap();
        assert_eq!(mapped(), if persistent { 4 } else { 1 });
        disk.close(&mut xs, machine.soon()).unwrap();
    }
    assert_eq!(operations(&back), [OP_WRITE, OP_READ, OP_WRITE, OP_READ]);
}

#[test]
fn offers_that_make_no_sense_are_none() {
    for node in
        ["max-ring-page-order", "max-ring-pages", "multi-queue-max-queues", "feature-max-indirect-segments"]
    {
        // Nothing, and far too much, are taken for what they can be.
        for value in ["x", "-1", "4294967296", "\u{ff}", "0", "4294967295"] {
            let machine = Machine::new();
            let back = machine.disk(Options::everything());
            back.lie(node, Some(value));
            let mut xs = Xenstore::new(&machine.events).unwrap();
            let mut disk = machine.connect(&mut xs).unwrap();
            disk.write(0, &pattern(4096 * 40, 0)).unwrap();
            assert!(back.disk()[..4096 * 40] == pattern(4096 * 40, 0));
        }
    }
}
