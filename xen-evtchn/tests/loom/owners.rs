//! A port whose owner closes it while another vCPU delivers to it, and who gets its number next.

use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use loom::sync::{Arc, Mutex};
use loom::thread;
use xen_evtchn::settle::settle;
use xen_evtchn::state::{self, FIRED, FREE, HELD, LATE, MISSED, OWNED, PLACES, THROTTLED, UNFINISHED, Word};
use xen_evtchn::waiting::{Left, Places, leave};

/// How an event is given to the owner.
type Deliver = fn(&Port) -> u64;

/// One port: its word, and its bits in the shared page.
struct Port {
    word: AtomicU64,
    pending: AtomicBool,
    mask: AtomicBool,
    /// Events that Xen raised again when the port was unmasked.
    upcall: AtomicBool,
    /// The number of the task that waits in each place, and how often each task was woken.
    wakers: [Mutex<Option<usize>>; PLACES],
    turn: AtomicUsize,
    woken: [AtomicUsize; PLACES + 1],
}

struct Model<'a>(&'a AtomicU64);

impl Word for Model<'_> {
    fn load(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
    fn replace(&self, old: u64, new: u64) -> Result<(), u64> {
        self.0.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).map(drop)
    }
    fn set(&self, bits: u64) -> u64 {
        self.0.fetch_or(bits, Ordering::AcqRel)
    }
    fn clear(&self, bits: u64) -> u64 {
        self.0.fetch_and(!bits, Ordering::AcqRel)
    }
}

impl Places for Port {
    type Waker = usize;

    fn take(&self, place: usize) -> Option<usize> {
        self.wakers[place].lock().unwrap().take()
    }
    fn put(&self, place: usize, task: &usize) {
        *self.wakers[place].lock().unwrap() = Some(*task);
    }
    fn same(one: &usize, other: &usize) -> bool {
        one == other
    }
    fn turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed) % PLACES
    }
}

impl Port {
    /// A port whose owner has an event coming: Xen has set it pending, and nothing masks it.
    fn owned(late: u64) -> Arc<Self> {
        let port = Self {
            word: AtomicU64::new(FREE),
            pending: AtomicBool::new(true),
            mask: AtomicBool::new(false),
            upcall: AtomicBool::new(false),
            wakers: core::array::from_fn(|_| Mutex::new(None)),
            turn: AtomicUsize::new(0),
            woken: core::array::from_fn(|_| AtomicUsize::new(0)),
        };
        assert!(state::claim(&port.word(), true));
        port.word().set(late);
        assert!(!state::open(&port.word()));
        Arc::new(port)
    }

    fn word(&self) -> Model<'_> {
        Model(&self.word)
    }

    fn settle(&self) {
        let is_held = || {
            fence(Ordering::SeqCst);
            self.word().load() & HELD != 0
        };
        let mask = || self.mask.store(true, Ordering::Release);
        settle(is_held, mask, || {
            self.mask.store(false, Ordering::Release);
            fence(Ordering::SeqCst);
            if self.pending.load(Ordering::Acquire) {
                self.upcall.store(true, Ordering::Release);
            }
        });
    }

    /// The interrupt, which has found the port unmasked a moment ago. True: it had an event.
    fn dispatch(&self, deliver: Deliver) -> bool {
        let had = self.pending.swap(false, Ordering::AcqRel);
        if had {
            let word = deliver(self);
            if word & (FREE | LATE) != 0 {
                self.settle();
            }
            for place in 0..state::places_left(word) {
                self.take(place).into_iter().for_each(|task| self.wake(task));
            }
        }
        had
    }

    fn wake(&self, task: usize) {
        self.woken[task].fetch_add(1, Ordering::AcqRel);
    }

    fn is_woken(&self, task: usize) -> bool {
        self.woken[task].load(Ordering::Acquire) > 0
    }

    /// A task that has found no event leaves its waker and looks again, unless it is one that does not. Returns whether it
    /// took the event.
    fn wait(&self, task: usize, looks_again: bool) -> bool {
        match leave(&self.word(), self, &task) {
            Left::Beside => {}
            Left::InPlaceOf(other) => self.wake(other),
            Left::Nowhere => self.wake(task),
        }
        looks_again && self.word().clear(FIRED) & FIRED != 0
    }

    /// The owner closes the port, and Xen gives the number out again, to one who does not end events late.
    fn close_and_open(&self) {
        let life = state::leave(&self.word(), true);
        self.settle();
        state::forget(&self.word());
        // Xen: the next owner does not inherit an event.
        self.pending.store(false, Ordering::Release);
        self.open_anew();
        // The one before comes to its end only now.
        state::vacate(&self.word(), life);
    }

    fn open_anew(&self) {
        assert!(state::claim(&self.word(), true), "Xen gave the number out");
        if state::open(&self.word()) {
            self.word().set(FIRED);
        }
        self.settle();
    }
}

/// Whether there is an owner who ends events late, and that he has one to end, is one access.
fn at_once(port: &Port) -> u64 {
    state::deliver(&port.word())
}

/// Looks how the owner wants events first, then writes down that he has one to end.
fn looks_first(port: &Port) -> u64 {
    let word = port.word().load();
    if word & LATE != 0 {
        port.word().set(UNFINISHED);
    }
    port.word().set(FIRED);
    word
}

fn the_next_owner_hears_of_everything(deliver: Deliver) {
    loom::model(move || {
        let port = Port::owned(LATE);
        let other = port.clone();
        let interrupt = thread::spawn(move || other.dispatch(deliver));
        port.close_and_open();
        interrupt.join().unwrap();
        let word = port.word().load();
        assert_eq!(word & (HELD | THROTTLED), 0, "the owner who ends nothing is held");
        assert!(!port.mask.load(Ordering::Acquire), "the next owner is masked for good");
        assert_ne!(word & OWNED, 0, "the end of one life ended the next");
    });
}

#[test]
fn who_gets_the_number_while_an_event_is_delivered_is_not_masked() {
    the_next_owner_hears_of_everything(at_once);
}

#[test]
#[should_panic(expected = "the owner who ends nothing is held")]
fn with_two_accesses_he_is_masked_for_good() {
    the_next_owner_hears_of_everything(looks_first);
}

/// An owner who no longer wants to end events, while one arrives.
fn late_end_is_switched_off(deliver: Deliver) {
    loom::model(move || {
        let port = Port::owned(LATE);
        let other = port.clone();
        let interrupt = thread::spawn(move || other.dispatch(deliver));
        port.word().clear(LATE);
        if port.word().clear(UNFINISHED | THROTTLED) & UNFINISHED != 0 {
            port.settle();
        }
        interrupt.join().unwrap();
        assert!(!port.mask.load(Ordering::Acquire), "masked, and nobody ends it");
        assert_ne!(port.word().load() & FIRED, 0);
    });
}

#[test]
fn an_owner_who_switches_late_end_off_is_not_masked() {
    late_end_is_switched_off(at_once);
}

#[test]
#[should_panic(expected = "masked, and nobody ends it")]
fn with_two_accesses_it_stays_masked() {
    late_end_is_switched_off(looks_first);
}

/// The first event of a new owner, taken by an interrupt that finds no owner in the record, yet.
#[test]
fn an_event_before_the_owner_is_ready_is_not_lost() {
    loom::model(|| {
        let port = Port::owned(0);
        port.pending.store(false, Ordering::Release);
        let life = state::leave(&port.word(), false);
        state::forget(&port.word());
        state::vacate(&port.word(), life);
        // Bound anew: Xen has made an event for what came before, and an interrupt has seen the port unmasked before that.
        port.pending.store(true, Ordering::Release);
        let other = port.clone();
        let interrupt = thread::spawn(move || other.dispatch(at_once));
        port.open_anew();
        interrupt.join().unwrap();
        let word = port.word().load();
        let raised = port.pending.load(Ordering::Acquire) && port.upcall.load(Ordering::Acquire);
        assert!(word & FIRED != 0 || raised, "the event is lost");
        assert_eq!(word & (MISSED | HELD), 0);
        assert!(!port.mask.load(Ordering::Acquire));
    });
}

/// Of the clock and the owner, one ends an event whose end waits; each end is counted once.
#[test]
fn the_end_of_a_pause_and_the_owner_do_not_both_end_it() {
    loom::model(|| {
        let port = Port::owned(LATE);
        port.dispatch(at_once);
        assert!(state::throttle(&port.word()) && !state::throttle(&port.word()));
        let other = port.clone();
        let clock = thread::spawn(move || {
            let ended = state::unthrottle(&other.word());
            if ended {
                other.settle();
            }
            ended
        });
        let word = port.word().clear(UNFINISHED | THROTTLED);
        if word & UNFINISHED != 0 {
            port.settle();
        }
        let by_clock = clock.join().unwrap();
        assert!(by_clock != (word & THROTTLED != 0), "ended twice, or by nobody");
        assert!(!port.mask.load(Ordering::Acquire));
    });
}

/// So many tasks sleep already. Others go to sleep while an event arrives.
fn tasks_go_to_sleep(asleep: usize, others: usize, looks_again: bool) {
    let mut model = loom::model::Builder::new();
    // Of three threads all orders are too many.
    model.preemption_bound = (others > 1).then_some(3);
    model.check(move || {
        let port = Port::owned(0);
        (0..asleep).for_each(|task| assert!(!port.wait(task, true)));
        let other = port.clone();
        let interrupt = thread::spawn(move || other.dispatch(at_once));
        let waiters: Vec<_> = (asleep + 1..asleep + others)
            .map(|task| {
                let port = port.clone();
                thread::spawn(move || port.wait(task, looks_again))
            })
            .collect();
        let mut came = port.wait(asleep, looks_again);
        interrupt.join().unwrap();
        for waiter in waiters {
            came |= waiter.join().unwrap();
        }
        // Who takes the event sees to what it is about. If nobody has, all look again.
        let all_woken = (0..asleep + others).all(|task| port.is_woken(task));
        assert!(came || all_woken, "it sleeps over an event");
    });
}

#[test]
fn a_task_that_leaves_its_waker_and_looks_again_is_woken() {
    tasks_go_to_sleep(0, 1, true);
}

#[test]
#[should_panic(expected = "sleeps over an event")]
fn one_that_does_not_look_again_may_sleep_over_it() {
    tasks_go_to_sleep(0, 1, false);
}

#[test]
fn of_two_that_leave_their_wakers_at_once_each_is_woken() {
    tasks_go_to_sleep(0, 2, true);
}

#[test]
fn whoever_leaves_its_waker_beside_those_of_others_takes_the_event_from_none() {
    tasks_go_to_sleep(1, 1, true);
    tasks_go_to_sleep(PLACES - 1, 1, true);
}

#[test]
fn whose_place_is_taken_is_woken() {
    tasks_go_to_sleep(PLACES, 1, true);
}

#[test]
#[should_panic(expected = "sleeps over an event")]
fn whose_waker_is_out_of_its_place_may_sleep_over_what_nobody_looks_for() {
    tasks_go_to_sleep(1, 1, false);
}
