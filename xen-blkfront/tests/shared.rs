//! A disk that tasks share: many calls under way, each woken when it has its result, and none for nothing.
#![cfg(feature = "mock")]

mod common;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use common::executor::Executor;
use common::{Machine, pattern, small};
use xen_blkfront::mock::{Fault, MockBlkback, Options};
use xen_blkfront::{Config, Disk, Error, Piece, State};
use xen_gnttab::Access;
use xen_hypercall::VcpuId;
use xen_hypercall::mock::MockDomain;
use xen_xenstore::Xenstore;

/// Lets everybody act until nobody has anything to do.
fn settle(machine: &Machine, executor: &mut Executor<'_>) {
    executor.run();
    while machine.xen.run_until_idle(100) > 1 || machine.events.dispatch(VcpuId(0)) > 0 {
        executor.run();
    }
}

/// A machine with a disk of 2048 sectors.
fn machine() -> (Machine, MockBlkback) {
    let machine = Machine::new();
    let back = machine.disk(Options { indirect_segments: None, ..Options::default() });
    back.load(&pattern(1 << 20, 3));
    (machine, back)
}

type Results = Rc<RefCell<Vec<(usize, Result<(), Error>)>>>;

/// Starts reads of 8 sectors each, whose results are noted.
fn start_reads<'t>(
    executor: &mut Executor<'t>,
    disk: &'t Disk<'_, MockDomain>,
    count: usize,
    results: &Results,
) {
    for index in 0..count {
        let results = results.clone();
        executor.spawn("read", async move {
            let mut out = [0; 4096];
            // With gaps, so that they are not merged.
            let result = disk.handle().read(index as u64 * 16, &mut out).await;
            if result.is_ok() {
                assert!(out[..] == pattern(1 << 20, 3)[index * 8192..][..4096]);
            }
            results.borrow_mut().push((index, result));
        });
    }
}

fn drive<'t>(executor: &mut Executor<'t>, disk: &'t Disk<'_, MockDomain>) {
    executor.spawn("drive", async { match disk.drive().await {} });
}

#[test]
fn what_several_tasks_ask_for_in_one_round_goes_out_with_one_notification() {
    let (machine, _back) = machine();
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let disk = Disk::of(machine.connect_with(&mut xs, Config::default()).unwrap());
    let stats = || disk.with(|front| front.stats()).unwrap();
    for seed in 0..8 {
        let mut executor = Executor::new(seed);
        drive(&mut executor, &disk);
        executor.run();
        let results = Results::default();
        start_reads(&mut executor, &disk, 16, &results);
        let before = stats();
        executor.run();
        assert!(stats().notifications - before.notifications <= 2, "as the driver's turn comes");
        settle(&machine, &mut executor);
        assert_eq!(results.borrow().len(), 16);
        assert!(results.borrow().iter().all(|(_, result)| result.is_ok()));
        assert_eq!(stats().requests - before.requests, 16);
    }
}

#[test]
fn in_an_executor_that_takes_turns_it_is_one_notification() {
    let (machine, _back) = machine();
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let disk = Disk::of(machine.connect_with(&mut xs, Config::default()).unwrap());
    let mut cx = Context::from_waker(Waker::noop());
    let mut drive = pin!(disk.drive());
    assert!(drive.as_mut().poll(&mut cx).is_pending());
    let mut out = [[0; 4096]; 3];
    let mut reads: Vec<_> = out
        .iter_mut()
        .enumerate()
        .map(|(index, out)| Box::pin(disk.handle().read(index as u64 * 16, out)))
        .collect();
    let before = disk.with(|front| front.stats().notifications).unwrap();
    for read in &mut reads {
        assert!(read.as_mut().poll(&mut cx).is_pending());
    }
    assert!(drive.as_mut().poll(&mut cx).is_pending());
    assert_eq!(disk.with(|front| front.stats().notifications), Some(before + 1));
    machine.xen.run_until_idle(100);
    machine.events.dispatch(VcpuId(0));
    assert!(drive.as_mut().poll(&mut cx).is_pending());
    for read in &mut reads {
        assert_eq!(read.as_mut().poll(&mut cx), Poll::Ready(Ok(())));
    }
}

/// Counts how often a task was woken.
#[derive(Default)]
struct Count(AtomicU32);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn only_those_are_woken_that_have_a_result() {
    let (machine, back) = machine();
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let disk = Disk::of(machine.connect(&mut xs).unwrap());
    let counts: Vec<Arc<Count>> = (0..4).map(|_| Arc::default()).collect();
    let wakers: Vec<Waker> = counts.iter().map(|count| Waker::from(count.clone())).collect();
    let mut cx = Context::from_waker(Waker::noop());
    let mut drive = pin!(disk.drive());
    let mut outs = [[0; 512]; 4];
    let mut reads: Vec<_> = Vec::new();
    for (index, out) in outs.iter_mut().enumerate() {
        let mut read = Box::pin(disk.handle().read(index as u64 * 16, out));
        assert!(read.as_mut().poll(&mut Context::from_waker(&wakers[index])).is_pending());
        if index < 3 {
            // The last one is not shown yet.
            assert!(drive.as_mut().poll(&mut cx).is_pending());
        }
        reads.push(read);
    }
    back.fault(Fault::Lost);
    machine.xen.run_until_idle(100);
    machine.events.dispatch(VcpuId(0));
    assert!(drive.as_mut().poll(&mut cx).is_pending());
    let woken: Vec<u32> = counts.iter().map(|count| count.0.load(Ordering::SeqCst)).collect();
    assert_eq!(woken, [0, 1, 1, 0]);
}

#[test]
fn those_that_wait_for_room_are_served_in_their_order_however_many() {
    let (machine, _back) = machine();
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let disk = Disk::of(machine.connect(&mut xs).unwrap());
    let mut cx = Context::from_waker(Waker::noop());
    let mut outs = vec![[0; 512]; 100];
    let mut reads: Vec<_> = outs
        .iter_mut()
        .enumerate()
        .map(|(index, out)| {
            let mut read = Box::pin(disk.handle().read(index as u64 * 16, out));
            assert!(read.as_mut().poll(&mut cx).is_pending());
            Some(read)
        })
        .collect();
    let mut drive = pin!(disk.drive());
    let mut done = Vec::new();
    for _ in 0..100 {
        assert!(drive.as_mut().poll(&mut cx).is_pending());
        machine.xen.run_until_idle(100);
        machine.events.dispatch(VcpuId(0));
        assert!(drive.as_mut().poll(&mut cx).is_pending());
        // From the last to the first, so that who comes late asks first.
        for index in (0..100).rev() {
            if let Some(read) = &mut reads[index] {
                if let Poll::Ready(result) = read.as_mut().poll(&mut cx) {
                    assert_eq!(result, Ok(()));
                    done.push(index);
                    reads[index] = None;
                }
            }
        }
    }
    assert_eq!(done.len(), 100);
    let late = done.iter().enumerate().filter(|(at, index)| at / 8 + 1 < **index / 8);
    assert_eq!(late.count(), 0, "{done:?}");
}

#[test]
fn a_large_transfer_is_cut_and_waits_for_room_among_others() {
    let (machine, back) = machine();
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let disk = Disk::of(machine.connect(&mut xs).unwrap());
    let done = Cell::new(0);
    let mut executor = Executor::new(5);
    for index in 0..3_u8 {
        let (done, disk) = (&done, &disk);
        executor.spawn("transfer", async move {
            let at = u64::from(index) * 600;
            disk.handle().write(at, &pattern(600 * 512, index)).await.unwrap();
            disk.handle().flush().await.unwrap();
            let mut out = vec![0; 600 * 512];
            disk.handle().read(at, &mut out).await.unwrap();
            assert!(out == pattern(600 * 512, index));
            done.set(done.get() + 1);
        });
    }
    drive(&mut executor, &disk);
    settle(&machine, &mut executor);
    assert_eq!(done.get(), 3);
    assert_eq!(back.complaints(), [""; 0]);
    let free = disk.with(|front| (front.free_requests(), front.pending()));
    assert_eq!(free, Some((8, 0)));
}

#[test]
fn a_call_that_is_dropped_gives_its_place_and_pages_back() {
    let (machine, back) = machine();
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let disk = Disk::of(machine.connect(&mut xs).unwrap());
    let mut executor = Executor::new(1);
    drive(&mut executor, &disk);
    back.stall(true);
    let results = Results::default();
    start_reads(&mut executor, &disk, 20, &results);
    executor.run();
    for _ in 0..20 {
        executor.cancel("read");
        executor.run();
    }
    // Whoever comes now waits for what they have left under way.
    start_reads(&mut executor, &disk, 20, &results);
    executor.run();
    back.stall(false);
    settle(&machine, &mut executor);
    assert_eq!((results.borrow().len(), executor.count("read")), (20, 0));
    assert_eq!(disk.with(|front| (front.free_requests(), front.pending())), Some((8, 0)));
}

#[test]
fn a_transfer_has_several_operations_under_way_and_waits_for_those_of_a_dropped_one() {
    let (machine, back) = machine();
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let disk = Disk::of(machine.connect_with(&mut xs, Config::default()).unwrap());
    back.stall(true);
    let mut executor = Executor::new(1);
    drive(&mut executor, &disk);
    let transfer = |out: usize| {
        let disk = &disk;
        async move {
            let mut out = vec![0; out];
            disk.handle().read(0, &mut out).await.unwrap();
            assert!(out == pattern(1 << 20, 3)[..out.len()]);
        }
    };
    executor.spawn("transfer", transfer(88 * 5 * 512));
    executor.run();
    assert_eq!(disk.with(|front| (front.pending(), front.stats().requests)), Some((5, 5)));
    // All pages are in use then.
    for _ in 0..4 {
        executor.spawn("transfer", transfer(1 << 20));
        executor.run();
    }
    for _ in 0..3 {
        executor.cancel("transfer");
        executor.run();
    }
    back.stall(false);
    settle(&machine, &mut executor);
    assert_eq!(executor.count("transfer"), 0);
    assert_eq!(disk.with(|front| front.free_requests()), Some(32));
}

#[test]
fn pages_that_are_lent_come_back() {
    let (machine, back) = machine();
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let disk = Disk::of(machine.connect(&mut xs).unwrap());
    let backend = disk.with(|front| front.backend_id()).unwrap();
    let mut executor = Executor::new(1);
    drive(&mut executor, &disk);
    let (grants, disk) = (&machine.grants, &disk);
    executor.spawn("lent", async move {
        let mut pieces: Vec<_> =
            (0..3).map(|_| Some(Piece::whole(grants.share(backend, Access::ReadWrite).unwrap()))).collect();
        disk.handle().read_into(8, &mut pieces).await.unwrap();
        disk.handle().write_from(100, &mut pieces).await.unwrap();
        assert!(pieces.iter().all(Option::is_some));
        assert_eq!(disk.handle().read_into(1 << 40, &mut pieces).await, Err(Error::OutOfRange));
        assert!(pieces.iter().all(Option::is_some));
    });
    settle(&machine, &mut executor);
    assert_eq!(executor.count("lent"), 0);
    assert!(back.disk()[100 * 512..][..3 * 4096] == back.disk()[8 * 512..][..3 * 4096]);
}

#[test]
fn other_operations_are_calls_too() {
    let machine = Machine::new();
    let discard = Some(xen_blkfront::mock::Discard { secure: true, ..Default::default() });
    let back = machine.disk(Options { barrier: true, discard, ..Options::default() });
    back.load(&pattern(4096, 1));
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let disk = Disk::of(machine.connect(&mut xs).unwrap());
    let mut executor = Executor::new(1);
    drive(&mut executor, &disk);
    executor.spawn("calls", async {
        let handle = disk.handle();
        handle.barrier(16, &[7; 512]).await.unwrap();
        handle.discard(0, 8).await.unwrap();
        handle.erase(8, 8).await.unwrap();
        handle.flush().await.unwrap();
        assert_eq!(handle.barrier(0, &[0; 89 * 4096]).await, Err(Error::TooLong));
        assert_eq!(handle.read(0, &mut [0; 100]).await, Err(Error::Unaligned));
        assert_eq!(handle.read(0, &mut []).await, Err(Error::Unaligned));
        assert_eq!(handle.write(2047, &[0; 1024]).await, Err(Error::OutOfRange));
        // Nothing to discard: the result is there at once.
        handle.discard(0, 1).await.unwrap();
    });
    settle(&machine, &mut executor);
    assert_eq!(executor.count("calls"), 0);
    assert_eq!(back.disk()[16 * 512], 7);
}

#[test]
fn whoever_ends_the_disk_all_calls_fail() {
    for way in 0..5 {
        let (machine, back) = machine();
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let disk = Disk::of(machine.connect(&mut xs).unwrap());
        let mut executor = Executor::new(way);
        drive(&mut executor, &disk);
        back.stall(true);
        let results = Results::default();
        // More than there is room for.
        start_reads(&mut executor, &disk, 20, &results);
        executor.run();
        assert!(results.borrow().is_empty());
        let mut taken = None;
        match way {
            0 => back.vanish(),
            1 => back.drop_out(),
            2 => {
                back.stall(false);
                back.fault(Fault::Id(77));
            }
            3 => taken = disk.take(),
            _ => {
                back.stall(false);
                let front = disk.take().unwrap();
                front.close(&mut xs, machine.soon()).unwrap();
            }
        }
        machine.xen.run_until_idle(100);
        machine.events.dispatch(VcpuId(0));
        let _ = disk.with(|front| front.service(&mut xs));
        settle(&machine, &mut executor);
        let results = results.borrow();
        assert_eq!((results.len(), executor.count("read")), (20, 0), "way {way}");
        let right = |error| match way {
            2 => matches!(error, Err(Error::Broken(_))),
            _ => error == Err(Error::Closed),
        };
        assert!(results.iter().all(|(_, result)| right(*result)), "{way}: {results:?}");
        let mut out = [0; 512];
        let mut read = pin!(disk.handle().read(0, &mut out));
        let now = read.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(now, Poll::Ready(error) if right(error)), "{way}: {now:?}");
        drop(taken);
    }
}

#[test]
fn calls_go_on_with_another_backend_and_in_another_domain() {
    for migrates in [false, true] {
        let (machine, back) = machine();
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let disk = Disk::of(machine.connect(&mut xs).unwrap());
        let mut executor = Executor::new(7);
        drive(&mut executor, &disk);
        back.stall(true);
        let results = Results::default();
        start_reads(&mut executor, &disk, 20, &results);
        executor.run();
        if migrates {
            back.set_next(Options { max_ring_page_order: None, ..Options::default() });
            assert_eq!(machine.suspend(&mut xs, &mut &disk).1, 0);
        } else {
            back.vanish();
            back.come_back();
            back.stall(false);
            let soon = machine.soon();
            disk.with(|front| front.reconnect(&mut xs, soon)).unwrap().unwrap();
        }
        settle(&machine, &mut executor);
        assert_eq!((results.borrow().len(), executor.count("read")), (20, 0));
        assert!(results.borrow().iter().all(|(_, result)| result.is_ok()), "{results:?}");
    }
}

#[test]
fn the_driver_may_be_dropped_and_begun_anew() {
    let (machine, _back) = machine();
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let disk = Disk::of(machine.connect(&mut xs).unwrap());
    let mut executor = Executor::new(7);
    let results = Results::default();
    start_reads(&mut executor, &disk, 20, &results);
    executor.run();
    for _ in 0..5 {
        drive(&mut executor, &disk);
        executor.run();
        machine.xen.run_until_idle(100);
        executor.cancel("drive");
        machine.events.dispatch(VcpuId(0));
        executor.run();
    }
    drive(&mut executor, &disk);
    settle(&machine, &mut executor);
    assert_eq!(results.borrow().len(), 20);
}

/// A waker that panics.
struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("a waker");
    }
}

#[test]
fn a_waker_that_panics_takes_nothing_from_the_other_tasks() {
    let (machine, _back) = machine();
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let disk = Disk::of(machine.connect_with(&mut xs, small()).unwrap());
    let (panics, count) = (Waker::from(Arc::new(Panics)), Arc::new(Count::default()));
    let counts = Waker::from(count.clone());
    let mut outs = [[0; 512]; 7];
    let mut reads: Vec<_> = Vec::new();
    for (index, out) in outs.iter_mut().enumerate() {
        let mut read = Box::pin(disk.handle().read(index as u64 * 16, out));
        let waker = if index == 3 { &panics } else { &counts };
        assert!(read.as_mut().poll(&mut Context::from_waker(waker)).is_pending());
        reads.push(read);
    }
    let mut cx = Context::from_waker(Waker::noop());
    let mut drive = pin!(disk.drive());
    assert!(drive.as_mut().poll(&mut cx).is_pending());
    machine.xen.run_until_idle(100);
    machine.events.dispatch(VcpuId(0));
    assert!(catch_unwind(AssertUnwindSafe(|| drive.as_mut().poll(&mut cx))).is_err());
    assert_eq!(count.0.load(Ordering::SeqCst), 6);
    assert!(reads.iter_mut().all(|read| read.as_mut().poll(&mut cx) == Poll::Ready(Ok(()))));
}

#[test]
fn a_task_waits_for_a_disk_and_for_its_changes() {
    let (machine, back) = machine();
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let disk = Disk::new();
    let seen = RefCell::new(Vec::new());
    let mut executor = Executor::new(7);
    executor.spawn("look", async {
        let handle = disk.handle();
        handle.connected().await;
        loop {
            seen.borrow_mut().push((handle.state(), handle.capacity()));
            handle.changed().await;
        }
    });
    executor.run();
    assert!(disk.put(machine.connect(&mut xs).unwrap()).is_none());
    executor.run();
    back.resize(4096);
    machine.xen.run_until_idle(10);
    disk.with(|front| front.service(&mut xs)).unwrap().unwrap();
    executor.run();
    back.drop_out();
    machine.xen.run_until_idle(10);
    disk.with(|front| front.service(&mut xs)).unwrap().unwrap();
    executor.run();
    drop(disk.take());
    executor.run();
    let (connected, closed) = (Some(State::Connected), Some(State::Closed));
    assert_eq!(*seen.borrow(), [(connected, 2048), (connected, 4096), (closed, 4096), (None, 0)]);
}
