//! The free list, how grants are taken away, the quarantine's marks and the table's growth, on loom's model of memory.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p xen-gnttab --release --test loom`
#![cfg(loom)]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};
use loom::thread;
use xen_gnttab::entry::revoke;
use xen_gnttab::free_list::{self, Links, pop, pop_chain, push_chain};
use xen_gnttab::growth::{Grows, grow};
use xen_gnttab::marks::{self, Mark};

const OWNED: u32 = u32::MAX;

fn push(links: &impl Links, reference: u32) -> bool {
    push_chain(links, reference, reference)
}

struct Stack<const TAGGED: bool> {
    head: AtomicU64,
    /// Slot 0 is not used, as reference 0 is not.
    next: [AtomicU32; 4],
    /// Written by a reference's owner and by nobody else.
    owner: [loom::cell::UnsafeCell<u32>; 4],
}

// SAFETY: `owner` is accessed by a reference's only owner; that this holds is what loom checks.
unsafe impl<const TAGGED: bool> Sync for Stack<TAGGED> {}

impl<const TAGGED: bool> Stack<TAGGED> {
    fn new() -> Arc<Self> {
        let stack = Self {
            head: AtomicU64::new(0),
            next: core::array::from_fn(|_| AtomicU32::new(OWNED)),
            owner: core::array::from_fn(|_| loom::cell::UnsafeCell::new(0)),
        };
        (1..4).rev().for_each(|reference| assert!(!push(&stack, reference)));
        Arc::new(stack)
    }

    fn take(&self) -> Option<u32> {
        let reference = pop(self)?;
        // loom fails here if another thread is the owner, too, or its use is not ordered before this one.
        self.owner[reference as usize].with_mut(|owner| {
            // SAFETY: see above.
            unsafe { *owner += 1 };
        });
        Some(reference)
    }

    /// Takes two at once.
    fn take_two(&self) -> Option<[u32; 2]> {
        let first = pop_chain(self, 2)?;
        let second = self.next(first)?;
        for reference in [first, second] {
            self.owner[reference as usize].with_mut(|owner| {
                // SAFETY: as in `take`.
                unsafe { *owner += 1 };
            });
        }
        Some([first, second])
    }
}

impl<const TAGGED: bool> Links for Stack<TAGGED> {
    fn head(&self) -> u64 {
        self.head.load(Ordering::Acquire)
    }
    fn exchange_head(&self, old: u64, new: u64) -> Result<(), u64> {
        let untagged = |head: u64| if TAGGED { head } else { head & 0xFFFF_FFFF };
        self.head
            .compare_exchange(untagged(old), untagged(new), Ordering::AcqRel, Ordering::Acquire)
            .map(drop)
    }
    fn next(&self, reference: u32) -> Option<u32> {
        Some(self.next.get(reference as usize)?.load(Ordering::Relaxed))
    }
    fn set_next(&self, reference: u32, next: u32) {
        self.next[reference as usize].store(next, Ordering::Relaxed);
    }
}

fn one_takes_while_another_takes_two_and_gives_one_back<const TAGGED: bool>() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(4);
    model.check(|| {
        let stack = Stack::<TAGGED>::new();
        let other = stack.clone();
        let thread = thread::spawn(move || {
            let (first, second) = (other.take().unwrap(), other.take().unwrap());
            assert!(!push(&*other, first));
            second
        });
        let mine = stack.take().unwrap();
        let theirs = thread.join().unwrap();
        assert_ne!(mine, theirs, "handed out twice");
        let last = stack.take().expect("a reference was lost");
        assert!(last != mine && last != theirs, "handed out twice");
        assert_eq!(stack.take(), None);
    });
}

#[test]
fn every_reference_has_one_owner() {
    one_takes_while_another_takes_two_and_gives_one_back::<true>();
}

#[test]
#[should_panic]
fn without_the_tag_one_is_handed_out_twice() {
    one_takes_while_another_takes_two_and_gives_one_back::<false>();
}

#[test]
fn giving_back_at_once_loses_none() {
    loom::model(|| {
        let stack = Stack::<true>::new();
        let (a, b) = (stack.take().unwrap(), stack.take().unwrap());
        let other = stack.clone();
        let thread = thread::spawn(move || push(&*other, a));
        push(&*stack, b);
        thread.join().unwrap();
        let mut all: Vec<u32> = (0..3).map(|_| stack.take().expect("a reference was lost")).collect();
        all.sort_unstable();
        assert_eq!(all, [1, 2, 3]);
        assert_eq!(stack.take(), None);
    });
}

fn one_takes_two_while_another_takes_and_gives_back<const TAGGED: bool>() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(4);
    model.check(|| {
        let stack = Stack::<TAGGED>::new();
        let other = stack.clone();
        let thread = thread::spawn(move || {
            let (first, second) = (other.take(), other.take());
            // Back in another order, so that the links are others, too.
            first.into_iter().for_each(|reference| assert!(!push(&*other, reference)));
            second
        });
        let mine = stack.take_two();
        let theirs = thread.join().unwrap();
        let mut all: Vec<u32> = mine.into_iter().flatten().chain(theirs).collect();
        all.extend(std::iter::from_fn(|| stack.take()));
        all.sort_unstable();
        assert_eq!(all, [1, 2, 3]);
    });
}

#[test]
fn two_at_once_have_one_owner() {
    one_takes_two_while_another_takes_and_gives_back::<true>();
}

#[test]
#[should_panic]
fn without_the_tag_two_at_once_are_handed_out_twice() {
    one_takes_two_while_another_takes_and_gives_back::<false>();
}

/// Empties the stack, waits, and meanwhile another gives one back. `note` is how the waiter says that it waits.
fn nobody_sleeps_over_a_reference(note: fn(&Stack<true>) -> bool) {
    loom::model(move || {
        let stack = Stack::<true>::new();
        let taken: Vec<u32> = (0..3).map(|_| stack.take().unwrap()).collect();
        let waker = Arc::new(loom::sync::atomic::AtomicBool::new(false));
        let (other, theirs) = (stack.clone(), waker.clone());
        let back = taken[1];
        let thread = thread::spawn(move || push(&*other, back) && theirs.load(Ordering::Relaxed));
        waker.store(true, Ordering::Relaxed);
        let waits = note(&stack);
        let woken = thread.join().unwrap();
        assert!(!waits || woken, "it waits, and nobody wakes it");
    });
}

#[test]
fn who_waits_is_woken() {
    nobody_sleeps_over_a_reference(|stack| free_list::wait(stack));
}

#[test]
#[should_panic]
fn who_only_looks_is_not() {
    nobody_sleeps_over_a_reference(|stack| stack.head() as u32 == 0);
}

/// A page that its owner takes away while Xen lets a peer use it. Loom fails if both have it at once.
struct Shared {
    flags: AtomicU16,
    status: AtomicU16,
    page: loom::cell::UnsafeCell<u32>,
}

// SAFETY: `page` is accessed by whoever has it; that this is one is what loom checks.
unsafe impl Sync for Shared {}

const GRANTED: u16 = 1;
const BOTH: u16 = revoke::IN_USE;

impl Shared {
    fn use_page(&self) {
        self.page.with_mut(|page| {
            // SAFETY: see above.
            unsafe { *page += 1 };
        });
    }
}

struct V1<'a>(&'a Shared);

impl revoke::FlagsV1 for V1<'_> {
    fn load(&self) -> u16 {
        self.0.flags.load(Ordering::Relaxed)
    }
    fn clear(&self, old: u16) -> Result<(), u16> {
        self.0.flags.compare_exchange(old, 0, Ordering::AcqRel, Ordering::Acquire).map(drop)
    }
}

struct V2<'a, const FENCED: bool>(&'a Shared);

impl<const FENCED: bool> revoke::WordsV2 for V2<'_, FENCED> {
    fn clear_flags(&self) {
        self.0.flags.store(0, Ordering::Relaxed);
    }
    fn fence(&self) {
        if FENCED {
            fence(Ordering::SeqCst);
        }
    }
    fn status(&self) -> u16 {
        self.0.status.load(Ordering::Acquire)
    }
}

/// Xen lets the peer use a version 1 grant, once, if it is one.
fn peer_v1(shared: &Shared) {
    let flags = shared.flags.load(Ordering::Relaxed);
    if flags & GRANTED == 0 {
        return;
    }
    if shared.flags.compare_exchange(flags, flags | BOTH, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
        shared.use_page();
        shared.flags.fetch_and(!BOTH, Ordering::Release);
    }
}

/// Likewise with version 2.
fn peer_v2(shared: &Shared) {
    if shared.flags.load(Ordering::Relaxed) & GRANTED == 0 {
        return;
    }
    shared.status.fetch_or(BOTH, Ordering::AcqRel);
    fence(Ordering::SeqCst);
    if shared.flags.load(Ordering::Relaxed) & GRANTED != 0 {
        shared.use_page();
    }
    shared.status.fetch_and(!BOTH, Ordering::Release);
}

fn a_page_is_taken_away(peer: fn(&Shared), revoke: fn(&Shared) -> bool) {
    loom::model(move || {
        let shared = Arc::new(Shared {
            flags: AtomicU16::new(GRANTED),
            status: AtomicU16::new(0),
            page: loom::cell::UnsafeCell::new(0),
        });
        let theirs = shared.clone();
        let thread = thread::spawn(move || peer(&theirs));
        // The second time is the sweep's.
        if revoke(&shared) || revoke(&shared) {
            shared.use_page();
        }
        thread.join().unwrap();
        assert!(revoke(&shared), "nobody uses it any more");
    });
}

#[test]
fn version_1_never_gives_a_page_to_both() {
    a_page_is_taken_away(peer_v1, |shared| revoke::revoke_v1(&V1(shared)));
}

#[test]
fn version_2_never_gives_a_page_to_both() {
    a_page_is_taken_away(peer_v2, |shared| revoke::revoke_v2(&V2::<true>(shared)));
}

#[test]
#[should_panic]
fn version_2_without_the_fence_does() {
    a_page_is_taken_away(peer_v2, |shared| revoke::revoke_v2(&V2::<false>(shared)));
}

/// One portion of the quarantine with two slots, of which a page may be in each.
struct Portion {
    mark: AtomicU32,
    slots: [AtomicU32; 2],
    /// What was taken out, and how often.
    found: [AtomicU32; 2],
}

impl Mark for Portion {
    fn set(&self) {
        self.mark.fetch_or(1, Ordering::AcqRel);
    }
    fn take(&self) -> bool {
        self.mark.load(Ordering::Relaxed) & 1 != 0 && self.mark.fetch_and(!1, Ordering::AcqRel) & 1 != 0
    }
}

impl Portion {
    fn put(&self, slot: usize) {
        marks::put(self, || self.slots[slot].store(1, Ordering::Release));
    }

    fn look(&self) {
        for (slot, found) in self.slots.iter().zip(&self.found) {
            let here = slot.load(Ordering::Relaxed) == 1;
            if here && slot.compare_exchange(1, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                found.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn sweep(&self) {
        marks::sweep(self, || self.look());
    }

    /// Takes the mark away only after it has looked.
    fn sweep_and_unmark(&self) {
        if self.mark.load(Ordering::Acquire) & 1 != 0 {
            self.look();
            self.take();
        }
    }
}

/// Two references go into quarantine while another vCPU sweeps; a later sweep finds what that one missed.
fn what_enters_during_a_sweep_is_found(sweep: fn(&Portion)) {
    loom::model(move || {
        let portion = Arc::new(Portion {
            mark: AtomicU32::new(0),
            slots: core::array::from_fn(|_| AtomicU32::new(0)),
            found: core::array::from_fn(|_| AtomicU32::new(0)),
        });
        let theirs = portion.clone();
        let sweeper = thread::spawn(move || sweep(&theirs));
        let others = portion.clone();
        let other = thread::spawn(move || others.put(1));
        portion.put(0);
        sweeper.join().unwrap();
        other.join().unwrap();
        sweep(&portion);
        for found in &portion.found {
            assert_eq!(
                found.load(Ordering::Relaxed),
                1,
                "a page is in quarantine for ever, or left it twice"
            );
        }
    });
}

#[test]
fn nothing_stays_in_quarantine_because_a_sweep_was_under_way() {
    what_enters_during_a_sweep_is_found(Portion::sweep);
}

#[test]
#[should_panic(expected = "in quarantine for ever")]
fn with_the_mark_taken_away_after_the_look_it_stays() {
    what_enters_during_a_sweep_is_found(Portion::sweep_and_unmark);
}

/// A table of two frames with one reference each. `TURNS`: whether one grows at a time; `ORDERED`: whether the number of
/// references is published with what is behind it.
struct Growing<const TURNS: bool, const ORDERED: bool> {
    growing: AtomicBool,
    count: AtomicU32,
    /// Written by who makes a frame, read by everybody.
    frames: [loom::cell::UnsafeCell<u32>; 2],
    /// A bit for each reference that was handed out.
    free: AtomicU32,
    /// The second frame cannot be had.
    refused: bool,
}

// SAFETY: a frame is written by its only maker before it is published, and read afterwards; that this holds is what loom
// checks.
unsafe impl<const TURNS: bool, const ORDERED: bool> Sync for Growing<TURNS, ORDERED> {}

impl<const TURNS: bool, const ORDERED: bool> Grows for Growing<TURNS, ORDERED> {
    type Error = ();

    fn begin(&self) -> bool {
        !TURNS || self.growing.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }
    fn end(&self) {
        self.growing.store(false, Ordering::Release);
    }
    fn count(&self) -> u32 {
        self.count.load(Ordering::Acquire)
    }
    fn fill(&self, first: u32) -> Result<u32, ()> {
        let frame = self.frames.get(first as usize).ok_or(())?;
        if first == 1 && self.refused {
            return Err(());
        }
        frame.with_mut(|frame| {
            // SAFETY: see above.
            unsafe { *frame = first + 1 };
        });
        Ok(1)
    }
    fn publish(&self, count: u32) {
        self.count.store(count, if ORDERED { Ordering::Release } else { Ordering::Relaxed });
    }
    fn hand_out(&self, first: u32, count: u32) {
        for reference in first..first + count {
            let before = self.free.fetch_or(1 << reference, Ordering::AcqRel);
            assert_eq!(before & 1 << reference, 0, "handed out twice");
        }
    }
}

impl<const TURNS: bool, const ORDERED: bool> Growing<TURNS, ORDERED> {
    /// Looks at all references that there are, as a sweep does.
    fn look(&self) {
        for reference in 0..self.count() {
            let frame = self.frames[reference as usize].with(|frame| {
                // SAFETY: see above.
                unsafe { *frame }
            });
            assert_eq!(frame, reference + 1);
        }
    }
}

/// Two grow at once while a third looks at what there is.
fn a_table_grows_in_use<const TURNS: bool, const ORDERED: bool>(refused: bool) {
    loom::model(move || {
        let table = Arc::new(Growing::<TURNS, ORDERED> {
            growing: AtomicBool::new(false),
            count: AtomicU32::new(0),
            frames: core::array::from_fn(|_| loom::cell::UnsafeCell::new(0)),
            free: AtomicU32::new(0),
            refused,
        });
        let (theirs, others) = (table.clone(), table.clone());
        let grower = thread::spawn(move || matches!(grow(&*theirs), Some(Ok(()))));
        let looker = thread::spawn(move || others.look());
        let mine = matches!(grow(&*table), Some(Ok(())));
        let theirs = grower.join().unwrap();
        looker.join().unwrap();
        table.look();
        assert!(mine || theirs, "one at least had the turn");
        let grown = u32::from(mine) + u32::from(theirs);
        assert_eq!((table.count(), table.free.load(Ordering::Relaxed)), (grown, (1 << grown) - 1));
        // Nobody has kept the turn.
        assert_eq!(grow(&*table), Some(if grown == 1 && !refused { Ok(()) } else { Err(()) }));
    });
}

#[test]
fn a_table_grows_while_it_is_used() {
    a_table_grows_in_use::<true, true>(false);
}

#[test]
fn a_table_that_cannot_grow_stays_as_it_is() {
    a_table_grows_in_use::<true, true>(true);
}

#[test]
#[should_panic]
fn two_that_grow_at_once_make_one_frame_twice() {
    a_table_grows_in_use::<false, true>(false);
}

#[test]
#[should_panic]
fn a_number_that_is_seen_before_its_frame_leads_nowhere() {
    a_table_grows_in_use::<true, false>(false);
}
