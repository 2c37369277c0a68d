//! Queues that are taken out of their disk, and driven by other threads.
#![cfg(feature = "mock")]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};

use common::{Machine, pattern, small};
use xen_blkfront::abi::OP_FLUSH;
use xen_blkfront::mock::{Discard, Fault, MockBlkback, Options, Order};
use xen_blkfront::{BlkFront, BlkQueue, Config, Error, Piece, State, Ticket};
use xen_gnttab::Access;
use xen_hypercall::VcpuId;
use xen_hypercall::mock::{Dice, MockDomain};
use xen_hypercall::sched::Resumed;
use xen_xenstore::Xenstore;

/// Operations of each thread.
const ROUNDS: u64 = 96;
/// Sectors that each thread has for itself.
const AREA: u64 = 256;

fn options() -> Options {
    Options { sectors: 4096, max_queues: Some(4), volatile_cache: true, ..Options::default() }
}

/// A disk of four queues.
fn connect<'x>(machine: &'x Machine, xs: &mut Xenstore<'x, MockDomain>) -> BlkFront<'x, MockDomain> {
    let disk = machine.connect_with(xs, Config { queues: 4, ..small() }).unwrap();
    assert_eq!(disk.queues(), 4);
    disk
}

/// Lets the backend answer all that was published.
fn run(machine: &Machine) {
    assert!(machine.xen.run_until_idle(100) < 100);
}

/// What a thread has, whoever it belongs to.
trait Drive {
    fn submit_read(&mut self, lba: u64, sectors: u64) -> Result<Ticket, Error>;
    fn submit_write(&mut self, lba: u64, data: &[u8]) -> Result<Ticket, Error>;
    fn submit_flush(&mut self) -> Result<Ticket, Error>;
    fn publish(&mut self) -> Result<(), Error>;
    fn poll(&mut self) -> Result<usize, Error>;
    fn take(&mut self, ticket: Ticket, out: &mut [u8]) -> Option<Result<(), Error>>;
    fn arm(&mut self) -> Result<bool, Error>;
}

macro_rules! drive {
    ($type:ty) => {
        impl Drive for $type {
            fn submit_read(&mut self, lba: u64, sectors: u64) -> Result<Ticket, Error> {
                <$type>::submit_read(self, lba, sectors)
            }
            fn submit_write(&mut self, lba: u64, data: &[u8]) -> Result<Ticket, Error> {
                <$type>::submit_write(self, lba, data)
            }
            fn submit_flush(&mut self) -> Result<Ticket, Error> {
                <$type>::submit_flush(self)
            }
            fn publish(&mut self) -> Result<(), Error> {
                <$type>::publish(self)
            }
            fn poll(&mut self) -> Result<usize, Error> {
                <$type>::poll(self)
            }
            fn take(&mut self, ticket: Ticket, out: &mut [u8]) -> Option<Result<(), Error>> {
                <$type>::take(self, ticket, out)
            }
            fn arm(&mut self) -> Result<bool, Error> {
                <$type>::arm(self)
            }
        }
    };
}

drive!(BlkQueue<'_, MockDomain>);
drive!(BlkFront<'_, MockDomain>);

/// Waits for a result as a driver on a vCPU does, which takes its own events.
fn finish(machine: &Machine, queue: &mut impl Drive, vcpu: u32, ticket: Ticket, out: &mut [u8]) {
    queue.publish().unwrap();
    loop {
        machine.events.dispatch(VcpuId(vcpu));
        queue.poll().unwrap();
        if let Some(result) = queue.take(ticket, out) {
            return result.unwrap();
        }
        if !queue.arm().unwrap() {
            std::thread::yield_now();
        }
    }
}

/// Writes, reads and flushes in a place of the thread's own, of which it knows everything.
fn work(machine: &Machine, queue: &mut impl Drive, vcpu: u32) {
    let base = u64::from(vcpu) * AREA;
    let mut right = vec![0; AREA as usize * 512];
    let mut out = vec![0; AREA as usize * 512];
    for round in 0..ROUNDS {
        let (at, count) = (round * 37 % (AREA - 24), 1 + round % 24);
        let data = pattern(count as usize * 512, (round as u8).wrapping_mul(3) ^ vcpu as u8);
        let write = queue.submit_write(base + at, &data).unwrap();
        right[at as usize * 512..][..data.len()].copy_from_slice(&data);
        finish(machine, queue, vcpu, write, &mut []);
        if round % 8 == 0 {
            let flush = queue.submit_flush().unwrap();
            finish(machine, queue, vcpu, flush, &mut []);
        }
        let (from, count) = (round * 11 % (AREA - 70), 1 + round % 70);
        let read = queue.submit_read(base + from, count).unwrap();
        let bytes = &mut out[..count as usize * 512];
        finish(machine, queue, vcpu, read, bytes);
        assert!(*bytes == right[from as usize * 512..][..count as usize * 512], "vCPU {vcpu}, round {round}");
    }
}

#[test]
fn queues_are_driven_by_as_many_threads() {
    for order in [Order::Sent, Order::Shuffled(7)] {
        let machine = Machine::new();
        machine.guest.set_vcpus(3);
        let back = machine.disk(Options { order, ..options() });
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let mut disk = connect(&machine, &mut xs);
        let queues = [1, 2].map(|index| {
            machine.events.add_vcpu(VcpuId(index)).unwrap();
            let queue = disk.take_queue(index as usize).unwrap();
            queue.channel().unwrap().bind_vcpu(VcpuId(index)).unwrap();
            queue
        });
        assert_eq!((disk.queues(), disk.channels().count()), (2, 2));
        let (machine, own) = (&machine, &mut disk);
        let queues = std::thread::scope(|scope| {
            let others = queues.map(|mut queue| {
                scope.spawn(move || {
                    let vcpu = queue.index() as u32;
                    work(machine, &mut queue, vcpu);
                    queue
                })
            });
            let first = scope.spawn(move || work(machine, own, 0));
            let all = |first: bool| first && others.iter().all(|thread| thread.is_finished());
            while !all(first.is_finished()) {
                machine.xen.step();
            }
            first.join().unwrap();
            others.map(|thread| thread.join().unwrap())
        });
        for queue in queues {
            assert_eq!((queue.pending(), queue.stats().operations), (0, 2 * ROUNDS + ROUNDS / 8));
            disk.put_queue(queue).unwrap();
        }
        let stats = disk.stats();
        assert_eq!((disk.queues(), stats.operations, stats.errors), (4, 3 * (2 * ROUNDS + ROUNDS / 8), 0));
        assert_eq!(back.complaints(), [""; 0]);
        // What was flushed by the last of them was all that there was, or nobody has flushed the last writes.
        disk.flush().unwrap();
        back.vanish();
        back.come_back();
        disk.reconnect(&mut xs, machine.soon()).unwrap();
        assert_eq!(disk.flush(), Ok(()));
        disk.close(&mut xs, machine.soon()).unwrap();
        assert_eq!(machine.grants.stats().in_use, 0);
    }
}

#[test]
fn a_queue_is_taken_once_when_it_is_idle_and_queue_zero_stays() {
    let machine = Machine::new();
    let back = machine.disk(options());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = connect(&machine, &mut xs);
    let before = machine.guest.pages_in_use();
    for index in [0, 4, 16, usize::MAX] {
        let error = Error::Queue(u32::try_from(index).unwrap_or(u32::MAX));
        assert_eq!(disk.take_queue(index).unwrap_err(), error);
    }
    // Without memory nothing changes.
    for pages in 0..20 {
        machine.guest.fail_allocs_after(Some(pages));
        let taken = disk.take_queue(1);
        machine.guest.fail_allocs_after(None);
        match taken {
            Err(error) => {
                assert_eq!(error, Error::Grant(xen_gnttab::Error::OutOfMemory), "{pages}");
                assert_eq!(disk.queues(), 4);
            }
            Ok(queue) => {
                assert!(pages > 11);
                disk.put_queue(queue).unwrap();
                break;
            }
        }
    }
    assert_eq!((disk.queues(), machine.guest.pages_in_use()), (4, before + 1), "a page is shared");
    // Every ring has a request of the disk's own.
    let tickets: Vec<_> =
        (0..4).map(|index| disk.submit_write(index * 100, &pattern(512, 1)).unwrap()).collect();
    back.stall(true);
    disk.publish().unwrap();
    let busy: Vec<_> = (1..4).filter(|index| disk.take_queue(*index).is_err()).collect();
    assert_eq!(disk.take_queue(busy[0]).unwrap_err(), Error::Busy);
    back.stall(false);
    run(&machine);
    let mut queue = disk.take_queue(busy[0]).unwrap();
    assert_eq!(disk.take_queue(busy[0]).unwrap_err(), Error::Queue(busy[0] as u32));
    tickets.iter().for_each(|ticket| assert_eq!(disk.take(*ticket, &mut []), Some(Ok(()))));
    // A ticket is good where it was got, and nowhere else.
    let (theirs, ours) = (queue.submit_read(0, 1).unwrap(), disk.submit_read(0, 1).unwrap());
    assert_eq!(disk.take(theirs, &mut [0; 512]), Some(Err(Error::StaleTicket)));
    assert_eq!(queue.take(ours, &mut [0; 512]), Some(Err(Error::StaleTicket)));
    // What is under way keeps it from being put back.
    queue.publish().unwrap();
    disk.publish().unwrap();
    let rejected = disk.put_queue(queue).unwrap_err();
    assert_eq!((rejected.error, rejected.to_string()), (Error::Busy, Error::Busy.to_string()));
    let mut queue = rejected.queue;
    run(&machine);
    assert_eq!((queue.poll(), disk.poll()), (Ok(1), Ok(1)));
    let (mut first, mut second) = ([0; 512], [0; 512]);
    assert_eq!((queue.take(theirs, &mut first), disk.take(ours, &mut second)), (Some(Ok(())), Some(Ok(()))));
    assert!(first[..] == pattern(512, 1) && first == second);
    // What was not taken from it is given up with it.
    let forgotten = queue.submit_read(100, 1).unwrap();
    queue.publish().unwrap();
    run(&machine);
    let requests = (disk.stats().requests, queue.stats().requests);
    disk.put_queue(queue).unwrap();
    assert_eq!((disk.queues(), disk.stats().requests), (4, requests.0 + requests.1));
    let mut queue = disk.take_queue(busy[0]).unwrap();
    assert_eq!(queue.take(forgotten, &mut [0; 512]), Some(Err(Error::StaleTicket)));
    disk.put_queue(queue).unwrap();
    // The disk uses it as before.
    let tickets: Vec<_> = (0..8).map(|index| disk.submit_read(index * 100, 1).unwrap()).collect();
    disk.publish().unwrap();
    run(&machine);
    assert_eq!(disk.poll(), Ok(8));
    tickets.iter().for_each(|ticket| assert_eq!(disk.take(*ticket, &mut [0; 512]), Some(Ok(()))));
    disk.close(&mut xs, machine.soon()).unwrap();
    assert_eq!((machine.grants.stats().in_use, back.complaints()), (0, vec![]));
}

#[test]
fn a_queue_does_all_but_barriers() {
    let machine = Machine::new();
    let discard = Some(Discard::default());
    let back = machine.disk(Options { discard, barrier: true, ..options() });
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = machine.connect_with(&mut xs, Config { queues: 2, ..small() }).unwrap();
    let mut queue = disk.take_queue(1).unwrap();
    assert!(!disk.has_barrier(), "there is no order between it and the queue");
    assert_eq!(
        (queue.capacity(), queue.sector_size(), queue.max_sectors(), queue.request_sectors()),
        (4096, 512, disk.max_sectors(), disk.request_sectors())
    );
    assert!(queue.can_flush() && queue.is_trusted() && !queue.is_read_only() && queue.discard().is_some());
    // The calls that wait, from one vCPU: that to which all channels are bound at first.
    let data = pattern(300 * 512, 5);
    queue.write(7, &data).unwrap();
    let mut out = vec![0; data.len()];
    queue.read(7, &mut out).unwrap();
    assert!(out == data && back.disk()[7 * 512..][..data.len()] == data);
    queue.flush().unwrap();
    queue.discard_sectors(16, 32).unwrap();
    queue.erase(64, 8).unwrap();
    let ticket = queue.submit_discard(96, 8).unwrap();
    queue.wait(ticket, &mut []).unwrap();
    let ticket = queue.submit_secure_discard(128, 8).unwrap();
    queue.wait(ticket, &mut []).unwrap();
    queue.read(64, &mut out[..512]).unwrap();
    assert!(out[..512].iter().all(|byte| *byte == 0));
    // Pages of the caller's own.
    let lend = |seed| {
        let mut page = machine.grants.share(queue.backend_id(), Access::ReadWrite).unwrap();
        page.write_bytes(0, &pattern(4096, seed)).unwrap();
        Some(Piece::whole(page))
    };
    let (mut one, mut several) = ([lend(1)], [lend(2), lend(3)]);
    let first = queue.submit_write_from(800, &mut one).unwrap();
    let second = queue.submit_write_from(900, &mut several).unwrap();
    queue.publish().unwrap();
    run(&machine);
    assert_eq!(queue.poll(), Ok(2));
    assert_eq!(queue.take_pages(first, &mut one), Some(Ok(())));
    assert_eq!(queue.take_pages(second, &mut several), Some(Ok(())));
    let read = queue.submit_read_into(800, &mut several[..1]).unwrap();
    queue.publish().unwrap();
    run(&machine);
    assert!(!queue.arm_after(0) || queue.poll() == Ok(1));
    queue.poll().unwrap();
    assert_eq!(queue.take_pages(read, &mut several[..1]), Some(Ok(())));
    let mut bytes = [0; 4096];
    several[0].as_mut().unwrap().page_mut().read_bytes(0, &mut bytes).unwrap();
    assert!(bytes[..] == pattern(4096, 1));
    // Another size is seen by both.
    back.resize(5000);
    run(&machine);
    assert_eq!(disk.service(&mut xs), Ok(State::Connected));
    assert_eq!((disk.capacity(), queue.capacity()), (5000, 5000));
    queue.write(4999, &[1; 512]).unwrap();
    assert_eq!(back.complaints(), [""; 0]);
    drop((one, several));
    disk.put_queue(queue).unwrap();
    disk.close(&mut xs, machine.soon()).unwrap();
    assert_eq!(machine.grants.stats().in_use, 0);
}

/// A backend that goes away without having flushed what nobody asked it to.
fn crash(machine: &Machine, back: &MockBlkback) {
    back.vanish();
    back.power_loss(&Dice::new(1));
    back.come_back();
    run(machine);
}

#[test]
fn a_flush_at_one_queue_covers_what_was_answered_at_all_and_nothing_else() {
    let machine = Machine::new();
    let back = machine.disk(options());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = connect(&machine, &mut xs);
    let take = |disk: &mut BlkFront<'_, _>, flusher: usize, writer: usize| {
        let mut queues = [1, 2].map(|index| Some(disk.take_queue(index).unwrap()));
        let mut on = |place: usize, flush: bool| match place.checked_sub(1) {
            None if flush => disk.flush().unwrap(),
            None => disk.write(0, &pattern(512, 9)).unwrap(),
            Some(queue) => {
                let queue = queues[queue].as_mut().unwrap();
                if flush { queue.flush() } else { queue.write(0, &pattern(512, 9)) }.unwrap();
            }
        };
        on(writer, false);
        on(flusher, true);
        queues.into_iter().flatten().for_each(|queue| disk.put_queue(queue).unwrap());
    };
    for flusher in 0..3 {
        for writer in 0..3 {
            take(&mut disk, flusher, writer);
            crash(&machine, &back);
            disk.reconnect(&mut xs, machine.soon()).unwrap();
            assert_eq!(disk.flush(), Ok(()), "written at {writer}, flushed at {flusher}");
            // Written afterwards, or not answered when the flush was asked for.
            take(&mut disk, flusher, flusher);
            let mut queue = disk.take_queue(3).unwrap();
            queue.write(8, &pattern(512, 7)).unwrap();
            disk.put_queue(queue).unwrap();
            crash(&machine, &back);
            disk.reconnect(&mut xs, machine.soon()).unwrap();
            // It is told once, at whichever queue.
            let mut queue = disk.take_queue(1).unwrap();
            assert_eq!((queue.flush(), disk.flush()), (Err(Error::Lost), Ok(())));
            disk.put_queue(queue).unwrap();
        }
    }
    let mut queue = disk.take_queue(1).unwrap();
    back.stall(true);
    let write = queue.submit_write(16, &pattern(512, 3)).unwrap();
    let flush = disk.submit_flush().unwrap();
    queue.publish().unwrap();
    disk.publish().unwrap();
    back.stall(false);
    disk.wait(flush, &mut []).unwrap();
    queue.wait(write, &mut []).unwrap();
    disk.put_queue(queue).unwrap();
    crash(&machine, &back);
    disk.reconnect(&mut xs, machine.soon()).unwrap();
    let mut queue = disk.take_queue(1).unwrap();
    // One that nobody takes the word of tells the next.
    let told = queue.submit_flush().unwrap();
    queue.forget(told);
    assert_eq!((disk.flush(), queue.flush()), (Err(Error::Lost), Ok(())));
    // A queue that goes without a word, with a write under way.
    disk.flush().unwrap();
    back.stall(true);
    let _ = queue.submit_write(24, &pattern(512, 4)).unwrap();
    queue.publish().unwrap();
    drop(queue);
    assert_eq!(disk.take_queue(1).unwrap_err(), Error::Queue(1), "it is gone");
    back.stall(false);
    crash(&machine, &back);
    disk.reconnect(&mut xs, machine.soon()).unwrap();
    assert_eq!((disk.queues(), disk.flush(), disk.flush()), (4, Err(Error::Lost), Ok(())));
    assert!(back.served().iter().any(|request| request.operation == OP_FLUSH));
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("a waker");
    }
}

#[test]
fn a_waker_that_panics_at_one_queue_keeps_no_other_from_hearing_of_the_end() {
    let machine = Machine::new();
    let back = machine.disk(options());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = connect(&machine, &mut xs);
    let mut queues = [1, 2].map(|index| disk.take_queue(index).unwrap());
    back.stall(true);
    let woken: Arc<Woken> = Arc::default();
    for (queue, waker) in queues.iter_mut().zip([Waker::from(Arc::new(Panics)), woken.clone().into()]) {
        let ticket = queue.submit_write(0, &pattern(512, 1)).unwrap();
        queue.publish().unwrap();
        assert_eq!(queue.poll_take(ticket, &mut [], &mut Context::from_waker(&waker)), Poll::Pending);
    }
    back.drop_out();
    run(&machine);
    let before = woken.0.load(SeqCst);
    assert!(catch_unwind(AssertUnwindSafe(|| disk.service(&mut xs))).is_err());
    assert!(woken.0.load(SeqCst) > before);
}

#[test]
fn a_queue_ends_with_its_disk_and_its_tasks_are_woken() {
    for way in 0..4 {
        let machine = Machine::new();
        let back = machine.disk(options());
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let mut disk = connect(&machine, &mut xs);
        let mut queues = [1, 2].map(|index| disk.take_queue(index).unwrap());
        back.stall(true);
        let woken: Arc<Woken> = Arc::default();
        let waker: Waker = woken.clone().into();
        let mut cx = Context::from_waker(&waker);
        let tickets = queues.each_mut().map(|queue| {
            let tickets = [0, 8].map(|lba| queue.submit_write(lba, &pattern(512, 1)).unwrap());
            queue.publish().unwrap();
            assert_eq!(queue.poll_take(tickets[0], &mut [], &mut cx), Poll::Pending);
            tickets
        });
        assert_eq!(disk.reconnect(&mut xs, machine.soon()), Err(Error::QueuesTaken));
        assert_eq!(disk.state(), State::Connected, "nothing was done");
        let before = woken.0.load(SeqCst);
        let mut disk = Some(disk);
        match way {
            0 => back.detach(),
            1 => back.drop_out(),
            2 => back.vanish(),
            _ => drop(disk.take()),
        }
        // The node says so at once; the guest hears of it when it takes xenstore's events.
        run(&machine);
        let closing = way == 0;
        if let Some(disk) = &mut disk {
            let state = if closing { State::Closing } else { State::Closed };
            assert_eq!(disk.service(&mut xs), Ok(state));
        }
        assert!(woken.0.load(SeqCst) >= before + 2, "{way}");
        let [mut first, mut second] = queues;
        assert_eq!(first.state(), if closing { State::Closing } else { State::Closed });
        // Nothing new; what is under way may still be answered, or is over.
        assert_eq!(first.submit_read(0, 1), Err(Error::Closed));
        assert_eq!(first.write(0, &[0; 512]), Err(Error::Closed));
        assert_eq!(first.flush(), Err(Error::Closed));
        if closing {
            back.stall(false);
            run(&machine);
            assert_eq!(first.poll(), Ok(2));
            for ticket in tickets[0] {
                assert_eq!(first.poll_take(ticket, &mut [], &mut cx), Poll::Ready(Ok(())));
            }
        } else {
            assert_eq!(first.arm(), Err(Error::Closed));
            for ticket in tickets[0] {
                assert_eq!(first.poll_take(ticket, &mut [], &mut cx), Poll::Ready(Err(Error::Closed)));
            }
        }
        let Some(mut disk) = disk else { continue };
        if closing {
            // It is at work still, so only what is idle comes back.
            disk.put_queue(first).unwrap();
            assert_eq!(disk.queues(), 3);
            continue;
        }
        assert_eq!(disk.reconnect(&mut xs, machine.soon()), Err(Error::QueuesTaken));
        back.stall(false);
        disk.put_queue(first).unwrap();
        // Whatever is under way.
        assert_eq!(second.pending(), 2);
        assert_eq!(second.wait(tickets[1][0], &mut []), Err(Error::Closed));
        disk.put_queue(second).unwrap();
        back.vanish();
        back.come_back();
        disk.reconnect(&mut xs, machine.soon()).unwrap();
        assert_eq!((disk.queues(), disk.stats().reissued), (4, 0));
        // Three of four writes were told to be over; of the last nobody was told.
        assert_eq!((disk.flush(), disk.flush()), (Err(Error::Lost), Ok(())));
        let mut queue = disk.take_queue(2).unwrap();
        queue.write(0, &pattern(512, 2)).unwrap();
        assert_eq!(queue.poll_take(tickets[1][0], &mut [], &mut cx), Poll::Ready(Err(Error::StaleTicket)));
        disk.put_queue(queue).unwrap();
        disk.close(&mut xs, machine.soon()).unwrap();
        machine.grants.reclaim();
        assert_eq!(machine.grants.stats().in_use, 0);
        assert_eq!(back.complaints(), [""; 0]);
    }
}

#[test]
fn a_disk_that_is_closed_lets_its_queues_finish() {
    let machine = Machine::new();
    let back = machine.disk(options());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = connect(&machine, &mut xs);
    let mut queue = disk.take_queue(1).unwrap();
    let write = queue.submit_write(5, &pattern(512, 1)).unwrap();
    queue.publish().unwrap();
    disk.close(&mut xs, machine.soon()).unwrap();
    assert_eq!(queue.state(), State::Closed);
    assert_eq!(queue.poll(), Ok(1), "the backend answered before it let go");
    assert_eq!(queue.take(write, &mut []), Some(Ok(())));
    assert!(back.disk()[5 * 512..][..512] == pattern(512, 1));
    assert_eq!(queue.submit_read(0, 1), Err(Error::Closed));
    // Another disk does not take it for its own, and one that is at work keeps its queues.
    let mut xs = xs;
    let mut disk = connect(&machine, &mut xs);
    disk.put_queue(queue).unwrap();
    assert_eq!(disk.queues(), 4);
    disk.close(&mut xs, machine.soon()).unwrap();
    assert_eq!(machine.grants.stats().in_use, 0);
}

#[test]
fn tasks_at_a_disk_and_at_its_queue_leave_nothing_behind() {
    let machine = Machine::new();
    let _back = machine.disk(options());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut left = None;
    for life in 0..4 {
        let mut disk = connect(&machine, &mut xs);
        let mut queue = disk.take_queue(1).unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        let _ = disk.poll_event(&mut cx);
        let _ = queue.poll_event(&mut cx);
        // In any order.
        if life % 2 == 0 {
            drop(queue);
            disk.close(&mut xs, machine.soon()).unwrap();
        } else {
            disk.close(&mut xs, machine.soon()).unwrap();
            drop(queue);
        }
        machine.grants.reclaim();
        assert_eq!(*left.get_or_insert(machine.guest.pages_in_use()), machine.guest.pages_in_use(), "{life}");
    }
}

#[test]
fn a_queue_goes_back_to_its_own_disk_alone() {
    let machine = Machine::new();
    let _backs =
        [51712, 51728].map(|index| MockBlkback::new(&machine.store, &machine.guest, index, options()));
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let config = Config { queues: 2, ..small() };
    let [mut first, mut second] = [51712, 51728].map(|index| {
        BlkFront::connect_with(&mut xs, &machine.events, &machine.grants, index, machine.soon(), config)
            .unwrap()
    });
    let queue = first.take_queue(1).unwrap();
    let rejected = second.put_queue(queue).unwrap_err();
    assert_eq!(Error::from(rejected), Error::Queue(1));
    // That dropped it.
    assert_eq!((first.queues(), second.queues()), (1, 2));
    let queue = second.take_queue(1).unwrap();
    let rejected = first.put_queue(queue).unwrap_err();
    second.put_queue(rejected.queue).unwrap();
    assert_eq!(second.queues(), 2);
}

#[test]
fn what_the_backend_breaks_at_a_queue_breaks_the_disk_when_it_is_put_back() {
    let machine = Machine::new();
    let back = machine.disk(options());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = connect(&machine, &mut xs);
    let (mut queue, mut other) = (disk.take_queue(1).unwrap(), disk.take_queue(2).unwrap());
    for fault in [Fault::Status(-1), Fault::Status(-2), Fault::Status(77)] {
        back.fault(fault);
        assert!(queue.write(0, &[1; 512]).is_err());
        assert_eq!(queue.state(), State::Connected, "{fault:?}");
    }
    back.fault(Fault::Id(999));
    let ticket = queue.submit_write(0, &[1; 512]).unwrap();
    let Err(Error::Broken(violation)) = queue.wait(ticket, &mut []) else { panic!("it is believed") };
    assert_eq!(queue.state(), State::Broken(violation));
    assert_eq!(
        (queue.poll(), queue.read(0, &mut [0; 512])),
        (Err(Error::Broken(violation)), Err(Error::Broken(violation)))
    );
    assert_eq!((disk.state(), other.state()), (State::Connected, State::Connected));
    other.write(8, &[1; 512]).unwrap();
    disk.put_queue(queue).unwrap();
    assert_eq!((disk.state(), other.state()), (State::Broken(violation), State::Closed));
    assert_eq!(disk.read(0, &mut [0; 512]), Err(Error::Broken(violation)));
    assert_eq!(other.read(0, &mut [0; 512]), Err(Error::Closed));
    disk.put_queue(other).unwrap();
    assert_eq!(disk.reconnect(&mut xs, machine.soon()), Err(Error::Broken(violation)));
    let _ = disk.close(&mut xs, machine.soon());
    machine.grants.reclaim();
    assert_eq!(machine.grants.stats().in_use, 0);
}

#[test]
fn a_disk_is_not_resumed_without_its_queues_and_reconnected_with_them() {
    let machine = Machine::new();
    let back = machine.disk(options());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = connect(&machine, &mut xs);
    let mut queue = disk.take_queue(1).unwrap();
    machine.xen.set_toolstack(|domain| {
        domain.xen().migrate(domain);
        Resumed::InNewDomain
    });
    back.set_next(options());
    back.stall(true);
    let own = disk.submit_write(0, &pattern(512, 1)).unwrap();
    let theirs = queue.submit_write(8, &pattern(512, 2)).unwrap();
    disk.publish().unwrap();
    queue.publish().unwrap();
    back.stall(false);
    assert_eq!(machine.suspend(&mut xs, &mut disk), (Resumed::InNewDomain, 1));
    assert_eq!((disk.state(), queue.state()), (State::Closed, State::Closed));
    assert_eq!(queue.write(0, &[0; 512]), Err(Error::Closed));
    assert_eq!(queue.take(theirs, &mut []), Some(Err(Error::Closed)));
    assert_eq!(disk.reconnect(&mut xs, machine.soon()), Err(Error::QueuesTaken));
    disk.put_queue(queue).unwrap();
    disk.reconnect(&mut xs, machine.soon()).unwrap();
    assert_eq!(disk.wait(own, &mut []), Ok(()), "it is issued again");
    assert!(back.disk()[..512] == pattern(512, 1));
    // With all of them it goes on as ever.
    let mut queue = disk.take_queue(1).unwrap();
    queue.write(8, &pattern(512, 3)).unwrap();
    disk.put_queue(queue).unwrap();
    back.set_next(options());
    assert_eq!(machine.suspend(&mut xs, &mut disk), (Resumed::InNewDomain, 0));
    let mut queue = disk.take_queue(3).unwrap();
    let mut out = [0; 512];
    queue.read(8, &mut out).unwrap();
    assert!(out[..] == pattern(512, 3));
    disk.put_queue(queue).unwrap();
    disk.close(&mut xs, machine.soon()).unwrap();
    assert_eq!((machine.grants.stats().in_use, back.complaints()), (0, vec![]));
}

#[test]
fn what_a_queue_did_not_take_before_a_resume_is_told_only_if_it_came_along() {
    for persistent in [true, false] {
        let machine = Machine::new();
        let options = Options { persistent, ..options() };
        let back = machine.disk(options);
        let mut xs = Xenstore::new(&machine.events).unwrap();
        let mut disk = connect(&machine, &mut xs);
        disk.write(8, &pattern(512, 5)).unwrap();
        let mut queue = disk.take_queue(1).unwrap();
        let answered = queue.submit_read(8, 1).unwrap();
        let written = queue.submit_write(16, &pattern(512, 6)).unwrap();
        queue.publish().unwrap();
        while queue.pending() > 0 {
            machine.xen.run_until_idle(100);
            queue.poll().unwrap();
        }
        // Answered, and not looked at in the ring.
        let unseen = queue.submit_read(8, 1).unwrap();
        queue.publish().unwrap();
        machine.xen.run_until_idle(100);
        machine.xen.set_toolstack(|domain| {
            domain.xen().migrate(domain);
            Resumed::InNewDomain
        });
        back.set_next(options);
        assert_eq!(machine.suspend(&mut xs, &mut disk), (Resumed::InNewDomain, 1));
        assert_eq!((queue.poll(), queue.state()), (Ok(0), State::Closed));
        let mut out = [0; 512];
        let came_along = if persistent { Err(Error::Closed) } else { Ok(()) };
        assert_eq!(queue.take(answered, &mut out), Some(came_along));
        assert_eq!(out[..] == pattern(512, 5), !persistent);
        assert_eq!(queue.take(written, &mut []), Some(Ok(())));
        assert_eq!(queue.take(unseen, &mut out), Some(Err(Error::Closed)));
        disk.put_queue(queue).unwrap();
        disk.reconnect(&mut xs, machine.soon()).unwrap();
        disk.close(&mut xs, machine.soon()).unwrap();
        assert_eq!((machine.grants.stats().in_use, back.complaints()), (0, vec![]));
    }
}

#[test]
fn a_queue_is_not_disturbed_by_a_pause_of_the_domain() {
    let machine = Machine::new();
    let back = machine.disk(options());
    let mut xs = Xenstore::new(&machine.events).unwrap();
    let mut disk = connect(&machine, &mut xs);
    let mut queue = disk.take_queue(1).unwrap();
    machine.xen.set_toolstack(|_| Resumed::InPlace);
    let write = queue.submit_write(8, &pattern(512, 2)).unwrap();
    queue.publish().unwrap();
    let woken: Arc<Woken> = Arc::default();
    let waker: Waker = woken.clone().into();
    assert_eq!(queue.poll_take(write, &mut [], &mut Context::from_waker(&waker)), Poll::Pending);
    let notifications = machine.events.stats().notifications;
    assert_eq!(machine.suspend(&mut xs, &mut disk), (Resumed::InPlace, 0));
    assert!(woken.0.load(SeqCst) > 0, "it looks whether it has missed something");
    queue.wait(write, &mut []).unwrap();
    // Each of the disk's three own rings, and that of the queue, is told to look.
    assert!(machine.events.stats().notifications >= notifications + 4);
    disk.put_queue(queue).unwrap();
    assert_eq!(disk.queues(), 4);
    drop(back);
}
