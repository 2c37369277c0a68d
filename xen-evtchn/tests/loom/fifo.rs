//! The FIFO ABI's queues and unmasking.

use loom::sync::atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering, fence};
use loom::sync::{Arc, Mutex};
use loom::thread;
use xen_evtchn::fifo::{BUSY, Board, Gate, LINK, LINKED, MASKED, PENDING, dispatch, unmask};

/// Ports of the model: 1 and 2.
const PORTS: usize = 2;

/// One queue of one vCPU. `ATOMIC`: whether the guest replaces a word in one access.
struct Shared<const ATOMIC: bool> {
    words: [AtomicU32; PORTS + 1],
    ready: AtomicU32,
    head: AtomicU32,
    upcall: AtomicU32,
    gate: AtomicU8,
    /// Xen's: the last port of the queue, behind its lock.
    tail: Mutex<u32>,
    /// What the peers share with the guest: how much work there is.
    work: [AtomicUsize; PORTS + 1],
    seen: [AtomicUsize; PORTS + 1],
}

impl<const ATOMIC: bool> Shared<ATOMIC> {
    fn new(words: u32) -> Arc<Self> {
        Arc::new(Self {
            words: std::array::from_fn(|_| AtomicU32::new(words)),
            ready: AtomicU32::new(0),
            head: AtomicU32::new(0),
            upcall: AtomicU32::new(0),
            gate: AtomicU8::new(0),
            tail: Mutex::new(0),
            work: std::array::from_fn(|_| AtomicUsize::new(0)),
            seen: std::array::from_fn(|_| AtomicUsize::new(0)),
        })
    }

    /// The peer produces something, then Xen sets the event pending.
    fn send(&self, port: u32) {
        self.work[port as usize].fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.set_pending(port);
    }

    fn set_pending(&self, port: u32) {
        let word = &self.words[port as usize];
        let mut tail = self.tail.lock().unwrap();
        word.fetch_or(PENDING, Ordering::AcqRel);
        if word.load(Ordering::Acquire) & (MASKED | LINKED) != 0 {
            return;
        }
        if word.fetch_or(LINKED, Ordering::AcqRel) & LINKED != 0 {
            return;
        }
        if *tail == port {
            *tail = 0;
        }
        let linked = *tail != 0 && self.link(*tail, port);
        if !linked {
            self.head.store(port, Ordering::Release);
        }
        *tail = port;
        drop(tail);
        if !linked && self.ready.fetch_or(1, Ordering::AcqRel) & 1 == 0 {
            self.upcall.store(1, Ordering::Release);
        }
    }

    /// Links to a port that is still in the queue.
    fn link(&self, tail: u32, port: u32) -> bool {
        let word = &self.words[tail as usize];
        let mut old = word.load(Ordering::Acquire);
        for attempt in 0..5 {
            if old & LINKED == 0 {
                word.fetch_and(!BUSY, Ordering::AcqRel);
                return false;
            }
            let new = old & !(BUSY | LINK) | port;
            match word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(now) => old = now,
            }
            if attempt == 0 {
                old = word.fetch_or(BUSY, Ordering::AcqRel) | BUSY;
            }
        }
        panic!("the guest changed a busy word too often");
    }

    /// `EVTCHNOP_unmask`.
    fn refire(&self, port: u32) -> bool {
        if self.words[port as usize].fetch_and(!MASKED, Ordering::AcqRel) & PENDING != 0 {
            self.set_pending(port);
        }
        true
    }

    /// The interrupt: the ports' owners look at what the peers share.
    fn dispatch(&self) {
        dispatch(self, |port| {
            let port = port as usize;
            let work = self.work[port].load(Ordering::Acquire);
            self.seen[port].fetch_max(work, Ordering::AcqRel);
        });
    }

    fn unmask(&self, port: u32) {
        assert!(unmask(self, port, || self.refire(port)));
    }

    /// Interrupts until Xen asks for none; then everything must have been seen.
    fn settle(&self) {
        while self.upcall.load(Ordering::Acquire) != 0 {
            self.dispatch();
        }
        for port in 1..=PORTS {
            let (seen, work) = (&self.seen[port], &self.work[port]);
            assert_eq!(seen.load(Ordering::Acquire), work.load(Ordering::Acquire), "an event was lost");
        }
        for port in 1..=PORTS {
            assert_eq!(self.words[port].load(Ordering::Acquire) & !MASKED, 0);
        }
    }
}

impl<const ATOMIC: bool> Board for Shared<ATOMIC> {
    fn take_upcall(&self) -> bool {
        self.upcall.swap(0, Ordering::AcqRel) != 0
    }
    fn take_ready(&self) -> u32 {
        self.ready.swap(0, Ordering::AcqRel)
    }
    fn head(&self, queue: usize) -> u32 {
        assert_eq!(queue, 0);
        self.head.load(Ordering::Acquire)
    }
    fn word(&self, port: u32) -> Option<u32> {
        Some(self.words.get(port as usize)?.load(Ordering::Acquire))
    }
    fn replace(&self, port: u32, old: u32, new: u32) -> Result<(), u32> {
        let word = &self.words[port as usize];
        if ATOMIC {
            return word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).map(drop);
        }
        let now = word.load(Ordering::Acquire);
        if now != old {
            return Err(now);
        }
        word.store(new, Ordering::Release);
        Ok(())
    }
    fn set(&self, port: u32, bits: u32) -> u32 {
        self.words[port as usize].fetch_or(bits, Ordering::AcqRel)
    }
    fn clear(&self, port: u32, bits: u32) -> u32 {
        self.words[port as usize].fetch_and(!bits, Ordering::AcqRel)
    }
    fn gate(&self, from: Gate, to: Gate) -> bool {
        self.gate.compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

fn check(f: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(f);
}

fn send_two_while_one_is_taken<const ATOMIC: bool>() {
    check(|| {
        let shared = Shared::<ATOMIC>::new(0);
        shared.send(1);
        let peer = shared.clone();
        let xen = thread::spawn(move || peer.send(2));
        shared.dispatch();
        xen.join().unwrap();
        shared.settle();
    });
}

#[test]
fn a_port_linked_to_one_that_is_being_taken_is_found() {
    send_two_while_one_is_taken::<true>();
}

#[test]
#[should_panic(expected = "an event was lost")]
fn taken_out_in_two_accesses_it_is_lost() {
    send_two_while_one_is_taken::<false>();
}

#[test]
fn an_event_during_unmask_is_delivered() {
    check(|| {
        let shared = Shared::<true>::new(MASKED);
        let peer = shared.clone();
        let xen = thread::spawn(move || peer.send(1));
        shared.unmask(1);
        xen.join().unwrap();
        shared.settle();
    });
}

#[test]
fn events_during_dispatch_are_seen_by_it_or_the_next() {
    check(|| {
        let shared = Shared::<true>::new(0);
        let peer = shared.clone();
        let xen = thread::spawn(move || {
            peer.send(1);
            peer.send(2);
            peer.send(1);
        });
        shared.dispatch();
        xen.join().unwrap();
        shared.settle();
    });
}

#[test]
fn sending_unmasking_and_dispatching_at_once() {
    check(|| {
        let shared = Shared::<true>::new(MASKED);
        let (peer, other) = (shared.clone(), shared.clone());
        let xen = thread::spawn(move || peer.send(1));
        let interrupt = thread::spawn(move || other.dispatch());
        shared.unmask(1);
        xen.join().unwrap();
        interrupt.join().unwrap();
        shared.settle();
    });
}

#[test]
fn masking_while_the_port_is_being_linked_keeps_the_event() {
    check(|| {
        let shared = Shared::<true>::new(0);
        shared.send(1);
        let peer = shared.clone();
        let xen = thread::spawn(move || peer.send(2));
        shared.set(1, MASKED);
        shared.dispatch();
        shared.unmask(1);
        xen.join().unwrap();
        shared.settle();
    });
}

#[test]
fn two_that_dispatch_the_same_queue_lose_nothing_and_take_each_once() {
    check(|| {
        let shared = Shared::<true>::new(0);
        shared.send(1);
        let (count, other) = (Arc::new(AtomicUsize::new(0)), shared.clone());
        let theirs = count.clone();
        let run = |shared: &Shared<true>, count: &AtomicUsize| {
            dispatch(shared, |port| {
                count.fetch_add(1, Ordering::Relaxed);
                let port = port as usize;
                shared.seen[port].store(shared.work[port].load(Ordering::Acquire), Ordering::Release);
            });
        };
        let interrupt = thread::spawn(move || run(&other, &theirs));
        run(&shared, &count);
        interrupt.join().unwrap();
        shared.settle();
        assert_eq!(count.load(Ordering::Relaxed), 1);
    });
}
