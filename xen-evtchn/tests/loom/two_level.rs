//! The two-level ABI, and the masks of either.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use loom::thread;
use xen_evtchn::settle::settle;
use xen_evtchn::two_level::{Board, scan, unmask};

/// One word of ports and one vCPU. `FENCED`: whether the guest's full fence is one.
struct Shared<const FENCED: bool> {
    pending: AtomicU64,
    mask: AtomicU64,
    selector: AtomicU64,
    upcall: AtomicU64,
    /// What the peer shares with the guest: how much work there is.
    work: AtomicUsize,
    seen: AtomicUsize,
}

const BIT: u64 = 1 << 5;

impl<const FENCED: bool> Shared<FENCED> {
    fn new(mask: u64) -> Arc<Self> {
        Arc::new(Self {
            pending: AtomicU64::new(0),
            mask: AtomicU64::new(mask),
            selector: AtomicU64::new(0),
            upcall: AtomicU64::new(0),
            work: AtomicUsize::new(0),
            seen: AtomicUsize::new(0),
        })
    }

    /// The peer produces something, then Xen sets the event pending. Xen's bit operations are full barriers.
    fn send(&self) {
        self.work.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.pending.fetch_or(BIT, Ordering::AcqRel) & BIT != 0 {
            return;
        }
        fence(Ordering::SeqCst);
        if self.mask.load(Ordering::Acquire) & BIT == 0 {
            self.raise();
        }
    }

    fn raise(&self) {
        if self.selector.fetch_or(1, Ordering::AcqRel) & 1 == 0 {
            fence(Ordering::SeqCst);
            self.upcall.store(1, Ordering::Release);
        }
    }

    /// `EVTCHNOP_unmask`: looks for an event only if it clears the mask bit itself.
    fn refire(&self) -> bool {
        if self.mask.fetch_and(!BIT, Ordering::AcqRel) & BIT != 0 {
            fence(Ordering::SeqCst);
            if self.pending.load(Ordering::Acquire) & BIT != 0 {
                self.raise();
            }
        }
        true
    }

    /// The interrupt: the port's owner looks at what the peer shares.
    fn dispatch(&self) {
        scan(self, |port| {
            assert_eq!(port, 5);
            self.seen.store(self.work.load(Ordering::Acquire), Ordering::Release);
        });
    }

    fn unmask(&self) {
        assert!(unmask(self, 0, BIT, || self.refire()));
    }

    /// Interrupts until Xen asks for none; then everything must have been seen.
    fn settle(&self) {
        while self.upcall.load(Ordering::Acquire) != 0 {
            self.dispatch();
        }
        assert_eq!(self.seen.load(Ordering::Acquire), self.work.load(Ordering::Acquire), "an event was lost");
        assert_eq!(self.pending.load(Ordering::Acquire), 0);
        assert_eq!(self.mask.load(Ordering::Acquire), 0);
    }
}

impl<const FENCED: bool> Board for Shared<FENCED> {
    fn take_upcall(&self) -> bool {
        self.upcall.swap(0, Ordering::AcqRel) != 0
    }
    fn take_selector(&self) -> u64 {
        self.selector.swap(0, Ordering::AcqRel)
    }
    fn pending(&self, _: usize) -> u64 {
        self.pending.load(Ordering::Acquire)
    }
    fn mask(&self, _: usize) -> u64 {
        self.mask.load(Ordering::Acquire)
    }
    fn clear_pending(&self, _: usize, bits: u64) -> u64 {
        self.pending.fetch_and(!bits, Ordering::AcqRel)
    }
    fn set_mask(&self, _: usize, bits: u64) {
        self.mask.fetch_or(bits, Ordering::AcqRel);
    }
    fn clear_mask(&self, _: usize, bits: u64) {
        self.mask.fetch_and(!bits, Ordering::AcqRel);
    }
    fn full_fence(&self) {
        if FENCED {
            fence(Ordering::SeqCst);
        }
    }
}

fn check(f: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(f);
}

fn send_while_unmasking<const FENCED: bool>() {
    check(|| {
        let shared = Shared::<FENCED>::new(BIT);
        let peer = shared.clone();
        let xen = thread::spawn(move || peer.send());
        shared.unmask();
        xen.join().unwrap();
        shared.settle();
    });
}

#[test]
fn an_event_during_unmask_is_delivered() {
    send_while_unmasking::<true>();
}

#[test]
#[should_panic(expected = "an event was lost")]
fn without_the_fence_it_is_lost() {
    send_while_unmasking::<false>();
}

#[test]
fn events_during_dispatch_are_seen_by_it_or_the_next() {
    check(|| {
        let shared = Shared::<true>::new(0);
        let peer = shared.clone();
        let xen = thread::spawn(move || {
            peer.send();
            peer.send();
        });
        shared.dispatch();
        xen.join().unwrap();
        shared.settle();
    });
}

#[test]
fn sending_unmasking_and_dispatching_at_once() {
    check(|| {
        let shared = Shared::<true>::new(BIT);
        let (peer, other_vcpu) = (shared.clone(), shared.clone());
        let xen = thread::spawn(move || peer.send());
        let interrupt = thread::spawn(move || other_vcpu.dispatch());
        shared.unmask();
        xen.join().unwrap();
        interrupt.join().unwrap();
        shared.settle();
    });
}

#[test]
fn two_vcpus_that_dispatch_take_an_event_once() {
    check(|| {
        let shared = Shared::<true>::new(0);
        shared.send();
        let (count, other) = (Arc::new(AtomicUsize::new(0)), shared.clone());
        let theirs = count.clone();
        let run = |shared: &Shared<true>, count: &AtomicUsize| {
            scan(shared, |_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
        };
        let interrupt = thread::spawn(move || run(&other, &theirs));
        run(&shared, &count);
        interrupt.join().unwrap();
        assert_eq!(count.load(Ordering::Relaxed), 1);
    });
}

/// Two reasons to mask a port that come and go at once, with a peer that sends: the mask ends as the reasons say.
#[test]
fn reasons_to_mask_that_change_at_once() {
    const OWNER: usize = 1;
    const EVENT: usize = 2;
    check(|| {
        let shared = Shared::<true>::new(BIT);
        let held = Arc::new(AtomicUsize::new(OWNER));
        let set = |shared: &Shared<true>, held: &AtomicUsize| {
            let mask = || {
                shared.mask.fetch_or(BIT, Ordering::AcqRel);
            };
            let is_held = || {
                fence(Ordering::SeqCst);
                held.load(Ordering::Acquire) != 0
            };
            settle(is_held, mask, || shared.unmask());
        };
        let (theirs, reasons) = (shared.clone(), held.clone());
        let interrupt = thread::spawn(move || {
            reasons.fetch_or(EVENT, Ordering::AcqRel);
            set(&theirs, &reasons);
            reasons.fetch_and(!EVENT, Ordering::AcqRel);
            set(&theirs, &reasons);
        });
        held.fetch_and(!OWNER, Ordering::AcqRel);
        set(&shared, &held);
        interrupt.join().unwrap();
        assert_eq!(shared.mask.load(Ordering::Acquire), 0);

        let (theirs, reasons) = (shared.clone(), held.clone());
        let interrupt = thread::spawn(move || {
            reasons.fetch_or(OWNER, Ordering::AcqRel);
            set(&theirs, &reasons);
        });
        held.fetch_or(EVENT, Ordering::AcqRel);
        set(&shared, &held);
        held.fetch_and(!EVENT, Ordering::AcqRel);
        set(&shared, &held);
        interrupt.join().unwrap();
        assert_eq!(shared.mask.load(Ordering::Acquire), BIT, "the owner masked it");
    });
}
