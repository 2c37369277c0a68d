//! Publishing against going to sleep, on loom's model of memory: no wake-up is lost.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p xen-ring --release --test loom`
#![cfg(loom)]

use std::convert::Infallible;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use loom::thread;
use xen_ring::word::{Word, arm, publish};

/// A word of the ring's header. `FENCED`: whether the full fence is one.
struct Shared<const FENCED: bool>(AtomicU32);

impl<const FENCED: bool> Word for Shared<FENCED> {
    type Error = Infallible;

    fn load(&self) -> Result<u32, Infallible> {
        Ok(self.0.load(Ordering::Acquire))
    }

    fn store(&self, value: u32) -> Result<(), Infallible> {
        self.0.store(value, Ordering::Release);
        Ok(())
    }

    fn full_fence() {
        if FENCED {
            fence(Ordering::SeqCst);
        }
    }
}

/// One direction of a ring, with as many slots as the tests need. The slots are accessed relaxed: only what the indices
/// order is ordered.
struct Ring<const FENCED: bool> {
    producer: Shared<FENCED>,
    event: Shared<FENCED>,
    slots: [AtomicU32; 4],
    /// The event channel: set by a notification, taken by who wakes up.
    pending: AtomicBool,
}

impl<const FENCED: bool> Ring<FENCED> {
    /// As `Front::init_at` makes it: the first entry is to be notified.
    fn new(start: u32) -> Arc<Self> {
        Arc::new(Self {
            producer: Shared(AtomicU32::new(start)),
            event: Shared(AtomicU32::new(start.wrapping_add(1))),
            slots: std::array::from_fn(|_| AtomicU32::new(0)),
            pending: AtomicBool::new(false),
        })
    }

    fn slot(&self, index: u32) -> &AtomicU32 {
        &self.slots[(index % 4) as usize]
    }

    /// Writes entries and shows them, notifying if that was asked for.
    fn send(&self, old: u32, count: u32) -> u32 {
        for i in 0..count {
            let index = old.wrapping_add(i);
            self.slot(index).store(!index, Ordering::Relaxed);
        }
        let new = old.wrapping_add(count);
        let Ok(notify) = publish(&self.producer, &self.event, old, new);
        if notify {
            self.pending.store(true, Ordering::Release);
        }
        new
    }
}

/// Takes what is there up to `until`, and checks that it was written before it was shown.
fn take<const FENCED: bool>(ring: &Ring<FENCED>, taken: &mut u32, until: u32) {
    while *taken != until {
        assert_eq!(
            ring.slot(*taken).load(Ordering::Relaxed),
            !*taken,
            "an entry was shown before it was written"
        );
        *taken = taken.wrapping_add(1);
    }
}

/// Takes entries until there are none and the next one will be notified: the state that a consumer sleeps in.
fn drain<const FENCED: bool>(ring: &Ring<FENCED>, taken: &mut u32) {
    loop {
        let Ok(index) = arm(&ring.event, &ring.producer, *taken);
        if index == *taken {
            return;
        }
        take(ring, taken, index);
    }
}

fn check(f: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(f);
}

/// The consumer is woken for the first batch and goes to sleep again while the producer publishes the others. When
/// both are done, either all was taken or the consumer has been notified again, and then finds the rest.
fn sleep_against<const FENCED: bool>(start: u32, batches: &'static [u32]) {
    check(move || {
        let ring = Ring::<FENCED>::new(start);
        let first = ring.send(start, batches[0]);
        let theirs = ring.clone();
        let producer =
            thread::spawn(move || batches[1..].iter().fold(first, |index, &count| theirs.send(index, count)));
        assert!(ring.pending.swap(false, Ordering::AcqRel), "the first is notified");
        let mut taken = start;
        drain(&ring, &mut taken);
        let end = producer.join().unwrap();
        while taken != end {
            assert!(ring.pending.swap(false, Ordering::AcqRel), "a wake-up was lost");
            drain(&ring, &mut taken);
        }
    });
}

#[test]
fn a_consumer_that_goes_to_sleep_is_woken() {
    sleep_against::<true>(0, &[1, 1]);
}

#[test]
fn also_for_one_batch_of_many_and_for_many_batches() {
    sleep_against::<true>(0, &[1, 3]);
    sleep_against::<true>(0, &[1, 1, 1]);
    sleep_against::<true>(0, &[2, 1, 1]);
}

#[test]
fn also_where_the_numbers_end() {
    sleep_against::<true>(u32::MAX, &[1, 1]);
    sleep_against::<true>(u32::MAX - 1, &[1, 3]);
    sleep_against::<true>(u32::MAX - 1, &[2, 1, 1]);
}

#[test]
#[should_panic(expected = "a wake-up was lost")]
fn without_the_fences_it_is_not() {
    sleep_against::<false>(0, &[1, 1]);
}

/// The fence of one side alone is missing.
struct Half<const FENCED: bool>(Arc<Ring<true>>);

/// A view of a word with its own idea of a fence.
struct View<'a, const FENCED: bool>(&'a Shared<true>);

impl<const FENCED: bool> Word for View<'_, FENCED> {
    type Error = Infallible;

    fn load(&self) -> Result<u32, Infallible> {
        self.0.load()
    }

    fn store(&self, value: u32) -> Result<(), Infallible> {
        self.0.store(value)
    }

    fn full_fence() {
        if FENCED {
            fence(Ordering::SeqCst);
        }
    }
}

impl<const FENCED: bool> Half<FENCED> {
    fn publish(&self, old: u32, new: u32) -> bool {
        let (producer, event) = (View::<FENCED>(&self.0.producer), View::<FENCED>(&self.0.event));
        let Ok(notify) = publish(&producer, &event, old, new);
        notify
    }

    fn arm(&self, taken: u32) -> u32 {
        let (producer, event) = (View::<FENCED>(&self.0.producer), View::<FENCED>(&self.0.event));
        let Ok(index) = arm(&event, &producer, taken);
        index
    }
}

/// The consumer has taken the first entry, of which it was notified, and arms while the second is published: either
/// the producer sees that it is asked to notify, or the consumer sees the entry.
fn one_sees_the_other<const PUBLISH: bool, const ARM: bool>() {
    check(|| {
        let ring = Ring::<true>::new(0);
        ring.send(0, 1);
        let theirs = Half::<PUBLISH>(ring.clone());
        let producer = thread::spawn(move || theirs.publish(1, 2));
        let seen = Half::<ARM>(ring).arm(1);
        let notified = producer.join().unwrap();
        assert!(notified || seen == 2, "a wake-up was lost");
    });
}

#[test]
fn the_producer_sees_the_event_or_the_consumer_the_entry() {
    one_sees_the_other::<true, true>();
}

#[test]
#[should_panic(expected = "a wake-up was lost")]
fn not_without_the_producers_fence() {
    one_sees_the_other::<false, true>();
}

#[test]
#[should_panic(expected = "a wake-up was lost")]
fn not_without_the_consumers_fence() {
    one_sees_the_other::<true, false>();
}

/// Both directions at once, as a front and a back use them: neither sleeps for ever.
#[test]
fn a_request_and_its_response_wake_both_sides() {
    check(|| {
        let (requests, responses) = (Ring::<true>::new(0), Ring::<true>::new(0));
        let (theirs, answers) = (requests.clone(), responses.clone());
        let back = thread::spawn(move || {
            let mut taken = 0;
            drain(&theirs, &mut taken);
            (taken, answers.send(0, taken))
        });
        let sent = requests.send(0, 1);
        let mut taken = 0;
        drain(&responses, &mut taken);
        let (mut handled, answered) = back.join().unwrap();
        if handled != sent {
            assert!(requests.pending.swap(false, Ordering::AcqRel), "a wake-up was lost");
            drain(&requests, &mut handled);
            assert_eq!(handled, sent);
            responses.send(answered, handled.wrapping_sub(answered));
        }
        if taken != sent {
            assert!(responses.pending.swap(false, Ordering::AcqRel), "a wake-up was lost");
            drain(&responses, &mut taken);
        }
        assert_eq!(taken, sent);
    });
}
