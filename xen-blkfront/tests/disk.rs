//! What a disk does with a backend that does its part.
#![cfg(feature = "mock")]

mod common;

use common::{Machine, VBD, pattern};
use proptest::prelude::*;
use xen_blkfront::abi::{OP_FLUSH, OP_WRITE, RSP_EOPNOTSUPP};
use xen_blkfront::mock::{Fault, Options, Order};
use xen_blkfront::{BlkFront, Error, State};
use xen_xenstore::Xenstore;

#[test]
fn a_disk_comes_up_and_goes_down_and_leaves_nothing() {
    let machine = Machine::new();
    let back = machine.disk(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let ports = xen_evtchn::mock::open_ports(&machine.guest);
    for round in 0..3 {
        let (pages, in_use) = (machine.guest.pages_in_use(), machine.grants.stats().in_use);
        let mut disk =
            BlkFront::connect_first(&mut xs, &machine.events, &machine.grants, machine.soon()).unwrap();
        assert_eq!((disk.index(), disk.capacity(), disk.sector_size()), (VBD, 2048, 512));
        assert_eq!((disk.is_read_only(), disk.can_flush(), disk.is_persistent()), (false, true, true));
        let data = pattern(100 * 512, round);
        disk.write(3, &data).unwrap();
        let mut read = vec![0; data.len()];
        disk.read(3, &mut read).unwrap();
        assert!(read == data);
        disk.flush().unwrap();
        disk.close(&mut xs, machine.soon()).unwrap();
        assert!(back.disk()[3 * 512..][..data.len()] == data);
        assert_eq!(machine.grants.stats().in_use, in_use);
        assert_eq!(machine.grants.stats().quarantined, 0);
        // The table keeps the frames that it grew by.
        assert!(round == 0 || machine.guest.pages_in_use() == pages);
        assert_eq!(xen_evtchn::mock::open_ports(&machine.guest), ports);
        assert_eq!(xen_gnttab::mock::mappings_of(&machine.xen, machine.guest.id()), 0);
    }
    assert_eq!(back.complaints(), [""; 0]);
}

#[test]
fn many_requests_are_one_event() {
    let machine = Machine::new();
    let back = machine.disk(Options { order: Order::Reversed, ..Options::default() });
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    let tickets: Vec<_> =
        (0..8).map(|i| disk.submit_write(i * 16, &pattern(4096, i as u8)).unwrap()).collect();
    assert_eq!(disk.submit_read(0, 1), Err(Error::Busy));
    assert_eq!(disk.free_requests(), 0);
    disk.publish().unwrap();
    assert_eq!(disk.stats().notifications, 1);
    assert_eq!(disk.take(tickets[0], &mut []), None);
    loop {
        let seen = machine.events.seq();
        if disk.poll().unwrap() > 0 {
            break;
        }
        assert_eq!(disk.arm(), Ok(false));
        machine.events.wait_since(seen, Some(machine.soon()));
    }
    for (i, ticket) in tickets.iter().enumerate() {
        assert_eq!(disk.take(*ticket, &mut []), Some(Ok(())));
        assert_eq!(disk.take(*ticket, &mut []), Some(Err(Error::StaleTicket)));
        assert!(back.disk()[i * 8192..][..4096] == pattern(4096, i as u8));
    }
    assert_eq!(back.served()[0].sector, 112);
    let stats = disk.stats();
    assert_eq!((stats.requests, stats.responses, stats.errors, stats.bytes_written), (8, 8, 0, 8 * 4096));
}

#[test]
fn a_buffer_of_another_length_leaves_the_result() {
    let machine = Machine::new();
    let back = machine.disk(Options::default());
    back.load(&pattern(512 * 4, 9));
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    let ticket = disk.submit_read(1, 2).unwrap();
    disk.publish().unwrap();
    machine.xen.run_until_idle(10);
    assert_eq!(disk.poll(), Ok(1));
    assert_eq!(disk.take(ticket, &mut [0; 512]), Some(Err(Error::BufferLength)));
    let mut out = [0; 1024];
    assert_eq!(disk.take(ticket, &mut out), Some(Ok(())));
    assert_eq!(out[..], pattern(2048, 9)[512..1536]);
}

#[test]
fn a_forgotten_request_gives_its_place_back_when_it_is_answered() {
    let machine = Machine::new();
    let _back = machine.disk(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    for _ in 0..8 {
        let ticket = disk.submit_read(0, 1).unwrap();
        disk.forget(ticket);
    }
    // The blocking call waits for a place that the others give back.
    disk.read(0, &mut [0; 512]).unwrap();
    assert_eq!(disk.free_requests(), 8);
}

#[test]
fn what_cannot_be_is_not_sent() {
    let machine = Machine::new();
    let back = machine.disk(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    assert_eq!(disk.submit_read(2048, 1), Err(Error::OutOfRange));
    assert_eq!(disk.submit_read(u64::MAX, 1), Err(Error::OutOfRange));
    assert_eq!(disk.submit_read(2047, 2), Err(Error::OutOfRange));
    assert_eq!(disk.submit_read(0, 0), Err(Error::Unaligned));
    assert_eq!(disk.submit_read(0, disk.max_sectors() + 1), Err(Error::TooLong));
    assert_eq!(disk.submit_write(0, &[0; 511]), Err(Error::Unaligned));
    assert_eq!(disk.read(2047, &mut [0; 1024]), Err(Error::OutOfRange));
    assert_eq!(disk.write(0, &[]), Err(Error::Unaligned));
    assert!(back.served().is_empty());
}

#[test]
fn a_disk_of_large_sectors_is_used_in_whole_ones() {
    let machine = Machine::new();
    let back = machine.disk(Options { sector_size: 4096, ..Options::default() });
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    assert_eq!((disk.sector_size(), disk.capacity()), (4096, 2048));
    assert_eq!(disk.read(1, &mut [0; 4096]), Err(Error::Unaligned));
    assert_eq!(disk.write(8, &[0; 512]), Err(Error::Unaligned));
    let data = pattern(4096 * 30, 1);
    disk.write(16, &data).unwrap();
    let mut read = vec![0; data.len()];
    disk.read(16, &mut read).unwrap();
    assert!(read == data && back.disk()[16 * 512..][..data.len()] == data);
    assert_eq!(back.complaints(), [""; 0]);
}

#[test]
fn a_read_only_disk_is_not_written() {
    let machine = Machine::new();
    let back = machine.disk(Options { read_only: true, ..Options::default() });
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    assert!(disk.is_read_only());
    assert_eq!(disk.write(0, &[1; 512]), Err(Error::ReadOnly));
    assert_eq!(disk.submit_write(0, &[1; 512]), Err(Error::ReadOnly));
    disk.read(0, &mut [1; 512]).unwrap();
    disk.close(&mut xs, machine.soon()).unwrap();
    // Either sign is enough.
    for (info, mode) in [("4", Some("w")), ("0", Some("r")), ("4", None)] {
        back.lie("info", Some(info));
        back.lie("mode", mode);
        let disk = machine.connect(&mut xs).unwrap();
        assert!(disk.is_read_only());
        disk.close(&mut xs, machine.soon()).unwrap();
    }
}

#[test]
fn a_flush_comes_after_the_writes_or_is_nothing() {
    let machine = Machine::new();
    let back = machine.disk(Options { order: Order::Shuffled(3), ..Options::default() });
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    for i in 0..7 {
        let ticket = disk.submit_write(i * 2, &[1; 512]).unwrap();
        disk.forget(ticket);
    }
    disk.flush().unwrap();
    let operations: Vec<u8> = back.served().iter().map(|request| request.operation).collect();
    assert_eq!(operations, [[OP_WRITE; 7].as_slice(), &[OP_FLUSH]].concat());
    disk.close(&mut xs, machine.soon()).unwrap();

    back.lie("feature-flush-cache", Some("0"));
    let mut disk = machine.connect(&mut xs).unwrap();
    assert!(!disk.can_flush());
    disk.flush().unwrap();
    assert_eq!((back.served().len(), disk.stats().requests), (8, 0));
}

#[test]
fn a_backend_that_only_says_that_it_flushes_is_found_out() {
    let machine = Machine::new();
    let back = machine.disk(Options::default());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect(&mut xs).unwrap();
    back.fault(Fault::Status(RSP_EOPNOTSUPP));
    assert_eq!(disk.flush(), Err(Error::Unsupported));
    assert!(!disk.can_flush());
    assert_eq!(disk.state(), State::Connected);
}

#[test]
fn no_disk_is_no_disk() {
    let machine = Machine::new();
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let found = BlkFront::connect_first(&mut xs, &machine.events, &machine.grants, machine.soon());
    assert_eq!(found.err(), Some(Error::NoDevice));
}

#[derive(Clone, Debug)]
enum Step {
    Read { at: u64, count: usize },
    Write { at: u64, count: usize, seed: u8 },
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..256_u64, 1..200_usize).prop_map(|(at, count)| Step::Read { at, count }),
        3 => (0..256_u64, 1..200_usize, any::<u8>())
            .prop_map(|(at, count, seed)| Step::Write { at, count, seed }),
        1 => Just(Step::Flush),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_disk_is_like_memory(
        steps in prop::collection::vec(step(), 1..40),
        shift in 0..4_u32,
        persistent: bool,
        order in prop_oneof![
            Just(Order::Sent), Just(Order::Reversed), any::<u64>().prop_map(Order::Shuffled),
        ],
    ) {
        let machine = Machine::new();
        let sector_size = 512 << shift;
        let each = u64::from(sector_size) / 512;
        let sectors = 256_u64;
        let back =
            machine.disk(Options { sectors, sector_size, persistent, order, ..Options::default() });
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let mut disk = machine.connect(&mut xs).unwrap();
        let mut model = vec![0; sectors as usize * 512];
        for step in steps {
            match step {
                Step::Read { at, count } => {
                    let mut out = vec![0xEE; count * 512];
                    let answer = disk.read(at, &mut out);
                    prop_assert_eq!(answer, expected(at, count, each, sectors));
                    if answer.is_ok() {
                        prop_assert!(out == model[at as usize * 512..][..out.len()]);
                    }
                }
                Step::Write { at, count, seed } => {
                    let data = pattern(count * 512, seed);
                    let answer = disk.write(at, &data);
                    prop_assert_eq!(answer, expected(at, count, each, sectors));
                    if answer.is_ok() {
                        model[at as usize * 512..][..data.len()].copy_from_slice(&data);
                    }
                }
                Step::Flush => disk.flush().unwrap(),
            }
        }
        prop_assert!(back.disk() == model);
        disk.close(&mut xs, machine.soon()).unwrap();
        prop_assert_eq!(back.complaints(), Vec::<String>::new());
        prop_assert_eq!(machine.grants.stats().quarantined, 0);
    }
}

fn expected(at: u64, count: usize, each: u64, sectors: u64) -> Result<(), Error> {
    if at % each != 0 || count as u64 % each != 0 {
        Err(Error::Unaligned)
    } else if at + count as u64 > sectors {
        Err(Error::OutOfRange)
    } else {
        Ok(())
    }
}
